"""What is inside a bundle, in numbers that a person asks for: versions, channels, sizes, sharing.

Computed from the bundle's indexes and manifests alone; no layer is read. Which component a
repository belongs to follows from its path (docs/bundle-format.md), and which version a channel
leads to from the image that both name. Sizes are bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mirror.bundle.archive import NO_OMISSIONS, Compressed, Omissions
from mirror.bundle.format import SEAL
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.seekable import SeekableFile
from mirror.documents import document, json_value
from mirror.layout import (
    EDITIONS,
    KINDS,
    component_of,
    holds_releases,
    is_digest_tag,
    parse_version,
    tags_in_order,
)
from mirror.oci import Digest
from mirror.sync import Inventory, ManifestNode, RepositoryContent, union

_KEYS = {
    "media_type": "mediaType",
    "own": "ownBytes",
    "shared": "sharedBytes",
    "size": "bytes",
    "untagged": "untaggedBytes",
}
"""Fields that have another name in JSON."""


class _Values:
    __slots__: tuple[str, ...] = ()

    def to_document(self) -> dict[str, Any]:
        return {_KEYS.get(name, name): json_value(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class ComponentInsight(_Values):
    """The platform, a module, a package and so on, over all its repositories.

    `versions` are newest first. `channels` maps each to the versions that it leads to: those that
    have the same image in the repository of channels. A channel may lead to no version there.
    """

    kind: str
    name: str
    versions: tuple[str, ...]
    channels: Mapping[str, tuple[str, ...]]
    images: int
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))


@dataclass(frozen=True, slots=True)
class ImageInsight(_Values):
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
    def names(self) -> tuple[str, ...]:
        """Its tags, without those that only spell a digest."""
        return tuple(tag for tag in self.tags if not is_digest_tag(tag))

    @property
    def title(self) -> str:
        """Its names, or the start of its digest where it goes by that alone."""
        return ", ".join(self.names) or f"{self.digest.algorithm}:{self.digest.encoded[:12]}"


@dataclass(frozen=True, slots=True)
class RepositoryInsight(_Values):
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


@dataclass(frozen=True, slots=True)
class ArchiveInsight(_Values):
    """One archive; `size` is that of its file or parts, headers and indexes included, and if they
    are compressed, what they hold."""

    name: str
    size: int
    repositories: tuple[RepositoryInsight, ...]

    @property
    def content(self) -> int:
        """What manifests and blobs take of it."""
        return sum(repository.size for repository in self.repositories)

    @property
    def image_count(self) -> int:
        return sum(len(repository.images) for repository in self.repositories)

    def to_document(self) -> dict[str, Any]:
        return {**_Values.to_document(self), "contentBytes": self.content}


@dataclass(frozen=True, slots=True)
class LayerInsight(_Values):
    """A blob. `images` counts the manifests that need it, `copies` the layouts that have it."""

    digest: Digest
    media_type: str
    size: int
    images: int
    copies: int


@dataclass(frozen=True, slots=True)
class BundleInsight:
    """What a bundle holds, content that a delta leaves to its base included: `omissions` says how
    much of it the archives do not carry.

    `unique` counts all content once; `shared` is what images would take in addition if they had no
    layers in common. The archives hold more than that: a copy in each layout.
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
    shared: int
    omissions: Omissions = NO_OMISSIONS
    compressed: Compressed | None = None
    source: str = ""
    """The root of the release tree that it was pulled from; empty where no seal tells it."""
    written: datetime | None = None
    """When its seal was written to where it lies: by the pull, or by whoever copied it."""
    carried: BundleInsight | None = field(default=None, repr=False)
    """Of a delta: what its archives themselves hold, so that sizes are those of the delta."""

    @property
    def edition(self) -> str:
        """The edition that the source's last part names; empty where it names none."""
        last = self.source.rpartition("/")[2]
        return last if last in EDITIONS else ""

    @property
    def size(self) -> int:
        """What the archives take, as they are before any compression."""
        return sum(archive.size for archive in self.archives)

    @property
    def content(self) -> int:
        """What manifests and blobs take of that."""
        return sum(archive.content for archive in self.archives)

    @property
    def repeated(self) -> int:
        """What the format repeats: content that several layouts hold."""
        return self.content - self.unique

    def compressed_rows(self) -> Iterable[tuple[str, str]]:
        """What compressing saved, as (title, text); nothing if nothing is compressed."""
        return () if self.compressed is None else self.compressed.rows()

    def every_image(self) -> Iterator[tuple[ArchiveInsight, RepositoryInsight, ImageInsight]]:
        for archive in self.archives:
            for repository in archive.repositories:
                for image in repository.images:
                    yield archive, repository, image

    def largest_images(self, most: int) -> list[tuple[str, ImageInsight]]:
        """The largest images, each once, with a repository that has it."""
        found: dict[Digest, tuple[str, ImageInsight]] = {}
        for _, repository, image in self.every_image():
            found.setdefault(image.digest, (repository.path, image))
        by_size = sorted(found.values(), key=lambda one: (-one[1].size, one[1].digest))
        return by_size[:most]

    def to_document(self) -> dict[str, Any]:
        return {
            **document(self, "inventory", "sealed", "source"),
            **self.omissions.to_document(),
            "bytes": self.size,
            **({} if self.compressed is None else {"compressed": self.compressed.to_document()}),
            **document(self, "contentBytes=content", "uniqueBytes=unique"),
            **document(self, "sharedLayersSaveBytes=shared", "repeatedBytes=repeated"),
            **document(self, "images", "tags", "manifests", "blobs", "components", "archives"),
            **document(self, "largestLayers=layers"),
        }


