"""A plugin's contract: which platform, modules and other plugins it needs.

It is an annotation of the plugin's manifest: base64 of a JSON or YAML document.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from semver import Version

from mirror.documents import parse_json, parse_yaml, problems
from mirror.errors import InputError, SourceContentError
from mirror.layout import comparable, in_order
from mirror.release.constraints import Constraint

ANNOTATION: Final = "contract"
"""The key of the annotation on a plugin's manifest."""

MAX_CONTRACT: Final = 128 * 1024
"""The most bytes of a contract; real ones have a few hundred."""

_PLUGIN_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 128  # a plugin's name is a tag too, in the index of plugins


def valid_plugin_name(name: str) -> bool:
    """Whether a plugin can have this name."""
    return len(name) <= _MAX_NAME and _PLUGIN_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Requirement:
    """A module or plugin that is needed, in a version that `constraint` accepts (None: any)."""

    name: str
    constraint: Constraint | None = None

    @property
    def weight(self) -> int:
        """How much work it is to judge a version by it, in terms of an ordinary constraint."""
        return 1 + len(str(self.constraint or "")) // 16

    def accepts(self, version: Version) -> bool:
        """Whether this version of it will do. Marks of origin (`-main`) do not count."""
        return self.constraint is None or self.constraint.accepts(comparable(version))

    def __str__(self) -> str:
        return f"{self.name} {self.constraint}" if self.constraint else self.name


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Modules: at least one (`anyOf`) or none (`noneOf`) of them must exist."""

    name: str
    members: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What one version of a plugin needs; a conditional need counts if its subject exists."""

    name: str
    version: str
    deckhouse: Constraint | None = None
    kubernetes: Constraint | None = None
    mandatory_modules: tuple[Requirement, ...] = ()
    conditional_modules: tuple[Requirement, ...] = ()
    any_of: tuple[ModuleGroup, ...] = ()
    none_of: tuple[ModuleGroup, ...] = ()
    mandatory_plugins: tuple[Requirement, ...] = ()
    conditional_plugins: tuple[Requirement, ...] = ()

    @property
    def served_modules(self) -> frozenset[str]:
        """The modules that this plugin is for: mandatory ones and members of `anyOf`."""
        groups = (member.name for group in self.any_of for member in group.members)
        return frozenset([*(need.name for need in self.mandatory_modules), *groups])

    def serves(self, module: str) -> tuple[Requirement, ...]:
        """The needs that `module` can meet; the plugin is for the versions that one accepts."""
        mandatory = tuple(need for need in self.mandatory_modules if need.name == module)
        return mandatory or tuple(
            member for group in self.any_of for member in group.members if member.name == module
        )


class BundleVersions:
    """The modules (each with at least one version) and platform releases of a bundle."""

    def __init__(
        self, modules: Mapping[str, Collection[Version]], platform: Collection[Version]
    ) -> None:
        self.modules = {name: in_order(found) for name, found in sorted(modules.items()) if found}
        self.platform = in_order(platform)
        self._met: dict[tuple[str, str], bool] = {}  # module and constraint → whether it is there

    def missing(self, contract: Contract, module: str = "") -> list[str]:
        """What a plugin needs and the bundle does not have. `module` is known to fit.

        A bundle without platform releases meets every need of them. What a plugin says about
        Kubernetes and about modules that must not exist concerns the cluster, not the bundle.
        """
        missing = [
            f"it needs module {need}, and the bundle {self.describe(need.name)}"
            for need in contract.mandatory_modules
            if need.name != module and not self.has(need)
        ]
        missing += [
            f"it needs one of the modules {', '.join(map(str, group.members))} ({group.name}), and "
            "the bundle has none of them in such a version"
            for group in contract.any_of
            if not any(self.has(member) for member in group.members)
        ]
        platform = Requirement("", contract.deckhouse)
        if self.platform and not any(map(platform.accepts, self.platform)):
            missing.append(
                f"it needs a platform release {platform.constraint}, and the bundle has "
                f"{', '.join(map(str, self.platform))}"
            )
        return missing

    def has(self, need: Requirement) -> bool:
        """Whether the bundle has a version of the module that will do."""
        key = need.name, str(need.constraint or "")
        if key not in self._met:
            versions = self.modules.get(need.name, ())
            self._met[key] = any(need.accepts(version) for version in versions)
        return self._met[key]

    def describe(self, module: str) -> str:
        """Which versions of a module the bundle has; continues a sentence after `the bundle`."""
        versions = self.modules.get(module)
        return f"has {', '.join(map(str, versions))}" if versions else "does not have it"


# -- as it is written -----------------------------------------------------------------------------


