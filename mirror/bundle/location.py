"""Where the files of a bundle lie: in a folder, or on another machine that serves ranges of them.

The readers of bundles use what a `Path` and a `RemotePath` have in common. This machine's disk
never keeps a remote file: whoever reads gets the bytes as they arrive.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeAlias, Union

from mirror.bundle.format import ZSTD_SUFFIX, archive_named, whole_name
from mirror.durable import Extents, os_errors
from mirror.errors import DamagedBundleError, FileSystemError
from mirror.registry.downloads import FileState
from mirror.run import Run, gather

COPY_AGAIN = "copy it again from its origin"
_GAP = 64 << 10
"""Bytes between two wanted stretches that are fetched with them: a request costs as much."""
_MOST_KEPT = 64 << 20
_HEADER, _NEAR = 512, 16 << 10
_LONGEST_NAME = 255

Stretch: TypeAlias = tuple[int, int]
"""Where some bytes of a file begin, and where they end."""
Location: TypeAlias = Union[Path, "RemotePath"]
"""A bundle's folder, or a file of it."""


class Readable(Protocol):
    """An archive to be read at offsets: one file, or parts. Thread-safe. `size` in bytes."""

    path: Location
    size: int
    parts: tuple[Location, ...] = ()
    """The files that it consists of; none for a folder, or what cannot be opened."""

    @property
    def ends(self) -> Sequence[int]:
        """Where each of its parts ends in the whole."""
        return (self.size,)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most a few MiB.

        Raises:
            DamagedBundleError: the archive ends before them, or is damaged there.
        """

    def extents(self, _offset: int, _size: int) -> Extents:
        """The same as it lies in files of this machine; nothing where it does not."""
        yield from ()

    def close(self) -> None:
        """Let go of what was opened with it."""
        return

    def read(self, offset: int, size: int) -> bytes:
        """Read the same as one piece."""
        return b"".join(self.chunks(offset, size))

    @contextmanager
    def in_order(self, _stretches: Iterable[Stretch]) -> Iterator[Readable]:
        """Give the file to one thread that reads these stretches, in their order.

        From another machine neighbours come in one answer, which is read as it arrives.
        """
        yield self

    def keep(self, _stretches: Iterable[Stretch]) -> None:
        """Expect that these are read soon, each by itself: from another machine they are fetched
        in parallel, and kept in memory as far as they fit."""
        return


def ended_early(
    path: Location, offset: int, missing: int, *, parted: bool = False
) -> DamagedBundleError:
    """What to raise where an archive ends at `offset`, `missing` bytes before it may."""
    whole = "ends", f"the archive is truncated, {COPY_AGAIN}"
    parts = "its parts end", "one is cut short, or the last is missing: copy them again from their"
    told, advice = (parts[0], f"{parts[1]} origin") if parted else whole
    return DamagedBundleError(
        f"{told} at byte {offset}, {missing} bytes too early", where=path.name, advice=advice
    )


def windows(starts: Sequence[int], offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a stretch of a whole, whose parts begin at `starts`, into (part, offset in it, size).

    The last of `starts` is where the whole ends; the stretch lies inside.
    """
    end = offset + size
    while offset < end:
        number = bisect_right(starts, offset) - 1
        step = min(end, starts[number + 1]) - offset
        yield number, offset - starts[number], step
        offset += step


def size_of(path: Location) -> int:
    """The bytes that a file has.

    Raises:
        FileSystemError: it cannot be examined, or is not there.
    """
    if isinstance(path, Path):
        with os_errors(path, "examine"):
            return path.stat().st_size
    return path.state().size


def uncompressed_bytes(paths: Iterable[Location]) -> int:
    """Return how many bytes files have; compressed ones and folders have none."""
    plain = (path for path in paths if not path.is_dir())
    return sum(size_of(path) for path in plain if not whole_name(path.name).endswith(ZSTD_SUFFIX))


def archive_at(path: Location) -> Location | None:
    """Return the archive that a file is, or is a part of, compressed or not; None for others."""
    archive = path.with_name(archive_named(path.name))
    return archive if archive.suffix == ".tar" else None


def stored_file(path: Location) -> Location:
    """Return the file that would hold an archive in one piece: without the name of the part."""
    whole = whole_name(path.name)
    return path if whole == path.name else path.with_name(whole)


