"""The client on real registries: three replicas with TLS and logins, some in trouble."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from mirror.errors import RegistryNotFoundError
from mirror.events import EndpointDown, EndpointUp, Event
from mirror.modes import LOGICAL_BASE, LOGICAL_PATH, REGISTRY_PORT, Plane, RegistryUser
from mirror.modes.check import serving_masters
from mirror.modes.client import ModeClient, connect
from mirror.modes.endpoints import Endpoint, HealthMemory
from mirror.modes.settings import Account, RegistrySettings
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTarget, RegistryTree
from mirror.testing import TlsFiles
from tests.support.cluster_replicas import READER, at, certificate, hasty, sites
from tests.support.inventories import put_image
from tests.support.places import below
from tests.support.processes import free_loopback
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.tls import Authority, served_with

LOCAL = RegistrySettings.load({"mode": "Local"})
BIG = random.Random(7).randbytes(6 << 20)


@pytest.fixture
def store() -> MemoryStore:
    """What a complete replica holds: two images, one with a large layer."""
    made = MemoryStore()
    put_image(made, "install", "v1.70.0", layers=(BIG,))
    put_image(made, "", "v1.70.0", layers=(b"platform",))
    return made


class Replicas:
    """Replicas at addresses of their own; clients of all of them."""

    def __init__(self, folder: Path, authority: Authority, running: ExitStack) -> None:
        self._folder, self.authority, self._running = folder, authority, running
        self.events: list[Event] = []

    def start(self, *, host: str | None = None, port: int = REGISTRY_PORT) -> RealRegistry:
        host = host or free_loopback(port)
        registry = RealRegistry(
            self._folder / f"{host}-{port}",
            host=host,
            port=port,
            tls=certificate(self.authority, host),
            htpasswd=HTPASSWD,
        )
        return self._running.enter_context(registry)

    def fill(self, registry: RealRegistry, store: MemoryStore) -> None:
        options = ConnectionOptions(ca_file=self.authority.certificate)
        with RegistryClient(
            registry.address, options=options, credentials=Credentials(*ACCOUNT)
        ) as client:
            target = RegistryTarget(client, below(LOGICAL_PATH))
            wanted = store.inventory()
            transfer(make_plan(wanted, target.held(wanted)), store, target)

    def connect(self, *hosts: str, health: HealthMemory[Endpoint] | None = None) -> ModeClient:
        client = connect(
            LOCAL,
            access=sites(self.authority, hosts, READER),
            plane=Plane.API,
            options=hasty(attempts=2),
            health=health,
            on_event=self.events.append,
        )
        return self._running.enter_context(client)


@pytest.fixture
def replicas(tmp_path: Path, authority: Authority) -> Iterator[Replicas]:
    with ExitStack() as running:
        yield Replicas(tmp_path, authority, running)


def read_back(client: ModeClient, store: MemoryStore) -> None:
    """Fetch everything through `client`, as a sync or a pull does."""
    wanted = store.inventory()
    back = MemoryStore()
    source = RegistryTree(client, client.root).source()
    transfer(make_plan(wanted, back.held(wanted)), source, back)
    assert back.inventory() == wanted


def test_everything_is_read_past_a_dead_and_an_incomplete_replica(
    replicas: Replicas, store: MemoryStore
) -> None:
    dead, incomplete, whole = free_loopback(REGISTRY_PORT), replicas.start(), replicas.start()
    partial = MemoryStore()
    put_image(partial, "", "v1.70.0", layers=(b"platform",))
    replicas.fill(incomplete, partial)
    replicas.fill(whole, store)
    client = replicas.connect(dead, incomplete.host, whole.host)
    read_back(client, store)
    assert client.tags(f"{LOGICAL_BASE}/install") == ["v1.70.0"]
    assert client.exists(f"{LOGICAL_BASE}/install:v1.70.0")
    down = [event.host for event in replicas.events if isinstance(event, EndpointDown)]
    assert down.count(at(dead)) == 1
    assert incomplete.address not in down


def test_masters_that_serve_are_told_by_the_names_of_their_nodes(replicas: Replicas) -> None:
    dead, well, other = free_loopback(REGISTRY_PORT), replicas.start(), replicas.start()
    hosts = (dead, well.host, other.host)
    access = sites(replicas.authority, hosts, READER)
    named = replace(access, names={dead: "master-0", well.host: "master-1"})
    assert serving_masters(named) == {"master-1", other.host}
    stranger = {RegistryUser.RO: Account("ro", SecretStr("wrong"))}
    assert serving_masters(replace(named, accounts=stranger)) == set()
    assert serving_masters(replace(named, masters=())) == set()


def test_a_replica_that_dies_and_returns_costs_nobody_an_answer(
    replicas: Replicas, store: MemoryStore
) -> None:
    first, second = replicas.start(), replicas.start()
    for one in (first, second):
        replicas.fill(one, store)
    now = [0.0]
    health: HealthMemory[Endpoint] = HealthMemory(clock=lambda: now[0])
    client = replicas.connect(first.host, second.host, health=health)
    read_back(client, store)
    first.kill()
    read_back(client, store)
    first.start()
    now[0] += 3
    read_back(client, store)
    up = [event.host for event in replicas.events if isinstance(event, EndpointUp)]
    assert up == [first.address]


def test_many_threads_read_while_a_replica_dies(replicas: Replicas, store: MemoryStore) -> None:
    first, second = replicas.start(), replicas.start()
    for one in (first, second):
        replicas.fill(one, store)
    client = replicas.connect(first.host, second.host)
    digest = Digest.of(BIG)
    begun = threading.Barrier(5)

    def read(_: int) -> bool:
        chunks = client.blob("install", digest, size=len(BIG))
        got = bytearray(next(chunks))
        begun.wait(30)  # all have begun, and nobody is through
        for chunk in chunks:
            got += chunk
        return bytes(got) == BIG

    with ThreadPoolExecutor(4) as pool:
        readings = [pool.submit(read, number) for number in range(4)]
        begun.wait(30)
        first.kill()
        assert all(reading.result(60) for reading in readings)
    down = [event.host for event in replicas.events if isinstance(event, EndpointDown)]
    assert first.address in down


def test_a_blob_cut_on_the_wire_goes_on_at_another_replica(
    replicas: Replicas, store: MemoryStore
) -> None:
    """A proxy between cuts the first replica's connections after some bytes, below TLS."""
    host = free_loopback(REGISTRY_PORT)
    hidden, whole = replicas.start(host=host, port=5002), replicas.start()
    for one in (hidden, whole):
        replicas.fill(one, store)
    with CuttingProxy((host, REGISTRY_PORT), (host, 5002), after=2 << 20) as proxy:
        client = replicas.connect(host, whole.host)
        assert b"".join(client.blob("install", Digest.of(BIG), size=len(BIG))) == BIG
        assert proxy.cuts == 1


