from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InvalidManifestError, NotFoundError
from mirror.oci import Descriptor, Digest
from mirror.oci.manifest import OCI_LAYER_GZIP
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.observation import Item, complete_subset
from tests.support.inventories import (
    fake_blob,
    fake_manifest,
    inventories,
    items,
    with_only,
)


@given(inventory=inventories())
def test_what_is_closed_stays_as_it_is_but_for_blobs_that_nothing_needs(
    inventory: Inventory,
) -> None:
    found, lost = complete_subset(inventory)
    assert lost == {}
    assert list(found.gaps()) == []
    for path, content in inventory.repositories.items():
        there = found.repository(path)
        assert (there.tags, there.manifests) == (content.tags, content.manifests)
        assert there.blobs == {
            blob.digest: blob.size for node in content.manifests.values() for blob in node.blobs
        }


@given(data=st.data(), inventory=inventories())
def test_of_what_is_open_exactly_that_stays_which_reaches_nothing_that_lacks(
    data: st.DataObject, inventory: Inventory
) -> None:
    whole = [one for one in items(inventory) if one.kind != "blob"]
    kept = data.draw(st.lists(st.sampled_from(whole), unique=True)) if whole else []
    opened = with_only(inventory, kept)
    found, lost = complete_subset(opened)
    assert list(found.gaps()) == []
    assert complete_subset(found) == (found, {})
    for path, content in opened.repositories.items():
        below = {
            digest: {child.digest for child in node.children}
            for digest, node in content.manifests.items()
        }
        # The slow and obvious way: take out what reaches something absent until nothing does.
        left = set(below)
        while broken := {digest for digest in left if not below[digest] <= left}:
            left -= broken
        assert set(found.repository(path).manifests) == left
        assert found.repository(path).tags == {
            tag: digest for tag, digest in content.tags.items() if digest in left
        }
        promised = {*content.tags.values(), *(one for below_ in below.values() for one in below_)}
        absent = promised - set(below)
        assert {item.digest for item in lost if item.repository == path} == absent
    assert all(isinstance(error, NotFoundError) for error in lost.values())


def test_manifests_that_disagree_about_the_size_of_a_blob_are_not_both_whole() -> None:
    blob = fake_blob(1)
    longer = Descriptor(OCI_LAYER_GZIP, blob.digest, blob.size + 1)
    made = [fake_manifest([one], salt=at) for at, one in enumerate((blob, longer))]
    nodes = sorted(made, key=lambda node: node.descriptor.digest)
    above = fake_manifest((), nodes)
    builder = InventoryBuilder()
    for node in (*nodes, above):
        builder.add_manifest("install", node, closed=False)
    for tag, node in zip(("first", "second", "both"), (*nodes, above), strict=True):
        builder.add_tag("install", tag, node.descriptor.digest)
    found, lost = complete_subset(builder.build())
    assert set(found.repository("install").tags) == {"first"}
    ((item, error),) = lost.items()
    assert item == Item("install", nodes[1].descriptor.digest)
    assert isinstance(error, InvalidManifestError)
    assert f"says that blob {blob.digest} has" in str(error)


def disagreeing(sizes: list[int]) -> tuple[InventoryBuilder, list[ManifestNode]]:
    """Manifests of one repository, by digest, that give these sizes for one blob."""
    blob = fake_blob(1)
    nodes = sorted(
        (fake_manifest([blob], salt=number) for number in range(len(sizes))),
        key=lambda node: node.descriptor.digest,
    )
    builder = InventoryBuilder()
    made = []
    for node, size in zip(nodes, sizes, strict=True):
        said = replace(node, blobs=(replace(blob, size=size),))
        builder.add_manifest("install", said, closed=False)
        made.append(said)
    return builder, made


@pytest.mark.parametrize("liar", range(4))
def test_one_manifest_that_lies_about_a_size_takes_no_honest_one_with_it(liar: int) -> None:
    size = fake_blob(1).size
    builder, nodes = disagreeing([size + (at == liar) for at in range(4)])
    found, lost = complete_subset(builder.build())
    honest = {node.descriptor.digest for at, node in enumerate(nodes) if at != liar}
    assert set(found.repository("install").manifests) == honest
    assert found.repository("install").blobs == {fake_blob(1).digest: size}
    assert set(lost) == {Item("install", nodes[liar].descriptor.digest)}


def test_a_size_that_was_seen_decides_between_manifests_that_disagree() -> None:
    size = fake_blob(1).size
    builder, nodes = disagreeing([size + 1, size + 1, size])
    builder.add_blob("install", fake_blob(1).digest, size)
    found, lost = complete_subset(builder.build())
    assert set(found.repository("install").manifests) == {nodes[2].descriptor.digest}
    assert len(lost) == 2


def test_the_reason_names_what_leads_to_what_is_not_there() -> None:
    builder = InventoryBuilder()
    gone = Digest.of(b"gone")
    builder.add_tag("", "v1", gone)
    _, lost = complete_subset(builder.build())
    assert str(lost[Item("", gone)]) == (
        "it is not there, though tag v1 of the root repository names it; "
        "push again what it belongs to"
    )
