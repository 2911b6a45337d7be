"""Push: read the bundle where it lies, ask the registry what it has, carry the difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirror.bundle.reader import BundleReader
from mirror.events import PhaseStarted, Warned
from mirror.layout import TargetTree, publication_stage
from mirror.oci import Digest
from mirror.operations.pull import count, tool_name
from mirror.operations.push_plan import content_for, held_for, wanted_from
from mirror.registry import RegistryWriter, UploadJournal
from mirror.run import Run
from mirror.sync import Inventory, Plan, TransferReport, make_plan, transfer
from mirror.sync.phase import check_unmoved, finish
from mirror.sync.publish import Published, begin, check_unchanged, complete, read_standing
from mirror.sync.registry import RegistryTarget
from mirror.sync.statement import REPOSITORY
from mirror.sync.succession import next_statement


@dataclass(frozen=True, slots=True)
class PushReport:
    """A finished push: the target now holds all of `inventory`.

    `published` is what the target states now; `new`, whether this push stated it.
    `bases` are the inventories that deltas among what was pushed were made against.
    """

    target: str
    inventory: Inventory
    digest: Digest
    plan: Plan
    done: TransferReport
    published: Published
    new: bool
    bases: tuple[Digest, ...] = ()

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            **({"delta": {"bases": [str(base) for base in self.bases]}} if self.bases else {}),
            "uploaded": {
                "blobs": sum(step.mount_from is None for step in self.plan.blobs),
                "bytes": self.done.sent,
                "manifests": self.done.manifests,
                "tags": self.done.tags,
            },
            "published": {
                "generation": self.published.statement.generation,
                "inventory": str(self.published.statement.inventory.digest()),
                "digest": str(self.published.digest),
                "new": self.new,
            },
            **count(self.inventory),
        }


def push(
    reader: BundleReader,
    client: RegistryWriter,
    tree: TargetTree,
    *,
    key: bytes | None = None,
    journal: UploadJournal | None = None,
    check_access: bool = True,
    run: Run | None = None,
) -> PushReport:
    """Make the registry hold all that the bundle holds, below the tree's root.

    Nothing is unpacked. Blobs come first, then manifests, by digest. When all of them are there a
    short phase follows, in which the tags turn: release channels when all images are tagged, and
    last of all the index of modules, packages and plugins. Before it the new statement of what the
    registry holds is announced, after it stated (`mirror.sync.publish`). A push that was stopped
    anywhere is completed by running it again, and carries only what is lacking.
    With `key`, a public key in PEM, the bundle must have been signed by its holder.
    With `journal` a blob that was half sent when a process died is continued. Unless
    `check_access` is False, the right to write is proved before the first byte moves.

    What a delta leaves out must be in the registry already; blobs may be there in another
    repository, from which they are mounted.

    Raises:
        MissingBaseError: the registry lacks what a delta leaves out; nothing was written.
        SignatureError: the bundle was not signed by the holder of `key`; nothing was written.
        DamagedBundleError: the bundle is not whole; nothing was written.
        DeniedError: the registry may not be written to; nothing was written.
        IncompleteError: some content could not be brought over; no tag names what lacks.
        ConflictError: somebody else changed the same tags meanwhile.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    client = client.within(run)
    bundle, index, wanted = wanted_from(reader, key, run)
    target = RegistryTarget(
        client,
        tree.locate,
        f"registry {tree.root}",
        run=run,
        journal=journal,
    )
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    run.on_event(PhaseStarted("comparing with the registry"))
    standing = read_standing(client, tree.locate)
    for notice in standing.notices:
        run.on_event(Warned(notice))
    held = held_for(reader, target, bundle, wanted)
    plan = make_plan(wanted, held, stage=publication_stage)
    statement = next_statement(standing, wanted, held, tool=tool_name())
    published = standing.newest

    def before_tags() -> None:
        nonlocal published
        check_unmoved(target, plan, held)
        artifact = statement.artifact() if statement is not None else None
        if artifact is not None or standing.pending is not None:
            goal = artifact.manifest.digest if artifact is not None else None
            check_unchanged(client, tree.locate, standing, goal)
        finish(standing, target, stage=publication_stage, run=run)
        if statement is not None and artifact is not None:
            begin(client, tree.locate, artifact)
            published = Published(artifact.manifest.digest, statement)

    try:
        if check_access:
            target.check_access(plan, *([REPOSITORY] if statement is not None else []))
        done = transfer(
            plan,
            content_for(reader, index, target, held),
            target,
            run=run,
            before_tags=before_tags,
        )
    finally:
        target.release()
    assert published is not None, "without a statement before there is a new one"
    if statement is not None:
        complete(client, tree.locate, statement, published.digest)
    return PushReport(
        str(tree.root),
        bundle,
        bundle.digest(),
        plan,
        done,
        published,
        statement is not None,
        reader.bases,
    )
