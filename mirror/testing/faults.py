"""Faults on demand: a server that fails like networks and registries do, at chosen requests.

faults = Faults(
    Fault(Answer(429, {"Retry-After": "1"}), method="PUT", path="/manifests/", nth=2),
    Fault(CutResponse(after=1000), path="/blobs/", times=None),
)

An `EmbeddedRegistry` plays them, and a `FaultyProxy` before any other registry.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with this status, headers and body instead of doing the work."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """None: an error body of the usual form."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", MappingProxyType(dict(self.headers)))


@dataclass(frozen=True, slots=True)
class CutResponse:
    """Close the connection after `after` bytes of the answer's body; `reset` breaks it instead."""

    after: int
    reset: bool = False


@dataclass(frozen=True, slots=True)
class CutUpload:
    """Break the connection after `after` bytes of the request's body.

    A body that is not longer arrives as it is.
    """

    after: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Break the connection without an answer, before doing any work."""


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Do the work, then break the connection before the first byte of the answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait before doing the work."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Send `after` bytes of the answer's body, then nothing for `seconds`, then the rest."""

    after: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Drip:
    """Send the answer's body in pieces of `size` bytes, with `seconds` between them."""

    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CorruptBody:
    """Flip one bit of the answer's byte at offset `at`, if the body is that long."""

    at: int


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer as if the request had no `Range` header: with status 200 and the whole body."""


@dataclass(frozen=True, slots=True)
class ShiftRange:
    """Answer as if the request's `Range` began `by` bytes later."""

    by: int


@dataclass(frozen=True, slots=True)
class WrongLength:
    """Announce `by` bytes more than the answer's body has (fewer if negative) and send all of it.

    An answer that is too short ends with the connection. Bytes beyond the announced length follow
    on it.
    """

    by: int


@dataclass(frozen=True, slots=True)
class ChangeHeaders:
    """Set headers of the answer, such as `Docker-Content-Digest` or `Link`; None removes one."""

    changes: Mapping[str, str | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "changes", MappingProxyType(dict(self.changes)))


@dataclass(frozen=True, slots=True)
class Encode:
    """Send the answer's body compressed (`gzip` or `deflate`), whatever the client accepts."""

    coding: str


@dataclass(frozen=True, slots=True)
class RepeatAnswer:
    """Do the work, and send the answer twice on the connection."""


@dataclass(frozen=True, slots=True)
class EndlessBody:
    """Do no work, and send status 200 with `piece` again and again until the client hangs up."""

    piece: bytes = b" " * 65536


@dataclass(frozen=True, slots=True)
class Redirect:
    """Answer 307 with a `Location`: the request's own `path?query` behind `to`.

    That leads the client home without `to`, in a loop if the fault strikes without an end, and to
    somebody else with `http://host:port`.
    """

    to: str = ""


Action: TypeAlias = (
    Answer
    | CutResponse
    | CutUpload
    | Refuse
    | LoseAnswer
    | RepeatAnswer
    | Delay
    | Stall
    | Drip
    | CorruptBody
    | EndlessBody
    | WrongLength
    | ChangeHeaders
    | Encode
    | IgnoreRange
    | ShiftRange
    | Redirect
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Strike `times` matching requests, beginning with the `nth` (counted from 1).

    A request matches if it has that `method` (None: any) and the regular expression `path` occurs
    in its `path?query`. `times` None means all from then on.
    """

    action: Action
    method: str | None = None
    path: str = ""
    nth: int = 1
    times: int | None = 1

    def concerns(self, method: str, target: str) -> bool:
        """Whether a request to `target` (`path?query`) is one of those that are counted."""
        return self.method in (None, method) and re.search(self.path, target) is not None


class Faults:
    """The faults of a server. Thread-safe; they may be changed while it runs."""

    def __init__(self, *faults: Fault) -> None:
        self._lock = threading.Lock()  # guards _armed and _struck
        self._armed: list[_Armed] = [_Armed(fault) for fault in faults]
        self._struck: list[str] = []

    def add(self, *faults: Fault) -> None:
        """Add faults, which count requests from now on."""
        with self._lock:
            self._armed += [_Armed(fault) for fault in faults]

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._armed = []

    @property
    def struck(self) -> int:
        """How often faults have struck, so that a test can check that they did."""
        return len(self.victims)

    @property
    def victims(self) -> tuple[str, ...]:
        """What they have struck, each as `METHOD path?query`."""
        with self._lock:
            return tuple(self._struck)

    def strike(self, method: str, target: str) -> list[Action]:
        """Count a request to `target` (`path?query`) and return what is to happen to it."""
        with self._lock:
            actions = [armed.fault.action for armed in self._armed if armed.hit(method, target)]
            self._struck += [f"{method} {target}"] * len(actions)
            return actions


class _Armed:
    """A fault with its count of matching requests."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self._seen = fault, 0

    def hit(self, method: str, target: str) -> bool:
        fault = self.fault
        if not fault.concerns(method, target):
            return False
        self._seen += 1
        end = None if fault.times is None else fault.nth + fault.times
        return self._seen >= fault.nth and (end is None or self._seen < end)
