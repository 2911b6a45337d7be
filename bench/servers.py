"""`docker-registry` as a child process, asked afterwards what it was asked and what that cost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_START_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Tls:
    """A certificate for this machine that signs itself, so that it is the authority as well."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make one in `folder` with `openssl`."""
        certificate, key = folder / "tls.crt", folder / "tls.key"
        words = (
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench"
        )
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
        return cls(certificate, key)


@dataclass(frozen=True)
class Load:
    """What a registry did so far: all of it since its start."""

    requests: int
    received: int
    """Bytes of bodies of requests."""
    sent: int
    """Bytes of bodies of answers."""
    processor_s: float

    def __sub__(self, before: Load) -> Load:
        return Load(
            self.requests - before.requests,
            self.received - before.received,
            self.sent - before.sent,
            self.processor_s - before.processor_s,
        )

    def __add__(self, other: Load) -> Load:
        return Load(
            self.requests + other.requests,
            self.received + other.received,
            self.sent + other.sent,
            self.processor_s + other.processor_s,
        )


NOTHING = Load(0, 0, 0, 0.0)


@contextlib.contextmanager
def serving(argv: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A program that serves a port of loopback, while the block lasts."""
    nothing = subprocess.DEVNULL
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    process = subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing, env=environment)
    try:
        until = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{argv[0]} does not start on port {port}")
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait()


class Registry:
    """A `docker-registry` on loopback that keeps its content in `folder`, while the block lasts.

    `slow` puts a line (`bench.line`) before it.
    """

    def __init__(self, folder: Path, tls: Tls | None = None, *, slow: bool = False) -> None:
        self.folder = folder
        self._own_port = free_port()
        self._port = free_port() if slow else self._own_port
        self.address = f"127.0.0.1:{self._port}"
        self._metrics = f"http://127.0.0.1:{(port := free_port())}/metrics"
        http: dict[str, object] = {
            "addr": f"127.0.0.1:{self._own_port}",
            "secret": "bench",
            "debug": {
                "addr": f"127.0.0.1:{port}",
                "prometheus": {"enabled": True, "path": "/metrics"},
            },
        }
        if tls:
            http["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
        storage = {"filesystem": {"rootdirectory": str(folder)}, "delete": {"enabled": True}}
        log = {"level": "error", "accesslog": {"disabled": True}}
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "config.yml"
        self._config.write_text(
            json.dumps({"version": 0.1, "log": log, "storage": storage, "http": http})
        )

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            program = ["docker-registry", "serve", str(self._config)]
            self._process = opened.enter_context(serving(program, self._own_port))
            if self._port != self._own_port:
                line = [sys.executable, "-m", "bench.line", str(self._port), str(self._own_port)]
                opened.enter_context(serving(line, self._port))
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._opened.close()

    def load(self) -> Load:
        """What it did since it started."""
        with urllib.request.urlopen(self._metrics) as answer:
            text = answer.read().decode()
        return Load(
            requests=_sum(text, "registry_http_requests_total"),
            received=_sum(text, "registry_http_request_size_bytes_sum"),
            sent=_sum(text, "registry_http_response_size_bytes_sum"),
            processor_s=processor_s(self._process.pid),
        )


def processor_s(pid: int) -> float:
    """The processor time that a running process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _sum(metrics: str, name: str) -> int:
    values = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    return round(sum(map(float, values)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
