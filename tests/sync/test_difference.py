"""What differs between two inventories."""

from __future__ import annotations

from hypothesis import given

from mirror.sync import Inventory, InventoryBuilder, make_plan, union
from mirror.sync.plan import differ, missing_content
from tests.support.inventories import fake_blob, fake_manifest, inventories, sample_store


@given(one=inventories(), other=inventories())
def test_a_difference_is_empty_where_tags_manifests_and_blobs_are_the_same(
    one: Inventory, other: Inventory
) -> None:
    assert not differ(one, one)
    found = differ(one, other)
    same_blobs = set(one.blob_sizes()) == set(other.blob_sizes())
    same = same_blobs and all(
        one.repository(path).tags == other.repository(path).tags
        and one.repository(path).manifests.keys() == other.repository(path).manifests.keys()
        for path in {*one.repositories, *other.repositories}
    )
    assert bool(found) is not same


@given(one=inventories(), other=inventories())
def test_a_difference_seen_from_the_other_side_is_its_mirror_image(
    one: Inventory, other: Inventory
) -> None:
    found, back = differ(one, other), differ(other, one)
    assert [(t.repository, t.tag, t.ours, t.theirs) for t in found.tags] == [
        (t.repository, t.tag, t.theirs, t.ours) for t in back.tags
    ]
    assert (found.our_manifests, found.only_ours) == (back.their_manifests, back.only_theirs)


@given(wanted=inventories(), held=inventories())
def test_what_is_lacking_together_with_what_is_held_is_all_that_is_wanted(
    wanted: Inventory, held: Inventory
) -> None:
    rest = missing_content(wanted, held)
    assert not make_plan(wanted, union([held, rest]))
    assert missing_content(wanted, wanted) == Inventory()
    assert not missing_content(rest, rest).repositories


def test_sizes_are_those_of_all_that_a_tag_reaches() -> None:
    inventory = sample_store().inventory()
    found = differ(inventory, Inventory())
    sizes = {(one.repository, one.tag): one.our_size for one in found.tags}
    content = inventory.repository("security/trivy-db")
    (node,) = content.manifests.values()
    assert sizes["security/trivy-db", "2"] == node.descriptor.size + sum(content.blobs.values())
    assert found.only_ours == sum(inventory.blob_sizes().values())
    assert found.to_document()["tags"][0]["b"] is None


def test_manifests_that_no_differing_tag_leads_to_are_told_by_digest() -> None:
    builder = InventoryBuilder()
    lonely = fake_manifest([fake_blob(1)])
    builder.add_manifest("install", lonely)
    found = differ(builder.build(), Inventory())
    assert found.our_manifests == (("install", lonely.descriptor.digest),)
    assert found.tags == ()
