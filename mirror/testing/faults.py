"""Faults on demand: a server that fails like networks and registries do, at chosen requests.

faults = Faults(
    Fault(Answer(429, {"Retry-After": "1"}), method="PUT", path="/manifests/", nth=2),
    Fault(CutResponse(after=1000), path="/blobs/", times=None),
)

An `EmbeddedRegistry` plays them, and a `FaultyProxy` before any other registry.
"""

from __future__ import annotations

import gzip
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
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


# -- what networks, registries and the proxies before them are known to do, each under a name ------

BLOB = "/blobs/sha"
MANIFEST = "/manifests/"
SESSION = "/blobs/uploads/."
TAGS = "/tags/list"

_OTHER_DIGEST = "sha256:" + "0" * 64
_PORTAL = b"<!DOCTYPE html><html><body>Please accept the terms of use.</body></html>"
_LOST = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"fault on demand"}]}'


def every_fault(elsewhere: str = "http://127.0.0.1:9", *, wait_s: float = 60.0) -> dict[str, Fault]:
    """Name → a fault that strikes the first request that it concerns.

    `replace(fault, nth=n)` strikes a later one. `elsewhere` is where foreign redirects lead to, and
    `wait_s` how many seconds a silent or busy server takes.
    """
    later, patience = formatdate(time.time() + wait_s, usegmt=True), str(int(wait_s))
    digest, bomb = "Docker-Content-Digest", gzip.compress(bytes(8 << 20))
    return {
        # broken lines
        "reset": Fault(Refuse()),
        "reset for a while": Fault(Refuse(), times=3),
        "reset for ever": Fault(Refuse(), times=None),
        "reset in an answer": Fault(CutResponse(7, reset=True)),
        "cut at once": Fault(CutResponse(0)),
        "cut in an answer": Fault(CutResponse(7)),
        "cut in every blob": Fault(CutResponse(7), "GET", BLOB, times=None),
        "cut in a request": Fault(CutUpload(7)),
        "lost answer": Fault(LoseAnswer()),
        "lost answer of a write": Fault(LoseAnswer(), "PUT"),
        "duplicate answer": Fault(RepeatAnswer()),
        "slow": Fault(Delay(0.02)),
        "stall": Fault(Stall(1, wait_s)),
        "silence": Fault(Delay(wait_s)),
        "drip": Fault(Drip(64, 0.001)),
        # refusals
        "401 once": Fault(Answer(401)),
        "401 from then on": Fault(Answer(401), times=None),
        "403 once": Fault(Answer(403)),
        "403 from then on": Fault(Answer(403), times=None),
        "404 once": Fault(Answer(404)),
        "409 once": Fault(Answer(409)),
        "413 of a write": Fault(Answer(413), "PUT"),
        "416 once": Fault(Answer(416)),
        "429 with seconds": Fault(Answer(429, {"Retry-After": patience})),
        "429 with a date": Fault(Answer(429, {"Retry-After": later})),
        "429 with nonsense": Fault(Answer(429, {"Retry-After": "soon"})),
        **{f"{status} once": Fault(Answer(status)) for status in (500, 502, 503, 504)},
        **{f"{one} for a while": Fault(Answer(one), times=3) for one in (500, 502, 503, 504)},
        "500 from then on": Fault(Answer(500), times=None),
        "507 of a write": Fault(Answer(507), "PUT", times=None),
        # answers that are not true
        "flipped byte": Fault(CorruptBody(3), "GET"),
        "flipped byte in every blob": Fault(CorruptBody(3), "GET", BLOB, times=None),
        "answer too short": Fault(WrongLength(9), "GET"),
        "answer too long": Fault(WrongLength(-2), "GET"),
        "wrong digest in a header": Fault(ChangeHeaders({digest: _OTHER_DIGEST})),
        "odd digest in a header": Fault(ChangeHeaders({digest: "none"})),
        "no digest in a header": Fault(ChangeHeaders({digest: None}), times=None),
        "odd link": Fault(ChangeHeaders({"Link": "</v2/>; rel=="}), path=TAGS),
        "link without an end": Fault(
            ChangeHeaders({"Link": '</v2/_catalog?n=1>; rel="next"'}), path=TAGS
        ),
        "odd location": Fault(ChangeHeaders({"Location": "http://[::1/"}), "POST"),
        "no location": Fault(ChangeHeaders({"Location": None}), "POST"),
        "odd media type": Fault(ChangeHeaders({"Content-Type": "text/html"}), path=MANIFEST),
        "endless body": Fault(EndlessBody(), "GET"),
        "compressed": Fault(Encode("gzip"), "GET"),
        "encoding that lies": Fault(ChangeHeaders({"Content-Encoding": "zstd"}), "GET"),
        "bomb": Fault(Answer(200, {"Content-Encoding": "gzip"}, bomb), "GET"),
        "portal": Fault(Answer(200, {"Content-Type": "text/html"}, _PORTAL)),
        "portal before writes": Fault(
            Answer(200, {"Content-Type": "text/html"}, _PORTAL), "PUT", times=None
        ),
        "no content": Fault(Answer(204, {}, b"")),
        # other ways
        "redirect home": Fault(Redirect(), "GET"),
        "redirect elsewhere": Fault(Redirect(elsewhere), "GET"),
        "redirect in a loop": Fault(Redirect(), "GET", times=None),
        "redirect of a write": Fault(Redirect(elsewhere), "PUT"),
        "range ignored": Fault(IgnoreRange(), "GET", BLOB),
        "range moved": Fault(ShiftRange(1), "GET", BLOB),
        "session lost": Fault(Answer(404, {}, _LOST), path=SESSION),
        "sessions lost for ever": Fault(Answer(404, {}, _LOST), "PATCH", SESSION, times=None),
        "HEAD refused": Fault(Answer(405), "HEAD", times=None),
        "listing refused": Fault(Answer(401), path=TAGS, times=None),
        "listing unknown": Fault(Answer(404), path=TAGS, times=None),
    }
