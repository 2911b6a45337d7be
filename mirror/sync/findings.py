"""Findings: what is wrong with some place, located as closely as it can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mirror.errors import DigestMismatchError, MirrorError, UnreachableError
from mirror.layout import is_digest_tag
from mirror.oci import Digest
from mirror.sync.inventory import Inventory
from mirror.sync.nodes import RepositoryContent
from mirror.sync.observation import Observation, speaks_of_damage


@dataclass(frozen=True, slots=True)
class Finding:
    """Something damaged, missing or foreign.

    `place` is the archive or the registry; `tags` are those of `repository` that need the content
    `digest`. `repository` is None where the trouble lies in no single one.
    """

    place: str
    problem: str
    repository: str | None = None
    tags: tuple[str, ...] = ()
    digest: Digest | None = None

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
            where.append(f"tag{'s' if len(self.tags) > 1 else ''} {shown}{more}")
        return f"{', '.join(where)}: {self.problem}" if where else self.problem

    @property
    def is_named(self) -> bool:
        """Whether a tag that says something to a person suffers from it."""
        return not all(map(is_digest_tag, self.tags))

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "place": self.place,
            "repository": self.repository,
            "tags": list(self.tags),
            "digest": str(self.digest) if self.digest else None,
            "problem": self.problem,
        }


def _shown(tag: str) -> str:
    """A tag for a person: of one that is made of a digest, its beginning and its end."""
    return f"{tag[:19]}…{tag[71:]}" if is_digest_tag(tag) else tag


def listed(findings: Iterable[Finding], *, most: int = 20) -> str:
    """The first `most` findings, one indented line each, and how many there are beyond."""
    lines = [f"\n  {finding}" for finding in findings]
    more = f"\n  and {len(lines) - most} more" if len(lines) > most else ""
    return "".join(lines[:most]) + more


class Dependents:
    """Answers which tags of a repository need some manifest or blob, directly or further up."""

    def __init__(self, content: RepositoryContent) -> None:
        self._parents: dict[Digest, list[Digest]] = {}
        for digest, node in content.manifests.items():
            for below in (*node.blobs, *node.children):
                self._parents.setdefault(below.digest, []).append(digest)
        self._tags: dict[Digest, list[str]] = {}
        for tag, digest in content.tags.items():
            self._tags.setdefault(digest, []).append(tag)

    def tags(self, digest: Digest) -> tuple[str, ...]:
        """The tags that reach `digest`, sorted."""
        reached, pending = {digest}, [digest]
        while pending:
            for parent in self._parents.get(pending.pop(), ()):
                if parent not in reached:
                    reached.add(parent)
                    pending.append(parent)
        return tuple(sorted(tag for one in reached for tag in self._tags.get(one, ())))


def findings_of(wanted: Inventory, found: Observation) -> tuple[Finding, ...]:
    """Every tag, manifest and blob of `wanted` that is absent or damaged, in canonical order.

    Raises:
        MirrorError: the registry gave no clear answer about something.
    """
    missing = _missing(wanted, found.certain(), found.place)
    return (*missing, *_damaged(wanted, found))


def _missing(wanted: Inventory, held: Inventory, place: str) -> Iterator[Finding]:
    for path, content in sorted(wanted.repositories.items()):
        there = held.repository(path)
        if not there:
            lost = f"{len(content.tags)} tags, {len(content.manifests)} manifests and "
            lost += f"{len(content.blobs)} blobs are missing"
            tags = tuple(sorted(content.tags))
            yield Finding(place, f"nothing of this repository is there: {lost}", path, tags)
            continue
        dependents = Dependents(content)

        def finding(
            problem: str, digest: Digest, dependents: Dependents = dependents, path: str = path
        ) -> Finding:
            return Finding(place, problem, path, dependents.tags(digest), digest)

        for blob in sorted(set(content.blobs) - set(there.blobs)):
            yield finding(f"blob {blob} is missing", blob)
        for manifest in sorted(set(content.manifests) - set(there.manifests)):
            yield finding(f"manifest {manifest} is missing", manifest)
        for tag, digest in sorted(content.tags.items()):
            named = there.tags.get(tag)
            if named is None:
                yield Finding(place, f"the tag is missing ({digest})", path, (tag,), digest)
            elif named != digest:
                problem = f"the tag names {named} instead of {digest}"
                yield Finding(place, problem, path, (tag,), digest)


def _damaged(wanted: Inventory, found: Observation) -> Iterator[Finding]:
    broken = [error for error in found.damaged.values() if isinstance(error, UnreachableError)]
    if 2 * len(broken) > len(found.held.blob_sizes()):
        raise broken[0]  # hardly anything can be read, so this is no matter of single blobs
    for digest, error in found.damaged.items():
        if not speaks_of_damage(error):
            raise error
        yield from _everywhere(wanted, found.place, digest, error)


def _everywhere(
    wanted: Inventory, name: str, digest: Digest, error: MirrorError
) -> Iterator[Finding]:
    """One finding per repository that needs the damaged content."""
    problem = str(error)
    if isinstance(error, DigestMismatchError):
        # A push alone would find it there and leave it as it is.
        problem = (
            f"what is there as {digest} is damaged, it hashes to {error.actual}; delete it in the "
            "registry, then push again"
        )
    for path, content in sorted(wanted.repositories.items()):
        if digest in content.blobs or digest in content.manifests:
            yield Finding(name, problem, path, Dependents(content).tags(digest), digest)
