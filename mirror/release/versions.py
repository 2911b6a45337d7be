"""Release versions: semantic versions as tags write them (`v1.69.0`), and as people type them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from semver import Version

MAX_VERSION_LENGTH = 255
"""Longer text is no version to us; a tag has 128 characters at most."""

_LARGEST_NUMBER = 2**64 - 1
_IDENTIFIERS = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_NUMBER_WITH_ZEROS_AHEAD = re.compile(r"0[0-9]+")
LITERAL = re.compile(
    r"v?([0-9]+|[xX*])(?:\.([0-9]+|[xX*]))?(?:\.([0-9]+|[xX*]))?"
    rf"(?:-({_IDENTIFIERS}))?(?:\+({_IDENTIFIERS}))?"
)
"""A version as people type it: parts may be missing or be wildcards. Groups: its five parts."""

_PRE_RELEASE_STAGES = ("alpha", "beta", "rc", "pre", "preview", "snapshot")


def parse_version(text: str) -> Version | None:
    """The version that a tag or a `version.json` spells, with or without `v`; None for others."""
    if len(text) > MAX_VERSION_LENGTH:
        return None
    try:
        return Version.parse(text.removeprefix("v"))
    except ValueError:
        return None


def read_version(text: str) -> Version | None:
    """The version that a person typed: as `parse_version`, and missing parts count as 0.

    `1.69` and `v1` are versions here, wildcards (`1.x`) are not; None for all that is no version.
    """
    match = LITERAL.fullmatch(text)
    if match is None or any(part in ("x", "X", "*") for part in match.groups()[:3]):
        return None
    return literal_version(match, 3)


def literal_version(literal: re.Match[str], parts: int) -> Version | None:
    """The version of a match of `LITERAL`, of whose numbers the first `parts` count; else 0.

    None where a number is beyond 64 bits, or a pre-release's number starts with 0.
    """
    if len(literal.group()) > MAX_VERSION_LENGTH:
        return None
    numbers = [int(number or 0) for number in literal.groups()[:parts]] + [0] * (3 - parts)
    pre_release = literal.group(4)
    if max(numbers) > _LARGEST_NUMBER:
        return None
    if pre_release and any(map(_NUMBER_WITH_ZEROS_AHEAD.fullmatch, pre_release.split("."))):
        return None
    major, minor, patch = numbers
    return Version(major, minor, patch, pre_release, literal.group(5))


def version_tag(version: Version) -> str:
    """The tag under which a version is published."""
    return f"v{version}"


def tags_of_versions(tags: Iterable[str]) -> dict[Version, str]:
    """Version → the tag that spells it, from the oldest to the newest; other tags are left out.

    Where two tags spell one version (`v1.2.3`, `1.2.3`), the one that `version_tag` gives counts.
    """
    found: dict[Version, str] = {}
    for tag in tags:
        version = parse_version(tag)
        if version is not None and found.get(version) != version_tag(version):
            found[version] = tag
    return {version: found[version] for version in in_order(found)}


def in_order(versions: Iterable[Version]) -> list[Version]:
    """Every version once, from the oldest to the newest, whatever the order they come in."""
    # Builds of one version rank equal, so their text decides.
    return sorted(set(versions), key=lambda version: (version, version.build or ""))


def latest_patches(versions: Iterable[Version], *, releases_first: bool = False) -> list[Version]:
    """The highest version of each major.minor, from the oldest to the newest.

    With `releases_first` a pre-release is taken only where its minor version has no release.
    """
    newest: dict[tuple[int, int], Version] = {}
    for version in in_order(versions):
        before = newest.get((version.major, version.minor))
        if releases_first and version.prerelease and before and not before.prerelease:
            continue
        newest[version.major, version.minor] = version
    return in_order(newest.values())


def is_early(version: Version) -> bool:
    """Whether a version is not meant for use yet (`1.2.0-rc.1`).

    What other builds append (`1.2.0-main`) only says where they come from.
    """
    stage = (version.prerelease or "").partition(".")[0].lower()
    return stage.startswith(_PRE_RELEASE_STAGES)


def comparable(version: Version) -> Version:
    """`version` as constraints judge it: without build, nor a mark of where it comes from."""
    keep = version.prerelease if is_early(version) else None
    return version.replace(prerelease=keep, build=None)
