"""Walking a registry: what a place holds that does not state it, or is not to be taken at its word.

Tags are listed. Where nothing is known beforehand each is read (GET), as its manifest is needed
anyway; where an earlier inventory is, each is asked for (HEAD) and only what is new is read.
Manifests that no tag leads to are found through indexes, through the referrers API where the
registry has it, and through that earlier inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mirror.errors import MirrorError, RegistryNotFoundError
from mirror.events import PhaseAdvanced, PhaseStarted
from mirror.oci import Digest
from mirror.registry import RegistryReader
from mirror.run import Run
from mirror.sync.closing import closed
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.nodes import ManifestNode
from mirror.sync.registry import RegistrySource, listed_tags
from mirror.sync.survey import Failure, Item
from mirror.sync.tolerance import Tolerant

Question = TypeVar("Question")
Answer = TypeVar("Answer")

_Held = tuple[str, Digest]
"""A manifest in a repository."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found at `place`.

    `inventory` has the manifests that are there and the tags that name them, but no blob yet:
    `closed` takes them for there, `with_blobs` asks. It is open where manifests need what is not
    there. `failures` are what could not be read; `requests` counts what was asked.
    """

    place: str
    inventory: Inventory
    failures: tuple[Failure, ...]
    requests: int

    def closed(self) -> Walk:
        """Only what is whole, with its blobs: a registry takes a manifest only together with them.

        What reaches something that is not there or could not be read is left out, and the reasons
        are among the failures.
        """
        inventory, lost = closed(self.inventory)
        unread = {failure.item for failure in self.failures}
        reasons = (
            Failure(self.place, str(item), error)
            for item, error in lost.items()
            if str(item) not in unread
        )
        return replace(self, inventory=inventory, failures=(*self.failures, *reasons))


def walk(
    source: RegistrySource,
    paths: Iterable[str],
    *,
    known: Inventory | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    run: Run | None = None,
) -> Walk:
    """Follow all tags of the repositories `paths`; one that does not exist holds nothing.

    `known` is an earlier inventory; what it says of manifests is believed, and that they are there
    is not. `only` are the tags to look at (repository → names), where they were listed before.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        RegistryError: it does not list the tags of a repository.
        CancelledError: `run` was stopped.
    """
    asking = _Asking(source.client, Run.of(run))
    return _Walker(source, known or Inventory(), only, asking).walk(sorted(set(paths)))


def with_blobs(
    found: Walk,
    source: RegistrySource,
    *,
    run: Run | None = None,
) -> Walk:
    """Ask, in each repository, for each blob that its manifests need (HEAD); add what is there.

    A blob of another size than they say is not.

    Raises:
        UnreachableError, DeniedError: as `walk`.
        CancelledError: `run` was stopped.
    """
    asking = _Asking(source.client, Run.of(run))
    builder = InventoryBuilder()
    builder.add_inventory(found.inventory)
    needed = sorted(
        {
            (path, blob.digest, blob.size)
            for path, content in found.inventory.repositories.items()
            for node in content.manifests.values()
            for blob in node.blobs
        }
    )

    def size_there(one: tuple[str, Digest, int]) -> int | None:
        return source.client.blob_size(source.locate(one[0]), one[1])

    failures = list(found.failures)
    answers = asking.ask("blobs", needed, size_there)
    for (path, digest, size), answer in zip(needed, answers, strict=True):
        if isinstance(answer, MirrorError):
            failures.append(Failure(found.place, str(Item(path, digest, is_blob=True)), answer))
        elif answer == size:
            builder.add_blob(path, digest, size)
    return Walk(found.place, builder.build(), tuple(failures), found.requests + asking.asked)


class _Asking:
    """Questions to a registry: put by several threads, told of as progress, and counted."""

    def __init__(self, client: RegistryReader, run: Run) -> None:
        self._tolerant = Tolerant(client)
        self._run = run
        self.asked = 0

    def ask(
        self, what: str, items: Sequence[Question], question: Callable[[Question], Answer]
    ) -> list[Answer | MirrorError]:
        """The answers to `question` in the items' order; `what` these are is told."""
        if not items:
            return []

        def told(item: Question) -> Answer:
            try:
                return question(item)
            finally:
                self._run.on_event(PhaseAdvanced())

        self._run.on_event(PhaseStarted(f"looking at the registry's {what}", len(items)))
        self.asked += len(items)
        return self._tolerant.ask_all(items, told, run=self._run)

    def once(self, question: Callable[[], Answer]) -> Answer | MirrorError:
        """The answer to one question, which is worth no telling."""
        self.asked += 1
        return self._tolerant.ask(question)


