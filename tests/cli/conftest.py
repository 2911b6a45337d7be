"""A small source and the bundle made of it, for every test of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve


@pytest.fixture(scope="session")
def source(_this_machine_only: None) -> Iterator[Source]:
    """A tiny tree in a registry of this process; tests only read it."""
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield serve(TINY, registry)


@pytest.fixture(scope="session")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pull makes of it; tests only read it."""
    folder = tmp_path_factory.mktemp("cli") / "bundle"
    call_mirror("pull", folder, "--source", source.root, "--insecure").succeeded()
    return folder
