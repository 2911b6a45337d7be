"""The same journey through every registry that can be had, bare and behind what people have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.registries.journey import ROOT, Journey, travelled
from tests.support.registries import (
    CRANE,
    DOCKER_REGISTRY,
    EMBEDDED,
    FRONTS,
    KINDS,
    OLAREG,
    REDIRECTING,
    Kind,
)
from tests.support.tls import Authority
from tests.support.wire import joined

ALWAYS = {
    (CRANE, "bare"),
    (DOCKER_REGISTRY, "nginx"),
    (OLAREG, "certificate"),
    (EMBEDDED, "tokens"),
    (REDIRECTING, "bare"),
}
"""What the ordinary run of the tests travels; `./run registries` travels all."""
CELLS = [
    (kind, front) for kind in KINDS for front in FRONTS if front != "tokens" or kind.with_tokens
]
Cell = tuple[Kind, str]


def _parameter(cell: Cell) -> Any:
    kind, front = cell
    marks = () if cell in ALWAYS else (pytest.mark.soak,)
    return pytest.param(cell, id=f"{kind.name} {front}", marks=marks)


@pytest.fixture(scope="module", params=[_parameter(cell) for cell in CELLS])
def journey(
    request: pytest.FixtureRequest,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Journey]:
    kind, front = request.param
    with travelled(kind, front, tmp_path_factory.mktemp("journey"), authority) as journey:
        yield journey


def test_nothing_that_the_registries_served_was_wrong(
    journey: Journey, record_property: Callable[[str, object], None]
) -> None:
    assert journey.wrong == []
    assert all(walk.manifests > 20 and walk.blobs > 50 for walk in journey.walks.values())
    record_property("commands", journey.commands)
    record_property("hashed", journey.hashed)
    record_property("seconds", f"{journey.seconds:.1f}")


def test_blobs_come_from_where_the_registry_says(journey: Journey) -> None:
    """Every one of them from object storage, by a presigned address; else from the registry."""
    redirects = sum(walk.redirects for walk in journey.walks.values())
    blobs = sum(walk.blobs for walk in journey.walks.values())
    assert redirects == (blobs if journey.kind is REDIRECTING else 0)


def test_a_second_push_finds_everything_there(journey: Journey) -> None:
    first, again = (journey.runs[name].document["uploaded"] for name in ("push", "push again"))
    assert first["blobs"] > 50
    assert again == {"blobs": 0, "bytes": 0, "manifests": 0, "tags": 0}


def test_the_target_has_the_tags_of_the_release_and_no_others(journey: Journey) -> None:
    assert tags(journey, "push") == dict(journey.releases[0])


def test_the_next_release_leaves_the_versions_of_the_last(journey: Journey) -> None:
    first, second = journey.releases
    for path, found in tags(journey, "next push").items():
        assert found == {**first.get(path, {}), **second.get(path, {})}, path


def test_a_rollback_brings_every_tag_back(journey: Journey) -> None:
    done = journey.runs["rollback"].document
    assert done["turned"]
    found = tags(journey, "rollback")
    for path, wanted in journey.releases[0].items():
        assert found[path].items() >= wanted.items()


def test_replicas_are_equal_whichever_way_they_were_synced(journey: Journey) -> None:
    for name in ("sync", "sync back", "sync and prune"):
        [replica] = journey.runs[name].document["replicas"]
        assert replica["outcome"] == "synced", replica
        assert not replica["failures"]
    left = journey.runs["diff"].document
    assert left["equal"] is journey.kind.deletes_tags
    # A registry that cannot take a tag away keeps those of the release that was rolled back.
    assert {tag["b"] for tag in left["tags"]} <= {None}
    assert journey.runs["diff of the pruned"].document["equal"] is True
    assert tags(journey, "sync and prune") == tags(journey, "prune")


def test_a_prune_leaves_what_is_kept_and_nothing_else(journey: Journey) -> None:
    assert journey.runs["prune"].document["removed"]["tags"]
    assert tags(journey, "prune") == dict(journey.releases[1])


def tags(journey: Journey, step: str) -> dict[str, dict[str, str]]:
    """What a registry had after a step, of the repositories that its bundle has."""
    found = journey.walks[step].tags
    return {path: found[joined(ROOT, path)] for path in journey.releases[0]}
