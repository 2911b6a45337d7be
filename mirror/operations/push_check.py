"""The registry's word after a push: is what it accepted there?

A cache in front may swallow what is put, a registry may convert manifests, and a full disk may lose
blobs behind an answer that was good.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from mirror.errors import ConflictError, IncompleteError, MirrorError
from mirror.oci import Digest
from mirror.run import PerItemErrors, Run
from mirror.sync import Inventory, Plan
from mirror.sync.observation import Depth, Finding, Item, findings_of, listed
from mirror.sync.observe import observe
from mirror.sync.publication_state import statement_digest
from mirror.sync.tree import RegistryTree

_SAMPLE = 64
_PAUSES_S = (0.2, 1.0)
"""How long to wait before what is absent is asked for again: some registries are late."""


class Verification(StrEnum):
    """What a push asks the registry for, once that has accepted everything.

    `NONE`: nothing. `TAGS`: before a tag turns, each manifest that was put and some of the blobs,
    and afterwards each tag that turned; what the comparison had seen is not asked for again. `ALL`:
    besides, every tag, manifest and blob of the bundle.
    """

    NONE = "none"
    TAGS = "tags"
    ALL = "all"


def check_content(tree: RegistryTree, plan: Plan, verification: Verification, run: Run) -> None:
    """Ask for the manifests that `plan` put, and for some of its blobs, before tags turn.

    Raises:
        IncompleteError: something is not there.
    """
    if verification is Verification.NONE:
        return
    manifests = [Item(put.repository, put.digest) for wave in plan.manifests for put in wave]
    blobs = [Item(path, step.digest, is_blob=True) for step in plan.blobs for path in step.into]
    sample = blobs[:: max(1, -(-len(blobs) // _SAMPLE))]
    if findings := _findings(tree, [*manifests, *sample], run):
        raise IncompleteError(
            f"{tree.name}: {len(findings)} things that it accepted are not there, and no tag was "
            "set; look for a cache or a proxy in front that keeps uploads to itself, and at the "
            "registry's storage" + listed(findings),
            (),
        )


def check_tags(tree: RegistryTree, plan: Plan, verification: Verification, run: Run) -> None:
    """Ask for the tags that `plan` set.

    Raises:
        IncompleteError: one of them names something else.
    """
    if verification is Verification.NONE:
        return
    tags = [Item(put.repository, put.digest, put.tag) for stage in plan.tags for put in stage]
    if findings := _findings(tree, tags, run):
        raise IncompleteError(
            f"{tree.name}: {len(findings)} tags that it accepted do not name what was put; a "
            "registry that converts manifests, or a cache in front, cannot serve a cluster, which "
            "asks for digests. If somebody else pushed at the same time, run it again"
            + listed(findings),
            (),
        )


def check_all(tree: RegistryTree, inventory: Inventory, statement: Digest, run: Run) -> None:
    """Ask a registry for all of `inventory`, and whether `statement` is what it states.

    Raises:
        IncompleteError: something is missing.
        ConflictError: it states something else by now.
    """
    found = observe(tree, inventory, Depth.AUDIT, run=run.quietly())
    findings = findings_of(inventory, found)
    if findings:
        raise IncompleteError(
            f"{tree.name}: {len(findings)} things are missing after the push; run it again"
            + listed(findings),
            (),
        )
    if statement_digest(tree) != statement:
        raise ConflictError(
            f"{tree.name} states another inventory by now: another push, rollback or sync "
            "ran at the same time; run it again, one at a time"
        )


def _findings(tree: RegistryTree, items: Sequence[Item], run: Run) -> list[Finding]:
    """The items that are not there."""
    questions = PerItemErrors(tree.client.ping, run)
    findings: list[Finding] = []
    for pause_s in (*_PAUSES_S, 0.0):
        answers = questions.ask_all(items, lambda item: _digest(tree, item))
        doubtful = [
            (item, answer)
            for item, answer in zip(items, answers, strict=True)
            if answer != item.digest
        ]
        findings = [_finding(tree, item, answer) for item, answer in doubtful]
        items = [item for item, _ in doubtful]
        if not items:
            break
        run.sleep(pause_s)
    return findings


def _digest(tree: RegistryTree, item: Item) -> Digest | None:
    """What the registry has under an item's name."""
    repository = tree.locate(item.repository)
    assert item.digest is not None, "all that was put has a digest"
    if item.is_blob:
        there = tree.client.blob_size(repository, item.digest)
        return None if there is None else item.digest
    found = tree.client.resolve(repository, item.tag or item.digest)
    return found.digest if found else None


def _finding(tree: RegistryTree, item: Item, answer: Digest | MirrorError | None) -> Finding:
    problem = f"{'blob' if item.is_blob else 'manifest'} {item.digest} is not there"
    if isinstance(answer, MirrorError):
        problem = str(answer)
    elif answer is not None:
        problem = f"it names {answer} instead of {item.digest}"
    tags = (item.tag,) if item.tag is not None else ()
    return Finding(tree.name, problem, item.repository, tags, item.digest)
