"""`mirror version`: what to put into a report of a fault."""

from __future__ import annotations

import platform
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mirror.commands.program import DISTRIBUTION
from tests.support.program import ROOT, call_mirror

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_it_names_the_release_the_formats_and_all_libraries() -> None:
    found = call_mirror("version", "--json").succeeded().document
    assert found["version"] == VERSION
    assert found["bundleFormats"] == [1, 2]
    assert found["python"] == platform.python_version()
    assert found["executable"] is None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"awscrt", "kubernetes"}  # which the tests have
    assert len(found["libraries"]) == len(project["dependencies"]) + len(extras)
    assert extras < found["libraries"].keys()
    assert found["libraries"]["httpx"] == metadata.version("httpx")


def test_it_says_the_same_to_people() -> None:
    lines = call_mirror("version").succeeded().stdout.splitlines()
    assert lines[:2] == [f"mirror {VERSION}", "bundles: format 1 and 2"]
    assert f"httpx {metadata.version('httpx')}" in lines
    assert call_mirror("--version").succeeded().stdout == f"mirror {VERSION}\n"


def test_it_names_the_one_file_that_it_runs_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys._xoptions, "mirror_executable", str(tmp_path / "mirror"))
    assert f"one file: {tmp_path}/mirror" in call_mirror("version").stdout.splitlines()


def test_the_package_has_one_version_and_a_name_of_its_own() -> None:
    assert metadata.version(DISTRIBUTION) == VERSION
    (command,) = metadata.entry_points(group="console_scripts", name="mirror")
    assert command.dist is not None
    assert command.dist.name == DISTRIBUTION
