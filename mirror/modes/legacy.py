"""The settings of an older installation: `InitConfiguration.deckhouse`."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from mirror.errors import InvalidSettingsError
from mirror.modes.constants import DEFAULT_IMAGES_REPO
from mirror.modes.rules import Finding
from mirror.modes.settings import UpstreamSection

# The cluster's own pattern takes exponential time here; this one accepts the same in linear time.
_HOST = re.compile(r"(?=[a-z0-9][a-z0-9.-])[a-z0-9]+(?:[.-][a-z0-9]+)*(?::[0-9]+)?", re.ASCII)
_FIELD = "deckhouse.registryDockerCfg"
_PATHS = {
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


def init_section(deckhouse: Mapping[str, Any]) -> UpstreamSection:
    """Where `InitConfiguration.deckhouse` says that images are; fields about other things are
    passed over.

    Raises:
        InvalidSettingsError: a rule is broken; `findings` has all of them.
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
    try:
        section = UpstreamSection.model_validate(given)
    except InvalidSettingsError as err:
        findings += (Finding(_PATHS.get(path, path), said) for path, said in err.findings)
        raise InvalidSettingsError(findings) from None
    if findings:
        raise InvalidSettingsError(findings)
    return section


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
        document = json.loads(text)
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


def secret_login(docker_config: SecretStr, host: str) -> _Login:
    """The login for `host` in a docker configuration as plain JSON (`.dockerconfigjson`)."""
    raw = base64.b64encode(docker_config.get_secret_value().encode()).decode()
    return find_login(_auths(raw), host)
