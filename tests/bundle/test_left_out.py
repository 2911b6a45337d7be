from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.archive import (
    COMPLETE,
    Coverage,
    against,
    left_out,
    missing_findings,
    needed_from,
)
from mirror.bundle.seal import Seal, lay_out_all
from mirror.errors import DamagedBundleError
from mirror.oci import Digest
from mirror.sync import Inventory, InventoryBuilder, RepositoryContent, make_plan, union
from tests.bundle.test_seal import resealed
from tests.support.bundles import archives_of, origins
from tests.support.inventories import (
    add_closed,
    fake_blob,
    fake_manifest,
    inventories,
    items,
    with_only,
)


@st.composite
def bases(draw: st.DrawFn) -> tuple[Inventory, Inventory]:
    """What is selected, and a base that holds some of it, perhaps elsewhere, and other things."""
    wanted, other = draw(inventories()), draw(inventories())
    known = items(union([other, wanted]))
    kept = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    if draw(st.booleans()):
        kept = [item for item in known if item not in kept]
    return wanted, with_only(union([other, wanted]), kept)


def parts_of(wanted: Inventory) -> dict[str, Inventory]:
    """What travels in which archive; one repository is described twice, as packages are."""
    parts = {archive.name: archive.inventory for archive in archives_of(wanted)}
    described = wanted.filtered(lambda path: path.endswith("/version"))
    return {**parts, "package-versions.tar": described} if described.repositories else parts


def sealed(wanted: Inventory, coverage: Coverage) -> Seal:
    parts = parts_of(wanted)
    named = {name: origins(part) for name, part in parts.items()}
    return Seal.over(lay_out_all(parts, named, coverage), {}, "mirror 0.test", None, coverage)


def pieces(inventory: Inventory) -> set[tuple[str, str, Digest]]:
    """(repository, kind, digest) of all manifests and blobs."""
    return {
        *((p, "manifest", d) for p, c in inventory.repositories.items() for d in c.manifests),
        *((p, "blob", d) for p, c in inventory.repositories.items() for d in c.blobs),
    }


# -- laws ------------------------------------------------------------------------------------------


@given(bases(), st.booleans())
def test_what_a_delta_needs_and_what_it_carries_are_all_that_is_wanted(
    case: tuple[Inventory, Inventory], once: bool
) -> None:
    wanted, base = case
    seal = sealed(wanted, against(base, wanted, once=once))
    needed, carried = pieces(seal.coverage.needed), pieces(seal.carried)
    anywhere = {digest for _, kind, digest in needed | carried if kind == "blob"}
    for path, kind, digest in pieces(wanted):
        if kind == "manifest":
            assert (path, kind, digest) in needed | carried
        else:
            assert digest in anywhere
    assert carried <= pieces(wanted)
    assert seal.inventory == wanted


@given(bases(), st.booleans())
def test_nothing_is_carried_that_the_base_holds(
    case: tuple[Inventory, Inventory], once: bool
) -> None:
    wanted, base = case
    carried = sealed(wanted, against(base, wanted, once=once)).carried
    held = base.blob_sizes()
    assert not carried.blob_sizes().keys() & held.keys()
    for path, content in carried.repositories.items():
        assert not content.manifests.keys() & base.repository(path).manifests.keys()


@given(bases())
def test_a_delta_needs_nothing_but_what_is_wanted_and_the_base_holds(
    case: tuple[Inventory, Inventory],
) -> None:
    wanted, base = case
    needed = needed_from(base, wanted)
    assert pieces(needed) <= pieces(base)
    assert needed.blob_sizes().keys() <= wanted.blob_sizes().keys()
    assert {p for p in pieces(needed) if p[1] == "manifest"} <= pieces(wanted)
    assert needed_from(needed, wanted) == needed
    assert against(base, wanted).base == (base.digest() if pieces(needed) else None)


@given(bases(), st.booleans())
def test_where_the_needed_is_held_only_what_is_carried_is_read_from_the_bundle(
    case: tuple[Inventory, Inventory], once: bool
) -> None:
    wanted, base = case
    seal = sealed(wanted, against(base, wanted, once=once))
    held = seal.coverage.needed
    assert missing_findings(wanted, held, held, "there") == ()
    plan = make_plan(wanted, held)
    there = seal.carried.blob_sizes()
    assert all(step.mount_from is not None or step.digest in there for step in plan.blobs)
    carried = seal.carried
    for wave in plan.manifests:
        for step in wave:
            assert step.digest in carried.repository(step.repository).manifests


@given(bases(), st.data())
def test_each_missing_piece_of_the_base_is_told(
    case: tuple[Inventory, Inventory], data: st.DataObject
) -> None:
    wanted, base = case
    needed = needed_from(base, wanted)
    known = items(needed)
    kept = data.draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    held = with_only(needed, kept)
    told = {finding.digest for finding in missing_findings(wanted, needed, held, "there")}
    gone = {item.key for item in known if item.kind == "manifest" and item not in kept}
    gone |= needed.blob_sizes().keys() - held.blob_sizes().keys()
    assert told == gone