def inspect_bundle(
    reader: BundleReader, *, layers: int = 20, as_sealed: bool = False
) -> BundleInsight:
    """What the bundle behind `reader` holds, with its `layers` largest layers.

    Of a damaged bundle it is what could be read, or `as_sealed`; the inventory's digest is sealed.
    """
    seal, spoken_of = reader._seal, reader.contents.archives
    sizes = {archive.name: archive.file.size for archive in reader._archives}
    if as_sealed and seal is not None:
        spoken_of = {name: archive.inventory for name, archive in seal.archives.items()}
        sizes |= {name: archive.size for name, archive in seal.archives.items()}
    found = insight(reader.name, spoken_of, sizes, sealed=seal is not None, layers=layers)
    if seal is not None and seal.inventory != reader.contents.inventory:
        found = replace(found, inventory=seal.inventory.digest())
    omissions, carried = (NO_OMISSIONS if seal is None else seal.omissions), None
    if seal is not None and omissions.base is not None:
        own = {name: archive.carried for name, archive in seal.archives.items()}
        carried = insight(reader.name, own, sizes, layers=layers)
    written = None
    if isinstance(folder := reader.folder, Path):
        with suppress(OSError):
            written = datetime.fromtimestamp((folder / SEAL).stat().st_mtime, UTC)
    packed = {
        archive.name: archive.file.packed.size
        for archive in reader._archives
        if isinstance(archive.file, SeekableFile)
    }
    return replace(
        found,
        omissions=omissions,
        compressed=Compressed({name: sizes[name] for name in packed}, packed) if packed else None,
        source="" if seal is None else _source(seal),
        written=written,
        carried=carried,
    )


def _source(seal: Seal) -> str:
    """The root below which the source had what is sealed; empty if no repository tells it."""
    for archive in seal.archives.values():
        for path, origin in archive.origins.items():
            # Installers and plugins lie beside the editions, not below one.
            below = component_of(path)[0] not in ("installer", "plugin", "other")
            if below and f"/{origin}".endswith(f"/{path}".rstrip("/")):
                return origin.removesuffix(path).rstrip("/")
    return ""


def insight(
    name: str,
    archives: Mapping[str, Inventory],
    sizes: Mapping[str, int],
    *,
    sealed: bool = False,
    layers: int = 20,
) -> BundleInsight:
    """The same from what each archive holds, and the size of its file."""
    total = union(archives.values())
    # This takes as much memory as the whole inventory, so it comes before anything else.
    inventory_digest = total.digest()
    found = tuple(
        ArchiveInsight(
            archive,
            sizes[archive],
            tuple(_repository(path, content) for path, content in inventory.repositories.items()),
        )
        for archive, inventory in sorted(archives.items())
    )
    nodes, blobs = total.manifest_nodes(), total.blob_sizes()
    largest = sorted(blobs.items(), key=lambda item: (-item[1], item[0]))[:layers]
    types = dict.fromkeys((digest for digest, _ in largest), "")
    users: Counter[Digest] = Counter()
    for node in nodes.values():
        users.update({blob.digest for blob in (*node.blobs, *node.foreign)})
        types.update((b.digest, b.media_type) for b in node.named if b.digest in types)
    copies = Counter(
        digest
        for inventory in archives.values()
        for content in inventory.repositories.values()
        for digest in content.blobs
    )
    contents = total.repositories.values()
    return BundleInsight(
        name=name,
        inventory=inventory_digest,
        sealed=sealed,
        components=components(
            total, ((one.path, one.size) for archive in found for one in archive.repositories)
        ),
        archives=found,
        layers=tuple(
            LayerInsight(digest, types[digest], size, users[digest], copies[digest])
            for digest, size in largest
        ),
        images=len({digest for content in contents for digest in content.tags.values()}),
        tags=sum(len(content.tags) for content in contents),
        manifests=len(nodes),
        blobs=len(blobs),
        unique=sum({**blobs, **_manifest_sizes(nodes)}.values()),
        shared=sum(size * (users[digest] - 1) for digest, size in blobs.items() if users[digest]),
    )


