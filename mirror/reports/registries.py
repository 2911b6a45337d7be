"""Summaries of commands about registries: sync, diff, status, prune, and generations; of shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

from mirror.bundle.format import size_text
from mirror.errors import counted, counts, paragraph
from mirror.layout import RELEASE_CHANNEL, publication_stage
from mirror.operations.replicate import Outcome, ReplicaResult
from mirror.reports.bundles import bundle_summary, push_summary
from mirror.reports.messages import duration_text, few, fitted, lines_of, page, table

if TYPE_CHECKING:
    from mirror.bundle.format import Shard
    from mirror.operations.compare import (
        DiffReport,
        Generation,
        HistoryReport,
        ReplicaStatus,
        StatusReport,
    )
    from mirror.operations.prune import PruneReport
    from mirror.operations.push_reports import PushShardReport, QuorumReport
    from mirror.operations.rollback import RollbackReport
    from mirror.operations.shards import ShardReport, VerifyShardReport
    from mirror.operations.sync import SyncReport
    from mirror.sync.observation import Failure
    from mirror.sync.plan import TagDifference
    from mirror.watch.monitoring import FleetStatus, MemberStatus

_MOST = 50

_OUTCOMES = {
    Outcome.EQUAL: "holds all of it",
    Outcome.SYNCED: "holds all of it now",
    Outcome.DIFFERS: "would be changed",
    Outcome.FAILED: "is not complete",
}
_LEADER_OUTCOMES = {
    Outcome.EQUAL: "holds what it states",
    Outcome.SYNCED: "was repaired",
    Outcome.DIFFERS: "would be repaired",
    Outcome.FAILED: "does not hold what it states",
}
_UNSTATED = "not stated, so no replica gets them (`mirror push` of their bundle states them)"


def sync_summary(report: SyncReport, elapsed_s: float) -> str:
    """How each replica stands, and everything that could not be done."""
    state = f"generation {report.generation}" if report.generation else "no stated inventory"
    good = sum(one.outcome is not Outcome.FAILED for one in report.replicas)
    title = f"{_of(good, len(report.replicas), 'holds', 'hold')} what {report.leader} has ({state})"
    if report.dry_run:
        title = f"This would be done, following {report.leader} ({state})"
    lines = [title]
    extras = f"not at the leader, {'' if report.dry_run else 'left alone; '}--prune removes it"
    for one in report.replicas:
        lines += _result_lines(one, f"{one.name}: {_OUTCOMES[one.outcome]}", extras)
    if report.audit is not None:
        said = f"{report.audit.name}: the leader {_LEADER_OUTCOMES[report.audit.outcome]}"
        lines += _result_lines(report.audit, said, _UNSTATED)
    lines += _failure_lines(report.failures)
    if report.statement is not None:
        lines += ["", f"  statement {report.statement}"]
    lines.append(f"  done in {duration_text(elapsed_s)}")
    return lines_of(lines)


def _of(some: int, all_of_them: int, one: str, many: str) -> str:
    """`1 of 2 replicas hold`, with the verb for one or many."""
    return f"{some} of {counted(all_of_them, 'replica')} {one if all_of_them == 1 else many}"


def _result_lines(one: ReplicaResult, said: str, extras: str) -> list[str]:
    lines = [f"  {said}"]
    if one.blobs or one.manifests or one.tags:
        more = counts(manifest=one.manifests, tag=one.tags)
        lines.append(f"    {counted(one.blobs, 'blob')} ({size_text(one.sent)}), {more}")
    return [
        *lines,
        *_listed("damaged", one.damaged),
        *_listed("repaired", one.repaired),
        *_listed("removed", one.removed),
        *_listed(extras, one.extras),
    ]


def _failure_lines(failures: Sequence[Failure]) -> list[str]:
    return ["", *_listed("could not be done", failures)] if failures else []


def _listed(title: str, items: Sequence[object]) -> list[str]:
    if not items:
        return []
    more = [f"      and {len(items) - _MOST} more"] if len(items) > _MOST else []
    shown = [paragraph(f"      {item}", " " * 8).split("\n") for item in items[:_MOST]]
    return [f"    {title}: {len(items)}", *chain.from_iterable(shown), *more]


def diff_summary(report: DiffReport, elapsed_s: float) -> str:
    """What two places hold differently: `-` only in A, `+` only in B, `~` in both, otherwise."""
    found = report.difference
    took = f"  compared in {duration_text(elapsed_s)}"
    if not found and not report.failures:
        same = f"{report.a} and {report.b} hold the same"
        return lines_of([same, f"  inventory {report.a_digest}", took])
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
            f"  Different: {counted(len(found.tags), 'tag')}; blobs: {size_text(found.only_ours)} "
            f"only in A, {size_text(found.only_theirs)} only in B"
        ),
        *_failure_lines(report.failures),
        took,
    ]
    return lines_of(lines)


def _tag_line(one: TagDifference) -> str:
    if one.theirs is None:
        return f"- {one.tag}  {size_text(one.our_size)}  {one.ours}"
    if one.ours is None:
        return f"+ {one.tag}  {size_text(one.their_size)}  {one.theirs}"
    sizes = f"{size_text(one.our_size)} → {size_text(one.their_size)}"
    return f"~ {one.tag}  {sizes}  {one.ours} → {one.theirs}"


def diff_html(report: DiffReport) -> str:
    """The same as a page; equal reports give equal pages."""
    from mirror.reports.page import data_table, escape, filled, tiles

    found, failures = report.difference, report.failures
    sides = (("only in A", found.our_manifests), ("only in B", found.their_manifests))
    untagged = [(digest, path or "/", where) for where, many in sides for path, digest in many]
    tags = (
        (fitted(one.tag, None), one.repository or "/", _end(one), one.our_size, one.their_size)
        for one in found.tags
    )
    named = (f"{one.tag} {one.ours} {one.theirs}" for one in found.tags)
    titles = ("Tag", "Repository", "Difference", "In A#", "In B#")
    sections = {"Tags": data_table("tags", titles, tags, named)} if found.tags else {}
    if untagged:
        rows = ((fitted(f"{digest}", None), *more) for digest, *more in untagged)
        shown = data_table("images", ("Image", *titles[1:3]), rows, (f"{d}" for d, *_ in untagged))
        sections["Images without a tag"] = shown
    if failures:
        rows = ((one.place, one.item, f"{one.error}") for one in failures)
        sections["Not compared"] = data_table("failures", ("Place", "What", "Why"), rows)
    large = (
        ("Different", f"{len(found.tags)}", "tags"),
        ("Only in A", size_text(found.only_ours), "of blobs"),
        ("Only in B", size_text(found.only_theirs), "of blobs"),
    )
    places = (("A", report.a, report.a_digest), ("B", report.b, report.b_digest))
    return filled(
        f"{report.a} and {report.b} {'differ' if found or failures else 'hold the same'}",
        (f"{one}: <code>{escape(name)}</code>, inventory {digest}" for one, name, digest in places),
        tiles(large),
        sections,
    )


def _end(one: TagDifference) -> str:
    return "only in A" if one.theirs is None else "only in B" if one.ours is None else "changed"


def status_summary(report: StatusReport, elapsed_s: float) -> str:
    """How complete each registry is."""
    complete = sum(one.complete for one in report.replicas)
    lines = [f"{_of(complete, len(report.replicas), 'is', 'are')} complete"]
    for one in report.replicas:
        lines += _status_lines(one)
    if len({one.statement for one in report.replicas}) > 1:
        lines.append("  they do not state the same: `mirror sync` makes them equal")
    lines.append(f"  asked in {duration_text(elapsed_s)}")
    return lines_of(lines)


def _status_lines(one: ReplicaStatus) -> list[str]:
    state = f"generation {one.generation}" if one.generation else "it states no inventory"
    if one.reached is not None:
        state += f" of {_moment(one.reached)}"
    if one.lag and one.generation:
        state += f", {one.lag} behind"
    if one.publishing:
        state += f", publication of generation {one.publishing} not finished"
    said, due = one.verified, one.declared
    lines = [
        f"  {one.name}: {'complete' if one.complete else 'NOT complete'} ({state})",
        (
            f"    {said.tags} of {counted(due.tags, 'tag')}, {said.manifests} of "
            f"{counted(due.manifests, 'manifest')}, {said.blobs} of {counted(due.blobs, 'blob')}"
        ),
    ]
    if not one.generation and not one.failures:
        lines.append(f"    {_NO_PUSH}")
    lines += _listed("missing", one.missing)
    return lines + _listed("could not be asked", one.failures)


def fleet_summary(report: FleetStatus, elapsed_s: float) -> str:
    """Who of a fleet holds what the hub states, and what is known of the others."""
    total, number = len(report.members), report.generation or "unknown"
    lines = [f"{report.complete} of {total} members hold generation {number} of {report.hub}"]
    for ring in dict.fromkeys(one.ring for one in report.members):
        members = [one for one in report.members if one.ring == ring]
        late = [one for one in members if not one.complete]
        lines.append(f"  {ring}: {len(members) - len(late)} of {len(members)}")
        lines += (f"    {_member_text(one)}" for one in late[:_MOST])
        if len(late) > _MOST:
            lines.append(f"    and {len(late) - _MOST} more")
    return lines_of([*lines, f"  asked in {duration_text(elapsed_s)}"])


def _member_text(one: MemberStatus) -> str:
    if one.error is not None:
        return "; ".join([f"{one.name}: {one.error}", *one.errors])
    text = f"{one.name}: generation {one.generation}" if one.generation else f"{one.name}: nothing"
    text += f", {one.lag} behind" if one.lag else ", other than the hub's"
    text += f" ({size_text(one.behind)})" if one.behind else ""
    if one.rate and one.left_s:
        text += f", {size_text(round(one.rate))}/s, {duration_text(one.left_s)} left"
    return "; ".join([text, *([f"waits: {one.waiting}"] if one.waiting else ()), *one.errors])


def prune_summary(report: PruneReport, elapsed_s: float) -> str:
    """What was removed, or would be."""
    removal = report.removal
    if not removal and not report.failures:
        return f"Registry {report.target} has nothing that may go"
    done = "This would be removed from" if report.dry_run else "Removed from"
    versions = sorted(
        f"{path}:{tag}" for path, tag in removal.names if publication_stage(path, tag) == 1
    )
    lines = [
        f"{done} registry {report.target}",
        (
            f"  {counts(tag=removal.tag_count, manifest=len(removal.manifests))}; "
            f"{size_text(report.freed)} of blobs that nothing needs any more"
        ),
        *([f"    versions: {_by_component(versions)}"] if versions else []),
        *([f"    components: {few(report.components, _MOST_NAMES)}"] if report.components else []),
        *_listed("tags", removal.tags),
        *_listed("manifests", removal.manifests),
    ]
    if report.generations:
        numbers, more = ", ".join(map(str, report.generations)), report.generations[1:]
        current = report.published.statement.generation if report.published else None
        line = f"  no way back to generation{'s' if more else ''} {numbers}"
        if current in report.generations:
            line += f"; a new one takes the place of the current {current}"
        lines.append(line)
    lines += _failure_lines(report.failures)
    if not report.dry_run:
        lines.append("  run the registry's garbage collector to free the space (docs/sync.md)")
    lines.append(f"  done in {duration_text(elapsed_s)}")
    return lines_of(lines)


_MOST_NAMES = 12
_NO_PUSH = "no push has completed at this path. Is it the right one?"
_PLATFORM = "platform"


def history_summary(report: HistoryReport, elapsed_s: float) -> str:
    """The generations, newest first, and what each changed."""
    if not report.generations:
        return f"Registry {report.target} states no inventory: {_NO_PUSH}"
    lines = [f"Registry {report.target}, newest generation first"]
    for one in report.generations:
        lines += ["", f"  {one.number}{_mark(one)}", *_described(one)]
    if report.older:
        lines += ["", f"  and {report.older} older (--last)"]
    return lines_of([*lines, "", f"  read in {duration_text(elapsed_s)}"])


def _mark(one: Generation) -> str:
    when = f"  {_moment(one.reached)}" if one.reached is not None else ""
    marks = []
    if one.current:
        marks.append("current")
    if one.interrupted:
        also = "too" if one.restores is not None else "turns it back"
        marks.append(f"interrupted: the next push finishes it, `mirror rollback` {also}")
    if one.restores is not None:
        what = f"generation {one.restores}" if one.restores else "what was there before"
        marks.append(f"restores {what}")
    return f"{when}  ({'; '.join(marks)})" if marks else when


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _described(one: Generation) -> list[str]:
    counts = ("added", "changed", "removed")
    changes = ", ".join(f"{len(getattr(one.changes, name))} {name}" for name in counts)
    rows = [
        ("Tags", f"{one.tags}: {changes}"),
        ("Versions", _by_component(one.versions)),
        ("Channels", _by_component(one.channels)),
        ("Inventory", str(one.inventory)),
    ]
    return [f"  {line}" for line in table(rows)]


def _by_component(names: Sequence[str]) -> str:
    """`platform v1.72.0; console v1.0.0`, of names like `modules/console/release:v1.0.0`."""
    found: dict[str, list[str]] = {_PLATFORM: []}
    for name in names:
        path, _, tag = name.rpartition(":")
        component = _PLATFORM if path == RELEASE_CHANNEL else path.split("/")[-2]
        found.setdefault(component, []).append(tag)
    groups = [f"{component} {', '.join(tags)}" for component, tags in found.items() if tags]
    return few(groups, _MOST_NAMES, "; ")


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
    extras = [f"{path or '/'}:{tag}" for path, tag in report.extras]
    newer = f"{len(extras)}{_fate(report)}: {few(extras, _MOST_NAMES)}"
    rows = [
        ("Tags", f"{len(report.turned)} name again what they did then"),
        ("Newer tags", newer if extras else ""),
    ]
    if report.dry_run:
        turned = (
            f"    {turn.repository or '/'}:{turn.tag}  {turn.before or 'nothing'} → {turn.after}"
            for turn in report.turned
        )
        return lines_of([title, *table(rows), *turned])
    rows.append(("Published", f"generation {report.generation}"))
    foot = (f"inventory {report.inventory}", f"done in {duration_text(elapsed_s)}")
    return page(title, rows, foot=foot)


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
        sent = f"{size_text(one.done.sent)} uploaded, {counted(one.done.tags, 'tag')} set"
        rows.append((one.target, f"complete, checked ({sent})"))
    return page(
        f"{how_many} hold the whole release ({report.quorum} had to)",
        rows,
        foot=(
            f"generation {number}{'' if report.new else ', as before'}",
            f"inventory {report.published.statement.inventory.digest()}",
            f"done in {duration_text(elapsed_s)}",
        ),
    )


def shard_summary(report: ShardReport, elapsed_s: float) -> str:
    """What one of several machines did, in words."""
    title = f"Shard {report.shard} of bundle {report.bundle} is there"
    if report.is_sealed:
        title = f"Bundle {report.bundle} is complete"
    awaited = [f"  {counted(len(report.awaited), 'file')} of it still to come from other shards"]
    fetched = f"{size_text(report.fetched)} fetched in {duration_text(elapsed_s)}"
    return page(title, [], awaited if report.awaited else [], foot=(fetched,))


def push_shard_summary(report: PushShardReport, elapsed_s: float) -> str:
    """What one of several machines did of a push, in words."""
    sent = f"{counted(report.blobs, 'blob')} ({size_text(report.sent)})"
    shard = f"shard {report.shard}: {f'{sent} sent' if report.blobs else 'all of it was there'}"
    if report.finished is not None:
        return f"{push_summary(report.finished, elapsed_s)}\n  {shard}"
    others = _shards(report.awaited, report.shard)
    title = f"Registry {report.target} has the blobs of shard {report.shard}"
    awaited = f"  no tag was set: it lacks blobs of {others}; the last shard sets the tags"
    return page(title, [], [awaited], foot=(shard, f"done in {duration_text(elapsed_s)}"))


def _shards(numbers: Iterable[int], shard: Shard) -> str:
    return few([f"{number}/{shard.count}" for number in numbers], 8)


def verify_shard_summary(report: VerifyShardReport, elapsed_s: float) -> str:
    """What one of several machines found, or all of them if it was the last."""
    shard, told = report.shard, bundle_summary(report.report, elapsed_s)
    if report.is_complete:
        told += f"\n  {counted(shard.count, 'shard')} read it {report.between}"
    elif report.report.findings:
        told = told.replace("The bundle is", f"Shard {shard} of the bundle is", 1)
    else:
        rest = f"each of the {shard.count} shards says so"
        if report.awaited is not None:
            rest = f"these find nothing either: {_shards(report.awaited, shard)}"
        lines = [f"Shard {shard} of the bundle is right, and the bundle is whole if {rest}"]
        told = lines_of([*lines, "", f"  read in {duration_text(elapsed_s)}"])
    past = told.replace(" is ", " was ", 1)
    then = f"Nothing was read now. This was found {report.between}:\n{past}"
    return told if report.read else then
