"""Files on their way into a bucket: the memory for their parts, and objects that become whole."""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mirror.bundle.archive import Archive
from mirror.bundle.bucket import Bucket, Part
from mirror.bundle.compress import PackedFile, PackedFiles
from mirror.bundle.format import LARGE, PARTIAL_SUFFIX, ZSTD_SUFFIX, compressed_bound, file_names
from mirror.bundle.place import Packing, noted_sums
from mirror.documents import parse_json
from mirror.errors import InvalidDigestError
from mirror.events import Warned
from mirror.registry.downloads import FileState
from mirror.run import Run
from mirror.sync.inventory import canonical_json

PART = 10 << 20
"""Bytes of a part at most, and twice what it has at least, in objects of up to 47 GiB."""
_LOOK_S = 0.5
_PATIENCE_S = 5.0
"""How long parts wait in memory, at least, for one before them that comes slowly."""


class PartMemory:
    """Memory that parts under way share, `most` bytes. Thread-safe.

    Some of it is for parts that are next to be hashed, so that they can be sent while the one
    behind them comes. Whoever waits for memory sends parts meanwhile.
    """

    def __init__(self, most: int, run: Run) -> None:
        self._most, self._run, self._held = most, run, 0
        self._ahead = most - max(PART, most // 2)
        self._spare: list[mmap.mmap] = []  # fresh memory costs as much as a copy
        self._ready: deque[Callable[[], None]] = deque()
        self._idle = self._came = 0
        self._mark = 0.0, 0  # when the rate was seen last, and what had come
        self._best = 0.0  # the highest rate so far, in bytes per second
        self._changed = threading.Condition()

    def take(
        self,
        size: int,
        urgent: Callable[[], bool],
        ahead: Callable[[], bool],
        too_slow: Callable[[], None],
    ) -> mmap.mmap:
        """Wait until there is memory for a part; what all others wait for is `urgent`.

        What is `ahead` of the hash does not get all of the room. `too_slow` is called if less than
        half as much comes as came once, since what is urgent comes slowly.
        """
        size, since = max(size, PART), None
        while True:
            work = None
            with self._changed:
                waits = ahead()
                most = self._ahead if waits else self._most
                fits = not self._held or self._held + size <= most
                if urgent() or (fits and not (waits and self._ready)):
                    return self._memory(size)
                if self._ready:
                    work, since = self._ready.popleft(), None
                else:
                    since = since or self._look()
                    self._idle += 1
                    self._changed.wait(_LOOK_S)
                    self._idle -= 1
                    waited, came = (new - old for new, old in zip(self._look(), since, strict=True))
            self._run.check()
            if work is not None:
                work()
            elif waited >= _PATIENCE_S and 2 * came < self._best * waited:
                too_slow()

    def _memory(self, size: int) -> mmap.mmap:
        self._held += size
        if not self._mark[0]:
            self._mark = time.monotonic(), self._came
        for place, one in enumerate(self._spare):
            if len(one) >= size:
                return self._spare.pop(place)
        return mmap.mmap(-1, size)

    def _look(self) -> tuple[float, int]:
        """The time, and how many bytes have come."""
        now, (then, before) = time.monotonic(), self._mark
        if now - then >= _LOOK_S:
            self._best = max(self._best, (self._came - before) / (now - then))
            self._mark = now, self._came
        return now, self._came

    def came(self, count: int) -> None:
        with self._changed:
            self._came += count

    def share(self, work: Callable[[], None]) -> None:
        """Let somebody do `work` who waits for memory; if nobody does, do it."""
        with self._changed:
            if self._idle > len(self._ready):
                self._ready.append(work)
                self._changed.notify_all()
                return
        work()

    def finish(self) -> None:
        """Do what nobody has done yet."""
        while self._ready:
            self._ready.popleft()()

    def give(self, data: mmap.mmap | None = None) -> None:
        """Take memory back; let those that wait look again."""
        with self._changed:
            if data is not None:
                self._held -= len(data)
                self._spare.append(data)
            self._changed.notify_all()


# -- objects under way -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the files of one bundle go up to. Its objects name the `plan`."""

    bucket: Bucket
    plan: str
    memory: PartMemory
    run: Run


@dataclass(slots=True)
class Object:
    """An object under way: bytes of an archive from `start` on."""

    to: Destination
    name: str
    start: int
    size: int
    upload: str | None = None
    parts: dict[int, Part] = field(default_factory=dict)
    is_complete: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Send a part; whoever sends the first begins the upload."""
        to = self.to
        with self.lock:
            if self.upload is None:
                self.upload = to.bucket.begin(self.name, to.plan, to.run)
        self.parts[number] = to.bucket.put_part(self.name, self.upload, number, data, to.run)

    def resume(self, upload: str) -> None:
        """Go on with an upload: find out which parts of it have arrived.

        Raises:
            RegistryNotFoundError: it is over.
        """
        self.upload, self.parts = upload, self.to.bucket.parts(self.name, upload, self.to.run)

    def is_there(self) -> bool:
        """Whether the object is in the bucket, and of this plan."""
        found = self.to.bucket.plan_of(self.name, self.to.run)
        return found == (self.size, self.to.plan)

    def complete(self) -> None:
        """Make the object of its parts."""
        to = self.to
        to.bucket.complete(self.name, self.upload or "", self.parts, to.plan, to.run)
        self.is_complete = True


# -- compressed files ------------------------------------------------------------------------------

_MOST_PARTS = 9_900
"""Servers take 10,000 parts."""


class CompressedUpload:
    """A compressed file that goes up as it is written, by one thread from front to back.

    What is written waits in memory until its `files` are sent.
    """

    def __init__(self, files: BucketFiles, name: str) -> None:
        self.path, self.object = Path(name), Object(files.to, name, 0, 0)
        self._files, self._data, self._cut = files, bytearray(), 0

    def write(self, _offset: int, *pieces: bytes) -> None:
        self._files.check()
        self._data += b"".join(pieces)
        while len(self._data) > self._files.part:
            self._cut_off()

    def _cut_off(self) -> None:
        self._cut, size = self._cut + 1, self._files.part
        self._files.ready.append((self.object, self._cut, bytes(self._data[:size])))
        del self._data[:size]

    def end(self) -> None:
        """Nothing more is written, so that the rest is ready."""
        if self._data:
            self._cut_off()

    def sync(self) -> int:
        """Wait until all of it has arrived; how many bytes that is."""
        self.end()
        self._files.wait()
        self.object.size = sum(part.size for part in self.object.parts.values())
        return self.object.size

    def close(self) -> None:
        """Do nothing: what arrived stays."""


class BucketFiles(PackedFiles):
    """The compressed files of an archive in a bucket. What is written is kept nowhere else.

    When all of them have arrived, a small object says so, with their sums: then the next run has
    nothing to do for this archive. An archive that was under way is begun anew, since where its
    frames lie is known only when it is compressed.
    """

    def __init__(self, to: Destination, archive: Archive, packing: Packing) -> None:
        self.to = to
        self._packing, self._prefix = packing, archive.name + ZSTD_SUFFIX
        most = packing.part_size or compressed_bound(archive.size)
        self.part = max(PART, most // _MOST_PARTS + 1)
        self._record = self._prefix + PARTIAL_SUFFIX
        self._uploads: list[CompressedUpload] = []
        self.ready: deque[tuple[Object, int, bytes]] = deque()  # parts: of what, number, content
        self._errors: list[BaseException] = []
        self._changed = threading.Condition()
        self._under_way = 0  # under the condition

    def check(self) -> None:
        """Raise what has gone wrong with any of them."""
        if self._errors:
            raise self._errors[0]

    def create(self, name: str) -> CompressedUpload:
        if self._uploads:
            self._uploads[-1].end()
        self._uploads.append(one := CompressedUpload(self, name))
        return one

    def send(self) -> None:
        if self.ready:
            self.to.memory.share(self._send_ready)

    def _send_ready(self) -> None:
        while not self._errors:
            with self._changed:
                if not self.ready:
                    return
                one, number, data = self.ready.popleft()
                self._under_way += 1
            try:
                one.send(number, data)
            except BaseException as err:  # noqa: BLE001 - whoever writes next raises it
                self._errors.append(err)
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def wait(self) -> None:
        """Send what is ready, and wait until all that was begun has arrived."""
        self._send_ready()
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way)
        self.check()

    def keep(self, files: Sequence[PackedFile]) -> None:
        rows = [
            [one.name, one.size, dict(one.digests), each.object.upload]
            for one, each in zip(files, self._uploads, strict=True)
        ]
        data = canonical_json({"plan": self.to.plan, "files": rows})
        self.to.bucket.put(self._record, data, self.to.run)

    def resume(self, states: Mapping[str, FileState], uploads: Mapping[str, str]) -> None:
        """Find out whether all of them are there; give up an upload that was under way."""
        bucket, run = self.to.bucket, self.to.run
        known: list[PackedFile] = []
        try:
            if (state := states[self._record]).size > LARGE.seal_bytes:
                raise ValueError(self._record)
            record = parse_json(bucket.read(self._record, state, run))
            rows = record["files"] if record["plan"] == self.to.plan else []
            names = file_names(self._prefix, sum(row[1] for row in rows), self._packing.part_size)
            if rows and [row[0] for row in rows] != [*names]:
                raise ValueError(self._record)
            for name, size, digests, upload in rows:
                known.append(PackedFile(name, size, noted_sums(self._packing, digests)))
                if uploads.get(name) == upload:
                    one = self.create(name)
                    one.object.resume(upload)
                    if one.sync() != size:
                        raise ValueError(name)
                elif not Object(self.to, name, 0, size).is_there():
                    raise ValueError(name)
            self.known = known
        except (KeyError, ValueError, TypeError, AttributeError, InvalidDigestError):
            self._uploads.clear()
        begun = [] if self.known else [one for one in uploads if one.startswith(self._prefix)]
        for name in begun:
            bucket.abort(name, uploads[name], run)
        if begun:
            told = f"{bucket.where}/{self._prefix} was under way when a run was interrupted; "
            run.on_event(Warned(f"{told}what is compressed on the way begins anew"))

    def complete(self) -> None:
        """Make objects of all."""
        for each in self._uploads:
            each.object.complete()
