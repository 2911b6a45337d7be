"""History: the generations that a registry went through, and what each of them changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mirror.errors import StatementError
from mirror.events import PhaseAdvanced, PhaseStarted, Warned
from mirror.layout import publication_stage
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync.plan import TagChanges, Tags, changes, tags_of
from mirror.sync.publication_state import (
    PublicationState,
    Published,
    generations,
    read_generation,
    read_state,
)
from mirror.sync.tree import RegistryTree

_VERSIONS, _CHANNELS = 1, 2
"""Stages of `publication_stage`."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One state that a registry reached, or, if `interrupted`, was to reach.

    `changes` is the difference from the generation before, `statement` the digest of the artifact,
    `restores` the earlier generation that a rollback put back by this one.
    """

    number: int
    inventory: Digest
    statement: Digest
    tags: int
    changes: TagChanges
    restores: int | None
    tool: str
    current: bool = False
    interrupted: bool = False

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that came, as `repository:tag`."""
        return _of_stage(_VERSIONS, self.changes.added)

    @property
    def channels(self) -> tuple[str, ...]:
        """Release channels that came or turned, as `repository:channel`."""
        return _of_stage(_CHANNELS, (*self.changes.added, *self.changes.changed))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "generation": self.number,
            "current": self.current,
            "interrupted": self.interrupted,
            "restores": self.restores,
            "inventory": str(self.inventory),
            "digest": str(self.statement),
            "tool": self.tool,
            "tags": {
                "total": self.tags,
                "added": len(self.changes.added),
                "changed": len(self.changes.changed),
                "removed": len(self.changes.removed),
            },
            "versions": list(self.versions),
            "channels": list(self.channels),
        }


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The generations of a registry, newest first; `older` more are kept and were not read."""

    target: str
    generations: tuple[Generation, ...]
    older: int = 0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        numbers = {one.number: one for one in self.generations}
        return {
            "target": self.target,
            "current": next((n for n, one in numbers.items() if one.current), None),
            "interrupted": next((n for n, one in numbers.items() if one.interrupted), None),
            "generations": [one.to_document() for one in self.generations],
            "older": self.older,
        }


def history(
    tree: RegistryTree, *, last: int | None = None, run: Run | None = None
) -> HistoryReport:
    """Read the `last` generations (all, if None) of which the registry keeps statements.

    A warning names each that cannot be read and is left out.

    Raises:
        UnreachableError, DeniedError: the registry does not answer.
        InputError: a statement has a newer schema.
    """
    run = Run.of(run)
    tree = tree.within(run)
    tree.client.ping()
    state = read_state(tree)
    for notice in state.notices:
        run.on_event(Warned(notice))
    kept = generations(tree)
    # One more than is shown, to say what the first of them changed.
    read = kept if last is None else kept[-(last + 1) :]
    run.on_event(PhaseStarted("reading generations", len(read)))
    found: list[_Seen] = []
    for number in read:
        try:
            published = read_generation(tree, number)
        except StatementError as err:
            run.on_event(Warned(str(err)))
            published = None
        run.on_event(PhaseAdvanced())
        if published is not None:
            found.append(_Seen.of(published))
    pending = state.pending
    if pending and all(one.statement != pending.digest for one in found):
        found.append(_Seen.of(pending))
    first = found[0] if found else None
    shown = [_described(one, before, state) for before, one in pairwise(found)]
    if first is not None and (last is None or len(kept) <= last):
        shown.insert(0, _described(first, None, state))
    return HistoryReport(tree.name, tuple(reversed(shown)), len(kept) - _kept(shown, kept))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of a statement while others are read; its graph is not."""

    number: int
    inventory: Digest
    statement: Digest
    tags: Tags
    restores: int | None
    tool: str

    @classmethod
    def of(cls, published: Published) -> _Seen:
        statement = published.statement
        return cls(
            statement.generation,
            statement.inventory.digest(),
            published.digest,
            tags_of(statement.inventory),
            statement.restores,
            statement.tool,
        )


def _described(one: _Seen, before: _Seen | None, state: PublicationState) -> Generation:
    current, pending = state.current, state.pending
    return Generation(
        one.number,
        one.inventory,
        one.statement,
        _count(one.tags),
        changes(before.tags if before else {}, one.tags),
        one.restores,
        one.tool,
        current=current is not None and current.digest == one.statement,
        interrupted=pending is not None and pending.digest == one.statement,
    )


def _count(tags: Mapping[str, Mapping[str, Digest]]) -> int:
    return sum(map(len, tags.values()))


def _kept(shown: list[Generation], kept: list[int]) -> int:
    return len({one.number for one in shown} & set(kept))


def _of_stage(stage: int, tags: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(f"{path}:{tag}" for path, tag in tags if publication_stage(path, tag) == stage)
