from __future__ import annotations

import pytest

from mirror.events import Event, Warned
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync import Inventory, MemoryStore, PutTag, make_plan, transfer
from mirror.sync.publish import begin, read_standing
from mirror.sync.registry import RegistryTarget, below
from mirror.sync.statement import REPOSITORY, Statement
from mirror.sync.tag_removal import deletes_tags, remove_tags
from mirror.testing import Answer, EmbeddedRegistry, Fault, LoseAnswer
from tests.conftest import MakeRealRegistry
from tests.support.inventories import put_image
from tests.support.places import client_of

LOCATE = below("dkp/ee")


@pytest.mark.parametrize("delete", [True, False])
def test_a_registry_that_deletes_no_tags_is_found_out_and_left_as_it_was(
    make_real_registry: MakeRealRegistry, delete: bool
) -> None:
    registry = make_real_registry(delete=delete)
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(registry.address, options=options) as client:
        begin(client, LOCATE, Statement(Inventory(), 1).artifact())
        before = read_standing(client, LOCATE)
        assert not deletes_tags(client, LOCATE, "generation-1")
        assert read_standing(client, LOCATE) == before


def test_a_registry_that_deletes_tags_alone_is_known_by_a_trial_that_leaves_nothing(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry) as client:
        begin(client, LOCATE, Statement(Inventory(), 1).artifact())
        assert deletes_tags(client, LOCATE, "generation-1")
        assert client.tags(LOCATE(REPOSITORY)) == ["pending"]


def test_a_trial_whose_answer_was_lost_says_what_it_did_all_the_same(
    embedded_registry: EmbeddedRegistry,
) -> None:
    with client_of(embedded_registry, attempts=2) as client:
        begin(client, LOCATE, Statement(Inventory(), 1).artifact())
        embedded_registry.faults.add(Fault(LoseAnswer(), "DELETE", "/manifests/generation-1"))
        assert deletes_tags(client, LOCATE, "generation-1")


def test_a_registry_that_deletes_the_manifest_with_its_tag_is_found_out(
    embedded_registry: EmbeddedRegistry,
) -> None:
    """Its answers are those of one that has lost the manifest."""
    with client_of(embedded_registry) as client:
        begin(client, LOCATE, Statement(Inventory(), 1).artifact())
        embedded_registry.faults.add(Fault(Answer(404), "HEAD", "/manifests/sha256:", times=None))
        embedded_registry.faults.add(Fault(Answer(404), "GET", "/manifests/sha256:", times=None))
        assert not deletes_tags(client, LOCATE, "generation-1")


def test_what_leads_somewhere_goes_before_what_it_leads_to_and_failures_are_told(
    embedded_registry: EmbeddedRegistry,
) -> None:
    store = MemoryStore()
    digest = put_image(store, "release-channel", "v1.0.0", "stable", "kept")
    wanted, events = store.inventory(), list[Event]()
    with client_of(embedded_registry) as client:
        target = RegistryTarget(client, LOCATE)
        transfer(make_plan(wanted, Inventory()), store, target)
        tags = [PutTag("release-channel", tag, digest) for tag in ("v1.0.0", "stable", "gone")]
        embedded_registry.faults.add(Fault(Answer(400), "DELETE", "/manifests/v1.0.0"))
        embedded_registry.requests.clear()
        removed = remove_tags(
            target,
            tags,
            stage=lambda _, tag: 1 if tag == "stable" else 0,
            run=Run(on_event=events.append),
        )
        assert removed == (("release-channel", "gone"), ("release-channel", "stable"))
        assert sorted(client.tags("dkp/ee/release-channel")) == ["kept", "v1.0.0"]
        assert client.resolve("dkp/ee/release-channel", digest) is not None
    (warning,) = events
    assert isinstance(warning, Warned)
    assert "tag release-channel:v1.0.0 could not be removed" in warning.message
    deleted = [one.path for one in embedded_registry.requests if one.method == "DELETE"]
    assert deleted[0].endswith("/stable")
