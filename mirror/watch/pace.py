"""When the next look is due, and how deep it goes: pure decisions about time, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_FIRST_BACKOFF_S = 1.0


class Depth(StrEnum):
    """How much of a replica a cycle looks at."""

    STATEMENT = "statement"
    """Its published inventory; what that names is asked for only where it changed."""
    AUDIT = "audit"
    """Every tag and manifest, by HEAD."""
    DEEP = "deep"
    """Every byte, read back and hashed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look. `jitter` is the share of a delay by which it varies either way.

    `audit_every_s` and `deep_every_s` are None where that is never due by itself.
    """

    interval_s: float = 10.0
    jitter: float = 0.1
    backoff_limit_s: float = 300.0
    audit_every_s: float | None = 3600.0
    deep_every_s: float | None = None

    def delay(self, failures: int, chance: float) -> float:
        """How long to wait after `failures` cycles in a row that failed; 0 after a good one.

        `chance` is a random number in [0, 1): replicas that were stopped together by a power cut
        do not come back in step. The interval is the least that a failure waits for, so that
        trouble never makes the daemon more eager.
        """
        base = self.interval_s
        if failures:
            doubled = max(base, _FIRST_BACKOFF_S) * 2.0 ** min(failures - 1, 32)
            base = max(base, min(doubled, self.backoff_limit_s))
        return base * (1 + self.jitter * (2 * chance - 1))

    def depth(self, now_s: float, audited_s: float | None, read_s: float | None) -> Depth:
        """What is due at `now_s`, after a last audit and a last deep reading at those times.

        None means that there was none since the start: then it is due, as nothing is known of
        what happened before. A deep reading is an audit, too.
        """
        if _due(self.deep_every_s, now_s, read_s):
            return Depth.DEEP
        latest = max((t for t in (audited_s, read_s) if t is not None), default=None)
        return Depth.AUDIT if _due(self.audit_every_s, now_s, latest) else Depth.STATEMENT


def _due(every_s: float | None, now_s: float, last_s: float | None) -> bool:
    return every_s is not None and (last_s is None or now_s - last_s >= every_s)
