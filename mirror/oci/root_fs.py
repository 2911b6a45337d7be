"""The file system that the layers of an image make together (image-spec, layer.md).

`layers.read_files` answers for a few paths and reads no more than it must; here the layers are
applied one after the other, as a container runtime does, but to names in memory. What a path really
is, and where a link ends, is then decided without a disk, so nothing of an image can lead out of
the folder that it is unpacked to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from mirror.errors import UnreadableImageError
from mirror.oci.layer_stream import EntryKind, TarEntry, TarStream
from mirror.oci.layers import MAX_LINKS, MAX_PATH, Layers, clean_path, hidden_by, is_whiteout

_MAX_NAMES_BYTES = 128 << 20
"""The most characters of all names and targets of an image, which are held in memory."""

_MAX_LINK_STEPS = 8 << 20
"""The most names on the ways of all links of an image that are followed: seconds of work."""

_MAX_DEPTH = 256
"""Folders that one lies in the other; removing them recurses."""


class _CircleError(Exception):
    """Links lead in circles. It never leaves this module."""


class EntryPosition(NamedTuple):
    """Where a file's data is: the layer's number and the entry's in it, from 0."""

    layer: int
    entry: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """Something in an image that is not a folder.

    `size` is bytes, `mode` the permissions, `target` a symbolic link's. A `problem` says why a file
    cannot be read. Two names of one file are one leaf; a hard link is one that leads nowhere.
    """

    kind: EntryKind
    place: EntryPosition
    size: int = 0
    mode: int = 0o644
    target: str = ""
    problem: str = ""


@dataclass(slots=True)
class Directory:
    """A folder of an image."""

    children: dict[str, Directory | Leaf] = field(default_factory=dict)


