"""A look at a registry of which nothing is known: its tags, and all that they lead to.

Tags are listed. Where nothing is known beforehand each is read (GET), since its manifest is needed
anyway. Where an earlier inventory is known, each is asked for (HEAD) and only what is new is read.
Manifests that no tag leads to are found through indexes, through the referrers API where the
registry has it, and through that earlier inventory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mirror.errors import MirrorError, RegistryNotFoundError
from mirror.oci import Digest, ManifestNode
from mirror.registry.client import too_much
from mirror.run import Run
from mirror.sync.content import AS_USUAL, ContentRules, ForeignLayers, PerItemErrors, SparseIndexes
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.observation import Item, Observation
from mirror.sync.observe import listed_tags, named
from mirror.sync.tree import RegistrySource

_MOST_REFERENCES = 3_000_000
"""Manifests that a walk reads, and what they refer to, each as often as it is mentioned."""

_Held = tuple[str, Digest]
"""A manifest in a repository."""


@dataclass(frozen=True, slots=True)
class _WalkRecord:
    """What one walk saw, for the next one."""

    tags: Mapping[tuple[str, str], Digest] = field(default_factory=dict)
    there: Mapping[_Held, ManifestNode] = field(default_factory=dict)
    referrers: Mapping[_Held, tuple[Digest, ...]] = field(default_factory=dict)
    has_referrers: bool | None = None


class Memory:
    """What one registry answered at the last walk, kept by a caller who walks it again and again.

    With a memory every repository is asked for its tags, and then only tags that are new or that
    `may_move` (repository, tag) accepts are asked about, and what is new below them. So a walk
    does not notice that somebody moved one of the other tags, deleted a manifest and kept its tag,
    or attached something to a known manifest through the referrers API: `forget` before a look
    that must.
    """

    def __init__(self, may_move: Callable[[str, str], bool]) -> None:
        self.may_move = may_move
        self.seen = _WalkRecord()  # replaced as a whole, so threads need no lock

    def forget(self) -> None:
        """Let the next walk ask about everything."""
        self.seen = _WalkRecord()


def walk(
    source: RegistrySource,
    paths: Iterable[str],
    *,
    known: Inventory | None = None,
    only: Mapping[str, Collection[str]] | None = None,
    blobs: bool = False,
    memory: Memory | None = None,
    rules: ContentRules = AS_USUAL,
    run: Run | None = None,
) -> Observation:
    """Follow all tags of the repositories `paths`; one that does not exist holds nothing.

    `known` is an earlier inventory. What it says about manifests is believed; that they are still
    there is not. `only` are the tags to look at (repository → names), if they were listed before.

    What is held has the manifests that are there and the tags that name them. It has no blob, and
    `Observation.complete` takes them for there, unless `blobs` asks each repository for each blob
    that its manifests need (HEAD). Foreign layers are asked for in any case, unless `rules` leave
    them out. It is open where manifests need what is not there, indexes excepted that `rules` take
    without some of their images.

    Raises:
        UnreachableError, DeniedError: the registry as a whole does not answer, or refuses.
        RegistryError: it does not list the tags of a repository.
        CancelledError: `run` was stopped.
    """
    walker = _Walker(source, known or Inventory(), only, memory, Run.of(run))
    found = walker.walk(sorted(set(paths)), rules)
    foreign = rules.foreign_layers is ForeignLayers.CARRY
    return walker.with_blobs(found, required=blobs, foreign=foreign)


class _Walker:
    """One walk under way. Its fields change between questions only, never while threads ask."""

    def __init__(
        self,
        source: RegistrySource,
        known: Inventory,
        only: Mapping[str, Collection[str]] | None,
        memory: Memory | None,
        run: Run,
    ) -> None:
        self._source, self._client = source, source.client
        self._known, self._only, self._memory = known, only, memory
        self._seen = memory.seen if memory is not None else _WalkRecord()
        self._questions = PerItemErrors(source.client.ping, run)
        self._nodes = known.manifest_nodes()
        self._nodes.update((node.descriptor.digest, node) for node in self._seen.there.values())
        self._has_referrers = self._seen.has_referrers
        self._referrers_seen: dict[_Held, tuple[Digest, ...]] = {}
        self._unclear: dict[Item, MirrorError] = {}
        self._left = _MOST_REFERENCES  # threads may lose count of a few

    def walk(self, paths: list[str], rules: ContentRules) -> Observation:
        """See what lies in these repositories."""
        listed = self._listed(paths)
        tags = self._tags([(path, tag) for path in listed for tag in sorted(listed[path])])
        named = {(path, digest) for (path, _), digest in tags.items()}
        there: dict[_Held, ManifestNode] = {}
        pending = named | {
            (path, digest) for path in paths for digest in self._known.repository(path).manifests
        }
        reached: set[_Held] = set()
        while pending:
            reached |= pending
            found = self._look(sorted(pending), named)
            there.update(found)
            below = {
                (path, child.digest) for (path, _), node in found.items() for child in node.children
            }
            pending = (below | self._referrers(list(found))) - reached
        if self._only is None:
            # A list may lag behind, as over object storage. What is known is asked for.
            tags |= self._tags(
                [
                    (path, tag)
                    for path in paths
                    for tag, digest in sorted(self._known.repository(path).tags.items())
                    if tag not in listed[path] and (path, digest) in there
                ]
            )
        if self._memory is not None:
            self._memory.seen = _WalkRecord(tags, there, self._referrers_seen, self._has_referrers)
        builder = InventoryBuilder()
        carries_sparse = rules.sparse_indexes is SparseIndexes.CARRY
        absent = self._absent(there) if carries_sparse else {}
        for (path, digest), node in there.items():
            sparse = replace(node, absent=frozenset(absent[digest])) if digest in absent else node
            builder.add_manifest(path, sparse, closed=False)
        for (path, tag), digest in tags.items():
            if (path, digest) in there:
                builder.add_tag(path, tag, digest)
        return Observation(
            self._source.name,
            builder.build(),
            listed,
            self._unclear,
            requests=self._questions.asked,
        )

    def _absent(self, there: Mapping[_Held, ManifestNode]) -> dict[Digest, set[Digest]]:
        """Sparse index → its images that are clearly not there, in some repository."""
        absent: dict[Digest, set[Digest]] = {}
        for (path, digest), node in there.items():
            for child in node.children:
                one = path, child.digest
                if one not in there and Item(*one) not in self._unclear:
                    absent.setdefault(digest, set()).add(child.digest)
        return absent

    def with_blobs(self, found: Observation, *, required: bool, foreign: bool) -> Observation:
        """`found`, and those that are there of the blobs that its manifests require or may have.

        A blob of another size than they give is not.
        """
        builder = InventoryBuilder()
        builder.add_inventory(found.held)
        needed = sorted(
            {
                (path, blob.digest, blob.size)
                for path, content in found.held.repositories.items()
                for node in content.manifests.values()
                for blob in (*node.blobs * required, *node.foreign * foreign)
            }
        )
        answers = self._questions.ask_all(
            needed,
            lambda one: self._client.blob_size(self._source.locate(one[0]), one[1]),
            title=_title("blobs"),
        )
        for (path, digest, size), answer in zip(needed, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._unclear[Item(path, digest, is_blob=True)] = answer
            elif answer == size:
                builder.add_blob(path, digest, size)
        return replace(
            found, held=builder.build(), unclear=self._unclear, requests=self._questions.asked
        )

    def _listed(self, paths: list[str]) -> dict[str, frozenset[str]]:
        if self._only is not None:
            return {path: frozenset(self._only.get(path, ())) for path in paths}
        listings = self._questions.ask_all(
            paths,
            lambda path: listed_tags(self._client, self._source.locate(path)),
            title=_title("tags"),
        )
        listed: dict[str, frozenset[str]] = {}
        for path, tags in zip(paths, listings, strict=True):
            if isinstance(tags, MirrorError):
                raise tags  # without the list nobody knows what is missing
            listed[path] = tags
        return listed

    def _tags(self, every: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Digest]:
        """What each tag names. Manifests that were read with that are among the nodes."""
        memory, seen = self._memory, self._seen.tags
        known = (name for name in every if memory and name in seen and not memory.may_move(*name))
        digests = {name: seen[name] for name in known}
        names = [name for name in every if name not in digests]
        answers = self._questions.ask_all(names, self._named, title=_title("tagged images"))
        for (path, tag), answer in zip(names, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._unclear[Item(path, None, tag)] = answer
            elif isinstance(answer, ManifestNode):
                digests[path, tag] = digest = answer.descriptor.digest
                self._nodes[digest] = answer
            elif answer is not None:  # None: it leads nowhere, or was deleted since it was listed
                digests[path, tag] = answer
        return digests

    def _named(self, name: tuple[str, str]) -> Digest | ManifestNode | None:
        path, tag = name
        if self._known.repositories or name in self._seen.tags:
            known = self._known.repository(path).tags.get(tag)
            return named(self._client, self._source.locate(path), tag, known)
        return self._read(path, tag)

    def _look(self, wanted: list[_Held], named: set[_Held]) -> dict[_Held, ManifestNode]:
        """Those of `wanted` that are there. For what is `named` the tag has answered."""
        there = {
            one: self._nodes[one[1]]
            for one in wanted
            if one in self._seen.there or (one in named and one[1] in self._nodes)
        }
        rest = [one for one in wanted if one not in there]
        answers = self._questions.ask_all(rest, self._node, title=_title("images"))
        for one, answer in zip(rest, answers, strict=True):
            if isinstance(answer, MirrorError):
                self._unclear[Item(*one)] = answer
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
            node = ManifestNode.of(self._source.fetch(path, reference))
        except RegistryNotFoundError:
            return None
        self._left -= 1 + len(node.named)
        if self._left < 0:
            where = f"{self._source.name}/{path}"
            raise too_much(where, f"{_MOST_REFERENCES} images and layers of images")
        return node

    def _referrers(self, found: list[_Held]) -> set[_Held]:
        """What refers to these manifests, from registries that can be asked for it."""
        remembered = {
            one: self._seen.referrers[one] for one in found if one in self._seen.referrers
        }
        self._referrers_seen.update(remembered)
        fresh = [one for one in found if one not in remembered]
        if fresh and self._has_referrers is None:  # one clear answer settles it for all
            one = fresh.pop(0)
            self._note_referrers(one, self._questions.ask(lambda: self._asked_referrers(one)))
        if self._has_referrers is not False:
            answers = self._questions.ask_all(
                fresh, self._asked_referrers, title=_title("referrers")
            )
            for one, answer in zip(fresh, answers, strict=True):
                self._note_referrers(one, answer)
        return {(one[0], digest) for one in found for digest in self._referrers_seen.get(one, ())}

    def _asked_referrers(self, one: _Held) -> list[Digest] | None:
        found = self._client.referrers_api(self._source.locate(one[0]), one[1])
        return None if found is None else [child.descriptor.digest for child in found]

    def _note_referrers(self, one: _Held, answer: list[Digest] | MirrorError | None) -> None:
        if isinstance(answer, MirrorError):
            self._unclear[Item(*one)] = answer
            return
        if self._has_referrers is None:
            self._has_referrers = answer is not None
        if answer is not None:
            self._referrers_seen[one] = tuple(answer)


def _title(what: str) -> str:
    return f"looking at the registry's {what}"
