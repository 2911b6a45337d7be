"""`deckhousereleases.yaml`: the releases of a bundle as the cluster's own documents.

A cluster without a way to the release channels is told of its releases by these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from mirror.layout import version_tag
from mirror.release.metadata import ReleaseInfo

_CHANGELOG = "https://github.com/deckhouse/deckhouse/releases/tag/"
_NEVER = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class DescribedRelease:
    """A release and what its image says of it: `version.json` and `changelog.yaml`."""

    info: ReleaseInfo
    changelog: Mapping[str, Any] = field(default_factory=dict)


def deckhouse_releases(releases: Iterable[DescribedRelease]) -> bytes:
    """One YAML document per release, oldest first, keys sorted; each begins with `---`."""
    documents = [
        _document(release) for release in sorted(releases, key=lambda one: one.info.version)
    ]
    text: str = yaml.safe_dump_all(
        documents, explicit_start=True, sort_keys=True, allow_unicode=True, default_flow_style=False
    )
    return text.encode()


def _document(release: DescribedRelease) -> dict[str, Any]:
    info = release.info
    tag = version_tag(info.version)
    spec: dict[str, Any] = {
        "changelog": dict(release.changelog),
        "changelogLink": f"{_CHANGELOG}{tag}",
        "version": tag,
    }
    disruptions = info.disruptions.get(f"{info.version.major}.{info.version.minor}")
    if disruptions:
        spec["disruptions"] = list(disruptions)
    if info.requirements:
        spec["requirements"] = dict(info.requirements)
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "approved": False,
        "kind": "DeckhouseRelease",
        "metadata": {"name": tag},
        "spec": spec,
        "status": {"approved": False, "message": "", "transitionTime": _NEVER},
    }
