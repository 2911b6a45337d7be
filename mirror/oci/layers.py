"""Reading files out of an image's layers, as a container would see them (image-spec, layer.md).

The layers are read from the top downwards, each in one pass, and no further down than needed. What
is kept of a layer is what it says about the wanted paths and the directories above them, so memory
is bounded by the question and not by the image. Where the answer is a link, its target is a new
question to the layers.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeAlias

from mirror.errors import UnreadableImageError
from mirror.oci.decompress import decompressed
from mirror.oci.layer_view import DIRECTORY, LayerView, Node, clean, join
from mirror.oci.tar_stream import Kind, TarStream

LayerOpener: TypeAlias = Callable[[], Iterator[bytes]]
"""Opens the compressed bytes of one layer; reopenable. It checks them against their digest."""

_MAX_LINKS = 40
"""Links followed on the way to one file; as many as Linux follows symbolic ones."""
_MAX_PATH = 4096
"""Characters of a path with all links put in."""


def read_files(
    layers: Sequence[LayerOpener],
    paths: Collection[str],
    *,
    max_file_bytes: int = 32 << 20,
    max_unpacked_bytes: int = 8 << 30,
    where: str = "image",
) -> dict[str, bytes]:
    """Read those of `paths` that are regular files in the image's merged root file system.

    `layers` runs from the base upwards, as in a manifest. Paths count from the image's root, with
    or without a leading `/`; the result has them as they were given, in that order, and misses
    those that do not exist or are no regular files. Links are resolved inside the image.

    A layer that is opened is read to its end, also when its content is broken, so that an opener
    that verifies digests has the last word; it is closed if it can be. A layer is opened again only
    to look for the target of a link. `max_unpacked_bytes` bounds what is unpacked in this call.

    Raises:
        UnreadableImageError: a layer is cut, damaged or of an unknown kind, a limit is exceeded, a
            wanted file is sparse, or links lead in circles or (hard ones) nowhere. `where` names
            the image; the base is layer 1.
        ValueError: a path is the root itself or leads out of it.
    """
    wanted = {path: _clean_path(path) for path in paths}
    image = _Image(layers, where, max_file_bytes, max_unpacked_bytes)
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
            # Only the uppermost layer asked for: who asks for a lower one may get company there.
            layer = max(question.layer for question in questions)
            image.scan(layer, {q.path for q in questions if q.layer == layer})
    return {path: found[path] for path in paths if path in found}


def _clean_path(path: str) -> str:
    inside = clean(path)
    if not inside:
        raise ValueError(f"{path!r} does not name a file inside an image")
    return inside


class _UnreadError(Exception):
    """The answer takes `layer` to be read for `path`. Control flow that never leaves here."""

    def __init__(self, layer: int, path: str) -> None:
        super().__init__(layer, path)
        self.layer, self.path = layer, path


class _Image:
    """What is known of an image so far: for each layer, its view of the paths asked about."""

    def __init__(
        self,
        layers: Sequence[LayerOpener],
        where: str,
        max_file_bytes: int,
        max_unpacked_bytes: int,
    ) -> None:
        self._layers, self._where = layers, where
        self._max_file_bytes, self._max_unpacked_bytes = max_file_bytes, max_unpacked_bytes
        self._unpacked = 0
        self._views = [LayerView() for _ in layers]

    def file(self, path: str) -> bytes | None:
        """The content of the regular file at `path`; None where there is none.

        Raises:
            _UnreadError: it takes a layer that was not read for this yet.
        """
        node = self._resolve(path, len(self._layers) - 1, itertools.count(1), follow=True)
        if node is None or node.kind is not Kind.FILE:
            return None
        if node.data is None:
            raise UnreadableImageError(f"{self._where}: the file {path} {node.problem}")
        return node.data

    def _resolve(self, path: str, top: int, links: Iterator[int], *, follow: bool) -> Node | None:
        """What is at `path` in the file system that layers 0 to `top` make; never a hard link.

        `follow` says whether a symbolic link in the last place is followed. `links` counts links.
        """
        here = ""
        node = DIRECTORY
        rest = path.split("/")
        while rest:
            name = rest.pop(0)
            if name in ("", "."):
                continue
            if name == "..":
                here, node = here.rpartition("/")[0], DIRECTORY
                continue
            at = join(here, name)
            # Layers are asked for as much of the way as is certain: up to the first step back.
            ahead = [at, *itertools.takewhile(lambda part: part != "..", rest)]
            below = self._lookup(at, clean("/".join(ahead)) or at, top, links)
            if below is None:
                return None
            if below.kind is Kind.SYMLINK and (follow or rest):
                self._count_link(path, links)
                if not below.target:
                    return None
                if below.target.startswith("/"):
                    here = ""
                node, rest = DIRECTORY, [*below.target.split("/"), *rest]
                if len(here) + sum(map(len, rest)) + len(rest) > _MAX_PATH:
                    raise UnreadableImageError(
                        f"{self._where}: links make {path} longer than {_MAX_PATH} characters"
                    )
            elif rest and below is not DIRECTORY:
                return None
            else:
                here, node = at, below
        return node

    def _lookup(self, path: str, ahead: str, top: int, links: Iterator[int]) -> Node | None:
        """What is at `path`, on the way to `ahead`; the parents of `path` are no links."""
        for layer in range(top, -1, -1):
            view = self._views[layer]
            if ahead not in view.wanted:
                raise _UnreadError(layer, ahead)
            node = view.nodes.get(path)
            if node is not None and node.kind is Kind.HARDLINK:
                self._count_link(path, links)
                # The file of that name as this layer left it, whatever upper layers made of it.
                linked = self._resolve(node.target, layer, links, follow=False)
                if linked is None or linked is DIRECTORY:
                    raise UnreadableImageError(
                        f"{self._name(layer)}: {path} is a hard link to {node.target!r}, "
                        "where there is no file"
                    )
                return linked
            if node is not None or view.hides(path):
                return node
        return None

    def _count_link(self, path: str, links: Iterator[int]) -> None:
        if next(links) > _MAX_LINKS:
            raise UnreadableImageError(
                f"{self._where}: more than {_MAX_LINKS} links on the way to {path}"
            )

    def scan(self, layer: int, wanted: Collection[str]) -> None:
        """Read a layer through and note what it says about `wanted` paths."""
        # Those of earlier passes again: a hard link is bound where both its names are noted.
        view = LayerView.of(self._views[layer].wanted.union(wanted))
        name = self._name(layer)
        raw = self._layers[layer]()
        with contextlib.ExitStack() as stack:
            close = getattr(raw, "close", None)
            if close is not None:
                stack.callback(close)
            try:
                unpacked = decompressed(raw, name)
                archive = TarStream(
                    self._counted(unpacked.chunks, name),
                    name,
                    end_marker=not unpacked.self_checking,
                )
                for entry in archive:
                    view.add(entry, archive, self._max_file_bytes)
            except UnreadableImageError:
                for _ in raw:  # broken because these are other bytes? Then the opener says so
                    pass
                raise
        self._views[layer] = view

    def _counted(self, chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
        for chunk in chunks:
            self._unpacked += len(chunk)
            if self._unpacked > self._max_unpacked_bytes:
                raise UnreadableImageError(
                    f"{name}: more than {self._max_unpacked_bytes} bytes come out of the layers"
                )
            yield chunk

    def _name(self, layer: int) -> str:
        return f"{self._where}, layer {layer + 1} of {len(self._layers)}"
