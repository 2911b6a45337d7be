"""The static pod of a master's services: registry, token server, and in Local mode replication.

The kubelet adds the node's name, so the pod is `registry-nodeservices-<master>` in the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.modes import constants
from mirror.modes.render.images import Images
from mirror.modes.render.layout import Node
from mirror.modes.render.pod import (
    HASH_ANNOTATION,
    VERSION_ANNOTATION,
    container,
    host_path,
    http_get,
    manifest,
    probes,
    security,
)

POD_NAME = "registry-nodeservices"
LABELS = {"component": "registry-service", "type": "node-services"}


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
        container(
            "distribution",
            parts.images.one("distribution"),
            {"args": ["serve", "/config/config.yaml"]},
            probes=probes(http_get("HTTPS", node.address, node.ports.registry, "/")),
            mounts={"distribution-config": "/config", "pki": "/pki", "data": "/data"},
            writable={"data"},
            environment=parts.environment,
        ),
        container(
            "auth",
            parts.images.one("auth"),
            {"args": ["/config/config.yaml"]},
            probes=probes(http_get("HTTPS", parts.token_host, node.ports.token, "/")),
            mounts={"auth-config": "/config", "pki": "/pki"},
        ),
    ]
    volumes = [
        host_path("distribution-config", constants.SERVICE_CONFIG / "distribution"),
        host_path("auth-config", constants.SERVICE_CONFIG / "auth"),
        host_path("pki", constants.PKI_CONFIG),
        host_path("data", constants.DATA_ROOT, "DirectoryOrCreate"),
    ]
    if parts.replication:
        containers.append(
            container(
                "mirrorer",
                parts.images.one("mirror"),
                {"args": ["sync", "--watch", "--config", "/config/config.yaml"]},
                # It lives while it answers; that replicas differ is no reason to restart it.
                probes=probes(http_get("HTTP", "127.0.0.1", node.ports.replication, "/healthz")),
                mounts={"mirrorer-config": "/config", "pki": "/pki"},
            )
        )
        volumes.append(host_path("mirrorer-config", constants.SERVICE_CONFIG / "mirrorer"))
    return manifest(
        POD_NAME,
        LABELS,
        {HASH_ANNOTATION: parts.config_hash, VERSION_ANNOTATION: parts.config_version},
        dns_policy="ClusterFirstWithHostNet",
        spec={"securityContext": security(0), "containers": containers, "volumes": volumes},
    )
