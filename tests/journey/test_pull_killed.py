"""A pull that is killed again and again, at moments that nobody chose, ends like any other."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.release_tree import DEMO, TreeSpec
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.counted_program import Meter
from tests.support.inventories import put_image
from tests.support.program import RunningMirror
from tests.support.release_source import TINY, Shelf, Source, serve

KILLS = 100


def files(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of all files in a folder."""
    found = {}
    for path in folder.iterdir():
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def on_disk(folder: Path) -> int:
    """Bytes of archives under way."""
    return sum(path.stat().st_blocks * 512 for path in folder.glob("*.partial"))


def kill_and_resume(source: Source, work: Path, kills: int, options: tuple[str, ...] = ()) -> str:
    """Kill pulls `kills` times, each at a random moment between its start and its end, and complete
    each bundle by running the same command again; answer what that took."""
    dice = random.Random(4)
    arguments = ("--source", source.root, "--insecure", *options)
    requests = source.registry.requests
    requests.clear()
    meter = Meter(work / "read")
    with RunningMirror("pull", work / "whole", *arguments, program=meter.program) as pull:
        pull.finished().succeeded()
    whole, asked = files(work / "whole"), len(requests.matching())
    size = sum(path.stat().st_size for path in (work / "whole").iterdir())
    once = meter.read()
    assert once >= requests.sent(), "the meter is not where the program reads"
    requests.clear()
    fetched = killed = completed = 0
    while killed < kills:
        folder = work / "bundle"
        with RunningMirror("pull", folder, *arguments, program=meter.program) as pull:
            # By what was asked or written and not by time, so that on a busy machine it is in its
            # midst as often. Moments behind the last request are for what is done at the end.
            moment = dice.uniform(0, 1.1)
            by_bytes = dice.random() < 0.5
            while pull.running and (
                on_disk(folder) < moment * size
                if by_bytes and moment < 1
                else requests.count() < moment * asked
            ):
                time.sleep(0.002)
            if moment > 1:
                time.sleep(dice.uniform(0, 0.2))
            killed += pull.stop(signal.SIGKILL).code == -signal.SIGKILL
        requests.clear()
        if not (folder / "inventory.json").exists():
            partial = (folder / "inventory.json.partial").exists()
            assert partial or not list(folder.glob("*.tar*"))
            if killed < kills:
                continue
            with RunningMirror("pull", folder, *arguments, program=meter.program) as pull:
                pull.finished().succeeded()
            requests.clear()
        fetched += meter.read()
        assert files(folder) == whole
        completed += 1
        for path in folder.iterdir():
            path.unlink()
    told = (
        f"{killed} kills, {completed} pulls completed, {fetched / completed / size:.3f} of the "
        f"bundle's {size} bytes fetched per pull, {once / size:.3f} by one that is not killed"
    )
    print(told)
    assert fetched <= 1.1 * size * completed, told
    return told


def tree(spec: TreeSpec, layer_bytes: int, count: int = 4) -> Iterator[Source]:
    """A tree with images of every size: `spec`, and a database of layers of `layer_bytes`."""
    dice = random.Random(layer_bytes)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(spec, registry)
        layers = tuple(dice.randbytes(layer_bytes) for _ in range(count))
        database = f"{source.tree.root}/security/trivy-db"
        put_image(Shelf(registry), database, "2", layers=layers)
        yield source


@pytest.fixture(scope="module")
def small(_this_machine_only: None) -> Iterator[Source]:
    yield from tree(TINY, 32 << 20)


@pytest.fixture(scope="module")
def large(_this_machine_only: None) -> Iterator[Source]:
    yield from tree(replace(DEMO, components=40, layer_bytes=200_000), 160 << 20)


def test_a_pull_killed_five_times_ends_with_the_same_bytes_and_fetches_little_twice(
    small: Source, tmp_path: Path
) -> None:
    kill_and_resume(small, tmp_path, 5, ("--jobs", "2"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_pull_killed_a_hundred_times_ends_with_the_same_bytes_and_fetches_little_twice(
    large: Source, tmp_path: Path
) -> None:
    kill_and_resume(large, tmp_path, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_compressing_pull_killed_at_any_moment_does_too(large: Source, tmp_path: Path) -> None:
    kill_and_resume(large, tmp_path, 20, ("--compress", "zstd"))
