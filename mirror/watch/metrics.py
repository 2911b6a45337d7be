"""What the daemon shows to Prometheus. Names follow its conventions (promtool checks them)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mirror.layout import tool_name
from mirror.registry import RegistryClient
from mirror.watch.cycle import CycleResult

_CYCLE_BUCKETS_S = (0.05, 0.25, 1, 5, 30, 120, 600, 3600)
_GAUGES = {
    "mirror_replica_complete": "1 if the replica holds all that its leader declares.",
    "mirror_replica_declared_digests": "Manifests and blobs that the leader declares.",
    "mirror_replica_verified_digests": "Of those, the ones that the replica is known to hold.",
    "mirror_replica_generation": "Generation that it states to hold.",
    "mirror_replica_lag_generations": "Generations that it is behind its leader.",
    "mirror_replica_waiting": "1 if it waits for its ring, its window or an upstream.",
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
        Info("mirror_build", "The program that runs.", registry=one).info(
            {"version": tool_name().removeprefix("mirror ")}
        )
        ProcessCollector(registry=one)
        # From the first second on: nobody can set an alarm on what the page does not show.
        for replica in followers:
            self._gauges["mirror_replica_complete"].labels(replica)
            for counter in self._counters.values():
                counter.labels(replica)

    def watch_certificates(
        self, clients: Mapping[str, RegistryClient], own: Mapping[str, Path]
    ) -> None:
        """Show from now on when the certificates of these registries, and our `own`, end."""
        self._registry.register(_Certificates(clients, own))

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
            bool(result.waiting),
            now_s if result.complete else None,
        )
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            if value is not None:
                gauge.labels(replica).set(value)

    def page(self) -> bytes:
        """All of it, in the text format of Prometheus 0.0.4."""
        return generate_latest(self._registry)


class _Certificates(Collector):
    """When certificates end: those that registries show, and those that we show them."""

    def __init__(self, clients: Mapping[str, RegistryClient], own: Mapping[str, Path]) -> None:
        self._clients = clients
        # Read once, as the client goes on with what the file was when it began.
        self._own = {
            name: x509.load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
            for name, path in own.items()
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "mirror_registry_certificate_expiry_timestamp_seconds",
            "When a certificate ends: the registry's, or the one that it asks for.",
            labels=["registry", "side"],
        )
        for name, client in self._clients.items():
            if client.certificate_end is not None:
                family.add_metric([name, "server"], client.certificate_end)
            if name in self._own:
                family.add_metric([name, "client"], self._own[name].timestamp())
        yield family
