"""Where things are: nodes with their addresses and ports, and the paths of files on a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mirror.errors import RenderingError
from mirror.modes import constants
from mirror.modes.render import values


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of a node's services; the defaults are the module's own."""

    registry: int = constants.REGISTRY_PORT
    debug: int = constants.DEBUG_PORT
    token: int = constants.TOKEN_PORT
    replication: int = 5003
    """Health, metrics and push notifications of the replication daemon; on 127.0.0.1."""
    balancer: int = constants.REGISTRY_PORT
    relay: int = 5004
    """Only for stock containerd in Direct mode: a path-rewriting relay; on 127.0.0.1."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            values.port(getattr(self, name), f"ports.{name}")


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. Masters hold a replica in Proxy and Local mode."""

    name: str
    address: str
    """InternalIP, without a port."""
    master: bool = True
    ports: Ports = Ports()

    def __post_init__(self) -> None:
        values.node_name(self.name)
        object.__setattr__(self, "address", values.address(self.address, f"node {self.name}"))

    @property
    def registry(self) -> str:
        """`host:port` of this master's replica."""
        return values.host_port(self.address, self.ports.registry)

    @property
    def token(self) -> str:
        """`host:port` of this master's token server, as clients reach it."""
        return values.host_port(self.address, self.ports.token)

    @property
    def balancer(self) -> str:
        """`host:port` of the balancer on this node."""
        return values.host_port("127.0.0.1", self.ports.balancer)

    @property
    def relay(self) -> str:
        """`host:port` of the relay on this node."""
        return values.host_port("127.0.0.1", self.ports.relay)


@dataclass(frozen=True, slots=True)
class Places:
    """The paths that rendered files speak of.

    `root` is put in front of every path; services see their files where the static pod mounts them
    (`/config`, `/pki`, `/data`) unless `in_place`, when they run as plain processes on the node.
    """

    root: PurePosixPath = field(default_factory=lambda: PurePosixPath("/"))
    in_place: bool = False

    def __post_init__(self) -> None:
        values.file_path(str(self.root), "root of the node's files")

    def on_node(self, path: PurePosixPath) -> str:
        """An absolute path of the module, under `root`."""
        return str(self.root / path.relative_to("/"))

    def config(self, service: str, name: str) -> str:
        """A service's configuration file as that service sees it."""
        if self.in_place:
            return self.on_node(constants.SERVICE_CONFIG / service / name)
        return f"/config/{name}"

    def pki(self, name: str) -> str:
        """A certificate or key as a service sees it."""
        return self.on_node(constants.PKI_CONFIG / name) if self.in_place else f"/pki/{name}"

    @property
    def data(self) -> str:
        """The store as the registry sees it."""
        return self.on_node(constants.DATA_ROOT) if self.in_place else "/data"


def check_nodes(nodes: Sequence[Node]) -> None:
    """Refuse two nodes of one name, or two masters at one address and port.

    Raises:
        RenderingError: says which.
    """
    if not nodes:
        raise RenderingError("nodes: expected at least one, found none; give every node's address")
    names: set[str] = set()
    replicas: dict[str, str] = {}
    for node in nodes:
        if node.name in names:
            raise RenderingError(
                f"nodes: {node.name} is given twice; give each node once, with one address"
            )
        names.add(node.name)
        if node.master and (other := replicas.setdefault(node.registry, node.name)) != node.name:
            raise RenderingError(
                f"nodes: masters {other} and {node.name} are both at {node.registry}; "
                "give each its own address"
            )
