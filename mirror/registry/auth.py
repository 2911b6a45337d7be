"""Proving who we are: basic credentials, and bearer tokens from a token server.

Follows "Token Authentication Specification" and "OAuth2 Token Authentication" of the distribution
project. Nothing is sent before the registry asks; after its first challenge the authenticator
knows where tokens come from and fetches one a scope ahead of the request. Credentials go to the
registry itself and to the token server it names, nowhere else, and to the latter over plain HTTP
only where the registry's own host, spoken to without TLS, is that server, or the options say so.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from urllib.parse import urlencode, urlsplit

from mirror.documents import parse_json
from mirror.errors import CancelledError, DeniedError, MirrorError, RegistryError, same
from mirror.registry.answers import Login, read_whole, unreadable
from mirror.registry.connections import Connections
from mirror.registry.hosts import check_address, host_of, path_of
from mirror.registry.http1 import Body, Patience
from mirror.registry.options import ConnectionOptions, Credentials

_log = logging.getLogger(__name__)

_CLIENT_ID = "mirror"
_MIN_LIFETIME_S = 60.0  # the token specification's default, and its lower bound
_MARGIN_S, _MARGIN_SHARE = 10.0, 0.1
_LOOK_UP_S = 0.2  # how often a thread that waits for another's token looks whether it may go on
_MAX_REDIRECTS = 5
_MAX_TOKEN_BYTES = 1 << 20

Scopes: TypeAlias = tuple[str, ...]
"""In canonical form, as `merge_scopes` makes them: one entry a resource, sorted; a key."""

CATALOGUE: Scopes = ("registry:catalog:*",)


PULL, PUSH, DELETE = (f"repository:{{}}:{actions}" for actions in ("pull", "pull,push", "delete"))
"""The scope of one repository, once its path is put in. Registries want reading with writing."""


def merge_scopes(*groups: Iterable[str]) -> Scopes:
    """All of `groups` in canonical form: the actions on one resource together, in order."""
    actions: dict[str, set[str]] = {}
    for group in groups:
        for scope in group:
            resource, _, wanted = scope.rpartition(":")
            if resource:
                actions.setdefault(resource, set()).update(a for a in wanted.split(",") if a)
    return tuple(
        f"{resource}:{','.join(sorted(actions[resource]))}" for resource in sorted(actions)
    )


class Carrier(Protocol):
    """What carries requests to a token server, for one run."""

    def fetch_token(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes
    ) -> bytes:
        """Send one request and return the body of its 200 answer; raises MirrorError."""

    def check(self) -> None:
        """Raise CancelledError if the run was stopped."""


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    renew_at: float  # on the authenticator's clock


class _Flight:
    """A token on its way, for which other threads wait. The fetching thread sets the fields."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.token: _Token | None = None
        self.error: MirrorError | None = None  # neither: that thread was stopped


