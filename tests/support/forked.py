"""`mirror` in forks of a process that has loaded it: streams and limits of its own, in an instant.

`python -m tests.support.forked` is that process. It has one thread, so that a fork of it is sound.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

from mirror.__main__ import main
from tests.support.program import ROOT, Finished, environment

CLOSED, FULL = "closed", "/dev/full"


class Forks:
    """Runs of the program, one after the other, while the `with` block lasts."""

    def __enter__(self) -> Forks:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(
        self,
        *args: str | Path,
        streams: Mapping[int, str] | None = None,
        files: int | None = None,
        memory: int | None = None,
        threads: int | None = None,
        env: Mapping[str, str | None] | None = None,
        umask: int = 0o022,
    ) -> Finished:
        """Run it to its end.

        `streams` says where standard streams lead: `CLOSED` or a file; what is not said is
        returned. `files`, `memory` (bytes beyond the present) and `threads` (beside the main one)
        are limits. `env` changes the environment; None takes a variable out.
        """
        with tempfile.TemporaryDirectory() as folder:
            kept = {number: f"{folder}/{number}" for number in (1, 2)}
            case = {
                "args": [*map(str, args)],
                "streams": {"0": "/dev/null", **_texts(kept), **_texts(streams or {})},
                "limits": {"files": files, "memory": memory, "threads": threads},
                "env": dict(env or {}),
                "umask": umask,
            }
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(case) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            texts = [
                Path(path).read_bytes().decode() if Path(path).exists() else ""
                for path in kept.values()
            ]
            return Finished(code, *texts)


def _texts(streams: Mapping[int, str]) -> dict[str, str]:
    return {str(number): path for number, path in streams.items()}


def _serve() -> None:
    from mirror.cli import _COMMANDS
    from mirror.cli import main as command_line

    for name in _COMMANDS:
        assert command_line.commands[name]
    for request in sys.stdin:
        case = json.loads(request)
        child = os.fork()
        if child == 0:
            _carry_out(case)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _carry_out(case: Mapping[str, Any]) -> None:
    """Be the program; never returns."""
    code: Any = 1
    try:
        for name, value in case["env"].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        os.umask(case["umask"])
        for number, path in case["streams"].items():
            _lead(int(number), path)
        _limit(**case["limits"])
        sys.argv = ["mirror", *case["args"]]
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - shown as Python shows it
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _lead(number: int, path: str) -> None:
    """As a shell does before Python starts, and as Python then finds it."""
    name = ("stdin", "stdout", "stderr")[number]
    if path == CLOSED:
        os.close(number)
        setattr(sys, name, None)
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.dup2(file, number)
    os.close(file)


def _limit(files: int | None, memory: int | None, threads: int | None) -> None:
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if threads is not None:
        start = threading.Thread.start

        def limited(self: threading.Thread) -> None:
            if threading.active_count() > threads:
                raise RuntimeError("can't start new thread")
            start(self)

        mock.patch.object(threading.Thread, "start", limited).start()


if __name__ == "__main__":
    _serve()
