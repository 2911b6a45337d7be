"""Every test of the registry's behaviour runs over both stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mirror.serve import FolderStorage, MemoryStorage, Store
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry


@pytest.fixture(params=["memory", "folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    if request.param == "memory":
        return MemoryStorage()
    return FolderStorage(tmp_path / "storage")


@pytest.fixture
def registry(make_embedded_registry: MakeEmbeddedRegistry, storage: Store) -> EmbeddedRegistry:
    """A registry over `storage`, which anybody may write to."""
    return make_embedded_registry(storage)


@pytest.fixture
def client(registry: EmbeddedRegistry) -> Iterator[httpx.Client]:
    """A bare HTTP client of `registry`."""
    with httpx.Client(base_url=registry.url) as made:
        yield made
