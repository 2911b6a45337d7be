"""A cluster's machines, each with a kubelet that runs what was rendered for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig.objects import PushIngress
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.render import Rendered, RenderOptions, write_cluster
from mirror.nodeconfig.services import Distribution
from mirror.nodeconfig.tree import MANIFESTS, STATIC_PODS
from tests.support import fork_registry
from tests.support.kubelet import Image, Kubelet
from tests.support.kubernetes import endpoints, pods_of
from tests.support.processes import free_port
from tests.support.running_cluster import Cluster

SERVICES, BALANCER = "registry-nodeservices.yaml", "registry-proxy.yaml"
NAMES = Images("r.example/distribution", "r.example/auth", "r.example/mirror", "r.example/nginx")
_BESIDE = {
    "r.example/auth": Image.of_module("tests.support.token_server"),
    "r.example/mirror": Image.of_module("mirror"),
}
IMAGES = {
    Distribution.STOCK: {
        "r.example/distribution": Image(("docker-registry",), {"OTEL_TRACES_EXPORTER": "none"}),
        **_BESIDE,
    },
    Distribution.DECKHOUSE: {
        "r.example/distribution": Image.of_module(
            "tests.support.fork_registry",
            *(Path("/etc/passwd"), Path("/etc/group")),
            within=fork_registry.BETWEEN,
            stop=fork_registry.STOP,
        ),
        **_BESIDE,
    },
}


class Machines:
    """A cluster's nodes, each with a kubelet, and its objects."""

    def __init__(
        self,
        folder: Path,
        masters: int,
        settings: RegistrySettings,
        images: Images = NAMES,
        flavour: Distribution = Distribution.STOCK,
        **more: Any,
    ) -> None:
        self.cluster = Cluster.create(folder / "cluster", masters, addresses=True)
        self.cluster.options = dataclasses.replace(self.cluster.options, distribution=flavour)
        # The machines of a cluster each have a loopback; here they share one.
        self.cluster.nodes = tuple(
            dataclasses.replace(node, ports=dataclasses.replace(node.ports, token=free_port()))
            for node in self.cluster.nodes
        )
        self.out, self._settings = folder / "nodes", settings
        push = PushIngress("localhost", allow=("127.0.0.0/27",))
        given = {"in_place_root": None, "images": images, "push_ingress": push, **more}
        self._pods: RenderOptions = dataclasses.replace(self.cluster.options, **given)
        self.rendered = self.render()
        self.kubelets = {
            node.name: Kubelet(self.out / "nodes" / node.name, folder / node.name, IMAGES[flavour])
            for node in self.cluster.nodes
        }

    def render(self) -> Rendered:
        """Give every machine the files of what the cluster holds now; pods that run keep theirs."""
        self.cluster.render(self._settings)  # in place, for the containerd of this machine
        pods = dataclasses.replace(self.cluster, options=self._pods)
        self.rendered = pods.rendered(self._settings)
        write_cluster(self.rendered, self.out)
        return self.rendered

    def object(self, kind: str, name: str) -> Mapping[str, Any]:
        """One of the rendered objects."""
        (found,) = (
            one
            for one in self.rendered.objects
            if (one["kind"], one["metadata"]["name"]) == (kind, name)
        )
        return found

    def behind(self, service: str) -> list[str]:
        """Where a Service leads, by the pods of the nodes."""
        pods = (
            yaml.safe_load(tree[path].content)
            for tree in self.rendered.nodes.values()
            for path in STATIC_PODS
            if path in tree
        )
        return endpoints(self.object("Service", service), pods_of(pods))

    @contextmanager
    def changed(self, node: str, pod: str, how: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """With a manifest that somebody edited."""
        path = self.out / "nodes" / node / str(MANIFESTS / pod).lstrip("/")
        before = path.read_text()
        document = yaml.safe_load(before)
        how(document)
        path.write_text(yaml.safe_dump(document))
        yield
        path.write_text(before)


def check(kubelet: Kubelet, *pods: str) -> None:
    """Pods are alive and ready, listen where they say, and have no rights."""
    for pod in pods:
        assert kubelet.probe(pod, "livenessProbe")
        assert kubelet.probe(pod, "readinessProbe")
        kubelet.check_ports(pod)
        for pid in kubelet.pids()[pod]:
            status = Path(f"/proc/{pid}/status").read_text()
            assert "\nCapEff:\t0000000000000000\n" in status
            assert "\nNoNewPrivs:\t1\n" in status
