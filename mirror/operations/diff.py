"""Diff: what two places hold differently, whatever kinds of place they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.bundle.reader import read_inventory
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.operations.trees import see_registry
from mirror.release.discovery import has_index, index_of
from mirror.run import Run
from mirror.sync import Inventory, union
from mirror.sync.difference import Difference, differ
from mirror.sync.observation import Failure
from mirror.sync.tags import tags_of
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two places compared. `failures` are what could not be read, and is not in the comparison."""

    a: str
    b: str
    a_digest: Digest
    b_digest: Digest
    difference: Difference
    failures: tuple[Failure, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "equal": not self.difference and not self.failures,
            "a": {"place": self.a, "inventory": str(self.a_digest)},
            "b": {"place": self.b, "inventory": str(self.b_digest)},
            **self.difference.to_document(),
            "failures": [failure.to_document() for failure in self.failures],
        }


def diff(
    a: Path | RegistryTree,
    b: Path | RegistryTree,
    *,
    run: Run | None = None,
) -> DiffReport:
    """Compare two places: a bundle's folder, a file with an inventory, or a registry.

    A bundle counts as having the index of modules that a push makes, if the other place has one.

    Raises:
        InputError, DamagedBundleError: a file or folder holds no inventory.
        RegistryError: a registry does not say what it has.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    failures: list[Failure] = []

    def seen(place: Path | RegistryTree) -> tuple[str, Inventory]:
        if isinstance(place, Path):
            return str(place), read_inventory(place)
        run.on_event(PhaseStarted(f"looking at {place.name}"))
        inventory, unread = see_registry(place.within(run), run=run)
        failures.extend(unread)
        return place.name, inventory

    (a_name, ours), (b_name, theirs) = seen(a), seen(b)
    if has_index(theirs) and not has_index(ours) and isinstance(a, Path):
        ours = union([ours, index_of(ours, tags_of(theirs))])
    elif has_index(ours) and not has_index(theirs) and isinstance(b, Path):
        theirs = union([theirs, index_of(theirs, tags_of(ours))])
    return DiffReport(
        a_name, b_name, ours.digest(), theirs.digest(), differ(ours, theirs), tuple(failures)
    )
