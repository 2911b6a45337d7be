from __future__ import annotations

import pytest

from mirror.errors import CancelledError, DeniedError, NotFoundError, UnreachableError
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.run import Cancellation, Run
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistrySource, RegistryTarget
from mirror.sync.walk import walk
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.inventories import (
    items,
    lost_with_manifest,
    put_image,
    put_image_by_sha512,
    sample_store,
    without,
)
from tests.support.places import below, client_of, storage_of, tree_of

STORE = sample_store()
WANTED = STORE.inventory()
ROOT = "deckhouse/ee"


@pytest.fixture
def target(client: RegistryClient, embedded_registry: EmbeddedRegistry) -> RegistryTarget:
    """A registry that holds all of the sample tree."""
    made = RegistryTarget(client, below(ROOT), run=Run(jobs=4))
    transfer(make_plan(WANTED, Inventory()), STORE, made)
    embedded_registry.requests.clear()
    return made


# -- what is there ---------------------------------------------------------------------------------


def test_a_full_registry_holds_it_all_and_an_empty_one_nothing(
    client: RegistryClient, target: RegistryTarget
) -> None:
    assert target.held(WANTED) == WANTED
    assert target.held(Inventory()) == Inventory()
    assert RegistryTarget(client, below("elsewhere")).held(WANTED) == Inventory()


def test_asking_downloads_nothing(
    embedded_registry: EmbeddedRegistry, target: RegistryTarget
) -> None:
    target.held(WANTED)
    requests = embedded_registry.requests
    assert {one.method for one in requests} == {"HEAD", "GET"}
    assert {one.path for one in requests.matching("GET")} == {
        f"/v2/{below(ROOT)(path)}/tags/list" for path in WANTED.repositories
    }
    # A tag that names the wanted digest answers for its manifest: nothing is asked twice.
    asked = [(one.method, one.path) for one in requests]
    assert len(asked) == len(set(asked))
    named = sum(len(set(one.tags.values())) for one in WANTED.repositories.values())
    manifests = sum(len(one.manifests) for one in WANTED.repositories.values())
    tags = sum(len(one.tags) for one in WANTED.repositories.values())
    assert requests.count("HEAD", "/manifests/") == tags + manifests - named


def test_every_single_loss_is_seen(
    embedded_registry: EmbeddedRegistry, target: RegistryTarget
) -> None:
    """Things go behind the server's back, as bad disks and eager collectors do it."""
    storage = storage_of(embedded_registry)
    for item in items(WANTED):
        repository = target.locate(item.repository)
        match item.key:
            case str(tag):
                assert storage.delete_tag(repository, tag)
            case digest if item.kind == "blob":
                assert storage.delete_blob(repository, digest)
            case digest:
                assert storage.delete_manifest(repository, digest)
        held = target.held(WANTED)
        assert held == without(WANTED, item, *lost_with_manifest(WANTED, item))
        transfer(make_plan(WANTED, held), STORE, target)
    assert target.held(WANTED) == WANTED


def test_a_tag_that_names_something_else_is_held_as_what_it_names(target: RegistryTarget) -> None:
    other = MemoryStore()
    digest = put_image(other, "release-channel", "alpha", layers=(b"another version",))
    transfer(make_plan(other.inventory(), Inventory()), other, target)
    held = target.held(WANTED)
    assert held.repository("release-channel").tags["alpha"] == digest
    wanted = WANTED.repository("release-channel").tags["alpha"]
    assert held.repository("release-channel").manifests.keys() == {wanted}
    plan = make_plan(WANTED, held)
    assert [(name.tag, name.digest) for (name,) in plan.tags] == [("alpha", wanted)]
    assert not plan.blobs
    assert not plan.manifests


