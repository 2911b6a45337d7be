"""One reading, offered to one endpoint after the other, and what is remembered of endpoints.

The memory only decides who is asked first. It leaves nobody out, so a memory that has grown old
costs time and never an answer. Where one endpoint breaks off in the middle of a blob, the next one
continues.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from mirror.errors import (
    DeniedError,
    DigestMismatchError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import EndpointDown, EndpointUp, OnEvent, Retrying, Warned
from mirror.oci import Digest, Verifier
from mirror.registry import RetryPolicy

Name = TypeVar("Name", bound=Hashable)


class Askable(Hashable, Protocol):
    """Somewhere to ask. `is_door`: any of several replicas may answer behind it."""

    @property
    def host(self) -> str: ...

    @property
    def is_door(self) -> bool: ...


Asked = TypeVar("Asked", bound=Askable)

_MOST_LACKS = 10_000


@dataclass(slots=True)
class _Rest:
    """An endpoint that failed `failures` times in a row and rests until a time of the clock.

    `probed`: that time has come once, and a caller has probed it.
    """

    failures: int
    until: float
    probed: bool = False


class HealthMemory(Generic[Name]):
    """Remembers which endpoints failed and what they do not have. Thread-safe. Times in seconds.

    An endpoint that fails rests for `first_rest_s`, and after each further failure in a row for
    twice as long, up to `longest_rest_s`. While it rests, it is asked last. When the rest is over,
    the first caller who reaches it probes it; the others ask it last until they know the result.
    Missing content is remembered for `lack_s`.

    `clock` counts seconds and never jumps.
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
        self._lacks: OrderedDict[tuple[Name, str], float] = OrderedDict()

    def in_order(self, endpoints: Sequence[Name], content: str) -> Iterator[Name]:
        """The order in which to ask `endpoints` for `content`; each is chosen when it is needed.

        They keep their own order, except that those that did not have it a moment ago come later,
        and those that rest come last. The caller who reaches an endpoint whose rest is over probes
        it for all.
        """
        left = list(endpoints)
        while left:
            with self._lock:
                now = self._clock()
                endpoint = min(  # the first of equals
                    left,
                    key=lambda one: (
                        self._rests(one, now),
                        self._lacks.get((one, content), now) > now,
                    ),
                )
                rest = self._resting.get(endpoint)
                if rest is not None and now >= rest.until:
                    # This caller probes it; until it reports, or is lost, nobody else does.
                    rest.probed, rest.until = True, now + self._rest_s(rest.failures)
            left.remove(endpoint)
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
                self._resting[endpoint] = _Rest(
                    rest.failures + 1, now + self._rest_s(rest.failures + 1)
                )
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
            if endpoint in self._denying:
                return False
            self._denying.add(endpoint)
            return True

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
            while len(self._lacks) > _MOST_LACKS:
                self._lacks.popitem(last=False)


# -- one reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadingPolicy(Generic[Asked]):
    """What all readings of a client share: memory, retries, waiting, the listener.

    A reading asks all endpoints up to `policy.attempts` times, as long as some failure may pass.
    """

    health: HealthMemory[Asked]
    policy: RetryPolicy
    sleep: Callable[[float], object]
    on_event: OnEvent


