"""Whoever asks an operation to stop is heard wherever it waits, and keeps clients that work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import CancelledError, DeadlineError, StalledError
from mirror.job import Job, start
from mirror.oci import Repository
from mirror.operations.compare import status, verify
from mirror.operations.pull import pull
from mirror.operations.push import push
from mirror.operations.replicate import Outcome
from mirror.operations.sync import sync_replicas
from mirror.registry import ConnectionOptions, RegistryClient, RegistryReader
from mirror.release.selection import Selection
from mirror.release.source import SourceTree
from mirror.run import Run
from mirror.serve import MemoryStorage
from mirror.testing import Answer, Delay, EmbeddedRegistry, Fault, Stall
from mirror.watch.cycle import Replicator
from mirror.watch.daemon import Daemon
from mirror.watch.settings import Schedule
from tests.crossings import ONE_IMAGE
from tests.support.bundles import pack_store
from tests.support.inventories import sample_store
from tests.support.patience import ends_within
from tests.support.program import RunningMirror
from tests.support.release_source import serve
from tests.support.replicas import Replica, replicas

STORE = sample_store()

BOUND_S = 2.0
"""What is promised, by a clock that slows down with the machine. Every fault lasts far longer."""

_PATIENCE_S = 30.0

FAULTS = {
    "told to come back later": lambda: Fault(Answer(503, {"Retry-After": "120"}), times=None),
    "told to slow down": lambda: Fault(Answer(429, {"Retry-After": "120"}), times=None),
    "never answered": lambda: Fault(Delay(120.0), times=None),
    "left in the midst of a manifest": lambda: Fault(
        Stall(20, 120.0), path="manifests", times=None
    ),
    "left in the midst of a blob": lambda: Fault(
        Stall(1, 120.0), "GET", "blobs/sha256", times=None
    ),
    "not answered while it writes": lambda: Fault(Delay(120.0), "PUT", times=None),
}

HOLD_EVERYBODY = {"told to come back later", "told to slow down"}
"""After these the registry's `Retry-After` counts for whoever uses the client next, too."""


@dataclass(frozen=True)
class Scene:
    """An operation, and the registry that it will have to wait for."""

    registry: EmbeddedRegistry
    client: RegistryReader
    operation: Callable[..., object]

    def start(self, run: Run) -> Job[object]:
        """Begin, and return once a fault has struck."""
        job = start(self.operation, run=run)
        until = time.monotonic() + _PATIENCE_S
        while not self.registry.faults.struck and not job.done and time.monotonic() < until:
            time.sleep(0.01)
        assert self.registry.faults.struck, "nothing was tested"
        return job

    def check_client(self, fault: str) -> None:
        """The client is its owner's, and serves on."""
        self.registry.faults.clear()
        check_open(self.client, fault)


def check_open(client: RegistryReader, fault: str) -> None:
    """The client answers, or waits as long as the registry asked everybody to: it is not closed.

    It waits if it had read that answer when the operation was cancelled.
    """
    held_back = fault in HOLD_EVERYBODY
    with suppress(DeadlineError) if held_back else nullcontext():
        client.within(Run().with_deadline(0.1 if held_back else None)).ping()


@pytest.fixture
def two() -> Iterator[list[Replica]]:
    with patient(2) as made:
        yield made


@contextmanager
def patient(count: int) -> Iterator[list[Replica]]:
    """Replicas whose clients wait as long as a registry asks them to."""
    with replicas(count) as made, ExitStack() as opened:
        options = ConnectionOptions(plain_http=True)
        for one in made:
            client = opened.enter_context(RegistryClient(one.registry.address, options=options))
            one.tree = replace(one.tree, client=client)
        yield made


def _push(two: list[Replica], folder: Path) -> Scene:
    pack_store(STORE, folder / "bundle")
    tree = two[0].tree

    def operation(*, run: Run) -> object:
        with BundleReader([folder / "bundle"]) as reader:
            return push(reader, tree, run=run)

    return Scene(two[0].registry, tree.client, operation)


def _verify(two: list[Replica], folder: Path) -> Scene:
    pack_store(STORE, folder / "bundle")
    two[0].fill(STORE)
    tree = two[0].tree

    def operation(*, run: Run) -> object:
        with BundleReader([folder / "bundle"]) as reader:
            return verify(reader, against=tree, deep=True, run=run)

    return Scene(two[0].registry, tree.client, operation)


def _sync_from(two: list[Replica], _folder: Path) -> Scene:
    leader, replica = two
    leader.fill(STORE)

    def operation(*, run: Run) -> object:
        return sync_replicas(leader.tree, [replica.tree], run=run)

    return Scene(leader.registry, leader.tree.client, operation)


def _sync_to(two: list[Replica], _folder: Path) -> Scene:
    leader, replica = two
    leader.fill(STORE)

    def operation(*, run: Run) -> object:
        return sync_replicas(leader.tree, [replica.tree], run=run)

    return Scene(replica.registry, replica.tree.client, operation)


def _status(two: list[Replica], _folder: Path) -> Scene:
    two[0].fill(STORE)

    def operation(*, run: Run) -> object:
        return status([one.tree for one in two], thorough=True, run=run)

    return Scene(two[0].registry, two[0].tree.client, operation)


SCENES = {
    "push": _push,
    "verify": _verify,
    "sync from it": _sync_from,
    "sync to it": _sync_to,
    "status": _status,
}

