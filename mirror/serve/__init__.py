"""An OCI registry inside the process: for demonstrations, bootstrapping and tests."""

from mirror.serve.app import create_app
from mirror.serve.auth import Anonymous, Auth, BasicAuth, TokenAuth, User
from mirror.serve.embedded import EmbeddedRegistry, TlsFiles
from mirror.serve.faults import (
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
from mirror.serve.folder import FolderStorage
from mirror.serve.memory import MemoryStorage
from mirror.serve.request_log import RecordedRequest, RequestLog
from mirror.serve.store import (
    BlobReader,
    ReadableStore,
    Staging,
    Store,
    StoredManifest,
    put_blob,
)

__all__ = [
    "Action",
    "Anonymous",
    "Answer",
    "Auth",
    "BasicAuth",
    "BlobReader",
    "CorruptBody",
    "CutResponse",
    "CutUpload",
    "Delay",
    "EmbeddedRegistry",
    "Fault",
    "Faults",
    "FolderStorage",
    "IgnoreRange",
    "LoseAnswer",
    "MemoryStorage",
    "ReadableStore",
    "RecordedRequest",
    "Refuse",
    "RequestLog",
    "Staging",
    "Stall",
    "Store",
    "StoredManifest",
    "TlsFiles",
    "TokenAuth",
    "User",
    "create_app",
    "put_blob",
]
