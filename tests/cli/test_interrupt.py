"""Ctrl-C at the moments when Python itself is not prepared for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click

from mirror.commands.process import Group
from tests.support.program import ROOT


@click.group(cls=Group)
def program() -> None:
    """A program for this test."""


@program.command()
@click.option("--json", "as_json", is_flag=True)
def unlucky(as_json: bool) -> None:
    """As a condition variable does whose lock the signal found released."""
    del as_json
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    finally:
        raise RuntimeError("release unlocked lock")


@program.command()
def broken() -> None:
    """A bug of ours."""
    raise RuntimeError("a bug")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which an interruption ends."""
    return subprocess.run(
        [sys.executable, "-m", "tests.cli.test_interrupt", *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def test_what_a_lock_says_to_an_interruption_is_told_as_the_interruption() -> None:
    ended = run("unlucky", "--json")
    assert ended.returncode == 130
    assert ended.stderr == "error: interrupted; run the same command again\n"
    assert '"type": "Interrupted"' in ended.stdout


def test_a_bug_is_no_interruption() -> None:
    ended = run("broken")
    assert ended.returncode == 1
    assert "RuntimeError: a bug" in ended.stderr


def test_ctrl_c_while_the_last_words_are_written_is_told_as_the_interruption() -> None:
    code = (
        "import sys; import mirror.__main__ as program; from mirror.commands import process\n"
        "def flush(): raise KeyboardInterrupt\n"
        "process.prepare = sys.exit; sys.stderr.flush = flush\n"
        "program.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ended.returncode == 130
    assert ended.stderr == "error: interrupted; run the same command again\n"


if __name__ == "__main__":
    program(prog_name="program")
