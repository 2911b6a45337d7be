"""What one registry host bears, and when it may be asked again: for all threads and views at once.

`HostState` decides and is pure: every method is given the time. `HostGate` makes threads wait.

* *Not before*: a `Retry-After` holds everybody back.
* *Width*: how many requests may be under way. It falls when the host refuses, breaks off or slows
  down, and grows by one when a whole round was answered. The number at which it was refused is
  remembered and tried again ever more rarely.
* *Pace*: requests a second, learnt from 429; it starts at what was accepted and grows slowly.
* *Suspect and dead*: after a failed connection one request probes and the others wait. When the
  policy's patience is over they all get the error, and so does whoever comes later, except for one
  probe after each ever longer pause.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from weakref import WeakValueDictionary

from mirror.durable import FileExtent
from mirror.errors import RegistryError, same
from mirror.registry.http1 import Piece
from mirror.registry.options import ConnectionOptions
from mirror.registry.retries import Tally, TransientFailure, retry_after_s

_CUT = 0.7  # what a refusal leaves of the width
_FIRST_PROBE, _LAST_PROBE = 8, 512  # rounds to be answered before the refused width is tried again
_WORTH = 20  # times the wait that a refusal brings
_SLOWER, _SLOW_S, _PAUSE_S = 8.0, 2.0, 5.0  # an answer this much later than the best is a sign
_PACE_MARGIN = 0.98
_CLIMBS = ((0.7, 0.3), (0.95, 0.02), (inf, 0.0005))
"""Below which share of the pace that was refused it grows by which share a second."""
_SLOWEST, _SOON_S, _SHORTEST_S = 0.2, 1e-6, 1e-3
_STEADY_S = 5.0  # how long a pace must have held for its average to mean something
_LOOK_S, _NESTED_S = 0.2, 10.0
_SLOW_PIECE_S, _MIN_PIECE, _MAX_PIECE = 1.0, 16 << 10, 256 << 10


@dataclass(slots=True, eq=False)
class Permit:
    """One request under way: its number, when it began, and whether it still counts."""

    number: int
    began: float
    crowded: bool  # there were as many as the width allows
    counts: bool = True


class HostState:
    """The decisions about one host. Not thread-safe; times are seconds of one clock.

    `most` is the greatest width, `requests_per_s` the greatest pace.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self._policy = options.retries
        self._limit_rate = options.limit_rate
        self._fastest = options.requests_per_s or inf
        self._most = options.max_connections
        self.width, self.in_flight = float(self._most), 0
        self._ceiling, self._credit, self._probe_rounds = inf, 0.0, _FIRST_PROBE
        self._probe_at = -inf
        self._numbers = self._cut_at = 0
        self._best_s = self._smooth_s = 0.0
        self._slow_cut_at = -inf
        self.not_before = self._next_start = self._free_at = 0.0
        self.pace, self._pace_ceiling = self._fastest, inf
        self._pace_at = self._window_at = self._span_s = 0.0
        self._started = self._borne = 0
        self._failures, self._failed_at, self.answered_at = 0, -inf, -inf
        self._failing_since = 0.0
        self._probe: Permit | None = None
        self._error: RegistryError | None = None

    # -- before a request ----------------------------------------------------------------------

    def remembered(self, now: float) -> RegistryError | None:
        """The error of a host that is dead, for a request that would not be its probe."""
        away_s = max(0.0, self._failed_at - self._failing_since)
        if not self._policy.is_over(self._failures, away_s, known=self.answered_at > -inf):
            return None
        return self._error if self._probe is not None or now < self.not_before else None

    def hold_s(self, now: float) -> float:
        """Seconds for which nothing may start."""
        hold_s = max(self.not_before, self._next_start) - now
        return hold_s if hold_s > _SOON_S else 0.0

    def has_room(self) -> bool:
        """Whether another request may be under way."""
        if self._failures:
            return self._probe is None
        return self.in_flight < max(1, int(self.width))

    def start(self, now: float) -> Permit:
        """A request begins."""
        self._numbers += 1
        self._started += 1
        self.in_flight += 1
        crowded = self.in_flight >= int(self.width)
        permit = Permit(self._numbers, now, crowded)
        if self._failures:
            self._probe = permit
        if permit.number == 1:
            self._window_at = now
        if self.pace < inf:
            self._next_start = max(self._next_start, now) + 1 / self.pace
        return permit

    # -- how it went ---------------------------------------------------------------------------

    def answered(self, permit: Permit, now: float, *, quick: bool) -> None:
        """The head of a proper answer came; `quick`: nothing but the host could delay it."""
        self._is_alive(now)
        self._speed_up(now)
        if quick:
            self._judge_latency(now - permit.began, now)
        if not permit.crowded:
            return
        self._credit += 1
        careful = self.width + 1 >= self._ceiling
        if careful and now < self._probe_at:
            return
        if self._credit >= self.width * (self._probe_rounds if careful else 1):
            self._credit = 0.0
            self.width = min(self.width + 1, self._most)
            self._ceiling = max(self._ceiling, self.width)

    def refused(self, permit: Permit, now: float, status: int, after_s: float | None) -> None:
        """The host answered 429 or 503."""
        self._is_alive(now)
        self._leave(permit)
        wait_s = 0.0
        if after_s is not None:
            policy = self._policy
            wait_s = min(after_s, policy.max_retry_after_s)
            wait_s *= 1 + policy.jitter * policy.random() / 10
            self.not_before = max(self.not_before, now + wait_s)
            if status == 429:
                self._slow_down(permit, now, wait_s)
                return
        others = self.in_flight
        if permit.number > self._cut_at:
            if self.width + 1 >= self._ceiling:
                self._probe_rounds = min(2 * self._probe_rounds, _LAST_PROBE)
            self._cut(_CUT)
        # What a refusal costs everybody decides how long it is until the next is risked.
        self._probe_at = now + _WORTH * wait_s * self._probe_rounds / _FIRST_PROBE
        self._ceiling = others + 1
        self.width = max(1.0, min(self.width, others))

    def broke(self, permit: Permit) -> None:
        """The connection broke off before an answer."""
        if permit.number > self._cut_at:
            self._cut(_CUT)

    def unreachable(self, permit: Permit, now: float, error: RegistryError) -> None:
        """No connection, or no answer in time."""
        if permit.began < max(self._failed_at, self.answered_at):
            return  # the same failure again, or the host has answered another request meanwhile
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        self._failed_at, self._error = now, error
        self.not_before = max(self.not_before, now + self._policy.delay_s(self._failures))

    def finish(self, permit: Permit) -> None:
        """The request is over, however it went."""
        if self._probe is permit:
            self._probe = None
        self._leave(permit)

    # -- bytes ---------------------------------------------------------------------------------

    def spend(self, count: int, now: float) -> float:
        """Seconds to wait after `count` bytes, so that all together keep to the rate."""
        if self._limit_rate is None:
            return 0.0
        self._free_at = max(self._free_at, now) + count / self._limit_rate
        return self._free_at - now

    # -- rules ---------------------------------------------------------------------------------

    def _is_alive(self, now: float) -> None:
        self._failures, self._error, self.answered_at = 0, None, now

    def _leave(self, permit: Permit) -> None:
        if permit.counts:
            permit.counts = False
            self.in_flight -= 1

    def _cut(self, share: float) -> None:
        self.width = max(1.0, float(int(min(self.width, self.in_flight + 1) * share)))
        self._credit, self._cut_at = 0.0, self._numbers

    def _judge_latency(self, latency_s: float, now: float) -> None:
        self._best_s = min(self._best_s * 1.001 or latency_s, latency_s)
        self._smooth_s += (latency_s - self._smooth_s) * 0.2
        slow = self._smooth_s > _SLOW_S and self._smooth_s > _SLOWER * self._best_s
        if slow and self.in_flight > 2 and now - self._slow_cut_at > _PAUSE_S:
            self._slow_cut_at = now
            self._cut(0.8)

    def _slow_down(self, permit: Permit, now: float, wait_s: float) -> None:
        """A 429: keep to the pace that was borne."""
        if permit.began >= self._window_at:
            elapsed_s = now - self._window_at
            steady = self.pace < inf and elapsed_s > _STEADY_S
            self._span_s = elapsed_s if steady else elapsed_s + wait_s
            self._borne, self._started = self._started, 0
            self._pace_ceiling = self.pace
            self._pace_at = self._window_at = now + wait_s
        self._borne -= 1  # this one, and each that was under way beside the first
        if self._borne > 0:
            borne = self._borne / max(self._span_s, _SHORTEST_S)
            self.pace = max(_SLOWEST, min(self._pace_ceiling, _PACE_MARGIN * borne))

    def _speed_up(self, now: float) -> None:
        if self.pace < inf and now > self._pace_at:
            share = self.pace / self._pace_ceiling
            climb = next(climb for below, climb in _CLIMBS if share < below)
            self.pace *= 1 + climb * (now - self._pace_at)
            self.pace, self._pace_at = min(self.pace, self._fastest), now


