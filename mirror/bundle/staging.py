"""Archives under way in a folder: where each piece of content goes, and what is there already.

The journal beside them says how much of which blob lies in place: one line per statement,
`<digest> <bytes>`, appended after the bytes were written. Its first line names the size of the
archives' parts (0: they are whole), without which their bytes would not be found.

A claim counts at first if the files are long enough for it. What a process wrote outlives it, but a
power cut or a disk that was pulled out takes what had not reached the disk, and nothing but the
bytes tells. They are read for the sums anyway, from first to last, and `follow.EntryCheck` looks at
them as they pass: a bundle whose claims were wrong gets no seal.
"""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mirror.bundle.archive import Archive, Entry
from mirror.bundle.files import WriteAt
from mirror.bundle.follow import Follower
from mirror.bundle.format import PARTIAL_SUFFIX
from mirror.bundle.seal import Seal
from mirror.durable import Folder, os_errors
from mirror.errors import IntegrityError, InvalidDigestError
from mirror.oci import Digest, Verifier
from mirror.sync import CopyBlob, Plan

JOURNAL = "pull.journal" + PARTIAL_SUFFIX
_MOST_LINES = 5000
"""A longer journal is rewritten with what still counts: it stays below some 400 KB, or 80 bytes
per blob."""
_MOST_BYTES = 32 << 20
"""A journal of our own is far below; what somebody else put in its place claims nothing."""
_FIRST = re.compile(r"parts (?P<size>[0-9]{1,18})")
_CLAIM = re.compile(r"(?P<digest>[^ ]+) (?P<count>[0-9]{1,18})\n")


class ArchiveFile(Protocol):
    """An archive under way, written at offsets by any number of threads; each byte once.

    `reports`: it tells its follower itself what is there.
    """

    reports: bool
    parts: tuple[Path, ...]
    """The files that it consists of."""
    sizes: tuple[int, ...]
    """The bytes of each, when it is whole."""

    def write(self, offset: int, *pieces: bytes) -> None:
        """Put `pieces`, one behind the other, at `offset`."""

    def chunks(self, offset: int, size: int) -> Generator[bytes | memoryview, None, None]:
        """Read back what was written, in pieces of at most a few MiB."""

    def sync(self) -> int:
        """Make what was written outlive a power cut; return how many bytes that is."""

    def close(self) -> None: ...


Follow = Callable[[Archive, ArchiveFile, list[Entry]], Follower]
"""Makes the follower of an archive; it gets the entries that something is claimed about."""


