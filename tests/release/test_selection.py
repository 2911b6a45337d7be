from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InputError
from mirror.layout import parse_version
from mirror.release.constraints import Constraint
from mirror.release.selection import (
    ExactTag,
    Filter,
    ItemFilter,
    parse_filter,
    parse_platform,
    select_versions,
)
from tests.support.strategies import tags

MODULE_TAGS = ["v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0", "v1.3.3", "v1.4.0", "v1.4.1"]


@pytest.mark.parametrize(
    ("filters", "published", "selected"),
    [
        ("m@1.3.0", MODULE_TAGS, "v1.3.3 v1.4.1"),
        ("m@^1.3.0", MODULE_TAGS, "v1.3.3 v1.4.1"),
        ("m@~1.3.0", MODULE_TAGS, "v1.3.3"),
        ("m@>=1.3.0", MODULE_TAGS, "v1.3.0 v1.3.3 v1.4.1"),
        ("m@>=1.3.0 <=1.4.0", MODULE_TAGS, "v1.3.0 v1.3.3 v1.4.0"),
        ("m@=v1.3.0", MODULE_TAGS, "v1.3.0"),
        ("m@=v1.3.0+stable", MODULE_TAGS, "v1.3.0"),
        ("m@=bobV1", MODULE_TAGS, "bobV1"),
        ("m", MODULE_TAGS, ""),
        ("m@0.4.0", ["v0.4.2", "v0.4.4", "v0.5.1", "v0.5.3", "v0.6.1"], "v0.4.4 v0.5.3 v0.6.1"),
        ("m@>=1.40.0", ["v1.40.1", "v1.40.2", "v1.41.0"], "v1.40.2 v1.41.0"),
        ("m@=v0.0.2|m@=v0.0.3", [], "v0.0.2 v0.0.3"),
        ("m|m@=v1.2.3", [], "v1.2.3"),
        ("m@>=1.4.0|m@~1.1.0|m@=v1.4.1", MODULE_TAGS, "v1.4.0 v1.4.1 v1.1.0"),
        ("m@>=1.2.0-0", ["v1.2.0", "v1.2.1-rc.1", "v1.3.0-rc.2"], "v1.2.1-rc.1 v1.3.0-rc.2"),
        ("m@>=1.2.0", ["v1.2.0", "v1.2.1-rc.1", "v1.3.0-rc.2"], "v1.2.0"),
        ("m@~1.2", ["1.2.7", "v1.2", "latest"], "1.2.7"),
    ],
)
def test_versions_are_selected_as_documented(
    filters: str, published: list[str], selected: str
) -> None:
    wanted = Filter.including(filters.split("|")).constraint_for("m")
    assert select_versions(wanted.wanted, published) == selected.split()


def test_nothing_wanted_selects_nothing() -> None:
    assert select_versions((), MODULE_TAGS) == []


@pytest.mark.parametrize(
    ("text", "tag", "channel"),
    [
        ("m@=v1.3.0", "v1.3.0", None),
        ("m@=v1.3.0+rock-solid", "v1.3.0", "rock-solid"),
        ("m@=v1.3.0+lts", "v1.3.0", "lts"),
        (" m @ =pr12 ", "pr12", None),
    ],
)
def test_an_exact_tag_may_name_its_channel(text: str, tag: str, channel: str | None) -> None:
    item = parse_filter(text)
    assert item == ItemFilter("m", (ExactTag(tag, channel),))
    assert item.is_exact


