"""What the daemon measures, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mirror.watch.state import Look

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_CYCLE_BUCKETS_S = (0.05, 0.25, 1, 5, 30, 120, 600, 3600)


class Metrics:
    """The numbers of one daemon, in a registry of their own. Thread-safe."""

    def __init__(self, followers: tuple[str, ...]) -> None:
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["replica"], registry=self._registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["replica"], registry=self._registry)

        self._complete = gauge(
            "mirror_replica_complete", "1 if the replica holds all that its leader declares."
        )
        self._declared = gauge(
            "mirror_replica_declared_digests", "Manifests and blobs that the leader declares."
        )
        self._verified = gauge(
            "mirror_replica_verified_digests",
            "Of those, the ones that the replica is known to hold.",
        )
        self._generation = gauge("mirror_replica_generation", "Generation that it states to hold.")
        self._lag = gauge(
            "mirror_replica_lag_generations", "Generations that it is behind its leader."
        )
        self._success = gauge(
            "mirror_replica_last_success_timestamp_seconds", "When it was last found complete."
        )
        self._cycles = counter("mirror_sync_cycles_total", "Cycles that were finished.")
        self._sent = counter("mirror_sync_bytes_total", "Bytes of blobs sent to the replica.")
        self._errors = counter("mirror_sync_errors_total", "Items and cycles that failed.")
        self._duration = Histogram(
            "mirror_sync_cycle_seconds",
            "How long cycles took.",
            ["replica", "depth"],
            registry=self._registry,
            buckets=_CYCLE_BUCKETS_S,
        )
        # From the first second: what is missing from a page cannot be alarmed on.
        for replica in followers:
            for one in (self._complete, self._cycles, self._sent, self._errors):
                one.labels(replica)

    def record(self, replica: str, look: Look, *, now_s: float) -> None:
        """Take in one finished cycle; `now_s` is seconds since 1970."""
        self._cycles.labels(replica).inc()
        self._sent.labels(replica).inc(look.sent)
        self._errors.labels(replica).inc(len(look.errors))
        self._duration.labels(replica, look.depth).observe(look.duration_s)
        self._complete.labels(replica).set(look.complete)
        if look.declared is not None:
            self._declared.labels(replica).set(look.declared)
            self._verified.labels(replica).set(look.verified or 0)
        if look.generation is not None:
            self._generation.labels(replica).set(look.generation)
        if look.lag is not None:
            self._lag.labels(replica).set(look.lag)
        if look.complete:
            self._success.labels(replica).set(now_s)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
