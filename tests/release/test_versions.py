from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from semver import Version

from mirror.release.versions import (
    comparable,
    in_order,
    is_early,
    latest_patches,
    parse_version,
    read_version,
    tags_of_versions,
    version_tag,
)
from tests.release.strategies import tags, versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v1.69.0", "1.69.0"),
        ("1.69.0", "1.69.0"),
        ("v1.69.0-rc.1", "1.69.0-rc.1"),
        ("v1.69", None),
        ("vv1.69.0", None),
        ("1.69.0\n", None),
        ("1.69.0-" + "9" * 5000, None),
        ("stable", None),
        ("", None),
    ],
)
def test_a_tag_is_a_version_only_if_it_is_spelled_in_full(text: str, version: str | None) -> None:
    assert parse_version(text) == (Version.parse(version) if version else None)


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


def test_of_two_spellings_the_one_with_v_counts() -> None:
    assert list(tags_of_versions(["1.2.3", "v1.2.3", "1.0.0", "pr1"]).values()) == [
        "1.0.0",
        "v1.2.3",
    ]


def test_the_latest_patch_is_the_highest_of_its_minor_version() -> None:
    found = list(tags_of_versions(["v1.1.0", "v1.1.10", "v1.1.9", "v1.2.0-rc.1", "v1.2.0-rc.2"]))
    assert [*map(version_tag, latest_patches(found))] == ["v1.1.10", "v1.2.0-rc.2"]


def test_a_release_can_be_preferred_to_a_later_pre_release() -> None:
    found = list(tags_of_versions(["v1.1.0", "v1.1.1-rc.1", "v1.2.0-rc.1"]))
    assert [*map(version_tag, latest_patches(found))] == ["v1.1.1-rc.1", "v1.2.0-rc.1"]
    assert [*map(version_tag, latest_patches(found, releases_first=True))] == [
        "v1.1.0",
        "v1.2.0-rc.1",
    ]


@pytest.mark.parametrize(
    ("text", "early", "compared"),
    [
        ("1.2.0", False, "1.2.0"),
        ("1.2.0-rc.1", True, "1.2.0-rc.1"),
        ("1.2.0-RC1+build", True, "1.2.0-RC1"),
        ("1.2.0-preview.2", True, "1.2.0-preview.2"),
        ("1.2.0-main", False, "1.2.0"),
        ("1.2.0-main.rc", False, "1.2.0"),
        ("1.2.0+build.7", False, "1.2.0"),
    ],
)
def test_marks_of_origin_are_no_pre_releases(text: str, early: bool, compared: str) -> None:
    version = Version.parse(text)
    assert is_early(version) is early
    assert str(comparable(version)) == compared


@given(st.lists(versions(early=True)))
def test_order_does_not_depend_on_the_order_given(found: list[Version]) -> None:
    assert in_order(found) == in_order(reversed(found)) == sorted(set(found))
    assert latest_patches(found) == latest_patches(reversed(found))


@given(tags())
def test_tags_keep_their_own_spelling(found: list[str]) -> None:
    spelled = tags_of_versions(found)
    assert set(spelled.values()) <= set(found)
    assert all(parse_version(tag) == version for version, tag in spelled.items())
    assert spelled == tags_of_versions(reversed(found))


@given(st.text())
@example("1.0.0-" + "0" * 300)
def test_any_text_is_a_version_or_none(text: str) -> None:
    parse_version(text)
    read_version(text)
