"""The folder of a bundle: which files a packing makes, what may be there before a pull, what an
interrupted one left there, and the change to the new bundle.

What lies in partial archives stays there if the plan is the same. If the source or the selection
has changed since, it is put aside, and what both plans have in common is taken over from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from mirror.bundle import sums
from mirror.bundle.archive import Archive
from mirror.bundle.format import (
    GOST_SUFFIX,
    MAX_SUMS_BYTES,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SHARD_MARK,
    SIGNATURE,
    SUMS,
    ZSTD_SUFFIX,
    compressed_bound,
    file_names,
    parse_part_name,
    part_sizes,
    size_text,
)
from mirror.bundle.seal import Seal, seal_in
from mirror.bundle.staging import JOURNAL, ArchiveStaging, folder_staging, read_journal
from mirror.durable import Folder, os_errors
from mirror.errors import DamagedBundleError, InputError, NoSpaceError
from mirror.layout import RELEASES_FILE, TOOL_FILE, is_archive_name
from mirror.oci import Digest

EARLIER = "earlier" + PARTIAL_SUFFIX
"""The folder of an interrupted pull of another plan, while its content is still of use."""

OWN_FILES = (RELEASES_FILE, SUMS, SIGNATURE)
"""What the format has beside archives and seal. Only these names are removed with a bundle: a seal
may list any name, and it may come from anywhere."""


# -- which files a bundle is -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packing:
    """How a bundle is written, whatever is in it.

    `part_size` in bytes cuts archives into parts; 0 leaves them whole. `gost_digest` writes a
    GOST R 34.11-2012 digest beside each file. `sign` makes a signature over the seal; without its
    `public_key`, shards believe any plan in the bucket. Without `resume` nothing of an interrupted
    run is used, and nothing is kept for the next one. `compress` writes archives in zstd frames,
    which `part_size` then cuts; until they have their names, the disk holds both forms.
    """

    part_size: int = 0
    gost_digest: bool = False
    sign: Callable[[bytes], bytes] | None = None
    public_key: bytes | None = None
    resume: bool = True
    compress: bool = False


AS_USUAL = Packing()


def possible_names(packing: Packing, archive: Archive) -> Iterator[str]:
    """Name the files of an archive; of a compressed one, as many as there may be."""
    name, size = archive.name, archive.size
    if packing.compress:
        name, size = name + ZSTD_SUFFIX, compressed_bound(size)
    yield from file_names(name, size, packing.part_size)


def stored_as(packing: Packing, seal: Seal, files: Mapping[str, int]) -> dict[str, int] | None:
    """Archive → bytes on the disk, if `files` (name → size) are exactly those that a bundle of this
    packing has, `SHA256SUMS` aside; else None."""
    names = {*seal.files, SEAL}
    if packing.sign is not None:
        names.add(SIGNATURE)
    stored: dict[str, int] = {}
    for archive in seal.archives.values():
        name, size = archive.name, archive.size
        if packing.compress:
            name += ZSTD_SUFFIX
            size = sum(n for one, n in files.items() if name in (one, _whole(one)))
        if not size:
            return None
        own = file_names(name, size, packing.part_size)
        sizes = part_sizes(size, packing.part_size or size)
        if any(files.get(one) != n for one, n in zip(own, sizes, strict=True)):
            return None
        names.update(own)
        if packing.gost_digest:
            names.update(one + GOST_SUFFIX for one in own)
        stored[archive.name] = size
    return stored if names == files.keys() else None


def _whole(name: str) -> str | None:
    part = parse_part_name(name)
    return part[0] if part else None


# -- what may be there before ----------------------------------------------------------------------


def check_folder(folder: Path, *, force: bool) -> None:
    """Check that a new bundle may go into `folder`; nothing is changed.

    A folder may be missing, be empty, or hold only what an interrupted pull left and a folder
    `.tmp`. It may hold a complete bundle and nothing else, too: it may be the very one that is
    wanted (`complete_bundle`). With `force` anything else may be there, except what a push would
    take for a part of the bundle. Once the new bundle is complete it takes the place of an earlier
    one, of which nothing stays behind; files that are not a bundle's stay.

    Raises:
        InputError: it is not a folder, cannot be written, or other files are there and `force`
            is not given.
    """
    if not folder.exists():
        if folder.is_symlink():
            raise InputError(f"{folder} is a symbolic link to no folder; make that, or remove it")
        parent = next(parent for parent in folder.absolute().parents if parent.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise InputError(f"{folder} cannot be made: {parent} is {_why_not(parent)}")
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name a new or empty one for the bundle")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} is {_why_not(folder)}; name another folder for the bundle")
    with os_errors(folder, "open"), Folder(folder) as held:
        check_content(held, force=force)


def check_content(folder: Folder, *, force: bool) -> None:
    """Do what `check_folder` does with a folder that is there.

    Raises:
        InputError: as `check_folder`.
    """
    names = listed(folder)
    known = seal_in(folder, SEAL if SEAL in names else PARTIAL_SEAL)
    check_names(str(folder.path), [name for name in names if name != ".tmp"], known, force=force)
    for name in names:
        # It would get in the way only after everything was fetched.
        if name != EARLIER and folder.has_folder(name):
            final = name.removesuffix(PARTIAL_SUFFIX)
            if name == JOURNAL or final in (SEAL, *OWN_FILES) or is_of_a_bundle(final):
                raise InputError(
                    f"{folder / name} is a folder, and a file of the bundle has this name; "
                    "move it elsewhere"
                )


def check_names(where: str, names: Iterable[str], known: Seal | None, *, force: bool) -> None:
    """Refuse files that are there and neither leftovers nor of the `known` bundle.

    Raises:
        InputError: as `check_folder`.
    """
    others = [
        name
        for name in names
        if not is_leftover(name) and not (known is not None and belongs(name, known))
    ]
    if others and not force:
        raise not_empty(where, others[0])
    for name in others:
        if not is_of_a_bundle(name) and (
            name.removesuffix(ZSTD_SUFFIX).endswith(".tar") or parse_part_name(name)
        ):
            raise InputError(
                f"{where} has {name}, which is not a bundle's archive, but a push would take "
                "it for one; move it elsewhere"
            )


def not_empty(where: str, name: str) -> InputError:
    kind = "place" if "://" in where else "folder"
    return InputError(
        f"{where} is not empty (it has {name}); name an empty {kind}, or add --force "
        "to replace the bundle that is there"
    )


def belongs(name: str, seal: Seal) -> bool:
    """Whether a file of this name belongs to the sealed bundle, complete or under way."""
    return name in (*seal.files, SEAL, SUMS, SIGNATURE) or _archive_of(name) in seal.archives


def _why_not(folder: Path) -> str:
    """Why nothing can be written there."""
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    return "on a file system that is read-only" if read_only else "not writable for you"


def check_space(folder: Folder | Path, needed: int) -> None:
    """Raise NoSpaceError unless the disk of `folder` has `needed` bytes free for us.

    A path may lead to where no folder is yet.
    """
    path = folder if isinstance(folder, Path) else folder.path
    with os_errors(path, "examine"):
        if isinstance(folder, Path):
            disk = os.statvfs(next(one for one in (path, *path.absolute().parents) if one.exists()))
        else:
            disk = os.statvfs(folder.fd)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise NoSpaceError(
            f"the bundle needs {size_text(needed)} and the disk of {path} has {size_text(free)} "
            f"free: {size_text(needed - free)} too few; nothing was fetched",
            advice="free some space there, or use another disk",
        )


@contextmanager
def only_writer(path: Path) -> Iterator[Folder]:
    """Give the folder at `path`, and keep others from making a bundle there during the block.

    Raises:
        InputError: somebody does so already.
    """
    with os_errors(path, "open"):
        folder = Folder(path)
    with folder:
        try:
            fcntl.flock(folder.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise InputError(
                f"another pull is making a bundle in {path}; wait for it, or name another folder"
            ) from err
        except OSError as err:
            # Some network file systems have no locks.
            if err.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                with os_errors(path, "lock"):
                    raise
        yield folder


def listed(folder: Folder) -> list[str]:
    with os_errors(folder.path, "read"):
        return folder.names()


def is_leftover(name: str) -> bool:
    """Whether interrupted pulls leave files of this name."""
    final = name.removesuffix(PARTIAL_SUFFIX)
    if SHARD_MARK.fullmatch(name) or {name, final} & {JOURNAL, EARLIER, PARTIAL_SEAL}:
        return True  # or what was to take its place
    return final != name and (final in (*OWN_FILES, TOOL_FILE) or is_of_a_bundle(final))


def leftovers(folder: Folder) -> dict[str, int]:
    """Name → bytes on disk of what interrupted pulls left, without an earlier bundle's files."""
    old, (part_size, progress) = seal_in(folder, PARTIAL_SEAL), read_journal(folder)
    own: set[str] = set()
    names = listed(folder)
    if old is not None and _named_already(folder, old, part_size or 0, progress):
        # So the seal of an earlier bundle is gone, and what it spoke for goes, too.
        own = {*OWN_FILES, *filter(is_of_a_bundle, names)}
        own |= {TOOL_FILE} if _brought_tool(folder) else set()
    names = [name for name in names if name in own] + [*filter(is_leftover, names)]
    with os_errors(folder.path, "examine"):
        return {name: folder.on_disk(name) for name in names}


