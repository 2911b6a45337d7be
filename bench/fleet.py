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

from mirror.errors import UnreachableError
from mirror.oci import Digest
from mirror.watch.fleet import Fleet, Rollout, Rollouts, Seen, decided
from mirror.watch.settings import Window

OLD, NEWS = Digest.of(b"what all have"), Digest.of(b"what is new")
_AWAY = Seen(error=UnreachableError("no answer", where="the model"))
GBIT = 1e9 / 8
"""Bytes a second of 1 Gbit/s."""


@dataclass
class Edge:
    """A cluster that follows the hub, and what became of it; times in seconds."""

    name: str
    plan: Rollouts
    upstream: str | None
    states: Digest | None = OLD
    rollout: Rollout | None = None
    next_look_s: float = 0.0
    away_until_s: float = 0.0
    source: str | None = None
    """Whom it copies from now."""
    left: float = 0.0
    begun_s: float | None = None
    done_s: float | None = None

    @property
    def seen(self) -> Seen:
        """What others see of it, while it answers."""
        return Seen(self.states, None if self.states is None else 1 + (self.states == NEWS))


@dataclass
class Model:
    """A hub with something new of `size` bytes, and its edges.

    `hub_line`, `edge_line` are bytes a second. `look` hears of each look that begins a copy.
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
    requests: int = 0
    questions: int = 0
    """What the hub and what members were asked by looks."""
    sent: dict[str, float] = field(default_factory=dict)
    """Source → bytes."""

    def run(self, most_s: float) -> None:
        """Let time pass until all have it, or for so long."""
        for edge in self.edges.values():
            edge.next_look_s = self.chance.uniform(0, self.interval_s)
        while self.now_s < most_s and any(one.states != NEWS for one in self.edges.values()):
            for edge in self.edges.values():
                if edge.next_look_s <= self.now_s and self._is_up(edge):
                    self._look(edge)
                    delay_s = self.interval_s * self.chance.uniform(0.5, 1.5)
                    edge.next_look_s = self.now_s + delay_s
            self._copy()
            self.now_s += self.tick_s

    def _is_up(self, edge: Edge) -> bool:
        return edge.away_until_s <= self.now_s

    def _seen(self, name: str) -> Seen:
        self.questions += 1
        return self.edges[name].seen if self._is_up(self.edges[name]) else _AWAY

    def _look(self, edge: Edge) -> None:
        if self.hub_away[0] <= self.now_s < self.hub_away[1]:
            return
        self.requests += 1
        if edge.states == NEWS or edge.source is not None:
            return
        if edge.rollout is None:
            self.requests += 1  # which generation it is
            edge.rollout = Rollout(NEWS, 2)
        seen: dict[str, Seen] = {}
        for ring in self.fleet.before(edge.plan.ring):
            seen |= {name: self._seen(name) for name in self.fleet.members_of(ring.name)}

        def upstream() -> str | None:
            return (
                edge.upstream
                if edge.upstream and self._seen(edge.upstream).digest == NEWS
                else None
            )

        now = datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(seconds=self.now_s)
        edge.rollout, waiting, source, _ = decided(
            edge.plan, edge.rollout, seen, upstream if edge.upstream else None, self.now_s, now
        )
        if waiting:
            return
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
            gone = (
                self.hub_away[0] <= self.now_s < self.hub_away[1]
                if source == "hub"
                else not self._is_up(self.edges[source])
            )
            line = self.hub_line if source == "hub" else self.edge_line
            for edge in some:
                if gone or not self._is_up(edge):
                    edge.source = None
                    continue
                moved = min(edge.left, self.tick_s * min(self.edge_line, line / len(some)))
                self.sent[source] = self.sent.get(source, 0.0) + moved
                edge.left -= moved
                if edge.left <= 0:
                    edge.states, edge.source, edge.done_s = NEWS, None, self.now_s + self.tick_s


def tiers(count: int, heads: int, *, canaries: int = 2, after: str = "0") -> Fleet:
    """A fleet of `count` edges: canaries, then the heads of tiers, then the rest behind these."""

    def ring(number: int) -> str:
        return "canary" if number < canaries else "heads" if number < canaries + heads else "rest"

    names = [
        name for name in ("canary", "heads", "rest") if name in {ring(n) for n in range(count)}
    ]
    return Fleet.model_validate(
        {
            "hub": {"address": "hub.example.com/dkp"},
            "rings": [{"name": name, "after": after if name != "canary" else 0} for name in names],
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
    heads = fleet.members_of("heads")
    edges = {
        name: Edge(
            name,
            Rollouts(fleet, one.ring, window, upstream_wait_s),
            heads[number % len(heads)] if heads and one.ring == "rest" else None,
        )
        for number, (name, one) in enumerate(fleet.members.items())
    }
    return Model(fleet, edges, size, hub_line, edge_line, **more)
