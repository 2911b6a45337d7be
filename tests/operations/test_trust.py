"""Whom replicas believe: a statement that its tags, its signature or its age speak against."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mirror.bundle.reader import BundleReader
from mirror.errors import (
    ConflictError,
    DowngradeError,
    IncompleteError,
    MirrorError,
    PruneRefusedError,
    StatementError,
)
from mirror.events import Event, Warned
from mirror.oci import Digest
from mirror.operations.leader import choose_leader
from mirror.operations.prune import prune
from mirror.operations.push import plan_push, push, push_to_all
from mirror.operations.replicate import Outcome, ReplicaResult
from mirror.operations.rollback import rollback
from mirror.operations.sync import sync_replicas
from mirror.operations.trust import downgrades
from mirror.run import Run, gather
from mirror.signing import sign
from mirror.sync import Inventory, MemoryStore, RepositoryContent, publication
from mirror.sync.plan import Plan, Tags, tags_of
from mirror.sync.publication import Goal, Publication, announce
from mirror.sync.publication_state import (
    LATEST,
    PENDING,
    generation_tag,
    read_state,
    statement_digest,
)
from mirror.sync.statement import (
    ARTIFACT_TYPE,
    LAYER_TYPE,
    REPOSITORY,
    Artifact,
    Statement,
    StatementKeys,
    make_artifact,
    put_artifact,
)
from mirror.sync.tree import RegistryTree
from mirror.testing import CorruptBody, Fault
from tests.support.bundles import pack
from tests.support.inventories import put_image, sample_store
from tests.support.patience import PATIENCE_S
from tests.support.places import state
from tests.support.program import call_mirror
from tests.support.replicas import ROOT, Replica, only, replicas

STORE = sample_store()
CHANNELS = "release-channel"


def pair() -> tuple[bytes, bytes]:
    """A new key in PEM, and its public half."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, public


PRIVATE, KEY = pair()
STRANGERS_PRIVATE, STRANGERS_KEY = pair()
SIGNED = StatementKeys(partial(sign, key_pem=PRIVATE), (KEY,))
STRANGER = partial(sign, key_pem=STRANGERS_PRIVATE)
SIGN = SIGNED.sign


def with_tag(inventory: Inventory, path: str, tag: str, digest: Digest) -> Inventory:
    content = inventory.repository(path)
    forged = RepositoryContent({**content.tags, tag: digest}, content.manifests, content.blobs)
    return Inventory({**inventory.repositories, path: forged})


def forge(replica: Replica, generation: int = 50) -> Digest:
    """State that `alpha` leads to what only `beta` leads to; the tags stay. Returns the lie."""
    store = sample_store()
    put_image(store, CHANNELS, "beta", layers=(b"version: v0.0.1, long withdrawn",))
    replica.fill(store, generation=None)
    inventory = store.inventory()
    lie = inventory.repository(CHANNELS).tags["beta"]
    state(replica.tree, Statement(with_tag(inventory, CHANNELS, "alpha", lie), generation))
    replica.registry.requests.clear()
    return lie


def keyed(replica: Replica, keys: StatementKeys) -> RegistryTree:
    return replace(replica.tree, keys=keys)


def state_signed(
    replica: Replica, store: MemoryStore, generation: int, keys: StatementKeys
) -> None:
    """Publish a statement of what `store` has, signed."""
    replica.fill(store, generation=None)
    tree = replica.tree
    goal = Goal.of(Statement(store.inventory(), generation, tool="tests"), keys)
    Publication(tree, read_state(tree), goal).carry_out(
        Plan(), tree.source(), tree.target(), run=Run()
    )


def error_of(result: ReplicaResult) -> MirrorError:
    (failure,) = result.failures
    return failure.error


