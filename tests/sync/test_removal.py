"""Deletions as decisions: laws of the plan, and what a registry is asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from mirror.errors import RegistryNotFoundError
from mirror.events import Event, Warned
from mirror.registry import ConnectionOptions, RegistryClient, RegistryWriter, RetryPolicy
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, PutTag, make_plan, transfer
from mirror.sync.inventory import RepositoryContent
from mirror.sync.publication import announce
from mirror.sync.publication_state import read_state
from mirror.sync.removal import (
    DropManifest,
    DropTag,
    Removal,
    deletes_tags,
    plan_removal,
    remove,
    remove_tags,
)
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.tree import RegistryTree
from mirror.testing import Answer, EmbeddedRegistry, Fault, LoseAnswer
from tests.conftest import MakeRealRegistry
from tests.support.inventories import fake_blob, fake_manifest, inventories, put_image, put_index
from tests.support.places import client_of, tree_of
from tests.support.registries import CRANE


def _everywhere(*places: Inventory) -> frozenset[str]:
    return frozenset(path for place in places for path in place.repositories)


@given(there=inventories(), keep=inventories())
def test_nothing_that_is_kept_goes_and_nothing_it_needs(there: Inventory, keep: Inventory) -> None:
    removal = plan_removal(there, keep, _everywhere(there, keep))
    for tag in removal.tags:
        assert tag.tag not in keep.repository(tag.repository).tags
    gone = {(one.repository, one.digest) for one in removal.manifests}
    for path, content in keep.repositories.items():
        held = there.repository(path)
        pending = [
            *content.manifests,
            *(held.tags[tag] for tag in content.tags if tag in held.tags),
        ]
        for digest in pending:
            assert (path, digest) not in gone
            node = held.manifests.get(digest)
            if node is not None:
                pending.extend(child.digest for child in node.children)


@given(there=inventories(), keep=inventories())
def test_all_tags_that_nobody_keeps_go(there: Inventory, keep: Inventory) -> None:
    removal = plan_removal(there, keep, _everywhere(there, keep))
    going = {(one.repository, one.tag) for one in removal.tags}
    going |= {(one.repository, tag) for one in removal.manifests for tag in one.tags}
    extra = {
        (path, tag)
        for path, content in there.repositories.items()
        for tag in content.tags
        if tag not in keep.repository(path).tags
    }
    assert going == extra
    assert removal.tag_count == len(extra)


@given(there=inventories(), keep=inventories())
def test_an_index_goes_before_what_is_in_it(there: Inventory, keep: Inventory) -> None:
    removal = plan_removal(there, keep, _everywhere(there, keep))
    order = {(one.repository, one.digest): n for n, one in enumerate(removal.manifests)}
    for (path, digest), number in order.items():
        node = there.repository(path).manifests.get(digest)
        for child in node.children if node else ():
            below = order.get((path, child.digest))
            assert below is None or below > number


@given(there=inventories())
def test_nothing_goes_where_everything_is_kept_or_out_of_scope(there: Inventory) -> None:
    assert not plan_removal(there, there, _everywhere(there))
    assert not plan_removal(there, Inventory(), frozenset())


def test_a_tag_goes_alone_where_its_manifest_is_needed_by_another_tag_or_an_index() -> None:
    image, child = fake_manifest([fake_blob(1)]), fake_manifest([fake_blob(2)])
    index = fake_manifest(children=[child])
    digests = {node.descriptor.digest: node for node in (image, child, index)}
    one, inner, outer = (node.descriptor.digest for node in (image, child, index))
    there = Inventory(
        {"x": RepositoryContent({"a": one, "b": one, "i": outer, "c": inner}, digests)}
    )
    keep = Inventory({"x": RepositoryContent({"a": one, "i": outer}, digests)})
    removal = plan_removal(there, keep, {"x"})
    assert removal.tags == (DropTag("x", "b", one), DropTag("x", "c", inner))
    assert removal.manifests == ()


def test_a_manifest_goes_with_all_tags_that_name_it() -> None:
    image = fake_manifest([fake_blob(1)])
    digest = image.descriptor.digest
    there = Inventory({"x": RepositoryContent({"b": digest, "a": digest}, {digest: image})})
    removal = plan_removal(there, Inventory(), {"x"})
    assert removal.manifests == (DropManifest("x", digest, ("a", "b")),)


def _filled(client: RegistryWriter, *tags: str) -> tuple[RegistryTree, DropManifest]:
    """A registry with one image of those tags; and what removes all of it."""
    store, tree = MemoryStore(), tree_of(client)
    digest = put_image(store, "modules", *tags)
    transfer(make_plan(store.inventory(), Inventory()), store, tree.target())
    return tree, DropManifest("modules", digest, tags)


def test_many_tags_of_one_image_go_at_once_and_the_image_stays(
    make_real_registry: MakeRealRegistry,
) -> None:
    """Distribution fails on a tag that is being written while it deletes a manifest beside it."""
    registry = make_real_registry()
    tags = [f"v1.0.{number}" for number in range(40)]
    options = ConnectionOptions(plain_http=True, retries=RetryPolicy(attempts=1))
    with RegistryClient(registry.address, options=options) as client:
        tree, image = _filled(client, *tags)
        drops = tuple(DropTag("modules", tag, image.digest) for tag in tags[1:])
        assert remove(Removal(tags=drops), tree, run=Run(jobs=8)) == ()
        assert tree.listed_tags("modules") == {tags[0]}
        left = client.resolve("dkp/ee/modules", tags[0])
        assert left is not None
        assert left.digest == image.digest


def test_tags_that_a_registry_forgot_to_delete_with_their_manifest_go_as_well(
    make_real_registry: MakeRealRegistry,
) -> None:
    registry = make_real_registry()
    with RegistryClient(registry.address, options=ConnectionOptions(plain_http=True)) as client:
        tree, image = _filled(client, "v1.0.0", "latest")
        # As a request leaves it that fails between the two: the manifest first, then its tags.
        revisions = registry.root / "docker/registry/v2/repositories/dkp/ee/modules/_manifests"
        (revisions / f"revisions/sha256/{image.digest.encoded}/link").unlink()
        assert tree.listed_tags("modules") == {"v1.0.0", "latest"}
        assert remove(Removal(manifests=(image,)), tree, run=Run()) == ()
        assert tree.listed_tags("modules") == set()


def test_a_registry_that_deletes_no_manifest_that_a_tag_names_is_asked_for_the_tags_first(
    embedded_registry: EmbeddedRegistry,
) -> None:
    """As Google's: Container Registry and Artifact Registry."""
    dangling = b'{"errors":[{"code":"GOOGLE_MANIFEST_DANGLING_TAG","message":"still referenced"}]}'
    with client_of(embedded_registry) as client:
        tree, image = _filled(client, "v1.0.0", "latest")
        refusal = Fault(Answer(400, body=dangling), "DELETE", "/modules/manifests/sha256:")
        embedded_registry.faults.add(refusal)
        assert remove(Removal(manifests=(image,)), tree, run=Run()) == ()
        assert tree.listed_tags("modules") == set()
        assert client.resolve("dkp/ee/modules", image.digest) is None


