"""An OCI registry as a server: its application, authentication and stores."""

from mirror.serve.app import create_app
from mirror.serve.call import Anonymous, Auth, BasicAuth, TokenAuth, User
from mirror.serve.folder import FolderStorage
from mirror.serve.store import (
    BlobReader,
    BlobStaging,
    MemoryStorage,
    ReadableStore,
    Store,
    StoredManifest,
    put_blob,
)

__all__ = [
    "Anonymous",
    "Auth",
    "BasicAuth",
    "BlobReader",
    "BlobStaging",
    "FolderStorage",
    "MemoryStorage",
    "ReadableStore",
    "Store",
    "StoredManifest",
    "TokenAuth",
    "User",
    "create_app",
    "put_blob",
]
