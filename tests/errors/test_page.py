"""`docs/errors.md` says what the program says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import EXIT_CODES
from tests.errors.lab import Shared
from tests.errors.page import FAMILIES, PAGE, classes, entry, laboratory, page, provoke
from tests.errors.situation import SITUATIONS, Situation

STALE = "docs/errors.md is stale; run: python -m tests.errors.page > docs/errors.md"


@pytest.fixture(scope="module")
def shared(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with laboratory(tmp_path_factory.mktemp("laboratory")) as shared:
        yield shared


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.title)
def test_what_is_told_is_what_the_page_says(
    situation: Situation, shared: Shared, tmp_path: Path
) -> None:
    told = provoke(situation, shared, tmp_path)
    assert told.kind == situation.error.__name__
    assert told.code in EXIT_CODES
    section = PAGE.read_text().partition(f"\n## `{told.kind}`\n")[2].partition("\n## ")[0]
    assert entry(situation, told) in section, STALE


def test_the_page_has_no_situation_but_these() -> None:
    titles = [one.title for one in SITUATIONS]
    assert len(set(titles)) == len(titles)
    lines = PAGE.read_text().splitlines()
    assert sorted(line for line in lines if line.startswith("### ")) == sorted(
        f"### {title}" for title in titles
    ), STALE


def test_every_class_of_errors_has_a_situation_and_its_own_words_in_the_page() -> None:
    told = {one.error.__name__ for one in SITUATIONS}
    assert {one.__name__ for one in classes()} - FAMILIES == told
    empty = page({name: [] for name in told})
    parts = [part for part in empty.split("\n\n") if part.strip()]
    assert [part for part in parts if part not in PAGE.read_text()] == [], STALE
