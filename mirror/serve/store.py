"""What a registry needs of the store that holds its content, a store in memory, one of a bundle.

Stores are synchronous and thread-safe: the server calls them from worker threads. The server has
checked all names: repositories by `check_repository`, tags by `check_tag`.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from mirror.bundle.archive import missing_findings
from mirror.bundle.contents import OpenArchive
from mirror.bundle.members import TarMember
from mirror.bundle.reader import BundleReader, placed
from mirror.bundle.seekable import SeekableFile
from mirror.errors import DigestMismatchError, MissingBaseError
from mirror.oci import Digest, Manifest
from mirror.sync import FailoverSource, Inventory, MemoryStore, RepositoryContent, union


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

        Bytes of another digest are a DigestMismatchError, and nothing of them is kept.
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


# -- a bundle where it lies: nothing is unpacked, and nothing is written --------------------------


class BundleStorage:
    """A `ReadableStore` of what a registry holds after a push of `bundle` to the path `root`.

    What a delta leaves out comes from `bases`; their own tags are not served. `index` is what a
    push adds (`mirror.release.discovery`). Bytes are those of the archives, not verified again:
    clients verify what they get by its digest. The readers stay the caller's to close.

    Raises:
        DamagedBundleError: a bundle is not whole.
        MissingBaseError: no bundle here has what a delta leaves out.
    """

    def __init__(
        self,
        bundle: BundleReader,
        bases: Sequence[BundleReader] = (),
        *,
        root: str = "",
        index: MemoryStore | None = None,
    ) -> None:
        self._bundle, self._readers, self._root = bundle, (bundle, *bases), root
        self._index = index if index is not None else MemoryStore()
        wanted = bundle.inventory()
        self._check(wanted, bases)
        self.inventory: Inventory = union([wanted, self._index.inventory()])
        """All that is served; paths are those below `root`."""
        self._source = FailoverSource([*self._readers, self._index])
        self._referrers = {
            path: _referrers(content) for path, content in self.inventory.repositories.items()
        }

    def _check(self, wanted: Inventory, bases: Sequence[BundleReader]) -> None:
        for base in bases:
            base.inventory()
        at_hand = union(reader.carried() for reader in self._readers)
        nodes, sizes = at_hand.manifest_nodes(), at_hand.blob_sizes()
        missing = [
            finding
            for finding in missing_findings(wanted, wanted, self._bundle.carried(), "the bundle")
            if finding.digest not in nodes and finding.digest not in sizes
        ]
        if missing:
            made = ", ".join(map(str, self._bundle.bases))
            raise MissingBaseError(
                f"{len(missing)} of the manifests and blobs that {self._bundle.name} needs are "
                f"in none of the bundles: it is a delta, made against inventory {made}; name that "
                "bundle with --base, and all deltas between",
                [finding.located for finding in missing],
            )

    def repositories(self) -> Sequence[str]:
        paths = self.inventory.repositories.items()
        return sorted(self._name(path) for path, content in paths if content.manifests)

    def has_repository(self, repository: str) -> bool:
        return bool(self._content(repository).manifests)

    def tags(self, repository: str) -> Sequence[str]:
        return sorted(self._content(repository).tags)

    def resolve(self, repository: str, tag: str) -> Digest | None:
        return self._content(repository).tags.get(tag)

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        if digest not in self._content(repository).manifests:
            return None
        found = self._source.manifest(self._path(repository) or "", digest)
        return StoredManifest(found.media_type, found.raw)

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        return self._content(repository).blobs.get(digest)

    def open_blob(self, repository: str, digest: Digest) -> BlobReader | None:
        size = self.blob_size(repository, digest)
        if size is None:
            return None
        path = self._path(repository) or ""
        found = placed(self._readers, path, digest, size)
        if found is not None:
            return _ArchivedBlob(*found)
        return MemoryReader(bytearray().join(self._index.blob(path, digest, size)))

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        return self._referrers.get(self._path(repository) or "", {}).get(subject, ())

    def _name(self, path: str) -> str:
        return "/".join(part for part in (self._root, path) if part)

    def _path(self, repository: str) -> str | None:
        """The path below the root that `repository` is; None for one beside it."""
        if not self._root or repository == self._root:
            return repository[len(self._root) :]
        inside = repository.startswith(f"{self._root}/")
        return repository[len(self._root) + 1 :] if inside else None

    def _content(self, repository: str) -> RepositoryContent:
        path = self._path(repository)
        return self.inventory.repository(path) if path is not None else RepositoryContent()


def _referrers(content: RepositoryContent) -> dict[Digest, list[Digest]]:
    """Subject → the manifests that refer to it, in order of digest."""
    found: dict[Digest, list[Digest]] = {}
    for digest, node in sorted(content.manifests.items()):
        if node.subject is not None:
            found.setdefault(node.subject, []).append(digest)
    return found


class _ArchivedBlob:
    """A blob inside an archive, which whoever opened the bundle closes."""

    def __init__(self, archive: OpenArchive, member: TarMember) -> None:
        self._file, self._start, self.size = archive.file, member.offset, member.size

    def read_at(self, offset: int, length: int) -> bytes:
        return self._file.read(self._start + offset, min(length, self.size - offset))

    def pieces(self, offset: int, length: int) -> Sequence[FilePiece]:
        at, file = self._start + offset, self._file
        if isinstance(file, SeekableFile):
            return ()
        parts = [part for part in file.parts if isinstance(part, Path)]  # no others can be sent
        ends = file.ends
        found: list[FilePiece] = []
        while parts and length:
            number = bisect_right(ends, at)
            begin = ends[number - 1] if number else 0
            size = min(length, ends[number] - at)
            found.append(FilePiece(parts[number], at - begin, size))
            at, length = at + size, length - size
        return found

    def close(self) -> None:
        """Do nothing."""
