from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from mirror.errors import CancelledError, DeniedError
from mirror.serve import Answer, EmbeddedRegistry, Fault
from mirror.sync import Gap, Inventory, MemoryStore, make_plan, transfer
from mirror.sync.observe import Observation, observe
from mirror.sync.registry import RegistryTarget, below
from tests.support.inventories import put_image, put_index, sample_store
from tests.support.places import client_of

STORE = sample_store()


def fill(registry: EmbeddedRegistry, store: MemoryStore = STORE) -> None:
    with client_of(registry) as client:
        target = RegistryTarget(client, below("root"))
        transfer(make_plan(store.inventory(), Inventory()), store, target)
    registry.requests.clear()


def look(registry: EmbeddedRegistry, paths: Iterable[str] | None = None) -> Observation:
    if paths is None:
        paths = STORE.inventory().repositories
    with client_of(registry) as client:
        return observe(client, below("root"), paths, jobs=3)


def test_what_was_put_there_is_seen(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    seen = look(embedded_registry)
    assert seen.inventory == STORE.inventory()
    assert list(seen.inventory.gaps()) == []
    assert seen.notices == ()
    assert seen.requests == len(embedded_registry.requests)


def test_each_manifest_is_read_once_a_tag_and_no_blob_is_read(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    look(embedded_registry)
    asked = [f"{one.method} {one.path}" for one in embedded_registry.requests]
    assert len(asked) == len(set(asked))
    assert embedded_registry.requests.count("GET", "/blobs/") == 0
    wanted = STORE.inventory().repositories.values()
    blobs = sum(len(content.blobs) for content in wanted)
    assert embedded_registry.requests.count("HEAD", "/blobs/", 200) == blobs


def test_children_are_followed_however_deep(embedded_registry: EmbeddedRegistry) -> None:
    store = MemoryStore()
    child = put_image(store, "install", layers=(b"1",))
    for level in range(4):
        child = put_index(store, "install", children=[child], note=str(level))
    store.put_tag("install", "deep", store.manifest("install", child))
    fill(embedded_registry, store)
    assert look(embedded_registry, ["install"]).inventory == store.inventory()


def test_repositories_that_are_not_there_hold_nothing(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    seen = look(embedded_registry, ["release-channel", "modules/none", "install", "install"])
    assert list(seen.inventory.repositories) == ["release-channel"]
    assert look(embedded_registry, []).inventory == Inventory()


def test_a_blob_that_is_missing_or_of_another_length_is_a_gap(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    content = STORE.inventory().repository("modules/console")
    gone, other = sorted(content.blobs)[:2]
    embedded_registry.faults.add(Fault(Answer(404), "HEAD", f"console/blobs/{gone}", times=None))
    longer = Answer(200, {}, bytes(content.blobs[other] + 1))
    embedded_registry.faults.add(Fault(longer, "HEAD", f"console/blobs/{other}", times=None))
    seen = look(embedded_registry).inventory
    missing = {gap.missing for gap in seen.gaps()}
    assert missing == {gone, other}
    assert {gap.repository for gap in seen.gaps()} == {"modules/console"}


def test_a_tag_that_leads_nowhere_is_left_out(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    embedded_registry.faults.add(Fault(Answer(404), "GET", "/manifests/v1.1.0", times=None))
    tags = look(embedded_registry).inventory.repository("").tags
    assert "v1.1.0" not in tags
    assert "latest" in tags  # the same image by another name


def test_what_is_no_manifest_is_left_out_and_told(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    headers = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    old = Answer(200, headers, b'{"schemaVersion": 1}')
    embedded_registry.faults.add(Fault(old, "GET", "console/manifests/v0.1.0", times=None))
    seen = look(embedded_registry)
    assert "modules/console" not in seen.inventory.repositories
    (notice,) = seen.notices
    assert notice.startswith("root/modules/console: v0.1.0 is left out: ")


def test_a_missing_child_is_a_gap_and_asked_for_once(embedded_registry: EmbeddedRegistry) -> None:
    store = MemoryStore()
    child = put_image(store, "install", layers=(b"1",))
    index = put_index(store, "install", "v1", children=[child])
    fill(embedded_registry, store)
    embedded_registry.faults.add(Fault(Answer(404), "GET", f"/manifests/{child}", times=None))
    seen = look(embedded_registry, ["install"])
    assert list(seen.inventory.gaps()) == [Gap("install", child, index)]
    assert embedded_registry.requests.count("GET", f"/manifests/{child}") == 1


def test_a_refusal_ends_it(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    embedded_registry.faults.add(Fault(Answer(403), "GET", "/manifests/", times=None))
    with pytest.raises(DeniedError):
        look(embedded_registry)


def test_it_can_be_stopped(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    stop = threading.Event()
    stop.set()
    with client_of(embedded_registry) as client, pytest.raises(CancelledError):
        observe(client, below("root"), ["install"], cancel=stop)


def test_equal_registries_give_equal_inventories(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    assert look(embedded_registry).inventory.digest() == STORE.inventory().digest()
