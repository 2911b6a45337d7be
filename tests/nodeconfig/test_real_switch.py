"""Switches at work: containerd pulls meanwhile, from rendered files."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from mirror.modes import LOGICAL_HOST, ConditionType, ModeKind, RegistryUser, StoreContent
from mirror.nodeconfig.tree import BALANCER_CONFIG
from tests.support.mode_stack import ContainerdProcess, balancer, in_tree, master, relay
from tests.support.mode_stage import Pulling, Stage
from tests.support.real_registry import ACCOUNT, RealRegistry
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import (
    INSTALLER,
    LOCAL,
    LOGICAL,
    Cluster,
    by_name,
    direct,
    fill,
    push_outside,
    running,
    upstream_ca,
    with_upstream,
)

INSTALL = f"{LOGICAL}/install:v1.70.0"


def test_during_a_transition_each_side_serves_what_the_other_lacks(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "dkp/ee/old", "v1", image("old"))
    cluster = Cluster.create(tmp_path / "switch", 1)
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    cluster.render(LOCAL, before)
    login = cluster.login(RegistryUser.RO)
    (node,) = cluster.masters
    with master(cluster.out, node):
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RW)) as to:
            push(to, "system/deckhouse/new", "v1", image("new"))
        with running(relay(cluster.out, cluster.worker), balancer(cluster.out, cluster.worker)):
            for name in ("old", "new"):
                done = containerd.pull(f"{LOGICAL}/{name}:v1", cluster.hosts, login=login)
                assert done.returncode == 0, done.stderr
                containerd.forget(f"{LOGICAL}/{name}:v1")
            cluster.render(LOCAL)
            done = containerd.pull(f"{LOGICAL}/new:v1", cluster.hosts, login=login)
            assert done.returncode == 0, done.stderr
            containerd.forget(f"{LOGICAL}/new:v1")
            relay_conf = BALANCER_CONFIG / "relay.conf"
            assert not in_tree(cluster.out, "nodes/worker-0", relay_conf).exists()


def test_no_pull_fails_during_a_switch_from_direct_to_local(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess, bundle: Path
) -> None:
    repo = f"{by_name(upstream)}/dkp/ee"
    push_outside(bundle, repo, upstream_ca(upstream), ACCOUNT)
    cluster = Cluster.create(tmp_path / "switch", 3, addresses=True)
    before = direct(repo, ACCOUNT, upstream_ca(upstream))
    login = cluster.login(RegistryUser.RO)
    pulling = Pulling(containerd, INSTALL, cluster, login, pause_s=0.2)
    with Stage(cluster, before, bundle) as stage, pulling:
        pulling.wait_for(1)
        plan = stage.switch(LOCAL, pulling, INSTALLER)
        assert [step.condition for step in plan.steps][1:3] == [
            ConditionType.NODE_SERVICES,
            ConditionType.IMAGES,  # pushed to what has started, and checked at every master
        ]
        upstream.stop()
        pulling.wait_for_new()
        relay_conf = BALANCER_CONFIG / "relay.conf"
        assert not in_tree(cluster.out, "nodes/worker-0", relay_conf).exists()
    assert pulling.failures == []


def test_no_pull_fails_from_local_by_direct_to_proxy(
    tmp_path: Path, containerd: ContainerdProcess, bundle: Path
) -> None:
    outside = Cluster.create(tmp_path / "upstream", 1)
    outside.render(LOCAL)
    (source,) = outside.masters
    repo = f"localhost:{source.ports.registry}/system/deckhouse"
    writer, reader = outside.account(RegistryUser.RW), outside.account(RegistryUser.RO)
    cluster = Cluster.create(tmp_path / "switch", 2, addresses=True)
    # `ctr` hands over one login, whichever registry is asked; a kubelet has one for each.
    cluster.kept = dataclasses.replace(cluster.kept, users=outside.kept.users)
    section = (repo, (reader.name, reader.password.get_secret_value()), outside.ca)
    login = cluster.login(RegistryUser.RO)
    pulling = Pulling(containerd, INSTALL, cluster, login, pause_s=0.2)
    with master(outside.out, source), Stage(cluster, LOCAL, bundle) as stage:
        push_outside(bundle, repo, outside.ca, (writer.name, writer.password.get_secret_value()))
        stage.mirror("push", bundle).succeeded()
        stage.mirror("sync").succeeded()
        stage.store = StoreContent.PLAIN
        proxy = with_upstream("Proxy", *section)
        refused = stage.plan(proxy)
        assert refused.path == (ModeKind.DIRECT, ModeKind.PROXY)
        assert not refused.allowed
        with pulling:
            pulling.wait_for(1)
            for kind in refused.path:
                stage.switch(with_upstream(kind.mode, *section), pulling, INSTALLER)
    assert pulling.failures == []


def test_no_pull_fails_when_a_cluster_becomes_managed(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess, bundle: Path
) -> None:
    """Unmanaged → Direct: images get another name, and each name works as long as it is in use."""
    repo = f"{by_name(upstream)}/dkp/ee"
    push_outside(bundle, repo, upstream_ca(upstream), ACCOUNT)
    cluster = Cluster.create(tmp_path / "switch", 1, addresses=True)
    section = (repo, ACCOUNT, upstream_ca(upstream))
    unmanaged, wanted = (with_upstream(mode, *section) for mode in ("Unmanaged", "Direct"))
    login = cluster.login(RegistryUser.RO)
    pulling = Pulling(containerd, f"{repo}/install:v1.70.0", cluster, login, pause_s=0.2)
    with Stage(cluster, unmanaged, bundle) as stage, pulling:
        pulling.wait_for(1)
        stage.switch(wanted, pulling, INSTALLER)
        assert pulling.reference == INSTALL
        assert not (cluster.hosts / by_name(upstream)).exists()
    assert pulling.failures == []


def test_no_pull_fails_when_the_path_on_the_same_host_changes(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    one = image("path")
    for path in ("dkp/ee", "dkp/fe"):
        fill(upstream, f"{path}/install", "v1", one)
    cluster = Cluster.create(tmp_path / "switch", 1)
    before, after = (
        direct(f"{by_name(upstream)}/{path}", ACCOUNT, upstream_ca(upstream))
        for path in ("dkp/ee", "dkp/fe")
    )
    cluster.render(before)
    way = relay(cluster.out, cluster.worker)
    with ExitStack() as stack:
        stack.enter_context(running(way))
        login = cluster.login(RegistryUser.RO)
        pulling = Pulling(containerd, f"{LOGICAL}/install:v1", cluster, login, pause_s=0.2)
        stack.enter_context(pulling)
        pulling.wait_for_new()
        cluster.render(after, before)
        way.reload()
        pulling.wait_for_new()
        cluster.render(after)
        pulling.wait_for_new()
        way.reload()
        pulling.wait_for_new()
        assert pulling.failures == []


def test_two_spellings_of_one_registry_are_two_ways_for_containerd(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    """What keeps the old path in a transition: `https://host/v2` is `https://host`, once more."""
    fill(upstream, "system/deckhouse/only", "v1", image("spelling"))
    folder = tmp_path / "hosts" / LOGICAL_HOST
    folder.mkdir(parents=True)
    ca = upstream_ca(upstream)
    (folder / "hosts.toml").write_text(
        "".join(
            f'[host."https://{upstream.address}{suffix}"]\ncapabilities = ["pull", "resolve"]\n'
            f'ca = ["{ca}"]\n[host."https://{upstream.address}{suffix}".header]\n'
            f'Authorization = "Basic {"dGVzdGVyOnMzY3JldA==" if works else "bm86bm8="}"\n'
            for suffix, works in (("/v2", False), ("", True))
        )
    )
    reference = f"{LOGICAL}/only:v1"
    done = containerd.pull(reference, tmp_path / "hosts")
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)