class Authenticator:
    """Knows what to put into `Authorization` for one registry; safe to use from many threads.

    `clock` counts seconds and never jumps: expiry counts from the moment when the token was
    requested, so the clocks of two machines need not agree.
    """

    def __init__(
        self,
        host: str,
        options: ConnectionOptions,
        credentials: Credentials | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._credentials, self._clock = host, credentials, clock
        # Without TLS, whoever listens at the registry's own host has the login already.
        own = frozenset({urlsplit(f"//{host}").hostname or ""} if options.plain_http else ())
        self._may_be_plain = options.trusted_hosts | own
        self._lock = threading.Lock()  # guards all fields below
        self.way: Challenge | None = None  # how to prove who we are; None until we are asked
        self._tokens: dict[Scopes, _Token] = {}
        self._flights: dict[Scopes, _Flight] = {}
        self._widened: dict[Scopes, Scopes] = {}
        self._identity_token = credentials.identity_token if credentials else None

    def header(self, scopes: Scopes, carrier: Carrier) -> str | None:
        """What to send along; None while the registry has not asked for anything.

        Raises:
            DeniedError: the token server refuses, or may not be shown the credentials.
            UnreachableError, RegistryError: it does not answer as it must.
        """
        with self._lock:
            way, wanted = self.way, self._widened.get(scopes, scopes)
        return None if way is None else self._proof(way, wanted, carrier)

    def login(self, authorization: str | None) -> Login:
        """Who sent `authorization`, for messages."""
        user = None if self._credentials is None else self._credentials.username
        proof = authorization.partition(" ")[0].lower() if authorization else None
        return Login(user, proof)

    def renewed(
        self,
        challenges: Sequence[Challenge],
        scopes: Scopes,
        rejected: str | None,
        carrier: Carrier,
    ) -> str | None:
        """What to send after a 401 with `challenges`, where `rejected` had been sent.

        None where nothing new can be said: no usable challenge, no credentials for it, or the
        credentials were just refused. Raises as `header` does.
        """
        way = self._choose(challenges)
        if way is None:
            return None
        with self._lock:
            self.way = way
            wanted = self._widened.get(scopes, scopes)
            # What the registry says it needs wins over what we thought; but its challenge for
            # a request without a scope (`GET /v2/`) often names some example.
            if scopes or way.get("error") == "insufficient_scope":
                wanted = merge_scopes(wanted, way.get("scope").split())
                self._widened[scopes] = wanted
        return self._proof(way, wanted, carrier, rejected)

    @property
    def _basic(self) -> str | None:
        return self._credentials.basic if self._credentials else None

    def _choose(self, challenges: Sequence[Challenge]) -> Challenge | None:
        bearers = [one for one in challenges if one.scheme == "bearer" and one.get("realm")]
        basics = [one for one in challenges if one.scheme == "basic" and self._basic]
        return next(iter(bearers + basics), None)

    def _proof(
        self, way: Challenge, wanted: Scopes, carrier: Carrier, rejected: str | None = None
    ) -> str | None:
        if way.scheme == "basic":
            basic = self._basic
            return basic if basic != rejected else None
        stale = rejected.removeprefix("Bearer ") if rejected else None
        return f"Bearer {self._token(way, wanted, carrier, stale)}"

    def _token(self, way: Challenge, wanted: Scopes, carrier: Carrier, stale: str | None) -> str:
        """A token for `wanted` that is not `stale`: cached, or fetched by one thread for all."""
        while True:
            with self._lock:
                token = self._tokens.get(wanted)
                if token and token.value != stale and self._clock() < token.renew_at:
                    return token.value
                flight = self._flights.get(wanted)
                if flight is None:
                    mine = self._flights[wanted] = _Flight()
            if flight is None:
                return self._fly(mine, way, wanted, carrier).value
            while not flight.over.wait(_LOOK_UP_S):
                carrier.check()
            if flight.error is not None:
                raise same(flight.error)
            if flight.token is not None and flight.token.value != stale:
                return flight.token.value

    def _fly(self, flight: _Flight, way: Challenge, wanted: Scopes, carrier: Carrier) -> _Token:
        try:
            flight.token = self._fetch_token(way, wanted, carrier)
        except CancelledError:
            raise  # it stopped this thread's run alone; another thread takes over
        except MirrorError as err:
            flight.error = err  # shared: a wrong password that is sent N times locks accounts
            raise
        finally:
            with self._lock:
                if flight.token is not None:
                    self._tokens[wanted] = flight.token
                del self._flights[wanted]
            flight.over.set()
        return flight.token

    def _fetch_token(self, way: Challenge, wanted: Scopes, carrier: Carrier) -> _Token:
        realm = way.get("realm")
        where = f"token server of {self._host}"
        try:
            scheme, server, _ = check_address(realm)
        except ValueError as err:
            raise RegistryError(
                f"{self._host} names a token server with an address that is not one of the web: "
                f"{realm[:200]!r}; "
                "check the registry's configuration",
                where=where,
            ) from err
        plain = scheme == "http" and server not in self._may_be_plain
        if plain and self._credentials is not None:
            raise DeniedError(
                f"{self._host} names a token server that is reached without TLS (http://{server}); "
                "the credentials are not sent there. Correct the registry's configuration, allow "
                f"it with --trust-host {server}, or do without a login",
                where=where,
            )
        began = self._clock()
        with self._lock:
            identity_token = self._identity_token
        if identity_token:
            body = self._ask_oauth(realm, way, wanted, identity_token, carrier)
        else:
            body = self._ask(realm, way, wanted, carrier)
        return self._read(body, began, where)

    def _ask(self, realm: str, way: Challenge, wanted: Scopes, carrier: Carrier) -> bytes:
        query = [("service", way.get("service"))] if way.get("service") else []
        query += [("scope", scope) for scope in wanted]
        headers = {}
        if self._credentials and self._basic:
            query += [("account", self._credentials.username), ("client_id", _CLIENT_ID)]
            headers["Authorization"] = self._basic
        joint = "&" if urlsplit(realm).query else "?"
        url = realm.partition("#")[0] + (joint + urlencode(query) if query else "")
        return carrier.fetch_token("GET", url, headers=headers, content=b"")

    def _ask_oauth(
        self, realm: str, way: Challenge, wanted: Scopes, identity_token: str, carrier: Carrier
    ) -> bytes:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": identity_token,
            "service": way.get("service"),
            "client_id": _CLIENT_ID,
            "scope": " ".join(wanted),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return carrier.fetch_token("POST", realm, headers=headers, content=urlencode(form).encode())

    def _read(self, body: bytes, began: float, where: str) -> _Token:
        try:
            answer = parse_json(body)
            value = answer.get("token") or answer.get("access_token")
            if not isinstance(value, str) or not value.isascii() or not value.isprintable():
                raise ValueError("no token in it")
            lifetime_s = float(answer.get("expires_in") or _MIN_LIFETIME_S)
            fresh_identity = answer.get("refresh_token")
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError) as err:
            raise RegistryError(
                f"{where}: its answer cannot be understood; check the registry's configuration",
                where=where,
            ) from err
        if isinstance(fresh_identity, str) and fresh_identity and self._identity_token:
            with self._lock:
                self._identity_token = fresh_identity  # servers may rotate it
        # `max` in this order also turns NaN into the minimum.
        lifetime_s = max(_MIN_LIFETIME_S, lifetime_s)
        margin_s = max(_MARGIN_S, lifetime_s * _MARGIN_SHARE)
        _log.debug("%s: got a token for %.0f s", where, lifetime_s)
        return _Token(value, began + lifetime_s - margin_s)


