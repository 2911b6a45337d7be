from __future__ import annotations

from collections.abc import Iterable

import pytest

from mirror.errors import CancelledError, DeniedError, InvalidManifestError, RegistryError
from mirror.events import Event, PhaseAdvanced, PhaseStarted
from mirror.run import Cancellation, Run
from mirror.sync import Gap, Inventory, MemoryStore, make_plan, transfer
from mirror.sync.observation import Observation
from mirror.sync.tree import RegistrySource, RegistryTarget
from mirror.sync.walk import Memory, walk
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.inventories import (
    Item,
    items,
    put_image,
    put_index,
    put_signature,
    sample_store,
    without,
)
from tests.support.places import below, client_of

STORE = sample_store()


def fill(registry: EmbeddedRegistry, store: MemoryStore = STORE) -> None:
    with client_of(registry) as client:
        target = RegistryTarget(client, below("root"))
        transfer(make_plan(store.inventory(), Inventory()), store, target)
    registry.requests.clear()


def stroll(
    registry: EmbeddedRegistry,
    paths: Iterable[str] | None = None,
    known: Inventory | None = None,
    *,
    blobs: bool = False,
) -> Observation:
    """A walk, which asks for no blob."""
    if paths is None:
        paths = STORE.inventory().repositories
    with client_of(registry) as client:
        source = RegistrySource(client, below("root"), "the registry")
        return walk(source, paths, known=known, blobs=blobs, run=Run(jobs=3))


def look(
    registry: EmbeddedRegistry,
    paths: Iterable[str] | None = None,
    known: Inventory | None = None,
) -> Observation:
    """The same and then all blobs."""
    return stroll(registry, paths, known, blobs=True)


def blobless(inventory: Inventory) -> Inventory:
    return without(inventory, *(item for item in items(inventory) if item.kind == "blob"))


