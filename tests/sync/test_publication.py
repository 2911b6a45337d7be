"""Statements in registries, real and embedded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.errors import ConflictError, IncompleteError, StatementError
from mirror.events import Event, OnEvent, TransferStarted, ignore
from mirror.layout import publication_stage
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.operations.rollback import rollback
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.serve import put_blob
from mirror.sync import Inventory, MemoryStore
from mirror.sync.plan import PutTag, make_plan, tags_of
from mirror.sync.publication import Goal, Publication, Step, announce
from mirror.sync.publication_state import (
    PublicationState,
    Published,
    generation_tag,
    generations,
    kept_statements,
    next_statement,
    read_state,
    read_statement,
    statement_digest,
)
from mirror.sync.removal import deletes_tags
from mirror.sync.statement import MAX_GENERATION, REPOSITORY, Artifact, Statement, put_artifact
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.inventories import put_image, sample_store
from tests.support.places import client_of, state, storage_of, tree_of
from tests.support.real_registry import RealRegistry
from tests.support.replicas import ROOT, Replica, replicas


def put(client: RegistryClient, artifact: Artifact, *tags: str) -> None:
    """Store a statement by its digest and under `tags`."""
    put_artifact(
        client, tree_of(client).locate(REPOSITORY), artifact, artifact.manifest.digest, *tags
    )


@pytest.fixture
def client(embedded_registry: EmbeddedRegistry) -> Iterator[RegistryClient]:
    with client_of(embedded_registry) as client:
        yield client


def test_a_real_registry_keeps_a_statement_as_it_is(real_registry: RealRegistry) -> None:
    statement = Statement(sample_store().inventory(), 3, tool="mirror 1.0")
    artifact = statement.artifact()
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        assert read_statement(tree_of(client)) is None
        assert statement_digest(tree_of(client)) is None
        assert generations(tree_of(client)) == []
        put(client, artifact, generation_tag(3), "latest")
        assert read_statement(tree_of(client)) == Published(artifact.manifest.digest, statement)
        assert statement_digest(tree_of(client)) == artifact.manifest.digest
        assert generations(tree_of(client)) == [3]
        raw = client.manifest("dkp/ee/mirror/inventory", "latest").raw
    assert raw == artifact.manifest.raw


def test_a_statement_that_is_there_is_not_sent_again(
    embedded_registry: EmbeddedRegistry, client: RegistryClient
) -> None:
    artifact = Statement(sample_store().inventory(), 1).artifact()
    put(client, artifact)
    embedded_registry.requests.clear()
    put(client, artifact, "latest")
    assert embedded_registry.requests.count("POST") == 0


def test_generations_are_numbers_and_nothing_else(client: RegistryClient) -> None:
    artifact = Statement(Inventory(), 1).artifact()
    tags = ("generation-10", "generation-9", "generation-01", "generation-x", "xgeneration-3")
    put(client, artifact, *tags)
    assert generations(tree_of(client)) == [9, 10]


def test_an_image_in_the_place_of_a_statement_is_none(
    embedded_registry: EmbeddedRegistry, client: RegistryClient
) -> None:
    store = sample_store()
    digest = put_image(store, REPOSITORY)
    storage = storage_of(embedded_registry)
    repository = tree_of(client).locate(REPOSITORY)
    for data in (b"{}", b"layer"):
        put_blob(storage, repository, data)
    storage.put_manifest(repository, store.manifest(REPOSITORY, digest), "latest")
    with pytest.raises(
        StatementError, match=r"inventory:latest cannot be read: it is not a published inventory"
    ):
        read_statement(tree_of(client))


@pytest.mark.parametrize("layer", [b"{}", b"not json"])
def test_a_statement_that_says_nothing_is_refused_and_named(
    embedded_registry: EmbeddedRegistry, client: RegistryClient, layer: bytes
) -> None:
    """A layer with the right digest and the wrong content."""
    storage, repository = storage_of(embedded_registry), tree_of(client).locate(REPOSITORY)
    document = json.loads(Statement(Inventory(), 1).artifact().manifest.raw)
    put_blob(storage, repository, b"{}")
    document["layers"][0] |= {
        "digest": str(put_blob(storage, repository, layer)),
        "size": len(layer),
    }
    manifest = Manifest.parse(json.dumps(document).encode(), OCI_MANIFEST)
    storage.put_manifest(repository, manifest, "latest")
    with pytest.raises(
        StatementError, match=r"it is not a published inventory.*push the bundle again"
    ):
        read_statement(tree_of(client))


def test_a_statement_whose_layer_is_lost_or_damaged_is_refused(
    real_registry: RealRegistry,
) -> None:
    artifact = Statement(sample_store().inventory(), 1).artifact()
    path = real_registry.blob_path(str(Digest.of(artifact.layer)))
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        put(client, artifact, "latest")
        path.write_bytes(artifact.layer.replace(b"v1.0.0", b"v1.0.9"))
        with pytest.raises(StatementError, match=r"cannot be read: .* expected sha256:.*, got"):
            read_statement(tree_of(client))
        path.write_bytes(artifact.layer + b" ")
        with pytest.raises(StatementError, match=r"expected [0-9]+ bytes, got"):
            read_statement(tree_of(client))
        path.unlink()
        with pytest.raises(StatementError, match="cannot be read"):
            read_statement(tree_of(client))


# -- the steps of a publication --------------------------------------------------------------------


def interrupted() -> PublicationState:
    announced = Statement(sample_store().inventory(), 2)
    return PublicationState(pending=Goal.of(announced).published, generation=2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # touches no network
@given(
    goal=st.booleans(),
    seen=st.booleans(),
    finish_first=st.booleans(),
    removes=st.booleans(),
    retracts=st.booleans(),
    pending=st.booleans(),
    complete=st.booleans(),
    turns=st.booleans(),
)
def test_tags_turn_between_the_announcement_and_the_statement_or_without_both(
    client: RegistryClient,
    goal: bool,
    seen: bool,
    finish_first: bool,
    removes: bool,
    retracts: bool,
    pending: bool,
    complete: bool,
    turns: bool,
) -> None:
    publication = Publication(
        tree_of(client),
        interrupted() if pending else PublicationState(),
        Goal.of(Statement(Inventory(), 3)) if goal else None,
        Inventory() if seen else None,
        finish_first,
        (PutTag("install", "v1", Digest.of(b"")),) if removes and goal else (),
        retracts,
    )
    steps = publication.steps(complete=complete, turns=turns)
    assert list(steps) == sorted(set(steps), key=list(Step).index)
    states = goal and complete
    assert (Step.ANNOUNCE in steps) == (Step.STATE in steps) == states
    assert (Step.TURN in steps) == turns
    # Whoever states something, or finishes it for another, is sure that nobody came in between.
    finishes = finish_first and pending
    assert (Step.CHECK_STATE in steps) == (states or finishes)
    assert (Step.FINISH in steps) == finishes
    assert (Step.CHECK_TAGS in steps) == seen
    # Nobody finds a statement that the tags contradict.
    assert (Step.RETRACT in steps) == (retracts and turns and not states)
    assert (Step.REMOVE in steps) == (states and removes)


def carried(replica: Replica, store: MemoryStore, on_event: OnEvent = ignore) -> Publication:
    """A publication of `store` that has been carried out."""
    place, wanted = replica.tree.target(), store.inventory()
    held = place.held(wanted)
    plan = make_plan(wanted, held, stage=publication_stage)
    state = read_state(replica.tree)
    statement = next_statement(state, wanted, held, tool="tests")
    goal = Goal.of(statement) if statement else None
    publication = Publication(replica.tree, state, goal, seen=held, finish_first=True)
    new, run = publication.new_tags(plan, held), Run(on_event=on_event)
    publication.carry_out(plan, store, place, new_tags=new, run=run)
    return publication


def test_an_image_goes_by_its_new_tags_and_all_others_by_digest_first() -> None:
    store = sample_store()
    with replicas(1) as (replica,):
        replica.registry.requests.clear()
        carried(replica, store)
        puts = replica.registry.requests.matching("PUT", "/manifests/", 201)
        assert tags_of(replica.held()) == tags_of(store.inventory())
    content = store.inventory().repository("")
    names = [one.path.rpartition("/")[2] for one in puts if "/deckhouse/manifests/" in one.path]
    loose = content.manifests.keys() - content.tags.values()
    assert loose, "the images of an index"
    assert sorted(names) == sorted([*content.tags, *map(str, loose)])
    names = [
        one.path.rpartition("/")[2] for one in puts if "/deckhouse/release-channel/" in one.path
    ]
    (digest,) = set(store.inventory().repository("release-channel").tags.values())
    assert names == [str(digest), "v1.0.0", "alpha"]
    announced = [one.path for one in puts].index(f"/v2/{ROOT}/{REPOSITORY}/manifests/pending")
    late = [one for one in puts[announced:] if REPOSITORY not in one.path]
    assert {publication_stage(one.path.split("/")[4], one.path.rpartition("/")[2]) for one in late}


def test_a_new_tag_that_somebody_else_sets_meanwhile_stops_it_before_any_is_set() -> None:
    store, other = sample_store(), MemoryStore()
    put_image(other, "modules/console", "v0.1.0", layers=(b"of somebody else",))
    with replicas(1) as (replica,):

        def meanwhile(event: Event) -> None:
            if isinstance(event, TransferStarted):
                replica.fill(other, generation=None)

        with pytest.raises(
            ConflictError, match=r"modules/console:v0\.1\.0 was changed by somebody"
        ):
            carried(replica, store, meanwhile)
        assert tags_of(replica.held()) == tags_of(other.inventory())


def test_a_publication_that_another_one_overtook_stops_before_its_first_new_tag() -> None:
    store, other = sample_store(), images("v9")
    with replicas(1) as (replica,):

        def meanwhile(event: Event) -> None:
            if isinstance(event, TransferStarted):
                carried(replica, other)

        with pytest.raises(ConflictError, match="published something since this one began"):
            carried(replica, store, meanwhile)
        assert tags_of(replica.held()) == tags_of(other.inventory())


def test_a_tag_that_a_late_list_lacks_is_not_replaced() -> None:
    """The comparison believes the list; before the first new tag, each is asked for."""
    store, other = sample_store(), MemoryStore()
    put_image(other, "modules/console", "v0.1.0", layers=(b"of somebody else",))
    with replicas(1) as (replica,):
        replica.fill(other, generation=None)
        empty = Answer(200, {"content-type": "application/json"}, b'{"tags":[]}')
        replica.registry.faults.add(Fault(empty, "GET", "/console/tags/list", times=None))
        with pytest.raises(ConflictError, match=r"console:v0\.1\.0 was changed by somebody else"):
            carried(replica, store)
        replica.registry.faults.clear()
        assert tags_of(replica.held()) == tags_of(other.inventory())


def images(*tags: str) -> MemoryStore:
    """A module with an image of its own for each of `tags`."""
    store = MemoryStore()
    for tag in tags:
        put_image(store, "modules/console", tag, layers=(tag.encode(),))
    return store


def test_new_tags_of_a_push_that_was_cut_off_are_no_other_tools_tags() -> None:
    """Run again, it states what it would have stated at once, and a rollback removes them."""

    with replicas(2) as (cut, whole):
        for replica in (cut, whole):
            carried(replica, images("v1"))
            replica.fill(images("v3"), generation=None)  # by another tool
        refused = Fault(Answer(400), "PUT", "/console/manifests/v2", times=None)
        cut.registry.faults.add(refused)
        with pytest.raises(IncompleteError):
            carried(cut, images("v1", "v2", "v3", "v4"))
        assert tags_of(cut.held())["modules/console"].keys() == {"v1", "v3", "v4"}
        cut.registry.faults.clear()
        for replica in (cut, whole):
            carried(replica, images("v1", "v2", "v3", "v4"))
        state = read_state(cut.tree)
        assert state == read_state(whole.tree)
        assert state.current is not None
        assert state.current.statement.former["modules/console"].keys() == {"v3"}
        assert state.staged is None, "it is what the registry states"
        rollback(cut.tree, to=1)
        assert tags_of(cut.held())["modules/console"].keys() == {"v1", "v3"}


def test_a_rollback_removes_new_tags_of_a_push_that_was_cut_off_and_not_run_again() -> None:
    with replicas(1) as (replica,):
        carried(replica, images("v1"))
        carried(replica, images("v1", "v2"))
        replica.registry.faults.add(Fault(Answer(400), "PUT", "/console/manifests/v4", times=None))
        with pytest.raises(IncompleteError):
            carried(replica, images("v1", "v2", "v3", "v4"))
        assert tags_of(replica.held())["modules/console"].keys() == {"v1", "v2", "v3"}
        rollback(replica.tree, to=1)
        assert tags_of(replica.held())["modules/console"].keys() == {"v1"}


def test_no_tag_goes_early_after_an_interrupted_publication_whose_tags_turn_first() -> None:
    """It would be turned back to what the interrupted one promised."""
    store, interrupted_one = MemoryStore(), MemoryStore()
    put_image(store, "modules/console", "v0.1.0", layers=(b"new",))
    put_image(interrupted_one, "modules/console", "v0.1.0", layers=(b"old",))
    with replicas(1) as (replica,):
        replica.fill(interrupted_one, generation=None)
        announce(replica.tree, Goal.of(Statement(interrupted_one.inventory(), 1)).artifact)
        assert replica.storage.delete_tag(f"{ROOT}/modules/console", "v0.1.0")
        assert carried(replica, store).state.pending is not None
        assert tags_of(replica.held()) == tags_of(store.inventory())


def test_tags_are_removed_on_the_way_to_a_statement_only(client: RegistryClient) -> None:
    with pytest.raises(ValueError, match="on the way to a statement"):
        Publication(
            tree_of(client),
            PublicationState(),
            removals=(PutTag("install", "v1", Digest.of(b"")),),
        )


def test_generations_are_read_one_at_a_time(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    for number in (1, 2, 3):
        state(tree_of(client), Statement(sample_store().inventory(), number))
    embedded_registry.requests.clear()
    kept = kept_statements(tree_of(client))
    for number in (1, 2, 3):
        assert next(kept)[0] == number
        assert embedded_registry.requests.count("GET", "/manifests/generation-") == number
    assert list(kept) == []


def test_after_the_last_possible_generation_there_is_none() -> None:
    last = Goal.of(Statement(Inventory(), MAX_GENERATION)).published
    with pytest.raises(StatementError, match="after which none is left"):
        next_statement(
            PublicationState(last, generation=MAX_GENERATION),
            sample_store().inventory(),
            Inventory(),
            tool="tests",
        )


def test_a_registry_that_deletes_the_manifest_with_a_tag_does_not_delete_tags() -> None:
    tree = MagicMock()
    tree.client.resolve.return_value = None  # neither the tag nor its manifest is there any more
    assert deletes_tags(tree, "trial") is False