# -- tags against statements -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "audit", "deep", "prune"])
@pytest.mark.parametrize("knows", [True, False])
def test_a_statement_that_the_tags_of_its_own_registry_contradict_is_followed_by_nobody(
    two: list[Replica], how: str, knows: bool
) -> None:
    leader, replica = two
    if knows:
        sync_replicas(leader.tree, [replica.tree])
    before, stated = replica.held(), statement_digest(replica.tree)
    lie = forge(leader)
    report = sync_replicas(
        leader.tree,
        [replica.tree],
        audit=how == "audit",
        deep=how == "deep",
        prune=how == "prune",
    )
    error = error_of(only(report.replicas))
    assert isinstance(error, StatementError)
    assert report.exit_code in (1, 4)
    assert f"its statement contradicts its tags, so nothing follows it: it states {lie}" in str(
        error
    )
    assert "release-channel:alpha, which names" in str(error)
    assert f"find out who wrote to {ROOT}/mirror/inventory" in str(error)
    assert replica.held() == before
    assert statement_digest(replica.tree) == stated


def test_a_dry_run_tells_of_a_contradiction_too(two: list[Replica]) -> None:
    leader, replica = two
    forge(leader)
    report = sync_replicas(leader.tree, [replica.tree], dry_run=True)
    assert isinstance(error_of(only(report.replicas)), StatementError)


def test_a_manifest_that_the_leader_gives_damaged_comes_from_another_replica(
    three: list[Replica],
) -> None:
    """Its tag is confirmed all the same, by what the leader says that it names."""
    leader, holder, replica = three
    sync_replicas(leader.tree, [holder.tree])
    digest = leader.held().repository("modules/console").tags["v0.1.0"]
    path = f"/modules/console/manifests/(v0.1.0|{digest})"
    leader.registry.faults.add(Fault(CorruptBody(0), "GET", path, times=None))
    report = sync_replicas(leader.tree, [replica.tree, holder.tree])
    assert report.exit_code == 0
    assert replica.held() == leader.held()
    assert leader.registry.faults.struck


def test_only_tags_that_would_turn_are_asked_about_once_for_all_replicas(
    three: list[Replica],
) -> None:
    leader, *others = three
    sync_replicas(leader.tree, [one.tree for one in others])
    store = sample_store()
    put_image(store, "", "v2.0.0", layers=(b"new",))
    leader.fill(store, 2)
    sync_replicas(leader.tree, [one.tree for one in others])
    asked = [
        request.path
        for request in leader.registry.requests
        if "/manifests/" in request.path and "mirror/inventory" not in request.path
    ]
    # That read the manifest, too, which no replica asks for again.
    assert asked == [f"/v2/{ROOT}/manifests/v2.0.0"]


def test_a_tag_that_the_leader_states_and_does_not_have_is_told_and_costs_nothing_else(
    two: list[Replica],
) -> None:
    leader, replica = two
    leader.storage.delete_tag(f"{ROOT}/{CHANNELS}", "alpha")
    result = only(sync_replicas(leader.tree, [replica.tree]).replicas)
    (failure,) = result.failures
    assert failure.item == f"tag {CHANNELS}:alpha"
    assert "the leader states this tag and does not have it: it was not set" in str(failure)
    assert replica.storage.resolve(f"{ROOT}/{CHANNELS}", "v1.0.0") is not None
    assert replica.storage.resolve(f"{ROOT}/{CHANNELS}", "alpha") is None
    assert statement_digest(replica.tree) is None


def test_a_leader_whose_tags_are_ahead_of_its_statement_is_publishing(two: list[Replica]) -> None:
    leader, replica = two
    store = sample_store()
    put_image(store, CHANNELS, "v1.2.0", "alpha", layers=(b"version: v1.2.0",))
    announce(leader.tree, Statement(store.inventory(), 2, tool="tests").artifact())
    leader.fill(store, generation=None)
    error = error_of(only(sync_replicas(leader.tree, [replica.tree]).replicas))
    assert isinstance(error, ConflictError)
    assert "generation 2 is being published there" in str(error)
    assert "run this again when that push is over" in str(error)
    assert not replica.held().repositories


