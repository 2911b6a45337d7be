"""Replicas with the sample tree, and an object storage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.inventories import sample_store
from tests.support.object_storage import ObjectStorage
from tests.support.replicas import Replica, replicas

STORE = sample_store()


@pytest.fixture
def two() -> Iterator[list[Replica]]:
    """Two replicas, of which the first has the sample tree and states it."""
    with replicas(2) as made:
        made[0].fill(STORE)
        yield made


@pytest.fixture
def three() -> Iterator[list[Replica]]:
    """Three replicas, of which the first has the sample tree and states it."""
    with replicas(3) as made:
        made[0].fill(STORE)
        yield made


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """An object storage with nothing in it, for the tests of one file."""
    with ObjectStorage.of_this_process(tmp_path_factory.mktemp("storage")) as server:
        yield server
