"""What a look at a registry found, as values: what is there, unclear, missing or damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from mirror.documents import document
from mirror.errors import (
    CancelledError,
    DeniedError,
    DigestMismatchError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    RegistryError,
    UnreachableError,
)
from mirror.layout import is_digest_tag
from mirror.oci import Digest
from mirror.sync.inventory import Inventory, InventoryBuilder, RepositoryContent, size_conflict


class Depth(IntEnum):
    """How closely a registry is looked at; each depth asks more questions than the one before.

    `PROBE`: as `LISTED`, where a repository has tags. Elsewhere a few blobs tell whether there is
    anything; what is overlooked there is carried again, and nothing worse.
    `LISTED`: tags, and manifests that no tag answers for. A registry takes a manifest only together
    with its blobs, so blobs are asked for only where their manifest is absent.
    `AUDIT`: every tag, manifest and blob of each repository.
    `DEEP`: the same, and each distinct blob and manifest is read and hashed.
    """

    PROBE = 0
    LISTED = 1
    AUDIT = 2
    DEEP = 3


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in a repository: a tag, or a manifest or blob by its digest.

    `digest` is None for a tag of which nobody knows what it names.
    """

    repository: str
    digest: Digest | None
    tag: str | None = None
    is_blob: bool = False

    def __str__(self) -> str:
        where = self.repository or "/"
        if self.tag is not None:
            return f"tag {where}:{self.tag}"
        return f"{'blob' if self.is_blob else 'manifest'} {where}@{self.digest}"


def items_of(path: str, content: RepositoryContent) -> list[Item]:
    """Every tag, manifest and blob of a repository, in this order."""
    return [
        *(Item(path, digest, tag) for tag, digest in content.tags.items()),
        *(Item(path, digest) for digest in content.manifests),
        *(Item(path, digest, is_blob=True) for digest in content.blobs),
    ]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that could not be asked about, carried or removed: where, what and why."""

    place: str
    item: str
    error: MirrorError

    def __str__(self) -> str:
        return f"{self.place}: {self.item}: {self.error}"

    def to_document(self) -> dict[str, str]:
        """As JSON values, for `--json`."""
        return {
            "place": self.place,
            "item": self.item,
            "type": type(self.error).__name__,
            "message": str(self.error),
        }


@dataclass(frozen=True, slots=True)
class Observation:
    """What a look at the registry `place` found.

    Attributes:
        held: what is there. A tag in it may name another digest than the one that was wanted.
        listed: all tags of every repository that was looked at.
        unclear: items about which the registry gave no proper answer. They are neither there nor
            absent, and nothing may be concluded from them.
        unlisted: repositories of which nothing was wanted, and which do not list their tags.
        damaged: what was read and is not what its digest promises (`Depth.DEEP` only).
        general: what could not be seen, where it is more than a single item.
        requests: how many questions were asked.
    """

    place: str
    held: Inventory
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unclear: Mapping[Item, MirrorError] = field(default_factory=dict)
    unlisted: Mapping[str, MirrorError] = field(default_factory=dict)
    damaged: Mapping[Digest, MirrorError] = field(default_factory=dict)
    general: tuple[Failure, ...] = ()
    requests: int = 0

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What is `general` or `unclear`, for a report."""
        return (
            *self.general,
            *(Failure(self.place, str(item), why) for item, why in self.unclear.items()),
        )

    @property
    def unlisted_failures(self) -> tuple[Failure, ...]:
        """What is `unlisted`, for a report."""
        return tuple(
            Failure(self.place, f"the tags of {path or '/'}", error)
            for path, error in self.unlisted.items()
        )

    def all_damage(self) -> dict[Digest, MirrorError]:
        """Everything that is not what its digest promises, or that the registry cannot serve."""
        unclear = {
            item.digest: error
            for item, error in self.unclear.items()
            if item.digest is not None and speaks_of_damage(error)
        }
        return {**unclear, **self.damaged}

    def certain(self) -> Inventory:
        """`held`, if every answer was clear. A blob of another size is clearly not the wanted one.

        Raises:
            MirrorError: the first answer that was not.
        """
        for error in (*self.unclear.values(), *self.unlisted.values()):
            if not isinstance(error, IntegrityError):
                raise error
        return self.held

    def complete(self) -> Observation:
        """Only what is whole, with all its blobs: a registry takes a manifest only with them.

        What reaches something that is absent or unclear is left out and becomes unclear itself.
        """
        held, broken = complete_subset(self.held)
        fresh = {item: why for item, why in broken.items() if item not in self.unclear}
        return replace(self, held=held, unclear={**self.unclear, **fresh})


