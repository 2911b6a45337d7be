"""What a registry needs of the store that holds its content, and a store in memory.

Stores are synchronous and thread-safe: the server calls them from worker threads. The server has
checked all names: repositories by `check_repository`, tags by `check_tag`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from mirror.errors import DigestMismatchError
from mirror.oci import Digest, Manifest


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest's exact bytes and the media type it is served with."""

    media_type: str
    raw: bytes = field(repr=False)


class FilePiece(NamedTuple):
    """`size` bytes of a blob that lie in the file `path` from `offset` on, as they are served."""

    path: Path
    offset: int
    size: int


class BlobReader(Protocol):
    """An open blob of `size` bytes; its opener closes it."""

    @property
    def size(self) -> int: ...
    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; empty only at the end."""

    def pieces(self, offset: int, length: int) -> Sequence[FilePiece]:
        """Where these bytes lie in files, in order; nothing if they must be read by `read_at`."""

    def close(self) -> None: ...


@runtime_checkable
class ReadableStore(Protocol):
    """The half of a store that pulling needs."""

    def repositories(self) -> Sequence[str]:
        """Every repository that holds a manifest, in code-point order."""

    def has_repository(self, repository: str) -> bool:
        """Whether `repository` holds a manifest."""

    def tags(self, repository: str) -> Sequence[str]:
        """The repository's tags in code-point order; empty if there are none."""

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """The digest that `tag` names; None if there is no such tag."""

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        """A manifest of this repository, None if it is not there."""

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The size in bytes of a blob of this repository, None if it is not there."""

    def open_blob(self, repository: str, digest: Digest) -> BlobReader | None:
        """Open a blob of this repository, None if it is not there."""

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        """The manifests of this repository whose `subject` is that one, in order of digest."""


class BlobStaging(Protocol):
    """The bytes of one upload, hashed as they come in. One thread uses it at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    def write(self, data: bytes) -> None: ...
    def commit(self, repository: str, digest: Digest) -> None:
        """Make the bytes a blob of `repository`. The staging ends, even if this fails.

        Raises:
            DigestMismatchError: these bytes have another digest; nothing is kept.
        """

    def discard(self) -> None:
        """Drop the bytes; harmless after `commit` and when repeated."""


@runtime_checkable
class Store(ReadableStore, Protocol):
    """A store that can be pushed into. A deletion returns whether there was anything to delete."""

    def stage(self, algorithm: str = "sha256") -> BlobStaging:
        """Begin an upload whose digest is expected in `algorithm`."""

    def mount_blob(self, source: str, target: str, digest: Digest) -> bool:
        """Make a blob of repository `source` one of `target` too; False if it is not there."""

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Keep `manifest` and then, in one step, point `tag` at it."""

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        """Remove a manifest and every tag that names it."""

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Remove a tag; its manifest stays."""

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        """Remove a blob from this repository; others that hold it keep it."""


