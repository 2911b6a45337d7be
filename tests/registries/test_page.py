"""`docs/registries.md` says what the last run of all journeys found."""

from __future__ import annotations

import re
from pathlib import Path

from tests.registries.table import BEGIN, END, LIMITS, PAGE, cells, table
from tests.support.registries import FRONTS, KINDS


def test_the_table_has_every_registry_of_today_and_every_journey_was_right() -> None:
    text = PAGE.read_text()
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()[3:]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {kind.name} {kind.version}", kind.how] for kind in KINDS
    ]
    for kind, line in zip(KINDS, lines, strict=True):
        for front, cell in zip((*FRONTS, *LIMITS), line.strip("| ").split(" | ")[2:], strict=True):
            impossible = front == "tokens" and kind.with_tokens is None
            right = (
                "–" if impossible else r"0 of \d+ wrong" if front in FRONTS else r"\d+ MiB whole"
            )
            assert re.fullmatch(right, cell), (kind.name, front, cell)


def test_every_quirk_names_a_test_that_there_is() -> None:
    rows = [line for line in PAGE.read_text().partition("## Quirks")[2].splitlines() if "|" in line]
    assert len(rows) > 30
    for row in rows[2:]:
        who, what, since, answer, tests = (cell.strip() for cell in row.strip("| ").split(" | "))
        assert all((who, what, since, answer)), row
        if tests == "–":
            continue
        text = ""
        for named in re.findall("`([^`]+)`", tests):
            if named.endswith(".py"):
                text = (PAGE.parents[1] / "tests" / named).read_text()
            elif "." not in named.replace("…", "") and " " not in named:
                assert re.search(rf"(def|class) {named.rstrip('…')}", text), named


def test_a_journey_of_which_one_test_failed_is_a_failed_one(tmp_path: Path) -> None:
    name = "tests.registries.test_journey"
    hashed = '<properties><property name="hashed" value="7"/></properties>'
    results = tmp_path / "results.xml"
    results.write_text(
        f'<testsuites><testcase classname="{name}" name="test_a[olareg bare]">{hashed}</testcase>'
        f'<testcase classname="{name}" name="test_b[olareg bare]"><failure/></testcase>'
        f'<testcase classname="{name}" name="test_a[embedded nginx]">{hashed}</testcase>'
        f'<testcase classname="{name}" name="test_b[embedded nginx]"/>'
        f'<testcase classname="tests.registries.test_page" name="test_c"/></testsuites>'
    )
    found = cells(results)
    assert found == {("olareg", "bare"): "failed", ("embedded", "nginx"): "0 of 7 wrong"}
    assert "| not run | 0 of 7 wrong | not run | not run | not run |" in table(found)
