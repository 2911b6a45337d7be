"""`docs/registries.md` says what the last run of all journeys found."""

from __future__ import annotations

from pathlib import Path

from tests.registries.table import BEGIN, END, PAGE, cells, table
from tests.support.registries import FRONTS, KINDS


def test_the_table_has_every_registry_of_today_and_every_journey_was_right() -> None:
    text = PAGE.read_text()
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()[3:]
    assert [line.split(" | ")[:2] for line in lines] == [
        [f"| {kind.name} {kind.version}", kind.how] for kind in KINDS
    ]
    for kind, line in zip(KINDS, lines, strict=True):
        for front, cell in zip(FRONTS, line.strip("| ").split(" | ")[2:], strict=True):
            impossible = front == "tokens" and kind.with_tokens is None
            assert cell == "–" if impossible else cell.startswith("0 of "), (kind.name, front)


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
    assert "| not run | 0 of 7 wrong | not run | not run |" in table(found)
