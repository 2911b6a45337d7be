"""Adopt: take over from peers what a replica does not have, where nobody states an inventory.

Content that other tools pushed has neither a generation nor a leader, so nothing says which of two
registries is right about a tag. But if only one of them has a tag, there is nothing to decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mirror.errors import ConflictError, IncompleteError, MirrorError
from mirror.layout import is_attachment_tag, is_digest_tag, parse_version, publication_stage
from mirror.operations.trees import walk_open, walk_tree
from mirror.run import Run
from mirror.sync import Inventory, RepositoryContent, make_plan, transfer, union
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Failure, Item, complete_subset
from mirror.sync.plan import Tags, laid_over, tags_of
from mirror.sync.statement import reachable
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import Memory


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was taken over. `inventory` is all that peers have and the replica does not contradict.

    The replica holds it now, unless there are failures. `sent` is in bytes.
    """

    inventory: Inventory
    sent: int
    failures: tuple[Failure, ...]


def may_move(_path: str, tag: str) -> bool:
    """Whether a tag is likely to name something else one day: a channel does, a version does not.

    What is attached to an image changes, although its tag is made of the image's digest.
    """
    is_fixed = is_digest_tag(tag) or parse_version(tag) is not None
    return is_attachment_tag(tag) or not is_fixed


def adopt(
    replica: RegistryTree,
    peers: Sequence[RegistryTree],
    *,
    memories: Mapping[str, Memory] | None = None,
    run: Run | None = None,
) -> Adoption:
    """Copy to `replica` every tag that it does not have and a peer has, with all it leads to.

    A tag that names something else at the replica than at a peer stays as it is and is among the
    failures: to decide that takes a leader, or a push by mirror, which numbers what it brings.
    A peer that does not answer is among them too, and the others are looked at all the same.

    `memories` (name of a registry → what it answered before) spare questions to whoever looks again
    and again: then each repository lists its tags, and only what is new or may have moved is asked
    about.

    Raises:
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    memories = memories or {}
    failures: list[Failure] = []
    offers: list[tuple[RegistryTree, Inventory]] = []
    for peer in (peer.within(run) for peer in peers):
        try:
            found = walk_tree(peer, memory=memories.get(peer.name), run=run)
        except MirrorError as err:
            run.check()
            failures.append(Failure(peer.name, "the peer as a whole", err))
        else:
            failures += found.failures
            offers.append((peer, found.held))
    replica = replica.within(run)
    adopted: list[Inventory] = []
    sent = 0
    try:
        offered = union(inventory for _, inventory in offers)
        here = walk_open(replica, offered, memory=memories.get(replica.name), run=run)
        failures += here.failures
        doubtful = {item.repository for item in here.unclear}
        place, (held, _) = replica.target(run), complete_subset(here.held)
        tags = tags_of(here.held)
        for peer, inventory in offers:
            clear = inventory.filtered(lambda path: path not in doubtful)
            wanted, conflicts = undisputed(clear, tags)
            tags = laid_over(tags, tags_of(wanted))
            failures += (_conflict(replica, peer, item) for item in conflicts)
            plan = make_plan(wanted, held, stage=publication_stage)
            if plan:
                source = FailoverSource([peer.source()], wanted, on_event=run.on_event)
                try:
                    sent += transfer(plan, source, place, run=run).sent
                except IncompleteError as err:
                    failures += (Failure(replica.name, item, why) for item, why in err.failures)
                    continue
            adopted.append(wanted)
            held = union([held, wanted])
    except MirrorError as err:
        run.check()
        failures.append(Failure(replica.name, "the replica as a whole", err))
    return Adoption(union(adopted), sent, tuple(failures))


def undisputed(offered: Inventory, there: Tags) -> tuple[Inventory, tuple[Item, ...]]:
    """The part of `offered` that contradicts no tag in `there`, and the tags that contradict."""
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
