"""The controller as a program: it watches the API, holds its lease, and makes pass after pass."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mirror.controller import PAUSE_S, REST_S
from mirror.errors import MirrorError
from mirror.modes import NAMESPACE
from mirror.run import Run

if TYPE_CHECKING:
    from mirror.controller.cluster import Controller
    from mirror.controller.kube import KubeApi, Lease

_log = logging.getLogger(__name__)


def lead(controller: Controller, lease: Lease, stop: threading.Event, *, pace: float = 1.0) -> None:
    """Lead the cluster until `stop` is set, whenever we hold the lease; then give that back.

    Changes of the API wake it; what goes wrong is logged and tried again, and a bug is raised.
    `pace` stretches or shortens every wait.
    """
    run, wake, failed = Run(), threading.Event(), list[Exception]()
    controller.may_act, controller.run = lambda: lease.held and not stop.is_set(), run

    def begun(task: Callable[..., None], *given: Any) -> threading.Thread:
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
        begun(_watch, controller.api, kind, only, stop, wake, pace)
    begun(_renew, lease, stop, wake, pace)
    work = begun(_work, controller, lease, stop, wake, pace)
    while not stop.is_set():  # to wait would hold the lock that a signal's handler needs to set it
        time.sleep(0.1)
    run.cancellation.cancel()
    wake.set()
    work.join(1.0)
    begun(lease.release).join(0.8)  # an API that hangs must not hold up the end
    for err in failed:
        if not isinstance(err, MirrorError):
            raise err


def _watch(
    api: KubeApi, kind: str, field: str, stop: threading.Event, wake: threading.Event, pace: float
) -> None:
    namespace = NAMESPACE if kind in ("Secret", "Pod") else None
    while not stop.is_set():
        try:
            for _ in api.changes(kind, namespace, stop, field=field):
                wake.set()
        except MirrorError as err:
            _log.info("watching %s: %s", kind, err)
            stop.wait(2.0 * pace)


def _renew(lease: Lease, stop: threading.Event, wake: threading.Event, pace: float) -> None:
    held = False
    while not stop.is_set():
        try:
            lease.renew()
        except MirrorError as err:
            _log.warning("the lease: %s", err)
        if lease.held != held:
            held = lease.held
            _log.info("this one leads now" if held else "another one leads")
            wake.set()
        stop.wait(2.0 * pace)


def _work(
    controller: Controller, lease: Lease, stop: threading.Event, wake: threading.Event, pace: float
) -> None:
    told = ""
    while not stop.is_set():
        wake.clear()
        pause = PAUSE_S
        if lease.held:
            try:
                done = controller.reconcile()
                text = done if isinstance(done, str) else done.summary()
                pause = REST_S if isinstance(done, str) else done.requeue_s
            except MirrorError as err:
                text = str(err)
            if text != told and not stop.is_set():
                _log.info("%s", text)
                told = text
        if wake.wait(pause * pace):
            stop.wait(0.2 * pace)  # what comes together is looked at together
