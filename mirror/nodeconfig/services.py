"""Configuration of the registry's own services: the registry, its token server, replication.

The registry is CNCF `distribution`: a replica (Local), a cache (Proxy) or the in-cluster proxy
(Direct), in Deckhouse's fork or the stock one. The token server's form is that of `docker_auth`.
Replication is `mirror sync --watch`, in the keys of the mirrorer whose place it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from mirror.errors import RenderingError
from mirror.modes import DATA_ROOT, HASH_ANNOTATION, LOGICAL_PATH, RegistryUser
from mirror.modes.settings import Account, ProxySection, RegistrySettings, Upstream
from mirror.nodeconfig import pods, tree
from mirror.nodeconfig.cluster import Node, NodePaths, Ports
from mirror.nodeconfig.pulling import upstream_mirror
from mirror.nodeconfig.service_secrets import HashedAccount
from mirror.nodeconfig.tree import SERVICE_CONFIG, UPSTREAM_CA, host_port


class Distribution(StrEnum):
    """Whose registry reads the configuration."""

    DECKHOUSE = "deckhouse"
    """The fork: knows `realip`, `remotepathonly`, `localpathalias`, `nocache`, a proxied token."""

    STOCK = "stock"
    """`docker-registry` 2.8 as Debian ships it.

    Clients reach the token server under its own port, which therefore listens on the node's
    address. As a cache it keeps repository names, so the upstream's path must be
    `system/deckhouse`; it logs in only where the upstream has a token server, never with Basic, and
    starts only while the upstream answers. Its upstream's CA comes by the environment
    (`SSL_CERT_FILE`).
    """


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """A service's configuration, its environment, and notes on what the flavour cannot do."""

    document: dict[str, Any] = field(repr=False)
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def replica_config(
    node: Node,
    places: NodePaths,
    flavour: Distribution,
    http_secret: str,
    service: RegistrySettings,
    *,
    notify: bool,
    ingress_client_ca: bool,
) -> ServiceConfig:
    """A master's replica: it holds what is pushed to it, or keeps what it fetches from an upstream.

    With `notify` pushes wake the replication.
    """
    document = _common(node, places, flavour, http_secret)
    upstream, is_fork = service.upstream, flavour is Distribution.DECKHOUSE
    if upstream is not None:
        return _cache(node, places, document, upstream, service.proxy, is_fork=is_fork)
    if notify:
        daemon = host_port("127.0.0.1", node.ports.replication)
        endpoint = {
            "name": "replication",
            "url": f"http://{daemon}{NOTIFICATION_PATH}",
            "timeout": "5s",
            "threshold": 3,
            "backoff": "5s",
            # Only writes matter to replication. (2.8 still reports pulls: it ignores only what
            # matches both an action and a media type.)
            "ignore": {"actions": ["pull"]},
        }
        document["notifications"] = {"endpoints": [endpoint]}
    if ingress_client_ca and not is_fork:
        note = (
            f"{node.name}: stock docker-registry has no realip: behind the push ingress its log "
            "shows the ingress's address"
        )
        return ServiceConfig(document, notes=(note,))
    if ingress_client_ca:
        authority = places.pki("ingress-client-ca.crt")
        client = {"ca": authority, "cn": "kube-rbac-proxy-ca-key-pair"}
        document["http"]["realip"] = {"enabled": True, "clientcert": client}
    return ServiceConfig(document)


def _cache(
    node: Node,
    places: NodePaths,
    document: dict[str, Any],
    upstream: Upstream,
    section: ProxySection | None,
    *,
    is_fork: bool,
) -> ServiceConfig:
    document["proxy"] = _proxy(upstream)
    ttl = None if section is None else section.ttl
    if is_fork:
        document["proxy"] |= _fork_proxy(upstream, places)
        if ttl is not None:
            document["proxy"]["ttl"] = ttl
        return ServiceConfig(document)
    if upstream.path != LOGICAL_PATH:
        raise RenderingError(
            f"Proxy mode with stock docker-registry: expected an upstream whose path is "
            f"{LOGICAL_PATH}, found {upstream.base}; a stock cache asks its upstream for the "
            "repository names that it is itself asked for. Publish the images under "
            f"{upstream.host}/{LOGICAL_PATH}, use Direct mode, or render for the deckhouse flavour"
        )
    environment = {} if upstream.ca is None else {"SSL_CERT_FILE": places.pki(UPSTREAM_CA)}
    note = (
        f"{node.name}: stock docker-registry 2.8 keeps cached images for 168h whatever ttl says "
        f"(found {ttl})"
    )
    return ServiceConfig(document, environment, () if ttl is None else (note,))