def test_a_forged_statement_does_not_lead_though_its_generation_is_the_highest(
    three: list[Replica],
) -> None:
    first, second, third = three
    sync_replicas(first.tree, [second.tree])
    forge(second)
    leader, failures = choose_leader([one.tree for one in three[:2]])
    assert leader is first.tree
    (failure,) = failures
    assert failure.place == second.name
    assert "contradicts its tags" in str(failure.error)
    report = sync_replicas(None, [one.tree for one in three])
    assert report.exit_code != 0
    assert only(report.replicas).name == third.name
    assert third.held() == STORE.inventory()


def test_of_several_statements_the_highest_that_is_credible_leads(three: list[Replica]) -> None:
    first, second, third = three
    sync_replicas(first.tree, [second.tree, third.tree])
    forge(second)
    forge(third, 51)
    leader, failures = choose_leader([one.tree for one in three])
    assert leader is first.tree
    assert sorted(failure.place for failure in failures) == sorted([second.name, third.name])


@pytest.mark.parametrize("dry_run", [False, True])
def test_no_replica_is_pruned_of_a_tag_that_the_leader_has_and_does_not_state(
    two: list[Replica], dry_run: bool
) -> None:
    leader, replica = two
    sync_replicas(leader.tree, [replica.tree])
    before = replica.held().repository(CHANNELS)
    less = STORE.inventory().filtered(lambda path: path != CHANNELS)
    state(leader.tree, Statement(less, 50))
    result = only(sync_replicas(leader.tree, [replica.tree], prune=True, dry_run=dry_run).replicas)
    error = error_of(result)
    assert isinstance(error, PruneRefusedError)
    assert f"the leader {leader.name} has" in str(error)
    assert f"{CHANNELS}:" in str(error)
    assert "and does not state" in str(error)
    assert result.removed == ()
    assert replica.held().repository(CHANNELS) == before


def test_a_kept_generation_above_the_current_one_puts_nothing_more_within_reach_of_a_prune(
    two: list[Replica], tmp_path: Path
) -> None:
    target = two[0]
    strange = MemoryStore()
    put_image(strange, "someone/else", "prod", layers=(b"not ours",))
    target.fill(strange, generation=None)
    forged = Statement(strange.inventory(), 9).artifact()
    put_artifact(target.tree.client, target.tree.locate(REPOSITORY), forged, "generation-9")
    pack(STORE, STORE.inventory(), tmp_path / "kept")
    events: list[Event] = []
    report = prune(target.tree, [tmp_path / "kept"], run=Run(on_event=events.append))
    assert not any("someone/else" in item for item in report.removal.items)
    assert target.storage.resolve(f"{ROOT}/someone/else", "prod") is not None
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned == (
        f"{target.name}: it keeps a generation 9, which is above the one that it states, 1; what "
        "only that one names is left alone: find out who wrote it"
    )


# -- signatures ------------------------------------------------------------------------------------


def test_with_trusted_keys_a_signed_statement_is_followed_byte_for_byte(two: list[Replica]) -> None:
    leader, replica = two
    state_signed(leader, STORE, 2, SIGNED)
    trees = [keyed(one, SIGNED) for one in two]
    result = only(sync_replicas(trees[0], [trees[1]]).replicas)
    assert (result.outcome, result.generation) == (Outcome.SYNCED, 2)
    assert statement_digest(replica.tree) == statement_digest(leader.tree)
    again = only(sync_replicas(trees[0], [trees[1]]).replicas)
    assert again.outcome is Outcome.EQUAL


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (StatementKeys(), "it is not signed, and trusted keys are given"),
        (StatementKeys(STRANGER), "none of the trusted keys made its signature"),
    ],
)
@pytest.mark.parametrize("equal", [False, True])
def test_with_trusted_keys_what_nobody_of_them_signed_is_followed_by_nobody(
    two: list[Replica], keys: StatementKeys, why: str, equal: bool
) -> None:
    leader, replica = two
    state_signed(leader, STORE, 2, keys)
    if equal:
        sync_replicas(leader.tree, [replica.tree])
    before = replica.held()
    trees = [keyed(one, StatementKeys(trusted=(KEY,))) for one in two]
    error = error_of(only(sync_replicas(trees[0], [trees[1]]).replicas))
    assert isinstance(error, StatementError)
    assert why in str(error)
    assert f"{ROOT}/mirror/inventory" in str(error)
    assert replica.held() == before


