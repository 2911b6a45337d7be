"""The life of an embedded registry, and what it needs of its machine."""

from __future__ import annotations

import hashlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from mirror.serve import MemoryStorage, ReadableStore, create_app, put_blob
from mirror.serve.server import KEEP_ALIVE_S
from mirror.testing import Delay, EmbeddedRegistry, Fault, TlsFiles
from tests.support.patience import wait_until, without_waiting
from tests.support.sample_images import LAYER, fill
from tests.support.tls import Authority

MIB = 1 << 20


def test_it_ends_at_once_though_clients_keep_their_connections() -> None:
    with httpx.Client() as client:
        with without_waiting(KEEP_ALIVE_S), EmbeddedRegistry(MemoryStorage()) as registry:
            client.get(f"{registry.url}/v2/")
        with pytest.raises(httpx.TransportError):
            client.get(f"{registry.url}/v2/")


def test_it_ends_soon_though_a_request_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as pool:
        with without_waiting(60), EmbeddedRegistry(MemoryStorage()) as registry:
            registry.faults.add(Fault(Delay(60)))
            stuck = pool.submit(httpx.get, f"{registry.url}/v2/", timeout=60)
            wait_until(lambda: registry.requests.peak)
        with pytest.raises(httpx.TransportError):
            stuck.result()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_no_thread_and_no_signal_handler_stays_behind() -> None:
    threads, handlers = threading.active_count(), signal.getsignal(signal.SIGTERM)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        httpx.get(f"{registry.url}/v2/a/b/tags/list")
        assert signal.getsignal(signal.SIGTERM) == handlers
    assert threading.active_count() == threads


def test_it_comes_back_on_its_port_with_its_content() -> None:
    registry = EmbeddedRegistry(MemoryStorage())
    fill(registry.storage)  # type: ignore[arg-type]  # a Store here
    addresses = []
    for _ in range(3):
        with registry:
            addresses.append(registry.address)
            assert httpx.get(f"{registry.url}/v2/a/b/manifests/v1").status_code == 200
            with pytest.raises(ValueError, match="running already"):
                registry.__enter__()
    assert len(set(addresses)) == 1


def test_a_port_in_use_is_an_error_of_the_system() -> None:
    with EmbeddedRegistry(MemoryStorage()) as first, pytest.raises(OSError, match="in use"):
        EmbeddedRegistry(MemoryStorage(), port=first.port).__enter__()


def test_a_bad_certificate_is_told_before_anything_starts(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    threads = threading.active_count()
    with pytest.raises(ssl.SSLError):
        EmbeddedRegistry(MemoryStorage(), tls=TlsFiles(bad, bad)).__enter__()
    assert threading.active_count() == threads


def test_it_speaks_tls_to_those_who_trust_it(authority: Authority) -> None:
    with EmbeddedRegistry(MemoryStorage(), tls=authority.issue()) as registry:
        trust = ssl.create_default_context(cafile=str(authority.certificate))
        digest = put_blob(registry.storage, "a/b", LAYER)  # type: ignore[arg-type]  # a Store here
        blob = f"{registry.url}/v2/a/b/blobs/{digest}"
        with httpx.Client(verify=trust) as client:
            assert client.get(blob).content == LAYER
        with (
            without_waiting(60),
            pytest.raises(httpx.ConnectError, match="certificate verify failed"),
        ):
            httpx.get(blob, timeout=60)


def test_it_serves_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with EmbeddedRegistry(MemoryStorage(), host="::1") as registry:
        assert registry.address == f"[::1]:{registry.port}"
        assert httpx.get(f"{registry.url}/v2/").status_code == 200


def test_a_store_that_can_only_be_read_is_served_read_only() -> None:
    class ReadOnly:
        """A store without its writing half."""

        def __init__(self, inner: ReadableStore) -> None:
            self.repositories, self.has_repository = inner.repositories, inner.has_repository
            self.tags, self.resolve, self.manifest = inner.tags, inner.resolve, inner.manifest
            self.blob_size, self.open_blob = inner.blob_size, inner.open_blob
            self.referrers = inner.referrers

    inner = MemoryStorage()
    fill(inner)
    with pytest.raises(ValueError, match="read_only=True"):
        create_app(ReadOnly(inner))
    with EmbeddedRegistry(ReadOnly(inner), read_only=True) as registry:
        assert httpx.get(f"{registry.url}/v2/a/b/manifests/v1").status_code == 200
        assert httpx.delete(f"{registry.url}/v2/a/b/manifests/v1").status_code == 405


def test_a_client_that_hangs_up_stops_the_reading_of_its_blob() -> None:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        digest = put_blob(registry.storage, "a/b", bytes(64 * MIB))  # type: ignore[arg-type]  # a Store here
        with httpx.stream("GET", f"{registry.url}/v2/a/b/blobs/{digest}") as answer:
            next(answer.iter_raw(1000))
        wait_until(lambda: len(registry.requests))
        assert registry.requests.sent() < 32 * MIB


def test_a_large_blob_passes_in_little_memory(tmp_path: Path) -> None:
    # In a process of its own, whose peak of memory nobody else has a part in.
    server = (
        "import sys, resource\n"
        "from mirror.serve import FolderStorage; from mirror.testing import EmbeddedRegistry\n"
        "with EmbeddedRegistry(FolderStorage(sys.argv[1])) as registry:\n"
        "    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print(registry.url, peak(), flush=True)\n"
        "    sys.stdin.readline()\n"
        "    print(peak(), flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", server, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    chunk, count = bytes(range(256)) * (MIB // 256), 64
    whole = hashlib.sha256()
    for _ in range(count):
        whole.update(chunk)

    def body() -> Iterator[bytes]:
        for _ in range(count):
            yield chunk

    with child.stdin, child.stdout:
        url, before = child.stdout.readline().decode().split()
        uploads = f"{url}/v2/a/b/blobs/uploads/?digest=sha256:{whole.hexdigest()}"
        assert httpx.post(uploads, content=body(), timeout=60).status_code == 201
        received = 0
        with httpx.stream("GET", f"{url}/v2/a/b/blobs/sha256:{whole.hexdigest()}") as answer:
            for piece in answer.iter_raw():
                received += len(piece)
        child.stdin.write(b"\n")
        child.stdin.flush()
        after = child.stdout.readline()
    assert child.wait(10) == 0
    assert received == count * MIB
    assert int(after) - int(before) < 24 * 1024  # KiB; the blob is 64 MiB
