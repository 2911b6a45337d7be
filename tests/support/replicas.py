"""Embedded registries as the replicas of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mirror.layout import publication_stage
from mirror.operations.replicate import ReplicaResult
from mirror.run import Run
from mirror.serve import MemoryStorage, put_blob
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.tree import RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.support.places import client_of, state, storage_of, stored, tree_of
from tests.support.processes import free_port
from tests.support.wire import joined

ROOT = "system/deckhouse"


class Replica:
    """An embedded registry, and the tree in it."""

    def __init__(self, registry: EmbeddedRegistry, tree: RegistryTree) -> None:
        self.registry, self.tree = registry, tree

    @property
    def name(self) -> str:
        """`host:port/path`, as the command line takes it."""
        return self.tree.name

    @property
    def storage(self) -> MemoryStorage:
        """What it keeps things in."""
        return storage_of(self.registry)

    def held(self) -> Inventory:
        """What it really holds, without its statements."""
        found = stored(self.storage, ROOT)
        return found.filtered(lambda path: path != REPOSITORY)

    def fill(self, store: MemoryStore, generation: int | None = 1) -> None:
        """Bring all of `store` here and, with a `generation`, state it.

        What is in this process is filled behind its server's back, since tests fill hundreds.
        """
        wanted = store.inventory()
        if isinstance(self.registry, EmbeddedRegistry):
            _put(store, wanted, self.storage)
        else:
            place = self.tree.target(Run(4))
            transfer(make_plan(wanted, place.held(wanted), stage=publication_stage), store, place)
        if generation is not None:
            self.state(wanted, generation)
        self.registry.requests.clear()

    def state(self, inventory: Inventory, generation: int) -> None:
        """Publish a statement."""
        state(self.tree, Statement(inventory, generation, tool="tests"))


def _put(store: MemoryStore, wanted: Inventory, storage: MemoryStorage) -> None:
    for path, content in wanted.repositories.items():
        name = joined(ROOT, path)
        for digest, size in content.blobs.items():
            put_blob(storage, name, b"".join(store.blob(path, digest, size)))
        for digest in content.manifests:
            storage.put_manifest(name, store.manifest(path, digest))
        for tag, digest in content.tags.items():
            storage.put_manifest(name, store.manifest(path, digest), tag)


@contextmanager
def replicas(count: int) -> Iterator[list[Replica]]:
    """That many empty ones. Nobody else is given the port of one that a test stops."""
    with ExitStack() as opened:
        made = []
        for _ in range(count):
            registry = opened.enter_context(EmbeddedRegistry(MemoryStorage(), port=free_port()))
            client = opened.enter_context(client_of(registry))
            made.append(Replica(registry, tree_of(client, ROOT)))
        yield made


def only(results: tuple[ReplicaResult, ...]) -> ReplicaResult:
    """The result of the one replica that there is."""
    (one,) = results
    return one
