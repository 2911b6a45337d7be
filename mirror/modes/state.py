"""How far a switch is: conditions, and the Secret `registry-state` that keeps them.

Each run begins at the first step, asks what is true now, and stops at the first step that is not
ready. The key `state` is private to the module and full of secrets: carried along and never shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from mirror.documents import StrictLoader, document, file_text, line
from mirror.durable import write_if_changed
from mirror.errors import InvalidStateError
from mirror.modes import (
    HASH_ANNOTATION,
    MODULE_LABELS,
    NAMESPACE,
    SECRET_STATE,
    ConditionType,
    Mode,
    ModeKind,
    conditions_of,
    not_supported,
)
from mirror.modes.outcomes import StepOutcome


class Reason(StrEnum):
    """Why a condition has its status; most true ones give no reason."""

    NONE = ""
    PROCESSING = "Processing"
    READY = "Ready"
    ERROR = "Error"


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
        document = {
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
        """Read one; None for an unknown type, which is dropped.

        Raises:
            ValueError: it is not a condition.
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
        raise ValueError(f"condition {name}: lastTransitionTime is not a time") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


_C = ConditionType
Conditions = tuple[Condition, ...]
Observe = Callable[[ConditionType], StepOutcome]
"""Says of a step what is true now; asked in order, and not behind the first that is not ready."""


def set_condition(conditions: Conditions, new: Condition) -> Conditions:
    """The list with `new` at its end; its time is the old one's if the status is the same."""
    old = next((one for one in conditions if one.type is new.type), None)
    if old is not None and old.status == new.status:
        new = replace(new, last_transition_time=old.last_transition_time)
    return (*(one for one in conditions if one.type is not new.type), new)


def evaluate(
    target: ModeKind,
    conditions: Conditions,
    observe: Observe,
    now: datetime,
    *,
    saved_parameters: bool = True,
    generation: int | None = None,
) -> Conditions:
    """One run of the machine: the conditions after it, `Ready` last."""

    def made(kind: ConditionType, ready: bool, message: str) -> Condition:
        reason = Reason.NONE if ready else Reason.PROCESSING
        if ready and kind is _C.IMAGES:
            reason = Reason.READY
        return replace(
            _condition(kind, ready, now, reason, message), observed_generation=generation
        )

    # A refusal of an earlier run is withdrawn by what is done now.
    conditions = tuple(one for one in conditions if one.type is not _C.NOT_SUPPORTED)
    for step in conditions_of(target, saved_parameters=saved_parameters)[:-1]:
        outcome = observe(step)
        conditions = set_condition(conditions, made(step, outcome.ready, outcome.message))
        if not outcome.ready:
            waiting = f"Transitioning to {target.mode}"
            return set_condition(conditions, made(_C.READY, False, waiting))
    return set_condition(conditions, made(_C.READY, True, ""))


def _condition(
    kind: ConditionType, ready: bool, now: datetime, reason: Reason, message: str
) -> Condition:
    moment = now.astimezone(UTC).replace(microsecond=0)
    return Condition(kind, ready, moment, reason, message)


# -- the Secret ------------------------------------------------------------------------------------

_EXPECTED = "expected the Secret registry-state, or its keys hash, mode, target_mode, conditions"