@dataclass(slots=True)
class Reading(Generic[Asked]):
    """Chooses the endpoint to ask next for `what`, and the error to raise. Used by one thread.

        reading = Reading("...", endpoints, patience)
        for endpoint in reading:
            try:
                found = ask(endpoint)
            except MirrorError as err:
                reading.failed(endpoint, err)
            else:
                reading.served(endpoint)
                return found
        raise reading.verdict()

    `what` names the content, in the same words for all endpoints.
    """

    what: str
    endpoints: Sequence[Asked]
    patience: ReadingPolicy[Asked]
    _errors: dict[Asked, MirrorError] = field(default_factory=dict)
    """What each endpoint said in this round."""
    _rounds: int = 0
    was_served: bool = False

    def __iter__(self) -> Iterator[Asked]:
        patience = self.patience
        while True:
            well = {one for one in self.endpoints if patience.health.is_well(one)}
            self._errors.clear()
            yield from patience.health.in_order(self.endpoints, self.what)
            if self.was_served:  # the caller continued, to hear what the others have
                return
            self._rounds += 1
            if self._rounds >= patience.policy.attempts or not self._may_help_to_wait(well):
                return
            delay_s = patience.policy.delay_s(self._rounds)
            patience.on_event(Retrying(self.what, self._rounds, delay_s, self._in_few_words()))
            patience.sleep(delay_s)

    def _witnesses(self) -> list[Asked]:
        """The endpoints that must all say "not found" before content counts as absent.

        A door adds nothing if the replicas behind it were asked themselves.
        """
        return [one for one in self.endpoints if not one.is_door] or list(self.endpoints)

    def _may_help_to_wait(self, well: set[Asked]) -> bool:
        """Whether another round may end better than this one.

        If some endpoint answered, "not found" included, do not wait for those that were failing
        before: a machine that is gone for good must not delay each question.
        """
        passing = {
            one
            for one, error in self._errors.items()
            if isinstance(error, RegistryError) and error.may_pass
        }
        somebody_answered = any(
            isinstance(error, RegistryNotFoundError | DeniedError)
            for error in self._errors.values()
        )
        if somebody_answered:
            passing &= well & set(self._witnesses())
        return bool(passing)

    def _in_few_words(self) -> str:
        failing = [
            one.host
            for one, error in self._errors.items()
            if not isinstance(error, RegistryNotFoundError)
        ]
        return f"{', '.join(failing)} cannot be read from"

    def progressed(self) -> None:
        """Some bytes have arrived: count the attempts from the beginning."""
        self._rounds = 0

    def served(self, endpoint: Asked) -> None:
        """`endpoint` had it."""
        self.was_served = True
        self._well(endpoint)
        self.patience.health.served(endpoint, self.what)

    def absent(self, endpoint: Asked, error: RegistryNotFoundError | None = None) -> None:
        """`endpoint` answered that it does not have it."""
        self._well(endpoint)
        self.patience.health.lacked(endpoint, self.what)
        self._errors[endpoint] = error or RegistryNotFoundError(
            f"{endpoint.host}: {self.what} is not there", where=self.what, status=404
        )

    def failed(self, endpoint: Asked, error: MirrorError) -> None:
        """`endpoint` did not deliver.

        Raises:
            MirrorError: `error`, when no other endpoint would do better.
        """
        health = self.patience.health
        match error:
            case RegistryNotFoundError():
                self.absent(endpoint, error)
                return
            case DeniedError():
                self._well(endpoint)
                # Another endpoint may let us in; warn, so that the refusal does not go unnoticed.
                if len(self.endpoints) > 1 and health.denied(endpoint):
                    self.patience.on_event(Warned(str(error)))
            case RegistryError() if _is_of_the_endpoint(error):
                rest_s = health.failed(endpoint)
                if rest_s is not None and len(self.endpoints) > 1:
                    self.patience.on_event(EndpointDown(endpoint.host, str(error), rest_s))
            case IntegrityError() | InvalidManifestError():
                health.lacked(endpoint, self.what)
                if len(self.endpoints) > 1:
                    self.patience.on_event(Warned(f"{endpoint.host}: {error}"))
            case _:
                raise error
        self._errors[endpoint] = error

    def _well(self, endpoint: Asked) -> None:
        if self.patience.health.answered(endpoint) and len(self.endpoints) > 1:
            self.patience.on_event(EndpointUp(endpoint.host))

    def verdict(self) -> MirrorError:
        """The error to raise after the last endpoint; "not found" only if all witnesses say so."""
        witnesses = [self._errors.get(one) for one in self._witnesses()]
        if all(isinstance(error, RegistryNotFoundError) for error in witnesses):
            errors = [error for error in witnesses if error is not None]
        else:
            errors = list(self._errors.values())
        if len(errors) == 1:
            return errors[0]
        worst = min(errors, key=_gravity)
        if not isinstance(worst, RegistryError):
            return worst
        lines = [
            f"{self.what}: none of {len(errors)} endpoints delivers it:",
            *(f"  {error}" for error in errors),
        ]
        error = type(worst)(
            "\n".join(lines), where=worst.where, status=worst.status, codes=worst.codes
        )
        error.may_pass = any(isinstance(one, RegistryError) and one.may_pass for one in errors)
        return error


