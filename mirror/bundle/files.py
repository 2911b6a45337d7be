"""Archives on a disk, in one file or cut into parts: read and written at offsets.

Parts are windows onto one virtual archive (`mirror.bundle.format`). Those of `d8 mirror` may be up
to 512 KiB longer than asked for, each, and its last one may be empty; both are read.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path

from mirror.bundle.format import parse_part_name, part_name, part_paths, part_sizes
from mirror.bundle.location import (
    COPY_AGAIN,
    Location,
    Readable,
    RemoteFile,
    RemotePath,
    ended_early,
    size_of,
    windows,
)
from mirror.durable import Extents, FileExtent, Folder, begin_sync, os_errors, sync_file, write_at
from mirror.errors import DamagedBundleError, InputError

CHUNK = 1 << 20
"""Bytes read or written at a time."""
_OPEN_FILES = 64
_SETTLED = 32 << 20
_ANY_SIZE = 1 << 62


class ReadAt(Readable):
    """A file read at offsets, by any number of threads. `size` is its length in bytes."""

    def __init__(self, path: Path) -> None:
        self.path: Location = path
        self.parts: tuple[Location, ...] = (path,)
        with os_errors(path, "open"):
            self._fd = _open_to_read(path)
            self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        os.close(self._fd)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most `CHUNK` bytes."""
        return _extent(self._fd, self.path, offset, size).pieces(CHUNK)

    def extents(self, offset: int, size: int) -> Extents:
        yield _extent(self._fd, self.path, offset, size)


