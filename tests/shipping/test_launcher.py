"""The first program of the one file: it unpacks what is behind it once, and becomes that."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipping.executable import TRAILER_BYTES, build_launcher, join
from shipping.runtime import HERE, pack
from tests.support.program import Finished


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert HERE is not None
    return build_launcher(HERE, tmp_path_factory.mktemp("launcher") / "launcher", trimmed=False)


def _tree(folder: Path) -> Path:
    """A tree whose interpreter says how it was called."""
    python = folder / "bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    python.chmod(0o755)
    return folder


@pytest.fixture
def program(launcher: Path, tmp_path: Path) -> Path:
    join(launcher, _tree(tmp_path / "tree"), tmp_path / "mirror")
    return tmp_path / "mirror"


def _run(program: Path, *arguments: str, **env: str | Path) -> Finished:
    variables: Mapping[str, str] = {name: str(value) for name, value in env.items()}
    command = [str(program), *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    return Finished(done.returncode, done.stdout, done.stderr)


def test_the_interpreter_is_isolated_and_knows_the_file_it_came_from(
    program: Path, tmp_path: Path
) -> None:
    lines = _run(program, "push", "a b", "--help", HOME=tmp_path).succeeded().stdout.splitlines()
    tree = next((tmp_path / ".cache/mirror").glob("????????????????"))
    assert lines == [
        *(f"{tree}/bin/python3", "-I", "-X", f"mirror_executable={program}", "-m", "mirror"),
        *("push", "a b", "--help"),
    ]


def test_a_second_start_unpacks_nothing(program: Path, tmp_path: Path) -> None:
    _run(program, XDG_CACHE_HOME=tmp_path / "cache").succeeded()
    (python,) = tmp_path.glob("cache/mirror/*/bin/python3")
    python.write_text("#!/bin/sh\necho this one\n")
    assert _run(program, XDG_CACHE_HOME=tmp_path / "cache").stdout == "this one\n"


def test_many_first_starts_at_once_all_work_and_leave_one_tree(
    program: Path, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        for run in [pool.submit(_run, program, MIRROR_RUNTIME_DIR=tmp_path / "r") for _ in "1234"]:
            run.result().succeeded()
    assert len(list((tmp_path / "r").iterdir())) == 2  # the tree and the lock


def test_what_a_killed_start_left_is_replaced(program: Path, tmp_path: Path) -> None:
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").succeeded()
    (tree,) = (tmp_path / "r").glob("????????????????")
    tree.rename(tree.with_name(tree.name + ".partial"))
    (tree.with_name(tree.name + ".partial") / "bin/python3").write_text("half")
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").succeeded()
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [tree.name, "lock"]


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_flipped_bit_is_noticed_before_anything_runs(
    program: Path, tmp_path: Path, launcher: Path, place: str
) -> None:
    content = bytearray(program.read_bytes())
    begin, end = launcher.stat().st_size, len(content) - TRAILER_BYTES
    content[begin + 30 if place == "first" else end - 6] ^= 1  # behind gzip's header; its CRC
    program.write_bytes(content)
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").failed(
        1, "mirror cannot start", "the copy is damaged: copy the file again from its origin"
    )
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["lock"]


def test_a_file_that_was_cut_short_says_so(program: Path) -> None:
    program.write_bytes(program.read_bytes()[:-100])
    _run(program, HOME="/nowhere").failed(1, "ends early", "copy it again from its origin")


def test_without_anything_behind_it_runs_what_was_installed_beside_it(
    launcher: Path, tmp_path: Path
) -> None:
    _tree(tmp_path / "usr/lib/mirror")
    (tmp_path / "usr/bin").mkdir()
    installed = tmp_path / "usr/bin/mirror"
    installed.write_bytes(launcher.read_bytes())
    installed.chmod(0o755)
    lines = _run(installed, "status").succeeded().stdout.splitlines()
    assert lines == [f"{tmp_path}/usr/lib/mirror/bin/python3", "-I", "-m", "mirror", "status"]


@pytest.mark.parametrize("of_the_tree", [False, True])
def test_a_folder_that_others_may_write_is_not_trusted(
    program: Path, tmp_path: Path, *, of_the_tree: bool
) -> None:
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").succeeded()
    (tree,) = (tmp_path / "r").glob("????????????????")
    (tree if of_the_tree else tree.parent).chmod(0o777)
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").failed(
        1, "is open to others, who could change what runs", "MIRROR_RUNTIME_DIR=/a/folder"
    )


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(
    program: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "file/r").failed(
        1, f"{tmp_path}/file", "name a folder that is yours", "not mounted with noexec"
    )


def test_the_system_is_asked_for_the_authorities_that_it_trusts(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").succeeded()
    (python,) = tmp_path.glob("r/*/bin/python3")
    python.write_text('#!/bin/sh\nenv | grep "^SSL_CERT"\n')
    found = _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r").succeeded().stdout
    assert Path(found.strip().removeprefix("SSL_CERT_FILE=")).is_file()
    own = _run(program, MIRROR_RUNTIME_DIR=tmp_path / "r", SSL_CERT_DIR="/mine")
    assert own.stdout == "SSL_CERT_DIR=/mine\n"


def test_equal_trees_give_equal_files_whenever_they_were_made(tmp_path: Path) -> None:
    packed = []
    for name in "ab":
        tree = _tree(tmp_path / name)
        (tree / "empty").mkdir(mode=0o700 if name == "a" else 0o775)
        (tree / "text").write_text("text")
        (tree / "text").chmod(0o600 if name == "a" else 0o664)
        pack(tree, tmp_path / f"{name}.tar.gz")
        packed.append((tmp_path / f"{name}.tar.gz").read_bytes())
    assert packed[0] == packed[1]
