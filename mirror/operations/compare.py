"""What compares and changes nothing: `status`, `diff`, `verify` and `history`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, overload

from mirror.bundle.location import Location
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.documents import document
from mirror.errors import MirrorError, StatementError, counted
from mirror.events import PhaseAdvanced, PhaseStarted, Warned
from mirror.layout import publication_stage
from mirror.oci import Digest
from mirror.operations.trees import walk_tree
from mirror.release.discovery import discovery_images, has_index, index_of, with_components
from mirror.run import Run, gather
from mirror.sync import Finding, Inventory, union
from mirror.sync.observation import Depth, Failure, findings_of, items_of
from mirror.sync.observe import observe
from mirror.sync.plan import (
    Difference,
    TagChanges,
    Tags,
    changes,
    differ,
    missing_content,
    tags_of,
    tags_only,
)
from mirror.sync.publication_state import (
    PublicationState,
    Published,
    generations,
    reached,
    read_generation,
    read_state,
    read_tips,
)
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of tags, manifests and blobs. A blob counts once for each repository."""

    tags: int = 0
    manifests: int = 0
    blobs: int = 0

    @classmethod
    def of(cls, inventory: Inventory) -> Counts:
        """What an inventory has."""
        contents = inventory.repositories.values()
        kinds = ((len(one.tags), len(one.manifests), len(one.blobs)) for one in contents)
        return cls(*map(sum, zip(*kinds, strict=True)))

    def to_document(self) -> dict[str, int]:
        """As JSON values, for `--json`."""
        return document(self, "tags", "manifests", "blobs")


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How one registry stands.

    `declared` is what it states, `verified` what of that is there; `lag`, how many generations it
    is behind the highest, `publishing` an unfinished one, `reached` when it got to `generation`.
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
    reached: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether it holds all that it states, and no publication is under way."""
        return self.statement is not None and not (self.missing or self.failures or self.publishing)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        said = ("replica=name", "complete", "statement", "generation", "reached", "publishing")
        return document(self, *said, "lag", "declared", "verified", "missing", "failures")


@dataclass(frozen=True, slots=True)
class StatusReport:
    """How the registries stand that were asked."""

    replicas: tuple[ReplicaStatus, ...]

    @property
    def exit_code(self) -> int:
        """0: all complete and equal; 4: one is incomplete; 3: they state different things.

        A registry that could not be asked at all gives its own code (5, 6), before the others.
        """
        for failure in (failure for one in self.replicas for failure in one.failures):
            if failure.item == _WHOLE:
                return failure.error.exit_code
        if not all(one.complete for one in self.replicas):
            return 4
        return 3 if len({one.statement for one in self.replicas}) > 1 else 0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {"ok": self.exit_code == 0, **document(self, "replicas")}


_LOOKS = 3
"""How often a registry is asked that keeps changing, before the last answer is reported."""

_WHOLE = "the registry as a whole"


def status(
    trees: Sequence[RegistryTree], *, thorough: bool = False, run: Run | None = None
) -> StatusReport:
    """Compare each registry with its own statement, all at once.

    One HEAD per tag and per untagged manifest; `thorough` asks about every blob too. What fails at
    one registry is in its status and is not raised.

    Raises:
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    run.on_event(PhaseStarted(f"asking {counted(len(trees), 'registry')} what they hold"))
    depth, wide = Depth.AUDIT if thorough else Depth.LISTED, run.with_jobs(max(1, len(trees)))
    found = gather(trees, lambda tree: _status(tree.within(run), depth, run), run=wide)
    highest = max((one.generation or 0 for one in found), default=0)
    return StatusReport(tuple(replace(one, lag=highest - (one.generation or 0)) for one in found))


def _status(tree: RegistryTree, depth: Depth, run: Run) -> ReplicaStatus:
    try:
        for _ in range(_LOOKS):
            state = read_state(tree)
            found = _held_against(tree, state, depth, run)
            if found.complete or read_tips(tree) == state.tips:
                break  # nothing was published meanwhile
        return found
    except MirrorError as err:
        failure = Failure(tree.name, _WHOLE, err)
        return ReplicaStatus(tree.name, None, None, None, Counts(), Counts(), (), (failure,))


