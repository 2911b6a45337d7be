"""Succession: which statement comes after which. Pure; `mirror.sync.publish` reads and writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mirror.oci import Digest
from mirror.sync.inventory import Inventory
from mirror.sync.statement import Statement, succeed
from mirror.sync.tags import Tags, tags_of, unaccounted

if TYPE_CHECKING:
    from mirror.sync.publish import Standing


def next_statement(
    standing: Standing, pushed: Inventory, held: Inventory, *, tool: str, above: int = 0
) -> Statement | None:
    """What the registry states once all of `pushed` has come; None if it states that already.

    `held` is what was there before, tags above all. The generation rises by one, and lies above
    `above`: the highest of a replica that states something else.
    """
    before = standing.newest.statement.inventory if standing.newest else Inventory()
    inventory = succeed(before, pushed)
    former = unaccounted(tags_of(held), *standing.known_tags())
    if standing.newest and inventory == before and not former and above < standing.generation:
        return None
    return Statement(inventory, max(standing.generation, above) + 1, former, tool=tool)


def state_before(reached: Inventory, later: Iterable[Statement]) -> Tags:
    """What tags named otherwise than `reached` says when the first of the `later` ones began.

    `later` are all statements that came after `reached`, rising. Of a tag that neither `reached`
    nor any statement up to some generation speaks of, that generation's `former` tells; a tag that
    came in between was not there before.
    """
    found: dict[str, dict[str, Digest]] = {}
    spoken_of = {path: set(content.tags) for path, content in reached.repositories.items()}
    for number, statement in enumerate(later):
        for path, tags in statement.former.items():
            for tag, digest in tags.items():
                if number == 0 or tag not in spoken_of.get(path, ()):
                    found.setdefault(path, {}).setdefault(tag, digest)
        for path, tags in (*tags_of(statement.inventory).items(), *statement.former.items()):
            spoken_of.setdefault(path, set()).update(tags)
    return found
