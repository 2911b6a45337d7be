"""Constraints accept what Masterminds' semver library accepts: `masterminds.json` are its verdicts.

For each constraint it holds one character per version (`1`: accepted), or null: refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import InputError
from mirror.release.constraints import MAX_LENGTH, Constraint, read_version
from tests.support.strategies import versions

VERDICTS = json.loads(Path(__file__).with_name("masterminds.json").read_text(encoding="utf-8"))
VERSIONS = [Version.parse(text) for text in VERDICTS["versions"]]


@pytest.mark.parametrize(("text", "verdict"), VERDICTS["accepts"].items())
def test_a_constraint_accepts_what_the_reference_library_accepts(
    text: str, verdict: str | None
) -> None:
    if verdict is None:
        with pytest.raises(InputError):
            Constraint.parse(text)
        return
    constraint = Constraint.parse(text)
    accepted = "".join("1" if constraint.accepts(version) else "." for version in VERSIONS)
    assert accepted == verdict


@pytest.mark.parametrize(
    ("text", "anchors"),
    [
        (">=1.64.0 <=1.65.0", ["1.64.0", "1.65.0"]),
        (">=1.69 <1.71", ["1.69.0"]),
        ("=>1.2 =<v1.4.1", ["1.2.0", "1.4.1"]),
        ("<= 1.4", ["1.4.0"]),
        (">=1||>=3", ["1.0.0", "3.0.0"]),
        (">=1.3.0 <=1.3.0", ["1.3.0"]),
        (">1.2 <1.4", []),
        ("~1.2.3", []),
        ("^1.2.3 || =1.4.0", []),
    ],
)
def test_the_versions_of_inclusive_bounds_are_anchors(text: str, anchors: list[str]) -> None:
    assert [str(version) for version in Constraint.parse(text).anchors] == anchors


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (">=1.64.0 <=1.65.0", "1.64.0"),
        ("<1.70", "1.70.0"),
        (">=3.1 || ~1.2.3", "1.2.3"),
        (">1.2 !=1.0.5", "1.0.5"),
        (">=1.64.0-rc.1", "1.64.0-rc.1"),
        ("*", None),
    ],
)
def test_the_lower_bound_is_the_smallest_version_written(text: str, bound: str | None) -> None:
    found = Constraint.parse(text).lower_bound
    assert (str(found) if found else None) == bound


def test_a_bare_version_means_the_rest_of_its_major_version_even_for_0() -> None:
    constraint = Constraint.same_major(Version.parse("0.4.0"))
    accepted = [
        text
        for text in ("0.3.9", "0.4.0", "0.9.1", "1.0.0", "0.5.0-rc.1")
        if constraint.accepts(Version.parse(text))
    ]
    assert accepted == ["0.4.0", "0.9.1"]
    assert constraint.anchors == ()


def test_a_bare_pre_release_does_not_reach_those_of_the_next_major_version() -> None:
    constraint = Constraint.same_major(Version.parse("1.3.0-rc.1"))
    assert constraint.accepts(Version.parse("1.3.0-rc.2"))
    assert constraint.accepts(Version.parse("1.9.0"))
    assert not constraint.accepts(Version.parse("2.0.0-alpha"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty, a version such as 1.64.2 is expected"),
        (">=1.64 <abc", "at 'abc', a version such as 1.64.2 is expected"),
        (">=1.64 ||", "after '>=1.64 ||', a version"),
        (">=1.64<2", "at '<2', terms are joined by spaces or commas"),
        ("1.2.3-01", "at '1.2.3-01', a part of that version is not a number, or too large"),
        ("=" * (MAX_LENGTH + 1), "is too long"),
    ],
)
def test_what_is_no_constraint_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Constraint.parse(text)
    assert message in str(caught.value)


@given(st.text(alphabet="0123456789.<>=!~^|, xX*v-+arc", max_size=60) | st.text())
@example("1 " * 400 + "!")
@example("  " * 400 + "!")
@example("1-" + "a." * 400 + "!")
@example("9" * 900)
def test_any_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        constraint = Constraint.parse(text)
    except InputError:
        return
    assert constraint.accepts(Version(1)) in (True, False)
    assert constraint.lower_bound is None or constraint.lower_bound <= max(
        term.version for terms in constraint.alternatives for term in terms
    )


@given(versions(), versions())
def test_an_interval_is_what_comparison_says(low: Version, version: Version) -> None:
    assert Constraint.parse(f">={low}").accepts(version) == (version >= low)
    assert Constraint.parse(f"<{low}").accepts(version) == (version < low)
    assert Constraint.parse(f"!={low}").accepts(version) == (version != low)
    assert Constraint.parse(f">={low} || <{low}").accepts(version)
    assert not Constraint.parse(f">={low} <{low}").accepts(version)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1", "1.0.0"),
        ("v1.69", "1.69.0"),
        ("1.69-rc.1", "1.69.0-rc.1"),
        ("01.2.3", "1.2.3"),
        ("1.x", None),
        ("*", None),
        ("1.2.3.4", None),
        ("18446744073709551616", None),
        ("1.2.3-01", None),
    ],
)
def test_people_may_leave_out_parts(text: str, version: str | None) -> None:
    assert read_version(text) == (Version.parse(version) if version else None)


@given(st.text())
@example("1.0.0-" + "0" * 300)
def test_any_text_that_people_type_is_a_version_or_none(text: str) -> None:
    read_version(text)
