"""All configuration of a mode, or of the transition between two: a function of values.

A transition keeps the old mirrors before the new ones, and the services of both sides.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from mirror.errors import InputError, RenderingError
from mirror.modes import ModeKind, RegistryUser, outcomes
from mirror.modes.outcomes import StepOutcome
from mirror.modes.settings import ClusterAccess, NodeFacts, RegistrySettings, Upstream
from mirror.nodeconfig import objects, pods, pulling, services, tree
from mirror.nodeconfig.cluster import Node, NodePaths, Ports, check_nodes
from mirror.nodeconfig.pki import KeyPair
from mirror.nodeconfig.pods import Object
from mirror.nodeconfig.service_secrets import LENDERS, Rotated, ServiceSecrets, hashed
from mirror.nodeconfig.tree import PUBLIC, SECRET, SERVICE_CONFIG, RenderedFile, Tree, TreeChanges

IN_CLUSTER = SERVICE_CONFIG / "in-cluster"
MANIFESTS = "manifests"


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """For which programs, and where they run. The defaults are a Deckhouse cluster's."""

    containerd: pulling.Containerd = pulling.Containerd.DECKHOUSE
    distribution: services.Distribution = services.Distribution.DECKHOUSE
    nginx: pulling.Nginx = field(default_factory=pulling.Nginx)
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

    def places(self, name: str) -> NodePaths:
        """The paths that the files of one tree (`nodes/<name>`, or `in-cluster`) contain."""
        if self.in_place_root is None:
            return NodePaths()
        return NodePaths(self.in_place_root / name, in_place=True)

    def nginx_in(self, folder: PurePosixPath, places: NodePaths) -> pulling.Nginx:
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
        nodes = {name: MappingProxyType(dict(files)) for name, files in self.nodes.items()}
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
    given, authority = sorted(options.environment.items()), options.ingress_client_ca
    now = objects.Situation(
        sides=(settings,) if previous is None else (previous, settings),
        components=settings if previous is None or switched else previous,
        nodes=tuple(nodes),
        kept=kept,
        environment={name: tree.checked_secret(value, name) for name, value in given},
        ingress_client_ca=authority and tree.checked_authority(authority, "ingress client CA"),
    )
    return _Rendering(now, options).all()


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
    trees = {f"nodes/{name}": files for name, files in rendered.nodes.items()}
    if rendered.in_cluster or (out / "in-cluster").exists():
        trees = {"in-cluster": rendered.in_cluster, **trees}
    # Write on all nodes before removing: no route may lead to what another node has lost.
    placed = {name: tree.place_tree(files, out, name) for name, files in trees.items()}
    done = {name: one.clean() for name, one in placed.items()}
    if rendered.objects or (out / MANIFESTS).exists():
        done[MANIFESTS] = tree.place_manifests(
            objects.object_files(rendered.objects), out, MANIFESTS
        )
    return done


