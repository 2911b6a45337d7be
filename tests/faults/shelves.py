"""Registries for the cases: each begins in a saved state, and is watched from behind."""

from __future__ import annotations

import json
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mirror.oci import Digest, Manifest
from mirror.serve import MemoryStorage
from mirror.serve.store import StoredManifest, _StoredRepository
from mirror.testing import EmbeddedRegistry, FaultyProxy, FaultyServer
from tests.support.places import Contents
from tests.support.processes import free_port
from tests.support.real_registry import RealRegistry
from tests.support.wire import reached

_LOOKS = 4
_BROKEN = "the reader broke down"
_PAUSE_S = 0.03


@dataclass
class Shelf:
    """A registry under test: the server that clients call, what is behind it, what was seen."""

    server: FaultyServer
    store: Contents
    direct: str
    """`host:port` where it answers without faults."""
    dangling: list[str] = field(default_factory=list)


class Kind(ABC):
    """One kind of registry. States are saved under names and given to fresh shelves."""

    name: str

    @abstractmethod
    def save(self, name: str, shelf: Shelf) -> None:
        """Keep what `shelf` holds as the state `name`."""

    @abstractmethod
    def open(self, name: str) -> AbstractContextManager[Shelf]:
        """A shelf that holds the state `name` ("empty": nothing)."""


class _Ports:
    """The same ports again and again, since bundles say where they came from."""

    def __init__(self) -> None:
        self._free: list[int] = []

    @contextmanager
    def taken(self) -> Iterator[int]:
        """The port that was given back last."""
        port = self._free.pop() if self._free else free_port()
        yield port
        self._free.append(port)


# -- in memory -------------------------------------------------------------------------------------


class WatchedStorage(MemoryStorage):
    """Looks after each change whether some tag leads to what is missing: a reader at all times."""

    def __init__(self) -> None:
        super().__init__()
        self.dangling: list[str] = []
        self._whole: set[tuple[str, Digest]] = set()

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        super().put_manifest(repository, manifest, tag)
        if tag is not None:
            self._look(repository, tag, manifest.digest)

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        found = super().delete_manifest(repository, digest)
        self._look_at_all(repository)
        return found

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        found = super().delete_blob(repository, digest)
        self._look_at_all(repository)
        return found

    def _look_at_all(self, repository: str) -> None:
        self._whole.clear()
        for tag in self.tags(repository):
            digest = self.resolve(repository, tag)
            if digest is not None:
                self._look(repository, tag, digest)

    def _look(self, repository: str, tag: str, digest: Digest) -> None:
        if (repository, digest) not in self._whole:
            missing = list(missing_below(self, repository, digest))
            self.dangling += [f"{repository}:{tag} without {one}" for one in missing]
            if not missing:
                self._whole.add((repository, digest))

    def copied(self) -> dict[str, _StoredRepository]:
        """All that it holds, as it is now."""
        with self._lock:
            return _copied(self._repositories)

    def fill(self, saved: dict[str, _StoredRepository]) -> None:
        """Hold what was copied."""
        self._repositories = _copied(saved)


def _copied(repositories: dict[str, _StoredRepository]) -> dict[str, _StoredRepository]:
    return {
        name: _StoredRepository(
            dict(one.blobs),
            dict(one.manifests),
            dict(one.tags),
            {subject: set(found) for subject, found in one.referrers.items()},
        )
        for name, one in repositories.items()
    }


def missing_below(store: Contents, repository: str, digest: Digest) -> Iterator[str]:
    """What of all that a manifest reaches is not there."""
    held = store.manifest(repository, digest)
    if held is None:
        yield f"manifest {digest}"
        return
    for kind, text in reached(held.raw):
        below = Digest.parse(text)
        if kind == "manifests":
            yield from missing_below(store, repository, below)
        elif store.blob_size(repository, below) is None:
            yield f"blob {below}"


class Embedded(Kind):
    """The registry of this program, in memory, new for each case."""

    name = "embedded"

    def __init__(self) -> None:
        self._saved: dict[str, dict[str, _StoredRepository]] = {"empty": {}}
        self._ports = _Ports()

    def save(self, name: str, shelf: Shelf) -> None:
        assert isinstance(shelf.store, WatchedStorage)
        self._saved[name] = shelf.store.copied()

    @contextmanager
    def open(self, name: str) -> Iterator[Shelf]:
        storage = WatchedStorage()
        storage.fill(self._saved[name])
        with (
            self._ports.taken() as port,
            EmbeddedRegistry(storage, port=port) as registry,
        ):
            yield Shelf(registry, storage, registry.address, storage.dangling)


