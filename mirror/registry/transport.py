"""One registry's wire: requests with authorisation, redirects and retries over pooled connections.

The layers above speak the Distribution API; this one only knows HTTP. Everything foreign that can
go wrong leaves it as one of our errors.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from mirror.errors import CancelledError, InvalidReferenceError, MirrorError, RegistryError
from mirror.events import Warned
from mirror.oci import Repository
from mirror.oci.reference import check_repository
from mirror.registry import failures
from mirror.registry.auth import Authenticator, Credentials, parse_challenges
from mirror.registry.connections import Connections, Home, host_of, path_of
from mirror.registry.failures import Backoff, TransientFailure
from mirror.registry.gate import HostGate
from mirror.registry.http1 import Body, Headers, Patience, Response, WireError
from mirror.registry.options import ConnectionOptions
from mirror.registry.scopes import Scopes
from mirror.run import Cancellation, Run

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_BODIED = ("POST", "PUT", "PATCH")
_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = 64 << 10
_MAX_TOKEN_BYTES = 1 << 20
_CODINGS, _ANY_WINDOW = ("gzip", "x-gzip", "deflate"), 47  # zlib finds out which
_SLOW_PIECE_S, _MIN_PIECE, _MAX_PIECE = 1.0, 16 << 10, 256 << 10
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class _Sending(NamedTuple):
    """A request as each attempt, and each address that it is redirected to, gets it."""

    method: str
    headers: dict[str, str]
    body: Body | None
    patience: Patience


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `url` is where it came from after redirects."""

    status: int
    headers: Headers = field(repr=False)
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
        self.connections = Connections(options)
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
        self._base, self._home, self._auth = f"{wire.base}/", wire.home, wire.auth
        options = wire.options
        self._patience = Patience(
            options.connect_timeout_s, options.stall_timeout_s, options.stall_timeout_s, self.check
        )
        # Identity: blobs are carried as they are stored, and their digests are of those bytes.
        self._headers = {
            "User-Agent": options.user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
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
        return url.startswith(self._base) or self._home.holds(url)

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
        if url.startswith(self._base):
            return f"{method} {self.host}/{url[len(self._base) :].partition('?')[0]}"
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
        self, response: Response, *, accept: Collection[int], limit: int, where: str
    ) -> Answer:
        """Read the rest of `response`; as `call`, but TransientFailure may leave it."""
        good = response.status in accept
        body = self._read(response, limit if good else _MAX_ERROR_BYTES, where, strict=good)
        if good:
            return Answer(response.status, response.headers, body, response.url)
        raise failures.from_answer(
            response.status,
            response.headers,
            body,
            where=where,
            host=self._named(response.url),
            login=self._auth.login(response.authorization),
        )

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
    ) -> Generator[Response, None, None]:
        """Send one request and hand out the answer, whatever its status, with its body unread.

        Authorisation is proved (and renewed once, on a 401), redirects are followed, nothing is
        retried. Leaving the block closes the answer.

        Raises:
            TransientFailure: the network failed, here or while the block read the body.
            MirrorError: it failed in a way that does not pass, or the token server refused.
        """
        response: Response | None = None
        sending = self._sending(method, headers, body, answer_timeout_s)
        with self._wire.gate.admitted(self.check, self.pause) as admission:
            try:
                response = self._exchange(sending, url, scopes)
                asked = failures.retry_after_s(response.headers.get("retry-after"))
                admission.head(response.status, asked, quick=body is None)
                yield response
            except WireError as err:
                failure = self._translated(err, self.where(method, url), response)
                if isinstance(failure, TransientFailure):
                    admission.failed(failure)
                raise failure from err
            except TransientFailure as failure:  # the block found it
                admission.failed(failure)
                raise
            finally:
                if response is not None:
                    response.close()

    def _translated(
        self, err: WireError, where: str, response: Response | None
    ) -> TransientFailure | MirrorError:
        if self._wire.closing.requested:
            return CancelledError(f"{where}: stopped, the connection to {self.host} was closed")
        url = err.url if response is None else response.url
        return failures.from_network(
            err,
            where=where,
            host=self._named(url) if url else self.host,
            options=self.options,
            in_body=response is not None,
        )

    def _named(self, url: str) -> str:
        """The host of `url`, as messages name it."""
        return self.host if self.at_home(url) else host_of(url)

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

    def _sending(
        self,
        method: str,
        headers: Mapping[str, str] | None,
        body: Body | None,
        answer_timeout_s: float | None = None,
    ) -> _Sending:
        fields = {**self._headers, **headers} if headers else dict(self._headers)
        if body is not None:
            fields["Content-Length"] = str(body.size)
        patience = self._patience
        if answer_timeout_s is not None:
            patience = replace(patience, answer_s=answer_timeout_s)
        return _Sending(method, fields, body, patience)

    def _exchange(self, sending: _Sending, url: str, scopes: Scopes) -> Response:
        authorization = self._auth.header(scopes, self) if self._auth.is_asked else None
        response = self._follow(sending, url, self._home, authorization)
        if response.status != 401 or not self.at_home(response.url):
            return response
        challenges = parse_challenges(response.headers.all("www-authenticate"))
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
    ) -> Response:
        """Send, and follow redirects by hand: `Authorization` goes to `home` alone."""
        for _ in range(redirects + 1):
            response = self._send(sending, url, home, authorization)
            location = response.headers.get("location")
            moved = response.status in (307, 308) or (
                response.status in (301, 302, 303) and sending.method in ("GET", "HEAD")
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

    def _send(self, sending: _Sending, url: str, home: Home, authorization: str | None) -> Response:
        method, headers, body, patience = sending
        if authorization is not None and home.trusts(url):
            headers = {**headers, "Authorization": authorization}
        response = self._wire.connections.send(method, url, headers, body, patience)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: %s", self.where(method, url), response.status)
        return response

    def _read(self, response: Response, limit: int, where: str, *, strict: bool) -> bytes:
        collected = bytearray()
        for chunk in self.watch(where).received(response.pieces()):
            collected += chunk
            if len(collected) > limit:
                break
        if response.headers.get("content-encoding", "").lower() in _CODINGS:
            collected = _decoded(collected, limit, where)  # though we ask for none
        if len(collected) > limit and strict:
            raise RegistryError(
                f"{where}: the answer of {self.host} is larger than {limit} bytes",
                where=where,
                status=response.status,
            )
        return bytes(collected[:limit])

    def _discard(self, response: Response) -> None:
        """Read a short body away, so that the connection can be used again; else close it."""
        length = response.headers.get("content-length", "")
        try:
            if length.isdigit() and int(length) <= _MAX_ERROR_BYTES:
                watch = self.watch(self.where(response.method, response.url))
                for _ in watch.received(response.pieces()):
                    pass
        except (TransientFailure, WireError) as err:
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
        sending, realm = self._sending(method, carried, body), Home(self.host, url)
        redirects = _MAX_REDIRECTS if body is None else 0

        def attempt() -> bytes:
            self.check()
            shown = headers.get("Authorization")
            response: Response | None = None
            try:
                response = self._follow(sending, url, realm, shown, redirects)
                answer = self._read(response, _MAX_TOKEN_BYTES, where, strict=True)
            except WireError as err:
                raise self._translated(err, where, response) from err
            finally:
                if response is not None:
                    response.close()
            if response.status == 200:
                return answer
            raise failures.from_token_server(
                response.status,
                response.headers,
                answer,
                where=where,
                host=self.host,
                login=self._auth.login(shown or ("token" if body else None)),
            )

        return self.patiently(where, attempt)


def _decoded(data: bytearray, limit: int, where: str) -> bytearray:
    try:
        return bytearray(zlib.decompressobj(_ANY_WINDOW).decompress(data, limit + 1))
    except zlib.error as err:
        raise RegistryError(f"{where}: the answer is compressed and damaged", where=where) from err


class StallWatch:
    """Judges one direction of one transfer in windows of `window_s` seconds spent waiting.

    Only the time that the network takes counts: a slow disk on our side is no stall. Sockets have
    time-outs of their own for moving nothing at all; this catches the connection that trickles.
    `spend` hears of all bytes and may wait, for a rate to be kept.
    """

    def __init__(
        self,
        window_s: float,
        min_bytes: int,
        error: Callable[[], Exception],
        clock: Callable[[], float] = time.monotonic,
        spend: Callable[[int], None] | None = None,
    ) -> None:
        self._spend = spend
        self._window_s, self._min_bytes = window_s, min_bytes
        self._error, self._clock = error, clock
        self._waited_s, self._moved = 0.0, 0

    def _note(self, count: int, waited_s: float) -> None:
        self._moved += count
        self._waited_s += waited_s
        if self._waited_s >= self._window_s:
            if self._moved < self._min_bytes:
                raise self._error()
            self._waited_s, self._moved = 0.0, 0

    def received(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on what arrives; raise the error once it has stalled."""
        iterator = iter(chunks)
        while True:
            began = self._clock()
            chunk = next(iterator, None)
            if chunk is None:
                return
            self._note(len(chunk), self._clock() - began)
            if self._spend is not None:
                self._spend(len(chunk))
            yield chunk

    def sent(self, chunks: Iterable[bytes]) -> Iterator[memoryview]:
        """Hand out `chunks` in pieces; raise the error once their receiver has stalled.

        A piece counts when the next is asked for. Pieces shrink when the line is slow, so that
        this is soon enough to tell, and grow when it is fast, so that it costs nothing.
        """
        size = _MIN_PIECE
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                piece, view = view[:size], view[size:]
                began = self._clock()
                yield piece
                waited_s = self._clock() - began
                self._note(len(piece), waited_s)
                if self._spend is not None:
                    self._spend(len(piece))
                size = _MIN_PIECE if waited_s > _SLOW_PIECE_S else min(size * 2, _MAX_PIECE)