def speaks_of_damage(error: MirrorError) -> bool:
    """Whether an error about one item may mean that its bytes are lost or wrong.

    A refusal of access (403) says nothing about the bytes, and copying over them would not help.
    """
    if isinstance(error, DeniedError | CancelledError):
        return False
    return error.exit_code == 4 or isinstance(error, RegistryError | InvalidManifestError)


def complete_subset(inventory: Inventory) -> tuple[Inventory, dict[Item, MirrorError]]:
    """The part of `inventory` that is whole, with all its blobs, and why the rest is not.

    A manifest is whole if all its children are there and whole, and if it gives the sizes of blobs
    that were seen or that most manifests of its repository give; a tag, if what it names is whole.
    Blobs count as there where the manifests that need them are.
    """
    builder = InventoryBuilder()
    broken: dict[Item, MirrorError] = {}
    for path, content in inventory.repositories.items():
        reasons = dict(_reasons(path, content))
        broken.update((Item(path, digest), reason) for digest, reason in reasons.items())
        left_out = Dependents(content).above(reasons)
        for digest, node in content.manifests.items():
            if digest not in left_out:
                builder.add_manifest(path, node)
                for layer in node.foreign:  # no manifest vouches for these
                    if content.blobs.get(layer.digest) == layer.size:
                        builder.add_blob(path, layer.digest, layer.size)
        for tag, digest in content.tags.items():
            if digest not in left_out:
                builder.add_tag(path, tag, digest)
    return builder.build(), broken


def _reasons(path: str, content: RepositoryContent) -> Iterator[tuple[Digest, MirrorError]]:
    where = path or "the root repository"
    sizes = _agreed_sizes(content)
    for digest, node in sorted(content.manifests.items()):
        for blob in node.blobs:
            if sizes[blob.digest] != blob.size:
                yield digest, size_conflict(path, node, blob, sizes[blob.digest])
                break
        for child in node.children:
            if child.digest not in content.manifests and child.digest not in node.absent:
                yield child.digest, _absent(f"index {digest} of {where} leads to it", sparse=True)
    for tag, digest in sorted(content.tags.items()):
        if digest not in content.manifests:
            yield digest, _absent(f"tag {tag} of {where} names it")


def _agreed_sizes(content: RepositoryContent) -> dict[Digest, int]:
    """The size of each blob in bytes: the one that was seen, else the one that most manifests give.

    Of sizes given equally often the first counts: that of the manifest with the lowest digest.
    """
    given: dict[Digest, Counter[int]] = {}
    for _, node in sorted(content.manifests.items()):
        for blob in {blob.digest: blob for blob in reversed(node.blobs)}.values():
            given.setdefault(blob.digest, Counter())[blob.size] += 1
    agreed = {digest: sizes.most_common(1)[0][0] for digest, sizes in given.items()}
    agreed.update((d, size) for d, size in content.blobs.items() if d in given)
    return agreed


