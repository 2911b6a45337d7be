from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DamagedBundleError, InputError, InvalidManifestError
from mirror.oci import Digest
from mirror.sync import Gap, Inventory, InventoryBuilder, union
from mirror.sync.inventory import SCHEMA_VERSION, canonical_json
from tests.support.inventories import (
    fake_blob,
    fake_manifest,
    inventories,
    items,
    sample_store,
    with_only,
    without,
)

# -- the canonical form ----------------------------------------------------------------------------


@given(inventories())
def test_an_inventory_survives_its_serialisation(inventory: Inventory) -> None:
    read = Inventory.from_document(json.loads(inventory.to_json()))
    assert read == inventory
    assert read.to_json() == inventory.to_json()


@given(inventories(), inventories())
def test_digests_are_equal_if_and_only_if_the_content_is(one: Inventory, other: Inventory) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(inventories(), st.randoms(use_true_random=False))
def test_the_order_of_discovery_changes_nothing(inventory: Inventory, random: Random) -> None:
    shuffled = items(inventory)
    random.shuffle(shuffled)
    again = with_only(inventory, shuffled)
    assert again == inventory
    assert again.to_json() == inventory.to_json()
    assert list(again.gaps()) == list(inventory.gaps())


@given(inventories(), st.data())
def test_one_thing_less_is_another_digest(inventory: Inventory, data: st.DataObject) -> None:
    everything = items(inventory)
    if everything:
        lost = data.draw(st.sampled_from(everything))
        assert without(inventory, lost).digest() != inventory.digest()


@given(inventories())
def test_what_is_made_in_pieces_is_the_canonical_form_of_the_whole(inventory: Inventory) -> None:
    assert inventory.to_json() == canonical_json(inventory.to_document())
    assert inventory.digest() == Digest.of(inventory.to_json())


def test_the_canonical_form_is_sorted_and_has_no_white_space() -> None:
    text = sample_store().inventory().to_json().decode()
    document = json.loads(text)
    assert document["schemaVersion"] == SCHEMA_VERSION
    assert list(document) == ["manifests", "repositories", "schemaVersion"]
    assert list(document["repositories"]) == sorted(document["repositories"])
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":"))


def test_empty_repositories_do_not_count() -> None:
    builder = InventoryBuilder()
    builder.add_inventory(Inventory({"empty": Inventory().repository("empty")}))
    assert builder.build() == Inventory()
    assert Inventory({"empty": Inventory().repository("")}).digest() == Inventory().digest()


# -- gaps ------------------------------------------------------------------------------------------


@given(inventories())
def test_a_closed_inventory_has_no_gaps(inventory: Inventory) -> None:
    assert list(inventory.gaps()) == []


@given(inventories(), st.data())
def test_whatever_is_lost_is_a_gap_and_nothing_else_is(
    inventory: Inventory, data: st.DataObject
) -> None:
    everything = items(inventory)
    lost = data.draw(st.lists(st.sampled_from(everything), unique=True)) if everything else []
    rest = without(inventory, *lost)
    expected = set()
    for path, content in rest.repositories.items():
        gone = {item.key for item in lost if item.repository == path and item.kind != "tag"}
        for tag, digest in content.tags.items():
            if digest in gone and digest not in content.manifests:
                expected.add(Gap(path, digest, None, tag))
        for digest, node in content.manifests.items():
            for blob in node.blobs:
                if blob.digest in gone and blob.digest not in content.blobs:
                    expected.add(Gap(path, blob.digest, digest))
            for child in node.children:
                if child.digest in gone and child.digest not in content.manifests:
                    expected.add(Gap(path, child.digest, digest))
    found = list(rest.gaps())
    assert set(found) == expected
    assert len(found) == len(expected)


def test_every_single_thing_that_a_tag_needs_is_missed() -> None:
    whole = sample_store().inventory()
    for item in items(whole):
        if item.kind != "tag":
            missed = {(gap.repository, gap.missing) for gap in without(whole, item).gaps()}
            assert missed == {(item.repository, item.key)}


# -- cost ------------------------------------------------------------------------------------------


