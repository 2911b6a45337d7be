"""Clean: remove what pulls that nobody goes on with have left at a bundle's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mirror.bundle.bucket import Bucket
from mirror.documents import document
from mirror.errors import InputError
from mirror.operations.pull import place_of
from mirror.run import Run


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What was removed or, in a dry run, would be: name → bytes that a file or an upload took.
    `uploads` are those that are unfinished uploads: a sealed bundle may have the same names."""

    bundle: str
    dry_run: bool
    removed: Mapping[str, int]
    uploads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "removed", MappingProxyType(dict(self.removed)))

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(self.removed.values())

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return document(self, "bundle", "dry_run", "removed", "uploads", "bytes=size")


def clean(folder: Path | Bucket, *, dry_run: bool = False, run: Run | None = None) -> CleanReport:
    """Remove what interrupted pulls have left in `folder`, or in a bucket, so that none goes on.

    In a bucket these are unfinished uploads, too. A sealed bundle stays, and so do files
    that are not a bundle's. A pull that works there meanwhile keeps its folder; in a bucket it
    ends with an error.

    Raises:
        InputError: `folder` is not one, or somebody makes a bundle there.
        CancelledError: `run` was stopped.
    """
    if isinstance(folder, Path) and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name that of a bundle")
    place = place_of(folder, Run.of(run))
    with place.held():
        pending = folder.uploads(Run.of(run)) if isinstance(folder, Bucket) else ()
        removed = place.leftovers()
        if removed and not dry_run:
            place.clear()
    uploads = removed.keys() & {name for name, _ in pending}
    return CleanReport(place.where, dry_run, removed, tuple(sorted(uploads)))
