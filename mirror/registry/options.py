"""What a client is given: how to connect to a registry, how patiently to ask, and which login.

Logins come from the credential stores that docker, podman and ORAS share. Docker's order holds for
each name: the helper of that registry, the general store, then what the file itself has. Podman,
skopeo and ORAS also store logins for a path below a host; the longest name that fits decides.
`oras` knows the two names of this machine; it is imported when a login is looked for, as it loads
slowly. No network request is made.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mirror.documents import parse_json
from mirror.errors import InputError
from mirror.oci.manifest import MAX_MANIFEST_BYTES

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently (all times in seconds).

    `attempts` counts the first one; a transfer counts only attempts that did not get it further.
    Before attempt n+1 the wait is `base_delay_s` * 2^(n-1), at most `max_delay_s`, shortened at
    random by up to the share `jitter`, so that many workers do not come back all at once. A
    server's `Retry-After` wins when it is longer, up to `max_retry_after_s`.

    A server that refuses (429, 503) and asks for patience, or answers others meanwhile, has not
    failed: that is waited for as long as something gets on within `patience_s` (or `retry_for_s`,
    whichever is longer; with `from_start` the latter alone).

    A server that is away, breaks off or says "not now" (502, 503, 504, 408, 429) is waited for
    until `retry_for_s` seconds have brought nothing, however many attempts that takes: it restarts,
    or the line is down. What it answers HTTP 500 to, or breaks over while it answers others, has
    only its `attempts`. So has a server that has not answered at all yet, whose address may be
    wrong; with `from_start` it is waited for likewise.

    `sleep` is for tests: it takes the place of waiting, and the client's clock moves on by what it
    was asked to wait.
    """

    attempts: int = 5
    base_delay_s: float = 1.0
    max_delay_s: float = 30.0
    max_retry_after_s: float = 120.0
    patience_s: float = 300.0
    retry_for_s: float = 0.0
    from_start: bool = False
    jitter: float = 0.5
    sleep: Callable[[float], object] | None = None
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 <= self.jitter <= 1:
            raise ValueError("a retry policy needs attempts >= 1 and 0 <= jitter <= 1")

    def delay_s(self, failures: int, retry_after_s: float | None = None) -> float:
        """How long to wait after that many `failures` (1 or more) in a row."""
        # The exponent is bounded, as 2.0 ** 5000 overflows.
        delay = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(failures - 1, 30))
        delay *= 1 - self.jitter * self.random()
        if retry_after_s is not None:
            delay = max(delay, min(retry_after_s, self.max_retry_after_s))
        return delay

    @property
    def patience_with_refusals_s(self) -> float:
        """How long a server that refuses is waited for while nothing gets on."""
        return self.retry_for_s if self.from_start else max(self.patience_s, self.retry_for_s)

    def is_over(self, failures: int, waited_s: float, *, known: bool) -> bool:
        """Whether to give a server up after so many `failures` in a row, in `waited_s` seconds.

        `known`: it has answered before.
        """
        patience_s = self.retry_for_s if known or self.from_start else 0.0
        return failures >= self.attempts and waited_s >= patience_s


_RETRY_FOR_S = 300.0  # a registry, or the node below it, restarts in less


def patience(asked_s: float | None = None) -> RetryPolicy:
    """That of commands. Whoever asks for some, in seconds, wants it from the first request on."""
    if asked_s is None:
        return RetryPolicy(retry_for_s=_RETRY_FOR_S)
    return RetryPolicy(retry_for_s=asked_s, from_start=True)


BRIEF = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)
"""For those who look at a registry again soon. Some answer HTTP 500 for each damaged manifest."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate in PEM form and its private key, not encrypted; None: in the same file."""

    cert_file: Path
    key_file: Path | None = None


@cache
def _user_agent() -> str:
    try:
        return f"mirror/{version('deckhouse-mirror')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "mirror/0"


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Settings for the connections to one registry (times in seconds, sizes in bytes).

    `plain_http` speaks HTTP without TLS. `verify` False accepts any certificate. `ca_file` is a
    PEM file of certificate authorities trusted besides those of the system; `ca` is the same as
    text, for who has them from a document and not in a file; messages about an authority that is
    not trusted say how to name it (`ca_from`), and those about TLS how to do without (`plain_by`).
    `certificate` proves who we are to a registry that asks for one, and to no other host. What
    docker and podman keep for a host in a folder `certs.d` counts too.

    `trusted_hosts` are names of other hosts to which the registry may lead us although they are in
    a private network and it is not, or that may get our login without TLS as its token server.

    No limit is set on a whole transfer, since a large blob on a slow line is not a failure. A
    transfer has stalled when it moves nothing for `stall_timeout_s`, or fewer than
    `stall_min_bytes` in a window of that length. `answer_timeout_s` is how long a registry may
    think about a finished upload: object stores copy the whole blob before they answer.

    `max_connections` is the most requests at once. How many there are at a time, and how fast they
    follow each other, is learnt from the host; `requests_per_s` bounds the latter. `limit_rate`
    bounds the bytes a second of all transfers together, in both directions. `manifest_bytes` is the
    largest manifest that is read.

    Proxies come from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`; trusted roots from
    `SSL_CERT_FILE` and `SSL_CERT_DIR` in place of the system's, as in other tools.
    """

    plain_http: bool = False
    verify: bool = True
    ca_file: Path | None = None
    ca: str | None = field(default=None, repr=False)
    certificate: ClientCertificate | None = None
    ca_from: str = "with --ca"
    plain_by: str = "add --insecure"
    trusted_hosts: frozenset[str] = frozenset()
    connect_timeout_s: float = 30.0
    stall_timeout_s: float = 60.0
    stall_min_bytes: int = 64 << 10
    answer_timeout_s: float = 300.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    max_connections: int = 100
    limit_rate: float | None = None
    requests_per_s: float | None = None
    manifest_bytes: int = MAX_MANIFEST_BYTES
    user_agent: str = field(default_factory=_user_agent)

    def __post_init__(self) -> None:
        for bound in (self.limit_rate, self.requests_per_s):
            if bound is not None and bound <= 0:
                raise ValueError("limits of bytes and requests a second must be positive")

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if self.plain_http else "https"


# -- logins ----------------------------------------------------------------------------------------

_DOCKER_HUB = "https://index.docker.io/v1/"
_DOCKER_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_TOKEN_NAME = "<token>"  # noqa: S105 (the name by which helpers mark an identity token)
_HELPER_TIMEOUT_S = 30.0
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_NOTHING_STORED = b"credentials not found"
_NOT_OURS = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Credentials:
    """A login for one registry: a name with a password, or an identity token, or both.

    The `repr` shows no secret.

    Raises:
        InputError: a user name with a colon, which HTTP cannot carry (RFC 7617).
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if ":" in self.username:
            raise InputError("a registry user name cannot contain a colon; check the login")

    @property
    def basic(self) -> str | None:
        """The `Authorization` header that proves it to a server directly; None without a name."""
        if not self.username:
            return None
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


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
