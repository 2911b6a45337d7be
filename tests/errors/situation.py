"""The list of situations in which each error is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from mirror.errors import MirrorError
from tests.errors.lab import Lab, Told

Provoke: TypeAlias = Callable[[Lab], Told]


@dataclass(frozen=True)
class Situation:
    """How an error comes about. `provoke` makes it happen."""

    error: type[MirrorError]
    title: str
    cause: str
    cure: str
    provoke: Provoke


SITUATIONS: list[Situation] = []
"""All of them; the modules beside this one add theirs."""


def situation(
    error: type[MirrorError], title: str, *, cause: str, cure: str
) -> Callable[[Provoke], Provoke]:
    """Add a situation, which the decorated function provokes."""

    def add(provoke: Provoke) -> Provoke:
        SITUATIONS.append(Situation(error, title, cause, cure, provoke))
        return provoke

    return add
