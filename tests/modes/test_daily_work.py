"""docs/client.md, run as it stands against real parts in every mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import mirror
from examples.release_tree import build
from mirror import ClusterAccess, Digest, ModeClient, Plane, RegistrySettings
from mirror.errors import ForbiddenByModeError
from mirror.modes import RegistryUser
from mirror.modes.settings import NO_ACCESS, Account
from mirror.registry import RegistryClient
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTarget
from tests.support.mode_stack import in_cluster_relay, master
from tests.support.program import ROOT
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.release_source import TINY
from tests.support.runnable_images import client
from tests.support.running_cluster import (
    LOCAL,
    Cluster,
    by_name,
    running,
    upstream_ca,
    with_upstream,
)
from tests.support.service import resolving
from tests.support.tls import Authority

PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")
OPENING, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
READING = BLOCKS[: next(n for n, block in enumerate(BLOCKS) if "OPERATOR" in block)]
CHANGING = BLOCKS[len(READING) :]


def fill(to: RegistryClient, root: str) -> None:
    """Publish a small release tree at `root`."""
    store = MemoryStore()
    build(replace(TINY, root=root, components=1, packages=(), plugins=()), store)
    wanted = store.inventory()
    target = RegistryTarget(to, str)
    with to:
        transfer(make_plan(wanted, target.held(wanted)), store, target)


@dataclass
class World:
    """What a controller knows of its cluster, and how it names what takes its changes."""

    settings: RegistrySettings
    access: ClusterAccess = NO_ACCESS
    prefix: str = ""

    def namespace(self) -> dict[str, Any]:
        return {"mirror": mirror, "Path": Path, "settings": self.settings, "access": self.access}


def outside(folder: Path, stack: ExitStack) -> RealRegistry:
    """A registry outside of the cluster, with a login and a certificate of its own authority."""
    authority = Authority.create(folder / "authority")
    upstream = RealRegistry(folder / "up", tls=authority.issue(), htpasswd=HTPASSWD)
    stack.enter_context(upstream)
    account = Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))
    fill(client(upstream.address, upstream_ca(upstream), account), "dkp/ee")
    return upstream


def unmanaged(folder: Path, stack: ExitStack) -> World:
    up = outside(folder, stack)
    return World(with_upstream("Unmanaged", f"{by_name(up)}/dkp/ee", ACCOUNT, upstream_ca(up)))


def direct(folder: Path, stack: ExitStack) -> World:
    """Components read through the in-cluster proxy, by the name of its Service."""
    up = outside(folder, stack)
    settings = with_upstream("Direct", f"{by_name(up)}/dkp/ee", ACCOUNT, upstream_ca(up))
    cluster = Cluster.create(folder / "direct", 1)
    cluster.render(settings)
    stack.enter_context(running(in_cluster_relay(cluster.out, cluster.worker)))
    service = stack.enter_context(resolving("registry.d8-system.svc"))
    service.append(("127.0.0.1", cluster.worker.ports.registry))
    return World(settings, cluster.sites)


def proxy(folder: Path, stack: ExitStack) -> World:
    """Two caches, the first of them dead, before a registry with a token server."""
    source = Cluster.create(folder / "upstream", 1)
    source.render(LOCAL)
    (up,) = source.masters
    stack.enter_context(master(source.out, up))
    writer = source.account(RegistryUser.RW)
    fill(client(up.registry, source.ca, writer), "system/deckhouse")
    cluster = Cluster.create(folder / "proxy", 2, addresses=True)
    repo = f"{up.registry}/system/deckhouse"
    login = (writer.name, writer.password.get_secret_value())
    cluster.render(with_upstream("Proxy", repo, login, source.ca))
    trust = {"SSL_CERT_FILE": str(source.ca)}
    stack.enter_context(master(cluster.out, cluster.masters[1], trust))
    return World(with_upstream("Proxy", repo, login, source.ca), cluster.sites, f"{repo}/")


def local(folder: Path, stack: ExitStack) -> World:
    """Three replicas: one is dead, one is empty, one has it all."""
    cluster = Cluster.create(folder / "local", 3, addresses=True)
    cluster.render(LOCAL)
    for node in cluster.masters[1:]:
        stack.enter_context(master(cluster.out, node))
    writer = cluster.account(RegistryUser.MIRROR_PUSHER)
    fill(client(node.registry, cluster.ca, writer), "system/deckhouse")
    return World(LOCAL, cluster.sites)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, quick_keys: None) -> Iterator[World]:
    with ExitStack() as stack:
        yield request.param(tmp_path, stack)


def test_the_page_shows_each_thing_in_two_lines() -> None:
    assert all(len(block.splitlines()) <= 2 for block in BLOCKS)
    for name in ("list_releases", "read_release", "resolve", "exists", "blob_size", "tags"):
        assert f"{name}(" in "".join(READING)
    for name in ("find_image", "read_image", "extract_image", "save_blob"):
        assert f"mirror.{name}(" in "".join(READING)
    for name in ("copy_image", "delete_manifest"):
        assert f"{name}(" in "".join(CHANGING)


@pytest.mark.parametrize("world", [unmanaged, direct, proxy, local], indirect=True)
def test_a_controllers_daily_work_is_the_same_in_every_mode(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = world.namespace()
    exec("\n".join(OPENING.splitlines()[-2:]), names)  # the files are not there
    with names["registry"]:
        for block in READING:
            exec(block, names)
        assert [f"v{one}" for one in names["releases"].versions] == list(TINY.versions)
        assert f"v{names['stable'].version}" == TINY.channels["stable"]
        assert f"v{names['console'].version}" == TINY.modules[0].channels["stable"]
        assert names["named"].digest == names["image"].digest
        assert set(TINY.versions) <= set(names["tags"])
        assert (tmp_path / "installer/version").read_bytes() == names["found"]["deckhouse/version"]
        saved = (tmp_path / "layer.tar.gz").read_bytes()
        assert Digest.of(saved) == names["layer"].digest
        change(world, names)


def change(world: World, names: dict[str, Any]) -> None:
    if world.prefix:  # a cache takes nothing, and says who does
        exec(CHANGING[0], names)
        with names["operator"], pytest.raises(ForbiddenByModeError) as caught:
            exec(CHANGING[1], names)
        assert world.prefix.rstrip("/") in str(caught.value)
    exec(CHANGING[0], names)
    operator = names["operator"]
    assert isinstance(operator, ModeClient)
    assert operator.plane is Plane.OPERATOR
    with operator:
        place = f"{world.prefix}copies/install"
        exec(CHANGING[1].replace("copies/install", place), names)
        assert operator.resolve(place, "v1.70.0") == names["named"]
        exec(CHANGING[2].replace("copies/install", place), names)
        assert operator.resolve(place, "v1.70.0") is None
