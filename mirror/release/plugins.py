"""Which plugins belong in a bundle: for its modules, by flag, and what these depend on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from semver import Version

from mirror.errors import DeniedError, InputError, NotFoundError, SourceContentError
from mirror.layout import PLUGINS, parse_version, tags_of_versions
from mirror.release.constraints import Constraint
from mirror.release.contracts import (
    ANNOTATION,
    BundleVersions,
    Contract,
    Requirement,
    parse_contract,
    valid_plugin_name,
)
from mirror.release.plugin_dependencies import (
    BUILT_IN,
    Candidate,
    Dependencies,
    Edge,
    PluginFacts,
)
from mirror.release.selection import ExactTag, Filter, ItemFilter
from mirror.release.source import ReleaseSource

_FEW = 5
"""How many reasons of one kind are told."""


@dataclass(frozen=True, slots=True)
class PluginChoice:
    """One version of a plugin for the bundle, and all reasons for it."""

    name: str
    version: Version
    tag: str
    edges: tuple[Edge, ...]


@dataclass(frozen=True, slots=True)
class SkippedPlugin:
    """A plugin that a module of the bundle calls for, but which is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SelectedPlugins:
    """The plugins for a bundle, by name and then from the oldest version to the newest."""

    choices: tuple[PluginChoice, ...] = ()
    skipped: tuple[SkippedPlugin, ...] = ()
    warnings: tuple[str, ...] = ()


def select_plugins(
    facts: PluginFacts,
    *,
    modules: Mapping[str, Collection[Version]],
    platform: Collection[Version],
    wanted: Iterable[ItemFilter] = (),
    proxy: bool = False,
) -> SelectedPlugins:
    """Choose the plugins that a bundle with these modules and platform releases needs.

    Automatically: for every version of every module the newest plugin version that is made for it
    and whose other needs the bundle meets, together with the plugins it depends on. Then what
    `wanted` names: it is taken even if the bundle does not meet its needs, with a warning. With
    `proxy` the source cannot list, so only exact versions can be wanted, dependencies included.

    Raises:
        InputError, NotFoundError, SourceContentError: `wanted` names what cannot be a plugin, what
            the source does not publish, or what cannot be taken.
    """
    dependencies = Dependencies(facts, BundleVersions(modules, platform), proxy=proxy)
    selecting = _Selecting(dependencies)
    selecting.take_for_modules()
    dependencies.afresh()  # what a user names is found, however much the rest of the source took
    selecting.take_wanted(sorted(wanted, key=lambda item: item.name))
    return selecting.selected()


