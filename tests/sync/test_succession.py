from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from mirror.oci import Digest
from mirror.sync import Inventory, InventoryBuilder
from mirror.sync.plan import (
    Tags,
    changes,
    differing,
    laid_over,
    tags_of,
    tags_only,
    unaccounted,
)
from mirror.sync.publication_state import PublicationState, Published, next_statement
from mirror.sync.statement import Statement, state_before
from tests.support.inventories import fake_blob, fake_manifest, inventories

TOOL = "mirror 0.test"
NODES = {number: fake_manifest([fake_blob(number)], salt=number) for number in range(5)}
DIGESTS = {number: node.descriptor.digest for number, node in NODES.items()}


def tag_states() -> st.SearchStrategy[Mapping[str, Mapping[str, Digest]]]:
    tags = st.dictionaries(
        st.sampled_from(["v1", "v2", "stable"]),
        st.integers(0, 3).map(DIGESTS.__getitem__),
        min_size=1,
        max_size=3,
    )
    return st.dictionaries(st.sampled_from(["a", "b"]), tags, max_size=2)


def holding(**tags: int) -> Inventory:
    """One repository with these tags and what they name."""
    builder = InventoryBuilder()
    for tag, number in tags.items():
        builder.add_manifest("install", NODES[number])
        builder.add_tag("install", tag, DIGESTS[number])
    return builder.build()


def standing(*statements: Statement, pending: Statement | None = None) -> PublicationState:
    published = [Published(one.artifact().manifest.digest, one) for one in statements]
    tip = Published(pending.artifact().manifest.digest, pending) if pending else None
    highest = max((one.generation for one in (*statements, pending) if one), default=0)
    return PublicationState(published[-1] if published else None, tip, highest)


# -- tags ------------------------------------------------------------------------------------------


@given(tag_states(), tag_states())
def test_what_differs_laid_over_the_other_state_is_the_state_and_the_others_rest(
    one: Tags, other: Tags
) -> None:
    assert laid_over(other, differing(one, other)) == laid_over(other, one)
    assert differing(one, one) == {}
    assert differing(one, laid_over(other, one)) == {}


@given(tag_states(), tag_states())
def test_changes_tell_the_one_state_from_the_other(before: Tags, after: Tags) -> None:
    found = changes(before, after)
    assert bool(found) == (before != after)
    back = changes(after, before)
    assert (back.added, back.removed, back.changed) == (found.removed, found.added, found.changed)
    touched = {f"{path}:{tag}" for path, tag in (*found.added, *found.changed)}
    assert touched == {f"{p}:{t}" for p, tags in differing(after, before).items() for t in tags}


@given(tag_states(), tag_states(), tag_states())
def test_a_tag_is_accounted_for_by_any_state_that_names_it_so(
    held: Tags, one: Tags, other: Tags
) -> None:
    strange = unaccounted(held, one, other)
    assert unaccounted(held, other, one) == strange
    assert unaccounted(held, one, other, held) == {}
    for path, tags in strange.items():
        for tag, digest in tags.items():
            assert digest not in (one.get(path, {}).get(tag), other.get(path, {}).get(tag))


@given(inventories())
def test_tags_alone_are_an_inventory_for_comparing_tags(inventory: Inventory) -> None:
    assert tags_of(tags_only(tags_of(inventory))) == tags_of(inventory)


# -- the next statement ----------------------------------------------------------------------------


def test_the_first_generation_is_one_and_remembers_what_others_had_set() -> None:
    pushed, held = holding(v1=0, stable=0), holding(stable=3)
    first = next_statement(PublicationState(), pushed, held, tool=TOOL)
    assert first == Statement(pushed, 1, {"install": {"stable": DIGESTS[3]}}, tool=TOOL)


def test_even_a_push_of_nothing_new_is_stated_where_nothing_was() -> None:
    assert next_statement(PublicationState(), Inventory(), Inventory(), tool=TOOL) is not None


@given(inventories(), inventories())
def test_a_push_adds_a_generation_if_and_only_if_it_changes_the_inventory(
    held: Inventory, pushed: Inventory
) -> None:
    first = Statement(held, 3)
    second = next_statement(standing(first), pushed, held, tool=TOOL)
    if second is None:
        assert next_statement(PublicationState(), pushed, Inventory(), tool=TOOL) is not None
        return
    assert second.generation == 4
    assert second.inventory != held
    assert second.former == {}
    assert next_statement(standing(second), pushed, second.inventory, tool=TOOL) is None


def test_a_tag_that_somebody_else_moved_makes_a_generation_that_remembers_it() -> None:
    before = Statement(holding(v1=0, stable=0), 1)
    again = next_statement(standing(before), before.inventory, holding(v1=0, stable=3), tool=TOOL)
    assert again is not None
    assert (again.inventory, again.generation) == (before.inventory, 2)
    assert again.former == {"install": {"stable": DIGESTS[3]}}


def test_a_tag_that_is_missing_is_set_again_without_a_new_generation() -> None:
    before = Statement(holding(v1=0, stable=0), 1)
    assert next_statement(standing(before), before.inventory, holding(v1=0), tool=TOOL) is None


def test_tags_that_an_interrupted_phase_set_are_not_taken_for_somebody_elses() -> None:
    before, pending = Statement(holding(stable=0), 1), Statement(holding(stable=1), 2)
    half = standing(before, pending=pending)
    for held in (holding(stable=0), holding(stable=1)):
        assert next_statement(half, pending.inventory, held, tool=TOOL) is None
        after = next_statement(half, holding(stable=2), held, tool=TOOL)
        assert after is not None
        assert (after.generation, after.former) == (3, {})


def test_the_generation_lies_above_that_of_every_replica_that_states_something_else() -> None:
    before = Statement(holding(stable=0), 3)
    for above, generation in ((2, None), (3, 4), (9, 10)):
        new = next_statement(
            standing(before), before.inventory, before.inventory, tool=TOOL, above=above
        )
        assert (new.generation if new else None) == generation


# -- going back ------------------------------------------------------------------------------------


def former(generation: int, **tags: int) -> Statement:
    named = {tag: DIGESTS[number] for tag, number in tags.items()}
    return Statement(holding(v1=0, stable=0), generation, {"install": named} if named else {})


def test_nothing_but_what_was_published_comes_back_where_nobody_else_was() -> None:
    assert state_before(holding(stable=1), [former(2), former(3)]) == {}


def test_what_others_had_set_right_before_the_next_generation_comes_back() -> None:
    assert state_before(holding(stable=1), [former(2, stable=3)]) == {
        "install": {"stable": DIGESTS[3]}
    }


def test_what_they_set_later_over_a_tag_that_was_stated_does_not() -> None:
    assert state_before(holding(stable=1), [former(2), former(3, stable=3)]) == {}


def test_a_tag_that_no_generation_had_touched_comes_back_from_whenever_one_did() -> None:
    later = [former(2), former(3, other=3), former(4, other=4)]
    assert state_before(holding(stable=1), later) == {"install": {"other": DIGESTS[3]}}


def test_a_tag_that_came_with_a_later_generation_was_not_there_before() -> None:
    later = [former(2), former(3, v1=3)]
    assert state_before(holding(stable=1), later) == {}
    assert state_before(Inventory(), later) == {}
