"""`mirror pull --with-tool`: the disk brings the program that reads it."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from mirror.oci import Digest
from tests.support.program import Finished, call_mirror
from tests.support.release_source import Source

PROGRAM = b"\x7fELF" + b"a program " * 1000


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "mirror-1.0.0-linux-x86_64"
    path.write_bytes(PROGRAM)
    return path


@pytest.fixture
def running(program: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one file that this process claims to run from."""
    monkeypatch.setitem(sys._xoptions, "mirror_executable", str(program))
    return program


def _pull(source: Source, folder: Path, *more: str | Path) -> Finished:
    return call_mirror("pull", folder, "--source", source.root, "--insecure", *more)


def test_the_running_program_goes_into_the_bundle_ready_to_be_run(
    source: Source, running: Path, tmp_path: Path
) -> None:
    text = _pull(source, tmp_path / "b", "--with-tool").succeeded().stdout
    tool = tmp_path / "b/mirror"
    assert tool.read_bytes() == PROGRAM
    assert stat.S_IMODE(tool.stat().st_mode) & 0o555 == 0o555
    assert "mirror" in text
    assert "the program itself" in text


def test_the_seal_names_it_and_any_change_of_it_is_found(
    source: Source, running: Path, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "b", "--with-tool").succeeded()
    sealed = json.loads((tmp_path / "b/inventory.json").read_text())
    assert sealed["files"]["mirror"] == {
        "digest": str(Digest.of(PROGRAM)),
        "size": len(PROGRAM),
    }
    call_mirror("verify", tmp_path / "b").succeeded()
    (tmp_path / "b/mirror").write_bytes(PROGRAM[:-1] + b"!")
    assert "mirror: " in call_mirror("verify", tmp_path / "b").failed(4).stdout
    (tmp_path / "b/mirror").unlink()
    assert "mirror: the file is missing" in call_mirror("verify", tmp_path / "b").failed(4).stdout


def test_another_file_may_be_named_as_for_another_processor(
    source: Source, running: Path, tmp_path: Path
) -> None:
    other = tmp_path / "mirror-aarch64"
    other.write_bytes(b"\x7fELF for another machine")
    _pull(source, tmp_path / "b", "--tool", other).succeeded()
    assert (tmp_path / "b/mirror").read_bytes() == other.read_bytes()


def test_a_settings_file_asks_for_it_and_a_flag_takes_that_back(
    source: Source, program: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "mirror.yaml"
    settings.write_text(f"tool: {program}\n")
    _pull(source, tmp_path / "with", "--config", settings).succeeded()
    assert (tmp_path / "with/mirror").exists()
    _pull(source, tmp_path / "without", "--config", settings, "--without-tool").succeeded()
    assert not (tmp_path / "without/mirror").exists()


def test_without_one_file_to_take_the_pull_says_how_to_get_one(
    source: Source, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "b", "--with-tool").failed(
        2, "this mirror was installed", "name it: --tool FILE"
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n"])
def test_what_is_no_program_is_refused_before_anything_is_fetched(
    source: Source, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "script").write_bytes(content)
    _pull(source, tmp_path / "b", "--tool", tmp_path / "script").failed(
        2, f"{tmp_path}/script is not a program for Linux", "./run build"
    )
    _pull(source, tmp_path / "b", "--tool", tmp_path / "none").failed(1, "none", "No such file")


def test_the_same_bundle_without_it_is_another_and_force_takes_it_away(
    source: Source, running: Path, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "b", "--with-tool").succeeded()
    assert "holds this bundle already" in _pull(source, tmp_path / "b", "--with-tool").stderr
    _pull(source, tmp_path / "b").failed(2, "is not empty")
    _pull(source, tmp_path / "b", "--force", "--yes").succeeded()
    assert not (tmp_path / "b/mirror").exists()
    call_mirror("verify", tmp_path / "b").succeeded()


def test_a_file_of_that_name_that_no_bundle_brought_stays(
    source: Source, running: Path, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "b").succeeded()
    (tmp_path / "b/mirror").write_bytes(b"put here by hand")
    _pull(source, tmp_path / "b", "--force", "--yes", "--no-installer").succeeded()
    refused = _pull(source, tmp_path / "b", "--force", "--yes", "--with-tool", "--no-installer")
    refused.failed(2, "has a file mirror that no bundle brought", "move it elsewhere")
    assert (tmp_path / "b/mirror").read_bytes() == b"put here by hand"


def test_a_pull_that_was_stopped_leaves_nothing_of_it_behind(
    source: Source, running: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    _pull(source, folder, "--with-tool").succeeded()
    (folder / "inventory.json").rename(folder / "inventory.json.partial")
    (folder / "mirror").rename(folder / "mirror.partial")
    _pull(source, folder, "--with-tool").succeeded()
    assert not list(folder.glob("*.partial"))
    call_mirror("verify", folder).succeeded()


def test_a_delta_and_what_is_merged_of_it_bring_it_too(
    source: Source, running: Path, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "base", "--no-packages").succeeded()
    _pull(source, tmp_path / "delta", "--base", tmp_path / "base", "--with-tool").succeeded()
    call_mirror("merge", tmp_path / "base", tmp_path / "delta", tmp_path / "all").succeeded()
    for name in ("delta", "all"):
        tool = tmp_path / name / "mirror"
        assert tool.read_bytes() == PROGRAM
        assert tool.stat().st_mode & stat.S_IXUSR
        call_mirror("verify", tmp_path / name).succeeded()


def test_a_push_takes_the_bundle_as_any_other(
    source: Source, running: Path, tmp_path: Path
) -> None:
    _pull(source, tmp_path / "b", "--with-tool").succeeded()
    target = f"{source.root.split('/')[0]}/with-tool"
    call_mirror("push", tmp_path / "b", target, "--insecure").succeeded()
    call_mirror("verify", tmp_path / "b", "--against", target, "--insecure").succeeded()
