"""The folder of a bundle: what may be there before a pull, what an interrupted one left there, and
the change to the new bundle.

What lies in partial archives stays there if the plan is the same. If the source or the selection
has changed since, it is put aside, and what both plans have in common is taken over from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mirror.bundle.format import (
    GOST_SUFFIX,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SIGNATURE,
    SUMS,
    ZSTD_SUFFIX,
    parse_part_name,
    part_paths,
    part_sizes,
    size_text,
)
from mirror.bundle.seal import Seal, try_seal
from mirror.bundle.staging import JOURNAL, Staging, read_journal
from mirror.durable import os_errors, sync_folder, write_durably
from mirror.errors import InputError, NoSpaceError
from mirror.layout import RELEASES_FILE, is_archive_name
from mirror.oci import Digest

EARLIER = "earlier" + PARTIAL_SUFFIX
"""The folder of an interrupted pull of another plan, while its content is still of use."""

_OWN_FILES = (RELEASES_FILE, SUMS, SIGNATURE)
"""What the format has beside archives and seal. Only these names are removed with a bundle: a seal
may list any name, and it may come from anywhere."""


def check_folder(folder: Path, *, force: bool) -> None:
    """Check that a new bundle may go into `folder`; nothing is changed.

    A folder may be missing, be empty, or hold only what an interrupted pull left and a folder
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
        if not is_leftover(path.name)
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
                f"{folder} has {name}, which is not a bundle's archive, but a push would take it "
                "for one; move it elsewhere"
            )
    for path in listed(folder):
        # It would get in the way only after everything was fetched.
        if path.is_dir() and not path.is_symlink() and path.name != EARLIER:
            final = path.name.removesuffix(PARTIAL_SUFFIX)
            if path.name == JOURNAL or final in (SEAL, *_OWN_FILES) or _of_a_bundle(final):
                raise InputError(
                    f"{path} is a folder, and a file of the bundle has this name; move it elsewhere"
                )


def _belongs(name: str, seal: Seal) -> bool:
    """Whether a file of this name belongs to the sealed bundle: a pull that was stopped at its very
    end has named some files already."""
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
            f"free: {needed - free} bytes too few; nothing was fetched",
            advice="free some space there, or use another disk",
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep others from making a bundle in `folder` for the length of the block.

    Raises:
        InputError: somebody does so already.
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
                with os_errors(folder, "lock"):
                    raise
        yield
    finally:
        os.close(fd)


def listed(folder: Path) -> list[Path]:
    with os_errors(folder, "read"):
        return sorted(folder.iterdir())


def is_leftover(name: str) -> bool:
    """Whether interrupted pulls leave files of this name."""
    final = name.removesuffix(PARTIAL_SUFFIX)
    if {name, final} & {JOURNAL, EARLIER, PARTIAL_SEAL}:  # or what was to take its place
        return True
    return final != name and (final in _OWN_FILES or _of_a_bundle(final))


def clear_leftovers(folder: Path) -> None:
    with os_errors(folder, "clear"):
        for path in listed(folder):
            if is_leftover(path.name):
                remove(path)


def allocated(folder: Path) -> int:
    """Return how many bytes of the disk the partial archives in `folder` have already."""
    with os_errors(folder, "examine"):
        return sum(
            path.stat().st_blocks * 512
            for path in listed(folder)
            if is_leftover(path.name) and path.is_file()
        )


def remove(path: Path) -> None:
    with os_errors(path, "remove"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# -- an interrupted pull ---------------------------------------------------------------------------


def sort_leftovers(folder: Path, seal: Seal, part_size: int) -> bool:
    """Whether this very bundle was under way in `folder`; what was of another is put aside."""
    old = try_seal(folder / PARTIAL_SEAL)
    known_size, progress = read_journal(folder / JOURNAL)
    if old is None or known_size is None:
        clear_leftovers(folder)
        return False
    if old == seal and known_size == part_size:
        _take_names_back(folder, seal, part_size, progress)
        return True
    aside = folder / EARLIER
    remove(aside)
    with os_errors(aside, "create"):
        leftovers = [path for path in listed(folder) if is_leftover(path.name)]
        aside.mkdir()
        for path in leftovers:
            path.replace(aside / path.name)
    return False


def _take_names_back(
    folder: Path, seal: Seal, part_size: int, progress: Mapping[Digest, int]
) -> None:
    """Undo the renaming that an interrupted `BundleWriter.finish` had begun; it is done again."""
    wanted = seal.carried.blob_sizes()
    # A bundle without any blob, as a delta may be, has nothing to tell by, and nothing to lose.
    complete = wanted and all(progress.get(d) == n for d, n in wanted.items())
    if (folder / SEAL).exists() or not complete:
        return  # it had not begun: files with these names are of an earlier bundle
    for archive in seal.archives.values():
        path = folder / (archive.name + PARTIAL_SUFFIX)
        count = len(part_sizes(archive.size, part_size)) if part_size else 0
        for partial in part_paths(path, count) if count else (path,):
            final = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
            if not partial.exists() and final.exists():
                with os_errors(final, "rename"):
                    final.replace(partial)


def earlier_staging(folder: Path) -> Staging | None:
    aside = folder / EARLIER
    old = try_seal(aside / PARTIAL_SEAL)
    if old is None:
        return None
    return Staging(aside, old, read_journal(aside / JOURNAL)[0] or 0, keep=True)


# -- a finished pull -------------------------------------------------------------------------------


def write_partial_seal(folder: Path, sealed: bytes) -> None:
    """Say, durably, which bundle is being made in `folder`."""
    write_durably(folder / PARTIAL_SEAL, sealed, staged=PARTIAL_SEAL + PARTIAL_SUFFIX)


def take_the_place(
    folder: Path, archives: Iterable[Path], files: Mapping[str, bytes], names: Collection[str]
) -> None:
    """Turn a finished pull into the folder's bundle; the partial seal is there and durable.

    `archives` are files with partial names, `names` all final names of the bundle. The seal takes
    its name last of all: whenever this is cut short, the folder says that it is not a bundle yet,
    and the next pull completes it.
    """
    with os_errors(folder, "replace the bundle in"):
        # First, since it would speak for archives that are about to change.
        (folder / SEAL).unlink(missing_ok=True)
        sync_folder(folder)
        for name in _OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        for path in archives:
            path.replace(path.with_name(path.name.removesuffix(PARTIAL_SUFFIX)))
        for path in listed(folder):
            if _of_a_bundle(path.name) and path.name not in names and path.is_file():
                path.unlink()
        for name, data in files.items():
            # Brings all names in the folder onto the disk, those of the archives too.
            write_durably(folder / name, data, staged=name + PARTIAL_SUFFIX)
        (folder / PARTIAL_SEAL).replace(folder / SEAL)
        sync_folder(folder)


def _of_a_bundle(name: str) -> bool:
    """Whether the format has files of this name: archives, their parts, and sums beside them."""
    bare = name.removesuffix(GOST_SUFFIX)
    part = parse_part_name(bare)
    return is_archive_name((part[0] if part else bare).removesuffix(ZSTD_SUFFIX))
