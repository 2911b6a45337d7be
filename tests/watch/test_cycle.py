"""Cycles over registries: who is followed, and what becomes of a replica."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mirror.errors import DeniedError, MirrorError, NotFoundError, UnreachableError
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import MemoryStore, union
from mirror.sync.publication import announce
from mirror.sync.statement import Statement, StatementKeys
from mirror.testing import Delay, Fault
from mirror.watch.cycle import CycleResult, Replicator, _Silent, count
from mirror.watch.settings import AUTO, CheckLevel
from tests.support.inventories import newer_store, put_image, sample_store
from tests.support.places import state
from tests.support.replicas import ROOT, Replica, replicas

STORE = sample_store()
WANTED = STORE.inventory()


def lose(replica: Replica, digest: Digest) -> None:
    """Take a blob away behind the registry's back."""
    for repository in replica.storage.repositories():
        replica.storage.delete_blob(repository, digest)
    assert replica.held() != WANTED


@pytest.fixture
def three() -> Iterator[list[Replica]]:
    with replicas(3) as made:
        yield made


class Cluster:
    """Registries `a`, `b` and `c`, and cycles over them."""

    def __init__(self, members: list[Replica], leader: str) -> None:
        self.members = dict(zip("abc", members, strict=True))
        sites = {name: one.tree for name, one in self.members.items()}
        self.replicator = Replicator(sites, leader)

    def look(self, name: str, level: CheckLevel = CheckLevel.STATEMENT) -> CycleResult:
        """One cycle for the replica `name`."""
        return self.replicator(name, level, Run())


def test_with_trusted_keys_registries_that_state_nothing_lead_nobody(three: list[Replica]) -> None:
    three[0].fill(STORE, generation=None)
    keys = StatementKeys(trusted=(b"never looked at",))
    for one in three:
        one.tree = replace(one.tree, keys=keys)
    named = Cluster(three, "a")
    for _ in range(2):  # the second look knows that nothing was stated
        result = named.look("b")
        assert not result.complete
        assert "it states nothing, and trusted keys are given" in result.errors[0]
    with pytest.raises(NotFoundError, match="states a complete inventory"):
        Cluster(three, AUTO).look("b")
    assert not three[1].held().repositories


def test_a_replica_follows_the_leader_that_was_named(three: list[Replica]) -> None:
    cluster = Cluster(three, "a")
    cluster.members["a"].fill(STORE, 3)
    look = cluster.look("b")
    assert look.complete
    assert look.errors == ()
    assert (look.generation, look.leader_generation, look.lag) == (3, 3, 0)
    assert look.declared == look.verified == count(WANTED)
    assert look.sent > 0
    assert cluster.members["b"].held() == WANTED
    assert not cluster.members["c"].held().repositories, "it was not asked for"


@pytest.mark.parametrize("leader", [AUTO, "a"])
def test_a_look_at_unstated_content_that_did_not_change_asks_for_tags_alone(
    three: list[Replica], leader: str
) -> None:
    store = MemoryStore()
    for number in range(100):
        put_image(store, f"modules/m{number % 5}", f"v1.{number}.0", layers=(b"%d" % number,))
    put_image(store, "modules/m0/release", "stable", "v1.0.0", layers=(b"a channel",))
    for replica in three:
        replica.fill(store, None)
    cluster = Cluster(three, leader)
    for name in "abcb":
        assert cluster.look(name).complete
    for replica in three:
        replica.registry.requests.clear()
    look = cluster.look("b")
    assert look.complete
    assert look.declared == count(store.inventory())
    for replica in three if leader == AUTO else three[:2]:
        requests = replica.registry.requests
        # Its statement, the list of repositories, and the tags of each; one channel may have moved.
        assert requests.count("GET", "/tags/list") == 6
        assert requests.count("HEAD", "/modules/") == 1
        assert len(requests) <= 6 + 1 + 4, [str(one) for one in requests]


def test_what_changed_in_unstated_content_is_taken_over_at_the_next_look(
    three: list[Replica],
) -> None:
    for replica in three:
        replica.fill(STORE, None)
    cluster = Cluster(three, AUTO)
    for name in "abc":
        assert cluster.look(name).complete
    store = sample_store()
    put_image(store, "", "v1.2.0", layers=(b"the next release",))
    three[0].fill(store, None)
    assert cluster.look("b").complete
    assert three[1].held() == store.inventory()
    other = MemoryStore()
    put_image(other, "release-channel", "alpha", layers=(b"moved",))
    three[0].fill(other, None)
    look = cluster.look("b")
    assert not look.complete, "two registries disagree about a channel"
    assert "tag release-channel:alpha" in look.errors[0]


