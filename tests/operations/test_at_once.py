"""Two commands that publish in one registry at once: what the later one does and tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import ConflictError, IncompleteError
from mirror.events import Event, OnEvent, PhaseStarted, TagDone, TransferStarted
from mirror.operations.compare import status
from mirror.operations.prune import prune
from mirror.operations.push import push, push_to_all
from mirror.operations.push_reports import PushReport
from mirror.operations.replicate import Outcome
from mirror.operations.rollback import rollback
from mirror.operations.sync import sync_replicas
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore
from mirror.sync.publication import announce
from mirror.sync.publication_state import read_state
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.tree import RegistrySource, RegistryTarget, RegistryTree
from tests.support.bundles import pack
from tests.support.inventories import put_image, sample_store
from tests.support.replicas import Replica, replicas


@pytest.fixture
def two() -> Iterator[list[Replica]]:
    with replicas(2) as made:
        yield made


def module() -> MemoryStore:
    """What the other command brings: a module that nobody else speaks of."""
    store = MemoryStore()
    put_image(store, "modules/other", "v1.0.0", layers=(b"another module",))
    return store


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """The sample tree as a bundle."""
    pack(sample_store(), sample_store().inventory(), tmp_path / "sample")
    return tmp_path / "sample"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """That module as a bundle."""
    pack(module(), module().inventory(), tmp_path / "other")
    return tmp_path / "other"


def load(bundle: Path, replica: Replica, on_event: OnEvent = lambda _: None) -> PushReport:
    with BundleReader([bundle]) as reader:
        return push(reader, replica.tree, run=Run(on_event=on_event))


def once(act: Callable[[], object], kind: type[Event], words: str = "") -> OnEvent:
    """A listener that does `act` when the first event of that kind, and text, is heard."""
    done: list[Event] = []

    def listener(event: Event) -> None:
        told = getattr(event, "name", getattr(event, "repository", words))
        if not done and isinstance(event, kind) and words in told:
            done.append(event)
            act()

    return listener


def stated(replica: Replica) -> tuple[int, Inventory]:
    standing = read_state(replica.tree)
    assert standing.current is not None
    assert standing.pending is None
    return standing.generation, standing.current.statement.inventory


def test_a_push_that_another_one_overtook_says_so_and_never_forgets_what_that_stated(
    two: list[Replica], sample: Path, other: Path
) -> None:
    replica, _ = two
    overtaken = once(lambda: load(other, replica), TransferStarted)
    with pytest.raises(ConflictError, match=r"another push.*no tag was changed: run it again"):
        load(sample, replica, overtaken)
    assert stated(replica)[0] == 1
    assert load(sample, replica).done.sent == 0
    generation, inventory = stated(replica)
    assert generation == 2
    assert "modules/other" in inventory.repositories
    assert inventory.repository("release-channel").tags


def test_a_push_whose_announcement_another_one_replaced_states_nothing(
    two: list[Replica], sample: Path, other: Path
) -> None:
    replica, _ = two
    load(other, replica)
    before = read_state(replica.tree).current
    rival = Statement(Inventory(), 7).artifact()
    late = once(lambda: announce(replica.tree, rival), TagDone, "release")
    with pytest.raises(ConflictError) as told:
        load(sample, replica, late)
    assert str(told.value) == (
        f"{replica.tree.client.host}/{replica.tree.locate(REPOSITORY)}: another push, rollback or "
        "sync began while this one ran; run it again, one at a time"
    )
    state = read_state(replica.tree)
    assert state.current == before
    assert state.tips[0] == rival.manifest.digest


def test_the_same_push_twice_at_once_is_no_conflict(two: list[Replica], sample: Path) -> None:
    replica, _ = two
    load(sample, replica, once(lambda: load(sample, replica), TransferStarted))
    assert stated(replica)[0] == 1


def test_a_quorum_does_not_count_a_registry_in_which_another_push_was_faster(
    two: list[Replica], sample: Path, other: Path
) -> None:
    overtaken = once(lambda: load(other, two[0]), TransferStarted)
    with BundleReader([sample]) as reader, pytest.raises(IncompleteError, match="1 of 2") as caught:
        push_to_all(reader, [one.tree for one in two], run=Run(on_event=overtaken))
    ((name, problem),) = caught.value.failures
    assert (name, type(problem)) == (two[0].name, ConflictError)
    assert stated(two[0])[1].repositories.keys() >= {"modules/other"}


def test_a_rollback_that_a_push_overtook_changes_nothing(
    two: list[Replica], sample: Path, other: Path
) -> None:
    replica, _ = two
    load(sample, replica)
    overtaken = once(lambda: load(other, replica), PhaseStarted, "comparing tags")
    with pytest.raises(ConflictError, match="no tag was changed"):
        rollback(replica.tree, to=0, run=Run(on_event=overtaken))
    assert stated(replica)[0] == 2
    assert replica.held().repository("modules/other").tags.keys() == {"v1.0.0"}


class Busy(RegistryTree):
    """A registry in which something is published between a prune's two looks at it."""

    def source(self) -> RegistrySource:
        replica, bundle = _BUSY[self.name]
        load(bundle, replica)
        return super().source()


