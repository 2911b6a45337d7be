"""What is written on nodes: rendered files as values, the thin writer, and the checks of values.

Removal touches only files that the module itself has placed. Programs that run as root read these
files, so a value is written only if it is exactly what its place is for.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mirror.documents import parse_json
from mirror.durable import PRIVATE_FOLDER, Folder, os_errors, write_if_changed
from mirror.errors import InvalidCertificateError, RenderingError
from mirror.modes import CONTAINERD_HOSTS
from mirror.nodeconfig.pki import clean_pem

CONTAINERD_HOSTS_STATE = CONTAINERD_HOSTS / "deckhouse_hosts_state.json"
MANIFESTS = PurePosixPath("/etc/kubernetes/manifests")
STATIC_POD = MANIFESTS / "registry-nodeservices.yaml"
BALANCER_POD = MANIFESTS / "registry-proxy.yaml"
RELAY_POD = MANIFESTS / "registry-relay.yaml"
STATIC_PODS = (STATIC_POD, BALANCER_POD, RELAY_POD)
SERVICE_CONFIG = PurePosixPath("/etc/kubernetes/registry")
PKI_CONFIG = SERVICE_CONFIG / "pki"
BALANCER_CONFIG = PurePosixPath("/etc/kubernetes/registry-proxy")
BALANCER_FILE = BALANCER_CONFIG / "nginx_new.conf"
"""The balancer's configuration as it is rendered. Deckhouse's own balancer has a reloader, which
tests this one and copies it to `nginx.conf`; the static pod made here runs this one itself."""
RELAY_FILE = BALANCER_CONFIG / "relay.conf"
UPSTREAM_CA = "upstream-registry-ca.crt"
"""The file with the upstream's authority, beside the module's own."""

PUBLIC = 0o644
SECRET = 0o600
"""The mode of every file that holds a password, a key, or a hash of one."""

_MOST_BYTES = 1 << 20
_OBJECT = re.compile(
    "(secret|service|deployment|poddisruptionbudget|ingress)-(deckhouse-)?registry[a-z0-9.-]*[.]yaml"
)
"""The names of the files of objects, whose folder people may keep others in."""
_HOST_FOLDER = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._:-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """The content and mode of a file. No repr shows the content."""

    content: bytes = field(repr=False)
    mode: int = PUBLIC


Tree = Mapping[PurePosixPath, RenderedFile]
"""Absolute paths of one node (or of the in-cluster proxy) → files."""

_SERVICES = ("auth", "distribution", "mirrorer")
_IN_CLUSTER = SERVICE_CONFIG / "in-cluster"
_KEYS = (f"{name}.{kind}" for name in ("auth", "distribution", "token") for kind in ("crt", "key"))
_PAIRS = ("ca.crt", UPSTREAM_CA, *_KEYS)
OWN_FILES: tuple[PurePosixPath, ...] = (
    *STATIC_PODS,  # before the files that their containers read
    *(SERVICE_CONFIG / f"{name}/config.yaml" for name in _SERVICES),
    *(PKI_CONFIG / name for name in (*_PAIRS, "ingress-client-ca.crt")),
    BALANCER_FILE,
    RELAY_FILE,
    *(
        _IN_CLUSTER / name
        for name in ("distribution_config.yaml", "auth_config.yaml", "relay.conf", *_PAIRS)
    ),
)
"""The files outside containerd's directory that are the module's own: gone when not rendered."""

FORMER_FILES = (
    PKI_CONFIG / "upstream-ca.crt",
    *(_IN_CLUSTER / name for name in ("upstream-ca.crt", "distribution.yaml", "auth.yaml")),
)
"""What earlier releases called some of these: gone as well."""


@dataclass(frozen=True, slots=True)
class TreeChanges:
    """What a writer did, as paths on the node.

    `kept` are authorities that no file names any more. containerd may just have read the hosts.toml
    that named them, and be about to read them: the next run removes them.
    """

    written: tuple[PurePosixPath, ...]
    unchanged: tuple[PurePosixPath, ...]
    removed: tuple[PurePosixPath, ...]
    kept: tuple[PurePosixPath, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A tree whose files are in place, while what it no longer has is still there."""

    tree: Tree
    root: Path
    below: str
    hosts: tuple[str, ...]
    former_hosts: frozenset[str]
    replaced: Mapping[PurePosixPath, bytes]
    """Each hosts.toml that has new content now, with the former one."""
    written: tuple[PurePosixPath, ...]
    unchanged: tuple[PurePosixPath, ...]

    def clean(self) -> TreeChanges:
        """Remove what the tree no longer has; then, last, forget it."""
        with _root(self.root, self.below) as root:
            former = (CONTAINERD_HOSTS / host for host in sorted(self.former_hosts))
            removed = [path for path in former if _remove(root, path)]
            gone = (path for path in (*OWN_FILES, *FORMER_FILES) if path not in self.tree)
            removed += (path for path in gone if _unlink(root, path))
            stale = list(_stale_authorities(root, self.tree, self.hosts))
            # What a hosts.toml that this run replaced names beside it.
            kept = tuple(
                one
                for one in stale
                if one.name.encode() in self.replaced.get(one.parent / "hosts.toml", b"")
            )
            removed += (one for one in stale if one not in kept and _unlink(root, one))
            state_path = CONTAINERD_HOSTS_STATE
            written, unchanged = {*self.written}, {*self.unchanged}
            if listed := self.tree.get(state_path):
                # It was made with the former hosts still in it, if there were any.
                if _write(root, state_path, listed):
                    written.add(state_path)
                unchanged |= {state_path} - written
            elif _unlink(root, state_path):
                removed.append(state_path)
        return TreeChanges(tuple(sorted(written)), tuple(sorted(unchanged)), tuple(removed), kept)


