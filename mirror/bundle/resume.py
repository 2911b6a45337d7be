"""What an interrupted pull has left in a folder, and what of it the next one goes on with.

What lies in the partial archives stays there if the plan is the same. If the source or the
selection has changed meanwhile it is put aside, and what both plans have in common is taken over
from there.
"""

from __future__ import annotations

from pathlib import Path

from mirror.bundle.archive import Archive
from mirror.bundle.folder import (
    EARLIER_STEM,
    PARTIAL_SEAL,
    clear_leavings,
    is_leaving,
    listed,
    remove,
    try_seal,
)
from mirror.bundle.journal import part_size_of, progress_of
from mirror.bundle.names import PARTIAL_SUFFIX, SEAL
from mirror.bundle.seal import Seal
from mirror.bundle.workplace import JOURNAL, Workplace, file_names
from mirror.durable import os_errors

EARLIER = EARLIER_STEM + PARTIAL_SUFFIX
"""Folder of an interrupted pull of another plan, while its content is still of use."""


def sort_leavings(folder: Path, seal: Seal, part_size: int) -> bool:
    """Whether this very bundle was under way in `folder`; what was of another is put aside."""
    old = try_seal(folder / PARTIAL_SEAL)
    if old is None or not (folder / JOURNAL).exists():
        clear_leavings(folder)
        return False
    if old == seal and part_size_of(folder / JOURNAL) == part_size:
        _take_names_back(folder, seal, part_size)
        return True
    aside = folder / EARLIER
    remove(aside)
    with os_errors(aside, "create"):
        leavings = [path for path in listed(folder) if is_leaving(path.name)]
        aside.mkdir()
        for path in leavings:
            path.replace(aside / path.name)
    return False


def _take_names_back(folder: Path, seal: Seal, part_size: int) -> None:
    """Undo the renaming that an interrupted `BundleWriter.finish` had begun; it is done again."""
    progress = progress_of(folder / JOURNAL)
    wanted = seal.carried.blob_sizes()
    # Of a bundle without any blob, as a delta may be, nothing tells, and nothing is lost.
    complete = wanted and all(progress.get(d) == n for d, n in wanted.items())
    if (folder / SEAL).exists() or not complete:
        return  # it had not begun: files with these names are of an earlier bundle
    for archive in seal.archives.values():
        for partial in partial_files(folder, archive, part_size):
            final = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
            if not partial.exists() and final.exists():
                with os_errors(final, "rename"):
                    final.replace(partial)


def partial_files(folder: Path, archive: Archive, part_size: int) -> tuple[Path, ...]:
    """The files in which an archive lies while it is made, whether they exist or not."""
    return tuple(file_names(folder / (archive.name + PARTIAL_SUFFIX), archive, part_size))


def earlier_workplace(folder: Path) -> Workplace | None:
    """The archives of another plan that were put aside, if there are any."""
    old = try_seal(folder / EARLIER / PARTIAL_SEAL)
    if old is None:
        return None
    return Workplace(folder / EARLIER, old, part_size_of(folder / EARLIER / JOURNAL), keep=True)
