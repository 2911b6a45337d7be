"""One pass of a controller: facts in; state, secrets, what is to be rolled out, and when to look
again out.

A pass changes nothing itself. Whoever runs it carries its result out in this order: the state is
written, then the secrets, then what is due is rolled out. Killed anywhere, the next pass comes to
the same: what is begun is written down, by a pass of its own, before anything is done for it, and a
stage before its objects are rolled out. A stage that was rolled out is never taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from mirror.errors import InputError, InvalidStateError, MirrorError
from mirror.modes import ConditionType, ModeKind, Verdict, conditions_of, outcomes
from mirror.modes.outcomes import ReplicaPod, StepOutcome
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.settings import ClusterFacts, RegistrySettings
from mirror.modes.state import Reason, RegistryState, inputs_hash
from mirror.nodeconfig import objects
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pods import PROXY, PROXY_CONFIG, Object
from mirror.nodeconfig.render import Rendered, RenderOptions, access_of, possible_rotation, render
from mirror.nodeconfig.service_secrets import (
    ServiceSecrets,
    advance_rotation,
    begin_rotation,
    prepare_secrets,
    rotation_steps,
    secrets_text,
)

PAUSE_S = 10.0
"""How long to wait for the cluster where nothing tells of a change."""
REST_S = 60.0
"""How long a cluster at rest is left alone."""

DEFAULTS = RenderOptions()
_C = ConditionType
_LATE = frozenset({"deckhouse-registry", "registry-bashible-config", objects.SERVICE})
"""What others read at once, so that it comes after the services that it leads to."""


class StepObserver(Protocol):
    """What a pass asks its cluster, step by step; each answer is as of now.

    A `MirrorError` of a method is told as what the step waits for.
    """

    def images(self, switch: Switch) -> StepOutcome:
        """Whether the registry that is wanted holds what the cluster needs."""

    def replicas(self, switch: Switch) -> Sequence[ReplicaPod]:
        """Each master's replica, with the version of its configuration."""

    def proxy(self, switch: Switch) -> StepOutcome:
        """Whether the in-cluster proxy is rolled out as rendered."""

    def components(self, switch: Switch) -> StepOutcome:
        """Whether the platform's components work with the registry that is rendered for them."""

    def left(self, switch: Switch) -> Iterable[str]:
        """The nodes on which replicas run."""

    def proxy_exists(self, switch: Switch) -> bool:
        """Whether the in-cluster proxy is there."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a pass came to, to be carried out in the order of the fields.

    `rendered` is what is due now, for `step`; nothing where it is None. With `complete` it is all
    that the cluster needs, and what is ours and not in it may go. The services of the masters in
    `waiting` keep their files until the others serve. Look again after `requeue_s` seconds, or when
    something changes.
    """

    plan: SwitchPlan
    state: RegistryState
    kept: ServiceSecrets | None = field(default=None, repr=False)
    rendered: Rendered | None = None
    step: ConditionType | None = None
    waiting: frozenset[str] = frozenset()
    complete: bool = False
    requeue_s: float = REST_S

    @property
    def due(self) -> list[Object]:
        """The objects to apply now, in their order."""
        held = {f"{objects.NODE_CONFIG}{name}" for name in self.waiting}
        every = () if self.rendered is None else self.rendered.objects
        return [one for one in every if one["metadata"]["name"] not in held]

    @property
    def reached(self) -> bool:
        """Whether the cluster is what is wanted."""
        return self.plan.allowed and not self.state.in_flight

    def summary(self) -> str:
        """For people, without secrets."""
        lines = [f"{self.plan.current} → {self.plan.target}"]
        lines += [f"  warning: {one.message}" for one in self.plan.warnings]
        lines += [f"  refused: {one.message}" for one in self.plan.refusals]
        for one in self.state.conditions:
            lines.append(f"  {'+' if one.status else '-'} {one.type} {one.message}".rstrip())
        return "\n".join(lines)


