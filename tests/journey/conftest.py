"""A release tree at a source, and the bundle that a pull makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.release_tree import SMALL
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.releases import Release, pull_releases


@pytest.fixture(scope="session")
def _small_registry(_this_machine_only: None) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield registry


@pytest.fixture(scope="session")
def small_source(_small_registry: EmbeddedRegistry) -> Source:
    """The small tree; tests only read it."""
    return serve(SMALL, _small_registry)


@pytest.fixture(scope="session")
def small_bundle(small_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a default pull makes of the small tree; tests only read it."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    call_mirror("pull", folder, "--source", small_source.root, "--insecure").succeeded()
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny tree, whose source is gone."""
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    with EmbeddedRegistry(MemoryStorage()) as registry:
        root = serve(TINY, registry).root
        call_mirror("pull", folder, "--source", root, "--insecure").succeeded()
    return folder


@pytest.fixture(scope="session")
def releases(
    _this_machine_only: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Release, ...]:
    """Bundles of three successive releases; tests only read them."""
    return pull_releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def source(embedded_registry: EmbeddedRegistry) -> Source:
    """A tiny tree in a registry of the test's own."""
    return serve(TINY, embedded_registry)


@pytest.fixture
def make_target(make_embedded_registry: MakeEmbeddedRegistry) -> Callable[[], str]:
    """Start empty registries to push to; answers what REGISTRY is to be."""
    return lambda: f"{make_embedded_registry().address}/dkp/ee"


@pytest.fixture
def target() -> Iterator[EmbeddedRegistry]:
    """An empty registry to push to."""
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield registry
