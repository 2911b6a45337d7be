"""A plugin's contract: which platform, modules and other plugins it needs.

It is an annotation of the plugin's manifest: base64 of a JSON or YAML document.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from semver import Version

from mirror.documents import parse_json, parse_yaml, problems
from mirror.errors import InputError, SourceContentError
from mirror.layout import comparable, in_order
from mirror.release.constraints import Constraint

ANNOTATION: Final = "contract"
"""The key of the annotation on a plugin's manifest."""

MAX_CONTRACT: Final = 128 * 1024
"""Bytes of a contract that are read at most; real ones have a few hundred."""

_PLUGIN_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_MAX_NAME = 128  # a plugin's name is a tag too, in the index of plugins


def valid_plugin_name(name: str) -> bool:
    """Whether a plugin can have that name."""
    return len(name) <= _MAX_NAME and _PLUGIN_NAME.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Requirement:
    """A module or plugin that is needed, in versions that `constraint` accepts; None: in any."""

    name: str
    constraint: Constraint | None = None

    def accepts(self, version: Version) -> bool:
        """Whether that version of it will do; where a build comes from does not matter."""
        return self.constraint is None or self.constraint.accepts(comparable(version))

    def __str__(self) -> str:
        return f"{self.name} {self.constraint}" if self.constraint else self.name


