"""Works that several machines share: each carries its share, and who finds all there completes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mirror.bundle.bucket import Bucket
from mirror.bundle.folder import AS_USUAL, Packing
from mirror.bundle.format import PARTIAL_SEAL
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal, parse_seal
from mirror.bundle.shards import Agreed, ShardPlace
from mirror.bundle.share import Shard, owners
from mirror.bundle.writer import BundleWriter
from mirror.documents import document
from mirror.errors import ChangedLeftoversError, ConflictError, IncompleteError
from mirror.events import PhaseStarted, Warned
from mirror.oci import Digest
from mirror.operations.pull import PullPlan, fill
from mirror.operations.push import PushWork
from mirror.operations.push_reports import PushPlan, PushShardReport
from mirror.operations.trust import refuse_downgrade
from mirror.run import Run
from mirror.sync import Inventory, Plan, Source, make_plan
from mirror.sync.failover import FailoverSource, Holder
from mirror.sync.observation import Depth
from mirror.sync.observe import Verification, check_content
from mirror.sync.plan import by_archive, missing_content
from mirror.sync.publication import Publication
from mirror.sync.publication_state import PublicationState, read_state
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree

_MOST_LOOKS = 4
"""How often the end of a push is tried while other shards come to it, too."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a machine did of a pull that several share. `fetched` is bytes of blobs.

    `summed` are the files that it read back; `awaited` those that need what others have still to
    send: none if the bundle `is_sealed`.
    """

    bundle: str
    shard: Shard
    fetched: int
    summed: tuple[str, ...]
    awaited: tuple[str, ...]

    @property
    def is_sealed(self) -> bool:
        return not self.awaited

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        own = document(self, "bundle", "fetched", "summed", "sealed=is_sealed", "awaited")
        return {**own, "shard": str(self.shard)}


def pull_shard(
    bucket: Bucket,
    shard: Shard,
    asked: Mapping[str, Any],
    plan: Callable[[], PullPlan],
    source: Source,
    *,
    packing: Packing = AS_USUAL,
    run: Run | None = None,
) -> ShardReport:
    """Carry a share of the bundle that several machines make in a bucket, and seal it if all of it
    is there then.

    The first calls `plan`, and puts down what all go by. All must be `asked` for the same (JSON
    values). A shard that was stopped is run again, and carries only what lacks. The bundle is, byte
    for byte, what one machine makes of that plan.

    Raises:
        InputError: something else is there, or is asked for, or `packing` compresses or does not
            resume.
        ConflictError: what all had agreed upon was given up.
        DamagedBundleError: what shards have put down there is not theirs.
        SignatureError: it is not signed with the key of `packing`.
        IntegrityError: what lies in the bucket is not what was sent.
        IncompleteError: some content could not be fetched.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    place = ShardPlace(bucket, shard, asked, packing, run)
    sealed = ShardReport(bucket.where, shard, 0, (), ())
    if place.is_sealed():
        run.on_event(Warned(f"{bucket.where} holds this bundle already; nothing was written"))
        return sealed
    agreed = place.agreed()
    if agreed is None:
        planned = plan()
        agreed = place.agree(planned._seal, planned._files)
        if place.is_sealed():  # by the others, while this one planned
            return sealed
    seal, taken = parse_seal(agreed.sealed, PARTIAL_SEAL), list[int]()
    try:
        summed = _fill(place, seal, agreed, source, taken, run)
    except ChangedLeftoversError as err:
        run.on_event(Warned(f"{err.problem}; what lacks of them is fetched anew"))
        summed = _fill(place, seal, agreed, source, taken, run)
    return ShardReport(bucket.where, shard, sum(taken), tuple(summed), tuple(place.seal()))


def _fill(
    place: ShardPlace, seal: Seal, agreed: Agreed, source: Source, taken: list[int], run: Run
) -> list[str]:
    with BundleWriter(place, seal, agreed.files, place.packing) as writer:
        fill(writer, seal.carried, source, taken, run)
        writer.check_replaced()
        return place.close_files()


# -- pushes ----------------------------------------------------------------------------------------


