"""`mirror inventory`: what a registry holds, for the next delta to leave out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.release_tree import SMALL, spread
from mirror.bundle.reader import read_inventory
from mirror.errors import DeniedError
from mirror.oci import Digest
from mirror.release.discovery import discovery_images
from mirror.serve import MemoryStorage
from mirror.sync import Inventory, union
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.inventories import Item, put_image, sample_store, without
from tests.support.program import call_mirror
from tests.support.release_source import serve
from tests.support.replicas import replicas

VERSIONS = SMALL.versions[-2:]
TREE = replace(
    SMALL, versions=VERSIONS, channels=spread(VERSIONS), components=6, dev_tags=(), multi_arch=0.4
)
"""Of every kind something, and few of each: every test looks at all of it."""


@pytest.fixture(scope="module")
def bundle(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pull makes of the tree."""
    folder = tmp_path_factory.mktemp("inventory") / "bundle"
    with EmbeddedRegistry(MemoryStorage()) as registry:
        call_mirror(
            "pull", folder, "--source", serve(TREE, registry).root, "--insecure"
        ).succeeded()
    return folder


@pytest.fixture(scope="module")
def _filled(_this_machine_only: None, bundle: Path) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        root = f"{registry.address}/dkp/ee"
        call_mirror("push", bundle, root, "--insecure").succeeded()
        for other in ("dkp/ee-of-others", "others", "others/dkp/ee"):
            archive, place = bundle / "security.tar", f"{registry.address}/{other}"
            call_mirror("push", place, "--file", archive, "--insecure").succeeded()
        yield registry


@pytest.fixture
def target(_filled: EmbeddedRegistry) -> Iterator[EmbeddedRegistry]:
    """A registry with the small bundle in it, and what other people put there; it is only read."""
    _filled.requests.clear()
    yield _filled
    _filled.faults.clear()


def held_in(target: EmbeddedRegistry, folder: Path, *flags: str | Path) -> Inventory:
    """What the program says that the registry holds."""
    file = folder / "held.json"
    root = f"{target.address}/dkp/ee"
    call_mirror("inventory", root, "-o", file, "--insecure", *flags).succeeded()
    return read_inventory(file)


def expected(bundle: Path) -> Inventory:
    """What a push of the bundle leaves behind in a registry."""
    pushed = read_inventory(bundle)
    return union([pushed, discovery_images(pushed).inventory()])


