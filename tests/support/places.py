"""Every kind of source and target, behind one face, so that one suite runs over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirror.bundle.reader import BundleReader
from mirror.bundle.writer import BundleWriter
from mirror.errors import MirrorError
from mirror.oci import Digest, Manifest, Repository
from mirror.registry import ConnectionOptions, RegistryClient, RegistryWriter, RetryPolicy
from mirror.run import Run
from mirror.serve import MemoryStorage, Store
from mirror.serve.store import StoredManifest
from mirror.sync import (
    Inventory,
    InventoryBuilder,
    ManifestNode,
    MemoryStore,
    Plan,
    Source,
    Target,
    make_plan,
    transfer,
)
from mirror.sync.publication import Goal, Publication
from mirror.sync.publication_state import read_state
from mirror.sync.statement import Statement
from mirror.sync.tree import Locate, RegistrySource, RegistryTarget, RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.support.bundles import archives_of, pack, seal_of


def below(root: str) -> Locate:
    """Everything lies below repository `root`; the empty path is `root` itself."""
    return lambda path: f"{root}/{path}" if path else root


KINDS = ("memory", "registry", "bundle")


def client_of(registry: EmbeddedRegistry, *, attempts: int = 1) -> RegistryClient:
    """A client that does not wait between its attempts."""
    retries = RetryPolicy(attempts=attempts, base_delay_s=0.0)
    options = ConnectionOptions(plain_http=True, retries=retries)
    return RegistryClient(registry.address, options=options)


def storage_of(registry: EmbeddedRegistry) -> MemoryStorage:
    """What a registry of the tests keeps things in."""
    assert isinstance(registry.storage, MemoryStorage)
    return registry.storage


def tree_of(client: RegistryWriter, root: str = "dkp/ee") -> RegistryTree:
    """The tree below `root` in a client's registry."""
    return RegistryTree(client, Repository(client.host, root))


def state(tree: RegistryTree, statement: Statement) -> None:
    """Publish a statement; no tag turns with it."""
    publication = Publication(tree, read_state(tree), Goal.of(statement))
    publication.carry_out(Plan(), tree.source(), tree.target(), run=Run())


class Contents(Protocol):
    """What is read of a registry's storage behind its server's back."""

    def repositories(self) -> Sequence[str]: ...
    def tags(self, repository: str) -> Sequence[str]: ...
    def resolve(self, repository: str, tag: str) -> Digest | None: ...
    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None: ...
    def blob_size(self, repository: str, digest: Digest) -> int | None: ...


def stored(store: Contents, root: str) -> Inventory:
    """What a registry's storage really holds below `root`, read behind the server's back.

    Blobs are those that its manifests need.
    """
    builder = InventoryBuilder()
    for name in store.repositories():
        if name != root and not name.startswith(f"{root}/"):
            continue
        path = name.removeprefix(root).removeprefix("/")
        pending: list[Digest] = []
        for tag in store.tags(name):
            digest = store.resolve(name, tag)
            if digest is not None:
                builder.add_tag(path, tag, digest)
                pending.append(digest)
        while pending:
            held = store.manifest(name, digest := pending.pop())
            if held is None:
                continue
            read = Manifest.parse(held.raw, held.media_type, algorithm=digest.algorithm)
            node = ManifestNode.of(read)
            assert node.descriptor.digest == digest
            builder.add_manifest(path, node, closed=False)
            pending += [child.digest for child in node.children]
            for blob in node.blobs:
                size = store.blob_size(name, blob.digest)
                if size is not None:
                    builder.add_blob(path, blob.digest, size)
    return builder.build()


class Destination(Protocol):
    """A target, and how to see what arrived there."""

    @property
    def target(self) -> Target: ...

    def holds(self) -> Inventory:
        """What is there once the transfer is over, read back by other means than it was put."""
        ...


@dataclass
class _InMemory:
    target: MemoryStore

    def holds(self) -> Inventory:
        return self.target.inventory()


@dataclass
class _InRegistry:
    target: RegistryTarget
    store: Store
    root: str

    def holds(self) -> Inventory:
        return stored(self.store, self.root)


@dataclass
class _InBundle:
    target: BundleWriter
    folder: Path

    def holds(self) -> Inventory:
        try:
            self.target.finish()
        except MirrorError:
            return Inventory()
        with BundleReader([self.folder]) as reader:
            return reader.inventory()


@contextmanager
def source_of(
    kind: str, store: MemoryStore, registry: EmbeddedRegistry, folder: Path
) -> Iterator[Source]:
    """A source of that kind which offers what `store` holds."""
    wanted = store.inventory()
    match kind:
        case "memory":
            yield store
        case "bundle":
            pack(store, wanted, folder)
            with BundleReader([folder]) as reader:
                yield reader
        case _:
            with client_of(registry) as client:
                filled = RegistryTarget(client, below("source"))
                transfer(make_plan(wanted, Inventory()), store, filled)
                registry.requests.clear()
                yield RegistrySource(client, below("source"))


@contextmanager
def destination_of(
    kind: str, wanted: Inventory, registry: EmbeddedRegistry, folder: Path
) -> Iterator[Destination]:
    """An empty target of that kind, with room for `wanted`."""
    match kind:
        case "memory":
            yield _InMemory(MemoryStore("target"))
        case "bundle":
            with BundleWriter(folder, seal_of(archives_of(wanted))) as writer:
                yield _InBundle(writer, folder)
        case _:
            assert isinstance(registry.storage, Store)
            with client_of(registry) as client:
                target = RegistryTarget(client, below("target"), run=Run(jobs=2))
                yield _InRegistry(target, registry.storage, "target")
