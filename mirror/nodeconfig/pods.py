"""Static pods: the shape of a manifest, the images that it needs, and the masters' services."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import yaml

from mirror.errors import RenderingError
from mirror.modes.routes import DATA_ROOT, HASH_ANNOTATION, NAMESPACE
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.tree import (
    BALANCER_POD,
    PKI_CONFIG,
    RELAY_POD,
    SECRET,
    SERVICE_CONFIG,
    RenderedFile,
    Tree,
    checked_image,
)

REGISTRY_PORT_NAME = "distribution"
"""By this name the module's Services find the registry's port in whatever pod is behind them."""
VERSION_ANNOTATION = "registry.deckhouse.io/config-version"
LOOPBACK = "127.0.0.1"


def manifest(
    name: str, labels: Mapping[str, str], annotations: Mapping[str, str], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """A pod on the node's network. The kubelet adds the node's name to `name`.

    It asks the node's DNS, since the image of the cluster's own DNS comes through these pods.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"heritage": "deckhouse", "module": "registry", **labels},
            "annotations": dict(annotations),
        },
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "Default",
            "priorityClassName": "system-node-critical",
            **spec,
        },
    }


def security(user: int) -> dict[str, Any]:
    """The pod's security context: everything runs as `user`, and as its group."""
    return {
        "runAsUser": user,
        "runAsGroup": user,
        "runAsNonRoot": user != 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container(
    name: str,
    image: str,
    run: Mapping[str, Sequence[str]],
    *,
    probes: Mapping[str, Any],
    mounts: Mapping[str, str],
    writable: Collection[str] = (),
    ports: Mapping[str, tuple[str, int]] = MappingProxyType({}),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """A container that runs `run` (`command`, `args`) and may do nothing else.

    `mounts` are names of volumes → paths; all but `writable` ones are read-only, like the root.
    `ports` are names, by which Services look for them → address and port. The kubelet admits no
    two pods with one port of the node, unless each names an address of its own; "" is any.
    """
    made: dict[str, Any] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        **{part: list(words) for part, words in run.items()},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **probes,
        "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}},
        "volumeMounts": [
            {"name": volume, "mountPath": path, "readOnly": volume not in writable}
            for volume, path in mounts.items()
        ],
    }
    if ports:
        made["ports"] = [
            {"name": key, "containerPort": port, **({"hostIP": host} if host else {})}
            for key, (host, port) in ports.items()
        ]
    if environment:
        made["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    return made


def probes(live: Mapping[str, Any], ready: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Both probes of a container; `live` serves for both unless `ready` is given."""
    return {
        "livenessProbe": {**live, "initialDelaySeconds": 5, "periodSeconds": 10},
        "readinessProbe": {**(ready or live), "periodSeconds": 5},
    }


def http_get(scheme: str, host: str, port: int, path: str) -> dict[str, Any]:
    """A request of the kubelet, from the node; it does not verify certificates."""
    return {"httpGet": {"scheme": scheme, "host": host, "port": port, "path": path}}


def tcp(host: str, port: int) -> dict[str, Any]:
    """A connection of the kubelet, from the node."""
    return {"tcpSocket": {"host": host, "port": port}}


def host_path(name: str, path: PurePosixPath, kind: str = "Directory") -> dict[str, Any]:
    """A folder of the node. A mounted file would stay the old one after a replacement."""
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def config_hash(files: Mapping[PurePosixPath, RenderedFile]) -> str:
    """SHA-256 of files with their names. A changed manifest makes the kubelet restart the pod."""
    digest = hashlib.sha256()
    for path, file in sorted(files.items()):
        digest.update(f"{path}\0{len(file.content)}\0".encode())
        digest.update(file.content)
    return digest.hexdigest()


# Without aliases for repeated values; by libyaml, where PyYAML has it: eight times as fast.
_Dumper = type(
    "_Dumper",
    (getattr(yaml, "CSafeDumper", yaml.SafeDumper),),
    {"ignore_aliases": lambda _, __: True},
)


def yaml_file(document: Mapping[str, Any], mode: int = SECRET) -> RenderedFile:
    """A document as a file, in block style."""
    text = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return RenderedFile(text.encode(), mode)


# -- images ----------------------------------------------------------------------------------------

_SERVICES = ("distribution", "auth", "mirror")


@dataclass(frozen=True, slots=True)
class Images:
    """The images of the containers. A pod whose images are left out is not written.

    `distribution`, `auth` and `mirror` (this program's, for replication) are of the masters' pod;
    `nginx` is of every node's balancer and relay.
    """

    distribution: str | None = None
    auth: str | None = None
    mirror: str | None = None
    nginx: str | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            checked_image(self.one(name), f"{name} image")

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the images that are given."""
        return tuple(name for name in self.__slots__ if getattr(self, name) is not None)

    def one(self, name: str) -> str:
        """The image of that name, which must be given."""
        return str(getattr(self, name))

    def serve(self, *, replication: bool) -> bool:
        """Whether the masters' pod is wanted: False if none of its images is given.

        Raises:
            RenderingError: it is wanted, and an image that it needs is missing.
        """
        given = [name for name in self.given if name in _SERVICES]
        needed = services_needed(replication=replication)
        missing = [name for name in needed if name not in given]
        if given and missing:
            raise RenderingError(
                f"images: expected {', '.join(needed)} for the static pod of the masters, found "
                f"{', '.join(given)}; give {' and '.join(missing)} too, or none of them"
            )
        return bool(given)


def services_needed(*, replication: bool) -> tuple[str, ...]:
    """The names of the images of the masters' pod."""
    return _SERVICES if replication else _SERVICES[:2]


# -- the masters' services -------------------------------------------------------------------------

POD_NAME = "registry-nodeservices"
LABELS = {
    "app": "registry",
    "app.kubernetes.io/managed-by": POD_NAME,
    "component": "registry-service",
    "tier": "control-plane",
    "type": "node-services",
}
"""Deckhouse's own; its Services select `component` and `type`."""


def static_pod(
    node: Node,
    images: Images,
    config: str,
    version: str,
    *,
    token_host: str,
    replication: bool,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest for `/etc/kubernetes/manifests`.

    `config` is the hash of the files that its containers read, `version` their version. The token
    server listens at `token_host`: 127.0.0.1, or the node's address.
    `environment` is the registry's.
    """
    # The kubelet starts them in this order. A registry without its token server fails who comes.
    containers = [
        container(
            "auth",
            images.one("auth"),
            # Its own log file would need a folder that it may write to.
            {"args": ["-logtostderr", "/config/config.yaml"]},
            probes=probes(http_get("HTTPS", token_host, node.ports.token, "/")),
            mounts={"auth-config": "/config", "pki": "/pki"},
            ports={"auth": (token_host, node.ports.token)},
        ),
        container(
            "distribution",
            images.one("distribution"),
            {"args": ["serve", "/config/config.yaml"]},
            probes=probes(http_get("HTTPS", node.address, node.ports.registry, "/")),
            mounts={"distribution-config": "/config", "pki": "/pki", "data": "/data"},
            writable={"data"},
            ports={
                REGISTRY_PORT_NAME: (node.address, node.ports.registry),
                "debug": (LOOPBACK, node.ports.debug),
            },
            environment=environment,
        ),
    ]
    volumes = [
        host_path("distribution-config", SERVICE_CONFIG / "distribution"),
        host_path("auth-config", SERVICE_CONFIG / "auth"),
        host_path("pki", PKI_CONFIG),
        host_path("data", DATA_ROOT, "DirectoryOrCreate"),
    ]
    if replication:
        containers.append(
            container(
                "mirrorer",
                images.one("mirror"),
                {"args": ["sync", "--watch", "--config", "/config/config.yaml"]},
                # It lives while it answers; a restart would not make replicas equal.
                probes=probes(http_get("HTTP", LOOPBACK, node.ports.replication, "/healthz")),
                mounts={"mirrorer-config": "/config", "pki": "/pki"},
                ports={"replication": (LOOPBACK, node.ports.replication)},
            )
        )
        volumes.append(host_path("mirrorer-config", SERVICE_CONFIG / "mirrorer"))
    return manifest(
        POD_NAME,
        LABELS,
        {HASH_ANNOTATION: config, VERSION_ANNOTATION: version},
        {"securityContext": security(0), "containers": containers, "volumes": volumes},
    )


# -- notes -----------------------------------------------------------------------------------------


def notes_of_pods(
    images: Images,
    trees: Sequence[Tree],
    *,
    services: bool,
    replication: bool,
    restarts: bool,
    proxy: Sequence[str],
) -> list[str]:
    """Sentences about the pods; `services`, `replication`: what masters run.

    `proxy` are the names of the images of the in-cluster proxy.
    """
    notes: list[str] = []
    used = set(proxy)
    if missing := used - set(images.given):
        named = " ".join(f"--image {name}=IMAGE" for name in sorted(missing))
        notes.append(f"no Deployment of the in-cluster proxy was written; name its images: {named}")
    needed = services_needed(replication=replication)
    if services and images.serve(replication=replication):
        used.update(needed)
    elif services:
        of = "" if images.nginx is None else "of the masters' services "
        named = " ".join(f"--image {name}=IMAGE" for name in needed)
        notes.append(f"no static pod {of}was written; name its images: {named}")
    if any(BALANCER_POD in tree or RELAY_POD in tree for tree in trees):
        used.add("nginx")
    if unused := [name for name in images.given if name not in used]:
        notes.append(f"no pod here has a container of the image {', '.join(unused)}")
    if restarts:
        notes.append(
            "the relay of each node restarts with this configuration, and with the next: what is "
            "pulled while it does fails, and the kubelet pulls it again"
        )
    return notes
