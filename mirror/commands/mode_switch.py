"""`mirror mode plan` and `check`: what a switch does, and whether all images are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from mirror.bundle.reader import read_inventory
from mirror.commands.cluster import Cluster
from mirror.commands.cluster_files import required_cluster
from mirror.commands.options import (
    FILE,
    PathHere,
    Work,
    as_json,
    command,
    flag,
    grouped,
    option,
    running,
)
from mirror.documents import document, file_text
from mirror.errors import (
    InputError,
    IntegrityError,
    InvalidSettingsError,
    MirrorError,
    RequiredImagesError,
    common_exit_code,
)
from mirror.modes.check import CheckReport, ItemState, check_images, connect_with, targets_for
from mirror.modes.outcomes import ClusterFacts
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.preconditions import Cause
from mirror.modes.required import (
    RequiredSet,
    critical_modules,
    deployment_of,
    from_digest_list,
    from_inventory,
    from_values,
    relaxed,
)
from mirror.modes.routes import Mode, Verdict
from mirror.modes.settings import CheckMode, RegistrySettings
from mirror.modes.state import RegistryState
from mirror.nodeconfig.cluster import load_facts, read_document, read_modules
from mirror.nodeconfig.rotation import RotationStep, possible_rotation, rotation_steps
from mirror.nodeconfig.service_secrets import Rotated
from mirror.registry import ConnectionOptions


@command("plan", "mirror mode plan --from direct.yaml --to local.yaml --facts facts.yaml")
def plan_command(
    current_file: Path | None = option(
        "YAML file with the cluster's present ModuleConfig.", "--from", type=FILE
    ),
    state_file: Path | None = option(
        "YAML or JSON file with the Secret registry-state: the present mode and any switch under "
        "way.",
        "--state",
        type=FILE,
    ),
    target_file: Path = option(
        "YAML file with the ModuleConfig to switch to.", "--to", type=FILE, required=True
    ),
    facts_file: Path | None = option(
        "YAML file with facts about the cluster (bootstrapped, static, nodes, …). The plan lists "
        "what it does not say as still to be checked.",
        "--facts",
        type=FILE,
    ),
    rotated: tuple[str, ...] = option(
        "Plan a rotation too: of the authority, the token keys or the users' passwords, as `mirror "
        "controller` does it. Repeatable.",
        "--rotate",
        multiple=True,
        type=click.Choice([one.value for one in Rotated]),
    ),
    installing: bool = flag("The cluster is being installed: there is no mode yet."),
    undocumented: bool = flag(
        "Allow what the cluster can do and its documentation advises against."
    ),
    work: Work = as_json,
) -> None:
    """Plan a switch: its steps in order, what it costs, and what prevents it.

    This changes nothing in the cluster. A refused switch ends with exit code 1, and the output
    names a path that reaches the target.
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
    if rotated and plan.verdict is not Verdict.NOTHING:
        raise InputError(
            f"--rotate: a switch to {plan.target} comes first; rotate when it is complete"
        )
    walk = rotation_steps(possible_rotation(rotated, target.kind)) if rotated else ()
    found = {**plan.to_document(), "rotation": [document(one, *_STEP) for one in walk]}
    lines = [*_lines(plan), *_rotation_lines(walk)]
    work.say(found, lines, code=0 if plan.allowed else MirrorError.exit_code)


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
            "give the cluster's present state: --from FILE (its ModuleConfig), --state FILE (the "
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
        yield "Still to check"
        yield from (f"  {one.cause}: {one.message}" for one in plan.doubts)
    if plan.refusals:
        yield "Refused"
        for refusal in plan.refusals:
            yield f"  {refusal.cause}: {refusal.message}"
            way = " → ".join([before, *refusal.path])
            if refusal.path and refusal.cause is not Cause.NOT_SUPPORTED:  # which has it
                yield f"    switch by this path instead: {way}"


_STEP = ("phase", "action", "condition")


