"""Single images, blobs and releases, as programs in a cluster need them day by day.

Each call takes a client, of a registry or of a cluster's mode, and names a
repository and a tag or digest as the client does. Where several replicas can be asked and one gives
damaged bytes, the others are asked; nothing damaged gets a name on the disk.
"""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mirror.durable import PRIVATE_FOLDER, Folder, os_errors, sync_file, write_at
from mirror.errors import (
    DigestMismatchError,
    FileSystemError,
    NotFoundError,
    SizeMismatchError,
    UnreadableImageError,
)
from mirror.oci import Digest, Manifest, Platform, Repository
from mirror.oci.layer_stream import EntryKind
from mirror.oci.layers import LayerOpener, Layers, read_files
from mirror.oci.root_fs import Directory, EntryPosition, Leaf, RootFs
from mirror.registry import RegistryReader, RegistryWriter
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


# -- taking files out ------------------------------------------------------------------------------

_LARGER = "give a larger max_bytes if it is trusted"


@dataclass(frozen=True, slots=True)
class ExtractReport:
    """What was taken out of an image.

    `size` is the bytes of `files` files. `left_out` has the paths of links that lead out of the
    folder or nowhere, and of devices and pipes.
    """

    files: int
    size: int
    left_out: tuple[str, ...] = ()


def extract_image(
    client: RegistryReader,
    repository: str,
    reference: str | Digest,
    path: str,
    into: Path,
    *,
    platform: Platform = LINUX,
    max_bytes: int = 4 << 30,
    max_entries: int = 500_000,
    run: Run | None = None,
) -> ExtractReport:
    """Take the file or folder at `path` out of an image; "" is all of it.

    A folder's content becomes the content of `into`, a file is put there under its own name. `into`
    is new or empty, and appears as a whole or not at all. The image's layers are brought into a
    hidden folder beside it first, and are read only after their digests have proved right.

    Nothing is written outside of `into`: a symbolic link becomes a relative one to what it really
    leads to, if that is taken out too, and is left out otherwise. Files belong to the caller, who
    may read and write them; of their permissions the bits for running, and for others to read, are
    kept. Two names of one file become one file with two names.

    Raises:
        NotFoundError: the image has nothing at `path`; or as for `find_image`.
        UnreadableImageError: a layer cannot be read, a file is sparse, there are more than
            `max_entries` entries in the image, more than `max_bytes` bytes would be written, or
            more than twice as many would have to be unpacked for it.
        DigestMismatchError, SizeMismatchError: a layer is damaged wherever it can be had.
        FileSystemError, NoSpaceError: the system refuses, or `into` is not empty.
    """
    reader = client if run is None else client.within(run)
    run = run or Run()
    image = find_image(reader, repository, reference, platform)
    where = name_of(reader, repository, image.digest)
    most = 2 * max_bytes
    if sum(layer.size for layer in image.layers) > most:
        raise UnreadableImageError(f"{where}: its layers have more than {most} bytes; {_LARGER}")
    into = into if into.name.strip(".") else into.resolve()  # `.` has no name
    with os_errors(into, "write"), _staging(into) as (work, tree):
        openers: list[LayerOpener] = []
        for number, layer in enumerate(image.layers):
            save(reader, repository, layer.digest, layer.size, work, str(number))
            openers.append(partial(_kept, work, str(number)))
        files = RootFs(Layers(openers, where, most, run.check), max_entries=max_entries)
        found = files.find(path)
        if found is None:
            raise NotFoundError(f"{where}: nothing is at {path!r} in this image; check the path")
        wanted = _Wanted(files, *found, PurePosixPath(path).name, where)
        if wanted.size > max_bytes:
            raise UnreadableImageError(
                f"{where}: {path!r} has {wanted.size} bytes, more than {max_bytes}; {_LARGER}"
            )
        wanted.write(tree, run)
    return ExtractReport(len(wanted.files), wanted.size, tuple(wanted.left_out))


def _kept(folder: Folder, name: str) -> Iterator[bytes]:
    with os.fdopen(folder.open(name, os.O_RDONLY), "rb") as file:
        while piece := file.read(1 << 20):
            yield piece


