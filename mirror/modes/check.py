"""Asking registries whether they hold the required images.

Every call asks anew: what was there an hour ago may be gone. Only who asks for it (`again`) goes on
where an earlier call was cut off by its time limit. All images count in every report, those that
nobody has asked for yet included.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mirror.errors import (
    CancelledError,
    IncompleteError,
    MirrorError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import OnEvent, PhaseAdvanced, PhaseStarted, ignore
from mirror.modes.addressing import LOGICAL_ROOT, Route, routes_for
from mirror.modes.endpoints import Endpoint
from mirror.modes.outcomes import StepOutcome
from mirror.modes.required import RequiredImage, RequiredSet
from mirror.modes.routes import Plane, Role
from mirror.modes.settings import NO_ACCESS, CheckMode, ClusterAccess, RegistrySettings
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run

MOST_ERRORS = 5
"""As many errors of a registry a message has."""

INITIALIZING = StepOutcome(False, "Initializing")
"""Before the first call."""


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """A registry to be asked: how messages call it, and the way to its base repository."""

    name: str
    route: Route

    def repository(self, image: RequiredImage) -> str:
        """The repository in which an image must lie."""
        return "/".join(part for part in (self.route.repository, image.below) if part)

    def address(self, image: RequiredImage) -> str:
        """The image as a reference."""
        mark = "@" if isinstance(image.reference, Digest) else ":"
        return f"{self.route.host}/{self.repository(image)}{mark}{image.reference}"

    def request(self, image: RequiredImage) -> str:
        """The request by which it is asked for."""
        route = self.route
        path = f"v2/{self.repository(image)}/manifests/{image.reference}"
        return f"HEAD {route.scheme}://{route.host}/{path}"


class ItemState(StrEnum):
    """What is known of one image at one registry."""

    PENDING = "pending"
    FOUND = "found"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One image at one registry. `error` says why it is missing or could not be asked for."""

    image: RequiredImage
    state: ItemState = ItemState.PENDING
    error: MirrorError | None = None


@dataclass(frozen=True, slots=True)
class RegistryResult:
    """All required images at one registry, in order."""

    target: CheckTarget
    items: tuple[ItemResult, ...]

    @property
    def found(self) -> int:
        """How many are there."""
        return sum(item.state is ItemState.FOUND for item in self.items)

    @property
    def errors(self) -> tuple[ItemResult, ...]:
        """Those that are missing or could not be asked for."""
        return tuple(item for item in self.items if item.error is not None)

    @property
    def complete(self) -> bool:
        """Whether all are there."""
        return self.found == len(self.items)

    @property
    def message(self) -> str:
        """In the words of the cluster's condition."""
        name, total = self.target.name, len(self.items)
        if self.complete:
            return f"{name}: all {total} items are checked"
        head = f"{name}: {self.found} of {total} items processed"
        if not self.errors:
            return head
        lines = [f"{head}, {len(self.errors)} items with errors:"]
        for item in self.errors[:MOST_ERRORS]:
            lines += (
                f"- source: {item.image.source}",
                f"  image: {self.target.address(item.image)}",
                f"  error: {item.error}",
            )
        if len(self.errors) > MOST_ERRORS:
            lines.append("  ...and more")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What one call has found."""

    mode: CheckMode
    registries: tuple[RegistryResult, ...]

    @property
    def ready(self) -> bool:
        """Whether every registry holds every required image."""
        return bool(self.registries) and all(one.complete for one in self.registries)

    @property
    def message(self) -> str:
        """In the words of the cluster's condition."""
        return "\n".join([f"Mode: {self.mode}", *(one.message for one in self.registries)])

    @property
    def outcome(self) -> StepOutcome:
        """As the condition RegistryContainsRequiredImages wants it."""
        return StepOutcome(self.ready, self.message)

    def require(self) -> None:
        """Raise unless everything is there.

        Raises:
            IncompleteError: some images are missing, or could not be asked for.
        """
        if self.ready:
            return
        failures = [
            (one.target.address(item.image), item.error)
            for one in self.registries
            for item in one.errors
            if item.error is not None
        ]
        left = sum(len(one.items) - one.found for one in self.registries)
        raise IncompleteError(f"{left} required images were not found", failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "mode": self.mode.value,
            "ready": self.ready,
            "message": self.message,
            "registries": [
                {
                    "name": one.target.name,
                    "repository": f"{one.target.route.host}/{one.target.route.repository}",
                    "total": len(one.items),
                    "found": one.found,
                    "pending": sum(item.state is ItemState.PENDING for item in one.items),
                    "errors": [
                        {
                            "source": item.image.source,
                            "image": one.target.address(item.image),
                            "state": item.state.value,
                            "error": str(item.error),
                        }
                        for item in one.errors
                    ],
                }
                for one in self.registries
            ],
        }