@dataclass(frozen=True, slots=True)
class RegistryState:
    """Where a cluster's registry module is. A cluster without the Secret is in Unmanaged."""

    hash: str = ""
    mode: Mode = Mode.UNMANAGED
    target_mode: Mode = Mode.UNMANAGED
    conditions: Conditions = ()
    private: SecretStr | None = field(default=None, repr=False)

    @property
    def in_flight(self) -> bool:
        """Whether a switch has begun and is not complete."""
        complete = any(one.type is _C.READY and one.status for one in self.conditions)
        return self.mode is not self.target_mode or not (complete or not self.conditions)

    def aiming_at(self, target: Mode, inputs: str) -> RegistryState:
        """The state with this target. Another mode clears the conditions; parameters do not."""
        conditions = self.conditions if target is self.target_mode else ()
        return replace(self, target_mode=target, hash=inputs, conditions=conditions)

    def advanced(
        self,
        target: ModeKind,
        observe: Observe,
        now: datetime,
        *,
        saved_parameters: bool = True,
        generation: int | None = None,
    ) -> RegistryState:
        """The state after one run of the machine; `mode` follows when everything is reached.

        Raises:
            ValueError: `target` is not what the state aims at.
        """
        if target.mode is not self.target_mode:
            raise ValueError(f"the state aims at {self.target_mode}, not at {target.mode}")
        conditions = evaluate(
            *(target, self.conditions, observe, now),
            saved_parameters=saved_parameters,
            generation=generation,
        )
        mode = target.mode if conditions[-1].status else self.mode
        return replace(self, mode=mode, conditions=conditions)

    def refused(self, before: ModeKind, after: ModeKind, now: datetime) -> RegistryState:
        """The state with the error of a switch that is not supported."""
        message = not_supported(before, after)
        return self._with(_condition(_C.NOT_SUPPORTED, True, now, Reason.ERROR, message))

    def stopped(self, message: str, now: datetime) -> RegistryState:
        """The state with an error that holds up the switch."""
        return self._with(_condition(_C.READY, False, now, Reason.ERROR, message))

    def _with(self, one: Condition) -> RegistryState:
        return replace(self, conditions=set_condition(self.conditions, one))

    def rotating(
        self, outcome: StepOutcome, before: RegistryState, now: datetime, *, refused: bool = False
    ) -> RegistryState:
        """The state, in which all else is reached, with how far a rotation of secrets is.

        It is `Ready` when that is complete, or where it was `refused`. Each step of it clears the
        list, as another target does. `before` is the state that this run of the machine began with.
        """
        *steps, ready = self.conditions
        reason = Reason.ERROR if refused else Reason.NONE if outcome.ready else Reason.PROCESSING
        told = _condition(_C.ROTATION, outcome.ready, now, reason, outcome.message)
        if outcome.ready or refused:
            return replace(self, conditions=(*set_condition(tuple(steps), told), ready))
        ready = _condition(_C.READY, False, now, reason, "Rotating secrets")
        known = tuple(one for one in before.conditions if one.type in (_C.ROTATION, _C.READY))
        return replace(self, conditions=set_condition(set_condition(known, told), ready))

    def withdrawn(self, now: datetime) -> RegistryState:
        """The state of a cluster at rest, without errors of what is no longer wanted."""
        ready = tuple(one for one in self.conditions if one.type is _C.READY)
        errors = {one for one in self.conditions if one.reason is Reason.ERROR}
        kept = tuple(one for one in self.conditions if one not in {*ready, *errors})
        if kept:
            done = _condition(_C.READY, True, now, Reason.NONE, "")
            kept = set_condition((*kept, *ready), done)
        return replace(self, target_mode=self.mode, conditions=kept)

    def noted(self) -> Any:
        """What `remembering` wrote down, or another program; None where it is not JSON."""
        with suppress(ValueError):
            return {} if self.private is None else json.loads(self.private.get_secret_value())
        return None

    def remembering(self, memory: Mapping[str, Any]) -> RegistryState:
        """The state with this private part."""
        return replace(self, private=SecretStr(json.dumps(memory)))

    def to_document(self) -> dict[str, Any]:
        """The public keys, as JSON values."""
        return document(self, "hash", "mode", "target_mode=target_mode", "conditions")

    def to_secret(self) -> dict[str, Any]:
        """The whole Secret with the private key: store it, and do not show it."""
        texts = self.to_document()
        conditions = texts["conditions"]
        texts["conditions"] = yaml.safe_dump(conditions, sort_keys=False, allow_unicode=True)
        if self.private is not None:
            texts["state"] = self.private.get_secret_value()
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": SECRET_STATE,
                "namespace": NAMESPACE,
                "labels": {**MODULE_LABELS, "type": SECRET_STATE},
                "annotations": {HASH_ANNOTATION: self.hash},
            },
            "type": "registry/state",
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
        }

    def save(self, path: Path) -> bool:
        """Write the whole Secret as YAML, with mode 0600; False if the file holds it already.

        Raises:
            FileSystemError: it cannot be written.
        """
        text = yaml.safe_dump(self.to_secret(), sort_keys=False)
        return write_if_changed(path, text.encode(), mode=0o600)

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any] | None) -> RegistryState:
        """Read the Secret, or its keys alone: from a file (`Path`), from text, or from a mapping.

        None, and text without content, stand for a Secret that is not there.

        Raises:
            InvalidStateError: it is something else, or a key is not what it must be.
        """
        where = "the state"
        if isinstance(source, Path):
            where = str(source)
            source = file_text(source, InvalidStateError)
        content = _yaml(source, where) if isinstance(source, str) else source
        if content is None:
            return cls()
        if not isinstance(content, Mapping):
            raise InvalidStateError(f"{_EXPECTED}, found something that is not a mapping")
        keys = _keys(content)
        conditions = keys.get("conditions") or []
        if isinstance(conditions, str):
            conditions = _yaml(conditions, "conditions") or []
        if not isinstance(conditions, list) or not all(isinstance(c, Mapping) for c in conditions):
            raise InvalidStateError("conditions: expected a list of conditions")
        try:
            known = [Condition.from_document(one) for one in conditions]
        except ValueError as err:
            raise InvalidStateError(f"conditions: {err}") from None
        mode, private = _mode(keys, "mode", Mode.UNMANAGED), keys.get("state")
        return cls(
            str(keys.get("hash") or ""),
            mode,
            _mode(keys, "target_mode", mode),
            tuple(filter(None, known)),
            SecretStr(private) if isinstance(private, str) and private else None,
        )


