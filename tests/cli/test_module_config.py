"""`--module-config`: pull, push and verify find a cluster's registry by its own settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.bundle.reader import BundleReader
from mirror.commands.access import AccessOptions
from mirror.commands.cluster import Cluster
from mirror.errors import ForbiddenByModeError, RouteError
from mirror.events import ignore
from mirror.modes import LOGICAL_BASE, LOGICAL_PATH, REGISTRY_PORT, Plane
from mirror.modes.client import connect
from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig.cluster import load_access
from mirror.operations.compare import verify
from mirror.operations.pull import plan_pull
from mirror.operations.push import push
from mirror.release.selection import Selection
from mirror.release.source import SourceTree
from mirror.serve import BasicAuth, MemoryStorage, User
from mirror.sync.tree import RegistryTree
from mirror.testing import EmbeddedRegistry
from tests.cli.conftest import Write
from tests.conftest import MakeEmbeddedRegistry
from tests.support.cluster_replicas import certificate
from tests.support.nginx import Nginx
from tests.support.places import storage_of
from tests.support.processes import free_loopback
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.tls import Authority


def module_config(registry: dict[str, Any]) -> dict[str, Any]:
    """ModuleConfig `deckhouse` with this registry section."""
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "kind": "ModuleConfig",
        "metadata": {"name": "deckhouse"},
        "spec": {"version": 1, "enabled": True, "settings": {"registry": registry}},
    }


def upstream(mode: str, repository: str, **more: str) -> dict[str, Any]:
    section = {"imagesRepo": repository, "scheme": "HTTP", **more}
    return module_config({"mode": mode, mode.lower(): section})


@pytest.fixture
def target(make_embedded_registry: MakeEmbeddedRegistry) -> EmbeddedRegistry:
    """A registry that only `robot` may use."""
    return make_embedded_registry(auth=BasicAuth({"robot": User("s3cret")}))


ROBOT = {"username": "robot", "password": "s3cret"}


@pytest.mark.parametrize("mode", ["Unmanaged", "Direct"])
@pytest.mark.parametrize("named", [[], [LOGICAL_BASE], ["real"]])
def test_a_push_goes_to_the_external_registry_with_its_login(
    mode: str, named: list[str], bundle: Path, target: EmbeddedRegistry, write: Write
) -> None:
    repository = f"{target.address}/dkp/ee"
    config = write("mc.yaml", upstream(mode, repository, **ROBOT))
    where = [repository if name == "real" else name for name in named]
    pushed = call_mirror("push", bundle, *where, "--module-config", config, "--json").succeeded()
    assert pushed.document["target"] == repository
    assert "dkp/ee/install" in target.storage.repositories()
    verified = call_mirror(
        "verify",
        bundle,
        *(["--against", *where] if where else []),
        "--module-config",
        config,
        "--json",
    ).succeeded()
    assert verified.document["ok"]
    assert "s3cret" not in pushed.text + verified.text


def test_a_push_into_proxy_mode_is_refused_and_told_the_way(
    bundle: Path, target: EmbeddedRegistry, write: Write
) -> None:
    repository = f"{target.address}/dkp/ee"
    config = write("mc.yaml", upstream("Proxy", repository, **ROBOT))
    for where in ([], [LOGICAL_BASE]):
        call_mirror("push", bundle, *where, "--module-config", config).failed(
            2, "in mode Proxy", "read-only cache", f"external registry itself, {repository}"
        )
    assert len(target.requests) == 0
    call_mirror("push", bundle, repository, "--module-config", config).succeeded()
    call_mirror("verify", bundle, "--module-config", config).succeeded()


def test_archives_are_pushed_without_a_folder(
    bundle: Path, target: EmbeddedRegistry, write: Write
) -> None:
    config = write("mc.yaml", upstream("Direct", f"{target.address}/dkp/ee", **ROBOT))
    archive = next(iter(sorted(bundle.glob("platform*.tar"))))
    call_mirror("push", "--file", archive, "--module-config", config).succeeded()
    call_mirror("push", LOGICAL_BASE, "--file", archive, "--module-config", config).succeeded()
    call_mirror("push", "--module-config", config).failed(2, "BUNDLE_DIR")


class Stand:
    """A cluster in Local mode: one replica with TLS that is also the address for pushing."""

    def __init__(self, registry: EmbeddedRegistry, authority: Authority, write: Write) -> None:
        self.registry = registry
        self.host = registry.address.rpartition(":")[0]
        self.authority = authority
        self.write = write
        self.config = write("local.yaml", module_config({"mode": "Local"}))

    def sites(self, **more: Any) -> Path:
        """What is known of it."""
        return self.write(
            "sites.yaml",
            {"caFile": str(self.authority.certificate), "masters": [self.host], **more},
        )

    def public(self, **more: Any) -> Path:
        """The same with an address for pushing."""
        return self.sites(
            publicHost=self.registry.address,
            publicCaFile=str(self.authority.certificate),
            **more,
        )


@pytest.fixture
def stand(
    make_embedded_registry: MakeEmbeddedRegistry, authority: Authority, write: Write
) -> Stand:
    host = free_loopback(REGISTRY_PORT)
    users = {"rw": User("rw-word"), "ro": User("ro-word", frozenset({"pull"}))}
    registry = make_embedded_registry(
        host=host, port=REGISTRY_PORT, tls=certificate(authority, host), auth=BasicAuth(users)
    )
    return Stand(registry, authority, write)


def test_local_mode_is_pushed_to_as_rw_and_read_as_ro(bundle: Path, stand: Stand) -> None:
    files = ("--module-config", stand.config, "--sites")
    call_mirror("push", bundle, *files, stand.public(users={"rw": "rw-word"})).succeeded()
    assert f"{LOGICAL_PATH}/install" in stand.registry.storage.repositories()
    # Who knows `ro` alone asks a replica.
    call_mirror("verify", bundle, *files, stand.sites(users={"ro": "ro-word"})).succeeded()
    call_mirror("push", bundle, *files, stand.sites(users={"ro": "ro-word"})).failed(
        2, "registry-user-rw"
    )


def test_a_push_address_that_asks_for_a_certificate_is_shown_that_of_the_sites(
    bundle: Path,
    stand: Stand,
    authority: Authority,
    embedded_registry: EmbeddedRegistry,
    tmp_path: Path,
) -> None:
    files = authority.issue("ingress-client", client=True)
    with Nginx(
        tmp_path / "nginx",
        embedded_registry.address,
        tls=authority.issue(),
        clients=authority.certificate,
    ) as nginx:
        known = {
            "publicHost": nginx.url.removeprefix("https://"),
            "publicCaFile": str(authority.certificate),
            "users": {"rw": "rw-word"},
        }
        push = ("push", bundle, "--module-config", stand.config, "--sites")
        call_mirror(*push, stand.sites(**known)).failed(5, "wants a client certificate")
        known |= {"publicCertFile": str(files.certificate), "publicKeyFile": str(files.key)}
        call_mirror(*push, stand.sites(**known)).succeeded()
        assert f"{LOGICAL_PATH}/install" in embedded_registry.storage.repositories()
        del known["publicCertFile"]
        call_mirror(*push, stand.sites(**known)).failed(2, "publicKeyFile goes with publicCertFile")


def test_without_a_public_domain_a_replica_that_answers_takes_the_push(
    bundle: Path, stand: Stand
) -> None:
    dead = free_loopback(REGISTRY_PORT)
    sites = stand.sites(masters=[dead, stand.host], users={"rw": "rw-word"})
    files = ("--module-config", stand.config, "--sites", sites)
    pushed = call_mirror("push", bundle, *files, "--json").succeeded()
    assert pushed.document["target"] == f"{stand.registry.address}/{LOGICAL_PATH}"
    alone = stand.sites(masters=[dead, free_loopback(REGISTRY_PORT)], users={"rw": "rw-word"})
    call_mirror("verify", bundle, "--module-config", stand.config, "--sites", alone).failed(
        5, "none of 2 replicas answers", dead
    )


def test_a_login_that_is_given_stands_in_for_the_unknown_one(bundle: Path, stand: Stand) -> None:
    login = ("--registry-login", "rw", "--registry-password", "rw-word")
    files = ("--module-config", stand.config, "--sites", stand.public())
    call_mirror("push", bundle, *files, *login).succeeded()
    call_mirror("push", bundle, *files).failed(2, "password of the registry's user rw")


def test_local_mode_without_its_places_says_what_is_missing(bundle: Path, stand: Stand) -> None:
    files = ("--module-config", stand.config)
    call_mirror("push", bundle, *files).failed(2, "password", "rw is not known here")
    nowhere = stand.write("nowhere.yaml", {"users": {"rw": "rw-word"}})
    call_mirror("push", bundle, *files, "--sites", nowhere).failed(2, "registry.<PUBLIC_DOMAIN>")


@pytest.fixture
def login_source() -> Iterator[Source]:
    """A tiny tree that only the holder of the licence key may read."""
    auth = BasicAuth({"license-token": User("the-key")})
    with EmbeddedRegistry(MemoryStorage(), auth=auth) as registry:
        yield serve(TINY, registry)


def test_a_pull_takes_the_upstream_of_the_settings(
    login_source: Source, write: Write, tmp_path: Path
) -> None:
    config = write("mc.yaml", upstream("Proxy", login_source.root, license="the-key"))
    pulled = call_mirror("pull", tmp_path / "one", "--module-config", config, "--json").succeeded()
    assert pulled.document["source"] == login_source.root
    assert "the-key" not in pulled.text
    logical = call_mirror(
        "pull",
        tmp_path / "two",
        "--module-config",
        config,
        "--source",
        LOGICAL_BASE,
        "--dry-run",
        "--json",
    ).succeeded()
    assert logical.document["inventory"] == pulled.document["inventory"]
    call_mirror(
        "pull", tmp_path / "three", "--module-config", config, "--source", "elsewhere.example/x"
    ).failed(2, "not in this cluster's registry")


def test_a_pull_takes_what_a_local_cluster_holds(
    bundle: Path, stand: Stand, tmp_path: Path
) -> None:
    files = ("--module-config", stand.config, "--sites", stand.public(users={"rw": "rw-word"}))
    call_mirror("push", bundle, *files).succeeded()
    pulled = call_mirror("pull", tmp_path / "back", *files, "--json").succeeded()
    assert pulled.document["source"] == f"{stand.registry.address}/{LOGICAL_PATH}"
    sealed = json.loads((bundle / "inventory.json").read_text())
    assert pulled.document["platform"]["versions"]
    assert sealed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["push", "BUNDLE", "host/x", "--sites", "SITES"], ["--module-config"]),
        (["push", "BUNDLE", "--module-config", "CONFIG", "--insecure"], ["--insecure", "scheme"]),
        (["pull", "OUT", "--module-config", "CONFIG", "--insecure"], ["--insecure", "scheme"]),
        (
            ["push", "BUNDLE", "other.example/x", "--module-config", "CONFIG"],
            ["other.example/x is not"],
        ),
        (["verify", "BUNDLE", "--deep"], ["--against"]),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], words: list[str], bundle: Path, write: Write, tmp_path: Path
) -> None:
    places = {
        "BUNDLE": bundle,
        "OUT": tmp_path / "out",
        "SITES": write("s.yaml", {}),
        "CONFIG": write("mc.yaml", upstream("Direct", "reg.example/dkp")),
    }
    call_mirror(*(places.get(one, one) for one in arguments)).failed(2, *words)


def test_the_library_takes_the_client_of_a_cluster_where_it_takes_one_of_a_registry(
    bundle: Path, stand: Stand
) -> None:
    local = RegistrySettings.load(stand.config)
    words = {"rw": "rw-word", "ro": "ro-word"}
    where = load_access(stand.public(users=words))
    with (
        connect(local, access=where, plane=Plane.OPERATOR) as client,
        BundleReader([bundle]) as reader,
    ):
        pushed = push(reader, RegistryTree(client, client.root))
        assert pushed.target == LOGICAL_BASE
        assert plan_pull(client, SourceTree(client.root), Selection()).inventory
    with (
        connect(local, access=where, plane=Plane.API) as client,
        BundleReader([bundle]) as reader,
    ):
        assert not verify(reader, against=RegistryTree(client, client.root), deep=True).findings
        storage_of(stand.registry).delete_tag(f"{LOGICAL_PATH}/install", "v1.70.0")
        with pytest.raises(ForbiddenByModeError, match="accepts no writes; push to"):
            push(reader, RegistryTree(client, client.root))


def test_the_replicas_of_a_local_cluster_are_targets_each(stand: Stand) -> None:
    asked = AccessOptions()
    sites = stand.sites(users={"rw": "rw-word"})
    (target,) = Cluster.load(stand.config, sites).replicas(asked).values()
    assert str(target.root) == f"{stand.registry.address}/{LOGICAL_PATH}"
    with target.open(ignore) as tree:
        tree.client.ping()
        assert list(tree.client.catalogue()) == []
    direct = stand.write("direct.yaml", upstream("Direct", "reg.example/dkp"))
    with pytest.raises(ForbiddenByModeError, match=r"no replicas .* reg.example/dkp"):
        Cluster.load(direct, None).replicas(asked)
    with pytest.raises(RouteError, match="mirror-pu"):
        Cluster.load(stand.config, stand.sites()).replicas(asked)


@pytest.fixture
def cluster(
    make_embedded_registry: MakeEmbeddedRegistry, authority: Authority, write: Write
) -> tuple[list[EmbeddedRegistry], tuple[Any, ...]]:
    """Two replicas of a cluster in Local mode, and the options that describe it."""
    hosts = [free_loopback(REGISTRY_PORT) for _ in range(2)]
    auth = BasicAuth({"rw": User("rw-word"), "mirror-pusher": User("pusher-word")})
    replicas = [
        make_embedded_registry(
            host=host, port=REGISTRY_PORT, tls=certificate(authority, host), auth=auth
        )
        for host in hosts
    ]
    sites = {
        "masters": hosts,
        "caFile": str(authority.certificate),
        "users": {"rw": "rw-word", "mirror-pusher": "pusher-word"},
    }
    config = write("local.yaml", module_config({"mode": "Local"}))
    return replicas, ("--module-config", config, "--sites", write("sites.yaml", sites))


def test_a_sync_brings_the_masters_of_a_local_cluster_to_one_state(
    bundle: Path, cluster: tuple[list[EmbeddedRegistry], tuple[Any, ...]]
) -> None:
    (first, second), files = cluster
    call_mirror("push", bundle, *files).succeeded()
    assert second.storage.repositories() == []
    synced = call_mirror("sync", *files, "--json").succeeded()
    assert synced.document["leader"] == f"{first.address}/{LOGICAL_PATH}"
    assert [one["outcome"] for one in synced.document["replicas"]] == ["synced"]
    assert second.storage.repositories() == first.storage.repositories()
    assert "word" not in synced.text
    # A master goes by its address, its address with port, or its full name.
    host = second.address.rpartition(":")[0]
    for name in (host, second.address, f"{second.address}/{LOGICAL_PATH}"):
        again = call_mirror("sync", "--from", name, *files, "--json").succeeded()
        assert again.document["leader"] == f"{second.address}/{LOGICAL_PATH}"
        (one,) = again.document["replicas"]
        assert one["replica"] == f"{first.address}/{LOGICAL_PATH}"
        assert one["outcome"] == "equal"


def test_the_login_of_the_masters_goes_to_no_registry_beside_them(
    bundle: Path,
    cluster: tuple[list[EmbeddedRegistry], tuple[Any, ...]],
    make_embedded_registry: MakeEmbeddedRegistry,
    authority: Authority,
) -> None:
    (first, second), files = cluster
    outside = make_embedded_registry(tls=certificate(authority, "127.0.0.1"))
    call_mirror(
        "push", bundle, f"{outside.address}/dkp/ee", "--ca", authority.certificate
    ).succeeded()
    login = ("--registry-login", "rw", "--registry-password", "rw-word")
    synced = call_mirror(
        *("sync", "--from", f"{outside.address}/dkp/ee", *files, *login),
        *("--ca", authority.certificate, "--json"),
    ).succeeded()
    assert [one["outcome"] for one in synced.document["replicas"]] == ["synced", "synced"]
    assert first.storage.repositories() == second.storage.repositories()
    assert all("authorization" not in one.headers for one in outside.requests)


def test_a_sync_of_a_cluster_says_what_it_lacks(
    cluster: tuple[list[EmbeddedRegistry], tuple[Any, ...]], write: Write, authority: Authority
) -> None:
    (first, _), (_, config, *_) = cluster
    call_mirror("sync").failed(2, "--from LEADER --to REPLICA", "--module-config")
    call_mirror("sync", "--sites", write("alone.yaml", {})).failed(2, "--module-config")
    direct = write("direct.yaml", upstream("Direct", "reg.example/dkp"))
    call_mirror("sync", "--module-config", direct).failed(2, "no replicas", "reg.example/dkp")
    host = first.address.rpartition(":")[0]
    one = {"masters": [host], "caFile": str(authority.certificate), "users": {"rw": "rw-word"}}
    sites = ("--sites", write("one.yaml", one))
    call_mirror("sync", "--module-config", config, *sites).failed(
        2, "one replica alone", first.address
    )
