"""One pass of a controller: facts in; state, secrets, what is to be rolled out, and when to look
again out.

A pass changes nothing itself. Whoever runs it carries its result out in this order: the state is
written, then the secrets, then what is due is rolled out. Killed anywhere, the next pass comes to
the same: what is begun is written down, by a pass of its own, before anything is done for it, and a
stage before its objects are rolled out. A stage that was rolled out is never taken back.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SecretStr

from mirror.errors import InvalidStateError, MirrorError
from mirror.modes import outcomes
from mirror.modes.constants import NAMESPACE, ConditionType
from mirror.modes.outcomes import ClusterFacts, ReplicaPod, StepOutcome
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.routes import ModeKind, Verdict, conditions_of
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState, inputs_hash
from mirror.nodeconfig import objects
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.object_secrets import PROXY_CONFIG
from mirror.nodeconfig.render import Rendered, RenderOptions, access_of, render
from mirror.nodeconfig.service_secrets import ServiceSecrets, prepare_secrets
from mirror.run import Run

if TYPE_CHECKING:
    from mirror.controller.cluster import Controller
    from mirror.controller.kube import KubeApi, Lease

PAUSE_S = 10.0
"""How long to wait for the cluster where nothing tells of a change."""
REST_S = 60.0
"""How long a cluster at rest is left alone."""

DEFAULTS = RenderOptions()
_log = logging.getLogger(__name__)
_C = ConditionType
_LATE = frozenset({"deckhouse-registry", "registry-bashible-config", objects.SERVICE})
"""What others read at once, so that it comes after the services that it leads to."""


class Site(Protocol):
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
    that the cluster needs, and what is ours and not in it may go. Look again after `requeue_s`
    seconds, or when something changes.
    """

    plan: SwitchPlan
    state: RegistryState
    kept: ServiceSecrets | None = field(default=None, repr=False)
    rendered: Rendered | None = None
    step: ConditionType | None = None
    complete: bool = False
    requeue_s: float = REST_S

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
    site: Site,
    now: datetime,
    *,
    installed: RegistrySettings | None = None,
    options: RenderOptions = DEFAULTS,
) -> Reconciled:
    """One pass towards `wanted` (a ModuleConfig, or its registry section), which is written down.

    `kept` are the secrets of the last pass, None at the first. `installed` has the registry of the
    installation, for a cluster in which no switch was completed yet. `now` has its zone.

    Raises:
        InvalidSettingsError: `wanted` breaks rules.
        InvalidStateError: another program wrote `state`.
        MirrorError: the nodes or settings cannot be rendered.
    """
    target, memory = RegistrySettings.load(wanted), _memory(state)
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
        # Nothing of ours is there, and nothing is to come.
        return Reconciled(plan, state.withdrawn(now))
    stage = memory.get("stage") if state.hash == inputs_hash(target) else None
    state = state.aiming_at(target.mode, inputs_hash(target))
    kept = prepare_secrets(kept, nodes, now)
    if target != current and begun != target:
        memory = {**memory, "begun": wanted}
        memory.pop("stage", None)
        return Reconciled(plan, _remembering(state, memory), kept, requeue_s=0.0)
    previous = facts.aborted if current == target else current
    saved = facts.saved_parameters is not False
    switch = Switch(target, previous, facts, nodes, kept, site, options)
    state = state.advanced(plan.target, switch.observe, now, saved_parameters=saved)
    order = conditions_of(plan.target, saved_parameters=saved)
    unready = next((one.type for one in state.conditions if not one.status), _C.READY)
    reached = order.index(unready)
    if stage in order:
        reached = max(reached, order.index(ConditionType(stage)))
    if current == target and previous is None:
        reached = len(order) - 1  # there is no way back from where it rests
    if not state.in_flight:
        memory = {**memory, "completed": wanted}
        memory.pop("begun", None)
    memory = {**memory, "stage": order[reached].value}
    return Reconciled(
        plan,
        _remembering(state, memory),
        kept,
        *switch.due(order[: reached + 1]),
        complete=reached > order.index(_C.FINAL),
        requeue_s=PAUSE_S if state.in_flight else REST_S,
    )


def _refused(state: RegistryState, plan: SwitchPlan, now: datetime) -> RegistryState:
    if plan.current and len(plan.path) > 1:
        return state.refused(plan.current, plan.target, now)
    return state.stopped("\n".join(one.message for one in plan.refusals), now)


# -- what was completed and what was begun, with passwords: the private part of the Secret ---------

_KEYS = {"completed", "begun", "stage", "secrets"}


def _memory(state: RegistryState) -> dict[str, Any]:
    """What earlier passes wrote down.

    Raises:
        InvalidStateError: it is of another program, such as Deckhouse's own module.
    """
    found: Any = None if ModeKind(state.mode.value).row.managed else {}
    if state.private is not None:
        try:
            found = json.loads(state.private.get_secret_value())
        except ValueError:
            found = None
    if not isinstance(found, dict) or found.keys() - _KEYS:
        raise InvalidStateError(
            "registry-state: another program wrote it, such as Deckhouse's module registry; let "
            "one of them lead this cluster, and go back to Unmanaged with the other one first"
        )
    return found


