"""What the daemon knows of its replicas: the last look at each."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mirror.watch.pace import Depth


@dataclass(frozen=True, slots=True)
class Look:
    """What one cycle found and did about one replica.

    `declared` is how many manifests and blobs the leader declares, `verified` how many of them the
    replica is known to hold; both None where the leader could not be asked. `sent` in bytes.
    `leader` names whom it followed; None where there was nobody to follow.
    """

    depth: Depth
    complete: bool
    errors: tuple[str, ...] = ()
    leader: str | None = None
    generation: int | None = None
    leader_generation: int | None = None
    declared: int | None = None
    verified: int | None = None
    sent: int = 0
    duration_s: float = 0.0

    @property
    def lag(self) -> int | None:
        """Generations behind the leader; None where either is unknown."""
        if self.leader_generation is None:
            return None
        return max(0, self.leader_generation - (self.generation or 0))

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "complete": self.complete,
            "depth": str(self.depth),
            "leader": self.leader,
            "generation": self.generation,
            "leaderGeneration": self.leader_generation,
            "declaredDigests": self.declared,
            "verifiedDigests": self.verified,
            "bytes": self.sent,
            "errors": list(self.errors),
        }


class State:
    """The last look at each replica. Thread-safe."""

    def __init__(self, followers: Iterable[str], this: str | None) -> None:
        self._lock = threading.Lock()
        self._looks: dict[str, Look | None] = dict.fromkeys(followers)
        self._asked = (this,) if this in self._looks else tuple(self._looks)

    def note(self, replica: str, look: Look) -> None:
        """`look` is what is known of `replica` now."""
        with self._lock:
            self._looks[replica] = look

    def ready(self) -> bool:
        """Whether the replica beside the daemon (or all, without one) holds everything.

        Before the first look nothing is known, so nothing is promised.
        """
        with self._lock:
            looks = [self._looks[name] for name in self._asked]
        return all(look is not None and look.complete for look in looks)

    def to_document(self) -> dict[str, Any]:
        """As JSON values: what `/readyz` shows."""
        with self._lock:
            looks = dict(self._looks)
        return {
            "ready": self.ready(),
            "replicas": {
                name: look.to_document() if look else None for name, look in looks.items()
            },
        }
