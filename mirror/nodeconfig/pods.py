"""Pods: their shape, the images that they need, the masters' services, the in-cluster proxy."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import yaml

from mirror.errors import RenderingError
from mirror.modes import MODULE_LABELS, NAMESPACE
from mirror.nodeconfig import tree
from mirror.nodeconfig.cluster import Ports
from mirror.nodeconfig.tree import SECRET, RenderedFile, Tree

Object = Mapping[str, Any]
"""One Kubernetes object: JSON values; `data` of Secrets is in base64."""

REGISTRY_PORT_NAME = "distribution"
"""By this name the module's Services find the registry's port in whatever pod is behind them."""
VERSION_ANNOTATION = "registry.deckhouse.io/config-version"
VERSION = "registry.deckhouse.io/version"
LOOPBACK = "127.0.0.1"
NGINX_USER = 64535
"""Deckhouse's user without rights. As root, nginx would need capabilities to become another."""


def manifest(
    name: str, labels: Mapping[str, str], annotations: Mapping[str, str], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """A pod on the node's network. The kubelet adds the node's name to `name`.

    It asks the node's DNS, since the image of the cluster's own DNS comes through these pods.
    """
    own = {"heritage": "deckhouse", "module": "registry", **labels}
    network = {"hostNetwork": True, "dnsPolicy": "Default"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": own,
            "annotations": dict(annotations),
        },
        "spec": {**network, "priorityClassName": "system-node-critical", **spec},
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
    live: Mapping[str, Any],
    ready: Mapping[str, Any] | None = None,
    mounts: Mapping[str, str],
    writable: Collection[str] = (),
    ports: Mapping[str, tuple[str, int]] = MappingProxyType({}),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """A container that runs `run` (`command`, `args`) and may do nothing else.

    It is `ready` as it is `live`, unless that is given. `mounts` are names of volumes → paths; all
    but `writable` ones are read-only, like the root.
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
        "livenessProbe": {**live, "initialDelaySeconds": 5, "periodSeconds": 10},
        "readinessProbe": {**(ready or live), "periodSeconds": 5},
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


def http_get(host: str, port: int | str, path: str = "/", scheme: str = "HTTPS") -> dict[str, Any]:
    """A request of the kubelet, from the node; it verifies no certificates. "" is the pod's host.

    A request for "/" needs no login.
    """
    where = {"host": host} if host else {}
    return {"httpGet": {"scheme": scheme, **where, "port": port, "path": path}}


def nginx(
    image: str,
    config: PurePosixPath,
    runtime: str,
    port: Mapping[str, tuple[str, int]],
    live: Mapping[str, Any],
    ready: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A container of nginx, whose file is `config` there and which writes only to `runtime`."""
    return container(
        "nginx",
        image,
        # As the command: an image's own entry point may try to write configuration.
        {"command": ["nginx", "-e", "stderr", "-c", str(config), "-g", "daemon off;"]},
        live=live,
        ready=ready,
        mounts={"config": str(config.parent), "runtime": runtime},
        writable={"runtime"},
        ports=port,
    )


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
            tree.checked_image(self.one(name), f"{name} image")

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
        needed = _needed(replication=replication)
        missing = [name for name in needed if name not in given]
        if given and missing:
            raise RenderingError(
                f"images: expected {', '.join(needed)} for the static pod of the masters, found "
                f"{', '.join(given)}; give {' and '.join(missing)} too, or none of them"
            )
        return bool(given)


def _needed(*, replication: bool) -> tuple[str, ...]:
    """The names of the images of the masters' pod."""
    return _SERVICES if replication else _SERVICES[:2]


# -- the in-cluster proxy --------------------------------------------------------------------------


def metadata(
    name: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """An object's name, namespace, and the labels of the module."""
    every = {**MODULE_LABELS, **labels}
    found = {"name": name, "namespace": NAMESPACE, "labels": every}
    return {**found, "annotations": dict(annotations)} if annotations else found


PROXY = "registry-incluster-proxy"
PROXY_CONFIG = f"{PROXY}-config"
PROXY_LABELS = {"app": PROXY, "component": "registry-service", "type": "incluster-proxy"}
_NOBODY = 65534


def proxy_images(in_cluster: Tree) -> tuple[str, ...]:
    """The names of the images of the in-cluster proxy that reads these files."""
    if not in_cluster:
        return ()
    is_relay = any(path.name == "relay.conf" for path in in_cluster)
    return ("nginx",) if is_relay else ("distribution", "auth")


def in_cluster_proxy(
    in_cluster: Tree,
    masters: int,
    images: Images,
    runtime: str,
    ports: Ports,
    environment: Mapping[str, str],
) -> list[Object]:
    """The Deployment on `masters` that reads the files `in_cluster`, and its disruption budget.

    `runtime` is the folder that nginx may write to, `environment` the registry's.
    """
    several = masters > 1
    version = {VERSION: config_hash(in_cluster)}
    described = metadata(PROXY, {"app": PROXY})
    if "nginx" in proxy_images(in_cluster):
        run = _relay(images, runtime, ports)
    else:
        run = _registry(images, ports, environment)
    pod: dict[str, Any] = {
        "nodeSelector": {"node-role.kubernetes.io/control-plane": ""},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "imagePullSecrets": [{"name": "deckhouse-registry"}],
        "automountServiceAccountToken": False,
        **run,
    }
    if several:
        alike = {"labelSelector": {"matchLabels": {"app": PROXY}}}
        apart = {**alike, "topologyKey": "kubernetes.io/hostname"}
        rule = "requiredDuringSchedulingIgnoredDuringExecution"
        pod["affinity"] = {"podAntiAffinity": {rule: [apart]}}
    # With one on each master, a new one finds a place when an old one has left.
    pace = {"maxSurge": 0, "maxUnavailable": 1} if several else {"maxSurge": 1, "maxUnavailable": 0}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {**described, "annotations": version},
        "spec": {
            "replicas": max(1, masters),
            "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": pace},
            "selector": {"matchLabels": PROXY_LABELS},
            "template": {"metadata": {"labels": PROXY_LABELS, "annotations": version}, "spec": pod},
        },
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": described,
        "spec": {"maxUnavailable": int(several), "selector": {"matchLabels": PROXY_LABELS}},
    }
    return [budget, deployment]


