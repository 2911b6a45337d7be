"""The streams and limits that a caller gives: closed, full, short of letters, files or threads."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bundle.reader import read_inventory
from tests.support.forked import CLOSED, FULL, Forks
from tests.support.program import PROGRAM, ROOT, Finished, environment, run_mirror
from tests.support.release_source import Source

UNWRITTEN = "written to standard output: No space left on device; send it to another place"
HOLDS_NOTHING = "holds no bundle: it has no *.tar file"

FEW_LETTERS = [{"PYTHONIOENCODING": name} for name in ("ascii", "koi8-r", "cp1251")]
AS_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def mirror(_this_machine_only: None) -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def damaged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle with one flipped byte."""
    folder = tmp_path_factory.mktemp("damaged") / "bundle"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    archive = folder / "platform.tar"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    return folder


# -- closed and full streams -----------------------------------------------------------------------


@pytest.mark.parametrize("stderr", [CLOSED, FULL])
def test_an_error_that_standard_error_cannot_take_goes_to_standard_output(
    mirror: Forks, tmp_path: Path, stderr: str
) -> None:
    run = mirror.run("verify", tmp_path, streams={2: stderr})
    assert run == Finished(2, f"error: {tmp_path} {HOLDS_NOTHING}\n", "")
    run = mirror.run("verify", tmp_path, "--json", streams={2: stderr})
    assert run.document["error"]["exitCode"] == 2
    usage = mirror.run("verify", streams={2: stderr})
    assert usage.code == 2
    assert "Error: Missing argument 'BUNDLE_DIR'" in usage.stdout


@pytest.mark.parametrize("stderr", [CLOSED, FULL])
def test_work_goes_on_where_nobody_can_see_its_progress(
    mirror: Forks, source: Source, tmp_path: Path, stderr: str
) -> None:
    folder = tmp_path / "bundle"
    flags = ("--source", source.root, "--insecure")
    run = mirror.run("pull", folder, *flags, streams={2: stderr}).succeeded()
    assert run.stdout.startswith(f"Bundle {folder} is complete\n")
    mirror.run("verify", folder).succeeded()


def test_the_exit_code_says_how_the_work_ended_where_nobody_wants_its_result(
    mirror: Forks, bundle: Path, damaged: Path
) -> None:
    nothing = Finished(0, "", "")
    for streams in ({1: CLOSED, 2: CLOSED}, {0: CLOSED, 1: CLOSED, 2: CLOSED}):
        assert mirror.run("verify", bundle, streams=streams) == nothing
        assert mirror.run("verify", damaged, streams=streams).code == 4
        assert mirror.run("verify", damaged, "--json", streams=streams).code == 4
        assert mirror.run("--version", streams=streams) == nothing
    assert run_mirror("--help", before=("bash", "-c", '"$@" >&-', "bash")) == nothing


def test_a_result_that_cannot_be_written_is_told_and_fails(
    mirror: Forks, bundle: Path, damaged: Path
) -> None:
    full = {1: FULL}
    mirror.run("verify", bundle, streams=full).failed(1, UNWRITTEN)
    mirror.run("inspect", bundle, "--json", streams=full).failed(1, UNWRITTEN)
    mirror.run("--help", streams=full).failed(1, UNWRITTEN)
    mirror.run("--version", streams=full).failed(1, UNWRITTEN)
    mirror.run("verify", damaged, streams=full).failed(4, UNWRITTEN)
    mirror.run("verify", damaged.parent, "--json", streams=full).failed(2, HOLDS_NOTHING)
    assert mirror.run("verify", damaged, streams={1: FULL, 2: FULL}).code == 4


def test_whoever_reads_only_the_beginning_ends_nothing(damaged: Path) -> None:
    pipe = '"$@" | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}'
    run = run_mirror("verify", damaged, before=("bash", "-c", pipe, "bash"))
    assert run.failed(4).stdout == ""


