"""A folder of OCI layouts, as unpacking all archives of a bundle into one folder leaves them.

It is read as one archive whose files lie in the folder. Nothing outside the folder is ever read:
a symbolic link that leads out of it ends the reading, one that stays inside counts as the file.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Generator, Iterator
from pathlib import Path

from mirror.bundle.archive import BLOCK
from mirror.bundle.files import CHUNK
from mirror.bundle.limits import MAX_MEMBERS
from mirror.bundle.names import INDEX
from mirror.bundle.tar import Member
from mirror.durable import os_errors
from mirror.errors import DamagedBundleError, MirrorError

_LAYOUT_FILES = frozenset({INDEX, "oci-layout"})
_MOST_FOLDERS = 5000
"""So many are searched for a layout: whoever names the root of a disk gets an answer soon."""

_MAX_NAME = 512


def is_tree(folder: Path) -> bool:
    """Whether there are OCI layouts in a folder, or below it."""
    with os_errors(folder, "read"):
        for number, (_, folders, files) in enumerate(os.walk(folder)):
            folders.sort()
            if INDEX in files and ("blobs" in folders or "oci-layout" in files):
                return True
            if number >= _MOST_FOLDERS:
                return False
    return False


class TreeFile:
    """The files of a tree as one stretch of bytes, each at a multiple of 512. Thread-safe.

    Offers what `files.ReadAt` does. What no layout has is passed over. `problem` is what ended the
    search for files, if something did.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.problem: MirrorError | None = None
        self._root = os.path.realpath(folder)
        self._members: list[Member] = []
        self._files: list[str] = []  # where each of them lies, below the folder or absolute
        self.size = 0
        try:
            for name, file, size in self._found(self._root, ""):
                if len(self._members) > MAX_MEMBERS:
                    break  # one more than the reader takes, which then says so
                self._members.append(Member(name, self.size, self.size, size))
                self._files.append(file)
                self.size += size + (-size % BLOCK)
        except MirrorError as err:
            self.problem = err
        self._starts = [member.offset for member in self._members]

    def members(self, _file: object = None) -> Generator[Member, None, int]:
        """Every file, in order; raises the `problem` behind the last one it found before."""
        yield from self._members
        if self.problem is not None:
            raise self.problem
        return self.size

    def _found(self, folder: str, below: str) -> Iterator[tuple[str, str, int]]:
        """(name, path, size) of the files of layouts in a folder and below, sorted."""
        path = Path(folder)
        with os_errors(path, "read"), os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            name = below + entry.name
            if len(name) > _MAX_NAME:
                raise self._hostile(name, "is longer than any name in a bundle")
            with os_errors(Path(entry.path), "examine"):
                if entry.is_symlink():
                    real = os.path.realpath(entry.path)
                    if os.path.commonpath([real, self._root]) != self._root:
                        raise self._hostile(name, "is a symbolic link that leads out of the folder")
                    if not Path(real).is_file():
                        raise self._hostile(name, "is a symbolic link to no file")
                    file, status = real, Path(real).lstat()
                else:
                    file, status = entry.path, entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                yield from self._found(entry.path, name + "/")
            elif entry.name in _LAYOUT_FILES or _is_blob(name):
                if not stat.S_ISREG(status.st_mode):
                    raise self._hostile(name, "is no regular file")
                yield name, file, status.st_size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""
        return b"".join(self.chunks(offset, size))

    def chunks(self, offset: int, size: int) -> Generator[bytes, None, None]:
        """The same, in pieces of at most `files.CHUNK` bytes.

        Raises:
            DamagedBundleError: the file there is not what it was when the folder was listed.
            FileSystemError: it cannot be read.
        """
        end = offset + size
        while offset < end:
            number = bisect_right(self._starts, offset) - 1
            if number < 0 or offset >= self.size:
                raise DamagedBundleError(f"{self.path.name}: ends at byte {self.size}")
            member = self._members[number]
            inside = min(end, member.offset + member.size) - offset
            if inside > 0:
                yield from self._from_file(number, offset - member.offset, inside)
                offset += inside
            padded = min(end, member.offset + member.size + (-member.size % BLOCK)) - offset
            if padded > 0:
                yield bytes(padded)
                offset += padded

    def _from_file(self, number: int, offset: int, size: int) -> Iterator[bytes]:
        member, path = self._members[number], Path(self._files[number])
        with os_errors(path, "read"):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
                    raise self._hostile(member.path, "was changed while the folder was read")
                end = offset + size
                while offset < end:
                    chunk = os.pread(fd, min(CHUNK, end - offset), offset)
                    if not chunk:
                        raise self._hostile(member.path, "was cut short while the folder was read")
                    yield chunk
                    offset += len(chunk)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Nothing stays open between readings."""

    def _hostile(self, name: str, what: str) -> DamagedBundleError:
        return DamagedBundleError(f"{self.path.name}: {name!a:.200} {what}")


def _is_blob(name: str) -> bool:
    """Whether a layout keeps content under such a name."""
    *_, kind, _algorithm, _encoded = ("", "", *name.split("/"))
    return kind == "blobs"
