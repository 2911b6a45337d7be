"""A registry as a place that holds an inventory."""

from __future__ import annotations

from mirror.operations.sites import Site, walk_site
from mirror.run import Run
from mirror.sync import Inventory
from mirror.sync.observation import Failure
from mirror.sync.publish import read_standing


def see_registry(site: Site, *, run: Run | None = None) -> tuple[Inventory, tuple[Failure, ...]]:
    """What a registry has below its root, by its tags, and what of it could not be read.

    What it states spares reading the manifests and tells of those that no tag leads to, but counts
    for nothing else: a tag that somebody moved is seen where it is.

    Raises:
        RegistryError: it states nothing and does not list its repositories.
    """
    standing = read_standing(site.client, site.tree.locate)
    known = standing.newest.statement.inventory if standing.newest else None
    found = walk_site(site, known, run=run)
    return found.held, found.failures
