"""The Russian pages say what the English ones say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirror.errors import EXIT_CODES
from tests.docs import translations
from tests.docs.pages import blocks
from tests.support.program import ROOT


def test_no_translation_is_older_than_its_original() -> None:
    told = "bring these up to date, then: python -m tests.docs.translations PAGE..."
    assert translations.stale() == [], told


@pytest.mark.parametrize(
    ("original", "russian"), translations.RUSSIAN.items(), ids=lambda path: path.name
)
def test_a_translation_shows_the_same_commands(original: Path, russian: Path) -> None:
    english, translated = (
        [(one.kind, one.body) for one in blocks(path.read_text("utf-8"))]
        for path in (original, russian)
    )
    if original.name == "README.md":  # which goes on for programmers
        english = english[: len(translated)]
    assert translated == english, f"{russian.relative_to(ROOT)}: run python -m tests.docs.lab"


def test_the_glossary_has_messages_that_the_program_tells() -> None:
    told = (ROOT / "docs/errors.md").read_text("utf-8")
    glossary = (ROOT / "docs/ru/messages.md").read_text("utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", glossary, re.MULTILINE)
    assert len(messages) > 40
    assert [one for one in messages if any(part not in told for part in one.split(" … "))] == []
    codes = dict(re.findall(r"^\| (\d+) \| ([^|]+?) \|", glossary, re.MULTILINE))
    assert codes == {str(code): meaning for code, meaning in EXIT_CODES.items()}


def test_a_change_of_the_text_is_noticed_and_one_of_the_output_is_not() -> None:
    page = "Pull it:\n\n```console\n$ mirror pull x\n1 blob\n```\n"
    assert translations.digest(page) == translations.digest(page.replace("1 blob", "2 blobs"))
    assert translations.digest(page) != translations.digest(page.replace("Pull it", "Pull them"))
