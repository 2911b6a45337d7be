"""The Kubernetes objects of a mode, in the forms of Deckhouse's own modules, as values.

The programs of those modules read the Secrets: the node agent `registry-node-config-…`, the program
that configures nodes `registry-bashible-config`, components `deckhouse-registry`. Services lead to
pods by labels and by the name of the port, those that `pods` gives.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from mirror import modes
from mirror.errors import RenderingError
from mirror.modes import HASH_ANNOTATION, LOGICAL_PATH, REGISTRY_PORT, Plane, RegistryUser
from mirror.modes.settings import Account, RegistrySettings, Upstream
from mirror.nodeconfig import pods, pulling, services
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.pods import PROXY_CONFIG, VERSION, Object, metadata
from mirror.nodeconfig.service_secrets import LENDERS, HashedAccount, ServiceSecrets
from mirror.nodeconfig.tree import PUBLIC, SECRET, RenderedFile, Tree, checked_name

NODE_CONFIG = "registry-node-config-"
SERVICE = "registry"
PUSH_SERVICE = "registry-push"
_INGRESS = "nginx.ingress.kubernetes.io"
# The client certificate is the ingress controller's own, in its own pod.
_SNIPPET = """\
proxy_ssl_certificate /etc/nginx/ssl/client.crt;
proxy_ssl_certificate_key /etc/nginx/ssl/client.key;
proxy_ssl_protocols TLSv1.2;
proxy_ssl_session_reuse on;
"""
_KEPT = {"helm.sh/resource-policy": "keep"}


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
        for name in ("host", "ingress_class", "tls_secret"):
            where = f"push ingress: {name.replace('_', ' ')}"
            checked_name(getattr(self, name), where, "registry.example.com")
        for network in self.allow:
            try:
                ipaddress.ip_network(network)
            except ValueError as err:
                raise RenderingError(
                    "push ingress: allow: expected a network, as in 10.0.0.0/8, found "
                    f"{network!r}; correct it and try again"
                ) from err


@dataclass(frozen=True, slots=True)
class Situation:
    """What the configuration of a cluster depends on, in checked values.

    `sides` are the settings before and after a transition, or the settings alone. Components read
    by those of `components`: the old ones until they are switched over. Objects depend on files
    too: `in_cluster` are those of the in-cluster proxy, `version` is that of the whole
    configuration, `services` that of each master's services.
    """

    sides: Sequence[RegistrySettings]
    components: RegistrySettings
    nodes: Sequence[Node]
    kept: ServiceSecrets = field(repr=False)
    environment: Mapping[str, str]
    ingress_client_ca: str | None
    in_cluster: Tree = field(default_factory=dict)
    version: str = ""
    services: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> RegistrySettings:
        """Those that are wanted in the end."""
        return self.sides[-1]

    @property
    def replicas(self) -> RegistrySettings | None:
        """The newest side whose masters run replicas; in a transition the old ones stay."""
        found = [side for side in self.sides if side.kind.row.runs_replicas]
        return found[-1] if found else None

    @property
    def masters(self) -> list[Node]:
        """The nodes that hold a replica in Proxy and Local mode, by name."""
        return sorted((one for one in self.nodes if one.master), key=lambda one: one.name)


def objects_of(
    now: Situation,
    images: pods.Images,
    runtime: str,
    ports: Ports,
    push: PushIngress | None,
) -> tuple[Object, ...]:
    """All objects, in the order in which to apply them.

    `ports` are those of the in-cluster proxy. Its Deployment needs `images`, and its nginx writes
    to `runtime`.
    """
    made = [*_secrets(now), *_services(now)]
    if now.in_cluster and not set(pods.proxy_images(now.in_cluster)) - set(images.given):
        made += pods.in_cluster_proxy(
            now.in_cluster, len(now.masters), images, runtime, ports, now.environment
        )
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
    if now.kept.beside and now.replicas is not None:
        notes.append(
            "registry-node-config-… has room for one login of each user: while passwords are "
            "rotated, replication by the module's node agent waits, and caches refuse the other"
        )
    return notes


def object_files(objects: Sequence[Object]) -> dict[PurePosixPath, RenderedFile]:
    """A file for each object, named by kind and name."""
    return {
        PurePosixPath(f"/{one['kind'].lower()}-{one['metadata']['name']}.yaml"): pods.yaml_file(
            one, SECRET if one["kind"] == "Secret" else PUBLIC
        )
        for one in objects
    }


# -- Services and the ingress ----------------------------------------------------------------------


def _services(now: Situation) -> Iterator[Object]:
    # Whoever reads nothing here yet may be led to the new side at once.
    behind = now.components if now.components.managed else now.settings
    replicas, proxy = services.LABELS["type"], pods.PROXY_LABELS["type"]
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
        "metadata": metadata(name, {}, {HASH_ANNOTATION: version}),
        "spec": {**spec, "selector": selector, "ports": [port]},
    }


def _ingress(now: Situation, push: PushIngress) -> Object:
    notes = {
        HASH_ANNOTATION: now.version,
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


# -- Secrets ---------------------------------------------------------------------------------------


def _secrets(now: Situation) -> Iterator[Object]:
    """All Secrets but `registry-state`, which a controller, or `rendered_state`, makes."""
    yield _registry_config(now.settings)
    yield from _deckhouse_registry(now)
    yield from _bashible_config(now)
    note = {HASH_ANNOTATION: now.version}
    if any(side.managed for side in now.sides):
        pairs = {"ca": now.kept.authority, "token": now.kept.token}
        content: dict[str, Any] = {f"{name}.crt": pair.certificate for name, pair in pairs.items()}
        content |= {f"{name}.key": pair.key for name, pair in pairs.items()}
        yield _secret("registry-pki", content, "registry/pki", {"type": "registry-pki"}, note)
    known = {user for side in now.sides for user in side.kind.row.users}
    for user in (one for one in RegistryUser if one in known):
        name = f"{modes.SECRET_USER_PREFIX}{user}"
        content = _user(now.kept.users[user], "passwordHash")
        yield _secret(name, content, "registry/user", {"type": "registry-user"}, note)
    if now.replicas is not None:
        for node in now.masters:
            name, kind = f"{NODE_CONFIG}{node.name}", "node-services-config"
            content = {"config": _yaml(_node_config(now, node, now.replicas))}
            content["version"] = now.services[node.name]
            labels = {"type": f"registry-{kind}"}
            yield _secret(name, content, f"registry/{kind}", labels, note)
    if now.in_cluster:
        content = {path.name: file.content for path, file in now.in_cluster.items()}
        note = {VERSION: pods.config_hash(now.in_cluster)}
        labels = {"name": PROXY_CONFIG}
        yield _secret(PROXY_CONFIG, content, "registry/incluster-proxy-config", labels, note)


def _secret(
    name: str,
    data: Mapping[str, str | bytes | None],
    kind: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Object:
    """A Secret; what is None or empty in `data` is left out, as the module's templates do."""
    given = {key: value for key, value in data.items() if value}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(name, labels, annotations),
        "type": kind,
        "data": {
            key: base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
            for key, value in given.items()
        },
    }


