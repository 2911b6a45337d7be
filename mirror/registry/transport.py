"""One registry's wire: requests with authorisation, redirects and retries over pooled connections.

The layers above speak the Distribution API; this one only knows HTTP. Everything foreign that can
go wrong leaves it as one of our errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from mirror.errors import CancelledError, InvalidReferenceError, MirrorError, RegistryError
from mirror.events import Warned
from mirror.oci import Repository
from mirror.oci.reference import check_repository
from mirror.registry import answers, retries
from mirror.registry.answers import Response, is_page, read_whole
from mirror.registry.auth import Authenticator, Scopes, ask_token_server, parse_challenges
from mirror.registry.connections import Connections
from mirror.registry.gate import Admission, HostGate, StallWatch
from mirror.registry.hosts import Home, Origin, host_of, path_of
from mirror.registry.http1 import Body, Headers, Patience, WireError
from mirror.registry.options import ConnectionOptions, Credentials
from mirror.registry.retries import Backoff, TransientFailure
from mirror.run import Cancellation, Run

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_BODIED = ("POST", "PUT", "PATCH")
_MAX_REDIRECTS = 5
_MAX_ERROR_BYTES = _SMALL = 64 << 10
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class _Sending(NamedTuple):
    """A request as each attempt, and each address that it is redirected to, gets it."""

    method: str
    headers: dict[str, str]
    body: Body | None
    patience: Patience


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """A whole answer. `url` is where it came from after redirects."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    url: str = field(repr=False)


class Wire:
    """What all views of one client share: connections, addresses and the login. Thread-safe.

    Unless it `follows`, an answer that leads elsewhere or wants a login is handed out.
    """

    def __init__(
        self,
        host: str,
        *,
        options: ConnectionOptions,
        credentials: Credentials | None,
        follows: bool = True,
    ) -> None:
        if Repository.parse(f"{host}/x").host != host:
            raise InvalidReferenceError(
                f"{host!r} is not a registry host; write host[:port], without scheme and path"
            )
        self.host, self.options, self.follows = host, options, follows
        self.base = f"{options.scheme}://{_ALIASES.get(host, host)}"
        self.home = Home(host, self.base)
        self.closing = Cancellation()
        self.gates: dict[Origin, HostGate] = {}
        self.gate = self.gate_of(self.base)
        self.connections = Connections(options, Origin.of(self.base))
        self.auth = Authenticator(host, options, credentials)

    def gate_of(self, url: str) -> HostGate:
        """The gate of the host that `url` leads to."""
        origin = Origin.of(url)
        if origin not in self.gates:
            self.gates[origin] = HostGate.of(origin.host, origin.port, self.options)
        return self.gates[origin]

    def close(self) -> None:
        """End all connections; requests under way fail with CancelledError."""
        self.closing.cancel()
        self.connections.close()