class RunningDigest:
    """Hashes an upload, whose digest the client names at its end (distribution-spec, "PUT")."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm, self.size = algorithm, 0
        self._hash = hashlib.new(algorithm)

    def update(self, data: bytes) -> None:
        """Take the next bytes into account."""
        self._hash.update(data)
        self.size += len(data)

    def check(self, expected: Digest, again: Callable[[], Iterable[bytes]]) -> None:
        """Compare with `expected`, or raise DigestMismatchError.

        `again` gives the same bytes once more. It is called only if the client named a digest in
        another algorithm than the one it had announced (sha256 if none).
        """
        if expected.algorithm != self.algorithm:
            rehashed = RunningDigest(expected.algorithm)
            for chunk in again():
                rehashed.update(chunk)
            return rehashed.check(expected, again)
        actual = Digest(self.algorithm, self._hash.hexdigest())
        if actual != expected:
            raise DigestMismatchError(where="upload", expected=expected, actual=actual)
        return None


def put_blob(store: Store, repository: str, data: bytes) -> Digest:
    """Put `data` into a store, without a server; return its digest."""
    digest = Digest.of(data)
    staging = store.stage()
    try:
        staging.write(data)
    except BaseException:
        staging.discard()  # a full disk, say: what is left of it would stay there
        raise
    staging.commit(repository, digest)
    return digest


@dataclass(slots=True)
class _StoredRepository:
    blobs: dict[Digest, bytearray] = field(default_factory=dict)
    manifests: dict[Digest, StoredManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    referrers: dict[Digest, set[Digest]] = field(default_factory=dict)


class InMemory:
    """Marks what waits for no disk."""


class MemoryStorage(InMemory):
    """A `Store` in memory; its content ends with the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._repositories: dict[str, _StoredRepository] = {}

    def repositories(self) -> Sequence[str]:
        with self._lock:
            return sorted(name for name, held in self._repositories.items() if held.manifests)

    def has_repository(self, repository: str) -> bool:
        with self._lock:
            return bool(self._at(repository).manifests)

    def tags(self, repository: str) -> Sequence[str]:
        with self._lock:
            return sorted(self._at(repository).tags)

    def resolve(self, repository: str, tag: str) -> Digest | None:
        with self._lock:
            return self._at(repository).tags.get(tag)

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        with self._lock:
            return self._at(repository).manifests.get(digest)

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        with self._lock:
            data = self._at(repository).blobs.get(digest)
            return None if data is None else len(data)

    def open_blob(self, repository: str, digest: Digest) -> MemoryReader | None:
        with self._lock:
            data = self._at(repository).blobs.get(digest)
            return None if data is None else MemoryReader(data)

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        with self._lock:
            return sorted(self._at(repository).referrers.get(subject, ()))

    def stage(self, algorithm: str = "sha256") -> _MemoryStaging:
        return _MemoryStaging(self, algorithm)

    def mount_blob(self, source: str, target: str, digest: Digest) -> bool:
        with self._lock:
            data = self._at(source).blobs.get(digest)
            if data is None:
                return False
            self._make(target).blobs[digest] = data
            return True

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        with self._lock:
            held = self._make(repository)
            held.manifests[manifest.digest] = StoredManifest(manifest.media_type, manifest.raw)
            if manifest.subject:
                held.referrers.setdefault(manifest.subject.digest, set()).add(manifest.digest)
            if tag is not None:
                held.tags[tag] = manifest.digest

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        with self._lock:
            held = self._at(repository)
            if held.manifests.pop(digest, None) is None:
                return False
            held.tags = {tag: named for tag, named in held.tags.items() if named != digest}
            for refer in held.referrers.values():
                refer.discard(digest)
            return True

    def delete_tag(self, repository: str, tag: str) -> bool:
        with self._lock:
            return self._at(repository).tags.pop(tag, None) is not None

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        with self._lock:
            return self._at(repository).blobs.pop(digest, None) is not None

    def _at(self, repository: str) -> _StoredRepository:
        """A repository to read from: a missing one looks empty and is not created."""
        return self._repositories.get(repository) or _StoredRepository()

    def _make(self, repository: str) -> _StoredRepository:
        return self._repositories.setdefault(repository, _StoredRepository())

    def _keep(self, repository: str, digest: Digest, data: bytearray) -> None:
        with self._lock:
            self._make(repository).blobs[digest] = data


class MemoryReader:
    """A blob in memory, open."""

    def __init__(self, data: bytearray) -> None:
        self._data, self.size = data, len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(memoryview(self._data)[offset : offset + length])

    def pieces(self, offset: int, length: int) -> Sequence[FilePiece]:  # noqa: ARG002
        return ()

    def close(self) -> None:
        self._data = bytearray()


class _MemoryStaging(InMemory):
    def __init__(self, storage: MemoryStorage, algorithm: str) -> None:
        self._storage, self._data = storage, bytearray()
        self._digest = RunningDigest(algorithm)

    @property
    def size(self) -> int:
        return self._digest.size

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._data += data

    def commit(self, repository: str, digest: Digest) -> None:
        data, self._data = self._data, bytearray()
        self._digest.check(digest, lambda: (bytes(data),))
        self._storage._keep(repository, digest, data)

    def discard(self) -> None:
        self._data = bytearray()