_BUSY: dict[str, tuple[Replica, Path]] = {}


def test_a_prune_that_a_push_overtook_removes_nothing(
    two: list[Replica], sample: Path, other: Path
) -> None:
    replica, _ = two
    replica.fill(sample_store())
    extra = MemoryStore()
    put_image(extra, "install", "old", layers=(b"what is to go",))
    replica.fill(extra, generation=2)
    replica.state(replica.held(), 2)
    _BUSY[replica.name] = (replica, other)
    busy = Busy(replica.tree.client, replica.tree.root)
    with pytest.raises(ConflictError, match="no tag was changed"):
        prune(busy, [sample])
    generation, inventory = stated(replica)
    assert generation == 3
    assert inventory.repositories.keys() >= {"install", "modules/other"}
    assert replica.held().repository("install").tags


def test_a_prune_tells_of_a_push_that_published_while_it_removed(
    two: list[Replica], sample: Path, other: Path
) -> None:
    replica, _ = two
    extra = sample_store()
    put_image(extra, "install", "old", layers=(b"what is to go",))
    replica.fill(extra)
    during = once(lambda: load(other, replica), PhaseStarted, "removing")
    report = prune(replica.tree, [sample], run=Run(on_event=during))
    assert report.exit_code == 1
    assert "published something while this prune removed" in str(report.failures[0])
    assert replica.held().repository("modules/other").tags


def test_two_syncs_to_one_replica_bring_it_there_together(two: list[Replica]) -> None:
    leader, replica = two
    leader.fill(sample_store())
    again = once(lambda: sync_replicas(leader.tree, [replica.tree]), TransferStarted)
    report = sync_replicas(leader.tree, [replica.tree], run=Run(on_event=again))
    assert [one.outcome for one in report.replicas] == [Outcome.SYNCED]
    assert stated(replica) == stated(leader)


def test_a_sync_does_not_turn_back_what_a_newer_one_brought_meanwhile(two: list[Replica]) -> None:
    leader, replica = two
    leader.fill(sample_store())

    def newer() -> None:
        leader.fill(module())
        leader.state(leader.held(), 2)
        assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0

    report = sync_replicas(
        leader.tree, [replica.tree], run=Run(on_event=once(newer, TransferStarted))
    )
    (result,) = report.replicas
    assert "another push, rollback, sync or prune published" in str(result.failures[0])
    assert stated(replica) == stated(leader)
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0


def test_status_looks_again_where_something_was_published_meanwhile(two: list[Replica]) -> None:
    replica, _ = two
    replica.fill(sample_store())
    newer = sample_store()
    put_image(newer, "release-channel", "v1.1.0", "alpha", layers=(b"version: v1.1.0",))

    class Moving(RegistryTree):
        """A registry in which a release is published while it is asked."""

        def target(self, run: Run | None = None) -> RegistryTarget:
            if replica.held() != newer.inventory():
                replica.fill(newer, generation=2)
            return RegistryTree.target(self, run)

    (found,) = status([Moving(replica.tree.client, replica.tree.root)]).replicas
    assert found.complete, found.missing
    assert found.generation == 2


def test_status_calls_nothing_complete_whose_statement_cannot_be_read(two: list[Replica]) -> None:
    """An earlier generation can be read, and all that it names is there."""
    replica, _ = two
    replica.fill(sample_store())
    replica.fill(module(), generation=None)
    replica.state(replica.held(), 2)
    current = read_state(replica.tree).current
    assert current is not None
    (layer,) = current.statement.artifact().manifest.layers
    replica.storage.delete_blob(replica.tree.locate(REPOSITORY), layer.digest)
    report = status([replica.tree])
    assert report.exit_code == 4
    failure = report.replicas[0].failures[0]
    assert failure.item == "its statement"
    assert "push the bundle again to state anew what is there" in str(failure)
