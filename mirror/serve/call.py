"""What the handlers of all requests share: permissions, and how errors become answers.

Error bodies follow the distribution specification ("Error Codes"); `pull`, `push` and `delete` are
the words of the token specification (distribution, "Token Scope Documentation").
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hmac
import logging
import re
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ParamSpec, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mirror.errors import (
    DigestMismatchError,
    InputError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
    MirrorError,
    NoSpaceError,
)
from mirror.serve.store import InMemory, ReadableStore, Store

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

CLIENT_GONE = 499  # is recorded when the client hangs up before its answer (as in nginx)


class RefusedError(Exception):
    """Answers a request with `status`, and `code` from the specification."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


class Auth(ABC):
    """Decides on requests. The repository `""` means the registry: its root and catalogue."""

    @abstractmethod
    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        """Let the request pass, or raise RefusedError: 401 with a challenge, or 403."""

    def is_slow(self, authorization: str | None) -> bool:  # noqa: ARG002
        """Whether to judge this `Authorization` takes so long that no request may wait for it."""
        return False


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers share. `writable` is None in a registry that only serves."""

    store: ReadableStore
    writable: Store | None
    auth: Auth
    page_limit: int | None
    sparse_indexes: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """An allowed request; `repository` has been checked, and is empty if the path names none."""

    request: Request
    service: Service
    repository: str

    @property
    def store(self) -> ReadableStore:
        return self.service.store

    @property
    def target(self) -> Store:
        """The store, for changing it; a read-only registry raises RefusedError."""
        if self.service.writable is None:
            raise RefusedError(405, "UNSUPPORTED", "this registry is read-only")
        return self.service.writable

    def part(self, name: str) -> str:
        """The part of the path that the route calls `name`."""
        return str(self.request.path_params[name])

    def url(self, tail: str) -> str:
        """The address of something in this repository, for `Location` and `Link`."""
        return f"/v2/{self.repository}/{tail}"


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a method of a store in a thread, so that its disk holds up no other request.

    `function` belongs to the store, or is given it first. In memory it waits for nothing, and a
    thread would cost more than the method does.
    """
    if any(isinstance(one, InMemory) for one in (getattr(function, "__self__", None), *args[:1])):
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


# Apart from the other threads, so that strangers who guess passwords hold up logins alone.
_LOGINS = ThreadPoolExecutor(2, "login")