def test_any_of_several_trusted_keys_is_enough(two: list[Replica]) -> None:
    state_signed(two[0], STORE, 2, StatementKeys(STRANGER))
    trees = [keyed(one, StatementKeys(trusted=(KEY, STRANGERS_KEY))) for one in two]
    assert not sync_replicas(trees[0], [trees[1]]).failures


def test_with_trusted_keys_a_leader_that_states_nothing_leads_nobody(two: list[Replica]) -> None:
    with replicas(1) as (silent,):
        silent.fill(STORE, generation=None)
        trees = [keyed(one, StatementKeys(trusted=(KEY,))) for one in (silent, two[1])]
        error = error_of(only(sync_replicas(trees[0], [trees[1]]).replicas))
    assert isinstance(error, StatementError)
    assert "it states nothing, and trusted keys are given" in str(error)


@pytest.mark.parametrize("allowed", [False, True])
def test_with_trusted_keys_an_older_generation_than_seen_takes_a_word(
    two: list[Replica], allowed: bool
) -> None:
    leader, replica = two
    state_signed(leader, STORE, 2, SIGNED)
    newer = sample_store()
    put_image(newer, "", "v9.0.0", layers=(b"newer",))
    state_signed(replica, newer, 3, SIGNED)
    keys = StatementKeys(trusted=(KEY,), allow_downgrade=allowed)
    result = only(sync_replicas(keyed(leader, keys), [keyed(replica, keys)]).replicas)
    if allowed:
        assert (result.failures, result.generation) == ((), 2)
        return
    error = error_of(result)
    assert isinstance(error, DowngradeError)
    assert "states generation 2, and this registry has seen generation 3" in str(error)
    assert "--allow-downgrade" in str(error)
    assert replica.storage.resolve(ROOT, "v9.0.0") is not None


def test_a_rollback_and_a_prune_sign_what_they_state(two: list[Replica]) -> None:
    leader, replica = two
    trees = [keyed(one, SIGNED) for one in two]
    state_signed(leader, STORE, 2, SIGNED)
    newer = sample_store()
    put_image(newer, "", "v9.0.0", layers=(b"newer",))
    state_signed(leader, newer, 3, SIGNED)
    rollback(trees[0], to=2)
    assert not sync_replicas(trees[0], [trees[1]]).failures
    report = prune(trees[0], [2])
    assert report.exit_code == 0
    assert not sync_replicas(trees[0], [trees[1]]).failures
    assert replica.held().repository("").tags.keys() == STORE.inventory().repository("").tags.keys()


# -- what is older ---------------------------------------------------------------------------------


def release(*versions: str, stable: str) -> MemoryStore:
    """A tree whose channel `stable` leads to one of its versions."""
    store = MemoryStore()
    for version in versions:
        channel = ["stable"] if version == stable else []
        put_image(store, CHANNELS, version, *channel, layers=(version.encode(),))
        put_image(store, "", version, layers=(b"image " + version.encode(),))
    return store


def tags_in(store: MemoryStore) -> Tags:
    return tags_of(store.inventory())


def test_a_channel_goes_back_if_the_version_beside_it_is_older() -> None:
    newer, older = (release("v1.9.0", "v1.10.0", stable=one) for one in ("v1.10.0", "v1.9.0"))
    assert [str(one) for one in downgrades(tags_in(newer), tags_in(older))] == [
        "release-channel:stable from 1.10.0 to 1.9.0"
    ]
    assert downgrades(tags_in(older), tags_in(newer)) == []
    assert downgrades(tags_in(older), tags_in(older)) == []


def test_a_channel_without_a_version_beside_it_is_not_judged() -> None:
    bare = MemoryStore()
    put_image(bare, CHANNELS, "stable", layers=(b"no version",))
    full = release("v1.10.0", stable="v1.10.0")
    assert downgrades(tags_in(full), tags_in(bare)) == []
    assert downgrades(tags_in(bare), tags_in(full)) == []


