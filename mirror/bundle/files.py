"""Archives on a disk, in one file or cut into parts: read and written at offsets.

Parts are windows onto one virtual archive (`mirror.bundle.format`). Those of `d8 mirror` may be up
to 512 KiB longer than asked for, each, and its last one may be empty; both are read.
"""

from __future__ import annotations

import os
import stat
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
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
    Stretch,
    ended_early,
    size_of,
)
from mirror.durable import Extents, FileExtent, Folder, begin_sync, os_errors, sync_file, write_at
from mirror.errors import DamagedBundleError, InputError

CHUNK = 1 << 20
"""Bytes read or written at a time."""
_OPEN_FILES = 64
_SETTLED = 32 << 20


class ReadAt(Readable):
    """A file read at offsets, by any number of threads. `size` is its length in bytes."""

    def __init__(self, path: Path) -> None:
        self.path: Location = path
        with os_errors(path, "open"):
            self._fd = _open_to_read(path)
            self.size = os.fstat(self._fd).st_size

    @property
    def parts(self) -> tuple[Location, ...]:
        return (self.path,)

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


class WriteAt:
    """A file of `folder` written at offsets, by any number of threads; each byte once.

    With `keep`, what an earlier run left in it stays.
    """

    reports = False

    def __init__(self, folder: Folder, name: str, *, keep: bool = False) -> None:
        self.path = folder / name
        with os_errors(self.path, "create"):
            self._fd: int | None = folder.open_anew(name, keep=keep)

    @property
    def parts(self) -> tuple[Path, ...]:
        return (self.path,)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read back what was written, `CHUNK` bytes at a time, or raise DamagedBundleError."""
        assert self._fd is not None
        return _extent(self._fd, self.path, offset, size).pieces(CHUNK)

    def settling(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """As `chunks`, one behind the other; it begins what `sync` else had to wait for."""
        yield from self.chunks(offset, size)
        end = offset + size
        if self._fd is not None and end // _SETTLED > offset // _SETTLED:
            begin_sync(self._fd, end - _SETTLED, _SETTLED)

    def write(self, offset: int, *pieces: bytes) -> None:
        """Put `pieces`, one behind the other, at `offset`."""
        assert self._fd is not None
        with os_errors(self.path, "write"):
            write_at(self._fd, offset, *pieces)

    def cut(self, size: int) -> None:
        """Drop what lies behind `size` bytes."""
        assert self._fd is not None
        with os_errors(self.path, "write"):
            if os.fstat(self._fd).st_size > size:
                os.ftruncate(self._fd, size)

    def reaches(self, _offset: int, end: int) -> bool:
        """Whether the file has bytes up to `end`."""
        assert self._fd is not None
        return os.fstat(self._fd).st_size >= end

    def sync(self) -> int:
        """Make what was written outlive a power cut; return the file's size in bytes."""
        assert self._fd is not None
        with os_errors(self.path, "write"):
            sync_file(self._fd)
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


# -- parts -----------------------------------------------------------------------------------------


class _Parts:
    """Makes the parts' files one stretch of bytes. Thread-safe.

    An archive may have thousands of parts, so at most `_OPEN_FILES` stay open besides those in use.
    """

    def __init__(
        self, paths: Sequence[Path], sizes: Sequence[int], open_part: Callable[[Path], int]
    ) -> None:
        self.parts = tuple(paths)
        self._starts = (0, *accumulate(sizes))
        self._open_part = open_part
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # part → descriptor, least used first
        self._users: dict[int, int] = {}  # both under the lock
        self._closed = False

    @property
    def ends(self) -> Sequence[int]:
        """Where each part ends in the whole."""
        return self._starts[1:]

    def windows(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Cut a stretch, which lies inside the whole, into (part, offset in it, size)."""
        end = offset + size
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            step = min(end, self._starts[number + 1]) - offset
            yield number, offset - self._starts[number], step
            offset += step

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        for extent in self.extents(offset, size):
            yield from extent.pieces(CHUNK)

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


class PartedReader(Readable):
    """Parts read as the one archive that they are, at offsets and by any number of threads.

    `path` is the archive's, where no file lies. `paths` are its parts in any order, from several
    folders if need be. `sizes` are those that a seal states; without them, a missing last part
    shows only as an archive that was cut short.

    Raises:
        InputError: there are no parts, or other files, or parts of several archives.
        DamagedBundleError: parts are missing, empty (the last one may be), of another size than
            stated, or there twice; each is named.
        FileSystemError: a part cannot be examined.
    """

    def __init__(self, paths: Iterable[Location], sizes: Sequence[int] | None = None) -> None:
        archive, parts = _ordered(paths)
        self.path: Location = parts[min(parts)].with_name(archive)
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
        self.size = sum(found)
        here = [path for path in ordered if isinstance(path, Path)]
        there = [path for path in ordered if isinstance(path, RemotePath)]
        self._files: _Parts | RemoteFile = (
            RemoteFile(self.path, there) if there else _Parts(here, found, _open_to_read)
        )

    @property
    def parts(self) -> tuple[Location, ...]:
        return self._files.parts

    @property
    def ends(self) -> Sequence[int]:
        """Where in the archive each of them ends."""
        return self._files.ends

    def close(self) -> None:
        self._files.close()

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read `size` bytes from `offset`, in pieces of at most `CHUNK` bytes."""
        inside = max(0, min(size, self.size - offset))
        yield from self._files.chunks(offset, inside)
        if inside < size:
            raise DamagedBundleError(
                f"its parts end at byte {self.size}, {size - inside} bytes too early",
                where=self.path.name,
                advice="one is cut short, or the last is missing: copy them again from their "
                "origin",
            )

    def extents(self, offset: int, size: int) -> Extents:
        return self._files.extents(offset, min(size, self.size - offset))

    def read(self, offset: int, size: int) -> bytes:
        if isinstance(self._files, RemoteFile) and offset + size <= self.size:
            return self._files.read(offset, size)
        return super().read(offset, size)

    @contextmanager
    def in_order(self, stretches: Iterable[Stretch]) -> Iterator[Readable]:
        whole = self._files
        with nullcontext(self) if isinstance(whole, _Parts) else whole.in_order(stretches) as file:
            yield file

    def keep(self, stretches: Iterable[Stretch]) -> None:
        if isinstance(self._files, RemoteFile):
            self._files.keep(stretches)


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


class PartedWriter:
    """An archive of `size` bytes written at offsets into parts, by any number of threads.

    It offers what `WriteAt` does, and each byte is written once here too. `name` is the archive's,
    such as `platform.tar.partial`, where no file lies; `parts` are the files, such as
    `platform.tar.0000.chunk.partial`. With `keep`, what an earlier run left in them stays.

    Raises:
        ValueError: `part_size` is not positive.
        FileSystemError, NoSpaceError: a part cannot be created.
    """

    reports = False

    def __init__(
        self, folder: Folder, name: str, size: int, part_size: int, *, keep: bool = False
    ) -> None:
        self.path, self.size = folder / name, size
        self.sizes = part_sizes(size, part_size)
        self.parts = part_paths(self.path, len(self.sizes))
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
        return self._files.chunks(offset, size)

    def reaches(self, offset: int, end: int) -> bool:
        """Whether the parts have all bytes from `offset` to `end`."""
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
