"""A stall is told by bytes moved in a window of waiting, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import StalledError
from mirror.registry.gate import StallWatch


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(clock: Clock, window_s: float = 60, min_bytes: int = 1000) -> StallWatch:
    return StallWatch(
        window_s, min_bytes, lambda: StalledError("stalled", where="here"), clock=clock
    )


def arriving(clock: Clock, *chunks: tuple[float, int]) -> Iterator[bytes]:
    """Chunks of so many bytes, each after so many seconds."""
    for after_s, size in chunks:
        clock.now += after_s
        yield bytes(size)


def test_a_trickle_is_a_stall_after_one_window() -> None:
    clock = Clock()
    chunks = watch(clock).received(arriving(clock, *[(1.0, 10)] * 100))
    with pytest.raises(StalledError):
        list(chunks)
    assert clock.now == 60


def test_a_slow_line_that_moves_enough_is_none() -> None:
    clock = Clock()
    assert len(list(watch(clock).received(arriving(clock, *[(1.0, 17)] * 1000)))) == 1000


def test_a_burst_does_not_pay_for_later_windows() -> None:
    clock = Clock()
    chunks = watch(clock).received(arriving(clock, (1, 10**6), *[(1.0, 1)] * 200))
    with pytest.raises(StalledError):
        list(chunks)
    assert clock.now == 120


def test_a_slow_reader_is_no_stall() -> None:
    clock = Clock()
    got = 0
    for chunk in watch(clock).received(arriving(clock, *[(0.0, 1)] * 10)):
        clock.now += 1000
        got += len(chunk)
    assert got == 10


def test_a_receiver_that_takes_little_is_a_stall() -> None:
    clock = Clock()
    pieces = watch(clock, min_bytes=100_000).sent([bytes(1 << 20)])
    seen: list[int] = []

    def send() -> None:
        for piece in pieces:
            seen.append(len(piece))
            clock.now += 20

    with pytest.raises(StalledError):
        send()
    assert clock.now == 60
    assert max(seen) == 16 << 10


def test_a_source_that_is_slow_is_no_stall_of_the_receiver() -> None:
    clock = Clock()
    slow = arriving(clock, *[(1000.0, 1)] * 5)
    assert sum(len(piece) for piece in watch(clock).sent(slow)) == 5


@given(st.lists(st.binary(max_size=600_000), max_size=4))
def test_sending_changes_no_byte(chunks: list[bytes]) -> None:
    sent = list(watch(Clock()).sent(chunks))
    assert b"".join(piece for piece in sent if isinstance(piece, memoryview)) == b"".join(chunks)
    assert all(0 < len(piece) <= 256 << 10 for piece in sent)
