"""Which mode can be switched to which, and by what way where the straight one is closed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import StrEnum

from mirror.modes.settings import Mode, RegistrySettings


class Kind(StrEnum):
    """A mode as switching sees it: the two kinds of Unmanaged are two."""

    DIRECT = "Direct"
    PROXY = "Proxy"
    LOCAL = "Local"
    UNMANAGED = "Unmanaged"
    LEGACY = "Unmanaged (legacy)"

    @property
    def mode(self) -> Mode:
        """The mode that settings and state documents name."""
        return Mode.UNMANAGED if self is Kind.LEGACY else Mode(self.value)

    @property
    def managed(self) -> bool:
        """Whether images go by the logical address."""
        return self in (Kind.DIRECT, Kind.PROXY, Kind.LOCAL)

    @property
    def node_services(self) -> bool:
        """Whether masters run a replica."""
        return self in (Kind.PROXY, Kind.LOCAL)


class Verdict(StrEnum):
    """What a switch from one kind to another is."""

    SWITCH = "switch"
    PARAMETERS = "parameters"
    """The same kind with other parameters."""
    NOTHING = "nothing"
    """There is nothing to change."""
    UNDOCUMENTED = "undocumented"
    """The cluster would do it, and its documents say not to."""
    FORBIDDEN = "forbidden"
    """The cluster refuses it: ErrTransitionNotSupported."""


def _row(direct: str, proxy: str, local: str, unmanaged: str, legacy: str) -> dict[Kind, Verdict]:
    cells = zip(Kind, (direct, proxy, local, unmanaged, legacy), strict=True)
    words = {"yes": Verdict.SWITCH, "other": Verdict.PARAMETERS, "same": Verdict.NOTHING}
    words |= {"no": Verdict.FORBIDDEN, "docs": Verdict.UNDOCUMENTED}
    return {kind: words[cell] for kind, cell in cells}


MATRIX = {
    #                      to: Direct   Proxy    Local   Unmanaged  legacy
    Kind.LEGACY: _row("yes", "yes", "yes", "yes", "same"),
    Kind.UNMANAGED: _row("yes", "yes", "yes", "other", "yes"),
    Kind.DIRECT: _row("other", "yes", "yes", "yes", "docs"),
    Kind.PROXY: _row("yes", "other", "no", "yes", "docs"),
    Kind.LOCAL: _row("yes", "no", "same", "yes", "no"),
}
"""From → to → what that is."""

_STOPOVERS = (Kind.DIRECT, Kind.UNMANAGED)
"""Every kind can be left for these and reached from these."""


def kind_of(settings: RegistrySettings) -> Kind:
    """The kind of some settings."""
    return Kind(settings.mode.value) if settings.configurable else Kind.LEGACY


def allowed(before: Kind, after: Kind, *, strict: bool = True) -> bool:
    """Whether one can follow the other directly. Not `strict` allows what documents advise against.

    To stay is allowed.
    """
    verdict = MATRIX[before][after]
    if verdict is Verdict.UNDOCUMENTED:
        return not strict
    return verdict is not Verdict.FORBIDDEN


def legal_path(
    current: Kind, target: Kind, aborted: Kind | None = None, *, strict: bool = True
) -> tuple[Kind, ...]:
    """The fewest switches that lead from `current` to `target`, each of them allowed.

    `aborted` is where a switch was under way that was not completed: its replicas and routes may
    be in place, so the first step must be allowed from there too.
    """
    origins = (current,) if aborted is None else (current, aborted)
    paths: deque[tuple[Kind, ...]] = deque()
    for kind in _candidates(target, current if aborted else None):
        if all(allowed(origin, kind, strict=strict) for origin in origins):
            paths.append((kind,))
    while paths:
        path = paths.popleft()
        if path[-1] is target:
            return path
        paths += (
            (*path, kind)
            for kind in _candidates(target, None)
            if kind not in path and allowed(path[-1], kind, strict=strict)
        )
    raise AssertionError("Unmanaged is reached from everywhere and leads everywhere")


def _candidates(target: Kind, back: Kind | None) -> Iterator[Kind]:
    """Where to go next, best first: the target; where one came from; the usual stopovers."""
    yield from dict.fromkeys(kind for kind in (target, back, *_STOPOVERS) if kind is not None)
