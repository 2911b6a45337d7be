"""The settings of `mirror sync --watch`: one YAML file, in our form or in the mirrorer's.

The mirrorer is the container that replicates in Deckhouse's Local mode. Its configuration works
unchanged, and our own keys may stand beside its keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
    model_validator,
)

from mirror.documents import Patience, Rate, Seconds, problems, read_mapping
from mirror.errors import InputError
from mirror.oci import Repository
from mirror.registry import ClientCertificate, ConnectionOptions
from mirror.sync.content import ContentRules, ForeignLayers, SparseIndexes

AUTO = "auto"
"""In place of a leader's name: whichever complete registry has the highest generation."""

_MIRRORER_KEYS = ("local", "remote", "users", "sleep", "parallelizm")
_COMMON_KEYS = ("ca", "insecure", "tls-skip-verify")
"""What holds for all registries there; in our form each has its own."""
_MIRRORER_SLEEP_S, _MIRRORER_JOBS = 10, 3
_LOCAL_ROOT = "system/deckhouse"
_LOCAL = "local"


_FIRST_BACKOFF_S = 1.0


class CheckLevel(StrEnum):
    """How much of a replica a cycle looks at."""

    STATEMENT = "statement"
    """Its published inventory; what that names is asked for only where it changed."""
    AUDIT = "audit"
    """Every tag and manifest, by HEAD."""
    DEEP = "deep"
    """Every byte, read back and hashed."""


def _due(every_s: float | None, now_s: float, last_s: float | None) -> bool:
    return every_s is not None and (last_s is None or now_s - last_s >= every_s)


def kebab(name: str) -> str:
    """The key of a field."""
    return name.replace("_", "-")


