"""Single images, blobs and releases, as programs in a cluster need them day by day.

Each call takes a client, of a registry or of a cluster's mode, and names a
repository and a tag or digest as the client does. Where several replicas can be asked and one gives
damaged bytes, the others are asked; nothing damaged gets a name on the disk.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from semver import Version

from mirror.durable import Folder, os_errors, sync_file, write_at
from mirror.errors import (
    DigestMismatchError,
    NotFoundError,
    RegistryNotFoundError,
    SizeMismatchError,
)
from mirror.layout import CHANNELS, RELEASE_CHANNEL, tags_of_versions
from mirror.oci import Digest, Manifest, Platform, Repository
from mirror.oci.layers import read_files
from mirror.registry import RegistryReader, RegistryWriter
from mirror.release.discovery import (
    CHANGELOG_YAML,
    VERSION_JSON,
    ReleaseInfo,
    parse_changelog,
    parse_release,
)
from mirror.run import Run
from mirror.sync import InventoryBuilder, ManifestNode, make_plan
from mirror.sync.content import graph
from mirror.sync.publication import Publication
from mirror.sync.publication_state import PublicationState
from mirror.sync.transfer import TransferReport
from mirror.sync.tree import RegistrySource, RegistryTree

Found = TypeVar("Found")

LINUX = Platform("linux", "amd64")
"""The platform of Deckhouse's images."""


def find_image(
    client: RegistryReader, repository: str, reference: str | Digest, platform: Platform = LINUX
) -> Manifest:
    """The image for `platform` behind a tag or digest.

    An index is followed to its image for that platform; `linux/arm64` stands for all variants of
    it. Anything but an index is returned as it is, since only its configuration names a platform.

    Raises:
        NotFoundError: the index has no image for that platform; the message names those it has.
        RegistryError: the registry does not have it, or does not answer.
    """
    found = client.manifest(repository, reference)
    while found.is_index:
        fitting = [
            child.descriptor
            for child in found.children
            if child.platform is not None and _fits(child.platform, platform)
        ]
        if not fitting:
            known = sorted({str(one.platform) for one in found.children if one.platform})
            raise NotFoundError(
                f"{name_of(client, repository, reference)}: no image for {platform} in this index, "
                f"which has {', '.join(known) or 'none that names a platform'}; ask for another "
                "platform"
            )
        found = client.manifest(repository, fitting[0].digest)
    return found


def _fits(offered: Platform, wanted: Platform) -> bool:
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    return same and wanted.variant in ("", offered.variant)


def read_image(
    client: RegistryReader,
    repository: str,
    reference: str | Digest,
    paths: Collection[str],
    *,
    platform: Platform = LINUX,
    max_file_bytes: int = 32 << 20,
) -> dict[str, bytes]:
    """Those of `paths` that are regular files in an image, with their bytes.

    Layers are read from the top downwards and no further than needed. Links are resolved inside the
    image, whiteouts hide what lies below them.

    Raises:
        UnreadableImageError: a layer cannot be read, or a file is longer than `max_file_bytes`.
        DigestMismatchError, SizeMismatchError: a layer is damaged wherever it can be had.
        NotFoundError, RegistryError: as for `find_image`.
    """
    image = find_image(client, repository, reference, platform)
    layers = [
        partial(client.blob, repository, layer.digest, size=layer.size) for layer in image.layers
    ]
    where = name_of(client, repository, image.digest)
    return _past_damage(
        lambda: read_files(layers, paths, max_file_bytes=max_file_bytes, where=where)
    )


def save_blob(
    client: RegistryReader,
    repository: str,
    digest: Digest,
    path: Path,
    *,
    size: int | None = None,
    run: Run | None = None,
) -> int:
    """Write a blob to the file `path` and return its length in bytes.

    The file gets its name when its bytes have proved right and are on the disk; missing folders are
    made, a file of that name is replaced. `size` is what a manifest says of the blob's length.

    Raises:
        DigestMismatchError, SizeMismatchError: the blob is damaged wherever it can be had.
        RegistryError: the registry does not have it, or does not answer.
        FileSystemError, NoSpaceError: the system refuses.
    """
    reader = client if run is None else client.within(run)
    path = path if path.name.strip(".") else path.resolve()  # `.` has no name
    with os_errors(path, "write"), Folder.made(path.parent) as folder:
        staged = hidden_name(path.name)
        try:
            written = save(reader, repository, digest, size, folder, staged)
            folder.rename(staged, path.name)
        except BaseException:
            folder.unlink(staged)
            raise
        folder.sync()
    return written


def save(
    client: RegistryReader,
    repository: str,
    digest: Digest,
    size: int | None,
    folder: Folder,
    name: str,
) -> int:
    """Write a blob to a new file, and bring it onto the disk."""
    fd = folder.create(name)

    def attempt() -> int:
        os.ftruncate(fd, 0)
        with closing(client.blob(repository, digest, size=size)) as chunks:
            written = write_all(fd, chunks)
        sync_file(fd)
        return written

    try:
        return _past_damage(attempt)
    finally:
        os.close(fd)


def write_all(fd: int, pieces: Iterator[bytes], run: Run | None = None) -> int:
    """Write `pieces` to a file from its beginning on, and return the bytes."""
    written = 0
    for piece in pieces:
        if run is not None:
            run.check()
        write_at(fd, written, piece)
        written += len(piece)
    return written


