"""Work that several machines share: each does its share; who finds the rest done completes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mirror.bundle.bucket import Bucket
from mirror.bundle.checks import once_each, state_of
from mirror.bundle.format import PARTIAL_SEAL, VERIFIED, Shard, owners
from mirror.bundle.location import RemotePath, size_of
from mirror.bundle.place import AS_USUAL, Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import parse_seal
from mirror.bundle.shards import ShardPlace
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.documents import document, parse_json
from mirror.durable import os_errors, write_durably
from mirror.errors import (
    ChangedLeftoversError,
    ConflictError,
    DamagedBundleError,
    IncompleteError,
    InputError,
)
from mirror.events import PhaseStarted, Warned
from mirror.layout import tool_name
from mirror.oci import Digest
from mirror.operations.pull import PullPlan, fill
from mirror.operations.push import PushWork
from mirror.operations.push_reports import PushPlan, PushShardReport
from mirror.operations.trust import check_downgrade
from mirror.release.discovery import with_components
from mirror.run import Run
from mirror.sync import Finding, Inventory, Plan, RepositoryContent, Source, make_plan
from mirror.sync.failover import FailoverSource, Holder
from mirror.sync.inventory import MALFORMED, canonical_json, text_of
from mirror.sync.observation import Depth
from mirror.sync.observe import Verification
from mirror.sync.plan import by_archive, missing_content
from mirror.sync.publication import Publication
from mirror.sync.publication_state import PublicationState, read_state
from mirror.sync.statement import REPOSITORY
from mirror.sync.tree import RegistryTree

_ANEW = "name a new place for each verification, or remove these with `mirror clean`"
_SAME_RUN = timedelta(hours=1)
"""How long a shard that ended may come again, as a pod does that died before it could say so."""
_MOST_FINDINGS, _MOST_BYTES = 50_000, 64 << 20
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
    seal, files, taken = parse_seal(agreed.sealed, PARTIAL_SEAL), agreed.files, list[int]()

    def fill_share() -> list[str]:
        with BundleWriter(place, seal, files, packing) as writer:
            fill(writer, seal.carried, source, taken, run)
            writer.check_replaced()
            return place.close_files()

    try:
        summed = fill_share()
    except ChangedLeftoversError as err:
        run.on_event(Warned(f"{err.problem}; what lacks of them is fetched anew"))
        summed = fill_share()
    return ShardReport(bucket.where, shard, sum(taken), tuple(summed), tuple(place.seal()))


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
            publication = Publication(tree, PublicationState(), verification=verification)
            done = publication.carry_out(plan, source, target, run=run)  # which turns no tag
            sent = done.done.sent
        finally:
            target.release()
    conflict: ConflictError | None = None
    for looks_left in reversed(range(_MOST_LOOKS)):
        state = work.look(tree)
        goal = work.goal(tree, state)
        if conflict is not None and goal.new:  # somebody else's, not of another shard of this
            raise conflict
        rest = missing_content(work.wanted, goal.held).repositories.values()
        awaited = sorted({whose[digest] for content in rest for digest in content.blobs})
        if shard.number in awaited:
            raise IncompleteError(
                f"{tree.name} accepted all blobs of shard {shard} and does not have all of them; "
                "look for a cache or a proxy in front that keeps uploads to itself, and for a "
                "garbage collector that runs there; then run this shard again",
                (),
            )
        try:
            finished = None if awaited else work.finish(tree, state, goal)
            break
        except ConflictError as err:
            if not looks_left:
                raise
            conflict = err  # if another shard came to the end at the same time, it is stated
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
    part: dict[str, RepositoryContent] = {}
    for path, content in work.wanted.repositories.items():
        blobs = {one: size for one, size in content.blobs.items() if whose[one] == shard.number}
        part[path] = replace(content, blobs=blobs)
    own = Inventory(part)
    target = tree.target(work.run)
    held = work.held(target) if work.reader.bases else target.held(own, work.depth)
    quiet, state = work.run.quietly(), read_state(tree)  # the end warns
    check_downgrade(tree, state, held, work.wanted, strict=work.strict, run=quiet)
    return Plan(by_archive(make_plan(own, held)).blobs), held


# -- verifications ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifyShardReport:
    """What a shard of a verification found, and what the others did.

    `report` is of the whole bundle if all shards have ended, the last between `began` and `ended`
    (UTC); else of this share. `awaited` are the shards that have not ended; None where nobody
    gathers what they find. Unless it has `read` its share now, it says what it had found then.
    """

    report: BundleReport
    shard: Shard
    awaited: tuple[int, ...] | None = None
    began: datetime | None = None
    ended: datetime | None = None
    read: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether `report` is of the whole bundle."""
        return self.awaited == ()

    @property
    def between(self) -> str:
        """When the bundle was read; an empty text where nobody gathers."""
        times = [f"{one:%Y-%m-%d %H:%M:%S}" for one in (self.began, self.ended) if one is not None]
        return f"between {' and '.join(times)} UTC" if times else ""

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        own = document(self, "complete=is_complete", "read", "awaited", "began", "ended")
        return {**self.report.to_document(), "shard": str(self.shard), **own}


