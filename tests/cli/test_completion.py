"""What a shell offers for a line that is being typed, and how it learns to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from click.shell_completion import BashComplete

from mirror.cli import main
from tests.support.patience import ends_within
from tests.support.program import call_mirror


def offered(*words: str | Path) -> set[str]:
    """What a shell is told to offer for the last of these words, or its kind (`<file>`)."""
    line = {"COMP_WORDS": " ".join(map(str, ("mirror", *words))), "COMP_CWORD": str(len(words))}
    with mock.patch.dict(os.environ, line):
        told = BashComplete(main, {}, "mirror", "_MIRROR_COMPLETE").complete()
    kinds = [line.split(",", 1) for line in told.splitlines()]
    return {value if kind == "plain" else f"<{kind}>" for kind, value in kinds}


def test_commands_options_and_their_choices_are_offered() -> None:
    assert offered("pu") == {"pull", "push"}
    assert offered("mode", "re") == {"render", "resolve"}
    assert {"--progress", "--json", "--dry-run"} <= offered("push", "--")
    assert offered("verify", "--log-format", "") == {"text", "json"}


def test_release_channels_and_platforms_are_offered() -> None:
    assert offered("pull", "--deckhouse-tag", "ro") == {"rock-solid"}
    assert offered("pull", "--platform", "linux/a") == {"linux/amd64", "linux/arm64"}


def test_modules_and_packages_of_the_bundle_on_the_line_are_offered(
    bundle: Path, tmp_path: Path
) -> None:
    modules = {one.name.split("-", 1)[1].removesuffix(".tar") for one in bundle.glob("module-*")}
    assert modules
    assert offered("pull", bundle, "--include-module", "") == modules
    assert offered("pull", tmp_path / "new", "--base", bundle, "-e", "") == modules
    assert offered("pull", tmp_path / "new", "-i", "") == set()


def test_a_pipe_on_the_line_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ends_within(30.0):
        assert offered("pull", tmp_path / "pipe", "-i", "") == set()
        assert offered("pull", tmp_path, "--base", tmp_path / "pipe", "-e", "") == set()


@pytest.mark.parametrize(
    "line", [("push", ""), ("diff", ""), ("prune", "r", "--keep", ""), ("verify", "b")]
)
def test_where_a_bundle_may_stand_the_shell_offers_files(line: tuple[str, ...]) -> None:
    assert offered(*line) == {"<file>"}


def test_bash_completes_a_line_with_what_is_installed(tmp_path: Path) -> None:
    env = {"XDG_DATA_HOME": str(tmp_path)}
    told = call_mirror("completion", "bash", "--install", env=env).succeeded().stderr
    script = tmp_path / "bash-completion/completions/mirror"
    assert told.startswith(f"{script} is written; new shells have it")
    assert script.read_text() == call_mirror("completion", "bash").succeeded().stdout
    program = tmp_path / "mirror"
    program.write_text("#!/bin/sh\necho plain,answer of $COMP_WORDS\n")
    program.chmod(0o700)
    line = f". {script}; COMP_WORDS=(mirror pu); COMP_CWORD=1; _mirror_completion mirror; "
    shell = subprocess.run(
        ["bash", "--norc", "-c", line + 'echo "${COMPREPLY[@]}"; complete -p mirror'],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert shell.stdout.startswith("answer of mirror pu\ncomplete ")


@pytest.mark.parametrize(
    ("shell", "variable", "file"),
    [
        ("zsh", "XDG_DATA_HOME", "zsh/site-functions/_mirror"),
        ("fish", "XDG_CONFIG_HOME", "fish/completions/mirror.fish"),
    ],
)
def test_other_shells_find_their_script_where_they_look(
    tmp_path: Path, shell: str, variable: str, file: str
) -> None:
    env = {variable: str(tmp_path)}
    told = call_mirror("completion", shell, "--install", env=env).succeeded().stderr
    assert str(tmp_path / file) in told
    assert "_MIRROR_COMPLETE" in (tmp_path / file).read_text()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "fish").write_text("a file")
    call_mirror("completion", "fish", "--install", env={"XDG_CONFIG_HOME": str(tmp_path)}).failed(
        1, "mirror.fish cannot be written", "print the script without --install"
    )


def test_without_a_shell_the_three_are_named_on_one_line() -> None:
    call_mirror("completion").failed(2, "Name the shell: bash, zsh, fish.")
