"""What a plan and the pull behind it cost: nothing is asked for twice, much at a time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from examples.release_tree import SMALL
from mirror.testing import Delay, Fault
from tests.selection.conftest import MakeOffer
from tests.support.depot import Offer, references
from tests.support.program import call_mirror


def repeated(source: Offer) -> list[tuple[str, str]]:
    """What was asked for more than once since the log was cleared."""
    asked = Counter(
        (request.path, request.query)
        for request in source.registry.requests
        if request.path != "/v2/"
    )
    return [one for one, times in asked.items() if times > 1]


def test_a_plan_asks_for_nothing_twice(offer: MakeOffer) -> None:
    source = offer(SMALL)
    source.registry.requests.clear()
    source.plan("--jobs", "16").succeeded()
    assert repeated(source) == []


def test_a_pull_fetches_nothing_again_that_the_plan_has_read(
    offer: MakeOffer, tmp_path: Path
) -> None:
    source = offer(SMALL)
    source.registry.requests.clear()
    folder = tmp_path / "bundle"
    call_mirror("pull", folder, "--source", source.root, "--insecure").succeeded()
    assert repeated(source) == []
    fetched = [
        request.path.rpartition("/")[2]
        for request in source.registry.requests.matching(path="/blobs/")
    ]
    # Each blob once, however many repositories hold it.
    assert len(fetched) == len(set(fetched))


def test_facts_are_asked_for_in_parallel(offer: MakeOffer) -> None:
    source = offer(SMALL)
    source.registry.faults.add(Fault(Delay(0.005), path="/v2/deckhouse", times=None))
    for jobs in (1, 6):
        source.registry.requests.clear()
        source.plan("--jobs", str(jobs)).succeeded()
        assert (source.registry.requests.peak > 1) == (jobs > 1)
        assert source.registry.requests.peak <= jobs


def test_signatures_are_looked_up_by_one_list_for_each_repository(offer: MakeOffer) -> None:
    source = offer(SMALL)
    source.registry.requests.clear()
    source.plan().succeeded()
    requests = source.registry.requests
    assert requests.count(path=r"\.(sig|att|sbom)\?", status=404) == 0
    assert requests.count(path="/manifests/", status=404) == 0
    lists = Counter(request.path for request in requests.matching(path="/tags/list"))
    assert set(lists.values()) == {1}


def test_whoever_wants_no_signatures_lists_no_repository_for_them(offer: MakeOffer) -> None:
    source = offer(SMALL)
    source.registry.requests.clear()
    source.plan("--no-signatures", "--skip-vex-images").succeeded()
    requests = source.registry.requests
    assert requests.count(path="/referrers/") == 0
    assert requests.count(path=f"/v2/{source.tree.root}/tags/list") == 0


def test_lists_that_come_in_pages_are_read_to_their_end(small: Offer, offer: MakeOffer) -> None:
    paged = offer(SMALL, page_limit=2).plan().succeeded()
    assert references(paged.document) == references(small.plan().succeeded().document)
