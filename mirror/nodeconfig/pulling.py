"""How a node pulls: containerd's `hosts.toml`, and nginx as the balancer and as the relay.

`/etc/containerd/registry.d` has one folder per host of references; in its file there is one table
per mirror, in the order of trying.

The **balancer** in front of the replicas passes TCP through and reads no TLS: certificates and
logins stay between client and replica. The **relay** rewrites paths for clients that cannot do so:
stock containerd on a node, and in Direct mode the API plane where the registry is not Deckhouse's
fork. Logins, challenges and redirects pass through it unchanged; it only reads. The files are
`balancer.conf` and `relay.conf` beside this module; nginx's format has no library that writes it,
so every value is checked before.

Each has a static pod of its own. When the manifest of one changes, the kubelet ends its containers
and starts the new ones some ten seconds later. So a manifest depends only on what its own nginx
reads: no switch restarts the balancer, and a relay restarts only where its upstream changes, with
the ways of both sides in between.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import PurePosixPath
from string import Template
from types import MappingProxyType
from typing import Any

import tomli_w

from mirror.errors import RenderingError
from mirror.modes import CONTAINERD_HOSTS, HASH_ANNOTATION, LOGICAL_HOST, LOGICAL_PATH, Plane, Role
from mirror.modes.settings import Account, RegistrySettings, Upstream
from mirror.nodeconfig import pods, tree
from mirror.nodeconfig.cluster import Node, NodePaths
from mirror.nodeconfig.tree import PUBLIC, SECRET, RenderedFile, Tree


class Containerd(StrEnum):
    """Whose containerd reads the files."""

    DECKHOUSE = "deckhouse"
    """With Deckhouse's patches: `rewrite` and `auth`."""

    STOCK = "stock"
    """As containerd.io and distributions build it.

    A login becomes an `Authorization` header, which containerd sends to the registry, and a recent
    one (containerd/containerd#11092) to its token server too; an older one needs the login from the
    kubelet or `ctr --user` where a token server is asked. A path that ends in `system/deckhouse` is
    a prefix of the address; another needs the relay.
    """


@dataclass(frozen=True, slots=True)
class HostMirror:
    """A registry that a node may ask. `path` replaces the logical prefix; None keeps it."""

    scheme: str
    host: str
    path: str | None = None
    ca: str | None = None
    account: Account | None = None

    @property
    def server(self) -> tuple[str, str]:
        """Scheme and host of the connection."""
        return self.scheme, self.host.lower()

    @property
    def key(self) -> tuple[str, str, str | None]:
        """Two mirrors with one key differ only in trust or login; the newer replaces the older."""
        return (*self.server, self.path)


HostMirrors = Mapping[str, tuple[HostMirror, ...]]
"""The host of references → the mirrors to pull from, first to last."""


def upstream_mirror(upstream: Upstream, path: str | None) -> HostMirror:
    """The registry outside, checked."""
    account = upstream.account
    if account is not None:
        tree.checked_user_name(account.name, "upstream user name")
        tree.checked_secret(account.password.get_secret_value(), "upstream password")
    return HostMirror(
        tree.checked_scheme(upstream.scheme, "upstream scheme"),
        tree.checked_registry_host(upstream.host, "upstream host"),
        None if path is None else tree.checked_repository_path(path, "upstream path"),
        None if upstream.ca is None else tree.checked_authority(upstream.ca, "upstream CA"),
        account,
    )


def mirrors_of(
    settings: RegistrySettings, node: Node, authority: str, reader: Account
) -> dict[str, tuple[HostMirror, ...]]:
    """How `node` pulls in a mode. `authority` is the module's CA, `reader` its user `ro`."""
    row, upstream = settings.kind.row, settings.upstream
    if row.planes[Plane.CRI].roles[0] is Role.BALANCER:
        ca = tree.checked_authority(authority, "the module's CA")
        return {LOGICAL_HOST: (HostMirror("https", node.balancer, None, ca, reader),)}
    if upstream is None:
        return {}
    if row.managed:
        return {LOGICAL_HOST: (upstream_mirror(upstream, upstream.path),)}
    return {upstream.host: (upstream_mirror(upstream, None),)}


