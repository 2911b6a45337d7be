"""The folder of a bundle: what may be there before a pull, and the change to the new bundle."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mirror.bundle.limits import marks
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL, SIGNATURE, ZSTD_SUFFIX
from mirror.bundle.parts import parse_part_name
from mirror.bundle.seal import Seal
from mirror.bundle.sizes import size_text
from mirror.bundle.sums import SUMS
from mirror.durable import os_errors, sync_folder, write_durably
from mirror.errors import DamagedBundleError, InputError, MirrorError, NoSpaceError
from mirror.layout import is_archive_name
from mirror.oci import Digest

PARTIAL_SEAL = SEAL + PARTIAL_SUFFIX
"""The seal of the bundle that is being made; with it the folder is no bundle yet."""
_MAX_SEAL_BYTES = 32 << 20
"""A table of contents has some 500 bytes per image: room for 60,000 of them."""
_MAX_SEAL_MARKS = 2_500_000
JOURNAL_STEM, EARLIER_STEM = "pull.journal", "earlier"
_FRESH = "fresh."  # before the name of what takes the place of a partial file


def check_folder(folder: Path, *, force: bool) -> None:
    """Check that a new bundle may go into `folder`; nothing is changed.

    A folder may be missing, be empty, or hold only the leavings of an interrupted pull and a folder
    `.tmp`. With `force` anything else may be there, except what a push would take for a part of
    the bundle. Once the new bundle is complete it takes the place of an earlier one, of which
    nothing stays behind; files that are not a bundle's stay.

    Raises:
        InputError: it is not a folder, cannot be written, or other files are there and `force`
            is not given.
    """
    if not folder.exists():
        if folder.is_symlink():
            raise InputError(f"{folder} is a symbolic link to no folder; make that, or remove it")
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"{folder} cannot be made: {parent} is not writable for you")
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a new or empty one for the bundle")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} is not writable for you; name another folder for the bundle")
    unfinished = try_seal(folder / PARTIAL_SEAL) if not (folder / SEAL).exists() else None
    others = [
        path.name
        for path in listed(folder)
        if not is_leaving(path.name)
        and path.name != ".tmp"
        and not (unfinished is not None and _belongs(path.name, unfinished))
    ]
    if others and not force:
        raise InputError(
            f"{folder} is not empty (it has {others[0]}); name an empty folder, or add --force "
            "to replace the bundle that is there"
        )
    for name in others:
        if not _of_a_bundle(name) and (
            name.removesuffix(ZSTD_SUFFIX).endswith(".tar") or parse_part_name(name)
        ):
            raise InputError(
                f"{folder} has {name}, which is no archive of a bundle, and a push would take it "
                "for one; move it elsewhere"
            )
    for path in listed(folder):
        # It would be in the way when all is fetched.
        if path.is_dir() and not path.is_symlink() and path.name != EARLIER_STEM + PARTIAL_SUFFIX:
            final = path.name.removesuffix(PARTIAL_SUFFIX)
            if final in (SEAL, SUMS, SIGNATURE, JOURNAL_STEM) or _of_a_bundle(final):
                raise InputError(
                    f"{path} is a folder, and a file of the bundle has this name; move it elsewhere"
                )


def _belongs(name: str, seal: Seal) -> bool:
    """Whether a file of this name is of the sealed bundle: a pull that was stopped at its very end
    has given some their names."""
    part = parse_part_name(name)
    archive = (part[0] if part else name).removesuffix(ZSTD_SUFFIX)
    return name in (*seal.files, SUMS, SIGNATURE) or archive in seal.archives


def check_space(folder: Path, needed: int) -> None:
    """Raise NoSpaceError unless the disk of `folder` has `needed` bytes free for us."""
    with os_errors(folder, "examine"):
        stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise NoSpaceError(
            f"the bundle needs {size_text(needed)} and the disk of {folder} has {size_text(free)} "
            f"free: {needed - free} bytes too few; nothing was fetched; free some space there, or "
            "use another disk"
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Nobody else makes a bundle in `folder` meanwhile.

    Raises:
        InputError: somebody does.
    """
    with os_errors(folder, "open"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise InputError(
                f"another pull is making a bundle in {folder}; wait for it, or name another folder"
            ) from err
        except OSError as err:
            # Some network file systems have no locks.
            if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield
    finally:
        os.close(fd)


def read_seal(path: Path) -> Seal | None:
    """The seal at `path`; None where there is none, as in bundles of other tools.

    Raises:
        DamagedBundleError: it is not whole.
    """
    if not path.exists():
        return None
    with os_errors(path, "read"):
        if path.stat().st_size > _MAX_SEAL_BYTES:
            raise DamagedBundleError(f"{path} is larger than any bundle's table of contents")
        data = path.read_bytes()
    if marks(data) > _MAX_SEAL_MARKS:
        # A parser makes up to 30 times the text of it.
        raise DamagedBundleError(f"{path} has more values than any bundle's table of contents")
    try:
        return Seal.from_json(data)
    except DamagedBundleError as err:
        raise DamagedBundleError(f"{path}: {err}; copy it again from its origin") from err


def try_seal(path: Path) -> Seal | None:
    """The seal at `path`, or None if there is none that can be read."""
    try:
        return read_seal(path)
    except MirrorError:
        return None


def read_files(folder: Path, seal: Seal) -> dict[str, bytes]:
    """The files beside a bundle's archives, as its seal has them.

    Raises:
        DamagedBundleError: one is missing or other than sealed.
    """
    files: dict[str, bytes] = {}
    for name, sealed in seal.files.items():
        path = folder / name
        with os_errors(path, "read"):
            found = path.is_file() and path.stat().st_size == sealed.size <= _MAX_SEAL_BYTES
            files[name] = path.read_bytes() if found else b""
        if not found or Digest.of(files[name]) != sealed.digest:
            raise DamagedBundleError(
                f"{path} is missing, or not what {SEAL} says; copy it again from its origin"
            )
    return files


def listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted."""
    with os_errors(folder, "read"):
        return sorted(folder.iterdir())


def is_leaving(name: str) -> bool:
    """Whether interrupted pulls leave files of this name."""
    if not name.endswith(PARTIAL_SUFFIX):
        return False
    final = name.removesuffix(PARTIAL_SUFFIX)
    known = {SEAL, JOURNAL_STEM, EARLIER_STEM, SUMS, SIGNATURE}
    return final.removeprefix(_FRESH) in known or final.endswith(".yaml") or _of_a_bundle(final)


def clear_leavings(folder: Path) -> None:
    """Remove what interrupted pulls left."""
    with os_errors(folder, "clear"):
        for path in listed(folder):
            if is_leaving(path.name):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    with os_errors(path, "remove"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_seal(folder: Path, sealed: bytes) -> None:
    """Say which bundle is being made in `folder`, durably."""
    write_durably(folder / PARTIAL_SEAL, sealed, staged=_FRESH + PARTIAL_SEAL)


def take_the_place(
    folder: Path, archives: Iterable[Path], files: Mapping[str, bytes], names: Collection[str]
) -> None:
    """Turn a finished pull into the folder's bundle; the partial seal is there and durable.

    `archives` are files with partial names, `names` all final names of the bundle. The partial
    seal takes its name last of all: whenever this is cut short, the folder says that it is no
    bundle yet, and the next pull completes it.
    """
    with os_errors(folder, "replace the bundle in"):
        # First, since it would speak for archives that are about to change.
        earlier = try_seal(folder / SEAL)
        (folder / SEAL).unlink(missing_ok=True)
        sync_folder(folder)
        for name in (*(earlier.files if earlier is not None else ()), SUMS, SIGNATURE):
            (folder / name).unlink(missing_ok=True)
        for path in archives:
            path.replace(path.with_name(path.name.removesuffix(PARTIAL_SUFFIX)))
        for path in listed(folder):
            if _of_a_bundle(path.name) and path.name not in names and path.is_file():
                path.unlink()
        for name, data in files.items():
            write_durably(folder / name, data, staged=name + PARTIAL_SUFFIX)
        sync_folder(folder)
        (folder / PARTIAL_SEAL).replace(folder / SEAL)
        sync_folder(folder)


def _of_a_bundle(name: str) -> bool:
    """Whether the format has files of this name: archives, their parts, and sums beside them."""
    bare = name.removesuffix(".gostsum")
    part = parse_part_name(bare)
    return is_archive_name((part[0] if part else bare).removesuffix(ZSTD_SUFFIX))
