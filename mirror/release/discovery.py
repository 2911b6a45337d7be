"""What tells a cluster what a bundle has.

* The index of what exists: `modules:<name>`, `packages:<name>`, `deckhouse-cli/plugins:<name>`. A
  cluster lists the tags of these repositories to learn which modules, packages and plugins there
  are. It does not read the images that these tags name, so one tiny image does for all of them.
* The file that describes a bundle's releases to a cluster without channels.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import yaml

from mirror.documents import parse_yaml
from mirror.errors import SourceContentError
from mirror.layout import (
    INDEX_REPOSITORIES,
    RELEASE_CHANNEL,
    RELEASES_FILE,
    describes_package,
    version_tag,
)
from mirror.oci import Descriptor, Digest
from mirror.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, descriptor_json
from mirror.release.source import VERSION_JSON, ReleaseInfo, ReleaseSource, parse_release
from mirror.sync import Inventory, MemoryStore
from mirror.sync.plan import Tags


def discovery_images(bundle: Inventory) -> MemoryStore:
    """Make a store with one tag for each module, package and plugin that `bundle` has."""
    store = MemoryStore("index of modules, packages and plugins")
    # A bundle describes every package, also those that it does not have.
    described = {path for path in bundle.repositories if describes_package(path)}
    for index in INDEX_REPOSITORIES:
        names = {
            path[len(index) + 1 :].partition("/")[0]
            for path, content in bundle.repositories.items()
            if path.startswith(f"{index}/") and content.tags and path not in described
        }
        if names:
            _placeholder(store, index, sorted(names))
    return store


def index_of(bundle: Inventory, named: Tags) -> Inventory:
    """The index that a registry with the tags `named` must have to hold `bundle`.

    A bundle has no index; a push makes it. A tag that names what another tool put there will do.
    """
    wanted = {}
    for path, content in discovery_images(bundle).inventory().repositories.items():
        there = named.get(path, {})
        tags = {tag: ours for tag, ours in content.tags.items() if there.get(tag, ours) == ours}
        if tags:
            wanted[path] = replace(content, tags=tags)
    return Inventory(wanted)


def has_index(inventory: Inventory) -> bool:
    """Whether an inventory has an index of what exists. A registry's has, a bundle's has not."""
    return any(inventory.repository(path).tags for path in INDEX_REPOSITORIES)


def _placeholder(store: MemoryStore, repository: str, tags: Iterable[str]) -> None:
    """An image of one layer with one empty file; every byte of it is fixed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as layer:
        layer.addfile(tarfile.TarInfo(".index"))
    plain = buffer.getvalue()
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(plain))]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}

    def added(media_type: str, data: bytes) -> dict[str, object]:
        digest = store.add_blob(repository, data)
        return descriptor_json(Descriptor(media_type, digest, len(data)))

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": added(OCI_CONFIG, _json(config)),
        "layers": [added(OCI_LAYER_GZIP, gzip.compress(plain, mtime=0))],
    }
    store.add_manifest(repository, _json(manifest), OCI_MANIFEST, tags=tags)


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


# -- the list of releases --------------------------------------------------------------------------

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
