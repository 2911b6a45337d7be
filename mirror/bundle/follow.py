"""Digests of a file that is still being written, in whatever order its bytes arrive.

To hash an archive after it was written, the whole disk must be read a second time. Here a thread
follows the writers: it reads back and hashes the bytes as soon as they are there without a gap from
the beginning on, mostly from the page cache. When the last byte is written the digests are nearly
done.
"""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol

from mirror.bundle.archive import Entry
from mirror.bundle.files import CHUNK
from mirror.errors import CancelledError, IntegrityError
from mirror.oci import Digest
from mirror.run import Run


class Hash(Protocol):
    """A digest under computation, as `hashlib` and `gost.GostHash` have it."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


LARGE = 16 << 20
"""Bytes of a blob from which on it matters how many are written at once."""
LOOK_S = 0.1
MakeHash = Callable[[], Hash]
SHA256: Mapping[str, MakeHash] = MappingProxyType({"sha256": hashlib.sha256})


class Ranges:
    """Which bytes are written, as disjoint ranges; neighbours become one. Not thread-safe."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        first = bisect_left(self._ends, start)  # the first range that touches it, or lies behind
        last = bisect_right(self._starts, end)  # the first that lies behind and does not touch
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def contiguous(self, start: int) -> int:
        """Return where the bytes from `start` on first end; `start` if that byte is not there."""
        number = bisect_right(self._starts, start) - 1
        return max(start, self._ends[number]) if number >= 0 else start

    def __len__(self) -> int:
        return len(self._starts)


class Follower:
    """Computes digests of the parts of a file while the file is written. Thread-safe.

    `chunks` reads the file back, as `files.ReadAt.chunks` does. `sizes` are those of its parts, one
    behind the other; each gets digests of its own. `hashes` makes the algorithms, by name; all see
    each byte in one pass, and so does `watch`, in the order of the file. A stopped `run` ends the
    thread.

    Use it as a context manager: the thread begins with the first bytes and never outlives the
    block. Where the system has no thread left, `finish` does its work. Memory is one chunk, and a
    pair of numbers per gap in what is written.

    Raises:
        ValueError: a part has a negative size, or there are no parts.
    """

    def __init__(
        self,
        chunks: Callable[[int, int], Iterable[bytes | memoryview]],
        sizes: Sequence[int],
        *,
        hashes: Mapping[str, MakeHash] = SHA256,
        watch: Callable[[bytes | memoryview], None] | None = None,
        run: Run | None = None,
        name: str = "archive",
    ) -> None:
        if not sizes or min(sizes) < 0:
            raise ValueError("a follower needs the sizes of a file's parts, each 0 or more")
        self._chunks, self._sizes, self._end = chunks, tuple(sizes), sum(sizes)
        self._hashes, self._watch = hashes, watch
        self._run = Run.of(run)
        self._name = name
        self.position = 0  # bytes that are hashed; changed by the thread alone, like the next two
        self._digests: list[Mapping[str, str]] = []
        self.error: BaseException | None = None  # what has ended the thread
        self._changed = threading.Condition()
        self._ranges = Ranges()  # under the condition, like all below
        self._awaited: tuple[int, int] | None = None  # what the thread sleeps for: from, up to
        self._finishing = False
        self._stopped = False
        self._begun = self._is_refused = self._is_late = self._is_held = False
        self._thread = threading.Thread(target=self._follow, name=f"follow-{name}", daemon=True)

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()
        if self._begun:
            self._thread.join()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def done(self, offset: int, size: int) -> None:
        """Take note that these bytes are written and final. Any thread may call it, repeatedly too.

        It never waits. Errors of the following thread are raised by `finish`.

        Raises:
            ValueError: they lie outside the file.
        """
        if offset < 0 or size < 0 or offset + size > self._end:
            raise ValueError(f"bytes {offset} to {offset + size} are not all below {self._end}")
        if size:
            with self._changed:
                self._is_held = self._is_held and size < self._end
                if self._is_held:
                    return
                self._ranges.add(offset, offset + size)
                if not (self._begun or self._is_late):
                    try:
                        self._thread.start()
                        self._begun = True
                    except RuntimeError:  # no thread is left, perhaps one is later
                        self._is_refused = True
                if self._awaited is not None:
                    start, enough = self._awaited
                    # Not for less: to wake the thread costs more than to write a small piece.
                    if self._ranges.contiguous(start) >= enough:
                        self._awaited = None
                        self._changed.notify_all()

    def hold(self) -> None:
        """Hash nothing behind the chunk under way (of `CHUNK` bytes), whatever is done, until the
        whole file is reported at once."""
        with self._changed:
            self._is_held, self._ranges = True, Ranges()

    def is_late(self) -> bool:
        """Whether nothing is hashed before `finish`; it is so from now on where no thread started.

        Whoever keeps bytes in memory for the thread asks this before waiting for it.
        """
        with self._changed:
            self._is_late = self._is_late or (self._is_refused and not self._begun)
            return self._is_late or self.error is not None

    def finish(self) -> tuple[Mapping[str, str], ...]:
        """Wait for the end of the hashing; per part, its digests in lower-case hex by algorithm.

        Raises:
            IntegrityError: not all bytes were reported as done; it says from where on.
            CancelledError: the work was cancelled.
            MirrorError: the file cannot be read back, as `chunks` says.
        """
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        if self._begun:
            self._thread.join()
        elif not self._digests and self.error is None:
            self._follow()
        if self.error is not None:
            raise self.error
        return tuple(self._digests)

    # -- the thread ----------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            with self._run.cancellation.calling(self._stop):
                for size in self._sizes:
                    made = {name: make() for name, make in self._hashes.items()}
                    self._feed([one.update for one in made.values()], size)
                    self._digests.append({name: one.hexdigest() for name, one in made.items()})
        except BaseException as error:  # noqa: BLE001 - `finish` raises it where it is awaited
            self.error = error

    def _feed(self, receivers: list[Callable[[bytes | memoryview], None]], size: int) -> None:
        """Give the next `size` bytes to `receivers`, as they get written."""
        if self._watch is not None:
            receivers.append(self._watch)
        stop, written = self.position + size, self.position
        while self.position < stop:
            end = min(self.position + CHUNK, stop)
            if written < end or self._is_held:
                written = self._available(self.position, end)
            for chunk in self._chunks(self.position, end - self.position):
                for receive in receivers:
                    receive(chunk)
            self.position = end

    def _available(self, start: int, enough: int) -> int:
        """Wait until all bytes from `start` to `enough` are written; return where they end."""
        with self._changed:
            while True:
                if self._stopped or self._run.stopped:
                    raise CancelledError(f"{self._name}: hashing stopped on request")
                end = self._ranges.contiguous(start)
                if end >= enough:
                    return end
                if self._finishing:
                    raise IntegrityError(
                        f"byte {end} of {self._end} was never written",
                        where=self._name,
                        advice="there is no digest of an unfinished archive",
                    )
                self._awaited = start, enough
                self._changed.wait(self._run.remaining_s())


