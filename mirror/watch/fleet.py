"""When a member of a fleet takes what is new, and from where: its ring, its window, its upstreams.

Every member decides for itself. `advanced` and `reason_to_wait` are pure functions of the fleet's
description, of what its members were seen to state, and of the time; nobody writes anything for the
others to read.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from mirror.documents import Patience, read_mapping
from mirror.errors import (
    CancelledError,
    MirrorError,
    RegistryNotFoundError,
    StatementError,
    counted,
)
from mirror.layout import normalised_suffix
from mirror.oci import Digest, Repository
from mirror.operations.trees import ask_at_once
from mirror.registry import Credentials, RegistryClient, find_credentials
from mirror.registry.hosts import check_address
from mirror.registry.options import BRIEF
from mirror.run import Run
from mirror.sync.publication_state import LATEST
from mirror.sync.statement import REPOSITORY, generation_of
from mirror.sync.tree import RegistryTree
from mirror.watch.settings import Settings, WatchedRegistry, Window, repository_of

PATIENCE_S = 5.0
"""How long a member may take to say what it states."""

_STATEMENT_BYTES = 64 << 10
"""Of its manifest; the largest part of that is a signature."""

AT_ONCE = 64
"""How many members are asked at a time."""

MOST_FAILED = 3
"""Looks at one statement that may fail with an upstream before others give it: who can write there,
or a disk that decays, must not keep an edge from what the hub has."""

Upstream = TypeVar("Upstream")
"""Who gives what is new."""


# -- the description -------------------------------------------------------------------------------


class Ring(Settings):
    """Members that take a new generation at the same stage.

    They take it when the ring before has held it for `after` seconds. The ring counts as complete
    while at most `may_lack` of its members do not hold it.
    """

    name: str
    after: Patience = 0.0
    may_lack: Annotated[int, Field(ge=0)] = 0


def _page_address(text: str) -> str:
    """Check the address of a daemon's pages, which is shown in messages."""
    parts = urlsplit(text)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("write https://host[:port], without a login or a query")
    check_address(text)
    return text


class Member(WatchedRegistry):
    """A registry of the fleet; `pages` is the address of its daemon's pages."""

    ring: str
    pages: Annotated[str, AfterValidator(_page_address)] | None = None


