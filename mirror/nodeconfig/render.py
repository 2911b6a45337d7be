"""All configuration of a mode, or of the transition between two: a function of values.

`render` says which files each node and the in-cluster proxy have; `write_cluster` puts them below a
folder, one tree per node. A transition keeps the old ways in front of the new ones and the services
of both sides, so that nothing is taken away before its successor serves.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import SecretStr

from mirror.errors import RenderingError
from mirror.modes import constants
from mirror.modes.settings import Mode, ProxySection, RegistrySettings, Upstream
from mirror.modes.sites import Sites, User
from mirror.nodeconfig import values
from mirror.nodeconfig.cluster import Node, NodePaths, check_nodes
from mirror.nodeconfig.hosts import (
    Containerd,
    Way,
    join_ways,
    relayed,
    render_hosts,
    upstream_way,
    ways_for,
)
from mirror.nodeconfig.pods import (
    Images,
    PodParts,
    config_hash,
    notes_of_pods,
    static_pod,
    yaml_file,
)
from mirror.nodeconfig.proxies import (
    Nginx,
    Relayed,
    RelayTls,
    balancer_files,
    relay_conf,
    relay_files,
)
from mirror.nodeconfig.service_secrets import ServiceSecrets, hashed
from mirror.nodeconfig.services import (
    Distribution,
    ServiceConfig,
    cache_config,
    in_cluster_auth,
    in_cluster_config,
    local_config,
    peers_of,
    replica_auth,
    replication_config,
)
from mirror.nodeconfig.tree import PUBLIC, SECRET, RenderedFile, Tree, TreeChanges, place_tree

NODE_SERVICE_MODES = frozenset({Mode.PROXY, Mode.LOCAL})
IN_CLUSTER = constants.SERVICE_CONFIG / "in-cluster"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """For which programs, and where they run. The defaults are a Deckhouse cluster's."""

    containerd: Containerd = Containerd.DECKHOUSE
    distribution: Distribution = Distribution.DECKHOUSE
    nginx: Nginx = field(default_factory=Nginx)
    images: Images = field(default_factory=Images)
    """A static pod whose images are not given is not written."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """HTTP_PROXY, HTTPS_PROXY, NO_PROXY of caches."""
    ingress_client_ca: str | None = None
    """Who vouches for the push ingress's client certificate (PEM); Local mode."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Registries of module sources with a CA of their own: host → PEM, on every node."""
    in_place_root: PurePosixPath | None = None
    """Where the trees will lie, if services are to use the files there, outside of containers."""

    def places(self, tree: str) -> NodePaths:
        """The paths that files of one tree (`nodes/<name>`, or `in-cluster`) speak of."""
        if self.in_place_root is None:
            return NodePaths()
        return NodePaths(self.in_place_root / tree, in_place=True)

    def nginx_in(self, folder: PurePosixPath, places: NodePaths) -> Nginx:
        """nginx as it runs from `folder`: in place, several of them share one machine."""
        if not places.in_place:
            return self.nginx
        return replace(self.nginx, runtime=places.on_node(folder))


@dataclass(frozen=True, slots=True)
class Rendered:
    """What is to be on each node. `version` changes whenever anything that they depend on does."""

    nodes: Mapping[str, Tree]
    in_cluster: Tree
    version: str
    notes: tuple[str, ...]
    """What a flavour does less of than was asked for, in sentences."""


def render(
    settings: RegistrySettings,
    nodes: Sequence[Node],
    kept: ServiceSecrets,
    *,
    previous: RegistrySettings | None = None,
    options: RenderOptions = RenderOptions(),
) -> Rendered:
    """The configuration of `settings`; with `previous` that of the transition from there.

    `kept` must have been prepared for these nodes.

    Raises:
        RenderingError: a value may not be written, or a flavour cannot serve the mode.
    """
    check_nodes(nodes)
    if options.images.given and options.in_place_root is not None:
        raise RenderingError(
            "images: expected none where services run without containers, from files in place, "
            f"found {', '.join(options.images.given)}; leave the images out, or --in-place"
        )
    sides = (settings,) if previous is None else (previous, settings)
    if not any(node.master for node in nodes) and _services_of(sides):
        raise RenderingError(
            "nodes: expected at least one master, which holds a replica of the registry, found "
            "none; give the masters too"
        )
    version = _version(settings, previous, nodes, kept, options)
    notes: list[str] = []
    trees = {
        node.name: _node_tree(node, nodes, sides, kept, options, version, notes) for node in nodes
    }
    service = _services_of(sides)
    notes += notes_of_pods(
        options.images,
        tuple(trees.values()),
        services=service is not None,
        replication=service is not None and _replicated(nodes, service),
        relays=_relay_tree(nodes[0], sides[:-1], kept, options),
    )
    return Rendered(trees, _in_cluster_tree(nodes[0], sides, kept, options), version, tuple(notes))


