"""The registry's settings as people write them: where they stand, and the rules of each field.

Messages follow the cluster's own, and never repeat a value that could be secret.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mirror.documents import file_bytes, parse_json, read_documents
from mirror.errors import InputError, InvalidSettingsError
from mirror.modes import Mode

_EXPECTED = (
    "expected a ModuleConfig named deckhouse, its settings, the registry section itself, or an "
    "InitConfiguration"
)


class FoundSettings(NamedTuple):
    """The `registry` section and `InitConfiguration.deckhouse`; None if absent."""

    registry: Mapping[str, Any] | None = None
    init: Mapping[str, Any] | None = None
    findings: tuple[Mistake, ...] = ()


def find_registry(source: Path | str | Mapping[str, Any]) -> FoundSettings:
    """Find the settings in a file (`Path`), in YAML text (`str`), or in a mapping."""
    if not isinstance(source, str | Path | Mapping):
        raise InvalidSettingsError([Mistake("registry", no_mapping(source))])
    if isinstance(source, Mapping):
        return _of([source], "the settings")
    if isinstance(source, str):
        hint = " (to read a file, give its path as a Path)"
        return _of(read_documents(source, "the settings", _EXPECTED + hint), "the settings")
    where = str(source)
    documents = read_documents(file_bytes(source), where, _EXPECTED)
    if not documents:
        # A redirection whose command failed leaves an empty file, which must not pass for the
        # deprecated kind of Unmanaged.
        raise InputError(f"{where} is empty; {_EXPECTED}")
    return _of(documents, where)


def _of(documents: Sequence[Mapping[str, Any]], where: str) -> FoundSettings:
    if not documents:
        return FoundSettings(registry={})  # an empty section: the deprecated kind of Unmanaged
    if len(documents) == 1 and not documents[0].keys() & {"kind", "apiVersion"}:
        if "spec" in documents[0]:
            raise InputError(
                f"{where}: {_EXPECTED}, found a document with spec and without kind; add "
                "kind: ModuleConfig and metadata: {name: deckhouse}"
            )
        return _part(documents[0])
    configs = [one for one in documents if _called(one) == "ModuleConfig deckhouse"]
    inits = [one for one in documents if one.get("kind") == "InitConfiguration"]
    if not configs and not inits:
        kinds = ", ".join(sorted({_called(one) for one in documents}))
        raise InputError(f"{where}: {_EXPECTED}, found {kinds}")
    for same in (configs, inits):
        if len(same) > 1:
            kind = same[0]["kind"]
            raise InputError(f"{where}: it holds {len(same)} documents {kind}; keep one")
    findings: list[Mistake] = []
    registry = _registry(configs[0], findings) if configs else None
    init = _mapping(inits[0].get("deckhouse"), "deckhouse", findings) if inits else None
    if init is not None and not init.keys() & INIT_KEYS:
        init = None  # it does not mention the registry
    if registry is None and init is None:
        registry = {}
    return FoundSettings(registry, init, tuple(findings))


def _called(document: Mapping[str, Any]) -> str:
    """The kind and name of a document, for a message."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    kind = str(document.get("kind", "a document without kind"))[:40]
    return f"{kind} {str(name)[:40]}" if isinstance(name, str) else kind


def _part(document: Mapping[str, Any]) -> FoundSettings:
    """Read settings (with `registry`), or else the section itself."""
    if "registry" in document and not {"mode", *SECTIONS} & document.keys():
        findings: list[Mistake] = []
        section = _mapping(document["registry"], "registry", findings)
        return FoundSettings(section or {}, None, tuple(findings))
    return FoundSettings(registry=document)


def _registry(config: Mapping[str, Any], findings: list[Mistake]) -> Mapping[str, Any] | None:
    spec = _mapping(config.get("spec"), "spec", findings)
    version = spec.get("version")
    if version not in (None, 1):
        findings.append(
            Mistake("spec.version", "expected version 1 of the settings of module deckhouse")
        )
    settings = _mapping(spec.get("settings"), "spec.settings", findings)
    if settings.get("registry") is None:
        return None
    return _mapping(settings["registry"], "spec.settings.registry", findings)


INIT_KEYS = frozenset({"imagesRepo", "registryDockerCfg", "registryScheme", "registryCA"})
"""The fields of `InitConfiguration.deckhouse` that are about the registry; it has others too."""


def _mapping(value: object, path: str, findings: list[Mistake]) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidSettingsError([*findings, Mistake(path, no_mapping(value))])
    return value


# -- the older form: InitConfiguration.deckhouse ---------------------------------------------------

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


