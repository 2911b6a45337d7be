"""The list of mutants speaks of lines that exist, and the tool tells who is noticed."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import run
from tests.mutants.mutant import ROOT, Mutant, mutants


@pytest.mark.parametrize("mutant", mutants(), ids=str)
def test_a_line_of_the_list_exists_and_its_mutant_is_a_program(mutant: Mutant) -> None:
    changed = mutant.applied((ROOT / mutant.file).read_text("utf-8"))
    ast.parse(changed)
    assert mutant.tests
    for test in mutant.tests:
        assert test == "-k" or not test.startswith("tests/") or (ROOT / test).exists(), test


def test_there_are_many_and_none_is_there_twice() -> None:
    assert len(mutants()) >= 60
    assert [one for one, count in Counter(map(str, mutants())).items() if count > 2] == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one line that matters and one that does not."""
    (tmp_path / "code.py").write_text("def f(n):\n    x = 1\n    return n + 1\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = soak\n")
    (tmp_path / "test_code.py").write_text("import code\ndef test(): assert code.f(1) == 2\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "word"), [("return n + 1", "killed"), ("x = 1", "survived")], ids=str
)
def test_who_is_noticed_is_killed_and_who_is_not_survives(
    project: Path, line: str, word: str
) -> None:
    before = (project / "code.py").read_text()
    mutant = Mutant("code.py", line, "return n" if "return" in line else "x = 2", ("test_code.py",))
    assert run(mutant, mutant.tests, project).word == word
    assert (project / "code.py").read_text() == before


def test_a_mutant_whose_tests_are_not_there_is_not_killed(project: Path) -> None:
    mutant = Mutant("code.py", "x = 1", "x = 2", ("test_other.py",))
    assert run(mutant, mutant.tests, project).word == "not run"


@pytest.mark.parametrize(
    ("line", "after", "why"),
    [("gone", "", "has 0 lines 'gone'"), ("a", "", "has 2 lines 'a'"), ("a", "def", "no line")],
)
def test_a_line_that_is_not_there_once_is_told(line: str, after: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Mutant("code.py", line, "b", ("t",), after).applied("a\n  a\n")