def join_mirrors(old: HostMirrors, new: HostMirrors) -> HostMirrors:
    """The mirrors of a transition: the old ones, then the new.

    A new one with the same registry and path takes the old one's place (a changed password or CA).
    """
    joined = dict(old)
    for host, fresh in new.items():
        mirrors = {mirror.key: mirror for mirror in joined.get(host, ())}
        # This keeps the place of what it replaces.
        mirrors.update((mirror.key, mirror) for mirror in fresh)
        joined[host] = tuple(mirrors.values())
    return joined


def render_hosts(
    mirrors: HostMirrors,
    places: NodePaths,
    containerd: Containerd,
    node: Node,
    sources: Mapping[str, str] = MappingProxyType({}),
) -> dict[PurePosixPath, RenderedFile]:
    """The tree of `/etc/containerd/registry.d`, with the list of managed directories.

    `sources` are other registries, asked directly: host → CA in PEM. The mode's own mirrors win.
    """
    files: dict[PurePosixPath, RenderedFile] = {}
    others = [
        tree.checked_registry_host(host, "module source") for host in sources if host not in mirrors
    ]
    for host in others:
        path = CONTAINERD_HOSTS / host / f"{_file_stem(f'https://{host}')}-ca.crt"
        document = {
            "server": f"https://{host}",
            "capabilities": ["pull", "resolve"],
            "ca": [places.on_node(path)],
            "host": {},  # without the table containerd 1.6 refuses the file
        }
        authority = tree.checked_authority(sources[host], f"CA of {host}")
        files[path] = RenderedFile(authority.encode())
        files[path.parent / "hosts.toml"] = RenderedFile(tomli_w.dumps(document).encode())
    for host, row in mirrors.items():
        folder = CONTAINERD_HOSTS / tree.checked_registry_host(host, "host of references")
        tables: dict[str, dict[str, Any]] = {}
        for url, mirror, table in _tables(row, containerd, node):
            if mirror.ca is not None and url.startswith("https://"):
                path = folder / f"{_file_stem(url)}-ca.crt"
                files[path] = RenderedFile(mirror.ca.encode())
                table["ca"] = [places.on_node(path)]
            if url in tables:
                raise ValueError(f"two mirrors of {host} have the address {url}")
            tables[url] = table
        # Behind the balancer are several replicas. Where one ends in the midst of a request,
        # containerd asks the next mirror: the balancer again, by the other spelling of its address.
        again = f"https://{node.balancer}"
        if again in tables:
            tables[f"{again}/v2"] = tables[again]
        # containerd reads the order of the tables in the file, and dicts keep it.
        secret = any(mirror.account is not None for mirror in row)
        content = tomli_w.dumps({"host": tables}).encode()
        files[folder / "hosts.toml"] = RenderedFile(content, SECRET if secret else PUBLIC)
    state = tree.hosts_state(sorted([*mirrors, *others]))
    files[tree.CONTAINERD_HOSTS_STATE] = RenderedFile(state)
    return files


def needing_relay(mirrors: HostMirrors, containerd: Containerd) -> tuple[HostMirror, ...]:
    """The mirrors that this containerd cannot express; the node's relay serves them."""
    if containerd is Containerd.DECKHOUSE:
        return ()
    every = (mirror for row in mirrors.values() for mirror in row)
    return tuple({mirror.key: mirror for mirror in every if _prefix(mirror) is None}.values())


def _relay_slot(mirror: HostMirror) -> str:
    """The path under which the node's relay serves a mirror; stable, and without secrets."""
    text = "\n".join([mirror.scheme, mirror.host, mirror.path or ""])
    return f"to-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _tables(
    row: Sequence[HostMirror], containerd: Containerd, node: Node
) -> Iterator[tuple[str, HostMirror, dict[str, Any]]]:
    """Each mirror with its address and its table of the file, but without its authority."""
    for place, mirror in enumerate(row):
        url = f"{mirror.scheme}://{mirror.host}"
        table: dict[str, Any] = {"capabilities": ["pull", "resolve"]}
        prefix = _prefix(mirror)
        if containerd is Containerd.DECKHOUSE:
            # A table's name is an address and must be unique. containerd adds `/v2` to one that
            # does not end so: both spellings mean one registry, and the older mirror gets the
            # longer one.
            if any(later.server == mirror.server for later in row[place + 1 :]):
                url += "/v2"
            if mirror.scheme == "http":
                # A stock one of recent versions would take it as a wish for TLS, and try that.
                table["skip_verify"] = True
        elif prefix is None:
            url = f"http://{node.relay}/{_relay_slot(mirror)}/v2"
        elif prefix:
            url += f"/v2/{prefix}"
            table["override_path"] = True
        if mirror.account is not None:
            login = f"{mirror.account.name}:{mirror.account.password.get_secret_value()}"
            token = base64.b64encode(login.encode()).decode()
            if containerd is Containerd.STOCK:
                table["header"] = {"Authorization": f"Basic {token}"}
            else:
                table["auth"] = {"auth": token}
        if containerd is Containerd.DECKHOUSE and mirror.path is not None:
            # Go's RE2, with a boundary: `system/deckhouse-x` is another repository. `${1}` is the
            # slash or the end: what follows the prefix stays as it is.
            replacement = f"{mirror.path}${{1}}" if mirror.path else "${1}"
            table["rewrite"] = [{"regex": f"^{LOGICAL_PATH}(/|$)", "replace": replacement}]
        yield url, mirror, table


