"""What a push would do, by repository, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.bundle.format import Shard
from mirror.documents import document
from mirror.errors import MirrorError
from mirror.oci import Digest
from mirror.sync import Inventory, Plan, TransferReport
from mirror.sync.observe import Verification
from mirror.sync.publication_state import Published
from mirror.sync.tree import RegistryTree


@dataclass(slots=True)
class Share:
    """What a plan does in one repository. `size` is the bytes that are sent; mounts send none."""

    blobs: int = 0
    size: int = 0
    mounts: int = 0
    manifests: int = 0
    tags: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return document(self, "blobs", "bytes=size", "mounts", "manifests", "tags")


def shares(plan: Plan) -> dict[str, Share]:
    """Split `plan` by repository path, sorted. Each blob is sent to one repository."""
    found: dict[str, Share] = {}

    def share(path: str) -> Share:
        return found.setdefault(path, Share())

    for step in plan.blobs:
        for number, path in enumerate(step.into):
            if number == 0 and step.mount_from is None:
                share(path).blobs += 1
                share(path).size += step.size
            else:
                share(path).mounts += 1
    for put in (put for wave in plan.manifests for put in wave):
        share(put.repository).manifests += 1
    for name in (name for stage in plan.tags for name in stage):
        share(name.repository).tags.append(name.tag)
    return dict(sorted(found.items()))


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push of `inventory` below `tree`, or a `shard` of it, would carry.

    `names` are those of components.
    """

    tree: RegistryTree
    inventory: Inventory
    plan: Plan
    names: Mapping[Digest, str] = field(default_factory=dict)
    shard: Shard | None = None

    @property
    def components(self) -> list[str]:
        """The components whose images get a tag, as installers call them: `module/image`."""
        tagged = {step.digest for stage in self.plan.tags for step in stage}
        return sorted({name for digest, name in self.names.items() if digest in tagged})

    @property
    def mounts(self) -> int:
        """How often a repository is given a blob that another one has."""
        return sum(share.mounts for share in shares(self.plan).values())

    @property
    def uploads(self) -> int:
        """How many blobs are sent."""
        return sum(step.mount_from is None for step in self.plan.blobs)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        by_repository = {
            self.tree.locate(path): share.to_document() for path, share in shares(self.plan).items()
        }
        counts = ("bytes=size", "manifests=manifest_count", "tags=tag_count")
        return {
            "target": self.tree.name,
            **({} if self.shard is None else {"shard": str(self.shard)}),
            "inventory": str(self.inventory.digest()),
            "upload": {
                **document(self, "blobs=uploads", "mounts"),
                **document(self.plan, *counts),
            },
            "uploadByRepository": by_repository,
            "components": self.components,
            **self.inventory.counts(),
        }


@dataclass(frozen=True, slots=True)
class PushReport:
    """A finished push: the target has accepted all of `inventory` that it did not have.

    `verification` says what it was asked for afterwards. `published` is what the target states now;
    `new`, whether this push stated it.
    `bases` are the inventories that deltas among what was pushed were made against.
    """

    target: str
    inventory: Inventory
    digest: Digest
    plan: Plan
    done: TransferReport
    published: Published
    new: bool
    bases: tuple[Digest, ...] = ()
    verification: Verification = Verification.TAGS

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            **({"delta": {"bases": [str(base) for base in self.bases]}} if self.bases else {}),
            "uploaded": {
                "blobs": sum(step.mount_from is None for step in self.plan.blobs),
                **_uploaded(self.done),
            },
            "verified": self.verification.value,
            "published": _published(self.published, new=self.new),
            **self.inventory.counts(),
        }


@dataclass(frozen=True, slots=True)
class PushShardReport:
    """What a shard of a push did: it brought `blobs`, `sent` bytes of them.

    `awaited` are the shards of which the registry lacks blobs. If there are none, this one has set
    the tags: `finished` is that push.
    """

    target: str
    shard: Shard
    blobs: int
    sent: int
    awaited: tuple[int, ...]
    finished: PushReport | None

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        own = document(self, "target", "blobs", "bytes=sent", "awaited")
        finished = None if self.finished is None else self.finished.to_document()
        return {**own, "shard": str(self.shard), "push": finished}


@dataclass(frozen=True, slots=True)
class MemberReport:
    """What became of one registry: it holds everything, or `problem` says why it does not."""

    target: str
    done: TransferReport | None
    problem: MirrorError | None

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "complete": self.problem is None,
            "uploaded": _uploaded(self.done) if self.done else None,
            "problem": str(self.problem) if self.problem else None,
        }


@dataclass(frozen=True, slots=True)
class QuorumReport:
    """A push that at least `quorum` of its registries completed.

    `inventory` is the bundle's; `published` is what all complete registries state.
    """

    quorum: int
    inventory: Inventory
    digest: Digest
    published: Published
    new: bool
    members: tuple[MemberReport, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "quorum": self.quorum,
            "complete": sum(one.problem is None for one in self.members),
            "replicas": [one.to_document() for one in self.members],
            "inventory": str(self.digest),
            "published": _published(self.published, new=self.new),
            **self.inventory.counts(),
        }


def _uploaded(done: TransferReport) -> dict[str, int]:
    return document(done, "bytes=sent", "manifests", "tags")


def _published(published: Published, *, new: bool) -> dict[str, Any]:
    return {
        "generation": published.statement.generation,
        "inventory": str(published.statement.inventory.digest()),
        "digest": str(published.digest),
        "new": new,
    }
