"""Works that several machines share: each carries its share, whoever finds all there completes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.bundle.bucket import Bucket
from mirror.bundle.folder import AS_USUAL, Packing
from mirror.bundle.format import PARTIAL_SEAL
from mirror.bundle.seal import Seal, parse_seal
from mirror.bundle.shards import Agreed, ShardPlace
from mirror.bundle.share import Shard
from mirror.bundle.writer import BundleWriter
from mirror.documents import document
from mirror.errors import ChangedLeftoversError
from mirror.events import Warned
from mirror.operations.pull import PullPlan, fill
from mirror.run import Run
from mirror.sync import Source


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
