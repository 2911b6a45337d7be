"""The only look at a registry that compares it with an inventory: what of it is there?

The depth decides what is asked (`Depth`). At every depth one tag listing per repository spares the
questions about tags that are not there, and a tag that names the wanted digest answers for its
manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from enum import StrEnum
from functools import partial

from mirror.errors import (
    IncompleteError,
    MirrorError,
    RegistryNotFoundError,
    SizeMismatchError,
)
from mirror.events import BlobDone, BytesMoved, OnEvent, TransferStarted
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.registry import RegistryReader
from mirror.run import Run
from mirror.sync.content import PerItemErrors, ReadableTree, unlisted
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.observation import (
    Depth,
    Finding,
    Item,
    Observation,
    items_of,
    listed,
    speaks_of_damage,
)
from mirror.sync.plan import CopyBlob, PutManifest, PutTag


def listed_tags(client: RegistryReader, repository: str) -> frozenset[str]:
    """All tags of a repository, including those that name nothing any more.

    There are none where the registry says that it knows no such repository, as CNCF distribution
    does of one that has content and no tag.
    """
    try:
        return frozenset(client.tags(repository))
    except RegistryNotFoundError:
        return frozenset()


def named(
    client: RegistryReader, repository: str, tag: str, wanted: Digest | None
) -> Digest | None:
    """What a tag names, by the algorithm of `wanted`; None if it names nothing.

    Most registries name a tagged manifest by SHA-256, whatever digest it was put under.
    """
    found = client.resolve(repository, tag)
    if found is None or wanted is None or found.digest.algorithm == wanted.algorithm:
        return found.digest if found else None
    return Digest.of(client.manifest(repository, tag).raw, wanted.algorithm)


def observe(
    place: ReadableTree,
    wanted: Inventory,
    depth: Depth,
    *,
    also: Iterable[str] = (),
    run: Run | None = None,
) -> Observation:
    """Ask `place` what it has of `wanted`; of the repositories `also`, only which tags they list.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        CancelledError: `run` was stopped.
    """
    look = _Look(place, wanted, depth, Run.of(run))
    look.list_tags(also)
    if depth is Depth.PROBE:
        look.ask_about(look.probed_repositories())
    else:
        look.ask_about(look.listed)
    damaged = look.read_all() if depth is Depth.DEEP else {}
    return look.result(damaged)


class _Look:
    """One look under way."""

    def __init__(self, place: ReadableTree, wanted: Inventory, depth: Depth, run: Run) -> None:
        self._place, self._wanted, self._depth, self._run = place, wanted, depth, run
        self._questions = PerItemErrors(place.client.ping, run)
        self._held = InventoryBuilder()
        self.listed: dict[str, frozenset[str]] = {}
        self._unclear: dict[Item, MirrorError] = {}
        self._unlisted: dict[str, MirrorError] = {}

    def result(self, damaged: Mapping[Digest, MirrorError]) -> Observation:
        """What was found."""
        return Observation(
            self._place.name,
            self._held.build(),
            self.listed,
            self._unclear,
            self._unlisted,
            damaged,
            requests=self._questions.asked,
        )

    def list_tags(self, also: Iterable[str]) -> None:
        """Ask for the tags of every repository of which something is wanted, and of `also`."""
        paths = sorted({*self._wanted.repositories, *also})
        listings = self._questions.ask_all(
            paths, lambda path: listed_tags(self._place.client, self._place.locate(path))
        )
        for path, tags in zip(paths, listings, strict=True):
            if not isinstance(tags, MirrorError):
                self.listed[path] = tags
            elif path in self._wanted.repositories:
                content = self._wanted.repository(path)
                self._unclear.update(
                    (item, tags) for item in items_of(path, content) if not item.is_blob
                )
            else:
                self._unlisted[path] = tags

    def probed_repositories(self) -> list[str]:
        """Those that have tags, and the others too if one of a few of their blobs is there."""
        untagged = {path for path, tags in self.listed.items() if not tags}
        sample = probe_sample(probe_candidates(self._wanted, untagged), self._run.jobs)
        tagged = [path for path in self.listed if path not in untagged]
        if any(answer is not None for _, answer in self._answers(sample)):
            return list(self.listed)
        return tagged

    def ask_about(self, paths: Iterable[str]) -> None:
        """Ask what is there of the wanted tags, then manifests, then blobs."""
        asked = {path: self._wanted.repository(path) for path in paths}
        tags = [
            Item(path, digest, tag)
            for path, content in asked.items()
            for tag, digest in content.tags.items()
        ]
        there = self._tags(one for one in tags if one.tag in self.listed[one.repository])
        loose = [
            Item(path, digest)
            for path, content in asked.items()
            for digest in content.manifests
            if (path, digest) not in there
        ]
        there |= {(item.repository, item.digest) for item, answer in self._answers(loose) if answer}
        there -= unlisted(self._place, self._questions, asked, there)
        if self._depth > Depth.PROBE:
            # A list may lag behind, as over object storage: what it lacks is asked for, unless its
            # manifest is absent, too. A push needs no such certainty: it puts the tag again.
            self._tags(
                one
                for one in tags
                if one.tag not in self.listed[one.repository]
                and (
                    (one.repository, one.digest) in there
                    or one.digest not in asked[one.repository].manifests
                )
            )
        doubtful: list[Item] = []
        for path, content in asked.items():
            certain: set[Digest] = set()
            for digest, node in content.manifests.items():
                if (path, digest) in there:
                    self._held.add_manifest(path, node, closed=False)
                    if self._depth < Depth.AUDIT:
                        certain.update(blob.digest for blob in node.blobs)
            for digest, size in content.blobs.items():
                if digest in certain:
                    self._held.add_blob(path, digest, size)
                else:
                    doubtful.append(Item(path, digest, is_blob=True))
        self._blobs(doubtful)

    def _tags(self, items: Iterable[Item]) -> set[tuple[str, Digest | None]]:
        """Ask for tags; return the manifests that they name."""
        there: set[tuple[str, Digest | None]] = set()
        for item, answer in self._answers(list(items)):
            if isinstance(answer, Digest) and item.tag is not None:
                self._held.add_tag(item.repository, item.tag, answer)
                if answer.algorithm == "sha256":  # by others a registry need not know the manifest
                    there.add((item.repository, answer))
        return there

    def _blobs(self, items: Sequence[Item]) -> None:
        for item, answer in self._answers(items):
            if item.digest is None or not isinstance(answer, int):
                continue
            size = self._wanted.repository(item.repository).blobs[item.digest]
            if answer == size:
                self._held.add_blob(item.repository, item.digest, size)
            else:  # other bytes, which an upload alone may not replace
                self._unclear[item] = SizeMismatchError(
                    where=self._place.name, expected=size, actual=answer
                )

    def _answers(self, items: Sequence[Item]) -> list[tuple[Item, Digest | int | None]]:
        """The items about which the registry gave a clear answer, with that answer."""
        clear: list[tuple[Item, Digest | int | None]] = []
        answers = self._questions.ask_all(items, partial(_answer, self._place))
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._unclear[item] = answer
            else:
                clear.append((item, answer))
        return clear

    def read_all(self) -> dict[Digest, MirrorError]:
        """Read each distinct blob and manifest that is there; return what is wrong, and why.

        A registry stores equal content once, so one reading proves it for all repositories.
        """
        blobs: dict[Digest, tuple[str, int]] = {}
        manifests: dict[Digest, str] = {}
        for path, content in sorted(self._held.build().repositories.items()):
            blobs.update((digest, (path, size)) for digest, size in content.blobs.items())
            manifests.update((digest, path) for digest in content.manifests)
        on_event = self._run.on_event
        on_event(
            TransferStarted(len(blobs), sum(size for _, size in blobs.values()), len(manifests), 0)
        )
        readings: list[tuple[Digest, Callable[[], None]]] = [
            (digest, partial(read_blob, self._place, path, digest, size, on_event))
            for digest, (path, size) in blobs.items()
        ]
        readings += [
            (digest, partial(read_manifest, self._place, path, digest))
            for digest, path in manifests.items()
        ]
        outcomes = self._questions.ask_all(readings, lambda one: one[1](), wide=False)
        damaged: dict[Digest, MirrorError] = {}
        for (digest, _), outcome in zip(readings, outcomes, strict=True):
            if outcome is None:
                continue
            if speaks_of_damage(outcome):
                damaged[digest] = outcome
            else:
                path = blobs[digest][0] if digest in blobs else manifests[digest]
                self._unclear[Item(path, digest, is_blob=digest in blobs)] = outcome
        return damaged


def _answer(place: ReadableTree, item: Item) -> Digest | int | None:
    """The digest that a tag or manifest has there, or a blob's size; None if it is absent."""
    client, repository = place.client, place.locate(item.repository)
    if item.tag is not None:
        return named(client, repository, item.tag, item.digest)
    assert item.digest is not None, "only a tag can be without a digest"
    if item.is_blob:
        return client.blob_size(repository, item.digest)
    found = client.resolve(repository, item.digest)
    return found.digest if found else None


