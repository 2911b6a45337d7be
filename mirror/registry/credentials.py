"""Logins from the credential stores that docker, podman and ORAS share.

The one module that imports `oras`: it knows the files' layout, the order of `auths`, `credHelpers`
and `credsStore`, and the two names of this machine. What it lacks is added here: other places of
the file, logins given as name and password, identity tokens, the many spellings of one host, and
helpers that fail loudly and in finite time. It makes no network request.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oras.auth.base import AuthBackend
from oras.auth.utils import get_basic_auth
from oras.utils import iter_localhosts

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


def find_credentials(host: str, config_paths: Sequence[Path] | None = None) -> Credentials | None:
    """The login stored for the registry `host` (`host[:port]`); None where there is none.

    Looks into `config_paths` in order, by default those of `default_config_paths`; the first
    file that knows the host decides. Files that do not exist are passed over.

    Raises:
        InputError: a file cannot be read or is not what it must be, or a credential helper that
            is to know the host cannot be run, fails, or takes longer than 30 s.
    """
    for path in default_config_paths() if config_paths is None else config_paths:
        config = _read(path)
        if config is None:
            continue
        store = _Store(path, config)
        spellings = _spellings(host)
        for name in spellings:
            # A general store starts a program for each question, so it hears the usual name only.
            found = store.find(name, ask_store=name == spellings[0])
            if found is not None:
                _log.debug("%s: using the login stored in %s", host, path)
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


class _Store(AuthBackend):  # type: ignore[misc] # oras ships no types
    """One file, read by oras' rules."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        super().__init__()
        self._path = path
        self._basic_auth: str | None = None
        self._found: Credentials | None = None
        self._auth_config = config

    def find(self, name: str, *, ask_store: bool) -> Credentials | None:
        """The login under exactly `name`, or the same machine's other name."""
        listed = self._auth_config["auths"].keys() | self._auth_config["credHelpers"].keys()
        for alias in iter_localhosts(name):
            if alias not in listed and not ask_store:
                continue
            self._found = None
            entry = self._auth_config["auths"].get(alias) or {}
            token = entry.get("identitytoken")
            if token:
                # Beside an identity token the name is a placeholder and no login of its own.
                return Credentials(identity_token=str(token))
            if self._load_auth(alias):
                if self._found is not None:
                    return self._found
                username, password = _decoded(self._basic_auth or "", self._path, alias)
                return Credentials(username, password) if username else None
        return None

    def _get_auth_from_creds_store(self, suffix: str, hostname: str) -> str | None:
        """Ask a helper, in place of oras' own way, which waits for ever and hides failures."""
        answer = _ask_helper(suffix, hostname)
        if answer is None:
            return None
        self._found = answer
        encoded: str = get_basic_auth(answer.username, answer.password)
        return encoded


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
    for entry in entries.values():
        if not entry.get("auth") and entry.get("username"):
            entry["auth"] = get_basic_auth(entry["username"], entry.get("password", ""))
    return {"auths": entries, "credsStore": config.get("credsStore"), "credHelpers": helpers}


def _spellings(host: str) -> list[str]:
    """The names under which tools have stored a login for `host`, the usual one first."""
    bare = re.sub(r"^https?://", "", host).partition("/")[0]
    if bare in _DOCKER_HUB_NAMES:
        return [_DOCKER_HUB, *_DOCKER_HUB_NAMES]
    forms = [bare, f"https://{bare}", f"http://{bare}"]
    return [form + tail for tail in ("", "/", "/v1/", "/v2/") for form in forms]


def _decoded(auth: str, path: Path, name: str) -> tuple[str, str]:
    """Name and password of an `auth` value."""
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError):
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
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"the credential helper {program} answers for {name} with something else than a "
            "user name and a secret"
        ) from None
    if username == _TOKEN_NAME:
        return Credentials(identity_token=secret)
    return Credentials(username, secret) if username else None