class Claims(ABC):
    """What an interrupted run says of the content that it brought. Thread-safe."""

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether anything is there that the next run may use."""

    @abstractmethod
    def claims(self, archive: str, entry: Entry, /) -> bool:
        """Whether the run says that it brought a part of an entry, so that it must be checked."""

    @abstractmethod
    def holds(self, archive: str, entry: Entry, /) -> bool:
        """Whether all of an entry is said to be there."""

    @abstractmethod
    def forget(self, digests: Iterable[Digest]) -> None:
        """These are not there, whatever was said before."""

    def count(self, _digest: Digest) -> int:
        """How many bytes of a blob are in place, from its beginning on."""
        return 0

    def behind(self, _place: BlobSlot) -> int:
        """The same of a place whose bytes nothing can read before its archive is complete."""
        return 0

    def note(self, digest: Digest, count: int) -> None:  # noqa: B027 a bucket lists what arrived
        """Note that the first `count` bytes of a blob are written, wherever it belongs."""

    def came_short(self, _places: Iterable[BlobSlot], *, wrong: bool) -> bool:  # noqa: ARG002
        """Content of these places is `wrong`, or not all there; whether it takes another run to
        bring it. In a folder the same bytes are written again, at the same place."""
        return False

    def close(self) -> None:  # noqa: B027 nothing is open
        """Let go of what it is written down in."""


class Journal(Claims):
    """Says how many bytes of each blob are in place, from its beginning on. Thread-safe."""

    def __init__(self, folder: Folder, part_size: int = 0) -> None:
        """Go on with the journal in `folder`, or begin one for archives in parts of `part_size`."""
        self._folder, self._path = folder, folder / JOURNAL
        self._lock = threading.Lock()
        known_size, self._progress = read_journal(folder)
        self.part_size = part_size if known_size is None else known_size
        self._lines = len(self._progress)
        with os_errors(self._path, "write"):
            if known_size is None:
                folder.unlink(JOURNAL)
                os.close(folder.create(JOURNAL))
            self._fd: int | None = folder.open(JOURNAL, os.O_WRONLY | os.O_APPEND)
        if known_size is None:
            self._append(self._header())

    @property
    def progress(self) -> Mapping[Digest, int]:
        """Digest → bytes in place, of every blob that was begun."""
        with self._lock:
            return dict(self._progress)

    @property
    def begun(self) -> bool:
        return bool(self._progress)

    def claims(self, _archive: str, entry: Entry) -> bool:
        return entry.digest in self._progress

    def holds(self, _archive: str, entry: Entry) -> bool:
        return self._progress.get(entry.digest) == entry.size

    def count(self, digest: Digest) -> int:
        return self._progress.get(digest, 0)

    def note(self, digest: Digest, count: int) -> None:
        with self._lock:
            self._progress[digest] = count
            self._append(f"{digest} {count}\n")
            self._lines += 1
            if self._lines > max(_MOST_LINES, 2 * len(self._progress)):
                self._rewrite()

    def forget(self, digests: Iterable[Digest]) -> None:
        with self._lock:
            for digest in digests:
                self._progress.pop(digest, None)
            self._rewrite()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _rewrite(self) -> None:
        """Write one line per blob, in place of all lines; readers see the one or the other."""
        lines = [self._header(), *(f"{d} {n}\n" for d, n in self._progress.items())]
        with os_errors(self._path, "write"):
            self._folder.write(
                JOURNAL, "".join(lines).encode("ascii"), staged=JOURNAL + PARTIAL_SUFFIX
            )
            self._close()
            self._fd = self._folder.open(JOURNAL, os.O_WRONLY | os.O_APPEND)
        self._lines = len(self._progress)

    def _header(self) -> str:
        return f"parts {self.part_size}\n"

    def _append(self, line: str) -> None:
        assert self._fd is not None
        with os_errors(self._path, "write"):
            os.write(self._fd, line.encode("ascii"))  # one call: a line is there or is not


def read_journal(folder: Folder) -> tuple[int | None, dict[Digest, int]]:
    """Return the part size and the claims of a folder's journal; None if there is none to be read.

    Lines that are torn, or not of a journal, claim nothing.
    """
    try:
        text = folder.read(JOURNAL, _MOST_BYTES).decode("ascii")
    except (OSError, UnicodeError):
        return None, {}
    first, newline, rest = text.partition("\n")
    match = _FIRST.fullmatch(first)
    if not newline or match is None:
        return None, {}
    claims: dict[Digest, int] = {}
    for found in filter(None, map(_CLAIM.fullmatch, rest.splitlines(keepends=True))):
        with suppress(InvalidDigestError):
            claims[Digest.parse(found["digest"])] = int(found["count"])
    return int(match["size"]), claims


@dataclass(frozen=True, slots=True)
class BlobSlot:
    """Where one copy of some content goes. `follower` hears what is final."""

    archive: str
    file: ArchiveFile
    entry: Entry
    follower: Follower | None = None

    def write(self, position: int, *pieces: bytes, final: bool = True) -> None:
        """Put `pieces` of the content at `position`, one behind the other.

        The header goes before the first byte of the content, and padding behind the last. What may
        be written once more is not `final`.
        """
        entry = self.entry
        at, size = entry.data_offset + position, sum(map(len, pieces))
        if position + size == entry.size and entry.padding:
            pieces = (*pieces, bytes(entry.padding))
            size += entry.padding
        if position == 0:
            pieces = (entry.header, *pieces)
            at, size = entry.offset, size + entry.data_offset - entry.offset
        self.file.write(at, *pieces)
        if self.follower is not None and final:
            self.follower.done(at, size)

    def is_final(self) -> None:
        """Report to the follower that all of it is there and final."""
        if self.follower is not None:
            self.follower.done(self.entry.offset, self.entry.end - self.entry.offset)

    def read(self, size: int) -> Generator[bytes, None, None]:
        yield from map(bytes, self.file.chunks(self.entry.data_offset, size))

    def is_whole(self) -> bool:
        verifier = Verifier(self.entry.digest, self.entry.size, self.entry.path)
        try:
            for chunk in self.read(self.entry.size):
                verifier.update(chunk)
            verifier.finish()
        except IntegrityError:
            return False
        return True


class ArchiveStaging:
    """Archives under way, and what is said to be in them. It closes what it is made of.

    `places` are those of content that is carried; `own` those of files whose content the archive
    itself brings. `follow` makes the follower of each archive, if it is to have one; it gets the
    entries that something is claimed about.
    """

    def __init__(
        self,
        journal: Claims,
        files: Mapping[str, ArchiveFile],
        seal: Seal,
        follow: Follow | None = None,
    ) -> None:
        self.journal, self.files = journal, files
        self.places: dict[tuple[str, Digest], list[BlobSlot]] = {}
        self.own: list[BlobSlot] = []
        self._lock = threading.Lock()
        self._between: dict[str, deque[BlobSlot]] = {}  # by archive, in its order; under the lock
        try:
            for name, archive in sorted(seal.archives.items()):
                file = files[name]
                follower = None
                if follow is not None:
                    claimed = [entry for entry in archive.entries if journal.claims(name, entry)]
                    follower = follow(archive, file, claimed)
                manifests = archive.inventory.manifest_nodes()
                between = self._between[name] = deque()
                for entry in archive.entries:
                    place = BlobSlot(name, file, entry, None if file.reports else follower)
                    if not file.reports and (entry.content or entry.digest in manifests):
                        between.append(place)
                    if entry.content is None:
                        key = (entry.repository, entry.digest)
                        self.places.setdefault(key, []).append(place)
                    else:
                        self.own.append(place)
        except BaseException:
            self.close()
            raise

    def finished(self) -> dict[Digest, BlobSlot]:
        """Return the blobs that are all there, each with one of its places."""
        return {
            digest: places[0] for (_, digest), places in self.places.items() if self.has(places[0])
        }

    def has(self, place: BlobSlot) -> bool:
        """Whether an interrupted run has brought all of the content of a place."""
        return self.journal.holds(place.archive, place.entry)

    def due_before(self, blob: BlobSlot) -> list[BlobSlot]:
        """What lies between blobs (manifests, an archive's own files) before that of a place.

        Each is returned once. Archives that report themselves want it as soon as it is known.
        """
        due, waiting = list[BlobSlot](), self._between[blob.archive]
        with self._lock:
            while waiting and waiting[0].entry.offset < blob.entry.offset:
                due.append(waiting.popleft())
        return due

    def in_archive_order(self, plan: Plan) -> Plan:
        """The same plan, its blobs in the order in which they lie in the archives."""

        def first(step: CopyBlob) -> tuple[str, int]:
            places = [place for path in step.into for place in self.places[path, step.digest]]
            return min((place.archive, place.entry.offset) for place in places)

        return replace(plan, blobs=tuple(sorted(plan.blobs, key=first)))

    def close(self) -> None:
        self.journal.close()
        for file in self.files.values():
            file.close()


def folder_staging(
    folder: Folder, seal: Seal, part_size: int, *, keep: bool, follow: Follow | None = None
) -> ArchiveStaging:
    """The partial archives in a folder, and the journal beside them.

    Raises:
        FileSystemError, NoSpaceError: they cannot be created.
    """
    journal = Journal(folder, part_size)
    files: dict[str, WriteAt] = {}
    try:
        for name, archive in sorted(seal.archives.items()):
            staged = name + PARTIAL_SUFFIX
            files[name] = WriteAt(folder, staged, archive.size, part_size, keep=keep)
        # What cannot be there: a file was taken away, or copied in part, since.
        claims = journal.progress
        impossible = {
            entry.digest
            for name, archive in seal.archives.items()
            for entry in archive.entries
            if entry.digest in claims and not _has_room(files[name], entry, claims[entry.digest])
        }
        if impossible:
            journal.forget(impossible)
    except BaseException:
        journal.close()
        for file in files.values():
            file.close()
        raise
    return ArchiveStaging(journal, files, seal, follow)


def _has_room(file: WriteAt, entry: Entry, count: int) -> bool:
    """Whether the file is long enough to hold the first `count` bytes of an entry."""
    end = entry.end if count >= entry.size else entry.data_offset + count
    return file.reaches(entry.offset, end)