_CONFIG_VOLUME = {"name": "config", "secret": {"secretName": PROXY_CONFIG}}


def _registry(images: Images, ports: Ports, environment: Mapping[str, str]) -> dict[str, Any]:
    """Deckhouse's registry, which asks the upstream and keeps nothing, and its token server."""
    registry = container(
        "distribution",
        images.one("distribution"),
        {"args": ["serve", "/config/distribution_config.yaml"]},
        live=http_get("", REGISTRY_PORT_NAME),
        mounts={"config": "/config", "data": "/data"},
        writable={"data"},
        ports={REGISTRY_PORT_NAME: ("", ports.registry), "debug": ("", ports.debug)},
        environment=environment,
    )
    auth = container(
        "auth",
        images.one("auth"),
        {"args": ["-logtostderr", "/config/auth_config.yaml"]},
        live=http_get("", "auth"),
        mounts={"config": "/config"},
        ports={"auth": ("", ports.token)},
    )
    # The registry looks for its store when it starts, although it keeps nothing there.
    store = {"name": "data", "emptyDir": {"sizeLimit": "64Mi"}}
    return {
        "securityContext": security(_NOBODY),
        "containers": [registry, auth],
        "volumes": [_CONFIG_VOLUME, store],
    }


def _relay(images: Images, runtime: str, ports: Ports) -> dict[str, Any]:
    """The nginx that stands in for the registry where that is the stock one."""
    one = nginx(
        images.one("nginx"),
        PurePosixPath("/config/relay.conf"),
        runtime,
        {REGISTRY_PORT_NAME: ("", ports.registry)},
        {"tcpSocket": {"port": REGISTRY_PORT_NAME}},
    )
    return {
        "securityContext": security(NGINX_USER),
        "containers": [one],
        "volumes": [_CONFIG_VOLUME, {"name": "runtime", "emptyDir": {}}],
    }


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
    needed = _needed(replication=replication)
    if services and images.serve(replication=replication):
        used.update(needed)
    elif services:
        of = "" if images.nginx is None else "of the masters' services "
        named = " ".join(f"--image {name}=IMAGE" for name in needed)
        notes.append(f"no static pod {of}was written; name its images: {named}")
    if any(tree.BALANCER_POD in one or tree.RELAY_POD in one for one in trees):
        used.add("nginx")
    if unused := [name for name in images.given if name not in used]:
        notes.append(f"no pod here has a container of the image {', '.join(unused)}")
    if restarts:
        notes.append(
            "the relay of each node restarts with this configuration, and with the next: what is "
            "pulled while it does fails, and the kubelet pulls it again"
        )
    return notes