def place_manifests(files: Tree, root: Path, below: str) -> TreeChanges:
    """Make `below` hold these files of Kubernetes objects, and none that an earlier run left."""
    with os_errors(root / below, "write"), Folder.made(root) as held:
        folder = held.make(below, PRIVATE_FOLDER)
    with folder:
        changed = {path: _write(folder, path, file) for path, file in sorted(files.items())}
        there = (PurePosixPath("/", name) for name in folder.names() if _OBJECT.fullmatch(name))
        left = [path for path in sorted(there) if path not in files and _is_ours(folder, path)]
        gone = [path for path in left if _unlink(folder, path)]
    written = tuple(path for path, fresh in changed.items() if fresh)
    unchanged = tuple(path for path, fresh in changed.items() if not fresh)
    return TreeChanges(written, unchanged, tuple(gone))


def _is_ours(folder: Folder, path: PurePosixPath) -> bool:
    """Whether a file has the labels of all that is rendered; people keep secrets of their own."""
    lines = {*map(bytes.strip, (_content(folder, path) or b"").splitlines())}
    return {b"heritage: deckhouse", b"module: registry"} <= lines


def _root(path: Path, below: str) -> Folder:
    with os_errors(path / below, "write"), Folder.made(path) as root:
        return root.make(below, 0o755)