def test_a_manifest_that_a_registry_refuses_to_delete_is_a_failure_that_names_its_tags(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        tree, image = _filled(client, "v1.0.0")
        refusal = Fault(Answer(409), "DELETE", "/modules/manifests/sha256:", times=None)
        embedded_registry.faults.add(refusal)
        (failure,) = remove(Removal(manifests=(image,)), tree, run=Run())
        assert failure.item == f"manifest modules@{image.digest} (v1.0.0)"
        assert "HTTP 409" in str(failure.error)


@pytest.mark.parametrize("status", [404, 409, 416])
def test_what_an_index_holds_stays_where_the_index_is_not_deleted(
    embedded_registry: EmbeddedRegistry, status: int
) -> None:
    with client_of(embedded_registry) as client:
        store, tree = MemoryStore(), tree_of(client)
        child = put_image(store, "modules")
        index = put_index(store, "modules", "v1.0.0", children=[child])
        transfer(make_plan(store.inventory(), Inventory()), store, tree.target())
        removal = plan_removal(store.inventory(), Inventory(), {"modules"})
        assert [one.digest for one in removal.manifests] == [index, child]
        refusal = Fault(Answer(status), "DELETE", f"/modules/manifests/{index}", times=None)
        embedded_registry.faults.add(refusal)
        (failure,) = remove(removal, tree, run=Run())
        assert failure.item == f"manifest modules@{index} (v1.0.0)"
        assert client.resolve("dkp/ee/modules", child) is not None
        embedded_registry.faults.clear()
        assert remove(removal, tree, run=Run()) == ()
        assert client.resolve("dkp/ee/modules", child) is None


def test_tags_that_stay_when_their_manifest_is_deleted_are_deleted_by_themselves(
    tmp_path: Path,
) -> None:
    """As in crane's registry, which goes on serving the manifest under them."""
    options = ConnectionOptions(plain_http=True)
    with CRANE.start(tmp_path / "crane") as address, RegistryClient(address, options=options) as c:
        tree, image = _filled(c, "v1.0.0", "latest")
        assert remove(Removal(manifests=(image,)), tree, run=Run()) == ()
        assert tree.listed_tags("modules") == set()


def _without_tag_deletion(registry: EmbeddedRegistry) -> None:
    """Let it be like distribution 2.8, which deletes by digest alone."""
    refusal = Answer(405, body=b'{"errors":[{"code":"UNSUPPORTED"}]}')
    registry.faults.add(Fault(refusal, "DELETE", r"/manifests/(?!sha256:)", times=None))


def test_a_tag_is_gone_though_the_answer_that_said_so_was_lost(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry, attempts=2) as client:
        tree, image = _filled(client, "v1.0.0", "latest")
        _without_tag_deletion(embedded_registry)
        lost = Fault(LoseAnswer(), "DELETE", "/modules/manifests/sha256:")
        embedded_registry.faults.add(lost)
        assert (
            remove(Removal(tags=(DropTag("modules", "latest", image.digest),)), tree, run=Run())
            == ()
        )
        assert tree.listed_tags("modules") == {"v1.0.0"}


def test_a_tag_that_stays_whatever_is_tried_is_a_failure_that_names_it(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        tree, image = _filled(client, "v1.0.0", "latest")
        _without_tag_deletion(embedded_registry)
        gone = Fault(Answer(404), "DELETE", "/modules/manifests/sha256:", times=None)
        embedded_registry.faults.add(gone)
        removal = Removal(tags=(DropTag("modules", "latest", image.digest),), manifests=(image,))
        (failure,) = remove(removal, tree, run=Run())
        assert failure.item == "tag modules:latest"
        assert isinstance(failure.error, RegistryNotFoundError)
        found = client.resolve("dkp/ee/modules", "v1.0.0")
        assert found is not None, "no manifest is begun where a tag is left"
        assert found.digest == image.digest


def test_a_tag_that_somebody_set_to_something_else_meanwhile_stays_and_is_told_of(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        tree, image = _filled(client, "v1.0.0", "latest")
        _without_tag_deletion(embedded_registry)
        drop = DropTag("modules", "latest", fake_manifest().descriptor.digest)
        (failure,) = remove(Removal(tags=(drop,)), tree, run=Run())
        assert failure.item == "tag modules:latest"
        assert "somebody changed it meanwhile, so it stays" in str(failure.error)
        found = client.resolve("dkp/ee/modules", "latest")
        assert found is not None
        assert found.digest == image.digest


# -- tags alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("delete", [True, False])
def test_a_registry_that_deletes_no_tags_is_found_out_and_left_as_it_was(
    make_real_registry: MakeRealRegistry, delete: bool
) -> None:
    registry = make_real_registry(delete=delete)
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(registry.address, options=options) as client:
        announce(tree_of(client), Statement(Inventory(), 1).artifact())
        before = read_state(tree_of(client))
        assert not deletes_tags(tree_of(client), "generation-1")
        assert read_state(tree_of(client)) == before


def test_a_registry_that_deletes_tags_alone_is_known_by_a_trial_that_leaves_nothing(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        announce(tree_of(client), Statement(Inventory(), 1).artifact())
        assert deletes_tags(tree_of(client), "generation-1")
        assert client.tags(tree_of(client).locate(REPOSITORY)) == ["pending"]


def test_a_trial_whose_answer_was_lost_says_what_it_did_all_the_same(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry, attempts=2) as client:
        announce(tree_of(client), Statement(Inventory(), 1).artifact())
        embedded_registry.faults.add(Fault(LoseAnswer(), "DELETE", "/manifests/generation-1"))
        assert deletes_tags(tree_of(client), "generation-1")


def test_a_registry_that_deletes_the_manifest_with_its_tag_is_found_out(
    embedded_registry: EmbeddedRegistry,
) -> None:
    """Its answers are those of one that has lost the manifest."""
    with client_of(embedded_registry) as client:
        announce(tree_of(client), Statement(Inventory(), 1).artifact())
        embedded_registry.faults.add(Fault(Answer(404), "HEAD", "/manifests/sha256:", times=None))
        embedded_registry.faults.add(Fault(Answer(404), "GET", "/manifests/sha256:", times=None))
        assert not deletes_tags(tree_of(client), "generation-1")


def test_what_leads_somewhere_goes_before_what_it_leads_to_and_failures_are_told(
    embedded_registry: EmbeddedRegistry,
) -> None:
    store = MemoryStore()
    digest = put_image(store, "release-channel", "v1.0.0", "stable", "kept")
    wanted, events = store.inventory(), list[Event]()
    with client_of(embedded_registry) as client:
        tree = tree_of(client)
        transfer(make_plan(wanted, Inventory()), store, tree.target())
        tags = [PutTag("release-channel", tag, digest) for tag in ("v1.0.0", "stable", "gone")]
        embedded_registry.faults.add(Fault(Answer(400), "DELETE", "/manifests/v1.0.0"))
        embedded_registry.requests.clear()
        removed = remove_tags(
            tree,
            tags,
            stage=lambda _, tag: 1 if tag == "stable" else 0,
            run=Run(on_event=events.append),
        )
        assert removed == (("release-channel", "gone"), ("release-channel", "stable"))
        assert sorted(client.tags("dkp/ee/release-channel")) == ["kept", "v1.0.0"]
        assert client.resolve("dkp/ee/release-channel", digest) is not None
    (warning,) = events
    assert isinstance(warning, Warned)
    assert "tag release-channel:v1.0.0 could not be removed" in warning.message
    deleted = [one.path for one in embedded_registry.requests if one.method == "DELETE"]
    assert deleted[0].endswith("/stable")
