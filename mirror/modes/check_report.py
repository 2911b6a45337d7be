"""What a check of the required images has found, as values and in the cluster's own words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mirror.errors import IncompleteError, MirrorError
from mirror.modes.addressing import Route
from mirror.modes.conditions import Outcome
from mirror.modes.required import RequiredImage
from mirror.modes.settings import CheckMode
from mirror.oci import Digest

MOST_ERRORS = 5
"""As many errors of a registry a message has."""

INITIALIZING = Outcome(False, "Initializing")
"""Before the first call."""


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """A registry to be asked: how messages call it, and the way to its base repository."""

    name: str
    route: Route

    def repository(self, image: RequiredImage) -> str:
        """The repository in which an image must lie."""
        return "/".join(part for part in (self.route.repository, image.below) if part)

    def address(self, image: RequiredImage) -> str:
        """The image as a reference."""
        mark = "@" if isinstance(image.reference, Digest) else ":"
        return f"{self.route.host}/{self.repository(image)}{mark}{image.reference}"

    def request(self, image: RequiredImage) -> str:
        """The request by which it is asked for."""
        route = self.route
        path = f"v2/{self.repository(image)}/manifests/{image.reference}"
        return f"HEAD {route.scheme}://{route.host}/{path}"


class ItemState(StrEnum):
    """What is known of one image at one registry."""

    PENDING = "pending"
    FOUND = "found"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One image at one registry. `error` says why it is missing or could not be asked for."""

    image: RequiredImage
    state: ItemState = ItemState.PENDING
    error: MirrorError | None = None


@dataclass(frozen=True, slots=True)
class RegistryResult:
    """All required images at one registry, in order."""

    target: CheckTarget
    items: tuple[ItemResult, ...]

    @property
    def found(self) -> int:
        """How many are there."""
        return sum(item.state is ItemState.FOUND for item in self.items)

    @property
    def errors(self) -> tuple[ItemResult, ...]:
        """Those that are missing or could not be asked for."""
        return tuple(item for item in self.items if item.error is not None)

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return self.found == len(self.items)

    @property
    def message(self) -> str:
        """In the words of the cluster's condition."""
        name, total = self.target.name, len(self.items)
        if self.complete:
            return f"{name}: all {total} items are checked"
        head = f"{name}: {self.found} of {total} items processed"
        if not self.errors:
            return head
        lines = [f"{head}, {len(self.errors)} items with errors:"]
        for item in self.errors[:MOST_ERRORS]:
            lines += (
                f"- source: {item.image.source}",
                f"  image: {self.target.address(item.image)}",
                f"  error: {item.error}",
            )
        if len(self.errors) > MOST_ERRORS:
            lines.append("  ...and more")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What one call has found."""

    mode: CheckMode
    registries: tuple[RegistryResult, ...]

    @property
    def ready(self) -> bool:
        """Whether every registry holds every required image."""
        return bool(self.registries) and all(one.complete for one in self.registries)

    @property
    def message(self) -> str:
        """In the words of the cluster's condition."""
        return "\n".join([f"Mode: {self.mode}", *(one.message for one in self.registries)])

    @property
    def outcome(self) -> Outcome:
        """As the condition RegistryContainsRequiredImages wants it."""
        return Outcome(self.ready, self.message)

    def require(self) -> None:
        """Raise unless everything is there.

        Raises:
            IncompleteError: some images are missing, or could not be asked for.
        """
        if self.ready:
            return
        failures = [
            (one.target.address(item.image), item.error)
            for one in self.registries
            for item in one.errors
            if item.error is not None
        ]
        left = sum(len(one.items) - one.found for one in self.registries)
        raise IncompleteError(f"{left} required images were not found", failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "mode": self.mode.value,
            "ready": self.ready,
            "message": self.message,
            "registries": [
                {
                    "name": one.target.name,
                    "repository": f"{one.target.route.host}/{one.target.route.repository}",
                    "total": len(one.items),
                    "found": one.found,
                    "pending": sum(item.state is ItemState.PENDING for item in one.items),
                    "errors": [
                        {
                            "source": item.image.source,
                            "image": one.target.address(item.image),
                            "state": item.state.value,
                            "error": str(item.error),
                        }
                        for item in one.errors
                    ],
                }
                for one in self.registries
            ],
        }