class _Holders:
    """How many permits each thread holds, at all gates. Thread-safe.

    Who holds one must not wait for ever for another: a download that feeds an upload would wait for
    an upload that waits for its download.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: Counter[tuple[int, int]] = Counter()  # by thread and gate

    def add(self, thread: int, gate: int, count: int) -> None:
        with self._lock:
            self._held[thread, gate] += count
            if not self._held[thread, gate]:
                del self._held[thread, gate]

    def of(self, thread: int, gate: int) -> tuple[bool, bool]:
        """Whether that thread holds one of this gate, and of any."""
        with self._lock:
            here = self._held[thread, gate] > 0
            return here, here or any(held == thread for held, _ in self._held)


_holders = _Holders()


class Admission:
    """A request that the gate let through, and what became of it."""

    def __init__(self, gate: HostGate, permit: Permit) -> None:
        self._gate, self._permit = gate, permit
        self.is_answered = False
        self.heard = 0.0, 0  # after how many seconds, and how many requests were under way

    def head(self, status: int, retry_after: str | None = None, *, quick: bool = True) -> None:
        """The head of the answer came. `retry_after` is that field of it."""
        self.is_answered = True
        with self._gate._changed:
            state, now = self._gate._state, self._gate.now()
            if status in (429, 503):
                state.refused(self._permit, now, status, retry_after_s(retry_after))
            elif status < 500:
                state.answered(self._permit, now, quick=quick)
                self._gate.tally.add()
            self.heard = now - self._permit.began, state.in_flight
            self._gate._changed.notify_all()

    def failed(self, failure: TransientFailure) -> None:
        """The network failed."""
        with self._gate._changed:
            state, now = self._gate._state, self._gate.now()
            if failure.unreachable:
                state.unreachable(self._permit, now, failure.error)
            elif failure.error.status is None:
                state.broke(self._permit)


class HostGate:
    """Lets requests to one host through as `HostState` decides. Thread-safe."""

    def __init__(self, options: ConnectionOptions) -> None:
        self.slept_s = 0.0  # only where `RetryPolicy.sleep` takes the place of waiting
        self._changed = threading.Condition()  # guards the next three
        self._state = HostState(options)
        self._queue: deque[object] = deque()
        self.tally = Tally()

    @classmethod
    def of(cls, host: str, port: int | None, options: ConnectionOptions) -> HostGate:
        """The gate of a host in this process, for all who use it with the same limits."""
        limits = (options.max_connections, options.limit_rate, options.requests_per_s)
        with _gates_lock:
            return _gates.setdefault((host, port, *limits, options.retries), cls(options))

    def now(self) -> float:
        """Seconds of the gate's clock."""
        return time.monotonic() + self.slept_s

    def has_answered(self) -> bool:
        """Whether the host ever did, if only to refuse."""
        return self._state.answered_at > -inf

    @contextmanager
    def admitted(
        self, check: Callable[[], None], pause: Callable[[float], None]
    ) -> Generator[Admission, None, None]:
        """Wait until a request may be sent; the block is the request.

        `check` raises once there is no more reason to wait, and `pause` sleeps as long as there is.
        A host that is known to be dead is a RegistryError, one of its own for each caller.
        """
        thread = threading.get_ident()
        permit = self._admit(thread, check, pause)
        _holders.add(thread, id(self), 1)
        try:
            yield Admission(self, permit)
        finally:
            _holders.add(thread, id(self), -1)
            with self._changed:
                self._state.finish(permit)
                self._changed.notify_all()

    def spend(self, count: int) -> float:
        """Seconds to wait after `count` bytes have moved."""
        with self._changed:
            return self._state.spend(count, self.now())

    def _admit(
        self, thread: int, check: Callable[[], None], pause: Callable[[float], None]
    ) -> Permit:
        here, anywhere = _holders.of(thread, id(self))
        over_width_at = 0.0 if here else self.now() + _NESTED_S if anywhere else inf
        ticket = object()
        with self._changed:
            (self._queue.appendleft if anywhere else self._queue.append)(ticket)
        try:
            while True:
                check()
                with self._changed:
                    now = self.now()
                    if (error := self._state.remembered(now)) is not None:
                        raise same(error)
                    hold_s = self._state.hold_s(now)
                    first = self._queue[0] is ticket
                    passes = self._state.has_room() or now >= over_width_at
                    if first and not hold_s and passes:
                        return self._state.start(now)
                    if not first or not hold_s:
                        self._changed.wait(_LOOK_S)
                        continue
                pause(min(hold_s, _LOOK_S) if anywhere else hold_s)
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()


