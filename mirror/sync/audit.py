"""Audit: what a registry lacks of an inventory, told per item and by whom it is needed."""

from __future__ import annotations

from collections.abc import Iterator

from mirror.errors import DigestMismatchError, MirrorError, UnreachableError
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync.findings import Dependents, Finding
from mirror.sync.inventory import Inventory
from mirror.sync.readback import read_back
from mirror.sync.registry import RegistryTarget
from mirror.sync.tolerance import speaks_of_damage


def audit(
    wanted: Inventory,
    place: RegistryTarget,
    *,
    deep: bool = False,
    run: Run | None = None,
) -> tuple[Finding, ...]:
    """Every tag, manifest and blob of `wanted` that `place` lacks or, if `deep`, has damaged.

    The order is canonical. `deep` reads each distinct blob and manifest back once.

    Raises:
        DeniedError, UnreachableError: the registry does not answer.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    run.on_event(PhaseStarted("comparing with the registry"))
    held = place.held(wanted)
    findings = list(_lacking(wanted, held, place.name))
    if deep:
        findings += _damaged(wanted, held, place, run)
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
    run: Run,
) -> Iterator[Finding]:
    """Read back what is there."""
    wrong = read_back(held, place, run=run)
    broken = [error for error in wrong.values() if isinstance(error, UnreachableError)]
    if 2 * len(broken) > len(held.blob_sizes()):
        raise broken[0]  # hardly anything can be read: that is no matter of single blobs
    for digest, error in wrong.items():
        if not speaks_of_damage(error):
            raise error
        yield from _everywhere(wanted, place.name, digest, error)


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
