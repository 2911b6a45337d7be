"""Inventories: what a place holds, as pure data.

For each repository: which tags name which digest, which manifests are there, and which blobs.
Everything else is arithmetic on this: a selection, a bundle, a registry's state and a delta are
inventories; a plan is the difference of two.

An inventory may be *open*: a manifest in it may reach blobs or children that it does not have,
which is how a half-filled or damaged registry looks. `gaps` lists them; a *closed* one has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.errors import DamagedBundleError, InputError, InvalidManifestError
from mirror.oci import Descriptor, Digest
from mirror.sync.repository_content import (
    NOTHING,
    ManifestNode,
    RepositoryContent,
    content_document,
    members,
    node_document,
    read_contents,
    read_nodes,
    reason,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that an inventory promises and does not hold.

    `missing` is needed by the manifest `needed_by`, or by `tag` itself when `needed_by` is None.
    """

    repository: str
    missing: Digest
    needed_by: Digest | None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """Repository contents by path, relative to the root that a tree of repositories shares.

    The empty path is the root repository itself. Repositories without content are left out, so
    that equal content means equal inventories.
    """

    repositories: Mapping[str, RepositoryContent] = field(default_factory=dict)

    def repository(self, path: str) -> RepositoryContent:
        """What the repository `path` holds; nothing if the inventory does not know it."""
        return self.repositories.get(path, NOTHING)

    def digest(self) -> Digest:
        """Identity of all content: equal for two places if and only if they hold the same."""
        found = hashlib.sha256()
        for piece in self._pieces():
            found.update(piece)
        return Digest("sha256", found.hexdigest())

    def blob_sizes(self) -> dict[Digest, int]:
        """Every distinct blob with its size in bytes, in canonical order."""
        sizes: dict[Digest, int] = {}
        for _, content in sorted(self.repositories.items()):
            sizes.update(content.blobs)
        return dict(sorted(sizes.items()))

    def manifest_nodes(self) -> dict[Digest, ManifestNode]:
        """Every distinct manifest, in canonical order."""
        nodes: dict[Digest, ManifestNode] = {}
        for content in self.repositories.values():
            nodes.update(content.manifests)
        return dict(sorted(nodes.items()))

    def gaps(self) -> Iterator[Gap]:
        """What is promised and not there, in canonical order. A closed inventory has none."""
        for path, content in sorted(self.repositories.items()):
            for tag, digest in sorted(content.tags.items()):
                if digest not in content.manifests:
                    yield Gap(path, digest, None, tag)
            for digest, node in sorted(content.manifests.items()):
                # Once each: images often have the same (empty) layer several times.
                for blob in dict.fromkeys(blob.digest for blob in node.blobs):
                    if blob not in content.blobs:
                        yield Gap(path, blob, digest)
                for child in dict.fromkeys(child.digest for child in node.children):
                    if child not in content.manifests:
                        yield Gap(path, child, digest)

    def counts(self) -> dict[str, int]:
        """How many of each kind there are; each distinct manifest and blob counts once."""
        return {
            "repositories": len(self.repositories),
            "tags": sum(len(content.tags) for content in self.repositories.values()),
            "manifests": len(self.manifest_nodes()),
            "blobs": len(self.blob_sizes()),
        }

    def filtered(self, keep: Callable[[str], bool]) -> Inventory:
        """Only the repositories whose path `keep` accepts."""
        return Inventory({p: c for p, c in self.repositories.items() if keep(p)})

    # -- canonical form ------------------------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """The inventory as JSON values (schema version 1); see docs/inventory.md."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "manifests": self.manifests_document(),
            "repositories": self.repositories_document(),
        }

    def manifests_document(self) -> dict[str, Any]:
        """The table of manifests that all repositories share."""
        return {str(digest): node_document(node) for digest, node in self.manifest_nodes().items()}

    def repositories_document(self) -> dict[str, Any]:
        """What each repository holds; its manifests by digest only."""
        return {
            path: content_document(content)
            for path, content in sorted(self.repositories.items())
            if content
        }

    def to_json(self) -> bytes:
        """The one canonical serialisation: UTF-8, keys sorted, no white space."""
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        """That, a manifest or a repository at a time: as a whole it takes several times its size
        while it is made."""
        yield b'{"manifests":{'
        yield from members(
            (str(digest), node_document(node)) for digest, node in self.manifest_nodes().items()
        )
        yield b'},"repositories":{'
        yield from members(
            (path, content_document(content))
            for path, content in sorted(self.repositories.items())
            if content
        )
        yield b'},"schemaVersion":%d}' % SCHEMA_VERSION

    @classmethod
    def from_document(cls, document: Any) -> Inventory:
        """Read what `to_document` wrote.

        Raises:
            DamagedBundleError: the document is not an inventory.
            InputError: it is one of a newer schema.
        """
        try:
            version = document["schemaVersion"]
            if version != SCHEMA_VERSION:
                raise InputError(
                    f"the inventory has schema version {version}; this release of mirror reads "
                    f"version {SCHEMA_VERSION}: use a newer one"
                )
            return cls.from_tables(document["manifests"], document["repositories"])
        except (KeyError, TypeError) as err:
            raise DamagedBundleError(f"this is not an inventory: {reason(err)}") from err

    @classmethod
    def from_tables(
        cls, manifests: Mapping[str, Any], repositories: Mapping[str, Any]
    ) -> Inventory:
        """Read what `manifests_document` and `repositories_document` wrote.

        Raises:
            DamagedBundleError: these are other things.
        """
        return cls.from_nodes(read_nodes(manifests), repositories)

    @classmethod
    def from_nodes(
        cls, nodes: Mapping[Digest, ManifestNode], repositories: Mapping[str, Any]
    ) -> Inventory:
        """The same where several inventories share one table of manifests, read by `read_nodes`.

        Raises:
            DamagedBundleError: `repositories` is something else.
        """
        contents = read_contents(nodes, repositories)
        return cls({path: content for path, content in contents.items() if content})