def place_tree(tree: Tree, root: Path, below: str = "") -> Placed:
    """Write files into `below`, a folder in `root`, and remove nothing yet: readers see the old
    route or the new one.

    `root` may be reached through a link; no link below it is followed.
    """
    state_path = CONTAINERD_HOSTS_STATE
    after: tuple[str, ...] = ()
    written: list[PurePosixPath] = []
    unchanged: list[PurePosixPath] = []
    replaced: dict[PurePosixPath, bytes] = {}
    with _root(root, below) as held:
        known = _content(held, state_path)
        before = () if known is None else _host_names(known, str(_below(held, state_path)))
        # The list of directories comes first and still has the old ones: a run that is cut short
        # leaves no managed directory that the list does not have.
        if listed := tree.get(state_path):
            after = _host_names(listed.content, str(state_path))
            union = RenderedFile(hosts_state(sorted({*before, *after})), listed.mode)
            if _write(held, state_path, union):
                written.append(state_path)
        modes: dict[PurePosixPath, set[int]] = {}
        for path, file in tree.items():
            modes.setdefault(path.parent, set()).add(file.mode)
        for folder, found in sorted(modes.items()):
            # nginx reads its files as a user without rights, and secrets are for their owner alone.
            with os_errors(_below(held, folder), "write"):
                held.make(_relative(folder), PRIVATE_FOLDER if SECRET in found else 0o755).close()
        for path, file in sorted(tree.items(), key=lambda item: _order(item[0])):
            if path == state_path:
                continue
            there = _content(held, path) if path.name == "hosts.toml" else None
            fresh = _write(held, path, file)
            (written if fresh else unchanged).append(path)
            if fresh and there is not None:
                replaced[path] = there
    former = frozenset(before) - frozenset(after)
    return Placed(tree, root, below, after, former, replaced, tuple(written), tuple(unchanged))


def hosts_state(hosts: list[str]) -> bytes:
    """The list of host directories that the module manages, as nodes keep it."""
    return json.dumps(hosts, separators=(",", ":")).encode()


def _order(path: PurePosixPath) -> tuple[int, PurePosixPath]:
    """Certificates before what names them, and static pods after their files."""
    if path in STATIC_PODS:
        return 3, path
    return (2 if path.name == "hosts.toml" else 1), path


def _relative(path: PurePosixPath) -> PurePosixPath:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} is not an absolute path of a node")
    return path.relative_to("/")


def _below(root: Folder, path: PurePosixPath) -> Path:
    """Where a path of the node lies, for messages."""
    return root.path / _relative(path)


def write_file(path: Path, file: RenderedFile) -> bool:
    """Put a file in its place, complete or not at all; False if it was there already."""
    return write_if_changed(path, file.content, mode=file.mode)


def _write(root: Folder, path: PurePosixPath, file: RenderedFile) -> bool:
    mode = None if file.mode & 0o077 else PRIVATE_FOLDER
    with os_errors(_below(root, path), "write"), root.make(_relative(path.parent), mode) as folder:
        return folder.write_if_changed(path.name, file.content, mode=file.mode)


@contextmanager
def _opened(root: Folder, path: PurePosixPath, doing: str) -> Iterator[Folder | None]:
    """The folder of a path; None if there is none."""
    with os_errors(_below(root, path), doing):
        try:
            folder = root.inside(_relative(path.parent))
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        with folder:
            yield folder


def _content(root: Folder, path: PurePosixPath) -> bytes | None:
    with _opened(root, path, "read") as folder:
        if folder is None or not folder.has(path.name):
            return None
        return folder.read(path.name, _MOST_BYTES)


def _unlink(root: Folder, path: PurePosixPath) -> bool:
    with _opened(root, path, "remove") as folder:
        return folder is not None and folder.unlink(path.name)


def _remove(root: Folder, path: PurePosixPath) -> bool:
    with _opened(root, path, "remove") as folder:
        return folder is not None and folder.remove(path.name)


def _host_names(content: bytes, where: str) -> tuple[str, ...]:
    try:
        names = parse_json(content)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and _HOST_FOLDER.fullmatch(name) for name in names
    ):
        raise RenderingError(
            f"{where}: expected a JSON list of host names, found something else; "
            "nothing was removed; correct the file or delete it (directories of hosts that are no "
            "longer wanted must then be removed by hand)"
        )
    return tuple(names)


def _stale_authorities(root: Folder, tree: Tree, hosts: tuple[str, ...]) -> Iterator[PurePosixPath]:
    """CA files of former mirrors in directories that stay."""
    folders = [*(CONTAINERD_HOSTS / host for host in hosts), BALANCER_CONFIG]
    for folder in folders:
        with _opened(root, folder / "ca.crt", "read") as opened:
            names = opened.names() if opened is not None else []
        for name in names:
            if name.endswith("-ca.crt") and folder / name not in tree:
                yield folder / name