def read_blob(
    place: ReadableTree, path: str, digest: Digest, size: int, on_event: OnEvent = ignore_events
) -> None:
    """Read a blob and hash it.

    Raises:
        SizeMismatchError, DigestMismatchError: it is not what it goes by.
        RegistryNotFoundError: it is not there.
    """
    with closing(place.client.blob(place.locate(path), digest, size=size)) as chunks:
        for chunk in chunks:
            on_event(BytesMoved(digest, len(chunk)))
    on_event(BlobDone(digest, size, size))


def read_manifest(place: ReadableTree, path: str, digest: Digest) -> None:
    """Read a manifest and hash it; raises as `RegistryClient.manifest` does."""
    place.client.manifest(place.locate(path), digest)


def probe_candidates(wanted: Inventory, untagged: Iterable[str]) -> list[Item]:
    """The blobs that only the repositories `untagged` want, in the order in which they are sent.

    Most often such repositories do not exist yet. A push that was cut off leaves blobs and no tags
    there, each in the first repository that wants it, and those are not to be sent twice.
    """
    apart = frozenset(untagged)
    first: dict[Digest, tuple[int, str]] = {}
    elsewhere: set[Digest] = set()
    for path, content in sorted(wanted.repositories.items()):
        if path not in apart:
            elsewhere.update(content.blobs)
            continue
        for digest, size in content.blobs.items():
            first.setdefault(digest, (-size, path))
    order = sorted((size, digest, path) for digest, (size, path) in first.items())
    return [
        Item(path, digest, is_blob=True) for _, digest, path in order if digest not in elsewhere
    ]


