"""Inventory: what a registry holds of a release tree, to be the base of the next delta."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mirror.errors import (
    IncompleteError,
    InputError,
    InvalidManifestError,
    RegistryError,
    UnreachableError,
    common_exit_code,
)
from mirror.events import Warned
from mirror.oci import Digest
from mirror.operations.trees import listed_repositories, usual_repositories
from mirror.run import Run
from mirror.sync import Inventory
from mirror.sync.observation import Failure
from mirror.sync.publication_state import read_state
from mirror.sync.tree import RegistryTree
from mirror.sync.walk import walk


@dataclass(frozen=True)
class RegistryInventory:
    """What a registry was seen to hold below a root.

    `inventory` is open where manifests need what is not there, or could not be read. `failures` are
    what could not be read, `notices` tell of what is nothing that can be carried; neither is in the
    inventory. `requests` counts what was asked of its repositories.
    """

    target: str
    inventory: Inventory
    requests: int
    notices: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    @cached_property
    def digest(self) -> Digest:
        """The inventory's."""
        return self.inventory.digest()

    @cached_property
    def gaps(self) -> int:
        """How many manifests and blobs are promised and not in the inventory."""
        return sum(1 for _ in self.inventory.gaps())

    @property
    def unread(self) -> IncompleteError | None:
        """The failures as one error; None if there are none."""
        if not self.failures:
            return None
        return IncompleteError(
            f"{self.target}: this could not be read and is left out:",
            [(failure.item, failure.error) for failure in self.failures],
        )

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, else the code that all failures share, or 1."""
        return common_exit_code(failure.error for failure in self.failures)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            "requests": self.requests,
            "gaps": self.gaps,
            "notices": list(self.notices),
            "failures": [failure.to_document() for failure in self.failures],
            **self.inventory.counts(),
        }


def registry_inventory(
    tree: RegistryTree,
    *,
    known: Iterable[str] = (),
    run: Run | None = None,
) -> RegistryInventory:
    """See what the registry holds below the tree's root.

    Its repositories are those that it lists (`GET /v2/_catalog`), those that the release tree has
    by its nature, those of what its index of modules, packages and plugins names, those of its
    published statement, and `known`: paths that were learnt elsewhere, of a previous bundle, say.
    The statement also tells of manifests that no tag leads to; nothing is taken for there because
    it says so. Statements themselves, of which a registry keeps several, are no part of it. What is
    overlooked or cannot be read, of which warnings tell, only makes the next delta larger than it
    need be.

    Raises:
        DeniedError, UnreachableError: the registry as a whole refuses, or does not answer.
        RegistryError: it does not list the tags of a repository.
        IncompleteError: nothing at all could be read.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    stated = _stated(tree, run)
    paths = {*known, *stated.repositories, *usual_repositories(tree)}
    listed = listed_repositories(tree)
    if not isinstance(listed, RegistryError):
        paths.update(listed)
    elif not stated.repositories:
        run.on_event(
            Warned(
                f"{tree.client.host} does not list its repositories ({listed}); those of the "
                "release tree are looked at, which leaves out extra images of modules unless "
                "--known names a bundle that has them"
            )
        )
    found = walk(tree.source(), paths, known=stated, blobs=True, run=run)
    odd = [one for one in found.failures if isinstance(one.error, InvalidManifestError)]
    seen = RegistryInventory(
        tree.name,
        found.held,
        found.requests,
        tuple(f"{one.item} is left out: {one.error}" for one in odd),
        tuple(one for one in found.failures if one not in odd),
    )
    for notice in seen.notices:
        run.on_event(Warned(notice))
    if seen.unread is not None:
        if not seen.inventory.repositories:
            raise seen.unread
        run.on_event(Warned(str(seen.unread)))
    return seen


def _stated(tree: RegistryTree, run: Run) -> Inventory:
    """What the registry states that it holds; nothing, where it states nothing of use."""
    try:
        state = read_state(tree)
    except UnreachableError:
        raise
    except (RegistryError, InputError) as err:
        run.on_event(Warned(f"what {tree.name} states that it holds is not looked at: {err}"))
        return Inventory()
    for notice in state.notices:
        run.on_event(Warned(notice))
    return state.newest.statement.inventory if state.newest else Inventory()
