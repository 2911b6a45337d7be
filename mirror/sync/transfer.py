"""Transfer: the only place where bytes move. Carries a plan from a source to a target."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import IncompleteError, MirrorError
from mirror.events import BlobDone, BytesMoved, ManifestDone, OnEvent, TagDone, TransferStarted
from mirror.events import ignore as ignore_events
from mirror.sync.content import BlobContent, Source, Target
from mirror.sync.plan import CopyBlob, Plan, PutManifest, PutTag
from mirror.sync.workers import DEFAULT_JOBS, for_each

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
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
    before_tags: Callable[[], None] = lambda: None,
) -> TransferReport:
    """Carry out `plan`: blobs, then manifests children first, then tags stage by stage.

    `before_tags` is called once, when all blobs and manifests are in place and no tag has turned.

    Within a step of that order items run in `jobs` threads. An item that fails does not stop its
    siblings, but nothing that comes after them begins, so a tag never names what is not there.

    Raises:
        IncompleteError: some items failed; it lists each with its reason.
        CancelledError: `cancel` was set; what is done is done, and a new plan leaves it out.
    """
    cancel = cancel or threading.Event()

    def copy(step: CopyBlob) -> int:
        content = BlobContent(
            source,
            step.source,
            step.digest,
            step.size,
            cancelled=cancel.is_set,
            on_bytes=lambda count: on_event(BytesMoved(step.digest, count)),
        )
        sent = target.put_blob(step, content)
        on_event(BlobDone(step.digest, step.size, sent))
        return sent

    def put(step: PutManifest) -> int:
        target.put_manifest(step.repository, source.manifest(step.repository, step.digest))
        on_event(ManifestDone(step.repository, step.digest))
        return 0

    def name(step: PutTag) -> int:
        target.put_tag(step.repository, step.tag, source.manifest(step.repository, step.digest))
        on_event(TagDone(step.repository, step.tag, step.digest))
        return 0

    def carry(steps: Sequence[Step], work: Callable[[Step], int]) -> int:
        sent, tried, failures = 0, 0, []
        with closing(for_each(steps, work, jobs=jobs, cancel=cancel)) as outcomes:
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

    on_event(
        TransferStarted(
            blobs=len(plan.blobs),
            size=sum(step.size for step in plan.blobs),
            manifests=plan.manifest_count,
            tags=plan.tag_count,
        )
    )
    sent = carry(plan.blobs, copy)
    for wave in plan.manifests:
        carry(wave, put)
    before_tags()
    for stage in plan.tags:
        carry(stage, name)
    return TransferReport(len(plan.blobs), sent, plan.manifest_count, plan.tag_count)


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
