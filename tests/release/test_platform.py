from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import InputError, MirrorError, NotFoundError, SourceContentError
from mirror.layout import CHANNELS, DEFAULT_CHANNELS, parse_version, tags_of_versions
from mirror.oci import Digest
from mirror.release.constraints import Constraint
from mirror.release.discovery import ChannelFact
from mirror.release.platform import SelectedReleases, check_channels, select_platform
from mirror.release.selection import PlatformSelection
from tests.support.strategies import tags, versions

LEADS = {
    "alpha": "1.72.10",
    "beta": "1.71.0",
    "early-access": "1.70.0",
    "stable": "1.69.0",
    "rock-solid": "1.68.0",
}
TAGS = [
    "v1.67.5",
    "v1.68.0",
    "v1.68.4",
    "v1.69.0",
    "v1.69.7",
    "v1.70.2",
    "v1.71.0",
    "v1.72.10",
    "v1.72.11",
]


def facts(leads: Mapping[str, str | Version], *suspended: str) -> dict[str, ChannelFact]:
    return {
        name: ChannelFact(
            name,
            version if isinstance(version, Version) else Version.parse(version),
            name in suspended,
            Digest("sha256", f"{number:064x}"),
        )
        for number, (name, version) in enumerate(leads.items())
    }


def selected(selection: SelectedReleases) -> tuple[str, str]:
    names = " ".join(fact.name for fact in selection.channels)
    return " ".join(map(str, selection.versions)), names


def flags(**given: str) -> PlatformSelection:
    return PlatformSelection.from_flags(
        deckhouse_tag=given.get("tag"),
        include_platform=given.get("include"),
        since_version=given.get("since"),
    )


ALL = "alpha beta early-access stable rock-solid"
DEFAULT = "1.68.0 1.68.4 1.69.0 1.69.7 1.70.0 1.70.2 1.71.0 1.72.10"


@pytest.mark.parametrize(
    ("wishes", "versions", "channels"),
    [
        ({}, DEFAULT, ALL),
        ({"since": "1.69"}, DEFAULT, ALL),
        ({"since": "1.68.0"}, DEFAULT, ALL),
        ({"since": "v1.67"}, f"1.67.5 {DEFAULT}", ALL),
        ({"since": "1.67.6"}, DEFAULT, ALL),
        ({"tag": "stable"}, "1.69.0", "stable"),
        ({"tag": "v1.72.10"}, "1.72.10", "alpha"),
        ({"tag": "1.72.10"}, "1.72.10", "alpha"),
        ({"include": "=v1.72.10+stable"}, "1.72.10", "alpha"),
        ({"tag": "v1.71.5"}, "1.71.5", ""),
        ({"tag": "pr12345"}, "", ""),
        (
            {"include": ">=1.69 <=1.71"},
            "1.69.0 1.69.7 1.70.0 1.70.2 1.71.0",
            "beta early-access stable",
        ),
        ({"include": "~1.69.0"}, "1.69.0 1.69.7", "stable"),
        ({"include": "<1.68"}, "1.67.5", ""),
        ({"include": ">1.71"}, "1.72.10 1.72.11", "alpha"),
        ({"include": ">=1.67.0 <1.68 || 1.72.10"}, "1.67.5 1.72.10", "alpha"),
        ({"include": "1.70"}, "1.70.0 1.70.2 1.71.0 1.72.10 1.72.11", "alpha beta early-access"),
    ],
)
def test_releases_are_selected_as_documented(
    wishes: dict[str, str], versions: str, channels: str
) -> None:
    assert selected(select_platform(facts(LEADS), TAGS, flags(**wishes))) == (versions, channels)


def test_the_fixture_of_the_documentation_gives_the_five_channel_versions() -> None:
    published = [f"v{version}" for version in LEADS.values()]
    selection = select_platform(facts(LEADS), [*published, *LEADS, "pr12345"])
    assert selected(selection) == ("1.68.0 1.69.0 1.70.0 1.71.0 1.72.10", ALL)
    assert selection.tags == ("v1.68.0", "v1.69.0", "v1.70.0", "v1.71.0", "v1.72.10")


