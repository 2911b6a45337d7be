"""What the embedded registry needs of the place where its content lives.

Stores are synchronous and thread-safe; the server calls them from worker threads. Names reach them
parsed: a repository has passed `check_repository`, a tag `check_tag`, a digest is a `Digest`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from mirror.errors import DigestMismatchError
from mirror.oci import Digest, Manifest


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest's exact bytes and the media type it is served with."""

    media_type: str
    raw: bytes = field(repr=False)


class BlobReader(Protocol):
    """An open blob. `size` is in bytes; whoever opened it closes it."""

    @property
    def size(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; empty only at the end."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class ReadableStore(Protocol):
    """The half of a store that pulling needs; a bundle can be served through it alone."""

    def repositories(self) -> Sequence[str]:
        """Every repository that holds a manifest, in code-point order."""
        ...

    def has_repository(self, repository: str) -> bool:
        """Whether `repository` holds a manifest."""
        ...

    def tags(self, repository: str) -> Sequence[str]:
        """The repository's tags in code-point order; empty if there are none."""
        ...

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """What `tag` names now."""
        ...

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        """A manifest of this repository."""
        ...

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """The size in bytes of a blob of this repository, None if it is not there."""
        ...

    def open_blob(self, repository: str, digest: Digest) -> BlobReader | None:
        """Open a blob of this repository, None if it is not there."""
        ...

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        """The manifests of this repository whose `subject` is that one, in order of digest."""
        ...


class Staging(Protocol):
    """Bytes of one upload on their way in, hashed as they pass. Used by one thread at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        ...

    def write(self, data: bytes) -> None: ...

    def commit(self, repository: str, digest: Digest) -> None:
        """Make the bytes a blob of `repository`. The staging is over, whatever happens.

        Raises:
            DigestMismatchError: these bytes have another digest; nothing is kept.
        """
        ...

    def discard(self) -> None:
        """Drop the bytes; harmless after `commit` and when repeated."""
        ...


@runtime_checkable
class Store(ReadableStore, Protocol):
    """A store that can be pushed into. Deleting answers whether there was something to delete."""

    def stage(self, algorithm: str = "sha256") -> Staging:
        """Begin an upload; `algorithm` is the one its digest is expected in."""
        ...

    def mount_blob(self, source: str, target: str, digest: Digest) -> bool:
        """Make a blob of repository `source` one of `target` too; False if it is not there."""
        ...

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        """Keep `manifest` and then, in one step, point `tag` at it."""
        ...

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        """Remove a manifest and every tag that names it."""
        ...

    def delete_tag(self, repository: str, tag: str) -> bool:
        """Remove a tag; its manifest stays."""
        ...

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        """Remove a blob from this repository; others that hold it keep it."""
        ...


class RunningDigest:
    """Hashes an upload whose digest is told only at its end (distribution-spec, "PUT")."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm, self.size = algorithm, 0
        self._hash = hashlib.new(algorithm)

    def update(self, data: bytes) -> None:
        """Take the next bytes into account."""
        self._hash.update(data)
        self.size += len(data)

    def check(self, expected: Digest, again: Callable[[], Iterable[bytes]]) -> None:
        """Compare with `expected`.

        `again` gives the same bytes once more. It is called only if the client announced one
        algorithm (or none, which means sha256) and named a digest in another.

        Raises:
            DigestMismatchError: these are other bytes.
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
    """Put `data` into a store directly, without a server; answer its digest."""
    digest = Digest.of(data)
    staging = store.stage()
    staging.write(data)
    staging.commit(repository, digest)
    return digest