def _open_to_read(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError("it is not a regular file")
    return fd


def open_file(path: Location) -> Readable:
    """Open a file to be read at offsets, wherever it lies, or raise FileSystemError."""
    return ReadAt(path) if isinstance(path, Path) else path.opened()


def beginning(path: Location, most: int) -> bytes:
    """The first bytes of a file, `most` at most."""
    with closing(open_file(path)) as file:
        return file.read(0, min(most, file.size))


def _extent(fd: int, path: Location, offset: int, size: int) -> FileExtent:
    return FileExtent(fd, path, offset, size, partial(ended_early, path))


# -- parts -----------------------------------------------------------------------------------------


class _Parts:
    """Makes the parts' files one stretch of bytes. Thread-safe.

    An archive may have thousands of parts, so at most `_OPEN_FILES` stay open besides those in use.
    """

    def __init__(
        self, paths: Sequence[Path], sizes: Sequence[int], open_part: Callable[[Path], int]
    ) -> None:
        self.parts = tuple(paths)
        self.starts = (0, *accumulate(sizes))
        self._open_part = open_part
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # part → descriptor, least used first
        self._users: dict[int, int] = {}  # both under the lock
        self._closed = False

    def windows(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        return windows(self.starts, offset, size)

    def extents(self, offset: int, size: int) -> Extents:
        for number, start, length in self.windows(offset, size):
            with self.use(number, "read") as fd:
                yield FileExtent(fd, self.parts[number], start, length, self._ended(number))

    def _ended(self, number: int) -> Callable[[int, int], DamagedBundleError]:
        where = self.parts[number].name
        return lambda _offset, missing: DamagedBundleError(
            f"ends {missing} bytes too early", where=where, advice=COPY_AGAIN
        )

    @contextmanager
    def use(self, number: int, doing: str) -> Iterator[int]:
        """Give the descriptor of a part, open for the block; `doing` is as in `os_errors`."""
        path = self.parts[number]
        with self._lock:
            if self._closed:
                raise ValueError(f"{path.name} is closed")
            fd = self._open.get(number)
            if fd is None:
                with os_errors(path, "open"):
                    fd = self._open[number] = self._open_part(path)
            self._open.move_to_end(number)
            self._users[number] = self._users.get(number, 0) + 1
            self._trim(_OPEN_FILES)
        try:
            with os_errors(path, doing):
                yield fd
        finally:
            with self._lock:
                self._users[number] -= 1
                if not self._users[number]:
                    del self._users[number]
                self._trim(0 if self._closed else _OPEN_FILES)

    def _trim(self, most: int) -> None:
        if len(self._open) > most:
            for number in [number for number in self._open if number not in self._users]:
                os.close(self._open.pop(number))
                if len(self._open) <= most:
                    return

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._trim(0)


def open_parts(paths: Iterable[Location], sizes: Sequence[int] | None = None) -> Readable:
    """Open parts to be read as the one archive that they are, whose path no file has.

    `paths` are its parts in any order, from several folders if need be. `sizes` are those that a
    seal states; without them, a missing last part shows only as an archive that was cut short.

    Raises:
        InputError: there are no parts, or other files, or parts of several archives.
        DamagedBundleError: parts are missing, empty (the last one may be), of another size than
            stated, or there twice; each is named.
        FileSystemError: a part cannot be examined.
    """
    archive, parts = _ordered(paths)
    count = max(max(parts) + 1, len(sizes or ()))
    missing = [number for number in range(count) if number not in parts]
    if missing:
        raise DamagedBundleError(
            f"{_listed(archive, missing)} of {count} parts "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            where=archive,
            advice="copy what is missing from where the bundle was made",
        )
    ordered = [parts[number] for number in range(count)]
    found = [size_of(path) for path in ordered]
    for number, size in enumerate(found):
        _check_size(ordered[number], number, size, found, sizes)
    whole = ordered[0].with_name(archive)
    here = [path for path in ordered if isinstance(path, Path)]
    there = [path for path in ordered if isinstance(path, RemotePath)]
    return RemoteFile(whole, there) if there else PartedReader(whole, here, found)


class PartedReader(Readable):
    """Parts on this machine as one archive (`open_parts`), read by any number of threads."""

    def __init__(self, path: Location, parts: Sequence[Path], sizes: Sequence[int]) -> None:
        self.path, self.size, self.parts = path, sum(sizes), tuple(parts)
        self._files = _Parts(parts, sizes, _open_to_read)

    @property
    def ends(self) -> Sequence[int]:
        return self._files.starts[1:]

    def close(self) -> None:
        self._files.close()

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most `CHUNK` bytes."""
        for extent in self.extents(offset, size):
            yield from extent.pieces(CHUNK)
        if (end := offset + size) > self.size:
            raise ended_early(self.path, self.size, min(size, end - self.size), parted=True)

    def extents(self, offset: int, size: int) -> Extents:
        return self._files.extents(offset, min(size, self.size - offset))


def _ordered(paths: Iterable[Location]) -> tuple[str, dict[int, Location]]:
    """Return the archive that `paths` are parts of, and its parts by number."""
    archives: dict[str, dict[int, Location]] = {}
    for path in sorted(paths, key=lambda one: (one.name, str(one))):
        parsed = parse_part_name(path.name)
        if parsed is None:
            raise InputError(
                f"{path} is not a part of an archive", advice="parts are called X.tar.0000.chunk"
            )
        archive, number = parsed
        known = archives.setdefault(archive, {}).setdefault(number, path)
        if known != path:
            raise DamagedBundleError(
                f"{path} is there twice, also as {known}", advice="keep the right one"
            )
    if len(archives) != 1:
        raise InputError(
            f"these are parts of several archives ({', '.join(archives)}); name those of one"
            if archives
            else "an archive in parts needs at least one part"
        )
    return archives.popitem()


def _check_size(
    path: Location, number: int, size: int, found: Sequence[int], sizes: Sequence[int] | None
) -> None:
    if sizes is not None:
        # Only the empty part that d8 may leave has a place behind the stated ones.
        if number >= len(sizes) and (size or number > len(sizes)):
            raise DamagedBundleError(
                f"{path.name} does not belong to this bundle, whose archive has {len(sizes)} parts"
            )
        if number < len(sizes) and size != sizes[number]:
            raise DamagedBundleError(
                f"{path.name} has {size} bytes instead of {sizes[number]}", advice=COPY_AGAIN
            )
    elif not size and (number == 0 or number < len(found) - 1):
        raise DamagedBundleError(f"{path.name} is empty", advice=COPY_AGAIN)


def _listed(archive: str, numbers: Sequence[int]) -> str:
    """Name parts, runs of them as one: `X.tar.0003.chunk to X.tar.0007.chunk`."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    names = [
        part_name(archive, first)
        if first == last
        else f"{part_name(archive, first)} to {part_name(archive, last)}"
        for first, last in runs
    ]
    return ", ".join([*names[:5], *(["…"] if len(names) > 5 else [])])


class WriteAt:
    """An archive written at offsets into `folder`, by any number of threads; each byte once.

    `name` is the archive's, such as `platform.tar.partial`. `part_size` cuts it into parts, such as
    `platform.tar.0000.chunk.partial`, and no file has its name then. Without a `size` it is one
    file of any. With `keep`, what an earlier run left stays, as far as it fits.

    Raises:
        FileSystemError, NoSpaceError: a file cannot be created.
    """

    reports = False

    def __init__(
        self,
        folder: Folder,
        name: str,
        size: int = _ANY_SIZE,
        part_size: int = 0,
        *,
        keep: bool = False,
    ) -> None:
        self.path, self.size = folder / name, size
        self.sizes = part_sizes(size, part_size or size)
        self.parts = part_paths(self.path, len(self.sizes)) if part_size else (self.path,)
        for part, most in zip(self.parts, self.sizes, strict=True):
            with os_errors(part, "create"):
                fd = folder.open_anew(part.name, keep=keep)
                try:
                    if os.fstat(fd).st_size > most:
                        os.ftruncate(fd, most)
                finally:
                    os.close(fd)
        self._files = _Parts(self.parts, self.sizes, lambda part: folder.open(part.name, os.O_RDWR))

    def write(self, offset: int, *pieces: bytes) -> None:
        """Put `pieces`, one behind the other, at `offset`.

        Raises:
            ValueError: they reach beyond the archive's end.
            FileSystemError, NoSpaceError: the system refuses them.
        """
        views = [memoryview(piece) for piece in pieces if piece]
        total = sum(map(len, views))
        if offset < 0 or offset + total > self.size:
            raise ValueError(f"bytes {offset} to {offset + total} are not all in {self.path.name}")
        for number, start, length in self._files.windows(offset, total):
            with self._files.use(number, "write") as fd:
                write_at(fd, start, *_taken(views, length))

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read back what was written, `CHUNK` bytes at a time, or raise DamagedBundleError."""
        for extent in self._files.extents(offset, size):
            yield from extent.pieces(CHUNK)

    def settling(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """As `chunks`, one behind the other; it begins what `sync` else had to wait for."""
        yield from self.chunks(offset, size)
        end = offset + size
        if end // _SETTLED > offset // _SETTLED:
            for number, start, length in self._files.windows(end - _SETTLED, _SETTLED):
                with self._files.use(number, "write") as fd:
                    begin_sync(fd, start, length)

    def reaches(self, offset: int, end: int) -> bool:
        """Whether its files have all bytes from `offset` to `end`."""
        return all(
            size_of(self.parts[number]) >= start + length
            for number, start, length in self._files.windows(offset, end - offset)
        )

    def sync(self) -> int:
        """Make what was written outlive a power cut; return the sum of the parts' sizes, which is
        that of the archive only if none of them is short."""
        total = 0
        for number in range(len(self.parts)):
            # A part that was closed meanwhile is opened again: pages belong to the file.
            with self._files.use(number, "write") as fd:
                sync_file(fd)
                total += os.fstat(fd).st_size
        return total

    def close(self) -> None:
        self._files.close()


def _taken(views: list[memoryview], size: int) -> list[memoryview]:
    taken: list[memoryview] = []
    while size:
        view = views[0][:size]
        rest = views[0][size:]
        views[:1] = [rest] if len(rest) else []
        taken.append(view)
        size -= len(view)
    return taken
