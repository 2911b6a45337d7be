"""Audit: what a registry lacks of an inventory, told per item and by whom it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from mirror.errors import DigestMismatchError, IntegrityError, MirrorError, NotFoundError
from mirror.events import BlobDone, BytesMoved, OnEvent, PhaseStarted, TransferStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest, Verifier
from mirror.sync.findings import Dependents, Finding
from mirror.sync.inventory import Inventory
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.workers import DEFAULT_JOBS, for_each


def audit(
    wanted: Inventory,
    place: RegistryTarget,
    *,
    deep: bool = False,
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> tuple[Finding, ...]:
    """Every tag, manifest and blob of `wanted` that `place` lacks or, if `deep`, has damaged.

    The order is canonical. `deep` reads each distinct blob and manifest back once.

    Raises:
        DeniedError, UnreachableError: the registry does not answer.
        CancelledError: `cancel` was set.
    """
    on_event(PhaseStarted("comparing with the registry"))
    held = place.held(wanted)
    findings = list(_lacking(wanted, held, place.name))
    if deep:
        findings += _damaged(wanted, held, place, jobs, on_event, cancel or threading.Event())
    return tuple(findings)


def _lacking(wanted: Inventory, held: Inventory, name: str) -> Iterator[Finding]:
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path)
        if not there:
            lost = f"{len(content.tags)} tags, {len(content.manifests)} manifests and "
            lost += f"{len(content.blobs)} blobs are missing"
            tags = tuple(sorted(content.tags))
            yield Finding(name, f"nothing of this repository is there: {lost}", path, tags)
            continue
        dependents = Dependents(content)

        def finding(
            problem: str, digest: Digest, dependents: Dependents = dependents, path: str = path
        ) -> Finding:
            return Finding(name, problem, path, dependents.tags(digest), digest)

        for blob in sorted(set(content.blobs) - set(there.blobs)):
            yield finding(f"blob {blob} is missing", blob)
        for manifest in sorted(set(content.manifests) - set(there.manifests)):
            yield finding(f"manifest {manifest} is missing", manifest)
        for tag, digest in sorted(content.tags.items()):
            named = there.tags.get(tag)
            if named is None:
                yield Finding(name, f"the tag is missing ({digest})", path, (tag,), digest)
            elif named != digest:
                problem = f"the tag names {named} instead of {digest}"
                yield Finding(name, problem, path, (tag,), digest)


def _damaged(
    wanted: Inventory,
    held: Inventory,
    place: RegistryTarget,
    jobs: int,
    on_event: OnEvent,
    cancel: threading.Event,
) -> Iterator[Finding]:
    """Read back what is there. A registry stores equal blobs once, so one reading tells of all."""
    source = RegistrySource(place.client, place.locate, place.name)
    blobs: dict[Digest, tuple[str, int]] = {}
    manifests: dict[Digest, str] = {}
    for path, content in sorted(held.repositories.items()):
        blobs.update((digest, (path, size)) for digest, size in content.blobs.items())
        manifests.update((digest, path) for digest in content.manifests)
    sizes = sum(size for _, size in blobs.values())
    on_event(TransferStarted(len(blobs), sizes, len(manifests), 0))

    def read_blob(digest: Digest, path: str, size: int) -> None:
        verifier = Verifier(digest, size, f"blob {digest}")
        with closing(source.blob(path, digest, size)) as chunks:
            for chunk in chunks:
                verifier.update(chunk)
                on_event(BytesMoved(digest, len(chunk)))
        verifier.finish()
        on_event(BlobDone(digest, size, size))

    def read_manifest(digest: Digest, path: str) -> None:
        source.manifest(path, digest)

    readings: list[tuple[Digest, Callable[[], None]]] = [
        (digest, partial(read_blob, digest, path, size)) for digest, (path, size) in blobs.items()
    ]
    readings += [
        (digest, partial(read_manifest, digest, path)) for digest, path in manifests.items()
    ]
    failure: MirrorError | None = None
    with closing(
        for_each(readings, lambda reading: reading[1](), jobs=jobs, cancel=cancel)
    ) as outcomes:
        for (digest, _), outcome in outcomes:
            if isinstance(outcome, IntegrityError | NotFoundError):
                yield from _everywhere(wanted, place.name, digest, outcome)
            else:
                failure = failure or outcome
    if failure is not None:
        raise failure  # not inside the loop: leaving that early sets the caller's flag


def _everywhere(
    wanted: Inventory, name: str, digest: Digest, error: MirrorError
) -> Iterator[Finding]:
    """One finding per repository that needs the damaged content."""
    problem = str(error)
    if isinstance(error, DigestMismatchError):
        # A push alone would find it there and leave it as it is.
        problem = (
            f"what is there as {digest} is damaged, it hashes to {error.actual}; delete it in the "
            "registry, then push again"
        )
    for path, content in sorted(wanted.repositories.items()):
        if digest in content.blobs or digest in content.manifests:
            yield Finding(name, problem, path, Dependents(content).tags(digest), digest)
