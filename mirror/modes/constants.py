"""Names, addresses and paths that a cluster's registry module has fixed, each in one place."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath

NAMESPACE = "d8-system"
"""Where the module's objects live."""

MODULE_LABELS = {"heritage": "deckhouse", "module": "registry", "app": "registry"}
"""What its objects are labelled with."""

REGISTRY_PORT = 5001
"""The registry itself, with TLS: of a master's replica, of the balancer, of the Service."""
DEBUG_PORT = 5002
"""Health and Prometheus metrics of a replica."""
TOKEN_PORT = 5051
"""The token server beside a replica, with TLS."""

SERVICE_NAME = f"registry.{NAMESPACE}.svc"
"""The headless Service behind the logical host; certificates inside the cluster carry it."""
LOGICAL_HOST = f"{SERVICE_NAME}:{REGISTRY_PORT}"
"""The host of every image reference in a managed mode."""
LOGICAL_PATH = "system/deckhouse"
"""The repository below which all images lie, without a slash in front."""
UPSTREAM_CA = "upstream-registry-ca.crt"
"""The file with the upstream's authority, beside the module's own."""

LOGICAL_BASE = f"{LOGICAL_HOST}/{LOGICAL_PATH}"
"""What every image reference of a managed mode begins with."""
BALANCER = f"127.0.0.1:{REGISTRY_PORT}"
"""The per-node balancer, in Proxy and Local mode."""
PUSH_NAME = "registry"
"""What stands for the name in the public domain template: `registry.<PUBLIC_DOMAIN>`."""


class RegistryUser(StrEnum):
    """The registry module's own users."""

    RO = "ro"
    RW = "rw"
    MIRROR_PULLER = "mirror-puller"
    MIRROR_PUSHER = "mirror-pusher"


LICENSE_USER = "license-token"
"""The user name of a login whose password is a license key."""
DEFAULT_IMAGES_REPO = "registry.deckhouse.io/deckhouse/ce"
"""The vendor's registry, as the legacy form names it where nothing is given."""

# Files on the nodes.
DATA_ROOT = PurePosixPath("/opt/deckhouse/registry/local_data")
"""Mounted as `/data` into the replica."""
CONTAINERD_HOSTS = PurePosixPath("/etc/containerd/registry.d")
CONTAINERD_HOSTS_STATE = CONTAINERD_HOSTS / "deckhouse_hosts_state.json"
MANIFESTS = PurePosixPath("/etc/kubernetes/manifests")
STATIC_POD = MANIFESTS / "registry-nodeservices.yaml"
BALANCER_POD = MANIFESTS / "registry-proxy.yaml"
RELAY_POD = MANIFESTS / "registry-relay.yaml"
STATIC_PODS = (STATIC_POD, BALANCER_POD, RELAY_POD)
SERVICE_CONFIG = PurePosixPath("/etc/kubernetes/registry")
PKI_CONFIG = SERVICE_CONFIG / "pki"
BALANCER_CONFIG = PurePosixPath("/etc/kubernetes/registry-proxy")
BALANCER_FILE = BALANCER_CONFIG / "nginx_new.conf"
"""The balancer's configuration as it is rendered. Deckhouse's own balancer has a reloader, which
tests this one and copies it to `nginx.conf`; the static pod made here runs this one itself."""
RELAY_FILE = BALANCER_CONFIG / "relay.conf"

UNKNOWN_VERSION = "unknown"
"""Stands for the version of a node without the annotation `registry.deckhouse.io/version`."""
SUPPORTED_CRI = ("Containerd", "ContainerdV2")

HASH_ANNOTATION = "registry.deckhouse.io/config-hash"
SECRET_STATE = "registry-state"  # noqa: S105 -- the names of Secrets are public
SECRET_STATE_TYPE = "registry/state"  # noqa: S105
SECRET_USER_PREFIX = "registry-user-"  # noqa: S105


class ConditionType(StrEnum):
    """The conditions by their public names."""

    IMAGES = "RegistryContainsRequiredImages"
    PREFLIGHT = "ContainerdConfigPreflightReady"
    NODE_SERVICES = "NodeServicesReady"
    IN_CLUSTER_PROXY = "InClusterProxyReady"
    TRANSITION = "TransitionContainerdConfigReady"
    REGISTRY_SWITCH = "DeckhouseRegistrySwitchReady"
    FINAL = "FinalContainerdConfigReady"
    CLEANUP_NODE_SERVICES = "CleanupNodeServices"
    CLEANUP_IN_CLUSTER_PROXY = "CleanupInClusterProxy"
    ROTATION = "SecretsRotated"  # ours, where it was asked for; not a step of a switch
    READY = "Ready"
    NOT_SUPPORTED = "ErrTransitionNotSupported"
