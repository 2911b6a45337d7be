"""A disk between the code under test and the system: it counts, records and refuses changes.

It stands in for the functions of `os` that change files and folders, for all threads of the
process, while its block lasts. What lies outside of its root passes by.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self, TypeAlias

import pytest


class KilledError(BaseException):
    """The process ends here: whatever it tries to change after that, it changes nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the disk, or the wait for one (`sync`).

    `node` is the file or folder that is meant, by a number of its own; for changes of a name it is
    the folder, with the name in `name`. `into` and `new` are where a renamed thing goes. `made` is
    the number of what was made.
    """

    kind: str
    node: int
    name: str = ""
    into: int = -1
    new: str = ""
    made: int = -1
    offset: int = 0
    data: bytes = field(default=b"", repr=False)


@dataclass
class Disk:
    """The changes below `root`, in their order; `before` is called with each, and may raise."""

    root: Path
    before: Callable[[Change], None] = lambda change: None
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.at_first = Tree()
        self._lock = threading.RLock()
        self._patch = pytest.MonkeyPatch()
        self._nodes: dict[tuple[int, int], int] = {}
        self._real: dict[str, Any] = {}

    # -- what a test asks for --------------------------------------------------------------------

    @classmethod
    def killing(cls, root: Path, at: int) -> Disk:
        """A disk on which the process dies instead of its change number `at`."""
        return cls._counting(root, lambda number, _: _die() if number >= at else None)

    @classmethod
    def failing(cls, root: Path, at: int, number: int) -> Disk:
        """A disk whose change number `at` fails with that `errno`."""

        def fail(count: int, _change: Change) -> None:
            if count == at:
                raise OSError(number, os.strerror(number))

        return cls._counting(root, fail)

    @classmethod
    def full(cls, root: Path, room: int) -> Disk:
        """A disk with room for that many bytes more; names need none, and nothing is given back."""
        left = [room]

        def check(_count: int, change: Change) -> None:
            if change.kind == "write":
                left[0] -= len(change.data)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return cls._counting(root, check)

    @classmethod
    def _counting(cls, root: Path, check: Callable[[int, Change], None]) -> Disk:
        disk = cls(root)
        disk.before = lambda change: check(len(disk.changes), change)
        return disk

    # -- the stand-ins ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self._look(self.root)
        self._patch.setattr(io, "open", self._open_file)
        for name in _STAND_INS:
            self._real[name] = getattr(os, name)
            self._patch.setattr(os, name, getattr(self, "_" + name))
        return self

    def __exit__(self, *_error: object) -> None:
        self._patch.undo()

    def _look(self, folder: Path) -> None:
        names = self.at_first.folders[self.node(folder.stat())] = {}
        for path in folder.iterdir():
            number = names[path.name] = self.node(path.lstat())
            if path.is_dir():
                self._look(path)
            else:
                self.at_first.files[number] = path.read_bytes()

    def _open_file(self, path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        """Files that are not opened by a descriptor are created like all others."""
        if "x" in mode:
            named["opener"] = lambda name, flags: os.open(name, flags, 0o666)
        return _io_open(path, mode, *more, **named)

    def _change(self, change: Change) -> None:
        self.before(change)
        self.changes.append(change)

    def _place(self, path: Any, fd: int | None) -> tuple[int, str] | None:
        """The number of the folder of a path, and the name there; None outside of the root."""
        whole = Path(path) if fd is None else _behind(fd) / path
        if not whole.absolute().is_relative_to(self.root):
            return None
        return self.node(whole.parent.stat()), whole.name

    def _file(self, fd: int) -> int | None:
        return self.node(os.fstat(fd)) if _behind(fd).is_relative_to(self.root) else None

    def node(self, status: os.stat_result) -> int:
        """The number of a file or folder."""
        return self._nodes.setdefault((status.st_dev, status.st_ino), len(self._nodes))

    def _anew(self, status: os.stat_result) -> int:
        """The number of what was just made; a system uses the numbers of its nodes again."""
        self._nodes.pop((status.st_dev, status.st_ino), None)
        number = len(self._nodes) + len(self.changes) + 1000
        return self._nodes.setdefault((status.st_dev, status.st_ino), number)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self._lock:
            place = self._place(path, dir_fd) if flags & (os.O_CREAT | os.O_TRUNC) else None
            if place is None or os.path.lexists(
                Path(path) if dir_fd is None else _behind(dir_fd) / path
            ):
                return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
            self.before(Change("create", *place))
            fd = int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
            self.changes.append(Change("create", *place, made=self._anew(os.fstat(fd))))
            return fd

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            place = self._place(path, dir_fd)
            if place is not None:
                self.before(Change("mkdir", *place))
            self._real["mkdir"](path, mode, dir_fd=dir_fd)
            if place is not None:
                made = self._anew(os.stat(path, dir_fd=dir_fd))
                self.changes.append(Change("mkdir", *place, made=made))

    def _pwritev(self, fd: int, pieces: Sequence[bytes], offset: int, *more: int) -> int:
        with self._lock:
            node = self._file(fd)
            if node is not None:
                self._change(Change("write", node, offset=offset, data=b"".join(pieces)))
            return int(self._real["pwritev"](fd, pieces, offset, *more))

    def _write(self, fd: int, data: bytes) -> int:
        with self._lock:
            node = self._file(fd)
            if node is not None:  # files opened for appending
                self._change(Change("write", node, offset=os.fstat(fd).st_size, data=bytes(data)))
            return int(self._real["write"](fd, data))

    def _ftruncate(self, fd: int, length: int) -> None:
        with self._lock:
            node = self._file(fd)
            if node is not None:
                self._change(Change("truncate", node, offset=length))
            self._real["ftruncate"](fd, length)

    def _fsync(self, fd: int) -> None:
        with self._lock:
            node = self._file(fd)
            if node is not None:
                self._change(Change("sync", node))
            self._real["fsync"](fd)

    def _replace(
        self, old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        with self._lock:
            place, into = self._place(old, src_dir_fd), self._place(new, dst_dir_fd)
            if place is not None and into is not None:
                self._change(Change("rename", *place, *into))
            self._real["replace"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    _rename = _replace

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("unlink", path, dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._removed("rmdir", path, dir_fd)

    def _removed(self, kind: str, path: Any, dir_fd: int | None) -> None:
        with self._lock:
            place = self._place(path, dir_fd)
            if place is not None and _is_there(path, dir_fd):
                self._change(Change(kind, *place))
            self._real[kind](path, dir_fd=dir_fd)


_io_open = io.open
_STAND_INS = (
    *("open", "mkdir", "pwritev", "write", "ftruncate", "fsync"),
    *("replace", "rename", "unlink", "rmdir"),
)


def _behind(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


def _is_there(path: Any, dir_fd: int | None) -> bool:
    return os.path.lexists(Path(path) if dir_fd is None else _behind(dir_fd) / path)


def _die() -> None:
    raise KilledError


# -- power cuts ------------------------------------------------------------------------------------


@dataclass
class Tree:
    """Folders and files by number: what is on a disk. Folder 0 is the root."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)

    def put_into(self, path: Path, folder: int = 0) -> None:
        """Make it at `path`, which must not exist."""
        path.mkdir()
        for name, number in self.folders[folder].items():
            if number in self.folders:
                self.put_into(path / name, number)
            else:
                (path / name).write_bytes(self.files[number])


