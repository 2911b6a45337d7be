"""The vocabulary of the release tree: paths, archives, tags made of digests, versions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import InputError
from mirror.layout import (
    archive_of,
    comparable,
    component_of,
    in_order,
    is_archive_name,
    is_attachment_tag,
    is_digest_tag,
    is_early,
    latest_patches,
    names_component,
    parse_version,
    publication_stage,
    tags_in_order,
    tags_of_versions,
    version_tag,
)
from tests.support.strategies import tags, versions


@pytest.mark.parametrize(
    ("repository", "tag", "stage"),
    [
        ("", "v1.70.0", 0),
        ("", "alpha", 0),  # the platform's own image of that channel, which a pull may have taken
        ("install", "stable", 0),
        ("installer", "latest", 0),
        ("security/trivy-db", "2", 0),
        ("modules/console", "v1.0.0", 0),
        ("modules/release", "alpha", 0),  # a module of that name
        ("modules/console/extra/release", "alpha", 0),
        ("deckhouse-cli/plugins/stronghold", "v1.0.0", 0),
        ("release-channel", "v1.70.0", 1),
        ("release-channel", "sha256-" + "a" * 64, 1),
        ("modules/console/release", "v1.0.0", 1),
        ("packages/one/version", "v1.0.0", 1),
        ("release-channel", "rock-solid", 2),
        ("release-channel", "lts", 2),
        ("modules/console/release", "alpha", 2),
        ("packages/one/version", "early-access", 2),
        ("modules", "console", 3),
        ("packages", "one", 3),
        ("deckhouse-cli/plugins", "stronghold", 3),
    ],
)
def test_a_tag_appears_after_all_that_it_promises(repository: str, tag: str, stage: int) -> None:
    assert publication_stage(repository, tag) == stage


@pytest.mark.parametrize(
    ("path", "component", "archive"),
    [
        ("", ("platform", "platform"), "platform.tar"),
        ("install-standalone", ("platform", "platform"), "platform.tar"),
        ("release-channel", ("platform", "platform"), "platform.tar"),
        ("installer", ("installer", "installer"), "installer.tar"),
        ("security/trivy-db", ("security", "trivy-db"), "security.tar"),
        ("modules/console", ("module", "console"), "module-console.tar"),
        ("modules/console/release", ("module", "console"), "module-console.tar"),
        ("modules/console/extra/db", ("module", "console"), "module-console.tar"),
        ("packages/one/version", ("package", "one"), "package-one.tar"),
        ("deckhouse-cli/plugins/two", ("plugin", "two"), "plugin-two.tar"),
    ],
)
def test_a_path_says_which_component_and_archive_a_repository_belongs_to(
    path: str, component: tuple[str, str], archive: str
) -> None:
    assert component_of(path) == component
    assert archive_of(path) == archive
    assert is_archive_name(archive)


@pytest.mark.parametrize("path", ["modules", "deckhouse-cli/plugins/a/b", "security/a/b", "else"])
def test_what_belongs_to_nothing_known_has_no_archive(path: str) -> None:
    assert component_of(path) == ("other", path)
    with pytest.raises(InputError, match="has no place in a bundle"):
        archive_of(path)


@pytest.mark.parametrize("name", ["console", "a.b_c__d-e", "sha256-" + "a" * 63])
def test_a_tag_of_an_index_names_a_component(name: str) -> None:
    assert names_component(name)


@pytest.mark.parametrize("name", ["Console", "-a", "sha256-" + "a" * 64, f"sha256-{'a' * 64}.sig"])
def test_signatures_and_names_that_no_repository_can_have_name_no_component(name: str) -> None:
    assert not names_component(name)


@pytest.mark.parametrize(
    ("tag", "by_digest", "attached"),
    [
        ("a" * 64, True, False),
        ("a" * 128, True, False),
        ("sha256-" + "a" * 64, True, True),
        ("sha256-" + "a" * 64 + ".att", True, True),
        ("sha512-" + "a" * 64 + ".sig", True, True),
        ("sha256-" + "a" * 63, False, False),
        ("A" * 64, False, False),
        ("v1.2.3", False, False),
    ],
)
def test_tags_that_are_made_of_digests_are_known_by_their_form(
    tag: str, by_digest: bool, attached: bool
) -> None:
    assert is_digest_tag(tag) is by_digest
    assert is_attachment_tag(tag) is attached


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


_early = st.lists(
    st.sampled_from(["0", "1", "2", "10", "99999999999999999999", "alpha", "rc", "Z", "-", "a-1"]),
    max_size=4,
).map(".".join)


@given(st.lists(st.builds(Version, st.integers(0, 1), st.just(0), st.just(0), _early), max_size=6))
def test_versions_are_ordered_by_precedence_whatever_their_pre_releases_are(
    found: list[Version],
) -> None:
    ordered = in_order(version.replace(prerelease=version.prerelease or None) for version in found)
    assert all(one < other for one, other in itertools.pairwise(ordered))


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


@given(st.permutations(["v1.10.0", "1.9.0", "v1.9.0", "v1.9.0-rc.1", "stable", "alpha"]))
def test_tags_are_listed_by_precedence_and_other_tags_last(found: list[str]) -> None:
    assert tags_in_order(found) == ("v1.9.0-rc.1", "1.9.0", "v1.9.0", "v1.10.0", "alpha", "stable")
    assert tags_in_order(found, newest_first=True) == (
        *("v1.10.0", "v1.9.0", "1.9.0", "v1.9.0-rc.1"),
        *("alpha", "stable"),
    )
