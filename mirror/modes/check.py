"""Checking that registries hold the required images: asking them, and the report.

Every call asks anew, since images may disappear. Only a caller who passes `again` continues where
the time limit cut an earlier call off. Every report counts all images, asked for or not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mirror.documents import document
from mirror.errors import (
    CancelledError,
    DeadlineError,
    IncompleteError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
)
from mirror.events import OnEvent, PhaseAdvanced, PhaseStarted, ignore
from mirror.modes import Plane, RegistryUser, Role
from mirror.modes.addressing import LOGICAL_ROOT, Route, master_host, routes_for
from mirror.modes.endpoints import Endpoint, credentials_of
from mirror.modes.outcomes import StepOutcome
from mirror.modes.required import RequiredImage, RequiredSet
from mirror.modes.settings import NO_ACCESS, CheckMode, ClusterAccess, RegistrySettings
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run, for_each, gather


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """A registry to ask: its name in messages, and the route to its base repository."""

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
        """The request that asks for it."""
        route = self.route
        path = f"v2/{self.repository(image)}/manifests/{image.reference}"
        return f"HEAD {route.scheme}://{route.host}/{path}"


class ItemState(StrEnum):
    """What is known about one image at one registry."""

    PENDING = "pending"
    FOUND = "found"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """One image at one registry. `error` tells why it is missing or could not be asked for."""

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
        """The number of images found."""
        return sum(item.state is ItemState.FOUND for item in self.items)

    @property
    def errors(self) -> tuple[ItemResult, ...]:
        """The images that are missing or could not be asked for."""
        return tuple(item for item in self.items if item.error is not None)

    @property
    def complete(self) -> bool:
        """Whether all images are there."""
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
        different = {str(item.error): item for item in reversed(self.errors)}
        shown = [*reversed(different.values())][:5]
        for item in shown:
            address = self.target.address(item.image)
            lines.append(f"- source: {item.image.source}\n  image: {address}")
            lines.append(f"  error: {item.error}")
        if left := len(self.errors) - len(shown):
            more = f"{left} more like it" if len(different) == 1 else "more"
            lines.append(f"  ...and {more}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of one call."""

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
        """The outcome for the condition RegistryContainsRequiredImages."""
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
            **document(self, "mode", "ready", "message"),
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
                            **document(item, "state", "error"),
                        }
                        for item in one.errors
                    ],
                }
                for one in self.registries
            ],
        }


# -- asking ----------------------------------------------------------------------------------------

QUESTION_S = 10.0
"""How long one answer may take."""


def targets_for(
    settings: RegistrySettings, access: ClusterAccess = NO_ACCESS
) -> tuple[CheckTarget, ...]:
    """The registries to ask before a switch to `settings`: the upstream, or in Local every master.

    Messages call a master by the name of its node if `access.names` has it.

    Raises:
        RouteError: the settings or `access` do not tell where it is.
    """
    if not settings.kind.row.holds_own_images:
        (route,) = routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
        return (CheckTarget(route.host, route),)
    routes = routes_for(LOGICAL_ROOT, settings, Plane.API, access)
    if not access.masters:
        # Nothing asked would be nothing missing.
        routes_for(LOGICAL_ROOT, settings, Plane.REPLICA, access)
    named = zip(access.masters, (r for r in routes if r.role is Role.MASTER), strict=True)
    return tuple(CheckTarget(access.names.get(a, a), route) for a, route in named)


Connect = Callable[[Route], RegistryClient]
"""Makes a client for where a route leads, with its trust and login; the check closes it."""


