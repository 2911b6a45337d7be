"""Walking a registry: the inventory of a place that does not state what it holds.

Tags are listed and resolved by HEAD; a manifest is fetched once, and not at all where an earlier
inventory knows it. Manifests that no tag leads to are found through indexes, through the referrers
API where the registry has it, and through that earlier inventory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import InvalidManifestError, MirrorError
from mirror.oci import Digest
from mirror.sync.inventory import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.registry import RegistrySource, listed_tags
from mirror.sync.survey import Failure, Item
from mirror.sync.tolerance import Tolerant
from mirror.sync.workers import DEFAULT_JOBS

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found: a closed inventory, and what could not be read and is not in it."""

    inventory: Inventory
    failures: tuple[Failure, ...]


def walk(
    source: RegistrySource,
    paths: Iterable[str],
    *,
    known: Inventory | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    jobs: int = DEFAULT_JOBS,
    cancel: threading.Event | None = None,
) -> Walk:
    """The inventory of the repositories `paths`, as tags and what they lead to tell it.

    `only` are the tags to look at (repository → names), where they were listed before.

    A tag that reaches something unreadable is left out, and is among the failures. Blobs are not
    asked about: a registry takes a manifest only together with them.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        CancelledError: `cancel` was set.
    """
    return _Walker(source, known or Inventory(), only, jobs, cancel).walk(sorted(set(paths)))


class _Walker:
    def __init__(
        self,
        source: RegistrySource,
        known: Inventory,
        only: Mapping[str, Collection[str]] | None,
        jobs: int,
        cancel: threading.Event | None,
    ) -> None:
        self._source, self._known, self._only = source, known, only
        self._jobs, self._cancel = jobs, cancel
        self._client = source.client
        self._tolerant = Tolerant(source.client)
        self._nodes = known.manifest_nodes()
        self._failed: dict[Item, MirrorError] = {}
        self._has_referrers: bool | None = None

    def walk(self, paths: list[str]) -> Walk:
        tags = self._tags(paths)
        there: dict[tuple[str, Digest], ManifestNode] = {}
        pending = {(path, digest) for (path, _), digest in tags.items()}
        pending |= self._untagged(paths, pending)
        while pending:
            found = self._read(sorted(pending))
            there.update(found)
            below = {
                (path, child.digest) for (path, _), node in found.items() for child in node.children
            }
            below |= self._referrers(list(found))
            failed = {(item.repository, item.digest) for item in self._failed if item.tag is None}
            pending = below - there.keys() - failed
        return self._closed(tags, there)

    def _ask(
        self, items: list[Question], question: Callable[[Question], Answer]
    ) -> list[Answer | MirrorError]:
        return self._tolerant.ask_all(items, question, jobs=self._jobs, cancel=self._cancel)

    def _tags(self, paths: list[str]) -> dict[tuple[str, str], Digest]:
        def listing(path: str) -> Collection[str]:
            if self._only is not None:
                return self._only.get(path, ())
            return listed_tags(self._client, self._source.locate(path))

        names: list[tuple[str, str]] = []
        for path, tags in zip(paths, self._ask(paths, listing), strict=True):
            if isinstance(tags, MirrorError):
                raise tags  # without the list nobody knows what is missing
            names += [(path, tag) for tag in sorted(tags)]

        def resolved(name: tuple[str, str]) -> Digest | None:
            found = self._client.resolve(self._source.locate(name[0]), name[1])
            return found.digest if found else None

        digests: dict[tuple[str, str], Digest] = {}
        for (path, tag), digest in zip(names, self._ask(names, resolved), strict=True):
            if isinstance(digest, MirrorError):
                self._failed[Item(path, _NO_DIGEST, tag)] = digest
            elif digest is not None:  # None: deleted since it was listed
                digests[path, tag] = digest
        return digests

    def _untagged(
        self, paths: list[str], tagged: set[tuple[str, Digest]]
    ) -> set[tuple[str, Digest]]:
        """Manifests of the earlier inventory that are still there, though no tag names them."""
        candidates = [
            (path, digest)
            for path in paths
            for digest in self._known.repository(path).manifests
            if (path, digest) not in tagged
        ]
        answers = self._ask(
            candidates, lambda one: self._client.resolve(self._source.locate(one[0]), one[1])
        )
        return {
            one
            for one, answer in zip(candidates, answers, strict=True)
            if answer is not None and not isinstance(answer, MirrorError)
        }

    def _read(self, wanted: list[tuple[str, Digest]]) -> dict[tuple[str, Digest], ManifestNode]:
        unknown = list({digest: (path, digest) for path, digest in wanted}.values())
        unknown = [one for one in unknown if one[1] not in self._nodes]
        answers = self._ask(unknown, lambda one: self._source.manifest(*one))
        for (_, digest), answer in zip(unknown, answers, strict=True):
            if not isinstance(answer, MirrorError):
                self._nodes[digest] = ManifestNode.of(answer)
            else:
                for path, same in wanted:
                    if same == digest:
                        self._failed[Item(path, digest)] = answer
        return {one: self._nodes[one[1]] for one in wanted if one[1] in self._nodes}

    def _referrers(self, found: list[tuple[str, Digest]]) -> set[tuple[str, Digest]]:
        """What refers to these manifests, from registries that can be asked for it."""
        if not found or self._has_referrers is False:
            return set()

        def referrers(one: tuple[str, Digest]) -> list[Digest] | None:
            told = self._client.referrers_api(self._source.locate(one[0]), one[1])
            return None if told is None else [child.descriptor.digest for child in told]

        if self._has_referrers is None:  # one question settles it for all
            first = self._ask(found[:1], referrers)[0]
            self._has_referrers = isinstance(first, list)
            if not self._has_referrers:
                return set()
        answers = self._ask(found, referrers)
        return {
            (path, digest)
            for (path, _), answer in zip(found, answers, strict=True)
            if isinstance(answer, list)
            for digest in answer
        }

    def _closed(
        self,
        tags: dict[tuple[str, str], Digest],
        there: dict[tuple[str, Digest], ManifestNode],
    ) -> Walk:
        """Leave out what reaches something that could not be read."""
        parents: dict[tuple[str, Digest], list[tuple[str, Digest]]] = {}
        broken = {(item.repository, item.digest) for item in self._failed if item.tag is None}
        for (path, digest), node in there.items():
            for child in node.children:
                parents.setdefault((path, child.digest), []).append((path, digest))
        pending = list(broken)
        while pending:
            for parent in parents.get(pending.pop(), ()):
                if parent not in broken:
                    broken.add(parent)
                    pending.append(parent)
        builder = InventoryBuilder()
        failures = [self._failure(item, error) for item, error in self._failed.items()]
        for (path, digest), node in there.items():
            if (path, digest) in broken:
                continue
            try:
                builder.add_manifest(path, node)
            except InvalidManifestError as error:
                broken.add((path, digest))
                failures.append(self._failure(Item(path, digest), error))
        for (path, tag), digest in tags.items():
            if (path, digest) not in broken:
                builder.add_tag(path, tag, digest)
        return Walk(builder.build(), tuple(failures))

    def _failure(self, item: Item, error: MirrorError) -> Failure:
        return Failure(self._source.name, str(item), error)


_NO_DIGEST = Digest("sha256", "0" * 64)
"""For tags that could not be resolved."""
