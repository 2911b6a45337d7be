"""Reading files out of an image's layers, as a container would see them (image-spec, layer.md).

Layers are read from the top downwards, each in one pass, and no further down than needed. Memory
holds only what a layer says about the wanted paths and the directories above them, so it is bounded
by the question and not by the image. A link makes its target a new question to the layers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mirror.errors import UnreadableImageError
from mirror.oci.layer_stream import EntryKind, TarEntry, TarStream, decompressed

LayerOpener: TypeAlias = Callable[[], Iterator[bytes]]
"""Opens the compressed bytes of one layer and verifies them; it can be called again."""

MAX_LINKS = 40
"""The most links on the way to one file: as many symbolic links as Linux follows."""
MAX_PATH = 4096
"""The most characters of a path with its links resolved."""


def read_files(
    layers: Sequence[LayerOpener],
    paths: Collection[str],
    *,
    max_file_bytes: int = 32 << 20,
    max_unpacked_bytes: int = 8 << 30,
    where: str = "image",
    check: Callable[[], None] = lambda: None,
) -> dict[str, bytes]:
    """Read those of `paths` that are regular files in the image's merged root file system.

    `layers` runs from the base upwards, as in a manifest. Paths start at the image's root, with or
    without a leading `/`. The result has them as they were given and in that order, without those
    that do not exist or are not regular files. Links are resolved inside the image.

    A layer that is opened is read to its end, even if its content is broken, so that an opener that
    verifies digests has the last word. It is then closed, if it can be. A layer is opened again
    only to look for the target of a link. `max_unpacked_bytes` bounds what this call unpacks.
    `check` is called again and again meanwhile; it raises what is to end that.

    Raises:
        UnreadableImageError: a layer is cut off, damaged or of an unknown kind; a limit is
            exceeded; a wanted file is sparse; links lead in circles, or hard links nowhere. `where`
            names the image; the base is layer 1.
        ValueError: a path is the root itself or leads out of it.
    """
    wanted = {path: clean_path(path) or "" for path in paths}
    for path, inside in wanted.items():
        if not inside:
            raise ValueError(f"{path!r} does not name a file inside an image")
    image = _Image(Layers(layers, where, max_unpacked_bytes, check), max_file_bytes)
    found: dict[str, bytes] = {}
    while wanted:
        questions: list[_UnreadError] = []
        for path, inside in list(wanted.items()):
            try:
                data = image.file(inside)
            except _UnreadError as question:
                questions.append(question)
                continue
            del wanted[path]
            if data is not None:
                found[path] = data
        if questions:
            # Only the uppermost layer: more questions to lower ones may follow from its answers.
            layer = max(question.layer for question in questions)
            image.scan(layer, {q.path for q in questions if q.layer == layer})
    return {path: found[path] for path in paths if path in found}


class Layers:
    """The layers of an image, the base first. `where` names the image in messages; `check` is
    called again and again while they are read, and raises what is to end that.

    No more than `most` bytes may come out of them together, or UnreadableImageError is raised.
    """

    def __init__(
        self, openers: Sequence[LayerOpener], where: str, most: int, check: Callable[[], None]
    ) -> None:
        self._openers, self.where, self.check = openers, where, check
        self.count, self._most, self.unpacked = len(openers), most, 0

    def name(self, layer: int) -> str:
        """What messages call a layer; its number starts at 0."""
        return f"{self.where}, layer {layer + 1} of {self.count}"

    @contextlib.contextmanager
    def opened(self, layer: int) -> Iterator[TarStream]:
        """A layer's archive.

        If its content is broken, the layer is read to its end first: the opener says so if these
        are not the right bytes at all. It is closed in the end, if it can be.
        """
        raw = self._openers[layer]()
        with contextlib.ExitStack() as stack:
            if (close := getattr(raw, "close", None)) is not None:
                stack.callback(close)
            try:
                chunks, compressed = decompressed(raw, self.name(layer), self.check)
                stack.callback(getattr(chunks, "close", lambda: None))
                yield TarStream(self._counted(chunks), self.name(layer), end_marker=not compressed)
            except UnreadableImageError:
                for _ in raw:
                    pass
                raise

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.check()
            self.unpacked += len(chunk)
            if self.unpacked > self._most:
                raise UnreadableImageError(
                    f"{self.where}: more than {self._most} bytes come out of the layers"
                )
            yield chunk


# -- what one layer says --------------------------------------------------------------------------

_WHITEOUT = ".wh."
_WHITEOUT_META = ".wh..wh."
_OPAQUE = ".wh..wh..opq"


def is_whiteout(path: str) -> bool:
    """Whether a clean path is a whiteout's, or lies in what old storage drivers kept as one
    (`.wh..wh.plnk/`). No layer has a file there, so nothing is hidden there either."""
    return f"/{_WHITEOUT}" in f"/{path}"


def hidden_by(whiteout: str) -> tuple[str, str] | None:
    """The (directory, name) in lower layers that a whiteout hides; no name if all that is there.

    None if it hides nothing.
    """
    directory, _, name = whiteout.rpartition("/")
    if name == _OPAQUE:
        return directory, ""
    if name.startswith(_WHITEOUT_META) or name == _WHITEOUT:
        return None
    return directory, name.removeprefix(_WHITEOUT)


def clean_path(name: str) -> str | None:
    """`name` without leading or double slashes, `.` and `..`. "" is the root; None lies outside."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _join(directory: str, name: str) -> str:
    """`name` in `directory`, where "" is the root."""
    return f"{directory}/{name}" if directory else name