def _registry_config(settings: RegistrySettings) -> Object:
    """What the module `deckhouse` hands to the module `registry`: the settings."""
    content: dict[str, str | None] = {"mode": settings.mode.value}
    if settings.section is not None and settings.configurable:
        section, account = settings.section, settings.section.upstream.account
        content |= {
            "imagesRepo": section.images_repo,
            "scheme": section.scheme,
            "ca": section.ca,
            "ttl": getattr(section, "ttl", None),
            "checkMode": section.check_mode.value,
        }
        content |= _login(account) if account is not None else {}
    labels = {"name": "registry-deckhouse-config", "type": "registry-config"}
    return _secret("registry-config", content, "registry/config", labels, {"version": "1"})


def _deckhouse_registry(now: Situation) -> Iterator[Object]:
    """Where components read, and with which login; nothing where that is not known."""
    settings, upstream = now.components, now.components.upstream
    account = None if upstream is None else upstream.account
    if settings.managed:
        host, path, scheme, ca = modes.LOGICAL_HOST, f"/{LOGICAL_PATH}", "https", now.kept.trusted
        if (reader := settings.kind.row.planes[Plane.API].reader) is not None:
            account = now.kept.users[reader].account
    elif upstream is not None:
        host, path, scheme, ca = upstream.host, _path(upstream), upstream.scheme, upstream.ca or ""
    else:
        return
    login = {}
    if account is not None:
        login = _login(account)
        pair = f"{login['username']}:{login['password']}"
        login["auth"] = base64.b64encode(pair.encode()).decode()
    content = {
        ".dockerconfigjson": json.dumps({"auths": {host: login}}, separators=(",", ":")),
        "address": host,
        "path": path,
        "scheme": scheme,
        "ca": ca,
        "imagesRegistry": host + path,
    }
    name, kind = "deckhouse-registry", "kubernetes.io/dockerconfigjson"
    yield _secret(name, content, kind, {"name": name}, _KEPT)


