"""What others see of replication: what a daemon shows to Prometheus, and how a fleet stands.

Names of metrics follow the conventions of Prometheus (promtool checks them).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

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
from pydantic import BaseModel, Field

from mirror.documents import document
from mirror.errors import (
    CancelledError,
    DeadlineError,
    MirrorError,
    NotFoundError,
    StatementError,
)
from mirror.events import Event, Retrying
from mirror.layout import tool_name
from mirror.oci import Digest
from mirror.registry import RegistryClient
from mirror.registry.hosts import PORTS
from mirror.registry.options import BRIEF
from mirror.registry.transport import Transport, Wire
from mirror.run import Run, gather
from mirror.sync import Inventory
from mirror.sync.plan import missing_content
from mirror.sync.publication_state import read_statement
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree
from mirror.watch.cycle import CycleResult
from mirror.watch.fleet import AT_ONCE, PATIENCE_S, Fleet, Member, Rollout, read_members

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


# -- a fleet: who holds which generation, how far behind it is, how fast it catches up -------------


_DIFFER, _UNREACHABLE = 3, 5
_DECADES_S = 1e9
_MOST_RATE = 1e15
_MOST_PAGE = 256 << 10
_MOST_ERRORS, _MOST_SAID = 5, 300
"""Errors that a daemon tells which are passed on, and characters of each."""
_PARSING = threading.Lock()
"""Held while a page is parsed: it may be all that one page of this size can be in memory."""
_FLEET_GAUGES = (  # name, attribute of a `MemberStatus`, help
    ("up", "answers", "1 if its registry answers."),
    ("complete", "complete", "1 if it holds what the hub states."),
    ("generation", "generation", "Generation that it states."),
    ("lag_generations", "lag", "Generations that it is behind the hub."),
    ("lag_bytes", "behind", "Bytes of blobs that the hub states and it does not."),
    ("bytes_per_second", "rate", "Rate of the look that its daemon makes or made last."),
)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """How one member stands.

    `lag` is in generations, `behind` in bytes of blobs, `rate` in bytes a second of the look that
    its daemon makes or made last; None where that is unknown. `error` is why its registry does not
    answer; `waiting` and `errors` are what its daemon says.
    """

    name: str
    ring: str
    complete: bool = False
    generation: int | None = None
    lag: int | None = None
    behind: int | None = None
    rate: float | None = None
    waiting: str = ""
    errors: tuple[str, ...] = ()
    error: MirrorError | None = None

    @property
    def answers(self) -> bool:
        """Whether its registry does."""
        return self.error is None

    @property
    def left_s(self) -> float | None:
        """Seconds until it has caught up, at its rate; None where that is unknown, or decades."""
        left_s = self.behind / self.rate if self.behind and self.rate else _DECADES_S
        return left_s if left_s < _DECADES_S else None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """What the hub states, and how each member stands, by rings."""

    hub: str
    statement: Digest
    generation: int | None
    members: tuple[MemberStatus, ...]

    @property
    def complete(self) -> int:
        """How many members hold what the hub states."""
        return sum(one.complete for one in self.members)

    @property
    def exit_code(self) -> int:
        """0 if all are complete, 3 if one that answers is not, else 5."""
        late = [one for one in self.members if not one.complete]
        if not late:
            return 0
        return _UNREACHABLE if all(one.error for one in late) else _DIFFER

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        fields = ("member=name", "ring", "complete", "generation", "lagGenerations=lag")
        more = ("lagBytes=behind", "bytesPerSecond=rate", "secondsLeft=left_s", "waiting", "errors")
        return {
            "ok": self.exit_code == 0,
            **document(self, "hub", "statement", "generation"),
            "members": [document(one, *fields, *more, "error") for one in self.members],
        }

    def metrics(self) -> bytes:
        """In the text format of Prometheus 0.0.4."""
        registry = CollectorRegistry()
        hub = Gauge(
            "mirror_fleet_hub_generation", "Generation that the hub states.", registry=registry
        )
        hub.set(self.generation or 0)
        for name, attribute, text in _FLEET_GAUGES:
            gauge = Gauge(f"mirror_fleet_{name}", text, ["member", "ring"], registry=registry)
            for one in self.members:
                if (value := getattr(one, attribute)) is not None:
                    gauge.labels(one.name, one.ring).set(value)
        return generate_latest(registry)


def fleet_status(fleet: Fleet, *, run: Run | None = None) -> FleetStatus:
    """Ask the hub and each member's registry what they state, and daemons with `pages` how it goes.

    Each is asked once; who does not answer within 5 s holds nobody up. The statement that somebody
    late has is read from the hub, once for all who have it.

    Raises:
        MirrorError: the hub does not answer, or states nothing (NotFoundError).
    """
    run = Run.of(run)
    with ExitStack() as opened:
        hub = opened.enter_context(fleet.opened()).within(run)
        trees = {name: opened.enter_context(fleet.opened(name)) for name in fleet.members}
        (stated,) = read_members({"hub": hub}, run).values()
        if stated.error is not None:
            raise stated.error
        if stated.digest is None:
            raise NotFoundError(f"the hub {hub.name} states nothing; push to it with mirror")
        seen = read_members(trees, _naming(trees, run))
        paged = [name for name, one in fleet.members.items() if one.pages]
        told = gather(
            paged,
            lambda name: _daemon_report(fleet.members[name], seen[name].error, run),
            run=run.with_jobs(AT_ONCE),
        )
        pages = dict(zip(paged, told, strict=True))
        rollout, sizes = Rollout(stated.digest, stated.generation), _Sizes(hub, stated.digest)
        members = []
        for ring in fleet.rings:
            for name in fleet.members_of(ring.name):
                one, complete = seen[name], rollout.is_held_by(seen[name])
                said = pages.get(name, _DaemonReport())
                standing = MemberStatus(
                    name, ring.name, complete, one.generation, error=one.error, **said._asdict()
                )
                if one.error is None:
                    lag = (stated.generation or 0) - (one.generation or 0)
                    behind = 0 if standing.complete else sizes.behind(one.digest)
                    standing = replace(standing, lag=max(0, lag), behind=behind)
                members.append(standing)
        return FleetStatus(hub.name, stated.digest, stated.generation, tuple(members))


class _Sizes:
    """How many bytes of blobs a statement lacks of the hub's."""

    def __init__(self, hub: RegistryTree, digest: Digest) -> None:
        self._hub, self._digest = hub, digest
        self._known: dict[Digest | None, int | None] = {}

    @cached_property
    def _wanted(self) -> Inventory:
        return self._stated(self._digest) or Inventory()

    def behind(self, digest: Digest | None) -> int | None:
        """None where the hub has no such statement any more."""
        if digest not in self._known:
            wanted, held = self._wanted, None if digest else Inventory()
            with suppress(StatementError):  # a member may name anything that the hub has
                held = self._stated(digest) if digest else held
            missing = None if held is None else missing_content(wanted, held).blob_sizes()
            self._known[digest] = None if missing is None else sum(missing.values())
        return self._known[digest]

    def _stated(self, digest: Digest) -> Inventory | None:
        published = read_statement(self._hub, digest)
        return published.statement.inventory if published else None


