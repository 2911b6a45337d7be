"""How a cluster reaches its images: the registry's settings, how to get at its replicas, facts.

All rules hold for constructors too. Secrets show in no `repr`, dump or message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel

from mirror.errors import InvalidSettingsError
from mirror.modes import UNKNOWN_VERSION, Mode, ModeKind, RegistryUser, StoreContent, module_config
from mirror.modes.module_config import INIT_PATHS, Mistake, find_registry, init_fields


@dataclass(frozen=True, slots=True)
class Account:
    """A login: a name and its password, which no `repr` shows."""

    name: str
    password: SecretStr


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Where a cluster's registry replicas are, whom to trust there, and who we are.

    `masters` are addresses (InternalIP) without a port, in the order of trying, and `names` the
    names of their nodes, by address, as far as they are known; `ca` is the module's own authority
    in PEM. Clients trust `public_ca` at `public_host` (`registry.<PUBLIC_DOMAIN>`) beside the
    system's roots, and show `public_cert_file` with its key (PEM) there if the ingress asks for a
    certificate. Leave out what the mode and plane at hand do not need.
    """

    masters: tuple[str, ...] = ()
    ca: str | None = None
    public_host: str | None = None
    public_ca: str | None = None
    accounts: Mapping[RegistryUser, Account] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    public_cert_file: Path | None = None
    public_key_file: Path | None = None

    def __post_init__(self) -> None:
        for name in ("accounts", "names"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def account(self, user: RegistryUser) -> Account | None:
        """The login of one of the module's users; None if it is not known here."""
        return self.accounts.get(user)


NO_ACCESS = ClusterAccess()
"""Nothing is known of the cluster: enough to reach only the upstream."""


class CheckMode(StrEnum):
    """Which images a registry must hold before a cluster is switched to it."""

    DEFAULT = "Default"
    RELAX = "Relax"


@dataclass(frozen=True, slots=True)
class Upstream:
    """The registry outside of the cluster.

    `path` has no slash in front and is empty where images lie at the host's root; `ca` is PEM, and
    None means the system's roots. A license has become the login it stands for.
    """

    host: str
    path: str
    scheme: Literal["http", "https"] = "https"
    ca: str | None = None
    username: str | None = None
    password: SecretStr | None = None

    @property
    def base(self) -> str:
        """`host[:port]/path`: what references to its images begin with."""
        return f"{self.host}/{self.path}" if self.path else self.host

    @property
    def account(self) -> Account | None:
        """Its login; None for anonymous use."""
        if self.username is None:
            return None
        return Account(self.username, self.password or SecretStr(""))


_DOCUMENT = object()
"""The context in which what is validated was written by people."""


class CamelModel(BaseModel):
    """Frozen, with keys as Kubernetes spells them, and no others. Its errors quote no value."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def document_keys(cls) -> dict[str, str]:
        """Each field's name with the key that documents have for it, in order."""
        return {name: field.alias or name for name, field in cls.model_fields.items()}


class _Section(CamelModel):
    @classmethod
    def _by_key(cls, data: Mapping[Any, Any], info: ValidationInfo) -> dict[str, Any]:
        """The given fields by their names in documents. Only programs may also use ours."""
        ours = {} if info.context is _DOCUMENT else cls.document_keys()
        return {ours.get(str(key), str(key)): value for key, value in data.items()}


class UpstreamSection(_Section):
    """The section of a mode that has an upstream.

    Raises:
        InvalidSettingsError: a rule is broken; `findings` has all of them.
    """

    images_repo: str
    scheme: Literal["HTTP", "HTTPS"] = "HTTPS"
    ca: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    license: SecretStr | None = None
    check_mode: CheckMode = CheckMode.DEFAULT

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, UpstreamSection):
            return data
        given, findings = cls._inspect("", data, info)
        if findings:
            raise InvalidSettingsError(findings)
        return given

    @classmethod
    def _inspect(
        cls, path: str, data: Any, info: ValidationInfo
    ) -> tuple[dict[str, Any], list[Mistake]]:
        """The given fields and the mistakes in them. An empty text counts as absent."""
        if not isinstance(data, Mapping):
            return {}, [Mistake(path.rstrip("."), module_config.no_mapping(data))]
        given = {
            key: value.get_secret_value() if isinstance(value, SecretStr) else value
            for key, value in cls._by_key(data, info).items()
        }
        findings = list(module_config.section(path, given, [*cls.document_keys().values()]))
        kept = {key: value for key, value in given.items() if value is not None and value != ""}
        return kept, findings

    @property
    def upstream(self) -> Upstream:
        """The registry that the section names."""
        host, _, path = self.images_repo.partition("/")
        name, password = self.username, self.password
        if self.license is not None:
            name, password = "license-token", self.license
        scheme: Literal["http", "https"] = "http" if self.scheme == "HTTP" else "https"
        return Upstream(host, path, scheme, self.ca, name, password)


class ProxySection(UpstreamSection):
    """The section of Proxy mode, with the time that the cache keeps images."""

    ttl: str | None = None

    @property
    def ttl_s(self) -> int | None:
        """How long the cache keeps an image, in seconds; None leaves it to the cache (168 h)."""
        return None if self.ttl is None else module_config.ttl_seconds(self.ttl)


