"""What a person reads of publications: generations, rollbacks, replicas."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.bundle.parts import size_text
from mirror.console import duration_text, table
from mirror.operations.history import Generation, HistoryReport
from mirror.operations.push_reports import QuorumReport
from mirror.operations.rollback import RollbackReport

_MOST = 12


def history_summary(report: HistoryReport, elapsed_s: float) -> str:
    """The generations, newest first, and what each changed."""
    if not report.generations:
        return (
            f"Registry {report.target} states no inventory: no push has completed there that "
            "writes one"
        )
    lines = [f"Registry {report.target}, newest generation first"]
    for one in report.generations:
        lines += ["", f"  {one.number}{_mark(one)}", *_described(one)]
    if report.older:
        lines += ["", f"  and {report.older} older ones (--last)"]
    return "\n".join([*lines, "", f"  read in {duration_text(elapsed_s)}"])


def _mark(one: Generation) -> str:
    marks = []
    if one.current:
        marks.append("current")
    if one.interrupted:
        marks.append(
            "interrupted: the next push finishes it, `mirror rollback` "
            + ("too" if one.restores is not None else "turns it back")
        )
    if one.restores is not None:
        what = f"generation {one.restores}" if one.restores else "what was there before"
        marks.append(f"restores {what}")
    return f"  ({'; '.join(marks)})" if marks else ""


def _described(one: Generation) -> list[str]:
    counts = ("added", "changed", "removed")
    changes = ", ".join(f"{len(getattr(one.changes, name))} {name}" for name in counts)
    rows = [("Tags", f"{one.tags}: {changes}")]
    if one.versions:
        rows.append(("Versions", _listed(one.versions)))
    if one.channels:
        rows.append(("Channels", _listed(one.channels)))
    rows.append(("Inventory", str(one.inventory)))
    return [f"  {line}" for line in table(rows)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more


def rollback_summary(report: RollbackReport, elapsed_s: float) -> str:
    """What was put back, or would be."""
    was = f"generation {report.replaced}"
    if report.interrupted:
        was += ", whose publication was interrupted,"
    back = f"generation {report.restored}" if report.restored else "what was there before the first"
    title = (
        f"{'This would turn' if report.dry_run else 'Turned'} registry {report.target} back from "
        f"{was} to {back}"
    )
    rows = [("Tags", f"{len(report.turned)} name again what they did then")]
    if report.extras:
        extras = [f"{path or '/'}:{tag}" for path, tag in report.extras]
        rows.append(("Newer tags", f"{len(extras)}{_fate(report)}: {_listed(extras)}"))
    if not report.dry_run:
        rows.append(("Published", f"generation {report.generation}"))
    if report.dry_run:
        turned = [
            f"{turn.repository or '/'}:{turn.tag}  {turn.before or 'nothing'} → {turn.after}"
            for turn in report.turned
        ]
        return "\n".join([title, *table(rows), *(f"    {line}" for line in turned)])
    return "\n".join(
        [
            title,
            *table(rows),
            "",
            f"  inventory {report.inventory}",
            f"  done in {duration_text(elapsed_s)}",
        ]
    )


def _fate(report: RollbackReport) -> str:
    if report.dry_run:
        return ", removed if the registry can delete tags"
    if not report.remaining:
        return ", removed"
    return " stay, as the registry cannot delete tags" if not report.removed else ", some removed"


def quorum_summary(report: QuorumReport, elapsed_s: float) -> str:
    """Which registries hold the release, and why the others do not."""
    complete = sum(one.problem is None for one in report.members)
    how_many = f"{complete} of {len(report.members)} registries"
    number = report.published.statement.generation
    rows = []
    for one in report.members:
        if one.problem is not None or one.done is None:
            rows.append((one.target, f"FAILED: {one.problem}"))
            continue
        sent = f"{size_text(one.done.sent)} uploaded, {one.done.tags} tags set"
        rows.append((one.target, f"complete, checked ({sent})"))
    return "\n".join(
        [
            f"{how_many} hold the whole release ({report.quorum} had to)",
            *table(rows),
            "",
            f"  generation {number}{'' if report.new else ', as before'}",
            f"  inventory {report.published.statement.inventory.digest()}",
            f"  done in {duration_text(elapsed_s)}",
        ]
    )
