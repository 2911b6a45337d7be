"""A push into several registries: where content comes from, and whose failure is whose."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import IncompleteError, UnreachableError
from mirror.events import Event, TransferStarted
from mirror.operations.push import push, push_to_all
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import MemoryStore, union
from mirror.sync.plan import CopyBlob, Plan
from mirror.sync.publication_state import read_state
from mirror.testing import Answer, Fault, Refuse
from tests.support.bundles import pack
from tests.support.inventories import put_image, sample_store
from tests.support.replicas import Replica, replicas


@pytest.fixture
def three() -> Iterator[list[Replica]]:
    """Two registries that hold an earlier release, and an empty one."""
    with replicas(3) as made:
        for one in made[:2]:
            one.fill(earlier())
        yield made


def earlier() -> MemoryStore:
    """A release of which the bundle has nothing."""
    store = MemoryStore()
    put_image(store, "install", "v0.9.0", layers=(b"an earlier layer", b"another one"))
    return store


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[BundleReader]:
    pack(sample_store(), sample_store().inventory(), tmp_path / "bundle")
    with BundleReader([tmp_path / "bundle"]) as reader:
        yield reader


def dies_when_content_moves(replica: Replica, events: list[Event]) -> Run:
    """A run in which `replica` answers nothing any more once the first transfer has begun."""
    lock = threading.Lock()

    def listener(event: Event) -> None:
        with lock:
            if isinstance(event, TransferStarted) and not any(
                isinstance(one, TransferStarted) for one in events
            ):
                replica.registry.faults.add(Fault(Refuse(), times=None))
            events.append(event)

    return Run(jobs=2, on_event=listener)


def test_a_member_that_dies_after_it_was_asked_takes_no_other_with_it(
    three: list[Replica], bundle: BundleReader
) -> None:
    """What the bundle lacks was to come from the first; the second has it too."""
    first, second, empty = three
    events: list[Event] = []
    report = push_to_all(
        bundle, [one.tree for one in three], quorum=2, run=dies_when_content_moves(first, events)
    )
    complete = {one.target: one.problem is None for one in report.members}
    assert complete == {first.name: False, second.name: True, empty.name: True}
    assert "install" in empty.held().repositories
    assert empty.held().repository("install").tags["v0.9.0"]
    assert read_state(empty.tree).newest == read_state(second.tree).newest


def test_a_member_that_cannot_be_filled_names_every_place_that_failed_it(
    three: list[Replica], bundle: BundleReader
) -> None:
    first, second, empty = three
    for one in (first, second):
        one.registry.faults.add(Fault(Answer(404), "GET", "/install/blobs/", times=None))
    with pytest.raises(IncompleteError) as caught:
        push_to_all(bundle, [one.tree for one in three], run=Run(jobs=2))
    ((name, problem),) = caught.value.failures
    assert name == empty.name
    text = str(problem)
    assert "or another registry to" in text
    assert f"{first.name}: " in text
    assert f"{second.name}: " in text


def test_a_registry_that_dies_in_mid_push_is_told_once_and_not_per_blob(
    three: list[Replica], tmp_path: Path
) -> None:
    *_, empty = three
    store = MemoryStore()
    for number in range(40):
        put_image(store, f"modules/m{number}", "v1", layers=(b"own %d" % number,))
    pack(store, store.inventory(), tmp_path / "large")
    with BundleReader([tmp_path / "large"]) as bundle, pytest.raises(IncompleteError) as caught:
        push(bundle, empty.tree, run=dies_when_content_moves(empty, []))
    lines = str(caught.value).splitlines()
    assert len(lines) <= 4, lines
    assert "blobs could not be brought" in lines[0]
    assert "more were not tried" in lines[0]
    assert sum("blob sha256:" in line for line in lines) == len(lines) - 1


def test_uploads_that_nobody_used_are_given_up_at_once_where_the_registry_died(
    three: list[Replica],
) -> None:
    """To cancel them is a courtesy: a dead registry is asked for it once, whatever their number."""
    _, _, replica = three
    target = replica.tree.target(Run(jobs=4))
    content = [put_image(MemoryStore(), f"modules/m{number}") for number in range(8)]
    plan = Plan(
        tuple(
            CopyBlob(digest, 10, (f"part{number}/x",), f"part{number}/x")
            for number, digest in enumerate(content)
        )
    )
    target.check_access(plan)
    replica.registry.requests.clear()
    replica.registry.faults.add(Fault(Refuse(), times=None))
    target.release()
    assert replica.registry.requests.count("DELETE") <= 2
    with pytest.raises(UnreachableError):
        replica.tree.client.ping()


def test_a_push_of_what_is_there_asks_once_for_each_tag(
    three: list[Replica], bundle: BundleReader
) -> None:
    """A registry took each manifest together with its blobs, so these need no question."""
    *_, replica = three
    push(bundle, replica.tree)
    log = replica.registry.requests
    log.clear()
    assert not push(bundle, replica.tree).plan
    inventory = bundle.inventory()
    contents = union([inventory, discovery_images(inventory).inventory()]).repositories.values()
    tags = sum(len(one.tags) for one in contents)
    untagged = sum(len(one.manifests.keys() - set(one.tags.values())) for one in contents)
    assert log.count("HEAD", "/blobs/") == 0
    assert log.count("HEAD") == tags + untagged + 3  # what `pending`, `latest` and `staged` name
    assert log.count("GET", "/tags/list") == len(contents)
    assert log.count() == log.count("HEAD") + log.count("GET")


def test_a_push_finds_a_lost_blob_of_a_manifest_that_is_there_if_it_is_asked_to(
    three: list[Replica], bundle: BundleReader
) -> None:
    *_, replica = three
    push(bundle, replica.tree)
    path, content = next(
        (path, one) for path, one in bundle.inventory().repositories.items() if one.blobs
    )
    lost = min(content.blobs)
    replica.tree.client.delete_blob(replica.tree.locate(path), lost)
    report = push(bundle, replica.tree, check_blobs=True)
    assert [step.digest for step in report.plan.blobs] == [lost]
    assert replica.tree.client.blob_size(replica.tree.locate(path), lost) == content.blobs[lost]
