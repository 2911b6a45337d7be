"""The daemon: a thread per replica looks, waits and looks again, until somebody stops it.

Each replica has its own schedule and back-off, so one that hangs or fails delays no other. What the
daemon knows about its replicas and what it has measured is here, too.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mirror.errors import MirrorError
from mirror.run import Run
from mirror.watch.cycle import CycleResult
from mirror.watch.settings import CheckLevel, Schedule

_log = logging.getLogger(__name__)

Cycle = Callable[[str, CheckLevel, Run], CycleResult]
"""(replica, level, run) → what the cycle found and did."""

_GATHER_S = 0.5
"""A push reports each of its tags; all reports within this time are one reason to look."""

_CALM_S = 5.0
"""The same after a cycle that failed."""


class Daemon:
    """Runs `cycle` for every follower until `stop`; `wake` makes all of them look at once.

    Whatever `cycle` raises ends that one cycle. It is logged and shown, and the next cycle follows
    after a back-off: a peer's odd answer, or a bug of ours, must not end replication.
    """

    def __init__(
        self,
        followers: Iterable[str],
        cycle: Cycle,
        *,
        schedule: Schedule,
        this: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.followers = tuple(followers)
        self.state = State(self.followers, this)
        self.metrics = Metrics(self.followers)
        self._cycle, self._schedule = cycle, schedule
        self._clock, self._chance = clock, chance
        self._run = Run()
        self._woken = {name: threading.Event() for name in self.followers}
        self._threads = [
            threading.Thread(target=self._follow, args=(name,), name=f"watch-{name}")
            for name in self.followers
        ]

    def start(self) -> None:
        """Begin; the first look at each replica starts at once."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look now, whatever the schedule says: something was pushed."""
        for event in self._woken.values():
            event.set()

    def stop(self) -> None:
        """End. Whatever a cycle waits for ends at once; on return no thread of ours is running."""
        self._run.cancellation.cancel()
        self.wake()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def alive(self) -> bool:
        """Whether a thread looks after every replica."""
        return all(thread.is_alive() for thread in self._threads)

    def _follow(self, replica: str) -> None:
        failures = 0
        complete: bool | None = None
        audited: float | None = None
        read: float | None = None
        woken = self._woken[replica]
        while not self._run.stopped:
            # Cleared before the look: a push during it gets a look of its own.
            woken.clear()
            started = self._clock()
            level = self._schedule.level(started, audited, read)
            result = self._look(replica, level)
            if self._run.stopped:
                break
            result = replace(result, duration_s=self._clock() - started)
            self.state.note(replica, result)
            self.metrics.record(replica, result, now_s=time.time())
            for error in result.errors:
                _log.warning("%s: %s", replica, error)
            # Only this replica's own failures slow its cycles down; a peer's are just reported.
            if result.complete:
                failures = 0
                audited = started if level is CheckLevel.AUDIT else audited
                read = started if level is CheckLevel.DEEP else read
            else:
                failures += 1
            # A line every ten seconds that says nothing new would bury the one that does.
            news = result.complete != complete or result.sent or level is not CheckLevel.STATEMENT
            complete = result.complete
            _log.log(
                logging.INFO if news else logging.DEBUG,
                "%s: %s after %s, %d bytes sent",
                replica,
                "complete" if result.complete else "not complete",
                level,
                result.sent,
            )
            if woken.wait(self._schedule.delay(failures, self._chance())):
                # Half a sync pushes too, and is reported: failures must not feed themselves.
                self._run.cancellation.wait(_CALM_S if failures else _GATHER_S)

    def _look(self, replica: str, level: CheckLevel) -> CycleResult:
        """One cycle, and what became of it."""
        try:
            return self._cycle(replica, level, Run.of(self._run))
        except MirrorError as err:
            return CycleResult(level, complete=False, errors=(str(err),))
        except Exception as err:  # noqa: BLE001 - a bug must not end the replication of all
            _log.exception("%s: the cycle ended with a bug in mirror", replica)
            bug = f"{type(err).__name__}: {err}"
            problem = f"a bug in mirror ended this cycle ({bug}); the log has the traceback"
            return CycleResult(level, complete=False, errors=(problem,), bug=bug)


