"""One registry's wire: requests with authorisation, redirects and retries over pooled connections.

The layers above speak the Distribution API; this one only knows HTTP. Everything foreign that can
go wrong leaves it as one of our errors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from mirror.errors import CancelledError, InvalidReferenceError, MirrorError, RegistryError
from mirror.events import Warned
from mirror.oci import Repository
from mirror.oci.reference import check_repository
from mirror.registry import failures
from mirror.registry.auth import Authenticator, Credentials, parse_challenges
from mirror.registry.connections import Connections, Home, host_of, path_of
from mirror.registry.failures import Backoff, TransientFailure
from mirror.registry.gate import HostGate
from mirror.registry.options import ConnectionOptions
from mirror.registry.scopes import Scopes
from mirror.registry.sockets import Patience, StallWatch, bound_head
from mirror.run import Cancellation, Run

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_BODIED = ("POST", "PUT", "PATCH")
_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 1 << 20
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True)
class Body:
    """What a request sends: `size` bytes that `opened` yields, anew for each attempt."""

    size: int
    opened: Callable[[], Iterable[bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Sending:
    """A request as each attempt, and each address that it is redirected to, gets it."""

    method: str
    headers: Mapping[str, str]
    body: Body | None = None
    answer_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `url` is where it came from after redirects."""

    status: int
    headers: httpx.Headers = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)


class Wire:
    """What all views of one client share: connections, addresses and the login. Thread-safe."""

    def __init__(
        self, host: str, *, options: ConnectionOptions, credentials: Credentials | None
    ) -> None:
        if Repository.parse(f"{host}/x").host != host:
            raise InvalidReferenceError(
                f"{host!r} is not a registry host; write host[:port], without scheme and path"
            )
        self.host, self.options = host, options
        self.base = f"{options.scheme}://{_ALIASES.get(host, host)}"
        self.home = Home(host, self.base)
        self.closing = Cancellation()
        self.slept_s = 0.0  # only where `RetryPolicy.sleep` takes the place of waiting
        self.gate = HostGate(options, lambda: time.monotonic() + self.slept_s)
        self.connections: httpx.BaseTransport = Connections(options)
        self.auth = Authenticator(host, secure=not options.plain_http, credentials=credentials)

    def close(self) -> None:
        """End all connections; requests under way fail with CancelledError."""
        self.closing.cancel()
        self.connections.close()


