"""Five hundred edges in a model: the clock is virtual, the decisions are the product's own."""

from __future__ import annotations

import random

import pytest

from bench.fleet import (
    CASES,
    DOCUMENT_BYTES_PER_IMAGE,
    GBIT,
    LOOK_REQUESTS,
    REQUESTS_PER_CARRY,
    REQUESTS_PER_IMAGE,
    Edge,
    Model,
    model,
    row,
    tiers,
)
from mirror.sync import MemoryStore
from mirror.sync.statement import MAX_STATEMENT_BYTES, Statement
from mirror.watch.settings import CheckLevel, Window
from tests.support.inventories import put_image
from tests.support.program import ROOT
from tests.support.replicas import replicas
from tests.watch.test_fleet import Edges

SIZE, HOUR_S, CANARIES, HEADS = 30e9, 3600.0, 2, 23


def watched(found: Model) -> list[str]:
    """What went wrong when an edge began: whom it should have waited for, by the whole truth."""
    problems: list[str] = []

    def begins(edge: Edge, now_s: float) -> None:
        for ring in found.fleet.before(edge.plan.ring):
            names = found.fleet.members_of(ring.name)
            missing = [name for name in names if not found.is_complete(found.edges[name])]
            if len(missing) > ring.may_lack:
                problems.append(f"{edge.name} began at {now_s} before {missing} of {ring.name}")
        window = edge.plan.window
        if window is not None and window.left_s(found.time_of_day()) is None:
            problems.append(f"{edge.name} began at {now_s} outside of {window}")

    found.on_begin = begins
    return problems


def check(found: Model, problems: list[str]) -> None:
    """All complete, in order, and each of them by every byte."""
    assert problems == []
    assert all(map(found.is_complete, found.edges.values()))
    assert sum(found.sent.values()) == pytest.approx(len(found.edges) * found.size)


def finished(found: Model, ring: str) -> tuple[float, float]:
    """When the first of a ring began and the last was done."""
    edges = [found.edges[name] for name in found.fleet.members_of(ring)]
    return min(one.begun_s or 0.0 for one in edges), max(one.done_s or 0.0 for one in edges)


def test_of_500_edges_the_hub_serves_the_first_rings_alone_and_answers_one_question_a_look() -> (
    None
):
    found = model(
        tiers(500, HEADS, canaries=CANARIES, after="1h"), size=SIZE, hub_line=GBIT, edge_line=GBIT
    )
    problems = watched(found)
    found.run(7 * 24 * HOUR_S)
    check(found, problems)
    assert found.sent["hub"] == pytest.approx((CANARIES + HEADS) * SIZE)
    most = max(sent for name, sent in found.sent.items() if name != "hub")
    assert most == pytest.approx(21 * SIZE), "500 - 25 edges share 23 heads"
    assert found.requests == LOOK_REQUESTS * found.looks + len(found.edges)
    assert finished(found, "heads")[0] >= finished(found, "canary")[1] + HOUR_S
    assert finished(found, "rest")[0] >= finished(found, "heads")[1] + HOUR_S
    # 2, then 23 copies over the hub's line; then each head feeds at most 21 over its own.
    lines_s = (CANARIES + HEADS + 21) * SIZE / GBIT
    assert lines_s + 2 * HOUR_S <= found.now_s <= lines_s + 2 * HOUR_S + 6 * found.interval_s


def test_faults_delay_a_fleet_and_let_nobody_claim_what_it_lacks() -> None:
    """The hub away for an hour, edges away for hours, a canary that loses what it had."""
    found = model(
        tiers(500, HEADS, canaries=CANARIES, after="1h"),
        size=SIZE,
        hub_line=GBIT,
        edge_line=GBIT,
        window=Window.parse("22:00-10:00"),
        upstream_wait_s=4 * HOUR_S,
        hub_away=(10.5 * HOUR_S, 11.5 * HOUR_S),
    )
    chance = random.Random(7)
    for edge in chance.sample(list(found.edges.values()), 60):
        begin_s = chance.uniform(0, 40) * HOUR_S
        edge.away = (begin_s, begin_s + chance.uniform(1, 8) * HOUR_S)
    found.edges["e0"].lost = (11 * HOUR_S, 12 * HOUR_S)
    problems = watched(found)
    found.run(14 * 24 * HOUR_S)
    check(found, problems)
    late = found.sent["hub"] / SIZE - CANARIES - HEADS
    assert late < 0.1 * len(found.edges), "only those whose upstream was away for long"


