from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mirror.sync import (
    Inventory,
    InventoryBuilder,
    MemoryStore,
    Plan,
    PutTag,
    by_archive,
    make_plan,
    union,
)
from mirror.sync.plan import CopyBlob, PutManifest, new_tags
from tests.support.inventories import (
    add_closed,
    fake_blob,
    fake_manifest,
    inventories,
    items,
    put_image_by_sha512,
    sample_store,
    with_only,
    without,
)


def applied(plan: Plan, held: Inventory, wanted: Inventory) -> Inventory:
    """What a place holds after `plan`, made for `wanted`, was carried out there."""
    builder = InventoryBuilder()
    builder.add_inventory(held)
    for step in plan.blobs:
        for path in step.into:
            builder.add_blob(path, step.digest, step.size)
    for wave in plan.manifests:
        for put in wave:
            node = wanted.repository(put.repository).manifests[put.digest]
            builder.add_manifest(put.repository, node, closed=False)
    for tags in plan.tags:
        for name in tags:
            builder.add_tag(name.repository, name.tag, name.digest)
    return builder.build()


@st.composite
def places(draw: st.DrawFn) -> tuple[Inventory, Inventory]:
    """What is wanted and what is held, which may be anything: other, half-filled, damaged."""
    wanted = draw(inventories())
    everything = union([wanted, draw(inventories())])
    known = items(everything)
    kept = draw(st.lists(st.sampled_from(known), unique=True)) if known else []
    # Small lists are drawn most often: they are what is there, or what is not.
    if draw(st.booleans()):
        kept = [item for item in known if item not in kept]
    return wanted, with_only(everything, kept)


def stage_of(_repository: str, tag: str) -> int:
    return {"alpha": 1, "stable": 1, "_": 7}.get(tag, 0)


# -- laws ------------------------------------------------------------------------------------------


@given(places())
def test_a_plan_carried_out_leaves_nothing_to_plan(case: tuple[Inventory, Inventory]) -> None:
    wanted, held = case
    after = applied(make_plan(wanted, held, stage=stage_of), held, wanted)
    assert make_plan(wanted, after, stage=stage_of) == Plan()
    assert set(items(wanted)) <= set(items(after))


@given(places())
def test_what_was_there_besides_is_left_alone(case: tuple[Inventory, Inventory]) -> None:
    wanted, held = case
    after = applied(make_plan(wanted, held), held, wanted)
    assert set(items(after)) == set(items(held)) | set(items(wanted))
    for path, content in held.repositories.items():
        for tag, digest in content.tags.items():
            ours = wanted.repository(path).tags.get(tag, digest)
            assert after.repository(path).tags[tag] == ours


def test_archives_come_one_after_the_other_and_the_smallest_blobs_last() -> None:
    paths = ("", "modules/a", "modules/b", "mirror/inventory")
    builder = InventoryBuilder()
    for number, size in enumerate((900, 10, 700, 20, 5, 800)):
        builder.add_blob(paths[number % 3], fake_blob(number).digest, size)
    builder.add_blob(paths[3], fake_blob(6).digest, 1)
    plan = make_plan(builder.build(), Inventory())
    ordered = by_archive(plan)
    told = [(step.into[0], step.size) for step in ordered.blobs]
    assert told == [
        ("", 900),
        ("", 20),
        ("modules/b", 800),
        ("modules/b", 700),
        ("modules/a", 10),
        ("modules/a", 5),
        ("mirror/inventory", 1),
    ]
    assert sorted(ordered.blobs, key=str) == sorted(plan.blobs, key=str)


@given(places(), st.randoms(use_true_random=False))
def test_equal_inputs_make_equal_plans_in_whatever_order_they_were_found(
    case: tuple[Inventory, Inventory], random: Random
) -> None:
    wanted, held = case
    shuffled = []
    for inventory in case:
        order = items(inventory)
        random.shuffle(order)
        shuffled.append(with_only(inventory, order))
    assert make_plan(*shuffled, stage=stage_of) == make_plan(wanted, held, stage=stage_of)


@given(places())
def test_nothing_is_planned_that_is_there_already(case: tuple[Inventory, Inventory]) -> None:
    wanted, held = case
    plan = make_plan(wanted, held)
    for step in plan.blobs:
        assert not any(step.digest in held.repository(path).blobs for path in step.into)
    for put in (put for wave in plan.manifests for put in wave):
        assert put.digest not in held.repository(put.repository).manifests
    for name in (name for stage in plan.tags for name in stage):
        assert held.repository(name.repository).tags.get(name.tag) != name.digest
    assert make_plan(wanted, wanted) == Plan()
    assert not make_plan(Inventory(), held)


# -- blobs -----------------------------------------------------------------------------------------


@given(places())
def test_a_blob_is_carried_once_however_many_repositories_lack_it(
    case: tuple[Inventory, Inventory],
) -> None:
    wanted, held = case
    plan = make_plan(wanted, held)
    assert len({step.digest for step in plan.blobs}) == len(plan.blobs)
    lacking = {
        (path, digest)
        for path, content in wanted.repositories.items()
        for digest in content.blobs
        if digest not in held.repository(path).blobs
    }
    assert {(path, step.digest) for step in plan.blobs for path in step.into} == lacking
    assert sum(len(step.into) for step in plan.blobs) == len(lacking)


@given(places())
def test_a_blob_is_read_and_mounted_only_from_where_it_is(
    case: tuple[Inventory, Inventory],
) -> None:
    wanted, held = case
    for step in make_plan(wanted, held).blobs:
        assert wanted.repository(step.source).blobs[step.digest] == step.size
        holders = {path for path, there in held.repositories.items() if step.digest in there.blobs}
        assert (step.mount_from in holders) if holders else step.mount_from is None


