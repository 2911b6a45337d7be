"""The rules of the registry settings, each as a function that says what is wrong with a value.

A message never repeats a value that could be a secret or hold one. The texts follow the cluster's
own, so that whoever knows those recognises these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

IMAGES_REPO_PATTERN = r"^[0-9a-zA-Z\.\-]+(\:[0-9]{1,5})?(\/[0-9a-zA-Z\.\-\_]+)*$"
TTL_PATTERN = r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$"

_IMAGES_REPO = re.compile(r"([0-9a-zA-Z.\-]+)(?::([0-9]{1,5}))?((?:/[0-9a-zA-Z.\-_]+)*)", re.ASCII)
_TTL = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}", re.ASCII)
_MIN_TTL_S = 5 * 60
_MAX_TTL_S = (1 << 63) // 10**9  # what the cluster keeps durations in: 64 bits of nanoseconds

SCHEMES = ("HTTP", "HTTPS")
CHECK_MODES = ("Default", "Relax")
MODES = ("Direct", "Proxy", "Local", "Unmanaged")
SECTIONS = {"direct": "Direct", "unmanaged": "Unmanaged", "proxy": "Proxy"}
"""Section → the mode it belongs to. `Local` has none."""

_LACKS_USERNAME = (
    "Username is required when password is provided: "
    "'username' is required when 'password' is provided"
)
_LACKS_PASSWORD = (
    "Password is required when username is provided: "  # noqa: S105 -- a message
    "'password' is required when 'username' is provided"
)

SECTION_KEYS = ("imagesRepo", "scheme", "ca", "username", "password", "license", "checkMode")
PROXY_KEYS = (*SECTION_KEYS, "ttl")


class Finding(NamedTuple):
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
    """Seconds of a duration such as `168h10m5s`; None if it is written otherwise or empty."""
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


def section(path: str, given: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Finding]:
    """What is wrong with a section, whose fields are under their own names, secrets as plain text.

    At most one finding a field.
    """
    for key in given:
        if key not in keys:
            yield _unknown(path, key, keys)
    texts: dict[str, str] = {}
    odd = set()
    for key in keys:
        value = given.get(key)
        if value is None or isinstance(value, str):
            texts[key] = value or ""
        else:
            odd.add(key)
            yield Finding(
                f"{path}{key}",
                f"expected a text, found {_kind(value)}; write the value in quotes",
            )
    for key, problem in _problems(texts, given):
        if key in keys and key not in odd and problem is not None:
            yield Finding(f"{path}{key}", problem)


def _problems(
    texts: Mapping[str, str], given: Mapping[str, Any]
) -> Iterator[tuple[str, str | None]]:
    """Each field with what is wrong with it. A text that is no text counts as given."""

    def has(key: str) -> bool:
        return bool(given.get(key))

    yield "imagesRepo", images_repo(texts.get("imagesRepo", ""))
    scheme = texts.get("scheme", "")
    if "scheme" in texts and given.get("scheme") is not None and scheme not in SCHEMES:
        yield "scheme", f"Invalid scheme {scheme[:20]!r}; expected 'HTTP' or 'HTTPS'"
    if has("ca"):
        if scheme == "HTTP":
            yield "ca", "CA is not allowed when scheme is 'HTTP'"
        elif "ca" in texts:
            yield "ca", certificates(texts["ca"])
    exclusive = "'license' and 'username'/'password' are mutually exclusive"
    if has("license") and (has("username") or has("password")):
        yield (
            "license",
            f"License field must be empty when using credentials (username/password): {exclusive}",
        )
    if has("password") and not has("username"):
        yield "username", _LACKS_USERNAME
    elif ":" in texts.get("username", ""):
        yield "username", "Username must not contain ':', which ends the name where it is sent"
    if has("username") and not has("password"):
        yield "password", _LACKS_PASSWORD
    check_mode = texts.get("checkMode", "")
    if given.get("checkMode") is not None and check_mode not in CHECK_MODES:
        yield "checkMode", f"unknown registry check mode: {check_mode[:20]}"
    if "ttl" in given and given["ttl"] is not None:
        yield "ttl", ttl(texts.get("ttl", ""))


def registry(path: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with the `registry` section itself: its mode, and which sections are there.

    The content of sections is not looked at.
    """
    for key in given:
        if key != "mode" and key not in SECTIONS:
            yield _unknown(path, key, ("mode", *SECTIONS))
    mode = given.get("mode")
    if mode is None:
        mode = "Unmanaged"
    if not isinstance(mode, str) or mode not in MODES:
        shown = mode[:20] if isinstance(mode, str) else _kind(mode)
        yield Finding(f"{path}mode", f"Unknown registry mode: {shown}; expected {', '.join(MODES)}")
        return
    for name, owner in SECTIONS.items():
        present = given.get(name) is not None
        if owner != mode and present:
            yield Finding(
                f"{path}{name}",
                f"Section '{name}' must be empty when mode is not '{owner}': when mode is not "
                f"'{owner}', '{name}' section must be omitted",
            )
        elif owner == mode and not present and mode != "Unmanaged":
            yield Finding(
                f"{path}{name}",
                f"is required: when mode is '{owner}', '{name}' section must be specified",
            )


def may_be_legacy(given: Mapping[str, Any]) -> bool:
    """Whether a `registry` section leaves the registry to what the cluster was installed with."""
    return not given.get("unmanaged") and given.get("mode") not in ("Direct", "Proxy", "Local")


def _unknown(path: str, key: object, known: Iterable[str]) -> Finding:
    # `{password:secret}` is one key to YAML, so only what looks like a field's name is shown.
    name = key if isinstance(key, str) and _NAME.fullmatch(key) else "?"
    return Finding(f"{path}{name}", f"unknown field; known are {', '.join(known)}")


def _kind(value: object) -> str:
    """What a value is, without the value."""
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
