"""Where people write the registry's settings: a ModuleConfig, parts of it, among many documents.

The older form is `InitConfiguration.deckhouse`. No message repeats a value: it could be a password
at the wrong place.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from mirror.documents import RepeatedKeyError, StrictLoader, line, parse_json
from mirror.errors import InputError, InvalidSettingsError
from mirror.modes.constants import DEFAULT_IMAGES_REPO
from mirror.modes.rules import SECTIONS, Finding, no_mapping

_EXPECTED = (
    "expected a ModuleConfig named deckhouse, its settings, the registry section itself, or an "
    "InitConfiguration"
)


@dataclass(frozen=True, slots=True)
class FoundSettings:
    """What was found: the `registry` section and `InitConfiguration.deckhouse`, None if absent."""

    registry: Mapping[str, Any] | None = None
    init: Mapping[str, Any] | None = None
    findings: tuple[Finding, ...] = ()


def find_registry(source: Path | str | Mapping[str, Any]) -> FoundSettings:
    """Find the settings in a file (`Path`), in YAML text (`str`), or in a mapping.

    Raises:
        InvalidSettingsError: the documents are not built as they must be.
        InputError: the file cannot be read, is no YAML, or speaks of no registry.
    """
    if isinstance(source, Mapping):
        return _of([source], "the settings")
    if isinstance(source, Path):
        where = str(source)
        try:
            raw: str | bytes = source.read_bytes()
        except OSError as err:
            raise InputError(f"cannot read {where}: {err.strerror}") from err
    else:
        where, raw = "the settings", source
    documents = read_documents(raw, where)
    if not documents and isinstance(source, Path):
        # As a redirection leaves it whose command failed. To read it as the deprecated kind of
        # Unmanaged, which has no settings, would plan a switch to that.
        raise InputError(f"{where} is empty; {_EXPECTED}")
    return _of(documents, where)


def read_documents(raw: str | bytes, where: str) -> list[Mapping[str, Any]]:
    """The YAML documents of a text, empty ones left out; messages never quote them.

    Raises:
        InputError: it is no YAML, or something in it is no mapping.
    """
    try:
        documents = list(yaml.load_all(raw, StrictLoader))
    # Not `from err`, whose text may quote the document.
    except RepeatedKeyError as err:
        raise InputError(f"{where}: {err.problem}{line(err)}") from None
    except ConstructorError as err:
        raise InputError(
            f"{where}: a value is not what it looks like{line(err)}; write it in quotes"
        ) from None
    except ComposerError as err:
        raise InputError(
            f"{where}: a value that begins with * must be in quotes{line(err)}"
        ) from None
    except yaml.MarkedYAMLError as err:
        raise InputError(f"{where} is no YAML: {err.problem}{line(err)}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InputError(f"{where} is no YAML") from None
    documents = [document for document in documents if document is not None]
    if not all(isinstance(document, Mapping) for document in documents):
        hint = "; to read a file, give its path as a Path" if where == "the settings" else ""
        raise InputError(f"{where}: {_EXPECTED}, found something that is no mapping{hint}")
    return documents


def _of(documents: Sequence[Mapping[str, Any]], where: str) -> FoundSettings:
    if len(documents) == 1 and "kind" not in documents[0] and "apiVersion" not in documents[0]:
        if "spec" in documents[0]:
            raise InputError(
                f"{where}: {_EXPECTED}, found a document with spec and without kind; add "
                "kind: ModuleConfig and metadata: {name: deckhouse}"
            )
        return _part(documents[0])
    configs = [one for one in documents if _is_module_config(one)]
    inits = [one for one in documents if one.get("kind") == "InitConfiguration"]
    if not documents:
        return FoundSettings(registry={})  # an empty section: the deprecated kind of Unmanaged
    if not configs and not inits:
        kinds = ", ".join(sorted({_called(one) for one in documents}))
        raise InputError(f"{where}: {_EXPECTED}, found {kinds}")
    for same in (configs, inits):
        if len(same) > 1:
            kind = same[0]["kind"]
            raise InputError(f"{where}: it holds {len(same)} documents {kind}; keep one")
    findings: list[Finding] = []
    registry = _registry(configs[0], findings) if configs else None
    init = _init(inits[0], findings) if inits else None
    if registry is None and init is None:
        registry = {}
    return FoundSettings(registry, init, tuple(findings))


def _called(document: Mapping[str, Any]) -> str:
    """How a document calls itself, for a message."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    kind = str(document.get("kind", "a document without kind"))[:40]
    return f"{kind} {str(name)[:40]}" if isinstance(name, str) else kind


def _is_module_config(document: Mapping[str, Any]) -> bool:
    if document.get("kind") != "ModuleConfig":
        return False
    metadata = document.get("metadata")
    return isinstance(metadata, Mapping) and metadata.get("name") == "deckhouse"


def _part(document: Mapping[str, Any]) -> FoundSettings:
    """Settings, or the section itself: the one has a `registry`, the other a mode or sections.

    Whatever else is taken for the section, so that a misspelt key is found and not passed over.
    """
    if "registry" in document and not {"mode", *SECTIONS} & document.keys():
        findings: list[Finding] = []
        section = _mapping(document["registry"], "registry", findings)
        return FoundSettings(section or {}, None, tuple(findings))
    return FoundSettings(registry=document)


