"""A release tree at a source: built, and served by a registry of this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from examples.release_tree import ModuleSpec, ReleaseTree, TreeSpec, build, spread
from examples.release_tree.images import image, layer
from mirror.oci import Digest, Manifest
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.serve import Store, put_blob
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTarget
from mirror.testing import EmbeddedRegistry

TINY = TreeSpec(
    versions=("v1.69.1", "v1.70.0"),
    channels=spread(("v1.69.1", "v1.70.0")),
    components=2,
    layer_bytes=1000,
    modules=(ModuleSpec("console", ("v1.0.0", "v1.1.0"), spread(("v1.0.0", "v1.1.0"))),),
    packages=(ModuleSpec("redis", ("v7.0.1",), spread(("v7.0.1",))),),
)
"""For tests that run a whole pull or push several times."""


@dataclass(frozen=True)
class Published:
    """A tree in a registry. `address` is `host:port`; `tree` knows what is true about it."""

    tree: ReleaseTree
    address: str

    @property
    def root(self) -> str:
        """What `--source` is to name."""
        return f"{self.address}/{self.tree.root}"


def publish(
    spec: TreeSpec,
    address: str,
    *,
    options: ConnectionOptions = ConnectionOptions(plain_http=True),  # noqa: B008 it is frozen
    credentials: Credentials | None = None,
) -> Published:
    """Build the tree of `spec` into the registry at `address`."""
    store = MemoryStore()
    tree = build(spec, store)
    wanted = store.inventory()
    with RegistryClient(address, options=options, credentials=credentials) as client:
        target = RegistryTarget(client, lambda path: path)
        transfer(make_plan(wanted, target.held(wanted)), store, target)
    return Published(tree, address)


@dataclass(frozen=True)
class Source(Published):
    """A tree in a registry inside this process."""

    registry: EmbeddedRegistry


class Recorded:
    """What building a tree adds, to add it again elsewhere: most trees are built many times."""

    def __init__(self, spec: TreeSpec) -> None:
        self._blobs: list[tuple[str, bytes]] = []
        self._manifests: list[tuple[str, Manifest, tuple[str, ...]]] = []
        self.tree = build(spec, self)

    def add_blob(self, repository: str, data: bytes) -> Digest:
        self._blobs.append((repository, data))
        return Digest.of(data)

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest:
        manifest = Manifest.parse(raw, media_type)
        self._manifests.append((repository, manifest, tuple(tags)))
        return manifest

    def add_to(self, storage: Store) -> None:
        """Add all of it once more."""
        for repository, data in self._blobs:
            put_blob(storage, repository, data)
        for repository, manifest, tags in self._manifests:
            for tag in tags or (None,):
                storage.put_manifest(repository, manifest, tag)


_RECORDED: dict[str, Recorded] = {}


class Shelf:
    """A registry of this process, as a place to build into without its server."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        assert isinstance(registry.storage, Store)
        self._storage = registry.storage

    def add_blob(self, repository: str, data: bytes) -> Digest:
        return put_blob(self._storage, repository, data)

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest:
        manifest = Manifest.parse(raw, media_type)
        self._storage.put_manifest(repository, manifest)
        for tag in tags:
            self._storage.put_manifest(repository, manifest, tag)
        return manifest


def serve(spec: TreeSpec, registry: EmbeddedRegistry) -> Source:
    """Build the tree of `spec` into a registry of this process."""
    assert isinstance(registry.storage, Store)
    found = _RECORDED.get(repr(spec)) or _RECORDED.setdefault(repr(spec), Recorded(spec))
    found.add_to(registry.storage)
    return Source(found.tree, registry.address, registry)


def replace_images(
    registry: EmbeddedRegistry, files: Mapping[str, Mapping[str, bytes | str]]
) -> None:
    """Replace images of a source: `repository:tag` (under the edition) → files in the image."""
    shelf = Shelf(registry)
    for name, content in files.items():
        repository, _, tag = f"{TINY.root}/{name}".rpartition(":")
        made = image([layer(dict(content))])
        for data in made.blobs.values():
            shelf.add_blob(repository, data)
        shelf.add_manifest(repository, made.raw, made.media_type, tags=[tag])
