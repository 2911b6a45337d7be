from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InputError, StatementError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_EMPTY, OCI_MANIFEST
from mirror.sync import Inventory, InventoryBuilder, union
from mirror.sync.statement import (
    ARTIFACT_TYPE,
    GENERATION,
    INVENTORY,
    LAYER_TYPE,
    MAX_GENERATION,
    MAX_STATEMENT_BYTES,
    REPOSITORY,
    Statement,
    generation_of,
    layer_of,
    make_artifact,
    succeed,
)
from tests.support.inventories import (
    PATHS,
    TAGS,
    fake_blob,
    fake_manifest,
    inventories,
    items,
    put_image,
    sample_store,
    without,
)

EMPTY = Inventory()


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    digests = st.integers(0, 9).map(lambda number: Digest.of(b"%d" % number))
    tags = st.dictionaries(st.sampled_from(TAGS), digests, min_size=1, max_size=2)
    return Statement(
        draw(inventories()),
        draw(st.integers(1, 1 << 40)),
        draw(st.dictionaries(st.sampled_from(PATHS), tags, max_size=2)),
        draw(st.sampled_from([None, 0])),
        draw(st.sampled_from(["", "mirror 1.0"])),
    )


# -- the document ----------------------------------------------------------------------------------


@given(statements())
def test_a_statement_survives_its_serialisation(statement: Statement) -> None:
    read = Statement.from_json(statement.to_json())
    assert read == statement
    assert read.to_json() == statement.to_json()


@given(statements())
def test_equal_statements_are_equal_artifacts_and_carry_themselves(statement: Statement) -> None:
    artifact = statement.artifact()
    again = Statement.from_json(artifact.layer).artifact()
    assert again == artifact
    layer = layer_of(artifact.manifest)
    assert (layer.digest, layer.size) == (Digest.of(artifact.layer), len(artifact.layer))


def test_the_artifact_is_what_the_image_specification_wants_of_one() -> None:
    statement = Statement(sample_store().inventory(), 7, tool="mirror 1.0")
    document = json.loads(statement.artifact().manifest.raw)
    assert document["mediaType"] == OCI_MANIFEST
    assert document["artifactType"] == ARTIFACT_TYPE
    assert document["config"] == {
        "mediaType": OCI_EMPTY,
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    assert [layer["mediaType"] for layer in document["layers"]] == [LAYER_TYPE]
    assert document["annotations"] == {
        GENERATION: "7",
        INVENTORY: str(statement.inventory.digest()),
    }


def test_no_clock_and_no_host_is_in_a_statement() -> None:
    document = json.loads(Statement(EMPTY, 1).to_json())
    assert sorted(document) == ["former", "generation", "inventory", "schemaVersion", "tool"]


def test_another_generation_is_another_artifact_with_the_same_inventory() -> None:
    inventory = sample_store().inventory()
    one, other = Statement(inventory, 1).artifact(), Statement(inventory, 2).artifact()
    assert one.manifest.digest != other.manifest.digest
    assert one.manifest.annotations[INVENTORY] == other.manifest.annotations[INVENTORY]


# -- what is no statement --------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [0, -1])
def test_generations_begin_with_one(generation: int) -> None:
    with pytest.raises(ValueError, match="not positive"):
        Statement(EMPTY, generation)


@pytest.mark.parametrize("generation", [MAX_GENERATION + 1, 10**4000])
def test_generations_that_nobody_reaches_are_refused(generation: int) -> None:
    with pytest.raises(ValueError, match=f"above {MAX_GENERATION}"):
        Statement(EMPTY, generation)


@pytest.mark.parametrize(
    ("annotation", "generation"),
    [
        ("7", 7),
        (str(MAX_GENERATION), MAX_GENERATION),
        *((text, None) for text in ("", "0", "-1", "07", "1e3", "\u0663", "1" * 19, "9" * 5000)),
    ],
)
def test_an_annotation_names_a_generation_or_none(annotation: str, generation: int | None) -> None:
    artifact = make_artifact(ARTIFACT_TYPE, annotations={GENERATION: annotation})
    assert generation_of(artifact.manifest) == generation


def test_only_an_earlier_generation_can_be_restored() -> None:
    assert Statement(EMPTY, 2, restores=0).restores == 0
    for restored in (-1, 2, 3):
        with pytest.raises(ValueError, match="generation 2 cannot restore"):
            Statement(EMPTY, 2, restores=restored)


def test_a_statement_never_promises_what_it_does_not_have() -> None:
    whole = sample_store().inventory()
    blob = next(item for item in items(whole) if item.kind == "blob")
    with pytest.raises(ValueError, match="and lacks it"):
        Statement(without(whole, blob), 1)


def test_a_statement_does_not_speak_of_statements() -> None:
    store = sample_store()
    put_image(store, REPOSITORY, "latest")
    with pytest.raises(ValueError, match="where statements lie"):
        Statement(store.inventory(), 1)
    with pytest.raises(ValueError, match="where statements lie"):
        Statement(EMPTY, 1, {REPOSITORY: {"latest": Digest.of(b"")}})


def changed(**values: Any) -> bytes:
    document = json.loads(Statement(sample_store().inventory(), 3).to_json())
    return json.dumps({**document, **values}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"{}",
        b"[" * 100_000,
        changed(generation=0),
        changed(generation="3"),
        changed(generation=True),
        changed(generation=1.5),
        changed(tool=None),
        changed(restores=None),
        changed(restores=3),
        changed(former=[]),
        changed(former={"UPPER": {}}),
        changed(former={"a": {"v1": "sha256:0"}}),
        changed(former={"a": {"v 1": str(Digest.of(b""))}}),
        changed(former={REPOSITORY: {"latest": str(Digest.of(b""))}}),
        changed(inventory={}),
        changed(inventory={"schemaVersion": 1, "manifests": {}, "repositories": {"../x": {}}}),
    ],
)
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(StatementError, match="it is not a published inventory"):
        Statement.from_json(data)


