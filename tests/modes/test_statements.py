"""Each sentence of the module's documentation, by the command that docs/modes.md names for it."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from mirror.modes import ModeKind, Verdict
from tests.modes.statements import FILES, GROUPS, PAGE, PRECONDITIONS, Statement, cells, made
from tests.support.program import call_mirror

EVERY = [one for rows in GROUPS.values() for one in rows]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page; what was rendered there stays, so that keys are made once."""
    return Path(shutil.copytree(FILES, tmp_path_factory.mktemp("lab") / "modes"))


@pytest.mark.parametrize("one", EVERY, ids=[one.says[:60] for one in EVERY])
def test_a_statement_is_shown_by_its_command(
    one: Statement, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab)
    command, _, path = one.command.partition(" && cat ")
    done = call_mirror(*command.split())
    assert done.code == one.code, done.stderr
    said = Path(path).read_text() if path else done.stdout + done.stderr
    assert one.shows in said
    assert not one.hides or one.hides not in said


def test_every_statement_is_implemented_where_the_page_says() -> None:
    for one in EVERY:
        assert importlib.import_module(f"mirror.{one.where}")


def test_every_file_of_the_page_is_used() -> None:
    commands = " ".join(one.command for one in EVERY)
    assert [path.name for path in FILES.iterdir() if path.name not in commands] == []


def test_the_page_has_the_tables_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == made(text), "run python -m tests.modes.statements"


def test_the_matrix_follows_from_what_modes_are() -> None:
    """Written down a second time, by what the documents say of each precondition."""
    for before in (None, *ModeKind):
        for after in ModeKind:
            found = dict(zip(PRECONDITIONS, cells(before, after), strict=True))
            if before is None and after.row.runs_replicas:
                assert found["bootstrapped"].startswith("no: Direct →")
                continue
            if before is not None and found["bootstrapped"] != "yes":
                verdict = before.row.switches[after]
                assert verdict not in (Verdict.SWITCH, Verdict.PARAMETERS)
                continue
            first = before in (ModeKind.LEGACY, ModeKind.UNMANAGED) and after.row.configurable
            assert found == {
                "bootstrapped": "yes" if before is not None else "",
                "containerd": "yes" if after.row.configurable else "",
                "own cluster": "yes" if after.row.configurable else "",
                "static": "yes" if after.row.runs_replicas else "",
                "no custom settings": "yes" if first else "",
                "masters ready": "yes" if first else "",
                "empty queue": "yes" if first else "",
                "images": "" if after.row.holds_own_images else "yes",
            }, (before, after)