class RootFs:
    """What is at each path of an image. It is made by reading all `layers`.

    Raises:
        UnreadableImageError: a layer is cut off, damaged or of an unknown kind, or there are more
            than `max_entries` entries in all of them, or too many bytes come out of them.
    """

    def __init__(self, layers: Layers, *, max_entries: int) -> None:
        self._layers, self._where, self._max_entries = layers, layers.where, max_entries
        self._entries_seen = self._names_bytes = self._link_steps = 0
        self._broken: list[tuple[Directory, str, Leaf, str]] = []
        self.root = Directory()
        for number in range(layers.count):
            self._apply(number)

    # -- looking -------------------------------------------------------------------------------

    def find(self, path: str) -> tuple[str, Directory | Leaf] | None:
        """What is at `path`, with its path after all links ("" is the root); None for nothing.

        Raises:
            UnreadableImageError: links lead in circles, or all that were followed were too long.
        """
        try:
            return self._find(path)
        except _CircleError as err:
            raise UnreadableImageError(str(err)) from None

    def end_of(self, path: str, *, follow: bool = True) -> tuple[str, Directory | Leaf] | None:
        """The same as `find`; None where links lead in circles, too. Without `follow`, a symbolic
        link at the end is what is there."""
        with suppress(_CircleError):
            return self._find(path, follow=follow)
        return None

    def _find(self, path: str, *, follow: bool = True) -> tuple[str, Directory | Leaf] | None:
        here: list[tuple[str, Directory]] = [("", self.root)]
        rest = path.split("/")[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del here[max(1, len(here) - 1) :]
                continue
            node = here[-1][1].children.get(name)
            if isinstance(node, Directory):
                here.append((name, node))
                continue
            if node is not None and node.kind is EntryKind.SYMLINK and (follow or rest):
                links += 1
                rest.extend(node.target.split("/")[::-1])
                self._count_steps(len(rest))
                if links > MAX_LINKS or sum(map(len, rest)) + len(rest) > MAX_PATH:
                    raise _CircleError(
                        f"{self._where}: more than {MAX_LINKS} links on the way to {path}, or "
                        f"more than {MAX_PATH} characters"
                    )
                if node.target.startswith("/"):
                    del here[1:]
                continue
            if node is None or rest:
                return None
            return "/".join([*(one for one, _ in here[1:]), name]), node
        return "/".join(one for one, _ in here[1:]), here[-1][1]

    def _count_steps(self, steps: int) -> None:
        self._layers.check()
        self._link_steps += steps
        if self._link_steps > _MAX_LINK_STEPS:
            raise UnreadableImageError(
                f"{self._where}: the ways of its links have more than {_MAX_LINK_STEPS} names"
            )

    def data(
        self, wanted: Collection[EntryPosition]
    ) -> Iterator[tuple[EntryPosition, Iterator[bytes]]]:
        """The data of files, in the order in which the layers have them; they are read again.

        Read the pieces of one before you ask for the next.
        """
        self._layers.unpacked = 0
        for layer in sorted({place.layer for place in wanted}):
            for number, _, archive in self._entries(layer):
                place = EntryPosition(layer, number)
                if place in wanted:
                    yield place, archive.pieces()

    # -- applying ------------------------------------------------------------------------------

    def _entries(self, layer: int) -> Iterator[tuple[int, TarEntry, TarStream]]:
        with self._layers.opened(layer) as archive:
            for number, entry in enumerate(archive):
                self._layers.check()
                yield number, entry, archive

    def _apply(self, layer: int) -> None:
        added: list[tuple[str, int, TarEntry]] = []
        hidden: list[str] = []
        for number, entry, _ in self._entries(layer):
            self._take(len(entry.name) + len(entry.target))
            path = clean_path(entry.name)
            if not path or "\0" in path:
                continue  # the root itself, or a name that escapes it, or that no file can have
            if path.count("/") > _MAX_DEPTH:
                raise UnreadableImageError(
                    f"{self._where}: a path of more than {_MAX_DEPTH} folders: {path[:100]}…"
                )
            if is_whiteout(path):
                hidden.append(path)
            else:
                added.append((path, number, entry))
        # First: wherever in the layer they stand, whiteouts speak of lower layers only.
        for path in hidden:
            self._hide(path)
        for path, number, entry in added:
            self._put(path, entry, EntryPosition(layer, number))
        for directory, name, broken, target in self._broken:  # their targets may have come later
            if directory.children.get(name) is broken:
                directory.children[name] = self._linked(target) or broken
        self._broken.clear()

    def _take(self, names_bytes: int) -> None:
        """Count an entry, or a folder that an entry lies in without one of its own."""
        self._entries_seen += 1
        self._names_bytes += names_bytes
        if self._entries_seen > self._max_entries or self._names_bytes > _MAX_NAMES_BYTES:
            raise UnreadableImageError(
                f"{self._where}: its layers have more than {self._max_entries} entries, or "
                f"more than {_MAX_NAMES_BYTES} bytes of names"
            )

    def _hide(self, whiteout: str) -> None:
        directory, name = hidden_by(whiteout) or (None, "")
        within: Directory | Leaf | None = self.root if directory is not None else None
        for part in filter(None, (directory or "").split("/")):
            within = within.children.get(part) if isinstance(within, Directory) else None
        if isinstance(within, Directory):
            if name:
                within.children.pop(name, None)
            else:
                within.children.clear()

    def _put(self, path: str, entry: TarEntry, place: EntryPosition) -> None:
        *above, name = path.split("/")
        within = self.root
        for part in above:
            found = within.children.get(part)
            if not isinstance(found, Directory):
                self._take(0)
                found = within.children[part] = Directory()
            within = found
        if entry.kind is EntryKind.DIRECTORY:
            if not isinstance(within.children.get(name), Directory):
                within.children[name] = Directory()
            return
        if entry.kind is EntryKind.HARDLINK:
            # Resolved now, because a later entry of that name is another file.
            leaf = self._linked(entry.target)
            if leaf is None:
                problem = f"is a hard link to {entry.target!r}, where there is no file"
                leaf = Leaf(EntryKind.HARDLINK, place, problem=problem)
                self._broken.append((within, name, leaf, entry.target))
        else:
            problem = "is stored as a sparse file, which is not read" if entry.sparse else ""
            leaf = Leaf(entry.kind, place, entry.size, entry.mode, entry.target, problem)
        within.children[name] = leaf

    def _linked(self, target: str) -> Leaf | None:
        """What a hard link to `target` is a name of."""
        found = self.end_of(clean_path(target) or "", follow=False)
        leaf = found[1] if found is not None else None
        return leaf if isinstance(leaf, Leaf) and leaf.kind is not EntryKind.HARDLINK else None