# -- asking ----------------------------------------------------------------------------------------

WORKERS = 3
"""Questions under way at a registry at a time."""

QUESTION_S = 10.0
"""How long one answer may take."""

_POLL_S = 0.1


def targets_for(
    settings: RegistrySettings,
    access: ClusterAccess = NO_ACCESS,
    names: Mapping[str, str] | None = None,
) -> tuple[CheckTarget, ...]:
    """Whom to ask before a switch to `settings`: the upstream, or in Local every master.

    `names` has the nodes' names by address; without it a master is called by its address.

    Raises:
        RouteError: the settings or `access` do not tell where it is.
    """
    if not settings.kind.row.holds_own_images:
        (route,) = routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
        return (CheckTarget(route.host, route),)
    routes = routes_for(LOGICAL_ROOT, settings, Plane.API, access)
    masters = [route for route in routes if route.role is Role.MASTER]
    named = zip(access.masters, masters, strict=True)
    if not masters:
        # Nothing asked would be nothing missing.
        routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
    return tuple(CheckTarget((names or {}).get(a, a), route) for a, route in named)


Connect = Callable[[Route], RegistryClient]
"""Makes a client for where a route leads, with its trust and login; the check closes it.

Its options should be `impatient`, since what is under way when a check ends is waited for.
"""


def check_images(
    required: RequiredSet,
    targets: Sequence[CheckTarget],
    connect: Connect | None = None,
    *,
    again: CheckReport | None = None,
    workers: int = WORKERS,
    limit_s: float | None = None,
    run: Run | None = None,
) -> CheckReport:
    """Ask every target for every required image; all targets at once, each by `workers` threads.

    Without `connect` clients are made as the routes say, with `impatient` options.
    A registry that does not answer at all, or refuses the login, is asked once. After `limit_s`
    seconds nothing new is asked, what is under way fails with `Request timeout`, and the rest is
    pending. With `again`, a report about the same images and targets, only what that one lacks is
    asked: first what was pending, then what failed.

    Raises:
        CancelledError: `run` was stopped.
        ValueError: there are no targets, or `again` is about something else.
    """
    run = Run.of(run)
    if not targets or workers < 1:
        raise ValueError("a check needs targets, and workers to ask them")
    if again is not None and (
        again.mode is not required.mode
        or tuple(one.target for one in again.registries) != tuple(targets)
        or any(tuple(i.image for i in one.items) != required.images for one in again.registries)
    ):
        raise ValueError("the earlier report is about other images or registries")
    queues = [
        _Queue(target, required, None if again is None else again.registries[number])
        for number, target in enumerate(targets)
    ]
    run.on_event(
        PhaseStarted("checking the required images", sum(len(queue.waiting) for queue in queues))
    )
    check = _Check(queues, workers, limit_s, run)
    check.carry_out(connect or connect_with(ConnectionOptions(), run.on_event))
    return CheckReport(required.mode, tuple(queue.result() for queue in queues))


class _Queue:
    """The questions to one registry and their answers."""

    def __init__(
        self, target: CheckTarget, required: RequiredSet, earlier: RegistryResult | None
    ) -> None:
        self.target = target
        known = earlier.items if earlier else tuple(map(ItemResult, required.images))
        self.items = list(known)  # each place is written by the one thread that asks for it
        todo = [n for n, item in enumerate(known) if item.state is not ItemState.FOUND]
        todo.sort(key=lambda n: known[n].state is not ItemState.PENDING)
        self.waiting = deque(todo)
        self.greeting = threading.Lock()  # guards the two below
        self.greeted = False
        self.hopeless: MirrorError | None = None

    def result(self) -> RegistryResult:
        return RegistryResult(self.target, tuple(self.items))