# -- pinned tags ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "custom", "alias"),
    [
        ("stable", (), "stable"),
        ("v1.72.10", (), "v1.72.10"),
        ("1.72.10", (), "v1.72.10"),
        ("v1.71.5", (), None),
        ("pr12345", ("pr12345",), None),
        ("pr1", ("pr1",), "pr1"),
    ],
)
def test_a_pinned_release_is_published_to_all_default_channels(
    tag: str, custom: tuple[str, ...], alias: str | None
) -> None:
    selection = select_platform(facts(LEADS), [*TAGS, "pr1"], PlatformSelection(tag=tag))
    assert selection.custom_tags == custom
    assert selection.aliases == (dict.fromkeys(DEFAULT_CHANNELS, alias) if alias else {})
    assert [tag in warning for warning in selection.warnings] == ([] if alias else [True])


def test_pinning_lts_publishes_it_to_the_default_channels() -> None:
    selection = select_platform(facts({"lts": "1.66.3"}), ["lts"], PlatformSelection(tag="lts"))
    assert selected(selection) == ("1.66.3", "lts")
    assert selection.aliases == dict.fromkeys(DEFAULT_CHANNELS, "lts")


# -- suspended channels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suspended", "tag", "refusal"),
    [
        (["alpha"], None, 'release channel "alpha" is suspended'),
        (["stable", "beta"], None, 'release channels "beta", "stable" are suspended'),
        (["alpha"], "alpha", 'release channel "alpha" is suspended'),
        (["alpha"], "v1.72.10", 'release channel "alpha" is suspended'),
        (["rock-solid"], "v1.71.5", None),
        (["rock-solid"], "stable", None),
        (["rock-solid"], "pr12345", None),
    ],
)
def test_a_suspended_channel_is_refused_if_it_is_what_was_asked_for(
    suspended: list[str], tag: str | None, refusal: str | None
) -> None:
    channels = facts(LEADS, *suspended)
    if refusal is None:
        select_platform(channels, TAGS, PlatformSelection(tag=tag))
    else:
        with pytest.raises(SourceContentError, match=rf"{refusal}.*--ignore-suspend"):
            select_platform(channels, TAGS, PlatformSelection(tag=tag))
    select_platform(channels, TAGS, PlatformSelection(tag=tag, ignore_suspend=True))


def test_a_suspended_channel_refuses_a_constraint_too() -> None:
    with pytest.raises(SourceContentError, match="suspended"):
        select_platform(facts(LEADS, "alpha"), TAGS, flags(include="~1.69.0"))


# -- channels that are missing --------------------------------------------------------------------


def test_an_edition_of_lts_alone_gives_its_release() -> None:
    selection = select_platform(facts({"lts": "1.66.3"}), ["v1.66.1", "v1.66.3", "v1.66.4"])
    assert selected(selection) == ("1.66.3", "lts")


def test_since_version_reaches_back_in_an_edition_of_lts_alone() -> None:
    published = ["v1.64.9", "v1.65.1", "v1.65.2", "v1.66.3", "v1.66.4"]
    selection = select_platform(facts({"lts": "1.66.3"}), published, flags(since="1.65"))
    assert selected(selection) == ("1.65.2 1.66.3", "lts")


def test_lts_behind_rock_solid_travels_with_its_version() -> None:
    selection = select_platform(facts({**LEADS, "lts": "1.66.3"}), TAGS)
    assert selected(selection) == (f"1.66.3 {DEFAULT}", f"{ALL} lts")
    assert selection.warnings == ()
    for wishes in ({"since": "1.67"}, {"since": "1.66"}, {"include": "<=1.68"}):
        selection = select_platform(facts({**LEADS, "lts": "1.66.3"}), TAGS, flags(**wishes))
        assert "1.66.3" in map(str, selection.versions)
        assert "lts" in [fact.name for fact in selection.channels]


@pytest.mark.parametrize("wishes", [{}, {"since": "1.67"}, {"include": ">=1.67 <=1.70"}])
def test_another_channel_behind_rock_solid_is_left_out_and_told(wishes: dict[str, str]) -> None:
    leads = {**LEADS, "stable": "1.67.5"}
    selection = select_platform(facts(leads), TAGS, flags(**wishes))
    assert "stable" not in [fact.name for fact in selection.channels]
    (warning,) = selection.warnings
    assert warning == (
        "release channel stable is left out: it leads to v1.67.5, which is older than "
        "rock-solid's v1.68.0; take it by itself with --deckhouse-tag stable"
    )


def test_a_channel_that_a_constraint_leaves_out_is_not_worth_a_word() -> None:
    leads = {**LEADS, "stable": "1.67.5", "lts": "1.66.3"}
    selection = select_platform(facts(leads), TAGS, flags(include=">=1.70"))
    assert selection.warnings == ()
    assert [fact.name for fact in selection.channels] == ["alpha", "beta", "early-access"]