def _past_damage(read: Callable[[], Found]) -> Found:
    """`read`, and once more after each place that gave damaged bytes: others are asked first."""
    blamed: set[str] = set()
    while True:
        try:
            return read()
        except (DigestMismatchError, SizeMismatchError) as err:
            if err.where in blamed:
                raise
            blamed.add(err.where)


def hidden_name(name: str) -> str:
    """What `name` is called until it is complete."""
    return f".{name}.{secrets.token_hex(6)}"


# -- copying ---------------------------------------------------------------------------------------


def copy_image(
    source: RegistryReader,
    repository: str,
    reference: str | Digest,
    target: RegistryWriter,
    *,
    to: str | None = None,
    tag: str | None = None,
    run: Run | None = None,
) -> TransferReport:
    """Carry an image, or an index with all its images, from one registry to another.

    It goes to the repository `to` there, else to the one of the same name, and gets the tag `tag`,
    else the one by which it was asked for; without either its digest alone. Blobs that are there
    are not sent again. What refers to the image (signatures, attestations) is not taken along, and
    what the registry states of its content stays as it is: releases are published by `push`.

    Raises:
        IncompleteError: something could not be carried, and no tag has moved.
        NotFoundError: the index names an image that the source does not have.
        ConflictError: somebody else set that tag meanwhile.
        ForbiddenByModeError: the mode takes no pushes there; the message says where it does.
        MirrorError: the registry does not have it, or one of them does not answer.
    """
    reader, writer = (source, target) if run is None else (source.within(run), target.within(run))
    place = repository if to is None else to
    content = RegistrySource(reader, lambda _: repository)
    builder = InventoryBuilder()
    top = content.fetch(place, reference)
    for manifest in graph(top, partial(content.fetch, place)):
        builder.add_manifest(place, ManifestNode.of(manifest))
        for layer in manifest.foreign:  # a registry need not hold them
            if reader.blob_size(repository, layer.digest) == layer.size:
                builder.add_blob(place, layer.digest, layer.size)
    name = tag or (reference if isinstance(reference, str) else None)
    if name is not None:
        builder.add_tag(place, name, top.digest)
    wanted = builder.build()
    tree = RegistryTree(writer, Repository(writer.host, ""))
    receiver = tree.target(run)
    held = receiver.held(wanted)
    plan = make_plan(wanted, held)
    receiver.check_access(plan)
    publication = Publication(tree, PublicationState(), seen=held)
    try:
        return publication.carry_out(plan, content, receiver, run=Run.of(run)).done
    finally:
        receiver.release()


def name_of(client: RegistryReader, repository: str, reference: str | Digest) -> str:
    """What messages call an image."""
    joint = "@" if isinstance(reference, Digest) else ":"
    known = repository.startswith(f"{client.host}/")
    return f"{repository if known else f'{client.host}/{repository}'}{joint}{reference}"


# -- what a release tree publishes, as a controller asks for it ----


@dataclass(frozen=True, slots=True)
class Release:
    """A release, as its image describes it.

    Attributes:
        digest: what the tag names.
        changelog: `changelog.yaml`: module → its changes; empty without that file.
    """

    info: ReleaseInfo
    digest: Digest
    changelog: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "changelog", MappingProxyType(dict(self.changelog)))

    @property
    def version(self) -> Version:
        """The version that its `version.json` names."""
        return self.info.version


@dataclass(frozen=True, slots=True)
class ReleaseList:
    """The versions that are published, the newest last, and where each release channel leads."""

    versions: tuple[Version, ...]
    channels: Mapping[str, Version]

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", MappingProxyType(dict(self.channels)))


def read_release(tree: RegistryTree, tag: str, repository: str = RELEASE_CHANNEL) -> Release:
    """What a release channel or a version (`stable`, `v1.70.1`) leads to.

    `repository` is the platform's `release-channel`, or `modules/<name>/release` and
    `packages/<name>/version`.

    Raises:
        SourceContentError: the image has no `version.json`, or what it says cannot be read.
        DigestMismatchError, SizeMismatchError: a layer is damaged wherever it can be had.
        RegistryNotFoundError: this channel or version does not exist.
        RegistryError: the registry does not answer.
    """
    place = tree.locate(repository)
    digest = tree.client.manifest(place, tag).digest
    found = read_image(tree.client, place, digest, (VERSION_JSON, CHANGELOG_YAML))
    where = f"{tree.name}/{repository}:{tag}"
    of_platform = repository == RELEASE_CHANNEL
    info = parse_release(found.get(VERSION_JSON), where, version_only=not of_platform)
    return Release(info, digest, parse_changelog(found.get(CHANGELOG_YAML, b""), where))


def list_releases(tree: RegistryTree, repository: str = RELEASE_CHANNEL) -> ReleaseList:
    """All versions of the platform, or of what `repository` belongs to, and all its channels.

    Raises:
        what `read_release` raises, for one of the channels.
    """
    tags = tree.client.tags(tree.locate(repository))
    versions = tags_of_versions(tags)
    channels = {}
    for name in CHANNELS:
        if name in tags:
            try:
                channels[name] = read_release(tree, name, repository).version
            except RegistryNotFoundError:  # it went in the meantime
                continue
    return ReleaseList(tuple(versions), channels)