def _registry(config: Mapping[str, Any], findings: list[Finding]) -> Mapping[str, Any] | None:
    spec = _mapping(config.get("spec"), "spec", findings)
    version = spec.get("version")
    if version not in (None, 1):
        findings.append(
            Finding("spec.version", "expected version 1 of the settings of module deckhouse")
        )
    settings = _mapping(spec.get("settings"), "spec.settings", findings)
    if settings.get("registry") is None:
        return None
    return _mapping(settings["registry"], "spec.settings.registry", findings)


def _init(document: Mapping[str, Any], findings: list[Finding]) -> Mapping[str, Any] | None:
    """The part about deckhouse; None where it sets nothing about the registry."""
    section = _mapping(document.get("deckhouse"), "deckhouse", findings)
    return section if any(key in INIT_KEYS for key in section) else None


INIT_KEYS = ("imagesRepo", "registryDockerCfg", "registryScheme", "registryCA")
"""The fields of `InitConfiguration.deckhouse` that are about the registry; it has others too."""


def _mapping(value: object, path: str, findings: list[Finding]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidSettingsError([*findings, Finding(path, no_mapping(value))])
    return value


# -- the older form, InitConfiguration.deckhouse --

# The cluster's own pattern takes exponential time here; this one accepts the same in linear time.
_HOST = re.compile(r"(?=[a-z0-9][a-z0-9.-])[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]+)?", re.ASCII)
_FIELD = "deckhouse.registryDockerCfg"
INIT_PATHS = {
    "imagesRepo": "deckhouse.imagesRepo",
    "scheme": "deckhouse.registryScheme",
    "ca": "deckhouse.registryCA",
    "username": _FIELD,
    "password": _FIELD,
}
"""Field of the section → the field of the older form that it comes from."""


@dataclass(frozen=True, slots=True)
class _Login:
    username: str = ""
    password: str = field(default="", repr=False)


def init_fields(deckhouse: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """The fields of a section as `InitConfiguration.deckhouse` gives them, and what is wrong.

    Only the docker configuration is checked here. Fields about other things are passed over.
    """
    findings: list[Finding] = []
    given: dict[str, Any] = {}
    for key, name, default in (
        ("imagesRepo", "imagesRepo", DEFAULT_IMAGES_REPO),
        ("registryScheme", "scheme", None),
        ("registryCA", "ca", None),
    ):
        value = deckhouse.get(key)
        given[name] = default if value is None else value
    if isinstance(given["imagesRepo"], str):
        given["imagesRepo"] = given["imagesRepo"].strip().rstrip("/")
    docker_config = deckhouse.get("registryDockerCfg")
    if docker_config is not None:
        try:
            host = str(given["imagesRepo"]).partition("/")[0]
            login = docker_login(docker_config, host)
            given |= {"username": login.username, "password": login.password}
        except InvalidSettingsError as err:
            findings += map(Finding._make, err.findings)
    return given, findings


def docker_login(encoded: object, host: str) -> _Login:
    """The login for `host` in a docker configuration in base64; an empty one for anonymous use.

    The host must be listed.

    Raises:
        InvalidSettingsError: it is no such document, or does not list the host.
    """
    auths = _auths(encoded)
    for name in auths:
        if not _HOST.fullmatch(name):
            raise _wrong(
                f'invalid registryDockerCfg. Your auths host "{name[:100]}" should be similar to '
                '"your.private.registry.example.com"'
            )
    if host not in auths:
        raise _wrong(
            'incorrect registryDockerCfg. It must contain auths host {"auths": '
            f'{{ "{host[:200]}": {{}}}}}}'
        )
    return find_login(auths, host)


def find_login(auths: Mapping[str, Mapping[str, Any]], host: str) -> _Login:
    """The first login whose host equals `host`, schemes and paths aside; an empty one if none."""
    for name, entry in auths.items():
        if _host_of(name) != _host_of(host):
            continue
        auth = entry.get("auth")
        if auth:
            text = _decoded(str(auth))
            if text is None:
                raise _wrong("unable to decode registryDockerCfg: an auth is no base64 of a login")
            username, _, password = text.partition(":")
            return _Login(username, password)
        return _Login(str(entry.get("username") or ""), str(entry.get("password") or ""))
    return _Login()


def _auths(encoded: object) -> dict[str, Mapping[str, Any]]:
    text = _decoded(encoded) if isinstance(encoded, str) else None
    if text is None:
        raise _wrong("unable to decode registryDockerCfg: expected base64 of a docker config JSON")
    try:
        document = parse_json(text)
        auths = document.get("auths") or {}
        return {str(name): dict(entry or {}) for name, entry in auths.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        # Not `from err`: its text may quote the document.
        raise _wrong(
            'unable to decode registryDockerCfg: expected JSON such as {"auths": {"host": {}}}'
        ) from None


def _decoded(encoded: str) -> str | None:
    """Standard base64, padding optional; None if it is something else."""
    bare = "".join(encoded.split()).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _host_of(name: str) -> str:
    return re.sub(r"^https?://", "", name).partition("/")[0]


def _wrong(message: str) -> InvalidSettingsError:
    return InvalidSettingsError([Finding(_FIELD, message)])
