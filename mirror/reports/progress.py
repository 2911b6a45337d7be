"""Progress while work goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from mirror.bundle.format import size_text
from mirror.errors import paragraph, printable
from mirror.events import (
    BlobDone,
    BytesMoved,
    EndpointDown,
    EndpointUp,
    Event,
    ManifestDone,
    OnEvent,
    PhaseAdvanced,
    PhaseStarted,
    Retrying,
    TagDone,
    TransferStarted,
    Warned,
)

if TYPE_CHECKING:
    from tqdm import tqdm


@contextmanager
def progress(stream: TextIO | None = None, *, quiet: bool = False) -> Iterator[OnEvent]:
    """A listener for events: bars on a terminal, plain lines elsewhere, warnings alone if `quiet`.

    Everything goes to `stream` (standard error), so that standard output has only results.
    """
    stream = stream or sys.stderr
    listener = _Bars(stream) if stream.isatty() and not quiet else _Lines(stream, quiet=quiet)
    lock = threading.Lock()

    def hear(event: Event) -> None:
        with lock:
            listener(event)

    try:
        yield hear
    finally:
        listener.close()


class _Moved:
    """Bytes in place: those that moved, and those of blobs that did not have to."""

    def __init__(self) -> None:
        self._of: dict[object, int] = {}

    def advance(self, event: BytesMoved | BlobDone) -> int:
        """How much further this event gets us."""
        if isinstance(event, BytesMoved):
            self._of[event.digest] = self._of.get(event.digest, 0) + event.count
            return event.count
        return event.size - self._of.pop(event.digest, 0)


class _Bars:
    """tqdm bars: one at a time, the phase's name before it."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm

        self._stream, self._made = stream, tqdm
        self._bar: tqdm[Any] | None = None
        self._moved = _Moved()
        self._in_bytes = False

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseStarted(name, total):
                self._begin(name, total, in_bytes=False)
            case PhaseAdvanced(count) if self._bar is not None and not self._in_bytes:
                self._bar.update(count)
            case TransferStarted(size=size, beside=beside) if (
                beside and self._bar is not None and self._in_bytes
            ):
                self._bar.total = (self._bar.total or 0) + size
                self._bar.refresh()
            case TransferStarted(blobs, size, _, _, beside):
                self._begin("all transfers" if beside else f"{blobs} blobs", size, in_bytes=True)
            case BytesMoved() | BlobDone() if self._bar is not None and self._in_bytes:
                self._bar.update(self._moved.advance(event))
            case Retrying() | Warned() | EndpointDown() | EndpointUp():
                self._made.write(paragraph(_line(event)), file=self._stream)

    def _begin(self, name: str, total: int | None, *, in_bytes: bool) -> None:
        self.close()
        self._in_bytes = in_bytes
        self._bar = self._made(
            desc=printable(name),
            total=total,
            file=self._stream,
            unit="B" if in_bytes else "",
            unit_scale=in_bytes,
            unit_divisor=1024,
            dynamic_ncols=True,
            leave=in_bytes,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    """Plain lines, for logs: phases, then every tenth of the bytes, at most one in ten seconds."""

    _INTERVAL_S = 10.0

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream, self._quiet = stream, quiet
        self._moved = _Moved()
        self._total = self._done = 0
        self._reported_at = 0.0

    def __call__(self, event: Event) -> None:
        match event:
            case Retrying() | Warned() | EndpointDown() | EndpointUp():
                self._say(_line(event))
            case _ if self._quiet:
                pass
            case PhaseStarted(name, total):
                self._say(name if total is None else f"{name}: {total}")
            case TransferStarted(blobs, size, manifests, tags, beside):
                if not beside:
                    self._total = self._done = 0
                self._total, self._reported_at = self._total + size, time.monotonic()
                self._say(
                    f"{beside}{': ' if beside else ''}{blobs} blobs ({size_text(size)})"
                    + (f", {manifests} manifests, {tags} tags" if manifests or tags else "")
                )
            case BytesMoved() | BlobDone():
                self._done += self._moved.advance(event)
                if time.monotonic() - self._reported_at >= self._INTERVAL_S:
                    self._reported_at = time.monotonic()
                    share = self._done / self._total if self._total else 1.0
                    self._say(f"{share:4.0%}  {size_text(self._done)} of {size_text(self._total)}")
            case PhaseAdvanced() | ManifestDone() | TagDone():
                pass

    def _say(self, text: str) -> None:
        print(paragraph(text), file=self._stream, flush=True)

    def close(self) -> None:
        pass


def _line(event: Retrying | Warned | EndpointDown | EndpointUp) -> str:
    match event:
        case Warned(message):
            return f"warning: {message}"
        case EndpointDown(host, reason, _):
            return f"warning: reading from the others, {host} failed: {reason}"
        case EndpointUp(host):
            return f"{host} answers again"
    return f"trying again in {event.delay_s:.1f}s: {event.reason}"