class CuttingProxy:
    """Passes connections on, and cuts each after `after` bytes of answers."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], *, after: int) -> None:
        self._target, self._after = target, after
        self.cuts = 0
        self._server = socket.create_server(listen)
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._open = True

    def __enter__(self) -> CuttingProxy:
        self._spawn(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        for one in (self._server, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _spawn(self, target: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            self._spawn(self._pass, near, far, None)
            self._spawn(self._pass, far, near, self._after)

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                if limit is not None and passed + len(data) > limit:
                    sink.sendall(data[: limit - passed])
                    self.cuts += 1
                    break
                passed += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def test_a_wrong_certificate_is_no_replica(
    replicas: Replicas, store: MemoryStore, tmp_path: Path
) -> None:
    """A replica that shows a stranger's certificate is passed over, and never hears the login."""
    stranger = Authority.create(tmp_path / "stranger", "stranger")
    host = free_loopback(REGISTRY_PORT)
    whole = replicas.start()
    replicas.fill(whole, store)
    with Eavesdropper(host, certificate(stranger, host)) as ear:
        client = replicas.connect(host, whole.host)
        assert client.exists("install:v1.70.0")
    assert ear.heard == b""
    down = [event for event in replicas.events if isinstance(event, EndpointDown)]
    assert any("is not trusted" in event.reason for event in down if event.host == at(host))


class Eavesdropper:
    """A TLS server that keeps what it is told."""

    def __init__(self, host: str, tls: TlsFiles) -> None:
        self._context = served_with(tls)
        self._server = socket.create_server((host, REGISTRY_PORT))
        self.heard = b""
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Eavesdropper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    def _listen(self) -> None:
        while True:
            try:
                raw, _ = self._server.accept()
            except OSError:
                return
            raw.settimeout(2)
            try:
                with self._context.wrap_socket(raw, server_side=True) as wrapped:
                    self.heard += wrapped.recv(65536)
            except OSError:
                raw.close()


def test_what_no_replica_has_is_absent(replicas: Replicas, store: MemoryStore) -> None:
    first, second = replicas.start(), replicas.start()
    replicas.fill(first, store)
    client = replicas.connect(first.host, second.host)
    assert client.resolve("install:v1.71.0") is None
    assert client.blob_size("install", Digest.of(b"other")) is None
    with pytest.raises(RegistryNotFoundError):
        client.tags("modules/unknown")