def test_lts_ahead_of_rock_solid_travels() -> None:
    selection = select_platform(facts({**LEADS, "lts": "1.69.5"}), TAGS)
    assert "1.69.5" in map(str, selection.versions)
    assert [fact.name for fact in selection.channels] == list(CHANNELS)


def test_without_rock_solid_the_oldest_channel_stands_in() -> None:
    leads = {"alpha": "1.70.1", "beta": "1.69.0", "lts": "1.66.3"}
    selection = select_platform(facts(leads), ["v1.66.3", "v1.68.9", "v1.69.4", "v1.70.0"])
    assert selected(selection) == ("1.66.3 1.69.0 1.69.4 1.70.0 1.70.1", "alpha beta lts")


def test_without_alpha_only_what_channels_lead_to_is_taken() -> None:
    leads = {"stable": "1.70.1", "rock-solid": "1.69.0", "lts": "1.69.9"}
    selection = select_platform(facts(leads), ["v1.69.4", "v1.70.0", "v1.71.0"])
    assert selected(selection) == ("1.69.0 1.69.9 1.70.1", "stable rock-solid lts")


def test_missing_channels_are_named_unless_a_tag_was_pinned() -> None:
    partial = facts({"alpha": "1.72.10", "stable": "1.69.0"})
    with pytest.raises(
        SourceContentError, match=r"channel beta, early-access, rock-solid \(found: alpha, stable\)"
    ):
        select_platform(partial, TAGS)
    assert selected(select_platform(partial, TAGS, flags(tag="stable"))) == ("1.69.0", "stable")


def test_a_channel_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(NotFoundError, match=r"no release channel beta \(available: alpha, lts\)"):
        check_channels({"lts", "alpha", "v1.0.0"}, "beta")


@pytest.mark.parametrize("tag", [None, "stable"])
def test_a_source_without_channels_is_no_edition(tag: str | None) -> None:
    with pytest.raises(
        NotFoundError, match="none of alpha, beta, early-access, stable, rock-solid"
    ):
        check_channels(["v1.69.0"], tag)


@pytest.mark.parametrize("tag", ["v1.69.0", "pr12345"])
def test_a_pinned_tag_needs_no_channels(tag: str) -> None:
    check_channels([], tag)
    assert select_platform({}, [], PlatformSelection(tag=tag)).channels == ()


def test_a_constraint_that_nothing_fits_says_what_there_is() -> None:
    with pytest.raises(NotFoundError, match=r"fits >=2.0; it offers v1.67.5 to v1.72.11"):
        select_platform(facts(LEADS), TAGS, flags(include=">=2.0"))


# -- tags as they are -----------------------------------------------------------------------------


def test_a_minor_version_of_pre_releases_keeps_its_true_tag() -> None:
    published = [*TAGS, "v1.70.3-rc.1"]
    leads = {**LEADS, "beta": "1.72.0", "early-access": "1.72.0"}
    no_release_of_1_70 = [tag for tag in published if tag != "v1.70.2"]
    assert "v1.70.3-rc.1" in select_platform(facts(leads), no_release_of_1_70).tags
    assert "v1.70.3-rc.1" not in select_platform(facts(leads), published).tags


def test_a_tag_without_v_keeps_its_spelling() -> None:
    selection = select_platform(facts(LEADS), [tag.removeprefix("v") for tag in TAGS])
    # What no tag spells is named as the channels' documents do: they are the only word on it.
    assert selection.tags == (
        "1.68.0",
        "1.68.4",
        "1.69.0",
        "1.69.7",
        "v1.70.0",
        "1.70.2",
        "1.71.0",
        "1.72.10",
    )


# -- since-version --------------------------------------------------------------------------------


def test_a_since_version_above_rock_solid_is_ignored_with_advice() -> None:
    selection = select_platform(facts(LEADS), TAGS, flags(since="1.70"))
    [warning] = selection.warnings
    assert warning == (
        "--since-version 1.70.0 is ignored: all from v1.68.0 on is taken anyway, which is older; "
        "to take less, use --include-platform '>=1.70.0' instead"
    )


# -- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{"tag": "v1", "since": "1"}, {"include": "1", "since": "1"}, {"tag": "a", "include": "1"}],
)
def test_wishes_that_contradict_each_other_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"contradict each other.*keep one of them"):
        flags(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"since": "soon"}, "--since-version 'soon' is not a version"),
        ({"tag": "a/b"}, "--deckhouse-tag 'a/b' is not a tag"),
        ({"tag": ""}, "--deckhouse-tag '' is not a tag"),
        ({"include": "./bundle"}, "is a path, not a version"),
        ({"include": "latest"}, "--include-platform 'latest': 'latest' selects no versions"),
    ],
)
def test_flags_that_cannot_be_read_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        flags(**given)
    assert message in str(caught.value)