def in_cluster_config(
    places: NodePaths, http_secret: str, upstream: Upstream, ports: Ports
) -> dict[str, Any]:
    """The proxy of Direct mode, which keeps nothing; for the fork (the stock one has a relay)."""
    anywhere = Node("in-cluster", "127.0.0.1", ports=ports)
    document = _common(anywhere, places, Distribution.DECKHOUSE, http_secret)
    http = document["http"]
    http["addr"] = f":{ports.registry}"
    http["debug"]["addr"] = f":{ports.debug}"
    http["tls"] = _pair(partial(places.config, "in-cluster"), "distribution")
    document["storage"]["maintenance"] = {
        "uploadpurging": {"enabled": False},
        "readonly": {"enabled": True},
    }
    token = document["auth"]["token"]
    loopback = f"https://127.0.0.1:{ports.token}{REALM_PATH}"
    token["realm"] = loopback
    token["rootcertbundle"] = places.config("in-cluster", "token.crt")
    token["proxy"] = {"url": loopback, "ca": places.config("in-cluster", "ca.crt")}
    document["proxy"] = _proxy(upstream) | _fork_proxy(upstream, places) | {"nocache": True}
    if upstream.ca is not None:
        document["proxy"]["ca"] = places.config("in-cluster", UPSTREAM_CA)
    return document


def _common(
    node: Node, places: NodePaths, flavour: Distribution, http_secret: str
) -> dict[str, Any]:
    token: dict[str, Any] = {
        "realm": f"https://{node.token}{REALM_PATH}",
        "service": SERVICE,
        "issuer": ISSUER,
        "rootcertbundle": places.pki("token.crt"),
    }
    if flavour is Distribution.DECKHOUSE:
        # The fork answers /auth/token itself and passes it to the token server beside it, so
        # clients need only one port. The stock one would send them to a path that nobody serves.
        token["autoredirect"] = True
        token["proxy"] = {
            "url": f"https://{host_port('127.0.0.1', node.ports.token)}{REALM_PATH}",
            "ca": places.pki("ca.crt"),
        }
    return {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {
            "filesystem": {"rootdirectory": places.data},
            "delete": {"enabled": True},
            "redirect": {"disable": True},
        },
        "http": {
            "addr": node.registry,
            "prefix": "/",
            "secret": tree.checked_secret(http_secret, "http.secret"),
            # One that is started anew, with another configuration, ends what it has begun, in less
            # than the time that a pod is given (30 s).
            "draintimeout": "20s",
            "debug": {
                "addr": host_port("127.0.0.1", node.ports.debug),
                "prometheus": {"enabled": True, "path": "/metrics"},
            },
            "tls": _pair(places.pki, "distribution"),
        },
        "auth": {"token": token},
    }


def _proxy(upstream: Upstream) -> dict[str, Any]:
    mirror = upstream_mirror(upstream, None)  # checks every value
    proxy = {"remoteurl": f"{mirror.scheme}://{mirror.host}"}
    if mirror.account is not None:
        proxy["username"] = mirror.account.name
        proxy["password"] = mirror.account.password.get_secret_value()
    return proxy


def _fork_proxy(upstream: Upstream, places: NodePaths) -> dict[str, Any]:
    path = tree.checked_repository_path(upstream.path, "upstream path")
    keys = {"remotepathonly": f"/{path}" if path else "", "localpathalias": f"/{LOGICAL_PATH}"}
    return keys if upstream.ca is None else {**keys, "ca": places.pki(UPSTREAM_CA)}


# -- the token server ------------------------------------------------------------------------------
# The access list: the first line that matches decides, and what no line allows is denied.

ISSUER = "Registry server"
SERVICE = "Deckhouse registry"
REALM_PATH = "/auth"
LIFETIME_S = 900
"""How long a token is good for; clients renew it."""


_ACCESS: tuple[tuple[RegistryUser, str, dict[str, str]], ...] = (
    (RegistryUser.RO, "pull", {}),
    (RegistryUser.RW, "*", {}),
    (RegistryUser.MIRROR_PUSHER, "*", {}),
    (RegistryUser.MIRROR_PULLER, "*", {"type": "registry", "name": "catalog"}),
    (RegistryUser.MIRROR_PULLER, "pull", {}),
)
"""User, what it may do, and to what; the first line that matches decides."""


def replica_auth(
    node: Node,
    places: NodePaths,
    users: Mapping[RegistryUser, Sequence[HashedAccount]],
    *,
    own_port: bool,
) -> dict[str, Any]:
    """The token server beside a replica; with `own_port` clients come to it directly.

    While passwords are rotated a user has two accounts.
    """
    access = [
        {"match": {"account": one.account.name, **match}, "actions": [action]}
        for user, action, match in _ACCESS
        for one in users.get(user, ())
    ]
    listen = node.token if own_port else host_port("127.0.0.1", node.ports.token)
    hashes = {one.account.name: one.password_hash for each in users.values() for one in each}
    # The fork's registry passes requests on and says for whom. A client alone does not say that.
    document = _token_server(listen, places.pki, hashes, access)
    if own_port:
        del document["server"]["real_ip_header"]
    return document