_gates_lock = threading.Lock()  # guards the next
_gates: WeakValueDictionary[tuple[object, ...], HostGate] = WeakValueDictionary()
"""As long as somebody uses them: what was learnt of a host is forgotten with its last client."""


class StallWatch:
    """Judges one direction of one transfer in windows of `window_s` seconds spent waiting.

    Only the time that the network takes counts: a slow disk on our side is not a stall. Sockets
    have time-outs of their own for moving nothing at all; this catches one that trickles.
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

    def sent(self, chunks: Iterable[Piece]) -> Iterator[memoryview | FileExtent]:
        """Hand out `chunks` in pieces; raise the error once their receiver has stalled.

        A piece counts when the next is asked for. Pieces shrink when the line is slow, so that
        this is soon enough to tell, and grow when it is fast, so that it costs nothing.
        """
        size = _MIN_PIECE
        for chunk in chunks:
            view = chunk if isinstance(chunk, FileExtent) else memoryview(chunk)
            while view:
                piece, view = view[:size], view[size:]
                began = self._clock()
                yield piece
                waited_s = self._clock() - began
                self._note(len(piece), waited_s)
                if self._spend is not None:
                    self._spend(len(piece))
                size = _MIN_PIECE if waited_s > _SLOW_PIECE_S else min(size * 2, _MAX_PIECE)
