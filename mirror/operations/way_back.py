"""The way back: to which generation a rollback goes, and what the registry held then."""

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
from mirror.layout import TargetTree
from mirror.oci import Digest
from mirror.operations.pull import tool_name
from mirror.registry import RegistryClient
from mirror.run import Run
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.publish import Standing, generations, read_generation
from mirror.sync.registry import RegistrySource
from mirror.sync.statement import Statement, succeed
from mirror.sync.succession import state_before
from mirror.sync.tags import Tags, differing, laid_over, tags_of, tags_only, unaccounted
from mirror.sync.workers import for_each

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class WayBack:
    """From `replaced` to generation `to`: `base`, and what it does not tell of its tags."""

    to: int
    base: Inventory
    former: Tags
    replaced: Statement

    def wanted(self, source: RegistrySource, run: Run) -> Inventory:
        """All that the registry held then; what other tools set is read from it."""
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

    def statement(self, standing: Standing, wanted: Inventory, held: Tags) -> Statement | None:
        """What the registry is to state; None if the statement that is replaced says it already."""
        former = unaccounted(held, *standing.known_tags())
        same = wanted == self.replaced.inventory
        if standing.pending is None:
            if same and not former:
                return None
        else:
            if same and self.replaced.restores == self.to:
                return None  # the same rollback, interrupted: it goes on
            former = laid_over(former, self.replaced.former)
        number = standing.generation + 1
        return Statement(wanted, number, former, restores=self.to, tool=tool_name())


def way_back(
    client: RegistryClient, tree: TargetTree, standing: Standing, to: int | None, run: Run
) -> WayBack:
    """Decide where to go back to, and read what is known about it."""
    newest = standing.newest
    if newest is None:
        raise NotFoundError(
            f"registry {tree.root} states no inventory, so there is nothing to go back to; a push "
            "writes one"
        )
    kept = generations(client, tree.locate)
    current = standing.current.statement.generation if standing.current else 0
    to = _destination(standing, current, kept) if to is None else to
    top = newest.statement.generation
    if to >= top:
        raise InputError(
            f"generation {to} is not before the current one, {top}; `mirror history` lists them"
        )
    base = Inventory()
    if to > 0:
        found = standing.current if to == current else None
        found = found or read_generation(client, tree.locate, to)
        if found is None:
            raise InputError(
                f"registry {tree.root} keeps no generation {to}, but "
                + (", ".join(map(str, kept[-20:])) or "none at all")
            )
        base = found.statement.inventory
    numbers = [number for number in kept if to < number < top]
    later = _later(client, tree, numbers, newest.statement, run)
    return WayBack(to, base, state_before(base, later), newest.statement)


def _destination(standing: Standing, current: int, kept: Sequence[int]) -> int:
    """Where a rollback goes that was told nothing."""
    if standing.pending is not None:
        restores = standing.pending.statement.restores
        return current if restores is None else restores
    before = [number for number in kept if number < current]
    if not before:
        raise InputError(
            f"there is no generation before {current}; with --to 0 tags go back to what they named "
            "before the first one"
        )
    return before[-1]


def _later(
    client: RegistryClient,
    tree: TargetTree,
    numbers: Sequence[int],
    newest: Statement,
    run: Run,
) -> Iterator[Statement]:
    """The statements of `numbers`, one in memory at a time, and `newest`."""
    for number in numbers:
        try:
            found = read_generation(client, tree.locate, number)
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
        raise failure  # not inside the loop: leaving that early sets the caller's flag
    return found, lost


def incomplete(name: str, to: int, lost: Sequence[tuple[str, MirrorError]]) -> IncompleteError:
    return IncompleteError(
        f"{name} does not hold all of generation {to} any more, so no tag was changed; push the "
        f"bundle of that release to bring it back. {len(lost)} things lack",
        lost,
    )
