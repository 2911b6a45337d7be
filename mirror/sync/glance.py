"""Which few questions tell whether repositories without tags hold anything worth asking about.

Most often they do not exist yet. A push that was cut off leaves blobs and no tags there, and those
are not to be sent twice. Blobs go out largest first and `jobs` at a time, so a push that began at
all has finished one of the first `jobs` blobs, or nothing that would be missed; others, spread over
the rest, tell of pushes that failed at the large ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mirror.oci import Digest
from mirror.sync.inventory import Inventory


@dataclass(frozen=True, slots=True, order=True)
class Suspect:
    """A blob that may be in `path`, the first repository that an earlier push sent it to."""

    path: str
    digest: Digest


def suspects(wanted: Inventory, untagged: Collection[str]) -> list[Suspect]:
    """The blobs that only repositories in `untagged` want, in the order in which they are sent."""
    first: dict[Digest, tuple[int, str]] = {}
    elsewhere: set[Digest] = set()
    for path, content in sorted(wanted.repositories.items()):
        if path not in untagged:
            elsewhere.update(content.blobs)
            continue
        for digest, size in content.blobs.items():
            first.setdefault(digest, (-size, path))
    order = sorted((size, digest, path) for digest, (size, path) in first.items())
    return [Suspect(path, digest) for _, digest, path in order if digest not in elsewhere]


def sample(candidates: Sequence[Suspect], jobs: int) -> list[Suspect]:
    """The first `jobs` of `candidates`, and at most as many spread evenly over the others."""
    rest = candidates[jobs:]
    step = max(1, -(-len(rest) // jobs))
    return [*candidates[:jobs], *rest[step - 1 :: step]]