def inputs_hash(*inputs: BaseModel | Mapping[str, Any] | str | None) -> str:
    """SHA-256 of all inputs of a state, in hex. Secrets count with their values."""
    plain = [_plain(one) for one in inputs]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():
            return _plain({name: getattr(value, name) for name in type(value).model_fields})
        case Mapping():
            return {str(key): _plain(one) for key, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value


def _keys(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the Secret as text, whether they were encoded or not."""
    if "kind" not in document and "data" not in document and "stringData" not in document:
        if document and not document.keys() & {"hash", "mode", "target_mode", "conditions"}:
            raise InvalidStateError(f"{_EXPECTED}, found other keys")
        return document
    if document.get("kind", "Secret") != "Secret":
        raise InvalidStateError(f"{_EXPECTED}, found another kind of object")
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if name not in (None, SECRET_STATE):
        raise InvalidStateError(f"{_EXPECTED}, found another Secret")
    keys: dict[str, Any] = {}
    for part in ("data", "stringData"):
        values = document.get(part) or {}
        if not isinstance(values, Mapping):
            raise InvalidStateError(f"{part}: expected a mapping")
        for key, value in values.items():
            try:
                decoded = part == "data" and base64.b64decode(str(value), validate=True).decode()
            except ValueError:
                # Not `from err`: the value may be secret.
                raise InvalidStateError(f"{part}.{key}: expected text in base64") from None
            keys[str(key)] = decoded if part == "data" else value
    return keys


def _mode(keys: Mapping[str, Any], key: str, default: Mode) -> Mode:
    value = keys.get(key)
    if value in (None, ""):
        return default
    if value not in list(Mode):
        raise InvalidStateError(f"{key}: expected {', '.join(Mode)}, found {str(value)[:20]!r}")
    return Mode(str(value))


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, StrictLoader)  # noqa: S506 -- a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        at = line(err) if isinstance(err, yaml.MarkedYAMLError) else ""
        # Not `from err`: its text may quote what is secret.
        raise InvalidStateError(f"{where} is not YAML{at}") from None
