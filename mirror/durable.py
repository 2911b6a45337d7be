"""Files that outlive a power cut: write, fsync, rename, fsync the folder.

A file that takes its name before its bytes are on the disk may be empty after a power cut, and a
name that the folder has not on the disk may be gone. `write_durably` does all four steps in this
order; whoever writes in another way (archives, at offsets) takes the same steps from here.

Functions raise `OSError`, unless they say otherwise; `os_errors` puts it into words.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.errors import FileSystemError, MirrorError, NoSpaceError

DEFAULT_MODE = 0o644


def write_durably(
    path: Path, data: bytes, *, mode: int | None = None, staged: str | None = None
) -> None:
    """Put `data` at `path`: a reader sees the old file or all of the new one, power cuts included.

    A symbolic link at `path` is replaced, not followed. `staged` is the name that the file has in
    the same folder until it is complete; a leftover of that name is removed. The default is a new
    hidden name. With `mode` the file has exactly these permissions, from its first byte on;
    without, `DEFAULT_MODE` less the umask.

    Raises:
        FileSystemError, NoSpaceError: the system refuses; the old file is still there, and the new
            one is removed.
    """
    fresh = path.with_name(staged or f".{path.name}.{secrets.token_hex(6)}")
    with os_errors(path, "write"):
        if staged is not None:
            fresh.unlink(missing_ok=True)
        fd = create(fresh, mode)
        try:
            try:
                write_at(fd, 0, data)
                sync_file(fd)
            finally:
                os.close(fd)
            fresh.replace(path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_if_changed(path: Path, data: bytes, *, mode: int) -> bool:
    """Do what `write_durably` does, unless a file with these bytes and this mode is there already.

    Missing folders are made; that of a file for its owner alone is the owner's alone too. Return
    whether anything was written.

    Raises:
        FileSystemError, NoSpaceError: as `write_durably`.
    """
    with os_errors(path, "write"):
        if (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_mode & 0o777 == mode
            and path.read_bytes() == data
        ):
            return False
        make_folder(path.parent, None if mode & 0o077 else 0o700)
    write_durably(path, data, mode=mode)
    return True


def create(path: Path, mode: int | None = None) -> int:
    """Create a file at `path`, where none may be, for writing; `mode` as for `write_durably`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, DEFAULT_MODE if mode is None else mode)
    if mode is not None:
        os.fchmod(fd, mode)  # a umask may have taken bits away
    return fd


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


def sync_file(fd: int) -> None:
    """Bring what was written to a file onto the disk."""
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` onto the disk.

    Some file systems (FAT, network shares) cannot do that, which is not a failure.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_folder(path: Path, mode: int | None = None) -> None:
    """Create `path` and its missing parents; on return each of them is on the disk.

    With `mode` a new folder at `path` itself has exactly these permissions, whatever the umask.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(0o777 if mode is None else mode, exist_ok=True)
    if mode is not None:
        path.chmod(mode)
    sync_folder(path.parent)


@contextmanager
def os_errors(path: Path, doing: str) -> Iterator[None]:
    """Translate the `OSError` of work on `path`; `doing` completes "cannot …".

    Raises:
        FileSystemError, NoSpaceError: the system refused.
    """
    try:
        yield
    except OSError as err:
        raise _translated(err, path, doing) from err


def _translated(err: OSError, path: Path, doing: str) -> MirrorError:
    what = f"cannot {doing} {path}: {err.strerror or err}"
    match err.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpaceError(what, advice="free some space there and run the command again")
        case errno.EFBIG:
            advice = "that file system takes no file so large (FAT: 4 GiB), use ext4 or exFAT"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            advice = "check the permissions, or use another folder"
        case errno.ELOOP:
            advice = "remove the symbolic link there"
        case errno.EMFILE | errno.ENFILE:
            advice = "raise the limit of open files (ulimit -n), or work with fewer --jobs"
        case errno.EIO:
            advice = "the medium is failing, copy it from its origin"
        case _:
            advice = ""
    return FileSystemError(what, advice=advice)