def _prefix(mirror: HostMirror) -> str | None:
    """What precedes the logical path in the mirror's path; None if it does not end so."""
    if mirror.path is None or mirror.path == LOGICAL_PATH:
        return ""
    if mirror.path.endswith(f"/{LOGICAL_PATH}"):
        return mirror.path.removesuffix(f"/{LOGICAL_PATH}")
    return None


def _file_stem(url: str) -> str:
    return url.replace("://", "-").replace("/", "-")


# -- nginx -----------------------------------------------------------------------------------------


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
            tree.checked_file_path(module, "nginx module")
        tree.checked_file_path(self.runtime, "nginx runtime folder")
        tree.checked_file_path(self.system_authorities, "file of system authorities")


def _filled(name: str, **values: str) -> bytes:
    """A file beside this module with `values` in the places that it has for them."""
    text = resources.files("mirror.nodeconfig").joinpath(name).read_text(encoding="utf-8")
    return Template(text).substitute(values).encode()


_TARGET = Template("""\
      limit_except GET {
        deny all;
      }
${rewrite}      proxy_pass ${scheme}://${host};
      proxy_set_header Host ${host};
${tls}    }
""")


def relay_conf(
    listen: str,
    registries: Iterable[tuple[str, HostMirror, str | None]],
    nginx: Nginx,
    pair: tuple[str, str] | None = None,
) -> bytes:
    """A relay on `listen` (host:port, or a port); `pair` are its certificate's and key's files.

    Of `registries`, the path in front of `/v2` (empty for none), the mirror, and a file of
    certificates to trust in the system's place.
    """
    own = ""
    if pair is not None:
        certificate, key = (tree.checked_file_path(path, "file of a certificate") for path in pair)
        own = f"    ssl_certificate {certificate};\n    ssl_certificate_key {key};\n"
    return _filled(
        "relay.conf",
        runtime=nginx.runtime,
        listen=listen if pair is None else f"{listen} ssl",
        tls=own,
        locations="\n".join(
            _locations(slot, mirror, authority or nginx.system_authorities)
            for slot, mirror, authority in registries
        ),
        logical=LOGICAL_PATH,
    )


def _locations(slot: str, mirror: HostMirror, trusted: str) -> str:
    path = tree.checked_repository_path(mirror.path or "", "upstream path")
    common = {
        "scheme": tree.checked_scheme(mirror.scheme, "upstream scheme"),
        "host": tree.checked_registry_host(mirror.host, "upstream host"),
        "tls": _upstream_tls(mirror.host, trusted) if mirror.scheme == "https" else "",
    }
    # An upstream without a path has its images at the root: the slash goes with the prefix.
    target = f"/v2/{path}/$1" if path else "/v2/$1"
    ping = f"      rewrite ^{slot}(/v2/)$ $1 break;\n"
    image = f"      rewrite ^{slot}/v2/{LOGICAL_PATH}/(.*)$ {target} break;\n"
    return (
        f"    location = {slot}/v2/ {{\n{_TARGET.substitute(common, rewrite=ping)}"
        f"    location {slot}/v2/{LOGICAL_PATH}/ {{\n{_TARGET.substitute(common, rewrite=image)}"
    )


