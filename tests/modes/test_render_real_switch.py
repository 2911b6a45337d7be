"""Switches at work: containerd pulls meanwhile, from rendered files."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from mirror.modes import constants
from mirror.modes.sites import User
from tests.modes.images import client, image, push
from tests.modes.stack import (
    LOCAL,
    LOGICAL,
    Cluster,
    by_name,
    direct,
    fill,
    running,
    upstream_ca,
)
from tests.support.mode_stack import (
    ContainerdProcess,
    balancer,
    in_tree,
    master,
    relay,
)
from tests.support.real_registry import ACCOUNT, RealRegistry


def test_during_a_transition_each_side_serves_what_the_other_lacks(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "dkp/ee/old", "v1", image("old"))
    cluster = Cluster.create(tmp_path / "switch", 1)
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    cluster.render(LOCAL, before)
    login = cluster.login(User.RO)
    (node,) = cluster.masters
    with master(cluster.out, node):
        with client(node.registry, cluster.ca, cluster.account(User.RW)) as to:
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
            relay_conf = constants.BALANCER_CONFIG / "relay.conf"
            assert not in_tree(cluster.out, "nodes/worker-0", relay_conf).exists()


class Pulling:
    """Pulls one image again and again in a thread; `failures` is what containerd said."""

    def __init__(
        self, containerd: ContainerdProcess, reference: str, cluster: Cluster, login: str
    ) -> None:
        self.failures: list[str] = []
        self._containerd, self._reference = containerd, reference
        self._cluster, self._login = cluster, login
        self._done = 0
        self._more = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pulling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def wait_for(self, pulls: int) -> None:
        """Until so many more were tried."""
        with self._more:
            wanted = self._done + pulls
            assert self._more.wait_for(lambda: self._done >= wanted, timeout=60)

    def _run(self) -> None:
        while not self._stop.is_set():
            done = self._containerd.pull(self._reference, self._cluster.hosts, login=self._login)
            if done.returncode:
                self.failures.append(done.stderr)
            self._containerd.forget(self._reference)
            with self._more:
                self._done += 1
                self._more.notify_all()


def test_no_pull_fails_during_a_switch_from_direct_to_local(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    one = image("switch")
    fill(upstream, "dkp/ee/install", "v1", one)
    cluster = Cluster.create(tmp_path / "switch", 1)
    (node,) = cluster.masters
    before = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    cluster.render(before)
    way = relay(cluster.out, cluster.worker)
    with ExitStack() as stack:
        stack.enter_context(running(way))
        login = cluster.login(User.RO)
        pulling = stack.enter_context(Pulling(containerd, f"{LOGICAL}/install:v1", cluster, login))
        pulling.wait_for(2)
        cluster.render(LOCAL, before)
        way.reload()
        pulling.wait_for(2)
        stack.enter_context(master(cluster.out, node))
        stack.enter_context(running(balancer(cluster.out, cluster.worker)))
        with client(node.registry, cluster.ca, cluster.account(User.RW)) as to:
            push(to, "system/deckhouse/install", "v1", one)
        cluster.render(LOCAL)
        pulling.wait_for(2)  # one may have begun with the former file
        way.stop()
        upstream.stop()
        pulling.wait_for(3)
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
        login = cluster.login(User.RO)
        pulling = stack.enter_context(Pulling(containerd, f"{LOGICAL}/install:v1", cluster, login))
        pulling.wait_for(2)
        cluster.render(after, before)
        way.reload()
        pulling.wait_for(2)
        cluster.render(after)
        pulling.wait_for(2)
        way.reload()
        pulling.wait_for(2)
        assert pulling.failures == []


def test_two_spellings_of_one_registry_are_two_ways_for_containerd(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    """What keeps the old path in a transition: `https://host/v2` is `https://host`, once more."""
    fill(upstream, "system/deckhouse/only", "v1", image("spelling"))
    folder = tmp_path / "hosts" / constants.LOGICAL_HOST
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
