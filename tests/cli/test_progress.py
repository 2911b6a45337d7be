"""What a person sees while work goes on: one transfer, and several side by side."""

from __future__ import annotations

import io
import time
from collections import Counter
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.events import (
    ArchiveDone,
    BlobDone,
    BytesMoved,
    EndpointUp,
    Event,
    ManifestDone,
    PhaseAdvanced,
    PhaseStarted,
    Retrying,
    TagDone,
    TransferStarted,
    Warned,
    serialised,
    side_by_side,
)
from mirror.oci import Digest
from mirror.operations.sync import sync_replicas
from mirror.reports.progress import progress
from mirror.run import Run
from mirror.sync import MemoryStore
from tests.support.inventories import put_image
from tests.support.replicas import replicas

LAYER, CONFIG = Digest.of(b"layer"), Digest.of(b"config")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _transfer(*blobs: tuple[Digest, int]) -> list[Event]:
    total = sum(size for _, size in blobs)
    events: list[Event] = [TransferStarted(len(blobs), total, 1, 1)]
    for digest, size in blobs:
        events += [BytesMoved(digest, size // 2), BlobDone(digest, size, size // 2)]
    return events


def test_lines_tell_what_each_of_several_transfers_adds() -> None:
    stream = io.StringIO()
    with progress(stream) as on_event:
        on_event(PhaseStarted("syncing 2 replicas", 2))
        for place in ("one", "two"):
            listener = side_by_side(on_event, place)
            for event in _transfer((LAYER, 2000), (CONFIG, 48)):
                listener(event)
    assert stream.getvalue().splitlines() == [
        "syncing 2 replicas: 2",
        "one: 2 blobs (2.0 KiB), 1 manifest, 1 tag",
        "two: 2 blobs (2.0 KiB), 1 manifest, 1 tag",
    ]


def test_lines_say_how_far_it_is_soon_and_then_ever_less_often() -> None:
    stream = io.StringIO()
    with (
        mock.patch.object(time, "monotonic", return_value=0.0) as now,
        progress(stream) as on_event,
    ):
        on_event(TransferStarted(1, 100, 0, 0))
        for second in range(1, 31):
            now.return_value = float(second)
            on_event(BytesMoved(LAYER, 1))
    told = [line.split("%")[0].strip() for line in stream.getvalue().splitlines()[1:]]
    assert told == ["2", "6", "14", "24"]


def test_lines_count_what_has_no_bytes_where_that_takes_long() -> None:
    stream = io.StringIO()
    with (
        mock.patch.object(time, "monotonic", return_value=0.0) as now,
        progress(stream) as on_event,
    ):
        on_event(PhaseStarted("reading generations", 40))
        for second in range(1, 8):
            now.return_value = float(second)
            on_event(PhaseAdvanced())
        on_event(TransferStarted(0, 0, 2, 3))
        for second in range(8, 13):
            now.return_value = float(second)
            on_event(ManifestDone("", LAYER) if second < 10 else TagDone("", "v1", LAYER))
    assert stream.getvalue().splitlines() == [
        "reading generations: 40",
        "2 of 40",
        "6 of 40",
        "0 blobs (0 B), 2 manifests, 3 tags",
        "2 of 5 manifests and tags",
    ]


def test_lines_and_bars_count_archives() -> None:
    lines, terminal = io.StringIO(), _Terminal()
    for stream in (lines, terminal):
        with (
            mock.patch.object(time, "monotonic", return_value=0.0) as now,
            progress(stream) as on_event,
        ):
            on_event(TransferStarted(2, 100, 0, 0))
            on_event(BlobDone(LAYER, 50, 50))
            on_event(ArchiveDone("platform.tar", 50, 1, 2))
            now.return_value = 2.0
            on_event(BytesMoved(CONFIG, 20))
    assert lines.getvalue().splitlines() == [
        "2 blobs (100 B)",
        " 70%  70 B of 100 B, 1 of 2 archives",
    ]
    assert "2 blobs, 1 of 2 archives:  70%" in terminal.getvalue()


def test_who_asks_for_each_item_is_told_of_archives_too() -> None:
    stream = io.StringIO()
    with progress(stream, items=True) as on_event:
        on_event(ArchiveDone("platform.tar", 2048, 1, 2))
    assert stream.getvalue() == "archive platform.tar (2.0 KiB), 1 of 2 archives\n"


def _retrying(reason: str = "the connection to r.example broke") -> Retrying:
    return Retrying("PUT r.example/v2/a", 1, 0.7, reason)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("form", ["auto", "none"])
def test_requests_that_fail_alike_are_told_of_once_and_then_counted_ever_less_often(
    terminal: bool, form: str
) -> None:
    stream = _Terminal() if terminal else io.StringIO()
    with (
        mock.patch.object(time, "monotonic", return_value=0.0) as now,
        progress(stream, form=form, items=True) as on_event,
    ):
        for second in range(80):
            now.return_value = float(second)
            on_event(_retrying())
        on_event(_retrying("r.example refuses connections"))
    assert stream.getvalue().splitlines() == [
        "trying again in 0.7s: the connection to r.example broke",
        "trying again: the connection to r.example broke 9 more times",
        "trying again: the connection to r.example broke 20 more times",
        "trying again: the connection to r.example broke 40 more times",
        "trying again in 0.7s: r.example refuses connections",
        "trying again: the connection to r.example broke 10 more times",
    ]


def test_what_was_counted_is_told_when_work_goes_on_and_then_it_is_news_again() -> None:
    stream = io.StringIO()
    with (
        mock.patch.object(time, "monotonic", return_value=0.0) as now,
        progress(stream) as on_event,
    ):
        for second in (0.0, 1.0, 5000.0, 9000.0):
            now.return_value = second
            on_event(EndpointUp("r.example") if second == 5000 else _retrying())
    first = "trying again in 0.7s: the connection to r.example broke"
    counted = "trying again: the connection to r.example broke 1 more time"
    assert stream.getvalue().splitlines() == [
        first,
        counted,
        "r.example answers again",
        first,
    ]


def test_who_asks_for_requests_is_told_of_each_one_that_is_sent_again() -> None:
    stream = io.StringIO()
    with progress(stream, requests=True) as on_event:
        for _ in range(3):
            on_event(_retrying())
    assert len(stream.getvalue().splitlines()) == 3


def test_one_bar_grows_with_every_transfer_that_joins_and_ends_full() -> None:
    stream = _Terminal()
    with progress(stream) as on_event:
        on_event(PhaseStarted("syncing 2 replicas", 2))
        one, two = side_by_side(on_event, "one"), side_by_side(on_event, "two")
        for event in _transfer((LAYER, 2000)):
            one(event)
        for event in _transfer((LAYER, 2000), (CONFIG, 96)):
            two(event)
        on_event(PhaseAdvanced())  # a replica is through: no byte of the bar
    last = stream.getvalue().split("\r")[-1]
    assert "all transfers: 100%" in last
    assert "4.0 KiB of 4.0 KiB" in last


@given(st.lists(st.lists(st.tuples(st.sampled_from([LAYER, CONFIG]), st.integers(0, 99)))))
def test_bytes_told_side_by_side_are_those_to_be_moved(
    transfers: list[list[tuple[Digest, int]]],
) -> None:
    heard: list[Event] = []
    parts = [
        (side_by_side(heard.append, str(number)), _transfer(*blobs))
        for number, blobs in enumerate(transfers)
    ]
    while any(events for _, events in parts):  # by turns, as threads may have it
        for listener, events in parts:
            if events:
                listener(events.pop(0))
    told = sum(event.size for event in heard if isinstance(event, TransferStarted))
    assert sum(event.count for event in heard if isinstance(event, BytesMoved)) == told


def test_a_warning_says_which_place_it_is_about() -> None:
    heard: list[Event] = []
    listener = side_by_side(heard.append, "registry.example")
    listener(Warned("a tag could not be removed"))
    listener(Warned("registry.example: a tag could not be removed"))
    listener(PhaseStarted("one of its own"))
    assert heard == [Warned("registry.example: a tag could not be removed")] * 2


def test_a_sync_of_several_replicas_tells_the_bytes_of_each() -> None:
    heard: list[Event] = []
    store = MemoryStore()
    put_image(store, "install", "v1.0.0", layers=(b"of the installer" * 1000,))
    with replicas(3) as (leader, *others):
        leader.fill(store)
        report = sync_replicas(
            leader.tree, [one.tree for one in others], run=Run(on_event=serialised(heard.append))
        )
        assert report.exit_code == 0
        started = [event for event in heard if isinstance(event, TransferStarted)]
        assert {event.beside for event in started} == {one.tree.name for one in others}
    moved = Counter(event.digest for event in heard if isinstance(event, BytesMoved) if event.count)
    assert sum(event.size for event in started) == sum(
        event.count for event in heard if isinstance(event, BytesMoved)
    )
    assert max(moved.values()) >= 2, "each replica gets its own"
