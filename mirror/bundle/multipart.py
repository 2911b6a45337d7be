"""Archives that go into a bucket as multipart uploads, without a disk or a copy.

The parts of an upload follow from the plan alone. They begin and end where entries do, a large
entry is several of them, and none but an object's last is smaller than 5 MiB, which servers demand.
What has arrived is the journal (ListParts). The run that fetches all of a blob sends its last bytes
only once it has proved right; if it proves wrong, its other parts are spoilt. What an interrupted
run has sent of a blob stays, and the next run sends the rest unproved: a part cannot be read before
its object is complete. Hence an archive that is uploaded in one run is hashed in its order while
parts are in memory, and one that an interrupted run began is read back once, when it is complete.
Only that proves a blob that two runs have sent; an object with a wrong one is removed.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mirror.bundle.archive import Archive, Entry
from mirror.bundle.files import CHUNK
from mirror.bundle.follow import Follower, Ranges
from mirror.bundle.format import file_names, part_sizes
from mirror.bundle.uploads import PART, BucketFiles, Destination, Object
from mirror.errors import DamagedBundleError, MirrorError, RegistryNotFoundError
from mirror.oci import Digest
from mirror.registry.downloads import FileState

_MOST_FULL_PARTS = 4900
"""Servers take 10,000 parts, and a part may be half full."""


def cut(ends: Iterable[int], start: int, stop: int) -> list[int]:
    """Return where the parts of an object end that has bytes `start` to `stop` of an archive.

    `ends` are where the archive's entries end, in order. A part ends there, or inside of an entry
    that is cut into equal ones, as small as they may be: an interruption costs those under way.
    Each has at least half as many bytes as may be in one, except for the last.
    """
    most = max(PART, (stop - start) // _MOST_FULL_PARTS + 1)
    found: list[int] = []
    begun = last = start
    for end in (*(one for one in ends if start < one < stop), stop):
        if end - begun > most and last - begun >= most // 2:
            found.append(last)
            begun = last
        if (size := end - begun) > most:
            count = size // (most // 2)
            found += (begun + size * number // count for number in range(1, count + 1))
            begun = end
        last = end
    return found if begun == stop else [*found, stop]


@dataclass(slots=True)
class Stretch:
    """The bytes of an archive that are one part. Changed under the archive's lock.

    `early` are pieces that came before anything else of it did.
    """

    of: Object
    number: int
    start: int
    end: int
    data: mmap.mmap | None = None
    early: list[tuple[int, bytes]] = field(default_factory=list)
    written: Ranges = field(default_factory=Ranges)
    is_sent: bool = False
    is_up: bool = False
    is_spoilt: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it gets memory, and while it is sent."""

    @property
    def size(self) -> int:
        return self.end - self.start