def test_an_audit_of_unstated_content_asks_about_everything(three: list[Replica]) -> None:
    for replica in three:
        replica.fill(STORE, None)
    cluster = Cluster(three, AUTO)
    assert cluster.look("b").complete
    (digest,) = WANTED.repository("modules/console").manifests
    three[1].storage.delete_manifest(f"{ROOT}/modules/console", digest)
    child = next(n for n in WANTED.repository("").manifests.values() if n.children).children[0]
    three[1].storage.delete_manifest(ROOT, child.digest)
    assert cluster.look("b", CheckLevel.AUDIT).complete
    assert three[1].held() == WANTED


def test_a_look_at_equal_statements_asks_the_leader_once_and_only_whether_anything_changed(
    three: list[Replica],
) -> None:
    cluster = Cluster(three, "a")
    cluster.members["a"].fill(STORE)
    cluster.look("b")
    cluster.look("b")
    for one in three:
        one.registry.requests.clear()
    again = cluster.look("b")
    assert again.complete
    assert again.leader == three[0].name
    assert again.sent == 0
    assert again.declared == again.verified == count(WANTED)
    assert [(r.method, r.status, r.sent) for r in three[0].registry.requests] == [("HEAD", 304, 0)]
    assert [r.status for r in three[1].registry.requests] == [304, 304]
    assert len(three[2].registry.requests) == 0


def test_a_dead_leader_that_was_named_is_an_error_of_a_look_that_knows_it(
    three: list[Replica],
) -> None:
    cluster = Cluster(three, "a")
    cluster.members["a"].fill(STORE)
    assert cluster.look("b").complete
    three[0].registry.__exit__(None, None, None)
    with pytest.raises(UnreachableError):
        cluster.look("b")


def test_the_highest_generation_leads_where_nobody_was_named(three: list[Replica]) -> None:
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(STORE, 1)
    cluster.members["c"].fill(newer_store(), 2)
    look = cluster.look("a")
    assert look.complete
    assert look.leader == cluster.members["c"].name
    assert cluster.members["a"].held() == newer_store().inventory()
    assert cluster.look("c").complete, "who leads is complete, too"
    assert cluster.members["c"].held() == newer_store().inventory()


def test_all_alike_is_seen_by_one_request_each_and_one_more_without_a_named_leader(
    three: list[Replica],
) -> None:
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(STORE, 1)
    for name in "bca":
        assert cluster.look(name).complete
    for one in three:
        one.registry.requests.clear()
    look = cluster.look("b")
    assert look.complete
    assert [len(one.registry.requests) for one in three] == [1, 2, 1]


def test_a_restored_older_release_stays_restored(three: list[Replica]) -> None:
    """A rollback is a new generation with old content; no replica brings the newer back."""
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(newer_store(), 1)
    for name in "bc":
        assert cluster.look(name).complete
    cluster.members["b"].fill(STORE, 2)
    for name in ("a", "c", "b", "a"):
        assert cluster.look(name).complete
    for one in three:
        assert one.held().repository("").tags.items() >= WANTED.repository("").tags.items()
        assert one.tree.client.resolve(one.tree.locate("mirror/inventory"), "generation-2")


@pytest.mark.parametrize("others_follow", [True, False])
def test_a_registry_that_is_being_pushed_to_is_not_turned_back(
    three: list[Replica], others_follow: bool
) -> None:
    """Neither where the others have what it states, nor where they are still behind."""
    cluster = Cluster(three, AUTO)
    a, b, c = cluster.members.values()
    a.fill(STORE, 1)
    for name in "bc":
        assert cluster.look(name).complete
    a.fill(newer_store(), 2)
    if others_follow:
        for name in "bc":
            assert cluster.look(name).complete
    coming = newer_store()
    put_image(coming, "", "v1.3.0", "latest", layers=(b"what is being pushed",))
    statement = Statement(coming.inventory(), 3, tool="tests")
    announce(a.tree, statement.artifact())
    a.fill(coming, None)
    look = cluster.look("a", CheckLevel.AUDIT)
    assert not look.complete
    assert look.leader_generation == 2
    assert "the publication of generation 3 is under way" in look.errors[0]
    assert a.held() == union([newer_store().inventory(), coming.inventory()])
    for name in "bc":
        assert cluster.look(name, CheckLevel.AUDIT).generation == 2
    assert b.held() == c.held() == newer_store().inventory()
    state(a.tree, statement)
    assert cluster.look("a", CheckLevel.AUDIT).complete
    assert cluster.look("b").generation == 3


def test_a_replica_that_lost_content_is_healed_by_a_deep_look(three: list[Replica]) -> None:
    cluster = Cluster(three, "a")
    cluster.members["a"].fill(STORE)
    cluster.look("b")
    victim = cluster.members["b"]
    lose(victim, next(iter(WANTED.blob_sizes())))
    look = cluster.look("b", CheckLevel.DEEP)
    assert look.complete, look.errors
    assert victim.held() == WANTED