class Settings(BaseModel):
    """Part of a settings file: unknown keys are errors, and values do not change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=kebab,
        populate_by_name=True,
        hide_input_in_errors=True,  # the input may be a password
    )

    @classmethod
    def of(cls, document: Mapping[str, Any], path: Path, *parts: type[BaseModel]) -> Self:
        """What the `document` of the file `path` says; `parts` are the models of its parts.

        Raises:
            InputError: something in it is wrong.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as err:
            models: tuple[type[BaseModel], ...] = (cls, *parts)
            keys = [kebab(name) for model in models for name in model.model_fields]
            found = "; ".join(problems(err, "the document", keys))
            raise InputError(f"{path}: {found}") from err


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day, from `begin` to `end` in minutes after midnight of `zone`; it may span it."""

    begin: int
    end: int
    zone: tzinfo
    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, value: Any) -> Window:
        """Read `22:00-05:00`, which is UTC, or `22:00-05:00 Europe/Moscow`."""
        match = _WINDOW.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("a window is needed: 22:00-05:00, or 22:00-05:00 Europe/Moscow")
        begin, end = (60 * int(match[n]) + int(match[n + 1]) for n in (1, 3))
        if begin == end:
            raise ValueError("a window that ends when it begins is always open; leave it out")
        try:
            zone = ZoneInfo(match[5]) if match[5] else UTC
        except (ZoneInfoNotFoundError, ValueError) as err:
            raise ValueError(f"this machine knows no time zone {match[5]}") from err
        return cls(begin, end, zone, value)

    def left_s(self, now: datetime) -> float | None:
        """Seconds until it closes; None while it is closed.

        In the night in which clocks change it closes an hour early or late.
        """
        local = now.astimezone(self.zone)
        passed_s = 3600 * local.hour + 60 * local.minute + local.second
        since_s = (passed_s - 60 * self.begin) % 86400
        length_s = 60 * (self.end - self.begin) % 86400
        return length_s - since_s if since_s < length_s else None


WindowText = Annotated[Window, PlainValidator(Window.parse, json_schema_input_type=str)]
"""A window in a settings file."""

_CLOCK = r"([01]\d|2[0-3]):([0-5]\d)"
_WINDOW = re.compile(rf"{_CLOCK}-{_CLOCK}(?: (\S+))?")


class Schedule(Settings):
    """How often to look, in seconds; `jitter` is a share of the delay. None: that is never due."""

    interval: Seconds = 10.0
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    backoff_limit: Seconds = 300.0
    audit_every: Seconds | None = 3600.0
    deep_every: Seconds | None = None

    def delay(self, failures: int, chance: float) -> float:
        """How long to wait after `failures` failed cycles in a row; `chance` in [0, 1) spreads it.

        After a failure the wait is never shorter than the interval.
        """
        base = self.interval
        if failures:
            doubled = max(base, _FIRST_BACKOFF_S) * 2.0 ** min(failures - 1, 32)
            base = max(base, min(doubled, self.backoff_limit))
        return base * (1 + self.jitter * (2 * chance - 1))

    def level(self, now_s: float, audited_s: float | None, read_s: float | None) -> CheckLevel:
        """What is due at `now_s`, after a last audit and a last deep reading (an audit, too).

        None means that none was made since the start, and one is due.
        """
        if _due(self.deep_every, now_s, read_s):
            return CheckLevel.DEEP
        latest = max((t for t in (audited_s, read_s) if t is not None), default=None)
        return CheckLevel.AUDIT if _due(self.audit_every, now_s, latest) else CheckLevel.STATEMENT


class WatchedRegistry(Settings):
    """A registry that takes part, and how to reach it.

    `address` is host[:port], with a path where that differs from `root`. `cert` and `cert_key` are
    what to show to a registry that asks for a certificate. `trusted_hosts` are those to which it
    may lead although they are in a private network or, as its token server, have no TLS. `storage`
    is its own data folder, from which damaged files are removed: no registry replaces what it
    believes to have.
    """

    address: str
    ca: str | None = None
    cert: Path | None = None
    cert_key: Path | None = None
    trusted_hosts: tuple[str, ...] = ()
    insecure: bool = False
    tls_skip_verify: bool = False
    login: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    storage: Path | None = None

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.insecure and self.address.startswith("https://"):
            raise ValueError("insecure is plain HTTP, and the address says https://; drop one")
        if self.cert_key is not None and self.cert is None:
            raise ValueError("cert-key goes with cert, the certificate that it belongs to")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password-file exclude each other")
        given = self.password is not None or self.password_file is not None
        if given != (self.login is not None):
            raise ValueError("a login goes with a password or password-file, and neither alone")
        return self

    def connection(self) -> ConnectionOptions:
        """How to connect to it."""
        options = ConnectionOptions(
            plain_http=self.insecure,
            verify=not self.tls_skip_verify,
            ca_from="with `ca`",
            plain_by=f"give {self.address} `insecure: true` in the file",
            certificate=ClientCertificate(self.cert, self.cert_key) if self.cert else None,
            trusted_hosts=frozenset(self.trusted_hosts),
        )
        if self.ca is not None and "-----BEGIN" in self.ca:  # as in the mirrorer's settings
            return replace(options, ca=self.ca)
        return replace(options, ca_file=Path(self.ca)) if self.ca is not None else options

    def secret(self) -> str | None:
        """The password, wherever it is; None for a registry that asks for none."""
        if self.password_file is None:
            return self.password.get_secret_value() if self.password is not None else None
        return _secret_in(self.password_file, "password file")


def _secret_in(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"cannot read the {what} {path}: {err}") from err


class WatchSettings(Schedule):
    """What to keep equal, how often to look, and where to show it.

    `this` is the registry beside the daemon, of which `/readyz` tells; `replicas` are those to
    bring up to date: by default `this`, or all but the leader and the upstreams.

    `fleet` describes the rings of which `ring` is ours (`mirror.watch.fleet`). Only within `window`
    something new is carried. `upstreams` are preferred to the leader, in their order, where they
    state the same; for `upstream_wait` seconds one of them is waited for.
    """

    registries: Annotated[dict[str, WatchedRegistry], Field(min_length=2)]
    leader: str = AUTO
    this: str | None = None
    replicas: tuple[str, ...] = ()
    root: str = ""
    modules_path_suffix: str = "/modules"

    fleet: Path | None = None
    ring: str | None = None
    window: WindowText | None = None
    upstreams: tuple[str, ...] = ()
    upstream_wait: Patience = 3600.0

    prune: bool = False
    foreign_layers: ForeignLayers = ForeignLayers.CARRY
    sparse_indexes: SparseIndexes = SparseIndexes.REFUSE
    trusted_keys: tuple[Path, ...] = ()
    allow_downgrade: bool = False
    jobs: Annotated[int, Field(ge=1, le=64)] = 4
    limit_rate: Rate | None = None
    retry_for: Patience | None = None

    listen: str | None = "127.0.0.1:5003"
    notify_token: SecretStr | None = None
    notify_token_file: Path | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """The settings in a YAML file."""
        try:
            document = from_mirrorer(read_mapping(path))
        except ValueError as err:
            raise InputError(f"{path}: {err}") from err
        return cls.of(document, path, WatchedRegistry)

    @model_validator(mode="after")
    def _names_and_places(self) -> Self:
        named = [("leader", self.leader), ("this", self.this)]
        named += [("replicas", name) for name in self.replicas]
        for key, name in [*named, *(("upstreams", name) for name in self.upstreams)]:
            if name is not None and name not in self.registries and (key, name) != ("leader", AUTO):
                known = ", ".join(sorted(self.registries))
                raise ValueError(f"{key}: {name!r} is not one of the registries ({known})")
        if self.leader in self.followers:
            raise ValueError(f"replicas: {self.leader} is the leader, which follows nobody")
        if (self.fleet is None) != (self.ring is None):
            raise ValueError("fleet and ring go together: a file, and the ring of it that is ours")
        if self.leader == AUTO and (self.fleet or self.window or self.upstreams):
            raise ValueError("fleet, window and upstreams need a leader by name: that is the hub")
        if own := {self.leader, *self.followers} & set(self.upstreams):
            raise ValueError(f"upstreams: {min(own)} is the leader or a replica of this daemon")
        for name, place in self.registries.items():
            repository_of(f"registries.{name}", place, self.root)
        if self.listen is not None:
            self.listener()
        if self.notify_token is not None and self.notify_token_file is not None:
            raise ValueError("notify-token and notify-token-file exclude each other")
        return self

    @property
    def rules(self) -> ContentRules:
        """How much of an image must be there."""
        return ContentRules(self.foreign_layers, self.sparse_indexes)

    @property
    def followers(self) -> tuple[str, ...]:
        """The registries that this daemon brings up to date, sorted."""
        if self.replicas:
            return tuple(sorted(set(self.replicas)))
        if self.this is not None and self.this != self.leader:
            return (self.this,)
        return tuple(sorted(self.registries.keys() - {self.leader, *self.upstreams}))

    def repository(self, name: str) -> Repository:
        """The root of what the registry `name` holds."""
        return repository_of(f"registries.{name}", self.registries[name], self.root)

    def public_keys(self) -> tuple[bytes, ...]:
        """The keys whose holders are believed, in PEM."""
        try:
            return tuple(path.read_bytes() for path in self.trusted_keys)
        except OSError as err:
            raise InputError(
                f"trusted-keys: {err.filename} cannot be read: {err.strerror}"
            ) from err

    def token(self) -> str | None:
        """What notifications must carry, wherever it is; None where everybody may notify."""
        if self.notify_token_file is not None:
            return _secret_in(self.notify_token_file, "token file")
        return self.notify_token.get_secret_value() if self.notify_token else None

    def listener(self) -> tuple[str, int]:
        """Host and port to listen on; `listen` must be given."""
        host, colon, port = (self.listen or "").rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"listen: {self.listen!r} is not host:port")
        return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - as others write `:5003`


def repository_of(key: str, place: WatchedRegistry, root: str) -> Repository:
    """The root of what lies in the registry that the setting `key` describes.

    Raises:
        ValueError: its address is none.
    """
    text = place.address if "/" in place.address else f"{place.address}/{root.strip('/')}"
    try:
        return Repository.parse(text)
    except InputError as err:
        raise ValueError(f"{key}.address: {err}") from err


def from_mirrorer(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the mirrorer's keys said in ours: `local` follows whoever has the newest."""
    used = [key for key in _MIRRORER_KEYS if key in document]
    if not used:
        return dict(document)
    ours = {k: v for k, v in document.items() if k not in (*_MIRRORER_KEYS, *_COMMON_KEYS)}
    clash = sorted({"registries", "this", "replicas"} & ours.keys())
    if clash:
        raise ValueError(f"{clash[0]} and {used[0]} exclude each other: two forms of one thing")
    users = _mapping(document.get("users", {}), "users")
    local, remotes = document.get("local"), document.get("remote")
    if not isinstance(local, str) or not local:
        raise ValueError("local: the address of the own registry is missing")
    if not isinstance(remotes, list) or not all(isinstance(one, str) for one in remotes):
        raise ValueError("remote: a list of the peers' addresses is missing")
    if not remotes:
        raise ValueError("remote: there is no peer to replicate from")
    common = {key: document[key] for key in _COMMON_KEYS if document.get(key)}
    storage = {"storage": ours.pop("storage")} if "storage" in ours else {}
    registries = {_LOCAL: {"address": local, **common, **_account(users, "pusher"), **storage}}
    for address in remotes:
        registries[address] = {"address": address, **common, **_account(users, "puller")}
    return {
        "root": _LOCAL_ROOT,
        "interval": document.get("sleep") or _MIRRORER_SLEEP_S,
        "jobs": document.get("parallelizm") or _MIRRORER_JOBS,
        **ours,
        "registries": registries,
        "this": _LOCAL,
    }


def _account(users: Mapping[str, Any], role: str) -> dict[str, Any]:
    user = users.get(role)
    if user is None:
        return {}
    account = _mapping(user, f"users.{role}")
    unknown = sorted(account.keys() - {"name", "password"})
    if unknown:
        raise ValueError(f"users.{role}.{unknown[0]}: unknown setting")
    if not account.get("name") or not account.get("password"):
        raise ValueError(f"users.{role}: name and password are needed")
    return {"login": account["name"], "password": account["password"]}


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: a mapping is needed")
    return value
