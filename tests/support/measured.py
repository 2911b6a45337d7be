"""`mirror` in a process of its own that tells how much memory it had at most.

What the kernel tells a parent of its child (`ru_maxrss`) begins with what the parent had when it
forked, which for a test runner is a lot. So the process itself reads it at its end.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.support.program import ROOT, Finished, call_mirror, environment


def measured(
    *commands: Sequence[str | Path], timeout_s: float = 900.0
) -> tuple[list[Finished], int]:
    """Run command lines one after the other in one new process; what each printed, and the largest
    resident set of the process in bytes. Between two of them garbage is collected: people run each
    in a process of its own."""
    told = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.measured", told],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return [Finished(**run) for run in answer["runs"]], answer["peak"]


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


if __name__ == "__main__":
    ended = []
    for line in json.loads(sys.argv[1]):
        ended.append(asdict(call_mirror(*line)))
        gc.collect()
    sys.stdout.write(json.dumps({"runs": ended, "peak": peak()}))
