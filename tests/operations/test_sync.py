"""Replicas brought to what the leader has: what is asked, what is carried, what is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mirror.errors import (
    CancelledError,
    ConflictError,
    DeadlineError,
    DeniedError,
    InputError,
    NotFoundError,
    PruneRefusedError,
    StalledError,
    StatementError,
    UnreachableError,
)
from mirror.events import Event, Warned
from mirror.layout import component_of, publication_stage
from mirror.oci import Digest, Manifest
from mirror.oci.reference import referrers_tag
from mirror.operations.leader import Leader
from mirror.operations.prune import prune
from mirror.operations.replicate import Outcome, SyncOptions
from mirror.operations.sync import LeaderAudit, sync_replicas
from mirror.reports.registries import sync_summary
from mirror.run import DEFAULT_JOBS, Cancellation, Run
from mirror.sync import Inventory, InventoryBuilder, MemoryStore
from mirror.sync.plan import tags_of
from mirror.sync.publication import announce
from mirror.sync.publication_state import PENDING, read_state, statement_digest
from mirror.sync.removal import TRIAL
from mirror.sync.statement import (
    ARTIFACT_TYPE,
    GENERATION,
    REPOSITORY,
    Statement,
    make_artifact,
    put_artifact,
)
from mirror.testing import Answer, CorruptBody, Delay, Fault, LoseAnswer, Refuse
from tests.support.inventories import put_image, put_signature, sample_store
from tests.support.patience import PATIENCE_S, without_waiting
from tests.support.places import client_of, state, tree_of
from tests.support.program import call_mirror
from tests.support.replicas import ROOT, Replica, only, replicas

STORE = sample_store()


@pytest.fixture
def three_empty() -> Iterator[list[Replica]]:
    with replicas(3) as made:
        yield made


def digest_of(replica: Replica) -> object:
    return statement_digest(replica.tree)


def newer(*, tag: str = "v1.2.0") -> MemoryStore:
    """The sample tree, one release further: a channel moved, and an image went."""
    store = sample_store()
    put_image(store, "", tag, layers=(b"new layer " * 50,))
    put_image(store, "release-channel", tag, "alpha", layers=(b"version: v1.2.0",))
    return store


def questions(asked: list[Replica], expected: int) -> list[int]:
    """How often each was asked, once `expected` requests of all are recorded.

    A request is recorded a moment after its answer; so are those that wrote, which do not count.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        counts = [
            sum(request.method in ("GET", "HEAD") for request in one.registry.requests)
            for one in asked
        ]
        if sum(counts) >= expected or time.monotonic() > until:
            return counts
        time.sleep(0.01)


def own_threads() -> list[str]:
    """Threads of syncs that still run."""
    names = [one.name for one in threading.enumerate()]
    return [name for name in names if name.startswith(("mirror-127", "mirror_"))]


# -- carrying ------------------------------------------------------------------------------------


def test_a_generation_that_is_too_long_to_be_a_number_is_a_statement_that_cannot_be_read(
    three: list[Replica],
) -> None:
    leader, replica, _ = three
    client, repository = leader.tree.client, leader.tree.locate(REPOSITORY)
    artifact = make_artifact(ARTIFACT_TYPE, annotations={GENERATION: "9" * 5000})
    put_artifact(client, repository, artifact, "latest")
    result = only(sync_replicas(leader.tree, [replica.tree]).replicas)
    assert [type(one.error) for one in result.failures] == [StatementError]


def test_empty_replicas_hold_everything_afterwards_and_state_the_same(
    three: list[Replica],
) -> None:
    leader, *others = three
    report = sync_replicas(leader.tree, [one.tree for one in others])
    assert report.exit_code == 0
    assert [one.outcome for one in report.replicas] == [Outcome.SYNCED] * 2
    for one in others:
        assert one.held() == STORE.inventory()
        assert digest_of(one) == digest_of(leader)
    # One reading of each blob a replica, and none of it a second time.
    gets = leader.registry.requests.count("GET", "/blobs/")
    assert gets <= 2 * (len(STORE.inventory().blob_sizes()) + 1) + 1


def test_a_new_replica_is_not_asked_for_each_manifest_and_blob(three_empty: list[Replica]) -> None:
    """Of a repository without tags a few blobs tell whether a sync was interrupted there."""
    leader, replica, _ = three_empty
    store = MemoryStore()
    put_image(store, "", "v1", layers=[b"%d" % number for number in range(60)])
    leader.fill(store)
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    asked = replica.registry.requests
    assert asked.matching("HEAD", "/manifests/sha256", 404) == []
    heads = asked.matching("HEAD", "/blobs/", 404)
    assert len(heads) <= 2 * DEFAULT_JOBS + 1, "of 61 blobs, and one of the statement"
    assert replica.held() == store.inventory()


def test_a_second_sync_asks_for_what_each_registry_states(three: list[Replica]) -> None:
    """A replica also for what it announced: one that was interrupted is not equal."""
    leader, *others = three
    sync_replicas(leader.tree, [one.tree for one in others])
    for one in three:
        one.registry.requests.clear()
    report = sync_replicas(leader.tree, [one.tree for one in others])
    assert [one.outcome for one in report.replicas] == [Outcome.EQUAL] * 2
    assert questions(three, 3) == [1, 2, 2]
    assert {one.generation for one in report.replicas} == {1}


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_replica_that_was_interrupted_on_its_way_elsewhere_is_not_equal(
    three: list[Replica], dry_run: bool
) -> None:
    """What it states is what this leader states, and its tags have turned to another's."""
    newer, left, leader = three
    store = MemoryStore()
    put_image(store, "", "stable", layers=(b"older",))
    newer.fill(store)
    sync_replicas(newer.tree, [left.tree, leader.tree])
    put_image(store, "", "stable", layers=(b"newer",))
    left.fill(store, generation=None)
    announce(left.tree, Statement(store.inventory(), 2, tool="tests").artifact())
    (result,) = sync_replicas(leader.tree, [left.tree], dry_run=dry_run).replicas
    assert result.outcome is (Outcome.DIFFERS if dry_run else Outcome.SYNCED)
    if not dry_run:
        assert tags_of(left.held()) == tags_of(leader.held())
        assert sync_replicas(leader.tree, [left.tree]).replicas[0].outcome is Outcome.EQUAL


