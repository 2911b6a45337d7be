"""The leader of a sync: what it states, read once and only when some replica needs it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeAlias

from mirror.errors import (
    ConflictError,
    IncompleteError,
    MirrorError,
    NotFoundError,
    RegistryNotFoundError,
    StatementError,
)
from mirror.events import Warned
from mirror.layout import is_attachment_tag, is_digest_tag, parse_version, publication_stage
from mirror.oci import Digest
from mirror.operations.trees import ask_at_once, walk_tree
from mirror.operations.trust import StatementTrust, downgrades
from mirror.run import Run
from mirror.sync import (
    Inventory,
    InventoryBuilder,
    ManifestNode,
    RepositoryContent,
    make_plan,
    union,
)
from mirror.sync.content import ForeignLayers, foreign_notice, sparse_notice
from mirror.sync.failover import FailoverSource
from mirror.sync.observation import Failure, Item, complete_subset
from mirror.sync.plan import Tags, differing, laid_over, tags_of
from mirror.sync.publication import Publication
from mirror.sync.publication_state import (
    LATEST,
    PENDING,
    PublicationState,
    Published,
    read_artifact,
    read_state,
    read_statement,
    statement_digest,
)
from mirror.sync.statement import REPOSITORY, Artifact, generation_of
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import Memory


@dataclass(frozen=True, slots=True)
class Facts:
    """What the leader has. `published` None: it states nothing, and its tags were followed.

    `failures` are what could not be read then; `artifact` is the statement as it lies there, and
    `pending` what the leader announced before it was read.
    """

    inventory: Inventory
    published: Published | None = None
    artifact: Artifact | None = None
    failures: tuple[Failure, ...] = ()
    pending: Digest | None = None

    def with_statement(self) -> Inventory:
        """The inventory and the statement of it, which can be damaged like anything else."""
        if self.artifact is None:
            return self.inventory
        builder = InventoryBuilder()
        builder.add_inventory(self.inventory)
        builder.add_manifest(REPOSITORY, ManifestNode.of(self.artifact.manifest))
        return builder.build()


class Leader:
    """The registry that decides, and the statement that it has published. Thread-safe.

    `digest` and `generation` are the statement's; None where the leader states nothing. `trust`
    says whether it may be followed.
    """

    def __init__(
        self,
        tree: RegistryTree,
        digest: Digest | None,
        generation: int | None,
        *,
        run: Run | None = None,
    ) -> None:
        self.tree, self.digest, self.generation = tree, digest, generation
        self._run = Run.of(run)
        self.source = tree.source()
        """A reader that all replicas share, as they need the same manifests."""
        self.trust = StatementTrust(tree, digest, self.source, self._run)
        self._lock = threading.Lock()
        self._facts: Facts | None = None
        self._sound: Future[bool] = Future()

    @classmethod
    def ask(cls, tree: RegistryTree, *, run: Run | None = None) -> Leader:
        """Ask which statement `tree` has published; `facts` reads it when somebody needs it.

        One small request: the statement's layer may be large.
        """
        try:
            manifest = tree.client.manifest(tree.locate(REPOSITORY), LATEST)
        except RegistryNotFoundError:
            return cls(tree, None, None, run=run)
        return cls(tree, manifest.digest, generation_of(manifest), run=run)

    @property
    def unread(self) -> tuple[Failure, ...]:
        """What could not be read of a leader that states nothing, as far as somebody asked."""
        return self._facts.failures if self._facts else ()

    def facts(self) -> Facts:
        """Its inventory: what it states, else what its tags lead to."""
        with self._lock:
            if self._facts is None:
                self._facts = self._read()
            return self._facts

    def is_sound(self) -> bool:
        """Whether the leader holds all that it states; waits until its audit has called `judge`."""
        return self._sound.result()

    def judge(self, *, sound: bool) -> None:
        """Answer everybody who waits in `is_sound`. Call it once."""
        self._sound.set_result(sound)

    def _read(self) -> Facts:
        tree = self.tree
        if self.digest is not None:
            pending = statement_digest(tree, PENDING)
            published = read_statement(tree, self.digest)
            if published is None:
                raise NotFoundError(
                    f"{tree.name}: the statement {self.digest} is gone; run the command again"
                )
            self.generation = published.statement.generation
            stated = published.statement.inventory
            if tree.rules.foreign_layers is ForeignLayers.LEAVE_OUT:
                less = without_foreign_layers(stated)
                if less != stated:
                    # What is left is not what the leader states, so nobody else may state it.
                    self._tell(stated)
                    return Facts(less)
            artifact = read_artifact(tree, published)
            return Facts(stated, published, artifact, pending=pending)
        if tree.keys.trusted:
            raise StatementError(
                "it states nothing, and trusted keys are given: nothing says that its tags are "
                "what they should be",
                where=tree.name,
                advice="push to it with --sign-key",
            )
        found = walk_tree(tree, run=self._run).complete()
        self._tell(found.held)
        if not found.held.repositories:
            raise NotFoundError(
                f"the leader {tree.name} states no inventory and holds no image; push to it first, "
                "or name another leader with --from"
            )
        return Facts(found.held, failures=found.failures)

    def _tell(self, found: Inventory) -> None:
        """Warn of what of the images is not carried."""
        rules, name = self.tree.rules, self.tree.name
        contents = found.repositories.values()
        nodes = [(content, node) for content in contents for node in content.manifests.values()]
        carried = rules.foreign_layers is ForeignLayers.CARRY
        foreign = {
            one.digest
            for content, node in nodes
            for one in node.foreign
            if not (carried and one.digest in content.blobs)
        }
        if foreign:
            self._run.on_event(Warned(foreign_notice(name, len(foreign), rules)))
        if absent := {node.descriptor.digest: node.absent for _, node in nodes if node.absent}:
            self._run.on_event(Warned(sparse_notice(name, absent)))


def without_foreign_layers(inventory: Inventory) -> Inventory:
    """`inventory` without blobs that no manifest requires and some name as foreign layers."""
    contents = {}
    for path, content in inventory.repositories.items():
        nodes = content.manifests.values()
        foreign = {one.digest for node in nodes for one in node.foreign}
        foreign -= {one.digest for node in nodes for one in node.blobs}
        blobs = {digest: size for digest, size in content.blobs.items() if digest not in foreign}
        contents[path] = replace(content, blobs=blobs) if foreign else content
    return Inventory(contents)


_Stating: TypeAlias = tuple[Published, bool, RegistryTree]
"""What a registry states, whether it publishes something now, and the registry."""


def choose_leader(
    trees: Sequence[RegistryTree], *, patience_s: float | None = None, run: Run | None = None
) -> tuple[RegistryTree, tuple[Failure, ...]]:
    """The tree that states the highest generation; of several, one that is publishing nothing.

    Clocks and dates of images do not count, and neither does a statement that the tags of its own
    registry contradict. What is on its way to a generation beyond that one, by
    a publication that is under way or was interrupted, is not to be turned back by who finds it so:
    such trees are in the failures, like those that could not be asked. All are asked at once, and
    those that have not answered after `patience_s` seconds count as unreachable.
    """
    failures: list[Failure] = []
    states: list[tuple[RegistryTree, PublicationState]] = []
    answers = ask_at_once(trees, read_state, patience_s=patience_s, run=Run.of(run))
    for tree, answer in zip(trees, answers, strict=True):
        if isinstance(answer, MirrorError):
            failures.append(Failure(tree.name, "its statement", answer))
        else:
            states.append((tree, answer))
    stating = [
        (one.current, one.pending is not None, tree)
        for tree, one in states
        if one.current is not None and not one.notices
    ]
    if not stating:
        raise NotFoundError(
            f"none of {', '.join(tree.name for tree in trees)} states a complete inventory; "
            "push to one of them, or name the leader with --from"
        )
    stating, refused = _credible(stating, run)
    failures += refused
    if not stating:
        raise refused[0].error
    highest = max(published.statement.generation for published, _, _ in stating)
    ahead = [one for one in stating if one[0].statement.generation == highest]
    if len({published.digest for published, _, _ in ahead}) > 1:
        names = ", ".join(tree.name for _, _, tree in ahead)
        raise ConflictError(
            f"{names} state different inventories as generation {highest}: they were pushed to "
            "apart from each other; name the one to follow with --from"
        )
    leader = min(ahead, key=lambda one: one[1])[2]
    _refuse_to_go_back(leader, ahead[0][0], stating)
    failures += (
        Failure(tree.name, "its statement", _on_its_way(one.generation, leader, highest))
        for tree, one in states
        if one.generation > highest and tree.name not in {failure.place for failure in refused}
    )
    return leader, tuple(failures)


def _refuse_to_go_back(
    leader: RegistryTree, chosen: Published, stating: Sequence[_Stating]
) -> None:
    """Check that what nobody named as the leader takes no channel back to an older version.

    Who may write the statement of a replica that is behind can give it the highest generation. A
    trusted signature says that it is meant, and a rollback says so.

    Raises:
        ConflictError: it does.
    """
    keys, statement = leader.keys, chosen.statement
    if keys.trusted or keys.allow_downgrade or statement.restores is not None:
        return
    for published, _, tree in stating:
        before, after = (tags_of(one.statement.inventory) for one in (published, chosen))
        if back := downgrades(before, after):
            raise ConflictError(
                f"{leader.name} states the highest generation, {statement.generation}, and that "
                f"takes {back[0]}, which {tree.name} states as generation "
                f"{published.statement.generation}; if it is what you want, name the leader with "
                "--from, and push the newest bundle again otherwise"
            )


def _credible(stating: Sequence[_Stating], run: Run | None) -> tuple[list[_Stating], list[Failure]]:
    """Those whose tags confirm what their statements say and the others' do not, in their order.

    Only what has a higher generation than another is asked about: nobody follows the rest.
    """
    credible: list[_Stating] = []
    refused: list[Failure] = []
    for one in stating:
        published, _, tree = one
        tags = tags_of(published.statement.inventory)
        news: Tags = {}
        for other, _, _ in stating:
            if other.statement.generation < published.statement.generation:
                more = differing(tags, tags_of(other.statement.inventory))
                news = laid_over(news, more)
        try:
            StatementTrust(tree, published.digest, tree.source(), Run.of(run)).confirm(news)
        except ConflictError:
            pass  # a publication is under way there, which its replicas are told of
        except StatementError as err:
            refused.append(Failure(tree.name, "its statement", err))
            continue
        credible.append(one)
    return credible, refused


def _on_its_way(generation: int, leader: RegistryTree, highest: int) -> ConflictError:
    return ConflictError(
        f"the publication of generation {generation} is under way or was interrupted there, so it "
        f"is not turned back to generation {highest}, the highest that is complete ({leader.name} "
        "has it); wait for the push, or run it again; `mirror rollback` turns it back"
    )


# -- where nobody states anything ------------------------------------------------------------------


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
    """
    run = Run.of(run)
    memories = memories or {}
    failures: list[Failure] = []
    offers: list[tuple[RegistryTree, Inventory]] = []
    for peer in (peer.within(run) for peer in peers):
        try:
            found = walk_tree(peer, memory=memories.get(peer.name), run=run).complete()
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
        here = walk_tree(replica, offered, memory=memories.get(replica.name), run=run)
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
                publication = Publication(replica, PublicationState(), seen=here.held)
                try:
                    sent += publication.carry_out(plan, source, place, run=run).done.sent
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
        untagged = content.manifests.keys() - content.reachable(content.tags.values())
        digests = content.reachable({*tags.values(), *untagged})
        nodes = {d: node for d, node in content.manifests.items() if d in digests}
        needed = {one.digest for node in nodes.values() for one in node.named}
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