class BucketArchive:
    """An archive that is uploaded while it is written, part by part. An `ArchiveFile`.

    While `is_early`, pieces are few and small, and kept until what is around them comes. `follower`
    hears of what can be read. With `reads_back` that is nothing, before it is complete.
    """

    reports = True

    def __init__(self, to: Destination, archive: Archive, part_size: int) -> None:
        self._bucket, self._memory, self._run = to.bucket, to.memory, to.run
        self.archive, self.is_early, self.reads_back = archive, True, False
        self.follower: Follower | None = None
        names = file_names(archive.name, archive.size, part_size)
        self.parts = tuple(map(Path, names))
        self.sizes = part_sizes(archive.size, part_size or archive.size)
        self.objects: list[Object] = []
        self._stretches: list[Stretch] = []
        ends, start = [entry.end for entry in archive.entries], 0
        for name, size in zip(names, self.sizes, strict=True):
            one = Object(to, name, start, size)
            self.objects.append(one)
            for number, end in enumerate(cut(ends, start, one.start + size), 1):
                self._stretches.append(Stretch(one, number, start, end))
                start = end
        self._starts = [stretch.start for stretch in self._stretches]
        self._own = range(archive.size)  # bytes that are not left to others
        self._lock = threading.Lock()
        self._hashed = 0  # this and the next two under the lock
        self._front = 0  # the first stretch that is needed for anything
        self._hash_end = archive.size  # up to where memory is hashed
        self._back: Generator[bytes, None, None] | None = None
        self._rest = memoryview(b"")

    # -- what an interrupted run brought ---------------------------------------------------------

    def resume(self, states: Mapping[str, FileState], uploads: Mapping[str, str]) -> None:
        """Find out what of it is there: complete objects, and parts of unfinished uploads."""
        for one in self.objects:
            one.is_complete = one.name in states and one.is_there()
            if not one.is_complete and one.name in uploads:
                one.resume(uploads[one.name])
        for stretch in self._stretches:
            part = stretch.of.parts.get(stretch.number)
            stretch.is_up = stretch.of.is_complete or (part is not None and part[0] == stretch.size)
        if self.begun:
            self._hash_later(0)

    def seams(self) -> Iterator[int]:
        """Yield where parts end in the archive, except for those ends that lie inside of an entry:
        what is between two of them can be sent, and proved right, by itself."""
        ends = {self.archive.size, *(entry.end for entry in self.archive.entries)}
        return (stretch.end for stretch in self._stretches if stretch.end in ends)

    def narrow(self, start: int, stop: int) -> None:
        """Leave the parts outside of these bytes, which begin and end at seams, to others. It is
        behind `resume`, and then all of the archive is read back."""
        for stretch in self._stretches:
            stretch.is_up = stretch.is_up or not start <= stretch.start < stop
        self._own = range(start, stop)
        self._hash_later(0)

    def is_own(self, entry: Entry) -> bool:
        """Whether an entry is not left to others."""
        return entry.offset in self._own

    @property
    def begun(self) -> bool:
        return any(stretch.is_up for stretch in self._stretches)

    def holds(self, entry: Entry) -> bool:
        """Whether all parts of an entry have arrived."""
        return all(stretch.is_up for stretch in self._of(entry))

    def arrived(self, entry: Entry) -> int:
        """How many bytes of an entry's content have arrived, from its beginning on."""
        missing = (each.start for each in self._of(entry) if not each.is_up)
        return max(0, min(next(missing, entry.end) - entry.data_offset, entry.size))

    def _of(self, entry: Entry) -> Sequence[Stretch]:
        return self._stretches[self._at(entry.offset) : self._at(entry.end - 1) + 1]

    def _at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    # -- writing -----------------------------------------------------------------------------------

    def write(self, offset: int, *pieces: bytes) -> None:
        """Put `pieces` at `offset`; whoever completes a part sends it. What is there stays."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                stretch = self._stretches[self._at(offset)]
                count = min(len(view), stretch.end - offset)
                self._put(stretch, offset, view[:count])
                if self.follower is not None and not self.reads_back:
                    self.follower.done(offset, count)
                offset, view = offset + count, view[count:]

    def _put(self, stretch: Stretch, offset: int, view: memoryview) -> None:
        if not self.is_early:
            self._open(stretch)
            self._memory.came(len(view))
        with self._lock:
            if stretch.is_up or stretch.is_sent or stretch.is_spoilt:
                return
            if stretch.data is None:
                stretch.early.append((offset, bytes(view)))
            else:
                at = offset - stretch.start
                stretch.data[at : at + len(view)] = view
            stretch.written.add(offset, offset + len(view))
            stretch.is_sent = stretch.written.contiguous(stretch.start) >= stretch.end
            if not stretch.is_sent:
                return
        self._open(stretch)
        self._memory.share(partial(self._send, stretch))

    def _open(self, stretch: Stretch, *, urgent: bool = False) -> None:
        """Give a stretch memory, unless it has some or needs none any more."""
        with stretch.lock:
            if stretch.data is not None or stretch.is_up or stretch.is_spoilt:
                return
            data = self._memory.take(
                stretch.size,
                lambda: urgent or self._awaited(stretch),
                lambda: self._hashed + 2 * PART <= stretch.start < self._hash_end,
                self._overtake,
            )
            with self._lock:
                if stretch.is_spoilt:
                    self._memory.give(data)
                    return
                for offset, piece in stretch.early:
                    at = offset - stretch.start
                    data[at : at + len(piece)] = piece
                stretch.data, stretch.early = data, []

    def _awaited(self, stretch: Stretch) -> bool:
        """Whether others cannot get on, and make room, without this stretch."""
        if self.follower is not None and self.follower.is_late():
            self._hash_end, self.reads_back = 0, True
            return True
        if self.is_early or stretch.start <= self._stretches[self._front].start:
            return True
        # The hash goes by chunks, and the last one of a part has bytes of the next.
        before = self._stretches[self._front : self._at(stretch.start)]
        return stretch.start < self._hashed + CHUNK and all(each.is_up for each in before)

    def _overtake(self) -> None:
        """Let parts wait no more for one before them that comes slowly."""
        with self._lock:
            slow = self._stretches[self._at(self._hashed)]
            if not (self.reads_back or slow.is_sent):  # else it is the hash that is slow
                self._hash_later(self._hashed + CHUNK)

    def _hash_later(self, end: int) -> None:
        """Hash what is behind `end` when it is complete, and read it back for that."""
        self.reads_back, self._hash_end = True, end
        if self.follower is not None:
            self.follower.hold()
        for stretch in self._stretches:
            self._settle(stretch)

    def _send(self, stretch: Stretch) -> None:
        one = stretch.of
        with stretch.lock:
            if stretch.data is None or stretch.is_spoilt:
                return
            view = memoryview(stretch.data)[: stretch.size]
            try:
                one.send(stretch.number, view)
            except BaseException:
                with self._lock:
                    self._spoil([stretch])
                raise
            with self._lock:
                stretch.is_up = True
                self._settle(stretch)

    def _settle(self, stretch: Stretch) -> None:
        """Let go of a stretch's memory if nothing needs it any more; the lock is held."""
        before, last = self._front, len(self._stretches) - 1
        self._let_go(stretch)
        while self._front < last and self._let_go(self._stretches[self._front]):
            self._front += 1
        if self._front > before:
            self._memory.give()

    def _let_go(self, stretch: Stretch) -> bool:
        hashed = stretch.end <= self._hashed or stretch.start >= self._hash_end
        is_over = stretch.is_spoilt or (stretch.is_up and hashed)
        if is_over and stretch.data is not None:
            data, stretch.data = stretch.data, None
            self._memory.give(data)
        return is_over

    def came_short(self, entry: Entry, *, wrong: bool) -> None:
        """An entry will not be whole. Parts of it that are not sent yet are not sent any more, so
        the next run brings them, and what shares one with it; where it proved `wrong`, all of it.
        What comes behind it cannot be hashed in its order now."""
        for stretch in self._of(entry) if wrong else ():
            with stretch.lock:
                one = stretch.of
                if stretch.is_up and one.upload is not None:
                    # A part of another size has not arrived. If this fails, the next run finds out
                    # when it reads all back; what is told is why the blob is wrong.
                    with suppress(MirrorError):
                        self._bucket.put_part(one.name, one.upload, stretch.number, b"-", self._run)
                        stretch.is_up = False
        with self._lock:
            self._spoil(self._of(entry))

    def _spoil(self, stretches: Iterable[Stretch]) -> None:
        for stretch in stretches:
            stretch.is_spoilt = not stretch.is_up
        self._hash_end = 0
        for stretch in self._stretches:
            self._settle(stretch)

    def forget(self, digests: Collection[Digest]) -> None:
        """Remove the complete objects that have something of these entries."""
        wrong = [entry for entry in self.archive.entries if entry.digest in digests]
        for name in {each.of.name for entry in wrong for each in self._of(entry)}:
            self._bucket.remove(name, self._run)

    # -- completion --------------------------------------------------------------------------------

    def sync(self) -> int:
        """Make objects of the uploads; return how many bytes they have."""
        self._memory.finish()
        for one in self.objects:
            if not one.is_complete:
                own = [each for each in self._stretches if each.of is one and each.is_up]
                one.parts = {each.number: one.parts[each.number] for each in own}
                if sum(part.size for part in one.parts.values()) != one.size:
                    return one.start
                one.complete()
        return self.archive.size

    def join(self, one: Object, may: Callable[[], bool]) -> bool:
        """Make an object of its upload, if all parts have arrived, whoever sent them, and if we
        `may`: servers need not bear two at a time. Whether it is there, and ours to read."""
        assert one.upload is not None, "others know of it, too"
        self._memory.finish()
        sizes = {each.number: each.size for each in self._stretches if each.of is one}
        try:
            one.resume(one.upload)
        except RegistryNotFoundError:  # it was completed before
            return one.is_there() and may()
        if {number: part.size for number, part in one.parts.items()} != sizes or not may():
            return False
        one.complete()
        return True

    def _read_back(self, offset: int) -> Generator[bytes, None, None]:
        states = self._bucket.states(self._run)
        for one in self.objects:
            if (state := states.get(one.name)) is not None and one.start + one.size > offset:
                start = max(offset - one.start, 0)
                size = state.size - start
                yield from self._bucket.chunks(one.name, state, start, size, self._run)

    def chunks(self, offset: int, size: int) -> Generator[memoryview, None, None]:
        """Read what was written, from the first byte to the last, by one thread.

        A piece is good until the next one is asked for.

        Raises:
            DamagedBundleError: not all of it is there.
        """
        end = offset + size
        while offset < end:
            piece = self._in_memory(offset, end)
            if not piece and self.reads_back:
                if self._back is None:
                    self._back = self._read_back(offset)
                whole = self._rest or memoryview(next(self._back, b""))
                piece, self._rest = whole[: end - offset], whole[end - offset :]
            if not piece:
                raise DamagedBundleError(
                    f"ends at byte {offset}, {end - offset} bytes too early",
                    where=self.archive.name,
                )
            yield piece
            near, offset = self._at(offset + CHUNK - 1), offset + len(piece)
            with self._lock:
                self._hashed = offset
                self._settle(self._stretches[self._at(offset - 1)])
                if self._at(offset + CHUNK - 1) > near:
                    self._memory.give()

    def _in_memory(self, offset: int, end: int) -> memoryview:
        stretch = self._stretches[self._at(offset)]
        if not self.reads_back:
            self._open(stretch, urgent=True)
        data, at = stretch.data, offset - stretch.start
        return memoryview(b"" if data is None else data)[at : min(end, stretch.end) - stretch.start]

    def close(self) -> None:
        for stretch in self._stretches:
            stretch.data = None
        if self._back is not None:
            with suppress(ValueError):  # a thread reads still, and ends before the last close
                self._back.close()


class PassingArchive(BucketArchive):
    """An archive that passes through memory to what compresses it. Nothing else has its bytes, so
    all wait for one that comes slowly."""

    def __init__(self, files: BucketFiles, archive: Archive) -> None:
        super().__init__(files.to, archive, 0)
        self._packed = files

    def resume(self, states: Mapping[str, FileState], uploads: Mapping[str, str]) -> None:
        self._packed.resume(states, uploads)
        for stretch in self._stretches:
            stretch.is_up = bool(self._packed.known)

    def _overtake(self) -> None:
        """Do nothing."""

    def _awaited(self, stretch: Stretch) -> bool:
        self._packed.check()
        if self.follower is not None and self.follower.is_late():
            raise self.follower.error or MirrorError(
                "the system has no thread left to compress it",
                where=self.archive.name,
                advice="allow more of them (ulimit -u), or leave out --compress",
            )
        return super()._awaited(stretch)

    def _send(self, stretch: Stretch) -> None:
        with self._lock:
            stretch.is_up = True
            self._settle(stretch)

    def chunks(self, offset: int, size: int) -> Generator[memoryview, None, None]:
        if not self._packed.known:
            yield from super().chunks(offset, size)
