"""Who leads a cluster, and how: a Lease of the API, and pass after pass while it is held."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mirror.controller import PAUSE_S, REST_S
from mirror.controller.cluster import Controller
from mirror.controller.kube import RESOURCES, KubeApi, Object, read_as_told
from mirror.errors import ConflictError, MirrorError
from mirror.modes import NAMESPACE
from mirror.run import Run

_log = logging.getLogger(__name__)


class Lease:
    """The right to act, which one of several programs has at a time.

    Whoever holds it renews it. It is free when nobody has renewed it for `duration_s` by our own
    clock: what others wrote into it says that they live, and not what time it is. We count on it
    for two thirds of that since our last renewal began, so that we stop before another begins.
    """

    def __init__(self, api: KubeApi, name: str, identity: str, *, duration_s: float = 15.0) -> None:
        self._api, self._name, self.identity = api, name, identity
        self._duration_s = duration_s
        self._held_until, self._released = float("-inf"), False
        self._seen: tuple[str, float] = ("", 0.0)
        """The version of the Lease that we saw last, and when we saw it first."""

    @property
    def held(self) -> bool:
        """Whether we may act now."""
        return time.monotonic() < self._held_until

    def renew(self) -> bool:
        """Renew it, or take it if it is free; whether we hold it now.

        Raises:
            MirrorError: the API did not answer, or refused it.
        """
        begun = time.monotonic()
        found = self._api.get("Lease", self._name)
        spec: Object = {} if found is None else found.get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        version = "" if found is None else found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, begun)
        if holder not in ("", self.identity):
            self._held_until = float("-inf")
            with read_as_told(f"Lease {self._name}"):
                given = float(spec.get("leaseDurationSeconds") or 0)
            if begun < self._seen[1] + max(given, self._duration_s):
                return False
        if self._released:
            return False
        try:
            self._write(found, self.identity)
        except ConflictError:  # somebody was faster
            return False
        self._held_until = begun + self._duration_s * 2 / 3
        return True

    def release(self) -> None:
        """Let another take it at once, and take it no more.

        Raises:
            MirrorError: as `renew`.
        """
        self._held_until, self._released = float("-inf"), True
        found = self._api.get("Lease", self._name)
        if found is not None and (found.get("spec") or {}).get("holderIdentity") == self.identity:
            with suppress(ConflictError):
                self._write(found, "")

    def _write(self, found: dict[str, Any] | None, holder: str) -> None:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        spec = dict(found.get("spec") or {}) if found else {}
        if spec.get("holderIdentity") != holder:
            with read_as_told(f"Lease {self._name}"):
                spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + bool(found)
            spec["acquireTime"] = now
        spec |= {"holderIdentity": holder, "renewTime": now}
        spec["leaseDurationSeconds"] = max(1, round(self._duration_s))
        version = {"resourceVersion": found["metadata"]["resourceVersion"]} if found else {}
        metadata = {"name": self._name, "namespace": NAMESPACE, **version}
        kind = {"apiVersion": RESOURCES["Lease"].version, "kind": "Lease"}
        self._api.put({**kind, "metadata": metadata, "spec": spec})


def lead(controller: Controller, lease: Lease, stop: threading.Event, *, pace: float = 1.0) -> None:
    """Lead the cluster until `stop` is set, whenever we hold the lease; then give that back.

    Changes of the API wake it; what goes wrong is logged and tried again, and a bug is raised.
    `pace` stretches or shortens every wait.
    """
    run, failed, leader = Run(), list[Exception](), _Leader(controller, lease, stop, pace)
    controller.may_act, controller.run = lambda: lease.held and not stop.is_set(), run

    def begun(task: Callable[..., None], *given: str) -> threading.Thread:
        def carry_out() -> None:
            try:
                task(*given)
            except Exception as err:  # noqa: BLE001 -- raised below: a thread would die in silence
                failed.append(err)
                stop.set()

        thread = threading.Thread(target=carry_out, daemon=True)
        thread.start()
        return thread

    watched = {"ModuleConfig": "metadata.name=deckhouse", "Secret": "", "Node": "", "Pod": ""}
    for kind, only in watched.items():
        begun(leader.watch, kind, only)
    begun(leader.renew)
    work = begun(leader.work)
    while not stop.is_set():  # to wait would hold the lock that a signal's handler needs to set it
        time.sleep(0.1)
    run.cancellation.cancel()
    leader.wake.set()
    work.join(1.0)
    begun(lease.release).join(0.8)  # an API that hangs must not hold up the end
    for err in failed:
        if not isinstance(err, MirrorError):
            raise err


@dataclass
class _Leader:
    """The threads of `lead`. `wake` is set when there may be something to do."""

    controller: Controller
    lease: Lease
    stop: threading.Event
    pace: float
    wake: threading.Event = field(default_factory=threading.Event)

    def watch(self, kind: str, only: str) -> None:
        namespace = NAMESPACE if kind in ("Secret", "Pod") else None
        while not self.stop.is_set():
            try:
                for _ in self.controller.api.changes(kind, namespace, self.stop, field=only):
                    self.wake.set()
            except MirrorError as err:
                _log.info("watching %s: %s", kind, err)
                self.stop.wait(2.0 * self.pace)

    def renew(self) -> None:
        held = False
        while not self.stop.is_set():
            try:
                self.lease.renew()
            except MirrorError as err:
                _log.warning("the lease: %s", err)
            if self.lease.held != held:
                held = self.lease.held
                _log.info("this one leads now" if held else "another one leads")
                self.wake.set()
            self.stop.wait(2.0 * self.pace)

    def work(self) -> None:
        told = ""
        while not self.stop.is_set():
            self.wake.clear()
            pause = PAUSE_S
            if self.lease.held:
                try:
                    done = self.controller.reconcile()
                    text = done if isinstance(done, str) else done.summary()
                    pause = REST_S if isinstance(done, str) else done.requeue_s
                except MirrorError as err:
                    text = str(err)
                if text != told and not self.stop.is_set():
                    _log.info("%s", text)
                    told = text
            if self.wake.wait(pause * self.pace):
                self.stop.wait(0.2 * self.pace)  # what comes together is looked at together