class State:
    """The last cycle of each replica. Thread-safe."""

    def __init__(self, followers: Iterable[str], this: str | None) -> None:
        self._lock = threading.Lock()
        self._results: dict[str, CycleResult | None] = dict.fromkeys(followers)
        self._asked = (this,) if this in self._results else tuple(self._results)

    def note(self, replica: str, result: CycleResult) -> None:
        """`result` is what is known about `replica` from now on."""
        with self._lock:
            self._results[replica] = result

    def ready(self) -> bool:
        """Whether the replica beside the daemon holds everything; without one, all replicas.

        False before the first cycle.
        """
        with self._lock:
            results = [self._results[name] for name in self._asked]
        return all(result is not None and result.complete for result in results)

    def bugs(self) -> dict[str, str]:
        """Replica → the bug in mirror that ended its last cycle, for those where one did."""
        with self._lock:
            return {name: one.bug for name, one in self._results.items() if one and one.bug}

    def to_document(self) -> dict[str, Any]:
        """As JSON values: what `/readyz` shows."""
        with self._lock:
            results = dict(self._results)
        return {
            "ready": self.ready(),
            "replicas": {name: one.to_document() if one else None for name, one in results.items()},
        }


_CYCLE_BUCKETS_S = (0.05, 0.25, 1, 5, 30, 120, 600, 3600)
_GAUGES = {
    "mirror_replica_complete": "1 if the replica holds all that its leader declares.",
    "mirror_replica_declared_digests": "Manifests and blobs that the leader declares.",
    "mirror_replica_verified_digests": "Of those, the ones that the replica is known to hold.",
    "mirror_replica_generation": "Generation that it states to hold.",
    "mirror_replica_lag_generations": "Generations that it is behind its leader.",
    "mirror_replica_last_success_timestamp_seconds": "When it was last found complete.",
}
_COUNTERS = {
    "mirror_sync_cycles_total": "Cycles that were finished.",
    "mirror_sync_bytes_total": "Bytes of blobs sent to the replica.",
    "mirror_sync_errors_total": "Items and cycles that failed.",
    "mirror_sync_bugs_total": "Cycles that a bug in mirror ended.",
}


class Metrics:
    """What one daemon measures, in a Prometheus registry of its own. Thread-safe."""

    def __init__(self, followers: tuple[str, ...]) -> None:
        self._registry = one = CollectorRegistry()
        self._gauges = {
            name: Gauge(name, text, ["replica"], registry=one) for name, text in _GAUGES.items()
        }
        self._counters = {
            name: Counter(name, text, ["replica"], registry=one) for name, text in _COUNTERS.items()
        }
        self._duration = Histogram(
            "mirror_sync_cycle_seconds",
            "How long cycles took.",
            ["replica", "depth"],
            registry=one,
            buckets=_CYCLE_BUCKETS_S,
        )
        # From the first second on: nobody can set an alarm on what the page does not show.
        for replica in followers:
            self._gauges["mirror_replica_complete"].labels(replica)
            for counter in self._counters.values():
                counter.labels(replica)

    def record(self, replica: str, result: CycleResult, *, now_s: float) -> None:
        """Count one finished cycle; `now_s` is seconds since 1970."""
        amounts = (1, result.sent, len(result.errors), 1 if result.bug else 0)
        for counter, amount in zip(self._counters.values(), amounts, strict=True):
            counter.labels(replica).inc(amount)
        self._duration.labels(replica, result.level).observe(result.duration_s)
        values = (
            result.complete,
            result.declared,
            None if result.declared is None else result.verified or 0,
            result.generation,
            result.lag,
            now_s if result.complete else None,
        )
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            if value is not None:
                gauge.labels(replica).set(value)

    def page(self) -> bytes:
        """All of it, in the text format of Prometheus 0.0.4."""
        return generate_latest(self._registry)