def test_wishes_that_contradict_each_other_in_code_are_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        PlatformSelection(tag="stable", since_version=Version(1))


# -- laws -----------------------------------------------------------------------------------------

channel_facts = st.dictionaries(st.sampled_from(CHANNELS), versions(early=True), max_size=6).map(
    facts
)
wishes_of = (
    st.builds(PlatformSelection)
    | st.builds(PlatformSelection, since_version=versions())
    | st.builds(
        PlatformSelection,
        constraint=st.sampled_from([">=1.0", "~1.2.1", ">=0.1.0-0 <=2.1.0", "<2 || =2.3.1"]).map(
            Constraint.parse
        ),
    )
    | st.builds(
        PlatformSelection,
        tag=st.sampled_from([*CHANNELS, "pr1", "v1", "nothing"]) | versions().map(str),
    )
)


@given(channel_facts, tags(), wishes_of)
def test_whatever_the_source_says_the_selection_is_sound(
    channels: dict[str, ChannelFact], found: list[str], wishes: PlatformSelection
) -> None:
    try:
        selection = select_platform(channels, found, wishes)
    except MirrorError:
        return
    pinned = parse_version(wishes.tag) if wishes.tag else None
    known = {*tags_of_versions(found), *(fact.version for fact in channels.values()), pinned}
    assert set(selection.versions) <= known
    assert list(selection.versions) == sorted(set(selection.versions))
    assert [parse_version(tag) for tag in selection.tags] == list(selection.versions)
    for fact in selection.channels:
        assert fact.version in selection.versions
    assert set(selection.aliases.values()) <= {*found, *channels}
    assert [fact.name for fact in selection.channels] == [
        name for name in CHANNELS if name in {fact.name for fact in selection.channels}
    ]
    if wishes.constraint is not None:
        assert all(map(wishes.constraint.accepts, selection.versions))


@given(channel_facts, tags(), wishes_of, st.randoms(use_true_random=False))
def test_the_order_of_facts_does_not_matter(
    channels: dict[str, ChannelFact],
    found: list[str],
    wishes: PlatformSelection,
    chance: random.Random,
) -> None:
    def outcome(names: list[str], spelled: list[str]) -> SelectedReleases | str:
        try:
            return select_platform({name: channels[name] for name in names}, spelled, wishes)
        except MirrorError as err:
            return str(err)

    names = list(channels)
    before = outcome(names, found)
    chance.shuffle(names)
    shuffled = list(found)
    chance.shuffle(shuffled)
    assert outcome(names, shuffled) == before


@given(channel_facts, tags(), versions(), versions())
def test_an_earlier_since_version_never_takes_less(
    channels: dict[str, ChannelFact], found: list[str], one: Version, other: Version
) -> None:
    earlier, later = sorted((one, other))
    try:
        more = select_platform(channels, found, PlatformSelection(since_version=earlier))
        less = select_platform(channels, found, PlatformSelection(since_version=later))
    except MirrorError:
        return
    # The latest patch of a minor version may be another one only if the range began inside it.
    assert {(v.major, v.minor) for v in less.versions} <= {
        (v.major, v.minor) for v in more.versions
    }
    assert {fact.name for fact in less.channels} <= {fact.name for fact in more.channels}
    assert set(select_platform(channels, found).versions) <= {*less.versions, *more.versions}


@given(channel_facts, tags())
def test_a_since_version_at_rock_solid_changes_nothing(
    channels: dict[str, ChannelFact], found: list[str]
) -> None:
    if not {"rock-solid", "alpha"} <= channels.keys():
        return
    try:
        default = select_platform(channels, found)
    except MirrorError:
        return
    since = channels["rock-solid"].version
    assert select_platform(channels, found, PlatformSelection(since_version=since)) == default


@given(
    st.sampled_from(["deckhouse_tag", "include_platform", "since_version"]),
    st.text() | st.text(alphabet="v=+<>~^.0123 -xalph/", max_size=30),
)
def test_any_flag_is_read_or_refused(flag: str, text: str) -> None:
    with contextlib.suppress(InputError):
        PlatformSelection.from_flags(**{flag: text})  # type: ignore[arg-type]  # by name
