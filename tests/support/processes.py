"""Real servers as child processes on loopback."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.tools import require_tool

__all__ = ["ServerProcess", "free_port", "require_tool", "wait_for_port"]

_START_S = 20.0
_STOP_S = 5.0
_LOG_TAIL = 8_000
_FIRST_PORT, _LAST_PORT, _SHARES = 12_000, 32_000, 8


def _own_ports() -> Iterator[int]:
    """Ports for this process of the test run, again and again.

    They lie below those that the kernel hands out to sockets without a wish, and each process of
    a run has a share of its own: nobody takes one between its choice and its use.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
    size = (_LAST_PORT - _FIRST_PORT) // _SHARES
    share = range(_FIRST_PORT + process * size, _FIRST_PORT + (process + 1) * size)
    begin = random.randrange(size)  # other runs on this machine begin elsewhere
    return itertools.cycle([*share[begin:], *share[:begin]])


_ports = _own_ports()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses and that no other test is given."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the ports have no end")


def free_loopback(port: int) -> str:
    """An address of this machine alone on which nobody serves `port`: some 127.x.y.z."""
    while True:
        host = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return host


def wait_for_port(port: int, *, timeout_s: float = _START_S, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on `host`:`port` within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1.0):
            return True
        time.sleep(0.02)
    return False


class ServerProcess:
    """A program that serves on `host`:`port` while the `with` block lasts.

    What it prints goes to `log`, and to the report of a test that fails.
    """

    stopped_by: signal.Signals = signal.SIGTERM
    """What asks it to end."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        port: int,
        log: Path,
        host: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._argv = [str(part) for part in argv]
        self.host, self.port, self.log = host, port, log
        self._env, self._cwd = env, cwd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id; the process must run."""
        assert self._process is not None, "not running"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it accepts connections; the test fails if it does not."""
        assert self._process is None, "running already"
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if self._env is None else dict(self._env),
                cwd=self._cwd,
                start_new_session=True,  # Ctrl-C reaches pytest alone, which then stops us
            )
        deadline = time.monotonic() + _START_S
        while not wait_for_port(self.port, timeout_s=0.1, host=self.host):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                what = "ended" if ended else "does not answer"
                pytest.fail(f"{self._argv[0]} {what}; its log:\n{self.log_tail()}")

    def stop(self) -> None:
        """Ask it to end, and make it end after some seconds. Harmless if it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(self.stopped_by)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            _kill_all(process)

    def kill(self) -> None:
        """End it as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            _kill_all(process)

    def restart(self) -> None:
        """Stop it, if it runs, and start it again on the same port."""
        self.stop()
        self.start()

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()
        print(f"--- {self._argv[0]} on port {self.port} ---\n{self.log_tail()}")


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """With its own children, such as nginx's workers, which would keep the port."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session
    process.wait()