class _Check:
    """The threads of one call, none of which outlives it."""

    def __init__(
        self,
        queues: Sequence[_Queue],
        workers: int,
        limit_s: float | None,
        run: Run,
    ) -> None:
        self._queues, self._workers = queues, workers
        self._deadline = None if limit_s is None else time.monotonic() + limit_s
        self._run = run
        self._over = threading.Event()

    def carry_out(self, connect: Connect) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(queue.target.route)) for queue in self._queues]
            pool = ThreadPoolExecutor(
                max_workers=self._workers * len(self._queues), thread_name_prefix="mirror"
            )
            try:
                futures = [
                    pool.submit(self._work, queue, client)
                    for queue, client in zip(self._queues, clients, strict=True)
                    for _ in range(self._workers)
                ]
                self._await(futures)
            finally:
                self._over.set()
                for client in clients:  # ends what is under way
                    client.close()
                pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            future.result()
        self._run.check()

    def _await(self, futures: list[Future[None]]) -> None:
        """Until all is done, time is up, or something went wrong that is no answer."""
        left: set[Future[None]] = set(futures)
        while left and not self._run.stopped:
            done, left = wait(left, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in done):
                return
            if self._deadline is not None and time.monotonic() >= self._deadline:
                return

    def _work(self, queue: _Queue, client: RegistryClient) -> None:
        with queue.greeting:
            if not queue.greeted and queue.waiting and not self._over.is_set():
                queue.greeted = True
                queue.hopeless = self._greet(queue, client)
                if self._over.is_set():  # so that the report says what time was lost with
                    self._next(queue, client)
        while not self._over.is_set() and self._next(queue, client):
            pass

    def _next(self, queue: _Queue, client: RegistryClient) -> bool:
        """Get the next answer; False if there is no more question."""
        try:
            number = queue.waiting.popleft()
        except IndexError:
            return False
        image = queue.items[number].image
        queue.items[number] = (
            self._ask(queue, client, image)
            if queue.hopeless is None
            else ItemResult(image, ItemState.FAILED, queue.hopeless)
        )
        self._run.on_event(PhaseAdvanced())
        return True

    def _greet(self, queue: _Queue, client: RegistryClient) -> MirrorError | None:
        """Why there is no use in asking for anything; None if there is."""
        route = queue.target.route
        try:
            client.ping()
        except MirrorError as err:
            return self._told(err, f"GET {route.scheme}://{route.host}/v2/")
        return None

    def _ask(self, queue: _Queue, client: RegistryClient, image: RequiredImage) -> ItemResult:
        where = queue.target.request(image)
        try:
            found = client.resolve(queue.target.repository(image), image.reference)
        except MirrorError as err:
            return ItemResult(image, ItemState.FAILED, self._told(err, where))
        if found is not None:
            return ItemResult(image, ItemState.FOUND)
        error = RegistryNotFoundError(
            f"{where}: unexpected status code 404 Not Found", where=where, status=404
        )
        return ItemResult(image, ItemState.MISSING, error)

    def _told(self, error: MirrorError, where: str) -> MirrorError:
        """What ended because we ended it is no fault of the connection."""
        if self._over.is_set() and isinstance(error, CancelledError | UnreachableError):
            return UnreachableError(f"{where}: Request timeout", where=where)
        return error


def connect_with(options: ConnectionOptions, on_event: OnEvent = ignore) -> Connect:
    """Clients with these options, made `impatient`, and each route's own trust and login."""
    hasty = impatient(options)
    return lambda route: Endpoint.of(route).client(hasty, on_event)


def impatient(options: ConnectionOptions, limit_s: float | None = None) -> ConnectionOptions:
    """`options` for a check: one attempt, and no answer takes longer than `limit_s` seconds (10).

    A question is cheap, and it is asked again by the next check.
    """
    limit_s = QUESTION_S if limit_s is None else limit_s
    return replace(
        options,
        connect_timeout_s=min(options.connect_timeout_s, limit_s),
        stall_timeout_s=min(options.stall_timeout_s, limit_s),
        retries=replace(options.retries, attempts=1),
    )