async def judged(
    auth: Auth,
    authorization: str | None,
    function: Callable[_P, _T],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _T:
    """Call `function`, which judges this `Authorization`; in a thread if it is slow."""
    call = partial(function, *args, **kwargs)
    if not auth.is_slow(authorization):
        return call()
    return await asyncio.get_running_loop().run_in_executor(_LOGINS, call)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error with the body that the specification prescribes."""
    body = {"errors": [{"code": code, "message": message}]}
    return JSONResponse(body, status_code=status, headers=headers)


def empty(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body."""
    length = {} if status == 204 else {"Content-Length": "0"}
    return Response(status_code=status, headers={**(headers or {}), **length})


async def _answer(_request: Request, err: Exception) -> Response:
    match err:
        case RefusedError():
            return error_response(err.status, err.code, err.message, err.headers)
        case HTTPException(status_code=status):
            code = "UNSUPPORTED" if status == 405 else "NAME_UNKNOWN"
            return error_response(status, code, err.detail, err.headers)
        case ClientDisconnect():
            return Response(status_code=CLIENT_GONE)
        case InvalidDigestError() | DigestMismatchError():
            return error_response(400, "DIGEST_INVALID", str(err))
        case InvalidReferenceError():
            return error_response(400, "NAME_INVALID", str(err))
        case InvalidManifestError():
            return error_response(400, "MANIFEST_INVALID", str(err))
        case NoSpaceError() | OSError(errno=errno.ENOSPC | errno.EDQUOT):
            logger.error("the registry's disk is full: %s", err)
            return error_response(507, "UNKNOWN", "the registry's disk is full; free space there")
        case MirrorError() | OSError():  # another failure of the registry
            logger.error("request failed: %s", err, exc_info=err)
    return error_response(500, "UNKNOWN", "internal error")


HANDLERS = dict.fromkeys(
    (RefusedError, MirrorError, HTTPException, ClientDisconnect, OSError, Exception), _answer
)
"""Exception → the handler that answers it; `Exception` itself is a bug, which the server logs."""


# -- who may do what -------------------------------------------------------------------------------

PULL = frozenset({"pull"})
PUSH = frozenset({"pull", "push"})
ALL = frozenset({"pull", "push", "delete"})


class Anonymous(Auth):
    """Anybody may do anything."""

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:  # noqa: ARG002
        return


@dataclass(frozen=True, slots=True)
class User:
    """A password, or its bcrypt hash, and what its owner may do in every repository."""

    password: str = field(repr=False)
    actions: frozenset[str] = ALL
    hashed: bool = False


def read_users(text: str, actions: frozenset[str] = ALL) -> dict[str, User]:
    """Read users from the lines `name:hash` of a file that `htpasswd -B` writes.

    Raises:
        InputError: a line is something else, or its hash is not one of bcrypt.
    """
    users: dict[str, User] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, hashed = line.strip().partition(":")
        if not name or not colon or not _BCRYPT.fullmatch(hashed):
            raise InputError(
                f"line {number} of the users is not a name, a colon and a bcrypt hash",
                advice="write it with `htpasswd -B -n NAME`",
            )
        users[name] = User(hashed, actions, hashed=True)
    return users


_BCRYPT = re.compile(r"\$2[abxy]\$[0-9]{2}\$[./A-Za-z0-9]{53}")


class _Users:
    """The accounts of a registry, and what a client without one may do."""

    def __init__(self, users: Mapping[str, User], anonymous: Set[str]) -> None:
        self._users, self._anonymous = dict(users), frozenset(anonymous)
        self._nobody = next((user for user in self._users.values() if user.hashed), _NOBODY)
        # A client logs in with every request. Only what was right is kept: strangers may guess.
        self._right: dict[str, User] = {}

    def is_slow(self, header: str | None) -> bool:
        """Whether this header has a password to hash: bcrypt takes its time by design."""
        return header is not None and header not in self._right and self._nobody.hashed

    def actions(self, header: str | None) -> frozenset[str] | None:
        """What a client with this `Authorization: Basic` header may do.

        None if the header is wrong, or missing where clients without an account may do nothing.
        """
        if header is None:
            return self._anonymous or None
        if (right := self._right.get(header)) is not None:
            return right.actions
        kind, _, encoded = header.partition(" ")
        try:
            text = base64.b64decode(encoded.strip(), validate=True).decode()
        except ValueError:  # not base64, or not text in it
            text = ""
        name, _, password = text.partition(":") if kind.lower() == "basic" else ("", "", "")
        user = self._users.get(name)
        # An unknown name takes as long as a known one, so that time does not reveal names.
        if not _matches(user or self._nobody, password) or user is None:
            return None
        if len(self._right) >= _MOST_RIGHT:
            self._right.clear()  # one header in many spellings
        self._right[header] = user
        return user.actions


_NOBODY = User(secrets.token_hex())
_MOST_RIGHT = 256


def _matches(user: User, password: str) -> bool:
    if not user.hashed:
        return hmac.compare_digest(user.password.encode(), password.encode())
    import bcrypt  # here, since most servers have no such users

    return bcrypt.checkpw(password.encode()[:72], user.password.encode())


class BasicAuth(Auth):
    """Name and password with every request; actions in `anonymous` need neither."""

    def __init__(
        self,
        users: Mapping[str, User],
        *,
        anonymous: Set[str] = frozenset(),
        realm: str = "registry",
    ) -> None:
        self._users = _Users(users, anonymous)
        self._challenge = {"WWW-Authenticate": f'Basic realm="{realm}"'}

    def is_slow(self, authorization: str | None) -> bool:
        return self._users.is_slow(authorization)

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        header = request.headers.get("authorization")
        allowed = self._users.actions(header)
        if allowed is not None and (actions <= allowed if repository else allowed):
            return
        if allowed is not None and header is not None:
            raise RefusedError(403, "DENIED", "this account may not do that")
        raise RefusedError(401, "UNAUTHORIZED", "authentication required", headers=self._challenge)


@dataclass(frozen=True, slots=True)
class _Grant:
    expires_at: float
    scopes: frozenset[tuple[str, str]]  # (repository, action)
    welcome: bool
    """Whether the owner may do anything; only then does the root open."""


_CATALOGUE = "registry:catalog:*"


class TokenAuth(Auth):
    """Bearer tokens, issued by this app at `/token` (distribution, "Token Authentication").

    A token is valid for `expires_s` seconds and for those of the requested scopes that its owner
    is allowed. Clients are sent to `realm`, by default `/token` of the address they called. A test
    can name another server there, to find a client that hands its credentials to anybody.

    A client without credentials gets a token for what is open to everybody, which the catalogue
    never is. If nothing is, it gets a 401: the specification leaves it to the server whether a
    request must be authenticated, and a token that opens nothing would send the client back for
    another one.
    """

    def __init__(
        self,
        users: Mapping[str, User],
        *,
        anonymous: Set[str] = frozenset(),
        expires_s: float = 300.0,
        service: str = "registry",
        realm: str | None = None,
    ) -> None:
        self._users = _Users(users, anonymous)
        self._expires_s, self._service, self._realm = expires_s, service, realm
        self._lock = threading.Lock()  # guards _grants
        self._grants: dict[str, _Grant] = {}

    def is_slow(self, authorization: str | None) -> bool:
        kind, _, _ = (authorization or "").partition(" ")
        return kind.lower() != "bearer" and self._users.is_slow(authorization)

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        grant = self._grant(request.headers.get("authorization"))
        catalogue = request.url.path == "/v2/_catalog"
        needed = {("", "catalog")} if catalogue else {(repository, one) for one in actions}
        if grant and (needed <= grant.scopes if repository or catalogue else grant.welcome):
            return
        challenge = {"WWW-Authenticate": self._challenge(request, repository, actions, grant)}
        told = "authentication required" if grant is None else "the token does not cover this"
        raise RefusedError(401, "UNAUTHORIZED", told, headers=challenge)

    def issue(self, authorization: str | None, scopes: list[str]) -> dict[str, object]:
        """Answer a request to `/token` with these `scopes`, each such as `repository:a/b:pull`.

        Raises:
            RefusedError: 401, the name or the password is wrong, or missing where it is needed.
        """
        allowed = self._users.actions(authorization)
        if allowed is None:
            wrong = "authentication required" if authorization is None else "wrong name or password"
            challenge = {"WWW-Authenticate": f'Basic realm="{self._service}"'}
            raise RefusedError(401, "UNAUTHORIZED", wrong, headers=challenge)
        granted: set[tuple[str, str]] = set()
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "repository":
                granted.update((name, action) for action in actions.split(",") if action in allowed)
            elif scope == _CATALOGUE and allowed and authorization is not None:
                granted.add(("", "catalog"))
        token, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            held = {text: one for text, one in self._grants.items() if one.expires_at > now}
            grant = _Grant(now + self._expires_s, frozenset(granted), bool(allowed))
            self._grants = {**held, token: grant}
        return {
            "token": token,
            "access_token": token,
            "expires_in": int(self._expires_s),
            "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def revoke_all(self) -> None:
        """Invalidate every token, as a token server does that restarts."""
        with self._lock:
            self._grants = {}

    def _grant(self, header: str | None) -> _Grant | None:
        kind, _, token = (header or "").partition(" ")
        if kind.lower() != "bearer":
            return None
        with self._lock:
            grant = self._grants.get(token.strip())
        return grant if grant is not None and grant.expires_at > time.monotonic() else None

    def _challenge(
        self, request: Request, repository: str, actions: Set[str], grant: _Grant | None
    ) -> str:
        realm = self._realm or str(request.url.replace(path="/token", query="", fragment=""))
        parts = [f'realm="{realm}"', f'service="{self._service}"']
        if repository:
            parts.append(f'scope="repository:{repository}:{",".join(sorted(actions))}"')
        elif request.url.path == "/v2/_catalog":
            parts.append(f'scope="{_CATALOGUE}"')
        if grant is not None:
            parts.append('error="insufficient_scope"')
        elif "authorization" in request.headers:
            parts.append('error="invalid_token"')
        return "Bearer " + ",".join(parts)
