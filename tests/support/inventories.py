"""Inventories made at random: as pure graphs, and as stores with the bytes that they speak of.

Everything is drawn from small pools, so that two inventories have much in common, as a bundle and
a half-filled registry have; and a digest stands for one and the same thing wherever it turns up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hypothesis import strategies as st

from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci import manifest as types
from mirror.oci.manifest import descriptor_json
from mirror.sync import Inventory, InventoryBuilder, ManifestNode, MemoryStore

LONG_PATH = "modules/a-module" + "-with-a-long-name" * 4 + "/extra/an-image" + "-with-more" * 2
"""A repository whose blobs have names that no plain tar header has room for."""

PATHS = (
    "",
    "install",
    "release-channel",
    "security/trivy-db",
    "modules/console",
    "modules/console/release",
    "packages/redis/version",
    "deckhouse-cli/plugins/netcheck",
    LONG_PATH,
)
"""Repositories that a bundle has archives for."""

TAGS = ("v1.0.0", "v1.1.0", "alpha", "stable", "2", "_", "sha256-0.att")

_SIZES = (0, 1, 511, 512, 513, 3000)


# -- pure graphs -----------------------------------------------------------------------------------


def fake_blob(number: int) -> Descriptor:
    """Blob `number` of the pool: equal numbers make equal descriptors."""
    return Descriptor(types.OCI_LAYER_GZIP, Digest.of(b"blob %d" % number), 100 + number)


def fake_manifest(
    blobs: Iterable[Descriptor] = (),
    children: Iterable[ManifestNode] = (),
    *,
    artifact_type: str | None = None,
    salt: int = 0,
) -> ManifestNode:
    """A manifest without bytes, whose digest follows from what it needs."""
    needed, below = tuple(blobs), tuple(child.descriptor for child in children)
    text = f"{[str(one.digest) for one in (*needed, *below)]} {artifact_type} {salt}"
    media_type = types.OCI_INDEX if below else types.OCI_MANIFEST
    descriptor = Descriptor(media_type, Digest.of(text.encode()), 400 + salt)
    return ManifestNode(descriptor, needed, below, artifact_type)


def add_closed(
    builder: InventoryBuilder,
    repository: str,
    node: ManifestNode,
    pool: dict[Digest, ManifestNode],
) -> None:
    """Add a manifest of `pool` and everything that it reaches."""
    pending = [node]
    while pending:
        one = pending.pop()
        builder.add_manifest(repository, one)
        pending += [pool[child.digest] for child in one.children]


@st.composite
def inventories(draw: st.DrawFn, *, paths: Sequence[str] = PATHS, most: int = 4) -> Inventory:
    """A closed inventory: a graph of images, artifacts and nested indexes over some repositories.

    Blobs and manifests that no tag leads to occur as well.
    """
    nodes: list[ManifestNode] = []
    for number in range(draw(st.integers(0, 6))):
        blobs = draw(st.lists(st.integers(0, 9), max_size=3))  # some twice, as empty layers are
        below = draw(st.lists(st.sampled_from(nodes), max_size=3, unique=True)) if nodes else []
        kind = draw(st.sampled_from([None, None, "application/vnd.example"]))
        nodes.append(fake_manifest(map(fake_blob, blobs), below, artifact_type=kind, salt=number))
    pool = {node.descriptor.digest: node for node in nodes}
    builder = InventoryBuilder()
    for path in draw(st.lists(st.sampled_from(paths), max_size=most, unique=True)):
        for number in draw(st.lists(st.integers(0, 9), max_size=2, unique=True)):
            blob = fake_blob(number)
            builder.add_blob(path, blob.digest, blob.size)
        if not nodes:
            continue
        for node in draw(st.lists(st.sampled_from(nodes), max_size=4, unique=True)):
            add_closed(builder, path, node, pool)
            for tag in draw(st.lists(st.sampled_from(TAGS), max_size=2, unique=True)):
                builder.add_tag(path, tag, node.descriptor.digest)
    return builder.build()


@dataclass(frozen=True)
class Item:
    """One thing that an inventory holds: a tag, or a manifest or blob by its digest."""

    repository: str
    kind: str
    key: str | Digest


def items(inventory: Inventory) -> list[Item]:
    """Everything that `inventory` holds, in canonical order."""
    found: list[Item] = []
    for path, content in sorted(inventory.repositories.items()):
        found += [Item(path, "tag", tag) for tag in sorted(content.tags)]
        found += [Item(path, "manifest", digest) for digest in sorted(content.manifests)]
        found += [Item(path, "blob", digest) for digest in sorted(content.blobs)]
    return found


def with_only(inventory: Inventory, kept: Iterable[Item]) -> Inventory:
    """`inventory` reduced to `kept`, added in that order."""
    builder = InventoryBuilder()
    for item in kept:
        content = inventory.repository(item.repository)
        match item.key:
            case str(tag):
                builder.add_tag(item.repository, tag, content.tags[tag])
            case digest if item.kind == "manifest":
                node = content.manifests[digest]
                builder.add_manifest(item.repository, node, closed=False)
            case digest:
                builder.add_blob(item.repository, digest, content.blobs[digest])
    return builder.build()


def without(inventory: Inventory, *removed: Item) -> Inventory:
    """`inventory` with some things gone, as after an accident."""
    return with_only(inventory, [item for item in items(inventory) if item not in removed])


def lost_with_manifest(inventory: Inventory, item: Item) -> list[Item]:
    """What a registry that drops `item` drops with it: with a manifest the tags that name it."""
    tags = inventory.repository(item.repository).tags
    return [
        Item(item.repository, "tag", tag)
        for tag, named in sorted(tags.items())
        if named == item.key
    ]


# -- content ---------------------------------------------------------------------------------------


class Shelf(Protocol):
    """Where images can be put: a `MemoryStore`, and what else has its way of taking them."""

    def add_blob(self, repository: str, data: bytes) -> Digest: ...
    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest: ...


def put_image(
    store: Shelf,
    repository: str,
    *tags: str,
    layers: Sequence[bytes] = (b"layer",),
    config: bytes = b"{}",
    docker: bool = False,
    artifact: bool = False,
) -> Digest:
    """Put an image (or an artifact) and its blobs into `store`."""
    manifest_type, config_type, layer_type = (
        (types.DOCKER_MANIFEST, types.DOCKER_CONFIG, types.DOCKER_LAYER_GZIP)
        if docker
        else (types.OCI_MANIFEST, types.OCI_CONFIG, types.OCI_LAYER_GZIP)
    )
    if artifact:
        config_type = "application/vnd.example.config.v1+json"
    document = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": _put(store, repository, config, config_type),
        "layers": [_put(store, repository, data, layer_type) for data in layers],
    }
    raw = json.dumps(document).encode()
    return store.add_manifest(repository, raw, manifest_type, tags=tags).digest


def _put(store: Shelf, repository: str, data: bytes, media_type: str) -> dict[str, object]:
    return descriptor_json(Descriptor(media_type, store.add_blob(repository, data), len(data)))


def put_index(
    store: MemoryStore, repository: str, *tags: str, children: Iterable[Digest], note: str = ""
) -> Digest:
    """Put an index of manifests that `repository` has; indexes among them make it a nested one."""
    document = {
        "schemaVersion": 2,
        "mediaType": types.OCI_INDEX,
        "manifests": [
            descriptor_json(store.manifest(repository, child).descriptor) for child in children
        ],
        "annotations": {"note": note},
    }
    raw = json.dumps(document).encode()
    return store.add_manifest(repository, raw, types.OCI_INDEX, tags=tags).digest


def sample_store() -> MemoryStore:
    """A small tree with one of everything: the same bytes at each call."""
    store = MemoryStore()
    base = b"base layer " * 300
    own = b"component"
    component = put_image(store, "", layers=(base, own))
    store.put_tag("", component.encoded, store.manifest("", component))
    child = put_image(store, "", config=b'{"arm":1}', layers=(base,))
    put_index(store, "", "v1.0.0", children=[component, child])
    put_image(store, "", "v1.1.0", "latest", layers=(base, b"", bytes(512)), docker=True)
    put_image(store, "release-channel", "v1.0.0", "alpha", layers=(b"version: v1.0.0",))
    put_image(store, "security/trivy-db", "2", layers=(b"db" * 700,), artifact=True)
    put_image(store, "modules/console", "v0.1.0", layers=(base, b"console"))
    put_image(store, "modules/console/release", "v0.1.0", "stable", layers=(b"v0.1.0",))
    put_image(store, LONG_PATH, "v3.2.1", layers=(b"far down",))
    return store


def newer_store() -> MemoryStore:
    """The same, and one more release of its platform."""
    store = sample_store()
    put_image(store, "", "v1.2.0", layers=(b"the next release",))
    return store


def put_image_by_sha512(store: MemoryStore, repository: str, *tags: str, note: int = 0) -> Digest:
    """Put an image that goes by SHA-512, as one of its layers does; the other goes by SHA-256."""
    data = b"layer %d " % (note // 2) * 30
    layers = [
        descriptor_json(
            Descriptor(
                types.OCI_LAYER,
                store.add_blob(repository, data, algorithm=algorithm),
                len(data),
            )
        )
        for algorithm in ("sha512", "sha256")
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": types.OCI_MANIFEST,
        "config": _put(store, repository, b'{"n":%d}' % note, types.OCI_CONFIG),
        "layers": layers,
    }
    raw = json.dumps(document).encode()
    return store.add_manifest(
        repository, raw, types.OCI_MANIFEST, tags=tags, algorithm="sha512"
    ).digest


@st.composite
def stores(draw: st.DrawFn, *, most: int = 4) -> MemoryStore:
    """A store whose every manifest a tag leads to, as in bundles; the bytes are real.

    Some blobs, and some images of indexes, go by SHA-512.
    """
    store = MemoryStore()
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=most, unique=True)):
        made: list[Digest] = []
        for number in range(draw(st.integers(1, 3))):
            sizes = draw(st.lists(st.sampled_from(_SIZES), max_size=3))
            made.append(
                put_image(
                    store,
                    path,
                    f"image-{number}",
                    layers=[bytes([draw(st.integers(0, 3))]) * size for size in sizes],
                    docker=draw(st.booleans()),
                    artifact=draw(st.integers(0, 3)) == 0,
                )
            )
        for number in range(draw(st.integers(0, 2))):
            children = draw(st.lists(st.sampled_from(made), max_size=3, unique=True))
            if draw(st.integers(0, 2)) == 0:
                children.append(put_image_by_sha512(store, path, note=number))
            note = f"{number}"
            made.append(put_index(store, path, f"index-{number}", children=children, note=note))
    return store


def put_signature(store: MemoryStore, repository: str, subject: Digest, note: str = "") -> Digest:
    """An artifact that refers to `subject` and has no tag."""
    signature = put_image(store, repository, layers=(b"signed" + note.encode(),), artifact=True)
    document = json.loads(store.manifest(repository, signature).raw)
    document["subject"] = descriptor_json(store.manifest(repository, subject).descriptor)
    return store.add_manifest(repository, json.dumps(document).encode(), types.OCI_MANIFEST).digest