def reconcile(
    wanted: Mapping[str, Any] | str,
    state: RegistryState,
    facts: ClusterFacts,
    nodes: Sequence[Node],
    kept: ServiceSecrets | None,
    observer: StepObserver,
    now: datetime,
    *,
    installed: RegistrySettings | None = None,
    options: RenderOptions = DEFAULTS,
    rotate: str = "",
) -> Reconciled:
    """One pass towards `wanted` (a ModuleConfig, or its registry section), which is written down.

    `kept` are the secrets of the last pass, None at the first. `installed` has the registry of the
    installation, for a cluster in which no switch was completed yet. `now` has its zone. `rotate`
    asks for a rotation of secrets (`authority,token,users`), which begins in a managed mode that is
    reached; it was taken when `kept.rotation` is there.

    Raises:
        InvalidSettingsError: `wanted` breaks rules.
        InvalidStateError: another program wrote `state`.
        MirrorError: the nodes or settings cannot be rendered.
    """
    target, memory, before = RegistrySettings.load(wanted), _memory(state), state
    current = installed or RegistrySettings()
    if memory.get("completed"):
        current = RegistrySettings.load(memory["completed"])
        if facts.saved_parameters is None:  # as each mode but Local leaves them
            facts = replace(facts, saved_parameters=not current.kind.row.holds_own_images)
    begun = RegistrySettings.load(memory["begun"]) if memory.get("begun") else None
    if begun is not None and begun != target:
        if str(memory.get("stage", "")).startswith("Cleanup"):  # all works by it already
            memory, current, begun = {**memory, "completed": memory["begun"]}, begun, None
            del memory["begun"]
        else:
            facts = replace(facts, aborted=begun)
    plan = plan_switch(current, target, facts)
    if not plan.allowed:
        return Reconciled(plan, _refused(state, plan, now))
    if plan.verdict is Verdict.NOTHING and begun is None and not target.managed:
        # Ours are gone, and none are to come.
        return Reconciled(plan, state.withdrawn(now))
    stage = memory.get("stage") if state.hash == inputs_hash(target) else None
    state = state.aiming_at(target.mode, inputs_hash(target))
    kept = prepare_secrets(kept, nodes, now)
    if target != current and begun != target:
        memory = {**memory, "begun": wanted}
        memory.pop("stage", None)
        return Reconciled(plan, state.remembering(memory), kept, requeue_s=0.0)
    previous = facts.aborted if current == target else current
    saved = facts.saved_parameters is not False
    switch = Switch(target, previous, facts, nodes, kept, observer, options)
    state = state.advanced(plan.target, switch.observe, now, saved_parameters=saved)
    order = conditions_of(plan.target, saved_parameters=saved)
    unready = {one.type for one in state.conditions if not one.status}
    reached = next(at for at, one in enumerate(order) if one in unready or one is _C.READY)
    if stage in order:
        reached = max(reached, order.index(ConditionType(stage)))
    if current == target and previous is None:
        reached = len(order) - 1  # there is no way back from where it rests
    if not state.in_flight:
        memory = {**memory, "completed": wanted}
        memory.pop("begun", None)
    memory = {**memory, "stage": order[reached].value}
    if target.managed and not state.in_flight:
        state, turned = _rotated(state, before, kept, rotate, nodes, now)
        if turned != kept:
            return Reconciled(plan, state.remembering(memory), turned, requeue_s=0.0)
    rendered, step = switch.due(order[: reached + 1])
    return Reconciled(
        plan,
        state.remembering(memory),
        kept,
        rendered,
        step,
        switch.waiting(rendered),
        complete=reached > order.index(_C.FINAL),
        requeue_s=PAUSE_S if state.in_flight else REST_S,
    )


def _rotated(
    state: RegistryState,
    before: RegistryState,
    kept: ServiceSecrets,
    rotate: str,
    nodes: Sequence[Node],
    now: datetime,
) -> tuple[RegistryState, ServiceSecrets]:
    """State and secrets after the step of a rotation that is due, if there is one."""
    told = next((one for one in state.conditions if one.type is _C.ROTATION), None)
    refused = told is not None and told.reason is Reason.ERROR
    complete = None if told is None or refused else told.status
    turn = next_turn(kept, rotate, ModeKind(state.mode.value), nodes, now, complete=complete)
    if turn.outcome is not None:
        return state.rotating(turn.outcome, before, now, refused=turn.refused), turn.kept
    # Nobody asks for what was refused any more.
    return replace(state, conditions=tuple(c for c in state.conditions if c != told)), kept


