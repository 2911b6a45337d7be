"""What this machine can do at best, and what the program costs before it does anything."""

from __future__ import annotations

import hashlib
import http.client
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from bench.inputs import MIB, ROOT, Shape, build
from bench.measure import run
from bench.peers import Job, Mirror
from bench.servers import Registry, processor_s

_MIRROR = [sys.executable, "-m", "mirror"]


def limits(folder: Path) -> dict[str, float | str]:
    """Rates in bytes, or requests, a second: the ceilings of every figure beside them."""
    block = os.urandom(MIB)
    cores = os.cpu_count() or 1
    return {
        "processor": f"{cores} × {_model()}",
        "sha256 of a core": _rate(lambda: _hash(block), 512 * MIB),
        "sha256 of all cores": _rate(lambda: _everywhere(lambda: _hash(block), cores), 512 * MIB)
        * cores,
        "loopback, one connection": _rate(lambda: _loopback(block), 1024 * MIB),
        "disk, with fsync": _rate(lambda: _disk(folder / "limit", block), 512 * MIB),
        "requests, one connection": _requests(folder / "limits", 1),
        "requests, 8 connections": _requests(folder / "limits", 8),
    }


def start_up(rounds: int, folder: Path) -> dict[str, float]:
    """Processor seconds (medians): of all of some commands, of others until their first request."""
    whole = {"python -c pass": [sys.executable, "-c", "pass"]}
    whole |= {f"mirror {option}": [*_MIRROR, option] for option in ("--version", "--help")}
    found = {name: median(_whole(argv) for _ in range(rounds)) for name, argv in whole.items()}
    bundle = _small_bundle(folder)
    for name, words in {
        "pull": ["pull", str(folder / "new"), "--insecure", "--source"],
        "push": ["push", str(bundle), "--insecure"],
        "verify --against": ["verify", str(bundle), "--insecure", "--against"],
        "status": ["status", "--insecure"],
        "sync": ["sync", "--insecure", "--to", "127.0.0.1:9/d", "--from"],
    }.items():
        found[f"mirror {name}, until its first request"] = median(
            _until_connected([*_MIRROR, *words]) for _ in range(rounds)
        )
    return found


def _small_bundle(folder: Path) -> Path:
    depot, bundle = build(Shape(1, 1, 1024), folder / "start-source"), folder / "start-bundle"
    with Registry(depot.folder) as source:
        job = Job(source.address, "", bundle, (ROOT,), (), tls=False)
        run(f"{Mirror().pull(job)} --force", log=folder / "log", environment={})
    return bundle


def _whole(argv: list[str]) -> float:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def _until_connected(argv: list[str]) -> float:
    """The processor time of a command when it connects to the registry that ends its line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}/deckhouse/ee"
        process = subprocess.Popen(
            [*argv, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            server.settimeout(60)
            server.accept()
            return processor_s(process.pid)
        finally:
            process.kill()
            process.wait()


def _rate(work: Callable[[], None], size: int) -> float:
    started = time.monotonic()
    work()
    return size / (time.monotonic() - started)


def _everywhere(work: Callable[[], None], cores: int) -> None:
    with ThreadPoolExecutor(cores) as pool:
        for done in [pool.submit(work) for _ in range(cores)]:
            done.result()


def _hash(block: bytes) -> None:
    summed = hashlib.sha256()
    for _ in range(512):
        summed.update(block)


def _loopback(block: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            with socket.create_connection(server.getsockname()) as sender:
                for _ in range(1024):
                    sender.sendall(block)

        sending = threading.Thread(target=send)
        sending.start()
        receiver, _ = server.accept()
        with receiver:
            buffer = bytearray(MIB)
            while receiver.recv_into(buffer):
                pass
        sending.join()


def _disk(path: Path, block: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for _ in range(512):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()


def _requests(folder: Path, connections: int) -> float:
    """HEADs a second that `docker-registry` answers to bare connections."""
    depot = build(Shape(1, 1, 1024), folder)
    repository, _, tag = depot.references[0].rpartition(":")
    with Registry(depot.folder) as registry:

        def ask() -> None:
            connection = http.client.HTTPConnection(registry.address)
            for _ in range(500):
                connection.request("HEAD", f"/v2/{repository}/manifests/{tag}")
                connection.getresponse().read()
            connection.close()

        return _rate(lambda: _everywhere(ask, connections), 500 * connections)


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