def test_a_statement_of_more_values_than_any_has_is_refused_before_it_is_parsed() -> None:
    nothings = b'{"schemaVersion":2,"former":[' + b",".join([b"{}"] * 5_000_000) + b"]}"
    with (
        mock.patch("mirror.sync.statement.open_json", side_effect=AssertionError("parsed")),
        pytest.raises(StatementError, match="more than 10000000 values"),
    ):
        Statement.from_json(nothings)


def test_a_statement_of_a_newer_schema_asks_for_a_newer_release() -> None:
    with pytest.raises(InputError, match="schema version 2; this release of mirror reads"):
        Statement.from_json(changed(schemaVersion=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"artifactType": "application/vnd.other"}, "artifact type is application/vnd.other"),
        ({"layers": []}, "it needs one layer, of"),
        (
            {
                "layers": [
                    {
                        "mediaType": LAYER_TYPE,
                        "digest": str(Digest.of(b"")),
                        "size": MAX_STATEMENT_BYTES + 1,
                    }
                ]
            },
            f"has {MAX_STATEMENT_BYTES + 1} bytes; at most",
        ),
    ],
)
def test_a_manifest_of_something_else_is_refused_before_its_content_is_read(
    changes: dict[str, Any], message: str
) -> None:
    document = json.loads(Statement(EMPTY, 1).artifact().manifest.raw)
    with pytest.raises(StatementError, match=message):
        layer_of(Manifest.parse(json.dumps({**document, **changes}).encode()))


# -- succession ------------------------------------------------------------------------------------


@given(inventories(), inventories())
def test_all_that_was_pushed_is_there_and_its_tags_win(old: Inventory, new: Inventory) -> None:
    both = succeed(old, new)
    for path, content in new.repositories.items():
        there = both.repository(path)
        assert content.tags.items() <= there.tags.items()
        assert content.manifests.items() <= there.manifests.items()
        assert content.blobs.items() <= there.blobs.items()
    everything = union([old, new])
    for path, content in everything.repositories.items():
        assert both.repository(path).tags == content.tags


@given(inventories(), inventories())
def test_what_was_closed_stays_closed(old: Inventory, new: Inventory) -> None:
    assert list(succeed(old, new).gaps()) == []


@given(inventories(), inventories())
def test_nothing_leaves_but_what_only_overridden_tags_led_to(
    old: Inventory, new: Inventory
) -> None:
    both, everything = succeed(old, new), union([old, new])
    for path, content in everything.repositories.items():
        before, after = old.repository(path), both.repository(path)
        left = content.manifests.keys() - after.manifests.keys()
        assert not left & content.reachable(after.tags.values())
        moved = [d for tag, d in before.tags.items() if after.tags[tag] != d]
        assert left <= before.reachable(moved)
        needed = {blob.digest for node in after.manifests.values() for blob in node.blobs}
        assert not (content.blobs.keys() - after.blobs.keys()) & needed


@given(inventories(), inventories())
def test_the_same_push_again_changes_nothing(old: Inventory, new: Inventory) -> None:
    once = succeed(old, new)
    assert succeed(once, new) == once


@given(inventories())
def test_nothing_succeeds_by_nothing(inventory: Inventory) -> None:
    assert succeed(inventory, EMPTY) == inventory
    assert succeed(EMPTY, inventory) == inventory
    assert succeed(inventory, inventory) == inventory


def test_an_overridden_image_leaves_and_what_it_shared_stays() -> None:
    shared, own, new = map(fake_blob, (1, 2, 3))
    first, second = fake_manifest([shared, own]), fake_manifest([shared, new])
    untagged = fake_manifest([fake_blob(4)], salt=9)
    before, pushed = InventoryBuilder(), InventoryBuilder()
    before.add_manifest("install", first)
    before.add_manifest("install", untagged)
    before.add_tag("install", "stable", first.descriptor.digest)
    pushed.add_manifest("install", second)
    pushed.add_tag("install", "stable", second.descriptor.digest)
    content = succeed(before.build(), pushed.build()).repository("install")
    assert set(content.manifests) == {second.descriptor.digest, untagged.descriptor.digest}
    assert set(content.blobs) == {shared.digest, new.digest, fake_blob(4).digest}


def test_an_image_that_another_tag_names_stays() -> None:
    first, second = fake_manifest([fake_blob(1)]), fake_manifest([fake_blob(2)])
    before, pushed = InventoryBuilder(), InventoryBuilder()
    before.add_manifest("install", first)
    for tag in ("v1.0.0", "stable"):
        before.add_tag("install", tag, first.descriptor.digest)
    pushed.add_manifest("install", second)
    pushed.add_tag("install", "stable", second.descriptor.digest)
    content = succeed(before.build(), pushed.build()).repository("install")
    assert set(content.manifests) == {first.descriptor.digest, second.descriptor.digest}
