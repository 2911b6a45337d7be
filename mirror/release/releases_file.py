"""The file that describes a bundle's releases to a cluster without channels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import yaml

from mirror.documents import parse_yaml
from mirror.errors import SourceContentError
from mirror.layout import RELEASE_CHANNEL, RELEASES_FILE, version_tag
from mirror.release.source import VERSION_JSON, ReleaseInfo, ReleaseSource, parse_release

CHANGELOG_YAML = "changelog.yaml"


def releases_file(source: ReleaseSource, tags: Collection[str]) -> dict[str, bytes]:
    """Write the file that describes the releases to a cluster, from their release images."""

    def describe(tag: str) -> tuple[ReleaseInfo, Mapping[str, Any]]:
        where = source.where(RELEASE_CHANNEL, tag)
        manifest = source.required(RELEASE_CHANNEL, tag, f"platform release {tag}")
        found = source.files(RELEASE_CHANNEL, manifest, (VERSION_JSON, CHANGELOG_YAML))
        info = parse_release(found.get(VERSION_JSON), where)
        return info, parse_changelog(found.get(CHANGELOG_YAML, b""), where)

    releases = source.each("release descriptions", tags, describe)
    return {RELEASES_FILE: deckhouse_releases(releases)} if releases else {}


def parse_changelog(data: bytes, where: str) -> Mapping[str, Any]:
    """A release image's `changelog.yaml`: a mapping of modules to their changes."""
    try:
        document = parse_yaml(data)
    except ValueError as err:
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} cannot be read: {err}") from err
    if not isinstance(document, dict | None):
        raise SourceContentError(f"{where}: {CHANGELOG_YAML} is not a mapping")
    return document or {}


def deckhouse_releases(releases: Iterable[tuple[ReleaseInfo, Mapping[str, Any]]]) -> bytes:
    """Write `deckhousereleases.yaml`, from which a cluster without channels learns its releases.

    `releases` are what their images say in `version.json` and `changelog.yaml`. The file has one
    YAML document per release, oldest first, with sorted keys; each begins with `---`.
    """
    ordered = sorted(releases, key=lambda release: release[0].version)
    text: str = yaml.safe_dump_all(
        [_document(info, changelog) for info, changelog in ordered],
        explicit_start=True,
        allow_unicode=True,
        default_flow_style=False,
    )
    return text.encode()


def _document(info: ReleaseInfo, changelog: Mapping[str, Any]) -> dict[str, Any]:
    tag = version_tag(info.version)
    disruptions = info.disruptions.get(f"{info.version.major}.{info.version.minor}")
    spec = {
        "changelog": dict(changelog),
        "changelogLink": f"https://github.com/deckhouse/deckhouse/releases/tag/{tag}",
        "version": tag,
        **({"disruptions": list(disruptions)} if disruptions else {}),
        **({"requirements": dict(info.requirements)} if info.requirements else {}),
    }
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "approved": False,
        "kind": "DeckhouseRelease",
        "metadata": {"name": tag},
        "spec": spec,
        "status": {"approved": False, "message": "", "transitionTime": "0001-01-01T00:00:00Z"},
    }
