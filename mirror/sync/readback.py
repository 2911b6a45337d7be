"""Reading back: every byte that a registry serves, hashed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

from mirror.errors import MirrorError
from mirror.events import BlobDone, BytesMoved, TransferStarted
from mirror.oci import Digest, Verifier
from mirror.run import Run
from mirror.sync.inventory import Inventory
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.tolerance import Tolerant


def read_back(
    held: Inventory,
    place: RegistryTarget,
    *,
    run: Run | None = None,
) -> dict[Digest, MirrorError]:
    """Read each distinct blob and manifest of `held` once; what is not right, with the reason.

    A registry stores equal content once, so one reading tells of all repositories.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    tolerant = Tolerant(place.client)
    blobs: dict[Digest, tuple[str, int]] = {}
    manifests: dict[Digest, str] = {}
    for path, content in sorted(held.repositories.items()):
        blobs.update((digest, (path, size)) for digest, size in content.blobs.items())
        manifests.update((digest, path) for digest in content.manifests)
    run.on_event(
        TransferStarted(len(blobs), sum(size for _, size in blobs.values()), len(manifests), 0)
    )
    readings: list[tuple[Digest, Callable[[], None]]] = [
        (digest, partial(read_blob, place, path, digest, size, run))
        for digest, (path, size) in blobs.items()
    ]
    readings += [
        (digest, partial(read_manifest, place, path, digest)) for digest, path in manifests.items()
    ]
    outcomes = tolerant.ask_all(readings, lambda one: one[1](), run=run)
    return {
        digest: outcome
        for (digest, _), outcome in zip(readings, outcomes, strict=True)
        if outcome is not None
    }


def read_blob(place: RegistryTarget, path: str, digest: Digest, size: int, run: Run) -> None:
    """Read a blob and hash it.

    Raises:
        SizeMismatchError, DigestMismatchError: it is not what it goes by.
        RegistryNotFoundError: it is not there.
    """
    verifier = Verifier(digest, size, f"{place.name}: blob {digest}")
    chunks = place.client.blob(place.locate(path), digest, size=size, verify=False)
    with closing(chunks):
        for chunk in chunks:
            verifier.update(chunk)
            run.on_event(BytesMoved(digest, len(chunk)))
    verifier.finish()
    run.on_event(BlobDone(digest, size, size))


def read_manifest(place: RegistryTarget, path: str, digest: Digest) -> None:
    """Read a manifest and hash it; raises as `RegistryClient.manifest` does."""
    RegistrySource(place.client, place.locate, place.name).manifest(path, digest)
