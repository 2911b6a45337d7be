"""The daemon: a thread per replica looks, waits and looks again, until somebody stops it.

`running` puts it together from one settings file: clients, threads and pages. `/notify` takes CNCF
distribution's notifications (its documentation, "Work with notifications").
"""

from __future__ import annotations

import hmac
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mirror.documents import parse_json
from mirror.errors import FileSystemError, MirrorError, printable, shortage
from mirror.events import BytesMoved, Event, side_by_side
from mirror.layout import normalised_suffix
from mirror.registry import RegistryClient
from mirror.registry.options import BRIEF
from mirror.run import Run
from mirror.serve.server import ServerLimits, ServerThread, listen
from mirror.sync.statement import StatementKeys
from mirror.sync.tree import RegistryTree
from mirror.watch.cycle import CycleResult, Replicator
from mirror.watch.fleet import Fleet, Rollouts, StagedRollout, client_of
from mirror.watch.monitoring import Metrics
from mirror.watch.settings import CheckLevel, Schedule, WatchedRegistry, WatchSettings

_log = logging.getLogger(__name__)

Cycle = Callable[[str, CheckLevel, Run], CycleResult]
"""(replica, level, run) → what the cycle found and did."""

_GATHER_S = 0.5
"""A push reports each of its tags; all reports within this time are one reason to look."""

_CALM_S = 5.0
"""The same after a cycle that failed."""


