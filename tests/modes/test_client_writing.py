"""What a mode forbids is refused before anything is sent, and the refusal says where to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mirror.errors import ForbiddenByModeError, RouteError, UnreachableError
from mirror.modes import LOGICAL_PATH, REGISTRY_PORT, Plane
from mirror.modes.client import ModeClient, connect
from mirror.modes.settings import ClusterAccess, RegistrySettings
from mirror.oci import Digest
from mirror.serve import BasicAuth, User
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.cluster_replicas import ACCOUNTS, at, certificate, hasty, image, put, sites
from tests.support.inventories import sample_store
from tests.support.places import storage_of, stored
from tests.support.processes import free_loopback
from tests.support.tls import Authority

LOCAL = RegistrySettings.load({"mode": "Local"})
UPSTREAM = "nexus.corp.example:8443/dkp/ee"
PUSH = f"cluster's push address registry.corp.example/{LOGICAL_PATH}, as user rw"
IMAGE = image()

WRITES: dict[str, Callable[[ModeClient], object]] = {
    "upload": lambda client: client.upload(
        "install", Digest.of(b""), 0, lambda _: (part for part in [b""])
    ),
    "mount": lambda client: client.mount("install", Digest.of(b""), "modules"),
    "put_manifest": lambda client: client.put_manifest("install", "v1", IMAGE.manifest),
    "delete_manifest": lambda client: client.delete_manifest("install", Digest.of(b"")),
    "delete_tag": lambda client: client.delete_tag("install", "v1"),
    "delete_blob": lambda client: client.delete_blob("install", Digest.of(b"")),
}
"""Every method that changes something."""


def settings_of(mode: str) -> RegistrySettings:
    if mode == "Local":
        return LOCAL
    return RegistrySettings.load({"mode": mode, mode.lower(): {"imagesRepo": UPSTREAM}})


def everywhere() -> ClusterAccess:
    """A cluster of which all is known, and which nobody can reach."""
    return ClusterAccess(
        masters=("127.0.0.1",), public_host="registry.corp.example", accounts=ACCOUNTS
    )


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("mode", "plane", "reason", "instead"),
    [
        ("Unmanaged", Plane.CRI, "the nodes' pulls", f"external registry itself, {UPSTREAM}"),
        ("Unmanaged", Plane.API, "cluster's components", f"external registry itself, {UPSTREAM}"),
        ("Direct", Plane.CRI, "containerd only reads", f"external registry itself, {UPSTREAM}"),
        ("Direct", Plane.API, "only passes reads on", f"external registry itself, {UPSTREAM}"),
        ("Proxy", Plane.CRI, "read-only cache", f"external registry itself, {UPSTREAM}"),
        ("Proxy", Plane.API, "read-only cache", f"external registry itself, {UPSTREAM}"),
        ("Proxy", Plane.OPERATOR, "read-only cache", f"external registry itself, {UPSTREAM}"),
        ("Proxy", Plane.REPLICA, "read-only cache", f"external registry itself, {UPSTREAM}"),
        (
            "Local",
            Plane.CRI,
            "the nodes' pulls",
            PUSH,
        ),
        (
            "Local",
            Plane.API,
            "cluster's components",
            PUSH,
        ),
        (
            "Local",
            Plane.REPLICA,
            "replication",
            PUSH,
        ),
    ],
)
def test_a_write_that_the_mode_forbids_names_the_place_for_it(
    write: str, mode: str, plane: Plane, reason: str, instead: str
) -> None:
    with (
        connect(settings_of(mode), access=everywhere(), plane=plane, options=hasty()) as client,
        pytest.raises(ForbiddenByModeError) as caught,
    ):
        WRITES[write](client)
    message = str(caught.value)
    verb = "delete at" if "delete" in write else "push to"
    assert message.startswith(f"cannot {verb.partition(' ')[0]} in mode {mode}: ")
    assert reason in message
    assert f"{verb} the {instead}, instead" in message
    assert (caught.value.mode, caught.value.plane) == (mode, plane)
    assert caught.value.exit_code == 2


def test_a_cluster_without_a_known_domain_is_told_the_form_of_the_address() -> None:
    where = ClusterAccess(masters=("127.0.0.1",), accounts=ACCOUNTS)
    with (
        connect(LOCAL, access=where, plane=Plane.API) as client,
        pytest.raises(ForbiddenByModeError, match=r"delete at .* registry\.<PUBLIC_DOMAIN>/system"),
    ):
        client.delete_tag("install", "v1")


@pytest.mark.parametrize(
    ("mode", "plane", "reason"),
    [
        ("Direct", Plane.API, "grants pulls only"),
        ("Proxy", Plane.CRI, "user ro may only pull"),
        ("Proxy", Plane.API, "user ro may only pull"),
        ("Local", Plane.CRI, "user ro may only pull"),
        ("Local", Plane.API, "user ro may only pull"),
    ],
)
def test_who_may_only_pull_cannot_list_the_repositories(
    mode: str, plane: Plane, reason: str
) -> None:
    with (
        connect(settings_of(mode), access=everywhere(), plane=plane) as client,
        pytest.raises(ForbiddenByModeError, match=reason),
    ):
        list(client.catalogue())


@pytest.mark.parametrize("mode", ["Unmanaged", "Direct"])
def test_pushing_goes_to_the_external_registry_itself(
    mode: str, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    upstream = make_embedded_registry(auth=BasicAuth({"robot": User("secret")}))
    section = {
        "imagesRepo": f"{upstream.address}/dkp/ee",
        "scheme": "HTTP",
        "username": "robot",
        "password": "secret",
    }
    settings = RegistrySettings.load({"mode": mode, mode.lower(): section})
    with connect(settings, plane=Plane.OPERATOR, options=hasty()) as client:
        store = sample_store()
        carry(store, client)
        assert stored(storage_of(upstream), "dkp/ee") == store.inventory()
        assert {name.replace(LOGICAL_PATH, "dkp/ee") for name in client.catalogue()} == set(
            upstream.storage.repositories()
        )


def test_in_proxy_mode_the_external_registry_takes_what_names_it(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    upstream = make_embedded_registry()
    section = {"imagesRepo": f"{upstream.address}/dkp/ee", "scheme": "HTTP"}
    settings = RegistrySettings.load({"mode": "Proxy", "proxy": section})
    with connect(settings, plane=Plane.OPERATOR, options=hasty()) as client:
        with pytest.raises(ForbiddenByModeError):
            client.put_manifest("install", "v1", IMAGE.manifest)
        put(upstream, "dkp/ee/install", IMAGE)
        client.put_manifest(f"{upstream.address}/dkp/ee/install", "v1", IMAGE.manifest)
        assert client.tags("install") == ["v1"]
    with (
        connect(settings, access=everywhere(), plane=Plane.API) as client,
        pytest.raises(RouteError, match="logical names"),
    ):
        client.tags(f"{upstream.address}/dkp/ee/install")


def carry(store: MemoryStore, client: ModeClient) -> None:
    """Push a store through a client, as `mirror.push` does, and read it back."""
    wanted = store.inventory()
    tree = RegistryTree(client, client.root)
    target = tree.target()
    transfer(make_plan(wanted, target.held(wanted)), store, target)
    assert not make_plan(wanted, target.held(wanted))
    source = tree.source()
    back = MemoryStore()
    transfer(make_plan(wanted, back.held(wanted)), source, back)
    assert back.inventory() == wanted


@pytest.fixture
def make_replica(make_embedded_registry: MakeEmbeddedRegistry, authority: Authority) -> Any:
    """Start an empty replica with TLS that knows the module's users: `make(host=None)`."""

    def make(host: str | None = None) -> EmbeddedRegistry:
        host = host or free_loopback(REGISTRY_PORT)
        users = {a.name: User(a.password.get_secret_value()) for a in ACCOUNTS.values()}
        return make_embedded_registry(
            host=host, port=REGISTRY_PORT, tls=certificate(authority, host), auth=BasicAuth(users)
        )

    return make


