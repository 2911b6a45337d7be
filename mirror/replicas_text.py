"""What a person reads at the end of a sync, a comparison, a status or a clean-up."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.bundle.parts import size_text
from mirror.console import duration_text
from mirror.operations.compare import DiffReport, ReplicaStatus, StatusReport
from mirror.operations.prune import PruneReport
from mirror.operations.results import Outcome, ReplicaResult
from mirror.operations.sync import SyncReport
from mirror.sync.difference import TagDifference
from mirror.sync.observation import Failure

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
        lines += _replica_lines(one, dry_run=report.dry_run)
    if report.audit is not None:
        lines += _replica_lines(report.audit, leader=True)
    lines += _failure_lines(report.failures)
    if report.statement is not None:
        lines += ["", f"  statement {report.statement}"]
    lines.append(f"  done in {duration_text(elapsed_s)}")
    return "\n".join(lines)


def _replica_lines(one: ReplicaResult, *, leader: bool = False, dry_run: bool = False) -> list[str]:
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
    extras = f"not at the leader, {'' if dry_run else 'left alone; '}--prune removes it"
    if leader:
        extras = "not stated, so no replica gets them (`mirror push` of their bundle states them)"
    for title, items in (
        ("damaged", one.damaged),
        ("mended", one.healed),
        ("removed", one.removed),
        (extras, one.extras),
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


def diff_summary(report: DiffReport, elapsed_s: float) -> str:
    """What two places hold differently: `-` only in A, `+` only in B, `~` in both, otherwise."""
    found = report.difference
    if not found and not report.failures:
        return (
            f"{report.a} and {report.b} hold the same\n"
            f"  inventory {report.a_digest}\n  compared in {duration_text(elapsed_s)}"
        )
    lines = [f"--- {report.a}", f"+++ {report.b}"]
    repository: str | None = None
    for one in found.tags:
        if one.repository != repository:
            repository = one.repository
            lines.append(f"  {repository or '/'}")
        lines.append(f"    {_tag_line(one)}")
    for sign, manifests in (("-", found.our_manifests), ("+", found.their_manifests)):
        lines += (f"  {sign} {path or '/'}@{digest} (no tag)" for path, digest in manifests)
    lines += [
        "",
        (
            f"  {len(found.tags)} tags differ; blobs: {size_text(found.only_ours)} only in A, "
            f"{size_text(found.only_theirs)} only in B"
        ),
        *_failure_lines(report.failures),
        f"  compared in {duration_text(elapsed_s)}",
    ]
    return "\n".join(lines)


def _tag_line(one: TagDifference) -> str:
    if one.theirs is None:
        return f"- {one.tag}  {size_text(one.our_size)}  {one.ours}"
    if one.ours is None:
        return f"+ {one.tag}  {size_text(one.their_size)}  {one.theirs}"
    sizes = f"{size_text(one.our_size)} → {size_text(one.their_size)}"
    return f"~ {one.tag}  {sizes}  {one.ours} → {one.theirs}"


def status_summary(report: StatusReport, elapsed_s: float) -> str:
    """How complete each registry is."""
    complete = sum(one.complete for one in report.replicas)
    lines = [f"{complete} of {len(report.replicas)} replicas are complete"]
    for one in report.replicas:
        lines += _status_lines(one)
    if len({one.statement for one in report.replicas}) > 1:
        lines.append("  they do not state the same: `mirror sync` makes them equal")
    lines.append(f"  asked in {duration_text(elapsed_s)}")
    return "\n".join(lines)


def _status_lines(one: ReplicaStatus) -> list[str]:
    state = f"generation {one.generation}" if one.generation else "states no inventory"
    if one.lag:
        state += f", {one.lag} behind"
    if one.publishing:
        state += f", publication of generation {one.publishing} not finished"
    said, due = one.verified, one.declared
    lines = [
        f"  {one.name}: {'complete' if one.complete else 'NOT complete'} ({state})",
        (
            f"    {said.tags} of {due.tags} tags, {said.manifests} of {due.manifests} manifests, "
            f"{said.blobs} of {due.blobs} blobs"
        ),
    ]
    lines += _listed("missing", one.missing)
    return lines + _listed("could not be asked", [str(failure) for failure in one.failures])


def prune_summary(report: PruneReport, elapsed_s: float) -> str:
    """What was removed, or would be."""
    removal = report.removal
    if not removal and not report.failures:
        return f"Registry {report.target} has nothing that may go"
    done = "This would be removed from" if report.dry_run else "Removed from"
    lines = [
        f"{done} registry {report.target}",
        (
            f"  {removal.tag_count} tags, {len(removal.manifests)} manifests; "
            f"{size_text(report.freed)} of blobs that nothing needs any more"
        ),
        *_listed("tags", [str(one) for one in removal.tags]),
        *_listed("manifests", [str(one) for one in removal.manifests]),
    ]
    if report.generations:
        numbers = ", ".join(map(str, report.generations))
        lines.append(f"  no way back to generations {numbers}")
    lines += _failure_lines(report.failures)
    if not report.dry_run:
        lines.append("  run the registry's garbage collector to free the space (docs/sync.md)")
    lines.append(f"  done in {duration_text(elapsed_s)}")
    return "\n".join(lines)
