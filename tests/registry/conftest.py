"""Scripted servers, and clients whose waits are noted and not waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from mirror.events import Event
from mirror.registry import ConnectionOptions, Credentials, RegistryClient, RetryPolicy
from tests.support.fake_api import FakeRegistry
from tests.support.scripted_server import Script, ScriptedServer

Serve: TypeAlias = Callable[[Script], ScriptedServer]
MakeClient: TypeAlias = Callable[..., RegistryClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start scripted servers."""
    with ExitStack() as running:
        yield lambda script: running.enter_context(ScriptedServer(script))


@pytest.fixture
def waits() -> list[float]:
    """How long the clients of this test would have slept, in seconds."""
    return []


@pytest.fixture
def events() -> list[Event]:
    """What the clients of this test reported."""
    return []


@pytest.fixture
def make_client(waits: list[float], events: list[Event]) -> Iterator[MakeClient]:
    """Clients over plain HTTP, without jitter: `make(host, credentials=None, **options)`."""
    with ExitStack() as running:

        def make(
            host: str,
            credentials: Credentials | None = None,
            *,
            attempts: int = 5,
            **options: Any,
        ) -> RegistryClient:
            retries = RetryPolicy(attempts=attempts, jitter=0, sleep=waits.append)
            settings = ConnectionOptions(**{"plain_http": True, "retries": retries, **options})
            client = RegistryClient(
                host, options=settings, credentials=credentials, on_event=events.append
            )
            return running.enter_context(client)

        yield make


@pytest.fixture
def fake() -> FakeRegistry:
    """A registry to be disturbed."""
    return FakeRegistry()


@pytest.fixture
def fake_server(fake: FakeRegistry, serve: Serve) -> ScriptedServer:
    """`fake`, served."""
    return serve(fake)


@pytest.fixture
def client(fake_server: ScriptedServer, make_client: MakeClient) -> RegistryClient:
    """A client of `fake`."""
    return make_client(fake_server.host)