def union(inventories: Iterable[Inventory]) -> Inventory:
    """All content of all of them; where two name a tag differently, the later one wins."""
    builder = InventoryBuilder()
    for inventory in inventories:
        builder.add_inventory(inventory)
    return builder.build()


def size_conflict(
    repository: str, node: ManifestNode, blob: Descriptor, known: int
) -> InvalidManifestError:
    """The error about a manifest that gives `blob` another size than the `known` one, in bytes."""
    return InvalidManifestError(
        f"manifest {node.descriptor.digest} of {repository or 'the root repository'} says that "
        f"blob {blob.digest} has {blob.size} bytes, and another manifest that it has {known}"
    )


class InventoryBuilder:
    """Collects an inventory piece by piece. Not thread-safe."""

    def __init__(self) -> None:
        self._repositories: dict[
            str, tuple[dict[str, Digest], dict[Digest, ManifestNode], dict[Digest, int]]
        ] = {}

    def _content(
        self, path: str
    ) -> tuple[dict[str, Digest], dict[Digest, ManifestNode], dict[Digest, int]]:
        return self._repositories.setdefault(path, ({}, {}, {}))

    def add_tag(self, repository: str, tag: str, digest: Digest) -> None:
        """Let `repository:tag` name `digest`."""
        self._content(repository)[0][tag] = digest

    def add_manifest(self, repository: str, node: ManifestNode, *, closed: bool = True) -> None:
        """Add a manifest to `repository` and, if `closed`, the blobs that it needs.

        Raises:
            InvalidManifestError: another manifest there gives another size for one of these blobs;
                nothing of this one was added.
        """
        _, manifests, blobs = self._content(repository)
        fresh: dict[Digest, int] = {}
        for blob in node.blobs if closed else ():
            known = blobs.get(blob.digest, fresh.setdefault(blob.digest, blob.size))
            if known != blob.size:
                raise size_conflict(repository, node, blob, known)
        blobs.update(fresh)
        manifests[node.descriptor.digest] = node

    def add_blob(self, repository: str, digest: Digest, size: int) -> None:
        """Add a blob of `size` bytes to `repository`."""
        self._content(repository)[2][digest] = size

    def add_inventory(self, inventory: Inventory) -> None:
        """Add everything in `inventory`."""
        for path, content in inventory.repositories.items():
            tags, manifests, blobs = self._content(path)
            tags.update(content.tags)
            manifests.update(content.manifests)
            blobs.update(content.blobs)

    def build(self) -> Inventory:
        """What was collected so far."""
        return Inventory(
            {
                path: RepositoryContent(dict(tags), dict(manifests), dict(blobs))
                for path, (tags, manifests, blobs) in sorted(self._repositories.items())
                if tags or manifests or blobs
            }
        )