def _remembering(state: RegistryState, memory: Mapping[str, Any]) -> RegistryState:
    return replace(state, private=SecretStr(json.dumps(memory)))


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
        site: Site,
        options: RenderOptions,
    ) -> None:
        self.target, self.facts, self.site, self.kept = target, facts, site, kept
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
        nodes, site = self.facts.nodes or (), self.site
        match step:
            case _C.IMAGES:
                return site.images(self)
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
                return site.proxy(self)
            case _C.REGISTRY_SWITCH:
                return site.components(self)
            case _C.FINAL:
                done = outcomes.containerd_config(nodes, self.final.version)
                serves = not done.ready or not self.target.kind.row.runs_replicas
                return done if serves or (own := self._replicas(self.final)).ready else own
            case _C.CLEANUP_NODE_SERVICES:
                return outcomes.cleanup_node_services(site.left(self))
            case _C.CLEANUP_IN_CLUSTER_PROXY:
                return outcomes.cleanup_in_cluster_proxy(exists=site.proxy_exists(self))
        raise ValueError(f"{step} is no step of a switch")

    def _replicas(self, *accepted: Rendered) -> StepOutcome:
        """Whether every master's replica serves, by one of these configurations."""
        wanted = accepted[0].masters
        pods = [
            replace(pod, version=wanted[pod.node])
            if pod.version in [one.masters.get(pod.node) for one in accepted]
            else pod
            for pod in self.site.replicas(self)
        ]
        return outcomes.node_services(pods, wanted)

    def due(self, steps: Sequence[ConditionType]) -> tuple[Rendered | None, ConditionType | None]:
        """What is to be in the cluster when these steps are reached or waited for, and for which.

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
                proxy = frozenset({objects.PROXY, PROXY_CONFIG})
                return _without(self.transition, proxy), now
            case _C.IN_CLUSTER_PROXY:
                return self.transition, now
            case _C.REGISTRY_SWITCH:
                # The old ways are still there, and components read by the new one.
                turned = self._previous is not None
                return self._render(previous=self._previous, switched=turned), now
            case _:
                return self.final, now


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


# -- as a program ----------------------------------------------------------------------------------


def lead(controller: Controller, lease: Lease, stop: threading.Event, *, pace: float = 1.0) -> None:
    """Lead the cluster until `stop` is set, whenever we hold the lease; then give that back.

    Changes of the API wake it; what goes wrong is logged and tried again, and a bug is raised.
    `pace` stretches or shortens every wait.
    """
    run, wake, failed = Run(), threading.Event(), list[Exception]()
    controller.may_act, controller.run = lambda: lease.held and not stop.is_set(), run

    def begun(task: Callable[..., None], *given: Any) -> threading.Thread:
        def carry_out() -> None:
            try:
                task(*given)
            except Exception as err:  # noqa: BLE001 -- raised below: a thread would die in silence
                failed.append(err)
                stop.set()

        thread = threading.Thread(target=carry_out, daemon=True)
        thread.start()
        return thread

    watched = {"ModuleConfig": "metadata.name=deckhouse", "Secret": "", "Node": "", "Pod": ""}
    for kind, only in watched.items():
        begun(_watch, controller.api, kind, only, stop, wake, pace)
    begun(_renew, lease, stop, wake, pace)
    work = begun(_work, controller, lease, stop, wake, pace)
    while not stop.is_set():  # to wait would hold the lock that a signal's handler needs to set it
        time.sleep(0.1)
    run.cancellation.cancel()
    wake.set()
    work.join(1.0)
    begun(lease.release).join(0.8)  # an API that hangs must not hold up the end
    for err in failed:
        if not isinstance(err, MirrorError):
            raise err


def _watch(
    api: KubeApi, kind: str, field: str, stop: threading.Event, wake: threading.Event, pace: float
) -> None:
    namespace = NAMESPACE if kind in ("Secret", "Pod") else None
    while not stop.is_set():
        try:
            for _ in api.changes(kind, namespace, stop, field=field):
                wake.set()
        except MirrorError as err:
            _log.info("watching %s: %s", kind, err)
            stop.wait(2.0 * pace)


def _renew(lease: Lease, stop: threading.Event, wake: threading.Event, pace: float) -> None:
    held = False
    while not stop.is_set():
        try:
            lease.renew()
        except MirrorError as err:
            _log.warning("the lease: %s", err)
        if lease.held != held:
            held = lease.held
            _log.info("this one leads now" if held else "another one leads")
            wake.set()
        stop.wait(2.0 * pace)


def _work(
    controller: Controller, lease: Lease, stop: threading.Event, wake: threading.Event, pace: float
) -> None:
    told = ""
    while not stop.is_set():
        wake.clear()
        pause = PAUSE_S
        if lease.held:
            try:
                done = controller.reconcile()
                text = done if isinstance(done, str) else done.summary()
                pause = REST_S if isinstance(done, str) else done.requeue_s
            except MirrorError as err:
                text = str(err)
            if text != told and not stop.is_set():
                _log.info("%s", text)
                told = text
        if wake.wait(pause * pace):
            stop.wait(0.2 * pace)  # what comes together is looked at together