def after_a_power_cut(
    first: Tree, changes: Sequence[Change], keep: Callable[[Change], float]
) -> Tree:
    """What may be on the disk if the power fails behind `changes`.

    POSIX promises what was synced: the bytes of a file, and the names of a folder. Of all later
    changes `keep` says how much of each arrived: 1 all of it, 0 nothing, and of bytes also a part.
    What a file was extended by and did not arrive is zeros.
    """
    now = Tree({n: {**names} for n, names in first.folders.items()}, {**first.files})
    disk = Tree({n: {**names} for n, names in first.folders.items()}, {**first.files})
    kept: dict[int, list[tuple[Effect, float]]] = {}  # by the number of the file or folder
    for change in changes:
        for number, apply in _effects(now, change):
            apply(now, 1.0)
            kept.setdefault(number, []).append((apply, keep(change)))
        if change.kind == "sync":
            for apply, _ in kept.pop(change.node, ()):
                apply(disk, 1.0)
    for late in kept.values():
        for apply, share in late:
            if share:
                apply(disk, share)
    return disk


Effect: TypeAlias = "Callable[[Tree, float], None]"


def _effects(now: Tree, change: Change) -> Iterator[tuple[int, Effect]]:
    """What a change does, each with the file or folder whose sync makes it durable."""
    match change.kind:
        case "create" | "mkdir":
            yield change.node, partial(_name, change.node, change.name, change.made, change.kind)
        case "unlink" | "rmdir":
            yield change.node, partial(_name, change.node, change.name, None, "")
        case "rename":
            moved = now.folders[change.node][change.name]
            kind = "mkdir" if moved in now.folders else "create"
            if change.into != change.node:
                yield change.into, partial(_name, change.into, change.new, moved, kind)
                yield change.node, partial(_name, change.node, change.name, None, "")
            else:
                yield change.node, partial(_rename, change.node, change.name, change.new, moved)
        case "write":
            yield change.node, partial(_write, change.node, change.offset, change.data)
        case "truncate":
            yield change.node, partial(_truncate, change.node, change.offset)


def _name(folder: int, name: str, number: int | None, kind: str, tree: Tree, _share: float) -> None:
    names = tree.folders.setdefault(folder, {})
    if number is None:
        names.pop(name, None)
        return
    names[name] = number
    if kind == "mkdir":
        tree.folders.setdefault(number, {})
    else:
        tree.files.setdefault(number, b"")


def _rename(folder: int, name: str, new: str, number: int, tree: Tree, _share: float) -> None:
    names = tree.folders.setdefault(folder, {})
    names.pop(name, None)
    names[new] = number
    if number not in tree.folders:
        tree.files.setdefault(number, b"")


def _write(file: int, offset: int, data: bytes, tree: Tree, share: float) -> None:
    before = tree.files.get(file, b"").ljust(offset + len(data), b"\0")
    arrived = data[: int(len(data) * share)]
    tree.files[file] = before[:offset] + arrived + before[offset + len(arrived) :]


def _truncate(file: int, size: int, tree: Tree, _share: float) -> None:
    tree.files[file] = tree.files.get(file, b"")[:size].ljust(size, b"\0")


def keeping(seed: int) -> Callable[[Change], float]:
    """How much arrives of what was not synced: nothing, names or bytes alone, all, or by chance."""
    random = Random(seed)
    match seed % 5:
        case 0:
            return lambda _: 0.0
        case 1:
            return lambda change: float(change.kind not in ("write", "truncate"))
        case 2:
            return lambda change: float(change.kind in ("write", "truncate"))
        case 3:
            return lambda _: 1.0
    return lambda _: random.choice((0.0, random.random(), 1.0))