def init_fields(deckhouse: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """The fields of a section as `InitConfiguration.deckhouse` gives them, and what is wrong."""
    findings: list[Mistake] = []
    repo = deckhouse.get("imagesRepo")
    if repo is None:
        repo = "registry.deckhouse.io/deckhouse/ce"
    given: dict[str, Any] = {
        "imagesRepo": repo.strip().rstrip("/") if isinstance(repo, str) else repo,
        "scheme": deckhouse.get("registryScheme"),
        "ca": deckhouse.get("registryCA"),
    }
    docker_config = deckhouse.get("registryDockerCfg")
    if docker_config is not None:
        try:
            host = str(given["imagesRepo"]).partition("/")[0]
            given["username"], given["password"] = docker_login(docker_config, host)
        except InvalidSettingsError as err:
            findings += map(Mistake._make, err.findings)
    return given, findings


def docker_login(encoded: object, host: str) -> tuple[str, str]:
    """User and password for `host` in a docker configuration in base64; empty for anonymous use."""
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
    entry = auths[host]
    if not entry.get("auth"):
        return str(entry.get("username") or ""), str(entry.get("password") or "")
    text = _decoded(str(entry["auth"]))
    if text is None:
        raise _wrong("unable to decode registryDockerCfg: expected base64 of a login in auth")
    username, _, password = text.partition(":")
    return username, password


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
    """Decode standard base64, padding optional; None if it is something else."""
    bare = "".join(encoded.split()).rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def _wrong(message: str) -> InvalidSettingsError:
    return InvalidSettingsError([Mistake(_FIELD, message)])


# -- the rules of the fields -----------------------------------------------------------------------

IMAGES_REPO_PATTERN = r"^[0-9a-zA-Z\.\-]+(\:[0-9]{1,5})?(\/[0-9a-zA-Z\.\-\_]+)*$"

_IMAGES_REPO = re.compile(r"([0-9a-zA-Z.\-]+)(?::([0-9]{1,5}))?((?:/[0-9a-zA-Z.\-_]+)*)", re.ASCII)
_TTL = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}", re.ASCII)
_MIN_TTL_S = 5 * 60
_MAX_TTL_S = (1 << 63) // 10**9  # what the cluster keeps durations in: 64 bits of nanoseconds

SECTIONS = {"direct": "Direct", "unmanaged": "Unmanaged", "proxy": "Proxy"}
"""Section → the mode it belongs to. `Local` has none."""


class Mistake(NamedTuple):
    """What is wrong, and with which field: a path such as `registry.direct.imagesRepo`."""

    path: str
    message: str


def images_repo(value: str) -> str | None:
    """What is wrong with an address of images; None if nothing."""
    if not value:
        return "Field 'imagesRepo' is required"
    match = _IMAGES_REPO.fullmatch(value)
    if match is None:
        return (
            f"does not match the regexp pattern: `{IMAGES_REPO_PATTERN}`; write host[:port]/path "
            "without a scheme, a login or a / at the end"
        )
    host, port, path = match.groups()
    if port is not None and not 0 < int(port) < 65536:
        return f"port {int(port)} does not exist; expected 1 to 65535"
    if any(segment in (".", "..") for segment in (host, *path.split("/"))):
        return "a part of the address is . or ..; write the real path"
    return None


def ttl_seconds(value: str) -> int | None:
    """Seconds of a duration such as `168h10m5s`; None if it is empty or not of that form."""
    match = _TTL.fullmatch(value)
    # Python refuses to read numbers of thousands of digits.
    if match is None or not value or len(value) > 64:
        return None
    hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def ttl(value: str) -> str | None:
    """What is wrong with a cache's time to live; None if nothing."""
    seconds = ttl_seconds(value)
    shown = f'invalid ttl format "{value[:64]}"'
    if seconds is None:
        return (
            f'{shown}: expected whole hours, minutes and seconds such as "168h10m5s"; '
            'must be at least "5m0s"'
        )
    if seconds < _MIN_TTL_S:
        return f"{shown}: must be at least \"5m0s\"; 'ttl' should be at least 5 minutes"
    if seconds > _MAX_TTL_S:
        return f'{shown}: must be at most "{_MAX_TTL_S // 3600}h"'
    return None


def certificates(pem: str) -> str | None:
    """What is wrong with a bundle of certificates in PEM; None if nothing."""
    # Slow to import, and most settings have none.
    from cryptography import x509

    if "PRIVATE KEY" in pem:
        return "CA holds a private key, which would be written to every node; give certificates"
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, x509.InvalidVersion):
        found = []
    if len(found) != pem.count("-----BEGIN CERTIFICATE-----") or not found:
        return (
            "CA cannot be read; expected certificates in PEM form, each from "
            "-----BEGIN CERTIFICATE----- to -----END CERTIFICATE-----"
        )
    return None


