"""What the program loads before it can answer: every import is a wait for whoever typed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.program import ROOT


def imported(*arguments: str) -> set[str]:
    """The modules, other than the standard library's, that `mirror ARGUMENTS` imports."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mirror", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    names = {
        line.rpartition("|")[2].strip()
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "mirror.cli" in names
    ours = {*sys.stdlib_module_names, "imported package", "sitecustomize"}  # the heading, and site
    return {name for name in names if name.split(".")[0] not in ours}


def libraries(names: set[str]) -> set[str]:
    """Other people's packages among these modules."""
    return {name.split(".")[0] for name in names if not name.startswith("_")} - {"mirror"}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_program_presents_itself_without_loading_any_command(option: str) -> None:
    names = imported(option)
    assert libraries(names) <= {"click"}
    ours = {name for name in names if name.split(".")[0] == "mirror"}
    assert ours == {
        *("mirror", "mirror.cli", "mirror.errors"),
        *("mirror.commands", "mirror.commands.process"),
        *("mirror.reports", "mirror.reports.messages"),
    }


@pytest.mark.parametrize("command", ["pull", "push", "verify", "sync", "status"])
def test_a_command_loads_what_its_usual_work_needs(command: str) -> None:
    names = imported(command, "--help")
    unusual = {
        *("uvicorn", "starlette", "httptools", "prometheus_client"),  # servers
        *("cryptography", "bcrypt", "oras", "requests"),  # signatures, credential helpers
        *("tomli_w", "tqdm"),  # nodes' files, bars on terminals
    }
    assert not libraries(names) & unusual
    ours = {name for name in names if name.startswith("mirror.")}
    rooms = {name.split(".")[1] for name in ours}
    assert not rooms & {"serve", "watch", "modes", "nodeconfig", "testing"}
    assert len(ours) <= 90


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["verify"], 2)])
def test_the_program_ends_at_once_without_freeing_what_it_held(
    arguments: list[str], code: int
) -> None:
    program = (
        "import atexit, sys; from mirror.__main__ import main; atexit.register(print, 'freed'); "
        f"sys.argv[1:] = {arguments}; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == code
    assert ("mirror " in result.stdout) == (code == 0)
    assert ("Missing argument" in result.stderr) == (code == 2)
    assert "freed" not in result.stdout


def test_the_memory_of_pieces_stays_with_a_command_and_does_not_come_anew_page_by_page() -> None:
    program = (
        "import resource; from mirror.commands.process import keep_memory; keep_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for turn in range(105):\n"
        "    if turn == 5: before = faults()\n"
        "    pieces = [bytes(1 << 20) for _ in range(4)]\n"
        "    del pieces\n"
        "print(faults() - before)"
    )
    faults = int(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT))
    assert faults < 4 << 8  # the pages of one turn, of a hundred