def push_shard(
    bundle: BundleReader,
    tree: RegistryTree,
    shard: Shard,
    *,
    key: bytes | None = None,
    check_access: bool = True,
    check_blobs: bool = False,
    verification: Verification = Verification.TAGS,
    run: Run | None = None,
) -> PushShardReport:
    """Send a registry one of several shares of a bundle's blobs. If all blobs are there then, end
    the push: manifests, tags and the statement, as `mirror.operations.push.push` does.

    Which share is whose follows from the bundle alone (`owners_of`). A shard that was stopped is
    run again, and sends only what lacks. Each must have succeeded once; several may come to the end
    at the same time. Arguments and errors are those of a push.

    Raises:
        IncompleteError: also, the registry has accepted blobs of this share and does not have them.
    """
    run = Run.of(run)
    tree = tree.within(run)
    depth = Depth.AUDIT if check_blobs else Depth.LISTED
    work = PushWork.of(bundle, key, run, check_access, depth, verification, whole=False)
    whose = owners_of(work, shard.count)
    plan, held = _plan_share(work, tree, shard, whose)
    sent = 0
    if plan.blobs:
        target = tree.target(run)
        places: list[Source | Holder] = [bundle, work.index, Holder(tree.source(), held)]
        source = FailoverSource(places, work.wanted, on_event=run.on_event)
        try:
            if check_access:
                target.check_access(plan, REPOSITORY)
            done = Publication(tree, PublicationState()).carry_out(  # which turns no tag
                plan,
                source,
                target,
                before_tags=lambda _interim: check_content(tree, plan, verification, run),
                run=run,
            )
            sent = done.done.sent
        finally:
            target.release()
    for looks_left in reversed(range(_MOST_LOOKS)):
        state = work.look(tree)
        goal = work.goal(tree, state)
        rest = missing_content(work.wanted, goal.held).repositories.values()
        awaited = sorted({whose[digest] for content in rest for digest in content.blobs})
        if shard.number in awaited:
            raise IncompleteError(
                f"{tree.name} accepted all blobs of shard {shard} and does not have all of them; "
                "look for a cache or a proxy in front that keeps uploads to itself, and for a "
                "garbage collector that runs there; then run this shard again",
                (),
            )
        finished = None
        if not awaited:
            try:
                finished = work.finish(tree, state, goal)
            except ConflictError:  # another shard came to the end at the same time
                if not looks_left:
                    raise
                continue
        break
    return PushShardReport(tree.name, shard, len(plan.blobs), sent, tuple(awaited), finished)


def plan_push_shard(
    bundle: BundleReader,
    tree: RegistryTree,
    shard: Shard,
    *,
    key: bytes | None = None,
    check_blobs: bool = False,
    run: Run | None = None,
) -> PushPlan:
    """Say which blobs `push_shard` would send. The registry is only read. Errors as there."""
    run = Run.of(run)
    tree = tree.within(run)
    depth = Depth.AUDIT if check_blobs else Depth.LISTED
    work = PushWork.of(bundle, key, run, depth=depth, whole=False)
    plan, _ = _plan_share(work, tree, shard, owners_of(work, shard.count))
    return PushPlan(tree, work.bundle, plan, shard=shard)


def owners_of(work: PushWork, count: int) -> Mapping[Digest, int]:
    """Which of `count` shards sends each blob that a push wants: by the bundle alone.

    Neighbours in it are one share. What the bundle leaves to its base counts no byte.
    """
    carried = work.reader.carried().blob_sizes()
    digests = [step.digest for step in by_archive(make_plan(work.wanted, Inventory())).blobs]
    numbers = owners([carried.get(digest, 0) for digest in digests], count)
    return dict(zip(digests, numbers, strict=True))


def _plan_share(
    work: PushWork, tree: RegistryTree, shard: Shard, whose: Mapping[Digest, int]
) -> tuple[Plan, Inventory]:
    """What this shard has to send, and what the registry has of what concerns it."""
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask at once
    work.run.on_event(PhaseStarted("comparing with the registry"))
    own = Inventory(
        {
            path: replace(
                content,
                blobs={
                    digest: size
                    for digest, size in content.blobs.items()
                    if whose[digest] == shard.number
                },
            )
            for path, content in work.wanted.repositories.items()
        }
    )
    target = tree.target(work.run)
    held = work.held(target) if work.reader.bases else target.held(own, work.depth)
    quiet, state = work.run.quietly(), read_state(tree)  # the end warns
    refuse_downgrade(tree, state, held, work.wanted, strict=work.strict, run=quiet)
    return Plan(by_archive(make_plan(own, held)).blobs), held
