"""What an inventory is made of: manifests as the graph sees them, and what a repository holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mirror.oci import Descriptor, Digest, Manifest


@dataclass(frozen=True, slots=True)
class ManifestNode:
    """A manifest as the graph sees it: what it is, and what it needs beside it.

    `blobs` are its config and the layers that must be carried; `children` the manifests of an
    index. A `subject` is no child: a signature may arrive before, after or without what it signs.
    `artifact_type` is what an index says of an artifact; None for an image.
    """

    descriptor: Descriptor
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    artifact_type: str | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> ManifestNode:
        """The node of a manifest."""
        return cls(
            manifest.descriptor,
            manifest.blobs,
            tuple(child.descriptor for child in manifest.children),
            manifest.artifact_type,
        )


@dataclass(frozen=True, slots=True)
class RepositoryContent:
    """What one repository holds. `blobs` maps digests to sizes in bytes."""

    tags: Mapping[str, Digest] = field(default_factory=dict)
    manifests: Mapping[Digest, ManifestNode] = field(default_factory=dict)
    blobs: Mapping[Digest, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tags or self.manifests or self.blobs)

    def closure_size(self, digest: Digest) -> int:
        """Bytes of a manifest and all that it reaches here, each piece counted once."""
        sizes: dict[Digest, int] = {}
        pending = [digest]
        while pending:
            node = self.manifests.get(pending.pop())
            if node is None or node.descriptor.digest in sizes:
                continue
            sizes[node.descriptor.digest] = node.descriptor.size
            sizes.update((blob.digest, blob.size) for blob in node.blobs)
            pending.extend(child.digest for child in node.children)
        return sum(sizes.values())


NOTHING = RepositoryContent()