class _Selecting:
    """Reasons are texts: None means that something could be done, a text why it could not."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies, self._journal = dependencies, dependencies.journal
        self._facts, self._bundle = dependencies.facts, dependencies.bundle
        self._proxy = dependencies.proxy
        self._skipped: dict[str, str] = {}

    # -- by the bundle's modules ------------------------------------------------------------------

    def take_for_modules(self) -> None:
        if self._proxy or not self._bundle.modules:
            return
        for name in sorted(self._facts.names() or ()):
            if not valid_plugin_name(name):
                self._skipped[name] = "that is not the name of a plugin"
            elif name not in BUILT_IN:
                self._take_for_modules(name)

    def _take_for_modules(self, name: str) -> None:
        versions = self._dependencies.stable(name)
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
        told = failed[:_FEW]
        if len(failed) > _FEW:
            told.append(f"{len(failed) - _FEW} more versions of modules")
        if failed and len(failed) == len(served):
            self._skipped[name] = "; ".join(told)
        else:
            self._journal.warnings += [f"plugin {name} has no version for {one}" for one in told]

    def _newest_contract(self, versions: Iterable[Candidate]) -> tuple[Contract | None, str | None]:
        problem: str | None = None
        for candidate in versions:
            contract = self._dependencies.contract(candidate)
            if isinstance(contract, Contract):
                return contract, None
            problem = problem or str(contract)
        return None, problem

    def _take_for_module(
        self, versions: Iterable[Candidate], module: str, version: Version
    ) -> str | None:
        """Choose the newest version that is for this version of the module."""

        def take(candidate: Candidate) -> str | None:
            contract = self._dependencies.contract(candidate)
            served = contract.serves(module) if isinstance(contract, Contract) else ()
            accepting = [need for need in served if need.accepts(version)]
            self._dependencies.spend(1 + sum(need.weight for need in accepting))
            if isinstance(contract, SourceContentError):
                return str(contract)
            if not served:
                return f"it is not for module {module}"
            if not accepting:
                return f"it needs module {' or '.join(map(str, served))}"
            reason = self._dependencies.take(candidate, module=module, strict=True)
            if reason is None:
                texts = " || ".join(str(need.constraint or "") for need in accepting)
                self._journal.choose(candidate, Edge("module", module, texts))
            return reason

        taken, first = self._dependencies.newest(versions, take)
        return None if taken is not None else first or "it has no versions"

    # -- by flag ----------------------------------------------------------------------------------

    def take_wanted(self, wanted: Collection[ItemFilter]) -> None:
        for item in wanted:
            self._check_name(item)
        # All pins come first, since what others depend on may be among them.
        pins = [(item, exact) for item in wanted for exact in item.exact_tags]
        pinned = [self._pin(item, exact) for item, exact in pins]
        for candidate, flag in pinned:
            complete = partial(self._dependencies.complete, candidate, strict=False)
            reason = self._dependencies.bounded(complete)
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
            raise InputError(f"--include-plugin {item}: {item.name!r} is not the name of a plugin")
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
                f"--include-plugin {flag}: {exact.tag!r} is not a version; a plugin's tags are "
                "versions such as v1.2.0"
            )
        candidate = Candidate(item.name, version, exact.tag)
        if not self._proxy:
            tags = tags_of_versions(self._published(item.name, flag))
            if version not in tags:
                self._not_published(flag, tags.values())
            candidate = Candidate(item.name, version, tags[version])
        try:
            contract = self._dependencies.contract(candidate)
        except NotFoundError as err:
            raise NotFoundError(f"--include-plugin {flag} is not published: {err}") from err
        if isinstance(contract, SourceContentError):
            raise SourceContentError(f"--include-plugin {flag} cannot be taken: {contract}")
        self._dependencies.warn_of_unmet_needs(candidate, contract)
        self._journal.choose(candidate, Edge("explicit", flag, str(exact)))
        return candidate, flag

    def _take_newest(self, name: str, constraint: Constraint | None) -> None:
        flag = f"{name}@{constraint}" if constraint else name
        tags, need = self._published(name, flag), Requirement(name, constraint)
        fitting = (one for one in self._dependencies.stable(name) if need.accepts(one.version))
        take = partial(self._dependencies.take, strict=False)
        taken, first = self._dependencies.newest(fitting, take)
        if taken is None and first:
            raise SourceContentError(f"--include-plugin {flag} cannot be taken: {first}")
        if taken is None:
            self._not_published(flag, tags_of_versions(tags).values())
        self._journal.choose(taken, Edge("explicit", flag, str(constraint or "")))
        if first:
            self._journal.warnings.append(
                f"--include-plugin {flag}: {taken.tag} is taken, because {first}"
            )

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

    # -- the result -------------------------------------------------------------------------------

    def selected(self) -> SelectedPlugins:
        edges: dict[Candidate, dict[Edge, None]] = {}
        for candidate, edge in self._journal.choices:
            edges.setdefault(candidate, {})[edge] = None
        order = sorted(edges, key=lambda one: (one.name, one.version))
        taken = {one.name for one in order}
        return SelectedPlugins(
            tuple(PluginChoice(one.name, one.version, one.tag, tuple(edges[one])) for one in order),
            tuple(
                SkippedPlugin(name, self._skipped[name])
                for name in sorted(self._skipped.keys() - taken)
            ),
            tuple(dict.fromkeys((*self._journal.warnings, *self._conditional_warnings(order)))),
        )

    def _conditional_warnings(self, chosen: Iterable[Candidate]) -> list[str]:
        """Conditional needs that do not hold, although the module or plugin is there."""
        warnings: list[str] = []
        for candidate in chosen:
            contract = self._dependencies.contract(candidate)
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


# -- what the source says --------------------------------------------------------------------------


def plugins_for(
    source: ReleaseSource,
    wanted: Filter,
    modules: Mapping[str, Collection[str]],
    platform: Collection[Version],
    *,
    proxy: bool,
) -> tuple[PluginChoice, ...]:
    """Choose the plugins for a bundle with these module tags and platform releases."""
    for warning in wanted.warnings:
        source.warn(warning)
    selected = select_plugins(
        _SourcePlugins(source, wanted.names),
        modules={
            name: [version for tag in tags if (version := parse_version(tag)) is not None]
            for name, tags in modules.items()
        },
        platform=platform,
        wanted=[wanted.items[name] for name in wanted.names],
        proxy=proxy,
    )
    for warning in (
        *(f"plugin {one.name} is left out: {one.reason}" for one in selected.skipped),
        *selected.warnings,
    ):
        source.warn(warning)
    return selected.choices


class _SourcePlugins:
    """What the source says about its plugins (`PluginFacts`)."""

    def __init__(self, source: ReleaseSource, named: Collection[str]) -> None:
        self._source, self._named = source, named
        self._denied: set[str] = set()  # each repository is asked for by one thread at a time

    def names(self) -> Collection[str] | None:
        names = self._tags(PLUGINS)
        # They are needed one after the other; asked for in parallel, the answers are there by then.
        asked = sorted(name for name in names or () if valid_plugin_name(name))
        self._source.each("plugins", asked, self.tags)
        return names

    def tags(self, name: str) -> Collection[str] | None:
        repository = f"{PLUGINS}/{name}"
        # A plugin that the user named must not go missing with a mere warning.
        return self._source.tags(repository) if name in self._named else self._tags(repository)

    def _tags(self, repository: str) -> Collection[str] | None:
        try:
            return self._source.tags(repository)
        except DeniedError:
            # Plugins lie beside the edition, where not every licence reaches.
            if repository not in self._denied:
                self._denied.add(repository)
                where = self._source.tree.origin(repository)
                self._source.warn(f"access to {where} is denied; no plugins are taken from there")
            return None

    def contract(self, name: str, tag: str) -> Contract:
        repository = f"{PLUGINS}/{name}"
        manifest = self._source.required(repository, tag, f"plugin {name}")
        annotation = manifest.annotations.get(ANNOTATION)
        if annotation is None and manifest.children:
            first = manifest.children[0].descriptor.digest
            child = self._source.required(repository, first, f"index {manifest.digest}")
            annotation = child.annotations.get(ANNOTATION)
        where = self._source.where(repository, tag)
        return parse_contract(annotation, name=name, version=tag, where=where)
