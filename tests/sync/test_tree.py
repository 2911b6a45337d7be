"""Where the repositories of a tree lie in its registry, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci import Repository
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync.plan import make_plan
from mirror.sync.transfer import transfer
from mirror.sync.tree import RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.support.inventories import LONG_PATH, PATHS, sample_store
from tests.support.places import client_of

CLIENT = RegistryClient("registry.example:5000", options=ConnectionOptions(plain_http=True))
ROOT = Repository("registry.example:5000", "dkp/ee")
SUFFIXES = ("modules", "", "mods", "a/b", "modules/x", "install")


def tree(suffix: str = "modules") -> RegistryTree:
    return RegistryTree(CLIENT, ROOT, suffix)


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("", "dkp/ee"),
        ("install", "dkp/ee/install"),
        ("modules", "dkp/ee/modules"),
        ("modules/console/release", "dkp/ee/modules/console/release"),
    ],
)
def test_every_path_lies_below_the_root(path: str, repository: str) -> None:
    assert tree().locate(path) == repository
    assert tree().path_of(repository) == path


@pytest.mark.parametrize(
    ("suffix", "repository"), [("mods", "dkp/ee/mods/console"), ("", "dkp/ee/console")]
)
def test_modules_may_lie_below_another_path(suffix: str, repository: str) -> None:
    assert tree(suffix).locate("modules/console") == repository
    assert tree(suffix).path_of(repository) == "modules/console"


@pytest.mark.parametrize("suffix", ["modules", "own/modules"])
@pytest.mark.parametrize("path", ["", "install", "modules", "modules/x/release", "packages/y"])
def test_a_path_is_found_again_where_it_was_put(path: str, suffix: str) -> None:
    here = tree(suffix)
    assert here.path_of(here.locate(path)) == path


def test_what_lies_beside_the_tree_or_in_the_place_of_its_modules_has_no_path() -> None:
    assert tree().path_of("dkp/eee") is None
    assert tree().path_of("other/ee/install") is None
    assert tree("mods").path_of("dkp/ee/modules/console") is None


@given(st.sampled_from(SUFFIXES), st.sampled_from([*PATHS, LONG_PATH, "modules", "modulesque"]))
def test_where_a_path_lies_leads_back_to_a_path_that_lies_there(suffix: str, path: str) -> None:
    """To that path itself, unless the suffix puts modules where other repositories lie."""
    here = tree(suffix)
    found = here.path_of(here.locate(path))
    assert found is not None
    assert here.locate(found) == here.locate(path)
    if suffix in ("modules", "mods"):
        assert found == path


def test_a_tree_is_called_by_its_root() -> None:
    assert tree().name == "registry.example:5000/dkp/ee"
    assert tree().source().name == tree().name
    assert tree().target(Run()).name == tree().name


def test_a_data_folder_is_there_if_it_was_named(tmp_path: Path) -> None:
    assert tree().storage is None
    assert RegistryTree(CLIENT, ROOT, storage=tmp_path).storage == tmp_path


@pytest.fixture
def filled(embedded_registry: EmbeddedRegistry) -> Iterator[RegistryTree]:
    with client_of(embedded_registry) as client:
        yield RegistryTree(client, Repository(embedded_registry.address, "dkp/ee"))


def test_what_a_target_writes_a_source_reads(filled: RegistryTree) -> None:
    store = sample_store()
    wanted = store.inventory()
    target = filled.target(Run(jobs=2))
    transfer(make_plan(wanted, target.held(wanted)), store, target)
    assert target.held(wanted) == wanted
    path, content = next(iter(wanted.repositories.items()))
    for digest in content.manifests:
        assert filled.source().manifest(path, digest) == store.manifest(path, digest)
