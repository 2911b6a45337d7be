"""Compare without changing anything: replicas with their statements, two places with each other,
and a bundle or registry with what a bundle promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.errors import MirrorError, StatementError
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.operations.trees import see_registry
from mirror.release.discovery import discovery_images, has_index, index_of
from mirror.run import Run, gather
from mirror.sync import Finding, Inventory, union
from mirror.sync.observation import Depth, Failure, findings_of
from mirror.sync.observe import observe
from mirror.sync.plan import Difference, differ, lacking, tags_of, tags_only
from mirror.sync.publication_state import PublicationState, read_state, read_tips
from mirror.sync.tree import RegistryTree

_DIFFER, _INCOMPLETE = 3, 4


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of tags, manifests and blobs. A blob counts once per repository that needs it."""

    tags: int = 0
    manifests: int = 0
    blobs: int = 0

    @classmethod
    def of(cls, inventory: Inventory) -> Counts:
        """What an inventory has."""
        contents = inventory.repositories.values()
        return cls(
            sum(len(one.tags) for one in contents),
            sum(len(one.manifests) for one in contents),
            sum(len(one.blobs) for one in contents),
        )

    def __sub__(self, other: Counts) -> Counts:
        return Counts(
            self.tags - other.tags, self.manifests - other.manifests, self.blobs - other.blobs
        )

    def to_document(self) -> dict[str, int]:
        """As JSON values, for `--json`."""
        return {"tags": self.tags, "manifests": self.manifests, "blobs": self.blobs}


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How one registry stands.

    `declared` is what it states, `verified` what of that it answered for; `lag` is how many
    generations it is behind the highest among those asked. `publishing` is the generation of a
    publication that was begun and not finished.
    """

    name: str
    statement: Digest | None
    generation: int | None
    publishing: int | None
    declared: Counts
    verified: Counts
    missing: tuple[str, ...]
    failures: tuple[Failure, ...]
    lag: int = 0

    @property
    def complete(self) -> bool:
        """Whether it holds all that it states, and no publication is under way."""
        return self.statement is not None and not (self.missing or self.failures or self.publishing)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "replica": self.name,
            "complete": self.complete,
            "statement": str(self.statement) if self.statement else None,
            "generation": self.generation,
            "publishing": self.publishing,
            "lag": self.lag,
            "declared": self.declared.to_document(),
            "verified": self.verified.to_document(),
            "missing": list(self.missing),
            "failures": [failure.to_document() for failure in self.failures],
        }


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How the registries stand that were asked."""

    replicas: tuple[ReplicaStatus, ...]

    @property
    def exit_code(self) -> int:
        """0: all complete and equal; 4: one is incomplete; 3: they state different things.

        A registry that could not be asked at all gives its own code (5, 6), before the others.
        """
        for one in self.replicas:
            for failure in one.failures:
                if failure.item == _WHOLE:
                    return failure.error.exit_code
        if not all(one.complete for one in self.replicas):
            return _INCOMPLETE
        return _DIFFER if len({one.statement for one in self.replicas}) > 1 else 0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "ok": self.exit_code == 0,
            "replicas": [one.to_document() for one in self.replicas],
        }


_LOOKS = 3
"""How often a registry is asked that keeps changing, before the last answer is reported."""

_WHOLE = "the registry as a whole"