def verify_shard(
    bundle: BundleReader,
    shard: Shard,
    place: Path | Bucket | None = None,
    *,
    key: bytes | None = None,
    quick: bool = False,
    run: Run | None = None,
) -> VerifyShardReport:
    """Check a share of a bundle's bytes, and put what was found into `place`, where the last shard
    to come finds what all have found. That place is the run: name a new one for each.

    A shard that was stopped is run again. One that ended there within the hour, and died before it
    could say so, reads nothing and tells what it had found. Arguments and errors are those of
    `verify`.

    Raises:
        InputError: `place` has findings about another bundle, changed files, other options or
            another number of shards, or this one ended there more than an hour ago.
        DamagedBundleError: `place` has something else under the name of findings.
    """
    run = Run.of(run)
    if place is None:
        return VerifyShardReport(_verified(bundle, shard, key, quick, run), shard)
    bundle.follow(run)
    if bundle.folder is None or str(place) == str(bundle.folder):
        raise InputError(f"{place}: findings need a place of their own, and a bundle in one folder")
    findings = _ShardFindings(place, shard, run)
    if isinstance(place, Path):
        with os_errors(place, "create"):  # the last folder alone: what all share may not be mounted
            place.mkdir(0o755, exist_ok=True)
    here, files = bundle.folder, str(state_of(bundle.folder))
    about = {  # by the words of the message that tells what differs
        "place of the bundle": str(here.resolve() if isinstance(here, Path) else here),
        "size or date of its files": files,
        "--quick": quick,
        "--verify-key": None if key is None else str(Digest.of(key)),
        "version of mirror": tool_name(),
    }
    found = findings.read(about)
    earlier = found.get(shard.number)
    if earlier is not None:
        told = f"{place}: shard {shard} ended there at {earlier.ended:%Y-%m-%d %H:%M:%S} UTC"
        if datetime.now(UTC) - earlier.ended > _SAME_RUN:  # as where a place is named every night
            raise InputError(f"{told}, and nothing was read; {_ANEW}")
        run.on_event(Warned(f"{told}, and nothing was read now"))
        # Counts are the same in all shares, and nobody's share takes no reading.
        report = replace(_verified(bundle, Shard(0, shard.count), None, quick, run), shard=shard)
    else:
        findings.write({"about": about})  # what may not be written is told before the work
        began, report = datetime.now(UTC), _verified(bundle, shard, key, quick, run)
        if files != str(state_of(here)):
            raise ConflictError(
                "its files changed while they were read",
                where=str(here),
                advice="let nobody write there, and run all shards again with a new --findings",
            )
        kept, notices = report.findings[:_MOST_FINDINGS], report.notices
        if more := len(report.findings) - len(kept):
            notices += (f"shard {shard} found {more} more, which are not listed",)
        mine = _Found(began, datetime.now(UTC), kept, notices)
        findings.write({"about": about, **document(mine, "began", "ended", "findings", "notices")})
        found = {shard.number: mine, **findings.read(about)}  # a list may lag behind
    awaited = sorted(set(range(1, shard.count + 1)) - found.keys())
    told_by = list(found.values()) if not awaited else [found[shard.number]]
    report = replace(
        report,
        shard=shard if awaited else None,
        findings=once_each(one for each in told_by for one in each.findings),
        notices=tuple(dict.fromkeys(one for each in told_by for one in each.notices)),
    )
    began_at, ended_at = min(one.began for one in told_by), max(one.ended for one in told_by)
    times = began_at, ended_at
    return VerifyShardReport(report, shard, tuple(awaited), *times, read=earlier is None)


