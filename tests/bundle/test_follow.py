from __future__ import annotations

import gc
import hashlib
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from random import Random
from threading import Semaphore

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle import follow
from mirror.bundle.files import CHUNK, ReadAt, WriteAt
from mirror.bundle.follow import LARGE, Follower, Hash, LargeWriteLimit
from mirror.durable import Folder
from mirror.errors import CancelledError, DamagedBundleError, IntegrityError
from mirror.run import Cancellation, Run
from tests.support.patience import PATIENCE_S, without_waiting


class Written:
    """A file in memory; unwritten bytes are seen as such when they are read too early."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.there = bytearray(size)
        self.reads: list[tuple[int, int]] = []

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.there[offset : offset + len(data)] = b"\1" * len(data)

    def chunks(self, offset: int, size: int) -> Iterator[bytes]:
        assert all(self.there[offset : offset + size]), "read before it was written"
        self.reads.append((offset, size))
        half = size // 2
        yield bytes(self.data[offset : offset + half])
        yield bytes(self.data[offset + half : offset + size])


def threads() -> int:
    return sum(thread.name.startswith("follow-") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == 0


@given(data=st.data())
def test_any_order_of_ranges_gives_the_digests_of_each_part(
    data: st.DataObject,
) -> None:
    content = data.draw(st.binary(max_size=300))
    size = len(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=10)))
    ranges = list(zip([0, *cuts], [*cuts, size], strict=True))
    again = data.draw(st.lists(st.sampled_from(ranges), max_size=3))  # resumed work overlaps
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, size), max_size=4))), size]
    file = Written(size)
    hashes = {"sha256": hashlib.sha256, "md5": hashlib.md5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "CHUNK", data.draw(st.sampled_from([1, 7, 64, 1 << 20])))
        sizes = [end - start for start, end in pairwise(edges)]
        with Follower(file.chunks, sizes, hashes=hashes) as follower:
            for start, end in data.draw(st.permutations(ranges + again)):
                file.write(start, content[start:end])
                follower.done(start, end - start)
            digests = follower.finish()
    assert follower.position == size
    for (start, end), found in zip(pairwise(edges), digests, strict=True):
        part = content[start:end]
        assert found == {name: make(part).hexdigest() for name, make in hashes.items()}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30))
def test_ranges_are_merged_as_sets_of_bytes_are(spans: list[tuple[int, int]]) -> None:
    ranges, there = follow.Ranges(), [False] * 100
    for start, size in spans:
        ranges.add(start, start + size)
        there[start : start + size] = [True] * size
    runs = sum(now and not before for before, now in zip([False, *there], there, strict=False))
    assert len(ranges) == runs
    for start in range(99):
        end = start
        while there[end]:
            end += 1
        assert ranges.contiguous(start) == end


def test_parts_are_hashed_while_they_are_written_and_by_several_threads(tmp_path: Path) -> None:
    content = Random(1).randbytes(9 * CHUNK + 12345)
    writer = WriteAt(Folder(tmp_path), "x.tar.partial", len(content), 4_000_000)
    steps = [(start, content[start : start + 77_777]) for start in range(0, len(content), 77_777)]
    Random(2).shuffle(steps)
    with Follower(writer.chunks, writer.sizes, name="x.tar") as follower:

        def work(share: list[tuple[int, bytes]]) -> None:
            for start, piece in share:
                writer.write(start, piece)
                follower.done(start, len(piece))

        workers = [threading.Thread(target=work, args=(steps[n::3],)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        digests = [one["sha256"] for one in follower.finish()]
    writer.close()
    assert digests == [hashlib.sha256(part.read_bytes()).hexdigest() for part in writer.parts]


def test_it_does_not_wait_for_the_end() -> None:
    size = 5 * CHUNK
    file = Written(size)
    file.write(0, bytes(size))
    with Follower(file.chunks, [size]) as follower:
        follower.done(4 * CHUNK, CHUNK)
        follower.done(0, 3 * CHUNK)
        deadline = time.monotonic() + 30
        while follower.position < 3 * CHUNK:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert len(follower._ranges) == 2
        follower.done(3 * CHUNK, CHUNK)
        assert len(follower._ranges) == 1
        follower.finish()


def test_it_reads_each_byte_once_in_whole_steps() -> None:
    file = Written(2 * CHUNK + 100)
    file.write(0, bytes(len(file.data)))
    with Follower(file.chunks, [len(file.data)]) as follower:
        for start in range(0, len(file.data), 4096):
            follower.done(start, min(4096, len(file.data) - start))
        follower.finish()
    assert file.reads == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, 100)]


def test_a_gap_is_named_and_gives_no_digest() -> None:
    file = Written(100)
    file.write(0, bytes(100))
    with Follower(file.chunks, [100], name="x.tar") as follower:
        follower.done(0, 40)
        follower.done(60, 40)
        with pytest.raises(IntegrityError, match=r"x\.tar: byte 40 of 100 was never written"):
            follower.finish()


def test_what_goes_wrong_while_following_shows_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"short")
    file = ReadAt(path)
    with Follower(file.chunks, [100]) as follower:
        follower.done(0, 100)
        follower.done(0, 100)
        with pytest.raises(DamagedBundleError, match="ends at byte 5"):
            follower.finish()
        with pytest.raises(DamagedBundleError):
            follower.finish()
    file.close()


def test_a_bug_in_the_thread_is_not_swallowed() -> None:
    def broken(_offset: int, _size: int) -> Iterator[bytes]:
        raise ZeroDivisionError

    with Follower(broken, [1]) as follower:
        follower.done(0, 1)
        with pytest.raises(ZeroDivisionError):
            follower.finish()


@pytest.mark.parametrize("refusals", [1, 2])
def test_without_a_thread_the_end_does_its_work(
    monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """As under a limit of processes; a thread that is refused may be there for the next bytes."""
    start, refused = threading.Thread.start, list[threading.Thread]()

    def starting(thread: threading.Thread) -> None:
        if len(refused) < refusals:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    content = Random(3).randbytes(CHUNK + 100)
    file = Written(len(content))
    file.write(0, content)
    monkeypatch.setattr(threading.Thread, "start", starting)
    with Follower(file.chunks, [CHUNK, 100]) as follower:
        follower.done(0, CHUNK)
        follower.done(CHUNK, 100)
        assert threads() == 2 - refusals
        for _ in range(2):
            assert [one["sha256"] for one in follower.finish()] == [
                hashlib.sha256(part).hexdigest() for part in (content[:CHUNK], content[CHUNK:])
            ]


def test_leaving_early_stops_the_thread() -> None:
    file = Written(100)

    def interrupted(follower: Follower) -> None:
        follower.done(0, 40)
        assert threads() == 1
        raise KeyboardInterrupt

    with (
        without_waiting(PATIENCE_S),
        pytest.raises(KeyboardInterrupt),
        Follower(file.chunks, [100]) as follower,
    ):
        interrupted(follower)
    assert threads() == 0


def test_it_can_be_cancelled_while_it_waits() -> None:
    cancel = Cancellation()
    file = Written(100)
    with Follower(file.chunks, [100], run=Run(cancellation=cancel)) as follower:
        cancel.cancel()
        with pytest.raises(CancelledError):
            follower.finish()


def test_hashes_that_hold_something_are_released() -> None:
    held: list[weakref.ref[Hash]] = []

    def make() -> Hash:
        one = Held()
        held.append(weakref.ref(one))
        return one

    class Held:
        def update(self, data: bytes | memoryview, /) -> None: ...
        def hexdigest(self) -> str:
            return ""

    file = Written(3)
    file.write(0, b"abc")
    with Follower(file.chunks, [1, 2], hashes={"x": make}) as follower:
        follower.done(0, 1)
    del follower
    gc.collect()
    assert held
    assert not any(one() for one in held)


@pytest.mark.parametrize("sizes", [[], [2, -1]])
def test_parts_have_sizes(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="each 0 or more"):
        Follower(Written(1).chunks, sizes)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 101), (101, 0), (5, -1)])
def test_only_bytes_of_the_file_can_be_done(offset: int, size: int) -> None:
    follower = Follower(Written(100).chunks, [100])
    with follower, pytest.raises(ValueError, match="not all below 100"):
        follower.done(offset, size)


# -- how many large blobs at once ------------------------------------------------------------------


def test_where_processors_are_busy_each_has_one_large_blob_and_small_ones_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "LOOK_S", 0.001)
    looks = Semaphore(0)

    def used() -> float:
        looks.release()
        return 2 * time.monotonic()

    with written_at_once(LargeWriteLimit(2, used), [LARGE] * 4 + [LARGE - 1, 0]) as begun:
        first = [begun.get(timeout=PATIENCE_S) for _ in range(4)]
        for _ in range(20):
            assert looks.acquire(timeout=PATIENCE_S)
        assert begun.empty()
    assert sorted(first) == [0, LARGE - 1, LARGE, LARGE]
    assert [begun.get(), begun.get()] == [LARGE, LARGE]


def test_where_processors_wait_for_the_network_every_large_blob_begins() -> None:
    with written_at_once(LargeWriteLimit(2, lambda: 0.0), [LARGE] * 4) as begun:
        assert [begun.get(timeout=PATIENCE_S) for _ in range(4)] == [LARGE] * 4


@contextmanager
def written_at_once(limit: LargeWriteLimit, sizes: Sequence[int]) -> Iterator[SimpleQueue[int]]:
    """Blobs of these sizes are written, each by a thread, until the block is over.

    Yields the sizes of those that have begun."""
    begun, over = SimpleQueue[int](), threading.Event()

    def write(size: int) -> None:
        with limit.one(size):
            begun.put(size)
            over.wait(PATIENCE_S)

    writers = [threading.Thread(target=write, args=(size,)) for size in sizes]
    for writer in writers:
        writer.start()
    try:
        yield begun
    finally:
        over.set()
        for writer in writers:
            writer.join()
