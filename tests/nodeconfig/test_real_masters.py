"""Local mode from rendered manifests alone: every container of every pod, confined as it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.errors import MirrorError
from mirror.modes import constants
from mirror.modes.constants import RegistryUser
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.render import write_cluster
from tests.support.kubelet import Image, Kubelet
from tests.support.mode_stack import ContainerdProcess
from tests.support.patience import wait_until
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import LOCAL, LOGICAL, Cluster

SERVICES, BALANCER = "registry-nodeservices.yaml", "registry-proxy.yaml"
NAMES = Images("r.example/distribution", "r.example/auth", "r.example/mirror", "r.example/nginx")
IMAGES = {
    "r.example/distribution": Image(("docker-registry",), {"OTEL_TRACES_EXPORTER": "none"}),
    "r.example/auth": Image.of_module("tests.support.token_server"),
    "r.example/mirror": Image.of_module("mirror"),
}


class Machines:
    """A cluster's nodes, each with a kubelet."""

    def __init__(self, folder: Path, masters: int) -> None:
        self.cluster = Cluster.create(folder / "cluster", masters, addresses=True)
        self.cluster.render(LOCAL)  # in place, for the containerd of this machine
        self.out = folder / "nodes"
        options = dataclasses.replace(self.cluster.options, in_place_root=None, images=NAMES)
        pods = dataclasses.replace(self.cluster, options=options)
        write_cluster(pods.rendered(LOCAL), self.out)
        self.kubelets = {
            node.name: Kubelet(self.out / "nodes" / node.name, folder / node.name, IMAGES)
            for node in self.cluster.nodes
        }

    @contextmanager
    def changed(self, node: str, pod: str, how: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """With a manifest that somebody edited."""
        path = self.out / "nodes" / node / str(constants.MANIFESTS / pod).lstrip("/")
        before = path.read_text()
        document = yaml.safe_load(before)
        how(document)
        path.write_text(yaml.safe_dump(document))
        yield
        path.write_text(before)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    return Machines(tmp_path_factory.mktemp("machines"), 2)


def test_what_is_pushed_to_one_master_is_pulled_when_only_the_other_lives(
    machines: Machines, containerd: ContainerdProcess
) -> None:
    cluster, kubelets = machines.cluster, machines.kubelets
    first, second = cluster.masters
    with ExitStack() as running:
        with kubelets[first.name]:
            with client(first.registry, cluster.ca, cluster.account(RegistryUser.RW)) as to:
                push(to, "system/deckhouse/app", "v1", image("app"))
            running.enter_context(kubelets[second.name])
            # Last: a balancer that found nobody asks nobody for the next ten seconds.
            running.enter_context(kubelets["worker-0"])

            def copied() -> bool:
                reader = cluster.account(RegistryUser.RO)
                with client(second.registry, cluster.ca, reader) as there:
                    try:
                        return "v1" in there.tags("system/deckhouse/app")
                    except MirrorError:
                        return False

            wait_until(copied)
            for master in cluster.masters:
                kubelet = kubelets[master.name]
                for pod in (SERVICES, BALANCER):
                    assert kubelet.probe(pod, "livenessProbe")
                    assert kubelet.probe(pod, "readinessProbe")
                    kubelet.check_ports(pod)
                for pid in kubelet.pids()[SERVICES]:
                    status = Path(f"/proc/{pid}/status").read_text()
                    assert "\nCapEff:\t0000000000000000\n" in status
                    assert "\nNoNewPrivs:\t1\n" in status
        reference = f"{LOGICAL}/app:v1"
        done = containerd.pull(reference, cluster.hosts, login=cluster.login(RegistryUser.RO))
        assert done.returncode == 0, done.stderr
        containerd.forget(reference)


# -- the stand-ins are as strict as what they stand for --------------------------------------------


@pytest.mark.parametrize(
    ("node", "pod", "how", "message"),
    [
        (
            "master-0",
            SERVICES,
            lambda pod: pod["spec"]["containers"][1]["args"].remove("-logtostderr"),
            "log: cannot create log",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["containers"][0].pop("ports"),
            "nginx listens at .* does not declare",
        ),
        (
            "master-0",
            BALANCER,
            lambda pod: pod["spec"]["containers"][0]["ports"][0].update(
                {"hostIP": "0.0.0.0", "containerPort": 5001}
            ),
            r"NodePorts: 0\.0\.0\.0:5001 is that of",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["volumes"][0]["hostPath"].update({"path": "/etc/nowhere"}),
            "hostPath type check failed: /etc/nowhere",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["volumes"].pop(),
            "runtime",
        ),
    ],
    ids=["log file", "port not declared", "port taken", "no such folder", "no such volume"],
)
def test_a_pod_that_a_real_node_would_not_run_does_not_run_here(
    machines: Machines,
    node: str,
    pod: str,
    how: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    refused = (AssertionError, KeyError, pytest.fail.Exception)
    with machines.changed(node, pod, how), pytest.raises(refused, match=message):  # noqa: SIM117
        with machines.kubelets[node]:
            pass
