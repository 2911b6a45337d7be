"""Bringing again what a target lost between the check that it is there and the use of it.

A registry's garbage collector takes blobs that no manifest needs yet, and those are just the ones
that a push has brought or found.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mirror.errors import NotFoundError
from mirror.oci import Digest, Manifest
from mirror.run import Run
from mirror.sync.content import BlobContent, Source, Target
from mirror.sync.inventory import Inventory, InventoryBuilder
from mirror.sync.nodes import ManifestNode
from mirror.sync.plan import make_plan


def mend(
    repository: str,
    manifest: Manifest,
    source: Source,
    target: Target,
    put_child: Callable[[Manifest], int],
    *,
    run: Run,
) -> int | None:
    """Bring what `manifest` reaches and `target` lacks; return the bytes that moved.

    `put_child` stores a manifest below it, mending in its turn, and says what that moved.

    None if nothing that it reaches is lacking: a refusal had another reason then.

    Raises:
        MirrorError: something cannot be brought.
    """
    wanted = _reached(repository, manifest, source)
    plan = make_plan(wanted, target.held(wanted))
    below = [put for wave in plan.manifests for put in wave if put.digest != manifest.digest]
    if not plan.blobs and not below:
        return None
    sent = 0
    for step in plan.blobs:
        content = BlobContent(source, step.source, step.digest, step.size, run=run)
        sent += target.put_blob(step, content)
    for put in below:
        sent += put_child(source.manifest(repository, put.digest))
    return sent


def _reached(repository: str, manifest: Manifest, source: Source) -> Inventory:
    """`manifest` and all below it that `source` has: it may hold an index without some children."""
    builder = InventoryBuilder()
    pending, seen = [manifest], set[Digest]()
    while pending:
        one = pending.pop()
        if one.digest in seen:
            continue
        seen.add(one.digest)
        node = ManifestNode.of(one)
        builder.add_manifest(repository, node, closed=False)
        for blob in node.blobs:
            builder.add_blob(repository, blob.digest, blob.size)
        for child in node.children:
            with suppress(NotFoundError):
                pending.append(source.manifest(repository, child.digest))
    return builder.build()
