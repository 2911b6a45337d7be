"""A view of a client listens to its run at every wait, and leaves the client as it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from mirror.errors import CancelledError, DeadlineError
from mirror.events import Event, Retrying
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Cancellation, Run
from tests.registry.conftest import Serve
from tests.support.scripted_server import Reply

SOON_S = 2.0


def stopped_soon(run: Run, work: Callable[[], object]) -> None:
    """Expect that `work` ends within `SOON_S` of the run's cancellation."""
    moments: list[float] = []

    def stop() -> None:
        moments.append(time.monotonic())
        run.cancellation.cancel()

    timer = threading.Timer(0.1, stop)
    timer.start()
    with pytest.raises(CancelledError):
        work()
    assert time.monotonic() - moments[0] < SOON_S
    timer.join()


def test_a_wait_that_the_server_asks_for_ends_with_the_run(serve: Serve) -> None:
    busy = [True]
    server = serve(lambda r: Reply(503, {"Retry-After": "100"}) if busy[0] else Reply())
    heard: list[Event] = []
    run = Run(on_event=heard.append)
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        stopped_soon(run, client.within(run).ping)
        assert [type(event) for event in heard] == [Retrying]
        asked = len(server.log)
        with pytest.raises(CancelledError):
            client.within(run).ping()
        assert len(server.log) == asked  # nothing is sent for a run that was stopped


def test_the_deadline_bounds_a_wait(serve: Serve) -> None:
    server = serve(lambda r: Reply(503, {"Retry-After": "100"}))
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            client.within(Run().with_deadline(0.2)).ping()
        assert time.monotonic() - began < SOON_S


def test_the_client_serves_other_runs_after_one_was_stopped(serve: Serve) -> None:
    server = serve(lambda r: Reply())
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        stopped = Run()
        stopped.cancellation.cancel()
        with pytest.raises(CancelledError):
            client.within(stopped).ping()
        client.within(Run(cancellation=Cancellation())).ping()
        client.ping()


def test_closing_a_view_leaves_the_client_open(serve: Serve) -> None:
    server = serve(lambda r: Reply())
    with RegistryClient(server.host, options=ConnectionOptions(plain_http=True)) as client:
        with client.within(Run()) as view:
            view.ping()
        client.ping()