def test_a_canary_that_never_gets_there_stops_all_others() -> None:
    found = model(tiers(100, 10, canaries=CANARIES), size=SIZE, hub_line=GBIT, edge_line=GBIT)
    found.edges["e1"].away = (0.0, 1e9)
    found.run(12 * HOUR_S)
    assert [edge.name for edge in found.edges.values() if found.is_complete(edge)] == ["e0"]
    assert found.sent == {"hub": pytest.approx(SIZE)}
    fleet = found.fleet.model_copy(
        update={
            "rings": tuple(
                ring.model_copy(update={"may_lack": int(ring.name == "canary")})
                for ring in found.fleet.rings
            )
        }
    )
    tolerant = model(fleet, size=SIZE, hub_line=GBIT, edge_line=GBIT)
    tolerant.edges["e1"].away = (0.0, 1e9)
    tolerant.run(12 * HOUR_S)
    assert sum(map(tolerant.is_complete, tolerant.edges.values())) == 99


@pytest.mark.soak
def test_2000_edges_behind_45_heads() -> None:
    found = model(tiers(2000, 45, after="1h"), size=SIZE, hub_line=GBIT, edge_line=GBIT)
    problems = watched(found)
    found.run(14 * 24 * HOUR_S)
    check(found, problems)
    assert found.sent["hub"] == pytest.approx(47 * SIZE)


# -- the same with registries ----------------------------------------------------------------------


def images(count: int) -> MemoryStore:
    """That many of one layer each, with a tag."""
    store = MemoryStore()
    for number in range(count):
        put_image(store, "modules/m", f"v1.{number}.0", layers=(b"%d" % number,))
    return store


def test_the_slopes_of_the_arithmetic_are_what_a_sync_takes() -> None:
    asked, documents = [], []
    for count in (10, 20):
        with replicas(2) as made:
            made[0].fill(images(count), 1)
            edges = Edges(made)
            edges.join(0)
            assert edges.look(0).complete
            asked.append(len(made[0].registry.requests))
            documents.append(len(Statement(images(count).inventory(), 1, tool="x").to_json()))
    assert (asked[1] - asked[0]) / 10 == REQUESTS_PER_IMAGE
    assert asked[0] - 10 * REQUESTS_PER_IMAGE == REQUESTS_PER_CARRY
    assert (documents[1] - documents[0]) / 10 == pytest.approx(DOCUMENT_BYTES_PER_IMAGE, rel=0.05)


def test_the_page_about_scale_has_the_figures_of_the_model() -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    quick = [case for case in CASES if case.clusters == 1 or case.title.endswith("30 GB")]
    quick = [case for case in quick if case.clusters == 1 or (case.heads and case.edge_gbit == 1)]
    assert len(quick) == 5
    assert [row(case) for case in quick if f"{row(case)}\n" not in page] == []
    assert f"{DOCUMENT_BYTES_PER_IMAGE} bytes" in page
    most = MAX_STATEMENT_BYTES // DOCUMENT_BYTES_PER_IMAGE
    assert f"{MAX_STATEMENT_BYTES >> 20} MiB is refused" in page
    publication = (ROOT / "docs/publication.md").read_text("utf-8")
    assert f"layer has at most {MAX_STATEMENT_BYTES >> 20} MiB" in publication
    assert f"at most {most // 1000},000 images" in page


@pytest.mark.soak
def test_12_edges_in_two_tiers_take_each_byte_from_the_hub_twice() -> None:
    with replicas(13) as made:
        made[0].fill(images(20), 1)
        edges = Edges(made)
        for number in range(12):
            edges.join(number, upstreams=() if number < 2 else (number % 2,), upstream_wait_s=9e9)
        for number in reversed(range(12)):
            assert edges.look(number).complete == (number < 2)
        assert edges.hub.registry.requests.count("GET", "/blobs/sha") == 2 * (20 + 2)
        edges.clear()
        for _ in range(2):
            for number in range(12):
                assert edges.look(number, CheckLevel.STATEMENT).complete
        assert edges.hub.registry.requests.count("GET", "/blobs/") == 0
        assert [one.status for one in edges.hub.registry.requests] == [304] * 24
