"""Who may do what: open to all, name and password, or Bearer tokens of a token server.

Actions are the words of the token specification: `pull`, `push`, `delete`
(distribution, "Token Scope Documentation").
"""

from __future__ import annotations

import base64
import hmac
import secrets
import threading
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from starlette.requests import Request

from mirror.serve.call import Auth, RefusedError

PULL = frozenset({"pull"})
PUSH = frozenset({"pull", "push"})
ALL = frozenset({"pull", "push", "delete"})


class Anonymous(Auth):
    """Anybody may do anything."""

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:  # noqa: ARG002
        return


@dataclass(frozen=True, slots=True)
class User:
    """A password, and what its owner may do in every repository."""

    password: str = field(repr=False)
    actions: frozenset[str] = ALL


class _Users:
    """The accounts of a registry, and what a client without one may do."""

    def __init__(self, users: Mapping[str, User], anonymous: Set[str]) -> None:
        self._users, self._anonymous = dict(users), frozenset(anonymous)

    def actions(self, header: str | None) -> frozenset[str] | None:
        """What a client with this `Authorization: Basic` header may do; None if it is wrong."""
        if header is None:
            return self._anonymous
        name, password = _basic(header)
        user = self._users.get(name)
        # An unknown name takes as long as a known one, so that time does not reveal names.
        expected = (user.password if user else secrets.token_hex()).encode()
        if not hmac.compare_digest(expected, password.encode()) or user is None:
            return None
        return user.actions


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

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        header = request.headers.get("authorization")
        allowed = self._users.actions(header)
        if allowed is not None and (actions <= allowed if repository else allowed):
            return
        if allowed is None or header is None:
            raise RefusedError(
                401, "UNAUTHORIZED", "authentication required", headers=self._challenge
            )
        raise RefusedError(403, "DENIED", "this account may not do that")


@dataclass(frozen=True, slots=True)
class _Grant:
    expires_at: float
    scopes: frozenset[tuple[str, str]]  # (repository, action)
    welcome: bool
    """Whether the owner may do anything; only then do the root and the catalogue open."""


class TokenAuth(Auth):
    """Bearer tokens, issued by this app at `/token` (distribution, "Token Authentication").

    A token is valid for `expires_s` seconds and for those of the requested scopes that its owner
    is allowed. Every client gets a token, as elsewhere; the token of one who may do nothing opens
    nothing. Clients are sent to `realm`, by default `/token` of the address they called. A test
    can name another server there, to find a client that hands its credentials to anybody.
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

    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        grant = self._grant(request.headers.get("authorization"))
        if (
            repository
            and grant is not None
            and all((repository, action) in grant.scopes for action in actions)
        ):
            return
        if grant is not None and grant.welcome and not repository:
            return
        raise RefusedError(
            401,
            "UNAUTHORIZED",
            "authentication required" if grant is None else "the token does not cover this",
            headers={"WWW-Authenticate": self._challenge(request, repository, actions, grant)},
        )

    def issue(self, authorization: str | None, scopes: list[str]) -> dict[str, object]:
        """Answer a request to `/token` with these `scopes`, each such as `repository:a/b:pull`.

        Raises:
            RefusedError: 401, the name or the password is wrong.
        """
        allowed = self._users.actions(authorization)
        if allowed is None:
            challenge = {"WWW-Authenticate": f'Basic realm="{self._service}"'}
            raise RefusedError(401, "UNAUTHORIZED", "name or password is wrong", headers=challenge)
        granted: set[tuple[str, str]] = set()
        for scope in " ".join(scopes).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "repository":
                granted.update((name, action) for action in actions.split(",") if action in allowed)
        token, now = secrets.token_urlsafe(32), time.monotonic()
        with self._lock:
            self._grants = {
                text: grant for text, grant in self._grants.items() if grant.expires_at > now
            }
            self._grants[token] = _Grant(
                now + self._expires_s, frozenset(granted), welcome=bool(allowed)
            )
        issued_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {
            "token": token,
            "access_token": token,
            "expires_in": int(self._expires_s),
            "issued_at": issued_at,
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
        if grant is not None:
            parts.append('error="insufficient_scope"')
        return "Bearer " + ",".join(parts)


def _basic(header: str) -> tuple[str, str]:
    """Name and password of a Basic header; empty strings if it is malformed."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:  # not base64, or not text in it
        return "", ""
    return name, password