READS_ONLY = {"verify", "sync from it", "status"}
"""These write nothing, so a fault in writing never strikes them."""

CASES = [
    pytest.param(scene, fault, id=f"{scene}, {fault}")
    for scene in SCENES
    for fault in FAULTS
    if not (fault == "not answered while it writes" and scene in READS_ONLY)
    and not (fault == "left in the midst of a blob" and scene in ("push", "sync to it", "status"))
    and not (
        fault == "left in the midst of a manifest" and scene in ("push", "status", "sync to it")
    )
]


@pytest.mark.parametrize(("scene", "fault"), CASES)
def test_an_operation_that_is_cancelled_ends_wherever_it_waits(
    two: list[Replica], tmp_path: Path, scene: str, fault: str
) -> None:
    made = SCENES[scene](two, tmp_path)
    made.registry.faults.add(FAULTS[fault]())
    callers = Run(4)
    job = made.start(callers)
    with ends_within(BOUND_S):
        job.cancel()
        with pytest.raises(CancelledError):
            job.result(_PATIENCE_S)
    callers.check()
    made.check_client(fault)
    assert not [one.name for one in threading.enumerate() if one.name.startswith("mirror_")]


@pytest.mark.parametrize("fault", ["told to come back later", "never answered"])
def test_an_operation_ends_at_its_deadline(two: list[Replica], tmp_path: Path, fault: str) -> None:
    made = _push(two, tmp_path)
    made.registry.faults.add(FAULTS[fault]())
    with ends_within(1.0 + BOUND_S), pytest.raises(DeadlineError):
        start(made.operation, run=Run(4).with_deadline(1.0)).result(_PATIENCE_S)
    made.check_client(fault)


@pytest.mark.parametrize("fault", ["told to come back later", "never answered"])
def test_a_pull_that_is_cancelled_ends_wherever_it_waits(tmp_path: Path, fault: str) -> None:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        root = Repository.parse(serve(ONE_IMAGE, registry).root)
        options = ConnectionOptions(plain_http=True)
        with RegistryClient(registry.address, options=options) as client:
            source = SourceTree(root)

            def operation(*, run: Run) -> object:
                return pull(client, source, Selection(), tmp_path / "out", run=run)

            made = Scene(registry, client, operation)
            registry.faults.add(FAULTS[fault]())
            job = made.start(Run(4))
            with ends_within(BOUND_S):
                job.cancel()
                with pytest.raises(CancelledError):
                    job.result(_PATIENCE_S)
            made.check_client(fault)


def test_a_sync_with_a_deadline_does_not_wait_for_a_silent_leader(two: list[Replica]) -> None:
    leader, replica = two
    leader.fill(STORE)
    leader.registry.faults.add(Fault(Delay(120.0), times=None))
    silent = pytest.raises(StalledError, match="did not say within 1 s what it holds")
    with ends_within(1.0 + BOUND_S), silent:
        sync_replicas(leader.tree, [replica.tree], deadline_s=1.0)


def test_a_sync_with_a_deadline_chooses_a_leader_among_those_that_answer_in_time() -> None:
    with patient(3) as (silent, leader, replica):
        leader.fill(STORE)
        silent.registry.faults.add(Fault(Delay(120.0), times=None))
        trees = [one.tree for one in (silent, leader, replica)]
        with ends_within(12.0):
            report = sync_replicas(None, trees, deadline_s=12.0)
        assert report.leader == leader.name
        assert [one.outcome for one in report.replicas] == [Outcome.SYNCED]
        (failure,) = report.failures
        assert failure.place == silent.name
        assert "no answer within 6 s" in str(failure.error)


@pytest.mark.parametrize("fault", ["told to come back later", "never answered"])
def test_a_daemon_that_is_stopped_ends_wherever_it_waits(two: list[Replica], fault: str) -> None:
    leader, replica = two
    leader.fill(STORE)
    leader.registry.faults.add(FAULTS[fault]())
    trees = {"a": leader.tree, "b": replica.tree}
    daemon = Daemon(["b"], Replicator(trees, "a"), schedule=Schedule())
    daemon.start()
    until = time.monotonic() + _PATIENCE_S
    while not leader.registry.faults.struck and time.monotonic() < until:
        time.sleep(0.01)
    with ends_within(BOUND_S):
        daemon.stop()
    assert leader.registry.faults.struck
    assert not daemon.alive()
    leader.registry.faults.clear()
    check_open(leader.tree.client, fault)


@pytest.mark.parametrize("fault", ["told to come back later", "never answered"])
@pytest.mark.parametrize("command", ["push", "sync"])
def test_a_command_that_gets_sigterm_ends_wherever_it_waits(
    two: list[Replica], tmp_path: Path, command: str, fault: str
) -> None:
    pack_store(STORE, tmp_path / "bundle")
    registry = two[0].registry
    registry.faults.add(FAULTS[fault]())
    arguments: dict[str, tuple[str | Path, ...]] = {
        "push": ("push", tmp_path / "bundle", two[0].name),
        "sync": ("sync", "--from", two[0].name, "--to", two[1].name),
    }
    with RunningMirror(*arguments[command], "--insecure") as program:
        program.wait_until(lambda: registry.faults.struck > 0)
        with ends_within(BOUND_S):
            ended = program.stop(signal.SIGTERM)
    assert ended.code == 130
    assert ended.stderr.endswith("error: interrupted; run the same command again\n")
