"""Repair: putting right what a registry has under a digest, whatever it believes to have.

An upload alone would do where the registry knows that content is missing. It may not: descriptor
caches answer for files that are gone, and a file that exists is never written again. So the bytes
are sent without asking, and what counts is what comes back when they are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mirror.durable import Folder, os_errors
from mirror.errors import (
    DamagedReplicaError,
    FileSystemError,
    InputError,
    IntegrityError,
    MirrorError,
)
from mirror.events import BytesMoved
from mirror.oci import Digest, Manifest, Verifier
from mirror.run import Run
from mirror.sync.content import PerItemErrors
from mirror.sync.failover import FailoverSource, copy_blob
from mirror.sync.inventory import Inventory
from mirror.sync.observation import Failure, Finding, Item, speaks_of_damage
from mirror.sync.observe import read_blob, read_manifest
from mirror.sync.plan import CopyBlob
from mirror.sync.tree import RegistryTarget, RegistryTree

_log = logging.getLogger(__name__)


class RepairingTarget(RegistryTarget):
    """A registry whose damaged content is replaced; also in its data folder, if that is given.

    Of the manifests in `damaged` (digest → the error that revealed it) each that is put is
    replaced.
    """

    def __init__(self, tree: RegistryTree, *, run: Run | None = None) -> None:
        super().__init__(tree.client, tree.locate, tree.name, run=run, journal=tree.journal)
        self._storage = None if tree.storage is None else Storage(tree.storage)
        self.damaged: Mapping[Digest, MirrorError] = {}
        self._repaired: dict[Digest, Finding] = {}  # under the lock

    @property
    def repaired(self) -> tuple[Finding, ...]:
        """The manifests that are right again."""
        return tuple(self._repaired.values())

    def put_manifest(self, repository: str, manifest: Manifest) -> None:
        error = self.damaged.get(manifest.digest)
        if error is None:
            super().put_manifest(repository, manifest)
            return
        self.repair_manifest(repository, manifest, error)
        with self._lock:
            self._repaired[manifest.digest] = repaired(self.name, repository, manifest.digest)

    def repair_blobs(
        self, damaged: Mapping[Digest, MirrorError], wanted: Inventory, source: FailoverSource
    ) -> tuple[tuple[Finding, ...], tuple[Failure, ...]]:
        """Replace the blobs among what is `damaged`; `source` has them.

        Returns findings for what is right again, and failures for what is not.
        """
        found = [(digest, *home) for digest in damaged if (home := _home(digest, wanted))]

        def replace_blob(one: tuple[Digest, str, int]) -> None:
            digest, path, size = one
            self._discard(digest)
            copy_blob(
                CopyBlob(digest, size, (path,), path),
                source,
                self,
                on_bytes=lambda count: self._run.on_event(BytesMoved(digest, count)),
                run=self._run,
            )
            read = partial(read_blob, self, path, digest, size)
            self._confirm(read, digest, damaged[digest])

        questions = PerItemErrors(self.client.ping, self._run)
        outcomes = questions.ask_all(found, replace_blob, wide=False)
        done, failures = [], []
        for (digest, path, _), outcome in zip(found, outcomes, strict=True):
            if outcome is None:
                done.append(repaired(self.name, path, digest))
            else:
                item = Item(path, digest, is_blob=True)
                failures.append(Failure(self.name, str(item), outcome))
        return tuple(done), tuple(failures)

    def repair_manifest(self, path: str, manifest: Manifest, error: MirrorError) -> None:
        """Replace a manifest of repository `path`, all that it needs being there.

        Raises:
            DamagedReplicaError: what is read back is still wrong. `error` revealed it first.
        """
        digest, raw = manifest.digest, manifest.raw
        self._discard(digest)
        repository = self.locate(path)
        # Manifests lie among the blobs. A registry writes an upload even if a cache still answers
        # for the lost file, and would not write what it gets by PUT.
        self.client.upload(
            repository, digest, len(raw), lambda offset: (part for part in [raw[offset:]])
        )
        self.client.put_manifest(repository, digest, manifest)
        with suppress(MirrorError):  # nothing needs the link to a blob
            self.client.delete_blob(repository, digest)
        if self.client.resolve(repository, digest) is None:
            # A registry that stores both kinds in one place has deleted the manifest, too.
            self.client.put_manifest(repository, digest, manifest)
        self._confirm(partial(read_manifest, self, path, digest), digest, error)

    def _discard(self, digest: Digest) -> None:
        if self._storage is not None and self._storage.discard_damaged(digest):
            _log.info("%s: removed the damaged file of %s", self.name, digest)

    def _confirm(self, read: partial[None], digest: Digest, before: MirrorError) -> None:
        try:
            read()
        except MirrorError as err:
            if not speaks_of_damage(err):
                raise
            where = relative_path(digest)
            if self._storage is None:
                how = (
                    f"delete the file {where} below the registry's data root (in object storage, "
                    "the object of that name) and sync again, or name that root with --storage, so "
                    "that this is done for you"
                )
            elif self._storage.path_of(digest).exists():
                how = (
                    f"the file {where} in {self._storage.root} is sound: look for a proxy or cache "
                    "before the registry"
                )
            else:
                how = f"there is no {where} in {self._storage.root}: name its data root"
            raise DamagedReplicaError(
                f"what {self.name} has as {digest} is damaged ({before}) and a new upload "
                f"does not replace it; {how}"
            ) from err


def describe_damage(name: str, damaged: Mapping[Digest, MirrorError]) -> list[Finding]:
    """Findings about the damage of a registry, by digest."""
    return [
        Finding(name, f"{digest} is damaged: {error}", digest=digest)
        for digest, error in sorted(damaged.items())
    ]


def repaired(place: str, path: str, digest: Digest) -> Finding:
    """The finding about content that is right again."""
    return Finding(place, f"{digest} was damaged or lost, and is right again", path, (), digest)


def without_manifests(held: Inventory, digests: Collection[Digest]) -> Inventory:
    """`held` without these manifests, so that a plan puts them."""
    return Inventory(
        {
            path: replace(
                content, manifests={d: n for d, n in content.manifests.items() if d not in digests}
            )
            for path, content in held.repositories.items()
        }
    )


def _home(digest: Digest, wanted: Inventory) -> tuple[str, int] | None:
    """A repository that should have this blob, and the blob's size; None for a manifest."""
    for path, content in sorted(wanted.repositories.items()):
        if digest in content.blobs:
            return path, content.blobs[digest]
    return None


