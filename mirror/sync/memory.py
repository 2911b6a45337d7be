"""Content in memory: a source and a target for tests, and for the few images that we make."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable

from mirror.errors import NotFoundError
from mirror.oci import Digest, Manifest
from mirror.sync.content import BlobContent
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.nodes import ManifestNode
from mirror.sync.plan import CopyBlob

_CHUNK = 1 << 20


class MemoryStore:
    """Repositories in memory, both `Source` and `Target`. Thread-safe.

    Equal blobs of several repositories are stored once.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._data: dict[Digest, bytes] = {}
        self._blobs: dict[str, set[Digest]] = {}
        self._manifests: dict[str, dict[Digest, Manifest]] = {}
        self._tags: dict[str, dict[str, Digest]] = {}

    @property
    def name(self) -> str:
        return self._name

    # -- filling it by hand --------------------------------------------------------------------

    def add_blob(self, repository: str, data: bytes) -> Digest:
        """Put `data` into `repository`; return its digest."""
        digest = Digest.of(data)
        with self._lock:
            self._data.setdefault(digest, data)
            self._blobs.setdefault(repository, set()).add(digest)
        return digest

    def add_manifest(
        self, repository: str, raw: bytes, media_type: str, *, tags: Iterable[str] = ()
    ) -> Manifest:
        """Put a manifest into `repository`, under its digest and `tags`."""
        manifest = Manifest.parse(raw, media_type)
        self.put_manifest(repository, manifest)
        for tag in tags:
            self.put_tag(repository, tag, manifest)
        return manifest

    # -- Source --------------------------------------------------------------------------------

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        with self._lock:
            found = self._manifests.get(repository, {}).get(digest)
        if found is None:
            raise NotFoundError(f"{self.name}: no manifest {digest} in {repository!r}")
        return found

    def blob(
        self,
        repository: str,
        digest: Digest,
        size: int,  # noqa: ARG002 - the protocol's
        offset: int = 0,
    ) -> Generator[bytes, None, None]:
        with self._lock:
            there = digest in self._blobs.get(repository, ())
        if not there:
            raise NotFoundError(f"{self.name}: no blob {digest} in {repository!r}")
        data = self._data[digest]
        for start in range(offset, len(data), _CHUNK):
            yield data[start : start + _CHUNK]

    def inventory(self) -> Inventory:
        """All it holds."""
        builder = InventoryBuilder()
        with self._lock:
            for path, blobs in self._blobs.items():
                for digest in blobs:
                    builder.add_blob(path, digest, len(self._data[digest]))
            for path, manifests in self._manifests.items():
                for manifest in manifests.values():
                    builder.add_manifest(path, ManifestNode.of(manifest), closed=False)
            for path, tags in self._tags.items():
                for tag, digest in tags.items():
                    builder.add_tag(path, tag, digest)
        return builder.build()

    # -- Target --------------------------------------------------------------------------------

    def held(self, wanted: Inventory) -> Inventory:  # noqa: ARG002 - it knows all it holds
        return self.inventory()

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        sent = 0
        if step.mount_from is None:
            data = b"".join(content.chunks())
            sent = len(data)
            with self._lock:
                self._data[step.digest] = data
        with self._lock:
            for repository in step.into:
                self._blobs.setdefault(repository, set()).add(step.digest)
        return sent

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        with self._lock:
            self._manifests.setdefault(repository, {})[manifest.digest] = manifest

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        with self._lock:
            self._tags.setdefault(repository, {})[tag] = manifest.digest