# -- CNCF distribution -----------------------------------------------------------------------------


class DataFolder:
    """The data folder of a `docker-registry`, read as it is."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "docker/registry/v2/blobs"
        self._names = root / "docker/registry/v2/repositories"

    def repositories(self) -> Sequence[str]:
        found = []
        for folder, names, _ in os.walk(self._names):  # which bears folders that vanish meanwhile
            if "_manifests" in names:
                found.append(Path(folder).relative_to(self._names).as_posix())
            names[:] = [name for name in names if not name.startswith("_")]
        return sorted(found)

    def tags(self, repository: str) -> Sequence[str]:
        try:
            return sorted(one.name for one in self._at(repository, "_manifests/tags").iterdir())
        except OSError:
            return []

    def resolve(self, repository: str, tag: str) -> Digest | None:
        return self._link(self._at(repository, f"_manifests/tags/{tag}/current"))

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        place = f"_manifests/revisions/{digest.algorithm}/{digest.encoded}"
        if self._link(self._at(repository, place)) is None:
            return None
        try:
            raw = self._data(digest).read_bytes()
        except OSError:
            return None
        return StoredManifest(json.loads(raw)["mediaType"], raw)

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        place = f"_layers/{digest.algorithm}/{digest.encoded}"
        if self._link(self._at(repository, place)) is None:
            return None
        try:
            return self._data(digest).stat().st_size
        except OSError:
            return None

    def _at(self, repository: str, place: str) -> Path:
        return self._names / repository / place

    def _data(self, digest: Digest) -> Path:
        return self._blobs / digest.algorithm / digest.encoded[:2] / digest.encoded / "data"

    def _link(self, folder: Path) -> Digest | None:
        try:
            text = (folder / "link").read_text()
        except OSError:
            return None
        return Digest.parse(text) if text else None  # it is emptied before it is written anew


class Real(Kind):
    """`docker-registry` behind a proxy that plays the faults."""

    name = "docker-registry"

    def __init__(self, work: Path, stack: ExitStack) -> None:
        self._work, self._stack = work, stack
        self._idle: list[RealRegistry] = []
        self._started: list[RealRegistry] = []
        self._ports = _Ports()

    def save(self, name: str, shelf: Shelf) -> None:
        (root,) = [one.root for one in self._started if one.address == shelf.direct]
        shutil.copytree(root, self._work / "states" / name, dirs_exist_ok=True)

    @contextmanager
    def open(self, name: str) -> Iterator[Shelf]:
        registry = self._idle.pop() if self._idle else self._start()
        shutil.rmtree(registry.root, ignore_errors=True)
        if name != "empty":
            shutil.copytree(self._work / "states" / name, registry.root)
        store = DataFolder(registry.root)
        with self._ports.taken() as port, FaultyProxy(registry.url, port=port) as proxy:
            shelf = Shelf(proxy, store, registry.address)
            with polled(shelf):
                yield shelf
        self._idle.append(registry)

    def _start(self) -> RealRegistry:
        registry = RealRegistry(self._work / f"registry-{len(self._started)}")
        self._started.append(registry)
        return self._stack.enter_context(registry)


@contextmanager
def polled(shelf: Shelf) -> Iterator[None]:
    """Read all tags again and again while the block lasts."""
    over = threading.Event()

    def poll() -> None:
        shelf.dangling.append(_BROKEN)  # until it has ended well
        while not over.wait(_PAUSE_S):
            _look(shelf, over)
        _look(shelf, over)
        shelf.dangling.remove(_BROKEN)

    thread = threading.Thread(target=poll, name="reader")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _look(shelf: Shelf, over: threading.Event) -> None:
    store = shelf.store
    for repository in store.repositories():
        for tag in store.tags(repository):
            # This registry removes a manifest in several steps: what stays missing is missing.
            for _ in range(_LOOKS):
                digest = store.resolve(repository, tag)
                missing = list(missing_below(store, repository, digest)) if digest else []
                if not missing:
                    break
                over.wait(_PAUSE_S)
            else:
                shelf.dangling += [f"{repository}:{tag} without {one}" for one in missing]