class Transport:
    """Sends requests over a `Wire`, for one run: every wait ends when that is stopped."""

    def __init__(self, wire: Wire, run: Run) -> None:
        self._wire, self.run = wire, run
        self.host, self.options = wire.host, wire.options
        self._home, self._auth = wire.home, wire.auth
        self._warnings: set[str] = set()

    def within(self, run: Run) -> Transport:
        """The same wire for another run."""
        return Transport(self._wire, run)

    def check(self) -> None:
        """Return if requests may be sent.

        Raises:
            CancelledError, DeadlineError: the run was stopped, or the client was closed.
        """
        self.run.check()
        if self._wire.closing.requested:
            raise CancelledError(f"stopped, the connection to {self.host} was closed")

    def warn_once(self, message: str) -> None:
        """Tell the run, unless it has heard the same before."""
        if message not in self._warnings:
            self._warnings.add(message)
            self.run.on_event(Warned(message))

    # -- addresses -----------------------------------------------------------------------------

    def url(self, path: str) -> str:
        """The address of `path`, which starts with `/v2/`."""
        return self._wire.base + path

    def at(self, repository: str, path: str) -> str:
        """The address of `path` below a repository.

        Raises:
            InvalidReferenceError: that is not the name of a repository.
        """
        check_repository(repository)
        return f"{self._wire.base}/v2/{repository}/{path}"

    def resolved(self, location: str, base: str) -> str:
        """The absolute address that `location` means in an answer from `base`.

        Raises:
            RegistryError: it is no address.
        """
        return self._home.resolved(location, base)

    def at_home(self, url: str) -> bool:
        """Whether `url` is at the registry itself, so that credentials may go there."""
        return self._home.holds(url)

    # -- requests ------------------------------------------------------------------------------

    def backoff(self, where: str) -> Backoff:
        """Patience for one piece of work, as the options have it."""
        policy = self.options.retries
        answers = self._wire.gate.answers_to_others
        return Backoff(policy, self.pause, where, self.run.on_event, answers)

    def pause(self, delay_s: float) -> None:
        """Wait; the run, its deadline and closing the client end it at once, as in `check`."""
        if (sleep := self.options.retries.sleep) is not None:
            sleep(delay_s)
            self._wire.slept_s += delay_s
            return
        either = Cancellation(self.run.cancellation)
        remaining_s = self.run.remaining_s()
        try:
            with self._wire.closing.calling(either.cancel):
                either.wait(delay_s if remaining_s is None else min(delay_s, remaining_s))
        finally:
            either.detach()
        self.check()

    def where(self, method: str, url: str) -> str:
        """How messages name a request: `METHOD host/path`, never the query."""
        if self.at_home(url):
            return f"{method} {self.host}{urlsplit(url).path}"
        return f"{method} {path_of(url)}"

    def call(
        self,
        method: str,
        url: str,
        *,
        accept: Collection[int],
        limit: int,
        scopes: Scopes = (),
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
    ) -> Answer:
        """Send a small request and read the whole answer, with retries.

        `accept` lists the statuses to return. At most `limit` bytes of body are read.

        Raises:
            RegistryError: another status (of the type that `mirror.errors` has for it), or a body
                beyond `limit`.
            UnreachableError: no answer, and patience is at its end.
        """
        where = self.where(method, url)
        body = Body(len(content), lambda: (content,)) if content or method in _BODIED else None

        def attempt() -> Answer:
            with self.open(method, url, scopes=scopes, headers=headers, body=body) as response:
                return self.whole(response, accept=accept, limit=limit, where=where)

        return self.patiently(where, attempt)

    def patiently(self, where: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, which is made again after failures that may pass."""
        backoff = self.backoff(where)
        while True:
            try:
                return attempt()
            except TransientFailure as failure:
                backoff.wait(failure)

    def whole(
        self, response: httpx.Response, *, accept: Collection[int], limit: int, where: str
    ) -> Answer:
        """Read the rest of `response`; as `call`, but TransientFailure may leave it."""
        good = response.status_code in accept
        body = self._read(response, limit if good else _MAX_ERROR_BYTES, where, strict=good)
        if not good:
            host = self.host if self.at_home(str(response.url)) else host_of(str(response.url))
            raise failures.from_answer(
                response.status_code,
                response.headers,
                body,
                where=where,
                host=host,
                login=self._auth.login(response.request.headers.get("authorization")),
            )
        return Answer(response.status_code, response.headers, body, str(response.url))

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        *,
        scopes: Scopes = (),
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        answer_timeout_s: float | None = None,
    ) -> Generator[httpx.Response, None, None]:
        """Send one request and hand out the answer, whatever its status, with its body unread.

        Authorisation is proved (and renewed once, on a 401), redirects are followed, nothing is
        retried. Leaving the block closes the answer.

        Raises:
            TransientFailure: the network failed, here or while the block read the body.
            MirrorError: it failed in a way that does not pass, or the token server refused.
        """
        where, quick = self.where(method, url), body is None
        with self._wire.gate.admitted(self.check, self.pause) as admission:
            try:
                with self._failures_of(where) as got:
                    sending = _Sending(method, headers or {}, body, answer_timeout_s)
                    got += [self._exchange(sending, url, scopes)]
                    asked = failures.retry_after_s(got[0].headers.get("retry-after"))
                    admission.head(got[0].status_code, asked, quick=quick)
                    yield got[0]
            except TransientFailure as failure:
                admission.failed(failure)
                raise

    @contextmanager
    def _failures_of(self, where: str) -> Generator[list[httpx.Response], None, None]:
        """Translate what the network does to the answer that the block puts into the list.

        Whatever else leaves the block is the block's own. The answer is closed in the end.
        """
        self.check()
        got: list[httpx.Response] = []
        try:
            yield got
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as err:
            if self._wire.closing.requested:
                raise CancelledError(
                    f"{where}: stopped, the connection to {self.host} was closed"
                ) from err
            raise self._translated(err, where, *got) from err
        finally:
            for response in got:
                response.close()

    def _translated(
        self, err: Exception, where: str, response: httpx.Response | None = None
    ) -> TransientFailure | MirrorError:
        host = self.host
        if isinstance(err, httpx.RequestError):
            try:
                url = str(err.request.url)
                host = self.host if self.at_home(url) else host_of(url)
            except RuntimeError:  # no request known
                pass
        return failures.from_network(
            err, where=where, host=host, options=self.options, in_body=response is not None
        )

    def watch(self, where: str) -> StallWatch:
        """What notices that a transfer has stalled; one for each direction of each transfer."""
        options = self.options
        return StallWatch(
            options.stall_timeout_s,
            options.stall_min_bytes,
            lambda: failures.stalled(where, self.host, options),
            spend=None if options.limit_rate is None else self._spend,
        )

    def _spend(self, count: int) -> None:
        if wait_s := self._wire.gate.spend(count):
            self.pause(wait_s)

    # -- one exchange --------------------------------------------------------------------------

    def _exchange(self, sending: _Sending, url: str, scopes: Scopes) -> httpx.Response:
        authorization = self._auth.header(scopes, self)
        response = self._follow(sending, url, self._home, authorization)
        if response.status_code != 401 or not self.at_home(str(response.url)):
            return response
        challenges = parse_challenges(response.headers.get_list("www-authenticate"))
        try:
            renewed = self._auth.renewed(challenges, scopes, authorization, self)
        except BaseException:
            response.close()
            raise
        if renewed is None:
            return response  # the caller turns it into an error, with the registry's own words
        self._discard(response)
        return self._follow(sending, url, self._home, renewed)

    def _follow(
        self,
        sending: _Sending,
        url: str,
        home: Home,
        authorization: str | None,
        redirects: int = _MAX_REDIRECTS,
    ) -> httpx.Response:
        """Send, and follow redirects by hand: `Authorization` goes to `home` alone."""
        for _ in range(redirects + 1):
            response = self._send(sending, url, authorization if home.trusts(url) else None)
            location = response.headers.get("location")
            moved = response.status_code in (307, 308) or (
                response.status_code in (301, 302, 303) and sending.method in ("GET", "HEAD")
            )
            if not moved or not location or not redirects:
                return response
            self._discard(response)
            url = home.resolved(location, url)
        where = self.where(sending.method, url)
        raise RegistryError(
            f"{where}: {self.host} redirects more than {_MAX_REDIRECTS} times; "
            "check the registry's configuration",
            where=where,
        )

    def _send(self, sending: _Sending, url: str, authorization: str | None) -> httpx.Response:
        options, body = self.options, sending.body
        # Identity: blobs are carried as they are stored, and their digests are of those bytes.
        headers = {"User-Agent": options.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        headers |= sending.headers
        if authorization is not None:
            headers["Authorization"] = authorization
        if body is not None:
            headers["Content-Length"] = str(body.size)
        answer = Patience.of(sending.answer_timeout_s or options.stall_timeout_s, self.check)
        patience = {
            "connect": Patience.of(options.connect_timeout_s, self.check),
            "write": Patience.of(options.stall_timeout_s, self.check),
            "read": answer,
        }
        content = iter(body.opened()) if body is not None else None
        try:
            request = httpx.Request(
                sending.method,
                url,
                headers=headers,
                content=content,
                extensions={"timeout": patience, "trace": bound_head(answer)},
            )
            response = self._wire.connections.handle_request(request)
        finally:
            # A refused request leaves its body half read; whatever feeds it is to be let go.
            if isinstance(content, Generator):
                content.close()
        _log.debug("%s: %s", self.where(sending.method, url), response.status_code)
        return response

    def _read(self, response: httpx.Response, limit: int, where: str, *, strict: bool) -> bytes:
        collected = bytearray()
        for chunk in self.watch(where).received(response.iter_bytes()):
            collected += chunk
            if len(collected) > limit:
                if strict:
                    raise RegistryError(
                        f"{where}: the answer of {self.host} is larger than {limit} bytes",
                        where=where,
                        status=response.status_code,
                    )
                break
        return bytes(collected[:limit])

    def _discard(self, response: httpx.Response) -> None:
        """Read a short body away, so that the connection can be used again; else close it."""
        length = response.headers.get("content-length", "")
        try:
            if length.isdigit() and int(length) <= _MAX_ERROR_BYTES:
                watch = self.watch(self.where(response.request.method, str(response.url)))
                for _ in watch.received(response.iter_raw()):
                    pass
        except (TransientFailure, httpx.HTTPError) as err:
            _log.debug("a body that nobody needs could not be read: %s", err)
        finally:
            response.close()

    def fetch_token(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes
    ) -> bytes:
        """Carry a request of the authenticator, which alone decides what it may contain."""
        where = f"{method} {path_of(url)}"
        body = Body(len(content), lambda: (content,)) if method == "POST" else None
        # An identity token travels in the body, which goes where it was meant to and no further.
        carried = {name: value for name, value in headers.items() if name != "Authorization"}
        sending, realm = _Sending(method, carried, body), Home(self.host, url)
        redirects = _MAX_REDIRECTS if body is None else 0

        def attempt() -> bytes:
            with self._failures_of(where) as got:
                shown = headers.get("Authorization")
                got += [self._follow(sending, url, realm, shown, redirects)]
                answer = self._read(got[0], _MAX_TOKEN_BYTES, where, strict=True)
            if got[0].status_code == 200:
                return answer
            raise failures.from_token_server(
                got[0].status_code,
                got[0].headers,
                answer,
                where=where,
                host=self.host,
                login=self._auth.login(shown or ("token" if body else None)),
            )

        return self.patiently(where, attempt)
