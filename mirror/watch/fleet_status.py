"""How a fleet stands: who holds which generation, how far behind it is, how fast it catches up."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from pydantic import BaseModel, Field, ValidationError

from mirror.documents import document
from mirror.errors import CancelledError, DeadlineError, MirrorError, NotFoundError
from mirror.oci import Digest
from mirror.registry.options import BRIEF
from mirror.registry.transport import Transport, Wire
from mirror.run import Run, gather
from mirror.sync import Inventory
from mirror.sync.plan import lacking
from mirror.sync.publication_state import read_statement
from mirror.sync.tree import RegistryTree
from mirror.watch.fleet import AT_ONCE, PATIENCE_S, Fleet, Member, Rollout, look_at

_DIFFER, _UNREACHABLE = 3, 5
_GAUGES = {
    "up": "1 if its registry answers.",
    "complete": "1 if it holds what the hub states.",
    "generation": "Generation that it states.",
    "lag_generations": "Generations that it is behind the hub.",
    "lag_bytes": "Bytes of blobs that the hub states and it does not.",
    "bytes_per_second": "Rate of the look that its daemon makes or made last.",
}


@dataclass(frozen=True, slots=True)
class Standing:
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
    def left_s(self) -> float | None:
        """Seconds until it has caught up, at its rate; None where that is unknown."""
        return self.behind / self.rate if self.behind and self.rate else None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """What the hub states, and how each member stands, by rings."""

    hub: str
    statement: Digest
    generation: int | None
    members: tuple[Standing, ...]

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
        for name, text in _GAUGES.items():
            gauge = Gauge(f"mirror_fleet_{name}", text, ["member", "ring"], registry=registry)
            for one in self.members:
                values = (
                    one.error is None,
                    one.complete,
                    one.generation,
                    one.lag,
                    one.behind,
                    one.rate,
                )
                value = dict(zip(_GAUGES, values, strict=True))[name]
                if value is not None:
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
        (stated,) = look_at({"hub": hub}, run).values()
        if stated.error is not None:
            raise stated.error
        if stated.digest is None:
            raise NotFoundError(f"the hub {hub.name} states nothing; push to it with mirror")
        seen = look_at(trees, run)
        paged = [name for name, one in fleet.members.items() if one.pages]
        told = gather(
            paged, lambda name: _told(fleet.members[name], run), run=run.with_jobs(AT_ONCE)
        )
        pages = dict(zip(paged, told, strict=True))
        rollout, sizes = Rollout(stated.digest, stated.generation), _Sizes(hub, stated.digest)
        members = []
        for ring in fleet.rings:
            for name in fleet.members_of(ring.name):
                one, complete = seen[name], rollout.is_held_by(seen[name])
                standing = pages.get(name, _Page()).told_of(
                    Standing(name, ring.name, complete, one.generation, error=one.error)
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
        self._wanted: Inventory | None = None
        self._known: dict[Digest | None, int | None] = {}

    def behind(self, digest: Digest | None) -> int | None:
        """None where the hub has no such statement any more."""
        if digest not in self._known:
            if self._wanted is None:
                self._wanted = self._stated(self._digest) or Inventory()
            held = Inventory() if digest is None else self._stated(digest)
            missing = None if held is None else lacking(self._wanted, held).blob_sizes()
            self._known[digest] = None if missing is None else sum(missing.values())
        return self._known[digest]

    def _stated(self, digest: Digest) -> Inventory | None:
        published = read_statement(self._hub, digest)
        return published.statement.inventory if published else None


class _Look(BaseModel):
    waiting: str = ""
    errors: tuple[str, ...] = ()


class _Progress(BaseModel):
    """Bytes that arrived, and the seconds that they took."""

    bytes: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Page(BaseModel):
    """What `/readyz` of a daemon says, as far as it concerns us."""

    replicas: Mapping[str, _Look | None] = {}
    progress: Mapping[str, _Progress] = {}

    def told_of(self, one: Standing) -> Standing:
        """`one` with what the page says of its replicas."""
        looks = [look for look in self.replicas.values() if look]
        moved = (part for part in self.progress.values() if part.seconds)
        return replace(
            one,
            rate=sum(part.bytes / part.seconds for part in moved) or None,
            waiting="; ".join(filter(None, (look.waiting for look in looks))),
            errors=tuple(text for look in looks for text in look.errors),
        )


def _told(member: Member, run: Run) -> _Page:
    """What the daemon of `member` says; a page that cannot be had says why among its errors."""
    address = (member.pages or "").rstrip("/")
    parts = urlsplit(address)
    plain = parts.scheme == "http"
    options = replace(member.connection(), plain_http=plain, retries=BRIEF)
    wire = Wire(parts.netloc, options=options, credentials=None)
    try:
        transport = Transport(wire, run.with_deadline(PATIENCE_S))
        answer = transport.call("GET", f"{address}/readyz", accept=(200, 503), limit=1 << 20)
        return _Page.model_validate_json(answer.body)
    except DeadlineError:
        run.check()
        problem = f"{address} did not answer within {PATIENCE_S:g} s"
    except CancelledError:
        raise
    except ValidationError:
        problem = f"{address}/readyz is no page of mirror's"
    except MirrorError as err:
        problem = str(err)
    finally:
        wire.close()
    return _Page(replicas={"": _Look(errors=(problem,))})