@contextmanager
def _staging(into: Path) -> Iterator[tuple[Folder, Folder]]:
    """A hidden folder beside `into` to work in, and in it the one that `into` is in the end."""
    with Folder.made(into.parent) as parent:
        if parent.has(into.name):
            with parent.inside(into.name) as there:
                if there.names():
                    raise FileSystemError(
                        f"cannot write {into}: this folder is not empty; name a new one"
                    )
        name = hidden_name(into.name)
        try:
            with parent.make(name, PRIVATE_FOLDER) as work, work.make("tree") as tree:
                yield work, tree
                work.rename("tree", into.name, parent)
            parent.sync()
        finally:
            parent.remove(name)


class _Wanted:
    """What to write of an image, by its path below the place that was asked for."""

    def __init__(
        self, image: RootFs, base: str, node: Directory | Leaf, name: str, where: str
    ) -> None:
        self._image, self._base = image, base
        self.folders: list[str] = []
        self.files: dict[str, Leaf] = {}
        self.links: dict[str, str] = {}
        self.left_out: list[str] = []
        if isinstance(node, Leaf):
            self._base = base.rpartition("/")[0]
            self._add(name, node, where, alone=True)
        else:
            for path, leaf in self._below(node):
                self._add(path, leaf, where)
        sizes = {leaf.place: leaf.size for leaf in self.files.values()}
        self.size = sum(sizes.values())

    def _below(self, top: Directory) -> Iterator[tuple[str, Leaf]]:
        left = [("", top)]
        while left:
            at, directory = left.pop()
            for name, child in directory.children.items():
                path = f"{at}/{name}".lstrip("/")
                if isinstance(child, Directory):
                    self.folders.append(path)
                    left.append((path, child))
                else:
                    yield path, child

    def _add(self, path: str, leaf: Leaf, where: str, *, alone: bool = False) -> None:
        if leaf.problem:
            raise UnreadableImageError(f"{where}: the file {path} {leaf.problem}")
        if leaf.kind is EntryKind.FILE:
            self.files[path] = leaf
        elif not alone and leaf.kind is EntryKind.SYMLINK and (end := self._end_of(path)):
            self.links[path] = end
        else:
            self.left_out.append(path)

    def _end_of(self, path: str) -> str | None:
        """Where a link really leads, as a relative path from its own folder.

        No other link lies on its way, so following it ends where we looked.
        """
        found = self._image.end_of("/".join(filter(None, (self._base, path))))
        if found is None or (isinstance(found[1], Leaf) and found[1].kind is not EntryKind.FILE):
            return None
        end, base = (PurePosixPath("/", one) for one in (found[0], self._base))
        return posixpath.relpath(end, (base / path).parent) if end.is_relative_to(base) else None

    def write(self, into: Folder, run: Run) -> None:
        for path in self.folders:
            run.check()
            into.make(path).close()
        names: dict[EntryPosition, list[str]] = {}
        for path, leaf in self.files.items():
            names.setdefault(leaf.place, []).append(path)
        for place, pieces in self._image.data(names.keys()):
            first, *others = names[place]
            with _holding(into, first) as (folder, name):
                mode = self.files[first].mode
                fd = folder.create(name, 0o600 | mode & (0o755 if mode & 0o100 else 0o644))
                try:
                    write_all(fd, pieces, run)
                    sync_file(fd)
                finally:
                    os.close(fd)
                for other in others:
                    run.check()
                    with _holding(into, other) as (there, also):
                        folder.link(name, also, there)
        for path, end in self.links.items():
            run.check()
            with _holding(into, path) as (folder, name):
                folder.symlink(name, end)
        for path in ("", *self.folders):
            run.check()
            with into.inside(path) as folder:
                folder.sync()


@contextmanager
def _holding(top: Folder, path: str) -> Iterator[tuple[Folder, str]]:
    """The folder in which `path` lies, and its name there."""
    above, _, name = path.rpartition("/")
    with top.inside(above) as folder:
        yield folder, name


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