def clear_leftovers(folder: Folder) -> None:
    for name in leftovers(folder):
        remove(folder, name)


def allocated(folder: Folder) -> int:
    """Return how many bytes of the disk the partial archives in `folder` have already."""
    return sum(size for name, size in leftovers(folder).items() if name != EARLIER)


def remove(folder: Folder, name: str) -> None:
    with os_errors(folder / name, "remove"):
        folder.remove(name)


# -- an interrupted pull ---------------------------------------------------------------------------


def sort_leftovers(folder: Folder, seal: Seal, part_size: int) -> bool:
    """Whether this very bundle was under way in `folder`; what was of another is put aside."""
    old = seal_in(folder, PARTIAL_SEAL)
    known_size, progress = read_journal(folder)
    if old is None or known_size is None:
        clear_leftovers(folder)
        return False
    if old == seal and known_size == part_size:
        _take_names_back(folder, seal, part_size, progress)
        return True
    remove(folder, EARLIER)
    with os_errors(folder / EARLIER, "create"):
        leftovers = [name for name in folder.names() if is_leftover(name)]
        with folder.make(EARLIER) as aside:
            for name in leftovers:
                folder.rename(name, name, into=aside)
    return False


def _take_names_back(
    folder: Folder, seal: Seal, part_size: int, progress: Mapping[Digest, int]
) -> None:
    """Undo the renaming that an interrupted `BundleWriter.finish` had begun; it is done again."""
    for final in _named_already(folder, seal, part_size, progress):
        with os_errors(folder / final, "rename"):
            folder.rename(final, final + PARTIAL_SUFFIX)


