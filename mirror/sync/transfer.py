"""Transfer: the only place where bytes move. Carries a plan from a source to a target."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from mirror.errors import (
    IncompleteError,
    MirrorError,
    NoSoundCopyError,
    NotFoundError,
    RegistryError,
)
from mirror.events import (
    BlobDone,
    BytesMoved,
    ManifestDone,
    TagDone,
    TransferStarted,
    Warned,
)
from mirror.oci import Digest, Manifest, ManifestNode
from mirror.oci.reference import referrers_tag
from mirror.run import ArchiveTally, Run, for_each
from mirror.sync.content import PerItemErrors, Source, Target, graph
from mirror.sync.failover import copy_blob
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.plan import (
    CopyBlob,
    NewTags,
    Plan,
    PutManifest,
    PutTag,
    archives_of,
    make_plan,
)

_log = logging.getLogger(__name__)

_SMALL = 256 << 10
"""Bytes up to which a blob is a request like others."""
_REPAIRS = 3
"""How often what a manifest needs is brought again before its refusal is believed."""
_PAUSE_S = 0.2
"""Between such attempts, where nothing proves to be missing."""

Step = TypeVar("Step", CopyBlob, PutManifest, PutTag)
AnyStep = CopyBlob | PutManifest | PutTag


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a finished transfer did. `sent` is the bytes of blobs that moved.

    `failures` is empty unless the transfer was to carry what it can (`Independence`).
    """

    blobs: int
    sent: int
    manifests: int
    tags: int
    failures: tuple[tuple[str, MirrorError], ...] = ()


@dataclass(frozen=True, slots=True)
class Interim:
    """How a transfer stands before the first tag turns.

    `manifests` are in place, `failures` are not; `turns` says whether any tag is going to turn.
    """

    manifests: tuple[PutManifest, ...]
    failures: tuple[tuple[str, MirrorError], ...]
    turns: bool


@dataclass(frozen=True, slots=True)
class Independence:
    """Lets a transfer carry everything that does not depend on what failed.

    A manifest depends on its blobs and children, a tag on its manifest. Beyond that a tag may wait
    for a whole unit: a release channel waits for every image of its module.

    Attributes:
        wanted: what the plan was made for.
        unit: repository → the unit that it belongs to.
        awaited: (repository, tag) → the unit of which nothing may have failed before the tag turns;
            None if the tag depends on its manifest alone.
        errors: tells an item that the target refuses from a target that does not work.
        doubtful: repositories that were left out of the plan; their units count as failed.
    """

    wanted: Inventory
    unit: Callable[[str], Hashable]
    awaited: Callable[[str, str], Hashable | None]
    errors: PerItemErrors
    doubtful: frozenset[str]


def transfer(
    plan: Plan,
    source: Source,
    target: Target,
    *,
    new_tags: NewTags = MappingProxyType({}),
    before_manifests: Callable[[], None] = lambda: None,
    before_tags: Callable[[Interim], None] = lambda _interim: None,
    independence: Independence | None = None,
    earlier: int = 0,
    held: int = 0,
    run: Run | None = None,
) -> TransferReport:
    """Carry out `plan`: blobs, then manifests children first, then tags stage by stage.

    Listeners are told of bytes that are in place: `earlier` ones, which an interrupted transfer
    left there, and what is `held` anyway.

    A manifest of `new_tags` goes by these tags, in one request each, and not by its digest before.
    `before_manifests` is called once, when all blobs are in place, and `before_tags`, when all
    manifests are and no other tag has turned; both may raise.

    Within a step of that order items run in `run.threads`. An item that fails does not stop
    its siblings. What comes after them does not begin, so a tag never names what is not there;
    with `independence` only what depends on a failed item is left out, and the report lists the
    failures. What a registry lost between a check and the manifest that needs it is brought again.
    A blob that proves wrong is taken from the next place that `source`, a `FailoverSource`, has.

    Raises:
        IncompleteError: some items failed; it lists each with its reason.
        CancelledError: `run` was stopped; what is done is done, and a new plan leaves it out.
    """
    work = _Transfer(plan, source, target, new_tags, independence, Run.of(run))
    return work.carry_out(before_manifests, before_tags, earlier, held)