def test_local_mode_takes_a_push_at_the_public_address_as_rw(
    make_replica: Any, authority: Authority
) -> None:
    public = make_replica()
    where = ClusterAccess(
        public_host=public.address,
        public_ca=authority.certificate.read_text(),
        accounts=ACCOUNTS,
    )
    with connect(LOCAL, access=where, plane=Plane.OPERATOR, options=hasty()) as client:
        store = sample_store()
        carry(store, client)
        assert stored(public.storage, LOGICAL_PATH) == store.inventory()
        assert set(client.catalogue()) == set(public.storage.repositories())
        repository = f"{public.address}/{LOGICAL_PATH}/release-channel"
        digest = client.manifest(repository, client.tags(repository)[0]).digest
        client.delete_manifest(repository, digest)
        assert not client.exists(repository, digest)


def test_without_a_public_address_all_of_a_push_goes_to_one_replica(
    make_replica: Any, authority: Authority
) -> None:
    """What a push found at one replica says nothing of another, so it stays with the first."""
    dead, second, third = free_loopback(REGISTRY_PORT), make_replica(), make_replica()
    hosts = (dead, *(one.address.rpartition(":")[0] for one in (second, third)))
    where = sites(authority, hosts)
    with connect(LOCAL, access=where, plane=Plane.OPERATOR, options=hasty()) as client:
        store = sample_store()
        carry(store, client)
        assert stored(second.storage, LOGICAL_PATH) == store.inventory()
        assert len(third.requests) == 0


def test_a_push_that_finds_no_replica_names_them_all(authority: Authority) -> None:
    dead = [free_loopback(REGISTRY_PORT) for _ in range(2)]
    where = sites(authority, tuple(dead))
    with (
        connect(LOCAL, access=where, plane=Plane.OPERATOR, options=hasty()) as client,
        pytest.raises(UnreachableError) as caught,
    ):
        client.put_manifest("install", "v1", IMAGE.manifest)
    assert all(at(host) in str(caught.value) for host in dead)
