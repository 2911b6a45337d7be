"""Fixtures for pytest: name this module in `pytest_plugins`.

pytest_plugins = ["mirror.testing.plugin"]


def test_a_push_survives_a_lost_answer(embedded_registry):
    embedded_registry.faults.add(Fault(LoseAnswer(), method="PUT"))
    ...

PYTEST_DONT_REWRITE, since a `conftest.py` may import the types of fixtures from here before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, TypeAlias

import pytest

from mirror.serve.store import MemoryStorage, ReadableStore
from mirror.testing.servers import EmbeddedRegistry, FaultyProxy

MakeEmbeddedRegistry: TypeAlias = Callable[..., EmbeddedRegistry]
MakeFaultyProxy: TypeAlias = Callable[..., FaultyProxy]


@pytest.fixture
def make_embedded_registry() -> Iterator[MakeEmbeddedRegistry]:
    """Start embedded registries: `make(storage=None, **options)` as `EmbeddedRegistry` has them."""
    with ExitStack() as running:

        def make(storage: ReadableStore | None = None, **options: Any) -> EmbeddedRegistry:
            registry = EmbeddedRegistry(MemoryStorage() if storage is None else storage, **options)
            return running.enter_context(registry)

        yield make


@pytest.fixture
def embedded_registry(make_embedded_registry: MakeEmbeddedRegistry) -> EmbeddedRegistry:
    """An embedded registry with nothing in it, in memory."""
    return make_embedded_registry()


@pytest.fixture
def make_faulty_proxy() -> Iterator[MakeFaultyProxy]:
    """Start proxies before registries: `make(upstream, **options)` as `FaultyProxy` has them."""
    with ExitStack() as running:
        yield lambda upstream, **options: running.enter_context(FaultyProxy(upstream, **options))
