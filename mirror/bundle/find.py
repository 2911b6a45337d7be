"""Where a bundle's archives lie: in a folder, alone, in parts, compressed, or unpacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mirror.bundle.folder import PARTIAL_SEAL, try_seal
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL, ZSTD_SUFFIX
from mirror.bundle.parts import parse_part_name
from mirror.bundle.tree import is_tree
from mirror.durable import os_errors
from mirror.errors import InputError


def find_archives(paths: Iterable[Path]) -> dict[Path, tuple[Path, ...]]:
    """The archives that `paths` name, sorted by name, each with the files that it consists of.

    A path is a folder, an archive, or a part of one (`X.tar.0000.chunk`), which stands for all
    parts beside it. A folder with a seal may lack archives, which is for a verification to say.

    Raises:
        InputError: a path does not exist, no archive is there, or one is there whole and in parts.
    """
    found: dict[Path, set[Path]] = {}
    for path in paths:
        if path.is_dir():
            files = [entry for entry in _listed(path) if archive_at(entry) is not None]
            if not files and is_tree(path):
                _check_tree(path)
                files = [path]
            else:
                _check_folder(path, files)
        elif path.is_file():
            files = [path]
            if parse_part_name(path.name) is not None:
                archive = archive_at(path)
                files = [one for one in _listed(path.parent) if archive_at(one) == archive]
        else:
            raise InputError(f"{path} does not exist; name a bundle's folder or its archives")
        for file in files:
            file = file.absolute()
            found.setdefault(archive_at(file) or file, set()).add(file)
    for archive, consists in found.items():
        if len({stored_file(file) for file in consists}) > 1:
            raise InputError(
                f"{archive} is there compressed and not compressed, of which one is older; "
                "remove that"
            )
        if len(consists) > 1 and any(stored_file(file) == file for file in consists):
            raise InputError(
                f"{archive} is there whole and in parts, of which one is older; remove that"
            )
    ordered = sorted(found, key=lambda path: (path.name, path))
    return {archive: tuple(sorted(found[archive])) for archive in ordered}


def _listed(folder: Path) -> list[Path]:
    with os_errors(folder, "read"):
        return [entry for entry in folder.iterdir() if entry.is_file()]


def archive_at(path: Path) -> Path | None:
    """The archive that a file is, or is a part of, compressed or not; None for other files."""
    stored = stored_file(path)
    archive = stored.with_name(stored.name.removesuffix(ZSTD_SUFFIX))
    return archive if archive.suffix == ".tar" else None


def stored_file(path: Path) -> Path:
    """The file that holds an archive, if it is in one piece."""
    part = parse_part_name(path.name)
    return path if part is None else path.with_name(part[0])


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is one, or becomes one, whatever archives are there."""
    return (folder / SEAL).is_file() or (folder / PARTIAL_SEAL).is_file()


def _check_tree(folder: Path) -> None:
    """Raise InputError if archives were unpacked beside their seal, which speaks of archives."""
    if _is_bundle(folder):
        raise InputError(
            f"{folder} holds the {SEAL} of a bundle and none of its archives, but layouts, as "
            "unpacking makes them: put the archives back, or the layouts into a folder of their "
            "own; of a delta or a deduplicated bundle only the archives are of use"
        )


def _check_folder(folder: Path, archives: Sequence[Path]) -> None:
    """Raise InputError unless there is a bundle in `folder`."""
    sealed = (folder / SEAL).is_file()
    if not sealed and (folder / PARTIAL_SEAL).is_file():
        raise InputError(
            f"{folder} holds no bundle yet: a pull into it was not finished; run it again, "
            "or remove its *.partial files if other archives are there"
        )
    if not archives and not sealed:
        partial = any(entry.name.endswith(PARTIAL_SUFFIX) for entry in _listed(folder))
        hint = "; a pull into it was not finished, run it again" if partial else ""
        raise InputError(f"{folder} holds no bundle: no *.tar file is there{hint}")


def check_loose(archives: Iterable[Path]) -> None:
    """Raise InputError if archives that are named without their folder need it."""
    for path in archives:
        seal = try_seal(path.parent / SEAL)
        sealed = seal.archives.get(path.name) if seal is not None else None
        if seal is not None and sealed is not None and sealed.left_out.repositories:
            kind = "a delta" if seal.carriage.base is not None else "a deduplicated bundle"
            raise InputError(
                f"{path.name} is an archive of {kind}: what it leaves out is known from the {SEAL} "
                f"beside it, and lies elsewhere; name the folder {path.parent} instead"
            )