def test_large_blobs_go_first_and_mounted_ones_are_not_counted() -> None:
    wanted, held = InventoryBuilder(), InventoryBuilder()
    for number in (1, 5, 3):
        wanted.add_blob("a", fake_blob(number).digest, fake_blob(number).size)
    wanted.add_blob("b", fake_blob(3).digest, fake_blob(3).size)
    held.add_blob("elsewhere", fake_blob(5).digest, fake_blob(5).size)
    plan = make_plan(wanted.build(), held.build())
    assert plan.blobs == (
        CopyBlob(fake_blob(5).digest, 105, ("a",), "a", "elsewhere"),
        CopyBlob(fake_blob(3).digest, 103, ("a", "b"), "a"),
        CopyBlob(fake_blob(1).digest, 101, ("a",), "a"),
    )
    assert plan.size == 103 + 101


# -- manifests -------------------------------------------------------------------------------------


@given(places())
def test_children_go_before_their_parents(case: tuple[Inventory, Inventory]) -> None:
    wanted, held = case
    plan = make_plan(wanted, held)
    there = {(path, digest) for path, one in held.repositories.items() for digest in one.manifests}
    for wave in plan.manifests:
        assert wave
        for put in wave:
            node = wanted.repository(put.repository).manifests[put.digest]
            assert all((put.repository, child.digest) in there for child in node.children)
        there.update((put.repository, put.digest) for put in wave)
    assert plan.manifest_count == sum(len(wave) for wave in plan.manifests)


def test_indexes_may_nest_as_deep_as_they_like() -> None:
    depth = 10_000
    builder = InventoryBuilder()
    node = fake_manifest()
    builder.add_manifest("", node)
    for level in range(depth):
        node = fake_manifest(children=[node], salt=level)
        builder.add_manifest("", node)
    builder.add_tag("", "deep", node.descriptor.digest)
    wanted = builder.build()
    plan = make_plan(wanted, Inventory())
    assert len(plan.manifests) == depth + 1
    assert plan.manifests[-1] == (PutManifest("", node.descriptor.digest),)
    assert Inventory.from_document(wanted.to_document()) == wanted


def test_an_index_of_thousands_in_which_all_share_their_children_is_no_trouble() -> None:
    # Each level names every manifest below: 2^60 ways down, which nobody may walk one by one.
    builder = InventoryBuilder()
    below = [fake_manifest(salt=number) for number in range(2)]
    pool = {node.descriptor.digest: node for node in below}
    for level in range(60):
        below = [fake_manifest(children=below, salt=100 * level + side) for side in range(2)]
        pool.update((node.descriptor.digest, node) for node in below)
    for node in pool.values():
        builder.add_manifest("", node)
    assert len(make_plan(builder.build(), Inventory()).manifests) == 61


# -- tags ------------------------------------------------------------------------------------------


@given(places())
def test_tags_appear_stage_by_stage(case: tuple[Inventory, Inventory]) -> None:
    wanted, held = case
    plan = make_plan(wanted, held, stage=stage_of)
    numbers = [{stage_of(name.repository, name.tag) for name in stage} for stage in plan.tags]
    assert all(len(stage) == 1 for stage in numbers)
    order = [number for stage in numbers for number in stage]
    assert all(earlier < later for earlier, later in pairwise(order))
    assert plan.tag_count == sum(len(stage) for stage in plan.tags)


@given(places())
def test_a_manifest_goes_by_the_tags_that_nobody_has_seen_and_that_promise_nothing_else(
    case: tuple[Inventory, Inventory],
) -> None:
    wanted, held = case
    plan = make_plan(wanted, held, stage=stage_of)
    found = new_tags(plan, held, lambda path, tag: stage_of(path, tag) == 0)
    puts = {put for wave in plan.manifests for put in wave}
    assert found.keys() <= puts
    assert all(found.values())
    assert {step for steps in found.values() for step in steps} == {
        step
        for stage in plan.tags
        for step in stage
        if step.tag not in held.repository(step.repository).tags
        and stage_of(step.repository, step.tag) == 0
        and PutManifest(step.repository, step.digest) in puts
    }
    for put, steps in found.items():
        assert {(one.repository, one.digest) for one in steps} == {(put.repository, put.digest)}


def test_a_manifest_that_goes_by_another_digest_than_sha256_is_put_by_it() -> None:
    store = MemoryStore()
    put_image_by_sha512(store, "a", "v1")
    plan = make_plan(store.inventory(), Inventory())
    assert plan.tag_count == 1
    assert new_tags(plan, Inventory(), lambda _path, _tag: True) == {}


def test_a_tag_that_names_something_else_is_moved_and_its_old_manifest_stays() -> None:
    old, new = fake_manifest(salt=1), fake_manifest(salt=2)
    held, wanted = InventoryBuilder(), InventoryBuilder()
    for builder, node in ((held, old), (wanted, new)):
        add_closed(builder, "a", node, {})
        builder.add_tag("a", "alpha", node.descriptor.digest)
    plan = make_plan(wanted.build(), held.build())
    assert plan.tags == ((PutTag("a", "alpha", new.descriptor.digest),),)
    after = applied(plan, held.build(), wanted.build())
    assert set(after.repository("a").manifests) == {old.descriptor.digest, new.descriptor.digest}


def test_whatever_is_lost_is_brought_back_and_no_more() -> None:
    wanted = sample_store().inventory()
    for item in items(wanted):
        plan = make_plan(wanted, without(wanted, item))
        assert applied(plan, without(wanted, item), wanted) == wanted
        assert len(plan.blobs) + plan.manifest_count + plan.tag_count == 1