def test_what_was_put_there_is_seen(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    seen = look(embedded_registry)
    assert seen.held == STORE.inventory()
    assert list(seen.held.gaps()) == []
    assert seen.failures == ()
    assert seen.requests == len(embedded_registry.requests)


def test_a_walk_asks_for_no_blob_and_closes_what_it_found(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    found = stroll(embedded_registry)
    assert found.held == blobless(STORE.inventory())
    assert found.complete().held == STORE.inventory()
    assert found.complete().failures == ()
    assert embedded_registry.requests.count(path="/blobs/") == 0


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
    assert look(embedded_registry, ["install"]).held == store.inventory()


def test_repositories_that_are_not_there_hold_nothing(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    seen = look(embedded_registry, ["release-channel", "modules/none", "install", "install"])
    assert list(seen.held.repositories) == ["release-channel"]
    assert look(embedded_registry, []).held == Inventory()


def test_a_blob_that_is_missing_or_of_another_length_is_a_gap(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    content = STORE.inventory().repository("modules/console")
    gone, other = sorted(content.blobs)[:2]
    embedded_registry.faults.add(Fault(Answer(404), "HEAD", f"console/blobs/{gone}", times=None))
    longer = Answer(200, {}, bytes(content.blobs[other] + 1))
    embedded_registry.faults.add(Fault(longer, "HEAD", f"console/blobs/{other}", times=None))
    seen = look(embedded_registry).held
    missing = {gap.missing for gap in seen.gaps()}
    assert missing == {gone, other}
    assert {gap.repository for gap in seen.gaps()} == {"modules/console"}


def test_a_tag_that_leads_nowhere_is_left_out(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    embedded_registry.faults.add(Fault(Answer(404), "GET", "/manifests/v1.1.0", times=None))
    tags = look(embedded_registry).held.repository("").tags
    assert "v1.1.0" not in tags
    assert "latest" in tags  # the same image by another name


def test_what_is_no_manifest_is_left_out_and_told(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    headers = {"Content-Type": "application/vnd.docker.distribution.manifest.v1+prettyjws"}
    old = Answer(200, headers, b'{"schemaVersion": 1}')
    embedded_registry.faults.add(Fault(old, "GET", "console/manifests/v0.1.0", times=None))
    seen = look(embedded_registry)
    assert "modules/console" not in seen.held.repositories
    (failure,) = seen.failures
    assert isinstance(failure.error, InvalidManifestError)
    assert str(failure).startswith("the registry: tag modules/console:v0.1.0: ")


def test_a_missing_child_is_a_gap_and_asked_for_once(embedded_registry: EmbeddedRegistry) -> None:
    store = MemoryStore()
    child = put_image(store, "install", layers=(b"1",))
    index = put_index(store, "install", "v1", children=[child])
    fill(embedded_registry, store)
    embedded_registry.faults.add(Fault(Answer(404), "GET", f"/manifests/{child}", times=None))
    seen = look(embedded_registry, ["install"])
    assert list(seen.held.gaps()) == [Gap("install", child, index)]
    assert embedded_registry.requests.count("GET", f"/manifests/{child}") == 1
    assert seen.failures == ()
    closed = seen.complete()
    assert closed.held == Inventory()
    (failure,) = closed.failures
    assert str(failure) == (
        f"the registry: manifest install@{child}: it is not there, though index {index} of install "
        "leads to it; push again what it belongs to, or let --sparse-indexes carry take the index "
        "without it"
    )


def test_what_a_registry_cannot_serve_is_told_and_all_else_is_seen(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    content = STORE.inventory().repository("modules/console")
    blob = min(content.blobs)
    embedded_registry.faults.add(
        Fault(Answer(500), None, "console/release/manifests/stable", times=None),
        Fault(Answer(400), None, f"console/blobs/{blob}", times=None),
    )
    seen = look(embedded_registry)
    assert [one.item for one in seen.failures] == [
        "tag modules/console/release:stable",
        f"blob modules/console@{blob}",
    ]
    assert all(isinstance(one.error, RegistryError) for one in seen.failures)
    assert seen.held == without(
        STORE.inventory(),
        Item("modules/console/release", "tag", "stable"),
        Item("modules/console", "blob", blob),
    )


def test_what_reaches_something_that_cannot_be_read_is_left_out_where_it_is_closed(
    embedded_registry: EmbeddedRegistry,
) -> None:
    store = MemoryStore()
    child = put_image(store, "install", layers=(b"1",))
    inner = put_index(store, "install", children=[child])
    put_index(store, "install", "v1", children=[inner])
    put_image(store, "install", "v2", layers=(b"2",))
    fill(embedded_registry, store)
    embedded_registry.faults.add(Fault(Answer(400), None, f"/manifests/{child}", times=None))
    found = stroll(embedded_registry, ["install"])
    assert set(found.held.repository("install").tags) == {"v1", "v2"}
    closed = found.complete()
    assert set(closed.held.repository("install").tags) == {"v2"}
    assert list(closed.held.gaps()) == []
    assert [one.item for one in closed.failures] == [f"manifest install@{child}"]
    assert closed.failures == found.failures


def test_a_refused_list_of_tags_ends_it(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    embedded_registry.faults.add(Fault(Answer(403), "GET", "/tags/", times=None))
    with pytest.raises(DeniedError):
        look(embedded_registry)


def test_what_is_known_is_asked_for_and_not_read(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    seen = stroll(embedded_registry, known=STORE.inventory())
    assert seen.complete().held == STORE.inventory()
    assert embedded_registry.requests.count("GET", "/manifests/") == 0
    asked = [f"{one.method} {one.path}" for one in embedded_registry.requests]
    assert len(asked) == len(set(asked)) == seen.requests


def test_what_is_known_counts_for_nothing_that_is_not_there(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    known = STORE.inventory()
    content = known.repository("")
    child = next(node for node in content.manifests.values() if node.children).children[0].digest
    (v1,) = (digest for tag, digest in content.tags.items() if tag == "v1.0.0")
    embedded_registry.faults.add(
        Fault(Answer(404), None, f"/root/manifests/{child}", times=None),
        Fault(Answer(404), None, f"/root/manifests/{child.encoded}", times=None),
        Fault(Answer(404), None, "console/manifests/", times=None),
    )
    seen = stroll(embedded_registry, known=known)
    assert "modules/console" not in seen.held.repositories
    assert child not in seen.held.repository("").manifests
    gaps = [gap for gap in seen.held.gaps() if gap.missing not in content.blobs]
    assert Gap("", child, v1) in gaps
    assert "v1.0.0" not in seen.complete().held.repository("").tags


def test_manifests_that_no_tag_names_are_found_by_what_is_known(
    embedded_registry: EmbeddedRegistry,
) -> None:
    store = sample_store()
    put_image(store, "install", layers=(b"nobody tags me",))
    fill(embedded_registry, store)
    paths = store.inventory().repositories
    assert look(embedded_registry, paths).held == STORE.inventory()
    assert look(embedded_registry, paths, store.inventory()).held == store.inventory()


def test_referrers_are_found_and_what_refers_to_them(embedded_registry: EmbeddedRegistry) -> None:
    store = MemoryStore()
    image = put_image(store, "install", "v1")
    signature = put_signature(store, "install", image)
    above = put_signature(store, "install", signature, "twice")
    fill(embedded_registry, store)
    seen = look(embedded_registry, ["install"])
    assert seen.failures == ()
    assert set(seen.held.repository("install").manifests) == {image, signature, above}
    assert embedded_registry.requests.count("GET", "/referrers/") == 3
    embedded_registry.requests.clear()
    embedded_registry.faults.add(Fault(Answer(404), "GET", "/referrers/", times=None))
    seen = look(embedded_registry, ["install"])
    assert set(seen.held.repository("install").manifests) == {image}
    assert embedded_registry.requests.count("GET", "/referrers/") == 1


def test_referrers_that_cannot_be_listed_are_told_of(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    content = STORE.inventory().repository("modules/console")
    (digest,) = content.manifests
    embedded_registry.faults.add(Fault(Answer(500), "GET", f"/referrers/{digest}", times=None))
    seen = look(embedded_registry)
    assert [one.item for one in seen.failures] == [f"manifest modules/console@{digest}"]
    assert "/referrers/" in str(seen.failures[0])
    assert seen.held == STORE.inventory()


def test_an_error_about_the_first_referrers_does_not_count_as_no_api(
    embedded_registry: EmbeddedRegistry,
) -> None:
    store = MemoryStore()
    image = put_image(store, "install", "v1")
    signature = put_signature(store, "install", image)
    fill(embedded_registry, store)
    memory = Memory(lambda _path, _tag: False)
    broken = Fault(Answer(500), "GET", "/referrers/", times=None)
    embedded_registry.faults.add(broken)
    with client_of(embedded_registry) as client:
        source = RegistrySource(client, below("root"))
        first = walk(source, ["install"], memory=memory).complete()
        assert [str(one.item) for one in first.failures] == [f"manifest install@{image}"]
        embedded_registry.faults.clear()
        second = walk(source, ["install"], memory=memory).complete()
    assert second.failures == ()
    assert set(second.held.repository("install").manifests) == {image, signature}


def test_each_question_is_told_of_as_progress(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    heard: list[Event] = []
    with client_of(embedded_registry) as client:
        source = RegistrySource(client, below("root"))
        paths = STORE.inventory().repositories
        walk(source, paths, blobs=True, run=Run(on_event=heard.append))
    phases = [one for one in heard if isinstance(one, PhaseStarted)]
    assert [one.name.removeprefix("looking at the registry's ") for one in phases] == [
        *("tags", "tagged images", "referrers", "images", "referrers", "blobs")
    ]
    assert sum(one.total or 0 for one in phases) == sum(
        isinstance(one, PhaseAdvanced) for one in heard
    )


def test_it_can_be_stopped(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    stop = Cancellation()
    stop.cancel()
    with client_of(embedded_registry) as client, pytest.raises(CancelledError):
        walk(RegistrySource(client, below("root")), ["install"], run=Run(cancellation=stop))


def test_equal_registries_give_equal_inventories(embedded_registry: EmbeddedRegistry) -> None:
    fill(embedded_registry)
    assert look(embedded_registry).held.digest() == STORE.inventory().digest()


def test_a_list_that_lags_behind_hides_no_tag_that_is_known(
    embedded_registry: EmbeddedRegistry,
) -> None:
    fill(embedded_registry)
    lagging = Answer(200, {"Content-Type": "application/json"}, b'{"name": "x", "tags": []}')
    embedded_registry.faults.add(Fault(lagging, "GET", "modules/console/tags/", times=None))
    known = STORE.inventory()
    assert "modules/console" not in look(embedded_registry).held.repositories
    assert look(embedded_registry, known=known).held == known
    gone = next(iter(known.repository("modules/console").tags))
    deleted = Fault(Answer(404), None, f"console/manifests/{gone}", times=None)
    embedded_registry.faults.add(deleted)
    tags = look(embedded_registry, known=known).held.repository("modules/console").tags
    assert set(tags) == set(known.repository("modules/console").tags) - {gone}


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("mirror.registry.client._MOST_TAGS", "has more than 3 tags in all repositories"),
        ("mirror.sync.walk._MOST_REFERENCES", "has more than 3 images and layers of images"),
    ],
)
def test_a_walk_ends_where_a_registry_has_more_than_any(
    embedded_registry: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch, limit: str, told: str
) -> None:
    fill(embedded_registry)
    monkeypatch.setattr(limit, 3)
    with pytest.raises(RegistryError, match=told):
        stroll(embedded_registry)