@pytest.fixture
def old_bundle(tmp_path: Path) -> Iterator[BundleReader]:
    store = release("v1.9.0", stable="v1.9.0")
    pack(store, store.inventory(), tmp_path / "old")
    with BundleReader([tmp_path / "old"]) as reader:
        yield reader


def test_a_push_of_something_older_is_told(two: list[Replica], old_bundle: BundleReader) -> None:
    target = two[1]
    target.fill(release("v1.10.0", stable="v1.10.0"))
    events: list[Event] = []
    push(old_bundle, target.tree, run=Run(on_event=events.append))
    (warned,) = [event.message for event in events if isinstance(event, Warned)]
    assert warned == (
        f"{target.name}: the bundle is older than what is there: it takes "
        "release-channel:stable from 1.10.0 to 1.9.0"
    )


def ahead_and_behind(behind: Replica, ahead: Replica, generation: int = 50) -> None:
    """Somebody gives the statement of the registry that is behind the highest generation."""
    old = release("v1.9.0", stable="v1.9.0")
    behind.fill(old, 2)
    ahead.fill(old, 2)
    ahead.fill(release("v1.9.0", "v1.10.0", stable="v1.10.0"), 3)
    state(behind.tree, Statement(old.inventory(), generation))


@pytest.mark.parametrize("prune", [(), ("--prune", "--yes")], ids=["sync", "prune"])
def test_nobody_follows_what_takes_channels_back_unless_he_names_it(prune: tuple[str, ...]) -> None:
    with replicas(2) as (behind, ahead):
        ahead_and_behind(behind, ahead)
        before = ahead.held()
        to = ("--to", ahead.name, "--insecure", *prune)
        run = call_mirror("sync", "--from", "auto", "--to", behind.name, *to)
        run.failed(1)
        assert (
            f"{behind.name} states the highest generation, 50, and that takes "
            f"release-channel:stable from 1.10.0 to 1.9.0, which {ahead.name} states as generation "
            "3; if it is what you want, name the leader with --from, and push the newest bundle "
        ) in run.stderr
        assert ahead.held() == before
        assert (
            f"{ahead.name}: what {behind.name} states is older than what is there: it takes "
            "release-channel:stable from 1.10.0 to 1.9.0"
        ) in call_mirror("sync", "--from", behind.name, *to).succeeded().stderr


def test_where_it_is_allowed_the_highest_generation_takes_channels_back() -> None:
    with replicas(2) as (behind, ahead):
        ahead_and_behind(behind, ahead)
        to = ("--to", behind.name, "--to", ahead.name, "--insecure", "--allow-downgrade")
        call_mirror("sync", "--from", "auto", *to).succeeded()
        assert (
            ahead.held().repository(CHANNELS).tags["stable"]
            == (behind.held().repository(CHANNELS).tags["stable"])
        )


