"""Which versions of plugins a plugin depends on, and whether they can be had.

Several versions of one plugin may travel in a bundle, so choices never exclude each other: a
dependency fails only if no version that fits it can be had with all that this one needs in turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from semver import Version

from mirror.errors import SourceContentError
from mirror.layout import in_order, is_early, tags_of_versions
from mirror.release.contracts import BundleVersions, Contract, Requirement
from mirror.run import Result

BUILT_IN = frozenset({"delivery-kit", "package"})
"""Plugins that are part of the `d8` program: there for every dependency, never carried."""

MAX_DEPTH = 16
"""The longest chain of plugins that need each other."""

MAX_TRIES = 20_000
"""How many versions are tried for the dependencies of one plugin before it is given up.

A version that fails is not tried again in the same circumstances, so only plugins that need each
other in many circles come near.
"""

MAX_STEPS = 500_000
"""How much is looked at for all plugins together: needs, versions, and what is remembered of them.

A source decides how many of these there are, and their numbers multiply. Real ones take a few
hundred steps.
"""


class PluginFacts(Protocol):
    """What a source says about its plugins; None where there is nothing, or access is denied.

    `contract` raises SourceContentError if the contract is invalid, and the version is then passed
    over, or NotFoundError if the version does not exist.
    """

    def names(self) -> Collection[str] | None: ...
    def tags(self, name: str) -> Collection[str] | None: ...
    def contract(self, name: str, tag: str) -> Contract: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version of a plugin that may be chosen."""

    name: str
    version: Version
    tag: str

    def __str__(self) -> str:
        return f"{self.name}@{self.tag}"


@dataclass(frozen=True, slots=True)
class Edge:
    """Why a plugin is in the bundle: for a module, a plugin that needs it (`name@tag`), a flag."""

    kind: Literal["module", "dependency", "explicit"]
    subject: str
    constraint: str = ""

    def __str__(self) -> str:
        if self.kind == "explicit":
            return f"asked for by {self.subject}"
        need = f"{self.kind} {self.subject}" if self.kind == "module" else self.subject
        return f"for {need}" + (f" ({self.constraint})" if self.constraint else "")


