"""Where a rollback goes: which generation it puts back, and what the registry held then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import (
    IncompleteError,
    InputError,
    IntegrityError,
    InvalidManifestError,
    MirrorError,
    NotFoundError,
    StatementError,
)
from mirror.events import Warned
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.difference import Tags, differing, laid_over, tags_of, tags_only, unaccounted
from mirror.sync.publication_state import PublicationState, generations, read_generation
from mirror.sync.statement import Statement, following, state_before, succeed, tool_name
from mirror.sync.tree import RegistrySource, RegistryTree
from mirror.sync.workers import for_each

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RollbackTarget:
    """Generation `to`, which a rollback puts back in place of the statement `replaced`.

    `base` is what generation `to` states (nothing for 0), `former` what tags named besides when
    the next generation began.
    """

    to: int
    base: Inventory
    former: Tags
    replaced: Statement

    def wanted(self, source: RegistrySource, run: Run) -> Inventory:
        """Everything that the registry held then; what other tools had set is read from it.

        Raises:
            IncompleteError: some of that is lost or damaged.
        """
        others = differing(self.former, tags_of(self.base))
        if not others:
            return self.base
        builder = InventoryBuilder()
        builder.add_inventory(tags_only(others))
        roots = sorted(
            {(path, digest) for path, tags in others.items() for digest in tags.values()}
        )

        def graph(root: tuple[str, Digest]) -> list[ManifestNode]:
            nodes, pending = [], [root[1]]
            while pending:
                node = ManifestNode.of(source.manifest(root[0], pending.pop()))
                nodes.append(node)
                pending += [child.digest for child in node.children]
            return nodes

        graphs, lost = read_all(roots, graph, run)
        if lost:
            raise incomplete(source.name, self.to, lost)
        for (path, _), nodes in graphs.items():
            for node in nodes:
                builder.add_manifest(path, node)
        return succeed(self.base, builder.build())

    def statement(self, state: PublicationState, wanted: Inventory, held: Tags) -> Statement | None:
        """What the registry is to state; None if `replaced` states it already."""
        former = unaccounted(held, *state.known_tags())
        same = wanted == self.replaced.inventory
        if state.pending is None:
            if same and not former:
                return None
        else:
            if same and self.replaced.restores == self.to:
                return None  # the same rollback, interrupted: it goes on
            former = laid_over(former, self.replaced.former)
        number = following(state.generation)
        return Statement(wanted, number, former, restores=self.to, tool=tool_name())


def find_target(
    tree: RegistryTree, state: PublicationState, to: int | None, run: Run
) -> RollbackTarget:
    """Decide which generation a rollback puts back, and read what is known about it.

    Raises:
        NotFoundError: the registry states no inventory.
        InputError: it keeps no such generation, or none before the current one.
    """
    newest = state.newest
    if newest is None:
        raise NotFoundError(
            f"registry {tree.name} states no inventory, so there is nothing to go back to; a push "
            "writes one"
        )
    kept = generations(tree)
    current = state.current.statement.generation if state.current else 0
    to = _default_target(state, current, kept) if to is None else to
    top = newest.statement.generation
    if to >= top:
        raise InputError(
            f"generation {to} is not before the current one, {top}; `mirror history` lists them"
        )
    base = Inventory()
    if to > 0:
        found = state.current if to == current else None
        found = found or read_generation(tree, to)
        if found is None:
            raise InputError(
                f"registry {tree.name} keeps no generation {to}, but "
                + (", ".join(map(str, kept[-20:])) or "none at all")
            )
        base = found.statement.inventory
    numbers = [number for number in kept if to < number < top]
    later = _later(tree, numbers, newest.statement, run)
    return RollbackTarget(to, base, state_before(base, later), newest.statement)


def _default_target(state: PublicationState, current: int, kept: Sequence[int]) -> int:
    """The generation that a rollback without `to` puts back."""
    if state.pending is not None:
        restores = state.pending.statement.restores
        return current if restores is None else restores
    before = [number for number in kept if number < current]
    if not before:
        raise InputError(
            f"there is no generation before {current}; with --to 0 tags go back to what they named "
            "before the first one"
        )
    return before[-1]


def _later(
    tree: RegistryTree, numbers: Sequence[int], newest: Statement, run: Run
) -> Iterator[Statement]:
    """The statements of `numbers`, one in memory at a time, and `newest`."""
    for number in numbers:
        try:
            found = read_generation(tree, number)
        except StatementError as err:
            run.on_event(Warned(f"{err}; what other tools had set before it cannot be put back"))
            continue
        if found is not None:
            yield found.statement
    yield newest


def read_all(
    items: Sequence[tuple[str, Digest]],
    read: Callable[[tuple[str, Digest]], Result],
    run: Run,
) -> tuple[dict[tuple[str, Digest], Result], list[tuple[str, MirrorError]]]:
    """What `read` makes of manifests (repository, digest), and those that are lost or damaged."""
    found: dict[tuple[str, Digest], Result] = {}
    lost: list[tuple[str, MirrorError]] = []
    failure: MirrorError | None = None
    with closing(for_each(items, read, run=run)) as outcomes:
        for (path, digest), outcome in outcomes:
            if isinstance(outcome, NotFoundError | IntegrityError | InvalidManifestError):
                lost.append((f"manifest {path or '/'}@{digest}", outcome))
            elif isinstance(outcome, MirrorError):
                failure = failure or outcome
            else:
                found[path, digest] = outcome
    if failure is not None:
        raise failure  # not inside the loop, which would cancel the run
    return found, lost


def incomplete(name: str, to: int, lost: Sequence[tuple[str, MirrorError]]) -> IncompleteError:
    """The error of a rollback of `name` to generation `to`, of which `lost` is not there."""
    return IncompleteError(
        f"{name} does not hold all of generation {to} any more, so no tag was changed; push the "
        f"bundle of that release to bring it back. {len(lost)} things are missing",
        lost,
    )