class LargeWriteLimit:
    """Lets large blobs be written in order where the processors are the limit. Thread-safe.

    More of them at once than there are processors are no faster there, and who follows the writers
    gets along only with the first. Where a network is the limit, more are faster: another one
    begins whenever `LOOK_S` pass in which two thirds of the processors' time are left.

    `used` is the processor time of this process so far, in seconds.
    """

    def __init__(self, processors: int, used: Callable[[], float] = time.process_time) -> None:
        self._processors, self._used = processors, used
        self._free, self._next = threading.Semaphore(processors), threading.Lock()

    @contextmanager
    def one(self, size: int) -> Iterator[None]:
        """The block writes a blob of so many bytes; those that are not large do not wait."""
        is_counted = size >= LARGE and self._begun()
        try:
            yield
        finally:
            if is_counted:
                self._free.release()

    def _begun(self) -> bool:
        with self._next:  # the others wait behind it
            while True:
                began, used = time.monotonic(), self._used()
                if self._free.acquire(timeout=LOOK_S):
                    return True
                share = (self._used() - used) / (time.monotonic() - began)
                if share < self._processors / 3:
                    return False


class EntryCheck:
    """Compares some entries of an archive, whose bytes it takes in their order, from `start` on.

    Header, content and padding count. Not thread-safe.
    """

    def __init__(self, entries: Iterable[Entry], start: int = 0) -> None:
        self._entries = iter(sorted(entries, key=lambda entry: entry.offset))
        self._position = start
        self._wrong: list[Digest] = []
        self._next()

    @property
    def wrong(self) -> tuple[Digest, ...]:
        return tuple(self._wrong)

    def update(self, data: bytes | memoryview) -> None:
        """Take the bytes that follow those before."""
        view, start = memoryview(data), self._position
        self._position = end = start + len(data)
        while (entry := self._entry) is not None:
            content, padding = entry.data_offset, entry.data_offset + entry.size
            self._around += _cut(view, start, entry.offset, content)
            self._hash.update(_cut(view, start, content, padding))
            self._around += _cut(view, start, padding, entry.end)
            if entry.end > end:
                return
            right = self._around == entry.header + bytes(entry.padding)
            if not right or self._hash.hexdigest() != entry.digest.encoded:
                self._wrong.append(entry.digest)
            self._next()

    def _next(self) -> None:
        self._entry = next(self._entries, None)
        self._around = b""
        self._hash = hashlib.new(self._entry.digest.algorithm if self._entry else "sha256")


def _cut(view: memoryview, start: int, first: int, last: int) -> memoryview:
    """Return bytes `first` to `last` of a file, as far as `view`, from byte `start`, has them."""
    return view[max(first - start, 0) : max(last - start, 0)]
