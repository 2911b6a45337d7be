"""Several registries as one source: content is taken from the first that has it whole.

Content goes by its digest, so it does not matter who gives it: whatever hashes right is right. The
leader is asked first, then the replicas; who gave wrong bytes, or none, is not asked for the same
content again.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

from mirror.errors import (
    CancelledError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    RegistryError,
)
from mirror.oci import Digest, Manifest
from mirror.sync.content import BlobContent, Source, Target
from mirror.sync.inventory import Inventory
from mirror.sync.plan import CopyBlob


class Ring:
    """Sources in the order in which they are asked. Thread-safe.

    `wanted` tells in which other repositories the same content should lie, for a registry that
    lost it in one of them. `damage` has what was found on the way: (place, digest) → the reason.
    """

    def __init__(self, sources: Sequence[Source], wanted: Inventory) -> None:
        if not sources:
            raise ValueError("there is nothing to read from")
        self._sources = tuple(sources)
        self._paths: dict[Digest, list[str]] = {}
        for path, content in sorted(wanted.repositories.items()):
            for digest in (*content.blobs, *content.manifests):
                self._paths.setdefault(digest, []).append(path)
        self._lock = threading.Lock()
        self._next: dict[Digest, int] = {}  # under the lock, like the next
        self.damage: dict[tuple[str, Digest], MirrorError] = {}

    @property
    def name(self) -> str:
        return self._sources[0].name

    def tried(self, digest: Digest) -> int:
        """How many places have proved useless for `digest`; it only ever rises."""
        with self._lock:
            return self._next.get(digest, 0)

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        while True:
            position, source, path = self._candidate(repository, digest)
            try:
                return source.manifest(path, digest)
            except CancelledError:
                raise
            except (RegistryError, NotFoundError, IntegrityError, InvalidManifestError) as err:
                self._blame(digest, position, err)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        while True:
            position, source, path = self._candidate(repository, digest)
            begun = False
            try:
                for chunk in source.blob(path, digest, size, offset):
                    begun = True
                    yield chunk
            except CancelledError:
                raise
            except (RegistryError, NotFoundError, IntegrityError) as err:
                self._blame(digest, position, err)
                if begun:
                    raise  # what was passed on cannot be called back; `Persistent` begins anew
            else:
                return

    def blame(self, digest: Digest, error: MirrorError) -> None:
        """What was read last as `digest` proved wrong."""
        self._blame(digest, self.tried(digest), error)

    def _blame(self, digest: Digest, position: int, error: MirrorError) -> None:
        width = len(self._all_paths("", digest))
        # Absent from one repository, it may be in another; equal bytes are stored once.
        after = (
            position + 1 if isinstance(error, NotFoundError) else (position // width + 1) * width
        )
        with self._lock:
            place = self._sources[position // width].name
            self.damage.setdefault((place, digest), error)
            self._next[digest] = max(self._next.get(digest, 0), after)

    def _all_paths(self, repository: str, digest: Digest) -> list[str]:
        return self._paths.get(digest) or [repository]

    def _candidate(self, repository: str, digest: Digest) -> tuple[int, Source, str]:
        """Whom to ask next, and in which repository."""
        paths = self._all_paths(repository, digest)
        position = self.tried(digest)
        if position >= len(self._sources) * len(paths):
            reasons = [self.damage.get((source.name, digest)) for source in self._sources]
            raise next(reason for reason in reasons if reason is not None)
        return position, self._sources[position // len(paths)], paths[position % len(paths)]


class Persistent:
    """A target that takes content from the next source of `ring` where one gave wrong bytes."""

    def __init__(self, target: Target, ring: Ring) -> None:
        self._target, self._ring = target, ring

    @property
    def name(self) -> str:
        return self._target.name

    def held(self, wanted: Inventory) -> Inventory:
        return self._target.held(wanted)

    def put_blob(self, step: CopyBlob, content: BlobContent) -> int:
        while True:
            before = self._ring.tried(step.digest)
            try:
                return self._target.put_blob(step, content)
            except MirrorError as err:
                if isinstance(err, IntegrityError):
                    self._ring.blame(step.digest, err)
                if self._ring.tried(step.digest) == before:
                    raise  # the target's own trouble
            content = content.restarted()

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        self._target.put_manifest(repository, manifest)

    def put_tag(self, repository: str, tag: str, manifest: Manifest) -> None:
        self._target.put_tag(repository, tag, manifest)