class _Transfer:
    """One transfer under way."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        target: Target,
        new_tags: NewTags,
        independence: Independence | None,
        run: Run,
    ) -> None:
        self._plan, self._source, self._target, self._run = plan, source, target, run
        self._losses = _Losses(independence) if independence is not None else None
        self._failures: list[tuple[str, MirrorError]] = []
        self._indexes: dict[PutTag, Manifest] = {}  # tags of one stage that wait for its others
        self._sent = 0
        self._large = threading.Semaphore(run.jobs)  # however many threads work
        self._archives = ArchiveTally(run.on_event)
        self._new_tags = new_tags
        self._set: set[PutTag] = set()  # of the new ones, those that are there
        self._turning = {(step.repository, step.tag) for stage in plan.tags for step in stage}

    def carry_out(
        self,
        before_manifests: Callable[[], None],
        before_tags: Callable[[Interim], None],
        earlier: int,
        held: int,
    ) -> TransferReport:
        """Do it all, in order."""
        plan = self._plan
        self._run.on_event(
            TransferStarted(
                blobs=len(plan.blobs),
                size=plan.blob_bytes,
                manifests=plan.manifest_count,
                tags=plan.tag_count,
                earlier=earlier,
                held=held,
            )
        )
        for step in plan.blobs if self._losses is None else ():  # a replica is not a bundle
            for archive in archives_of(step):
                self._archives.expect(archive, step.size)
        blobs = self._carry(plan.blobs, self._copy)
        before_manifests()
        manifests = sum(self._carry(wave, self._put) for wave in plan.manifests)
        before_tags(self._interim())
        tags = len(self._set) + sum(map(self._turn, plan.tags))
        return TransferReport(blobs, self._sent, manifests, tags, tuple(self._failures))

    def _interim(self) -> Interim:
        manifests = tuple(step for wave in self._plan.manifests for step in wave)
        tags = [step for stage in self._plan.tags for step in stage]
        losses = self._losses
        if losses is None:
            return Interim(manifests, (), bool(tags))
        arrived = tuple(step for step in manifests if not losses.has(step))
        return Interim(arrived, tuple(self._failures), any(map(losses.is_free, tags)))

    def _turn(self, stage: Sequence[PutTag]) -> int:
        """Set the tags of one stage; return how many were set.

        Distribution rewrites a manifest's file for each of its tags, and refuses an index that
        names it at that moment. So what is in an index gets its tags before the index does.
        """
        left = [step for step in stage if step not in self._set]
        done = self._carry(left, self._name) - len(self._indexes)
        done += sum(self._carry(tags, self._name) for tags in _parents_last(self._indexes))
        self._indexes.clear()
        return done

    def _carry(self, steps: Sequence[Step], work: Callable[[Step], int]) -> int:
        """Do `work`, which returns bytes, on each of `steps`; return how many succeeded.

        Raises:
            IncompleteError: some failed, and what comes next may depend on them.
        """
        losses = self._losses
        begun = steps if losses is None else [step for step in steps if losses.allow(step)]
        attempt = work if losses is None else losses.attempt(work)
        done, failures = 0, []
        with closing(for_each(begun, attempt, run=self._run)) as outcomes:
            for step, outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    failures.append((_title(step), outcome))
                    if losses is not None:
                        losses.add(step)
                else:
                    done, self._sent = done + 1, self._sent + outcome
                    if isinstance(step, CopyBlob):
                        for archive in archives_of(step):
                            self._archives.done(archive)
        failures.sort(key=lambda failure: failure[0])
        self._failures += failures
        left = len(begun) - done - len(failures)
        if failures and (losses is None or left):
            raise IncompleteError(
                f"{len(failures)} of {len(steps)} {_KINDS[type(steps[0])]} could not be brought "
                f"from {self._source.name} to {self._target.name}"
                + (f", {left} more were not tried" if left else ""),
                self._failures,
            )
        return done

    # -- one step ------------------------------------------------------------------------------

    def _copy(self, step: CopyBlob) -> int:
        on_event = self._run.on_event
        with self._large if step.size > _SMALL else nullcontext():
            sent = copy_blob(
                step,
                self._source,
                self._target,
                on_bytes=lambda count: on_event(BytesMoved(step.digest, count)),
                run=self._run,
            )
        on_event(BlobDone(step.digest, step.size, sent))
        return sent

    def _put(self, step: PutManifest) -> int:
        manifest = self._source.manifest(step.repository, step.digest)
        sent = self._put_manifest(step.repository, manifest, self._new_tags.get(step, ()))
        self._run.on_event(ManifestDone(step.repository, step.digest))
        return sent

    def _name(self, step: PutTag) -> int:
        manifest = self._source.manifest(step.repository, step.digest)
        if manifest.is_index and step not in self._indexes:
            self._indexes[step] = manifest
            return 0
        return self._put_tag(step, manifest)

    def _put_tag(self, step: PutTag, manifest: Manifest) -> int:
        sent = self._settle(
            step.repository,
            manifest,
            lambda: self._target.put_tag(step.repository, step.tag, manifest),
        )
        self._run.on_event(TagDone(step.repository, step.tag, step.digest))
        return sent

    def _put_manifest(
        self, repository: str, manifest: Manifest, tags: Sequence[PutTag] = ()
    ) -> int:
        """Store `manifest`, by its new `tags` if it has any; return the bytes that moved."""
        sent = 0
        for step in tags:
            sent += self._put_tag(step, manifest)
            self._set.add(step)
        if not tags:
            sent = self._settle(
                repository, manifest, lambda: self._target.put_manifest(repository, manifest)
            )
        subject = manifest.subject
        if subject and (repository, referrers_tag(subject.digest)) not in self._turning:
            self._target.list_referrer(repository, manifest)
        return sent

    # -- what a target lost --------------------------------------------------------------------

    def _settle(self, repository: str, manifest: Manifest, act: Callable[[], None]) -> int:
        """Do `act`, which writes `manifest`, and bring again what the target lost of it meanwhile.

        A registry's garbage collector takes blobs that no manifest needs yet, and those are just
        the ones that a push has brought or seen. Returns the bytes that moved.
        """
        sent = 0
        for _ in range(_REPAIRS):
            try:
                act()
            except RegistryError as err:
                if err.status not in (400, 404):
                    raise
                brought = self._repair_missing(repository, manifest)
                if brought is None:
                    if "MANIFEST_BLOB_UNKNOWN" not in err.codes:
                        raise
                    # All is there, and another process was rewriting some of it at that moment:
                    # distribution empties such a file first.
                    self._run.sleep(_PAUSE_S)
                    continue
                _log.debug("%s lost what %s needs: %s", self._target.name, manifest.digest, err)
                self._run.on_event(
                    Warned(
                        f"{self._target.name} no longer had all that {repository or '/'}@"
                        f"{manifest.digest} needs, so that was brought there again; "
                        "let no garbage collector run during a push"
                    )
                )
                sent += brought
            else:
                return sent
        act()
        return sent

    def _repair_missing(self, repository: str, manifest: Manifest) -> int | None:
        """Bring what `manifest` reaches and the target does not have; return the bytes that moved.

        None if all that it reaches is there: a refusal had another reason then.
        """
        wanted = self._reached(repository, manifest)
        plan = make_plan(wanted, self._target.held(wanted))
        below = [put for wave in plan.manifests for put in wave if put.digest != manifest.digest]
        if not plan.blobs and not below:
            return None
        sent = sum(
            copy_blob(step, self._source, self._target, run=self._run) for step in plan.blobs
        )
        for put in below:
            sent += self._put_manifest(repository, self._source.manifest(repository, put.digest))
        return sent

    def _reached(self, repository: str, manifest: Manifest) -> Inventory:
        """`manifest` and all below it that the source has, which may lack children of an index."""
        builder = InventoryBuilder()

        def fetch(digest: Digest) -> Manifest | None:
            with suppress(NotFoundError, NoSoundCopyError):
                return self._source.manifest(repository, digest)
            return None

        for node in map(ManifestNode.of, graph(manifest, fetch)):
            builder.add_manifest(repository, node, closed=False)
            for blob in node.blobs:
                builder.add_blob(repository, blob.digest, blob.size)
        return builder.build()


class _Losses:
    """What failed or was left out so far, and what depends on it. Used by one thread."""

    def __init__(self, rule: Independence) -> None:
        self.rule = rule
        self._lost: set[tuple[str, Digest]] = set()
        self._units: set[Hashable] = {rule.unit(path) for path in rule.doubtful}

    def allow(self, step: AnyStep) -> bool:
        """Whether `step` depends on nothing that was lost; else it is lost, too."""
        free = self.is_free(step)
        if not free:
            self.add(step)
        return free

    def is_free(self, step: AnyStep) -> bool:
        """Whether `step` depends on nothing that was lost."""
        match step:
            case CopyBlob():
                return True
            case PutManifest(path, digest):
                node = self.rule.wanted.repository(path).manifests[digest]
                needed = (one.digest for one in (*node.blobs, *node.children))
                return not any((path, one) in self._lost for one in needed)
            case PutTag(path, tag, digest):
                unit = self.rule.awaited(path, tag)
                return (path, digest) not in self._lost and (
                    unit is None or unit not in self._units
                )

    def has(self, step: PutManifest) -> bool:
        """Whether a manifest was lost."""
        return (step.repository, step.digest) in self._lost

    def add(self, step: AnyStep) -> None:
        """`step` failed."""
        paths = step.into if isinstance(step, CopyBlob) else (step.repository,)
        self._units.update(map(self.rule.unit, paths))
        if not isinstance(step, PutTag):
            self._lost.update((path, step.digest) for path in paths)

    def attempt(self, work: Callable[[Step], int]) -> Callable[[Step], int | MirrorError]:
        """`work`, returning the errors that belong to one step alone and raising all others."""
        return lambda step: self.rule.errors.ask(lambda: work(step))


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


def _title(step: AnyStep) -> str:
    match step:
        case CopyBlob():
            paths = [path or "/" for path in step.into]
            more = f" and {len(paths) - _MOST_PATHS} more" if len(paths) > _MOST_PATHS else ""
            return f"blob {step.digest} into {', '.join(paths[:_MOST_PATHS])}{more}"
        case PutManifest():
            return f"manifest {step.repository}@{step.digest}"
        case PutTag():
            return f"tag {step.repository}:{step.tag}"
