"""What a sync is asked to do, and what it reports about each replica."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mirror.oci import Digest
from mirror.sync import Finding
from mirror.sync.observation import Failure


class Outcome(StrEnum):
    """How a replica stands at the end."""

    EQUAL = "equal"  # it was as it should be
    SYNCED = "synced"  # it is now
    DIFFERS = "differs"  # a dry run found something to do
    FAILED = "failed"  # it is not; the failures say why


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """What a sync does besides carrying what is new."""

    audit: bool = False
    deep: bool = False
    prune: bool = False
    dry_run: bool = False

    @property
    def full(self) -> bool:
        """Whether more is asked for than comparing what registries state."""
        return self.audit or self.deep or self.prune


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """What was found at one replica and done there; counts are of what moved, `sent` in bytes.

    `statement` and `generation` are what it states at the end; None where it states nothing.
    `extras` are tags and manifests that the leader does not have, and that are still there.
    `damaged` is what a dry run found and would replace.
    """

    name: str
    outcome: Outcome
    statement: Digest | None = None
    generation: int | None = None
    blobs: int = 0
    sent: int = 0
    manifests: int = 0
    tags: int = 0
    damaged: tuple[Finding, ...] = ()
    healed: tuple[Finding, ...] = ()
    extras: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    elapsed_s: float = 0.0

    def adding(self, **more: Iterable[Any]) -> ReplicaResult:
        """The same with more items in the named fields."""
        longer: dict[str, Any] = {
            name: (*getattr(self, name), *items) for name, items in more.items()
        }
        return replace(self, **longer)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "replica": self.name,
            "outcome": self.outcome.value,
            "statement": str(self.statement) if self.statement else None,
            "generation": self.generation,
            "sent": {
                "blobs": self.blobs,
                "bytes": self.sent,
                "manifests": self.manifests,
                "tags": self.tags,
            },
            "damaged": [finding.to_document() for finding in self.damaged],
            "healed": [finding.to_document() for finding in self.healed],
            "extras": list(self.extras),
            "removed": list(self.removed),
            "failures": [failure.to_document() for failure in self.failures],
            "elapsedSeconds": round(self.elapsed_s, 3),
        }
