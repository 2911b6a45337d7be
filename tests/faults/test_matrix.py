"""A sample of the matrix, and what makes its verdicts worth something."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.testing import every_fault
from tests.faults.__main__ import MARKS, put, table
from tests.faults.matrix import Case, Matrix, Outcome, fits, spread
from tests.faults.scenes import SCENES, Scene, Stage, Workshop
from tests.faults.shares import Share, kind_of
from tests.faults.shelves import Embedded, WatchedStorage
from tests.support.tools import require_tool


@pytest.mark.parametrize(
    ("kind", "scenes", "step"),
    [("embedded", "", 1009), ("docker-registry", "push of the next release", 499)],
)
def test_commands_survive_a_sample_of_faults_or_fail_cleanly(
    kind: str, scenes: str, step: int
) -> None:
    if kind != "embedded":
        require_tool(kind)
    found = list(Share(kind, (scenes,), step=step).outcomes())
    assert [(str(one.case), one.code, one.wrong) for one in found if one.wrong] == []
    assert sum(one.struck for one in found) > 0.9 * len(found)
    assert len(found) >= 5


def test_commands_that_are_killed_are_completed_by_the_next_run() -> None:
    found = list(Share("embedded", ("",), kills=2).outcomes())
    assert [(str(one.case), one.wrong) for one in found if one.wrong] == []
    assert sum(one.struck for one in found) >= len(found) / 2, (
        "most were over before they were killed"
    )
    assert len(found) == 2 * len(SCENES)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    with ExitStack() as stack:
        return Workshop(kind_of("embedded", tmp_path, stack), tmp_path)


def test_every_fault_of_the_catalogue_strikes_some_command(workshop: Workshop) -> None:
    struck = {case.fault for case in Matrix(workshop).cases()}
    assert struck == set(every_fault())


def outcome_of(workshop: Workshop, scene: Scene, fault: str = "slow") -> Outcome:
    return Matrix(workshop, [scene]).run(Case(scene.name, fault, 1, "embedded"))


def test_a_command_that_does_nothing_and_says_that_it_succeeded_is_wrong(
    workshop: Workshop,
) -> None:
    (push,) = [scene for scene in SCENES if scene.name == "push"]
    did = 0

    def lie(stage: Stage) -> int:
        nonlocal did
        did += 1
        return push.work(stage) if did == 1 else 0  # it is measured once, truthfully

    outcome = outcome_of(workshop, Scene("push", ("empty",), lie))
    assert outcome.verdict == "wrong"
    assert "it states None" in outcome.wrong[0]


def test_a_command_that_breaks_down_is_wrong_and_its_traceback_is_told(workshop: Workshop) -> None:
    did = 0

    def break_down(stage: Stage) -> int:
        nonlocal did
        did += 1
        return len(stage.shelves) // (2 - did) - 1  # well when it is measured, then broken

    outcome = outcome_of(workshop, Scene("broken", ("both",), break_down))
    assert outcome.verdict == "wrong"
    assert "ZeroDivisionError" in outcome.wrong[0]
    assert "the next run ends with" not in outcome.wrong[0]


def test_a_tag_that_leads_to_nothing_for_a_moment_is_seen() -> None:
    storage = WatchedStorage()
    document = (
        b'{"schemaVersion":2,"config":{"mediaType":"a/b","size":1,"digest":"sha256:%b"},'
        b'"layers":[]}'
    )
    manifest = Manifest.parse(document % (b"a" * 64), OCI_MANIFEST)
    storage.put_manifest("a", manifest)
    assert storage.dangling == []
    storage.put_manifest("a", manifest, "v1")
    storage.delete_tag("a", "v1")
    assert storage.dangling == [f"a:v1 without blob {Digest('sha256', 'a' * 64)}"]


def test_states_are_copies(tmp_path: Path) -> None:
    kind = Embedded()
    with kind.open("empty") as shelf:
        kind.save("same", shelf)
    with kind.open("same") as shelf, kind.open("same") as other:
        assert shelf.server.port != other.server.port
        assert shelf.store is not other.store


def test_large_numbers_are_sampled_evenly_and_small_ones_taken_whole() -> None:
    assert spread(4, 5) == [1, 2, 3, 4]
    assert spread(9, 3) == [1, 5, 9]
    assert spread(0, 3) == []


def test_the_table_counts_by_registry_and_command() -> None:
    case = Case("push", "slow", 1, "embedded")
    found = [Outcome(case, code, True, 0.1) for code in (0, 5)]
    found.append(Outcome(case, 0, True, 0.1, wrong=["it says so, and it is not there"]))
    assert table(found).splitlines()[2:] == [
        "| embedded | push | 3 | 1 | 1 | 0 | 1 |",
        "| | all | 3 | 1 | 1 | 0 | 1 |",
    ]


def test_the_table_takes_the_place_of_the_former_one_in_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\n\nold\n\n{MARKS[1]}\nafter\n")
    put(page, "new")
    put(page, "newer")
    assert page.read_text() == f"before\n{MARKS[0]}\n\nnewer\n\n{MARKS[1]}\nafter\n"


@pytest.mark.parametrize(
    ("fault", "code", "fit"),
    [("403 once", 6, True), ("403 once", 5, False), ("reset", 4, False), ("portal", 2, False)],
)
def test_an_exit_code_tells_the_kind_of_the_fault(fault: str, code: int, fit: bool) -> None:
    assert fits(fault, code) is fit
