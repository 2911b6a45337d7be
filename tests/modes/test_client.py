"""One client reaches the registry correctly in every mode."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    InvalidReferenceError,
    MirrorError,
    RegistryNotFoundError,
    RouteError,
    UnreachableError,
)
from mirror.events import EndpointDown, EndpointUp, Event, Retrying, Warned
from mirror.modes import LOGICAL_BASE, LOGICAL_PATH, REGISTRY_PORT, SERVICE_NAME, Plane
from mirror.modes.client import ModeClient, connect
from mirror.modes.endpoints import Endpoint, HealthMemory
from mirror.modes.settings import RegistrySettings
from mirror.oci import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.operations.images import save_blob
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.serve import BasicAuth, TokenAuth
from mirror.serve import User as Person
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTree
from mirror.testing import Answer, CorruptBody, CutResponse, EmbeddedRegistry, Fault, Refuse, Stall
from tests.conftest import MakeEmbeddedRegistry
from tests.support.cluster_replicas import ACCOUNTS, at, certificate, hasty, image, put, sites
from tests.support.processes import free_loopback
from tests.support.program import ROOT
from tests.support.tls import Authority

LOCAL = RegistrySettings.load({"mode": "Local"})
INSTALL = f"{LOGICAL_PATH}/install"
IMAGE = image(layer_bytes=700_000)
LAYER = IMAGE.layer_digest
TLS_RECORD = 16 << 10

MakeReplica: TypeAlias = Callable[..., EmbeddedRegistry]


@pytest.fixture
def make_replica(make_embedded_registry: MakeEmbeddedRegistry, authority: Authority) -> MakeReplica:
    """Start replicas: each with TLS, a login, and by default the image."""

    def make(*, filled: bool = True, host: str | None = None) -> EmbeddedRegistry:
        host = host or free_loopback(REGISTRY_PORT)
        registry = make_embedded_registry(
            host=host,
            port=REGISTRY_PORT,
            tls=certificate(authority, host),
            auth=BasicAuth(
                {
                    account.name: Person(account.password.get_secret_value())
                    for account in ACCOUNTS.values()
                }
            ),
        )
        if filled:
            put(registry, INSTALL, IMAGE, "v1.70.0")
        return registry

    return make


@pytest.fixture
def events() -> list[Event]:
    """What the clients of this test reported."""
    return []


Connect: TypeAlias = Callable[..., ModeClient]


@pytest.fixture
def connect_local(authority: Authority, events: list[Event]) -> Iterator[Connect]:
    """Clients of a cluster in Local mode with these replicas, in that order."""
    made: list[ModeClient] = []

    def open_client(*replicas: EmbeddedRegistry | str, **options: Any) -> ModeClient:
        hosts = tuple(
            one if isinstance(one, str) else one.address.rpartition(":")[0] for one in replicas
        )
        settings: dict[str, Any] = {"plane": Plane.API, "options": hasty(), **options}
        client = connect(LOCAL, access=sites(authority, hosts), on_event=events.append, **settings)
        made.append(client)
        return client

    yield open_client
    for client in made:
        client.close()


def hosts_of(events: list[Event], kind: type[EndpointDown | EndpointUp]) -> list[str]:
    return [event.host for event in events if isinstance(event, kind)]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        f"{LOGICAL_BASE}/install:v1.70.0",
        f"{LOGICAL_BASE}/install@{IMAGE.manifest.digest}",
        f"{LOGICAL_BASE}/install:v1.70.0@{IMAGE.manifest.digest}",
        f"{LOGICAL_PATH}/install:v1.70.0",
        "install:v1.70.0",
        f"install@{IMAGE.manifest.digest}",
    ],
)
def test_an_image_goes_by_its_logical_name_or_relative_to_the_root(
    name: str, make_replica: MakeReplica, connect_local: Connect
) -> None:
    client = connect_local(make_replica())
    found = client.resolve(name)
    assert found is not None
    assert found.digest == IMAGE.manifest.digest
    assert client.manifest(name).raw == IMAGE.manifest.raw
    assert client.exists(name)


@pytest.mark.parametrize(
    "name",
    [
        "nexus.corp.example/dkp/install",
        "localhost:5000/install",
        "registry.d8-system.svc:5001/system/deckhouse-evil/x",
    ],
)
def test_what_is_not_of_this_cluster_is_refused(name: str, connect_local: Connect) -> None:
    client = connect_local("127.0.0.1")
    with pytest.raises(RouteError, match=f"below {LOGICAL_BASE}"):
        client.tags(name)


def test_a_name_without_tag_or_digest_is_no_image(connect_local: Connect) -> None:
    with pytest.raises(InvalidReferenceError, match="names no image"):
        connect_local("127.0.0.1").manifest("install")


def test_connecting_touches_no_network() -> None:
    """The constructor finds nobody listening, and does not mind."""
    settings = RegistrySettings.load(
        {"mode": "Unmanaged", "unmanaged": {"imagesRepo": "127.0.0.1:1/x", "scheme": "HTTP"}}
    )
    with connect(settings) as client:
        assert "127.0.0.1:1" in repr(client)


# -- modes -----------------------------------------------------------------------------------------


def upstream_settings(mode: str, address: str, **more: str) -> RegistrySettings:
    section = {"imagesRepo": f"{address}/dkp/ee", "scheme": "HTTP", **more}
    return RegistrySettings.load({"mode": mode, mode.lower(): section})


@pytest.mark.parametrize(
    ("mode", "plane"),
    [
        ("Unmanaged", Plane.CRI),
        ("Unmanaged", Plane.API),
        ("Unmanaged", Plane.OPERATOR),
        ("Direct", Plane.CRI),
        ("Direct", Plane.OPERATOR),
        ("Proxy", Plane.OPERATOR),
        ("Proxy", Plane.REPLICA),
    ],
)
def test_a_logical_name_leads_to_the_upstreams_repository_with_its_login(
    mode: str, plane: Plane, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    auth = TokenAuth({"license-token": Person("a-key")})
    upstream = make_embedded_registry(auth=auth)
    put(upstream, "dkp/ee/install", IMAGE, "v1.70.0")
    settings = upstream_settings(mode, upstream.address, license="a-key")
    with connect(settings, plane=plane, options=hasty()) as client:
        assert client.exists(f"{LOGICAL_BASE}/install:v1.70.0")
        assert client.tags("install") == ["v1.70.0"]
        assert b"".join(client.blob("install", LAYER)) == IMAGE.layer
    (token,) = upstream.requests.matching(path="^/token")
    assert "scope=repository%3Adkp%2Fee%2Finstall%3Apull" in token.query


def test_unmanaged_images_go_by_their_real_names_too(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    upstream = make_embedded_registry()
    put(upstream, "dkp/ee/install", IMAGE, "v1.70.0")
    with connect(upstream_settings("Unmanaged", upstream.address), options=hasty()) as client:
        assert client.exists(f"{upstream.address}/dkp/ee/install:v1.70.0")
        with pytest.raises(RouteError, match=f"below .*{upstream.address}/dkp/ee"):
            client.exists(f"{upstream.address}/dkp/ee-evil/install:v1.70.0")


def test_an_upstream_without_a_path_has_all_but_the_root(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    upstream = make_embedded_registry()
    put(upstream, "install", IMAGE, "v1.70.0")
    section = {"imagesRepo": upstream.address, "scheme": "HTTP"}
    settings = RegistrySettings.load({"mode": "Unmanaged", "unmanaged": section})
    with connect(settings, options=hasty()) as client:
        client.ping()
        assert client.exists(f"{LOGICAL_BASE}/install:v1.70.0")
        with pytest.raises(RouteError, match="has no path behind the host"):
            client.exists(f"{LOGICAL_BASE}:v1.70.0")


def test_a_login_goes_to_the_host_that_it_was_given_for(
    make_embedded_registry: MakeEmbeddedRegistry, make_replica: MakeReplica, authority: Authority
) -> None:
    """In Proxy mode the replicas hear of `ro` alone, and the upstream of its own user alone."""
    auth = BasicAuth({"robot": Person("upstream-password")})
    upstream = make_embedded_registry(auth=auth)
    put(upstream, "dkp/ee/install", IMAGE, "v1.70.0")
    replica = make_replica()
    settings = upstream_settings(
        "Proxy", upstream.address, username="robot", password="upstream-password"
    )
    where = sites(authority, (replica.address.rpartition(":")[0],))
    for plane in (Plane.API, Plane.OPERATOR):
        with connect(settings, access=where, plane=plane, options=hasty()) as client:
            assert client.manifest("install:v1.70.0").digest == IMAGE.manifest.digest
    assert logins(upstream) == {"robot:upstream-password"}
    assert logins(replica) == {"ro:ro-password"}


def logins(registry: EmbeddedRegistry) -> set[str]:
    """Whoever said who they are."""
    headers = [one.headers.get("authorization") for one in registry.requests]
    return {base64.b64decode(text.partition(" ")[2]).decode() for text in headers if text}


def test_the_authority_of_one_endpoint_vouches_for_no_other(
    make_replica: MakeReplica, authority: Authority
) -> None:
    """The module's authority has no say about the upstream."""
    stranger = make_replica()
    settings = RegistrySettings.load(
        {"mode": "Proxy", "proxy": {"imagesRepo": f"{stranger.address}/{LOGICAL_PATH}"}}
    )
    where = sites(authority, (stranger.address.rpartition(":")[0],))
    with connect(settings, access=where, plane=Plane.API, options=hasty()) as client:
        assert client.exists("install:v1.70.0")
    with (
        connect(settings, access=where, plane=Plane.OPERATOR, options=hasty()) as client,
        pytest.raises(UnreachableError, match=r"certificate .* is not trusted"),
    ):
        client.exists("install:v1.70.0")


