"""The Kubernetes objects of a mode, in the forms of Deckhouse's own module, as values.

Services lead to pods by labels and by the name of the port: those that `pods` gives to the masters'
static pod, and those of the in-cluster proxy's Deployment here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mirror.errors import RenderingError
from mirror.modes.routes import REGISTRY_PORT
from mirror.nodeconfig import pods, proxies
from mirror.nodeconfig.cluster import Ports
from mirror.nodeconfig.object_secrets import (
    HASH,
    PROXY_CONFIG,
    VERSION,
    Object,
    Situation,
    metadata,
    secrets_of,
)
from mirror.nodeconfig.tree import PUBLIC, SECRET, RenderedFile, Tree, checked_name

SERVICE = "registry"
PUSH_SERVICE = "registry-push"
PROXY = "registry-incluster-proxy"
PROXY_LABELS = {"app": PROXY, "component": "registry-service", "type": "incluster-proxy"}
NOBODY = 65534
_INGRESS = "nginx.ingress.kubernetes.io"
# The client certificate is the ingress controller's own, in its own pod.
_SNIPPET = """\
proxy_ssl_certificate /etc/nginx/ssl/client.crt;
proxy_ssl_certificate_key /etc/nginx/ssl/client.key;
proxy_ssl_protocols TLSv1.2;
proxy_ssl_session_reuse on;
"""


@dataclass(frozen=True, slots=True)
class PushIngress:
    """The public address for pushes in Local mode.

    `host` is `registry.<PUBLIC_DOMAIN>`, and the Secret `tls_secret` holds its certificate. Only
    addresses in `allow` (networks) may push; where it is empty, all may.
    """

    host: str
    ingress_class: str = "nginx"
    tls_secret: str = "registry-ingress-tls"  # noqa: S105 -- the name of a Secret
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("host", "ingress_class", "tls_secret"):
            where = f"push ingress: {field.replace('_', ' ')}"
            checked_name(getattr(self, field), where, "registry.example.com")
        for network in self.allow:
            try:
                ipaddress.ip_network(network)
            except ValueError as err:
                raise RenderingError(
                    "push ingress: allow: expected a network, as in 10.0.0.0/8, found "
                    f"{network!r}; correct it and try again"
                ) from err


def objects_of(
    now: Situation,
    images: pods.Images,
    nginx: proxies.Nginx,
    ports: Ports,
    push: PushIngress | None,
) -> tuple[Object, ...]:
    """All objects, in the order in which to apply them.

    `ports` are those of the in-cluster proxy. Its Deployment needs `images`.
    """
    made = [*secrets_of(now), *_services(now)]
    if now.in_cluster and not set(proxy_images(now.in_cluster)) - set(images.given):
        made += _in_cluster_proxy(now, images, nginx, ports)
    if push is not None and now.settings.kind.row.holds_own_images:
        made.append(_ingress(now, push))
    return tuple(made)


def notes_of(now: Situation, proxy: Ports) -> list[str]:
    """What the forms of these objects cannot say, in sentences."""
    notes = []
    match [side.upstream for side in now.sides if side.kind.row.runs_in_cluster_proxy]:
        case [old, new] if old and new and old.host == new.host and old.path != new.path:
            notes.append(
                f"registry-bashible-config holds one way to {new.host}: nodes that are configured "
                f"by it lose {old.path} at once; hosts.toml, as rendered here, has both"
            )
    # The headless Service gives clients addresses, and no port.
    ports = {node.registry for node in now.masters if node.ports.registry != REGISTRY_PORT}
    odd = sorted(ports) if now.replicas else []
    if now.in_cluster and proxy.registry != REGISTRY_PORT:
        odd.append(f"the in-cluster proxy ({proxy.registry})")
    if odd:
        where = ", ".join(odd)
        notes.append(f"the Service {SERVICE} leads to port {REGISTRY_PORT} alone, not to {where}")
    return notes


def object_files(objects: Sequence[Object]) -> dict[PurePosixPath, RenderedFile]:
    """A file for each object, named by kind and name."""
    return {
        PurePosixPath(f"/{one['kind'].lower()}-{one['metadata']['name']}.yaml"): pods.yaml_file(
            one, SECRET if one["kind"] == "Secret" else PUBLIC
        )
        for one in objects
    }


def proxy_images(in_cluster: Tree) -> tuple[str, ...]:
    """The names of the images of the in-cluster proxy that reads these files."""
    if not in_cluster:
        return ()
    return ("nginx",) if _is_relay(in_cluster) else ("distribution", "auth")


def _is_relay(in_cluster: Tree) -> bool:
    return any(path.name == "relay.conf" for path in in_cluster)


# -- Services and the ingress ----------------------------------------------------------------------


def _services(now: Situation) -> Iterator[Object]:
    # Whoever reads nothing here yet may be led to the new side at once.
    behind = now.components if now.components.managed else now.settings
    replicas, proxy = pods.LABELS["type"], PROXY_LABELS["type"]
    if behind.managed:
        kind = replicas if behind.kind.row.runs_replicas else proxy
        yield _service(SERVICE, kind, now.version, {"clusterIP": "None"})
    if now.settings.kind.row.holds_own_images:
        yield _service(PUSH_SERVICE, replicas, now.version, {})


def _service(name: str, kind: str, version: str, spec: dict[str, Any]) -> Object:
    port = {
        "name": "registry",
        "port": REGISTRY_PORT,
        "protocol": "TCP",
        "targetPort": pods.REGISTRY_PORT_NAME,
    }
    selector = {"component": "registry-service", "type": kind}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(name, {}, {HASH: version}),
        "spec": {**spec, "selector": selector, "ports": [port]},
    }


def _ingress(now: Situation, push: PushIngress) -> Object:
    notes = {
        HASH: now.version,
        f"{_INGRESS}/backend-protocol": "HTTPS",
        # One pusher stays at one replica, where an upload that it began goes on.
        f"{_INGRESS}/upstream-hash-by": "$remote_addr",
        f"{_INGRESS}/proxy-body-size": "0",
        f"{_INGRESS}/configuration-snippet": _SNIPPET,
    }
    if push.allow:
        notes[f"{_INGRESS}/whitelist-source-range"] = ",".join(push.allow)
    backend = {"service": {"name": PUSH_SERVICE, "port": {"number": REGISTRY_PORT}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(SERVICE, {}, notes),
        "spec": {
            "ingressClassName": push.ingress_class,
            "rules": [{"host": push.host, "http": {"paths": [path]}}],
            "tls": [{"hosts": [push.host], "secretName": push.tls_secret}],
        },
    }


# -- the in-cluster proxy --------------------------------------------------------------------------


def _in_cluster_proxy(
    now: Situation, images: pods.Images, nginx: proxies.Nginx, ports: Ports
) -> list[Object]:
    several = len(now.masters) > 1
    version = {VERSION: pods.config_hash(now.in_cluster)}
    described = metadata(PROXY, {"app": PROXY})
    if _is_relay(now.in_cluster):
        run = _relay(images, nginx, ports)
    else:
        run = _registry(now, images, ports)
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
            "replicas": max(1, len(now.masters)),
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


def _registry(now: Situation, images: pods.Images, ports: Ports) -> dict[str, Any]:
    """Deckhouse's registry, which asks the upstream and keeps nothing, and its token server."""
    registry = pods.container(
        "distribution",
        images.one("distribution"),
        {"args": ["serve", "/config/distribution_config.yaml"]},
        probes=pods.probes(_asked(pods.REGISTRY_PORT_NAME)),
        mounts={"config": "/config", "data": "/data"},
        writable={"data"},
        ports={pods.REGISTRY_PORT_NAME: ("", ports.registry), "debug": ("", ports.debug)},
        environment=now.environment,
    )
    auth = pods.container(
        "auth",
        images.one("auth"),
        {"args": ["-logtostderr", "/config/auth_config.yaml"]},
        probes=pods.probes(_asked("auth")),
        mounts={"config": "/config"},
        ports={"auth": ("", ports.token)},
    )
    # The registry looks for its store when it starts, although it keeps nothing there.
    store = {"name": "data", "emptyDir": {"sizeLimit": "64Mi"}}
    return {
        "securityContext": pods.security(NOBODY),
        "containers": [registry, auth],
        "volumes": [_CONFIG_VOLUME, store],
    }


def _relay(images: pods.Images, nginx: proxies.Nginx, ports: Ports) -> dict[str, Any]:
    """The nginx that stands in for the registry where that is the stock one."""
    one = pods.container(
        "nginx",
        images.one("nginx"),
        {"command": ["nginx", "-e", "stderr", "-c", "/config/relay.conf", "-g", "daemon off;"]},
        probes=pods.probes({"tcpSocket": {"port": pods.REGISTRY_PORT_NAME}}),
        mounts={"config": "/config", "runtime": nginx.runtime},
        writable={"runtime"},
        ports={pods.REGISTRY_PORT_NAME: ("", ports.registry)},
    )
    return {
        "securityContext": pods.security(proxies.USER),
        "containers": [one],
        "volumes": [_CONFIG_VOLUME, {"name": "runtime", "emptyDir": {}}],
    }


def _asked(port: str) -> dict[str, Any]:
    return {"httpGet": {"scheme": "HTTPS", "port": port, "path": "/"}}
