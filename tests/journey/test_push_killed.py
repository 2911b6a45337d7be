"""A push that is killed at any moment is completed by the next, which sends little twice."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from mirror.serve import MemoryStorage
from mirror.sync import MemoryStore
from mirror.testing import EmbeddedRegistry
from tests.support.bundles import pack_store
from tests.support.inventories import put_image
from tests.support.lines import BreakingLine
from tests.support.program import RunningMirror, call_mirror
from tests.support.real_registry import RealRegistry
from tests.support.wire import Wire

CHUNK = 16 << 20
JOBS = 2
OVERHEAD = 1.02
"""Heads of requests, manifests, and what else is no blob."""


@pytest.fixture(scope="module")
def bundle(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 60 MB: two layers beyond a chunk, and many small ones."""
    dice = random.Random(11)
    store = MemoryStore()
    shared = dice.randbytes(24_000_000)
    for number in range(12):
        put_image(
            store,
            "",
            f"v1.70.{number}",
            layers=(shared, dice.randbytes(1_000_000)),
            config=b'{"n":%d}' % number,
        )
    put_image(store, "install", "v1.70.0", layers=(shared, dice.randbytes(20_000_000)))
    for channel in ("alpha", "stable"):
        put_image(store, "release-channel", channel, layers=(b"version: v1.70.0",))
    folder = tmp_path_factory.mktemp("killed") / "bundle"
    pack_store(store, folder)
    return folder


def distinct_bytes(bundle: Path) -> int:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        run = call_mirror("push", bundle, f"{registry.address}/dkp", "--insecure", "--json")
        return int(run.succeeded().document["uploaded"]["bytes"])


def killed_pushes(
    bundle: Path, line: BreakingLine, wire: Wire, state: Path, kills: int, seed: int
) -> int:
    """Kill so many pushes at random moments, and look each time; how many roots were filled."""
    dice = random.Random(seed)
    size = sum(path.stat().st_size for path in bundle.iterdir())
    killed = rounds = 0
    while True:
        plain = ("push", bundle, f"{line.address}/dkp{rounds}", "--insecure")
        arguments = (*plain, "--jobs", str(JOBS), "--state-dir", state)
        if killed == kills:
            call_mirror(*arguments).succeeded()
            return rounds + 1
        # By bytes, not by time: the start of a process takes longer than all that it sends.
        until = line.carried + dice.randrange(1, size // 8)
        with RunningMirror(*arguments) as push:
            deadline = time.monotonic() + 60
            while line.carried < until and push._process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
            run = push.stop(signal.SIGKILL)
        for repository in wire.repositories():
            if repository.partition("/")[0] == f"dkp{rounds}":
                assert wire.dangling(repository) == []
        if run.code == 0:
            rounds += 1  # it was over too soon; the next goes elsewhere
        else:
            assert run.code == -signal.SIGKILL, run
            killed += 1


def assert_complete(bundle: Path, *roots: str) -> None:
    for root in roots:
        against = ("verify", bundle, "--against", root, "--deep", "--insecure")
        call_mirror(*against).succeeded()


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(6, id="6"),
        pytest.param(100, id="100", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
)
def test_a_push_killed_at_random_is_completed_and_sends_little_twice(
    bundle: Path, target: EmbeddedRegistry, tmp_path: Path, kills: int
) -> None:
    size = distinct_bytes(bundle)
    state = tmp_path / "state"
    with BreakingLine(target.port) as line, httpx.Client(base_url=target.url) as http:
        rounds = killed_pushes(bundle, line, Wire(http), state, kills, seed=3)
        # Each kill loses what was in the pipes, less than a chunk a worker.
        assert line.carried <= rounds * size * OVERHEAD + kills * CHUNK * JOBS
        print(f"{kills} kills in {rounds} pushes: {line.carried / size / rounds:.3f} of the bytes")
    assert_complete(bundle, *(f"{target.address}/dkp{number}" for number in range(rounds)))
    assert list((state / "uploads").iterdir()) == []


def test_a_push_to_distribution_killed_at_random_is_completed(
    bundle: Path, real_registry: RealRegistry, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with (
        BreakingLine(real_registry.port) as line,
        httpx.Client(base_url=real_registry.url) as http,
    ):
        rounds = killed_pushes(bundle, line, Wire(http), state, 3, seed=4)
        root = f"dkp{rounds - 1}"
        # Nothing that arrived is sent again: one more push sends heads of requests alone.
        before = line.carried
        arguments = ("push", bundle, f"{line.address}/{root}", "--insecure", "--json")
        done = call_mirror(*arguments, "--state-dir", state).succeeded()
        assert done.document["uploaded"]["bytes"] == 0
        assert line.carried - before < 200_000
    assert_complete(bundle, f"{real_registry.address}/{root}")
    assert list((state / "uploads").iterdir()) == []


def test_a_blob_half_sent_by_a_killed_push_is_continued(
    bundle: Path, target: EmbeddedRegistry, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    size = distinct_bytes(bundle)
    with BreakingLine(target.port) as line:
        arguments = ("push", bundle, f"{line.address}/dkp", "--insecure", "--jobs", "1")
        with RunningMirror(*arguments, "--state-dir", state) as push:
            push.wait_until(lambda: line.carried > 20_000_000)
            assert push.stop(signal.SIGKILL).code == -signal.SIGKILL
        (journal,) = (state / "uploads").iterdir()
        assert journal.read_text().count("location")
        call_mirror(*arguments, "--state-dir", state).succeeded()
        # The first layer alone has 24 MB: none of the 20 that arrived of it came a second time.
        assert line.carried <= size * OVERHEAD + (4 << 20)
    assert_complete(bundle, f"{target.address}/dkp")
    assert list((state / "uploads").iterdir()) == []