def _held_against(
    tree: RegistryTree, state: PublicationState, depth: Depth, run: Run
) -> ReplicaStatus:
    current, pending = state.current, state.pending
    stated = current.statement.inventory if current else Inventory()
    found = observe(tree.target(run), stated, depth, run=run)
    rest = missing_content(stated, found.held)
    items = [one for path, content in rest.repositories.items() for one in items_of(path, content)]
    # In the report tags come before all manifests, and those before all blobs.
    missing = sorted(items, key=lambda item: (item.tag is None, item.is_blob))
    return ReplicaStatus(
        tree.name,
        current.digest if current else None,
        current.statement.generation if current else None,
        pending.statement.generation if pending else None,
        Counts.of(stated),
        Counts.of(missing_content(stated, rest)),
        tuple(map(str, missing)),
        (
            *(Failure(tree.name, "its statement", StatementError(one)) for one in state.notices),
            *found.failures,
        ),
        reached=reached(tree, current) if current else None,
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
            "a": document(self, "place=a", "inventory=a_digest"),
            "b": document(self, "place=b", "inventory=b_digest"),
            **self.difference.to_document(),
            **document(self, "failures"),
        }


def diff(
    a: Location | RegistryTree, b: Location | RegistryTree, *, run: Run | None = None
) -> DiffReport:
    """Compare two places: a bundle's folder, a file with an inventory, or a registry.

    A bundle counts as having the index of modules that a push makes, if the other place has one.
    The digest of that place then leaves this index out: equal places have the bundle's digest.

    Raises:
        InputError, DamagedBundleError: a file or folder holds no inventory.
        RegistryError: a registry does not say what it has.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    failures: list[Failure] = []

    def seen(place: Location | RegistryTree) -> tuple[str, Inventory]:
        if not isinstance(place, RegistryTree):
            return str(place), read_inventory(place)
        run.on_event(PhaseStarted(f"looking at {place.name}"))
        tree = place.within(run)
        state = read_state(tree)
        # A statement spares reading manifests, and names those that no tag leads to. No more: a tag
        # that somebody moved is seen where it is.
        found = walk_tree(tree, state.stated, run=run).complete()
        failures.extend(found.failures)
        return tree.name, found.held

    (a_name, ours), (b_name, theirs) = seen(a), seen(b)
    a_digest, b_digest = ours.digest(), theirs.digest()
    if has_index(theirs) and not has_index(ours) and not isinstance(a, RegistryTree):
        index = index_of(ours, tags_of(theirs))
        ours, b_digest = union([ours, index]), missing_content(theirs, index).digest()
    elif has_index(ours) and not has_index(theirs) and not isinstance(b, RegistryTree):
        index = index_of(theirs, tags_of(ours))
        theirs, a_digest = union([theirs, index]), missing_content(ours, index).digest()
    return DiffReport(a_name, b_name, a_digest, b_digest, differ(ours, theirs), tuple(failures))


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
            **document(self, "target", "deep", "inventory=digest", "findings"),
            **self.inventory.counts(),
        }


@overload
def verify(
    bundle: BundleReader, *, key: bytes | None = None, quick: bool = False, run: Run | None = None
) -> BundleReport: ...
@overload
def verify(
    bundle: BundleReader, *, against: RegistryTree, deep: bool = False, run: Run | None = None
) -> RegistryReport: ...
def verify(
    bundle: BundleReader,
    *,
    against: RegistryTree | None = None,
    deep: bool = False,
    key: bytes | None = None,
    quick: bool = False,
    run: Run | None = None,
) -> BundleReport | RegistryReport:
    """Check every byte of a bundle, or that a registry holds all of it.

    Args:
        against: a registry that must hold every tag, manifest and blob of the bundle, and the index
            by which clusters find its modules. Only the structure of the bundle is read then.
        deep: everything in the registry is also read back and hashed.
        key: a public key in PEM, whose holder must have signed the bundle.
        quick: check only the structure of the bundle, and sizes.

    Raises:
        DamagedBundleError: the bundle does not say what it holds.
        CancelledError: `run` was stopped.
    """
    if against is None:
        report = verify_bundle(bundle, run=run, key=key, quick=quick)
        return replace(report, findings=with_components(report.findings, bundle, bundle.carried))
    run = Run.of(run)
    tree = against.within(run)
    bundle.follow(run)
    inventory = bundle.inventory()
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    index = tags_only(tags_of(discovery_images(inventory).inventory()))
    wanted = union([inventory, index_of(inventory, tags_of(tree.target(run).held(index)))])
    run.on_event(PhaseStarted("comparing with the registry"))
    found = observe(tree, wanted, Depth.DEEP if deep else Depth.AUDIT, run=run)
    findings = with_components(findings_of(wanted, found), bundle, bundle.carried)
    return RegistryReport(str(tree.root), inventory, inventory.digest(), deep, findings)


# -- the generations of a registry ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generation:
    """One state that a registry reached, or, if `interrupted`, was to reach.

    `changes` is the difference from the generation before, `statement` the digest of the artifact,
    `restores` the earlier generation that a rollback put back by this one, and `reached` when this
    registry got to it (`publication_state.reached`).
    """

    number: int
    inventory: Digest
    statement: Digest
    tags: int
    changes: TagChanges
    restores: int | None
    tool: str
    current: bool = False
    interrupted: bool = False
    reached: datetime | None = None

    @property
    def versions(self) -> tuple[str, ...]:
        """Versions that came, as `repository:tag`."""
        return _of_stage(1, self.changes.added)

    @property
    def channels(self) -> tuple[str, ...]:
        """Release channels that came or turned, as `repository:channel`."""
        return _of_stage(2, (*self.changes.added, *self.changes.changed))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        named = ("generation=number", "reached", "current", "interrupted", "restores", "inventory")
        kinds = ("added", "changed", "removed")
        return {
            **document(self, *named, "digest=statement", "tool", "versions", "channels"),
            "tags": {"total": self.tags, **{one: len(getattr(self.changes, one)) for one in kinds}},
        }


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The generations of a registry, newest first; it keeps `older` more, which were not read."""

    target: str
    generations: tuple[Generation, ...]
    older: int = 0

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        numbers = {one.number: one for one in self.generations}
        return {
            "current": next((n for n, one in numbers.items() if one.current), None),
            "interrupted": next((n for n, one in numbers.items() if one.interrupted), None),
            **document(self, "target", "generations", "older"),
        }


