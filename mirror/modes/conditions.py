"""Conditions: what a switch must reach one after the other, and how their list is kept.

The machine is level-triggered. Each run begins at the first step, asks what is true now, and stops
at the first step that is not ready; what an earlier run saw counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from mirror.modes.matrix import Kind


class ConditionType(StrEnum):
    """The conditions by their public names."""

    IMAGES = "RegistryContainsRequiredImages"
    PREFLIGHT = "ContainerdConfigPreflightReady"
    NODE_SERVICES = "NodeServicesReady"
    IN_CLUSTER_PROXY = "InClusterProxyReady"
    TRANSITION = "TransitionContainerdConfigReady"
    REGISTRY_SWITCH = "DeckhouseRegistrySwitchReady"
    FINAL = "FinalContainerdConfigReady"
    CLEANUP_NODE_SERVICES = "CleanupNodeServices"
    CLEANUP_IN_CLUSTER_PROXY = "CleanupInClusterProxy"
    READY = "Ready"
    NOT_SUPPORTED = "ErrTransitionNotSupported"


class Reason(StrEnum):
    """Why a condition is as it is; most true ones give none."""

    NONE = ""
    PROCESSING = "Processing"
    READY = "Ready"
    ERROR = "Error"


_C = ConditionType
_ORDER = {
    Kind.DIRECT: (
        *(_C.IMAGES, _C.PREFLIGHT, _C.TRANSITION, _C.IN_CLUSTER_PROXY, _C.REGISTRY_SWITCH),
        *(_C.FINAL, _C.CLEANUP_NODE_SERVICES, _C.READY),
    ),
    Kind.PROXY: (
        *(_C.IMAGES, _C.PREFLIGHT, _C.NODE_SERVICES, _C.TRANSITION, _C.REGISTRY_SWITCH),
        *(_C.FINAL, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
    ),
    Kind.LOCAL: (
        *(_C.PREFLIGHT, _C.NODE_SERVICES, _C.IMAGES, _C.TRANSITION, _C.REGISTRY_SWITCH),
        *(_C.FINAL, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
    ),
    Kind.UNMANAGED: (
        *(_C.IMAGES, _C.PREFLIGHT, _C.TRANSITION, _C.REGISTRY_SWITCH, _C.FINAL),
        *(_C.CLEANUP_NODE_SERVICES, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
    ),
    Kind.LEGACY: (
        *(_C.IMAGES, _C.TRANSITION, _C.REGISTRY_SWITCH, _C.FINAL),
        *(_C.CLEANUP_NODE_SERVICES, _C.CLEANUP_IN_CLUSTER_PROXY, _C.READY),
    ),
}
_WITH_PARAMETERS = frozenset({_C.IMAGES, _C.TRANSITION, _C.REGISTRY_SWITCH})
"""What the deprecated kind of Unmanaged does only while parameters of an earlier mode are saved."""


def ordered(target: Kind, *, saved_parameters: bool = True) -> tuple[ConditionType, ...]:
    """What a switch to `target` must reach, in order; `Ready` is last."""
    order = _ORDER[target]
    if target is Kind.LEGACY and not saved_parameters:
        return tuple(one for one in order if one not in _WITH_PARAMETERS)
    return order


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as Kubernetes has them. Times have seconds, in UTC."""

    type: ConditionType
    status: bool
    last_transition_time: datetime
    reason: Reason = Reason.NONE
    message: str = ""
    observed_generation: int | None = None

    def to_document(self) -> dict[str, Any]:
        """As documents have it; what is empty is left out."""
        document: dict[str, Any] = {
            "type": self.type.value,
            "status": "True" if self.status else "False",
            "reason": self.reason.value,
            "message": self.message,
            "lastTransitionTime": f"{self.last_transition_time:%Y-%m-%dT%H:%M:%SZ}",
            "observedGeneration": self.observed_generation,
        }
        return {key: value for key, value in document.items() if value not in ("", None)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Condition | None:
        """Read one; None for a type that is not known, which is dropped.

        Raises:
            ValueError: it is no condition.
        """
        name = document.get("type")
        if not isinstance(name, str):
            raise ValueError("a condition has no type")
        if name not in list(ConditionType):
            return None
        status, reason = document.get("status"), document.get("reason")
        generation = document.get("observedGeneration")
        if status not in ("True", "False", True, False):
            raise ValueError(f"condition {name} is neither True nor False")
        return cls(
            ConditionType(name),
            status in ("True", True),
            _time(document.get("lastTransitionTime"), name),
            Reason(reason) if reason in list(Reason) else Reason.NONE,
            str(document.get("message") or ""),
            generation if isinstance(generation, int) else None,
        )


def _time(value: object, name: str) -> datetime:
    """A time as YAML or JSON gives it."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"condition {name}: lastTransitionTime is no time") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was observed of one step: whether it is reached, and what a person should know."""

    ready: bool
    message: str = ""


Conditions = tuple[Condition, ...]
Observe = Callable[[ConditionType], Outcome]
"""Says of a step what is true now; asked in order, and not behind the first that is not ready."""


def set_condition(conditions: Conditions, new: Condition) -> Conditions:
    """The list with `new` at its end, where the one of its type, if any, is taken out.

    The time of the last transition moves only when the status does.
    """
    old = next((one for one in conditions if one.type is new.type), None)
    if old is not None and old.status == new.status:
        new = replace(new, last_transition_time=old.last_transition_time)
    return (*(one for one in conditions if one.type is not new.type), new)


def evaluate(
    target: Kind,
    conditions: Conditions,
    observe: Observe,
    now: datetime,
    *,
    saved_parameters: bool = True,
    generation: int | None = None,
) -> Conditions:
    """One run of the machine: the conditions after it.

    The last is `Ready`: false, `Transitioning to <mode>`, where a step is not reached.
    """
    now = now.astimezone(UTC).replace(microsecond=0)

    def made(kind: ConditionType, ready: bool, message: str) -> Condition:
        reason = Reason.NONE if ready else Reason.PROCESSING
        if ready and kind is ConditionType.IMAGES:
            reason = Reason.READY
        return Condition(kind, ready, now, reason, message, generation)

    # A refusal of an earlier run is withdrawn by what is done now.
    conditions = tuple(one for one in conditions if one.type is not ConditionType.NOT_SUPPORTED)
    for step in ordered(target, saved_parameters=saved_parameters)[:-1]:
        outcome = observe(step)
        conditions = set_condition(conditions, made(step, outcome.ready, outcome.message))
        if not outcome.ready:
            waiting = f"Transitioning to {target.mode}"
            return set_condition(conditions, made(ConditionType.READY, False, waiting))
    return set_condition(conditions, made(ConditionType.READY, True, ""))


def refuse(
    before: Kind, after: Kind, conditions: Conditions, now: datetime, generation: int | None = None
) -> Conditions:
    """The conditions after a refused switch."""
    message = not_supported(before, after)
    now = now.astimezone(UTC).replace(microsecond=0)
    error = Condition(ConditionType.NOT_SUPPORTED, True, now, Reason.ERROR, message, generation)
    return set_condition(conditions, error)


def not_supported(before: Kind, after: Kind) -> str:
    """The message of a forbidden switch."""
    return f"mode transition from {before} to {after} not supported"


def is_complete(conditions: Iterable[Condition]) -> bool:
    """Whether the last run reached everything."""
    return any(one.type is ConditionType.READY and one.status for one in conditions)
