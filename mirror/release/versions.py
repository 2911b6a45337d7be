"""Release versions: semantic versions as tags write them (`v1.69.0`)."""

from __future__ import annotations

from collections.abc import Iterable

from semver import Version


def parse_version(text: str) -> Version | None:
    """The version that a tag or a `version.json` spells, with or without `v`; None for others."""
    try:
        return Version.parse(text.removeprefix("v"))
    except ValueError:
        return None


def version_tag(version: Version) -> str:
    """The tag under which a version is published."""
    return f"v{version}"


def versions_among(tags: Iterable[str]) -> list[Version]:
    """The tags that are versions, from the oldest to the newest."""
    return sorted(version for tag in tags if (version := parse_version(tag)) is not None)


def latest_patches(versions: Iterable[Version]) -> list[Version]:
    """The highest version of each major.minor, from the oldest to the newest."""
    newest: dict[tuple[int, int], Version] = {}
    for version in sorted(versions):
        newest[version.major, version.minor] = version
    return sorted(newest.values())