def _absent(why: str, *, sparse: bool = False) -> NotFoundError:
    way = ", or let --sparse-indexes carry take the index without it" if sparse else ""
    return NotFoundError(f"it is not there, though {why}; push again what it belongs to{way}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something damaged, missing or foreign.

    `place` is the archive or the registry; `tags` are those of `repository` that need the content
    `digest`. `repository` is None where the trouble lies in no single one. `components` are what an
    installer calls the images of tags that are digests (`module/image`), as far as that is known.
    """

    place: str
    problem: str
    repository: str | None = None
    tags: tuple[str, ...] = ()
    digest: Digest | None = None
    components: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.place}: {self.located}"

    @property
    def located(self) -> str:
        """What is wrong, and in which repository and tags; without the place."""
        where = [] if self.repository is None else [f"repository {self.repository or '/'}"]
        if self.tags:
            more = f" and {len(self.tags) - 5} more" if len(self.tags) > 5 else ""
            # Names that say something first.
            readable = sorted(self.tags, key=lambda tag: (is_digest_tag(tag), tag))
            shown = ", ".join(map(_shown, readable[:5])) if self.tags[1:] else self.tags[0]
            called = ", ".join(self.components[:5]) + (" …" if self.components[5:] else "")
            where.append(
                f"tag{'s' if len(self.tags) > 1 else ''} {shown}{more}"
                + (f" ({called})" if called else "")
            )
        return f"{', '.join(where)}: {self.problem}" if where else self.problem

    @property
    def is_named(self) -> bool:
        """Whether it affects a tag whose name means something to a person."""
        return not all(map(is_digest_tag, self.tags))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return document(self, "place", "repository", "tags", "components", "digest", "problem")


def _shown(tag: str) -> str:
    """A tag for a person: a tag made of a digest is shortened to its beginning and end."""
    return f"{tag[:19]}…{tag[71:]}" if is_digest_tag(tag) else tag


def listed(findings: Iterable[Finding], *, most: int = 20) -> str:
    """The first `most` findings, one indented line each, and how many there are beyond."""
    lines = [f"\n  {finding}" for finding in findings]
    more = f"\n  and {len(lines) - most} more" if len(lines) > most else ""
    return "".join(lines[:most]) + more


class Dependents:
    """What in a repository needs some manifest or blob, directly or further up."""

    def __init__(self, content: RepositoryContent) -> None:
        self._parents: dict[Digest, list[Digest]] = {}
        for digest, node in content.manifests.items():
            for below in node.named:
                self._parents.setdefault(below.digest, []).append(digest)
        self._tags: dict[Digest, list[str]] = {}
        for tag, digest in content.tags.items():
            self._tags.setdefault(digest, []).append(tag)

    def above(self, digests: Iterable[Digest]) -> set[Digest]:
        """`digests`, and all manifests that reach one of them."""
        reached = set(digests)
        pending = list(reached)
        while pending:
            for parent in self._parents.get(pending.pop(), ()):
                if parent not in reached:
                    reached.add(parent)
                    pending.append(parent)
        return reached

    def tags(self, digest: Digest) -> tuple[str, ...]:
        """The tags that reach `digest`, sorted."""
        reached = self.above([digest])
        return tuple(sorted(tag for one in reached for tag in self._tags.get(one, ())))


def findings_of(wanted: Inventory, found: Observation) -> tuple[Finding, ...]:
    """Every tag, manifest and blob of `wanted` that is absent or damaged, in canonical order.

    Raises:
        MirrorError: the registry gave no clear answer about something.
    """
    missing = _missing(wanted, found.certain(), found.place)
    return (*missing, *_damaged(wanted, found))


NOTHING_THERE = "nothing of this repository is there"


def _missing(wanted: Inventory, held: Inventory, place: str) -> Iterator[Finding]:
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path)
        if not there:
            lost = f"{len(content.tags)} tags, {len(content.manifests)} manifests and "
            lost += f"{len(content.blobs)} blobs are missing"
            tags = tuple(sorted(content.tags))
            yield Finding(place, f"{NOTHING_THERE}: {lost}", path, tags)
            continue
        dependents = Dependents(content)

        for kind, all_of_it, held_of_it in (
            ("blob", content.blobs, there.blobs),
            ("manifest", content.manifests, there.manifests),
        ):
            for digest in sorted(all_of_it.keys() - held_of_it.keys()):
                problem = f"{kind} {digest} is missing"
                yield Finding(place, problem, path, dependents.tags(digest), digest)
        for tag, digest in sorted(content.tags.items()):
            named = there.tags.get(tag)
            if named is None:
                yield Finding(place, f"the tag is missing ({digest})", path, (tag,), digest)
            elif named != digest:
                problem = f"the tag names {named} instead of {digest}"
                yield Finding(place, problem, path, (tag,), digest)


def _damaged(wanted: Inventory, found: Observation) -> Iterator[Finding]:
    """One finding per repository that needs damaged content."""
    broken = [error for error in found.damaged.values() if isinstance(error, UnreachableError)]
    if 2 * len(broken) > len(found.held.blob_sizes()):
        raise broken[0]  # hardly anything can be read, so the registry itself is at fault
    for digest, error in found.damaged.items():
        problem = str(error)
        if isinstance(error, DigestMismatchError):
            # A push alone would find it there and leave it as it is.
            problem = (
                f"what is there as {digest} is damaged, it hashes to {error.actual}; delete it in "
                "the registry, then push again"
            )
        for path, content in sorted(wanted.repositories.items()):
            if digest in content.blobs or digest in content.manifests:
                tags = Dependents(content).tags(digest)
                yield Finding(found.place, problem, path, tags, digest)
