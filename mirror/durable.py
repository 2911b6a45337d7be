"""Files that outlive a power cut: write, fsync, rename, fsync the folder.

A file that takes its name before its bytes are on the disk may be empty after a power cut, and a
name that the folder has not on the disk may be gone. `Folder.write` does all four steps in this
order; whoever writes in another way (archives, at offsets) takes the same steps from here.

Others may be able to write where we write. So a folder is held by a descriptor, and what is opened
for writing or removed in it goes by a name of that folder alone: no symbolic link is followed,
even one that appears meanwhile.

Functions raise `OSError`, unless they say otherwise; `os_errors` puts it into words.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import shutil
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Self, TypeAlias

from mirror.errors import FileSystemError, MirrorError, NoSpaceError

DEFAULT_MODE = 0o644
PRIVATE_FOLDER = 0o700
"""The mode of a folder for what only its owner may read."""
_PARENTS_MODE = 0o755
"""At most, of the new folders above one whose mode is given: who may rename it could replace it."""
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """A folder, held by a descriptor; use it as a context manager, or `close` it.

    `path` is what it was called, for messages. Links in that are followed once: a mount point
    behind a link is a folder like any other. From then on the folder is meant, whatever its path
    leads to. Names are of one component, and no link is followed behind them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, _FOLDER)

    @classmethod
    def made(cls, path: Path, mode: int | None = None) -> Self:
        """The folder at `path`, which `make_folder` makes if there is none."""
        make_folder(path, mode)
        return cls(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __truediv__(self, name: str) -> Path:
        """The path of a name in it, for messages."""
        return self.path / name

    # -- folders in it -------------------------------------------------------------------------

    def inside(self, below: str | PurePath) -> Folder:
        """The folder at a relative path; a component that is a link is refused (ENOTDIR, ELOOP)."""
        return self._descend(PurePath(below).parts, make=False, mode=None)

    def make(self, below: str | PurePath, mode: int | None = None) -> Folder:
        """The same; missing folders are made, and are on the disk on return.

        With `mode` a new folder at the end has exactly these permissions, whatever the umask.
        """
        return self._descend(PurePath(below).parts, make=True, mode=mode)

    def _descend(self, parts: tuple[str, ...], *, make: bool, mode: int | None) -> Folder:
        folder = Folder._of(self.path, os.dup(self.fd))
        for number, name in enumerate(parts, 1):
            with folder as above:
                if make:
                    above._make(name, mode, last=number == len(parts))
                folder = Folder._of(above / name, above._open_folder(name))
        return folder

    @classmethod
    def _of(cls, path: Path, fd: int) -> Folder:
        folder = cls.__new__(cls)
        folder.path, folder.fd = path, fd
        return folder

    def _open_folder(self, name: str) -> int:
        try:
            return os.open(_one(name), _FOLDER | os.O_NOFOLLOW, dir_fd=self.fd)
        except NotADirectoryError:  # what Linux says of a link, too
            found = self.status(name)
            if found is not None and stat.S_ISLNK(found.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            raise

    def _make(self, name: str, mode: int | None, *, last: bool) -> None:
        wish = _PARENTS_MODE if mode is not None and not last else mode
        try:
            os.mkdir(_one(name), 0o777 if wish is None else wish, dir_fd=self.fd)
        except FileExistsError:
            os.close(self._open_folder(name))  # or it says what is in the way
            return
        if last and mode is not None:
            fd = self._open_folder(name)
            try:
                os.fchmod(fd, mode)  # a umask may have taken bits away
            finally:
                os.close(fd)
        self.sync()

    # -- what is in it -------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Everything in it, sorted."""
        with os.scandir(self.fd) as entries:
            return sorted(entry.name for entry in entries)

    def status(self, name: str) -> os.stat_result | None:
        """What a name is, a link being a link; None where nothing has it."""
        try:
            return os.stat(_one(name), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def on_disk(self, name: str) -> int:
        """Bytes of the disk that a file takes, or all that is in a folder; 0 for nothing."""
        if self.has_folder(name):
            with self.inside(name) as inner:
                return sum(map(inner.on_disk, inner.names()))
        found = self.status(name)
        return found.st_blocks * 512 if found else 0

    def has(self, name: str) -> bool:
        return self.status(name) is not None

    def has_file(self, name: str) -> bool:
        """Whether a regular file has this name."""
        found = self.status(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    def has_folder(self, name: str) -> bool:
        found = self.status(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    # -- files ---------------------------------------------------------------------------------

    def open(self, name: str, flags: int) -> int:
        """Open the file of this name, which is there.

        It is a regular file (EISDIR, EMLINK), and no link (ELOOP). If it is to be written, it has
        no other name, by which it would be somebody's elsewhere (EMLINK).
        """
        # A pipe would wait for its other end.
        fd = os.open(_one(name), flags | _NO_LINK | os.O_NONBLOCK, dir_fd=self.fd)
        try:
            found = os.fstat(fd)
            written = flags & (os.O_WRONLY | os.O_RDWR)
            if stat.S_ISDIR(found.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(found.st_mode) or (written and found.st_nlink > 1):
                raise OSError(errno.EMLINK, "it is a hard link, or not a regular file")
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create(self, name: str, mode: int | None = None, *, flags: int = os.O_WRONLY) -> int:
        """Create a file where nothing may be, for writing; `mode` as for `write`."""
        flags |= os.O_CREAT | os.O_EXCL | _NO_LINK
        fd = os.open(_one(name), flags, DEFAULT_MODE if mode is None else mode, dir_fd=self.fd)
        if mode is not None:
            os.fchmod(fd, mode)  # a umask may have taken bits away
        return fd

    def open_anew(self, name: str, *, keep: bool) -> int:
        """Open a file for reading and writing: the one that is there with `keep`, or an empty one
        in the place of whatever has this name."""
        if keep and self.has(name):
            return self.open(name, os.O_RDWR)
        self.unlink(name)
        return self.create(name, flags=os.O_RDWR)

    def read(self, name: str, most: int) -> bytes:
        """Read a regular file of at most `most` bytes; of a longer one, one byte more than that."""
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read(most + 1)

    def write(
        self, name: str, data: bytes, *, mode: int | None = None, staged: str | None = None
    ) -> None:
        """Put `data` into the file `name`: a reader sees the old file or all of the new one, power
        cuts included.

        A link of that name is replaced, not followed. `staged` is the name that the file has until
        it is complete; a leftover of that name is removed. The default is a new hidden name. With
        `mode` the file has exactly these permissions, from its first byte on; without,
        `DEFAULT_MODE` less the umask. If the system refuses, the old file is still there, and the
        new one is removed.
        """
        fresh = staged or f".{name}.{secrets.token_hex(6)}"
        if staged is not None:
            self.unlink(fresh)
        fd = self.create(fresh, mode)
        try:
            try:
                write_at(fd, 0, data)
                sync_file(fd)
            finally:
                os.close(fd)
            self.rename(fresh, name)
        except BaseException:
            self.unlink(fresh)
            raise
        self.sync()

    def write_if_changed(self, name: str, data: bytes, *, mode: int) -> bool:
        """Do what `write` does, unless a file with these bytes and this mode is there already.

        Return whether anything was written.
        """
        found = self.status(name)
        if (
            found is not None
            and stat.S_ISREG(found.st_mode)
            and found.st_mode & 0o777 == mode
            and self.read(name, len(data)) == data
        ):
            return False
        self.write(name, data, mode=mode)
        return True

    def rename(self, old: str, new: str, into: Folder | None = None) -> None:
        """Give a file or folder another name, here or `into` another folder; what has that goes."""
        there = self.fd if into is None else into.fd
        os.replace(_one(old), _one(new), src_dir_fd=self.fd, dst_dir_fd=there)

    def link(self, name: str, new: str, into: Folder) -> None:
        """Give a file a second name `into` a folder, where nothing may have it."""
        os.link(_one(name), _one(new), src_dir_fd=self.fd, dst_dir_fd=into.fd)

    def symlink(self, name: str, target: str) -> None:
        """Make a symbolic link where nothing may be. It is the caller who knows where it leads."""
        os.symlink(target, _one(name), dir_fd=self.fd)

    def unlink(self, name: str) -> bool:
        """Remove a file or link; False if nothing has this name."""
        try:
            os.unlink(_one(name), dir_fd=self.fd)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> bool:
        """The same; a folder goes with all that is in it."""
        if not self.has_folder(name):
            return self.unlink(name)
        shutil.rmtree(_one(name), dir_fd=self.fd)
        return True

    def sync(self) -> None:
        """Bring the names in the folder onto the disk.

        Some file systems (FAT, network shares) cannot do that, which is not a failure.
        """
        try:
            os.fsync(self.fd)
        except OSError as err:
            if err.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


def _one(name: str) -> str:
    if not name or "/" in name or name in (".", ".."):
        raise ValueError(f"{name!r} is not the name of one thing in a folder")
    return name


# -- by path ---------------------------------------------------------------------------------------


def write_durably(path: Path, data: bytes) -> None:
    """`Folder.write` in the folder of `path`.

    Raises:
        FileSystemError, NoSpaceError: the system refuses.
    """
    with os_errors(path, "write"), Folder(path.parent) as folder:
        folder.write(path.name, data)


def write_if_changed(path: Path, data: bytes, *, mode: int) -> bool:
    """`Folder.write_if_changed` in the folder of `path`.

    Missing folders are made; that of a file for its owner alone is the owner's alone too.

    Raises:
        FileSystemError, NoSpaceError: the system refuses.
    """
    with (
        os_errors(path, "write"),
        Folder.made(path.parent, None if mode & 0o077 else PRIVATE_FOLDER) as folder,
    ):
        return folder.write_if_changed(path.name, data, mode=mode)


def sync_folder(folder: Path) -> None:
    """`Folder.sync` of the folder at a path."""
    with Folder(folder) as held:
        held.sync()


def make_folder(path: Path, mode: int | None = None) -> None:
    """Create `path` and its missing parents; on return they are on the disk.

    With `mode` a new folder at `path` itself has exactly these permissions, whatever the umask.
    """
    missing = list(takewhile(lambda one: not one.is_dir(), (path, *path.parents)))
    for one in reversed(missing):
        if one.name != "..":
            with Folder(one.parent) as above:
                above._make(one.name, mode, last=one is path)


def write_at(fd: int, offset: int, *pieces: bytes | memoryview) -> None:
    """Write `pieces`, one behind the other, from `offset` on, however little the system takes."""
    remaining = [piece for piece in pieces if len(piece)]
    while remaining:
        written = os.pwritev(fd, remaining[:_MOST_PIECES], offset)
        offset += written
        while remaining and written >= len(remaining[0]):
            written -= len(remaining.pop(0))
        if written:
            remaining[0] = memoryview(remaining[0])[written:]


_MOST_PIECES = 1024  # IOV_MAX of Linux


@dataclass(frozen=True, slots=True)
class FileExtent:
    """`size` bytes of an open file from `offset` on, to be read, or sent by the system itself.

    `path` is the file's, for messages; `ended(offset, missing)` the error if it is too short.
    """

    fd: int
    path: object
    offset: int
    size: int
    ended: Callable[[int, int], MirrorError]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, cut: slice) -> FileExtent:
        start, stop, _ = cut.indices(self.size)
        return FileExtent(self.fd, self.path, self.offset + start, stop - start, self.ended)

    def pieces(self, most: int) -> Generator[bytes, None, None]:
        """Read it, at most `most` bytes at a time.

        Raises:
            FileSystemError: the system refused.
            MirrorError: what `ended` gives.
        """
        offset, end = self.offset, self.offset + self.size
        while offset < end:
            with os_errors(self.path, "read"):
                piece = os.pread(self.fd, min(most, end - offset), offset)
            if not piece:
                raise self.ended(offset, end - offset)
            yield piece
            offset += len(piece)


Extents: TypeAlias = Generator[FileExtent, None, None]


def begin_sync(fd: int, offset: int, size: int) -> None:
    """Let the system begin to bring these bytes onto the disk; it need not keep them in memory."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # a help, no more
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)


def sync_file(fd: int) -> None:
    """Bring what was written to a file onto the disk."""
    os.fsync(fd)


@contextmanager
def os_errors(path: object, doing: str) -> Iterator[None]:
    """Translate the `OSError` of work on `path`; `doing` completes "cannot …".

    Raises:
        FileSystemError, NoSpaceError: the system refused.
    """
    try:
        yield
    except OSError as err:
        raise _translated(err, path, doing) from err


def _translated(err: OSError, path: object, doing: str) -> MirrorError:
    what = f"cannot {doing} {path}: {err.strerror or err}"
    number = err.errno or 0
    if number in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(what, advice="free some space there and run the command again")
    advice = _ADVICE.get(number, "")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if number == errno.EFBIG and limit != resource.RLIM_INFINITY:
        advice = f"this process may write {limit} bytes of a file, raise that (ulimit -f)"
    return FileSystemError(what, advice=advice)


_PERMISSIONS = "check the permissions, or use another folder"
_OPEN_FILES = "raise the limit of open files (ulimit -n), or work with fewer --jobs"
_ADVICE = {
    errno.EFBIG: "that file system takes no file so large (FAT: 4 GiB), use ext4 or exFAT",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PERMISSIONS),
    errno.ELOOP: "remove the symbolic link there",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _OPEN_FILES),
    errno.EMLINK: "remove it: what is written there would change a file elsewhere, or wait",
    errno.EIO: "the medium is failing, copy it from its origin",
}
