"""A pull into a bucket that is killed again and again makes the same objects, and opens no file."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.uploads import PART
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.journey.test_disk import assert_untouched, traced
from tests.journey.test_pull_killed import tree
from tests.support.counted_program import Meter
from tests.support.object_storage import ObjectStorage
from tests.support.program import RunningMirror
from tests.support.release_source import TINY, Source, serve

UNREAD = 8 << 20
"""Bytes that a killed process may not have read yet of each connection."""


@pytest.fixture(scope="module")
def storage(
    tmp_path_factory: pytest.TempPathFactory, _this_machine_only: None
) -> Iterator[ObjectStorage]:
    with ObjectStorage.of_this_process(tmp_path_factory.mktemp("storage")) as server:
        yield server


def pull_of(source: Source, jobs: int) -> tuple[str, ...]:
    return "--source", source.root, "--insecure", "--jobs", str(jobs)


def kill_and_resume(source: Source, storage: ObjectStorage, kills: int, jobs: int) -> None:
    """Kill pulls at random moments, as counted in what the source has sent, and complete them."""
    dice, requests, flags = random.Random(7), source.registry.requests, pull_of(source, jobs)
    env = storage.environment()
    requests.clear()
    with RunningMirror("pull", "s3://bundles/whole", *flags, env=env) as pull:
        pull.finished().succeeded()
    whole, size, fetched = storage.content("whole"), requests.sent(), 0
    requests.clear()
    killed, number = 0, 1
    while killed < kills or not storage.has(f"{number}/inventory.json"):
        place = f"s3://bundles/{number}"
        with RunningMirror("pull", place, *flags, env=env) as pull:
            moment = dice.uniform(0.1, 1) * size
            while pull.running and (killed == kills or requests.sent() < moment):
                time.sleep(0.002)
            killed += pull.running and pull.stop(signal.SIGKILL).code == -signal.SIGKILL
        fetched += requests.sent()
        requests.clear()
        if storage.has(f"{number}/inventory.json"):
            assert storage.content(str(number)) == whole
            assert storage.pending(str(number)) == []
            number += killed < kills
    told = f"{killed} kills, {number} pulls, {fetched / size / number:.3f} of {size} bytes for each"
    print(told)
    assert fetched <= size * number + killed * jobs * (PART + UNREAD), told


@pytest.fixture(scope="module")
def small(_this_machine_only: None) -> Iterator[Source]:
    yield from tree(TINY, 12 << 20)


def test_a_pull_into_a_bucket_killed_twice_makes_the_same_objects(
    small: Source, storage: ObjectStorage
) -> None:
    kill_and_resume(small, storage, 2, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_pull_killed_fifty_times_on_its_way_into_a_bucket_fetches_little_twice(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """One of 4 GiB, which is small for fifty interruptions; each time a fiftieth has come."""
    for source in tree(TINY, 240 << 20, 17):
        flags, place = pull_of(source, 2), "s3://bundles/fifty"
        with RunningMirror("pull", tmp_path / "whole", *flags) as pull:
            while pull.running:  # as long as a busy machine takes
                time.sleep(0.1)
            pull.finished().succeeded()
        whole = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir()}
        size, killed, fetched = sum(whole.values()), 0, 0
        meter = Meter(tmp_path / "read", source.registry.port)
        while not storage.has("fifty/inventory.json"):
            program, env = meter.program, storage.environment()
            with RunningMirror("pull", place, *flags, env=env, program=program) as pull:
                while pull.running and (killed == 50 or meter.so_far() < size / 50):
                    time.sleep(0.002)
                killed += pull.running and pull.stop(signal.SIGKILL).code == -signal.SIGKILL
            fetched += meter.read()
        told = f"{killed} kills, {fetched / size:.3f} of {size} bytes fetched"
        print(told)
        folder = storage.root / storage.BUCKET / "fifty"
        assert {path.name: path.stat().st_size for path in folder.iterdir()} == whole
        for name in ("SHA256SUMS", "inventory.json"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert killed == 50
        assert fetched <= 1.1 * size, told


def test_a_pull_into_a_bucket_opens_no_file_for_writing(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(TINY, registry)
        run, calls = traced(tmp_path / "trace", "pull", "s3://bundles/traced", *pull_of(source, 2))
    run.succeeded()
    assert storage.has("traced/inventory.json")
    assert_untouched(calls)
