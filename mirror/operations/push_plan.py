"""What a push would do: the plan, counted by repository, with nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mirror.bundle.delta import lacking
from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import check_signature
from mirror.errors import MissingBaseError
from mirror.events import PhaseStarted, Warned
from mirror.layout import TargetTree, publication_stage
from mirror.operations.pull import count
from mirror.registry import RegistryWriter
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.sync import (
    FailoverSource,
    Finding,
    Holder,
    Inventory,
    MemoryStore,
    Plan,
    make_plan,
    union,
)
from mirror.sync.observation import Depth
from mirror.sync.registry import RegistrySource, RegistryTarget


@dataclass(slots=True)
class Share:
    """What a plan does in one repository. `size`: bytes that are sent; `mounts` send none."""

    blobs: int = 0
    size: int = 0
    mounts: int = 0
    manifests: int = 0
    tags: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "blobs": self.blobs,
            "bytes": self.size,
            "mounts": self.mounts,
            "manifests": self.manifests,
            "tags": self.tags,
        }


def shares(plan: Plan) -> dict[str, Share]:
    """`plan` by repository path, in the order of paths. Each blob is sent to one repository."""
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
    """What a push of `inventory` below `tree` would carry."""

    tree: TargetTree
    inventory: Inventory
    plan: Plan

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
        return {
            "target": str(self.tree.root),
            "inventory": str(self.inventory.digest()),
            "upload": {
                "blobs": self.uploads,
                "bytes": self.plan.size,
                "mounts": self.mounts,
                "manifests": self.plan.manifest_count,
                "tags": self.plan.tag_count,
            },
            "uploadByRepository": {
                self.tree.locate(path): share.to_document()
                for path, share in shares(self.plan).items()
            },
            **count(self.inventory),
        }


def wanted_from(
    reader: BundleReader, key: bytes | None, run: Run
) -> tuple[Inventory, MemoryStore, Inventory]:
    """The bundle's inventory, the images that index it, and both as what a registry is to hold.

    Raises:
        SignatureError: the bundle was not signed by the holder of `key`.
        DamagedBundleError: it is not whole.
    """
    if key is not None:
        check_signature(reader, key)
    bundle = reader.inventory()
    for notice in reader.contents.warnings():
        run.on_event(Warned(notice))
    index = discovery_images(bundle)
    return bundle, index, union([bundle, index.inventory()])


def held_for(
    reader: BundleReader, target: RegistryTarget, bundle: Inventory, wanted: Inventory
) -> Inventory:
    """What `target` has of `wanted` and, before a delta, of what that leaves to its base.

    Raises:
        MissingBaseError: it lacks some of the latter.
    """
    if not reader.bases:
        return target.held(wanted, Depth.PROBE)
    needed = reader.needed
    held = target.held(union([wanted, needed]))
    check_base(reader, lacking(bundle, needed, held, target.name))
    return held


def check_base(reader: BundleReader, missing: Sequence[Finding]) -> None:
    """Raise MissingBaseError if anything is."""
    if missing:
        place = missing[0].place
        raise MissingBaseError(
            f"{place} lacks {len(missing)} of the manifests and blobs that {reader.name}, a delta, "
            f"leaves to its base (inventory {', '.join(map(str, reader.bases))}); push that base "
            "first, or a complete bundle; nothing was written",
            [str(finding).removeprefix(f"{place}: ") for finding in missing],
        )


def content_for(
    reader: BundleReader, index: MemoryStore, target: RegistryTarget, held: Inventory
) -> FailoverSource:
    """Where a push reads: in the bundle, and in the target itself what a delta leaves out, where
    a tag or a second repository needs it."""
    if not reader.bases:
        return FailoverSource([reader, index])
    there = RegistrySource(target.client, target.locate, target.name)
    return FailoverSource([reader, index, Holder(there, held)])


def plan_push(
    reader: BundleReader,
    client: RegistryWriter,
    tree: TargetTree,
    *,
    key: bytes | None = None,
    run: Run | None = None,
) -> PushPlan:
    """Say what `push` with the same arguments would do. The registry is only read.

    Raises:
        SignatureError, DamagedBundleError, MissingBaseError, CancelledError: as `push`.
    """
    run = Run.of(run)
    client = client.within(run)
    bundle, _, wanted = wanted_from(reader, key, run)
    target = RegistryTarget(client, tree.locate, f"registry {tree.root}", run=run)
    client.ping()
    run.on_event(PhaseStarted("comparing with the registry"))
    held = held_for(reader, target, bundle, wanted)
    plan = make_plan(wanted, held, stage=publication_stage)
    return PushPlan(tree, bundle, plan)