# -- repositories --------------------------------------------------------------------------------


def _manifest_sizes(nodes: Mapping[Digest, ManifestNode]) -> dict[Digest, int]:
    return {digest: node.descriptor.size for digest, node in nodes.items()}


def _repository(path: str, content: RepositoryContent) -> RepositoryInsight:
    held = {**content.blobs, **_manifest_sizes(content.manifests)}
    tags: dict[Digest, list[str]] = {}
    for tag, digest in sorted(content.tags.items()):
        tags.setdefault(digest, []).append(tag)
    # Images are walked twice, since keeping what each one reaches would take too much memory.
    users = Counter(each for digest in tags for each in _reached(digest, content)[0])
    images = []
    for digest, names in tags.items():
        reached, layers = _reached(digest, content)
        size = sum(held.get(each, 0) for each in reached)
        own = sum(held.get(each, 0) for each in reached if users[each] == 1)
        images.append(ImageInsight(digest, tuple(names), size, own, layers))
    return RepositoryInsight(
        path,
        tuple(sorted(images, key=lambda image: (-image.size, image.title, image.digest))),
        tags=len(content.tags),
        manifests=len(content.manifests),
        blobs=len(content.blobs),
        size=sum(held.values()),
        shared=sum(size for digest, size in held.items() if users[digest] > 1),
        untagged=sum(size for digest, size in held.items() if not users[digest]),
    )


def _reached(digest: Digest, content: RepositoryContent) -> tuple[set[Digest], int]:
    """All that an image reaches, and how many of its blobs are layers: all but a manifest's first,
    which is its config."""
    nodes = [content.manifests[one] for one in content.reachable([digest])]
    layers = {blob.digest for node in nodes for blob in (*node.blobs[1:], *node.foreign)}
    return {digest, *(one.digest for node in nodes for one in node.named)}, len(layers)


# -- components ------------------------------------------------------------------------------------


def components(total: Inventory, sizes: Iterable[tuple[str, int]]) -> tuple[ComponentInsight, ...]:
    """Every component that has repositories in `total`, by kind and name.

    `sizes` are (repository path, bytes) of all layouts; a repository may have several layouts.
    """
    taken: Counter[tuple[str, str]] = Counter()
    for path, size in sizes:
        taken[component_of(path)] += size
    by_component: dict[tuple[str, str], dict[str, RepositoryContent]] = {}
    for path, content in total.repositories.items():
        by_component.setdefault(component_of(path), {})[path] = content
    return tuple(
        ComponentInsight(
            kind,
            name,
            versions=tags_in_order(_versions(kind, contents), newest_first=True),
            channels=_channels(contents),
            images=len({digest for one in contents.values() for digest in one.tags.values()}),
            size=taken[kind, name],
        )
        for (kind, name), contents in sorted(
            by_component.items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1])
        )
    )


def _versions(kind: str, contents: Mapping[str, RepositoryContent]) -> set[str]:
    """Tags that are versions of a component's images; of databases and the like, all tags."""
    tags = {
        tag
        for path, content in contents.items()
        if not holds_releases(path) and "/extra/" not in path
        for tag in content.tags
        if not is_digest_tag(tag)
    }
    numbered = {tag for tag in tags if parse_version(tag) is not None}
    return numbered if kind in ("platform", "module", "package") else tags


def _channels(contents: Mapping[str, RepositoryContent]) -> dict[str, tuple[str, ...]]:
    """Channel → versions, the channels of the newest versions first."""
    channels: dict[str, tuple[str, ...]] = {}
    for path, content in contents.items():
        if not holds_releases(path):
            continue
        versions: dict[Digest, list[str]] = {}
        for tag, digest in content.tags.items():
            if parse_version(tag) is not None:
                versions.setdefault(digest, []).append(tag)
        for tag, digest in sorted(content.tags.items()):
            if parse_version(tag) is None and not is_digest_tag(tag):
                channels[tag] = tags_in_order(versions.get(digest, ()), newest_first=True)
    order = tags_in_order(chain(*channels.values()), newest_first=True)
    rank = {version: number for number, version in enumerate(order)}
    return dict(
        sorted(channels.items(), key=lambda item: rank[item[1][0]] if item[1] else len(rank))
    )