class RegistrySettings(_Section):
    """How a cluster reaches its images: the mode, and the section that belongs to it.

    `legacy` is not a field of documents: it has the settings of the installation, if they are
    known, in the deprecated kind of Unmanaged.

    Raises:
        InvalidSettingsError: a rule is broken; `findings` has all of them.
    """

    mode: Mode = Mode.UNMANAGED
    direct: UpstreamSection | None = None
    unmanaged: UpstreamSection | None = None
    proxy: ProxySection | None = None
    legacy: UpstreamSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _check(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, RegistrySettings):
            return data
        if not isinstance(data, Mapping):
            raise InvalidSettingsError([Mistake("registry", module_config.no_mapping(data))])
        keys = cls._by_key(data, info)
        legacy = keys.get("legacy")
        if legacy is None or isinstance(legacy, UpstreamSection):
            keys.pop("legacy", None)  # known to programs, and not a field of a document
        findings = [*module_config.registry("registry.", keys)]
        given = {key: value for key, value in keys.items() if value is not None}
        for name in module_config.SECTIONS:
            kind = ProxySection if name == "proxy" else UpstreamSection
            section = given.get(name)
            if section is not None and not isinstance(section, kind):
                findings += kind._inspect(f"registry.{name}.", section, info)[1]
        if legacy is not None and not module_config.may_be_legacy(given):
            findings.append(_TWICE)
        if findings:
            raise InvalidSettingsError(findings)
        return given if legacy is None else {**given, "legacy": legacy}

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any]) -> RegistrySettings:
        """Settings from a file (`Path`), from YAML text (`str`), or from a mapping.

        That is a whole ModuleConfig `deckhouse`, its `settings`, the `registry` section itself, or
        an InitConfiguration; other documents of a file or text are ignored.

        Raises:
            InvalidSettingsError: a rule is broken; `findings` has all of them.
            InputError: the file cannot be read, is not YAML, or has no registry settings.
        """
        found = find_registry(source)
        findings, legacy = list(found.findings), None
        if found.init is not None:
            given, wrong = init_fields(found.init)
            try:
                legacy = UpstreamSection.model_validate(given)
            except InvalidSettingsError as err:
                wrong += (Mistake(INIT_PATHS.get(path, path), said) for path, said in err.findings)
            if wrong:
                legacy = None
            findings += wrong
        registry = found.registry
        if registry is None:
            registry = {} if legacy is None else {"legacy": legacy}
        elif legacy is not None:
            findings.append(_TWICE)
        try:
            settings = cls.model_validate(registry, context=_DOCUMENT)
        except InvalidSettingsError as err:
            findings += map(Mistake._make, err.findings)
        if findings:
            raise InvalidSettingsError(findings, str(source) if isinstance(source, Path) else "")
        return settings

    @property
    def kind(self) -> ModeKind:
        """The mode as the table of modes has it."""
        return ModeKind.of(self.mode, configurable=self.unmanaged is not None)

    @property
    def configurable(self) -> bool:
        """False for the deprecated kind of Unmanaged, whose registry was set at installation."""
        return self.kind.row.configurable

    @property
    def managed(self) -> bool:
        """Whether images go by the logical address: all modes but Unmanaged."""
        return self.kind.row.managed

    @property
    def section(self) -> UpstreamSection | None:
        """The section of the mode: None for Local, which has none, and for what is unknown."""
        return self.direct or self.proxy or self.unmanaged or self.legacy  # never two of them

    @property
    def upstream(self) -> Upstream | None:
        """The registry outside of the cluster; None for Local, and for what is unknown."""
        return None if self.section is None else self.section.upstream

    @property
    def check_mode(self) -> CheckMode:
        """Which images are required; Local has no setting for it and wants all."""
        return CheckMode.DEFAULT if self.section is None else self.section.check_mode


_TWICE = Mistake(
    "registry",
    "the registry is set here and in InitConfiguration.deckhouse too; keep one, best this one",
)


class ContainerdConfig(StrEnum):
    """A node's label that tells whether its containerd has registry settings of its own."""

    DEFAULT = "default"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node. `version` is that of the registry configuration which it has applied.

    `services` is that of the configuration with which a master's own registry runs: its pod says it
    (`registry.deckhouse.io/config-version`).
    """

    name: str
    master: bool = False
    ready: bool | None = None
    schedulable: bool | None = None
    cri: str | None = None
    containerd_config: ContainerdConfig | None = None
    version: str = UNKNOWN_VERSION
    services: str = UNKNOWN_VERSION


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """A cluster as it is before a switch.

    `bootstrapped`: bootstrap is completely finished. `managed_by_dkp`: not a Managed Kubernetes.
    `static`: without a cloud provider's machines. `queue_empty`: Deckhouse's queue of tasks.
    `node_config_managed`: the Secret `registry-bashible-config` exists. `saved_parameters`: an
    earlier mode left its parameters for the deprecated kind of Unmanaged. `images_present`: the
    target's registry holds the required images. `stores`: what lies on the masters' disks.
    `aborted`: the settings of a switch that was begun and not completed.
    """

    # As documents have it, with the nodes in it.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", alias_generator=to_camel, hide_input_in_errors=True
    )

    bootstrapped: bool | None = None
    managed_by_dkp: bool | None = None
    static: bool | None = None
    queue_empty: bool | None = None
    node_config_managed: bool | None = None
    saved_parameters: bool | None = None
    images_present: bool | None = None
    nodes: tuple[NodeFacts, ...] | None = None
    stores: frozenset[StoreContent] | None = None
    aborted: RegistrySettings | None = None

    @property
    def masters(self) -> tuple[NodeFacts, ...] | None:
        """The masters among the nodes."""
        return None if self.nodes is None else tuple(node for node in self.nodes if node.master)