# -- on another machine ----------------------------------------------------------------------------


def is_name(name: str) -> bool:
    """Whether a file of a folder may have this name, which another machine told."""
    plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    return plain and len(name) <= _LONGEST_NAME


class Objects(Protocol):
    """Files on another machine, by name. Thread-safe. `where` is for messages, without secrets.

    Every method raises, besides what it names itself:

    * DeniedError, UnreachableError, RegistryError: the server refuses, or does not answer.
    * CancelledError: `run` was stopped.
    """

    where: str

    def states(self, run: Run) -> Mapping[str, FileState]:
        """Every file there, by name.

        Raises:
            InputError: nothing tells which files there are.
        """

    def chunks(
        self, name: str, state: FileState, offset: int, size: int, run: Run
    ) -> Generator[bytes, None, None]:
        """Read a range, which lies inside of the file, in pieces as they arrive.

        A broken connection is replaced by another, which continues at the byte reached.

        Raises:
            ConflictError: the file is not what its `state` says any more.
        """

    def close(self) -> None:
        """End all connections."""


class RemotePath:
    """A folder on another machine, or a file in it, with the methods of `Path` that a reader needs.

    What is there is asked for once. A file that changes later is noticed when it is read. `run` is
    the work that all waiting listens to; whoever reads for another sets it. Use the folder as a
    context manager, which ends the connections.
    """

    def __init__(self, objects: Objects, run: Run | None = None) -> None:
        self.run = run or Run()
        self._objects, self._key, self._folder = objects, "", self
        self.spare = _MOST_KEPT  # bytes that may still be kept in memory
        self._states: Mapping[str, FileState] | None = None
        self._lock = threading.Lock()  # guards the states

    def __enter__(self) -> RemotePath:
        return self

    def __exit__(self, *_error: object) -> None:
        self._objects.close()

    def __truediv__(self, name: str) -> RemotePath:
        file = RemotePath.__new__(RemotePath)
        file._objects, file._key, file._folder = self._objects, name, self._folder
        return file

    def __str__(self) -> str:
        return f"{self._objects.where}/{self._key}".rstrip("/")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemotePath):
            return NotImplemented
        return (self._folder is other._folder) and self._key == other._key

    def __hash__(self) -> int:
        return hash((id(self._folder), self._key))

    @property
    def name(self) -> str:
        return PurePosixPath(self._key or self._objects.where).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._key).suffix

    @property
    def parent(self) -> RemotePath:
        return self._folder

    def with_name(self, name: str) -> RemotePath:
        return self._folder / name

    def absolute(self) -> RemotePath:
        return self

    def is_dir(self) -> bool:
        return not self._key

    def is_file(self) -> bool:
        return self._key in self._folder._listed()

    exists = is_file

    def iterdir(self) -> Iterator[RemotePath]:
        return (self / name for name in sorted(self._listed()))

    def read_bytes(self) -> bytes:
        return self.opened().read(0, self.state().size)

    def opened(self) -> Readable:
        """The file, to be read at offsets."""
        return RemoteFile(self, [self])

    def state(self) -> FileState:
        """How the file was when this folder was first looked at.

        Raises:
            FileSystemError: it was not there.
        """
        state = self._folder._listed().get(self._key)
        if state is None:
            raise FileSystemError(f"cannot read {self}: there is no such file")
        return state

    def range(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read bytes of the file; errors as those of `Objects.chunks`."""
        run = self._folder.run
        return self._objects.chunks(self._key, self.state(), offset, size, run)

    def _listed(self) -> Mapping[str, FileState]:
        with self._lock:
            if self._states is None:
                self._states = dict(self._objects.states(self.run))
            return self._states


class RemoteFile(Readable):
    """Remote files, one behind the other, as one stretch of bytes; `path` is what that is called.

    Each call of `chunks` is one request for each of the files that it touches.
    """

    def __init__(self, path: Location, parts: Sequence[RemotePath]) -> None:
        self.path, self.parts, self._parts = path, tuple(parts), tuple(parts)
        self._starts = (0, *accumulate(size_of(part) for part in parts))
        self.size = self._starts[-1]
        self._kept: list[tuple[int, bytes]] = []  # sorted
        self._block = (0, b"")  # the last that was read for its beginning

    @property
    def ends(self) -> Sequence[int]:
        return self._starts[1:]

    def close(self) -> None:
        """Let go of what is kept in memory; connections are those of the folder."""
        self._kept = []

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most 1 MiB.

        Raises:
            DamagedBundleError: the archive ends before them.
            MirrorError: as `Objects.chunks`.
        """
        kept = self._kept_at(offset, size)
        if kept is not None:
            yield kept
            return
        inside = max(0, min(size, self.size - offset))
        for number, start, step in windows(self._starts, offset, inside):
            yield from self._parts[number].range(start, step)
        if inside < size:
            parted = self._parts != (self.path,)
            raise ended_early(self.path, self.size, size - inside, parted=parted)

    def read(self, offset: int, size: int) -> bytes:
        """Read one piece, and behind a header what follows it: the next one is often near."""
        if size > _HEADER or offset + size > self.size:
            return b"".join(self.chunks(offset, size))
        start, data = self._block
        if not start <= offset <= start + len(data) - size:
            start, data = offset, b"".join(self.chunks(offset, min(_NEAR, self.size - offset)))
            self._block = start, data
        return data[offset - start : offset - start + size]

    def _kept_at(self, offset: int, size: int) -> bytes | None:
        kept = self._kept
        number = bisect_right(kept, offset, key=lambda one: one[0]) - 1
        if number < 0:
            return None
        start, data = kept[number]
        inside = data[offset - start : offset - start + size]
        return inside if size and len(inside) == size else None

    @contextmanager
    def in_order(self, stretches: Iterable[Stretch]) -> Iterator[Readable]:
        reading = _InOrder(self, merged(stretches))
        try:
            yield reading
        finally:
            reading.close()

    def keep(self, stretches: Iterable[Stretch]) -> None:
        wanted: list[Stretch] = []
        folder = self._parts[0].parent
        for start, end in merged(stretches):
            if end - start > folder.spare or end > self.size:
                break
            folder.spare -= end - start
            wanted.append((start, end))
        run = Run.of(folder.run)
        found = gather(wanted, lambda one: self.read(one[0], one[1] - one[0]), run=run)
        self._kept = [(start, data) for (start, _), data in zip(wanted, found, strict=True)]


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Join stretches with less than `_GAP` bytes between them; sorted."""
    found: list[Stretch] = []
    for start, end in sorted(stretches):
        if found and start - found[-1][1] < _GAP:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


class _InOrder(Readable):
    """A file for one thread that reads the `stretches` forward: each is one answer."""

    def __init__(self, file: Readable, stretches: Sequence[Stretch]) -> None:
        self.path, self.size = file.path, file.size
        self._file, self._stretches = file, stretches
        self._stream: Generator[bytes, None, None] | None = None
        self._at = self._end = 0  # what of the stream is still to come
        self._rest = memoryview(b"")  # what has come, and was not asked for yet

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in the pieces in which they come."""
        end = offset + size
        while offset < end:
            if self._stream is None or not self._at <= offset < self._end:
                self._open(offset, end)
            while offset >= self._at + len(self._rest):
                self._at += len(self._rest)
                self._rest = memoryview(b"")
                self._rest = memoryview(self._next())
            piece = self._rest[offset - self._at :][: end - offset]
            offset += len(piece)
            self._rest, self._at = self._rest[offset - self._at :], offset
            if self._at == self._end:
                for _ in self._stream or ():  # nothing comes, but the connection serves again
                    pass
                self._stream = None
            yield bytes(piece)

    def _open(self, offset: int, end: int) -> None:
        self.close()
        number = bisect_right(self._stretches, offset, key=lambda one: one[0]) - 1
        if number >= 0:
            end = max(end, self._stretches[number][1])
        self._at, self._end, self._rest = offset, end, memoryview(b"")
        self._stream = self._file.chunks(offset, end - offset)

    def _next(self) -> bytes:
        assert self._stream is not None
        try:
            return next(self._stream)
        except BaseException:
            self._stream = None  # what comes next is asked for anew
            raise

    def close(self) -> None:
        """End the answer that is under way, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