def sites_of(nodes: Sequence[Node], kept: ServiceSecrets) -> Sites:
    """What addressing needs to know of the cluster that was rendered."""
    return Sites(
        masters=tuple(node.address for node in nodes if node.master),
        ca=kept.authority.certificate,
        accounts=kept.accounts(),
    )


def write_cluster(rendered: Rendered, out: Path) -> dict[str, TreeChanges]:
    """Put every tree below `out`: `nodes/<name>` and `in-cluster`. Names of trees → what was done.

    Raises:
        FileSystemError: a file could not be written or removed.
    """
    trees = {f"nodes/{name}": tree for name, tree in rendered.nodes.items()}
    if rendered.in_cluster or (out / "in-cluster").exists():
        trees = {"in-cluster": rendered.in_cluster, **trees}
    # On all nodes first: none loses what another one's route still leads to.
    placed = {name: place_tree(tree, out / name) for name, tree in trees.items()}
    return {name: one.clean() for name, one in placed.items()}


# -- a node ----------------------------------------------------------------------------------------


def _node_tree(
    node: Node,
    nodes: Sequence[Node],
    sides: Sequence[RegistrySettings],
    kept: ServiceSecrets,
    options: RenderOptions,
    version: str,
    notes: list[str],
) -> Tree:
    places = options.places(f"nodes/{node.name}")
    ways = _ways(node, sides, kept)
    files = dict(render_hosts(ways, places, options.containerd, node, options.sources))
    files |= _relay_tree(node, sides, kept, options)
    service = _services_of(sides)
    if service is None:
        return files
    nginx = options.nginx_in(constants.BALANCER_CONFIG, places)
    files |= balancer_files(node, nodes, nginx, options.images.nginx)
    if node.master:
        if node.registry == node.balancer:
            raise RenderingError(
                f"node {node.name}: registry and balancer would both listen on {node.balancer}; "
                "give one of them another port"
            )
        files |= _services(node, nodes, service, kept, options, places, version, notes)
    return files


def _ways(
    node: Node, sides: Sequence[RegistrySettings], kept: ServiceSecrets
) -> dict[str, tuple[Way, ...]]:
    reader = kept.users[User.RO].account
    ways: dict[str, tuple[Way, ...]] = {}
    for side in sides:
        ways = join_ways(ways, ways_for(side, node, kept.authority.certificate, reader))
    return ways


def _relay_tree(
    node: Node, sides: Sequence[RegistrySettings], kept: ServiceSecrets, options: RenderOptions
) -> Tree:
    places = options.places(f"nodes/{node.name}")
    nginx = options.nginx_in(constants.BALANCER_CONFIG, places)
    behind = relayed(_ways(node, sides, kept), options.containerd)
    return relay_files(node, behind, places, nginx, options.images.nginx)


def _services_of(sides: Sequence[RegistrySettings]) -> RegistrySettings | None:
    """The newest side that has services on masters; in a transition an old one's stay."""
    found = [side for side in sides if side.mode in NODE_SERVICE_MODES]
    return found[-1] if found else None


def _replicated(nodes: Sequence[Node], settings: RegistrySettings) -> bool:
    """Whether masters bring each other what one of them got."""
    return settings.mode is Mode.LOCAL and sum(node.master for node in nodes) > 1


def _services(
    node: Node,
    nodes: Sequence[Node],
    settings: RegistrySettings,
    kept: ServiceSecrets,
    options: RenderOptions,
    places: NodePaths,
    version: str,
    notes: list[str],
) -> dict[PurePosixPath, RenderedFile]:
    own_port = options.distribution is Distribution.STOCK
    peers = peers_of(node, nodes) if _replicated(nodes, settings) else ()
    config = _registry_config(node, settings, kept, options, places, bool(peers))
    notes += config.notes
    leaves = kept.nodes[node.name]
    base = constants.SERVICE_CONFIG
    files = {
        base / "distribution/config.yaml": yaml_file(config.document),
        base / "auth/config.yaml": yaml_file(
            replica_auth(node, places, settings.mode, kept.users, own_port=own_port)
        ),
        constants.PKI_CONFIG / "ca.crt": RenderedFile(kept.authority.certificate.encode()),
        **_pair(constants.PKI_CONFIG / "auth", leaves.auth),
        **_pair(constants.PKI_CONFIG / "distribution", leaves.distribution),
        **_pair(constants.PKI_CONFIG / "token", kept.token),
    }
    if settings.upstream is not None and settings.upstream.ca is not None:
        files[constants.PKI_CONFIG / "upstream-ca.crt"] = _authority(settings.upstream)
    if options.ingress_client_ca is not None and settings.mode is Mode.LOCAL:
        text = values.authority(options.ingress_client_ca, "ingress client CA")
        files[constants.PKI_CONFIG / "ingress-client-ca.crt"] = RenderedFile(text.encode())
    if peers:
        replication = replication_config(node, peers, places, kept.accounts())
        files[base / "mirrorer/config.yaml"] = yaml_file(replication)
    if options.images.serve(replication=bool(peers)):
        parts = PodParts(
            options.images,
            config_hash(files),
            version,
            node.address if own_port else "127.0.0.1",
            replication=bool(peers),
            environment=config.environment,
        )
        files[constants.STATIC_POD] = yaml_file(static_pod(node, parts), PUBLIC)
    return files