class Fleet(Settings):
    """A hub, the rings in their order, and the registries that follow it.

    `defaults` are keys that every registry has which does not give them itself.
    """

    root: str = ""
    modules_path_suffix: str = "/modules"
    defaults: dict[str, Any] = Field(default_factory=dict, repr=False)
    hub: WatchedRegistry
    rings: Annotated[tuple[Ring, ...], Field(min_length=1)]
    members: Annotated[dict[str, Member], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path) -> Self:
        """The fleet that a YAML file describes."""
        return cls.of(read_mapping(path), path, Ring, Member)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, document: Any) -> Any:
        """Fill in what `defaults` says."""
        if not isinstance(document, dict) or not isinstance(document.get("defaults"), dict):
            return document
        common = document["defaults"]
        filled = dict(document)
        if isinstance(document.get("hub"), dict):
            filled["hub"] = {**common, **document["hub"]}
        if isinstance(members := document.get("members"), dict):
            filled["members"] = {
                name: {**common, **one} if isinstance(one, dict) else one
                for name, one in members.items()
            }
        return filled

    @model_validator(mode="after")
    def _rings_and_members(self) -> Self:
        names = [ring.name for ring in self.rings]
        if len(set(names)) < len(names):
            raise ValueError("rings: a name is there twice")
        for name, member in self.members.items():
            if member.ring not in names:
                known = ", ".join(names)
                raise ValueError(f"members.{name}.ring: {member.ring!r} is not a ring ({known})")
            repository_of(f"members.{name}", member, self.root)
        for ring in self.rings:
            if len(self.members_of(ring.name)) <= ring.may_lack:
                raise ValueError(
                    f"rings: {ring.name} has {counted(len(self.members_of(ring.name)), 'member')} "
                    f"and may lack {ring.may_lack}, so the next ring would wait for nobody"
                )
        repository_of("hub", self.hub, self.root)
        return self

    @cached_property
    def _by_ring(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {ring.name: [] for ring in self.rings}
        for name, member in sorted(self.members.items()):
            found[member.ring].append(name)
        return found

    def members_of(self, ring: str) -> list[str]:
        """The names of the members of a ring, sorted."""
        return self._by_ring[ring]

    def before(self, ring: str) -> tuple[Ring, ...]:
        """The rings that come before a ring, in their order."""
        names = [one.name for one in self.rings]
        return self.rings[: names.index(ring)]

    @contextmanager
    def opened(self, name: str | None = None) -> Iterator[RegistryTree]:
        """The registry of a member, or the hub; no network is touched here.

        It is for statements, whose manifests are small: many are read at a time.
        """
        place = self.hub if name is None else self.members[name]
        root = repository_of(name or "hub", place, self.root)
        with client_of(place, root, manifest_bytes=_STATEMENT_BYTES) as client:
            yield RegistryTree(client, root, normalised_suffix(self.modules_path_suffix))


def client_of(place: WatchedRegistry, root: Repository, **options: Any) -> RegistryClient:
    """A client of a registry that settings describe; `options` are of `ConnectionOptions`."""
    secret = place.secret()
    if place.login is not None and secret is not None:
        login: Credentials | None = Credentials(place.login, secret)
    else:
        login = find_credentials(str(root))
    connection = replace(place.connection(), **{"retries": BRIEF, **options})
    return RegistryClient(root.host, options=connection, credentials=login)


# -- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberState:
    """The statement that a member's registry has, or why that is unknown."""

    digest: Digest | None = None
    generation: int | None = None
    error: MirrorError | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"does not answer ({self.error})"
        if self.digest is None:
            return "states nothing"
        return f"states generation {self.generation or 'unknown'}"


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a member that waits knows about a new statement; times are seconds of one clock.

    `complete` says since when a ring has been seen complete at each look. `free_s` is when nothing
    but an upstream had to be waited for any more.
    """

    news: Digest
    generation: int | None
    complete: Mapping[str, float] = field(default_factory=dict)
    free_s: float | None = None

    def is_held_by(self, seen: MemberState) -> bool:
        """Whether a member has the statement, or one of a later generation."""
        known = self.generation is not None and seen.generation is not None
        later = known and (seen.generation or 0) > (self.generation or 0)
        return seen.digest == self.news or later


def members_without(
    rollout: Rollout, fleet: Fleet, ring: Ring, seen: Mapping[str, MemberState]
) -> list[str]:
    """The members of a ring that were not seen to hold what is new."""
    unseen = MemberState()
    names = fleet.members_of(ring.name)
    return [name for name in names if not rollout.is_held_by(seen.get(name, unseen))]


def advanced(
    rollout: Rollout, fleet: Fleet, ring: str, seen: Mapping[str, MemberState], now_s: float
) -> Rollout:
    """The rollout after a look at the members of the rings before `ring`.

    A ring that is not complete any more, and each one behind it, begins its time anew.
    """
    complete: dict[str, float] = {}
    for one in fleet.before(ring):
        if len(members_without(rollout, fleet, one, seen)) > one.may_lack:
            break
        complete[one.name] = rollout.complete.get(one.name, now_s)
    return replace(rollout, complete=complete)


def reason_to_wait(
    rollout: Rollout, fleet: Fleet, ring: str, seen: Mapping[str, MemberState], now_s: float
) -> str | None:
    """Why `ring` does not take what is new yet; None when it does."""
    rings = fleet.before(ring)
    for one in rings:
        if one.name not in rollout.complete:
            missing = members_without(rollout, fleet, one, seen)
            first = f"{missing[0]} {seen.get(missing[0], MemberState())}"
            more = f", and {len(missing) - 1} more do not hold it" if len(missing) > 1 else ""
            return f"ring {one.name} does not hold generation {rollout.generation}: {first}{more}"
    if rings:
        after_s = next(one.after for one in fleet.rings if one.name == ring)
        left_s = rollout.complete[rings[-1].name] + after_s - now_s
        if left_s > 0:
            return f"ring {ring} takes it {left_s:.0f} s from now, if {rings[-1].name} keeps it"
    return None


@dataclass(frozen=True, slots=True)
class Rollouts:
    """How a daemon takes what is new: after which rings, when, and how long upstreams go first."""

    fleet: Fleet | None = None
    ring: str = ""
    window: Window | None = None
    upstream_wait_s: float = 0.0


def decided(
    plan: Rollouts,
    rollout: Rollout,
    seen: Mapping[str, MemberState],
    upstream: Callable[[], Upstream | None] | None,
    now_s: float,
    now: datetime,
) -> tuple[Rollout, str, Upstream | None, float | None]:
    """The rollout after a look, what it waits for, who gives it, and in how long the window closes.

    It waits for nothing where that text is empty, and the leader gives it where nobody else does.
    `upstream` finds who states it, if there are upstreams; it is called when all else is settled.
    """
    reason, source, closes_s = None, None, None
    if plan.fleet is not None:
        rollout = advanced(rollout, plan.fleet, plan.ring, seen, now_s)
        reason = reason_to_wait(rollout, plan.fleet, plan.ring, seen, now_s)
    if reason is None and plan.window is not None:
        closes_s = plan.window.left_s(now)
        reason = None if closes_s else f"the window {plan.window} is closed"
    if reason is None:
        free_s = now_s if rollout.free_s is None else rollout.free_s
        rollout = replace(rollout, free_s=free_s)
        source = upstream() if upstream is not None else None
        left_s = free_s + plan.upstream_wait_s - now_s
        if upstream is not None and source is None and left_s > 0:
            reason = f"no upstream states it yet; the leader gives it {left_s:.0f} s from now"
    return rollout, reason or "", source, closes_s


# -- this daemon -----------------------------------------------------------------------------------


Tip: TypeAlias = Callable[[RegistryTree], Digest | None]
"""Asks a registry which statement it has."""


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """What a member does about a statement that it does not have.

    It waits, for what `waiting` says, or takes it: from `source`, where None is the leader, within
    `closes_s` seconds where its window ends. `generation` is the leader's.
    """

    waiting: str = ""
    source: RegistryTree | None = None
    closes_s: float | None = None
    generation: int | None = None


class StagedRollout:
    """The stage at which this daemon's replicas are; a clock and the others' statements decide.

    `tip` asks a registry which statement it has. Thread-safe.
    """

    def __init__(
        self,
        plan: Rollouts,
        *,
        members: Mapping[str, RegistryTree] = MappingProxyType({}),
        upstreams: Sequence[RegistryTree] = (),
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._plan, self._members, self._upstreams = plan, members, upstreams
        self._clock, self._now = clock, now
        self._lock = threading.Lock()
        self._rollouts: dict[str, Rollout] = {}  # under the lock: by replica
        # Under the lock: upstream → a statement, and how many looks at it failed.
        self._failed: dict[str, tuple[Digest, int]] = {}

    def source(self, news: Digest, tip: Tip, run: Run) -> RegistryTree | None:
        """The first upstream that states `news`; one that does not answer is passed over."""
        for one in self._upstreams:
            with self._lock:
                of, looks = self._failed.get(one.name, (news, 0))
            if of == news and looks >= MOST_FAILED:
                continue
            with suppress(MirrorError):
                if tip(one.within(run)) == news:
                    return one
            run.check()
        return None

    def note_outcome(
        self, upstream: RegistryTree | None, news: Digest | None, errors: Sequence[MirrorError]
    ) -> None:
        """Take in how a look with `upstream`, if it was one, has ended.

        Errors of its own count against following it in `news`, those at once that say that its tags
        contradict it. A look without errors clears the count.
        """
        if upstream is None or news is None:
            return
        failed = [one for one in errors if not isinstance(one, CancelledError)]
        host = upstream.root.host
        blamed = [one for one in failed if host in re.split(r"[\s/]", one.where or str(one))]
        wrong = any(isinstance(one, StatementError) for one in blamed)
        with self._lock:
            of, looks = self._failed.get(upstream.name, (news, 0))
            if blamed:
                looks = MOST_FAILED if wrong else looks + 1 if of == news else 1
                self._failed[upstream.name] = news, looks
            elif not errors:
                self._failed.pop(upstream.name, None)

    def due(
        self, replica: str, news: Digest, generation: Callable[[], int | None], tip: Tip, run: Run
    ) -> RolloutStep:
        """What to do about `news`, which the leader states as that generation."""
        plan = self._plan
        with self._lock:
            rollout = self._rollouts.get(replica)
        if rollout is None or rollout.news != news:
            rollout = Rollout(news, generation())
        seen = {} if plan.fleet is None else self._look(plan.fleet, rollout, run)

        def upstream() -> RegistryTree | None:
            return self.source(news, tip, run)

        rollout, waiting, source, closes_s = decided(
            plan, rollout, seen, upstream if self._upstreams else None, self._clock(), self._now()
        )
        with self._lock:
            self._rollouts[replica] = rollout
        return RolloutStep(waiting, source, closes_s, rollout.generation)

    def closed(self, step: RolloutStep) -> RolloutStep | None:
        """The step in place of one whose window has ended; None while it is open."""
        window = self._plan.window
        if window is None or window.left_s(self._now()):
            return None
        return replace(step, waiting=f"the window {window} is closed; what arrived is kept")

    def _look(self, fleet: Fleet, rollout: Rollout, run: Run) -> dict[str, MemberState]:
        """Ask the rings before ours one after the other, as far as they are complete."""
        seen: dict[str, MemberState] = {}
        for ring in fleet.before(self._plan.ring):
            names = fleet.members_of(ring.name)
            seen |= read_members({name: self._members[name] for name in names}, run)
            if len(members_without(rollout, fleet, ring, seen)) > ring.may_lack:
                break
        return seen


def read_members(members: Mapping[str, RegistryTree], run: Run) -> dict[str, MemberState]:
    """What each member states, by one request each; none is waited for longer than 5 s."""
    trees = list(members.values())
    answers = ask_at_once(trees, _seen, patience_s=PATIENCE_S, jobs=AT_ONCE, run=run)
    return {
        name: MemberState(error=answer) if isinstance(answer, MirrorError) else answer
        for name, answer in zip(members, answers, strict=True)
    }


def _seen(tree: RegistryTree) -> MemberState:
    try:
        manifest = tree.client.manifest(tree.locate(REPOSITORY), LATEST)
    except RegistryNotFoundError:
        return MemberState()
    return MemberState(manifest.digest, generation_of(manifest))