def status(
    trees: Sequence[RegistryTree],
    *,
    thorough: bool = False,
    run: Run | None = None,
) -> StatusReport:
    """Compare each registry with its own statement, all at once.

    One HEAD per tag and per manifest that no tag names; `thorough` asks about every blob too. What
    fails at one registry is in its status and is not raised.

    Raises:
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    run.on_event(PhaseStarted(f"asking {len(trees)} registries what they hold"))
    found = gather(
        trees,
        lambda tree: _status(tree.within(run), thorough=thorough, run=run),
        run=run.with_jobs(max(1, len(trees))),
    )
    highest = max((one.generation or 0 for one in found), default=0)
    return StatusReport(
        tuple(
            ReplicaStatus(
                one.name,
                one.statement,
                one.generation,
                one.publishing,
                one.declared,
                one.verified,
                one.missing,
                one.failures,
                highest - (one.generation or 0),
            )
            for one in found
        )
    )


def _status(tree: RegistryTree, *, thorough: bool, run: Run) -> ReplicaStatus:
    try:
        for _ in range(_LOOKS):
            standing = read_state(tree)
            found = _held_against(tree, standing, thorough=thorough, run=run)
            if found.complete or read_tips(tree) == standing.tips:
                break
            # Something was published while it was asked: what lacks may lack of what was before.
        return found
    except MirrorError as err:
        failure = Failure(tree.name, _WHOLE, err)
        return ReplicaStatus(tree.name, None, None, None, Counts(), Counts(), (), (failure,))


def _held_against(
    tree: RegistryTree,
    standing: PublicationState,
    *,
    thorough: bool,
    run: Run,
) -> ReplicaStatus:
    current, pending = standing.current, standing.pending
    stated = current.statement.inventory if current else Inventory()
    place = tree.target(run)
    found = observe(place, stated, Depth.AUDIT if thorough else Depth.LISTED, run=run)
    rest = lacking(stated, found.held)
    missing = [
        *(f"tag {p or '/'}:{t}" for p, c in rest.repositories.items() for t in c.tags),
        *(f"manifest {p or '/'}@{d}" for p, c in rest.repositories.items() for d in c.manifests),
        *(f"blob {p or '/'}@{d}" for p, c in rest.repositories.items() for d in c.blobs),
    ]
    declared = Counts.of(stated)
    return ReplicaStatus(
        tree.name,
        current.digest if current else None,
        current.statement.generation if current else None,
        pending.statement.generation if pending else None,
        declared,
        declared - Counts.of(rest),
        tuple(missing),
        (
            *(Failure(tree.name, "its statement", StatementError(one)) for one in standing.notices),
            *(Failure(tree.name, str(item), error) for item, error in found.unclear.items()),
        ),
    )


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Two places compared. `failures` is what could not be read and was not compared."""

    a: str
    b: str
    a_digest: Digest
    b_digest: Digest
    difference: Difference
    failures: tuple[Failure, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "equal": not self.difference and not self.failures,
            "a": {"place": self.a, "inventory": str(self.a_digest)},
            "b": {"place": self.b, "inventory": str(self.b_digest)},
            **self.difference.to_document(),
            "failures": [failure.to_document() for failure in self.failures],
        }


def diff(
    a: Path | RegistryTree,
    b: Path | RegistryTree,
    *,
    run: Run | None = None,
) -> DiffReport:
    """Compare two places: a bundle's folder, a file with an inventory, or a registry.

    A bundle counts as having the index of modules that a push makes, if the other place has one.

    Raises:
        InputError, DamagedBundleError: a file or folder holds no inventory.
        RegistryError: a registry does not say what it has.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    failures: list[Failure] = []

    def seen(place: Path | RegistryTree) -> tuple[str, Inventory]:
        if isinstance(place, Path):
            return str(place), read_inventory(place)
        run.on_event(PhaseStarted(f"looking at {place.name}"))
        inventory, unread = see_registry(place.within(run), run=run)
        failures.extend(unread)
        return place.name, inventory

    (a_name, ours), (b_name, theirs) = seen(a), seen(b)
    if has_index(theirs) and not has_index(ours) and isinstance(a, Path):
        ours = union([ours, index_of(ours, tags_of(theirs))])
    elif has_index(ours) and not has_index(theirs) and isinstance(b, Path):
        theirs = union([theirs, index_of(theirs, tags_of(ours))])
    return DiffReport(
        a_name, b_name, ours.digest(), theirs.digest(), differ(ours, theirs), tuple(failures)
    )


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """Whether a registry holds all of an inventory; no findings means that it does."""

    target: str
    inventory: Inventory
    digest: Digest
    deep: bool
    findings: tuple[Finding, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "ok": not self.findings,
            "target": self.target,
            "deep": self.deep,
            "inventory": str(self.digest),
            **self.inventory.counts(),
            "findings": [finding.to_document() for finding in self.findings],
        }


def verify(
    reader: BundleReader,
    *,
    key: bytes | None = None,
    quick: bool = False,
    run: Run | None = None,
) -> BundleReport:
    """Check every byte of a bundle (`mirror.bundle.verify.verify_bundle`), and with `key`, a public
    key in PEM, that its holder signed it; with `quick`, its structure and sizes only."""
    return verify_bundle(reader, run=run, key=key, quick=quick)


def verify_registry(
    reader: BundleReader,
    tree: RegistryTree,
    *,
    deep: bool = False,
    run: Run | None = None,
) -> RegistryReport:
    """Check that a registry holds every tag, manifest and blob of a bundle, and the index by which
    clusters find its modules, packages and plugins.

    The registry is asked for each; with `deep` each is also read back and hashed. Of the bundle
    its structure is read, and not every byte.

    Raises:
        DamagedBundleError: the bundle does not tell what it holds.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    inventory = reader.inventory()
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    target = tree.target(run)
    index = tags_only(tags_of(discovery_images(inventory).inventory()))
    wanted = union([inventory, index_of(inventory, tags_of(target.held(index)))])
    run.on_event(PhaseStarted("comparing with the registry"))
    found = observe(target, wanted, Depth.DEEP if deep else Depth.AUDIT, run=run)
    findings = findings_of(wanted, found)
    return RegistryReport(str(tree.root), inventory, inventory.digest(), deep, findings)
