"""A fleet as a model: `python -m bench.fleet` says what a release costs a hub and its lines.

The decisions are the product's own (`mirror.watch.fleet.decided`); the clock is virtual, and a line
is shared evenly by whoever uses it. Looks take no time.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from mirror.errors import UnreachableError
from mirror.oci import Digest
from mirror.watch.fleet import Fleet, MemberState, Rollout, Rollouts, decided
from mirror.watch.settings import Window

OLD, NEWS = Digest.of(b"what all have"), Digest.of(b"what is new")
_HELD, _BEHIND, _NOTHING = MemberState(NEWS, 2), MemberState(OLD, 1), MemberState()
_AWAY = MemberState(error=UnreachableError("no answer", where="the model"))
GBIT = 1e9 / 8
"""Bytes a second of 1 Gbit/s."""


LOOK_REQUESTS = 1
"""Requests of a look at the hub where nothing changed."""


@dataclass
class Edge:
    """A cluster that follows the hub, and what became of it; times in seconds."""

    name: str
    plan: Rollouts
    upstream: str | None
    states: Digest = OLD
    rollout: Rollout | None = None
    next_look_s: float = 0.0
    away: tuple[float, float] = (0.0, 0.0)
    """From when until when it does not answer."""
    lost: tuple[float, float] = (0.0, 0.0)
    """From when until when its registry states nothing, as if content of it had gone."""
    closes_s: float = float("inf")
    """When its window ends."""
    source: str | None = None
    """Whom it copies from now."""
    left: float = 0.0
    begun_s: float | None = None
    done_s: float | None = None


@dataclass
class Model:
    """A hub with something new of `size` bytes, and its edges.

    `hub_line`, `edge_line` are bytes a second. `on_begin` hears when an edge begins to copy.
    """

    fleet: Fleet
    edges: dict[str, Edge]
    size: float
    hub_line: float
    edge_line: float
    interval_s: float = 600.0
    tick_s: float = 60.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    on_begin: Callable[[Edge, float], None] = lambda _edge, _now: None
    hub_away: tuple[float, float] = (0.0, 0.0)
    now_s: float = 0.0
    looks: int = 0
    """All looks that found the hub there; `requests` is what it was asked by them."""
    requests: int = 0
    sent: dict[str, float] = field(default_factory=dict)
    """Source → bytes."""

    def run(self, most_s: float) -> None:
        """Let time pass until all have it, or for so long."""
        for edge in self.edges.values():
            edge.next_look_s = self.chance.uniform(0, self.interval_s)
        while self.now_s < most_s and not all(map(self.is_complete, self.edges.values())):
            for edge in self.edges.values():
                if edge.next_look_s <= self.now_s and not self._within(edge.away):
                    self._look(edge)
                    delay_s = self.interval_s * self.chance.uniform(0.5, 1.5)
                    edge.next_look_s = self.now_s + delay_s
            self._copy()
            self.now_s += self.tick_s

    def is_complete(self, edge: Edge) -> bool:
        """Whether an edge states and holds what is new."""
        return edge.states == NEWS and not self._within(edge.lost)

    def time_of_day(self) -> datetime:
        """When it is in the model; it begins at noon, UTC."""
        return datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def _within(self, span: tuple[float, float]) -> bool:
        return span[0] <= self.now_s < span[1]

    def _seen(self, name: str) -> MemberState:
        edge = self.edges[name]
        if self._within(edge.away):
            return _AWAY
        if self._within(edge.lost):
            return _NOTHING
        return _HELD if edge.states == NEWS else _BEHIND

    def _look(self, edge: Edge) -> None:
        if self._within(self.hub_away):
            return
        self.looks += 1
        self.requests += LOOK_REQUESTS
        if edge.states == NEWS or edge.source is not None:
            return
        if edge.rollout is None:
            self.requests += 1  # which generation it is
            edge.rollout = Rollout(NEWS, 2)
        seen: dict[str, MemberState] = {}
        for ring in self.fleet.before(edge.plan.ring):
            seen |= {name: self._seen(name) for name in self.fleet.members_of(ring.name)}

        def upstream() -> str | None:
            name = edge.upstream
            return name if name and self._seen(name) is _HELD else None

        edge.rollout, waiting, source, closes_s = decided(
            edge.plan,
            edge.rollout,
            seen,
            upstream if edge.upstream else None,
            self.now_s,
            self.time_of_day(),
        )
        if waiting:
            return
        edge.closes_s = self.now_s + (float("inf") if closes_s is None else closes_s)
        edge.source = source or "hub"
        edge.left = edge.left or self.size
        if edge.begun_s is None:
            edge.begun_s = self.now_s
            self.on_begin(edge, self.now_s)

    def _copy(self) -> None:
        """One tick of all copies; who loses its source asks again at its next look."""
        users: dict[str, list[Edge]] = {}
        for edge in self.edges.values():
            if edge.source is not None:
                users.setdefault(edge.source, []).append(edge)
        for source, some in users.items():
            gone = self._within(self.hub_away if source == "hub" else self.edges[source].away)
            line = self.hub_line if source == "hub" else self.edge_line
            for edge in some:
                if gone or self._within(edge.away) or edge.closes_s <= self.now_s:
                    edge.source = None
                    continue
                moved = min(edge.left, self.tick_s * min(self.edge_line, line / len(some)))
                self.sent[source] = self.sent.get(source, 0.0) + moved
                edge.left -= moved
                if edge.left <= 0:
                    edge.states, edge.source, edge.done_s = NEWS, None, self.now_s + self.tick_s


def tiers(count: int, heads: int, *, canaries: int = 2, after: str | float = 0.0) -> Fleet:
    """A fleet of `count` edges: canaries, then the heads of tiers, then the rest behind these."""

    def ring(number: int) -> str:
        return "canary" if number < canaries else "heads" if number < canaries + heads else "rest"

    names = [
        name for name in ("canary", "heads", "rest") if name in {ring(n) for n in range(count)}
    ]
    return Fleet.model_validate(
        {
            "hub": {"address": "hub.example.com/dkp"},
            "rings": [
                {"name": name, "after": 0.0 if name == "canary" else after} for name in names
            ],
            "members": {
                f"e{number}": {"address": f"e{number}.example.com/dkp", "ring": ring(number)}
                for number in range(count)
            },
        }
    )


def model(
    fleet: Fleet,
    *,
    size: float,
    hub_line: float,
    edge_line: float,
    upstream_wait_s: float = 7 * 86400.0,
    window: Window | None = None,
    **more: Any,
) -> Model:
    """All edges of `fleet`; those behind heads take turns at them as their upstreams."""
    heads = [name for name, one in fleet.members.items() if one.ring == "heads"]
    edges = {
        name: Edge(
            name,
            Rollouts(fleet, one.ring, window, upstream_wait_s),
            heads[number % len(heads)] if heads and one.ring == "rest" else None,
        )
        for number, (name, one) in enumerate(fleet.members.items())
    }
    return Model(fleet, edges, size, hub_line, edge_line, **more)


# -- the arithmetic of docs/scale.md ---------------------------------------------------------------

REQUESTS_PER_IMAGE, REQUESTS_PER_CARRY = 2, 8
"""What the source of a sync is asked for an image with a tag and one blob of its own, and besides.