def _registry_config(
    node: Node,
    settings: RegistrySettings,
    kept: ServiceSecrets,
    options: RenderOptions,
    places: NodePaths,
    has_peers: bool,
) -> ServiceConfig:
    flavour = options.distribution
    if settings.mode is Mode.LOCAL:
        return local_config(
            node,
            places,
            flavour,
            kept.http_secret,
            notify=has_peers,
            ingress_client_ca=options.ingress_client_ca is not None,
        )
    upstream = settings.upstream
    if upstream is None:
        raise ValueError("Proxy mode has an upstream")
    ttl = settings.proxy.ttl if isinstance(settings.proxy, ProxySection) else None
    config = cache_config(node, places, flavour, kept.http_secret, upstream, ttl=ttl)
    environment = {
        name: values.secret(value, name) for name, value in sorted(options.environment.items())
    }
    return ServiceConfig(config.document, environment | config.environment, config.notes)


# -- the in-cluster proxy --------------------------------------------------------------------------


def _in_cluster_tree(
    ports: Node,
    sides: Sequence[RegistrySettings],
    kept: ServiceSecrets,
    options: RenderOptions,
) -> Tree:
    direct = [side for side in sides if side.mode is Mode.DIRECT]
    upstream = direct[-1].upstream if direct else None
    if upstream is None:
        return {}
    places = options.places("in-cluster")
    way = upstream_way(upstream, upstream.path)  # checks every value
    files = _pair(IN_CLUSTER / "distribution", kept.in_cluster.distribution)
    if upstream.ca is not None:
        files[IN_CLUSTER / "upstream-ca.crt"] = _authority(upstream)
    if options.distribution is Distribution.STOCK:
        authority = None if upstream.ca is None else places.config("in-cluster", "upstream-ca.crt")
        tls = RelayTls(
            places.config("in-cluster", "distribution.crt"),
            places.config("in-cluster", "distribution.key"),
        )
        nginx = options.nginx_in(IN_CLUSTER, places)
        content = relay_conf(str(ports.ports.registry), [Relayed(way, "", authority)], nginx, tls)
        files[IN_CLUSTER / "relay.conf"] = RenderedFile(content)
        return files
    account = upstream.account
    user = None if account is None else hashed(account, salt=_salt(kept, account.name))
    config = in_cluster_config(places, kept.http_secret, upstream, ports)
    return files | {
        IN_CLUSTER / "distribution.yaml": yaml_file(config.document),
        IN_CLUSTER / "auth.yaml": yaml_file(in_cluster_auth(places, user, ports.ports.token)),
        IN_CLUSTER / "ca.crt": RenderedFile(kept.authority.certificate.encode()),
        **_pair(IN_CLUSTER / "auth", kept.in_cluster.auth),
        **_pair(IN_CLUSTER / "token", kept.token),
    }


# -- files -----------------------------------------------------------------------------------------


def _pair(stem: PurePosixPath, pair: Any) -> dict[PurePosixPath, RenderedFile]:
    return {
        stem.with_suffix(".crt"): RenderedFile(pair.certificate.encode()),
        stem.with_suffix(".key"): RenderedFile(pair.key.encode(), SECRET),
    }


def _authority(upstream: Upstream) -> RenderedFile:
    return RenderedFile(values.authority(upstream.ca or "", "upstream CA").encode())


def _version(
    settings: RegistrySettings,
    previous: RegistrySettings | None,
    nodes: Sequence[Node],
    kept: ServiceSecrets,
    options: RenderOptions,
) -> str:
    """SHA-256 of all inputs, keyed: it is public, and passwords must not be guessed by it."""
    document = {
        "settings": [_plain(side) for side in (previous, settings) if side is not None],
        "nodes": [[one.name, one.address, one.master, repr(one.ports)] for one in nodes],
        "authority": kept.authority.certificate,
        "users": {user: one.password_hash for user, one in sorted(kept.users.items())},
        "options": repr(options),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hmac.new(kept.http_secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def _plain(settings: RegistrySettings) -> dict[str, Any]:
    document = settings.model_dump(mode="python", exclude_none=True)

    def reveal(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if isinstance(value, dict):
            return {key: reveal(one) for key, one in value.items()}
        return value

    return {key: reveal(value) for key, value in document.items()}


def _salt(kept: ServiceSecrets, name: str) -> bytes:
    """Always the same for one user of one cluster: the same settings render the same files."""
    return hmac.new(kept.http_secret.encode(), name.encode(), hashlib.sha256).digest()[:16]
