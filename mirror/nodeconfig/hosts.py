"""containerd's `hosts.toml`: the mirrors from which a node pulls what an image reference names.

One folder per host of references; in it one table per mirror, in the order of trying.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import tomli_w

from mirror.modes.routes import CONTAINERD_HOSTS, LOGICAL_HOST, LOGICAL_PATH, Plane, Role
from mirror.modes.settings import Account, RegistrySettings, Upstream
from mirror.nodeconfig.cluster import Node, NodePaths
from mirror.nodeconfig.tree import (
    CONTAINERD_HOSTS_STATE,
    PUBLIC,
    SECRET,
    RenderedFile,
    Tree,
    checked_authority,
    checked_registry_host,
    checked_repository_path,
    checked_scheme,
    checked_secret,
    checked_user_name,
    hosts_state,
)

PREFIX_REGEX = f"^{LOGICAL_PATH}(/|$)"
"""The prefix with a boundary: `system/deckhouse-x` is another repository (Go RE2 syntax)."""


class Containerd(StrEnum):
    """Whose containerd reads the files."""

    DECKHOUSE = "deckhouse"
    """With Deckhouse's patches: `rewrite` and `auth`."""

    STOCK = "stock"
    """As containerd.io and distributions build it.

    A login becomes an `Authorization` header, which containerd sends to the registry, and a recent
    one (containerd/containerd#11092) to its token server too; an older one needs the login from the
    kubelet or `ctr --user` where a token server is asked. A path is kept, or given as a prefix in
    the address where that suffices (the upstream's path ends in `system/deckhouse`); else requests
    go through a relay on the node that rewrites them (`mirror.nodeconfig.proxies`).
    """


@dataclass(frozen=True, slots=True)
class HostMirror:
    """One registry that a node may ask. `path` replaces the logical prefix; None keeps it."""

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
        checked_user_name(account.name, "upstream user name")
        checked_secret(account.password.get_secret_value(), "upstream password")
    return HostMirror(
        checked_scheme(upstream.scheme, "upstream scheme"),
        checked_registry_host(upstream.host, "upstream host"),
        None if path is None else checked_repository_path(path, "upstream path"),
        None if upstream.ca is None else checked_authority(upstream.ca, "upstream CA"),
        account,
    )


def mirrors_of(
    settings: RegistrySettings, node: Node, authority: str, reader: Account
) -> dict[str, tuple[HostMirror, ...]]:
    """How `node` pulls in a mode. `authority` is the module's CA, `reader` its user `ro`."""
    row, upstream = settings.kind.row, settings.upstream
    if row.planes[Plane.CRI].roles[0] is Role.BALANCER:
        ca = checked_authority(authority, "the module's CA")
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
) -> Tree:
    """The tree of `/etc/containerd/registry.d`, with the list of managed directories.

    `sources` are other registries, asked directly: host → CA in PEM. The mode's own mirrors win.
    """
    others = {
        checked_registry_host(host, "module source"): checked_authority(ca, f"CA of {host}")
        for host, ca in sources.items()
        if host not in mirrors
    }
    files = _source_files(others, places)
    for host, row in mirrors.items():
        folder = CONTAINERD_HOSTS / checked_registry_host(host, "host of references")
        tables: dict[str, dict[str, Any]] = {}
        for url, mirror, table in _tables(row, containerd, node):
            if mirror.ca is not None and url.startswith("https://"):
                path = folder / f"{_file_stem(url)}-ca.crt"
                files[path] = RenderedFile(mirror.ca.encode(), PUBLIC)
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
    state = hosts_state(sorted([*mirrors, *others]))
    files[CONTAINERD_HOSTS_STATE] = RenderedFile(state, PUBLIC)
    return files


def _source_files(
    sources: Mapping[str, str], places: NodePaths
) -> dict[PurePosixPath, RenderedFile]:
    files = {}
    for host, ca in sources.items():
        folder = CONTAINERD_HOSTS / host
        path = folder / f"{_file_stem(f'https://{host}')}-ca.crt"
        document = {
            "server": f"https://{host}",
            "capabilities": ["pull", "resolve"],
            "ca": [places.on_node(path)],
            "host": {},  # without the table containerd 1.6 refuses the file
        }
        files[path] = RenderedFile(ca.encode(), PUBLIC)
        files[folder / "hosts.toml"] = RenderedFile(tomli_w.dumps(document).encode(), PUBLIC)
    return files


def needing_relay(mirrors: HostMirrors, containerd: Containerd) -> tuple[HostMirror, ...]:
    """The mirrors that this containerd cannot express; the node's relay serves them."""
    if containerd is Containerd.DECKHOUSE:
        return ()
    every = (mirror for row in mirrors.values() for mirror in row)
    return tuple({mirror.key: mirror for mirror in every if _prefix(mirror) is None}.values())


def relay_slot(mirror: HostMirror) -> str:
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
            url = f"http://{node.relay}/{relay_slot(mirror)}/v2"
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
            # `${1}` is the slash or the end: what follows the prefix stays as it is.
            replacement = f"{mirror.path}${{1}}" if mirror.path else "${1}"
            table["rewrite"] = [{"regex": PREFIX_REGEX, "replace": replacement}]
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
