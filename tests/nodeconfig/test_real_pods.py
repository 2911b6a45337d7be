"""The static pods of nginx at work: containers made of their rendered manifests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx

from mirror.modes import RegistryUser
from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.render import write_cluster
from tests.support.kubelet import Kubelet
from tests.support.mode_stack import ContainerdProcess, master
from tests.support.real_registry import ACCOUNT, RealRegistry
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import (
    LOCAL,
    Cluster,
    by_name,
    direct,
    fill,
    pull,
    upstream_ca,
)

BALANCER, RELAY = "registry-proxy.yaml", "registry-relay.yaml"


class Worker:
    """The cluster's worker: containerd's files in place, and nginx in containers."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self._out = cluster, folder / "node"
        self._pods = dataclasses.replace(
            cluster, options=dataclasses.replace(cluster.options, in_place_root=None)
        )
        images = Images(nginx="registry.example/nginx:1")
        self._pods.options = dataclasses.replace(self._pods.options, images=images)
        self.kubelet = Kubelet(self._out / "nodes/worker-0", folder / "kubelet")

    def render(self, settings: RegistrySettings, previous: RegistrySettings | None = None) -> None:
        """Both kinds of files; the pods follow them."""
        self.cluster.render(settings, previous)
        write_cluster(self._pods.rendered(settings, previous), self._out)
        self.kubelet.sync()


def test_a_switch_restarts_neither_the_old_way_nor_the_new_one(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "dkp/ee/old", "v1", image("old"))
    cluster = Cluster.create(tmp_path / "switch", 1)
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    worker = Worker(cluster, tmp_path)
    kubelet = worker.kubelet
    (node,) = cluster.masters
    cluster.render(LOCAL, before)
    with kubelet, master(cluster.out, node):
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RW)) as to:
            push(to, "system/deckhouse/new", "v1", image("new"))
        worker.render(before)
        assert [*kubelet.pids()] == [RELAY]
        assert kubelet.probe(RELAY, "livenessProbe")
        assert kubelet.probe(RELAY, "readinessProbe")
        pull(containerd, cluster, "old")
        relay = kubelet.pids()[RELAY]

        worker.render(LOCAL, before)
        assert kubelet.pids()[RELAY] == relay, "the old way is the same process"
        assert kubelet.probe(BALANCER, "readinessProbe")
        balancer = kubelet.pids()[BALANCER]
        for name in ("old", "new"):
            pull(containerd, cluster, name)

        worker.render(LOCAL)
        assert kubelet.pids() == {BALANCER: balancer}, "and so is the new one"
        pull(containerd, cluster, "new")


def test_nginx_runs_without_rights_and_lives_on_when_the_masters_do_not(
    tmp_path: Path, upstream: RealRegistry
) -> None:
    cluster = Cluster.create(tmp_path / "local", 1)
    worker = Worker(cluster, tmp_path)
    kubelet = worker.kubelet
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    with kubelet:
        worker.render(LOCAL, before)
        for (pid,) in kubelet.pids().values():
            status = Path(f"/proc/{pid}/status").read_text()
            assert "\nUid:\t64535\t64535\t64535\t64535\n" in status
            assert "\nCapEff:\t0000000000000000\n" in status
            assert "\nNoNewPrivs:\t1\n" in status
        assert kubelet.probe(BALANCER, "livenessProbe")
        assert not kubelet.probe(BALANCER, "readinessProbe")
        with master(cluster.out, cluster.masters[0]):
            assert kubelet.probe(BALANCER, "readinessProbe")
        assert kubelet.probe(BALANCER, "livenessProbe")
        assert not kubelet.probe(BALANCER, "readinessProbe")


def test_a_relay_with_another_upstream_starts_anew_and_serves_both(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    for path in ("dkp/ee/old", "dkp/fe/new"):
        fill(upstream, path, "v1", image(path))
    cluster = Cluster.create(tmp_path / "direct", 1)
    worker = Worker(cluster, tmp_path)
    kubelet = worker.kubelet
    first, second = (
        direct(f"{by_name(upstream)}/{path}", ACCOUNT, upstream_ca(upstream))
        for path in ("dkp/ee", "dkp/fe")
    )
    with kubelet:
        worker.render(first)
        before = kubelet.pids()
        worker.render(second, first)
        assert kubelet.pids() != before
        for name in ("old", "new"):
            pull(containerd, cluster, name)
        worker.render(second)
        pull(containerd, cluster, "new")
        nowhere = httpx.get(f"http://{cluster.worker.relay}/v2/")
        assert nowhere.status_code == 404
