from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from mirror.layout import CHANNELS
from mirror.release.items import select_item
from mirror.release.selection import Filter, ItemFilter
from tests.support.strategies import tags, versions

TAGS = ["v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0", "v1.3.3", "v1.4.0", "v1.4.1"]
LEADS = {"stable": Version.parse("1.1.0"), "alpha": Version.parse("1.4.1")}


def wanted(*texts: str) -> ItemFilter:
    return Filter.including(texts).constraint_for("m")


@pytest.mark.parametrize(
    ("filters", "selected", "channels"),
    [
        (["m"], "v1.1.0 v1.4.1", "alpha stable"),
        (["m@~1.3.0"], "v1.1.0 v1.3.3 v1.4.1", "alpha stable"),
        (["m@>=1.3.0 <=1.4.0"], "v1.1.0 v1.3.0 v1.3.3 v1.4.0 v1.4.1", "alpha stable"),
        (["m@=v1.3.0"], "v1.3.0", ""),
        (["m@=v0.0.3", "m@=v0.0.2"], "v0.0.2 v0.0.3", ""),
        (["m@~1.2", "m@=custom"], "v1.1.0 v1.2.0 v1.4.1 custom", "alpha stable"),
    ],
)
def test_channels_add_their_versions_unless_only_exact_tags_are_wanted(
    filters: list[str], selected: str, channels: str
) -> None:
    selection = select_item(wanted(*filters), LEADS, TAGS)
    assert selection.tags == tuple(selected.split())
    assert selection.channels == tuple(channels.split())


@pytest.mark.parametrize(
    ("filters", "aliases"),
    [
        (["m@=v1.3.0"], dict.fromkeys(CHANNELS, "v1.3.0")),
        (["m@=v1.3.0+stable"], {"stable": "v1.3.0"}),
        (["m@=v1.3.0+stable", "m@=v1.4.0+alpha"], {"stable": "v1.3.0", "alpha": "v1.4.0"}),
        (["m@=v1.3.0", "m@=v1.4.0+alpha"], {"alpha": "v1.4.0"}),
        (["m@=v1.3.0", "m@=v1.4.0"], {}),
        (["m@=v1.3.0+stable", "m@=v1.4.0+stable"], {"stable": "v1.4.0"}),
        (["m", "m@=pr1"], dict.fromkeys(CHANNELS, "pr1")),
        (["m@~1.3"], {}),
    ],
)
def test_exact_tags_are_published_to_channels(filters: list[str], aliases: dict[str, str]) -> None:
    assert select_item(wanted(*filters), LEADS, TAGS).aliases == aliases


def test_a_channel_beside_a_constraint_is_told_to_have_no_effect() -> None:
    selection = select_item(wanted("m@=v1.3.0+stable", "m@~1.2"), LEADS, TAGS)
    [warning] = selection.warnings
    assert warning == (
        "m@=v1.3.0+stable: +stable has no effect, because m is asked for by constraint too and "
        "then keeps its own channels"
    )


def test_a_channel_that_leads_to_an_excluded_version_is_not_taken() -> None:
    filters = Filter.excluding(["m@>=1.4"])
    selection = select_item(
        filters.constraint_for("m"), LEADS, TAGS, left_out=lambda tag: filters.leaves_out("m", tag)
    )
    assert (selection.tags, selection.channels) == (("v1.1.0",), ("stable",))


def test_tags_without_v_keep_their_spelling() -> None:
    selection = select_item(wanted("m"), LEADS, ["1.1.0", "v1.4.1"])
    assert selection.tags == ("1.1.0", "v1.4.1")
    assert selection.channels == ("alpha", "stable")


@given(st.dictionaries(st.sampled_from(CHANNELS), versions()), tags(), st.booleans())
def test_no_channel_leads_outside(
    leads: dict[str, Version], found: list[str], excluding: bool
) -> None:
    filters = Filter.excluding(["m@>=1.1 <2"] if excluding else [])
    selection = select_item(
        filters.constraint_for("m"),
        leads,
        found,
        left_out=lambda tag: filters.leaves_out("m", tag),
    )
    taken = {tag.removeprefix("v") for tag in selection.tags}
    assert {str(leads[name]) for name in selection.channels} == taken
    assert excluding or set(selection.channels) == set(leads)