@dataclass(frozen=True, slots=True)
class _Rendering:
    """One call of `render`."""

    now: objects.Situation
    options: RenderOptions

    def all(self) -> Rendered:
        now, options, service = self.now, self.options, self.now.replicas
        if service is not None and not now.masters:
            raise RenderingError(
                "nodes: expected at least one master, which holds a replica of the registry, found "
                "none; give the masters too"
            )
        notes: list[str] = []
        masters: dict[str, str] = {}
        trees = {node.name: self._node_tree(node, notes, masters) for node in now.nodes}
        in_cluster = self._in_cluster_tree()
        every = sorted([*trees.items(), ("", in_cluster)])
        version = self._keyed(*(f"{name}\0{pods.config_hash(files)}\0" for name, files in every))
        notes += pods.notes_of_pods(
            options.images,
            tuple(trees.values()),
            services=service is not None,
            replication=self._replicated,
            restarts=any(self._relay_restarts(node, trees[node.name]) for node in now.nodes),
            proxy=() if options.in_place_root else pods.proxy_images(in_cluster),
        )
        made: tuple[Object, ...] = ()
        if options.in_place_root is None:
            now = replace(now, in_cluster=in_cluster, version=version, services=masters)
            ports = options.in_cluster_ports
            notes += objects.notes_of(now, ports)
            runtime, push = options.nginx.runtime, options.push_ingress
            made = objects.objects_of(now, options.images, runtime, ports, push)
        return Rendered(trees, in_cluster, version, tuple(notes), made, masters)

    def _keyed(self, *texts: str) -> str:
        """SHA-256, keyed: versions are public, and must not help to guess passwords."""
        return _hmac(self.now.kept, "".join(texts)).hex()

    @property
    def _replicated(self) -> bool:
        """Whether masters copy to each other what one of them received."""
        service = self.now.replicas
        return bool(service and service.kind.row.holds_own_images and len(self.now.masters) > 1)

    # -- a node --------------------------------------------------------------------------------

    def _node_tree(
        self, node: Node, notes: list[str], masters: dict[str, str]
    ) -> dict[PurePosixPath, RenderedFile]:
        """All files of a node; the version of its services is added to `masters`."""
        places, options, now = self.options.places(f"nodes/{node.name}"), self.options, self.now
        mirrors = self._mirrors(node, now.sides)
        files = pulling.render_hosts(mirrors, places, options.containerd, node, options.sources)
        files |= self._relay_tree(node, now.sides)
        if now.replicas is None:
            return files
        nginx = options.nginx_in(tree.BALANCER_CONFIG, places)
        files |= pulling.balancer_files(node, now.nodes, nginx, options.images.nginx)
        if node.master:
            if node.registry == node.balancer:
                raise RenderingError(
                    f"node {node.name}: registry and balancer would both listen on "
                    f"{node.balancer}; give one of them another port"
                )
            config = services.replica_config(
                *(node, places, options.distribution, now.kept.http_secret, now.replicas),
                notify=self._replicated,
                ingress_client_ca=now.ingress_client_ca is not None,
            )
            notes += config.notes
            read = self._service_files(node, now.replicas, places, config)
            files |= read
            digest = pods.config_hash(read)
            masters[node.name] = self._keyed(digest)
            shared = now.environment if now.replicas.upstream else {}
            if options.images.serve(replication=self._replicated):
                pod = services.static_pod(
                    node,
                    options.images,
                    digest,
                    masters[node.name],
                    token_host=node.address if self._own_port else "127.0.0.1",
                    replication=self._replicated,
                    environment={**shared, **config.environment},
                )
                files[tree.STATIC_POD] = pods.yaml_file(pod, PUBLIC)
        return files

    def _mirrors(self, node: Node, sides: Sequence[RegistrySettings]) -> pulling.HostMirrors:
        kept = self.now.kept
        reader, ca = kept.users[RegistryUser.RO].account, kept.trusted
        each = (pulling.mirrors_of(side, node, ca, reader) for side in sides)
        return reduce(pulling.join_mirrors, each, {})

    def _relay_tree(self, node: Node, sides: Sequence[RegistrySettings]) -> Tree:
        places = self.options.places(f"nodes/{node.name}")
        nginx = self.options.nginx_in(tree.BALANCER_CONFIG, places)
        behind = pulling.needing_relay(self._mirrors(node, sides), self.options.containerd)
        return pulling.relay_files(node, behind, places, nginx, self.options.images.nginx)

    def _relay_restarts(self, node: Node, files: Tree) -> bool:
        before = self._relay_tree(node, self.now.sides[:-1]).get(tree.RELAY_POD)
        return before is not None and files.get(tree.RELAY_POD) != before

    # -- the services of a master --------------------------------------------------------------

    def _service_files(
        self,
        node: Node,
        service: RegistrySettings,
        places: NodePaths,
        config: services.ServiceConfig,
    ) -> dict[PurePosixPath, RenderedFile]:
        kept, pki = self.now.kept, tree.PKI_CONFIG
        leaves = kept.nodes[node.name]
        users = {user: kept.accepted(user) for user in service.kind.row.users}
        auth = services.replica_auth(node, places, users, own_port=self._own_port)
        files = {
            SERVICE_CONFIG / "distribution/config.yaml": pods.yaml_file(config.document),
            SERVICE_CONFIG / "auth/config.yaml": pods.yaml_file(auth),
            pki / "ca.crt": RenderedFile(kept.trusted.encode()),
            **_pair(pki / "auth", leaves.auth),
            **_pair(pki / "distribution", leaves.distribution),
            **_token_pair(pki / "token", kept),
        }
        if service.upstream is not None and service.upstream.ca is not None:
            files[pki / tree.UPSTREAM_CA] = _authority(service.upstream)
        if self.now.ingress_client_ca is not None and service.kind.row.holds_own_images:
            files[pki / "ingress-client-ca.crt"] = RenderedFile(self.now.ingress_client_ca.encode())
        if self._replicated:
            masters, accounts = self.now.masters, kept.accounts()
            replication = services.replication_config(node, masters, places, accounts)
            files[SERVICE_CONFIG / "mirrorer/config.yaml"] = pods.yaml_file(replication)
        return files

    @property
    def _own_port(self) -> bool:
        """Whether clients reach the token server under a port of its own."""
        return self.options.distribution is services.Distribution.STOCK

    # -- the in-cluster proxy ------------------------------------------------------------------

    def _in_cluster_tree(self) -> Tree:
        direct = [side for side in self.now.sides if side.kind.row.runs_in_cluster_proxy]
        upstream = direct[-1].upstream if direct else None
        if upstream is None:
            return {}
        kept, options, places = self.now.kept, self.options, self.options.places("in-cluster")
        ports = options.in_cluster_ports
        mirror = pulling.upstream_mirror(upstream, upstream.path)  # checks every value
        files = _pair(IN_CLUSTER / "distribution", kept.in_cluster.distribution)
        if upstream.ca is not None:
            files[IN_CLUSTER / tree.UPSTREAM_CA] = _authority(upstream)
        if options.distribution is services.Distribution.STOCK:
            at = partial(places.config, "in-cluster")
            authority = None if upstream.ca is None else at(tree.UPSTREAM_CA)
            pair = (at("distribution.crt"), at("distribution.key"))
            nginx = options.nginx_in(IN_CLUSTER, places)
            behind = [("", mirror, authority)]
            content = pulling.relay_conf(str(ports.registry), behind, nginx, pair)
            files[IN_CLUSTER / "relay.conf"] = RenderedFile(content)
            return files
        account, user = upstream.account, None
        if account is not None:
            # Always the same salt for one user of one cluster, so that files are the same too.
            user = hashed(account, salt=_hmac(kept, account.name)[:16])
        config = services.in_cluster_config(places, kept.http_secret, upstream, ports)
        auth = services.in_cluster_auth(places, user, ports.token)
        return files | {
            IN_CLUSTER / "distribution_config.yaml": pods.yaml_file(config),
            IN_CLUSTER / "auth_config.yaml": pods.yaml_file(auth),
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
    return RenderedFile(tree.checked_authority(upstream.ca or "", "upstream CA").encode())


def _hmac(kept: ServiceSecrets, text: str) -> bytes:
    return hmac.digest(kept.http_secret.encode(), text.encode(), "sha256")


# -- rotation --------------------------------------------------------------------------------------


def rotation_outcome(nodes: Sequence[NodeFacts] | None, rendered: Rendered) -> StepOutcome:
    """Whether every node has applied the files of the present step, `rendered`. Pure."""
    told = {node.name for node in nodes or ()}
    unknown = sorted(rendered.nodes.keys() - told)
    if unknown:
        return StepOutcome(
            False, f"nobody has said which version these nodes have applied: {', '.join(unknown)}"
        )
    return outcomes.containerd_config(nodes or (), rendered.version)


def possible_rotation(
    names: Collection[str], kind: ModeKind, *, by_agent: bool = True
) -> list[Rotated]:
    """What `names` say, where that mode can have it. Pure.

    Masters take their files from the module's agent, which reads `registry-node-config-…`, unless
    it is not `by_agent`.

    Raises:
        InputError: a name is unknown, or the mode cannot have it.
    """
    if unknown := [one for one in names if one not in list(Rotated)]:
        raise InputError(
            f"rotation: expected {', '.join(Rotated)}, found {unknown[0][:20]!r}; correct it"
        )
    if not kind.row.managed:
        raise InputError(
            "rotation: in mode Unmanaged the cluster has no authority and logins of its own; "
            "switch to Direct, Proxy or Local first"
        )
    users = kind.row.users
    if by_agent and Rotated.USERS in names and users and not {*LENDERS.values()} <= {*users}:
        raise InputError(
            "rotation: the masters' agent lets one login of each user in, and caches have no user "
            "whose place a second one could take; switch to Direct, where it is carried out, and "
            "back"
        )
    return [Rotated(one) for one in names]
