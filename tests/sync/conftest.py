"""A client of a registry in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mirror.registry import RegistryClient
from mirror.testing import EmbeddedRegistry
from tests.support.places import client_of


@pytest.fixture
def client(embedded_registry: EmbeddedRegistry) -> Iterator[RegistryClient]:
    """A client of `embedded_registry` that tries once."""
    with client_of(embedded_registry) as made:
        yield made