def ask_token_server(
    connections: Connections,
    patience: Patience,
    method: str,
    url: str,
    headers: Mapping[str, str],
    content: bytes,
    *,
    head: Callable[[int, str | None], None],
    watched: Callable[[Iterable[bytes]], Iterable[bytes]],
) -> tuple[int, Mapping[str, str], bytes]:
    """Send a request and return the status, the headers and the body of its answer.

    httpx sends it over our connections, as it knows how redirects treat a login. `head` hears of
    status and `Retry-After`, and `watched` passes the body on. An identity token travels in the
    body of a request, which goes where it was meant to and no further.

    Raises:
        WireError: the network failed.
        RegistryError: it is not what a token server answers.
    """
    import httpx  # it takes a while to load

    where, opened = f"{method} {path_of(url)}", ExitStack()

    class OurConnections(httpx.BaseTransport):
        """Trust, proxies and patience are those of all requests."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            content, fields = request.read(), dict(request.headers)
            del fields["host"]
            body = Body(len(content), lambda: (content,)) if content else None
            answer = connections.send(request.method, str(request.url), fields, body, patience)
            opened.callback(answer.close)
            told, pieces = dict(answer.headers), answer.pieces()
            if 300 <= answer.status < 400:
                # httpx would read and decompress whatever comes with a redirect.
                answer.close()
                told.pop("content-encoding", None)
                pieces = iter(())
            return httpx.Response(answer.status, headers=told, content=pieces)

    try:
        client = httpx.Client(
            transport=OurConnections(), trust_env=False, max_redirects=_MAX_REDIRECTS
        )
        with opened, client:
            request = httpx.Request(method, url, headers=headers, content=content)
            response = client.send(request, stream=True, follow_redirects=method == "GET")
            status, told = response.status_code, response.headers
            head(status, told.get("retry-after"))
            # Raw: httpx would decompress a whole piece, to whatever size.
            data = read_whole(told, watched(response.iter_raw()), _MAX_TOKEN_BYTES)
            if status == 200 and (data is None or len(data) > _MAX_TOKEN_BYTES):
                server = host_of(str(response.url))
                raise unreadable(status, told, _MAX_TOKEN_BYTES, where, server)
            return status, told, (data or b"")[:_MAX_TOKEN_BYTES]
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as err:
        raise RegistryError(
            f"{where}: the token server cannot be used this way ({type(err).__name__}); "
            "check the registry's configuration",
            where=where,
        ) from err


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (a grammar rule of that name, no secret)
_PARAMETER = re.compile(rf'[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
# `Negotiate dGVzdA==`: one opaque value in place of parameters; of no use to us.
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})(?=[ \t]|,|$)(?:[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$))?")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in: `scheme` in lower case, and its parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """The parameter `name`, or the empty text."""
        return self.parameters.get(name, "")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read all challenges, in order, of all `WWW-Authenticate` headers of one answer.

    One header may hold several, separated by the same commas as their parameters. Quoted values
    may contain commas and escapes. Registries also send unquoted values with `/` and `:`, which
    are understood. What cannot be understood ends the reading of its header and is left out: it
    is for the caller to say that no usable challenge came.
    """
    found: list[Challenge] = []
    for header in headers:
        at, parameters = 0, None
        while True:
            # A parameter first: `name=` never starts a scheme, while a scheme may look like a name.
            if parameters is not None and (match := _PARAMETER.match(header, at)):
                name, quoted, bare = match.groups()
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
                parameters.setdefault(name.lower(), value)
            elif match := _SCHEME.match(header, at):
                parameters = dict[str, str]()
                found.append(Challenge(match[1].lower(), parameters))
            else:
                break
            at = match.end()
    return found
