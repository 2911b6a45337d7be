"""The static pod of a master's services: registry, token server, and in Local mode replication.

The kubelet adds the node's name, so the pod is `registry-nodeservices-<master>` in the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.modes import constants
from mirror.modes.render import values
from mirror.modes.render.layout import Node

POD_NAME = "registry-nodeservices"
LABELS = {"component": "registry-service", "type": "node-services"}
HASH_ANNOTATION = "registry.deckhouse.io/config-hash"
VERSION_ANNOTATION = "registry.deckhouse.io/config-version"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Images:
    """The images of the containers. `mirror` is this program's, for replication."""

    distribution: str
    auth: str
    mirror: str

    def __post_init__(self) -> None:
        for name in self.__slots__:
            values.image(getattr(self, name), f"{name} image")


@dataclass(frozen=True, slots=True)
class PodParts:
    """What a master's pod depends on beside the node."""

    images: Images
    config_hash: str
    config_version: str
    token_host: str
    """Where the token server listens: 127.0.0.1, or the node's address."""
    replication: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the registry's container."""


def static_pod(node: Node, parts: PodParts) -> dict[str, Any]:
    """The manifest for `/etc/kubernetes/manifests`."""
    containers = [
        _container(
            "distribution",
            parts.images.distribution,
            ["serve", "/config/config.yaml"],
            probe=_probe("HTTPS", node.address, node.ports.registry, "/"),
            mounts={"distribution-config": "/config", "pki": "/pki", "data": "/data"},
            writable={"data"},
            environment=parts.environment,
        ),
        _container(
            "auth",
            parts.images.auth,
            ["/config/config.yaml"],
            probe=_probe("HTTPS", parts.token_host, node.ports.token, "/"),
            mounts={"auth-config": "/config", "pki": "/pki"},
        ),
    ]
    if parts.replication:
        containers.append(
            _container(
                "mirrorer",
                parts.images.mirror,
                ["sync", "--watch", "--config", "/config/config.yaml"],
                # It lives while it answers; that replicas differ is no reason to restart it.
                probe=_probe("HTTP", "127.0.0.1", node.ports.replication, "/healthz"),
                mounts={"mirrorer-config": "/config", "pki": "/pki"},
            )
        )
    volumes = {
        "distribution-config": (constants.SERVICE_CONFIG / "distribution", "Directory"),
        "auth-config": (constants.SERVICE_CONFIG / "auth", "Directory"),
        "pki": (constants.PKI_CONFIG, "Directory"),
        "data": (constants.DATA_ROOT, "DirectoryOrCreate"),
    }
    if parts.replication:
        volumes["mirrorer-config"] = (constants.SERVICE_CONFIG / "mirrorer", "Directory")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": POD_NAME,
            "namespace": constants.NAMESPACE,
            "labels": {"heritage": "deckhouse", "module": "registry", **LABELS},
            "annotations": {
                HASH_ANNOTATION: parts.config_hash,
                VERSION_ANNOTATION: parts.config_version,
            },
        },
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "priorityClassName": "system-node-critical",
            "securityContext": {
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": False,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": containers,
            "volumes": [
                {"name": name, "hostPath": {"path": str(path), "type": kind}}
                for name, (path, kind) in volumes.items()
            ],
        },
    }


def _container(
    name: str,
    image: str,
    arguments: list[str],
    *,
    probe: dict[str, Any],
    mounts: dict[str, str],
    writable: frozenset[str] | set[str] = frozenset(),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "livenessProbe": {**probe, "initialDelaySeconds": 5, "periodSeconds": 10},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}},
        "volumeMounts": [
            {"name": volume, "mountPath": path, "readOnly": volume not in writable}
            for volume, path in mounts.items()
        ],
    }
    if environment:
        container["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    return container


def _probe(scheme: str, host: str, port: int, path: str) -> dict[str, Any]:
    return {"httpGet": {"scheme": scheme, "host": host, "port": port, "path": path}}
