"""Rendered files as values, and the thin writer that puts them on a disk.

A file gets its mode before its first byte, and its name only when it is complete. Removal touches
only files that the module itself has placed; stores and directories made by people stay.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mirror.documents import parse_json
from mirror.durable import write_if_changed
from mirror.errors import FileSystemError, RenderingError
from mirror.modes import constants

PUBLIC = 0o644
SECRET = 0o600
"""The mode of every file that holds a password, a key, or a hash of one."""

_HOST_FOLDER = re.compile(r"[0-9A-Za-z_][0-9A-Za-z._:-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """What a file is to hold. Content of secret files shows in no repr."""

    content: bytes = field(repr=False)
    mode: int = PUBLIC


Tree = Mapping[PurePosixPath, RenderedFile]
"""Absolute paths of one node (or of the in-cluster proxy) → files."""

OWN_FILES: tuple[PurePosixPath, ...] = (
    *constants.STATIC_PODS,  # before the files that their containers read
    *(
        constants.SERVICE_CONFIG / name
        for name in ("auth/config.yaml", "distribution/config.yaml", "mirrorer/config.yaml")
    ),
    *(
        constants.PKI_CONFIG / name
        for name in (
            "ca.crt",
            "auth.crt",
            "auth.key",
            "distribution.crt",
            "distribution.key",
            "token.crt",
            "token.key",
            "ingress-client-ca.crt",
            "upstream-ca.crt",
        )
    ),
    constants.BALANCER_FILE,
    constants.RELAY_FILE,
    *(
        constants.SERVICE_CONFIG / "in-cluster" / name
        for name in (
            "distribution.yaml",
            "auth.yaml",
            "relay.conf",
            "ca.crt",
            "auth.crt",
            "auth.key",
            "distribution.crt",
            "distribution.key",
            "token.crt",
            "token.key",
            "upstream-ca.crt",
        )
    ),
)
"""The files outside containerd's directory that are the module's own: gone when not rendered."""


@dataclass(frozen=True, slots=True)
class TreeChanges:
    """What a writer did, as paths on the node.

    `kept` are authorities that nothing names any more. containerd may have read the hosts.toml that
    named them a moment ago, and be about to read them: the next run removes them.
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
    hosts: tuple[str, ...]
    former_hosts: frozenset[str]
    replaced: Mapping[PurePosixPath, bytes]
    """Each hosts.toml that has new content now, with the former one."""
    written: tuple[PurePosixPath, ...]
    unchanged: tuple[PurePosixPath, ...]

    def clean(self) -> TreeChanges:
        """Remove what the tree no longer has; then, last, forget it.

        Raises:
            FileSystemError: something could not be removed or written.
        """
        removed = [*_remove_hosts(self.root, self.former_hosts), *_remove_own(self.root, self.tree)]
        stale = list(_stale_authorities(self.root, self.tree, self.hosts))
        kept = tuple(one for one in stale if self._was_named(one))
        removed += (one for one in stale if one not in kept and _unlink(_below(self.root, one)))
        state_path = constants.CONTAINERD_HOSTS_STATE
        on_disk = _below(self.root, state_path)
        written, unchanged = [*self.written], [*self.unchanged]
        if listed := self.tree.get(state_path):
            # It was made with the former hosts still in it, if there were any.
            fresh = write_file(on_disk, listed) or state_path in written
            if fresh and state_path not in written:
                written.append(state_path)
            elif not fresh:
                unchanged.append(state_path)
        elif _unlink(on_disk):
            removed.append(state_path)
        return TreeChanges(tuple(sorted(written)), tuple(sorted(unchanged)), tuple(removed), kept)

    def _was_named(self, authority: PurePosixPath) -> bool:
        """Whether a hosts.toml that this run replaced names this file beside it."""
        return authority.name.encode() in self.replaced.get(authority.parent / "hosts.toml", b"")


