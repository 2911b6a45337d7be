"""A cluster's nodes, ports and paths, and the files in which people describe a cluster.

Messages never quote the files of accesses and facts. Paths in a file are relative to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

import yaml
from pydantic import SecretStr, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from mirror.documents import StrictLoader, file_bytes, line, problems, read_documents
from mirror.errors import FileSystemError, InputError, RenderingError
from mirror.modes import DATA_ROOT, REGISTRY_PORT, RegistryUser, module_config
from mirror.modes.settings import Account, CamelModel, ClusterAccess, ClusterFacts, RegistrySettings
from mirror.nodeconfig.tree import (
    PKI_CONFIG,
    SERVICE_CONFIG,
    checked_address,
    checked_file_path,
    checked_name,
    checked_port,
    host_port,
    is_address,
)


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of a node's services; the defaults are the module's own."""

    registry: int = REGISTRY_PORT
    debug: int = 5002
    """Health and Prometheus metrics of a replica."""
    token: int = 5051
    """The token server beside a replica, with TLS."""
    replication: int = 5003
    """Health, metrics and push notifications of the replication daemon; on 127.0.0.1."""
    balancer: int = REGISTRY_PORT
    relay: int = 5004
    """Only for stock containerd in Direct mode: a path-rewriting relay; on 127.0.0.1."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            checked_port(getattr(self, name), f"ports.{name}")


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster. Masters hold a replica in Proxy and Local mode."""

    name: str
    address: str
    """InternalIP, without a port."""
    master: bool = True
    ports: Ports = Ports()

    def __post_init__(self) -> None:
        checked_name(self.name)
        object.__setattr__(self, "address", checked_address(self.address, f"node {self.name}"))

    @property
    def registry(self) -> str:
        """`host:port` of this master's replica."""
        return host_port(self.address, self.ports.registry)

    @property
    def token(self) -> str:
        """`host:port` of this master's token server, as clients reach it."""
        return host_port(self.address, self.ports.token)

    @property
    def balancer(self) -> str:
        """`host:port` of the balancer on this node."""
        return host_port("127.0.0.1", self.ports.balancer)

    @property
    def relay(self) -> str:
        """`host:port` of the relay on this node."""
        return host_port("127.0.0.1", self.ports.relay)


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The paths that rendered files contain.

    `root` is put in front of every path; services see their files where the static pod mounts them
    (`/config`, `/pki`, `/data`) unless `in_place`, when they run as plain processes on the node.
    """

    root: PurePosixPath = field(default_factory=lambda: PurePosixPath("/"))
    in_place: bool = False

    def __post_init__(self) -> None:
        checked_file_path(str(self.root), "root of the node's files")

    def on_node(self, path: PurePosixPath) -> str:
        """An absolute path of the module, under `root`."""
        return str(self.root / path.relative_to("/"))

    def config(self, service: str, name: str) -> str:
        """A service's configuration file as that service sees it."""
        if self.in_place:
            return self.on_node(SERVICE_CONFIG / service / name)
        return f"/config/{name}"

    def pki(self, name: str) -> str:
        """A certificate or key as a service sees it."""
        return self.on_node(PKI_CONFIG / name) if self.in_place else f"/pki/{name}"

    @property
    def data(self) -> str:
        """The store as the registry sees it."""
        return self.on_node(DATA_ROOT) if self.in_place else "/data"


def check_nodes(nodes: Sequence[Node]) -> None:
    """Refuse two nodes of one name, or two masters at one address and port."""
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


# -- files that people write -----------------------------------------------------------------------