def _is_of_the_endpoint(error: RegistryError) -> bool:
    """Whether the endpoint itself failed, so that another one may do better."""
    if isinstance(error, UnreachableError) or error.status is None:
        return True
    return not 400 <= error.status < 500


def _gravity(error: MirrorError) -> int:
    """The rank of an error: the lowest gives several failures their common type."""
    for rank, kind in enumerate((DeniedError, UnreachableError)):
        if isinstance(error, kind):
            return rank
    if isinstance(error, RegistryNotFoundError):
        return 9
    return 3 if isinstance(error, RegistryError) else 2


# -- blobs -----------------------------------------------------------------------------------------

_PROGRESS_BYTES = 64 << 10
"""A round that moved less counts as failed, or a trickle could go on for ever."""


class BlobReading(Generic[Asked]):
    """The reading of one blob. Used by one thread, once.

    `open_at(endpoint, offset)` opens an endpoint's bytes from `offset` on, unverified.
    """

    def __init__(
        self,
        reading: Reading[Asked],
        open_at: Callable[[Asked, int], Generator[bytes, None, None]],
        digest: Digest,
        size: int | None,
        offset: int,
        *,
        verify: bool,
    ) -> None:
        self._reading, self._open_at = reading, open_at
        self._digest, self._size, self._offset = digest, size, offset
        # A reading from the middle on cannot verify; the holder of the beginning does.
        self._verify = verify and offset == 0
        self._from: list[Asked] = []
        self._restart()

    def _restart(self) -> None:
        self._position, self._held = self._offset, b""
        self._from.clear()
        self._verifier = (
            Verifier(self._digest, self._size, self._reading.what) if self._verify else None
        )

    def chunks(self) -> Generator[bytes, None, None]:
        """The blob's bytes; see `ModeClient.blob`."""
        for endpoint in self._reading:
            began = self._position
            self._from.append(endpoint)
            try:
                yield from self._rest(endpoint)
            except MirrorError as err:
                if self._position - began >= _PROGRESS_BYTES:
                    self._reading.progressed()
                self._bear(endpoint, err, brought=self._position > began)
                continue
            self._reading.served(endpoint)
            if self._held:
                yield self._held
            return
        raise self._reading.verdict()

    def _rest(self, endpoint: Asked) -> Generator[bytes, None, None]:
        """Everything from the position on; when verifying, all but the last chunk."""
        with closing(self._open_at(endpoint, self._position)) as chunks:
            for chunk in chunks:
                self._position += len(chunk)
                if self._verifier is None:
                    yield chunk
                    continue
                self._verifier.update(chunk)
                if self._held:
                    yield self._held
                self._held = chunk
        if self._verifier is not None:
            self._verifier.finish()

    def _bear(self, endpoint: Asked, err: MirrorError, *, brought: bool) -> None:
        """Continue after `err`, unless wrong bytes have been passed on already.

        `brought`: `endpoint` has sent some bytes.

        Raises:
            IntegrityError: wrong bytes have been passed on.
        """
        if isinstance(err, DigestMismatchError) or (isinstance(err, IntegrityError) and brought):
            for one in self._from:  # any may have sent them; ask others first next time
                self._reading.patience.health.lacked(one, self._reading.what)
            if self._position > self._offset + len(self._held):
                raise err
            self._reading.failed(endpoint, err)
            self._restart()
            return
        self._reading.failed(endpoint, err)