def _upstream_tls(host: str, trusted: str) -> str:
    name = host.partition(":")[0]
    if tree.is_address(name):
        # nginx compares certificates only with DNS names, and must not skip the verification.
        raise RenderingError(
            f"upstream {host}: expected a DNS name, found an address; the nginx that "
            "rewrites paths for stock programs cannot verify a certificate for an address. Give "
            "the upstream by a name that its certificate has, or render for the deckhouse flavour"
        )
    return (
        "      proxy_ssl_verify on;\n"
        "      proxy_ssl_verify_depth 5;\n"
        f"      proxy_ssl_trusted_certificate {tree.checked_file_path(trusted, 'authorities')};\n"
        "      proxy_ssl_server_name on;\n"
        f"      proxy_ssl_name {name};\n"
    )


# -- files and pods --------------------------------------------------------------------------------


def balancer_files(node: Node, nodes: Sequence[Node], nginx: Nginx, image: str | None) -> Tree:
    """A node's balancer in front of the masters among `nodes`; its pod if there is an image."""
    content = _filled(
        "balancer.conf",
        modules="".join(f"load_module {module};\n" for module in nginx.modules),
        runtime=nginx.runtime,
        # With nginx's own 10 s it had none left when replicas start anew one after the other.
        servers="\n".join(
            f"    server {replica} fail_timeout=1s;"
            for replica in sorted({master.registry for master in nodes if master.master})
        ),
        listen=node.balancer,
    )
    files = {tree.BALANCER_FILE: RenderedFile(content)}
    if image is None:
        return files
    # It lives while it accepts, and is ready while it leads to a replica: a restart would not bring
    # a master back.
    ready = pods.http_get(pods.LOOPBACK, node.ports.balancer)
    pod = _pod("balancer", node, files, nginx, image, ready)
    return files | {tree.BALANCER_POD: pod}


def relay_files(
    node: Node, mirrors: Sequence[HostMirror], places: NodePaths, nginx: Nginx, image: str | None
) -> Tree:
    """The relay of a node to `mirrors`, if there are any; its pod if there is an image."""
    files: dict[PurePosixPath, RenderedFile] = {}
    behind = []
    for mirror in mirrors:
        slot, authority = _relay_slot(mirror), None
        if mirror.ca is not None and mirror.scheme == "https":
            path = tree.BALANCER_CONFIG / f"relay-{slot}-ca.crt"
            files[path] = RenderedFile(mirror.ca.encode())
            authority = places.on_node(path)
        behind.append((f"/{slot}", mirror, authority))
    if not behind:
        return files
    files[tree.RELAY_FILE] = RenderedFile(relay_conf(node.relay, behind, nginx))
    if image is None:
        return files
    return files | {tree.RELAY_POD: _pod("relay", node, files, nginx, image)}


def _pod(
    kind: str,
    node: Node,
    files: Tree,
    nginx: Nginx,
    image: str,
    ready: Mapping[str, Any] | None = None,
) -> RenderedFile:
    """The pod of a `balancer` or `relay`, which reads `files`."""
    config = tree.BALANCER_FILE if kind == "balancer" else tree.RELAY_FILE
    name = "registry-proxy" if kind == "balancer" else "registry-relay"
    port: int = getattr(node.ports, kind)
    if port < 1024:
        raise RenderingError(
            f"node {node.name}: {kind} port: expected 1024 or above, found {port}; in its static "
            "pod nginx has no rights to listen below. Give another port, or leave the image nginx "
            "out"
        )
    runtime, folder = PurePosixPath(nginx.runtime), config.parent
    if runtime.is_relative_to(folder) or folder.is_relative_to(runtime):
        raise RenderingError(
            f"nginx runtime folder: expected one apart from {folder}, which the static pod may "
            f"only read, found {runtime}; give another, such as /tmp"
        )
    one = pods.nginx(
        image,
        config,  # at its path on the node, so that the paths in the file are valid
        str(runtime),
        {kind: (pods.LOOPBACK, port)},
        {"tcpSocket": {"host": pods.LOOPBACK, "port": port}},
        ready,
    )
    pod = pods.manifest(
        name,
        # Never the labels of the Service, which must lead only to replicas.
        {"component": name},
        {HASH_ANNOTATION: pods.config_hash(files)},
        {
            "securityContext": pods.security(pods.NGINX_USER),
            # While nginx drains, it accepts nobody: a longer time saves few downloads.
            "terminationGracePeriodSeconds": 5,
            "containers": [one],
            "volumes": [pods.host_path("config", folder), {"name": "runtime", "emptyDir": {}}],
        },
    )
    return pods.yaml_file(pod, PUBLIC)