def test_a_newer_statement_is_compared_and_only_the_difference_asked_about(
    two: list[Replica],
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    leader.fill(newer(), generation=2)
    replica.registry.requests.clear()
    report = sync_replicas(leader.tree, [replica.tree])
    result = only(report.replicas)
    assert (result.blobs, result.manifests, result.tags) == (2, 2, 3)
    assert result.generation == 2
    heads = {request.path for request in replica.registry.requests.matching("HEAD")}
    assert not any("modules" in path or "trivy" in path for path in heads)
    assert replica.held() == newer().inventory()


def test_a_release_that_was_turned_back_stays_turned_back(three: list[Replica]) -> None:
    leader, *others = three
    leader.fill(newer(), generation=2)
    sync_replicas(leader.tree, [one.tree for one in others])
    # Generation 3 has the content of generation 1: older images, and a higher number.
    leader.fill(STORE, generation=3)
    for _ in range(2):
        report = sync_replicas(leader.tree, [one.tree for one in others])
        assert report.exit_code == 0
        alpha = STORE.inventory().repository("release-channel").tags["alpha"]
        for one in three:
            assert one.storage.resolve(f"{ROOT}/release-channel", "alpha") == alpha
    # With the replicas' own eyes: nobody brings the newer release back from a peer.
    report = sync_replicas(None, [one.tree for one in three], audit=True)
    assert report.generation == 3
    for one in three:
        assert one.storage.resolve(f"{ROOT}/release-channel", "alpha") == alpha


def test_untagged_manifests_that_the_statement_names_are_carried_too(two: list[Replica]) -> None:
    leader, replica = two
    store = sample_store()
    lonely = put_image(store, "install", layers=(b"nobody tags me",))
    leader.fill(store, generation=2)
    sync_replicas(leader.tree, [replica.tree])
    assert replica.storage.manifest(f"{ROOT}/install", lonely) is not None
    # And brought back when they are lost.
    replica.storage.delete_manifest(f"{ROOT}/install", lonely)
    assert only(sync_replicas(leader.tree, [replica.tree]).replicas).outcome is Outcome.EQUAL
    result = only(sync_replicas(leader.tree, [replica.tree], audit=True).replicas)
    assert (result.outcome, result.manifests) == (Outcome.SYNCED, 1)
    assert replica.storage.manifest(f"{ROOT}/install", lonely) is not None


def test_a_leader_that_states_nothing_is_walked(two: list[Replica]) -> None:
    _, replica = two
    with replicas(1) as (leader,):
        store = sample_store()
        leader.fill(store, generation=None)
        report = sync_replicas(leader.tree, [replica.tree])
    assert report.exit_code == 0
    assert report.statement is None
    assert replica.held() == store.inventory()
    assert digest_of(replica) is None


def test_an_empty_leader_is_an_error_and_changes_nothing(two: list[Replica]) -> None:
    full, empty = two
    report = sync_replicas(empty.tree, [full.tree], prune=True)
    assert "states no inventory and holds no image" in str(report.failures[0].error)
    assert full.held() == STORE.inventory()


@pytest.mark.parametrize("strike", range(1, 40, 3))
def test_a_sync_cut_anywhere_leaves_no_dangling_tag_and_is_completed_by_the_next(
    two: list[Replica], strike: int
) -> None:
    leader, replica = two
    replica.registry.faults.add(Fault(Refuse(), nth=strike, times=None))
    report = sync_replicas(leader.tree, [replica.tree])
    assert report.exit_code != 0
    assert report.failures
    assert not list(replica.held().gaps())
    replica.registry.faults.clear()
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    assert replica.held() == STORE.inventory()


def test_a_phase_that_was_interrupted_is_noticed_and_finished(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    leader.fill(newer(), generation=2)
    # The last tag cannot be set, and so the statement is not completed.
    replica.registry.faults.add(
        Fault(Answer(400), "PUT", "/release-channel/manifests/alpha", times=None)
    )
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 1
    standing = read_state(replica.tree)
    assert standing.pending is not None
    replica.registry.faults.clear()
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    assert replica.held() == newer().inventory()
    standing = read_state(replica.tree)
    assert standing.pending is None
    assert statement_digest(replica.tree, PENDING) == digest_of(leader)


# -- failures ------------------------------------------------------------------------------------


def test_a_refusal_is_an_error_and_no_absence(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    replica.registry.faults.add(
        Fault(Answer(403), None, "/modules/console/.*manifests", times=None)
    )
    replica.registry.requests.clear()
    report = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert report.exit_code == DeniedError.exit_code
    assert all(isinstance(one.error, DeniedError) for one in report.failures)
    assert {one.item for one in report.failures} >= {
        "tag modules/console:v0.1.0",
        "tag modules/console/release:stable",
    }
    assert all(one.place == replica.name for one in report.failures)
    assert replica.registry.requests.count("PUT") == 0
    assert replica.registry.requests.count("POST") == 0


def test_a_dead_replica_does_not_keep_the_others_from_being_synced(three: list[Replica]) -> None:
    leader, dead, alive = three
    dead.registry.faults.add(Fault(Refuse(), times=None))
    report = sync_replicas(leader.tree, [dead.tree, alive.tree])
    assert [one.outcome for one in report.replicas] == [Outcome.FAILED, Outcome.SYNCED]
    assert report.exit_code == UnreachableError.exit_code
    assert alive.held() == STORE.inventory()


def test_a_hung_replica_is_stopped_at_the_deadline_and_delays_nobody(
    three: list[Replica],
) -> None:
    leader, hung, alive = three
    hung.registry.faults.add(Fault(Delay(PATIENCE_S), times=None))
    heard: list[str] = []
    with without_waiting(PATIENCE_S):
        report = sync_replicas(
            leader.tree,
            [hung.tree, alive.tree],
            deadline_s=8.0,
            on_replica=lambda one: heard.append(one.name),
        )
    stuck, done = report.replicas
    assert done.outcome is Outcome.SYNCED
    assert stuck.outcome is Outcome.FAILED
    assert isinstance(stuck.failures[-1].error, StalledError)
    assert "was not finished within 8 s" in str(stuck.failures[-1].error)
    assert heard == [alive.name, hung.name]  # as soon as each was there, not when all were
    assert not own_threads()


@pytest.mark.parametrize("deep", [False, True])
def test_a_run_whose_time_is_over_raises_whatever_a_replica_does(
    two: list[Replica], deep: bool
) -> None:
    leader, hung = two
    hung.registry.faults.add(Fault(Delay(PATIENCE_S), times=None))
    run = Run().with_deadline(1.0)
    with without_waiting(PATIENCE_S), pytest.raises(DeadlineError):
        sync_replicas(leader.tree, [hung.tree], deep=deep, run=run)
    assert not own_threads()


def test_a_cancelled_sync_raises_and_leaves_no_thread(two: list[Replica]) -> None:
    leader, replica = two
    cancel = Cancellation()
    replica.registry.faults.add(Fault(Delay(8.0), "PUT", times=None))
    threading.Timer(0.5, cancel.cancel).start()
    with pytest.raises(CancelledError):
        sync_replicas(leader.tree, [replica.tree], run=Run(cancellation=cancel))
    assert not own_threads()
    assert not list(replica.held().gaps())


def test_a_sync_goes_from_one_registry_to_others(two: list[Replica]) -> None:
    leader, replica = two
    for targets in ([leader.tree], [replica.tree, replica.tree], []):
        with pytest.raises(InputError, match="each of them named once"):
            sync_replicas(leader.tree, targets)


# -- damage --------------------------------------------------------------------------------------


def test_a_blob_that_the_leader_has_damaged_comes_from_another_replica(
    three: list[Replica],
) -> None:
    leader, healthy, empty = three
    sync_replicas(leader.tree, [healthy.tree])
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    leader.registry.faults.add(Fault(CorruptBody(7), "GET", f"/blobs/{victim}", times=None))
    report = sync_replicas(leader.tree, [empty.tree, healthy.tree])
    assert report.exit_code == 0
    assert empty.held() == STORE.inventory()


def without_what_needs(inventory: Inventory, blob: Digest) -> Inventory:
    """What can be carried of the sample tree without one blob; channels wait for it too."""
    builder = InventoryBuilder()
    lost = {
        component_of(path)
        for path, content in inventory.repositories.items()
        if blob in content.blobs
    }
    for path, content in inventory.repositories.items():
        broken = {
            d for d, node in content.manifests.items() if blob in {b.digest for b in node.blobs}
        }
        broken |= {
            d for d, node in content.manifests.items() if broken & {c.digest for c in node.children}
        }
        for digest, node in content.manifests.items():
            if digest not in broken:
                builder.add_manifest(path, node, closed=False)
        for one, size in content.blobs.items():
            if one != blob:
                builder.add_blob(path, one, size)
        for tag, digest in content.tags.items():
            waits = publication_stage(path, tag) > 0 and component_of(path) in lost
            if digest not in broken and not waits:
                builder.add_tag(path, tag, digest)
    return builder.build()


@pytest.mark.parametrize("damaged", [True, False])
def test_a_blob_that_nobody_has_whole_is_named_and_all_that_does_not_need_it_is_carried(
    two: list[Replica], damaged: bool
) -> None:
    leader, replica = two
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    fault = CorruptBody(7) if damaged else Answer(404)
    leader.registry.faults.add(Fault(fault, "GET", f"/blobs/{victim}", times=None))
    report = sync_replicas(leader.tree, [replica.tree])
    assert report.exit_code == 4
    (failure,) = report.failures
    assert failure.place == replica.name
    assert failure.item.startswith(f"blob {victim} into ")
    assert f"blob {victim} cannot be had anywhere:\n  {leader.name}: " in str(failure)
    assert failure.to_document()["type"] == "NoSoundCopyError"
    assert str(victim) in sync_summary(report, 1.0)
    assert tags_of(replica.held()) == tags_of(without_what_needs(STORE.inventory(), victim))
    assert not list(replica.held().gaps())
    assert replica.held().repository("security/trivy-db").tags
    assert digest_of(replica) is None
    leader.registry.faults.clear()
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    assert replica.held() == STORE.inventory()
    assert digest_of(replica) == digest_of(leader)


def test_a_manifest_that_a_replica_refuses_costs_its_own_tag_and_no_other(
    two: list[Replica],
) -> None:
    leader, replica = two
    store = MemoryStore()
    for number in range(40):
        put_image(store, f"modules/m{number}", "v1", layers=(b"image %d" % number,))
    for number in range(4):
        put_image(store, f"modules/m{number}", "v2", layers=(b"newer %d" % number,))
    leader.fill(store, generation=2)
    refused = store.inventory().repository("modules/m7").tags["v1"]
    replica.registry.faults.add(
        Fault(Answer(400), "PUT", f"/modules/m7/manifests/({refused}|v1)", times=None)
    )
    report = sync_replicas(leader.tree, [replica.tree])
    (failure,) = report.failures
    assert failure.item == f"manifest modules/m7@{refused}"
    tags = {(path, tag) for path, tags in tags_of(replica.held()).items() for tag in tags}
    wanted = {(path, tag) for path, tags in tags_of(store.inventory()).items() for tag in tags}
    assert len(wanted) == 44
    assert wanted - tags == {("modules/m7", "v1")}
    assert digest_of(replica) is None


def test_a_statement_is_taken_back_before_tags_contradict_it(two: list[Replica]) -> None:
    leader, replica = two
    older = sample_store()
    put_image(older, "", "v1.2.0", layers=(b"not the last word",))
    leader.fill(older, generation=2)
    sync_replicas(leader.tree, [replica.tree])
    leader.fill(newer(), generation=3)
    fresh = newer().inventory().repository("release-channel").tags["alpha"]
    replica.registry.faults.add(
        Fault(Answer(400), "PUT", f"/release-channel/manifests/{fresh}", times=None)
    )
    replica.registry.requests.clear()
    sync_replicas(leader.tree, [replica.tree])
    changes = [one for one in replica.registry.requests if one.method in ("PUT", "DELETE")]
    paths = [f"{one.method} {one.path}" for one in changes]
    (taken_back,) = [at for at, text in enumerate(paths) if text.startswith("DELETE")]
    (turned,) = [at for at, text in enumerate(paths) if text.endswith("/manifests/v1.2.0")]
    assert taken_back < turned
    # The images of the release are there, and no version or channel leads to them yet.
    assert replica.storage.resolve(ROOT, "v1.2.0") is not None
    assert replica.storage.resolve(f"{ROOT}/release-channel", "alpha") != fresh
    assert replica.storage.resolve(f"{ROOT}/release-channel", "v1.2.0") is None


def test_a_statement_that_cannot_be_reached_is_not_announced(two: list[Replica]) -> None:
    leader, replica = two
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    leader.registry.faults.add(Fault(Answer(404), "GET", f"/blobs/{victim}", times=None))
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 4
    assert statement_digest(replica.tree, PENDING) is None
    assert read_state(replica.tree).newest is None


def test_a_statement_is_kept_where_no_tag_turns(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    stated = digest_of(replica)
    with replicas(1) as (unstated,):
        store = sample_store()
        put_image(store, "modules/extra", "v9", layers=(b"extra",))
        unstated.fill(store, generation=None)
        lost = store.inventory().repository("modules/extra").tags["v9"]
        replica.registry.faults.add(
            Fault(Answer(400), "PUT", f"/modules/extra/manifests/({lost}|v9)", times=None)
        )
        report = sync_replicas(unstated.tree, [replica.tree])
    assert report.exit_code != 0
    assert digest_of(replica) == stated


def test_a_registry_without_the_referrers_api_lists_signatures_under_the_tag_of_the_image(
    two: list[Replica],
) -> None:
    """The leader has the API, so nothing there says under which tag others look for them."""
    leader, replica = two
    store = MemoryStore()
    image = put_image(store, "install", "v1.0.0")
    signatures = {put_signature(store, "install", image, note) for note in ("one", "two")}
    leader.fill(store)
    replica.registry.faults.add(Fault(Answer(404), "GET", "/referrers/", times=None))
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    found = replica.tree.client.referrers(replica.tree.locate("install"), image)
    assert {one.descriptor.digest for one in found} == signatures
    assert digest_of(replica) == digest_of(leader)
    # The list is the registry's own: a prune lets it stand, and nothing calls it an extra.
    (result,) = sync_replicas(leader.tree, [replica.tree], prune=True).replicas
    assert (result.outcome, result.extras, result.removed) == (Outcome.EQUAL, (), ())
    assert not prune(replica.tree, [1]).removal
    found = replica.tree.client.referrers(replica.tree.locate("install"), image)
    assert {one.descriptor.digest for one in found} == signatures
    assert not leader.tree.listed_tags("install") - {"v1.0.0"}


def without_referrers_api(replica: Replica) -> None:
    replica.registry.faults.add(Fault(Answer(404), "GET", "/referrers/", times=None))


@pytest.mark.parametrize("generation", [1, None])
def test_an_entry_that_was_not_made_before_a_kill_is_made_by_the_next_sync(
    three_empty: list[Replica], generation: int | None
) -> None:
    leader, replica, _ = three_empty
    store = MemoryStore()
    image = put_image(store, "install", "v1.0.0")
    signature = put_signature(store, "install", image)
    leader.fill(store, generation)
    without_referrers_api(replica)
    tag = referrers_tag(image)
    replica.registry.faults.add(Fault(Refuse(), "PUT", f"/manifests/{tag}", times=None))
    assert sync_replicas(leader.tree, [replica.tree]).exit_code
    assert replica.storage.manifest(f"{ROOT}/install", signature) is not None
    replica.registry.faults.clear()
    without_referrers_api(replica)
    assert sync_replicas(leader.tree, [replica.tree]).exit_code == 0
    (found,) = replica.tree.client.referrers(replica.tree.locate("install"), image)
    assert found.descriptor.digest == signature
    (result,) = sync_replicas(leader.tree, [replica.tree], audit=True).replicas
    assert result.outcome is Outcome.EQUAL


def test_an_odd_tag_in_the_place_of_the_list_of_referrers_is_told_and_stays(
    two: list[Replica],
) -> None:
    leader, replica = two
    store = MemoryStore()
    image = put_image(store, "install", "v1.0.0")
    signature = put_signature(store, "install", image)
    leader.fill(store)
    without_referrers_api(replica)
    tag = referrers_tag(image)
    odd = MemoryStore()
    put_image(odd, "install", tag, layers=(b"somebody's own",))
    replica.fill(odd, None)
    heard: list[Event] = []
    report = sync_replicas(leader.tree, [replica.tree], run=Run(on_event=heard.append))
    assert report.exit_code == 0
    assert replica.storage.manifest(f"{ROOT}/install", signature) is not None
    assert digest_of(replica) == digest_of(leader)
    (told,) = [one.message for one in heard if isinstance(one, Warned)]
    assert f"{tag} is not a list of what refers to the image {image}" in told
    assert f"nobody finds {signature} from that image; remove the tag and run this again" in told
    named = replica.storage.resolve(f"{ROOT}/install", tag)
    assert named == odd.inventory().repository("install").tags[tag]
    (result,) = sync_replicas(leader.tree, [replica.tree], audit=True).replicas
    assert (result.outcome, result.sent) == (Outcome.EQUAL, 0)


def test_a_blob_that_may_not_be_read_is_no_damage(two: list[Replica]) -> None:
    """A refusal proves nothing about the bytes, so nothing is sent over them."""
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    refused = max(STORE.inventory().blob_sizes())
    replica.registry.faults.add(Fault(Answer(403), "GET", f"/blobs/{refused}", times=None))
    replica.registry.requests.clear()
    report = sync_replicas(leader.tree, [replica.tree], deep=True)
    assert report.exit_code == DeniedError.exit_code
    (result,) = report.replicas
    assert [type(one.error) for one in result.failures] == [DeniedError]
    assert str(refused) in result.failures[0].item
    assert result.damaged == result.repaired == ()
    assert replica.registry.requests.count("POST") == 0
    assert digest_of(replica) == digest_of(leader)


def test_what_cannot_be_mended_is_named_and_the_replica_states_nothing_any_more(
    two: list[Replica],
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    replica.registry.faults.add(Fault(CorruptBody(7), "GET", f"/blobs/{victim}", times=None))
    report = sync_replicas(leader.tree, [replica.tree], deep=True)
    assert report.exit_code == 4
    (failure,) = report.failures
    encoded = victim.encoded
    assert f"docker/registry/v2/blobs/sha256/{encoded[:2]}/{encoded}/data" in str(failure)
    assert "--storage" in str(failure)
    assert digest_of(replica) is None
    replica.registry.faults.clear()
    assert sync_replicas(leader.tree, [replica.tree], deep=True).exit_code == 0
    assert digest_of(replica) == digest_of(leader)


def test_a_statement_that_was_taken_back_is_gone_though_the_answer_that_said_so_was_lost(
    two: list[Replica],
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    replica.registry.faults.add(Fault(CorruptBody(7), "GET", f"/blobs/{victim}", times=None))
    replica.registry.faults.add(Fault(LoseAnswer(), "DELETE", "/mirror/inventory/manifests/"))
    heard: list[Event] = []
    with client_of(replica.registry, attempts=2) as client:
        site = tree_of(client, ROOT)
        report = sync_replicas(leader.tree, [site], deep=True, run=Run(on_event=heard.append))
    assert digest_of(replica) is None
    assert only(report.replicas).statement is None
    assert not any(isinstance(event, Warned) for event in heard)


def test_a_deep_dry_run_tells_of_damage_and_touches_nothing(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    victim = max(STORE.inventory().blob_sizes().items(), key=lambda one: one[1])[0]
    replica.registry.faults.add(Fault(CorruptBody(7), "GET", f"/blobs/{victim}", times=None))
    replica.registry.requests.clear()
    result = only(sync_replicas(leader.tree, [replica.tree], deep=True, dry_run=True).replicas)
    assert result.outcome is Outcome.DIFFERS
    assert [finding.digest for finding in result.damaged] == [victim]
    assert {one.method for one in replica.registry.requests} == {"GET", "HEAD"}


def test_what_the_leader_lost_is_taken_back_from_a_replica(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    inventory = STORE.inventory()
    path = "modules/console"
    (manifest,) = inventory.repository(path).manifests
    leader.storage.delete_manifest(f"{ROOT}/{path}", manifest)
    blob = next(iter(inventory.repository("security/trivy-db").blobs))
    leader.storage.delete_blob(f"{ROOT}/security/trivy-db", blob)
    report = sync_replicas(leader.tree, [replica.tree], deep=True)
    assert report.audit is not None
    assert {one.digest for one in report.audit.repaired} == {manifest, blob}
    # The tag went with its manifest. Tags are the leader's own decision, so that is only told.
    assert [one.item for one in report.audit.failures] == [f"tag {path}:v0.1.0"]
    assert leader.storage.manifest(f"{ROOT}/{path}", manifest) is not None


def test_an_audit_tells_of_tags_that_somebody_moved_at_the_leader(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    other = STORE.inventory().repository("release-channel").tags["v1.0.0"]
    store = MemoryStore()
    put_image(store, "release-channel", "alpha", layers=(b"by hand",))
    leader.fill(store, generation=None)
    report = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert report.exit_code == 1
    assert "somebody changed it without stating it" in str(report.failures[0])
    assert "`mirror push` to the leader" in str(report.failures[0])
    assert replica.storage.resolve(f"{ROOT}/release-channel", "alpha") == other


def test_an_audit_tells_of_tags_at_the_leader_that_it_does_not_state(two: list[Replica]) -> None:
    leader, replica = two
    locate, client = leader.tree.locate, leader.tree.client
    client.put_manifest(locate(""), "by-hand", client.manifest(locate(""), "latest"))
    report = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert report.exit_code == 0
    assert report.audit is not None
    assert report.audit.extras == ("tag /:by-hand",)
    assert replica.storage.resolve(ROOT, "by-hand") is None
    assert "not stated, so no replica gets them" in sync_summary(report, 1.0)


@pytest.mark.parametrize("finished", [True, False])
def test_an_audit_tells_a_push_that_is_under_way_from_a_tag_moved_by_hand(
    two: list[Replica], finished: bool
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    coming = Statement(newer().inventory(), 2, tool="tests")

    head = Leader.ask(leader.tree)
    head.facts()
    announce(leader.tree, coming.artifact())
    leader.fill(newer(), generation=None)
    if finished:
        state(leader.tree, coming)
    audit = LeaderAudit(head, [], SyncOptions(audit=True), run=Run())
    failure = next(
        one for one in audit.carry_out().failures if one.item == "tag release-channel:alpha"
    )
    assert "for the sake of generation 2" in str(failure)
    assert "run this again when that push is over" in str(failure)


@pytest.mark.parametrize("lists_repositories", [True, False])
def test_an_audit_tells_of_repositories_at_the_leader_that_it_does_not_state(
    two: list[Replica], lists_repositories: bool
) -> None:
    leader, replica = two
    store = MemoryStore()
    put_image(store, "modules", "new")
    put_image(store, "modules/new", "v1.0.0", layers=(b"by another tool",))
    put_image(store, "modules/new/release", "stable")
    leader.fill(store, generation=None)
    if not lists_repositories:
        leader.registry.faults.add(Fault(Answer(404), "GET", "/v2/_catalog", times=None))
    report = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert report.exit_code == 0, report.failures
    assert report.audit is not None
    assert report.audit.extras == (
        "tag modules:new",
        "tag modules/new:v1.0.0",
        "tag modules/new/release:stable",
    )
    assert replica.held() == STORE.inventory()


def test_a_repository_whose_tags_cannot_be_listed_is_told_of_wherever_it_is(
    two: list[Replica],
) -> None:
    leader, replica = two
    store = MemoryStore()
    put_image(store, "modules/new", "v1.0.0", layers=(b"by another tool",))
    leader.fill(store, generation=None)
    replica.fill(store)  # and states it
    for one in two:
        one.registry.faults.add(Fault(Answer(403), "GET", "/modules/new/tags/list", times=None))
    report = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert {(one.place, one.item) for one in report.failures} == {
        (leader.name, "the tags of modules/new"),
        (replica.name, "the tags of modules/new"),
    }
    assert report.exit_code == 6
    assert digest_of(replica) == digest_of(leader), "all that is stated was brought nonetheless"


def test_a_statement_that_was_damaged_is_mended_like_anything_else(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    repository = f"{ROOT}/{REPOSITORY}"
    published = read_state(replica.tree).current
    assert published is not None
    (layer,) = published.statement.artifact().manifest.layers
    replica.storage.delete_blob(repository, layer.digest)
    report = sync_replicas(leader.tree, [replica.tree], deep=True)
    assert report.exit_code == 0, report.failures
    standing = read_state(replica.tree)
    assert (standing.current, standing.notices) == (published, ())


def test_what_cannot_be_read_of_a_leader_that_states_nothing_is_told() -> None:
    with replicas(2) as (leader, replica):
        leader.fill(STORE, generation=None)
        path = "/modules/console/manifests/"
        leader.registry.faults.add(Fault(Answer(403), None, path, times=None))
        report = sync_replicas(leader.tree, [replica.tree])
        assert report.exit_code == DeniedError.exit_code
        assert [one.place for one in report.failures] == [leader.name]
        held = replica.held()
    assert "modules/console" not in held.repositories
    assert held.repository("security/trivy-db").tags
    # Versions and channels wait until all images could be read.
    assert not held.repository("release-channel").tags


# -- pruning -------------------------------------------------------------------------------------


def pruned_store() -> MemoryStore:
    """The sample tree without its module, and with the index `v1.0.0` taken away."""
    store = sample_store()
    smaller = MemoryStore()
    wanted = store.inventory()
    for path, content in wanted.repositories.items():
        if path.startswith("modules/console"):
            continue
        for tag, digest in content.tags.items():
            if (path, tag) not in {("", "v1.0.0"), ("", "latest")}:
                for blob in content.manifests[digest].blobs:
                    smaller.add_blob(path, b"".join(store.blob(path, blob.digest, blob.size)))
                smaller.put_manifest(path, store.manifest(path, digest))
                smaller.put_tag(path, tag, store.manifest(path, digest))
    return smaller


def test_without_prune_extras_are_told_and_with_it_they_go(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    smaller = pruned_store()
    with replicas(1) as (other,):
        other.fill(smaller, generation=2)
        result = only(sync_replicas(other.tree, [replica.tree], audit=True).replicas)
        expected = {
            "tag /:latest",  # its manifest is v1.1.0, too, and stays
            "tag modules/console:v0.1.0",
            "tag modules/console/release:stable",
        }
        told = " ".join(result.extras)
        assert "tag /:latest" in told
        assert "(stable, v0.1.0)" in told
        assert "(v1.0.0)" in told
        assert expected
        assert replica.storage.resolve(f"{ROOT}/modules/console", "v0.1.0") is not None
        dry = only(sync_replicas(other.tree, [replica.tree], prune=True, dry_run=True).replicas)
        assert dry.outcome is Outcome.DIFFERS
        assert set(dry.extras) == set(result.extras)
        assert replica.storage.resolve(f"{ROOT}/modules/console", "v0.1.0") is not None
        report = sync_replicas(other.tree, [replica.tree], prune=True)
        assert report.exit_code == 0, report.failures
        assert set(only(report.replicas).removed) == set(result.extras)
        assert replica.held() == smaller.inventory()
        # Nothing comes back, and nothing is left to do.
        again = only(sync_replicas(other.tree, [replica.tree], prune=True).replicas)
        assert (again.outcome, again.removed) == (Outcome.EQUAL, ())
        # The way back to generation 1 is gone, and is not promised any more.
        assert set(replica.storage.tags(f"{ROOT}/{REPOSITORY}")) == {
            *("latest", "pending", "generation-2", "reached-2"),
            smaller.inventory().digest().encoded,
        }


def test_nothing_beside_the_stated_repositories_is_ever_pruned(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    foreign = MemoryStore()
    put_image(foreign, "somebody/elses", "v1", layers=(b"mine",))
    replica.fill(foreign, generation=None)
    with replicas(1) as (other,):
        other.fill(pruned_store(), generation=2)
        assert sync_replicas(other.tree, [replica.tree], prune=True).exit_code == 0
    assert replica.storage.resolve(f"{ROOT}/somebody/elses", "v1") is not None


def test_nothing_is_pruned_while_the_leader_is_not_whole(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    leader.fill(pruned_store(), generation=2)
    leader.storage.delete_manifest(
        f"{ROOT}/install", put_image(MemoryStore(), "install", layers=(b"never there",))
    )
    trivy = STORE.inventory().repository("security/trivy-db").tags["2"]
    leader.storage.delete_manifest(f"{ROOT}/security/trivy-db", trivy)
    report = sync_replicas(leader.tree, [replica.tree], prune=True)
    refused = [one for one in report.failures if isinstance(one.error, PruneRefusedError)]
    assert len(refused) == 1
    assert "does not hold all that it states" in str(refused[0])
    assert replica.storage.resolve(f"{ROOT}/modules/console", "v0.1.0") is not None


def test_nothing_is_pruned_after_a_leader_that_states_nothing(two: list[Replica]) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    with replicas(1) as (other,):
        other.fill(pruned_store(), generation=None)
        report = sync_replicas(other.tree, [replica.tree], prune=True)
    assert any(isinstance(one.error, PruneRefusedError) for one in report.failures)
    assert replica.storage.resolve(f"{ROOT}/modules/console", "v0.1.0") is not None


def test_a_tag_is_dropped_alone_where_the_registry_cannot_delete_tags(
    two: list[Replica],
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    replica.registry.faults.add(
        Fault(Answer(400), "DELETE", r"/manifests/(latest|trial)$", times=None)
    )
    kept = STORE.inventory().repository("").tags["v1.1.0"]
    with replicas(1) as (other,):
        other.fill(pruned_store(), generation=2)
        report = sync_replicas(other.tree, [replica.tree], prune=True)
        assert report.exit_code == 0, report.failures
    assert replica.storage.resolve(ROOT, "latest") is None
    assert replica.storage.resolve(ROOT, "v1.1.0") == kept


def test_what_could_not_be_removed_is_not_among_what_was(two: list[Replica]) -> None:
    leader, replica = two
    replica.fill(newer())
    place = replica.tree.locate("")
    client = replica.tree.client
    client.put_manifest(place, "extra", client.manifest(place, "v1.0.0"))
    refusal = Fault(Answer(403), "DELETE", "/deckhouse/manifests/extra", times=None)
    replica.registry.faults.add(refusal)
    (result,) = sync_replicas(leader.tree, [replica.tree], prune=True).replicas
    assert [one.item for one in result.failures] == ["tag /:extra"]
    assert result.removed == ()
    assert len(result.extras) == 3, "manifests are not begun where a tag is left"
    assert replica.held().repository("").tags.keys() >= {"v1.2.0", "extra"}
    replica.registry.faults.clear()
    (result,) = sync_replicas(leader.tree, [replica.tree], prune=True).replicas
    assert (len(result.removed), result.extras) == (3, ())


def test_a_tag_is_never_deleted_where_its_manifest_would_go_with_it(two: list[Replica]) -> None:
    """A trial beside the statements finds that out: its manifest is gone with its tag."""
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    gone, trial = Answer(404), f"/mirror/inventory/manifests/{TRIAL.manifest.digest}"
    replica.registry.faults.add(Fault(gone, "HEAD", trial, times=None))
    replica.registry.faults.add(Fault(gone, "GET", trial, times=None))
    with replicas(1) as (other,):
        other.fill(pruned_store(), generation=2)
        sync_replicas(other.tree, [replica.tree], prune=True)
    assert replica.registry.requests.count("DELETE", "/manifests/latest$") == 0
    assert replica.storage.resolve(ROOT, "latest") is None
    assert replica.storage.resolve(ROOT, "v1.1.0") is not None


def test_a_registry_that_deletes_nothing_is_not_pruned_and_loses_no_tag(
    two: list[Replica],
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    replica.registry.faults.add(Fault(Answer(405), "DELETE", times=None))
    with replicas(1) as (other,):
        other.fill(pruned_store(), generation=2)
        report = sync_replicas(other.tree, [replica.tree], prune=True)
    (failure,) = report.failures
    assert isinstance(failure.error, PruneRefusedError)
    assert "storage.delete.enabled" in str(failure.error)
    kept = STORE.inventory().repository("").tags["v1.1.0"]
    assert replica.storage.resolve(ROOT, "latest") == kept


# -- choosing the leader -------------------------------------------------------------------------


def test_the_highest_generation_leads_where_none_is_named(three: list[Replica]) -> None:
    first, second, third = three
    second.fill(newer(), generation=5)
    report = sync_replicas(None, [one.tree for one in three])
    assert (report.leader, report.generation) == (second.name, 5)
    for one in (first, third):
        assert digest_of(one) == digest_of(second)


def test_two_that_state_different_things_as_one_generation_are_a_conflict(
    three: list[Replica],
) -> None:
    three[1].fill(newer(), generation=1)
    with pytest.raises(ConflictError, match="as generation 1"):
        sync_replicas(None, [one.tree for one in three])


def test_nobody_leads_where_nobody_states_anything() -> None:
    with replicas(2) as made, pytest.raises(NotFoundError, match="complete inventory"):
        sync_replicas(None, [one.tree for one in made])


# -- the cost of nothing to do -------------------------------------------------------------------


@pytest.mark.parametrize("tags", [300, pytest.param(10_000, marks=pytest.mark.soak)])
def test_many_tags_are_compared_by_one_head_each(three_empty: list[Replica], tags: int) -> None:
    store = MemoryStore()
    made = [put_image(store, f"modules/m{n}", layers=(b"layer %d" % n,)) for n in range(20)]
    for number in range(tags):
        path = f"modules/m{number % 20}"
        store.put_tag(path, f"v{number}", store.manifest(path, made[number % 20]))
    wanted = store.inventory()
    for one in three_empty:
        for path, content in wanted.repositories.items():
            for digest, size in content.blobs.items():
                staging = one.storage.stage()
                staging.write(b"".join(store.blob(path, digest, size)))
                staging.commit(f"{ROOT}/{path}", digest)
            for tag, digest in content.tags.items():
                manifest: Manifest = store.manifest(path, digest)
                one.storage.put_manifest(f"{ROOT}/{path}", manifest, tag)
        one.state(wanted, 2)
        one.registry.requests.clear()
    leader, *others = three_empty
    report = sync_replicas(leader.tree, [one.tree for one in others])
    assert [one.outcome for one in report.replicas] == [Outcome.EQUAL] * 2
    assert questions(three_empty, 3) == [1, 2, 2]
    for one in three_empty:
        one.registry.requests.clear()
    report = sync_replicas(leader.tree, [one.tree for one in others], audit=True)
    assert [one.outcome for one in report.replicas] == [Outcome.EQUAL] * 2
    assert report.exit_code == 0
    questions(three_empty, 3 * (tags + 20))
    for one in three_empty:
        requests = one.registry.requests
        heads = [request.path for request in requests.matching("HEAD", "/modules/")]
        assert len(heads) == tags
        assert len(set(heads)) == tags
        assert requests.count("GET", "/tags/list") == 20
        assert len(requests) <= tags + 20 + 10


# -- the command ---------------------------------------------------------------------------------


def test_the_command_syncs_and_says_how_each_replica_stands(three: list[Replica]) -> None:
    leader, *others = three
    to = [word for one in others for word in ("--to", one.name)]
    done = call_mirror("sync", "--insecure", "--from", leader.name, *to).succeeded()
    assert "2 of 2 replicas hold what" in done.stdout
    again = call_mirror("sync", "--insecure", "--from", "auto", *to, "--json").succeeded()
    assert again.document["generation"] == 1
    assert [one["outcome"] for one in again.document["replicas"]] == ["equal"]


def test_the_command_fails_with_every_item_that_failed(three: list[Replica]) -> None:
    leader, dead, alive = three
    dead.registry.faults.add(Fault(Answer(403), times=None))
    done = call_mirror(
        *("sync", "--insecure", "--from", leader.name),
        *("--to", dead.name, "--to", alive.name, "--json"),
    )
    assert done.code == DeniedError.exit_code
    assert [one["outcome"] for one in done.document["replicas"]] == ["failed", "synced"]
    assert [one["place"] for one in done.document["failures"]] == [dead.name]


def test_storage_goes_with_deep_and_with_a_replica(two: list[Replica]) -> None:
    leader, replica = two
    words = ("sync", "--insecure", "--from", leader.name, "--to", replica.name)
    call_mirror(*words, "--storage", f"{replica.name}=/").failed(2, "--deep")
    call_mirror(*words, "--deep", "--storage", "elsewhere=/").failed(2, "is not among those")
    call_mirror(*words, "--deep", "--storage", "/").failed(2, "REGISTRY=DIR")
    call_mirror(*words, "--deep", "--storage", f"{replica.name}=/etc").failed(
        2, "not a registry's data folder"
    )


def test_bugs_are_raised_and_not_reported(
    two: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, replica = two
    monkeypatch.setattr("mirror.operations.replicate.make_plan", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sync_replicas(leader.tree, [replica.tree])