def in_cluster_auth(places: NodePaths, user: HashedAccount | None, port: int) -> dict[str, Any]:
    """The token server of Direct mode's proxy: clients use the upstream's login, if it has one."""
    name = "" if user is None else user.account.name
    hashes = {} if user is None else {name: user.password_hash}
    document = _token_server(
        f":{port}",
        partial(places.config, "in-cluster"),
        hashes,
        [{"match": {"account": name}, "actions": ["pull"]}],
    )
    if user is None:
        document["users"] = {"": {}}  # docker_auth: the anonymous user needs no password
    return document


def _token_server(
    listen: str, path: Callable[[str], str], hashes: Mapping[str, str], access: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "server": {"addr": listen, "real_ip_header": "X-Forwarded-For", **_pair(path, "auth")},
        "token": {"issuer": ISSUER, "expiration": LIFETIME_S, **_pair(path, "token")},
        "users": {name: {"password": value} for name, value in hashes.items()},
        "acl": access,
    }


def _pair(path: Callable[[str], str], name: str) -> dict[str, str]:
    """A certificate and its key, where `path` has them."""
    return {"certificate": path(f"{name}.crt"), "key": path(f"{name}.key")}


# -- replication -----------------------------------------------------------------------------------

NOTIFICATION_PATH = "/notify"
"""Where the daemon hears of pushes (distribution's `notifications`)."""


def replication_config(
    node: Node, masters: Sequence[Node], places: NodePaths, accounts: Mapping[RegistryUser, Account]
) -> dict[str, Any]:
    """The settings of the daemon on `node`, its pace included although that is the default."""
    peers = [one for one in masters if one.name != node.name]
    users = {
        role: {"name": account.name, "password": account.password.get_secret_value()}
        for role, account in (
            ("puller", accounts[RegistryUser.MIRROR_PULLER]),
            ("pusher", accounts[RegistryUser.MIRROR_PUSHER]),
        )
    }
    return {
        "ca": places.pki("ca.crt"),
        "users": users,
        "local": node.registry,
        "remote": [
            one.registry for one in sorted(peers, key=lambda one: (one.address, one.ports.registry))
        ],
        "sleep": 10,
        "parallelizm": 3,
        "listen": host_port("127.0.0.1", node.ports.replication),
    }


# -- the masters' pod ------------------------------------------------------------------------------

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
    images: pods.Images,
    config: str,
    version: str,
    *,
    token_host: str,
    replication: bool,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest for `/etc/kubernetes/manifests`.

    `config` is the hash of the files that its containers read, `version` their version. The token
    server listens at `token_host`; `environment` is the registry's.
    """
    # The kubelet starts them in this order. A registry without its token server fails who comes.
    containers = [
        pods.container(
            "auth",
            images.one("auth"),
            # Its own log file would need a folder that it may write to.
            {"args": ["-logtostderr", "/config/config.yaml"]},
            live=pods.http_get(token_host, node.ports.token),
            mounts={"auth-config": "/config", "pki": "/pki"},
            ports={"auth": (token_host, node.ports.token)},
        ),
        pods.container(
            "distribution",
            images.one("distribution"),
            {"args": ["serve", "/config/config.yaml"]},
            live=pods.http_get(node.address, node.ports.registry),
            mounts={"distribution-config": "/config", "pki": "/pki", "data": "/data"},
            writable={"data"},
            ports={
                pods.REGISTRY_PORT_NAME: (node.address, node.ports.registry),
                "debug": (pods.LOOPBACK, node.ports.debug),
            },
            environment=environment,
        ),
    ]
    volumes = [
        pods.host_path("distribution-config", SERVICE_CONFIG / "distribution"),
        pods.host_path("auth-config", SERVICE_CONFIG / "auth"),
        pods.host_path("pki", tree.PKI_CONFIG),
        pods.host_path("data", DATA_ROOT, "DirectoryOrCreate"),
    ]
    if replication:
        containers.append(
            pods.container(
                "mirrorer",
                images.one("mirror"),
                {"args": ["sync", "--watch", "--config", "/config/config.yaml"]},
                # It lives while it answers; a restart would not make replicas equal.
                live=pods.http_get(pods.LOOPBACK, node.ports.replication, "/healthz", "HTTP"),
                mounts={"mirrorer-config": "/config", "pki": "/pki"},
                ports={"replication": (pods.LOOPBACK, node.ports.replication)},
            )
        )
        volumes.append(pods.host_path("mirrorer-config", SERVICE_CONFIG / "mirrorer"))
    return pods.manifest(
        POD_NAME,
        LABELS,
        {HASH_ANNOTATION: config, pods.VERSION_ANNOTATION: version},
        {"securityContext": pods.security(0), "containers": containers, "volumes": volumes},
    )