def section(path: str, given: Mapping[str, Any], keys: Sequence[str]) -> Iterator[Mistake]:
    """What is wrong with a section: at most one finding per field. Secrets are plain text here."""
    for key in given:
        if key not in keys:
            yield _unknown(path, key, keys)
    texts: dict[str, str] = {}
    for key in keys:
        value = given.get(key)
        if value is None or isinstance(value, str):
            texts[key] = value or ""
        else:
            message = f"expected a text, found {_kind(value)}; write the value in quotes"
            yield Mistake(f"{path}{key}", message)
    for key, problem in _problems(texts, given):
        if key in texts and problem is not None:
            yield Mistake(f"{path}{key}", problem)


def _problems(
    texts: Mapping[str, str], given: Mapping[str, Any]
) -> Iterator[tuple[str, str | None]]:
    """Each field with what is wrong with it. A value of a wrong type counts as given."""

    def has(key: str) -> bool:
        return bool(given.get(key))

    yield "imagesRepo", images_repo(texts.get("imagesRepo", ""))
    scheme = texts.get("scheme", "")
    if "scheme" in texts and given.get("scheme") is not None and scheme not in ("HTTP", "HTTPS"):
        yield "scheme", f"Invalid scheme {scheme[:20]!r}; expected 'HTTP' or 'HTTPS'"
    if has("ca"):
        if scheme == "HTTP":
            yield "ca", "CA is not allowed when scheme is 'HTTP'"
        elif "ca" in texts:
            yield "ca", certificates(texts["ca"])
    for key in ("username", "password", "license"):
        if any(unicodedata.category(one) == "Cc" for one in texts.get(key, "")):
            yield key, f"{key.capitalize()} has a line break or another control character in it"
    if has("license") and (has("username") or has("password")):
        problem = (
            "License field must be empty when using credentials (username/password): "
            "'license' and 'username'/'password' are mutually exclusive"
        )
        yield "license", problem
    if has("password") and not has("username"):
        yield "username", _lacks("username", "password")
    elif ":" in texts.get("username", ""):
        yield "username", "Username must not contain ':', which ends the name where it is sent"
    if has("username") and not has("password"):
        yield "password", _lacks("password", "username")
    check_mode = texts.get("checkMode", "")
    if has("checkMode") and check_mode not in ("Default", "Relax"):
        yield "checkMode", f"unknown registry check mode: {check_mode[:20]}"
    if has("ttl"):
        yield "ttl", ttl(texts.get("ttl", ""))


def _lacks(one: str, other: str) -> str:
    return (
        f"{one.capitalize()} is required when {other} is provided: "
        f"'{one}' is required when '{other}' is provided"
    )


def registry(path: str, given: Mapping[str, Any]) -> Iterator[Mistake]:
    """What is wrong with the mode of a `registry` section and with the choice of sections."""
    for key in given:
        if key != "mode" and key not in SECTIONS:
            yield _unknown(path, key, ("mode", *SECTIONS))
    mode = "Unmanaged" if given.get("mode") is None else given["mode"]
    if not isinstance(mode, str) or mode not in [*Mode]:
        shown = mode[:20] if isinstance(mode, str) else _kind(mode)
        yield Mistake(f"{path}mode", f"Unknown registry mode: {shown}; expected {', '.join(Mode)}")
        return
    for name, owner in SECTIONS.items():
        present = given.get(name) is not None
        if owner != mode and present:
            message = (
                f"Section '{name}' must be empty when mode is not '{owner}': when mode is not "
                f"'{owner}', '{name}' section must be omitted"
            )
            yield Mistake(f"{path}{name}", message)
        elif owner == mode and not present and mode != "Unmanaged":
            message = f"is required: when mode is '{owner}', '{name}' section must be specified"
            yield Mistake(f"{path}{name}", message)


def may_be_legacy(given: Mapping[str, Any]) -> bool:
    """Whether a `registry` section leaves the registry to what the cluster was installed with."""
    return not given.get("unmanaged") and given.get("mode") not in ("Direct", "Proxy", "Local")


def _unknown(path: str, key: object, known: Iterable[str]) -> Mistake:
    # `{password:secret}` is one key to YAML, so only what looks like a field's name is shown.
    name = key if isinstance(key, str) and _NAME.fullmatch(key) else "?"
    return Mistake(f"{path}{name}", f"unknown field; known are {', '.join(known)}")


def _kind(value: object) -> str:
    """The type of a value in words, without the value."""
    match value:
        case bool():
            return "a yes or no"
        case int() | float():
            return "a number"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def no_mapping(value: object) -> str:
    """The message for something that should be a mapping."""
    return f"expected a mapping of fields, found {_kind(value)}"
