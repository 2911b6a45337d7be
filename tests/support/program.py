"""`mirror` as people run it: a process of its own, or its command line inside this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from mirror.cli import main

PROGRAM = (sys.executable, "-m", "mirror")
ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Finished:
    """A run that is over: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """What it printed with `--json`."""
        return json.loads(self.stdout)

    @property
    def text(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr

    def succeeded(self) -> Finished:
        """This run, if it ended with 0."""
        assert self.code == 0, self
        return self

    def failed(self, code: int, *words: str) -> Finished:
        """This run, if it ended with `code` and its error message has all `words`."""
        assert self.code == code, self
        missing = [word for word in words if word not in self.stderr]
        assert not missing, (missing, self.stderr)
        assert "Traceback" not in self.text, self.text
        return self


def run_mirror(
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    before: tuple[str | Path, ...] = (),
) -> Finished:
    """Run it as a process and wait for its end. `before` is a command line to put in front."""
    done = subprocess.run(
        [*map(str, before), *PROGRAM, *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=ROOT,
        env=environment(env),
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What it finds in its environment: nothing of the developer's own settings."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("D8_")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **(extra or {})}


def call_mirror(
    *args: str | Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> Finished:
    """Run its command line inside this process, which is quicker and sees what tests patch."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.dict(os.environ, environment(env), clear=True),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        ):
            main([str(arg) for arg in args], prog_name="mirror")
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return Finished(code, out.getvalue(), err.getvalue())


class RunningMirror:
    """A process that is under way while the `with` block lasts, at most."""

    def __init__(
        self,
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        program: tuple[str, ...] = PROGRAM,
    ) -> None:
        self._argv = [*program, *map(str, args)]
        self._env = environment(env)

    def __enter__(self) -> RunningMirror:
        self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._env,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def output(self) -> Iterable[str]:
        """The lines of standard output, as they come."""
        assert self._process.stdout is not None
        return iter(self._process.stdout.readline, "")

    @property
    def running(self) -> bool:
        """Whether it is not over."""
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; the process must be running all the while."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not condition():
            assert self._process.poll() is None, f"over already: {self._process.communicate()}"
            assert time.monotonic() < deadline, "that never happened"
            time.sleep(0.005)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals) -> Finished:
        """Send it a signal and wait for its end; a death by signal has the signal's negative."""
        self.send(number)
        return self.finished()

    def finished(self) -> Finished:
        """Wait for its end."""
        out, err = self._process.communicate(timeout=_TIMEOUT_S)
        return Finished(self._process.returncode, out, err)