class Daemon:
    """Runs `cycle` for every follower until `stop`; `wake` makes all of them look at once.

    Whatever `cycle` raises ends that one cycle; the next follows after a back-off.
    """

    def __init__(
        self,
        followers: Iterable[str],
        cycle: Cycle,
        *,
        schedule: Schedule,
        this: str | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.followers = tuple(followers)
        self.state = State(self.followers, this)
        self.metrics = Metrics(self.followers)
        self._cycle, self._schedule = cycle, schedule
        self._chance = chance
        self._run = Run()
        self._woken = {name: threading.Event() for name in self.followers}
        self._threads = [
            threading.Thread(target=self._follow, args=(name,), name=f"watch-{name}")
            for name in self.followers
        ]

    def start(self) -> None:
        """Begin; the first look at each replica starts at once."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look now, whatever the schedule says: something was pushed."""
        for event in self._woken.values():
            event.set()

    def stop(self) -> None:
        """End. Whatever a cycle waits for ends at once; on return no thread of ours is running."""
        self._run.cancellation.cancel()
        self.wake()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def alive(self) -> bool:
        """Whether a thread looks after every replica."""
        return all(thread.is_alive() for thread in self._threads)

    def _follow(self, replica: str) -> None:
        failures = 0
        before: tuple[bool, bool] | None = None
        audited: float | None = None
        read: float | None = None
        woken = self._woken[replica]
        while not self._run.stopped:
            # Cleared before the look: a push during it gets a look of its own.
            woken.clear()
            started = time.monotonic()
            level = self._schedule.level(started, audited, read)
            result = self._look(replica, level)
            if self._run.stopped:
                break
            result = replace(result, duration_s=time.monotonic() - started)
            self.state.note(replica, result)
            self.metrics.record(replica, result, now_s=time.time())
            for error in result.errors:
                _log.warning("%s: %s", replica, error)
            # Only this replica's own failures slow its cycles down; a peer's are just reported.
            if result.complete or (result.waiting and not result.errors):
                failures = 0
                audited = started if level is CheckLevel.AUDIT else audited
                read = started if level is CheckLevel.DEEP else read
            else:
                failures += 1
            # A line every ten seconds that says nothing new would bury the one that does.
            state = result.complete, bool(result.waiting)  # its text counts the seconds down
            news = state != before or result.sent or level is not CheckLevel.STATEMENT
            before = state
            _log.log(
                logging.INFO if news else logging.DEBUG,
                "%s: %s%s after %s, %d bytes sent",
                replica,
                "complete" if result.complete else "not complete",
                f" ({result.waiting})" if result.waiting else "",
                level,
                result.sent,
            )
            if woken.wait(self._schedule.delay(failures, self._chance())):
                # Half a sync pushes too, and is reported: failures must not feed themselves.
                self._run.cancellation.wait(_CALM_S if failures else _GATHER_S)

    def _look(self, replica: str, level: CheckLevel) -> CycleResult:
        """One cycle, and what became of it."""
        self.state.begin(replica, time.monotonic())

        def hear(event: Event) -> None:
            if isinstance(event, BytesMoved):
                self.state.moved(replica, event.count, time.monotonic())

        run = Run.of(self._run).heard_by(side_by_side(hear, replica))
        try:
            return self._cycle(replica, level, run)
        except MirrorError as err:
            return CycleResult(level, complete=False, errors=(str(err),))
        except Exception as err:  # noqa: BLE001 - a bug must not end the replication of all
            if (lacking := shortage(err)) is not None:
                return CycleResult(level, complete=False, errors=(str(lacking),))
            _log.exception("%s: the cycle ended with a bug in mirror", replica)
            bug = f"{type(err).__name__}: {err}"
            problem = f"a bug in mirror ended this cycle ({bug}); the log has the traceback"
            return CycleResult(level, complete=False, errors=(problem,), bug=bug)


_NO_PROGRESS = (0, 0.0, 0.0)
"""Bytes, when the look began, and when the last of them came; seconds."""


class State:
    """The last cycle of each replica, and how far the present one is. Thread-safe."""

    def __init__(self, followers: Iterable[str], this: str | None) -> None:
        self._lock = threading.Lock()
        self._results: dict[str, CycleResult | None] = dict.fromkeys(followers)
        self._progress = dict.fromkeys(self._results, _NO_PROGRESS)
        self._asked = (this,) if this in self._results else tuple(self._results)

    def note(self, replica: str, result: CycleResult) -> None:
        """`result` is what is known about `replica` from now on."""
        with self._lock:
            self._results[replica] = result

    def begin(self, replica: str, now_s: float) -> None:
        """A look at `replica` begins at `now_s`."""
        with self._lock:
            self._progress[replica] = (0, now_s, now_s)

    def moved(self, replica: str, count: int, now_s: float) -> None:
        """`count` more bytes got there."""
        with self._lock:
            total, begun_s, _ = self._progress[replica]
            self._progress[replica] = (total + count, begun_s, now_s)

    def ready(self) -> bool:
        """Whether the replica beside the daemon, or else every replica, was last found complete."""
        with self._lock:
            results = [self._results[name] for name in self._asked]
        return all(result is not None and result.complete for result in results)

    def bugs(self) -> dict[str, str]:
        """Replica → the bug in mirror that ended its last cycle, for those where one did."""
        with self._lock:
            return {name: one.bug for name, one in self._results.items() if one and one.bug}

    def to_document(self) -> dict[str, Any]:
        """As JSON values: what `/readyz` shows."""
        with self._lock:
            results, progress = dict(self._results), dict(self._progress)
        return {
            "ready": self.ready(),
            "progress": {
                name: {"bytes": total, "seconds": round(last_s - begun_s, 3)}
                for name, (total, begun_s, last_s) in progress.items()
            },
            "replicas": {name: one.to_document() if one else None for name, one in results.items()},
        }


# -- from settings to a running daemon -------------------------------------------------------------

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MAX_ENVELOPE_BYTES = 4 << 20
_SILENCE_S = 30.0
_CHANGES = frozenset({"push", "mount", "delete"})


@contextmanager
def running(settings: WatchSettings) -> Iterator[tuple[Daemon, str | None]]:
    """The daemon, at work while the `with` block lasts, and the URL of its pages if it has any.

    Leaving the block stops what is under way; no thread of ours is left.
    """
    with ExitStack() as opened:
        clients = {
            name: opened.enter_context(_client(settings, name, place))
            for name, place in settings.registries.items()
        }
        trees = {name: _tree(settings, name, client) for name, client in clients.items()}
        replicator = Replicator(
            trees,
            settings.leader,
            staging=_staging(settings, trees, opened),
            prune=settings.prune,
            jobs=settings.jobs,
        )
        daemon = Daemon(settings.followers, replicator, schedule=settings, this=settings.this)
        daemon.metrics.watch_certificates(
            clients, {name: place.cert for name, place in settings.registries.items() if place.cert}
        )
        url = _serve(settings, daemon, opened) if settings.listen else None
        opened.callback(daemon.stop)
        daemon.start()
        yield daemon, url


def _serve(settings: WatchSettings, daemon: Daemon, opened: ExitStack) -> str:
    host, port = settings.listener()
    try:
        listener = listen(host, port)
    except OSError as err:
        raise FileSystemError(
            f"cannot listen on {settings.listen}: {err.strerror}; name another address as `listen`"
        ) from err
    app = create_app(daemon, notify_token=settings.token())
    server = ServerThread(app, listener, limits=ServerLimits(silence_s=_SILENCE_S, connections=128))
    server.start()
    opened.callback(server.stop)
    return f"http://{host}:{listener.getsockname()[1]}"


def _client(settings: WatchSettings, name: str, place: WatchedRegistry) -> RegistryClient:
    retries, patience_s = BRIEF, settings.retry_for
    if patience_s is not None:
        retries = replace(BRIEF, retry_for_s=patience_s, from_start=True)
    return client_of(
        place,
        settings.repository(name),
        retries=retries,
        limit_rate=settings.limit_rate,
        max_connections=settings.jobs * (len(settings.registries) + 1) + 8,
    )


def _staging(
    settings: WatchSettings, trees: Mapping[str, RegistryTree], opened: ExitStack
) -> StagedRollout:
    """The stage of this daemon's replicas; registries of the fleet stay open with `opened`."""
    fleet, members = None, {}
    if settings.fleet is not None and settings.ring is not None:
        fleet = Fleet.load(settings.fleet)
        for ring in fleet.before(settings.ring):
            for name in fleet.members_of(ring.name):
                members[name] = opened.enter_context(fleet.opened(name))
    upstreams = [trees[name] for name in settings.upstreams]
    plan = Rollouts(fleet, settings.ring or "", settings.window, settings.upstream_wait)
    return StagedRollout(plan, members=members, upstreams=upstreams)


def _tree(settings: WatchSettings, name: str, client: RegistryClient) -> RegistryTree:
    return RegistryTree(
        client,
        settings.repository(name),
        normalised_suffix(settings.modules_path_suffix),
        storage=settings.registries[name].storage,
        keys=StatementKeys(None, settings.public_keys(), settings.allow_downgrade),
        rules=settings.rules,
    )


# -- pages -----------------------------------------------------------------------------------------


def create_app(daemon: Daemon, *, notify_token: str | None = None) -> Starlette:
    """The pages of `daemon`. With a token, notifications must carry it as their bearer."""

    async def healthz(_: Request) -> Response:
        if not daemon.alive():
            return PlainTextResponse("a thread ended", 500)
        # Not 500: restarting for a bug that one peer provokes would end replication from all.
        bugs = [
            f"\nthe last cycle of {n} ended with {printable(bug)}"
            for n, bug in daemon.state.bugs().items()
        ]
        return PlainTextResponse("".join(["ok", *bugs]))

    async def readyz(_: Request) -> Response:
        document = daemon.state.to_document()
        return JSONResponse(document, 200 if document["ready"] else 503)

    async def metrics(_: Request) -> Response:
        return Response(daemon.metrics.page(), media_type=_METRICS_TYPE)

    async def notify(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode()
        wanted = None if notify_token is None else f"Bearer {notify_token}".encode()
        if wanted is not None and not hmac.compare_digest(given, wanted):
            return PlainTextResponse("a bearer token is needed", 401)
        try:
            body = await _read(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return PlainTextResponse("too large", 413)
        try:
            changed = tells_of_change(parse_json(body))
        except (ValueError, RecursionError) as err:
            return PlainTextResponse(f"not a notification: {err}", 400)
        if changed:
            daemon.wake()
        return Response(status_code=202)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/notify", notify, methods=["POST"]),
        ]
    )


def tells_of_change(envelope: Any) -> bool:
    """Whether a notification's events change what a registry holds; pulls do not."""
    if not isinstance(envelope, dict) or not isinstance(events := envelope.get("events"), list):
        raise ValueError("there is no list of events")
    if not all(isinstance(event, dict) for event in events):
        raise ValueError("an event is not an object")
    return any(event.get("action") in _CHANGES for event in events)


async def _read(request: Request) -> bytes | None:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_ENVELOPE_BYTES:
            return None
    return bytes(body)