@dataclass(frozen=True, slots=True)
class RotationTurn:
    """What a controller holds next, and what it tells; `outcome` is None where nothing rotates."""

    kept: ServiceSecrets
    outcome: StepOutcome | None = None
    refused: bool = False


def next_turn(
    kept: ServiceSecrets,
    request: str,
    kind: ModeKind,
    nodes: Sequence[Node],
    now: datetime,
    *,
    complete: bool | None,
) -> RotationTurn:
    """What follows where everybody has applied what is held.

    `request` has names of what to rotate, with commas; it waits for the rotation before it, of
    which `complete` was told, None where there was none. `kind` is the mode that is reached.
    """
    rotation = kept.rotation
    if rotation is None and (complete is False or not request):
        return RotationTurn(kept, None if complete is None else StepOutcome(True))
    try:
        what = possible_rotation(rotation.what if rotation else request.split(","), kind)
    except InputError as err:
        return RotationTurn(kept, StepOutcome(False, str(err)), refused=True)
    moved = advance_rotation(kept, nodes, now) if rotation else begin_rotation(kept, what, now)
    step = rotation_steps(what)[0 if rotation is None else 1 if moved.rotation else 2]
    return RotationTurn(moved, StepOutcome(False, step.action))


def _refused(state: RegistryState, plan: SwitchPlan, now: datetime) -> RegistryState:
    if plan.current and len(plan.path) > 1:
        return state.refused(plan.current, plan.target, now)
    return state.stopped("\n".join(one.message for one in plan.refusals), now)


# -- what was completed and what was begun, with passwords: the private part of the Secret ---------


def rendered_state(wanted: str, kept: ServiceSecrets, previous: str | None = None) -> RegistryState:
    """The state in which a rendering by hand leaves a cluster, for a controller to go on from.

    `wanted` is complete there, or begun where the transition from `previous` was rendered. Each is
    the text of a ModuleConfig, or of its registry section.

    Raises:
        InputError: one of them breaks rules.
    """
    target, before = (RegistrySettings.load(one) for one in (wanted, previous or wanted))
    memory = {"completed": previous or wanted, "secrets": secrets_text(kept)}
    state = RegistryState(inputs_hash(target), before.mode, target.mode)
    return state.remembering(memory | ({"begun": wanted} if previous else {}))


_KEYS = {"completed", "begun", "stage", "secrets"}


def _memory(state: RegistryState) -> dict[str, Any]:
    """What earlier passes wrote down.

    Raises:
        InvalidStateError: it is of another program, such as Deckhouse's own module.
    """
    found = state.noted()
    if state.private is None and ModeKind(state.mode.value).row.managed:
        found = None
    if not isinstance(found, dict) or found.keys() - _KEYS:
        raise InvalidStateError(
            "registry-state: another program wrote it, such as Deckhouse's module registry; let "
            "one of them lead this cluster, and go back to Unmanaged with the other one first"
        )
    return found


# -- the steps -------------------------------------------------------------------------------------