def test_the_digest_is_computed_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = sample_store().inventory()
    digest = inventory.digest()
    monkeypatch.delattr(Inventory, "pieces")
    assert inventory.digest() == digest
    assert inventory == sample_store().inventory()  # which knows no digest yet


def test_what_is_read_has_one_object_of_each_digest_and_descriptor() -> None:
    """A document names each blob of an image three times, and each layer of a family often."""
    builder = InventoryBuilder()
    for number in range(3):
        node = fake_manifest([fake_blob(1000)], salt=number)
        builder.add_manifest("a", node)
        builder.add_tag("a", f"v{number}", node.descriptor.digest)
    content = Inventory.from_document(builder.build().to_document()).repository("a")
    [blob] = content.blobs
    assert {id(node.blobs[0].digest) for node in content.manifests.values()} == {id(blob)}
    assert len({id(node.blobs[0]) for node in content.manifests.values()}) == 1
    assert set(map(id, content.tags.values())) == set(map(id, content.manifests))


def test_two_sizes_of_one_blob_are_read_as_they_are_written() -> None:
    one, other = (replace(fake_blob(1), size=size) for size in (1, 2))
    builder = InventoryBuilder()
    for number, blob in enumerate((one, other, one)):
        builder.add_manifest("a", fake_manifest([blob], salt=number), closed=False)
    assert Inventory.from_document(builder.build().to_document()) == builder.build()


def test_an_inventory_that_was_read_takes_few_bytes_for_each_blob() -> None:
    builder = InventoryBuilder()
    for number in range(100):
        blobs = map(fake_blob, range(1000 + 10 * number, 1010 + 10 * number))
        builder.add_manifest("a", fake_manifest(blobs, salt=number))
    document = builder.build().to_document()
    gc.collect()
    tracemalloc.start()
    try:
        read = Inventory.from_document(document)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert read.counts()["blobs"] == 1000
    assert held / 1000 < 300


def test_a_union_shares_what_one_inventory_alone_has() -> None:
    one, other = (sample_store().inventory().filtered(keep) for keep in (bool, lambda p: not p))
    both = union([one, other])
    assert all(both.repository(path) is content for path, content in one.repositories.items())


# -- union -----------------------------------------------------------------------------------------


@given(inventories(), inventories(), inventories())
def test_union_is_associative_and_idempotent_and_has_a_zero(
    a: Inventory, b: Inventory, c: Inventory
) -> None:
    assert union([a, union([b, c])]) == union([union([a, b]), c]) == union([a, b, c])
    assert union([a, a]) == a
    assert union([a, Inventory()]) == union([Inventory(), a]) == a
    assert union([]) == Inventory()


@given(inventories(), inventories())
def test_union_holds_everything_and_the_later_tag_wins(a: Inventory, b: Inventory) -> None:
    both = union([a, b])
    assert set(items(both)) == set(items(a)) | set(items(b))
    for path, content in b.repositories.items():
        for tag, digest in content.tags.items():
            assert both.repository(path).tags[tag] == digest
    assert list(both.gaps()) == []


@given(inventories())
def test_an_inventory_taken_apart_comes_together_again(inventory: Inventory) -> None:
    parts = [inventory.filtered(one.__eq__) for one in inventory.repositories]
    assert union(parts) == inventory


@given(inventories())
def test_sizes_and_manifests_are_counted_once(inventory: Inventory) -> None:
    contents = inventory.repositories.values()
    assert set(inventory.blob_sizes()) == {blob for one in contents for blob in one.blobs}
    assert set(inventory.manifest_nodes()) == {node for one in contents for node in one.manifests}
    assert list(inventory.blob_sizes()) == sorted(inventory.blob_sizes())
    assert list(inventory.manifest_nodes()) == sorted(inventory.manifest_nodes())


# -- documents of others ---------------------------------------------------------------------------

KEYS = [
    "schemaVersion",
    "manifests",
    "repositories",
    "tags",
    "blobs",
    "children",
    "mediaType",
    "size",
    "x",
]
KEYS.append(str(fake_blob(0).digest))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_arbitrary_json_is_an_inventory_or_refused_in_our_words(document: Any) -> None:
    _read_or_refuse(document)


