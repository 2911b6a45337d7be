"""A file or folder of an image, taken out of its layers into a folder."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from mirror.durable import PRIVATE_FOLDER, Folder, os_errors, sync_file
from mirror.errors import FileSystemError, NotFoundError, UnreadableImageError
from mirror.oci import Digest, Platform
from mirror.oci.layer_stream import EntryKind
from mirror.oci.layers import LayerOpener, Layers
from mirror.oci.root_fs import Directory, EntryPosition, Leaf, RootFs
from mirror.operations.images import LINUX, find_image, hidden_name, name_of, save, write_all
from mirror.registry import RegistryReader
from mirror.run import Run

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
        if found is None:
            return None
        end = found[0].split("/") if found[0] else []
        base = self._base.split("/") if self._base else []
        if end[: len(base)] != base:
            return None
        there = end[len(base) :]
        if isinstance(found[1], Leaf) and found[1].kind is not EntryKind.FILE:
            return None
        return posixpath.relpath("/" + "/".join(there), "/" + posixpath.dirname(path))

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
