"""The registries at the ends of a plane's routes, and the order in which they are asked.

The memory of their health only decides the order. Every endpoint is asked in the end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from pydantic import SecretStr

from mirror.errors import (
    DeniedError,
    ForbiddenByModeError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import EndpointDown, EndpointUp, OnEvent, Retrying, Warned, ignore
from mirror.modes import ROLE_HOSTS, Plane, RegistryUser, Role
from mirror.modes.addressing import LOGICAL_ROOT, Route, push_address, routes_for
from mirror.modes.settings import Account, ClusterAccess, RegistrySettings
from mirror.oci import Digest, Repository, verified
from mirror.registry import (
    ClientCertificate,
    ConnectionOptions,
    Credentials,
    RegistryClient,
    RetryPolicy,
)
from mirror.sync.failover import continued

Name = TypeVar("Name", bound=Hashable)
Found = TypeVar("Found")

_CA_FROM = {
    Role.UPSTREAM: "as `ca` in the settings",
    Role.PUBLIC: "as `publicCaFile` in the sites",
    Role.FOREIGN: "with --ca",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A registry's address, the authority to trust there (PEM), and our login and certificate.

    `is_door`: any of several replicas may answer behind it. `ca_from`: where to name the authority.
    """

    scheme: str
    host: str
    ca: str | None = field(default=None, repr=False)
    credentials: Credentials | None = None
    is_door: bool = False
    certificate: ClientCertificate | None = None
    ca_from: str = "with --ca"

    @classmethod
    def of(cls, route: Route, credentials: Credentials | None = None) -> Endpoint:
        """Where `route` leads; `credentials` take the place of its own."""
        return cls(
            *(route.scheme, route.host, route.ca, credentials or credentials_of(route.credential)),
            *(route.role in ROLE_HOSTS, route.certificate),
            _CA_FROM.get(route.role, "as `caFile` in the sites"),
        )

    def connection(self, options: ConnectionOptions) -> ConnectionOptions:
        """`options`, with this endpoint's scheme, authority and certificate."""
        ca = "\n".join(pem for pem in (self.ca, options.ca) if pem) or None
        certificate = self.certificate or options.certificate
        plain = self.scheme == "http"
        return replace(
            options, plain_http=plain, ca=ca, certificate=certificate, ca_from=self.ca_from
        )

    def client(self, options: ConnectionOptions, on_event: OnEvent = ignore) -> RegistryClient:
        """A new client; the caller closes it."""
        return RegistryClient(
            self.host,
            options=self.connection(options),
            credentials=self.credentials,
            on_event=on_event,
        )


def credentials_of(account: Account | None) -> Credentials | None:
    """The same login, as connections take it."""
    if account is None:
        return None
    return Credentials(account.name, account.password.get_secret_value())


def replica_endpoints(
    settings: RegistrySettings, access: ClusterAccess, credentials: Credentials | None = None
) -> tuple[tuple[Repository, Endpoint], ...]:
    """Root and endpoint of every replica in Local mode, in order, to be read and written.

    The login is `credentials`, or that of `mirror-pusher`, or of `rw`.
    """
    mode = settings.mode
    if not settings.kind.row.holds_own_images:
        raise ForbiddenByModeError(
            f"in mode {mode} the cluster has no replicas that hold images of their own; "
            f"what it serves is in {push_address(settings, access)}",
            mode=mode,
            plane=Plane.REPLICA,
        )
    writer = access.account(RegistryUser.MIRROR_PUSHER) or access.account(RegistryUser.RW)
    if writer is None and credentials is not None:  # they take the place of this one
        writer = Account(RegistryUser.MIRROR_PUSHER.value, SecretStr(""))
    if writer is not None:
        both = {RegistryUser.MIRROR_PULLER: writer, RegistryUser.MIRROR_PUSHER: writer}
        access = replace(access, accounts={**access.accounts, **both})
    return tuple(
        (Repository(route.host, route.repository), Endpoint.of(route, credentials))
        for route in routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
    )


