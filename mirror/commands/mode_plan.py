"""`mirror mode plan`: how to come from one mode to another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from mirror.commands import options
from mirror.commands.errors import print_json
from mirror.errors import InputError, InvalidSettingsError, MirrorError
from mirror.modes.outcomes import ClusterFacts
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.preconditions import Cause
from mirror.modes.routes import Mode, Verdict
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState
from mirror.nodeconfig.cluster import load_facts

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("plan")
@click.option(
    "--from",
    "current_file",
    type=_FILE,
    help="YAML file with the ModuleConfig that the cluster has now.",
)
@click.option(
    "--state",
    "state_file",
    type=_FILE,
    help="YAML or JSON file with the Secret registry-state: which mode was completed last, and "
    "whether a switch is under way.",
)
@click.option(
    "--to",
    "target_file",
    type=_FILE,
    required=True,
    help="YAML file with the ModuleConfig that the cluster is to have.",
)
@click.option(
    "--facts",
    "facts_file",
    type=_FILE,
    help="YAML file with what is known of the cluster: bootstrapped, static, nodes, …; what is "
    "not in it is listed as still to be looked at.",
)
@click.option(
    "--installing", is_flag=True, help="The cluster is being installed: there is no mode yet."
)
@click.option(
    "--undocumented",
    is_flag=True,
    help="Allow what the cluster would do although its documents advise against it.",
)
@options.as_json
def plan_command(
    *,
    current_file: Path | None,
    state_file: Path | None,
    target_file: Path,
    facts_file: Path | None,
    installing: bool,
    undocumented: bool,
    as_json: bool,
) -> None:
    """Plan a switch: its steps in their order, what it costs, and what stands against it.

    Nothing is done to the cluster. A switch that is refused ends with exit code 1 and names the
    way by which the target is reached all the same.
    """
    facts = ClusterFacts() if facts_file is None else load_facts(facts_file)
    target = RegistrySettings.load(target_file)
    current: RegistrySettings | None = None
    if not installing:
        state = None if state_file is None else RegistryState.load(state_file)
        current = _current(current_file, state)
        facts = _with_aborted(facts, state, target)
    elif current_file is not None or state_file is not None:
        raise InputError("--installing excludes --from and --state: there is no mode yet")
    plan = plan_switch(current, target, facts, strict=not undocumented)
    if as_json:
        print_json(plan.to_document())
    else:
        click.echo("\n".join(_lines(plan)))
    if not plan.allowed:
        click.get_current_context().exit(MirrorError.exit_code)


def _current(current_file: Path | None, state: RegistryState | None) -> RegistrySettings:
    """The settings that the cluster completed last."""
    if current_file is not None:
        current = RegistrySettings.load(current_file)
        if state is not None and state.mode is not current.mode:
            raise InputError(
                f"--from {current_file} is mode {current.mode}, and --state says that the mode "
                f"completed last is {state.mode}; give the settings of {state.mode}"
            )
        return current
    if state is None:
        raise InputError(
            "say what the cluster has now: --from FILE (its ModuleConfig), --state FILE (the "
            "Secret registry-state), or --installing"
        )
    settings = _without_parameters(state.mode)
    if settings is None:
        raise InputError(
            f"--state says that the mode is {state.mode}, and not with which parameters; add "
            "--from FILE with that ModuleConfig"
        )
    return settings


def _with_aborted(
    facts: ClusterFacts, state: RegistryState | None, target: RegistrySettings
) -> ClusterFacts:
    """`facts` with the switch that the state says is under way, if it goes elsewhere."""
    if state is None or facts.aborted is not None or state.target_mode in (state.mode, target.mode):
        return facts
    aborted = _without_parameters(state.target_mode)
    if aborted is None:
        raise InputError(
            f"--state says that a switch to {state.target_mode} was begun and not completed; add "
            "its registry section to --facts, as `aborted`"
        )
    return replace(facts, aborted=aborted)


def _without_parameters(mode: Mode) -> RegistrySettings | None:
    """The settings of a mode that has none beside its name; None for the others."""
    try:
        return RegistrySettings(mode=mode)
    except InvalidSettingsError:  # it needs a section
        return None


def _lines(plan: SwitchPlan) -> Iterator[str]:
    before = "installation" if plan.current is None else plan.current.value
    yield f"{before} → {plan.target}"
    if plan.verdict is Verdict.NOTHING:
        yield "There is nothing to change"
        return
    for number, step in enumerate(plan.steps, 1):
        yield f"{number:>3}. {step.condition}: {step.action}"
    if plan.warnings:
        yield "Warnings"
        yield from (f"  {one.risk}: {one.message}" for one in plan.warnings)
    if plan.doubts:
        yield "Still to be looked at"
        yield from (f"  {one.cause}: {one.message}" for one in plan.doubts)
    if plan.refusals:
        yield "Refused"
        for refusal in plan.refusals:
            yield f"  {refusal.cause}: {refusal.message}"
            way = " → ".join([before, *refusal.path])
            if refusal.path and refusal.cause is not Cause.NOT_SUPPORTED:  # which has it
                yield f"    switch by this way instead: {way}"
