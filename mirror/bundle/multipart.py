"""Archives that go into a bucket as multipart uploads, without a disk or a copy.

The parts of an upload follow from the plan alone. They begin and end where entries do, a large
entry is several of them, and none but an object's last is smaller than 5 MiB, which servers demand.
What has arrived is the journal (ListParts): the last bytes of a blob come only once all of it has
proved right, so a blob whose parts are all there is right, and one of which any is missing is sent
again as a whole. A part that was uploaded cannot be read before its object is complete. Hence an
archive that is uploaded in one run is hashed in its order while parts are in memory, and one that
an interrupted run began is read back once, when it is complete.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mirror.bundle.archive import Archive, Entry
from mirror.bundle.bucket import Bucket, Part
from mirror.bundle.files import CHUNK
from mirror.bundle.follow import Follower, Ranges
from mirror.bundle.format import file_names, part_sizes
from mirror.errors import DamagedBundleError, RegistryNotFoundError
from mirror.oci import Digest
from mirror.registry.downloads import FileState
from mirror.run import Run

PART = 10 << 20
"""Bytes of a part at most, and twice what it has at least, in objects of up to 47 GiB."""
_MOST_FULL_PARTS = 4900
"""Servers take 10,000 parts, and a part may be half full."""
_LOOK_S = 0.5


def cut(ends: Iterable[int], start: int, stop: int) -> list[int]:
    """Return where the parts of an object end that has bytes `start` to `stop` of an archive.

    `ends` are where the archive's entries end, in order. A part ends there, or inside of an entry
    that is cut into equal ones. Each has at least half as many bytes as may be in one, except
    for the last.
    """
    most = max(PART, (stop - start) // _MOST_FULL_PARTS + 1)
    found: list[int] = []
    begun = last = start
    for end in (*(one for one in ends if start < one < stop), stop):
        if end - begun > most and last - begun >= most // 2:
            found.append(last)
            begun = last
        if (size := end - begun) > most:
            count = -(-size // most)
            found += (begun + size * number // count for number in range(1, count + 1))
            begun = end
        last = end
    return found if begun == stop else [*found, stop]


class Room:
    """Memory that parts under way share. Thread-safe."""

    def __init__(self, most: int, run: Run) -> None:
        self._most, self._run, self._held = most, run, 0
        self._changed = threading.Condition()

    def take(self, size: int, urgent: Callable[[], bool]) -> None:
        """Wait until there is room; what all others wait for is `urgent`, and need not."""
        with self._changed:
            while self._held + size > self._most and not urgent():
                self._run.check()
                self._changed.wait(_LOOK_S)
            self._held += size

    def give(self, size: int = 0) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()


@dataclass(slots=True)
class Object:
    """An object under way: bytes of an archive from `start` on."""

    name: str
    start: int
    size: int
    upload: str | None = None
    parts: dict[int, Part] = field(default_factory=dict)
    is_complete: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Stretch:
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

    def __init__(
        self, bucket: Bucket, archive: Archive, part_size: int, plan: str, room: Room, run: Run
    ) -> None:
        self._bucket, self._plan, self._room, self._run = bucket, plan, room, run
        self.archive, self.is_early, self.reads_back = archive, True, False
        self.follower: Follower | None = None
        names = [*file_names(archive.name, archive.size, part_size)]
        sizes = part_sizes(archive.size, part_size or archive.size)
        self.objects: list[Object] = []
        self._stretches: list[_Stretch] = []
        ends, start = [entry.end for entry in archive.entries], 0
        for name, size in zip(names, sizes, strict=True):
            one = Object(name, start, size)
            self.objects.append(one)
            for number, end in enumerate(cut(ends, start, one.start + size), 1):
                self._stretches.append(_Stretch(one, number, start, end))
                start = end
        self._starts = [stretch.start for stretch in self._stretches]
        self._lock = threading.Lock()
        self._hashed = 0  # this and the next two under the lock
        self._front = 0  # the first stretch that memory is needed for
        self._is_hashed = True  # as it goes up
        self._back: Generator[bytes, None, None] | None = None
        self._rest = b""

    @property
    def parts(self) -> tuple[Path, ...]:
        return tuple(Path(one.name) for one in self.objects)

    # -- what an interrupted run brought ---------------------------------------------------------

    def resume(self, states: Mapping[str, FileState], uploads: Mapping[str, str]) -> None:
        """Find out what of it is there: complete objects, and parts of unfinished uploads."""
        for one in self.objects:
            if one.name in states and self._bucket.plan_of(one.name, self._run) == (
                one.size,
                self._plan,
            ):
                one.is_complete = True
            elif (upload := uploads.get(one.name)) is not None:
                one.upload, one.parts = upload, self._bucket.parts(one.name, upload, self._run)
        for stretch in self._stretches:
            part = stretch.of.parts.get(stretch.number)
            stretch.is_up = stretch.of.is_complete or (part is not None and part[0] == stretch.size)
        long = [entry for entry in self.archive.entries if len(self._of(entry)) > 1]
        changed = True
        while changed:  # what shares a part with a blob that must come again comes again, too
            changed = False
            for stretches in map(self._of, long):
                there = [each for each in stretches if each.is_up and not each.of.is_complete]
                if there and not all(each.is_up for each in stretches):
                    changed = True
                    for each in there:
                        each.is_up = False
        self.reads_back = self.begun
        self._is_hashed = not self.reads_back
        self._advance()

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
        self._is_hashed, self.reads_back = False, True
        self._advance()

    @property
    def begun(self) -> bool:
        return any(stretch.is_up for stretch in self._stretches)

    def holds(self, entry: Entry) -> bool:
        """Whether all parts of an entry have arrived."""
        return all(stretch.is_up for stretch in self._of(entry))

    def _of(self, entry: Entry) -> Sequence[_Stretch]:
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

    def _put(self, stretch: _Stretch, offset: int, view: memoryview) -> None:
        if not self.is_early:
            self._open(stretch)
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
        self._send(stretch)

    def _open(self, stretch: _Stretch) -> None:
        """Give a stretch memory, unless it has some or needs none any more."""
        with stretch.lock:
            if stretch.data is not None or stretch.is_up or stretch.is_spoilt:
                return
            self._room.take(stretch.size, lambda: self._awaited(stretch))
            data = mmap.mmap(-1, stretch.size)
            with self._lock:
                if stretch.is_spoilt:
                    self._room.give(stretch.size)
                    return
                for offset, piece in stretch.early:
                    at = offset - stretch.start
                    data[at : at + len(piece)] = piece
                stretch.data, stretch.early = data, []

    def _awaited(self, stretch: _Stretch) -> bool:
        """Whether others cannot get on, and make room, without this stretch."""
        if self.follower is not None and self.follower.is_late():
            self._is_hashed, self.reads_back = False, True
            return True
        front = max(self._stretches[self._front].start, self._hashed + CHUNK - 1)
        return self.is_early or stretch.start <= front

    def _send(self, stretch: _Stretch) -> None:
        one = stretch.of
        with one.lock:
            if one.upload is None:
                one.upload = self._bucket.begin(one.name, self._plan, self._run)
        with stretch.lock:
            if stretch.data is None or stretch.is_spoilt:
                return
            view = memoryview(stretch.data)
            try:
                part = self._bucket.put_part(one.name, one.upload, stretch.number, view, self._run)
            except BaseException:
                with self._lock:
                    self._spoil([stretch])
                raise
            with self._lock:
                one.parts[stretch.number] = part
                stretch.is_up = True
                self._advance()

    def _advance(self) -> None:
        """Let go of memory that nothing needs; the lock is held."""
        front = True
        for number in range(self._front, len(self._stretches)):
            stretch = self._stretches[number]
            hashed = not self._is_hashed or stretch.end <= self._hashed
            if stretch.is_spoilt or (stretch.is_up and hashed):
                self._front = (
                    number + 1 if front and number + 1 < len(self._stretches) else self._front
                )
                if stretch.data is not None:
                    stretch.data = None
                    self._room.give(stretch.size)
            else:
                front = False
                if self._is_hashed:
                    break
        self._room.give()

    def came_short(self, entry: Entry) -> None:
        """An entry will not be whole. No part of it is sent any more, so the next run sends it, and
        what shares a part with it. What comes behind it cannot be hashed in its order now."""
        with self._lock:
            self._spoil(self._of(entry))

    def _spoil(self, stretches: Iterable[_Stretch]) -> None:
        for stretch in stretches:
            stretch.is_spoilt = not stretch.is_up
        self._is_hashed = False
        self._advance()

    def forget(self, digests: Collection[Digest]) -> None:
        """Remove the complete objects that have something of these entries."""
        wrong = [entry for entry in self.archive.entries if entry.digest in digests]
        for name in {each.of.name for entry in wrong for each in self._of(entry)}:
            self._bucket.remove(name, self._run)

    # -- completion --------------------------------------------------------------------------------

    def sync(self) -> int:
        """Make objects of the uploads; return how many bytes they have."""
        for one in self.objects:
            if not one.is_complete:
                own = [each for each in self._stretches if each.of is one and each.is_up]
                parts = {each.number: one.parts[each.number] for each in own}
                if one.upload is None or sum(part.size for part in parts.values()) != one.size:
                    return one.start
                self._bucket.complete(one.name, one.upload, parts, self._plan, self._run)
                one.is_complete = True
        return self.archive.size

    def join(self, one: Object, may: Callable[[], bool]) -> bool:
        """Make an object of its upload, if all parts have arrived, whoever sent them, and if we
        `may`: servers need not bear two at a time. Whether it is there, and ours to read."""
        assert one.upload is not None, "others know of it, too"
        sizes = {each.number: each.size for each in self._stretches if each.of is one}
        try:
            parts = self._bucket.parts(one.name, one.upload, self._run)
        except RegistryNotFoundError:  # it was completed before
            return self._bucket.plan_of(one.name, self._run) == (one.size, self._plan) and may()
        if {number: part.size for number, part in parts.items()} != sizes or not may():
            return False
        self._bucket.complete(one.name, one.upload, parts, self._plan, self._run)
        return True

    def _read_back(self) -> Generator[bytes, None, None]:
        states = self._bucket.states(self._run)
        for one in self.objects:
            if (state := states.get(one.name)) is not None:
                yield from self._bucket.chunks(one.name, state, 0, state.size, self._run)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read what was written, from the first byte to the last, by one thread.

        Raises:
            DamagedBundleError: not all of it is there.
        """
        end = offset + size
        while offset < end:
            if self.reads_back:
                if self._back is None:
                    self._back = self._read_back()
                piece = self._rest or next(self._back, b"")
                self._rest = piece[end - offset :]
                piece = piece[: end - offset]
            else:
                piece = self._in_memory(offset, end)
            if not piece:
                raise DamagedBundleError(
                    f"ends at byte {offset}, {end - offset} bytes too early",
                    where=self.archive.name,
                )
            yield piece
            offset += len(piece)
            with self._lock:
                self._hashed = offset
                self._advance()

    def _in_memory(self, offset: int, end: int) -> bytes:
        stretch = self._stretches[self._at(offset)]
        self._open(stretch)
        data = stretch.data
        at = offset - stretch.start
        return b"" if data is None else data[at : at + min(end, stretch.end) - offset]

    def close(self) -> None:
        for stretch in self._stretches:
            stretch.data = None
        if self._back is not None:
            with suppress(ValueError):  # a thread reads still, and ends before the last close
                self._back.close()
