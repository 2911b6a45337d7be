"""A small source and the bundle made of it, for every test of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve

Write: TypeAlias = Callable[..., Path]


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


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a document: `write(name, mapping)`."""

    def one(name: str, document: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    return one