def place_tree(tree: Tree, root: Path) -> Placed:
    """Write the module's files below `root` and remove nothing yet.

    Who reads meanwhile finds the old route or the new one. Unchanged files keep their times.

    Raises:
        FileSystemError: a file could not be written.
        RenderingError: the list of managed host directories on the disk is damaged.
    """
    state_path = constants.CONTAINERD_HOSTS_STATE
    before = _managed_hosts(_below(root, state_path))
    after: tuple[str, ...] = ()
    written: list[PurePosixPath] = []
    unchanged: list[PurePosixPath] = []
    # The list of directories goes first, with the old ones still in it: a run that is cut short
    # leaves no directory that nobody knows to be managed.
    if listed := tree.get(state_path):
        after = _host_names(listed.content, str(state_path))
        union = RenderedFile(hosts_state(sorted({*before, *after})), listed.mode)
        if write_file(_below(root, state_path), union):
            written.append(state_path)
    replaced: dict[PurePosixPath, bytes] = {}
    for path, file in sorted(tree.items(), key=lambda item: _order(item[0])):
        if path == state_path:
            continue
        there = _content(_below(root, path)) if path.name == "hosts.toml" else None
        fresh = write_file(_below(root, path), file)
        (written if fresh else unchanged).append(path)
        if fresh and there is not None:
            replaced[path] = there
    former = frozenset(before) - frozenset(after)
    return Placed(tree, root, after, former, replaced, tuple(written), tuple(unchanged))


def write_tree(tree: Tree, root: Path) -> TreeChanges:
    """Make the module's files below `root` equal to `tree`: `place_tree`, then `clean`.

    Raises:
        FileSystemError: a file could not be written.
        RenderingError: the list of managed host directories on the disk is damaged.
    """
    return place_tree(tree, root).clean()


def hosts_state(hosts: list[str]) -> bytes:
    """The list of host directories that the module manages, as nodes keep it."""
    return json.dumps(hosts, separators=(",", ":")).encode()


def _order(path: PurePosixPath) -> tuple[int, PurePosixPath]:
    """Certificates before what names them, and static pods after their files."""
    if path in constants.STATIC_PODS:
        return 3, path
    return (2 if path.name == "hosts.toml" else 1), path


def _below(root: Path, path: PurePosixPath) -> Path:
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} is no absolute path of a node")
    return root / path.relative_to("/")


def write_file(path: Path, file: RenderedFile) -> bool:
    """Put a file in its place, complete or not at all; False if it was there already.

    Raises:
        FileSystemError: it could not be written.
    """
    return write_if_changed(path, file.content, mode=file.mode)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise FileSystemError(f"cannot read {path}: {err.strerror}") from err


def _managed_hosts(path: Path) -> tuple[str, ...]:
    content = _content(path)
    return () if content is None else _host_names(content, str(path))


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


def _remove_hosts(root: Path, hosts: frozenset[str]) -> Iterator[PurePosixPath]:
    for host in sorted(hosts):
        path = constants.CONTAINERD_HOSTS / host
        folder = _below(root, path)
        try:
            if folder.is_symlink():
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder)
            else:
                continue
        except OSError as err:
            raise FileSystemError(f"cannot remove {folder}: {err.strerror}") from err
        yield path


def _remove_own(root: Path, tree: Tree) -> Iterator[PurePosixPath]:
    for path in OWN_FILES:
        if path not in tree and _unlink(_below(root, path)):
            yield path


def _stale_authorities(root: Path, tree: Tree, hosts: tuple[str, ...]) -> Iterator[PurePosixPath]:
    """CA files of former ways in directories that stay."""
    folders = [*(constants.CONTAINERD_HOSTS / host for host in hosts), constants.BALANCER_CONFIG]
    for folder in folders:
        for found in sorted(_below(root, folder).glob("*-ca.crt")):
            if folder / found.name not in tree:
                yield folder / found.name


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as err:
        raise FileSystemError(f"cannot remove {path}: {err.strerror}") from err
    return True