@given(inventories())
def test_deduplicated_each_blob_lies_in_one_layout(wanted: Inventory) -> None:
    seal = sealed(wanted, Coverage(once=True))
    copies = Counter(
        entry.digest
        for archive in seal.archives.values()
        for entry in archive.entries
        if entry.content is None
        and entry.digest not in archive.inventory.repository(entry.repository).manifests
    )
    assert set(copies.values()) <= {1}
    assert seal.carried.blob_sizes() == wanted.blob_sizes()
    assert seal.carried.manifest_nodes() == wanted.manifest_nodes()
    plain = sealed(wanted, COMPLETE)
    saved = seal.omissions.repeats
    assert saved is not None
    blocks = sum(one.size for one in plain.archives.values()) - sum(
        one.size for one in seal.archives.values()
    )
    assert saved <= blocks  # which also saves headers and padding


@given(inventories())
def test_an_ordinary_bundle_leaves_nothing_out(wanted: Inventory) -> None:
    parts = parts_of(wanted)
    assert not any(left.repositories for left in left_out(parts, COMPLETE).values())
    assert sealed(wanted, COMPLETE).carried == wanted


@given(bases(), st.booleans())
def test_a_seal_is_read_back_as_it_was_written(
    case: tuple[Inventory, Inventory], once: bool
) -> None:
    wanted, base = case
    seal = sealed(wanted, against(base, wanted, once=once))
    again = Seal.from_json(seal.to_json())
    assert again == seal
    assert again.to_json() == seal.to_json()
    # Carried in full it is the seal that the complete bundle has.
    assert again.carried_as(COMPLETE) == sealed(wanted, COMPLETE)
    assert again.carried_as(COMPLETE).to_json() == sealed(wanted, COMPLETE).to_json()


@given(bases())
def test_what_has_a_name_is_told_first(case: tuple[Inventory, Inventory]) -> None:
    wanted, base = case
    named = [one.is_named for one in missing_findings(wanted, base, Inventory(), "there")]
    assert named == sorted(named, reverse=True)


# -- cases -----------------------------------------------------------------------------------------


def holding(path: str, *numbers: int) -> Inventory:
    """One repository with an image of these blobs."""
    builder = InventoryBuilder()
    node = fake_manifest(map(fake_blob, numbers))
    add_closed(builder, path, node, {})
    builder.add_tag(path, "v1.0.0", node.descriptor.digest)
    return builder.build()


def test_a_manifest_that_the_base_has_in_another_repository_is_carried() -> None:
    base, wanted = holding("install", 1, 2), holding("modules/console", 1, 2)
    seal = sealed(wanted, against(base, wanted))
    assert seal.carried.blob_sizes() == {}
    assert len(seal.carried.manifest_nodes()) == 1
    assert list(seal.coverage.needed.repositories) == ["install"]
    assert seal.coverage.needed.blob_sizes() == wanted.blob_sizes()


def test_a_blob_that_is_held_at_another_size_counts_as_absent() -> None:
    wanted = holding("install", 1)
    digest = fake_blob(1).digest
    base = Inventory({"install": RepositoryContent(blobs={digest: 7})})
    assert needed_from(base, wanted) == Inventory()


def test_of_a_base_that_shares_nothing_a_complete_bundle_is_made() -> None:
    coverage = against(holding("install", 1), holding("install", 2))
    assert coverage == COMPLETE


def test_layouts_of_a_delta_name_all_tags_also_those_of_what_is_left_out() -> None:
    wanted = holding("install", 1)
    (archive,) = sealed(wanted, against(wanted, wanted)).archives.values()
    index, marker = archive.entries
    assert (index.path, marker.path) == ("install/index.json", "install/oci-layout")
    assert index.content is not None
    assert str(wanted.repository("install").tags["v1.0.0"]).encode() in index.content


def test_a_seal_of_a_complete_bundle_has_no_trace_of_any_of_this() -> None:
    text = sealed(holding("install", 1), COMPLETE).to_json()
    assert b'"schemaVersion":1' in text
    assert b'"base"' not in text
    assert b'"dedupe"' not in text


def test_a_seal_that_needs_of_its_base_what_nobody_wants_is_refused() -> None:
    wanted = holding("install", 1, 2)
    document = json.loads(sealed(wanted, against(wanted, wanted)).to_json())
    assert document["schemaVersion"] == 2
    blob = fake_blob(5)
    document["base"]["repositories"]["install"]["blobs"][str(blob.digest)] = blob.size
    with pytest.raises(DamagedBundleError, match="content of its base that it does not speak of"):
        Seal.from_json(resealed(document))
    for version, change in ((1, {}), (2, {"base": None})):
        other = {**json.loads(sealed(wanted, against(wanted, wanted)).to_json()), **change}
        with pytest.raises(DamagedBundleError, match="does not match its keys"):
            Seal.from_json(resealed({**other, "schemaVersion": version}))
    broken = {**document, "dedupe": "yes"}
    with pytest.raises(DamagedBundleError, match="neither true nor false"):
        Seal.from_json(resealed(broken))