# -- what is remembered of endpoints ---------------------------------------------------------------

_MOST_LACKS = 10_000


@dataclass(slots=True)
class _Rest:
    """How often an endpoint failed in a row, until when it rests, and whether one probed it."""

    failures: int
    until: float
    probed: bool = False


class HealthMemory(Generic[Name]):
    """Remembers which endpoints failed and what they do not have. Thread-safe. Times in seconds.

    An endpoint that fails rests for `first_rest_s`, and after each further failure in a row for
    twice as long, up to `longest_rest_s`: it is asked last. When the rest is over, the first caller
    probes it for all. Missing content is remembered for `lack_s`. `clock` never jumps.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        first_rest_s: float = 2.0,
        longest_rest_s: float = 60.0,
        lack_s: float = 30.0,
    ) -> None:
        self._clock, self._lack_s = clock, lack_s
        self._first_rest_s, self._longest_rest_s = first_rest_s, longest_rest_s
        self._lock = threading.Lock()  # guards everything below
        self._resting: dict[Name, _Rest] = {}
        self._denying: set[Name] = set()
        self._lacks: dict[tuple[Name, str], float] = {}  # the oldest first

    def in_order(self, endpoints: Sequence[Name], content: str) -> Iterator[Name]:
        """The order in which to ask for `content`; each endpoint is chosen when it is needed.

        They keep their own order, but those that did not have it come later, and those that rest
        last.
        """
        left = list(endpoints)
        while left:
            with self._lock:
                now = self._clock()
                ranks = [
                    (self._rests(one, now), self._lacks.get((one, content), now) > now)
                    for one in left
                ]
                endpoint = left.pop(ranks.index(min(ranks)))  # the first of equals
                rest = self._resting.get(endpoint)
                if rest is not None and now >= rest.until:
                    # This caller probes it; until it reports, or is lost, nobody else does.
                    rest.probed, rest.until = True, now + self._rest_s(rest.failures)
            yield endpoint

    def _rests(self, endpoint: Name, now: float) -> bool:
        rest = self._resting.get(endpoint)
        return rest is not None and now < rest.until

    def is_well(self, endpoint: Name) -> bool:
        """Whether it answered the last time."""
        with self._lock:
            return endpoint not in self._resting

    def failed(self, endpoint: Name) -> float | None:
        """Note a failure; return the length of its rest if it was well until now, else None."""
        now = self._clock()
        with self._lock:
            rest = self._resting.get(endpoint)
            if rest is None:
                self._resting[endpoint] = _Rest(1, now + self._first_rest_s)
                return self._first_rest_s
            # All requests that were under way when it failed are one failure. A request that asks
            # it last while it rests proves nothing new either.
            if rest.probed or now >= rest.until:
                failures = rest.failures + 1
                self._resting[endpoint] = _Rest(failures, now + self._rest_s(failures))
            return None

    def _rest_s(self, failures: int) -> float:
        return float(min(self._longest_rest_s, self._first_rest_s * 2.0 ** min(failures - 1, 30)))

    def answered(self, endpoint: Name) -> bool:
        """Note an answer, "not found" included; return whether it had been failing until now."""
        with self._lock:
            return self._resting.pop(endpoint, None) is not None

    def denied(self, endpoint: Name) -> bool:
        """Note that it refused the login or its rights; return True the first time in a row."""
        with self._lock:
            is_news = endpoint not in self._denying
            self._denying.add(endpoint)
            return is_news

    def served(self, endpoint: Name, content: str) -> None:
        """Note that it had `content`."""
        with self._lock:
            self._denying.discard(endpoint)
            self._lacks.pop((endpoint, content), None)

    def lacked(self, endpoint: Name, content: str) -> None:
        """Note that it does not have `content`, or has it damaged."""
        now = self._clock()
        with self._lock:
            self._lacks.pop((endpoint, content), None)
            self._lacks[endpoint, content] = now + self._lack_s
            if len(self._lacks) > _MOST_LACKS:
                del self._lacks[next(iter(self._lacks))]


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """What all readings of a client share; `policy.attempts` bounds the rounds."""

    health: HealthMemory[Endpoint]
    policy: RetryPolicy
    sleep: Callable[[float], object]
    on_event: OnEvent


@dataclass(slots=True)
class Reading:
    """Chooses the endpoint to ask next for `what`, and the error to raise. Used by one thread.

    Who iterates over it, instead of using `answers` or `blob`, reports what came of it.
    """

    what: str
    endpoints: Sequence[Endpoint]
    patience: ReadingPolicy
    _errors: dict[Endpoint, MirrorError] = field(default_factory=dict)
    """What each endpoint said in this round."""
    _rounds: int = 0
    _was_served: bool = False

    def __iter__(self) -> Iterator[Endpoint]:
        patience = self.patience
        attempts = patience.policy.attempts if len(self.endpoints) > 1 else 1
        while True:
            well = {one for one in self.endpoints if patience.health.is_well(one)}
            self._errors.clear()
            yield from patience.health.in_order(self.endpoints, self.what)
            if self._was_served:  # the caller continued, to hear what the others have
                return
            self._rounds += 1
            if self._rounds >= attempts or not self._may_help_to_wait(well):
                return
            delay_s = patience.policy.delay_s(self._rounds)
            failing = [one.host for one, error in self._errors.items() if not _says_absent(error)]
            reason = f"{', '.join(failing)} cannot be read from"
            patience.on_event(Retrying(self.what, self._rounds, delay_s, reason))
            patience.sleep(delay_s)

    def answers(self, ask: Callable[[Endpoint], Found | None]) -> Iterator[Found]:
        """What each endpoint that has it answers, the first one first; None means absence."""
        for endpoint in self:
            try:
                found = ask(endpoint)
            except MirrorError as err:
                self.failed(endpoint, err)
                continue
            if found is None:
                self.absent(endpoint)
                continue
            self.served(endpoint)
            yield found
        if not self._was_served:
            raise self.verdict()

    def blob(
        self,
        open_at: Callable[[Endpoint, int], Generator[bytes, None, None]],
        digest: Digest,
        size: int | None,
        offset: int,
        *,
        verify: bool,
    ) -> Generator[bytes, None, None]:
        """A blob's bytes; see `ModeClient.blob`. Those of `open_at` are unverified."""
        endpoints = iter(self)
        givers: list[Endpoint] = []
        began = offset

        def asked() -> Iterator[Endpoint]:
            for endpoint in endpoints:
                givers.append(endpoint)
                yield endpoint

        def failed(endpoint: Endpoint, position: int, error: MirrorError) -> None:
            nonlocal began
            brought, began = position - began, position
            if brought >= _PROGRESS_BYTES:
                self._rounds = 0
            if brought and isinstance(error, IntegrityError):
                raise error
            if not brought:
                givers.remove(endpoint)
            self.failed(endpoint, error)

        while True:
            givers.clear()
            began, passed = offset, False
            chunks: Iterator[bytes] = continued(
                asked(), open_at, failed, self.verdict, size=size, offset=offset
            )
            if verify and offset == 0:  # from the middle on, the holder of the beginning verifies
                chunks = verified(chunks, digest, size, where=self.what)
            try:
                for chunk in chunks:
                    passed = True
                    yield chunk
            except IntegrityError as err:
                for one in givers:  # any may have sent wrong bytes; ask others first next time
                    self.patience.health.lacked(one, self.what)
                if not givers:  # it is the verdict
                    raise
                if passed:
                    hosts = " or ".join(one.host for one in givers)
                    self.patience.on_event(Warned(f"{hosts}: {err}"))
                    err.relocate(f"{hosts}: {self.what}")
                    raise
                self.failed(givers[-1], err)
                err.relocate(f"{givers[-1].host}: {self.what}")
                continue
            self.served(givers[-1])
            return

    def served(self, endpoint: Endpoint) -> None:
        """`endpoint` had it."""
        self._was_served = True
        self._well(endpoint)
        self.patience.health.served(endpoint, self.what)

    def absent(self, endpoint: Endpoint, error: RegistryNotFoundError | None = None) -> None:
        """`endpoint` answered that it does not have it."""
        self._well(endpoint)
        self.patience.health.lacked(endpoint, self.what)
        self._errors[endpoint] = error or RegistryNotFoundError(
            f"{endpoint.host}: {self.what} is not there", where=self.what, status=404
        )

    def failed(self, endpoint: Endpoint, error: MirrorError) -> None:
        """`endpoint` did not deliver."""
        health, on_event = self.patience.health, self.patience.on_event
        several = len(self.endpoints) > 1
        match error:
            case RegistryNotFoundError():
                self.absent(endpoint, error)
            case DeniedError():
                self._well(endpoint)
                # Another endpoint may let us in; warn, so that the refusal does not go unnoticed.
                if several and health.denied(endpoint):
                    on_event(Warned(str(error)))
            case RegistryError() if _is_of_the_endpoint(error):
                rest_s = health.failed(endpoint)
                if several and rest_s is not None:
                    on_event(EndpointDown(endpoint.host, str(error), rest_s))
            case IntegrityError() | InvalidManifestError():
                health.lacked(endpoint, self.what)
                if several:
                    on_event(Warned(f"{endpoint.host}: {error}"))
            case _:
                raise error
        self._errors[endpoint] = error

    def _well(self, endpoint: Endpoint) -> None:
        if self.patience.health.answered(endpoint) and len(self.endpoints) > 1:
            self.patience.on_event(EndpointUp(endpoint.host))

    def _witnesses(self) -> list[Endpoint]:
        """Who must all say "not found": no door, if the replicas behind it were asked."""
        return [one for one in self.endpoints if not one.is_door] or list(self.endpoints)

    def _may_help_to_wait(self, well: set[Endpoint]) -> bool:
        """Whether another round may end better than this one.

        If some endpoint answered, nobody waits for those that were failing before.
        """
        errors = self._errors
        passing = {one for one, error in errors.items() if _may_pass(error)}
        if any(isinstance(one, RegistryNotFoundError | DeniedError) for one in errors.values()):
            passing &= well & set(self._witnesses())
        return bool(passing)

    def verdict(self) -> MirrorError:
        """The error to raise after the last endpoint; "not found" only if all witnesses say so."""
        witnesses = [self._errors.get(one) for one in self._witnesses()]
        every = witnesses if all(map(_says_absent, witnesses)) else self._errors.values()
        errors = [error for error in every if error is not None]
        worst = min(errors, key=_gravity)
        if len(errors) == 1 or not isinstance(worst, RegistryError):
            return worst
        reasons = "".join(f"\n  {error}" for error in errors)
        message = f"{self.what}: none of {len(errors)} endpoints delivers it:{reasons}"
        error = type(worst)(message, where=worst.where, status=worst.status, codes=worst.codes)
        error.may_pass = any(map(_may_pass, errors))
        return error


_PROGRESS_BYTES = 64 << 10
"""A round of a blob that moved less counts as failed, or a trickle could go on for ever."""

_GRAVITY = (DeniedError, UnreachableError, MirrorError, RegistryError, RegistryNotFoundError)


def _gravity(error: MirrorError) -> int:
    """The rank of an error: the lowest gives several failures their common type."""
    return next(_GRAVITY.index(kind) for kind in type(error).__mro__ if kind in _GRAVITY)


def _says_absent(error: MirrorError | None) -> bool:
    return isinstance(error, RegistryNotFoundError)


def _may_pass(error: MirrorError) -> bool:
    return isinstance(error, RegistryError) and error.may_pass


def _is_of_the_endpoint(error: RegistryError) -> bool:
    """Whether the endpoint itself failed, so that another one may do better."""
    return isinstance(error, UnreachableError) or not 400 <= (error.status or 0) < 500