@dataclass(frozen=True, slots=True)
class Group:
    """Modules of which one at least (`anyOf`), or none (`noneOf`), is to be there."""

    name: str
    members: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """What one version of a plugin needs. Conditional needs count only if the thing is there."""

    name: str
    version: str
    deckhouse: Constraint | None = None
    kubernetes: Constraint | None = None
    mandatory_modules: tuple[Requirement, ...] = ()
    conditional_modules: tuple[Requirement, ...] = ()
    any_of: tuple[Group, ...] = ()
    none_of: tuple[Group, ...] = ()
    mandatory_plugins: tuple[Requirement, ...] = ()
    conditional_plugins: tuple[Requirement, ...] = ()

    @property
    def served_modules(self) -> frozenset[str]:
        """The modules that this plugin is for: mandatory ones and members of `anyOf`."""
        groups = (member.name for group in self.any_of for member in group.members)
        return frozenset([*(need.name for need in self.mandatory_modules), *groups])

    def serves(self, module: str) -> tuple[Requirement, ...]:
        """The needs of which one must accept a version of `module`, for the plugin to be for it."""
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

    def missing(self, contract: Contract, module: str = "") -> list[str]:
        """What a plugin needs and does not find. `module` is known to be there as needed.

        Without any platform release that need is not judged. What a plugin says of Kubernetes and
        of modules that must not be there concerns the cluster, not the bundle.
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
        platform = contract.deckhouse
        if platform is not None and self.platform and not self._has_platform(platform):
            missing.append(
                f"it needs a platform release {platform}, and the bundle has "
                f"{', '.join(map(str, self.platform))}"
            )
        return missing

    def has(self, need: Requirement) -> bool:
        """Whether some version of the module is there that will do."""
        return any(need.accepts(version) for version in self.modules.get(need.name, ()))

    def describe(self, module: str) -> str:
        """Which versions of a module are there, to follow the words `the bundle`."""
        versions = self.modules.get(module)
        return f"has {', '.join(map(str, versions))}" if versions else "does not have it"

    def _has_platform(self, constraint: Constraint) -> bool:
        return any(constraint.accepts(comparable(version)) for version in self.platform)


# -- as it is written -----------------------------------------------------------------------------


def _no_list(value: Any) -> Any:
    if isinstance(value, list):
        raise ValueError("a list is the form of old contracts, which are not read")
    return value or {}


_Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Constraint(_Document):
    constraint: _Text = ""


class _Item(_Document):
    name: _Text = ""
    constraint: _Text = ""


_OptionalConstraint = Annotated[_Constraint, BeforeValidator(lambda value: value or {})]
_Items = Annotated[tuple[_Item, ...], BeforeValidator(lambda value: value or ())]


class _Group(_Document):
    name: _Text = ""
    modules: _Items = ()


_Groups = Annotated[tuple[_Group, ...], BeforeValidator(lambda value: value or ())]


class _Modules(_Document):
    mandatory: _Items = ()
    conditional: _Items = ()
    any_of: _Groups = Field((), alias="anyOf")
    none_of: _Groups = Field((), alias="noneOf")


class _Plugins(_Document):
    mandatory: _Items = ()
    conditional: _Items = ()


class _Requirements(_Document):
    kubernetes: _OptionalConstraint = _Constraint()
    deckhouse: _OptionalConstraint = _Constraint()
    modules: Annotated[_Modules, BeforeValidator(_no_list)] = _Modules()
    plugins: Annotated[_Plugins, BeforeValidator(_no_list)] = _Plugins()


class _Contract(_Document):
    name: _Text = ""
    version: _Text = ""
    requirements: Annotated[_Requirements, BeforeValidator(lambda value: value or {})] = (
        _Requirements()
    )


# -- reading --------------------------------------------------------------------------------------


def parse_contract(annotation: str | None, *, name: str, version: str, where: str) -> Contract:
    """The contract in a manifest's annotation; None means there is none, hence no needs.

    `name` and `version` are the repository's and the tag; they stand in where the contract is
    silent. `where` says which manifest this is.

    Raises:
        SourceContentError: it cannot be read, or contradicts itself.
    """
    if annotation is None:
        return Contract(name, version)
    try:
        wire = _Contract.model_validate(_decoded(annotation))
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
        raw = base64.b64decode("".join(annotation.split()), validate=True)
        text = raw.decode()
    except ValueError as err:
        raise ValueError(f"no base64 of a text: {err}") from err
    try:
        return parse_json(text)
    except ValueError:
        pass  # YAML is tolerated, and its reader has the better messages
    try:
        return parse_yaml(text, texts_only=True)
    except ValueError as err:
        raise ValueError(f"neither JSON nor YAML: {err}") from err


def _checked(wire: _Contract, name: str, version: str) -> Contract:
    needs = wire.requirements
    modules, plugins = needs.modules, needs.plugins
    at = "requirements.modules"
    contract = Contract(
        wire.name or name,
        wire.version or version,
        _constraint(needs.deckhouse.constraint, "requirements.deckhouse"),
        _constraint(needs.kubernetes.constraint, "requirements.kubernetes"),
        tuple(_needs(modules.mandatory, f"{at}.mandatory")),
        tuple(_needs(modules.conditional, f"{at}.conditional")),
        tuple(_groups(modules.any_of, f"{at}.anyOf")),
        tuple(_groups(modules.none_of, f"{at}.noneOf")),
        tuple(_needs(plugins.mandatory, "requirements.plugins.mandatory", plugin=True)),
        tuple(_needs(plugins.conditional, "requirements.plugins.conditional", plugin=True)),
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


def _needs(items: Iterable[_Item], at: str, *, plugin: bool = False) -> Iterator[Requirement]:
    for number, item in enumerate(items):
        here = f"{at}[{number}]"
        if not item.name:
            raise ValueError(f"{here} has no name")
        if plugin and not valid_plugin_name(item.name):
            raise ValueError(f"{here}: {item.name[:80]!r} is not the name of a plugin")
        yield Requirement(item.name, _constraint(item.constraint, f"{here} ({item.name[:80]})"))


def _groups(groups: Iterable[_Group], at: str) -> Iterator[Group]:
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
        counted = Counter(member.name for member in members)
        twice = [name for name, count in counted.items() if count > 1]
        if twice:
            raise ValueError(f"{here} ({group.name[:80]}) names {twice[0][:80]!r} twice")
        yield Group(group.name, members)


def _check_apart(contract: Contract) -> None:
    """See that no module is asked for in ways that contradict each other."""
    kinds = {
        "mandatory": {need.name for need in contract.mandatory_modules},
        "conditional": {need.name for need in contract.conditional_modules},
        "anyOf": {member.name for group in contract.any_of for member in group.members},
        "noneOf": {member.name for group in contract.none_of for member in group.members},
    }
    seen: dict[str, str] = {}
    for kind, names in kinds.items():
        for name in sorted(names):
            if name in seen:
                raise ValueError(
                    f"requirements.modules: {name[:80]!r} is both {seen[name]} and {kind}"
                )
            seen[name] = kind
