"""The index of what exists: `modules:<name>`, `packages:<name>`, `deckhouse-cli/plugins:<name>`.

A cluster lists the tags of these repositories to learn which modules, packages and plugins there
are. It does not read the images that these tags name, so one tiny image does for all of them.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import replace

from mirror.layout import INDEX_REPOSITORIES, describes_package
from mirror.oci import Descriptor, Digest
from mirror.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, descriptor_json
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
