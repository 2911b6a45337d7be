"""A store that reads a bundle where it lies: nothing is unpacked, and nothing is written."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from mirror.bundle.archive import missing_findings
from mirror.bundle.contents import OpenArchive
from mirror.bundle.files import PartedReader
from mirror.bundle.members import TarMember
from mirror.bundle.reader import BundleReader, placed
from mirror.bundle.seekable import SeekableFile
from mirror.errors import MissingBaseError
from mirror.oci import Digest
from mirror.serve.store import BlobReader, FilePiece, MemoryReader, StoredManifest
from mirror.sync import FailoverSource, Inventory, MemoryStore, RepositoryContent, union


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
        ends = file.ends if isinstance(file, PartedReader) else (file.size,)
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
