"""What happened, as values. Progress bars, logs, JSON and metrics are listeners.

Core functions take `on_event: OnEvent` and report from whichever thread did the work; wrap a
listener that is not thread-safe in `serialised`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mirror.oci import Digest


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """A named part of the work begins; `total` counts its items where that is known."""

    name: str
    total: int | None = None


@dataclass(frozen=True, slots=True)
class PhaseAdvanced:
    """`count` more items of the current phase are done."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class TransferStarted:
    """A plan is about to be carried out: how much there is to do. `size` in bytes.

    `earlier` is bytes that an interrupted transfer of the same left in place, `held` bytes that the
    target has of whatever origin; `size` is without.
    `beside` names the place where several transfers run at once; what they have to do adds up.
    """

    blobs: int
    size: int
    manifests: int
    tags: int
    beside: str = ""
    earlier: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class BytesMoved:
    """`count` more bytes of `digest` moved; a byte that is sent again is not counted again."""

    digest: Digest
    count: int


@dataclass(frozen=True, slots=True)
class BlobDone:
    """A blob is in place. `sent` is bytes moved for it: 0 if it was there or was mounted."""

    digest: Digest
    size: int
    sent: int


@dataclass(frozen=True, slots=True)
class ArchiveDone:
    """An archive of a bundle is through: `done` of the `total` that have something to do are.

    A pull has all of its blobs in place, a push has brought them, a verification has read all of
    it. `size` is the bytes of that.
    """

    archive: str
    size: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ManifestDone:
    """A manifest is in place in `repository`."""

    repository: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class TagDone:
    """`repository:tag` names `digest` now."""

    repository: str
    tag: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request failed in a way that may pass; it is sent again in `delay_s` seconds.

    `reason` is a few words that name the host; the whole story is in the error that may follow.
    """

    where: str
    attempt: int
    delay_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class EndpointDown:
    """One of several endpoints failed; the others are asked first for `rest_s` seconds.

    `reason` is the whole message of its error.
    """

    host: str
    reason: str
    rest_s: float


@dataclass(frozen=True, slots=True)
class EndpointUp:
    """An endpoint that had failed answers again."""

    host: str


@dataclass(frozen=True, slots=True)
class Warned:
    """Something a person should know, though the work goes on."""

    message: str


Event: TypeAlias = (
    PhaseStarted
    | PhaseAdvanced
    | TransferStarted
    | BytesMoved
    | BlobDone
    | ArchiveDone
    | ManifestDone
    | TagDone
    | Retrying
    | EndpointDown
    | EndpointUp
    | Warned
)
OnEvent: TypeAlias = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """A listener that ignores every event."""


def serialised(listener: OnEvent) -> OnEvent:
    """Wrap `listener` so that it hears one event at a time, from however many threads."""
    lock = threading.Lock()

    def one_at_a_time(event: Event) -> None:
        with lock:
            listener(event)

    return one_at_a_time


def side_by_side(listener: OnEvent, place: str) -> OnEvent:
    """Wrap `listener` for one of several transfers that run at once, the one to `place`.

    It hears how much that transfer adds to the total, the bytes as they arrive, and warnings with
    the name of the place. It does not hear phases, since each transfer has its own.
    """
    lock = threading.Lock()  # guards moved
    moved: dict[Digest, int] = {}

    def one_of_them(event: Event) -> None:
        match event:
            case TransferStarted():
                listener(replace(event, beside=place))
            case BytesMoved(digest, count):
                with lock:
                    moved[digest] = moved.get(digest, 0) + count
                listener(event)
            case BlobDone(digest, size, _):
                # The same blob goes to other places too, so the rest of it is reported as bytes.
                with lock:
                    left = size - moved.pop(digest, 0)
                if left:
                    listener(BytesMoved(digest, left))
            case Warned(message) if place not in message:
                listener(Warned(f"{place}: {message}"))
            case Warned() | Retrying() | EndpointDown() | EndpointUp():
                listener(event)
            case PhaseStarted() | PhaseAdvanced() | ArchiveDone() | ManifestDone() | TagDone():
                pass

    return one_of_them
