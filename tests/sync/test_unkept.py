"""After a push the registry's word is checked: what it accepted is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.reader import BundleReader
from mirror.errors import IncompleteError
from mirror.layout import publication_stage, stands_alone
from mirror.oci import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.operations.push import push
from mirror.reports.bundles import push_summary
from mirror.sync import Inventory, observe
from mirror.sync.observe import Verification
from mirror.sync.plan import new_tags, tags_of
from mirror.sync.publication_state import read_state
from mirror.testing import Answer, Fault
from tests.support.bundles import pack_store
from tests.support.inventories import sample_store
from tests.support.replicas import Replica, replicas

OTHER = Digest.of(b"converted")


@pytest.fixture
def replica() -> Iterator[Replica]:
    """An empty registry."""
    with replicas(1) as (one,):
        yield one


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[BundleReader]:
    pack_store(sample_store(), tmp_path / "bundle")
    with BundleReader([tmp_path / "bundle"]) as reader:
        yield reader


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "_PAUSES_S", (0.0, 0.0))


def digest_of(tag: str) -> Digest:
    return sample_store().inventory().repository("modules/console").tags[tag]


def test_a_registry_that_swallows_blobs_gets_no_manifest_and_no_tag(
    replica: Replica, bundle: BundleReader
) -> None:
    replica.registry.faults.add(Fault(Answer(404), "HEAD", "/console/blobs", times=None))
    with pytest.raises(IncompleteError) as caught:
        push(bundle, replica.tree)
    text = str(caught.value)
    assert "things that it accepted are not there, and no tag was set" in text
    assert "a cache or a proxy in front that keeps uploads to itself" in text
    assert "repository modules/console: blob sha256:" in text
    assert replica.registry.requests.count("PUT", "/manifests/") == 0
    assert not any(one.tags for one in replica.held().repositories.values())


@pytest.mark.parametrize("repository", ["/console/", "/console/release/"])
def test_a_registry_that_swallows_manifests_gets_no_version_and_no_channel(
    repository: str, replica: Replica, bundle: BundleReader
) -> None:
    replica.registry.faults.add(Fault(Answer(404), "HEAD", f"{repository}manifests/", times=None))
    with pytest.raises(IncompleteError) as caught:
        push(bundle, replica.tree)
    text = str(caught.value)
    if repository == "/console/":  # images go by their new tags
        assert "tags that it accepted do not name what was put" in text
    else:
        assert "things that it accepted are not there, and no version or channel was set" in text
        assert "a cache or a proxy in front that keeps uploads to itself" in text
    assert f"repository modules{repository.rstrip('/')}" in text
    assert "manifest sha256:" in text
    replica.registry.faults.clear()
    there = tags_of(replica.held())
    assert not [one for path, tags in there.items() for one in tags if publication_stage(path, one)]
    assert read_state(replica.tree).tips == (None, None)


def converting(times: int | None = None) -> Fault:
    """The tag names something else than what was put."""
    told = {"docker-content-digest": str(OTHER), "content-type": OCI_MANIFEST}
    answer = Answer(200, told, b"{}")
    return Fault(answer, "HEAD", "/modules/console/manifests/v0.1.0", times=times)


def test_a_registry_that_converts_manifests_is_found_out_and_states_nothing(
    replica: Replica, bundle: BundleReader
) -> None:
    replica.registry.faults.add(converting())
    with pytest.raises(IncompleteError) as caught:
        push(bundle, replica.tree)
    text = str(caught.value)
    assert "1 tags that it accepted do not name what was put" in text
    assert f"tag v0.1.0: it names {OTHER} instead of {digest_of('v0.1.0')}" in text
    assert read_state(replica.tree).current is None
    replica.registry.faults.clear()
    assert push(bundle, replica.tree).published == read_state(replica.tree).current


def test_a_registry_that_is_late_is_asked_again(replica: Replica, bundle: BundleReader) -> None:
    replica.registry.faults.add(Fault(Answer(404), "HEAD", "/console/blobs/", times=2))
    replica.registry.faults.add(converting(times=1))
    push(bundle, replica.tree)
    assert replica.registry.faults.struck == 3


def test_who_wants_no_check_gets_none(replica: Replica, bundle: BundleReader) -> None:
    replica.registry.faults.add(Fault(Answer(404), "HEAD", "/console/(blobs|manifests)/"))
    report = push(bundle, replica.tree, verification=Verification.NONE)
    assert "accepted the whole bundle (--verify none: nothing was" in push_summary(report, 1)
    assert report.to_document()["verified"] == "none"


def test_the_whole_is_held_only_where_all_of_it_was_asked_for(
    replica: Replica, bundle: BundleReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_SAMPLE", 1)
    wanted = sample_store().inventory()
    lost = min(wanted.repository("modules/console/release").blobs)
    replica.registry.faults.add(Fault(Answer(404), "HEAD", f"/console/release/blobs/{lost}"))
    report = push(bundle, replica.tree)
    assert "has every tag of the bundle" in push_summary(report, 1)
    replica.registry.faults.add(
        Fault(Answer(404), "HEAD", f"/console/release/blobs/{lost}", times=None)
    )
    with pytest.raises(IncompleteError, match="1 things are missing after the push"):
        push(bundle, replica.tree, verification=Verification.ALL)
    replica.registry.faults.clear()
    report = push(bundle, replica.tree, verification=Verification.ALL)
    assert "holds the whole bundle" in push_summary(report, 1)
    assert report.to_document()["verified"] == "all"


def test_what_was_put_is_asked_for_once_and_what_was_there_is_not(bundle: BundleReader) -> None:
    heads = {}
    with replicas(2) as pair:
        for one, verification in zip(pair, (Verification.NONE, Verification.TAGS), strict=True):
            report = push(bundle, one.tree, verification=verification)
            heads[verification] = one.registry.requests.count("HEAD")
    blobs = sum(len(step.into) for step in report.plan.blobs)
    new = new_tags(report.plan, Inventory(), stands_alone)
    put = report.done.manifests - len(new) + report.done.tags + min(blobs, 64)
    assert heads[Verification.TAGS] == heads[Verification.NONE] + put