def history(
    tree: RegistryTree, *, last: int | None = None, run: Run | None = None
) -> HistoryReport:
    """Read the `last` generations (all, if None) whose statements the registry keeps.

    A warning names each that cannot be read and is left out.

    Raises:
        UnreachableError, DeniedError: the registry does not answer.
        InputError: a statement has a newer schema.
    """
    run = Run.of(run)
    tree = tree.within(run)
    tree.client.ping()
    state = read_state(tree, run)
    kept = generations(tree)
    # One more than is shown, to say what the first of them changed.
    read = kept if last is None else kept[-(last + 1) :]
    run.on_event(PhaseStarted("reading generations", len(read)))
    found: list[tuple[Generation, Tags]] = []
    for number in read:
        try:
            published = read_generation(tree, number)
        except StatementError as err:
            run.on_event(Warned(str(err)))
            published = None
        run.on_event(PhaseAdvanced())
        if published is not None:
            one, tags = _generation(published, state)
            found.append((replace(one, reached=reached(tree, published)), tags))
    if state.pending and not any(one.interrupted for one, _ in found):
        found.append(_generation(state.pending, state))
    shown = [
        replace(one, changes=changes(before, tags)) for (_, before), (one, tags) in pairwise(found)
    ]
    if found and (last is None or len(kept) <= last):
        shown.insert(0, replace(found[0][0], changes=changes({}, found[0][1])))
    older = len(set(kept).difference(one.number for one in shown))
    return HistoryReport(tree.name, tuple(reversed(shown)), older)


def _generation(published: Published, state: PublicationState) -> tuple[Generation, Tags]:
    """What history keeps of a statement, with its tags. Its graph is let go."""
    statement, digest = published.statement, published.digest
    tags = tags_of(statement.inventory)
    one = Generation(
        statement.generation,
        statement.inventory.digest(),
        digest,
        sum(map(len, tags.values())),
        TagChanges(),
        statement.restores,
        statement.tool,
        current=state.current is not None and state.current.digest == digest,
        interrupted=state.pending is not None and state.pending.digest == digest,
    )
    return one, tags


def _of_stage(stage: int, tags: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Those of `tags` that a publication turns in this stage: 1 for versions, 2 for channels."""
    return tuple(f"{path}:{tag}" for path, tag in tags if publication_stage(path, tag) == stage)
