"""Adopt: take over from peers what a replica lacks, where nobody states an inventory.

Content that other tools pushed comes with no generation and no leader, so nothing says which of
two registries is right about a tag. What one has and the other lacks is no question, though.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirror.errors import ConflictError, IncompleteError, MirrorError
from mirror.layout import publication_stage
from mirror.operations.trees import walk_tree
from mirror.run import Run
from mirror.sync import Inventory, RepositoryContent, make_plan, transfer, union
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Depth, Failure, Item
from mirror.sync.observe import observe
from mirror.sync.statement import reachable
from mirror.sync.tags import Tags, tags_of
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was taken over: `inventory` is all that peers have and the replica does not contradict.

    It is at the replica now, unless there are failures. `sent` in bytes.
    """

    inventory: Inventory
    sent: int
    failures: tuple[Failure, ...]


def adopt(
    replica: RegistryTree,
    peers: Sequence[RegistryTree],
    *,
    run: Run | None = None,
) -> Adoption:
    """Copy to `replica` every tag that it lacks and a peer has, with all it leads to.

    A tag that names something else at the replica than at a peer stays as it is and is among the
    failures: to decide that takes a leader, or a push by mirror, which numbers what it brings.
    A peer that does not answer is among them too, and the others are looked at all the same.

    Raises:
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    replica = replica.within(run)
    place = replica.target(run)
    failures: list[Failure] = []
    adopted: list[Inventory] = []
    sent = 0
    for peer in (one.within(run) for one in peers):
        try:
            found = walk_tree(peer, run=run)
            failures += found.failures
            seen = observe(place, found.held, Depth.LISTED, run=run)
            failures += (
                Failure(replica.name, str(item), error) for item, error in seen.unclear.items()
            )
            wanted, conflicts = undisputed(found.held, tags_of(seen.held))
            failures += (_conflict(replica, peer, item) for item in conflicts)
            if not wanted.repositories:
                continue
            done = transfer(
                make_plan(wanted, seen.held, stage=publication_stage),
                FailoverSource([peer.source()], wanted),
                place,
                run=run,
            )
            sent += done.sent
            adopted.append(wanted)
        except IncompleteError as err:
            failures += (Failure(replica.name, item, reason) for item, reason in err.failures)
        except MirrorError as err:
            if run.stopped:
                raise
            failures.append(Failure(peer.name, "the peer as a whole", err))
    return Adoption(union(adopted), sent, tuple(failures))


def undisputed(offered: Inventory, there: Tags) -> tuple[Inventory, tuple[Item, ...]]:
    """What of `offered` contradicts no tag that is `there`, and the tags that do."""
    kept: dict[str, RepositoryContent] = {}
    conflicts: list[Item] = []
    for path, content in offered.repositories.items():
        named = there.get(path, {})
        tags = {tag: d for tag, d in content.tags.items() if named.get(tag, d) == d}
        conflicts += (Item(path, named[tag], tag) for tag in sorted(content.tags.keys() - tags))
        untagged = content.manifests.keys() - reachable(content, content.tags.values())
        digests = reachable(content, {*tags.values(), *untagged})
        nodes = {d: node for d, node in content.manifests.items() if d in digests}
        needed = {blob.digest for node in nodes.values() for blob in node.blobs}
        blobs = {d: size for d, size in content.blobs.items() if d in needed}
        if nodes:
            kept[path] = RepositoryContent(tags, nodes, blobs)
    return Inventory(kept), tuple(conflicts)


def _conflict(replica: RegistryTree, peer: RegistryTree, item: Item) -> Failure:
    error = ConflictError(
        f"it names {item.digest} here and something else at {peer.name}, and neither states an "
        "inventory that would decide; name a leader, or push with mirror to the one that is right"
    )
    return Failure(replica.name, str(item), error)
