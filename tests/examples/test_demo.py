"""The demonstration, which `./run demo` begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest

from examples import demo
from mirror.oci.manifest import OCI_INDEX
from mirror.serve import MemoryStorage
from tests.support.program import ROOT, call_mirror
from tests.support.release_source import TINY


def test_ctrl_c_ends_the_demonstration_in_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(3)]
    assert said[1].startswith("A registry in the connected zone is filled"), "no colours in a pipe"
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "\ninterrupted; nothing but the folder .demo is left\n"


def test_it_tells_each_command_before_that_runs_and_rolls_back_where_it_says_that_one_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[str, str]] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        assert (command[:3], check) == ([sys.executable, "-m", "mirror"], False)
        told.append((" ".join(command[3:]), capsys.readouterr().out))
        return subprocess.CompletedProcess(command, call_mirror(*command[3:]).code)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(demo, "DEMO", TINY)
    later = {**TINY.channels, "alpha": "v1.71.0"}
    monkeypatch.setattr(
        demo, "LATER", replace(TINY, versions=(*TINY.versions, "v1.71.0"), channels=later)
    )
    demo.journey()
    for command, before in told:
        assert before.splitlines()[-1] == f"$ mirror {command}"
    rollback, sync = told[-2:]
    assert rollback[0].startswith("rollback ")
    assert "\nEach state can be gone back to in seconds" in rollback[1]
    assert sync[0].startswith("sync "), "the replica follows"
    assert "can be pulled from the replica" in capsys.readouterr().out


def test_it_is_never_silent_for_two_seconds_while_images_are_made_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = 0.0, [0.0]

    def tell(*_text: str, flush: bool) -> None:
        assert flush, "a pipe shows it at once"
        told.append(now)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(demo, "print", tell, raising=False)
    shelves = demo.Shelves(MemoryStorage())
    for _ in range(40):
        now += 0.3  # as long as the slowest image takes
        shelves.add_manifest("install", b'{"schemaVersion": 2, "manifests": []}', OCI_INDEX)
    gaps = [later - earlier for earlier, later in pairwise(told)]
    assert max(gaps) < 2


def test_it_is_never_silent_for_two_seconds_while_a_command_runs_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Over(threading.Event):
        """Over at the third look at it, to which it says how long one waits."""

        waits: ClassVar[list[float | None]] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout)
            return len(self.waits) == 3

    demo.tell_of_life(Over())
    assert Over.waits == [1.5] * 3
    assert capsys.readouterr().out == "  …\n" * 2

    told: list[str] = []

    def run(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        told.append(",".join(one.name for one in threading.enumerate()))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda shown=terminal: shown)
        demo.mirror("version")
    assert ["tell_of_life" in names for names in told] == [False, True], "bars are no lines"