def check_images(
    required: RequiredSet,
    targets: Sequence[CheckTarget],
    connect: Connect | None = None,
    *,
    again: CheckReport | None = None,
    workers: int = 3,
    limit_s: float | None = None,
    run: Run | None = None,
) -> CheckReport:
    """Ask every target for every required image; all targets at once, each by `workers` threads.

    `connect` makes a client for where a route leads; without it, clients have `impatient` options.
    A registry that does not answer at all, or refuses the login, is asked once. After `limit_s`
    seconds questions under way fail with `Request timeout`, and the rest stay pending. With
    `again`, an earlier report about the same, the call asks only for what that did not find,
    pending images first.

    Raises:
        CancelledError: `run` was stopped.
        ValueError: there are no targets, or `again` is about something else.
    """
    run, connect = Run.of(run), connect or connect_with(ConnectionOptions())
    if not targets or workers < 1:
        raise ValueError("a check needs targets, and workers to ask them")
    if again is not None and (
        again.mode is not required.mode
        or tuple(one.target for one in again.registries) != tuple(targets)
        or any(tuple(i.image for i in one.items) != required.images for one in again.registries)
    ):
        raise ValueError("the earlier report is about other images or registries")
    with ExitStack() as stack, run.child(jobs=workers * len(targets)) as whole:
        part = whole.with_deadline(limit_s)
        askers = []
        for number, target in enumerate(targets):
            client = stack.enter_context(connect(target.route)).within(part)
            known = again.registries[number].items if again else map(ItemResult, required.images)
            askers.append(_Asker(target, list(known), client, part))
        total = sum(len(asker.waiting) for asker in askers)
        run.on_event(PhaseStarted("checking the required images", total))
        with suppress(DeadlineError):  # this check's own limit; the caller's is checked below
            for _ in for_each(askers * workers, _Asker.work, run=part):
                pass
    run.check()
    results = (RegistryResult(asker.target, tuple(asker.items)) for asker in askers)
    return CheckReport(required.mode, tuple(results))


class _Asker:
    """Asks one registry for images, in several threads. `items` are the answers."""

    def __init__(
        self, target: CheckTarget, items: list[ItemResult], client: RegistryClient, run: Run
    ) -> None:
        self.target, self.items = target, items  # one thread asks for an item, and writes it
        self._client, self._run = client, run
        todo = [n for n, item in enumerate(items) if item.state is not ItemState.FOUND]
        todo.sort(key=lambda n: items[n].state is not ItemState.PENDING)
        self.waiting = deque(todo)
        self._greeting = threading.Lock()  # guards the two below
        self._greeted = False
        self._hopeless: MirrorError | None = None

    def work(self) -> None:
        """Ask until no question or no time is left."""
        with self._greeting:
            if not self._greeted and self.waiting and not self._run.stopped:
                self._greeted = True
                self._hopeless = self._greet()
                if self._run.stopped:  # the report shall name what used up the time
                    self._next()
        while not self._run.stopped and self._next():
            pass

    def _next(self) -> bool:
        """Get the next answer; return False if no question is left."""
        try:
            number = self.waiting.popleft()
        except IndexError:
            return False
        image = self.items[number].image
        hopeless = self._hopeless
        failed = None if hopeless is None else ItemResult(image, ItemState.FAILED, hopeless)
        self.items[number] = failed or self._ask(image)
        self._run.on_event(PhaseAdvanced())
        return True

    def _greet(self) -> MirrorError | None:
        """Return why asking would be useless, or None."""
        route = self.target.route
        try:
            self._client.ping()
        except MirrorError as err:
            return self._explained(err, f"GET {route.scheme}://{route.host}/v2/")
        return None

    def _ask(self, image: RequiredImage) -> ItemResult:
        where = self.target.request(image)
        try:
            found = self._client.resolve(self.target.repository(image), image.reference)
        except MirrorError as err:
            return ItemResult(image, ItemState.FAILED, self._explained(err, where))
        if found is not None:
            return ItemResult(image, ItemState.FOUND)
        error = RegistryNotFoundError(
            f"{where}: unexpected status code 404 Not Found", where=where, status=404
        )
        return ItemResult(image, ItemState.MISSING, error)

    def _explained(self, error: MirrorError, where: str) -> MirrorError:
        """Do not blame the connection for a question that our own time limit ended."""
        if self._run.stopped and isinstance(error, CancelledError | UnreachableError):
            return UnreachableError(f"{where}: Request timeout", where=where)
        return error


def serving_masters(
    access: ClusterAccess, *, options: ConnectionOptions | None = None, run: Run | None = None
) -> frozenset[str]:
    """The masters whose replica answers and lets its reader (`ro`) in, by the names of their nodes.

    Those whose node is not known go by their address. All are asked at once, each once.
    """
    login = credentials_of(access.account(RegistryUser.RO))
    hasty = impatient(options or ConnectionOptions())
    run = Run.of(run).with_jobs(max(1, len(access.masters)))

    def serves(address: str) -> bool:
        endpoint = Endpoint("https", master_host(address), access.ca, login)
        with suppress(RegistryError), endpoint.client(hasty) as client:
            client.within(run).ping()
            return True
        return False

    asked = zip(access.masters, gather(access.masters, serves, run=run), strict=True)
    return frozenset(access.names.get(address, address) for address, answers in asked if answers)


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
        retries=replace(options.retries, attempts=1, retry_for_s=0.0),
    )
