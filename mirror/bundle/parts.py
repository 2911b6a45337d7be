"""An archive cut into parts, `X.tar.0000.chunk` and so on: windows onto one virtual archive.

Parts joined in the order of their numbers are the archive, byte for byte (docs/bundle-format.md).
Ours have exactly the size that was asked for, the last one excepted. Those of `d8 mirror` may be
up to 512 KiB longer each, and its last one may be empty; both are read.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from mirror.bundle.files import CHUNK
from mirror.bundle.names import PARTIAL_SUFFIX
from mirror.durable import os_errors, sync_file, write_at
from mirror.errors import DamagedBundleError, InputError

_PART = re.compile(
    r"(?P<archive>.+\.tar(?:\.zst)?)\.(?P<number>[0-9]{4,9})\.chunk", re.ASCII | re.DOTALL
)
_OPEN_FILES = 64


# -- names and sizes -----------------------------------------------------------------------------


def part_name(archive: str, number: int) -> str:
    """The file name of part `number`, from 0, of `archive`: four digits, more past 9999."""
    return f"{archive}.{number:04}.chunk"


def parse_part_name(name: str) -> tuple[str, int] | None:
    """(archive, number) of a file name; None if it is no part's."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    archive, number = match["archive"], int(match["number"])
    # One spelling per number, so that no two files claim the same place.
    return (archive, number) if part_name(archive, number) == name else None


def part_sizes(total: int, part_size: int) -> tuple[int, ...]:
    """The sizes of the parts of `total` bytes: each exactly `part_size`, the last what is left.

    No part is empty, so there are none of an empty whole.

    Raises:
        ValueError: `part_size` is not positive, or `total` negative.
    """
    if part_size < 1 or total < 0:
        raise ValueError(f"{total} bytes cannot be cut into parts of {part_size}")
    whole, rest = divmod(total, part_size)
    return (part_size,) * whole + ((rest,) if rest else ())


def part_paths(path: Path, count: int) -> tuple[Path, ...]:
    """The files of the `count` parts of the archive at `path`, which may end in `.partial`."""
    archive = path.name.removesuffix(PARTIAL_SUFFIX)
    suffix = path.name[len(archive) :]
    return tuple(path.with_name(part_name(archive, number) + suffix) for number in range(count))


# -- files ---------------------------------------------------------------------------------------


