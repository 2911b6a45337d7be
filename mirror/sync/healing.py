"""Healing: putting right what a registry has under a digest, whatever it believes to have.

An upload alone would do where the registry knows that content is missing. It may not: descriptor
caches answer for files that are gone, and a file that exists is never written again. So the bytes
are sent without asking, and what counts is what comes back when they are read.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from mirror.errors import DamagedReplicaError, MirrorError
from mirror.events import BytesMoved, OnEvent
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.sync.content import BlobContent
from mirror.sync.findings import Finding
from mirror.sync.inventory import Inventory
from mirror.sync.plan import CopyBlob
from mirror.sync.readback import read_blob, read_manifest
from mirror.sync.registry import RegistryTarget
from mirror.sync.sources import Persistent, Ring
from mirror.sync.storage import Storage, relative_path
from mirror.sync.survey import Failure
from mirror.sync.tolerance import Tolerant, speaks_of_damage
from mirror.sync.workers import DEFAULT_JOBS

_log = logging.getLogger(__name__)


class Healer:
    """Replaces damaged content of one registry, below its data root where that is known."""

    def __init__(
        self,
        place: RegistryTarget,
        ring: Ring,
        storage: Storage | None,
        *,
        on_event: OnEvent = ignore_events,
        cancel: threading.Event | None = None,
    ) -> None:
        self._place, self._ring, self._storage = place, ring, storage
        self._on_event, self._cancel = on_event, cancel or threading.Event()

    def heal(
        self,
        damaged: Mapping[Digest, MirrorError],
        wanted: Inventory,
        *,
        jobs: int = DEFAULT_JOBS,
    ) -> tuple[tuple[Finding, ...], tuple[Failure, ...]]:
        """Replace what is `damaged` (digest → how that was noticed) and read it back.

        Returns what is right again, and what is not. Blobs come before manifests, and manifests
        before indexes, since registries look at what a manifest needs when it arrives.
        """
        homes: dict[Digest, list[str]] = {}
        sizes: dict[Digest, int] = {}
        for path, content in sorted(wanted.repositories.items()):
            for digest in damaged:
                if digest in content.blobs:
                    sizes[digest] = content.blobs[digest]
                    homes.setdefault(digest, []).append(path)
                elif digest in content.manifests:
                    homes.setdefault(digest, []).append(path)
        nodes = wanted.manifest_nodes()
        waves = (
            [digest for digest in homes if digest in sizes],
            [d for d in homes if d not in sizes and not nodes[d].children],
            [d for d in homes if d not in sizes and nodes[d].children],
        )
        tolerant = Tolerant(self._place.client)
        healed, failures = [], []
        for wave in waves:

            def mend(digest: Digest) -> None:
                error, paths = damaged[digest], homes[digest]
                if not speaks_of_damage(error):
                    raise error
                if digest in sizes:
                    self._blob(digest, sizes[digest], paths[0], error)
                else:
                    for path in paths:
                        self._manifest(digest, path, error)

            outcomes = tolerant.ask_all(wave, mend, jobs=jobs, cancel=self._cancel)
            for digest, outcome in zip(wave, outcomes, strict=True):
                kind = "blob" if digest in sizes else "manifest"
                if outcome is None:
                    problem = f"{kind} {digest} was damaged or lost, and is right again"
                    healed.append(Finding(self._place.name, problem, homes[digest][0], (), digest))
                else:
                    item = f"{kind} {homes[digest][0] or '/'}@{digest}"
                    failures.append(Failure(self._place.name, item, outcome))
        return tuple(healed), tuple(failures)

    def _blob(self, digest: Digest, size: int, path: str, error: MirrorError) -> None:
        self._discard(digest)
        self._send(digest, size, path)
        self._confirm(partial(read_blob, self._place, path, digest, size), digest, error)

    def _manifest(self, digest: Digest, path: str, error: MirrorError) -> None:
        manifest = self._ring.manifest(path, digest)
        self._discard(digest)
        repository = self._place.locate(path)
        # Manifests lie among the blobs, and an upload as a blob is written even where a cache
        # still answers for the lost file; what PUT is given would not be.
        raw = manifest.raw
        self._place.client.upload(
            repository, digest, len(raw), lambda offset: (part for part in [raw[offset:]])
        )
        self._place.client.put_manifest(repository, digest, manifest)
        with suppress(MirrorError):  # the link to a blob, which nothing needs
            self._place.client.delete_blob(repository, digest)
        self._confirm(partial(read_manifest, self._place, path, digest), digest, error)

    def _send(self, digest: Digest, size: int, path: str) -> None:
        content = BlobContent(
            self._ring,
            path,
            digest,
            size,
            cancelled=self._cancel.is_set,
            on_bytes=lambda count: self._on_event(BytesMoved(digest, count)),
        )
        step = CopyBlob(digest, size, (path,), path)
        Persistent(self._place, self._ring).put_blob(step, content)

    def _discard(self, digest: Digest) -> None:
        if self._storage is not None and self._storage.discard_damaged(digest):
            _log.info("%s: removed the damaged file of %s", self._place.name, digest)

    def _confirm(self, read: partial[None], digest: Digest, before: MirrorError) -> None:
        try:
            read()
        except MirrorError as err:
            if not speaks_of_damage(err):
                raise
            where = relative_path(digest)
            how = (
                f"delete the file {where} below the registry's data root and sync again, or name "
                "that root with --storage, so that this is done for you"
                if self._storage is None
                else f"the file {where} in {self._storage.root} is sound: look for a proxy or "
                "cache before the registry, or another data root"
            )
            raise DamagedReplicaError(
                f"what {self._place.name} has as {digest} is damaged ({before}) and a new upload "
                f"does not replace it; {how}"
            ) from err
