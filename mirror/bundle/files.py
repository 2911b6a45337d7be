"""Files of a bundle, read and written at offsets."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

from mirror.durable import os_errors, sync_file, write_at
from mirror.errors import DamagedBundleError

CHUNK = 1 << 20
"""Bytes read or written at a time."""


class Readable(Protocol):
    """An archive to be read at offsets: one file, or parts. Thread-safe. `size` in bytes."""

    path: Path
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""
        ...

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The same, in pieces of at most `CHUNK` bytes."""
        ...

    def close(self) -> None:
        """Release what was opened."""
        ...


class ReadAt:
    """A file read at offsets, by any number of threads. `size` is its length in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with os_errors(path, "open"):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`.

        Raises:
            DamagedBundleError: the file ends before them.
        """
        return b"".join(self.chunks(offset, size))

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The same, in pieces of at most `CHUNK` bytes."""
        yield from _read(self._fd, self.path, offset, size)


def _read(fd: int, path: Path, offset: int, size: int) -> Generator[bytes, None, None]:
    end = offset + size
    while offset < end:
        with os_errors(path, "read"):
            chunk = os.pread(fd, min(CHUNK, end - offset), offset)
        if not chunk:
            raise DamagedBundleError(
                f"{path.name}: ends at byte {offset}, {end - offset} bytes too early; "
                "the archive is truncated, copy it again from its origin"
            )
        yield chunk
        offset += len(chunk)


class WriteAt:
    """A file written at offsets, by any number of threads; each byte once.

    With `keep`, what an earlier run left in it stays.
    """

    def __init__(self, path: Path, *, keep: bool = False) -> None:
        self.path = path
        # Nobody has links there; one would lead the archive out of the bundle's folder.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= 0 if keep else os.O_TRUNC
        with os_errors(path, "create"):
            self._fd: int | None = os.open(path, flags, 0o644)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The files it consists of."""
        return (self.path,)

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """Read back what was written, in pieces of at most `CHUNK` bytes.

        Raises:
            DamagedBundleError: not all of it was.
        """
        assert self._fd is not None
        yield from _read(self._fd, self.path, offset, size)

    def write(self, offset: int, *pieces: bytes) -> None:
        """Put `pieces`, one behind the other, at `offset`."""
        assert self._fd is not None
        with os_errors(self.path, "write"):
            write_at(self._fd, offset, *pieces)

    def sync(self) -> int:
        """Make what was written outlive a power cut; return the file's size in bytes."""
        assert self._fd is not None
        with os_errors(self.path, "write"):
            sync_file(self._fd)
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
