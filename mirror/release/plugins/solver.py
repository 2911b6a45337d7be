"""Which plugins belong in a bundle: those its modules call for, those asked for, what these need.

Pure but for `PluginFacts`, which is asked for tags and contracts as they are needed, each once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NoReturn, Protocol

from semver import Version

from mirror.errors import InputError, NotFoundError, SourceContentError
from mirror.layout import is_early, parse_version, tags_of_versions
from mirror.release.constraints import Constraint
from mirror.release.filters import ExactTag, ItemFilter
from mirror.release.plugins.contract import Contract, Requirement, valid_plugin_name
from mirror.release.plugins.gate import Surroundings
from mirror.release.plugins.selection import (
    Candidate,
    Edge,
    Journal,
    PluginChoice,
    PluginSelection,
    Skipped,
)

BUILT_IN = frozenset({"delivery-kit", "package"})
"""Plugins that are part of the `d8` program: there for every dependency, never carried."""

MAX_DEPTH = 16
"""So long a chain of plugins that need each other may be."""

MAX_TRIES = 100_000
"""So many candidates are tried for all dependencies together, before giving up."""


class PluginFacts(Protocol):
    """What a source says about its plugins. Failures other than those named are passed on."""

    def names(self) -> Collection[str] | None:
        """All plugins; None if there is no such list, or access to it is denied."""
        ...

    def tags(self, name: str) -> Collection[str] | None:
        """A plugin's tags; None if there is no such plugin, or access to it is denied."""
        ...

    def contract(self, name: str, tag: str) -> Contract:
        """The contract of one version.

        Raises:
            SourceContentError: it is invalid; the version is passed over then.
            NotFoundError: there is no such version.
        """
        ...


def select_plugins(
    facts: PluginFacts,
    *,
    modules: Mapping[str, Collection[Version]],
    platform: Collection[Version],
    wanted: Iterable[ItemFilter] = (),
    proxy: bool = False,
) -> PluginSelection:
    """Which plugins a bundle with these modules and platform releases needs.

    Automatically: for every version of every module the newest plugin version that is made for it
    and whose other needs the bundle meets, together with the plugins it depends on. Then what
    `wanted` names: it is taken though the bundle lacks what it needs, with a warning. With `proxy`
    the source cannot list, so only exact versions can be wanted, dependencies included.

    Raises:
        InputError: `wanted` names what cannot be a plugin to take.
        NotFoundError: the source has not what `wanted` names.
        SourceContentError: what `wanted` names has no readable contract or lacks dependencies.
    """
    solver = _Solver(facts, Surroundings(modules, platform), proxy=proxy)
    solver.take_for_modules()
    solver.take_wanted(sorted(wanted, key=lambda item: item.name))
    return solver.selection()