def _named_already(
    folder: Folder, seal: Seal, part_size: int, progress: Mapping[Digest, int]
) -> list[str]:
    """The archives to which an interrupted `BundleWriter.finish` had given their final names."""
    wanted = seal.carried.blob_sizes()
    # A bundle without any blob, as a delta may be, has nothing to tell by, and nothing to lose.
    complete = wanted and all(progress.get(d) == n for d, n in wanted.items())
    if folder.has(SEAL) or not complete:
        return []  # it had not begun: files with these names are of an earlier bundle
    archives, names = seal.archives.values(), listed(folder)
    finals = {name for one in archives for name in file_names(one.name, one.size, part_size)}
    finals |= {one for one in names if ZSTD_SUFFIX in one and _archive_of(one) in seal.archives}
    return [one for one in names if one in finals and one + PARTIAL_SUFFIX not in names]


@contextmanager
def earlier_staging(folder: Folder) -> Iterator[ArchiveStaging | None]:
    """What a pull of another plan has left and is put aside; None if there is nothing."""
    if not folder.has_folder(EARLIER):
        yield None
        return
    with os_errors(folder / EARLIER, "open"):
        aside = folder.inside(EARLIER)
    with aside:
        old = seal_in(aside, PARTIAL_SEAL)
        if old is None:
            yield None
        else:
            part_size = read_journal(aside)[0] or 0
            with closing(folder_staging(aside, old, part_size, keep=True)) as staging:
                yield staging