# -- values ----------------------------------------------------------------------------------------

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*", re.ASCII)
_HOST = re.compile(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?(:[0-9]{1,5})?", re.ASCII)
_REPOSITORY = re.compile(r"[0-9A-Za-z._-]+(/[0-9A-Za-z._-]+)*", re.ASCII)
_PATH = re.compile(r"/[0-9A-Za-z._/:@=+-]*", re.ASCII)
_IMAGE = re.compile(r"[0-9A-Za-z.:/_-]+(@sha256:[0-9a-f]{64})?", re.ASCII)


def _checker(expected: str, is_good: Callable[[str], object]) -> Callable[[str, str], str]:
    """A check of a text that names what it is for in a message."""
    return lambda text, where: _checked(text, where, expected, is_good(text))


def checked_name(text: str, where: str = "node name", example: str = "master-0") -> str:
    """A name in Kubernetes (a DNS subdomain), as of a node."""
    expected = f"lower-case letters, digits, '-' and '.', as in {example}"
    return _checked(text, where, expected, len(text) <= 253 and _NAME.fullmatch(text))


def checked_address(text: str, where: str) -> str:
    """An IP address without a port, in its canonical form."""
    _checked(text, where, "an IP address, as in 10.0.0.1", is_address(text))
    found = ipaddress.ip_address(text)
    is_one = not found.is_unspecified and not found.is_multicast
    _checked(text, where, "the address of one node", is_one)
    return str(found)


def is_address(text: str) -> bool:
    """Whether this is an IP address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def checked_port(number: int, where: str) -> int:
    """A TCP port."""
    is_port = not isinstance(number, bool) and 1 <= number <= 65535
    _checked(str(number), where, "a port from 1 to 65535", is_port)
    return number


def host_port(host: str, number: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def checked_registry_host(text: str, where: str) -> str:
    """A registry's host with its port, if it has one."""
    is_host = _HOST.fullmatch(text) and ".." not in text
    _checked(text, where, "host or host:port, as in registry.example:5000", is_host)
    if ":" in text:
        checked_port(int(text.rpartition(":")[2]), where)
    return text


checked_repository_path = _checker(
    "names with '/' between them, as in deckhouse/ee",
    lambda text: not text or (_REPOSITORY.fullmatch(text) and not {".", ".."} & {*text.split("/")}),
)
"""The path of a repository without a slash around it; empty is a registry's root."""
checked_scheme = _checker("http or https", lambda text: text in {"http", "https"})
checked_file_path = _checker(
    "an absolute path of letters, digits and . _ - / : @ = +",
    lambda text: _PATH.fullmatch(text) and ".." not in text.split("/"),
)
"""An absolute path without anything that a shell or nginx could take for syntax."""
checked_image = _checker("an image reference", _IMAGE.fullmatch)


def checked_secret(text: str, where: str) -> str:
    """A user name or password: printable, on one line. The text itself is never repeated."""
    if not text or not text.isprintable():
        raise RenderingError(
            f"{where}: expected printable characters on one line, found "
            f"{'none' if not text else 'a control character'}; correct it in the settings"
        )
    return text


def checked_user_name(text: str, where: str) -> str:
    """A user name. It may not contain ':', which ends the name in a login."""
    if ":" in checked_secret(text, where):
        raise RenderingError(
            f"{where}: expected a name without ':', which ends the name where credentials are "
            "written together; use another account"
        )
    return text


def checked_authority(pem: str, where: str) -> str:
    """Certificates to trust, as they are written to a file of their own."""
    try:
        return clean_pem(pem, where)
    except InvalidCertificateError as err:
        raise RenderingError(str(err)) from err


def _checked(text: str, where: str, expected: str, is_good: object) -> str:
    if not is_good:
        raise RenderingError(
            f"{where}: expected {expected}, found {text!r}; correct it and try again"
        )
    return text
