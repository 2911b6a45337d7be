"""Places that hold an inventory: a bundle, an inventory in a file, or a registry."""

from __future__ import annotations

import json
from pathlib import Path

from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.errors import DamagedBundleError, InputError
from mirror.operations.trees import walk_tree
from mirror.run import Run
from mirror.sync import Inventory
from mirror.sync.publication import read_state
from mirror.sync.statement import Statement
from mirror.sync.survey import Failure
from mirror.sync.tree import RegistryTree


def read_inventory(path: Path) -> Inventory:
    """The inventory of a bundle's folder, or in a file: plain, sealed, or a registry's statement.

    Raises:
        DamagedBundleError: what is there is no inventory, or is damaged.
        InputError: there is nothing, or it is of a newer schema.
    """
    if path.is_dir():
        with BundleReader([path]) as reader:
            return reader.inventory()
    try:
        data = path.read_bytes()
    except OSError as err:
        raise InputError(f"{path}: {err.strerror or err}") from err
    try:
        document = json.loads(data)
        keys = set(document)
    except (ValueError, TypeError, RecursionError) as err:
        raise DamagedBundleError(f"{path}: this is not an inventory: {err}") from err
    if "archives" in keys:
        return Seal.from_json(data).inventory
    if "generation" in keys:
        return Statement.from_json(data).inventory
    try:
        return Inventory.from_document(document)
    except DamagedBundleError as err:
        raise DamagedBundleError(f"{path}: {err}") from err


def see_registry(
    tree: RegistryTree, *, run: Run | None = None
) -> tuple[Inventory, tuple[Failure, ...]]:
    """What a registry has below its root, by its tags, and what of it could not be read.

    What it states spares reading the manifests and tells of those that no tag leads to, but counts
    for nothing else: a tag that somebody moved is seen where it is.

    Raises:
        RegistryError: it states nothing and does not list its repositories.
    """
    standing = read_state(tree)
    known = standing.newest.statement.inventory if standing.newest else None
    found = walk_tree(tree, known, run=run)
    return found.inventory, found.failures
