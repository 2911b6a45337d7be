"""What is inside a bundle, in numbers that a person asks for: versions, channels, sizes, sharing.

Computed from the bundle's indexes and manifests alone; no layer is read. Which component a
repository belongs to follows from its path (docs/bundle-format.md). Sizes are bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import semver

from mirror.bundle.reader import BundleReader
from mirror.oci import Digest
from mirror.sync import Inventory, RepositoryContent

KINDS = ("platform", "installer", "security", "module", "package", "plugin", "other")
"""What a component can be, in the order in which they are listed."""

_PLATFORM = frozenset({"", "install", "install-standalone", "release-channel"})
_CHANNELS_OF = {"release-channel", "release", "version"}
_BY_DIGEST = re.compile(r"[0-9a-f]{64}|sha256-[0-9a-f]{64}(\..*)?")
"""Tags of images that are referenced by digest, and of what is attached to such images."""


@dataclass(frozen=True, slots=True)
class ImageInsight:
    """One image (or index, or artifact) of a repository, with all the tags that name it.

    `size` is everything that it reaches; `own` is the part that no other image of its repository
    needs. `layers` counts those of all its platforms once each.
    """

    digest: Digest
    tags: tuple[str, ...]
    size: int
    own: int
    layers: int

    @property
    def title(self) -> str:
        """Its tags, or the start of its digest where it goes by that alone."""
        named = [tag for tag in self.tags if not _BY_DIGEST.fullmatch(tag)]
        return ", ".join(named) or f"{self.digest.algorithm}:{self.digest.encoded[:12]}"

    def to_document(self) -> dict[str, Any]:
        return {
            "digest": str(self.digest),
            "tags": list(self.tags),
            "bytes": self.size,
            "ownBytes": self.own,
            "layers": self.layers,
        }


@dataclass(frozen=True, slots=True)
class RepositoryInsight:
    """One layout of an archive. `size` is what its manifests and blobs take there: the `own` bytes
    of its images, `shared` by several of them, and `untagged`, which no tag reaches."""

    path: str
    images: tuple[ImageInsight, ...]
    tags: int
    manifests: int
    blobs: int
    size: int
    shared: int
    untagged: int

    def to_document(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "tags": self.tags,
            "manifests": self.manifests,
            "blobs": self.blobs,
            "bytes": self.size,
            "sharedBytes": self.shared,
            "untaggedBytes": self.untagged,
            "images": [image.to_document() for image in self.images],
        }


@dataclass(frozen=True, slots=True)
class ArchiveInsight:
    """One archive; `size` is that of its file or parts, headers and indexes included."""

    name: str
    size: int
    repositories: tuple[RepositoryInsight, ...]

    @property
    def content(self) -> int:
        """What manifests and blobs take of it."""
        return sum(repository.size for repository in self.repositories)

    def to_document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.size,
            "contentBytes": self.content,
            "repositories": [repository.to_document() for repository in self.repositories],
        }


@dataclass(frozen=True, slots=True)
class ComponentInsight:
    """The platform, a module, a package and so on, over all its repositories.

    `versions` are newest first. `channels` maps each to the versions that it leads to: those that
    have the same image in the repository of channels, none where no version there has it.
    """

    kind: str
    name: str
    versions: tuple[str, ...]
    channels: Mapping[str, tuple[str, ...]]
    images: int
    size: int

    def to_document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "versions": list(self.versions),
            "channels": {channel: list(versions) for channel, versions in self.channels.items()},
            "images": self.images,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True)
class LayerInsight:
    """A blob. `images` counts the manifests that need it, `copies` the layouts that have it."""

    digest: Digest
    media_type: str
    size: int
    images: int
    copies: int

    def to_document(self) -> dict[str, Any]:
        return {
            "digest": str(self.digest),
            "mediaType": self.media_type,
            "bytes": self.size,
            "images": self.images,
            "copies": self.copies,
        }


@dataclass(frozen=True, slots=True)
class BundleInsight:
    """What a bundle holds.

    `unique` counts all content once. `apart` is what the images would take if none shared a layer
    with another. `content` is what the archives hold: each layout has its own copies.
    """

    name: str
    inventory: Digest
    sealed: bool
    components: tuple[ComponentInsight, ...]
    archives: tuple[ArchiveInsight, ...]
    layers: tuple[LayerInsight, ...] = field(repr=False)
    images: int
    tags: int
    manifests: int
    blobs: int
    unique: int
    apart: int

    @property
    def size(self) -> int:
        """What the archives take."""
        return sum(archive.size for archive in self.archives)

    @property
    def content(self) -> int:
        """What manifests and blobs take of that."""
        return sum(archive.content for archive in self.archives)

    @property
    def shared(self) -> int:
        """What is saved by layers that several images share."""
        return self.apart - self.unique

    @property
    def repeated(self) -> int:
        """What the format repeats: content that several layouts hold."""
        return self.content - self.unique

    def largest_images(self, most: int) -> list[tuple[str, ImageInsight]]:
        """The largest images, each once, with a repository that has it."""
        found: dict[Digest, tuple[str, ImageInsight]] = {}
        for archive in self.archives:
            for repository in archive.repositories:
                for image in repository.images:
                    found.setdefault(image.digest, (repository.path, image))
        by_size = sorted(found.values(), key=lambda one: (-one[1].size, one[1].digest))
        return by_size[:most]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "inventory": str(self.inventory),
            "sealed": self.sealed,
            "bytes": self.size,
            "contentBytes": self.content,
            "uniqueBytes": self.unique,
            "sharedLayersSaveBytes": self.shared,
            "repeatedBytes": self.repeated,
            "images": self.images,
            "tags": self.tags,
            "manifests": self.manifests,
            "blobs": self.blobs,
            "components": [component.to_document() for component in self.components],
            "archives": [archive.to_document() for archive in self.archives],
            "largestLayers": [layer.to_document() for layer in self.layers],
        }


def inspect_bundle(reader: BundleReader, *, layers: int = 20) -> BundleInsight:
    """What the bundle behind `reader` holds, with its `layers` largest layers.

    Of a damaged bundle it is what could be read of it; its verification tells the rest.
    """
    sizes = {archive.name: archive.file.size for archive in reader.archives}
    return insight(
        reader.name, reader.contents.archives, sizes, sealed=reader.seal is not None, layers=layers
    )


def insight(
    name: str,
    archives: Mapping[str, Inventory],
    sizes: Mapping[str, int],
    *,
    sealed: bool = False,
    layers: int = 20,
) -> BundleInsight:
    """The same from what each archive holds, and the size of its file."""
    found = tuple(
        ArchiveInsight(
            archive,
            sizes[archive],
            tuple(_repository(path, content) for path, content in inventory.repositories.items()),
        )
        for archive, inventory in sorted(archives.items())
    )
    total = union_of(archives)
    nodes, blobs = total.manifest_nodes(), total.blob_sizes()
    unique = {**blobs, **{digest: node.descriptor.size for digest, node in nodes.items()}}
    needed = [{blob.digest: blob for blob in node.blobs} for node in nodes.values()]
    apart = sum(node.descriptor.size for node in nodes.values()) + sum(
        blob.size for each in needed for blob in each.values() if blob.digest in blobs
    )
    users = Counter(digest for each in needed for digest in each)
    copies = Counter(
        digest
        for inventory in archives.values()
        for content in inventory.repositories.values()
        for digest in content.blobs
    )
    # Blobs that no manifest needs are there too, in bundles of other tools.
    apart += sum(size for digest, size in blobs.items() if not users[digest])
    apart -= sum(blobs[digest] for digest in blobs.keys() & nodes.keys())
    types = {digest: blob.media_type for each in needed for digest, blob in each.items()}
    largest = sorted(blobs.items(), key=lambda item: (-item[1], item[0]))[:layers]
    contents = total.repositories.values()
    return BundleInsight(
        name=name,
        inventory=total.digest(),
        sealed=sealed,
        components=_components(total, found),
        archives=found,
        layers=tuple(
            LayerInsight(digest, types.get(digest, ""), size, users[digest], copies[digest])
            for digest, size in largest
        ),
        images=len({digest for content in contents for digest in content.tags.values()}),
        tags=sum(len(content.tags) for content in contents),
        manifests=len(nodes),
        blobs=len(blobs),
        unique=sum(unique.values()),
        apart=apart,
    )