Each further blob is one more.
"""
DOCUMENT_BYTES_PER_IMAGE = 633
"""Bytes of the statement for an image of one layer with one tag."""


@dataclass(frozen=True)
class Case:
    """A fleet that gets something: bytes, images, clusters, heads of tiers; lines in Gbit/s."""

    title: str
    size: float
    images: int
    clusters: int
    heads: int
    hub_gbit: float
    edge_gbit: float


CASES = tuple(
    Case(title, size, images, clusters, heads, hub_gbit, edge_gbit)
    for title, size, images in (("all, 10 TB", 1e13, 10**6), ("a release, 30 GB", 3e10, 3000))
    for clusters, heads in ((1, 0), (500, 0), (500, 20))
    for hub_gbit, edge_gbit in ((1.0, 1.0), (1.0, 0.1))
)
_HEAD = (
    "| What | clusters | heads | Gbit/s (hub, edges) | requests to the hub | bytes from the hub "
    "| hours |\n| --- | --- | --- | --- | --- | --- | --- |"
)


def row(case: Case) -> str:
    """A case as a row of the table in docs/scale.md."""
    canaries = min(2, case.clusters)
    copies = case.heads + canaries if case.heads else case.clusters
    rough_s = case.size / GBIT * (copies / case.hub_gbit + 1 / case.edge_gbit)
    found = model(
        tiers(case.clusters, case.heads, canaries=canaries if case.heads else case.clusters),
        size=case.size,
        hub_line=case.hub_gbit * GBIT,
        edge_line=case.edge_gbit * GBIT,
        upstream_wait_s=1e9,
        interval_s=max(300.0, rough_s / 200),
        tick_s=max(30.0, rough_s / 1000),
    )
    found.run(1e12)
    copies = round(found.sent["hub"] / case.size)
    requests = copies * (REQUESTS_PER_CARRY + REQUESTS_PER_IMAGE * case.images)
    document = DOCUMENT_BYTES_PER_IMAGE * case.images
    return (
        f"| {case.title} | {case.clusters} | {case.heads} | {case.hub_gbit:g}, {case.edge_gbit:g} "
        f"| {requests:,} | {copies * (case.size + document) / 1e12:,.2f} TB "
        f"| {found.now_s / 3600:,.1f} |"
    )


@click.command()
def main() -> None:
    """Print what a first filling and a release cost a hub, with and without tiers."""
    click.echo(_HEAD)
    for case in CASES:
        click.echo(row(case))


if __name__ == "__main__":
    main()