def test_no_file_of_the_work_takes_the_place_of_a_closed_stream(
    mirror: Forks, bundle: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    streams = dict.fromkeys(range(3), CLOSED)
    mirror.run("inspect", bundle, "--html", page, streams=streams).succeeded()
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")


def test_a_password_from_a_closed_input_is_an_empty_one(mirror: Forks, bundle: Path) -> None:
    flags = ("-u", "somebody", "-p", "-", "--insecure")
    run = mirror.run("push", bundle, "127.0.0.1:9/x", *flags, streams={0: CLOSED})
    run.failed(2, "a password for somebody is missing")


# -- letters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [*FEW_LETTERS, AS_C], ids=lambda env: next(iter(env.values())))
def test_a_terminal_without_a_letter_gets_another_and_the_exit_code_stays(
    bundle: Path, damaged: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    other = json.loads(read_inventory(bundle).to_json())
    tags = other["repositories"]["release-channel"]["tags"]
    tags["alpha"] = tags["rock-solid"]
    (tmp_path / "other.json").write_text(json.dumps(other))
    shown = run_mirror("diff", bundle, tmp_path / "other.json", env=env).failed(3)
    assert "    ~ alpha  " in shown.stdout
    assert " -> sha256:" in shown.stdout
    found = run_mirror("verify", damaged, env=env)
    assert found.failed(4).stdout.startswith("The bundle is damaged or incomplete")


def test_json_is_json_in_every_encoding(tmp_path: Path) -> None:
    folder = tmp_path / "зеркало é 🦊"
    folder.mkdir()
    for env in FEW_LETTERS[:2]:
        quiet = ("bash", "-c", '"$@" 2>/dev/null', "bash")
        run = run_mirror("verify", folder, "--json", env=env, before=quiet)
        assert run.code == 2
        assert "зеркало é 🦊" in run.document["error"]["message"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("мой bundle", "мой bundle"),
        (os.fsdecode(b"raw \xff\x9b31m bytes"), r"raw \udcff\udc9b31m bytes"),
        ("new\nline \x1b[31m", r"new\nline \x1b[31m"),
    ],
)
def test_a_folder_may_have_any_name(
    mirror: Forks, source: Source, tmp_path: Path, name: str, shown: str
) -> None:
    folder = tmp_path / name
    flags = ("--source", source.root, "--insecure")
    run = mirror.run("pull", folder, *flags).succeeded()
    assert run.stdout.startswith(f"Bundle {tmp_path}/{shown} is complete\n")
    for command in ("verify", "inspect"):
        mirror.run(command, folder).succeeded()
    again = mirror.run("pull", folder, *flags, "--force", "--json").succeeded()
    assert again.document["bundle"] == str(folder)


# -- homes, masks and widths -----------------------------------------------------------------------

NO_HOMES = dict.fromkeys(
    ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "MIRROR_STATE_DIR")
)


@pytest.mark.parametrize("home", [None, "", "/nonexistent/home", "/proc/self", "/dev/null", "rel"])
def test_no_command_needs_a_home_that_can_be_written(
    mirror: Forks, source: Source, bundle: Path, home: str | None
) -> None:
    target = f"{source.address}/homes/{ascii(home)[1:-1].strip('/').lower() or 'empty'}"
    env = {**NO_HOMES, "HOME": home}
    mirror.run("push", bundle, target, "--insecure", env=env).succeeded()
    mirror.run("status", target, "--insecure", env=env).succeeded()
    assert not Path("rel").exists()


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_a_bundle_is_made_whatever_the_mask_of_modes(
    mirror: Forks, source: Source, tmp_path: Path, umask: int
) -> None:
    folder = tmp_path / "bundle"
    mirror.run("pull", folder, "--source", source.root, "--insecure", umask=umask).succeeded()
    mirror.run("verify", folder).succeeded()


@pytest.mark.parametrize("columns", [0, 1, 7])
def test_a_terminal_may_be_narrow(source: Source, tmp_path: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 1, columns, 0, 0))
    code = subprocess.run(
        [*PROGRAM, "pull", tmp_path / "bundle", "--source", source.root, "--insecure"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        cwd=ROOT,
        env=environment({"COLUMNS": str(columns)}),
    ).returncode
    os.close(theirs)
    os.close(ours)
    assert code == 0


# -- limits ----------------------------------------------------------------------------------------


def test_too_few_files_are_told_as_that(
    mirror: Forks, source: Source, bundle: Path, tmp_path: Path
) -> None:
    told = 0
    for files in (4, 5, 6, 8, 11, 16, 22):
        for command in (
            ("pull", tmp_path / "new", "--source", source.root, "--insecure", "--force"),
            ("verify", bundle),
            ("push", bundle, f"{source.address}/few/files-{files}", "--insecure"),
        ):
            run = mirror.run(*command, files=files)
            if run.code:
                run.failed(1, "ulimit -n")
                told += 1
    assert told > 3


def test_as_many_threads_as_there_may_be_do_the_work(
    mirror: Forks, source: Source, tmp_path: Path
) -> None:
    for threads in (0, 1, 2, 3, 5, 9):
        folder = tmp_path / f"bundle-{threads}"
        flags = ("--source", source.root, "--insecure", "--compress", ("none", "zstd")[threads % 2])
        mirror.run("pull", folder, *flags, threads=threads).succeeded()
        mirror.run("verify", folder, threads=threads).succeeded()
        target = f"{source.address}/threads/{threads}"
        mirror.run("push", folder, target, "--insecure", threads=threads).succeeded()


def test_too_little_memory_is_told_as_that(mirror: Forks, source: Source, tmp_path: Path) -> None:
    told = 0
    for megabytes in (1, 4, 16, 64):
        folder = tmp_path / "bundle"
        flags = ("--source", source.root, "--insecure", "--force")
        run = mirror.run("pull", folder, *flags, memory=megabytes << 20)
        if run.code:
            run.failed(1, "ulimit -v")
            told += 1
    assert told > 1
