"""Archives under way in a folder: where each piece of content goes, and what is there already."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirror.bundle.archive import Archive, Entry
from mirror.bundle.files import WriteAt
from mirror.bundle.folder import JOURNAL_STEM, is_leaving, listed
from mirror.bundle.follow import Follower
from mirror.bundle.journal import Journal
from mirror.bundle.names import PARTIAL_SUFFIX
from mirror.bundle.parts import PartedWriter, part_paths, part_sizes
from mirror.bundle.seal import Seal
from mirror.durable import os_errors
from mirror.errors import IntegrityError
from mirror.oci import Digest, Verifier

JOURNAL = JOURNAL_STEM + PARTIAL_SUFFIX


class ArchiveFile(Protocol):
    """An archive under way: one file, or parts."""

    @property
    def parts(self) -> tuple[Path, ...]: ...
    def write(self, offset: int, *pieces: bytes) -> None: ...
    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]: ...
    def sync(self) -> int: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where one copy of some content goes. `follower` is told of what is final."""

    archive: str
    file: ArchiveFile
    entry: Entry
    follower: Follower | None = None

    def write(self, position: int, chunk: bytes, *, final: bool = True) -> None:
        """Put `chunk` of the content at `position`, with the header before the first byte and the
        padding behind the last. What may be written once more is not `final`."""
        entry = self.entry
        header = entry.header if position == 0 else b""
        ends = position + len(chunk) == entry.size
        padding = bytes(entry.padding) if ends else b""
        at = entry.offset if header else entry.data_offset + position
        self.file.write(at, header, chunk, padding)
        if self.follower is not None and final:
            self.follower.done(at, len(header) + len(chunk) + len(padding))

    def is_final(self) -> None:
        """All of it is there and will not change."""
        if self.follower is not None:
            entry = self.entry
            behind = entry.data_offset + entry.size + entry.padding
            self.follower.done(entry.offset, behind - entry.offset)

    def read(self, size: int) -> Generator[bytes, None, None]:
        """The first `size` bytes of the content."""
        return self.file.chunks(self.entry.data_offset, size)


class Workplace:
    """The partial archives in a folder, and what the journal beside them says is in them.

    `places` are those of content that is carried; `own` those of files whose content the archive
    itself brings. `follow` makes the follower of each archive, if it is to have one.
    """

    def __init__(
        self,
        folder: Path,
        seal: Seal,
        part_size: int,
        *,
        keep: bool,
        follow: Callable[[Archive, ArchiveFile], Follower] | None = None,
    ) -> None:
        self.journal = Journal(folder / JOURNAL, part_size)
        self.files: dict[str, ArchiveFile] = {}
        self.places: dict[tuple[str, Digest], list[Place]] = {}
        self.own: list[Place] = []
        try:
            for archive in seal.archives.values():
                path = folder / (archive.name + PARTIAL_SUFFIX)
                self.files[archive.name] = file = _open_archive(path, archive, part_size, keep=keep)
                follower = follow(archive, file) if follow is not None else None
                for entry in archive.entries:
                    place = Place(archive.name, file, entry, follower)
                    if entry.content is None:
                        key = (entry.repository, entry.digest)
                        self.places.setdefault(key, []).append(place)
                    else:
                        self.own.append(place)
        except BaseException:
            self.close()
            raise

    def finished(self) -> dict[Digest, Place]:
        """The blobs that are all there, each with one of its places."""
        progress = self.journal.progress
        return {
            digest: places[0]
            for (_, digest), places in self.places.items()
            if progress.get(digest) == places[0].entry.size
        }

    def close(self) -> None:
        """Release the files."""
        self.journal.close()
        for file in self.files.values():
            file.close()


def _open_archive(path: Path, archive: Archive, part_size: int, *, keep: bool) -> ArchiveFile:
    if part_size:
        return PartedWriter(path, archive.size, part_size, keep=keep)
    return WriteAt(path, keep=keep)


def file_names(path: Path, archive: Archive, part_size: int) -> Sequence[Path]:
    """The partial files of an archive, whether they exist or not."""
    if not part_size:
        return (path,)
    return part_paths(path, len(part_sizes(archive.size, part_size)))


def is_there(place: Place) -> bool:
    """Whether the content in a place is all there and right."""
    verifier = Verifier(place.entry.digest, place.entry.size, place.entry.path)
    try:
        for chunk in place.read(place.entry.size):
            verifier.update(chunk)
        verifier.finish()
    except IntegrityError:
        return False
    return True


def allocated(folder: Path) -> int:
    """Bytes of the disk that the partial archives in `folder` have already."""
    with os_errors(folder, "examine"):
        return sum(
            path.stat().st_blocks * 512
            for path in listed(folder)
            if is_leaving(path.name) and path.is_file()
        )
