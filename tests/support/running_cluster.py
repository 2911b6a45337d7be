"""Clusters whose rendered files are run on loopback, and what their tests share."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from examples.release_tree.images import Image
from mirror.modes import CONTAINERD_HOSTS, RegistryUser
from mirror.modes.settings import Account, ClusterAccess, RegistrySettings
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pulling import Containerd
from mirror.nodeconfig.render import Rendered, RenderOptions, access_of, render, write_cluster
from mirror.nodeconfig.service_secrets import ServiceSecrets, prepare_secrets
from mirror.nodeconfig.services import Distribution
from tests.support.mode_stack import (
    DEBIAN_NGINX,
    ContainerdProcess,
    Registry,
    in_tree,
    loopback_node,
    master_node,
)
from tests.support.program import call_mirror
from tests.support.real_registry import ACCOUNT, RealRegistry
from tests.support.runnable_images import client, image, push

LOGICAL = "registry.d8-system.svc:5001/system/deckhouse"
PLATFORM, INSTALLER = image("platform"), image("installer")
"""What the bundle of these tests holds, at v1.70.0."""
NAMES = ("master-0", "master-1", "master-2")


@dataclass
class Cluster:
    """Nodes, secrets, and the trees that were rendered for them below `out`."""

    out: Path
    nodes: tuple[Node, ...]
    kept: ServiceSecrets
    options: RenderOptions
    registries: dict[str, Registry] = field(default_factory=dict)

    @classmethod
    def create(cls, out: Path, masters: int, *, addresses: bool = False) -> Cluster:
        """With `addresses` each master has one of its own, and the registry's usual port."""
        make = master_node if addresses else loopback_node
        nodes = tuple(make(NAMES[number]) for number in range(masters))
        nodes = (*nodes, loopback_node("worker-0", master=False))
        options = RenderOptions(
            Containerd.STOCK,
            Distribution.STOCK,
            DEBIAN_NGINX,
            in_cluster_ports=nodes[-1].ports,  # not those where a master listens
            in_place_root=PurePosixPath(out),
        )
        now = datetime.datetime.now(datetime.UTC)
        return cls(out, nodes, prepare_secrets(None, nodes, now), options)

    def render(self, settings: RegistrySettings, previous: RegistrySettings | None = None) -> None:
        write_cluster(self.rendered(settings, previous), self.out)

    def rendered(
        self, settings: RegistrySettings, previous: RegistrySettings | None = None
    ) -> Rendered:
        return render(settings, self.nodes, self.kept, previous=previous, options=self.options)

    def render_masters(self, settings: RegistrySettings, previous: RegistrySettings | None) -> None:
        """The masters' part alone; the worker, which pulls, goes on with what it has."""
        rendered = self.rendered(settings, previous)
        masters = {node.name: rendered.nodes[node.name] for node in self.masters}
        write_cluster(replace(rendered, nodes=masters, in_cluster={}), self.out)

    @property
    def worker(self) -> Node:
        return self.nodes[-1]

    @property
    def masters(self) -> tuple[Node, ...]:
        return self.nodes[:-1]

    @property
    def hosts(self) -> Path:
        """The worker's tree for containerd."""
        return in_tree(self.out, "nodes/worker-0", CONTAINERD_HOSTS)

    @property
    def ca(self) -> Path:
        path = self.out / "ca.crt"
        path.write_text(self.kept.authority.certificate)
        return path

    @property
    def sites(self) -> ClusterAccess:
        return access_of(self.nodes, self.kept)

    def sites_file(self) -> Path:
        """What `--sites` reads."""
        sites = self.sites
        document = {
            "masters": list(sites.masters),
            "ca": sites.ca,
            "users": {
                user.value: account.password.get_secret_value()
                for user, account in sites.accounts.items()
            },
        }
        path = self.out / "sites.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def account(self, user: RegistryUser) -> Account:
        return self.kept.users[user].account

    def login(self, user: RegistryUser) -> str:
        one = self.account(user)
        return f"{one.name}:{one.password.get_secret_value()}"


def direct(repo: str, account: tuple[str, str], ca: Path) -> RegistrySettings:
    return with_upstream("Direct", repo, account, ca)


def with_upstream(mode: str, repo: str, account: tuple[str, str], ca: Path) -> RegistrySettings:
    section = {
        "imagesRepo": repo,
        "username": account[0],
        "password": account[1],
        "ca": ca.read_text(),
    }
    return RegistrySettings.load({"mode": mode, mode.lower(): section})


LOCAL = RegistrySettings.load({"mode": "Local"})


def upstream_ca(registry: RealRegistry) -> Path:
    assert registry.tls is not None
    return registry.tls.certificate.with_name("ca.crt")


def by_name(registry: RealRegistry) -> str:
    """nginx verifies certificates for names alone."""
    return f"localhost:{registry.port}"


def fill(registry: RealRegistry, repository: str, tag: str, one: Image) -> None:
    from pydantic import SecretStr

    account = Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))
    with client(registry.address, upstream_ca(registry), account) as to:
        push(to, repository, tag, one)


def push_outside(bundle: Path, repo: str, ca: Path, account: tuple[str, str]) -> None:
    """Bring a bundle to a registry outside of the cluster."""
    login = ("--registry-login", account[0], "--registry-password", account[1])
    call_mirror("push", bundle, repo, "--ca", ca, *login).succeeded()


@contextmanager
def running(*servers: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for server in servers:
            server.check()
            server.start()
            stack.callback(server.stop)
        yield


def pull(containerd: ContainerdProcess, cluster: Cluster, name: str) -> None:
    """Let a node pull an image as the user that reads, and forget it again."""
    reference = f"{LOGICAL}/{name}:v1"
    done = containerd.pull(reference, cluster.hosts, login=cluster.login(RegistryUser.RO))
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)
