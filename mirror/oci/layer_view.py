"""What one layer of an image says about some paths (image-spec, layer.md).

A layer's later entries win over its earlier ones, together with what stood in their way: a file
`a` after a file `a/b` leaves no `a/b`, and a file `a/b` after a file `a` makes `a` a directory.
Whiteouts speak of lower layers only, wherever in the layer they stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mirror.oci.tar_stream import Entry, Kind, TarStream

_WHITEOUT = ".wh."
_WHITEOUT_META = ".wh..wh."
_OPAQUE = ".wh..wh..opq"


def clean(name: str) -> str | None:
    """`name` without leading or double slashes, `.` and `..`; "" is the root, None is outside."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def join(directory: str, name: str) -> str:
    """`name` in `directory`, where "" is the root."""
    return f"{directory}/{name}" if directory else name


def _above(path: str) -> Iterator[str]:
    """The directories above `path`, without the root, outermost first."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


@dataclass(frozen=True, slots=True)
class Node:
    """What a layer has at a path.

    A wanted file has `data`, or a `problem`: why it cannot be given. `target` is of links, cleaned
    for hard ones.
    """

    kind: Kind
    target: str = ""
    data: bytes | None = field(default=None, repr=False)
    problem: str = ""


DIRECTORY = Node(Kind.DIRECTORY)
"""All directories are this one node."""


@dataclass(slots=True)
class LayerView:
    """What a layer says about `wanted` paths and the directories above them, and nothing more.

    Only a directory lets what lower layers hold below its path shine through (`hides`).
    """

    wanted: frozenset[str] = frozenset()
    nodes: dict[str, Node] = field(default_factory=dict)
    _tracked: frozenset[str] = frozenset()
    _whiteouts: set[str] = field(default_factory=set)
    _opaque: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, wanted: frozenset[str]) -> LayerView:
        """A view that will note what concerns `wanted` (clean paths)."""
        tracked = wanted | {above for path in wanted for above in _above(path)}
        return cls(wanted=wanted, _tracked=tracked)

    def hides(self, path: str) -> bool:
        """Whether lower layers do not show at `path`, given that this layer has nothing there."""
        return (
            path in self._whiteouts
            or "" in self._opaque
            or any(
                above in self._whiteouts
                or above in self._opaque
                or self.nodes.get(above, DIRECTORY) is not DIRECTORY
                for above in _above(path)
            )
        )

    def add(self, entry: Entry, archive: TarStream, max_file_bytes: int) -> None:
        """Note the layer's next entry; a wanted file's data is read from `archive`."""
        path = clean(entry.name)
        if not path:
            return  # the root itself, or a name that would escape it
        if f"/{_WHITEOUT}" in f"/{path}":
            self._add_whiteout(path)
            return
        for above in _above(path):
            if above in self._tracked:
                self.nodes[above] = DIRECTORY
        if path not in self._tracked:
            return
        if entry.kind is Kind.DIRECTORY:
            self.nodes[path] = DIRECTORY
            return
        node = self._node(path, entry, archive, max_file_bytes)
        below = f"{path}/"
        for gone in [other for other in self.nodes if other.startswith(below)]:
            del self.nodes[gone]
        self.nodes[path] = node

    def _add_whiteout(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        if f"/{_WHITEOUT}" in f"/{directory}":
            return  # inside of what old storage drivers kept, `.wh..wh.plnk/` and the like
        if name == _OPAQUE:
            if not directory or directory in self._tracked:
                self._opaque.add(directory)
        elif not name.startswith(_WHITEOUT_META):
            hidden = join(directory, name.removeprefix(_WHITEOUT))
            if hidden in self._tracked:
                self._whiteouts.add(hidden)

    def _node(self, path: str, entry: Entry, archive: TarStream, max_file_bytes: int) -> Node:
        if entry.kind is Kind.HARDLINK:
            target = clean(entry.target) or ""
            # What it names now: a later entry of that name is another file.
            now = self.nodes.get(target) if target in self.wanted else None
            return now if now not in (None, DIRECTORY) else Node(Kind.HARDLINK, target)
        if entry.kind is Kind.FILE and path in self.wanted:
            # A problem only if this very file turns out to be the one that shows.
            if entry.sparse:
                return Node(Kind.FILE, problem="is stored as a sparse file, which is not read")
            if entry.size > max_file_bytes:
                problem = f"has {entry.size} bytes; at most {max_file_bytes} are read"
                return Node(Kind.FILE, problem=problem)
            return Node(Kind.FILE, data=archive.read())
        return Node(entry.kind, entry.target)