def _above(path: str) -> Iterator[str]:
    """The directories above `path`, without the root, outermost first."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


@dataclass(frozen=True, slots=True)
class _PathContent:
    """What a layer has at a path.

    A wanted file has `data`, or a `problem` that says why it cannot be read. A link has a `target`,
    which is a clean path for a hard link.
    """

    kind: EntryKind
    target: str = ""
    data: bytes | None = field(default=None, repr=False)
    problem: str = ""


_DIRECTORY = _PathContent(EntryKind.DIRECTORY)
"""All directories are this one node."""


@dataclass(slots=True)
class _LayerView:
    """What a layer says about `wanted` paths and the directories above them, and nothing more.

    A layer's later entries win over its earlier ones, together with what stood in their way: a file
    `a` after a file `a/b` leaves no `a/b`, and a file `a/b` after a file `a` makes `a` a directory.
    Whiteouts speak of lower layers only, wherever in the layer they stand. Only a directory lets
    what lower layers hold below its path show (`hides`).
    """

    wanted: frozenset[str] = frozenset()
    nodes: dict[str, _PathContent] = field(default_factory=dict)
    _tracked: frozenset[str] = field(init=False)
    _whiteouts: set[str] = field(default_factory=set)
    _opaque: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tracked = self.wanted | {above for path in self.wanted for above in _above(path)}

    def hides(self, path: str) -> bool:
        """Whether lower layers do not show at `path`, where this layer itself has nothing."""
        return (
            path in self._whiteouts
            or "" in self._opaque
            or any(
                above in self._whiteouts
                or above in self._opaque
                or self.nodes.get(above, _DIRECTORY) is not _DIRECTORY
                for above in _above(path)
            )
        )

    def add(self, entry: TarEntry, archive: TarStream, max_file_bytes: int) -> None:
        """Note the layer's next entry; a wanted file's data is read from `archive`."""
        path = clean_path(entry.name)
        if not path:
            return  # the root itself, or a name that would escape it
        if is_whiteout(path):
            self._add_whiteout(path)
            return
        for above in _above(path):
            if above in self._tracked:
                self.nodes[above] = _DIRECTORY
        if path not in self._tracked:
            return
        if entry.kind is EntryKind.DIRECTORY:
            self.nodes[path] = _DIRECTORY
            return
        node = self._content_of(path, entry, archive, max_file_bytes)
        below = f"{path}/"
        for gone in [other for other in self.nodes if other.startswith(below)]:
            del self.nodes[gone]
        self.nodes[path] = node

    def _add_whiteout(self, path: str) -> None:
        match hidden_by(path):
            case (directory, "") if not directory or directory in self._tracked:
                self._opaque.add(directory)
            case (directory, name) if name and _join(directory, name) in self._tracked:
                self._whiteouts.add(_join(directory, name))

    def _content_of(
        self, path: str, entry: TarEntry, archive: TarStream, max_file_bytes: int
    ) -> _PathContent:
        if entry.kind is EntryKind.HARDLINK:
            target = clean_path(entry.target) or ""
            # Resolved now, because a later entry of that name is another file.
            now = self.nodes.get(target) if target in self.wanted else None
            if now is not None and now is not _DIRECTORY:
                return now
            return _PathContent(EntryKind.HARDLINK, target)
        if entry.kind is not EntryKind.FILE or path not in self.wanted:
            return _PathContent(entry.kind, entry.target)
        # A problem matters only if no upper layer hides the file.
        problem = "is stored as a sparse file, which is not read" if entry.sparse else ""
        if not problem and entry.size > max_file_bytes:
            problem = f"has {entry.size} bytes; at most {max_file_bytes} are read"
        data = None if problem else archive.read()
        return _PathContent(EntryKind.FILE, data=data, problem=problem)


# -- what all layers say together ------------------------------------------------------------------


class _UnreadError(Exception):
    """`layer` must be read for `path` first. Control flow that never leaves this module."""

    def __init__(self, layer: int, path: str) -> None:
        super().__init__(layer, path)
        self.layer, self.path = layer, path


class _Image:
    """What is known of an image so far: for each layer, what it says about the wanted paths."""

    def __init__(self, layers: Layers, max_file_bytes: int) -> None:
        self._layers, self._where, self._max_file_bytes = layers, layers.where, max_file_bytes
        self._views = [_LayerView() for _ in range(layers.count)]

    def file(self, path: str) -> bytes | None:
        """The content of the regular file at `path`; None if there is no such file."""
        node = self._resolve(path, len(self._views) - 1, itertools.count(1), follow=True)
        if node is None or node.kind is not EntryKind.FILE:
            return None
        if node.data is None:
            raise UnreadableImageError(f"{self._where}: the file {path} {node.problem}")
        return node.data

    def _resolve(
        self, path: str, top: int, links: Iterator[int], *, follow: bool
    ) -> _PathContent | None:
        """What is at `path` in the file system that layers 0 to `top` make; never a hard link.

        With `follow`, a symbolic link at the end of the path is followed. `links` counts links.
        """
        here = ""
        node = _DIRECTORY
        rest = path.split("/")
        while rest:
            name = rest.pop(0)
            if name in ("", "."):
                continue
            if name == "..":
                here, node = here.rpartition("/")[0], _DIRECTORY
                continue
            at = _join(here, name)
            # Ask the layers for as much of the way as is certain: up to the first step back.
            ahead = [at, *itertools.takewhile(lambda part: part != "..", rest)]
            below = self._lookup(at, clean_path("/".join(ahead)) or at, top, links)
            if below is None:
                return None
            if below.kind is EntryKind.SYMLINK and (follow or rest):
                self._count_link(path, links)
                if not below.target:
                    return None
                if below.target.startswith("/"):
                    here = ""
                node, rest = _DIRECTORY, [*below.target.split("/"), *rest]
                if len(here) + sum(map(len, rest)) + len(rest) > MAX_PATH:
                    raise UnreadableImageError(
                        f"{self._where}: links make {path} longer than {MAX_PATH} characters"
                    )
            elif rest and below is not _DIRECTORY:
                return None
            else:
                here, node = at, below
        return node

    def _lookup(self, path: str, ahead: str, top: int, links: Iterator[int]) -> _PathContent | None:
        """What is at `path`, on the way to `ahead`; no parent of `path` is a link."""
        for layer in range(top, -1, -1):
            view = self._views[layer]
            if ahead not in view.wanted:
                raise _UnreadError(layer, ahead)
            node = view.nodes.get(path)
            if node is not None and node.kind is EntryKind.HARDLINK:
                self._count_link(path, links)
                # The file of that name in this layer, whatever upper layers made of it.
                linked = self._resolve(node.target, layer, links, follow=False)
                if linked is None or linked is _DIRECTORY:
                    raise UnreadableImageError(
                        f"{self._layers.name(layer)}: {path} is a hard link to {node.target!r}, "
                        "where there is no file"
                    )
                return linked
            if node is not None or view.hides(path):
                return node
        return None

    def _count_link(self, path: str, links: Iterator[int]) -> None:
        if next(links) > MAX_LINKS:
            raise UnreadableImageError(
                f"{self._where}: more than {MAX_LINKS} links on the way to {path}"
            )

    def scan(self, layer: int, wanted: Collection[str]) -> None:
        """Read a whole layer, and note what it says about `wanted` paths."""
        # Again those of earlier passes: a hard link is resolved where both names are noted.
        view = _LayerView(self._views[layer].wanted.union(wanted))
        with self._layers.opened(layer) as archive:
            for entry in archive:
                view.add(entry, archive, self._max_file_bytes)
        self._views[layer] = view