def test_the_leader_beside_the_daemon_is_audited_and_mended_by_its_peers(
    three: list[Replica],
) -> None:
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(STORE)
    cluster.look("b")
    lose(cluster.members["a"], next(iter(WANTED.blob_sizes())))
    look = cluster.look("a", CheckLevel.DEEP)
    assert look.complete, look.errors
    assert cluster.members["a"].held() == WANTED


def test_a_dead_peer_is_told_of_and_the_others_are_followed(three: list[Replica]) -> None:
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(STORE)
    three[2].registry.__exit__(None, None, None)
    look = cluster.look("b")
    assert look.complete
    assert cluster.members["b"].held() == WANTED
    assert any(three[2].name in error for error in look.errors)
    for one in three[:2]:
        one.registry.requests.clear()
    again = cluster.look("b")
    assert again.complete
    assert any(three[2].name in error for error in again.errors)
    assert [len(one.registry.requests) for one in three[:2]] == [1, 2], "nothing is read again"


def test_a_silent_peer_is_waited_for_once_and_not_by_every_cycle(
    three: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.watch.cycle._PATIENCE_S", 0.5)
    cluster = Cluster(three, AUTO)
    cluster.members["a"].fill(STORE)
    silent = three[2].registry
    silent.faults.add(Fault(Delay(60.0), times=None))
    started = time.monotonic()
    look = cluster.look("b")
    assert time.monotonic() - started < 20.0
    assert look.complete
    assert cluster.members["b"].held() == WANTED
    assert any("no answer within 0.5 s" in error for error in look.errors)
    silent.requests.clear()
    again = cluster.look("b")
    assert again.complete
    assert again.errors == look.errors, "what is known about it is reported all the same"
    assert len(silent.requests) == 0


def test_a_peer_that_rests_is_asked_again_by_one_cycle_when_its_rest_is_over() -> None:
    now = [0.0]
    silent = _Silent(lambda: now[0])
    gone = UnreachableError("no answer", where="c")
    assert silent.error("c") is None
    silent.note("c", gone)
    assert silent.error("c") is gone
    now[0] = 10.0
    assert silent.error("c") is None, "this cycle asks"
    assert silent.error("c") is gone, "the others do not"
    silent.note("c", gone)
    now[0] = 29.0
    assert silent.error("c") is gone, "the second rest is twice as long"
    now[0] = 30.0
    assert silent.error("c") is None
    silent.note("c", None)
    assert silent.error("c") is None
    silent.note("c", DeniedError("no", where="c"))
    assert silent.error("c") is None, "it answered"


def test_a_dead_leader_that_was_named_is_an_error(three: list[Replica]) -> None:
    cluster = Cluster(three, "a")
    three[0].registry.__exit__(None, None, None)
    with pytest.raises(MirrorError):
        cluster.look("b")


def test_what_others_pushed_is_taken_over_from_every_peer_that_has_it(
    three: list[Replica],
) -> None:
    """Nobody states anything: another tool loaded one replica each."""
    cluster = Cluster(three, AUTO)
    one, other = MemoryStore(), MemoryStore()
    put_image(one, "", "v1.0.0", layers=(b"one",))
    put_image(other, "install", "v1.0.0", layers=(b"other",))
    cluster.members["b"].fill(one, None)
    cluster.members["c"].fill(other, None)
    look = cluster.look("a")
    assert look.complete, look.errors
    everything = union([one.inventory(), other.inventory()])
    assert look.declared == look.verified == count(everything)
    assert look.generation is None
    held = cluster.members["a"].held()
    assert held.repositories.keys() == {"", "install"}
    assert cluster.look("a").sent == 0


def test_a_tag_that_two_have_differently_is_left_alone_and_told_of(three: list[Replica]) -> None:
    cluster = Cluster(three, AUTO)
    one, other = MemoryStore(), MemoryStore()
    put_image(one, "", "v1.0.0", layers=(b"one",))
    put_image(one, "", "v1.1.0", layers=(b"only here",))
    put_image(other, "", "v1.0.0", layers=(b"other",))
    cluster.members["b"].fill(one, None)
    cluster.members["a"].fill(other, None)
    for _ in range(2):  # and no flapping
        look = cluster.look("a")
        assert not look.complete
        (error,) = look.errors
        assert "tag /:v1.0.0" in error
        assert "name a leader, or push with mirror to the one that is right" in error
        tags = cluster.members["a"].held().repository("").tags
        assert tags["v1.0.0"] == other.inventory().repository("").tags["v1.0.0"]
        assert "v1.1.0" in tags