_LAYOUT = Path("docker/registry/v2")
_CHUNK = 1 << 20
_IDENTITY = ("st_ino", "st_mtime_ns", "st_size")


@dataclass(frozen=True, slots=True)
class Storage:
    """The data root of a `distribution` registry with the file-system driver."""

    root: Path

    def check(self) -> None:
        """Check that this is such a root; a new registry makes it with the first blob.

        Raises:
            InputError: it is another folder, or there is none.
        """
        if not self.root.exists() and self.root.parent.is_dir():
            return
        if not self.root.is_dir():
            raise InputError(f"--storage {self.root}: there is no such folder")
        if any(self.root.iterdir()) and not (self.root / _LAYOUT).is_dir():
            raise InputError(
                f"--storage {self.root}: this is not a registry's data folder: it lacks {_LAYOUT}; "
                "name what the registry's configuration has as storage.filesystem.rootdirectory"
            )

    def path_of(self, digest: Digest) -> Path:
        """Where the registry keeps the bytes of `digest`, blob or manifest."""
        return self.root / relative_path(digest)

    def discard_damaged(self, digest: Digest) -> bool:
        """Remove the file of `digest` if what is in it has another digest; say whether it did.

        False if the file does not exist, is sound, or is being written.

        Raises:
            FileSystemError: it cannot be read or removed.
        """
        path = self.path_of(digest)
        try:
            # Never through a link: only the registry's own file may go.
            with Folder(self.root) as root, root.inside(relative_path(digest).parent) as folder:
                before = _damaged(folder, path.name, digest)
                if before is None:
                    return False
                now = folder.status(path.name)
                if any(getattr(now, of, None) != getattr(before, of) for of in _IDENTITY):
                    return False  # the registry wrote it meanwhile: the reading proves nothing
                with os_errors(path, "replace"):
                    return folder.unlink(path.name)
        except FileNotFoundError:
            return False
        except OSError as err:
            raise FileSystemError(f"{path} cannot be read: {err.strerror}") from err


def _damaged(folder: Folder, name: str, digest: Digest) -> os.stat_result | None:
    """What the file was that was read and does not hash to `digest`; None if it does."""
    with os.fdopen(folder.open(name, os.O_RDONLY), "rb") as file:
        found = os.fstat(file.fileno())
        verifier = Verifier(digest, found.st_size, str(folder / name))
        try:
            while chunk := file.read(_CHUNK):
                verifier.update(chunk)
            verifier.finish()
        except IntegrityError:
            return found
    return None


def relative_path(digest: Digest) -> Path:
    """The file of `digest` below the data root of any `distribution` registry."""
    encoded = digest.encoded
    return _LAYOUT / "blobs" / digest.algorithm / encoded[:2] / encoded / "data"