def test_explicit_credentials_take_the_place_of_those_in_the_settings(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    upstream = make_embedded_registry(auth=BasicAuth({"me": Person("mine")}))
    put(upstream, "dkp/ee/install", IMAGE, "v1.70.0")
    settings = upstream_settings("Direct", upstream.address, username="robot", password="old")
    login = Credentials("me", "mine")
    with connect(settings, plane=Plane.OPERATOR, options=hasty(), credentials=login) as client:
        assert client.exists("install:v1.70.0")


# -- fail-over -------------------------------------------------------------------------------------


def test_a_replica_that_lacks_an_image_is_passed_over(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    empty, full = make_replica(filled=False), make_replica()
    client = connect_local(empty, full)
    assert client.manifest("install:v1.70.0").digest == IMAGE.manifest.digest
    assert client.resolve("install", IMAGE.manifest.digest) is not None
    assert client.blob_size("install", LAYER) == len(IMAGE.layer)
    assert b"".join(client.blob("install", LAYER)) == IMAGE.layer
    assert empty.requests.count(status=404) == 3  # the blob is looked for elsewhere at once


def test_that_something_lacks_is_remembered_for_that_content_alone(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    partial, full = make_replica(filled=False), make_replica()
    put(partial, INSTALL, image(2), "v1.71.0")
    put(full, INSTALL, image(2), "v1.71.0")
    client = connect_local(partial, full)
    for _ in range(3):
        assert client.exists("install:v1.70.0")
    assert partial.requests.count("HEAD", "manifests/v1.70.0") == 1 + 1  # with the 401 before it
    full.requests.clear()
    assert client.exists("install:v1.71.0")
    assert len(full.requests) == 0


def test_absent_is_what_every_replica_says_is_absent(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    """The Service has no name on this machine; the replicas behind it have all been asked."""
    client = connect_local(make_replica(), make_replica())
    assert client.resolve("install:v9") is None
    assert client.blob_size("install", Digest.of(b"nothing")) is None
    with pytest.raises(RegistryNotFoundError, match=r"none of \d endpoints"):
        client.manifest("install:v9")


def test_absent_is_not_said_while_a_replica_that_may_have_it_is_down(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    dead = free_loopback(REGISTRY_PORT)
    client = connect_local(make_replica(), dead)
    with pytest.raises(UnreachableError) as caught:
        client.resolve("install:v9")
    message = str(caught.value)
    assert f"{at(dead)} refuses connections" in message
    assert "install:v9" in message
    assert "404" in message or "not there" in message


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Answer(500), times=None),
        Fault(Answer(503), times=None),
        Fault(Answer(501), times=None),
        Fault(Refuse(), times=None),
    ],
    ids=["500", "503", "501", "hangs up"],
)
def test_a_replica_that_fails_is_passed_over_and_told_once(
    fault: Fault, make_replica: MakeReplica, connect_local: Connect, events: list[Event]
) -> None:
    ill, well = make_replica(), make_replica()
    ill.faults.add(fault)
    client = connect_local(ill, well)
    for _ in range(3):
        assert client.exists("install:v1.70.0")
        assert client.tags("install") == ["v1.70.0"]
    assert hosts_of(events, EndpointDown).count(ill.address) == 1
    assert not any(isinstance(event, Retrying) for event in events)


def test_a_dead_replica_costs_one_attempt_and_recovers_by_itself(
    make_replica: MakeReplica, connect_local: Connect, events: list[Event]
) -> None:
    now = [0.0]
    first, second = make_replica(), make_replica()
    first.faults.add(Fault(Refuse(), times=None))
    health: HealthMemory[Endpoint] = HealthMemory(clock=lambda: now[0], first_rest_s=2.0)
    client = connect_local(first, second, health=health)
    for _ in range(5):
        assert client.exists("install:v1.70.0")
    assert first.faults.struck == 1
    first.faults.clear()
    now[0] = 2.5
    assert client.exists("install:v1.70.0")
    assert hosts_of(events, EndpointUp) == [first.address]
    second.requests.clear()
    assert client.exists("install:v1.70.0")
    assert len(second.requests) == 0


def test_when_nobody_answers_all_are_asked_again_and_named(
    connect_local: Connect, events: list[Event]
) -> None:
    dead = [free_loopback(REGISTRY_PORT) for _ in range(2)]
    client = connect_local(*dead, options=hasty(attempts=3))
    with pytest.raises(UnreachableError) as caught:
        client.manifest("install:v1")
    assert all(f"{at(host)} refuses connections" in str(caught.value) for host in dead)
    assert caught.value.exit_code == 5
    assert len([event for event in events if isinstance(event, Retrying)]) == 2


def test_a_failure_of_all_that_passes_is_outlived(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    replicas = [make_replica(), make_replica()]
    for one in replicas:
        one.faults.add(Fault(Answer(503), times=1))
    assert connect_local(*replicas, options=hasty(attempts=3)).exists("install:v1.70.0")


def test_a_refused_login_is_told_and_never_taken_for_absence(
    make_replica: MakeReplica, connect_local: Connect, events: list[Event]
) -> None:
    strict, well = make_replica(), make_replica(filled=False)
    strict.faults.add(Fault(Answer(403), times=None))
    client = connect_local(strict, well)
    with pytest.raises(DeniedError) as caught:
        client.resolve("install:v1.70.0")
    assert strict.address in str(caught.value)
    assert caught.value.exit_code == 6
    warnings = [event.message for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "403" in warnings[0]
    put(well, INSTALL, IMAGE, "v1.70.0")
    assert client.exists("install:v1.70.0")
    assert [event.message for event in events if isinstance(event, Warned)] == warnings


def test_a_damaged_manifest_is_taken_from_another_replica(
    make_replica: MakeReplica, connect_local: Connect, events: list[Event]
) -> None:
    damaged, well = make_replica(), make_replica()
    damaged.faults.add(Fault(CorruptBody(at=50), method="GET", path="/manifests/", times=None))
    client = connect_local(damaged, well)
    assert client.manifest("install", IMAGE.manifest.digest).raw == IMAGE.manifest.raw
    assert any(isinstance(event, Warned) and damaged.address in event.message for event in events)


# -- blobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 65_536, 350_000, len(IMAGE.layer) - 1])
def test_a_blob_that_breaks_off_is_continued_by_the_next_replica_where_it_was(
    cut: int, make_replica: MakeReplica, connect_local: Connect
) -> None:
    first, second = make_replica(), make_replica()
    first.faults.add(Fault(CutResponse(cut), method="GET", path="/blobs/", nth=2, times=None))
    client = connect_local(first, second)
    assert b"".join(client.blob("install", LAYER, size=len(IMAGE.layer))) == IMAGE.layer
    request = second.requests.matching("GET", "/blobs/")[-1]
    began = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    assert cut - TLS_RECORD <= began <= cut  # a record that is cut is lost as a whole
    assert request.sent == len(IMAGE.layer) - began


def test_a_blob_goes_round_as_often_as_it_gets_further(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    replicas = [make_replica(), make_replica()]
    for one in replicas:
        one.faults.add(Fault(CutResponse(70_000), method="GET", path="/blobs/", times=None))
    client = connect_local(*replicas, options=hasty(attempts=2))
    assert b"".join(client.blob("install", LAYER, size=len(IMAGE.layer))) == IMAGE.layer


def test_a_blob_that_nobody_finishes_ends_with_the_reasons(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    replicas = [make_replica(), make_replica()]
    for one in replicas:
        one.faults.add(Fault(CutResponse(0), method="GET", path="/blobs/", times=None))
    client = connect_local(*replicas, options=hasty(attempts=2))
    with pytest.raises(UnreachableError) as caught:
        list(client.blob("install", LAYER))
    assert all(one.address in str(caught.value) for one in replicas)


def test_the_rest_of_a_blob_is_looked_for_past_a_replica_without_it(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    first, empty, last = make_replica(), make_replica(filled=False), make_replica()
    first.faults.add(Fault(CutResponse(300_000), method="GET", path="/blobs/", nth=2, times=None))
    client = connect_local(first, empty, last)
    assert b"".join(client.blob("install", LAYER)) == IMAGE.layer
    assert last.requests.count("GET", "/blobs/", 206) == 1


def test_bytes_from_several_replicas_are_checked_as_one_blob(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    """A flipped bit in the second half is found, and the last chunk never comes."""
    first, second = make_replica(), make_replica()
    first.faults.add(Fault(CutResponse(300_000), method="GET", path="/blobs/", nth=2, times=None))
    second.faults.add(Fault(CorruptBody(at=1000), method="GET", path="/blobs/", nth=2, times=None))
    got = bytearray()

    def collect() -> None:
        for chunk in connect_local(first, second).blob("install", LAYER):
            got.extend(chunk)

    with pytest.raises(DigestMismatchError, match="this copy is damaged"):
        collect()
    assert 0 < len(got) < len(IMAGE.layer)


def test_a_small_damaged_blob_is_taken_from_another_replica(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    damaged, well = make_replica(), make_replica()
    damaged.faults.add(Fault(CorruptBody(at=1), method="GET", path="/blobs/", times=None))
    config = Digest.of(IMAGE.config)
    assert b"".join(connect_local(damaged, well).blob("install", config)) == IMAGE.config


def test_the_error_and_an_event_name_the_replicas_whose_blob_is_damaged(
    make_replica: MakeReplica, connect_local: Connect, events: list[Event]
) -> None:
    first, second = make_replica(), make_replica()
    first.faults.add(Fault(CutResponse(300_000), method="GET", path="/blobs/", nth=1, times=None))
    second.faults.add(Fault(CorruptBody(at=1000), method="GET", path="/blobs/", nth=1, times=None))
    with pytest.raises(DigestMismatchError) as caught:
        b"".join(connect_local(first, second).blob("install", LAYER))
    both = f"{first.address} or {second.address}: "
    assert str(caught.value).startswith(f"{both}blob ")
    warned = [one.message for one in events if isinstance(one, Warned)]
    assert any(one.startswith(both) for one in warned)


LARGE = image(seed=2, layer_bytes=5 << 20)
LATE = Fault(CorruptBody(at=5_000_000), method="GET", path=f"/blobs/{LARGE.layer_digest}")
"""Damage that shows when most of the blob has long been handed on."""


@pytest.fixture
def of_large_images(make_replica: MakeReplica) -> Callable[[bool], EmbeddedRegistry]:
    """Start replicas with a large blob, damaged or not."""

    def make(damaged: bool) -> EmbeddedRegistry:
        replica = make_replica(filled=False)
        put(replica, INSTALL, LARGE, "v1.70.0")
        if damaged:
            replica.faults.add(replace(LATE, times=None))
        return replica

    return make


def test_a_file_gets_its_blob_from_another_replica_however_late_the_damage_shows(
    of_large_images: Callable[[bool], EmbeddedRegistry],
    connect_local: Connect,
    events: list[Event],
    tmp_path: Path,
) -> None:
    damaged, well = of_large_images(True), of_large_images(False)
    client = connect_local(damaged, well)
    size = save_blob(client, "install", LARGE.layer_digest, tmp_path / "layer")
    assert size == len(LARGE.layer)
    assert (tmp_path / "layer").read_bytes() == LARGE.layer
    warned = [one.message for one in events if isinstance(one, Warned)]
    assert any(one.startswith(f"{damaged.address}: blob {LOGICAL_BASE}") for one in warned)


def test_a_transfer_takes_a_blob_from_another_replica_however_late_the_damage_shows(
    of_large_images: Callable[[bool], EmbeddedRegistry], connect_local: Connect
) -> None:
    client, there, wanted = (
        connect_local(of_large_images(True), of_large_images(False)),
        MemoryStore(),
        MemoryStore(),
    )
    for blob in LARGE.blobs:
        wanted.add_blob("install", blob)
    wanted.add_manifest("install", LARGE.manifest.raw, OCI_MANIFEST)
    plan = make_plan(wanted.inventory(), there.inventory())
    transfer(plan, RegistryTree(client, client.root).source(), there)
    assert there.inventory() == wanted.inventory()


@pytest.mark.parametrize("size", [len(IMAGE.layer), len(LARGE.layer)])
def test_an_error_names_the_replicas_that_have_a_blob_damaged(
    make_replica: MakeReplica, connect_local: Connect, tmp_path: Path, size: int
) -> None:
    one = IMAGE if size == len(IMAGE.layer) else LARGE
    replicas = make_replica(), make_replica()
    for replica in replicas:
        put(replica, INSTALL, one)
        path = f"/blobs/{one.layer_digest}"
        replica.faults.add(Fault(CorruptBody(at=size - 100), path=path, times=None))
    settings = {"plane": Plane.REPLICA}
    with pytest.raises(DigestMismatchError) as caught:
        save_blob(
            connect_local(*replicas, **settings), "install", one.layer_digest, tmp_path / "layer"
        )
    named = [replica.address for replica in replicas if replica.address in str(caught.value)]
    assert named
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("asked", "patience_s"), [(None, 10.0), (ConnectionOptions(), 60.0)])
def test_one_of_several_replicas_that_is_silent_is_not_waited_for_a_minute(
    authority: Authority,
    asked: ConnectionOptions | None,
    patience_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the caller says how long; and who takes a push may think longer."""
    made: list[float] = []

    def recorded(_endpoint: Endpoint, options: ConnectionOptions, *_: Any) -> RegistryClient:
        made.append(options.stall_timeout_s)
        return RegistryClient("127.0.0.2:1", options=options)

    monkeypatch.setattr(Endpoint, "client", recorded)
    access = sites(authority, ("127.0.0.2", "127.0.0.3"))
    with connect(LOCAL, access=access, options=asked) as client:
        for patient in (False, True):
            client._client(client.endpoints[0], patient=patient)
    assert made == [patience_s, 60.0]


@pytest.mark.parametrize("offset", [0, 1, 400_000, len(IMAGE.layer)])
def test_a_blob_is_read_from_any_offset(
    offset: int, make_replica: MakeReplica, connect_local: Connect
) -> None:
    client = connect_local(make_replica())
    size = len(IMAGE.layer)
    assert b"".join(client.blob("install", LAYER, size=size, offset=offset)) == IMAGE.layer[offset:]


def test_a_reader_that_stops_ends_the_connection(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    client = connect_local(make_replica())
    chunks = client.blob("install", LAYER)
    next(chunks)
    chunks.close()
    assert client.exists("install:v1.70.0")


# -- lists -----------------------------------------------------------------------------------------


def test_the_tags_of_replicas_that_fill_up_by_themselves_are_put_together(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    """What `tags` names, `resolve` finds, and the other way round."""
    first, second = make_replica(), make_replica()
    put(second, INSTALL, image(2), "v1.71.0")
    client = connect_local(first, second, free_loopback(REGISTRY_PORT))
    assert client.tags("install") == ["v1.70.0", "v1.71.0"]
    assert all(client.exists("install", tag) for tag in client.tags("install"))


def test_the_referrers_of_such_replicas_too(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    client = connect_local(make_replica(), make_replica())
    assert client.referrers("install", IMAGE.manifest.digest) == []
    assert client.referrers_api("install", IMAGE.manifest.digest) == []


# -- the Service in the cluster --------------------------------------------------------------------


@pytest.fixture
def service(
    make_embedded_registry: MakeEmbeddedRegistry,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> EmbeddedRegistry:
    """Somebody behind the Service's name, which resolves as it does inside of a cluster."""
    host = free_loopback(REGISTRY_PORT)
    resolve = socket.getaddrinfo

    def inside(name: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve(
            host if name in (SERVICE_NAME, SERVICE_NAME.encode()) else name, *args, **kwargs
        )

    monkeypatch.setattr(socket, "getaddrinfo", inside)
    users = {"robot": "upstream-password", "ro": "ro-password"}
    registry = make_embedded_registry(
        host=host,
        port=REGISTRY_PORT,
        tls=authority.issue("service", (SERVICE_NAME,)),
        auth=TokenAuth({name: Person(word) for name, word in users.items()}),
    )
    put(registry, INSTALL, IMAGE, "v1.70.0")
    return registry


@pytest.mark.parametrize(
    ("settings", "user"),
    [
        (
            {
                "mode": "Direct",
                "direct": {
                    "imagesRepo": "nexus.corp.example/dkp/ee",
                    "username": "robot",
                    "password": "upstream-password",
                },
            },
            "robot",
        ),
        ({"mode": "Proxy", "proxy": {"imagesRepo": "nexus.corp.example/dkp/ee"}}, "ro"),
        ({"mode": "Local"}, "ro"),
    ],
)
def test_a_pod_asks_the_service_by_the_logical_address(
    settings: dict[str, Any], user: str, service: EmbeddedRegistry, authority: Authority
) -> None:
    """In Direct mode the pass-through knows the upstream's own user; else it is `ro`."""
    where = sites(authority, ())
    with connect(RegistrySettings.load(settings), access=where, options=hasty()) as client:
        assert client.manifest(f"{LOGICAL_BASE}/install:v1.70.0").raw == IMAGE.manifest.raw
        assert b"".join(client.blob("install", LAYER)) == IMAGE.layer
    tokens = service.requests.matching(path="^/token")
    said = {base64.b64decode(one.headers["authorization"][6:]).decode() for one in tokens}
    assert {text.partition(":")[0] for text in said} == {user}


# -- many threads, and the end ---------------------------------------------------------------------


def test_closing_ends_what_is_under_way_in_other_threads(
    make_replica: MakeReplica, connect_local: Connect
) -> None:
    slow = make_replica()
    slow.faults.add(Fault(Stall(after=1000, seconds=5), method="GET", path="/blobs/", times=None))
    client = connect_local(slow, make_replica())
    chunks = client.blob("install", LAYER)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            list(chunks)
        except MirrorError as err:
            failures.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    while not slow.faults.struck:
        time.sleep(0.005)
    client.close()
    reader.join(10)
    assert not reader.is_alive()
    assert [type(one) for one in failures] == [CancelledError]
    with pytest.raises(CancelledError):
        client.exists("install:v1.70.0")


def test_many_threads_share_one_client(make_replica: MakeReplica, connect_local: Connect) -> None:
    ill, well = make_replica(), make_replica()
    ill.faults.add(Fault(Answer(503), nth=3, times=20))
    client = connect_local(ill, well)

    def read(_: int) -> bytes:
        assert client.exists("install:v1.70.0")
        return b"".join(client.blob("install", LAYER, size=len(IMAGE.layer)))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(24))) == {IMAGE.layer}


def test_the_example_of_the_page_runs(
    make_replica: MakeReplica,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica = make_replica()
    page = (ROOT / "docs/modes.md").read_text(encoding="utf-8").partition("## The client")[2]

    block, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "module-config.yaml").write_text("mode: Local")
    known = {
        "masters": [replica.address.rpartition(":")[0]],
        "caFile": str(authority.certificate),
        "users": {"ro": "ro-password"},
    }
    (tmp_path / "sites.yaml").write_text(json.dumps(known))  # JSON is YAML
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/modes.md", "exec"), {})
    assert replica.requests.sent("/blobs/") >= len(IMAGE.layer)
