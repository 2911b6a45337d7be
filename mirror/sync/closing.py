"""Closing: what of an open inventory is whole. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mirror.errors import MirrorError, NotFoundError
from mirror.oci import Digest
from mirror.sync.inventory import Inventory, InventoryBuilder, size_conflict
from mirror.sync.nodes import RepositoryContent
from mirror.sync.survey import Item


def closed(inventory: Inventory) -> tuple[Inventory, dict[Item, MirrorError]]:
    """What of `inventory` is whole, with all its blobs, and the reasons for which the rest is not.

    A manifest is whole if all its children are there and whole, and if it gives the sizes of blobs
    that were seen or that most manifests of its repository give; a tag, if what it names is whole.
    Blobs are taken for there where the manifests that need them are.
    """
    builder = InventoryBuilder()
    lost: dict[Item, MirrorError] = {}
    for path, content in inventory.repositories.items():
        reasons = dict(_reasons(path, content))
        lost.update((Item(path, digest), reason) for digest, reason in reasons.items())
        broken = _with_all_above(reasons, content)
        for digest, node in content.manifests.items():
            if digest not in broken:
                builder.add_manifest(path, node)
        for tag, digest in content.tags.items():
            if digest not in broken:
                builder.add_tag(path, tag, digest)
    return builder.build(), lost


def _reasons(path: str, content: RepositoryContent) -> Iterator[tuple[Digest, MirrorError]]:
    where = path or "the root repository"
    sizes = _agreed_sizes(content)
    for digest, node in sorted(content.manifests.items()):
        for blob in node.blobs:
            if sizes[blob.digest] != blob.size:
                yield digest, size_conflict(path, node, blob, sizes[blob.digest])
                break
        for child in node.children:
            if child.digest not in content.manifests:
                yield child.digest, _absent(f"index {digest} of {where} leads to it")
    for tag, digest in sorted(content.tags.items()):
        if digest not in content.manifests:
            yield digest, _absent(f"tag {tag} of {where} names it")


def _agreed_sizes(content: RepositoryContent) -> dict[Digest, int]:
    """The size of each blob in bytes: the one that was seen, else what most manifests say.

    Where as many say one thing as another, the manifest of the lowest digest is believed.
    """
    said: dict[Digest, Counter[int]] = {}
    for _, node in sorted(content.manifests.items()):
        for blob in {blob.digest: blob for blob in reversed(node.blobs)}.values():
            said.setdefault(blob.digest, Counter())[blob.size] += 1
    # `most_common` keeps the order of first appearance among equals.
    agreed = {digest: sizes.most_common(1)[0][0] for digest, sizes in said.items()}
    return agreed | {digest: content.blobs[digest] for digest in said.keys() & content.blobs.keys()}


def _absent(why: str) -> NotFoundError:
    return NotFoundError(f"it is not there, though {why}; push again what it belongs to")


def _with_all_above(digests: Iterable[Digest], content: RepositoryContent) -> set[Digest]:
    """`digests`, and all manifests that reach one of them."""
    parents: dict[Digest, list[Digest]] = {}
    for digest, node in content.manifests.items():
        for child in node.children:
            parents.setdefault(child.digest, []).append(digest)
    found = set(digests)
    pending = list(found)
    while pending:
        for parent in parents.get(pending.pop(), ()):
            if parent not in found:
                found.add(parent)
                pending.append(parent)
    return found
