"""Transfer: the only place where bytes move. Carries a plan from a source to a target."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import IncompleteError, MirrorError, RegistryError
from mirror.events import (
    BlobDone,
    BytesMoved,
    ManifestDone,
    TagDone,
    TransferStarted,
    Warned,
)
from mirror.oci import Manifest
from mirror.run import Run
from mirror.sync.content import BlobContent, Source, Target
from mirror.sync.mending import mend
from mirror.sync.plan import CopyBlob, Plan, PutManifest, PutTag
from mirror.sync.workers import for_each

_log = logging.getLogger(__name__)

_MENDS = 3
"""How often what a manifest needs is brought again, before its refusal is believed."""
_PAUSE_S = 0.2
"""Between such attempts, where nothing proves to be lacking."""

Step = TypeVar("Step", CopyBlob, PutManifest, PutTag)


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a finished transfer did. `sent` is the bytes of blobs that moved."""

    blobs: int
    sent: int
    manifests: int
    tags: int


def transfer(
    plan: Plan,
    source: Source,
    target: Target,
    *,
    before_tags: Callable[[], None] = lambda: None,
    run: Run | None = None,
) -> TransferReport:
    """Carry out `plan`: blobs, then manifests children first, then tags stage by stage.

    `before_tags` is called once, when all blobs and manifests are in place and no tag has turned.

    Within a step of that order items run in `run.jobs` threads. An item that fails does not stop
    its siblings, but nothing that comes after them begins, so a tag never names what is not there.
    What a registry lost between a check and the manifest that needs it is brought again.

    Raises:
        IncompleteError: some items failed; it lists each with its reason.
        CancelledError: `run` was stopped; what is done is done, and a new plan leaves it out.
    """
    own = Run.of(run)

    def copy(step: CopyBlob) -> int:
        content = BlobContent(
            source,
            step.source,
            step.digest,
            step.size,
            on_bytes=lambda count: own.on_event(BytesMoved(step.digest, count)),
            run=own,
        )
        sent = target.put_blob(step, content)
        own.on_event(BlobDone(step.digest, step.size, sent))
        return sent

    def put_manifest(repository: str, manifest: Manifest) -> int:
        return settle(repository, manifest, lambda: target.put_manifest(repository, manifest))

    def put(step: PutManifest) -> int:
        sent = put_manifest(step.repository, source.manifest(step.repository, step.digest))
        own.on_event(ManifestDone(step.repository, step.digest))
        return sent

    indexes: dict[PutTag, Manifest] = {}  # tags of the stage under way that wait for others

    def name(step: PutTag) -> int:
        manifest = source.manifest(step.repository, step.digest)
        if manifest.is_index and step not in indexes:
            indexes[step] = manifest
            return 0
        sent = settle(
            step.repository, manifest, lambda: target.put_tag(step.repository, step.tag, manifest)
        )
        own.on_event(TagDone(step.repository, step.tag, step.digest))
        return sent

    def settle(repository: str, manifest: Manifest, act: Callable[[], None]) -> int:
        """Do `act`, which writes `manifest`, and mend what the target lost of it meanwhile."""
        sent = 0
        for _ in range(_MENDS):
            try:
                act()
            except RegistryError as err:
                if err.status not in (400, 404):
                    raise
                mended = mend(
                    repository,
                    manifest,
                    source,
                    target,
                    lambda child: put_manifest(repository, child),
                    run=own,
                )
                if mended is None:
                    if "MANIFEST_BLOB_UNKNOWN" not in err.codes:
                        raise
                    # All is there, and some of it was being written anew that very moment, by
                    # another process: distribution empties such a file first.
                    own.sleep(_PAUSE_S)
                    continue
                _log.debug("%s lost what %s needs: %s", target.name, manifest.digest, err)
                own.on_event(
                    Warned(
                        f"{target.name} no longer had all that {repository or '/'}@"
                        f"{manifest.digest} needs, so that was brought there again; "
                        "let no garbage collector run during a push"
                    )
                )
                sent += mended
            else:
                return sent
        act()
        return sent

    def carry(steps: Sequence[Step], work: Callable[[Step], int]) -> int:
        sent, tried, failures = 0, 0, []
        with closing(for_each(steps, work, run=own)) as outcomes:
            for step, outcome in outcomes:
                tried += 1
                if isinstance(outcome, MirrorError):
                    failures.append((_title(step), outcome))
                else:
                    sent += outcome
        if failures:
            left = len(steps) - tried
            raise IncompleteError(
                f"{len(failures)} of {len(steps)} {_KINDS[type(steps[0])]} could not be brought "
                f"from {source.name} to {target.name}"
                + (f", {left} more were not tried" if left else ""),
                sorted(failures, key=lambda failure: failure[0]),
            )
        return sent

    own.on_event(
        TransferStarted(
            blobs=len(plan.blobs),
            size=sum(step.size for step in plan.blobs),
            manifests=plan.manifest_count,
            tags=plan.tag_count,
        )
    )
    sent = carry(plan.blobs, copy)
    for wave in plan.manifests:
        sent += carry(wave, put)
    before_tags()
    for stage in plan.tags:
        sent += carry(stage, name)
        # Distribution writes a manifest's file anew for each of its tags, and takes no index that
        # names it at that moment. So what is in an index gets its tags before the index does.
        for tags in _parents_last(indexes):
            sent += carry(tags, name)
        indexes.clear()
    return TransferReport(len(plan.blobs), sent, plan.manifest_count, plan.tag_count)


def _parents_last(indexes: Mapping[PutTag, Manifest]) -> Iterator[Sequence[PutTag]]:
    """`indexes` in waves: no index comes before or along with one that it names."""
    left = dict(indexes)
    while left:
        there = {(step.repository, step.digest) for step in left}
        wave = [
            step
            for step, index in left.items()
            if all((step.repository, one.descriptor.digest) not in there for one in index.children)
        ]
        yield wave
        for step in wave:
            del left[step]


_MOST_PATHS = 3
_KINDS = {CopyBlob: "blobs", PutManifest: "manifests", PutTag: "tags"}


def _title(step: CopyBlob | PutManifest | PutTag) -> str:
    match step:
        case CopyBlob():
            paths = [path or "/" for path in step.into]
            more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
            return f"blob {step.digest} into {', '.join(paths[:_MOST_PATHS])}{more}"
        case PutManifest():
            return f"manifest {step.repository}@{step.digest}"
        case PutTag():
            return f"tag {step.repository}:{step.tag}"
