"""Logins from the credential stores that docker, podman and ORAS share.

Docker's order holds for each name: the helper of that registry, the general store, then what the
file itself has. Podman, skopeo and ORAS also store logins for a path below a host; the longest name
that fits decides. `oras` knows the two names of this machine; it is imported when a login is looked
for, as it loads slowly. No network request is made.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirror.documents import parse_json
from mirror.errors import InputError
from mirror.registry.auth import Credentials

_log = logging.getLogger(__name__)

_DOCKER_HUB = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_NAME = "<token>"  # noqa: S105 (the name by which helpers mark an identity token)
_HELPER_TIMEOUT_S = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NOTHING_STORED = "credentials not found"


def find_credentials(name: str, config_paths: Sequence[Path] | None = None) -> Credentials | None:
    """The login stored for a registry or a part of it; None where there is none.

    `name` is `host[:port]` or `host[:port]/path`. Looks into `config_paths` in order, by default
    those of `default_config_paths`; the first file that knows one of the names decides, in it the
    longest name. Files that do not exist are passed over.

    Raises:
        InputError: a file cannot be read or is not what it must be, or a credential helper that
            should know the host cannot be run, fails, or takes longer than 30 s.
    """
    host, *path = re.sub(r"^https?://", "", name).strip("/").split("/")
    parts = ["/".join([host, *path[:length]]) for length in range(len(path), 0, -1)]
    spellings = _spellings(host)
    for file in default_config_paths() if config_paths is None else config_paths:
        config = _read(file)
        if config is None:
            continue
        for one in (*parts, *spellings):
            # A general store starts a program for each question, so it hears the usual name only.
            found = _find(config, file, one, ask_store=one == spellings[0])
            if found is not None:
                _log.debug("%s: using the login for %s in %s", host, one, file)
                return found
    return None


def default_config_paths() -> list[Path]:
    """Where logins lie: docker's and ORAS' file first, then podman's and skopeo's.

    `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; `$REGISTRY_AUTH_FILE`, or
    `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json`.
    """
    env = os.environ
    home = Path("~").expanduser()
    docker = Path(env["DOCKER_CONFIG"]) if env.get("DOCKER_CONFIG") else home / ".docker"
    paths = [docker / "config.json"]
    if env.get("REGISTRY_AUTH_FILE"):
        return [*paths, Path(env["REGISTRY_AUTH_FILE"])]
    if env.get("XDG_RUNTIME_DIR"):
        paths.append(Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    config = Path(env["XDG_CONFIG_HOME"]) if env.get("XDG_CONFIG_HOME") else home / ".config"
    return [*paths, config / "containers" / "auth.json"]


def _find(
    config: Mapping[str, Any], file: Path, name: str, *, ask_store: bool
) -> Credentials | None:
    """The login under exactly `name`, or the same machine's other name."""
    from oras.utils import iter_localhosts

    for alias in iter_localhosts(name):
        helper = config["credHelpers"].get(alias) or (config["credsStore"] if ask_store else None)
        if helper and (answer := _ask_helper(helper, alias)) is not None:
            return answer
        entry = config["auths"].get(alias) or {}
        if token := entry.get("identitytoken"):
            # Beside an identity token the name is a placeholder and no login of its own.
            return Credentials(identity_token=str(token))
        username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if entry.get("auth"):
            username, password = _decoded(entry["auth"], file, alias)
        if username:
            return Credentials(username, password)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """The parts of a credential file that matter, or None where there is no such file."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise InputError(f"the credential file {path} cannot be read: {err.strerror}") from err
    try:
        config = parse_json(raw)
        auths = dict(config.get("auths") or {})
        helpers = dict(config.get("credHelpers") or {})
        entries = {str(name): dict(entry or {}) for name, entry in auths.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as err:
        # Not `from err`: its text may quote the file.
        raise InputError(
            f"the credential file {path} is not what docker, podman or ORAS write "
            f"({type(err).__name__}); log in again with one of them, or remove it"
        ) from None
    return {"auths": entries, "credsStore": config.get("credsStore"), "credHelpers": helpers}


def _spellings(host: str) -> list[str]:
    """The names under which tools have stored a login for `host`, the usual one first."""
    if host in _DOCKER_HUB_NAMES:
        return [_DOCKER_HUB, *_DOCKER_HUB_NAMES]
    forms = [host, f"https://{host}", f"http://{host}"]
    return [form + tail for tail in ("", "/", "/v1/", "/v2/") for form in forms]


def _decoded(auth: str, path: Path, name: str) -> tuple[str, str]:
    """Name and password of an `auth` value."""
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError, TypeError):  # TypeError: no text
        raise InputError(
            f"the login for {name} in {path} is not in the form that docker writes; "
            f"log in again with `docker login {name}`"
        ) from None
    username, _, password = text.partition(":")
    return username, password.strip("\0")


def _ask_helper(suffix: str, name: str) -> Credentials | None:
    """What `docker-credential-<suffix> get` knows about `name`.

    Raises:
        InputError: it cannot be run, fails, hangs, or answers nonsense.
    """
    program = f"docker-credential-{suffix}"
    if not isinstance(suffix, str) or not _HELPER_NAME.fullmatch(suffix):
        raise InputError(f"{suffix!r:.100} is not the name of a credential helper")
    try:
        done = subprocess.run(  # noqa: S603 (the name is checked, and no shell is involved)
            [program, "get"],
            input=name.encode(),
            capture_output=True,
            check=False,
            timeout=_HELPER_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"the credential helper {program} gave no answer within {_HELPER_TIMEOUT_S:g} s; "
            "see whether it waits for a key or a password, or give the login itself"
        ) from None
    except OSError as err:
        raise InputError(
            f"the credential helper {program} for {name} cannot be run ({err.strerror}); "
            "install it, take it out of the credential file, or give the login itself"
        ) from err
    if done.returncode != 0:
        said = (done.stdout + b" " + done.stderr).decode(errors="replace")
        if _NOTHING_STORED in said.lower():
            return None  # the protocol's way to say so
        raise InputError(
            f"the credential helper {program} failed for {name} with exit code "
            f"{done.returncode}: {done.stderr.decode(errors='replace').strip()[:300]}"
        )
    try:
        answer = parse_json(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(
            f"the credential helper {program} answers for {name} with something else than a "
            "user name and a secret"
        ) from None
    if username == _TOKEN_NAME:
        return Credentials(identity_token=secret)
    return Credentials(username, secret) if username else None
