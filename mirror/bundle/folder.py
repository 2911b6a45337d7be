"""The folder of a bundle: what may be there before a pull, and the change to the new bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mirror.bundle.files import WriteAt, os_errors, sync_folder
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL
from mirror.bundle.parts import parse_part_name
from mirror.bundle.seal import Seal
from mirror.errors import DamagedBundleError, InputError, MirrorError, NoSpaceError

PARTIAL_SEAL = SEAL + PARTIAL_SUFFIX
"""The seal of the bundle that is being made; with it the folder is no bundle yet."""


def check_folder(folder: Path, *, force: bool) -> None:
    """Check that a new bundle may go into `folder`; nothing is changed.

    A folder may be missing, be empty, or hold only the leavings of an interrupted pull and a folder
    `.tmp`. With `force` anything else may be there; once the new bundle is complete it takes the
    place of an earlier one, of which nothing stays behind.

    Raises:
        InputError: it is not a folder, or other files are there and `force` is not given.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a new or empty one for the bundle")
    unfinished = try_seal(folder / PARTIAL_SEAL) if not (folder / SEAL).exists() else None
    others = [
        path.name
        for path in listed(folder)
        if not path.name.endswith(PARTIAL_SUFFIX)
        and path.name != ".tmp"
        and not (unfinished is not None and _belongs(path.name, unfinished))
    ]
    if others and not force:
        raise InputError(
            f"{folder} is not empty (it has {others[0]}); name an empty folder, or add --force "
            "to replace the bundle that is there"
        )


def _belongs(name: str, seal: Seal) -> bool:
    """Whether a file of this name is of the sealed bundle: a pull that was stopped at its very end
    has given some their names."""
    part = parse_part_name(name)
    return name in seal.files or (part[0] if part else name) in seal.archives


def check_space(folder: Path, needed: int) -> None:
    """Raise NoSpaceError unless the disk of `folder` has `needed` bytes free for us."""
    with os_errors(folder, "examine"):
        stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise NoSpaceError(
            f"the bundle needs {needed} bytes and the disk of {folder} has {free} free: "
            f"{needed - free} too few; nothing was fetched"
        )


def read_seal(path: Path) -> Seal | None:
    """The seal at `path`; None where there is none, as in bundles of other tools.

    Raises:
        DamagedBundleError: it is not whole.
    """
    if not path.exists():
        return None
    with os_errors(path, "read"):
        data = path.read_bytes()
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


def listed(folder: Path) -> list[Path]:
    """What is in a folder, sorted."""
    with os_errors(folder, "read"):
        return sorted(folder.iterdir())


def clear_leavings(folder: Path) -> None:
    """Remove what interrupted pulls left."""
    with os_errors(folder, "clear"):
        for path in listed(folder):
            if path.name.endswith(PARTIAL_SUFFIX):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    with os_errors(path, "remove"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees all of it or nothing, power cuts included."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    file = WriteAt(partial)
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    with os_errors(path, "rename"):
        partial.replace(path)
    sync_folder(path.parent)


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
        for name in earlier.files if earlier is not None else ():
            (folder / name).unlink(missing_ok=True)
        for path in archives:
            path.replace(path.with_name(path.name.removesuffix(PARTIAL_SUFFIX)))
        for path in listed(folder):
            if _of_a_bundle(path) and path.name not in names:
                path.unlink()
        for name, data in files.items():
            write_durably(folder / name, data)
        sync_folder(folder)
        (folder / PARTIAL_SEAL).replace(folder / SEAL)
        sync_folder(folder)


def _of_a_bundle(path: Path) -> bool:
    """Whether a push would read this file as part of the bundle, or it belongs to one that is."""
    name = path.name.removesuffix(".gostsum")
    return path.is_file() and (name.endswith(".tar") or parse_part_name(name) is not None)