class Switch:
    """A switch from `previous` to `target`; a look after it where there is no `previous`.

    `transition` has the old ways beside the new ones, `final` the new ones alone; `access` tells
    how to reach the registry of both. `masters` are names.
    """

    def __init__(
        self,
        target: RegistrySettings,
        previous: RegistrySettings | None,
        facts: ClusterFacts,
        nodes: Sequence[Node],
        kept: ServiceSecrets,
        observer: StepObserver,
        options: RenderOptions,
    ) -> None:
        self.target, self.facts, self.observer, self.kept = target, facts, observer, kept
        self.masters = [node.name for node in nodes if node.master]
        self.access = access_of(nodes, kept)
        before = None if previous == target else previous
        self._render = partial(render, target, nodes, kept, options=options)
        self.final = self._render()
        # In the transition the old ways stay, until every node has the new ones.
        self.transition = self.final if before is None else self._render(previous=before)
        self._previous = before

    def observe(self, step: ConditionType) -> StepOutcome:
        """Whether one step is reached. Called in order."""
        try:
            return self._observe(step)
        except MirrorError as err:
            return StepOutcome(False, str(err))

    def _observe(self, step: ConditionType) -> StepOutcome:
        nodes, observer = self.facts.nodes or (), self.observer
        match step:
            case _C.IMAGES:
                return observer.images(self)
            case _C.PREFLIGHT:
                managed = bool(self.facts.node_config_managed)
                return outcomes.preflight(nodes, node_config_managed=managed)
            case _C.NODE_SERVICES:
                # Who has the final configuration already is behind this step.
                return self._replicas(self.transition, self.final)
            case _C.TRANSITION:
                passed = {self.transition.version, self.final.version}
                if nodes and all(node.version in passed for node in nodes):
                    return StepOutcome(True)
                return outcomes.containerd_config(nodes, self.transition.version)
            case _C.IN_CLUSTER_PROXY:
                return observer.proxy(self)
            case _C.REGISTRY_SWITCH:
                return observer.components(self)
            case _C.FINAL:
                done = outcomes.containerd_config(nodes, self.final.version)
                serves = not done.ready or not self.target.kind.row.runs_replicas
                return done if serves or (own := self._replicas(self.final)).ready else own
            case _C.CLEANUP_NODE_SERVICES:
                return outcomes.cleanup_node_services(observer.left(self))
            case _C.CLEANUP_IN_CLUSTER_PROXY:
                return outcomes.cleanup_in_cluster_proxy(exists=observer.proxy_exists(self))
        raise ValueError(f"{step} is not a step of a switch")

    def _replicas(self, *accepted: Rendered) -> StepOutcome:
        """Whether every master's replica serves, by one of these configurations."""
        wanted = accepted[0].masters
        pods = [
            replace(pod, version=wanted[pod.node])
            if pod.version in [one.masters.get(pod.node) for one in accepted]
            else pod
            for pod in self.observer.replicas(self)
        ]
        return outcomes.node_services(pods, wanted)

    def due(self, steps: Sequence[ConditionType]) -> tuple[Rendered | None, ConditionType | None]:
        """What the cluster must have when these steps are reached or waited for, and for which one.

        Until the masters' services serve, that is what those need, and other nodes hear nothing.
        """
        now = next((one for one in reversed(steps) if one in _ACTS), None)
        match now:
            case None:
                return None, None
            case _C.NODE_SERVICES:
                trees = {name: self.transition.nodes[name] for name in self.masters}
                early = _without(self.transition, _LATE)
                return replace(early, nodes=trees, in_cluster={}), now
            case _C.TRANSITION:
                proxy = frozenset({PROXY, PROXY_CONFIG})
                return _without(self.transition, proxy), now
            case _C.IN_CLUSTER_PROXY:
                return self.transition, now
            case _C.REGISTRY_SWITCH:
                # The old ways are still there, and components read by the new one.
                turned = self._previous is not None
                return self._render(previous=self._previous, switched=turned), now
            case _:
                return self.final, now

    def waiting(self, rendered: Rendered | None) -> frozenset[str]:
        """The masters that keep what they run, by their names.

        Their agents know nothing of each other. So of those that serve by other files one changes
        at a time, and only while all others serve.
        """
        if rendered is None or not rendered.masters:
            return frozenset()
        pods = sorted(self.observer.replicas(self), key=lambda pod: pod.node)
        serving = [pod for pod in pods if pod.node_ready and pod.pod_ready]
        behind = [pod.node for pod in serving if pod.version != rendered.masters.get(pod.node)]
        return frozenset(behind if len(serving) < len(pods) else behind[1:])


_ACTS = frozenset({*_C}) - {_C.IMAGES, _C.PREFLIGHT, _C.READY, _C.NOT_SUPPORTED}
"""The steps for which something is rolled out."""


def _without(rendered: Rendered, names: frozenset[str]) -> Rendered:
    """Without the objects of these names."""
    kept = (
        one
        for one in rendered.objects
        if one["metadata"]["name"] not in names or one["kind"] == "Ingress"
    )
    return replace(rendered, objects=tuple(kept))