# -- a finished pull -------------------------------------------------------------------------------


def write_partial_seal(folder: Folder, sealed: bytes) -> None:
    """Say, durably, which bundle is being made in `folder`."""
    with os_errors(folder / PARTIAL_SEAL, "write"):
        folder.write(PARTIAL_SEAL, sealed, staged=PARTIAL_SEAL + PARTIAL_SUFFIX)


def take_the_place(
    folder: Folder, archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str]
) -> None:
    """Turn a finished pull into the folder's bundle; the partial seal is there and durable.

    `archives` are files with partial names, `names` all final names of the bundle. The seal takes
    its name last of all: whenever this is cut short, the folder says that it is not a bundle yet,
    and the next pull completes it.
    """
    with os_errors(folder.path, "replace the bundle in"):
        # First, since it would speak for archives that are about to change.
        folder.unlink(SEAL)
        folder.sync()
        for name in (*OWN_FILES, TOOL_FILE) if _brought_tool(folder) else OWN_FILES:
            folder.unlink(name)
        for name in archives:
            folder.rename(name, name.removesuffix(PARTIAL_SUFFIX))
        for name in folder.names():
            if is_of_a_bundle(name) and name not in names and not folder.has_folder(name):
                folder.unlink(name)
        for name, data in files.items():
            # Brings all names in the folder onto the disk, those of the archives too.
            folder.write(name, data, staged=name + PARTIAL_SUFFIX)
        if TOOL_FILE in files:
            with suppress(OSError):  # a disk without permissions, as FAT, lets all be run or none
                os.chmod(TOOL_FILE, 0o755, dir_fd=folder.fd)  # noqa: S103 who reads may run
        folder.rename(PARTIAL_SEAL, SEAL)
    with os_errors(folder.path, "bring the last name of the complete bundle onto the disk in"):
        folder.sync()


def _brought_tool(folder: Folder) -> bool:
    """Whether the bundle in `folder` brought the program. Who put a file of that name there
    otherwise keeps it."""
    try:
        return TOOL_FILE in sums.parse_whole(folder.read(SUMS, MAX_SUMS_BYTES))
    except (OSError, DamagedBundleError):
        return False


def check_tool(folder: Path, tool: bytes) -> None:
    """Refuse to put the program in the place of a file that no bundle brought.

    Raises:
        InputError: `folder` has such a file.
    """
    with suppress(FileNotFoundError), Folder(folder) as here:
        there = here.read(TOOL_FILE, len(tool)) if here.has_file(TOOL_FILE) else b""
        if here.has(TOOL_FILE) and there != tool and not _brought_tool(here):
            told = f"{folder} has a file {TOOL_FILE} that no bundle brought; move it elsewhere"
            raise InputError(told)


def complete_bundle(
    folder: Folder, seal: Seal, sealed: bytes, packing: Packing
) -> dict[str, int] | None:
    """Archive → bytes on the disk, if `folder` holds the bundle of this seal (and `sealed`, its
    file) complete and packed in this way; else None.

    A pull that was killed behind its very last step has made it: the seal takes its name last, so
    all else was on the disk by then. Files that were taken away or cut short since are noticed;
    changed bytes are a matter of `mirror verify`.
    """
    try:
        if folder.read(SEAL, len(sealed)) != sealed:
            return None
        stated = sums.parse_whole(folder.read(SUMS, MAX_SUMS_BYTES))
    except (OSError, DamagedBundleError):
        return None
    found = {name: folder.status(name) for name in stated if name == PurePath(name).name}
    sizes = {name: one.st_size for name, one in found.items() if one and stat.S_ISREG(one.st_mode)}
    return stored_as(packing, seal, sizes) if len(sizes) == len(stated) else None


def is_of_a_bundle(name: str) -> bool:
    """Whether the format has files of this name: archives, their parts, and sums beside them."""
    return is_archive_name(_archive_of(name))


def _archive_of(name: str) -> str:
    """The archive that a file holds, or a part of, or the sum of one of these."""
    bare = name.removesuffix(GOST_SUFFIX)
    part = parse_part_name(bare)
    return (part[0] if part else bare).removesuffix(ZSTD_SUFFIX)
