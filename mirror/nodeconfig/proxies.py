"""nginx on a node: the balancer in front of the replicas, and the relay of Direct mode.

The **balancer** passes TCP through and reads no TLS: certificates and logins stay between client
and replica. A replica that refused a connection is left out for a second. The **relay**
rewrites paths for clients that cannot do so: stock containerd on a node, and the API plane where
the registry is not Deckhouse's fork. Logins, challenges and redirects pass through it unchanged; it
only reads. The files are `balancer.conf` and `relay.conf` beside this module; nginx's format has no
library that writes it, so every value is checked before.

Each has a static pod of its own, which runs the file as rendered. When a static pod's manifest
changes, the kubelet ends its containers and starts the new ones some ten seconds later. So a
manifest depends only on what its own nginx reads: no switch restarts the balancer, and a relay
restarts only where its upstream changes, with the ways of both sides in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from string import Template
from typing import Any

from mirror.errors import RenderingError
from mirror.modes.routes import HASH_ANNOTATION, LOGICAL_PATH
from mirror.nodeconfig import pods
from mirror.nodeconfig.cluster import Node, NodePaths
from mirror.nodeconfig.hosts import HostMirror, relay_slot
from mirror.nodeconfig.tree import (
    BALANCER_CONFIG,
    BALANCER_FILE,
    BALANCER_POD,
    PUBLIC,
    RELAY_FILE,
    RELAY_POD,
    RenderedFile,
    Tree,
    checked_file_path,
    checked_registry_host,
    checked_repository_path,
    checked_scheme,
    is_address,
)


@dataclass(frozen=True, slots=True)
class Nginx:
    """What differs between installations of nginx. The defaults suit an image of nginx.

    `modules` are paths of modules to load, such as Debian's ngx_stream_module.so. `runtime` is a
    folder that nginx may write to.
    """

    modules: tuple[str, ...] = ()
    runtime: str = "/tmp"  # noqa: S108 -- inside nginx's own container
    system_authorities: str = "/etc/ssl/certs/ca-certificates.crt"

    def __post_init__(self) -> None:
        for module in self.modules:
            checked_file_path(module, "nginx module")
        checked_file_path(self.runtime, "nginx runtime folder")
        checked_file_path(self.system_authorities, "file of system authorities")


def _template(name: str) -> Template:
    return Template(resources.files("mirror.nodeconfig").joinpath(name).read_text(encoding="utf-8"))


_TARGET = Template("""\
      limit_except GET {
        deny all;
      }
${rewrite}      proxy_pass ${scheme}://${host};
      proxy_set_header Host ${host};
${tls}    }
""")


def balancer_conf(node: Node, masters: Iterable[Node], nginx: Nginx) -> bytes:
    """`nginx_new.conf`: from the node's loopback to every master's replica, sorted by address."""
    replicas = sorted({master.registry for master in masters if master.master})
    if not replicas:
        raise ValueError("a balancer needs at least one replica")
    return (
        _template("balancer.conf")
        .substitute(
            modules="".join(f"load_module {module};\n" for module in nginx.modules),
            runtime=nginx.runtime,
            # With nginx's own 10 s it had none left when replicas start anew one after the other.
            servers="\n".join(f"    server {replica} fail_timeout=1s;" for replica in replicas),
            listen=node.balancer,
        )
        .encode()
    )


@dataclass(frozen=True, slots=True)
class Relayed:
    """One registry behind the relay: `slot` is the path in front of `/v2`, empty for none."""

    mirror: HostMirror
    slot: str = ""
    authority: str | None = None
    """A file of certificates to trust in the system's place."""


def relay_conf(
    listen: str, registries: Sequence[Relayed], nginx: Nginx, pair: tuple[str, str] | None = None
) -> bytes:
    """A relay on `listen` (host:port, or a port); `pair` are its certificate's and key's files."""
    own = ""
    if pair is not None:
        certificate, key = (checked_file_path(path, "file of a certificate") for path in pair)
        own = f"    ssl_certificate {certificate};\n    ssl_certificate_key {key};\n"
    return (
        _template("relay.conf")
        .substitute(
            runtime=nginx.runtime,
            listen=listen if pair is None else f"{listen} ssl",
            tls=own,
            locations="\n".join(_locations(one, nginx) for one in registries),
            logical=LOGICAL_PATH,
        )
        .encode()
    )


def _locations(one: Relayed, nginx: Nginx) -> str:
    path = checked_repository_path(one.mirror.path or "", "upstream path")
    slot = f"/{one.slot}" if one.slot else ""
    common: Mapping[str, str] = {
        "scheme": checked_scheme(one.mirror.scheme, "upstream scheme"),
        "host": checked_registry_host(one.mirror.host, "upstream host"),
        "tls": _upstream_tls(one, nginx),
    }
    # An upstream without a path has its images at the root: the slash goes with the prefix.
    target = f"/v2/{path}/$1" if path else "/v2/$1"
    ping = f"      rewrite ^{slot}(/v2/)$ $1 break;\n"
    image = f"      rewrite ^{slot}/v2/{LOGICAL_PATH}/(.*)$ {target} break;\n"
    return (
        f"    location = {slot}/v2/ {{\n{_TARGET.substitute(common, rewrite=ping)}"
        f"    location {slot}/v2/{LOGICAL_PATH}/ {{\n{_TARGET.substitute(common, rewrite=image)}"
    )