def test_a_blob_of_another_length_is_not_held(
    embedded_registry: EmbeddedRegistry, target: RegistryTarget
) -> None:
    """A registry that was cut off while it wrote may show the stump of a blob."""
    digest = Digest.of(b"component")
    answer = Answer(200, {"Content-Length": "0", "Docker-Content-Digest": str(digest)}, b"")
    embedded_registry.faults.add(Fault(answer, "HEAD", f"/blobs/{digest}", times=None))
    held = target.held(WANTED)
    assert digest not in held.blob_sizes()
    assert {step.digest for step in make_plan(WANTED, held).blobs} == {digest}


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (Answer(403), DeniedError, "denied|403|credentials|not allow"),
        (Answer(503), UnreachableError, "503"),
    ],
)
def test_a_refusal_is_raised_and_never_taken_for_absence(
    embedded_registry: EmbeddedRegistry,
    client: RegistryClient,
    answer: Answer,
    error: type[Exception],
    told: str,
) -> None:
    cancel = Cancellation()
    target = RegistryTarget(client, below(ROOT), run=Run(4, cancellation=cancel))
    transfer(make_plan(WANTED, Inventory()), STORE, target)
    for path in ("/tags/list", "/manifests/", "/blobs/"):
        embedded_registry.faults.add(Fault(answer, path=path, nth=2, times=None))
        with pytest.raises(error, match=told):
            target.held(WANTED)
        embedded_registry.faults.clear()
        assert not cancel.requested  # the caller did not ask to stop, and may try again
    assert target.held(WANTED) == WANTED


def test_a_cancelled_comparison_asks_no_more(
    embedded_registry: EmbeddedRegistry, client: RegistryClient
) -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(CancelledError, match="stopped on request"):
        RegistryTarget(client, below(ROOT), run=Run(cancellation=cancel)).held(WANTED)
    assert len(embedded_registry.requests) == 0


# -- as a source -----------------------------------------------------------------------------------


def test_a_manifest_is_asked_for_once(
    embedded_registry: EmbeddedRegistry, client: RegistryClient, target: RegistryTarget
) -> None:
    source = RegistrySource(client, below(ROOT))
    assert source.name == f"registry {embedded_registry.address}"
    by_tag = source.fetch("", "v1.1.0")
    assert by_tag.digest == WANTED.repository("").tags["v1.1.0"]
    assert source.manifest("", by_tag.digest) is by_tag
    assert source.fetch("", "latest") is by_tag
    assert embedded_registry.requests.count("GET", "/manifests/") == 2
    with pytest.raises(NotFoundError, match="v9"):
        source.fetch("", "v9")


def test_a_blob_is_read_from_any_offset(client: RegistryClient, target: RegistryTarget) -> None:
    source = RegistrySource(client, below(ROOT))
    digest = Digest.of(b"component")
    for offset in (0, 1, 8, 9):
        assert b"".join(source.blob("", digest, 9, offset)) == b"component"[offset:]
    with pytest.raises(NotFoundError, match=f"{ROOT}/install"):
        b"".join(source.blob("install", digest, 9))


def test_a_tag_of_an_image_by_sha512_is_told_by_its_bytes(
    embedded_registry: EmbeddedRegistry,
) -> None:
    """The registry names what a tag names by SHA-256, whatever digest it was put under."""
    store = MemoryStore()
    image = put_image_by_sha512(store, "modules/console", "v1")
    wanted = store.inventory()
    with client_of(embedded_registry) as client:
        place = tree_of(client).target()
        transfer(make_plan(wanted, place.held(wanted)), store, place)
        told = client.resolve("dkp/ee/modules/console", "v1")
        assert told is not None
        assert told.digest.algorithm == "sha256"
        held = place.held(wanted)
        assert held == wanted
        assert not make_plan(wanted, held)
        found = walk(tree_of(client).source(), ["modules/console"], known=wanted)
        assert found.held.repository("modules/console").tags == {"v1": image}
        other = put_image_by_sha512(store, "modules/console", "v1", note=7)
        (stage,) = make_plan(store.inventory(), place.held(store.inventory())).tags
        assert [step.digest for step in stage] == [other]
