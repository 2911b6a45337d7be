"""A registry inside the process, which fails on demand and records its requests."""

from mirror.testing.faults import (
    Action,
    Answer,
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    Fault,
    Faults,
    IgnoreRange,
    LoseAnswer,
    Refuse,
    Stall,
)
from mirror.testing.registry import EmbeddedRegistry, RecordedRequest, RequestLog, TlsFiles

__all__ = [
    "Action",
    "Answer",
    "CorruptBody",
    "CutResponse",
    "CutUpload",
    "Delay",
    "EmbeddedRegistry",
    "Fault",
    "Faults",
    "IgnoreRange",
    "LoseAnswer",
    "RecordedRequest",
    "Refuse",
    "RequestLog",
    "Stall",
    "TlsFiles",
]
