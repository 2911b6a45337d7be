"""Few questions are enough to plan with, and miss nothing that a cut push left."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import MirrorError
from mirror.events import BlobDone, Event, serialised
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Cancellation, Run
from mirror.sync import Inventory, InventoryBuilder, MemoryStore, Plan, make_plan, transfer
from mirror.sync.observation import Depth, Item
from mirror.sync.observe import probe_candidates, probe_sample
from mirror.sync.tree import RegistryTarget
from mirror.testing import EmbeddedRegistry, Fault, Refuse
from tests.support.inventories import fake_blob, put_image, sample_store
from tests.support.places import below
from tests.support.real_registry import RealRegistry

STORE = sample_store()
WANTED = STORE.inventory()
ROOT = "dkp"


# -- which blobs are asked for ---------------------------------------------------------------------


def candidate(number: int) -> Item:
    return Item("a", fake_blob(number).digest, is_blob=True)


@given(st.integers(0, 400), st.integers(1, 64), st.data())
def test_a_push_that_was_cut_anywhere_is_noticed(
    count: int, jobs: int, data: st.DataObject
) -> None:
    order = [candidate(number) for number in range(count)]
    asked = probe_sample(order, jobs)
    assert len(asked) == len(set(asked)) <= 2 * jobs
    # Of those that had begun, all but at most `jobs` - 1 were finished when something was.
    begun = data.draw(st.integers(0, count))
    unfinished = data.draw(st.sets(st.integers(0, max(0, begun - 1)), max_size=jobs - 1))
    finished = {order[number] for number in range(begun) if number not in unfinished}
    if begun >= jobs:
        assert finished & set(asked)


def test_pushes_that_failed_at_the_large_blobs_are_noticed_too() -> None:
    order = [candidate(number) for number in range(1000)]
    asked = probe_sample(order, 8)
    assert asked[:8] == order[:8]
    assert len(asked) == 16
    spread = [order.index(one) for one in asked[8:]]
    assert max(b - a for a, b in zip([7, *spread], [*spread, 999], strict=True)) <= 124


def test_a_blob_is_looked_for_where_a_push_would_have_sent_it() -> None:
    builder = InventoryBuilder()
    for path, numbers in {"a": (1, 2), "b": (2, 3), "c": (3, 4)}.items():
        for number in numbers:
            builder.add_blob(path, fake_blob(number).digest, fake_blob(number).size)
    found = probe_candidates(builder.build(), {"b", "c"})
    # Largest first; number 2 went to `a`, which has tags and is asked for everything anyway.
    assert found == [
        Item("c", fake_blob(4).digest, is_blob=True),
        Item("b", fake_blob(3).digest, is_blob=True),
    ]


# -- at a registry ---------------------------------------------------------------------------------


def test_nothing_is_asked_twice_where_nothing_is(
    client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    target = RegistryTarget(client, below(ROOT), run=Run(jobs=2))
    assert target.held(WANTED, Depth.PROBE) == Inventory()
    requests = embedded_registry.requests
    assert requests.count("GET", "/tags/list") == len(WANTED.repositories)
    assert 0 < requests.count("HEAD", "/blobs/") <= 4
    assert requests.count("HEAD", "/manifests/") == 0
    assert {one.method for one in requests} == {"GET", "HEAD"}


def test_where_all_is_there_it_sees_all(client: RegistryClient) -> None:
    target = RegistryTarget(client, below(ROOT))
    transfer(make_plan(WANTED, Inventory()), STORE, target)
    assert target.held(WANTED, Depth.PROBE) == target.held(WANTED) == WANTED


@pytest.mark.parametrize("after", range(0, 60, 4))
def test_a_push_cut_at_any_request_is_planned_on_as_if_all_had_been_asked(
    after: int, client: RegistryClient, embedded_registry: EmbeddedRegistry
) -> None:
    target = RegistryTarget(client, below(ROOT), run=Run(jobs=2))
    fault = Fault(Refuse(), path="/v2/dkp", nth=after + 1, times=None)
    embedded_registry.faults.add(fault)
    with suppress(MirrorError):
        transfer(make_plan(WANTED, Inventory()), STORE, target, run=Run(jobs=2))
    embedded_registry.faults.clear()
    probed, held = target.held(WANTED, Depth.PROBE), target.held(WANTED)
    assert make_plan(WANTED, probed).size == make_plan(WANTED, held).size
    for path, content in probed.repositories.items():
        assert content.tags == held.repository(path).tags
        assert content.blobs.items() <= held.repository(path).blobs.items()
        assert content.manifests.items() <= held.repository(path).manifests.items()
    transfer(make_plan(WANTED, probed), STORE, target, run=Run(jobs=2))
    assert target.held(WANTED) == WANTED


def test_blobs_of_a_cut_push_that_distribution_does_not_tell_of_are_found(
    real_registry: RealRegistry,
) -> None:
    """It knows no repository without a tag when it is asked for the tags."""
    store = MemoryStore()
    for number in range(16):
        put_image(store, f"image-{number}", "v1", layers=(b"shared", b"own %d" % number * 100))
    wanted = store.inventory()
    cancel = Cancellation()
    done: list[Digest] = []

    def stop(event: Event) -> None:
        if isinstance(event, BlobDone):
            done.append(event.digest)
            if len(done) == 12:
                cancel.cancel()

    options = ConnectionOptions(plain_http=True)
    with RegistryClient(real_registry.address, options=options) as client:
        target = RegistryTarget(client, below(ROOT), run=Run(jobs=4))
        with suppress(MirrorError):
            plan = make_plan(wanted, target.held(wanted, Depth.PROBE))
            transfer(plan, store, target, run=Run(4, serialised(stop), cancel))
        rest = make_plan(wanted, target.held(wanted, Depth.PROBE))
        sent = {step.digest for step in rest.blobs if step.mount_from is None}
        assert not sent & set(done)
        assert len(done) >= 12
        transfer(rest, store, target)
        assert make_plan(wanted, target.held(wanted, Depth.PROBE)) == Plan()
        assert target.held(wanted) == wanted
