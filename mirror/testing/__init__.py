"""Registries that fail on demand: one inside the process, and a proxy before any other.

`mirror.testing.plugin` has fixtures for pytest. `every_fault` names what networks, registries and
proxies are known to do.
"""

from mirror.testing.faults import (
    Action,
    Answer,
    ChangeHeaders,
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    Drip,
    Encode,
    EndlessBody,
    Fault,
    Faults,
    IgnoreRange,
    LoseAnswer,
    Redirect,
    Refuse,
    RepeatAnswer,
    ShiftRange,
    Stall,
    WrongLength,
    every_fault,
)
from mirror.testing.servers import (
    EmbeddedRegistry,
    FaultyProxy,
    FaultyServer,
    RecordedRequest,
    RequestLog,
    TlsFiles,
)

__all__ = [
    "Action",
    "Answer",
    "ChangeHeaders",
    "CorruptBody",
    "CutResponse",
    "CutUpload",
    "Delay",
    "Drip",
    "EmbeddedRegistry",
    "Encode",
    "EndlessBody",
    "Fault",
    "Faults",
    "FaultyProxy",
    "FaultyServer",
    "IgnoreRange",
    "LoseAnswer",
    "RecordedRequest",
    "Redirect",
    "Refuse",
    "RepeatAnswer",
    "RequestLog",
    "ShiftRange",
    "Stall",
    "TlsFiles",
    "WrongLength",
    "every_fault",
]
