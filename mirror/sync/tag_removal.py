"""Removing tags, and nothing but tags, from registries that can.

For a rollback, which removes nothing else: `mirror.sync.removal` is for content that is to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import groupby

from mirror.errors import MirrorError, RegistryError, RegistryNotFoundError, UnreachableError
from mirror.events import Warned
from mirror.registry import RegistryWriter
from mirror.run import Run
from mirror.sync.artifact import make_artifact, put_artifact
from mirror.sync.plan import PutTag, TagStage
from mirror.sync.registry import Locate, RegistryTarget
from mirror.sync.statement import REPOSITORY
from mirror.sync.workers import for_each

TRIAL = make_artifact("application/vnd.deckhouse.mirror.probe.v1")
"""The artifact of our own on which `deletes_tags` tries what a registry does."""


def deletes_tags(client: RegistryWriter, locate: Locate, tag: str) -> bool:
    """Whether the registry deletes a tag when asked to, and keeps the manifest that it named.

    Most of those that cannot refuse, but some would delete the manifest, with all its other tags.
    So it is tried on a manifest of our own, beside the statements, under `tag`, which is left to
    name that manifest where it cannot be deleted: name one that is about to be set anyway.
    """
    repository, probe = locate(REPOSITORY), TRIAL.manifest
    put_artifact(client, repository, TRIAL, tag)
    try:
        with suppress(RegistryNotFoundError):  # gone, by a request whose answer was lost
            client.delete_tag(repository, tag)
        kept = client.resolve(repository, probe.digest) is not None
        gone = client.resolve(repository, tag) is None
    except UnreachableError:
        raise
    except RegistryError:
        return False
    finally:
        with suppress(RegistryError):  # a few bytes, where even that is not allowed
            client.delete_manifest(repository, probe.digest)
    return kept and gone


def remove_tags(
    target: RegistryTarget,
    tags: Sequence[PutTag],
    *,
    stage: TagStage,
    run: Run | None = None,
) -> tuple[tuple[str, str], ...]:
    """Delete tags of a registry that `deletes_tags`, the last stage of `stage` first.

    Returns those that are gone, as (repository, tag); of others it is warned.

    Raises:
        CancelledError: `run` was stopped.
    """

    run = Run.of(run)

    def remove(step: PutTag) -> None:
        with suppress(RegistryNotFoundError):
            target.client.delete_tag(target.locate(step.repository), step.tag)

    def stage_of(step: PutTag) -> int:
        return stage(step.repository, step.tag)

    gone: list[tuple[str, str]] = []
    for _, steps in groupby(sorted(tags, key=stage_of, reverse=True), stage_of):
        with closing(for_each(list(steps), remove, run=run)) as outcomes:
            for step, outcome in outcomes:
                if isinstance(outcome, MirrorError):
                    name = f"{step.repository or '/'}:{step.tag}"
                    run.on_event(
                        Warned(f"{target.name}: tag {name} could not be removed: {outcome}")
                    )
                else:
                    gone.append((step.repository, step.tag))
    return tuple(sorted(gone))