def load_nodes(path: Path) -> list[Node]:
    """The nodes of a YAML list, each with `name`, `address`, `master` (true) and `ports`.

    Raises:
        FileSystemError: it cannot be read.
        RenderingError: it is something else; the message says where.
    """
    try:
        rows = yaml.load(read_text(path), StrictLoader)  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as err:
        raise RenderingError(f"{path}: expected YAML; {err.problem}{line(err)}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        raise RenderingError(f"{path}: expected YAML, found something else; correct it") from err
    if not isinstance(rows, list):
        raise RenderingError(
            f"{path}: expected a list of nodes (name, address, master, ports), found something "
            "else; write one item per node"
        )
    return [_node(row, f"{path}: node {number}") for number, row in enumerate(rows, 1)]


def _node(row: Any, where: str) -> Node:
    if not isinstance(row, Mapping):
        raise RenderingError(f"{where}: expected a mapping with name and address, found {row!r}")
    match {"master": True, "ports": {}, **row}:
        case {
            "name": str(name),
            "address": str(address),
            "master": bool(master),
            "ports": ports,
            **rest,
        } if (
            not rest
            and isinstance(ports, Mapping)
            and set(ports) <= set(Ports.__slots__)
            and all(isinstance(port, int) for port in ports.values())
        ):
            return Node(name, address, master, Ports(**ports))
    raise RenderingError(
        f"{where}: expected name and address as texts, master as true or false, and ports as "
        f"numbers ({', '.join(sorted(Ports.__slots__))}), found {dict(row)!r}; correct it"
    )


def read_text(path: Path) -> str:
    """The text of a file that a person named."""
    try:
        return file_bytes(path, FileSystemError).decode()
    except UnicodeDecodeError as err:
        raise RenderingError(f"{path}: expected text in UTF-8, found other bytes") from err


_NAME = "%s"


class _RegistryLogin(CamelModel):
    name: str
    password: SecretStr


class AccessFile(CamelModel, populate_by_name=False):
    """Where a cluster's registry replicas are, as `--sites` reads it."""

    masters: tuple[str, ...] | Mapping[str, str] = ()
    """Addresses (InternalIP), without a port; or names of nodes with their addresses."""
    ca: str | None = None
    """The module's own authority, in PEM."""
    ca_file: Path | None = None
    public_host: str | None = None
    """The push address, `registry.<PUBLIC_DOMAIN>`."""
    public_domain_template: str | None = None
    """The cluster's template for names, such as `%s.apps.example.com`, in place of that."""
    public_ca: str | None = None
    """Whom clients trust at the push address beside the system's roots."""
    public_ca_file: Path | None = None
    public_cert_file: Path | None = None
    """The certificate (PEM) to show at the push address, if its ingress asks for one."""
    public_key_file: Path | None = None
    """Its private key, if that is not in the same file."""
    users: Mapping[RegistryUser, SecretStr | _RegistryLogin] = {}
    """The passwords of the registry's users: ro, rw, mirror-puller, mirror-pusher.

    Or name and password, where a rotation has given a user another name.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        for one, other, names in (
            (self.ca, self.ca_file, "ca and caFile"),
            (self.public_ca, self.public_ca_file, "publicCa and publicCaFile"),
            (self.public_host, self.public_domain_template, "publicHost and publicDomainTemplate"),
        ):
            if one is not None and other is not None:
                raise ValueError(f"{names} exclude each other; keep one")
        if self.public_key_file is not None and self.public_cert_file is None:
            raise ValueError("publicKeyFile goes with publicCertFile, whose key it is")
        for number, master in enumerate(self.addresses):
            if not _is_host(master):
                raise ValueError(
                    f"masters.{number}: expected an address or a name without scheme, port and "
                    "path, as in 10.0.0.1"
                )
            if master in self.addresses[:number]:
                raise ValueError(f"masters.{number}: it is there twice; give each master once")
        template = self.public_domain_template
        if template is not None and template.count(_NAME) != 1:
            raise ValueError(f"publicDomainTemplate must have {_NAME} in it, once")
        for key, pem in (("ca", self.ca), ("publicCa", self.public_ca)):
            problem = module_config.certificates(pem) if pem is not None else None
            if problem is not None:
                raise ValueError(f"{key}: {problem}")
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the masters, in their order."""
        named = self.masters
        return tuple(named.values()) if isinstance(named, Mapping) else named

    def access(self, folder: Path) -> ClusterAccess:
        """What the file says, with the content of the files that it names."""
        named = self.masters if isinstance(self.masters, Mapping) else {}
        host = self.public_host
        if self.public_domain_template is not None:
            host = self.public_domain_template.replace(_NAME, "registry")

        def given_ca(text: str | None, file: Path | None) -> str | None:
            return text if file is None else _authority(folder / file)

        return ClusterAccess(
            masters=self.addresses,
            names={address: name for name, address in named.items()},
            ca=given_ca(self.ca, self.ca_file),
            public_host=host,
            public_ca=given_ca(self.public_ca, self.public_ca_file),
            public_cert_file=self.public_cert_file and folder / self.public_cert_file,
            public_key_file=self.public_key_file and folder / self.public_key_file,
            accounts={
                user: Account(user.value, one)
                if isinstance(one, SecretStr)
                else Account(one.name, one.password)
                for user, one in self.users.items()
            },
        )


def _is_host(text: str) -> bool:
    """Whether it is an IP address, with or without brackets, or a host's name."""
    bare = text.removeprefix("[").removesuffix("]")
    return is_address(bare) or bool(re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?", text))


def load_access(path: Path) -> ClusterAccess:
    """Read a file with the keys of `AccessFile`.

    Raises:
        InputError: it, or a file that it names, cannot be read or is not what it must be.
    """
    keys = [*AccessFile.document_keys().values()]
    return _parsed(AccessFile.model_validate, keys, read_document(path), path).access(path.parent)


def load_facts(path: Path) -> ClusterFacts:
    """Read a file with the fields of `ClusterFacts` as keys (`queueEmpty`).

    `aborted` is the registry section of that switch. What is left out is unknown, and a plan then
    asks to check it.

    Raises:
        InputError: it cannot be read or is not what it must be.
    """
    document = dict(read_document(path))
    if (aborted := document.get("aborted")) is not None:
        if not isinstance(aborted, Mapping):
            raise InputError(f"{path}: aborted: expected keys and values")
        document["aborted"] = RegistrySettings.load(aborted)
    keys = [to_camel(field.name) for field in fields(ClusterFacts)]
    return _parsed(TypeAdapter(ClusterFacts).validate_python, keys, document, path)


def read_document(path: Path) -> Mapping[str, Any]:
    """The one mapping that a YAML or JSON file holds; an empty one if the file is empty."""
    documents = read_documents(file_bytes(path), str(path), "expected keys and values")
    if len(documents) > 1:
        raise InputError(f"{path}: it holds {len(documents)} documents; keep one")
    return documents[0] if documents else {}


def read_modules(path: Path) -> list[Mapping[str, Any]]:
    """The objects Module that a file holds: those of a `List`, or each as a document of its own."""
    documents = read_documents(
        file_bytes(path), str(path), "expected what `kubectl get modules -o yaml` prints"
    )
    found: Any = documents
    if len(documents) == 1 and documents[0].get("kind") != "Module":
        found = documents[0].get("items")
    if not isinstance(found, list):
        raise InputError(
            f"{path}: no list of Module objects (items); write what `kubectl get modules -o yaml` "
            "prints to it"
        )
    return [one for one in found if isinstance(one, Mapping)]


_File = TypeVar("_File")


def _parsed(
    parse: Callable[[Any], _File], keys: Sequence[str], document: Mapping[str, Any], path: Path
) -> _File:
    try:
        return parse(document)
    except ValidationError as err:
        lines = [f"  {problem}" for problem in problems(err, "the document", keys)]
        known = f"  keys: {', '.join(keys)}"
        # Not `from err`, whose text may quote the document.
        raise InputError("\n".join([f"{path} has mistakes:", *lines, known])) from None


def _authority(path: Path) -> str:
    text = file_bytes(path).decode("utf-8", errors="replace")
    problem = module_config.certificates(text)
    if problem is not None:
        raise InputError(f"{path}: {problem}")
    return text
