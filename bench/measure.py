"""One command line, measured: seconds, processor, memory, bytes written."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.servers import Load

_BLOCK = 512


@dataclass(frozen=True)
class Sample:
    """What one run of a tool took."""

    seconds: float
    processor_s: float
    memory: int
    """Largest resident set of any of its processes, in bytes."""
    written: int
    """Bytes written to files."""
    requests: int = 0
    sent: int = 0
    """Bytes that registries got from it."""
    received: int = 0
    registry_s: float = 0.0
    """Processor time of all registries meanwhile."""

    def beside(self, load: Load) -> Sample:
        """The same, with what registries did meanwhile."""
        return replace(
            self,
            requests=load.requests,
            sent=load.received,
            received=load.sent,
            registry_s=load.processor_s,
        )

    def then(self, more: Sample) -> Sample:
        """Both, one after the other."""
        return replace(
            self,
            seconds=self.seconds + more.seconds,
            processor_s=self.processor_s + more.processor_s,
            memory=max(self.memory, more.memory),
            written=self.written + more.written,
        )

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def run(script: str, *, log: Path, environment: Mapping[str, str]) -> Sample:
    """Run a shell script to its end.

    Raises:
        RuntimeError: it failed; the message has the end of what it printed.
    """
    with log.open("wb") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            ["sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        end = log.read_bytes()[-2000:].decode(errors="replace")
        raise RuntimeError(f"exit code {process.returncode} of: {script[:500]}\n{end}")
    return Sample(
        seconds=seconds,
        processor_s=used.ru_utime + used.ru_stime,
        memory=used.ru_maxrss * 1024,
        written=used.ru_oublock * _BLOCK,
    )