def _upstream_tls(one: Relayed, nginx: Nginx) -> str:
    if one.mirror.scheme == "http":
        return ""
    trusted = one.authority or nginx.system_authorities
    name = one.mirror.host.partition(":")[0]
    if is_address(name):
        # nginx compares certificates only with DNS names, and must not skip the verification.
        raise RenderingError(
            f"upstream {one.mirror.host}: expected a DNS name, found an address; the nginx that "
            "rewrites paths for stock programs cannot verify a certificate for an address. Give "
            "the upstream by a name that its certificate has, or render for the deckhouse flavour"
        )
    return (
        "      proxy_ssl_verify on;\n"
        "      proxy_ssl_verify_depth 5;\n"
        f"      proxy_ssl_trusted_certificate {checked_file_path(trusted, 'authorities')};\n"
        "      proxy_ssl_server_name on;\n"
        f"      proxy_ssl_name {name};\n"
    )


# -- files and pods --------------------------------------------------------------------------------

USER = 64535
"""Deckhouse's user without rights. As root, nginx would need capabilities to become another."""

GRACE_S = 5
"""While nginx drains, it accepts nobody: a longer time saves few downloads and refuses many."""


def balancer_files(node: Node, nodes: Sequence[Node], nginx: Nginx, image: str | None) -> Tree:
    """A node's balancer in front of the masters among `nodes`; its pod if there is an image."""
    files = {BALANCER_FILE: RenderedFile(balancer_conf(node, nodes, nginx))}
    if image is None:
        return files
    # It lives while it accepts, and is ready while it leads to a replica: a restart would not bring
    # a master back. A request for "/" needs no login.
    ready = pods.http_get("HTTPS", pods.LOOPBACK, node.ports.balancer, "/")
    pod = _pod("balancer", node, files, nginx, image, ready)
    return files | {BALANCER_POD: pod}


def relay_files(
    node: Node, mirrors: Sequence[HostMirror], places: NodePaths, nginx: Nginx, image: str | None
) -> Tree:
    """The relay of a node to `mirrors`, if there are any; its pod if there is an image."""
    files: dict[PurePosixPath, RenderedFile] = {}
    behind = []
    for mirror in mirrors:
        slot = relay_slot(mirror)
        authority = None
        if mirror.ca is not None and mirror.scheme == "https":
            path = BALANCER_CONFIG / f"relay-{slot}-ca.crt"
            files[path] = RenderedFile(mirror.ca.encode())
            authority = places.on_node(path)
        behind.append(Relayed(mirror, slot, authority))
    if not behind:
        return files
    files[RELAY_FILE] = RenderedFile(relay_conf(node.relay, behind, nginx))
    if image is None:
        return files
    return files | {RELAY_POD: _pod("relay", node, files, nginx, image)}


def _pod(
    kind: str,
    node: Node,
    files: Tree,
    nginx: Nginx,
    image: str,
    ready: Mapping[str, Any] | None = None,
) -> RenderedFile:
    """The pod of a `balancer` or `relay`, which reads `files`."""
    if kind == "balancer":
        name, port, config = "registry-proxy", node.ports.balancer, BALANCER_FILE
    else:
        name, port, config = "registry-relay", node.ports.relay, RELAY_FILE
    if port < 1024:
        raise RenderingError(
            f"node {node.name}: {kind} port: expected 1024 or above, found {port}; in its static "
            "pod nginx has no rights to listen below. Give another port, or leave the image nginx "
            "out"
        )
    runtime, folder = PurePosixPath(nginx.runtime), BALANCER_CONFIG
    if runtime.is_relative_to(folder) or folder.is_relative_to(runtime):
        raise RenderingError(
            f"nginx runtime folder: expected one apart from {folder}, which the static pod may "
            f"only read, found {runtime}; give another, such as /tmp"
        )
    arguments = ["nginx", "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
    one = pods.container(
        "nginx",
        image,
        # As the command: an image's own entry point may try to write configuration.
        {"command": arguments},
        probes=pods.probes(pods.tcp(pods.LOOPBACK, port), ready),
        ports={kind: (pods.LOOPBACK, port)},
        # At its path on the node, so that the paths in the file are valid.
        mounts={"config": str(folder), "runtime": str(runtime)},
        writable={"runtime"},
    )
    pod = pods.manifest(
        name,
        # Never the labels of the Service, which must lead only to replicas.
        {"component": name},
        {HASH_ANNOTATION: pods.config_hash(files)},
        {
            "securityContext": pods.security(USER),
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [one],
            "volumes": [pods.host_path("config", folder), {"name": "runtime", "emptyDir": {}}],
        },
    )
    return pods.yaml_file(pod, PUBLIC)
