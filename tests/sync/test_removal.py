"""Deletions as decisions: laws of the plan, and what a registry is asked to do."""

from __future__ import annotations

from hypothesis import given

from mirror.sync import Inventory
from mirror.sync.inventory import RepositoryContent
from mirror.sync.removal import DropManifest, DropTag, plan_removal
from tests.support.inventories import fake_blob, fake_manifest, inventories


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
