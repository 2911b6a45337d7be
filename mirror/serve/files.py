"""Files that are either whole and on the disk, or not there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mirror.durable import make_folder, sync_file, sync_folder


class StagingFolder:
    """A folder of unfinished files on the same file system as the finished ones.

    Each file is locked (`flock`) while its writer lives, so that `sweep` removes what a killed
    process left behind and spares what a living one is writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> IO[bytes]:
        """A new file, open for writing; its path is `.name`."""
        path = self._path / secrets.token_hex(16)
        # Unbuffered: after a failed write nothing lingers that closing would try to write again.
        file = path.open("xb", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def sweep(self) -> None:
        """Remove files whose writer is gone."""
        for path in self._path.iterdir():
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def write(self, target: Path, data: bytes) -> None:
        """Give `target` the content `data` in one step; on return it is on the disk."""
        with self.create() as file:
            try:
                write_all(file, data)
                sync_file(file.fileno())
                make_folder(target.parent)
                Path(file.name).rename(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        sync_folder(target.parent)


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write all of `data`, however little the system takes at a time."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def names(path: Path) -> Iterator[str]:
    """The names in a folder, in no order; none if there is no such folder."""
    try:
        with os.scandir(path) as entries:
            yield from (entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return


def remove(path: Path) -> bool:
    """Remove a file; whether there was one."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