class _DaemonReport(NamedTuple):
    """What a daemon says, as `MemberStatus` has it."""

    rate: float | None = None
    waiting: str = ""
    errors: tuple[str, ...] = ()


class _ReplicaPage(BaseModel):
    waiting: str = ""
    errors: tuple[str, ...] = ()


class _Progress(BaseModel):
    """Bytes that arrived, and the seconds that they took."""

    bytes: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Page(BaseModel):
    """What `/readyz` of a daemon says, as far as it concerns us."""

    replicas: Mapping[str, _ReplicaPage | None] = {}
    progress: Mapping[str, _Progress] = {}


def parse_page(body: bytes) -> _DaemonReport:
    """What a daemon's `/readyz` says of its replicas; of long texts the beginning.

    Raises:
        ValueError: it is another program's page.
    """
    with _PARSING:
        page = _Page.model_validate_json(body)
        looks = [look for look in page.replicas.values() if look]
        rate = sum(part.bytes / part.seconds for part in page.progress.values() if part.seconds)
        waiting = "; ".join(filter(None, (look.waiting for look in looks)))
        errors = [text for look in looks for text in look.errors]
    told = [text[:_MOST_SAID] for text in errors[:_MOST_ERRORS]]
    if len(errors) > _MOST_ERRORS:
        told.append(f"and {len(errors) - _MOST_ERRORS} more")
    return _DaemonReport(rate if 0 < rate < _MOST_RATE else None, waiting[:_MOST_SAID], tuple(told))


def _naming(trees: Mapping[str, RegistryTree], run: Run) -> Run:
    """The same run, in which requests that are sent again name the member."""
    asked = {f" {t.root.host}/v2/{t.locate(REPOSITORY)}/": name for name, t in trees.items()}

    def hear(event: Event) -> None:
        if isinstance(event, Retrying):
            names = [name for place, name in asked.items() if place in event.where]
            event = replace(event, reason=": ".join((*names, event.reason)))
        run.on_event(event)

    return run.heard_by(hear)


def _daemon_report(member: Member, known: MirrorError | None, run: Run) -> _DaemonReport:
    """What the daemon of `member` says; a page that cannot be had says why among its errors, unless
    that is `known` of its registry."""
    address = (member.pages or "").rstrip("/")
    parts = urlsplit(address)
    options = replace(member.connection(), plain_http=parts.scheme == "http", retries=BRIEF)
    host = parts.netloc.lower()
    if parts.port is None:  # else a short name would not look like a host
        host += f":{PORTS[parts.scheme]}"
    wire = Wire(host, options=options, credentials=None)
    try:
        transport = Transport(wire, run.with_deadline(PATIENCE_S))
        url = f"{address}/readyz"
        return parse_page(transport.call("GET", url, accept=(200, 503), limit=_MOST_PAGE).body)
    except DeadlineError:
        run.check()
        problem = f"{address} did not answer within {PATIENCE_S:g} s"
    except CancelledError:
        raise
    except ValueError:
        problem = f"{address}/readyz is not a page of mirror's"
    except MirrorError as err:
        either = known is not None and known.explanation == err.explanation
        problem = f"{address} does not answer either" if either else str(err)
    finally:
        wire.close()
    return _DaemonReport(errors=(problem,))