def _bashible_config(now: Situation) -> Iterator[Object]:
    """How nodes pull, for the program that configures them; nothing while nobody manages that."""
    settings, upstream = now.settings, now.settings.upstream
    base = modes.LOGICAL_BASE if settings.managed else upstream and upstream.base
    if base is None or not any(side.configurable for side in now.sides):
        return
    # What is true of every node: the balancer where the module has it.
    anywhere = Node("any", "127.0.0.1", master=False)
    reader = now.kept.users[RegistryUser.RO].account
    joined: dict[str, dict[tuple[str, str], pulling.HostMirror]] = {}
    for side in now.sides:
        for host, row in pulling.mirrors_of(side, anywhere, now.kept.trusted, reader).items():
            # Unlike hosts.toml, this form refuses two mirrors of one server.
            joined.setdefault(host, {}).update({mirror.server: mirror for mirror in row})
    document: dict[str, Any] = {
        "mode": settings.mode.value,
        "version": now.version,
        "imagesBase": base,
        "hosts": {
            host: {"mirrors": [_bashible_mirror(one) for one in row.values()]}
            for host, row in joined.items()
        },
    }
    if now.replicas is not None:
        document["proxyEndpoints"] = sorted(node.registry for node in now.masters)
    name = "registry-bashible-config"
    yield _secret(name, {"config": _yaml(document)}, "Opaque", {"name": name}, _KEPT)


def _bashible_mirror(mirror: pulling.HostMirror) -> dict[str, Any]:
    login = {"username": "", "password": ""} if mirror.account is None else _login(mirror.account)
    found: dict[str, Any] = {"host": mirror.host, "scheme": mirror.scheme}
    found["auth"] = {**login, "auth": ""}
    if mirror.ca is not None:
        found["ca"] = mirror.ca
    if mirror.path is not None:
        # The module's own pattern: its step writes it through a shell, which would read `${1}`.
        found["rewrites"] = [{"from": f"^{LOGICAL_PATH}", "to": mirror.path}]
    return found


def _node_config(now: Situation, node: Node, service: RegistrySettings) -> dict[str, Any]:
    """The services of one master, as the module's node agent reads them."""
    kept = now.kept
    # The form has one place for each user. While passwords change, replication waits.
    lent = {LENDERS[user]: one for user, one in kept.beside.items() if user in LENDERS}
    users, leaves = {**kept.users, **lent}, kept.nodes[node.name]
    config: dict[str, Any] = {"ca": kept.trusted}
    pairs = {"auth": leaves.auth, "token": kept.token, "distribution": leaves.distribution}
    for name, pair in pairs.items():
        config |= {f"{name}_cert": pair.certificate, f"{name}_key": pair.key}
    config["token_cert"] = kept.tokens.trusted  # of all whose tokens count, the signing one first
    config |= {"user_ro": _user(users[RegistryUser.RO]), "http_secret": kept.http_secret}
    upstream = service.upstream
    if upstream is None:
        local = config["local_mode"] = {
            "user_rw": _user(users[RegistryUser.RW]),
            "user_puller": _user(users[RegistryUser.MIRROR_PULLER]),
            "user_pusher": _user(users[RegistryUser.MIRROR_PUSHER]),
            "upstreams": sorted(one.address for one in now.masters if one.name != node.name),
        }
        if now.ingress_client_ca is not None:
            local["ingress_client_ca"] = now.ingress_client_ca
        return config
    there = {"scheme": upstream.scheme, "host": upstream.host, "path": _path(upstream)}
    if upstream.account is not None:
        login = _login(upstream.account)
        there |= {"user": login["username"], "password": login["password"]}
    if service.proxy is not None and service.proxy.ttl is not None:
        there["ttl"] = service.proxy.ttl
    config["proxy_mode"] = {"upstream": there}
    if upstream.ca is not None:
        config["proxy_mode"]["upstream_registry_ca"] = upstream.ca
    names = {"HTTP_PROXY": "http", "HTTPS_PROXY": "https", "NO_PROXY": "no_proxy"}
    given = {key: now.environment[name] for name, key in names.items() if name in now.environment}
    return {**config, "proxy_config": given} if given else config


def _path(upstream: Upstream) -> str:
    return f"/{upstream.path}" if upstream.path else ""


def _login(account: Account) -> dict[str, str]:
    return {"username": account.name, "password": account.password.get_secret_value()}


def _user(one: HashedAccount, hash_key: str = "password_hash") -> dict[str, str]:
    password = one.account.password.get_secret_value()
    return {"name": one.account.name, "password": password, hash_key: one.password_hash}


def _yaml(document: Mapping[str, Any]) -> bytes:
    return pods.yaml_file(document).content