def test_a_suffix_that_is_no_channel_has_no_effect_and_is_told() -> None:
    filters = Filter.including(["m@=v1.3.0+stabel"])
    assert filters.constraint_for("m").wanted == (ExactTag("v1.3.0"),)
    [warning] = filters.warnings
    assert warning == (
        "m@=v1.3.0: 'stabel' is not a release channel and has no effect; "
        "channels are alpha, beta, early-access, stable, rock-solid, lts"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names nothing; write name or name@version"),
        ("@>=1.0", "names nothing"),
        ("m@", "the version constraint is missing after '@'; the shell takes > and <"),
        ("m@ ", "or check the variable that should have filled it"),
        ("Mo dule", "is not a name; names are lower-case letters and digits"),
        ("a/b@1.0.0", "is not a name"),
        ("m@!=1.2", "selects no versions; write =TAG"),
        ("m@*", "selects no versions"),
        ("m@1.2 - 1.4", "selects no versions"),
        ("m@1.x", "selects no versions"),
        ("m@latest", "selects no versions"),
        ("m@=>1.2", "for a range write it first, such as '>=1.2'"),
        ("m@==1.2", "which no registry can hold"),
        ("m@=", "'' is not a tag"),
        ("m@=a b", "'a b' is not a tag"),
        ("m@=a+b+stable", "'a+b' is not a tag"),
        ("m@1.3.0+stable", "a channel follows an exact tag only, as in '=1.3.0+stable'"),
        ("m@>=1.0 <", "--include-module 'm@>=1.0 <': '>=1.0 <' is not a version constraint"),
    ],
)
def test_what_is_no_filter_is_refused_with_advice(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_filter(text)
    assert message in str(caught.value)
    assert "--include-module" in str(caught.value)


def test_an_error_names_the_flag_it_is_about() -> None:
    with pytest.raises(InputError, match=r"--exclude-package 'x@': .* write '?--exclude"):
        Filter.excluding(["x@"], "--exclude-package")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("=v1.69.0", ExactTag("v1.69.0")),
        ("=pr12+stable", ExactTag("pr12", "stable")),
        (">=1.64 <1.70", Constraint.parse(">=1.64 <1.70")),
        ("~1.69.0", Constraint.parse("~1.69.0")),
    ],
)
def test_the_platform_speaks_the_same_dialect(text: str, wanted: ExactTag | Constraint) -> None:
    assert parse_platform(text) == wanted


def test_a_bare_platform_version_is_the_rest_of_its_major_version() -> None:
    wanted = parse_platform("1.64")
    assert isinstance(wanted, Constraint)
    assert str(wanted) == ">=1.64.0 <2.0.0"


@pytest.mark.parametrize("text", ["./bundle", "/mnt/bundle", "..", ".", "~", "C:\\bundle", "~/b"])
def test_a_path_in_place_of_the_platform_version_is_recognised(text: str) -> None:
    with pytest.raises(InputError, match="is a path, not a version"):
        parse_platform(text)


def test_an_empty_platform_constraint_is_the_shells_doing() -> None:
    with pytest.raises(InputError, match="the shell takes > and <"):
        parse_platform(" ")


def test_no_names_take_everything() -> None:
    for filters in (Filter(), Filter.including([]), Filter.excluding([])):
        assert filters.matches("anything")
        assert filters.constraint_for("anything") == ItemFilter("anything")
        assert not filters.leaves_out("anything", "v1.0.0")
        assert filters.names == ()


def test_an_including_filter_takes_what_it_names() -> None:
    filters = Filter.including(["b@~1.2", "a", "b@=v2.0.0"])
    assert filters.names == ("a", "b")
    assert filters.matches("a")
    assert not filters.matches("c")
    assert filters.leaves_out("c", "v1.0.0")
    assert not filters.leaves_out("b", "v9.0.0")
    assert str(filters.constraint_for("b")) == "b@~1.2 b@=v2.0.0"


def test_an_excluding_filter_takes_all_others() -> None:
    filters = Filter.excluding(["a"])
    assert not filters.matches("a")
    assert filters.matches("b")


def test_an_exclusion_with_a_version_takes_out_these_versions_only() -> None:
    filters = Filter.excluding(["m@<1.3", "m@=v1.4.0", "m@=broken"])
    assert filters.matches("m")
    assert filters.constraint_for("m") == ItemFilter("m")
    left = [tag for tag in [*MODULE_TAGS, "broken", "other"] if not filters.leaves_out("m", tag)]
    assert left == ["v1.3.0", "v1.3.3", "v1.4.1", "other"]


def test_excluding_an_item_and_versions_of_it_excludes_the_versions() -> None:
    assert Filter.excluding(["m", "m@<1.3"]).matches("m")


@given(tags(), st.sampled_from([">=1.0", "~1.2.1", "^0.3", ">=1.1.0-0 <=2.1.0", "<2 || =2.3.1"]))
def test_what_is_selected_exists_fits_and_stands_in_order(found: list[str], text: str) -> None:
    constraint = Constraint.parse(text)
    selected = select_versions([constraint], found)
    assert set(selected) <= set(found)
    assert selected == select_versions([constraint], list(reversed(found)))
    parsed = [version for tag in selected if (version := parse_version(tag)) is not None]
    assert len(parsed) == len(selected)
    assert all(map(constraint.accepts, parsed))
    assert parsed == sorted(parsed)
    for anchor in constraint.anchors:
        assert (anchor in parsed) == (
            constraint.accepts(anchor) and any(parse_version(tag) == anchor for tag in found)
        )


@given(st.text() | st.text(alphabet="m@=+<>~^.v0123 -xstable", max_size=40))
def test_any_text_is_a_filter_or_an_input_error(text: str) -> None:
    for parse in (parse_filter, parse_platform):
        with contextlib.suppress(InputError):
            parse(text)