class Transport:
    """Sends requests over a `Wire`, for one run: every wait ends when that is stopped."""

    def __init__(self, wire: Wire, run: Run) -> None:
        self._wire, self.run, self.host = wire, run, wire.host
        self.options = options = wire.options
        self._base, self._home, self._auth = f"{wire.base}/", wire.home, wire.auth
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
        """Raise CancelledError or DeadlineError if the run was stopped, or the client closed."""
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
        """The address of `path` below a repository, whose name is checked."""
        check_repository(repository)
        return f"{self._wire.base}/v2/{repository}/{path}"

    def resolved(self, location: str, base: str) -> str:
        """The absolute address that `location` means in an answer from `base`; see `Home`."""
        return self._home.resolved(location, base)

    def at_home(self, url: str) -> bool:
        """Whether `url` is at the registry itself, so that credentials may go there."""
        return url.startswith(self._base) or self._home.holds(url)

    # -- requests ------------------------------------------------------------------------------

    def backoff(self, where: str) -> Backoff:
        """Patience for one piece of work (`METHOD place`), as the options have it."""
        gate, heard = self._wire.gate, self.run.on_event
        policy = self.options.retries
        return Backoff(policy, self.pause, where, heard, gate.tally, gate.has_answered)

    def pause(self, delay_s: float) -> None:
        """Wait; the run, its deadline and closing the client end it at once, as in `check`."""
        if (sleep := self.options.retries.sleep) is not None:
            sleep(delay_s)
            for gate in list(self._wire.gates.values()):
                gate.slept_s += delay_s
            return
        left_s = self.run.remaining_s()
        with self.run.child() as part, self._wire.closing.calling(part.cancellation.cancel):
            part.cancellation.wait(delay_s if left_s is None else min(delay_s, left_s))
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
        limit: int = _SMALL,
        scopes: Scopes = (),
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        once: bool = False,
    ) -> WholeAnswer:
        """Send a small request and read the whole answer, with retries unless it is sent `once`.

        `accept` lists the statuses to return. At most `limit` bytes of body are read.

        Raises:
            RegistryError: another status (of the type that `mirror.errors` has for it), or a body
                beyond `limit`.
            UnreachableError: no answer, and patience is at its end.
            TransientFailure: a failure that may pass, of what is sent `once`.
        """
        where = self.where(method, url)
        body = Body(len(content), lambda: (content,)) if content or method in _BODIED else None

        def attempt() -> WholeAnswer:
            with self.open(method, url, scopes=scopes, headers=headers, body=body) as response:
                return self.whole(response, accept=accept, limit=limit, where=where)

        return attempt() if once else self.patiently(where, attempt)

    def patiently(self, where: str, attempt: Callable[[], Result]) -> Result:
        """What `attempt` returns, which is made again after failures that may pass."""
        return self.backoff(where).over(attempt)

    def whole(
        self, response: Response, *, accept: Collection[int], where: str, limit: int = _SMALL
    ) -> WholeAnswer:
        """Read the rest of `response`; as `call`, but TransientFailure may leave it."""
        good, headers = response.status in accept, response.headers
        body = self._read(response, limit if good else _MAX_ERROR_BYTES, where, strict=good)
        answer = WholeAnswer(response.status, headers, body, response.url)
        if good and not is_page(headers, body):
            return answer
        raise self.refused(answer, where, response.authorization)

    def refused(self, answer: WholeAnswer, where: str, sent: str | None = None) -> Exception:
        """What an answer means that is not what was asked for; `sent` is its Authorization."""
        host, login = self._named(answer.url), self._auth.login(sent)
        return answers.from_answer(
            answer.status, answer.headers, answer.body, where=where, host=host, login=login
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
        fields = {**self._headers, **headers} if headers else dict(self._headers)
        if body is not None:
            fields["Content-Length"] = str(body.size)
        patience = self._patience
        if answer_timeout_s is not None:
            patience = replace(patience, answer_s=answer_timeout_s)
        sending = _Sending(method, fields, body, patience)
        with self._guarded(method, url, self._wire.gate) as admission:
            response = self._exchange(sending, url, scopes)
            try:
                asked = response.headers.get("retry-after")
                admission.head(response.status, asked, quick=body is None)
                if response.status < 429 and (body is None or body.size < _SMALL):
                    self.run.width.hear(self.host, *admission.heard)
                yield response
            finally:
                response.close()

    @contextmanager
    def _guarded(
        self, method: str, url: str, gate: HostGate | None = None
    ) -> Generator[Admission, None, None]:
        """The block is one request to `url`, which its host's gate lets through and hears about."""
        with (gate or self._wire.gate_of(url)).admitted(self.check, self.pause) as admission:
            try:
                yield admission
            except WireError as err:
                failure = self._translated(err, method, url, in_body=admission.is_answered)
                if isinstance(failure, TransientFailure):
                    admission.failed(failure)
                raise failure from err
            except TransientFailure as failure:  # the block found it
                admission.failed(failure)
                raise

    def _translated(
        self, err: WireError, method: str, url: str, *, in_body: bool
    ) -> TransientFailure | MirrorError:
        where = self.where(method, url)
        if self._wire.closing.requested:
            return CancelledError(f"{where}: stopped, the connection to {self.host} was closed")
        host = self._named(err.url or url)
        named_by = "" if host == self.host else self.host
        return retries.from_network(
            err, where=where, host=host, options=self.options, in_body=in_body, named_by=named_by
        )

    def _named(self, url: str) -> str:
        """The host of `url`, as messages name it."""
        return self.host if self.at_home(url) else host_of(url)

    def watch(self, where: str) -> StallWatch:
        """What notices that a transfer has stalled; one for each direction of each transfer."""
        return StallWatch(
            self.options.stall_timeout_s,
            self.options.stall_min_bytes,
            lambda: retries.stalled(where, self.host, self.options),
            spend=None if self.options.limit_rate is None else self._spend,
        )

    def _spend(self, count: int) -> None:
        if wait_s := self._wire.gate.spend(count):
            self.pause(wait_s)

    # -- one exchange --------------------------------------------------------------------------

    def _exchange(self, sending: _Sending, url: str, scopes: Scopes) -> Response:
        if not self._wire.follows:
            return self._send(sending, url, None)
        authorization = self._auth.header(scopes, self) if self._auth.way is not None else None
        response = self._follow(sending, url, authorization)
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
        return self._follow(sending, url, renewed)

    def _follow(self, sending: _Sending, url: str, authorization: str | None) -> Response:
        """Send, and follow redirects by hand: `Authorization` goes home alone."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(sending, url, authorization)
            location = response.headers.get("location")
            moved = response.status in (307, 308) or (
                response.status in (301, 302, 303) and sending.method in ("GET", "HEAD")
            )
            if not moved or not location:
                return response
            self._discard(response)
            url = self.resolved(location, url)
        where = self.where(sending.method, url)
        raise RegistryError(
            f"{where}: {self.host} redirects more than {_MAX_REDIRECTS} times; "
            "check the registry's configuration",
            where=where,
        )

    def _send(self, sending: _Sending, url: str, authorization: str | None) -> Response:
        method, headers, body, patience = sending
        if authorization is not None and self._home.trusts(url):
            headers = {**headers, "Authorization": authorization}
        response = self._wire.connections.send(method, url, headers, body, patience)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s: %s", self.where(method, url), response.status)
        return response

    def _read(self, response: Response, limit: int, where: str, *, strict: bool) -> bytes:
        pieces = self.watch(where).received(response.pieces())
        body = read_whole(response.headers, pieces, limit)
        if strict and (body is None or len(body) > limit):
            raise answers.unreadable(response.status, response.headers, limit, where, self.host)
        return (body or b"")[:limit]

    def _discard(self, response: Response) -> None:
        """Read a short body away, so that the connection can be used again; else close it."""
        length = response.headers.length
        try:
            if length is not None and length <= _MAX_ERROR_BYTES:
                self._read(response, _MAX_ERROR_BYTES, "", strict=False)
        except (TransientFailure, WireError) as err:
            _log.debug("a body that nobody needs could not be read: %s", err)
        finally:
            response.close()

    def fetch_token(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes
    ) -> bytes:
        """Carry a request of the authenticator, which alone decides what it may contain."""
        fields, where = {**self._headers, **headers}, self.where(method, url)
        shown = headers.get("Authorization") or ("token" if content else None)

        def attempt() -> bytes:
            with self._guarded(method, url) as admission:
                status, answered, body = ask_token_server(
                    self._wire.connections,
                    self._patience,
                    method,
                    url,
                    fields,
                    content,
                    head=admission.head,
                    watched=self.watch(where).received,
                )
            if status == 200:
                return body
            login = self._auth.login(shown)
            raise answers.from_token_server(
                status, answered, body, where=where, host=self.host, login=login
            )

        return self.patiently(where, attempt)