def _verified(
    bundle: BundleReader, shard: Shard, key: bytes | None, quick: bool, run: Run
) -> BundleReport:
    report = verify_bundle(bundle, key=key, quick=quick, shard=shard, run=run)
    return replace(report, findings=with_components(report.findings, bundle, bundle.carried))


@dataclass(frozen=True, slots=True)
class _Found:
    """What a shard that has ended found."""

    began: datetime
    ended: datetime
    findings: tuple[Finding, ...]
    notices: tuple[str, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Found:
        """Read what it wrote down."""
        began, ended = (datetime.fromisoformat(record[one]) for one in ("began", "ended"))
        found, notices = map(_finding, record["findings"]), map(text_of, record["notices"])
        return cls(began.astimezone(UTC), ended.astimezone(UTC), tuple(found), tuple(notices))


@dataclass(frozen=True, slots=True)
class _ShardFindings:
    """The place of what the shards of one verification find: a small file or object for each."""

    place: Path | Bucket
    shard: Shard
    run: Run

    def write(self, record: Mapping[str, Any]) -> None:
        name = f"verified-{self.shard.number}-of-{self.shard.count}.json"
        if isinstance(self.place, Path):
            write_durably(self.place / name, canonical_json(record))
        else:
            self.place.put(name, canonical_json(record), self.run)

    def read(self, about: Mapping[str, Any]) -> dict[int, _Found]:
        """What those have found that have ended, by their numbers."""
        found: dict[int, _Found] = {}
        folder = self.place if isinstance(self.place, Path) else RemotePath(self.place, self.run)
        for path in folder.iterdir():
            if (of := VERIFIED.fullmatch(path.name)) is None or not path.is_file():
                continue
            try:
                with os_errors(path, "read"):
                    whole = size_of(path) <= _MOST_BYTES  # else nobody of us wrote it
                    record = parse_json(path.read_bytes() if whole else b"")
                theirs = {**record["about"], "number of shards": int(of[2])}
                if "ended" in record:
                    found[int(of[1])] = _Found.of(record)
            except MALFORMED as err:
                told = f"it is not what a shard of a verification writes down: {err}"
                advice = f"find out who writes there; {_ANEW}"
                raise DamagedBundleError(told, where=str(path), advice=advice) from err
            ours = {**about, "number of shards": self.shard.count}
            if theirs != ours:
                names = (one for one in {**theirs, **ours} if theirs.get(one) != ours.get(one))
                told = f"{path} is of a verification with another {' and '.join(sorted(names))}"
                raise InputError(f"{told}; {_ANEW}")
        return found


def _finding(found: Mapping[str, Any]) -> Finding:
    repository, digest = found["repository"], found["digest"]
    return Finding(
        text_of(found["place"]),
        text_of(found["problem"]),
        None if repository is None else text_of(repository),
        tuple(map(text_of, found["tags"])),
        None if digest is None else Digest.parse(digest),
        tuple(map(text_of, found["components"])),
    )
