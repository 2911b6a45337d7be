"""Which part of an inventory the archives of a bundle carry, and which they leave out.

A bundle speaks of everything that its images need, and an ordinary one carries it in each layout
that needs it. It may leave out what lies elsewhere: a delta leaves out what its base holds, and a
deduplicated bundle every copy of a blob but one. Which entries these are follows from what the
bundle speaks of and from its `Carriage`; nothing else is written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.oci import Digest
from mirror.sync import Dependents, Finding, Inventory, InventoryBuilder, RepositoryContent

NOTHING = Inventory()


@dataclass(frozen=True, slots=True)
class Carriage:
    """How a bundle carries its content.

    `base` is the digest of the inventory that a delta was made against, and `needed` the part of
    that inventory which it relies on. With `once` a blob lies in one layout of the whole bundle.
    """

    base: Digest | None = None
    needed: Inventory = field(default=NOTHING, repr=False)
    once: bool = False

    @property
    def is_ordinary(self) -> bool:
        """Whether each layout has all that it needs."""
        return self.base is None and not self.once


EVERYTHING = Carriage()


@dataclass(frozen=True, slots=True)
class Omissions:
    """What a bundle leaves out, in numbers; each piece of content is counted once, sizes are bytes.

    `base`, `manifests`, `blobs` and `size` (of the blobs) speak of a delta; `repeats` of the copies
    that a deduplicated bundle does without, and is None for others.
    """

    base: Digest | None = None
    manifests: int = 0
    blobs: int = 0
    size: int = 0
    repeats: int | None = None

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`: `delta` and `dedupe`, each only where it applies."""
        document: dict[str, Any] = {}
        if self.base is not None:
            document["delta"] = {
                "base": str(self.base),
                "manifests": self.manifests,
                "blobs": self.blobs,
                "saved": self.size,
            }
        if self.repeats is not None:
            document["dedupe"] = {"saved": self.repeats}
        return document


NO_OMISSIONS = Omissions()


def against(base: Inventory, wanted: Inventory, *, once: bool = False) -> Carriage:
    """Leave to `base` whatever it holds of `wanted`.

    If it holds nothing of that, the outcome is a complete bundle, which needs no base.
    """
    needed = needed_from(base, wanted)
    return Carriage(base.digest() if needed.repositories else None, needed, once)


def needed_from(base: Inventory, wanted: Inventory) -> Inventory:
    """Return the part of `base` that a delta for `wanted` relies on.

    A manifest counts where the same repository holds it: manifests are small, and a registry
    cannot mount them. A blob counts wherever it is held, since a target mounts it from there: in
    all repositories that want it, or else in the first that holds it.
    """
    builder = InventoryBuilder()
    holders: dict[Digest, str] = {}
    sizes = wanted.blob_sizes()
    for path, held in sorted(base.repositories.items()):
        content = wanted.repository(path)
        for digest, node in content.manifests.items():
            if digest in held.manifests:
                builder.add_manifest(path, node, closed=False)
        for digest, size in held.blobs.items():
            if sizes.get(digest) == size:
                holders.setdefault(digest, path)
    found: set[Digest] = set()
    for path, content in sorted(wanted.repositories.items()):
        there = base.repository(path).blobs
        for digest, size in content.blobs.items():
            if there.get(digest) == size:
                builder.add_blob(path, digest, size)
                found.add(digest)
    for digest, path in holders.items():
        if digest not in found:
            builder.add_blob(path, digest, sizes[digest])
    return builder.build()


def left_out(parts: Mapping[str, Inventory], carriage: Carriage) -> dict[str, Inventory]:
    """Return what each archive leaves out of what it speaks of, which is `parts`.

    A blob that is carried once stays where it comes first, by archive and repository.
    """
    at_base = carriage.needed.blob_sizes()
    carried: set[Digest] = set()
    result: dict[str, Inventory] = {}
    for name, part in sorted(parts.items()):
        builder = InventoryBuilder()
        for path, content in sorted(part.repositories.items()):
            there = carriage.needed.repository(path).manifests
            for digest, node in content.manifests.items():
                if digest in there:
                    builder.add_manifest(path, node, closed=False)
            for digest, size in content.blobs.items():
                if at_base.get(digest) == size or digest in carried:
                    builder.add_blob(path, digest, size)
                elif carriage.once:
                    carried.add(digest)
        result[name] = builder.build()
    return result


def minus(whole: Inventory, part: Inventory) -> Inventory:
    """Return `whole` without the manifests and blobs of `part`; all tags stay."""
    if not part.repositories:
        return whole
    repositories = {}
    for path, content in whole.repositories.items():
        gone = part.repository(path)
        repositories[path] = RepositoryContent(
            content.tags,
            {d: node for d, node in content.manifests.items() if d not in gone.manifests},
            {d: size for d, size in content.blobs.items() if d not in gone.blobs},
        )
    return Inventory({path: content for path, content in repositories.items() if content})


def missing_findings(
    wanted: Inventory, needed: Inventory, held: Inventory, place: str
) -> tuple[Finding, ...]:
    """Report each piece of `needed` that `place`, which holds `held`, does not have.

    A finding names the part of `wanted` that needs the piece. A manifest must be in its repository,
    a blob in any. Findings about images with a name come first, since a person knows none of the
    thousands that go by their digests; otherwise the order is canonical.
    """
    missing = set(needed.blob_sizes()) - set(held.blob_sizes())
    findings: list[Finding] = []
    for path, content in sorted(wanted.repositories.items()):
        manifests = set(needed.repository(path).manifests) - set(held.repository(path).manifests)
        lost = [
            *(("manifest", digest) for digest in sorted(manifests & set(content.manifests))),
            *(("blob", digest) for digest in sorted(missing & set(content.blobs))),
        ]
        if lost:
            dependents = Dependents(content)
            findings += (
                Finding(place, f"{kind} {digest} is missing", path, dependents.tags(digest), digest)
                for kind, digest in lost
            )
    return tuple(sorted(findings, key=lambda finding: not finding.is_named))