class _Walker:
    """One walk under way."""

    def __init__(
        self,
        source: RegistrySource,
        known: Inventory,
        only: Mapping[str, Collection[str]] | None,
        asking: _Asking,
    ) -> None:
        self._source, self._known, self._only, self._asking = source, known, only, asking
        self._client = source.client
        # Both change between questions only, never while threads are asking.
        self._nodes = known.manifest_nodes()
        self._failed: dict[Item, MirrorError] = {}
        self._has_referrers: bool | None = None

    def walk(self, paths: list[str]) -> Walk:
        tags = self._tags(paths)
        named = {(path, digest) for (path, _), digest in tags.items()}
        there: dict[_Held, ManifestNode] = {}
        pending = named | {
            (path, digest) for path in paths for digest in self._known.repository(path).manifests
        }
        seen: set[_Held] = set()
        while pending:
            seen |= pending
            found = self._look(sorted(pending), named)
            there.update(found)
            below = {
                (path, child.digest) for (path, _), node in found.items() for child in node.children
            }
            pending = (below | self._referrers(list(found))) - seen
        builder = InventoryBuilder()
        for (path, _), node in there.items():
            builder.add_manifest(path, node, closed=False)
        for (path, tag), digest in tags.items():
            if (path, digest) in there:
                builder.add_tag(path, tag, digest)
        place = self._source.name
        failures = (Failure(place, str(item), error) for item, error in self._failed.items())
        return Walk(place, builder.build(), tuple(failures), self._asking.asked)

    def _tags(self, paths: list[str]) -> dict[tuple[str, str], Digest]:
        """What each tag names. Manifests that were read with that are among the nodes."""
        names = [(path, tag) for path, tags in self._listed(paths) for tag in sorted(tags)]
        digests: dict[tuple[str, str], Digest] = {}
        answers = self._asking.ask("tagged images", names, self._named)
        for (path, tag), answer in zip(names, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._failed[Item(path, _NO_DIGEST, tag)] = answer
            elif isinstance(answer, ManifestNode):
                digests[path, tag] = digest = answer.descriptor.digest
                self._nodes[digest] = answer
            elif answer is not None:  # None: it leads nowhere, or was deleted since it was listed
                digests[path, tag] = answer
        return digests

    def _listed(self, paths: list[str]) -> list[tuple[str, Collection[str]]]:
        if self._only is not None:
            return [(path, self._only.get(path, ())) for path in paths]
        listings = self._asking.ask(
            "tags", paths, lambda path: listed_tags(self._client, self._source.locate(path))
        )
        found: list[tuple[str, Collection[str]]] = []
        for path, tags in zip(paths, listings, strict=True):
            if isinstance(tags, MirrorError):
                raise tags  # without the list nobody knows what is missing
            found.append((path, tags))
        return found

    def _named(self, name: tuple[str, str]) -> Digest | ManifestNode | None:
        path, tag = name
        if self._known.repositories:
            found = self._client.resolve(self._source.locate(path), tag)
            return found.digest if found else None
        return self._read(path, tag)

    def _look(self, wanted: list[_Held], named: set[_Held]) -> dict[_Held, ManifestNode]:
        """Those of `wanted` that are there. For what is `named` the tag has answered."""
        there = {
            one: self._nodes[one[1]] for one in wanted if one in named and one[1] in self._nodes
        }
        rest = [one for one in wanted if one not in there]
        answers = self._asking.ask("images", rest, self._node)
        for one, answer in zip(rest, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._failed[Item(*one)] = answer
            elif answer is not None:
                self._nodes[one[1]] = there[one] = answer
        return there

    def _node(self, one: _Held) -> ManifestNode | None:
        path, digest = one
        known = self._nodes.get(digest)
        if known is None:
            return self._read(path, digest)
        return known if self._client.resolve(self._source.locate(path), digest) else None

    def _read(self, path: str, reference: str | Digest) -> ManifestNode | None:
        try:
            return ManifestNode.of(self._source.fetch(path, reference))
        except RegistryNotFoundError:
            return None

    def _referrers(self, found: list[_Held]) -> set[_Held]:
        """What refers to these manifests, from registries that can be asked for it."""
        if not found or self._has_referrers is False:
            return set()

        def referrers(one: _Held) -> list[Digest] | None:
            told = self._client.referrers_api(self._source.locate(one[0]), one[1])
            return None if told is None else [child.descriptor.digest for child in told]

        answers: list[list[Digest] | MirrorError | None] = []
        if self._has_referrers is None:  # one question settles it for all
            answers = [self._asking.once(lambda: referrers(found[0]))]
            self._has_referrers = isinstance(answers[0], list)
            if not self._has_referrers:
                return set()
        answers += self._asking.ask("referrers", found[len(answers) :], referrers)
        below: set[_Held] = set()
        for one, answer in zip(found, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._failed[Item(*one)] = answer
            else:
                below.update((one[0], digest) for digest in answer or ())
        return below


_NO_DIGEST = Digest("sha256", "0" * 64)
"""For tags that could not be resolved."""