@dataclass(slots=True)
class ChoiceLog:
    """What was chosen and warned of so far; `back_to` forgets what came after a `mark`."""

    choices: list[tuple[Candidate, Edge]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _by_name: dict[str, Counter[Candidate]] = field(default_factory=dict)

    def choose(self, candidate: Candidate, edge: Edge) -> None:
        self.choices.append((candidate, edge))
        self._by_name.setdefault(candidate.name, Counter())[candidate] += 1

    def mark(self) -> tuple[int, int]:
        return len(self.choices), len(self.warnings)

    def back_to(self, mark: tuple[int, int]) -> None:
        while len(self.choices) > mark[0]:
            candidate = self.choices.pop()[0]
            counts = self._by_name[candidate.name]
            counts[candidate] -= 1
            if not counts[candidate]:
                del counts[candidate]
        del self.warnings[mark[1] :]

    def chosen(self, name: str) -> list[Candidate]:
        """The chosen versions of a plugin, newest first."""
        found = {one.version: one for one in self._by_name.get(name, ())}
        return [found[version] for version in reversed(in_order(found))]


class _TooTangledError(Exception):
    """`MAX_TRIES` or `MAX_STEPS` are used up."""


@dataclass(frozen=True, slots=True)
class _Circumstances:
    """Everything that decided a failure: which of the plugins that were looked at led here or were
    chosen already, and how much of `MAX_DEPTH` was used."""

    chain: frozenset[str]
    chosen: frozenset[Candidate]
    depth: int


class Dependencies:
    """Chooses what plugins depend on and writes it into `journal`.

    Reasons are texts: None means that something could be done, a text why it could not.
    """

    def __init__(self, facts: PluginFacts, bundle: BundleVersions, *, proxy: bool) -> None:
        self.facts, self.bundle, self.proxy = facts, bundle, proxy
        self.journal = ChoiceLog()
        self._stable_versions: dict[str, list[Candidate]] = {}
        self._contracts: dict[Candidate, Contract | SourceContentError] = {}
        # Candidate and strictness → what was looked at → circumstances → why it failed in them.
        self._failures: dict[
            tuple[Candidate, bool], dict[frozenset[str], dict[_Circumstances, str]]
        ] = {}
        self._looked_at: set[str] = set()  # since the candidate at hand was taken up
        self._tries = self._steps = 0
        self._first_reason: str | None = None

    def afresh(self) -> None:
        """Allow `MAX_STEPS` once more."""
        self._steps = 0

    def spend(self, steps: int) -> None:
        """Count what was looked at; end what is `bounded` if that was too much."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise _TooTangledError(
                f"the plugins of this source are too tangled: {MAX_STEPS} needs and versions were "
                "looked at; name exact versions with --include-plugin"
            )

    def stable(self, name: str) -> list[Candidate]:
        """All versions of a plugin that are meant for use, newest first."""
        if name not in self._stable_versions:
            tags = tags_of_versions(self.facts.tags(name) or ())
            self._stable_versions[name] = [
                Candidate(name, version, tags[version])
                for version in reversed(tags)
                if not is_early(version)
            ]
        return self._stable_versions[name]

    def contract(self, candidate: Candidate) -> Contract | SourceContentError:
        """What a version needs, or why its contract cannot be read. Asked for once."""
        if candidate not in self._contracts:
            try:
                self._contracts[candidate] = self.facts.contract(candidate.name, candidate.tag)
            except SourceContentError as err:
                self._contracts[candidate] = err
        return self._contracts[candidate]

    def bounded(self, work: Callable[[], Result]) -> Result | str:
        """Do `work` with `MAX_TRIES` tries; return a text if these, or `MAX_STEPS`, are used up."""
        self._tries, self._first_reason = 0, None
        mark = self.journal.mark()
        try:
            return work()
        except _TooTangledError as err:
            self.journal.back_to(mark)
            return str(err)

    def newest(
        self, candidates: Iterable[Candidate], take: Callable[[Candidate], str | None]
    ) -> tuple[Candidate | None, str | None]:
        """The first that can be taken with `MAX_TRIES` tries, and why the newest cannot."""
        found = self.bounded(partial(self._first_taken, candidates, take))
        return (None, found) if isinstance(found, str) else found

    def _first_taken(
        self, candidates: Iterable[Candidate], take: Callable[[Candidate], str | None]
    ) -> tuple[Candidate | None, str | None]:
        """The first that can be taken, and why the one before all others cannot.

        What cannot be taken leaves no trace in the journal.
        """
        first: str | None = None
        for candidate in candidates:
            mark = self.journal.mark()
            reason = take(candidate)
            if reason is None:
                return candidate, first
            self.journal.back_to(mark)
            first = first or f"{candidate}: {reason}"
        return None, first

    def take(
        self, candidate: Candidate, chain: tuple[str, ...] = (), *, module: str = "", strict: bool
    ) -> str | None:
        """See that the bundle has what a plugin needs, and choose the plugins it depends on.

        Unless `strict`, a need that the bundle does not meet only leads to a warning. `module` is
        known to be there as needed. `chain` are the plugins that led here.
        """
        contract = self.contract(candidate)
        if isinstance(contract, Contract):
            self.spend(1 + len(contract.served_modules))
            missing = self.bundle.missing(contract, module) if strict else ()
            if missing:
                return missing[0]
            if not strict:
                self.warn_of_unmet_needs(candidate, contract)
        return self.complete(candidate, chain, strict=strict)

    def warn_of_unmet_needs(self, candidate: Candidate, contract: Contract) -> None:
        """Warn of what the plugin needs of the bundle and does not find."""
        self.journal.warnings += [
            f"plugin {candidate} is in the bundle, but {missing}"
            for missing in self.bundle.missing(contract)
        ]

    def complete(
        self, candidate: Candidate, chain: tuple[str, ...] = (), *, strict: bool
    ) -> str | None:
        """Choose what `candidate` depends on."""
        contract = self.contract(candidate)
        if isinstance(contract, SourceContentError):
            return str(contract)
        for need in contract.mandatory_plugins:
            if need.name not in BUILT_IN:
                edge = Edge("dependency", str(candidate), str(need.constraint or ""))
                reason = self._depend(need, edge, (*chain, candidate.name), strict=strict)
                if reason:
                    return reason
        return None

    def _depend(
        self, need: Requirement, edge: Edge, chain: tuple[str, ...], *, strict: bool
    ) -> str | None:
        self._looked_at.add(need.name)
        there = self.journal.chosen(need.name)
        self.spend(need.weight * len(there))
        for chosen in there:
            if need.accepts(chosen.version):
                self.journal.choose(chosen, edge)
                return None
        wish = f"it needs plugin {need}"
        if self.proxy:
            return f"{wish}; name that too, as in --include-plugin {need.name}@=v1.0.0"
        if need.name in chain:
            return f"{wish}, which in turn needs it: {' -> '.join((*chain, need.name))}"
        if len(chain) > MAX_DEPTH:
            return f"{wish}, at the end of a chain of more than {MAX_DEPTH} plugins"
        taken, first = self._first_taken(
            self._fitting(need), partial(self._try, chain=chain, strict=strict)
        )
        if taken is not None:
            self.journal.choose(taken, edge)
            return None
        reason = f"{wish}, but {first or 'no such version is published'}"
        self._first_reason = self._first_reason or reason
        return reason

    def _fitting(self, need: Requirement) -> Iterator[Candidate]:
        for candidate in self.stable(need.name):
            self.spend(need.weight)
            if need.accepts(candidate.version):
                yield candidate

    def _try(self, candidate: Candidate, chain: tuple[str, ...], *, strict: bool) -> str | None:
        """`take` it; a failure is remembered for the same circumstances."""
        failures = self._failures.setdefault((candidate, strict), {})
        for looked_at, known in failures.items():
            self.spend(len(looked_at))
            reason = known.get(self._circumstances(looked_at, chain))
            if reason is not None:
                self._looked_at |= looked_at
                return reason
        self._tries += 1
        if self._tries > MAX_TRIES:
            raise _TooTangledError(
                f"its dependencies are too tangled: {MAX_TRIES} combinations were tried; the first "
                f"failed because {self._first_reason or 'of a circle'}; name exact "
                "versions with --include-plugin"
            )
        before, self._looked_at = self._looked_at, set()
        mark = self.journal.mark()
        reason = self.take(candidate, chain, strict=strict)
        if reason is not None:
            self.journal.back_to(mark)  # what was chosen here did not decide the failure
            looked_at = frozenset(self._looked_at)
            failures.setdefault(looked_at, {})[self._circumstances(looked_at, chain)] = reason
        self._looked_at |= before
        return reason

    def _circumstances(self, looked_at: frozenset[str], chain: tuple[str, ...]) -> _Circumstances:
        chosen = frozenset(one for name in looked_at for one in self.journal.chosen(name))
        return _Circumstances(looked_at.intersection(chain), chosen, len(chain))
