"""`mirror` with a terminal before it, as a person has it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path

from tests.support.program import PROGRAM, ROOT, environment


def on_a_terminal(
    *args: str | Path,
    answer: str = "",
    env: Mapping[str, str] | None = None,
    columns: int = 100,
    results: bool = False,
) -> tuple[int, str, str]:
    """Run the program with a terminal for its standard error: (code, stdout, what it showed).

    With an `answer` the terminal is its standard input, too, and the first question gets it; with
    `results` it is standard output as well.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    try:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, args)],
            stdin=theirs if answer else subprocess.DEVNULL,
            stdout=theirs if results else subprocess.PIPE,
            stderr=theirs,
            cwd=ROOT,
            # Runners of tests set COLUMNS, which counts for more than the terminal's size.
            env=environment({"TERM": "xterm", "COLUMNS": "", **(env or {})}),
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            while piece := os.read(ours, 65536):
                shown += piece
                if answer and b"[y/N] " in shown:
                    os.write(ours, f"{answer}\n".encode())
                    answer = ""
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(ours)
    return process.returncode, (out or b"").decode(), shown.decode()
