"""A store that lives in memory: for tests and demonstrations."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror.oci import Digest, Manifest
from mirror.serve.store import RunningDigest, StoredManifest


@dataclass(slots=True)
class _Repository:
    blobs: dict[Digest, bytearray] = field(default_factory=dict)
    manifests: dict[Digest, StoredManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    referrers: dict[Digest, set[Digest]] = field(default_factory=dict)


class MemoryStorage:
    """A `Store` in memory; its content ends with the object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._repositories: dict[str, _Repository] = {}

    def repositories(self) -> Sequence[str]:
        with self._lock:
            return sorted(name for name, held in self._repositories.items() if held.manifests)

    def has_repository(self, repository: str) -> bool:
        with self._lock:
            return bool(self._at(repository).manifests)

    def tags(self, repository: str) -> Sequence[str]:
        with self._lock:
            return sorted(self._at(repository).tags)

    def resolve(self, repository: str, tag: str) -> Digest | None:
        with self._lock:
            return self._at(repository).tags.get(tag)

    def manifest(self, repository: str, digest: Digest) -> StoredManifest | None:
        with self._lock:
            return self._at(repository).manifests.get(digest)

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        with self._lock:
            data = self._at(repository).blobs.get(digest)
            return None if data is None else len(data)

    def open_blob(self, repository: str, digest: Digest) -> _MemoryReader | None:
        with self._lock:
            data = self._at(repository).blobs.get(digest)
            return None if data is None else _MemoryReader(data)

    def referrers(self, repository: str, subject: Digest) -> Sequence[Digest]:
        with self._lock:
            return sorted(self._at(repository).referrers.get(subject, ()))

    def stage(self, algorithm: str = "sha256") -> _MemoryStaging:
        return _MemoryStaging(self, algorithm)

    def mount_blob(self, source: str, target: str, digest: Digest) -> bool:
        with self._lock:
            data = self._at(source).blobs.get(digest)
            if data is None:
                return False
            self._make(target).blobs[digest] = data
            return True

    def put_manifest(self, repository: str, manifest: Manifest, tag: str | None = None) -> None:
        with self._lock:
            held = self._make(repository)
            held.manifests[manifest.digest] = StoredManifest(manifest.media_type, manifest.raw)
            if manifest.subject:
                held.referrers.setdefault(manifest.subject.digest, set()).add(manifest.digest)
            if tag is not None:
                held.tags[tag] = manifest.digest

    def delete_manifest(self, repository: str, digest: Digest) -> bool:
        with self._lock:
            held = self._at(repository)
            if held.manifests.pop(digest, None) is None:
                return False
            held.tags = {tag: named for tag, named in held.tags.items() if named != digest}
            for refer in held.referrers.values():
                refer.discard(digest)
            return True

    def delete_tag(self, repository: str, tag: str) -> bool:
        with self._lock:
            return self._at(repository).tags.pop(tag, None) is not None

    def delete_blob(self, repository: str, digest: Digest) -> bool:
        with self._lock:
            return self._at(repository).blobs.pop(digest, None) is not None

    def _at(self, repository: str) -> _Repository:
        """For reading: an absent repository looks empty and is not created."""
        return self._repositories.get(repository) or _Repository()

    def _make(self, repository: str) -> _Repository:
        return self._repositories.setdefault(repository, _Repository())

    def _keep(self, repository: str, digest: Digest, data: bytearray) -> None:
        with self._lock:
            self._make(repository).blobs[digest] = data


class _MemoryReader:
    def __init__(self, data: bytearray) -> None:
        self._data, self.size = data, len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return bytes(memoryview(self._data)[offset : offset + length])

    def close(self) -> None:
        self._data = bytearray()


class _MemoryStaging:
    def __init__(self, storage: MemoryStorage, algorithm: str) -> None:
        self._storage, self._data = storage, bytearray()
        self._digest = RunningDigest(algorithm)

    @property
    def size(self) -> int:
        return self._digest.size

    def write(self, data: bytes) -> None:
        self._digest.update(data)
        self._data += data

    def commit(self, repository: str, digest: Digest) -> None:
        data, self._data = self._data, bytearray()
        self._digest.check(digest, lambda: (bytes(data),))
        self._storage._keep(repository, digest, data)

    def discard(self) -> None:
        self._data = bytearray()
