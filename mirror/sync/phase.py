"""The tag phase: short, announced before it begins, and finished by whoever finds it interrupted.

Nothing is deleted by a push, so whatever a tag names is complete at every moment of a phase, and
the order of its stages sees to it that what leads somewhere turns after what it leads to.
"""

from __future__ import annotations

from mirror.errors import ConflictError, IncompleteError
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.run import Run
from mirror.sync.inventory import Inventory
from mirror.sync.plan import Plan, PutTag, TagStage, make_plan
from mirror.sync.publish import Standing, complete
from mirror.sync.registry import RegistrySource, RegistryTarget
from mirror.sync.tags import Tags, differing, laid_over, tags_of, tags_only
from mirror.sync.transfer import transfer


def tags_to_finish(standing: Standing) -> Tags:
    """What the tags of an interrupted phase are to name; nothing without one."""
    if standing.pending is None:
        return {}
    statement = standing.pending.statement
    before = tags_of(standing.current.statement.inventory) if standing.current else {}
    # A tag that somebody else had moved turns too, though neither statement says so.
    before = laid_over(before, statement.former)
    return differing(tags_of(statement.inventory), before)


def finish(
    standing: Standing,
    target: RegistryTarget,
    *,
    stage: TagStage,
    run: Run | None = None,
) -> None:
    """Bring the interrupted phase of `standing`, if there is one, to its end.

    Raises:
        IncompleteError: something that it promised has gone meanwhile.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    pending = standing.pending
    if pending is None:
        return
    number = pending.statement.generation
    run.on_event(PhaseStarted(f"finishing generation {number}, whose publication was interrupted"))
    wanted = tags_only(tags_to_finish(standing))
    plan = make_plan(wanted, target.held(wanted), stage=stage)
    source = RegistrySource(target.client, target.locate, target.name)
    try:
        transfer(plan, source, target, run=run.quietly())
    except IncompleteError as err:
        raise IncompleteError(
            f"{target.name}: generation {number}, whose publication was interrupted, cannot be "
            "finished; push its bundle again, or turn it back by `mirror rollback`",
            err.failures,
        ) from err
    complete(target.client, target.locate, pending.statement, pending.digest)


def check_unmoved(target: RegistryTarget, plan: Plan, held: Inventory) -> None:
    """Check that nobody set the tags of `plan` to something else since it was made for `held`.

    Else what they name would be forgotten, and no rollback could put it back.

    Raises:
        ConflictError: somebody did.
    """
    steps = [step for steps in plan.tags for step in steps]
    now = target.held(tags_only(tags_of_steps(steps)))
    for step in steps:
        before, after = (one.repository(step.repository).tags.get(step.tag) for one in (held, now))
        # A tag that names what it should by now is one whose lost manifest has come back.
        if after not in (None, before, step.digest):
            raise ConflictError(
                f"{target.name}: {step.repository or '/'}:{step.tag} was changed by somebody else "
                f"meanwhile: it named {before or 'nothing'}, and names {after} now; "
                "no tag was set: run it again, what has arrived is not sent twice"
            )


def tags_of_steps(steps: list[PutTag]) -> Tags:
    """What `steps` let tags name."""
    tags: dict[str, dict[str, Digest]] = {}
    for step in steps:
        tags.setdefault(step.repository, {})[step.tag] = step.digest
    return tags
