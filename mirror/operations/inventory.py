"""Inventory: what a registry holds of a release tree, to be the base of the next delta."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mirror.errors import RegistryError, UnreachableError
from mirror.events import OnEvent, Warned
from mirror.events import ignore as ignore_events
from mirror.oci import Digest
from mirror.operations.pull import count
from mirror.operations.sites import listed_repositories, usual_repositories
from mirror.registry import RegistryClient
from mirror.release.tree import TargetTree
from mirror.sync import Inventory
from mirror.sync.observe import Observation, observe
from mirror.sync.workers import DEFAULT_JOBS


@dataclass(frozen=True)
class RegistryInventory:
    """What a registry was seen to hold below a root."""

    target: str
    seen: Observation

    @property
    def inventory(self) -> Inventory:
        """What is there; open, where manifests need what is not."""
        return self.seen.inventory

    @cached_property
    def digest(self) -> Digest:
        """The inventory's."""
        return self.inventory.digest()

    @cached_property
    def gaps(self) -> int:
        """How many manifests and blobs are promised and not there."""
        return sum(1 for _ in self.inventory.gaps())

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "target": self.target,
            "inventory": str(self.digest),
            "requests": self.seen.requests,
            "gaps": self.gaps,
            "notices": list(self.seen.notices),
            **count(self.inventory),
        }


def registry_inventory(
    client: RegistryClient,
    tree: TargetTree,
    *,
    known: Iterable[str] = (),
    jobs: int = DEFAULT_JOBS,
    on_event: OnEvent = ignore_events,
    cancel: threading.Event | None = None,
) -> RegistryInventory:
    """See what the registry holds below the tree's root.

    Its repositories are those that it lists (`GET /v2/_catalog`), those that the release tree has
    by its nature, those of what its index of modules, packages and plugins names, and `known`:
    paths that were learnt elsewhere, of a previous bundle, say. Published inventories, of which it
    keeps several, are no part of it. What is overlooked only makes the
    next delta larger than it need be.

    Raises:
        DeniedError, UnreachableError: the registry does not answer.
        CancelledError: `cancel` was set.
    """
    client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    paths = {*known, *usual_repositories(client, tree)}
    try:
        paths.update(listed_repositories(client, tree))
    except UnreachableError:
        raise
    except RegistryError as err:
        on_event(
            Warned(
                f"{client.host} does not list its repositories ({err}); those of the release tree "
                "are looked at, which leaves out extra images of modules unless --known names a "
                "bundle that has them"
            )
        )
    seen = observe(client, tree.locate, paths, jobs=jobs, on_event=on_event, cancel=cancel)
    for notice in seen.notices:
        on_event(Warned(notice))
    return RegistryInventory(str(tree.root), seen)
