"""A push into several registries: what becomes of one does not concern the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

import mirror.commands.access
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.sync.publication_state import read_statement, statement_digest
from mirror.testing import Answer, EmbeddedRegistry, Fault, Refuse
from tests.conftest import MakeEmbeddedRegistry, MakeRealRegistry
from tests.support.places import tree_of
from tests.support.program import Finished, call_mirror
from tests.support.real_registry import RealRegistry
from tests.support.releases import Release, snapshot
from tests.support.wire import Wire

ROOT = "dkp/ee"


@pytest.fixture
def embedded(make_embedded_registry: MakeEmbeddedRegistry) -> list[EmbeddedRegistry]:
    return [make_embedded_registry() for _ in range(3)]


def push(release: Release, addresses: list[str], *args: str | Path) -> Finished:
    first, *others = [f"{address}/{ROOT}" for address in addresses]
    replicas = [word for other in others for word in ("--replica", other)]
    return call_mirror("push", release.bundle, first, *replicas, "--insecure", *args)


def stated(address: str) -> Digest | None:
    options = ConnectionOptions(plain_http=True)
    with RegistryClient(address, options=options) as client:
        return statement_digest(tree_of(client, ROOT))


def tags(address: str) -> dict[str, dict[str, str]]:
    with httpx.Client(base_url=f"http://{address}") as http:
        return snapshot(Wire(http), ROOT)


@pytest.fixture
def real(make_real_registry: MakeRealRegistry) -> list[RealRegistry]:
    return [make_real_registry() for _ in range(3)]


def test_three_real_registries_state_the_same_and_hold_it(
    real: list[RealRegistry], releases: tuple[Release, ...]
) -> None:
    addresses = [registry.address for registry in real]
    document = push(releases[0], addresses, "--quorum", "2", "--json").succeeded().document
    assert (document["quorum"], document["complete"]) == (2, 3)
    assert [one["target"] for one in document["replicas"]] == [f"{one}/{ROOT}" for one in addresses]
    assert all(one["complete"] for one in document["replicas"])
    assert {str(stated(address)) for address in addresses} == {document["published"]["digest"]}
    for address in addresses:
        against = ("--against", f"{address}/{ROOT}", "--insecure", "--deep")
        call_mirror("verify", releases[0].bundle, *against).succeeded()
    again = push(releases[0], addresses, "--json").succeeded().document
    assert again["published"] == {**document["published"], "new": False}
    assert all(
        one["uploaded"] == {"bytes": 0, "manifests": 0, "tags": 0} for one in again["replicas"]
    )


def test_a_replica_that_missed_releases_gets_all_that_the_first_registry_states(
    real: list[RealRegistry], releases: tuple[Release, ...]
) -> None:
    """The bundle of the third release has nothing of the first: that comes from the registry."""
    first, second, _ = addresses = [registry.address for registry in real]
    push(releases[0], [first]).succeeded()
    push(releases[1], [first, second]).succeeded()
    push(releases[2], addresses).succeeded()
    assert tags(second) == tags(addresses[2]) == tags(first)
    assert "v1.69.1" in tags(addresses[2])["install"]


def test_a_quorum_goes_on_without_a_registry_that_is_dead_even_if_it_is_the_first(
    embedded: list[EmbeddedRegistry],
    releases: tuple[Release, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = RetryPolicy(2, 0.01, 0.01)
    monkeypatch.setattr(mirror.commands.access, "patience", lambda _asked: policy)
    first, second, third = addresses = [registry.address for registry in embedded]
    push(releases[0], [first, second]).succeeded()
    embedded[0].faults.add(Fault(Refuse(), times=None))
    run = push(releases[1], addresses, "--quorum", "2").succeeded()
    assert "2 of 3 registries hold the whole release (2 had to)" in run.stdout
    assert f"{first}/{ROOT}  FAILED: " in run.stdout
    assert f"warning: {first}/{ROOT} does not hold the release: " in run.stderr
    assert stated(second) == stated(third)
    assert tags(second) == tags(third)
    assert "v1.69.1" in tags(third)["install"]

    embedded[0].faults.clear()
    push(releases[1], addresses).succeeded()
    # It is behind, and does not make the others forget a generation.
    assert len({stated(address) for address in addresses}) == 1
    with RegistryClient(third, options=ConnectionOptions(plain_http=True)) as client:
        published = read_statement(tree_of(client, ROOT))
    assert published is not None
    assert published.statement.generation == 3


def test_a_replica_that_refuses_some_content_never_states_that_it_has_it(
    embedded: list[EmbeddedRegistry], releases: tuple[Release, ...]
) -> None:
    addresses = [registry.address for registry in embedded]
    embedded[1].faults.add(Fault(Answer(400), "PUT", "/manifests/v1.70.0", times=None))
    run = push(releases[0], addresses, "--json")
    run.failed(1, "2 of 3 registries hold the complete, checked inventory, and 3 must")
    assert [one["item"] for one in run.document["error"]["failures"]] == [f"{addresses[1]}/{ROOT}"]
    assert stated(addresses[0]) == stated(addresses[2]) is not None
    assert stated(addresses[1]) is None
    embedded[1].faults.clear()
    push(releases[0], addresses, "--quorum", "3").succeeded()
    assert stated(addresses[1]) == stated(addresses[0])


def test_content_that_is_lost_behind_a_finished_push_is_noticed(
    real: list[RealRegistry], releases: tuple[Release, ...]
) -> None:
    """A registry that takes everything and keeps nothing: the check after the push finds out."""
    addresses = [registry.address for registry in real]
    push(releases[0], addresses).succeeded()
    manifests = real[2].root / "docker/registry/v2/repositories" / ROOT / "install/_manifests"
    shutil.rmtree(manifests)
    document = push(releases[0], addresses, "--json").succeeded().document
    assert document["replicas"][2]["uploaded"]["manifests"] > 0
    assert tags(addresses[2]) == tags(addresses[0])


def test_what_was_asked_for_must_make_sense(
    embedded: list[EmbeddedRegistry], releases: tuple[Release, ...]
) -> None:
    first, second, _ = [registry.address for registry in embedded]
    push(releases[0], [first, second], "--quorum", "3").failed(
        2, "--quorum 3 cannot be reached with 2 registries"
    )
    push(releases[0], [first, first]).failed(2, "is named twice")
    assert stated(first) is None


def test_a_member_that_may_not_be_written_to_is_told_of_before_anything_is_sent_to_it(
    embedded: list[EmbeddedRegistry], releases: tuple[Release, ...]
) -> None:
    addresses = [registry.address for registry in embedded]
    embedded[1].faults.add(Fault(Answer(403), "POST", times=None))
    run = push(releases[0], addresses, "--quorum", "2", "--json").succeeded()
    told = {one["target"]: one for one in run.document["replicas"]}
    refused = told[f"{addresses[1]}/{ROOT}"]
    assert not refused["complete"]
    assert "may not be written to, so nothing was sent" in refused["problem"]
    assert embedded[1].requests.count("PUT") == embedded[1].requests.count("PATCH") == 0
    assert [one["complete"] for one in run.document["replicas"]] == [True, False, True]
