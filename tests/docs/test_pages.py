"""Every command of the tutorial and the how-tos prints what the page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.lab import PAGES, reader
from tests.docs.pages import alike, blocks, shown
from tests.support.program import ROOT
from tests.support.tls import Authority

STALE = "its commands print something else now; run: python -m tests.docs.lab, and read the change"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_is_carried_out_as_it_stands(
    path: Path, tmp_path: Path, authority: Authority
) -> None:
    page = path.read_text("utf-8")
    with reader(page, tmp_path, authority) as somebody:
        printed = somebody.read(page)
    assert alike(printed) == alike(page), f"{path.relative_to(ROOT)}: {STALE}"


def test_the_commands_of_the_first_page_work_one_behind_the_other(
    tmp_path: Path, authority: Authority
) -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    console = (block.body for block in blocks(page) if block.kind == "console")
    lines = [line for body in console for line in body.splitlines() if line.startswith("mirror ")]
    assert len(lines) >= 12
    with reader(page, tmp_path, authority) as somebody:
        for line in lines:
            if "--base" in line:  # what is new
                somebody.read("<!-- lab: the vendor publishes a release -->")
            if "--from master-0:5001" in line:  # where a cluster's first push went
                somebody.run("mirror push /mnt/disk/bundle master-0:5001/system/deckhouse")
            if "--watch" not in line:  # it does not end, and has tests of its own
                somebody.run(line)


def test_a_command_that_fails_unannounced_is_named(tmp_path: Path, authority: Authority) -> None:
    page = "```console\n$ mirror verify nowhere\n```\n"
    with (
        reader(page, tmp_path, authority) as somebody,
        pytest.raises(AssertionError, match=r"\$ mirror verify nowhere\nexit code \d\nerror: "),
    ):
        somebody.read(page)


def test_a_block_is_commands_with_what_they_print() -> None:
    page = (
        "<!-- lab: it rains -->\n"
        "```console\n$ one \\\n    --more\nprinted\n$ two\n```\n"
        "<!-- not run: it takes a year -->\n```console\n$ three\n```\n"
    )
    event, first, second = blocks(page)
    assert (event.kind, event.body) == ("lab", "it rains")
    one, two = first.commands()
    assert (one.line, one.shown) == ("one --more", ("printed",))
    assert (two.line, two.shown) == ("two", ())
    assert second.not_run == "it takes a year"
    assert page[first.start :].startswith("$ one")


def test_a_page_may_leave_out_what_is_printed() -> None:
    printed = ["1", "2", "3", "4"]
    assert shown(printed, ()) == []
    assert shown(printed, ("x", "…")) == ["1", "…"]
    assert shown(printed, ("x", "…", "y")) == ["1", "…", "4"]
    assert shown(printed, ("x", "y")) == printed


def test_numbers_and_digests_may_differ_from_run_to_run() -> None:
    assert alike("12 blobs (1.5 KiB)   sha256:" + "a" * 64) == alike(
        "9 blobs (2 KiB) sha256:" + "b" * 64
    )
    assert alike("12 blobs") != alike("12 tags")
