"""Logins from the credential stores that docker, podman and ORAS share.

Docker's order holds for each name: the helper of that registry, the general store, then what the
file itself has. Podman, skopeo and ORAS also store logins for a path below a host; the longest name
that fits decides. `oras` knows the two names of this machine; it is imported when a login is looked
for, as it loads slowly. No network request is made.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
from collections.abc import Sequence
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
_NOTHING_STORED = b"credentials not found"
_NOT_OURS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def find_credentials(name: str, config_paths: Sequence[Path] | None = None) -> Credentials | None:
    """The login stored for a registry or a part of it; None where there is none.

    `name` is `host[:port]` or `host[:port]/path`. Looks into `config_paths` in order, by default
    those of `default_config_paths`; the first file that knows one of the names decides, in it the
    longest name. Files that do not exist are passed over.

    Raises:
        InputError: a file cannot be read or is not what it must be, or a credential helper that
            should know the host cannot be run, fails, or takes longer than 30 s.
    """
    from oras.utils import iter_localhosts

    host, *path = re.sub(r"^https?://", "", name).strip("/").split("/")
    parts = ["/".join([host, *path[:length]]) for length in range(len(path), 0, -1)]
    usual, *others = _spellings(host)
    names = [alias for one in (*parts, usual, *others) for alias in iter_localhosts(one)]
    # A general store starts a program for each question, so it hears the usual name only.
    heard = {*iter_localhosts(usual)}
    for file in default_config_paths() if config_paths is None else config_paths:
        auths, helpers, store = _read(file)
        for one in names:
            helper = helpers.get(one) or (store if one in heard else None)
            found = _ask_helper(helper, one) if helper else None
            found = found or _stored(auths.get(one, {}), file, one)
            if found is not None:
                _log.debug("%s: using the login for %s in %s", host, one, file)
                return found
    return None


def default_config_paths() -> list[Path]:
    """Where logins lie: docker's and ORAS' file first, then podman's and skopeo's.

    `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; `$REGISTRY_AUTH_FILE`, or
    `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json`.
    """
    try:
        home = Path("~").expanduser()
    except RuntimeError:  # a user of a container whom nobody told where that is
        home = Path("/nonexistent")
    docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        return [docker, Path(named)]
    folders = (
        os.environ.get("XDG_RUNTIME_DIR"),
        os.environ.get("XDG_CONFIG_HOME") or home / ".config",
    )
    return [docker, *(Path(one) / "containers" / "auth.json" for one in folders if one)]


def _spellings(host: str) -> list[str]:
    """The names under which tools have stored a login for `host`, the usual one first."""
    if host in _DOCKER_HUB_NAMES:
        return [_DOCKER_HUB, *_DOCKER_HUB_NAMES]
    forms = [host, f"https://{host}", f"http://{host}"]
    return [form + tail for tail in ("", "/", "/v1/", "/v2/") for form in forms]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], object]:
    """Logins, helpers and the general store of a credential file, which need not exist."""
    try:
        config = parse_json(path.read_bytes())
        auths = dict(config.get("auths") or {})
        entries = {name: dict(entry or {}) for name, entry in auths.items()}
        return entries, dict(config.get("credHelpers") or {}), config.get("credsStore")
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}, None
    except OSError as err:
        raise InputError(f"the credential file {path} cannot be read: {err.strerror}") from err
    except _NOT_OURS as err:
        # Not `from err`: its text may quote the file.
        raise InputError(
            f"the credential file {path} is not what docker, podman or ORAS write "
            f"({type(err).__name__}); log in again with one of them, or remove it"
        ) from None


def _stored(entry: dict[str, Any], path: Path, name: str) -> Credentials | None:
    """The login that the file itself has under `name`."""
    if token := entry.get("identitytoken"):
        # Beside an identity token the name is a placeholder and no login of its own.
        return Credentials(identity_token=str(token))
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if auth := entry.get("auth"):
        try:
            text = base64.b64decode(auth, validate=True).decode()
        except (ValueError, TypeError):  # TypeError: no text
            raise InputError(
                f"the login for {name} in {path} is not in the form that docker writes; "
                f"log in again with `docker login {name}`"
            ) from None
        username, _, password = text.partition(":")
        password = password.strip("\0")
    return Credentials(username, password) if username else None


def _ask_helper(suffix: object, name: str) -> Credentials | None:
    """What `docker-credential-<suffix> get` knows about `name`."""
    if not isinstance(suffix, str) or not _HELPER_NAME.fullmatch(suffix):
        raise InputError(f"{suffix!r:.100} is not the name of a credential helper")
    program = f"docker-credential-{suffix}"
    helper = f"the credential helper {program}"
    try:
        done = subprocess.run(  # noqa: S603 (the name is checked, and no shell is involved)
            [program, "get"],
            input=name.encode(),
            capture_output=True,
            check=True,
            timeout=_HELPER_TIMEOUT_S,
        )
        answer = parse_json(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except subprocess.CalledProcessError as err:
        if _NOTHING_STORED in (err.stdout + err.stderr).lower():
            return None  # the protocol's way to say so
        said = err.stderr.decode(errors="replace").strip()[:300]
        raise InputError(
            f"{helper} failed for {name} with exit code {err.returncode}: {said}"
        ) from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{helper} gave no answer within {_HELPER_TIMEOUT_S:g} s; "
            "see whether it waits for a key or a password, or give the login itself"
        ) from None
    except OSError as err:
        raise InputError(
            f"{helper} for {name} cannot be run ({err.strerror}); "
            "install it, take it out of the credential file, or give the login itself"
        ) from err
    except _NOT_OURS:
        raise InputError(
            f"{helper} answers for {name} with something else than a user name and a secret"
        ) from None
    if username == _TOKEN_NAME:
        return Credentials(identity_token=secret)
    return Credentials(username, secret) if username else None
