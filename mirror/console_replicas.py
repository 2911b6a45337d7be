"""What a person reads at the end of a sync, a comparison, a status or a clean-up."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.bundle.report_text import size_text
from mirror.console import duration_text
from mirror.operations import Outcome, ReplicaResult, SyncReport
from mirror.sync.survey import Failure

_MOST = 50

_OUTCOMES = {
    Outcome.EQUAL: "holds all of it",
    Outcome.SYNCED: "holds all of it now",
    Outcome.DIFFERS: "would be changed",
    Outcome.FAILED: "is not complete",
}


def sync_summary(report: SyncReport, elapsed_s: float) -> str:
    """How each replica stands, and everything that could not be done."""
    state = f"generation {report.generation}" if report.generation else "no stated inventory"
    failed = {one.name for one in report.replicas if one.outcome is Outcome.FAILED}
    good = len(report.replicas) - len(failed)
    if report.dry_run:
        title = f"This would be done, following {report.leader} ({state})"
    else:
        title = f"{good} of {len(report.replicas)} replicas hold what {report.leader} has ({state})"
    lines = [title]
    for one in report.replicas:
        lines += _replica_lines(one)
    if report.audit is not None:
        lines += _replica_lines(report.audit, leader=True)
    lines += _failure_lines(report.failures)
    if report.statement is not None:
        lines += ["", f"  statement {report.statement}"]
    lines.append(f"  done in {duration_text(elapsed_s)}")
    return "\n".join(lines)


def _replica_lines(one: ReplicaResult, *, leader: bool = False) -> list[str]:
    said = _OUTCOMES[one.outcome]
    if leader:
        said = {
            Outcome.EQUAL: "the leader holds what it states",
            Outcome.SYNCED: "the leader was mended",
            Outcome.DIFFERS: "the leader would be mended",
            Outcome.FAILED: "the leader does not hold what it states",
        }[one.outcome]
    lines = [f"  {one.name}: {said}"]
    if one.blobs or one.manifests or one.tags:
        lines.append(
            f"    {one.blobs} blobs ({size_text(one.sent)}), {one.manifests} manifests, "
            f"{one.tags} tags"
        )
    for title, items in (
        ("damaged", one.damaged),
        ("mended", one.healed),
        ("removed", one.removed),
        ("not at the leader, left alone (--prune removes)", one.extras),
    ):
        lines += _listed(title, [str(item) for item in items])
    return lines


def _failure_lines(failures: Sequence[Failure]) -> list[str]:
    return ["", *_listed("could not be done", [str(one) for one in failures])] if failures else []


def _listed(title: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = [f"      and {len(items) - _MOST} more"] if len(items) > _MOST else []
    return [f"    {title}: {len(items)}", *(f"      {item}" for item in items[:_MOST]), *more]