def probe_sample(candidates: Sequence[Item], jobs: int) -> list[Item]:
    """The first `jobs` of `candidates`, and at most as many spread evenly over the others.

    Blobs go out largest first and `jobs` at a time, so a push that began at all has finished one of
    the first `jobs`, or nothing that would be missed. Others, spread over the rest, reveal pushes
    that failed at the large ones.
    """
    rest = candidates[jobs:]
    step = max(1, -(-len(rest) // jobs))
    return [*candidates[:jobs], *rest[step - 1 :: step]]


# -- after a push --------------------------------------------------------------------------------

_SAMPLE = 64
_PAUSES_S = (0.2, 1.0)
"""How long to wait before what is absent is asked for again: some registries are late."""


class Verification(StrEnum):
    """What a push asks the registry for, once that has accepted everything.

    `NONE`: nothing. `TAGS`: some of the blobs before a manifest needs them; before a tag turns,
    each manifest that was put, by its new tags if it has any; afterwards each tag that turned. What
    the comparison had seen is not asked for again. `ALL`: besides, every tag, manifest and blob of
    the bundle.
    """

    NONE = "none"
    TAGS = "tags"
    ALL = "all"


def check_blobs(place: ReadableTree, steps: Sequence[CopyBlob], run: Run) -> None:
    """Ask for some of the blobs that were sent, before a manifest needs them.

    Raises:
        IncompleteError: one is not there.
    """
    blobs = [Item(path, step.digest, is_blob=True) for step in steps for path in step.into]
    _check_kept(place, blobs[:: max(1, -(-len(blobs) // _SAMPLE))], "no tag was set", run)


def check_manifests(place: ReadableTree, steps: Iterable[PutManifest], run: Run) -> None:
    """Ask for the manifests that were put by their digest, before tags turn.

    Raises:
        IncompleteError: one is not there.
    """
    manifests = [Item(put.repository, put.digest) for put in steps]
    _check_kept(place, manifests, "no version or channel was set", run)


def _check_kept(place: ReadableTree, items: Sequence[Item], so_far: str, run: Run) -> None:
    if findings := _unkept(place, items, run):
        raise IncompleteError(
            f"{place.name}: {len(findings)} things that it accepted are not there, and {so_far}; "
            "look for a cache or a proxy in front that keeps uploads to itself, and at the "
            "registry's storage" + listed(findings),
            (),
        )


def check_tags(place: ReadableTree, steps: Iterable[PutTag], run: Run) -> None:
    """Ask for the tags that were set.

    Raises:
        IncompleteError: one of them names something else.
    """
    tags = [Item(put.repository, put.digest, put.tag) for put in steps]
    if findings := _unkept(place, tags, run):
        raise IncompleteError(
            f"{place.name}: {len(findings)} tags that it accepted do not name what was put; a "
            "registry that converts manifests, or a cache in front, cannot serve a cluster, which "
            "asks for digests. If somebody else pushed at the same time, run it again"
            + listed(findings),
            (),
        )


def _unkept(place: ReadableTree, items: Sequence[Item], run: Run) -> list[Finding]:
    """The items that are not there."""
    questions = PerItemErrors(place.client.ping, run)
    findings: list[Finding] = []
    for pause_s in (*_PAUSES_S, 0.0):
        answers = questions.ask_all(items, partial(_answer, place))
        doubtful = [
            (item, answer)
            for item, answer in zip(items, answers, strict=True)
            if answer != item.digest and not isinstance(answer, int)
        ]
        findings = [_unkept_one(place, item, answer) for item, answer in doubtful]
        items = [item for item, _ in doubtful]
        if not items:
            break
        run.sleep(pause_s)
    return findings


def _unkept_one(
    place: ReadableTree, item: Item, answer: Digest | int | MirrorError | None
) -> Finding:
    problem = f"{'blob' if item.is_blob else 'manifest'} {item.digest} is not there"
    if isinstance(answer, MirrorError):
        problem = str(answer)
    elif answer is not None:
        problem = f"it names {answer} instead of {item.digest}"
    tags = (item.tag,) if item.tag is not None else ()
    return Finding(place.name, problem, item.repository, tags, item.digest)
