"""A release tree at a source, and the bundle that a pull makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples.release_tree import SMALL, ModuleSpec, ReleaseTree, TreeSpec, build, spread
from mirror.oci import Digest, Manifest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.serve import MemoryStorage, Store, put_blob
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.registry import RegistryTarget
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import call_mirror

if TYPE_CHECKING:
    from tests.journey.releases import Release

TINY = TreeSpec(
    versions=("v1.69.1", "v1.70.0"),
    channels=spread(("v1.69.1", "v1.70.0")),
    components=6,
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


def publish(spec: TreeSpec, address: str) -> Published:
    """Build the tree of `spec` into the registry at `address`."""
    store = MemoryStore()
    tree = build(spec, store)
    wanted = store.inventory()
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(address, options=options) as client:
        target = RegistryTarget(client, lambda path: path)
        transfer(make_plan(wanted, target.held(wanted)), store, target)
    return Published(tree, address)


@dataclass(frozen=True)
class Source(Published):
    """A tree in a registry inside this process."""

    registry: EmbeddedRegistry


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
    return Source(build(spec, Shelf(registry)), registry.address, registry)


@pytest.fixture(scope="session")
def _small_registry(_this_machine_only: None) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield registry


@pytest.fixture(scope="session")
def small_source(_small_registry: EmbeddedRegistry) -> Source:
    """The small tree; tests only read it."""
    return serve(SMALL, _small_registry)


@pytest.fixture(scope="session")
def small_bundle(small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a default pull makes of the small tree; tests only read it."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    call_mirror("pull", folder, "--source", small_source.root, "--insecure").succeeded()
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny tree, whose source is gone."""
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    with EmbeddedRegistry(MemoryStorage()) as registry:
        root = serve(TINY, registry).root
        call_mirror("pull", folder, "--source", root, "--insecure").succeeded()
    return folder


@pytest.fixture(scope="session")
def releases(
    _this_machine_only: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Release, ...]:
    """Bundles of three successive releases; tests only read them."""
    from tests.journey.releases import pull_releases  # which is made of what is above

    return pull_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def source(embedded_registry: EmbeddedRegistry) -> Source:
    """A tiny tree in a registry of the test's own."""
    return serve(TINY, embedded_registry)


@pytest.fixture
def make_target(make_embedded_registry: MakeEmbeddedRegistry) -> Callable[[], str]:
    """Start empty registries to push to; answers what REGISTRY is to be."""
    return lambda: f"{make_embedded_registry().address}/dkp/ee"
