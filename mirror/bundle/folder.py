"""A folder in which a bundle is made: what may be there before a pull, what an interrupted one left
there, and the change to the new bundle.

What lies in partial archives stays there if the plan is the same. If the source or the selection
has changed since, it is put aside, and what both plans have in common is taken over from there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.bundle import sums
from mirror.bundle.archive import Archive
from mirror.bundle.format import (
    LARGE,
    MAX_SUMS_BYTES,
    PARTIAL_SEAL,
    PARTIAL_SUFFIX,
    SEAL,
    SUMS,
    ZSTD_SUFFIX,
    file_names,
    size_text,
)
from mirror.bundle.place import (
    EARLIER,
    OWN_FILES,
    BundlePlace,
    Packing,
    archive_by_file,
    check_names,
    give_up,
    is_leftover,
    is_of_a_bundle,
)
from mirror.bundle.seal import Seal, seal_in
from mirror.bundle.staging import JOURNAL, ArchiveStaging, Follow, folder_staging, read_journal
from mirror.durable import Folder, make_folder, os_errors
from mirror.errors import DamagedBundleError, InputError, NoSpaceError
from mirror.events import OnEvent, ignore
from mirror.layout import TOOL_FILE
from mirror.oci import Digest
from mirror.registry.downloads import FileState
from mirror.sync import Inventory, Plan

if TYPE_CHECKING:
    from mirror.bundle.compress import FolderFiles


def check_space(folder: Path | Folder, needed: int) -> None:
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


def _brought_tool(folder: Folder) -> bool:
    """Whether the bundle in `folder` brought the program. Who put a file of that name there
    otherwise keeps it."""
    try:
        return TOOL_FILE in sums.parse_whole(folder.read(SUMS, MAX_SUMS_BYTES))
    except (OSError, DamagedBundleError):
        return False


class FolderPlace(BundlePlace):
    """A folder in which a bundle is made. It may be missing, and have a folder `.tmp`."""

    def __init__(self, path: Path, on_event: OnEvent = ignore) -> None:
        self.path, self.where, self._on_event = path, str(path), on_event
        self._folder: Folder  # that is held
        self._part_size = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        with os_errors(self.path, "create"):
            make_folder(self.path)
        with only_writer(self.path) as self._folder:
            yield

    # -- what may be there before --------------------------------------------------------------

    def check(self, *, force: bool) -> None:
        folder = self.path
        if not folder.exists():
            if folder.is_symlink():
                raise InputError(
                    f"{folder} is a symbolic link to no folder; make that, or remove it"
                )
            parent = next(parent for parent in folder.absolute().parents if parent.exists())
            if not os.access(parent, os.W_OK | os.X_OK):
                raise InputError(f"{folder} cannot be made: {parent} is {_why_not(parent)}")
            return
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; name a new or empty one for the bundle")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} is {_why_not(folder)}; name another folder for the bundle")
        with os_errors(folder, "open"), Folder(folder) as self._folder:
            self._look(force=force)

    def _look(self, *, force: bool) -> dict[str, FileState]:
        folder, found = self._folder, dict[str, FileState]()
        names = self._names()
        known = seal_in(folder, SEAL if SEAL in names else PARTIAL_SEAL)
        check_names(self.where, [name for name in names if name != ".tmp"], known, force=force)
        for name in names:
            status = folder.status(name)
            is_file = status is not None and stat.S_ISREG(status.st_mode)
            found[name] = FileState(status.st_size if status is not None and is_file else -1)
            # It would get in the way only after everything was fetched.
            if name != EARLIER and status is not None and stat.S_ISDIR(status.st_mode):
                final = name.removesuffix(PARTIAL_SUFFIX)
                if name == JOURNAL or final in (SEAL, *OWN_FILES) or is_of_a_bundle(final):
                    raise InputError(
                        f"{folder / name} is a folder, and a file of the bundle has this name; "
                        "move it elsewhere"
                    )
        return found

    def _names(self) -> list[str]:
        with os_errors(self.path, "read"):
            return self._folder.names()

    def found_seal(self) -> Seal | None:
        with suppress(OSError), Folder(self.path) as folder:
            return seal_in(folder, SEAL)
        return None

    def _read(self, name: str, _found: object) -> bytes:
        with suppress(OSError):
            return self._folder.read(name, LARGE.seal_bytes)
        return b""

    def _write(self, name: str, data: bytes) -> None:
        with os_errors(self._folder / name, "write"):
            self._folder.write(name, data, staged=name + PARTIAL_SUFFIX)

    # -- an interrupted pull -------------------------------------------------------------------

    def leftovers(self) -> dict[str, int]:
        folder, names = self._folder, self._names()
        old, (part_size, progress) = seal_in(folder, PARTIAL_SEAL), read_journal(folder)
        own: set[str] = set()
        if old is not None and self._named_already(old, part_size or 0, progress):
            # So the seal of an earlier bundle is gone, and what it spoke for goes, too.
            own = {*OWN_FILES, *filter(is_of_a_bundle, names)}
            own |= {TOOL_FILE} if _brought_tool(folder) else set()
        names = [name for name in names if name in own] + [*filter(is_leftover, names)]
        with os_errors(self.path, "examine"):
            return {name: folder.on_disk(name) for name in names}

    def clear(self) -> None:
        for name in self.leftovers():
            self._remove(name)

    def _remove(self, name: str) -> None:
        with os_errors(self._folder / name, "remove"):
            self._folder.remove(name)

    def begin(self, seal: Seal, sealed: bytes, packing: Packing, needed: int) -> bool:
        if not packing.compress:  # else frames are cut, not the tar
            self._part_size = packing.part_size
        left = self.leftovers() if packing.resume else {}
        keep = packing.resume and self._sort_leftovers(seal)
        if not packing.resume:
            self.clear()
        elif not keep:
            give_up(left, self.where, "this one takes over what it needs of it", self._on_event)
        if keep:  # a part of it is on the disk already
            needed -= sum(size for name, size in self.leftovers().items() if name != EARLIER)
        check_space(self._folder, needed)
        if not keep:
            self._write(PARTIAL_SEAL, sealed)
        return keep

    def _sort_leftovers(self, seal: Seal) -> bool:
        """Whether this very bundle was under way; what was of another is put aside."""
        folder = self._folder
        old = seal_in(folder, PARTIAL_SEAL)
        known_size, progress = read_journal(folder)
        if old is None or known_size is None:
            self.clear()
            return False
        if old == seal and known_size == self._part_size:
            # What an interrupted `take` had begun is done again.
            for final in self._named_already(seal, self._part_size, progress):
                with os_errors(folder / final, "rename"):
                    folder.rename(final, final + PARTIAL_SUFFIX)
            return True
        self._remove(EARLIER)
        with os_errors(folder / EARLIER, "create"):
            leftovers = [name for name in folder.names() if is_leftover(name)]
            with folder.make(EARLIER) as aside:
                for name in leftovers:
                    folder.rename(name, name, into=aside)
        return False

    def _named_already(
        self, seal: Seal, part_size: int, progress: Mapping[Digest, int]
    ) -> list[str]:
        """The archives to which an interrupted `take` had given their final names."""
        wanted = seal.carried.blob_sizes()
        # A bundle without any blob, as a delta may be, has nothing to tell by, and nothing to lose.
        complete = wanted and all(progress.get(d) == n for d, n in wanted.items())
        if self._folder.has(SEAL) or not complete:
            return []  # it had not begun: files with these names are of an earlier bundle
        archives, names = seal.archives.values(), self._names()
        finals = {name for one in archives for name in file_names(one.name, one.size, part_size)}
        finals |= {
            one for one in names if ZSTD_SUFFIX in one and archive_by_file(one) in seal.archives
        }
        return [one for one in names if one in finals and one + PARTIAL_SUFFIX not in names]

    @contextmanager
    def earlier(self) -> Iterator[ArchiveStaging | None]:
        if not self._folder.has_folder(EARLIER):
            yield None
            return
        with os_errors(self._folder / EARLIER, "open"):
            aside = self._folder.inside(EARLIER)
        with aside:
            old = seal_in(aside, PARTIAL_SEAL)
            if old is None:
                yield None
            else:
                part_size = read_journal(aside)[0] or 0
                with closing(folder_staging(aside, old, part_size, keep=True)) as staging:
                    yield staging

    # -- this pull -----------------------------------------------------------------------------

    def staging(self, seal: Seal, *, keep: bool, follow: Follow) -> ArchiveStaging:
        return folder_staging(self._folder, seal, self._part_size, keep=keep, follow=follow)

    def packed(self, _archive: Archive) -> FolderFiles:
        from mirror.bundle.compress import FolderFiles  # few need it

        return FolderFiles(self._folder)

    def stages(self, plan: Plan, staging: ArchiveStaging) -> Iterator[Plan]:
        """One, with blobs in the order in which they lie in the archives.

        Writes then move through the disk from front to back, which is fast on spinning disks, and
        spares file systems without holes (FAT) from writing zeros that are overwritten.
        """
        yield staging.in_archive_order(plan)

    def brought(self, carried: Inventory, plan: Plan, _staging: ArchiveStaging) -> int:
        lacking = {step.digest for step in plan.blobs}
        blobs = carried.blob_sizes()
        return sum(size for digest, size in blobs.items() if digest not in lacking)

    def take(
        self, archives: Iterable[str], files: Mapping[str, bytes], names: Collection[str]
    ) -> None:
        """Whenever this is cut short, the folder says that it is not a bundle yet, and the next
        pull completes it: the partial seal is there and durable."""
        folder = self._folder
        with os_errors(self.path, "replace the bundle in"):
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
                with suppress(OSError):  # FAT has no permissions, and lets all be run or none
                    os.chmod(TOOL_FILE, 0o755, dir_fd=folder.fd)  # noqa: S103 who reads may run
            folder.rename(PARTIAL_SEAL, SEAL)
        with os_errors(self.path, "bring the last name of the complete bundle onto the disk in"):
            folder.sync()


def _why_not(folder: Path) -> str:
    """Why nothing can be written there."""
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    return "on a file system that is read-only" if read_only else "not writable for you"