class _Parts:
    """The parts' files as one stretch of bytes. Thread-safe.

    At most `_OPEN_FILES` of them stay open besides those in use: an archive may have thousands.
    """

    def __init__(self, paths: Sequence[Path], sizes: Sequence[int], flags: int) -> None:
        self.paths = tuple(paths)
        self._starts = (0, *accumulate(sizes))
        self._flags = flags | os.O_CLOEXEC
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # part → descriptor, least used first
        self._users: dict[int, int] = {}  # both under the lock
        self._closed = False

    @property
    def ends(self) -> Sequence[int]:
        """Where each part ends in the whole."""
        return self._starts[1:]

    def windows(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(part, offset in it, size) of a stretch, which lies inside the whole."""
        end = offset + size
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            step = min(end, self._starts[number + 1]) - offset
            yield number, offset - self._starts[number], step
            offset += step

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        for number, start, length in self.windows(offset, size):
            end = start + length
            while start < end:
                with self.use(number, "read") as fd:
                    chunk = os.pread(fd, min(CHUNK, end - start), start)
                if not chunk:
                    raise DamagedBundleError(
                        f"{self.paths[number].name}: ends {end - start} bytes too early; "
                        "copy it again from its origin"
                    )
                yield chunk
                start += len(chunk)

    @contextmanager
    def use(self, number: int, doing: str) -> Iterator[int]:
        """The descriptor of a part, which stays open for the block; `doing` as in `os_errors`."""
        path = self.paths[number]
        with self._lock:
            if self._closed:
                raise ValueError(f"{path.name} is closed")
            fd = self._open.get(number)
            if fd is None:
                with os_errors(path, "open"):
                    fd = self._open[number] = os.open(path, self._flags)
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
            for number in [one for one in self._open if one not in self._users]:
                os.close(self._open.pop(number))
                if len(self._open) <= most:
                    return

    def close(self) -> None:
        """Release the files, those in use as soon as they are not; again does nothing."""
        with self._lock:
            self._closed = True
            self._trim(0)


class PartedReader:
    """Parts read as the one archive they are, at offsets and by any number of threads.

    Offers what `files.ReadAt` does. `path` is the archive's, which is no file; `size` in bytes.

    `paths` are its parts in any order, also from several folders. `sizes` are those that a seal
    states; without them a last part that is missing shows only as an archive cut short.

    Raises:
        InputError: no parts, something that is no part, or parts of several archives.
        DamagedBundleError: parts are missing, empty (the last one may be), of another size than
            stated, or there twice; each is named.
        FileSystemError: a part cannot be examined.
    """

    def __init__(self, paths: Iterable[Path], sizes: Sequence[int] | None = None) -> None:
        archive, parts = _ordered(paths)
        self.path = parts[min(parts)].with_name(archive)
        count = max(max(parts) + 1, len(sizes or ()))
        missing = [number for number in range(count) if number not in parts]
        if missing:
            raise DamagedBundleError(
                f"{archive}: {_listed(archive, missing)} of {count} parts "
                f"{'is' if len(missing) == 1 else 'are'} missing; "
                "copy what is missing from where the bundle was made"
            )
        ordered = [parts[number] for number in range(count)]
        found = [_size(path) for path in ordered]
        for number, size in enumerate(found):
            _check_size(ordered[number], number, size, found, sizes)
        self.size = sum(found)
        self._files = _Parts(ordered, found, os.O_RDONLY)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The parts' files, in order."""
        return self._files.paths

    @property
    def ends(self) -> Sequence[int]:
        """Where in the archive each of them ends."""
        return self._files.ends

    def close(self) -> None:
        """Release the files."""
        self._files.close()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            DamagedBundleError: the archive ends before them.
        """
        return b"".join(self.chunks(offset, size))

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The same, in pieces of at most `files.CHUNK` bytes."""
        inside = max(0, min(size, self.size - offset))
        yield from self._files.chunks(offset, inside)
        if inside < size:
            raise DamagedBundleError(
                f"{self.path.name}: its parts end at byte {self.size}, {size - inside} bytes too "
                "early; one is cut short, or the last is missing: copy them again from their origin"
            )


def _ordered(paths: Iterable[Path]) -> tuple[str, dict[int, Path]]:
    """The archive that `paths` are parts of, and its parts by number."""
    archives: dict[str, dict[int, Path]] = {}
    for path in sorted(paths, key=lambda one: (one.name, one)):
        parsed = parse_part_name(path.name)
        if parsed is None:
            raise InputError(f"{path} is no part of an archive; parts are called X.tar.0000.chunk")
        archive, number = parsed
        known = archives.setdefault(archive, {}).setdefault(number, path)
        if known != path:
            raise DamagedBundleError(f"{path} is there twice, also as {known}; keep the right one")
    if len(archives) != 1:
        raise InputError(
            f"these are parts of several archives ({', '.join(archives)}); name those of one"
            if archives
            else "an archive in parts needs at least one part"
        )
    return archives.popitem()


def _size(path: Path) -> int:
    with os_errors(path, "examine"):
        return path.stat().st_size


def _check_size(
    path: Path, number: int, size: int, found: Sequence[int], sizes: Sequence[int] | None
) -> None:
    if sizes is not None:
        # Behind the stated ones only the empty part that d8 may leave has a place.
        if number >= len(sizes) and (size or number > len(sizes)):
            raise DamagedBundleError(
                f"{path.name} does not belong to this bundle, whose archive has {len(sizes)} parts"
            )
        if number < len(sizes) and size != sizes[number]:
            raise DamagedBundleError(
                f"{path.name} has {size} bytes instead of {sizes[number]}; "
                "copy it again from its origin"
            )
    elif not size and (number == 0 or number < len(found) - 1):
        raise DamagedBundleError(f"{path.name} is empty; copy it again from its origin")


def _listed(archive: str, numbers: Sequence[int]) -> str:
    """Parts by name, runs of them as one: `X.tar.0003.chunk to X.tar.0007.chunk`."""
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

    Offers what `files.WriteAt` does, with the same duty to write each byte once. `path` is the
    archive's, such as `platform.tar.partial`, and is no file; `parts` are what is written, such as
    `platform.tar.0000.chunk.partial`. With `keep`, what an earlier run left in them stays.

    Raises:
        ValueError: `part_size` is not positive.
        FileSystemError, NoSpaceError: a part cannot be created.
    """

    def __init__(self, path: Path, size: int, part_size: int, *, keep: bool = False) -> None:
        self.path, self.size = path, size
        self.sizes = part_sizes(size, part_size)
        self.parts = part_paths(path, len(self.sizes))
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # as `WriteAt` has it
        for part, most in zip(self.parts, self.sizes, strict=True):
            with os_errors(part, "create"):
                fd = os.open(part, flags, 0o644)
                try:
                    os.ftruncate(fd, min(most, os.fstat(fd).st_size) if keep else 0)
                finally:
                    os.close(fd)
        self._files = _Parts(self.parts, self.sizes, os.O_RDWR)

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
        """Read back what was written, in pieces of at most `files.CHUNK` bytes.

        Raises:
            DamagedBundleError: not all of it was.
        """
        return self._files.chunks(offset, size)

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
        """Release the files; a second call does nothing."""
        self._files.close()


def _taken(views: list[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of `views`, which lose them."""
    taken: list[memoryview] = []
    while size:
        view = views[0][:size]
        rest = views[0][size:]
        views[:1] = [rest] if len(rest) else []
        taken.append(view)
        size -= len(view)
    return taken
