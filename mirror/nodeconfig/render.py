"""All configuration of a mode, or of the transition between two: a function of values.

A transition keeps the old mirrors before the new ones, and the services of both sides.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from mirror.errors import RenderingError
from mirror.modes.routes import RegistryUser
from mirror.modes.settings import ClusterAccess, ProxySection, RegistrySettings, Upstream
from mirror.nodeconfig import hosts, objects, pods, proxies, services
from mirror.nodeconfig.cluster import Node, NodePaths, Ports, check_nodes
from mirror.nodeconfig.object_secrets import Object, Situation
from mirror.nodeconfig.pki import KeyPair
from mirror.nodeconfig.service_secrets import ServiceSecrets, hashed
from mirror.nodeconfig.tree import (
    BALANCER_CONFIG,
    PKI_CONFIG,
    PUBLIC,
    RELAY_POD,
    SECRET,
    SERVICE_CONFIG,
    STATIC_POD,
    UPSTREAM_CA,
    RenderedFile,
    Tree,
    TreeChanges,
    checked_authority,
    checked_secret,
    place_manifests,
    place_tree,
)

_SERVICES = SERVICE_CONFIG
IN_CLUSTER = _SERVICES / "in-cluster"
MANIFESTS = "manifests"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """For which programs, and where they run. The defaults are a Deckhouse cluster's."""

    containerd: hosts.Containerd = hosts.Containerd.DECKHOUSE
    distribution: services.Distribution = services.Distribution.DECKHOUSE
    nginx: proxies.Nginx = field(default_factory=proxies.Nginx)
    images: pods.Images = field(default_factory=pods.Images)
    """A static pod whose images are not given is not written."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """HTTP_PROXY, HTTPS_PROXY, NO_PROXY of caches and of the in-cluster proxy."""
    in_cluster_ports: Ports = field(default_factory=Ports)
    """Those of the in-cluster proxy."""
    ingress_client_ca: str | None = None
    """The authority of the push ingress's client certificate (PEM); Local mode."""
    push_ingress: objects.PushIngress | None = None
    """The public address for pushes; Local mode."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Registries of module sources with a CA of their own: host → PEM, on every node."""
    in_place_root: PurePosixPath | None = None
    """Where the trees will lie, if services are to use the files there, outside of containers."""

    def __post_init__(self) -> None:
        for name in ("environment", "sources"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def places(self, tree: str) -> NodePaths:
        """The paths that files of one tree (`nodes/<name>`, or `in-cluster`) contain."""
        if self.in_place_root is None:
            return NodePaths()
        return NodePaths(self.in_place_root / tree, in_place=True)

    def nginx_in(self, folder: PurePosixPath, places: NodePaths) -> proxies.Nginx:
        """nginx as it runs from `folder`: in place, several of them share one machine."""
        if not places.in_place:
            return self.nginx
        return replace(self.nginx, runtime=places.on_node(folder))


@dataclass(frozen=True, slots=True)
class Rendered:
    """The files of each node and of the in-cluster proxy, and the cluster's objects.

    `version` is that of all these files: it changes exactly when one of them does, secret ones
    included, and tells nothing about their content. `objects` are Kubernetes objects as JSON
    values, in the order in which to apply them; Secrets are among them.
    """

    nodes: Mapping[str, Tree]
    in_cluster: Tree
    version: str
    notes: tuple[str, ...]
    """What a flavour cannot do of what was asked for, in sentences."""
    objects: tuple[Object, ...] = field(default=(), repr=False)
    masters: Mapping[str, str] = field(default_factory=dict)
    """Each master with the version of its services, which changes when their files do."""

    def __post_init__(self) -> None:
        nodes = {name: MappingProxyType(dict(tree)) for name, tree in self.nodes.items()}
        object.__setattr__(self, "nodes", MappingProxyType(nodes))
        object.__setattr__(self, "in_cluster", MappingProxyType(dict(self.in_cluster)))
        object.__setattr__(self, "masters", MappingProxyType(dict(self.masters)))


def render(
    settings: RegistrySettings,
    nodes: Sequence[Node],
    kept: ServiceSecrets,
    *,
    previous: RegistrySettings | None = None,
    switched: bool = False,
    options: RenderOptions = RenderOptions(),
) -> Rendered:
    """The configuration of `settings`; with `previous` that of the transition from there.

    In a transition components read by the old way until they are `switched`. `kept` must have been
    prepared for these nodes. The order of `nodes` does not matter. From files in place there are no
    objects: their services run without containers.

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
    components = settings if previous is None or switched else previous
    return _Rendering(sides, components, tuple(nodes), kept, options).all()


def access_of(nodes: Sequence[Node], kept: ServiceSecrets) -> ClusterAccess:
    """How to reach the registry of the rendered cluster."""
    return ClusterAccess(
        masters=tuple(node.address for node in nodes if node.master),
        names={node.address: node.name for node in nodes if node.master},
        ca=kept.trusted,
        accounts=kept.accounts(),
    )


def write_cluster(rendered: Rendered, out: Path) -> dict[str, TreeChanges]:
    """Put every tree below `out`: `nodes/<name>`, `in-cluster`, and the objects as `manifests`.

    Returns names of trees → what was done.

    Raises:
        FileSystemError: a file could not be written or removed.
    """
    trees = {f"nodes/{name}": tree for name, tree in rendered.nodes.items()}
    if rendered.in_cluster or (out / "in-cluster").exists():
        trees = {"in-cluster": rendered.in_cluster, **trees}
    # Write on all nodes before removing: no route may lead to what another node has lost.
    placed = {name: place_tree(tree, out, name) for name, tree in trees.items()}
    done = {name: one.clean() for name, one in placed.items()}
    if rendered.objects or (out / MANIFESTS).exists():
        done[MANIFESTS] = place_manifests(objects.object_files(rendered.objects), out, MANIFESTS)
    return done


@dataclass(frozen=True, slots=True)
class _Rendering:
    """One call of `render`. `sides` are the settings before and after, or the settings alone.

    `components` is the side by which components read.
    """

    sides: Sequence[RegistrySettings]
    components: RegistrySettings
    nodes: Sequence[Node]
    kept: ServiceSecrets
    options: RenderOptions

    def all(self) -> Rendered:
        service = self._service
        if service is not None and not any(node.master for node in self.nodes):
            raise RenderingError(
                "nodes: expected at least one master, which holds a replica of the registry, found "
                "none; give the masters too"
            )
        notes: list[str] = []
        trees = {node.name: self._node_tree(node, notes) for node in self.nodes}
        in_cluster = self._in_cluster_tree()
        read = {name: self._service_tree(trees[name]) for name in trees}
        masters = {name: self._keyed(pods.config_hash(one)) for name, one in read.items() if one}
        for name, pod in self._pods(read, masters).items():
            trees[name] |= pod
        every = sorted([*trees.items(), ("", in_cluster)])
        version = self._keyed(*(f"{name}\0{pods.config_hash(tree)}\0" for name, tree in every))
        notes += pods.notes_of_pods(
            self.options.images,
            tuple(trees.values()),
            services=service is not None,
            replication=self._replicated,
            restarts=any(self._relay_restarts(node, trees[node.name]) for node in self.nodes),
            proxy=() if self.options.in_place_root else objects.proxy_images(in_cluster),
        )
        made = self._objects(in_cluster, version, masters, notes)
        return Rendered(trees, in_cluster, version, tuple(notes), made, masters)

    def _objects(
        self, in_cluster: Tree, version: str, masters: Mapping[str, str], notes: list[str]
    ) -> tuple[Object, ...]:
        options, authority = self.options, self.options.ingress_client_ca
        if options.in_place_root is not None:
            return ()
        now = Situation(
            self.sides,
            self.components,
            self.nodes,
            self.kept,
            in_cluster,
            version,
            masters,
            self._environment,
            authority and checked_authority(authority, "ingress client CA"),
        )
        notes += objects.notes_of(now, options.in_cluster_ports)
        if self.kept.beside and now.replicas is not None:
            notes.append(
                "registry-node-config-… has room for one login of each user: while passwords are "
                "rotated, replication by the module's node agent waits, and caches refuse the other"
            )
        ports, push = options.in_cluster_ports, options.push_ingress
        return objects.objects_of(now, options.images, options.nginx, ports, push)

    def _keyed(self, *texts: str) -> str:
        """SHA-256, keyed: versions are public, and must not help to guess passwords."""
        key, text = self.kept.http_secret.encode(), "".join(texts).encode()
        return hmac.new(key, text, hashlib.sha256).hexdigest()

    @staticmethod
    def _service_tree(tree: Tree) -> Tree:
        """The files that the containers of a master's services read; none on other nodes."""
        return {path: one for path, one in tree.items() if path.is_relative_to(_SERVICES)}

    @property
    def _service(self) -> RegistrySettings | None:
        """The newest side that runs services on masters; in a transition the old ones stay."""
        found = [side for side in self.sides if side.kind.row.runs_replicas]
        return found[-1] if found else None

    @property
    def _replicated(self) -> bool:
        """Whether masters copy to each other what one of them received."""
        service = self._service
        masters = sum(node.master for node in self.nodes)
        return service is not None and service.kind.row.holds_own_images and masters > 1

    # -- a node --------------------------------------------------------------------------------

    def _node_tree(self, node: Node, notes: list[str]) -> dict[PurePosixPath, RenderedFile]:
        """All files of a node but the manifest of its services."""
        places, options = self.options.places(f"nodes/{node.name}"), self.options
        mirrors = self._mirrors(node, self.sides)
        files = dict(hosts.render_hosts(mirrors, places, options.containerd, node, options.sources))
        files |= self._relay_tree(node, self.sides)
        service = self._service
        if service is None:
            return files
        nginx = options.nginx_in(BALANCER_CONFIG, places)
        files |= proxies.balancer_files(node, self.nodes, nginx, options.images.nginx)
        if node.master:
            if node.registry == node.balancer:
                raise RenderingError(
                    f"node {node.name}: registry and balancer would both listen on "
                    f"{node.balancer}; give one of them another port"
                )
            config = self._registry_config(node, service, places)
            notes += config.notes
            files |= self._service_files(node, service, places, config)
        return files

    def _mirrors(self, node: Node, sides: Sequence[RegistrySettings]) -> hosts.HostMirrors:
        reader, ca = self.kept.users[RegistryUser.RO].account, self.kept.trusted
        each = (hosts.mirrors_of(side, node, ca, reader) for side in sides)
        return reduce(hosts.join_mirrors, each, {})

    def _relay_tree(self, node: Node, sides: Sequence[RegistrySettings]) -> Tree:
        places = self.options.places(f"nodes/{node.name}")
        nginx = self.options.nginx_in(BALANCER_CONFIG, places)
        behind = hosts.needing_relay(self._mirrors(node, sides), self.options.containerd)
        return proxies.relay_files(node, behind, places, nginx, self.options.images.nginx)

    def _relay_restarts(self, node: Node, tree: Tree) -> bool:
        before = self._relay_tree(node, self.sides[:-1]).get(RELAY_POD)
        return before is not None and tree.get(RELAY_POD) != before

    # -- the services of a master --------------------------------------------------------------

    def _service_files(
        self,
        node: Node,
        service: RegistrySettings,
        places: NodePaths,
        config: services.ServiceConfig,
    ) -> dict[PurePosixPath, RenderedFile]:
        kept, options, base = self.kept, self.options, SERVICE_CONFIG
        leaves = kept.nodes[node.name]
        users = {user: kept.accepted(user) for user in service.kind.row.users}
        auth = services.replica_auth(node, places, users, own_port=self._own_port)
        files = {
            base / "distribution/config.yaml": pods.yaml_file(config.document),
            base / "auth/config.yaml": pods.yaml_file(auth),
            PKI_CONFIG / "ca.crt": RenderedFile(kept.trusted.encode()),
            **_pair(PKI_CONFIG / "auth", leaves.auth),
            **_pair(PKI_CONFIG / "distribution", leaves.distribution),
            **_token_pair(PKI_CONFIG / "token", kept),
        }
        if service.upstream is not None and service.upstream.ca is not None:
            files[PKI_CONFIG / UPSTREAM_CA] = _authority(service.upstream)
        if options.ingress_client_ca is not None and service.kind.row.holds_own_images:
            text = checked_authority(options.ingress_client_ca, "ingress client CA")
            files[PKI_CONFIG / "ingress-client-ca.crt"] = RenderedFile(text.encode())
        if self._replicated:
            peers = services.peers_of(node, self.nodes)
            replication = services.replication_config(node, peers, places, kept.accounts())
            files[base / "mirrorer/config.yaml"] = pods.yaml_file(replication)
        return files

    @property
    def _own_port(self) -> bool:
        """Whether clients reach the token server under a port of its own."""
        return self.options.distribution is services.Distribution.STOCK

    def _pods(
        self, read: Mapping[str, Tree], versions: Mapping[str, str]
    ) -> dict[str, dict[PurePosixPath, RenderedFile]]:
        """The manifest of the services for each master; `read` are the files of these."""
        service, images = self._service, self.options.images
        if service is None or not images.serve(replication=self._replicated):
            return {}
        made = {}
        for node in (one for one in self.nodes if one.master):
            places = self.options.places(f"nodes/{node.name}")
            pod = pods.static_pod(
                node,
                images,
                pods.config_hash(read[node.name]),
                versions[node.name],
                token_host=node.address if self._own_port else "127.0.0.1",
                replication=self._replicated,
                environment=self._registry_config(node, service, places).environment,
            )
            made[node.name] = {STATIC_POD: pods.yaml_file(pod, PUBLIC)}
        return made

    def _registry_config(
        self, node: Node, service: RegistrySettings, places: NodePaths
    ) -> services.ServiceConfig:
        flavour, http_secret = self.options.distribution, self.kept.http_secret
        if service.kind.row.holds_own_images:
            return services.local_config(
                node,
                places,
                flavour,
                http_secret,
                notify=self._replicated,
                ingress_client_ca=self.options.ingress_client_ca is not None,
            )
        upstream = service.upstream
        if upstream is None:
            raise ValueError("a cache has an upstream")
        ttl = service.proxy.ttl if isinstance(service.proxy, ProxySection) else None
        config = services.cache_config(node, places, flavour, http_secret, upstream, ttl=ttl)
        return services.ServiceConfig(
            config.document, self._environment | config.environment, config.notes
        )

    @property
    def _environment(self) -> dict[str, str]:
        """Of what reaches the upstream."""
        given = sorted(self.options.environment.items())
        return {name: checked_secret(value, name) for name, value in given}

    # -- the in-cluster proxy ------------------------------------------------------------------

    def _in_cluster_tree(self) -> Tree:
        direct = [side for side in self.sides if side.kind.row.runs_in_cluster_proxy]
        upstream = direct[-1].upstream if direct else None
        if upstream is None:
            return {}
        kept, options, places = self.kept, self.options, self.options.places("in-cluster")
        ports = options.in_cluster_ports
        mirror = hosts.upstream_mirror(upstream, upstream.path)  # checks every value
        files = _pair(IN_CLUSTER / "distribution", kept.in_cluster.distribution)
        if upstream.ca is not None:
            files[IN_CLUSTER / UPSTREAM_CA] = _authority(upstream)
        if options.distribution is services.Distribution.STOCK:
            at = partial(places.config, "in-cluster")
            authority = None if upstream.ca is None else at(UPSTREAM_CA)
            pair = (at("distribution.crt"), at("distribution.key"))
            nginx = options.nginx_in(IN_CLUSTER, places)
            content = proxies.relay_conf(
                str(ports.registry), [proxies.Relayed(mirror, "", authority)], nginx, pair
            )
            files[IN_CLUSTER / "relay.conf"] = RenderedFile(content)
            return files
        account = upstream.account
        user = None if account is None else hashed(account, salt=_salt(kept, account.name))
        config = services.in_cluster_config(places, kept.http_secret, upstream, ports)
        return files | {
            IN_CLUSTER / "distribution_config.yaml": pods.yaml_file(config.document),
            IN_CLUSTER / "auth_config.yaml": pods.yaml_file(
                services.in_cluster_auth(places, user, ports.token)
            ),
            IN_CLUSTER / "ca.crt": RenderedFile(kept.trusted.encode()),
            **_pair(IN_CLUSTER / "auth", kept.in_cluster.auth),
            **_token_pair(IN_CLUSTER / "token", kept),
        }


# -- files -----------------------------------------------------------------------------------------


def _pair(stem: PurePosixPath, pair: KeyPair) -> dict[PurePosixPath, RenderedFile]:
    return {
        stem.with_suffix(".crt"): RenderedFile(pair.certificate.encode()),
        stem.with_suffix(".key"): RenderedFile(pair.key.encode(), SECRET),
    }


def _token_pair(stem: PurePosixPath, kept: ServiceSecrets) -> dict[PurePosixPath, RenderedFile]:
    """The pair that signs, with the certificates of all others whose tokens count behind its own.

    The token server reads the first certificate of the file, and the registry all of them.
    """
    trusted = RenderedFile(kept.tokens.trusted.encode())
    return {**_pair(stem, kept.token), stem.with_suffix(".crt"): trusted}


def _authority(upstream: Upstream) -> RenderedFile:
    return RenderedFile(checked_authority(upstream.ca or "", "upstream CA").encode())


def _salt(kept: ServiceSecrets, name: str) -> bytes:
    """Always the same for one user of one cluster: the same settings render the same files."""
    return hmac.new(kept.http_secret.encode(), name.encode(), hashlib.sha256).digest()[:16]