def test_a_registry_holds_what_was_pushed_to_it(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    assert held_in(target, tmp_path) == expected(bundle)


def test_the_file_is_canonical_and_told_about(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure", "--json").succeeded()
    data = file.read_bytes()
    assert run.stderr == ""
    assert run.document["inventory"] == str(Digest.of(data))
    assert run.document["bytes"] == len(data)
    assert run.document["output"] == str(file)
    assert run.document["gaps"] == 0
    assert run.document["notices"] == run.document["failures"] == []
    asked = target.requests.count() - target.requests.count(path="/v2/_catalog|/v2/[?]")
    assert 0 < run.document["requests"] <= asked
    content = expected(bundle)
    assert run.document["blobs"] == len(content.blob_sizes())
    assert data == content.to_json()
    told = call_mirror("inventory", root, "-o", file, "--insecure", "--wide").succeeded().stdout
    assert f"Registry {root} holds" in told
    assert str(Digest.of(data)) in told


def test_standard_output_gets_the_inventory_and_nothing_else(
    target: EmbeddedRegistry, bundle: Path
) -> None:
    root = f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", "-", "--insecure").succeeded()
    assert Inventory.from_document(json.loads(run.stdout)) == expected(bundle)
    call_mirror("inventory", root, "-o", "-", "--json").failed(2, "write the inventory to a file")


@pytest.mark.parametrize("status", [401, 404])
def test_where_repositories_are_not_listed_those_of_the_release_tree_are_looked_at(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path, status: int
) -> None:
    target.faults.add(Fault(Answer(status), "GET", "/v2/_catalog", times=None))
    target.faults.add(Fault(Answer(404), None, "/dkp/ee/mirror/inventory/", times=None))
    complete = expected(bundle)
    extras = {path for path in complete.repositories if "/extra/" in path}
    described = {"packages/redis/version", "packages/grafana/version"}
    assert extras
    assert described <= set(complete.repositories)
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure").succeeded()
    assert "does not list its repositories" in run.stderr
    assert "--known" in run.stderr
    assert read_inventory(file) == complete.filtered(lambda path: path not in extras)
    assert held_in(target, tmp_path, "--known", bundle) == complete
    assert held_in(target, tmp_path, "--known", bundle / "inventory.json") == complete


def test_a_registry_that_states_what_it_has_need_not_list_its_repositories(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    target.faults.add(Fault(Answer(401), "GET", "/v2/_catalog", times=None))
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure").succeeded()
    assert "warning" not in run.stderr
    assert read_inventory(file) == expected(bundle)
    # Nor is any of its manifests read.
    assert target.requests.count("GET", "/dkp/ee/(?!mirror/inventory/).*manifests/") == 0


@pytest.mark.parametrize(
    ("answer", "methods", "told"),
    [
        (Answer(403), ("GET", "HEAD"), "what .*/dkp/ee states that it holds is not looked at: "),
        (Answer(200, {}, b"{}"), ("GET",), "latest cannot be read: "),
    ],
)
def test_a_statement_that_cannot_be_used_is_told_of(
    target: EmbeddedRegistry,
    bundle: Path,
    tmp_path: Path,
    answer: Answer,
    methods: tuple[str, ...],
    told: str,
) -> None:
    place = "/dkp/ee/mirror/inventory/manifests/"
    target.faults.add(*(Fault(answer, method, place, times=None) for method in methods))
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure").succeeded()
    assert re.search(f"warning: .*{told}", run.stderr)
    assert read_inventory(file) == expected(bundle)


def test_manifests_that_no_tag_names_are_listed_where_the_registry_states_them(
    tmp_path: Path,
) -> None:
    store = sample_store()
    put_image(store, "install", layers=(b"nobody tags me",))
    file = tmp_path / "held.json"
    with replicas(1) as (replica,):
        replica.fill(store, generation=None)
        call_mirror("inventory", replica.name, "-o", file, "--insecure").succeeded()
        assert read_inventory(file) == sample_store().inventory()
        replica.state(store.inventory(), 1)
        call_mirror("inventory", replica.name, "-o", file, "--insecure").succeeded()
    assert read_inventory(file) == store.inventory()


def test_what_cannot_be_read_is_told_of_and_left_out(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    complete = expected(bundle)
    blob = min(complete.repository("security/trivy-db").blobs)
    path = f"/dkp/ee/security/trivy-db/blobs/{blob}"
    target.faults.add(Fault(Answer(403), None, path, times=None))
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure", "--json")
    assert run.code == DeniedError.exit_code
    assert read_inventory(file) == without(complete, Item("security/trivy-db", "blob", blob))
    (failure,) = run.document["failures"]
    assert failure["place"] == root
    assert failure["item"] == f"blob security/trivy-db@{blob}"
    assert failure["type"] == "DeniedError"
    assert run.document["gaps"] >= 1
    named = f"  blob security/trivy-db@{blob}: "
    assert f"{root}: this could not be read and is left out:\n{named}" in run.stderr
    told = call_mirror("inventory", root, "-o", file, "--insecure")
    assert told.code == DeniedError.exit_code
    assert re.search(r"Not read +1 \(see the warning\)", told.stdout)
    run = call_mirror("inventory", root, "-o", "-", "--insecure")
    assert run.code == DeniedError.exit_code
    assert Inventory.from_document(json.loads(run.stdout)) == read_inventory(file)


def test_where_nothing_can_be_read_nothing_is_written(
    target: EmbeddedRegistry, tmp_path: Path
) -> None:
    target.faults.add(Fault(Answer(403), None, "/dkp/ee/.*manifests/", times=None))
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    call_mirror("inventory", root, "-o", file, "--insecure").failed(6, "could not be read")
    assert not file.exists()


def test_what_is_no_manifest_is_a_notice_and_no_failure(
    target: EmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    headers = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    old = Answer(200, headers, b'{"schemaVersion": 1}')
    target.faults.add(Fault(old, None, "/dkp/ee/security/trivy-db/manifests/[^s]", times=None))
    file, root = tmp_path / "held.json", f"{target.address}/dkp/ee"
    run = call_mirror("inventory", root, "-o", file, "--insecure", "--json").succeeded()
    assert run.document["failures"] == []
    (notice,) = run.document["notices"]
    assert notice.startswith("tag security/trivy-db:2 is left out: ")
    assert f"warning: {notice}" in run.stderr
    tags = read_inventory(file).repository("security/trivy-db").tags
    assert tags == {}


def test_modules_may_lie_elsewhere(
    embedded_registry: EmbeddedRegistry, tiny_bundle: Path, tmp_path: Path
) -> None:
    root, suffix = f"{embedded_registry.address}/dkp/ee", ("--modules-path-suffix", "/add/ons")
    call_mirror("push", tiny_bundle, root, "--insecure", *suffix).succeeded()
    assert held_in(embedded_registry, tmp_path, *suffix) == expected(tiny_bundle)


def test_an_empty_registry_holds_nothing(
    embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    assert held_in(embedded_registry, tmp_path) == Inventory()


def test_what_cannot_be_reached_or_understood_is_told(
    embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    file = tmp_path / "held.json"
    call_mirror("inventory", "no registry", "-o", file).failed(2, "no registry")
    for place in (tmp_path, tmp_path / "nowhere" / "held.json"):
        call_mirror("inventory", f"{embedded_registry.address}/dkp", "-o", place).failed(
            2, f"{place} is not a file in a folder that exists"
        )
    assert len(embedded_registry.requests) == 0
    call_mirror("inventory", f"{embedded_registry.address}/dkp").failed(2, "--output")
    embedded_registry.faults.add(Fault(Answer(403), "GET", "/tags/", times=None))
    call_mirror("inventory", f"{embedded_registry.address}/dkp", "-o", file, "--insecure").failed(
        6, "--registry-login"
    )
    assert not file.exists()
