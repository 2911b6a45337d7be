"""A pull that is killed again and again, at moments that nobody chose, ends like any other."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.release_tree import DEMO
from mirror.serve import EmbeddedRegistry, MemoryStorage
from tests.journey.conftest import Source, serve
from tests.support.program import RunningMirror, call_mirror

KILLS = 100


@pytest.fixture(scope="module")
def source(_this_machine_only: None) -> Iterator[Source]:
    """A tree of some 30 MB, which takes a pull a moment."""
    spec = replace(DEMO, components=40, layer_bytes=60_000)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield serve(spec, registry)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.soak
def test_a_pull_killed_at_any_moment_ends_with_the_same_bytes_and_fetches_little_twice(
    source: Source, tmp_path: Path
) -> None:
    dice = random.Random(4)
    arguments = ("--source", source.root, "--insecure")
    started = time.monotonic()
    call_mirror("pull", tmp_path / "whole", *arguments).succeeded()
    whole, lasts = files(tmp_path / "whole"), time.monotonic() - started
    size = sum(map(len, whole.values()))
    kills = completed = 0
    source.registry.requests.clear()
    while kills < KILLS:
        folder = tmp_path / f"bundle-{completed}"
        with RunningMirror("pull", folder, *arguments) as pull:
            # Up to the end of a process that starts anew, its own start included.
            time.sleep(dice.uniform(0.2, 0.6 + lasts))
            kills += pull.stop(signal.SIGKILL).code == -signal.SIGKILL
        if (folder / "inventory.json").exists():
            assert files(folder) == whole
            completed += 1
        else:
            assert not list(folder.glob("*.tar")) or (folder / "inventory.json.partial").exists()
    if not (folder / "inventory.json").exists():
        call_mirror("pull", folder, *arguments).succeeded()
        assert files(folder) == whole
        completed += 1
    # Beside the content, each run reads anew what describes releases; that is little.
    fetched = source.registry.requests.sent("/blobs/")
    assert fetched <= completed * (1.1 * size) + kills * (6 << 20), (fetched, size, completed)