def test_a_rollback_is_followed_without_a_word() -> None:
    with replicas(2) as (leader, follower):
        for one in (leader, follower):
            one.fill(release("v1.9.0", stable="v1.9.0"), 1)
        leader.fill(release("v1.9.0", "v1.10.0", stable="v1.10.0"), 2)
        sync_replicas(leader.tree, [follower.tree])
        rollback(leader.tree, to=1)
        events: list[Event] = []
        report = sync_replicas(leader.tree, [follower.tree], run=Run(on_event=events.append))
        assert report.replicas[0].outcome is Outcome.SYNCED
        assert not [event for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("several", [False, True])
def test_where_keys_are_trusted_a_push_of_something_older_takes_a_word(
    two: list[Replica], old_bundle: BundleReader, several: bool
) -> None:
    target = two[1]
    state_signed(target, release("v1.10.0", stable="v1.10.0"), 1, SIGNED)
    before = target.held()
    tree = keyed(target, SIGNED)
    work = partial(push_to_all, trees=[tree]) if several else partial(push, tree=tree)
    with pytest.raises(IncompleteError if several else DowngradeError) as caught:
        work(old_bundle)
    assert "it takes release-channel:stable from 1.10.0 to 1.9.0" in str(caught.value)
    assert "push with --allow-downgrade" in str(caught.value)
    assert target.held() == before
    push(old_bundle, keyed(target, replace(SIGNED, allow_downgrade=True)))
    assert (
        target.held().repository(CHANNELS).tags["stable"]
        != before.repository(CHANNELS).tags["stable"]
    )


@pytest.mark.parametrize("trusted", [False, True])
def test_a_push_to_several_tells_what_it_takes_back_at_those_that_do_not_lead(
    old_bundle: BundleReader, trusted: bool
) -> None:
    with replicas(2) as (lead, ahead):
        state_signed(lead, release("v1.9.0", stable="v1.9.0"), 1, SIGNED)
        state_signed(ahead, release("v1.10.0", stable="v1.10.0"), 1, SIGNED)
        before = ahead.held()
        trees = [keyed(one, SIGNED) if trusted else one.tree for one in (lead, ahead)]
        events: list[Event] = []
        work = partial(push_to_all, old_bundle, trees, run=Run(on_event=events.append))
        back = "it takes release-channel:stable from 1.10.0 to 1.9.0"
        if trusted:
            with pytest.raises(IncompleteError) as caught:
                work()
            assert back in str(caught.value)
            assert ahead.held() == before
        else:
            work()
            assert any(back in one.message for one in events if isinstance(one, Warned))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_dry_run_of_a_push_tells_what_it_would_take_back(
    two: list[Replica], old_bundle: BundleReader, trusted: bool
) -> None:
    target = two[1]
    state_signed(target, release("v1.10.0", stable="v1.10.0"), 1, SIGNED)
    tree = keyed(target, SIGNED) if trusted else target.tree
    events: list[Event] = []
    work = partial(plan_push, old_bundle, tree, run=Run(on_event=events.append))
    back = "it takes release-channel:stable from 1.10.0 to 1.9.0"
    if trusted:
        with pytest.raises(DowngradeError, match=back):
            work()
    else:
        work()
        assert any(back in one.message for one in events if isinstance(one, Warned))


def test_a_dry_run_of_a_push_asks_for_signatures_as_the_push_does(
    two: list[Replica], old_bundle: BundleReader, tmp_path: Path
) -> None:
    state_signed(two[1], release("v1.10.0", stable="v1.10.0"), 1, SIGNED)
    public = tmp_path / "pub.pem"
    public.write_bytes(KEY)
    del old_bundle
    dry = ("push", tmp_path / "old", two[1].name, "--insecure", "--dry-run", "--trusted-key")
    call_mirror(*dry, public).failed(1, "it takes release-channel:stable from 1.10.0 to 1.9.0")
    call_mirror(*dry, public, "--allow-downgrade").succeeded()


def test_a_push_that_signs_states_anew_what_was_not_signed(
    two: list[Replica], old_bundle: BundleReader
) -> None:
    target = two[1]
    first = push(old_bundle, target.tree)
    assert first.published.statement.generation == 1
    second = push(old_bundle, keyed(target, StatementKeys(SIGN)))
    assert (second.published.statement.generation, second.published.signed) == (2, True)
    third = push(old_bundle, keyed(target, SIGNED))
    assert third.published == second.published


def test_a_push_that_signs_states_anew_what_another_key_signed(
    two: list[Replica], old_bundle: BundleReader
) -> None:
    target = two[1]
    push(old_bundle, keyed(target, StatementKeys(STRANGER)))
    ours = StatementKeys(SIGN, own=KEY)
    assert push(old_bundle, keyed(target, ours)).published.statement.generation == 2
    assert push(old_bundle, keyed(target, ours)).published.statement.generation == 2
    assert read_state(keyed(target, SIGNED)).current is not None


@pytest.fixture
def replayed(two: list[Replica]) -> tuple[Replica, Replica]:
    """A leader and a replica at generation 3, signed; the leader keeps the signed generation 2."""
    leader, replica = two
    state_signed(leader, release("v1.9.0", stable="v1.9.0"), 2, SIGNED)
    state_signed(leader, release("v1.9.0", "v1.10.0", stable="v1.10.0"), 3, SIGNED)
    assert not sync_replicas(keyed(leader, SIGNED), [keyed(replica, SIGNED)]).failures
    return leader, replica


def put_again(replica: Replica, generation: int, *tags: str) -> None:
    """Let tags of the statements' repository name an earlier statement."""
    client, repository = replica.tree.client, replica.tree.locate(REPOSITORY)
    earlier = client.manifest(repository, generation_tag(generation))
    for tag in tags:
        client.put_manifest(repository, tag, earlier)


def other_bundle(folder: Path) -> Path:
    store = MemoryStore()
    put_image(store, "modules/x", "v1.0.0", layers=(b"another thing",))
    pack(store, store.inventory(), folder)
    return folder


@pytest.mark.parametrize("tags", [(PENDING,), (LATEST,), (PENDING, LATEST)])
def test_a_signed_statement_that_is_put_there_again_turns_nothing_back(
    replayed: tuple[Replica, Replica], tags: tuple[str, ...], tmp_path: Path
) -> None:
    leader, replica = replayed
    stable = leader.storage.resolve(f"{ROOT}/{CHANNELS}", "stable")
    put_again(leader, 2, *tags)
    events: list[Event] = []
    with BundleReader([other_bundle(tmp_path / "other")]) as bundle:
        report = push(bundle, keyed(leader, SIGNED), run=Run(on_event=events.append))
    assert report.published.statement.generation == 4
    assert report.published.statement.inventory.repository(CHANNELS).tags["stable"] == stable
    assert leader.storage.resolve(f"{ROOT}/{CHANNELS}", "stable") == stable
    assert any(isinstance(one, Warned) and "somebody" in one.message for one in events)
    assert not sync_replicas(keyed(leader, SIGNED), [keyed(replica, SIGNED)]).failures
    assert replica.storage.resolve(f"{ROOT}/{CHANNELS}", "stable") == stable


def test_another_statement_of_the_same_generation_is_not_followed(
    replayed: tuple[Replica, Replica],
) -> None:
    _, replica = replayed
    with replicas(1) as (other,):
        state_signed(other, release("v1.9.0", stable="v1.9.0"), 3, SIGNED)
        report = sync_replicas(keyed(other, SIGNED), [keyed(replica, SIGNED)])
    error = error_of(only(report.replicas))
    assert isinstance(error, DowngradeError)
    assert "states generation 3, and this registry has seen another generation 3" in str(error)


def test_a_signature_does_not_make_a_statement_true_that_the_tags_contradict(
    two: list[Replica],
) -> None:
    leader, replica = two
    state_signed(leader, release("v1.9.0", stable="v1.9.0"), 2, SIGNED)
    leader.fill(release("v1.10.0", stable="v1.10.0"), generation=None)
    report = sync_replicas(keyed(leader, SIGNED), [keyed(replica, SIGNED)])
    assert isinstance(error_of(only(report.replicas)), StatementError)
    assert not replica.held().repositories


def test_what_nobody_trusted_signed_is_not_even_read(two: list[Replica]) -> None:
    leader, _ = two
    layer = b'{"schemaVersion": 99}'
    artifact = make_artifact(ARTIFACT_TYPE, layer=layer, layer_type=LAYER_TYPE)
    put_artifact(leader.tree.client, leader.tree.locate(REPOSITORY), artifact, PENDING)
    state = read_state(keyed(leader, SIGNED))
    assert any("it is not signed" in notice for notice in state.notices)


def test_the_command_line_signs_and_asks_for_signatures(
    two: list[Replica], old_bundle: BundleReader, tmp_path: Path
) -> None:
    leader, replica = (one.name for one in two)
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    private.write_bytes(PRIVATE)
    public.write_bytes(KEY)
    del old_bundle
    bundle = tmp_path / "old"
    sync = ("sync", "--insecure", "--from", leader, "--to", replica)
    refused = call_mirror(*sync, "--trusted-key", public).failed(4)
    assert "it is not signed" in refused.stdout
    push_it = ("push", bundle, leader, "--insecure")
    call_mirror(*push_it, "--sign-key", private).succeeded()
    call_mirror(*sync, "--trusted-key", public).succeeded()
    assert read_state(keyed(two[1], SIGNED)).current is not None


# -- two at once -----------------------------------------------------------------------------------


def holding(version: str) -> MemoryStore:
    """The sample tree, with `alpha` at a release of its own."""
    store = sample_store()
    put_image(store, CHANNELS, version, "alpha", layers=(version.encode(),))
    return store


GENERATIONS = pytest.mark.parametrize("generations", [(1, 2), (2, 1), (1, 1)])


@pytest.fixture
def opposed(generations: tuple[int, int]) -> Iterator[list[Replica]]:
    """Two registries that state different things."""
    with replicas(2) as made:
        for one, version, generation in zip(made, ("v1.1.0", "v1.2.0"), generations, strict=True):
            one.fill(holding(version), generation)
        yield made


def sync_both_ways(made: list[Replica]) -> list[ReplicaResult]:
    """What came of both directions at once: first to second, second to first."""
    first, second = (one.tree for one in made)
    ways = [(first, second), (second, first)]
    reports = gather(ways, lambda way: sync_replicas(way[0], [way[1]]), run=Run(2))
    return [only(report.replicas) for report in reports]


def tags_now(made: list[Replica]) -> list[Digest | None]:
    return [one.storage.resolve(f"{ROOT}/{CHANNELS}", "alpha") for one in made]


@GENERATIONS
def test_syncs_in_opposite_directions_that_announce_at_once_both_stop(
    opposed: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tags_now(opposed), [statement_digest(one.tree) for one in opposed]
    meeting = threading.Barrier(2, timeout=PATIENCE_S)

    def announced(tree: RegistryTree, artifact: Artifact) -> None:
        meeting.wait()  # both know their leader before one announces anything there
        announce(tree, artifact)
        meeting.wait()

    monkeypatch.setattr(publication, "announce", announced)
    for result in sync_both_ways(opposed):
        error = error_of(result)
        assert isinstance(error, ConflictError)
        assert "another sync turns it to generation" in str(error)
        assert "no tag was changed" in str(error)
    assert (tags_now(opposed), [statement_digest(one.tree) for one in opposed]) == before
    # What was announced is withdrawn: a push to one of them does not finish it.
    assert all(read_state(one.tree).pending is None for one in opposed)


@GENERATIONS
def test_a_sync_that_another_one_overtakes_in_the_opposite_direction_stops(
    opposed: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, leader = opposed  # the sync to `slow` stands still until the other one is over
    over, looked = threading.Event(), threading.Event()

    def announced(tree: RegistryTree, artifact: Artifact) -> None:
        if tree.name == slow.name:
            looked.set()
            assert over.wait(PATIENCE_S)
        announce(tree, artifact)

    monkeypatch.setattr(publication, "announce", announced)
    stopped: list[ReplicaResult] = []
    thread = threading.Thread(
        target=lambda: stopped.append(only(sync_replicas(leader.tree, [slow.tree]).replicas))
    )
    thread.start()
    assert looked.wait(PATIENCE_S)
    done = only(sync_replicas(slow.tree, [leader.tree]).replicas)
    over.set()
    thread.join()
    assert done.failures == ()
    assert isinstance(error_of(only(tuple(stopped))), ConflictError)
    assert tags_now(opposed)[0] == tags_now(opposed)[1]
    assert read_state(slow.tree).pending is None
    assert only(sync_replicas(slow.tree, [leader.tree]).replicas).outcome is Outcome.EQUAL


def test_a_push_to_the_leader_does_not_stop_the_sync_that_it_overtakes(
    two: list[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, replica = two
    store = holding("v1.2.0")

    def announced(tree: RegistryTree, artifact: Artifact) -> None:
        if tree.name == replica.name:
            leader.fill(store, 2)
        announce(tree, artifact)

    monkeypatch.setattr(publication, "announce", announced)
    result = only(sync_replicas(leader.tree, [replica.tree]).replicas)
    assert (result.failures, result.generation) == ((), 1)
    assert only(sync_replicas(leader.tree, [replica.tree]).replicas).generation == 2