@given(JSON, JSON)
def test_arbitrary_tables_are_an_inventory_or_refused_in_our_words(a: Any, b: Any) -> None:
    _read_or_refuse({"schemaVersion": SCHEMA_VERSION, "manifests": a, "repositories": b})


@given(inventories(), st.data())
def test_an_inventory_with_anything_anywhere_is_read_or_refused(
    inventory: Inventory, data: st.DataObject
) -> None:
    document = json.loads(inventory.to_json())
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = place[key]
    _read_or_refuse(document)


def _read_or_refuse(document: Any) -> None:
    try:
        read = Inventory.from_document(document)
    except (DamagedBundleError, InputError):
        return
    # What is accepted is sound enough to be worked with.
    assert Inventory.from_document(json.loads(read.to_json())) == read
    assert all(size >= 0 for size in read.blob_sizes().values())
    list(read.gaps())


@pytest.mark.parametrize("size", [-1, 1.5, "7", True, None, [], float("inf"), float("nan")])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    blob = str(fake_blob(1).digest)
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "manifests": {},
        "repositories": {"a": {"tags": {}, "manifests": [], "blobs": {blob: size}}},
    }
    with pytest.raises(DamagedBundleError, match="this is not an inventory: "):
        Inventory.from_document(document)


@pytest.mark.parametrize(
    ("path", "tag", "complaint"),
    [
        ("../etc", "v1", "is not a repository path"),
        ("a b", "v1", "is not a repository path"),
        ("\ud800", "v1", "is not a repository path"),
        ("a", "v1/../../x", "is not a tag"),
        ("a", "", "is not a tag"),
    ],
)
def test_names_that_no_registry_takes_are_refused(path: str, tag: str, complaint: str) -> None:
    node = fake_manifest()
    builder = InventoryBuilder()
    builder.add_manifest("a", node)
    document = builder.build().to_document()
    held = document["repositories"].pop("a")
    document["repositories"][path] = {**held, "tags": {tag: str(node.descriptor.digest)}}
    with pytest.raises(DamagedBundleError, match=complaint):
        Inventory.from_document(document)


def test_manifests_that_lie_below_themselves_are_refused() -> None:
    """No bytes have such digests, and whoever walks down from there would never come back."""
    one, other = Digest.of(b"one"), Digest.of(b"other")

    def node(child: Digest) -> dict[str, Any]:
        return {"mediaType": "x", "size": 1, "children": [["x", str(child), 1]]}

    held = {"tags": {}, "blobs": {}, "manifests": [str(one), str(other)]}
    document = {
        "schemaVersion": SCHEMA_VERSION,
        "manifests": {str(one): node(other), str(other): node(one)},
        "repositories": {"a": held},
    }
    with pytest.raises(DamagedBundleError, match="lies below itself"):
        Inventory.from_document(document)


def test_an_inventory_of_a_newer_release_says_so() -> None:
    document = {**Inventory().to_document(), "schemaVersion": SCHEMA_VERSION + 1}
    with pytest.raises(InputError, match=r"schema version 2; .* reads version 1: use a newer one"):
        Inventory.from_document(document)


def test_what_is_missing_in_a_document_is_named() -> None:
    with pytest.raises(DamagedBundleError, match="this is not an inventory: no repositories"):
        Inventory.from_document({"schemaVersion": 1, "manifests": {}})
    manifest = fake_manifest([fake_blob(1)]).descriptor.digest
    held = {"tags": {}, "manifests": [str(manifest)], "blobs": {}}
    with pytest.raises(DamagedBundleError, match=f"no {manifest}"):
        Inventory.from_document({"schemaVersion": 1, "manifests": {}, "repositories": {"a": held}})


def test_a_manifest_that_is_refused_leaves_nothing_behind() -> None:
    blob, other = fake_blob(1), fake_blob(2)
    builder = InventoryBuilder()
    builder.add_manifest("", fake_manifest([blob]))
    before = builder.build()
    liar = fake_manifest([other, replace(blob, size=blob.size + 1)], salt=1)
    with pytest.raises(InvalidManifestError, match="and another manifest that it has"):
        builder.add_manifest("", liar)
    assert builder.build() == before
