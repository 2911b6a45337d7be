"""Small trees that registries of this process serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

import mirror.commands.access
from examples.release_tree import SMALL, TreeSpec
from mirror.registry.options import RetryPolicy
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.depot import Offer, stocked

MakeOffer: TypeAlias = Callable[..., Offer]

TINY = replace(
    SMALL,
    versions=("v1.69.1", "v1.70.0"),
    channels={
        "alpha": "v1.70.0",
        "beta": "v1.70.0",
        "early-access": "v1.70.0",
        "stable": "v1.69.1",
        "rock-solid": "v1.69.1",
    },
    components=5,
    modules=SMALL.modules[:1],
    packages=SMALL.packages[:1],
    plugins=(),
)
"""For tests that change what is there."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for next to nothing."""
    retries = RetryPolicy(base_delay_s=0.01, max_delay_s=0.01, max_retry_after_s=0.01)
    monkeypatch.setattr(mirror.commands.access, "patience", lambda _asked: retries)


@pytest.fixture
def offer(make_embedded_registry: MakeEmbeddedRegistry) -> MakeOffer:
    """Serve a tree: `offer(spec, **options)`; options as `EmbeddedRegistry` has them, and `moved`
    as `Depot` has it."""

    def make(spec: TreeSpec = TINY, **options: Any) -> Offer:
        tree, depot = stocked(spec, options.pop("moved", None))
        return Offer(tree, depot, make_embedded_registry(depot.storage, **options))

    return make


@pytest.fixture(scope="session")
def small(_this_machine_only: None) -> Iterator[Offer]:
    """The small tree; tests only read it."""
    tree, depot = stocked(SMALL)
    with EmbeddedRegistry(depot.storage) as registry:
        yield Offer(tree, depot, registry)
