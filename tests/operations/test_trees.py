from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mirror.operations.trees import walk_tree
from mirror.sync import MemoryStore
from mirror.testing import Answer, Fault
from tests.support.inventories import put_image, put_index
from tests.support.replicas import ROOT, Replica, replicas

UNUSUAL = "modules/console/extra/agent"
"""A repository that nobody finds who has no list of them."""


@pytest.fixture
def site() -> Iterator[Replica]:
    """A registry that states nothing, filled by another tool."""
    store = MemoryStore()
    child = put_image(store, "install", layers=(b"one of an index",))
    put_index(store, "install", "v1", children=[child])
    put_image(store, UNUSUAL, "v1", layers=(b"extra",))
    with replicas(1) as (made,):
        made.fill(store, generation=None)
        yield made


def test_a_walk_takes_one_request_per_tag_and_child_where_nothing_is_known(site: Replica) -> None:
    found = walk_tree(site.tree).complete()
    assert found.held == site.held()
    assert found.failures == ()
    assert site.registry.requests.count("GET", "/manifests/") == 3
    assert site.registry.requests.count("HEAD") == 0


def test_a_list_of_repositories_that_breaks_off_is_not_taken_for_the_whole(site: Replica) -> None:
    page = json.dumps({"repositories": [f"{ROOT}/{UNUSUAL}"]}).encode()
    link = {"Link": '</v2/_catalog?last=x>; rel="next"', "Content-Type": "application/json"}
    site.registry.faults.add(
        Fault(Answer(200, link, page), "GET", "/v2/_catalog.n=", times=None),
        Fault(Answer(400), "GET", "/v2/_catalog.last=", times=None),
    )
    found = walk_tree(site.tree).complete()
    assert list(found.held.repositories) == ["install"]
    assert [one.item for one in found.failures] == ["its list of repositories"]