def _rotation_lines(walk: Sequence[RotationStep]) -> Iterator[str]:
    if walk:
        yield "Rotation"
    for number, step in enumerate(walk, 1):
        yield f"{number:>3}. {step.action}"
        yield f"     until {step.condition}"


@dataclass(frozen=True, slots=True)
class _Required:
    """The options of a check that say which images the cluster needs."""

    digests_file: Path | None
    inventory_path: Path | None
    values_file: Path | None
    modules_file: Path | None
    deckhouse_image: str | None

    def images(self, mode: CheckMode) -> RequiredSet:
        """The required images."""
        image = self.deckhouse_image
        deployment = None if image is None else deployment_of(image)
        sources = (self.digests_file, self.inventory_path, self.values_file)
        if sum(path is not None for path in sources) > 1:
            raise InputError("--digests, --inventory and --values exclude each other; keep one")
        if (self.modules_file is None) is not (self.values_file is None):
            raise InputError("--values and --modules go together; give both")
        if mode is CheckMode.RELAX:
            return relaxed(deployment)
        if self.digests_file is not None:
            digests = file_text(self.digests_file, RequiredImagesError)
            return from_digest_list(digests, str(self.digests_file), deployment)
        if self.inventory_path is not None:
            return from_inventory(read_inventory(self.inventory_path), deployment)
        if self.values_file is not None and self.modules_file is not None:
            critical = critical_modules(read_modules(self.modules_file))
            return from_values(read_document(self.values_file), critical, deployment)
        raise InputError(
            "say what is required: --digests FILE, --inventory BUNDLE_DIR, or --values FILE with "
            "--modules FILE"
        )


@command("check", "mirror mode check --module-config direct.yaml --inventory bundle")
def check_command(
    cluster: Cluster = required_cluster,
    required: _Required = grouped(
        _Required,
        digests_file=option(
            "Require these images: a release's images_digests.json, or one digest a line.",
            "--digests",
            type=FILE,
        ),
        inventory_path=option(
            "Require the images of this bundle or inventory.json.",
            "--inventory",
            type=PathHere(exists=True),
        ),
        values_file=option(
            "Require the images of critical modules that these values name (YAML or JSON with "
            "global.modulesImages.digests).",
            "--values",
            type=FILE,
        ),
        modules_file=option(
            "With --values: the cluster's modules (kubectl get modules -o yaml), which say what is "
            "critical.",
            "--modules",
            type=FILE,
        ),
        deckhouse_image=option(
            "Also require this image of the platform's own container; with checkMode Relax, only "
            "this."
        ),
    ),
    tls_skip_verify: bool = flag("Accept any certificate of the registry."),
    work: Work = running,
) -> None:
    """Check that the registry of these settings holds every image that the cluster needs.

    This is the registry outside the cluster or, in mode Local, every master's replica. The exit
    code is 4 if images are missing.
    """
    report = check_images(
        required.images(cluster.settings.check_mode),
        targets_for(cluster.settings, cluster.access),
        connect_with(ConnectionOptions(verify=not tls_skip_verify), work.on_event),
        workers=work.run.jobs,
        run=work.run,
    )
    code = 0 if report.ready else _exit_code(report)
    work.show(report, lambda one, _: _told(one, cluster.settings), code=code, whole=True)


def _told(report: CheckReport, settings: RegistrySettings) -> str:
    """As the cluster shows it in its status, where `Mode` is that of the check."""
    head = f"mode {settings.mode}, checkMode {report.mode}"
    return "\n".join([head, *(one.message for one in report.registries)])


def _exit_code(report: CheckReport) -> int:
    """4 where something is missing; else what kept the registries from answering."""
    items = [item for one in report.registries for item in one.items]
    if any(item.state is ItemState.MISSING for item in items):
        return IntegrityError.exit_code
    errors = [item.error for item in items if item.error is not None]
    return common_exit_code(errors) or MirrorError.exit_code
