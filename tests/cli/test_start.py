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
        *("mirror.commands", "mirror.commands.errors", "mirror.commands.signals"),
    }


@pytest.mark.parametrize("command", ["pull", "push", "verify"])
def test_a_command_loads_no_server_and_no_renderer(command: str) -> None:
    names = imported(command, "--help")
    servers = {"uvicorn", "starlette", "httptools", "prometheus_client"}
    assert not libraries(names) & {*servers, "tomli_w"}
    ours = {name for name in names if name.startswith("mirror.")}
    assert not {name for name in ours if name.startswith(("mirror.serve", "mirror.watch"))}
    assert len(ours) <= 136