class _Written(BaseModel):
    """Programs in Go write null for what is empty, people leave the value out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_empty_values(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in value.items() if item is not None and item != ""}


class _WrittenNeed(_Written):
    name: str = ""
    constraint: str = ""


class _WrittenGroup(_Written):
    name: str = ""
    modules: tuple[_WrittenNeed, ...] = ()


class _WrittenKinds(_Written):
    mandatory: tuple[_WrittenNeed, ...] = ()
    conditional: tuple[_WrittenNeed, ...] = ()
    any_of: tuple[_WrittenGroup, ...] = Field((), alias="anyOf")
    none_of: tuple[_WrittenGroup, ...] = Field((), alias="noneOf")

    @model_validator(mode="before")
    @classmethod
    def _no_list(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("a list is the form of old contracts, which are not read")
        return value


class _WrittenRequirements(_Written):
    kubernetes: _WrittenNeed = _WrittenNeed()
    deckhouse: _WrittenNeed = _WrittenNeed()
    modules: _WrittenKinds = _WrittenKinds()
    plugins: _WrittenKinds = _WrittenKinds()


class _WrittenContract(_Written):
    name: str = ""
    version: str = ""
    requirements: _WrittenRequirements = _WrittenRequirements()


# -- reading --------------------------------------------------------------------------------------


def parse_contract(annotation: str | None, *, name: str, version: str, where: str) -> Contract:
    """Read the contract in a manifest's annotation; without an annotation the plugin has no needs.

    `name` and `version` are those of the repository and the tag, for a contract that leaves them
    out. `where` names the manifest in messages.

    Raises:
        SourceContentError: the contract cannot be read, or contradicts itself.
    """
    if annotation is None:
        return Contract(name, version)
    try:
        wire = _WrittenContract.model_validate(_decoded(annotation))
        return _checked(wire, name, version)
    except ValidationError as err:
        problem = problems(err)[0]
    except (ValueError, InputError) as err:
        problem = str(err)
    raise SourceContentError(f"{where}: invalid contract: {problem}")


def _decoded(annotation: str) -> Any:
    if len(annotation) > MAX_CONTRACT * 4 // 3 + 4:
        raise ValueError(f"it is longer than {MAX_CONTRACT} bytes")
    try:
        text = base64.b64decode("".join(annotation.split()), validate=True).decode()
    except ValueError as err:
        raise ValueError(f"not base64 of a text: {err}") from err
    with suppress(ValueError):  # YAML is tolerated, and its reader says more about what is wrong
        return parse_json(text)
    try:
        return parse_yaml(text, texts_only=True)
    except ValueError as err:
        raise ValueError(f"neither JSON nor YAML: {err}") from err


def _checked(wire: _WrittenContract, name: str, version: str) -> Contract:
    needs, at = wire.requirements, "requirements"
    modules, plugins = needs.modules, needs.plugins
    contract = Contract(
        wire.name or name,
        wire.version or version,
        _constraint(needs.deckhouse.constraint, f"{at}.deckhouse"),
        _constraint(needs.kubernetes.constraint, f"{at}.kubernetes"),
        tuple(_needs(modules.mandatory, f"{at}.modules.mandatory")),
        tuple(_needs(modules.conditional, f"{at}.modules.conditional")),
        tuple(_groups(modules.any_of, f"{at}.modules.anyOf")),
        tuple(_groups(modules.none_of, f"{at}.modules.noneOf")),
        tuple(_needs(plugins.mandatory, f"{at}.plugins.mandatory", plugin=True)),
        tuple(_needs(plugins.conditional, f"{at}.plugins.conditional", plugin=True)),
    )
    _check_apart(contract)
    return contract


def _constraint(text: str, at: str) -> Constraint | None:
    if not text.strip():
        return None
    try:
        return Constraint.parse(text)
    except InputError as err:
        raise ValueError(f"{at}: {err}") from err


def _needs(
    items: Iterable[_WrittenNeed], at: str, *, plugin: bool = False
) -> Iterator[Requirement]:
    for number, item in enumerate(items):
        here = f"{at}[{number}]"
        if not item.name:
            raise ValueError(f"{here} has no name")
        if plugin and not valid_plugin_name(item.name):
            raise ValueError(f"{here}: {item.name[:80]!r} is not the name of a plugin")
        yield Requirement(item.name, _constraint(item.constraint, f"{here} ({item.name[:80]})"))


def _groups(groups: Iterable[_WrittenGroup], at: str) -> Iterator[ModuleGroup]:
    names: set[str] = set()
    for number, group in enumerate(groups):
        here = f"{at}[{number}]"
        if not group.name:
            raise ValueError(f"{here} has no name")
        if group.name in names:
            raise ValueError(f"{here}: another group is named {group.name[:80]!r} too")
        names.add(group.name)
        members = tuple(_needs(group.modules, f"{here}.modules"))
        if not members:
            raise ValueError(f"{here} ({group.name[:80]}) has no modules")
        [(name, count)] = Counter(member.name for member in members).most_common(1)
        if count > 1:
            raise ValueError(f"{here} ({group.name[:80]}) names {name[:80]!r} twice")
        yield ModuleGroup(group.name, members)


def _check_apart(contract: Contract) -> None:
    """Refuse a contract that asks for one module in two ways."""
    seen: dict[str, str] = {}
    for kind, needs in (
        ("mandatory", contract.mandatory_modules),
        ("conditional", contract.conditional_modules),
        ("anyOf", [member for group in contract.any_of for member in group.members]),
        ("noneOf", [member for group in contract.none_of for member in group.members]),
    ):
        for name in sorted({need.name for need in needs}):
            before = seen.setdefault(name, kind)
            if before != kind:
                raise ValueError(f"requirements.modules: {name[:80]!r} is both {before} and {kind}")