class _Solver:
    """Reasons are texts: None means that something could be done, a text why it could not."""

    def __init__(self, facts: PluginFacts, bundle: Surroundings, *, proxy: bool) -> None:
        self._facts, self._bundle, self._proxy = facts, bundle, proxy
        self._journal = Journal()
        self._skipped: dict[str, str] = {}
        self._stable_versions: dict[str, list[Candidate]] = {}
        self._contracts: dict[Candidate, Contract | SourceContentError] = {}
        self._tries = 0

    # -- by the bundle's modules ------------------------------------------------------------------

    def take_for_modules(self) -> None:
        if self._proxy or not self._bundle.modules:
            return
        for name in sorted(self._facts.names() or ()):
            if not valid_plugin_name(name):
                self._skipped[name] = "that is no name of a plugin"
            elif name not in BUILT_IN:
                self._take_for_modules(name)

    def _take_for_modules(self, name: str) -> None:
        versions = self._stable(name)
        newest, problem = self._newest_contract(versions)
        if newest is None:
            if problem:
                self._skipped[name] = f"none of its versions has a readable contract: {problem}"
            return
        served = [
            (module, version)
            for module in sorted(newest.served_modules & self._bundle.modules.keys())
            for version in self._bundle.modules[module]
        ]
        failed = [
            f"module {module} {version}: {reason}"
            for module, version in served
            if (reason := self._take_for_module(versions, module, version))
        ]
        if failed and len(failed) == len(served):
            self._skipped[name] = "; ".join(failed)
        else:
            self._journal.warnings += [f"plugin {name} has no version for {one}" for one in failed]

    def _newest_contract(self, versions: Iterable[Candidate]) -> tuple[Contract | None, str | None]:
        problem: str | None = None
        for candidate in versions:
            contract = self._contract(candidate)
            if isinstance(contract, Contract):
                return contract, None
            problem = problem or str(contract)
        return None, problem

    def _take_for_module(
        self, versions: Iterable[Candidate], module: str, version: Version
    ) -> str | None:
        """Choose the newest version that is for this version of the module."""
        first: str | None = None
        for candidate in versions:
            mark = self._journal.mark()
            needs, reason = self._needs_of(candidate, module, version)
            reason = reason or self._gated_and_complete(candidate, (), module=module, strict=True)
            if reason is None:
                texts = " || ".join(str(need.constraint or "") for need in needs)
                self._journal.choices.append((candidate, Edge("module", module, texts)))
                return None
            self._journal.back_to(mark)
            first = first or f"{candidate}: {reason}"
        return first or "it has no versions"

    def _needs_of(
        self, candidate: Candidate, module: str, version: Version
    ) -> tuple[list[Requirement], str | None]:
        """What in the contract makes the plugin one for this version of the module."""
        contract = self._contract(candidate)
        if isinstance(contract, SourceContentError):
            return [], str(contract)
        served = contract.serves(module)
        accepting = [need for need in served if need.accepts(version)]
        if not served:
            return [], f"it is not for module {module}"
        if not accepting:
            return [], f"it needs module {' or '.join(map(str, served))}"
        return accepting, None

    # -- by flag ----------------------------------------------------------------------------------

    def take_wanted(self, wanted: Collection[ItemFilter]) -> None:
        for item in wanted:
            self._check_name(item)
        # All pins come first, since what others depend on may be among them.
        pins = [(item, exact) for item in wanted for exact in item.exact_tags]
        pinned = [self._pin(item, exact) for item, exact in pins]
        for candidate, flag in pinned:
            reason = self._complete(candidate, (), strict=False)
            if reason:
                raise SourceContentError(f"--include-plugin {flag} cannot be taken: {reason}")
        for item in wanted:
            for constraint in item.constraints or ([None] if not item.wanted else []):
                self._take_newest(item.name, constraint)

    def _check_name(self, item: ItemFilter) -> None:
        if item.name in BUILT_IN:
            raise InputError(
                f"--include-plugin {item}: {item.name} is part of the d8 program itself and is "
                "never carried; leave it out"
            )
        if not valid_plugin_name(item.name):
            raise InputError(f"--include-plugin {item}: {item.name!r} is no name of a plugin")
        if self._proxy and not item.is_exact:
            raise InputError(
                f"--include-plugin {item}: a proxy registry cannot list versions; name one "
                f"exactly, as in {item.name}@=v1.0.0"
            )

    def _pin(self, item: ItemFilter, exact: ExactTag) -> tuple[Candidate, str]:
        flag = f"{item.name}@{exact}"
        version = parse_version(exact.tag)
        if version is None:
            raise InputError(
                f"--include-plugin {flag}: {exact.tag!r} is no version; a plugin's tags are "
                "versions such as v1.2.0"
            )
        candidate = Candidate(item.name, version, exact.tag)
        if not self._proxy:
            tags = tags_of_versions(self._published(item.name, flag))
            if version not in tags:
                self._not_published(flag, tags.values())
            candidate = Candidate(item.name, version, tags[version])
        try:
            contract = self._contract(candidate)
        except NotFoundError as err:
            raise NotFoundError(f"--include-plugin {flag} is not published: {err}") from err
        if isinstance(contract, SourceContentError):
            raise SourceContentError(f"--include-plugin {flag} cannot be taken: {contract}")
        self._warn_of_gate(candidate, contract)
        self._journal.choices.append((candidate, Edge("explicit", flag, str(exact))))
        return candidate, flag

    def _take_newest(self, name: str, constraint: Constraint | None) -> None:
        flag = f"{name}@{constraint}" if constraint else name
        tags = self._published(name, flag)
        first: str | None = None
        need = Requirement(name, constraint)
        for candidate in self._stable(name):
            if not need.accepts(candidate.version):
                continue
            mark = self._journal.mark()
            reason = self._gated_and_complete(candidate, (), strict=False)
            if reason is None:
                self._journal.choices.append(
                    (candidate, Edge("explicit", flag, str(constraint or "")))
                )
                if first:
                    self._journal.warnings.append(
                        f"--include-plugin {flag}: {candidate.tag} is taken, because {first}"
                    )
                return
            self._journal.back_to(mark)
            first = first or f"{candidate}: {reason}"
        if first:
            raise SourceContentError(f"--include-plugin {flag} cannot be taken: {first}")
        self._not_published(flag, tags_of_versions(tags).values())

    def _published(self, name: str, flag: str) -> Collection[str]:
        tags = self._facts.tags(name)
        if tags is None:
            raise NotFoundError(
                f"--include-plugin {flag}: the source publishes no plugin {name}, or denies access "
                "to it; check the name and your licence"
            )
        return tags

    def _not_published(self, flag: str, tags: Collection[str]) -> NoReturn:
        newest = list(tags)[-5:]
        raise NotFoundError(
            f"--include-plugin {flag}: no such version is published; "
            + (f"the newest are {', '.join(newest)}" if newest else "there is no version at all")
        )

    # -- what a plugin needs ----------------------------------------------------------------------

    def _gated_and_complete(
        self, candidate: Candidate, chain: tuple[str, ...], *, module: str = "", strict: bool
    ) -> str | None:
        """See that the bundle has what a plugin needs; choose the plugins it depends on.

        Unless `strict`, what the bundle lacks is only warned of. `module` is known to be there.
        """
        contract = self._contract(candidate)
        if isinstance(contract, SourceContentError):
            return str(contract)
        if strict:
            lacking = self._bundle.lacking(contract, module)
            if lacking:
                return lacking[0]
        else:
            self._warn_of_gate(candidate, contract)
        return self._complete(candidate, chain, strict=strict)

    def _warn_of_gate(self, candidate: Candidate, contract: Contract) -> None:
        self._journal.warnings += [
            f"plugin {candidate} is in the bundle, but {lack}"
            for lack in self._bundle.lacking(contract)
        ]

    def _complete(
        self, candidate: Candidate, chain: tuple[str, ...], *, strict: bool
    ) -> str | None:
        """Choose what `candidate` depends on. `chain` are the plugins that led to it."""
        contract = self._contract(candidate)
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
        for chosen in self._journal.chosen(need.name):
            if need.accepts(chosen.version):
                self._journal.choices.append((chosen, edge))
                return None
        wish = f"it needs plugin {need}"
        if self._proxy:
            return f"{wish}; name that too, as in --include-plugin {need.name}@=v1.0.0"
        if need.name in chain:
            return f"{wish}, which in turn needs it: {' -> '.join((*chain, need.name))}"
        if len(chain) > MAX_DEPTH:
            return f"{wish}, at the end of a chain of more than {MAX_DEPTH} plugins"
        first: str | None = None
        for candidate in self._stable(need.name):
            if not need.accepts(candidate.version):
                continue
            self._tries += 1
            if self._tries > MAX_TRIES:
                raise SourceContentError(
                    f"the plugins' dependencies are too tangled: {MAX_TRIES} combinations were "
                    f"tried, the last for {wish}; name exact versions with --include-plugin"
                )
            mark = self._journal.mark()
            reason = self._gated_and_complete(candidate, chain, strict=strict)
            if reason is None:
                self._journal.choices.append((candidate, edge))
                return None
            self._journal.back_to(mark)
            first = first or f"{candidate}: {reason}"
        return f"{wish}, but {first or 'no such version is published'}"

    # -- facts ------------------------------------------------------------------------------------

    def _stable(self, name: str) -> list[Candidate]:
        """All versions of a plugin that are meant for use, newest first."""
        if name not in self._stable_versions:
            tags = tags_of_versions(self._facts.tags(name) or ())
            self._stable_versions[name] = [
                Candidate(name, version, tags[version])
                for version in reversed(tags)
                if not is_early(version)
            ]
        return self._stable_versions[name]

    def _contract(self, candidate: Candidate) -> Contract | SourceContentError:
        if candidate not in self._contracts:
            try:
                self._contracts[candidate] = self._facts.contract(candidate.name, candidate.tag)
            except SourceContentError as err:
                self._contracts[candidate] = err
        return self._contracts[candidate]

    # -- the result -------------------------------------------------------------------------------

    def selection(self) -> PluginSelection:
        edges: dict[Candidate, dict[Edge, None]] = {}
        for candidate, edge in self._journal.choices:
            edges.setdefault(candidate, {})[edge] = None
        order = sorted(edges, key=lambda one: (one.name, one.version))
        taken = {one.name for one in order}
        return PluginSelection(
            tuple(PluginChoice(one.name, one.version, one.tag, tuple(edges[one])) for one in order),
            tuple(
                Skipped(name, self._skipped[name]) for name in sorted(self._skipped.keys() - taken)
            ),
            tuple(dict.fromkeys((*self._journal.warnings, *self._conditional_warnings(order)))),
        )

    def _conditional_warnings(self, chosen: Iterable[Candidate]) -> list[str]:
        """What plugins ask of others if these are there, and does not hold."""
        warnings: list[str] = []
        for candidate in chosen:
            contract = self._contract(candidate)
            if isinstance(contract, SourceContentError):
                continue
            warnings += [
                f"plugin {candidate} works with module {need} only, and the bundle "
                f"{self._bundle.describe(need.name)}"
                for need in contract.conditional_modules
                if need.name in self._bundle.modules and not self._bundle.has(need)
            ]
            for need in contract.conditional_plugins:
                there = self._journal.chosen(need.name)
                if there and not any(need.accepts(one.version) for one in there):
                    warnings.append(
                        f"plugin {candidate} works with plugin {need} only, and the bundle has "
                        f"{', '.join(one.tag for one in there)}"
                    )
        return warnings
