"""Progress while work goes on, and logs: bars on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from inspect import getdoc
from math import inf
from typing import TYPE_CHECKING, Any, TextIO, get_args

from mirror.bundle.format import size_text
from mirror.errors import counted, paragraph, printable
from mirror.events import (
    ArchiveDone,
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
from mirror.reports.messages import Messages, json_line, message

if TYPE_CHECKING:
    from tqdm import tqdm

FORMS = ("auto", "bar", "plain", "json", "none")
"""How progress may be shown; `auto` is bars on a terminal and plain lines elsewhere."""


@contextmanager
def progress(
    stream: TextIO | None = None,
    *,
    form: str = "auto",
    items: bool = False,
    requests: bool = False,
) -> Iterator[OnEvent]:
    """A listener for events that shows them in one of `FORMS`; warnings are shown in each.

    `items` tells of each blob, manifest and tag that is done, too; `requests` of each request that
    is sent again, which are else counted where they fail alike. Everything goes to `stream`
    (standard error), so that standard output has only results.
    """
    stream = stream or sys.stderr
    if form == "auto":
        form = "bar" if stream.isatty() else "plain"
    listener: _Bars | _Lines | _Documents
    texts = _Texts(stream, items=items, requests=requests)
    if form == "bar":
        listener = _Bars(stream, texts)
    elif form == "json":
        listener = _Documents(stream)
    else:
        listener = _Lines(stream, texts, quiet=form == "none")
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


_IN_BYTES = "{desc}: {percentage:3.0f}%|{bar}| {done} of {size} [{speed}/s, {remaining} left]"


class _Bars:
    """tqdm bars: one at a time, the phase's name before it."""

    def __init__(self, stream: TextIO, texts: _Texts) -> None:
        from tqdm import tqdm

        def with_sizes(bar: tqdm[Any]) -> Mapping[str, Any]:
            """What the line of a bar is made of, sizes as every other text has them."""
            shown = tqdm.format_dict.__get__(bar)
            rate = shown["rate"] or shown["n"] / (shown["elapsed"] or 1)
            sizes = {"done": shown["n"], "size": shown["total"] or 0, "speed": int(rate)}
            return {**shown, **{name: size_text(size) for name, size in sizes.items()}}

        bar = type("Bar", (tqdm,), {"format_dict": property(with_sizes)})
        self._stream, self._made, self._texts = stream, bar, texts
        self._write = tqdm.write
        self._bar: tqdm[Any] | None = None
        self._moved = _Moved()
        self._in_bytes = False
        self._what = ""

    def __call__(self, event: Event) -> None:
        bar = self._bar
        in_bytes = bar if self._in_bytes else None
        match event:
            case PhaseStarted(name, total):
                self._begin(name, total)
            case PhaseAdvanced(count) if bar is not None and in_bytes is None:
                bar.update(count)
            case TransferStarted(size=size, beside=beside) if beside and in_bytes is not None:
                in_bytes.total = (in_bytes.total or 0) + size
                in_bytes.refresh()
            case TransferStarted(blobs, size, _, _, beside):
                self._begin("all transfers" if beside else counted(blobs, "blob"), size, True)
            case BytesMoved() | BlobDone() if in_bytes is not None:
                in_bytes.update(self._moved.advance(event))
            case ArchiveDone() if in_bytes is not None:
                in_bytes.set_description_str(f"{self._what}, {_archives(event)}", refresh=False)
        for text in self._texts.of(event):
            self._write(text, file=self._stream)

    def _begin(self, name: str, total: int | None, in_bytes: bool = False) -> None:
        self._end()
        self._in_bytes, self._what = in_bytes, printable(name)
        self._bar = self._made(
            desc=self._what,
            total=total,
            file=self._stream,
            unit="",
            bar_format=_IN_BYTES if in_bytes else None,
            dynamic_ncols=True,
            leave=in_bytes,
        )

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        self._end()
        for text in self._texts.left():
            self._write(text, file=self._stream)


class _Lines:
    """Plain lines, for logs: phases, then how far it is: after 2 s, then ever less often."""

    _FIRST_S, _INTERVAL_S = 2.0, 10.0

    def __init__(self, stream: TextIO, texts: _Texts, *, quiet: bool) -> None:
        self._stream, self._texts, self._quiet = stream, texts, quiet
        self._moved = _Moved()
        self._total = self._done = 0
        self._steps, self._step, self._what = 0, 0, ""
        self._archives = ""
        self._reported_at, self._wait_s = 0.0, self._FIRST_S

    def __call__(self, event: Event) -> None:
        if not (self._quiet and isinstance(event, TransferStarted)):
            for text in self._texts.of(event):
                print(text, file=self._stream, flush=True)
        match event:
            case _ if self._quiet:
                pass
            case PhaseStarted(name, total):
                self._say(name if total is None else f"{name}: {total}")
                self._steps, self._step, self._what = total or 0, 0, ""
                self._reported_at, self._wait_s = time.monotonic(), self._FIRST_S
            case ManifestDone() | TagDone() | PhaseAdvanced() if bool(self._what) != isinstance(
                event, PhaseAdvanced
            ):  # a transfer inside a phase counts what it sets
                self._step += event.count if isinstance(event, PhaseAdvanced) else 1
                if self._due():
                    of = f" of {self._steps}" if self._steps else ""
                    self._say(f"{self._step}{of}{self._what}")
            case TransferStarted(blobs, size, manifests, tags, beside):
                if not beside:
                    self._total = self._done = self._steps = self._step = 0
                self._archives = ""
                self._total, self._reported_at = self._total + size, time.monotonic()
                self._steps, self._what = self._steps + manifests + tags, " manifests and tags"
                self._wait_s = self._FIRST_S
                more = f", {counted(manifests, 'manifest')}, {counted(tags, 'tag')}"
                self._say(
                    f"{beside}{': ' if beside else ''}{counted(blobs, 'blob')} ({size_text(size)})"
                    + (more if manifests or tags else "")
                )
            case BytesMoved() | BlobDone():
                self._done += self._moved.advance(event)
                if self._due():
                    share = self._done / self._total if self._total else 1.0
                    of = f"{size_text(self._done)} of {size_text(self._total)}{self._archives}"
                    self._say(f"{share:4.0%}  {of}")
            case ArchiveDone():
                self._archives = f", {_archives(event)}"

    def _due(self) -> bool:
        """Whether it is time for a line; the next one comes after a longer while."""
        if time.monotonic() - self._reported_at < self._wait_s:
            return False
        self._reported_at = time.monotonic()
        self._wait_s = min(2 * self._wait_s, self._INTERVAL_S)
        return True

    def _say(self, text: str) -> None:
        print(message(paragraph(text)), file=self._stream, flush=True)

    def close(self) -> None:
        for text in self._texts.left():
            print(text, file=self._stream, flush=True)


class _Documents:
    """A line of JSON for each event. What comes by the thousand is summed up once a second."""

    _INTERVAL_S = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._moved = stream, _Moved()
        self._items = self._bytes = self._total = 0
        self._due_at: float | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case PhaseAdvanced(count):
                self._items += count
                self._later()
                return
            case BytesMoved():
                self._bytes += self._moved.advance(event)
                self._later()
                return
            case BlobDone():
                self._bytes += self._moved.advance(event)
            case TransferStarted(size=size, beside=beside):
                if not beside:
                    self.close()
                    self._bytes = self._total = 0
                self._total += size
            case PhaseStarted():
                self.close()
                self._items = 0
        values = {_key(one.name): getattr(event, one.name) for one in fields(event)}
        self._say(_event_name(type(event)), values)

    def _later(self) -> None:
        """Tell how far the work is, if that was not told lately."""
        if self._due_at is None:
            self._due_at = time.monotonic() + self._INTERVAL_S
        elif time.monotonic() >= self._due_at:
            self.close()

    def _say(self, name: str, values: Mapping[str, Any]) -> None:
        print(json_line({"event": name, **values}), file=self._stream, flush=True)

    def close(self) -> None:
        if self._due_at is not None:
            self._due_at = None
            self._say("progress", {k: getattr(self, f"_{k}") for k in ("items", "bytes", "total")})


_TYPES = {"str": "string", "Digest": "string", "int": "integer", "float": "number"}


def event_schema() -> dict[str, Any]:
    """The JSON Schema of a line of `--progress json`."""
    told = [
        _object(_event_name(kind), getdoc(kind) or "", {one.name: one.type for one in fields(kind)})
        for kind in get_args(Event)
        if kind not in (PhaseAdvanced, BytesMoved)
    ]
    about = (
        "How far the work is: `items` of the phase, and `bytes` of a `total`. At most once a second"
    )
    counts = dict.fromkeys(("items", "bytes", "total"), "int")
    return {
        "title": "A line of `--progress json`",
        "oneOf": [*told, _object("progress", about, counts)],
    }


def _object(name: str, text: str, types: Mapping[str, object]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "time": {"type": "string", "format": "date-time"},
        "event": {"const": name},
    }
    for field, annotation in types.items():
        *kinds, last = (_TYPES.get(one, "null") for one in str(annotation).split(" | "))
        properties[_key(field)] = {"type": [*kinds, last] if kinds else last}
    return {
        "description": text,
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _event_name(kind: type[Event]) -> str:
    return kind.__name__[0].lower() + kind.__name__[1:]


def _key(name: str) -> str:
    """The name of a field in JSON: `delay_s` is `delaySeconds`, as elsewhere in `--json`."""
    first, *others = name.split("_")
    return first + "".join("Seconds" if one == "s" else one.capitalize() for one in others)


def _archives(event: ArchiveDone) -> str:
    return f"{event.done} of {counted(event.total, 'archive')}"


class _Texts:
    """What is said of events at once, in every form for people; nothing of most.

    A registry that dies fails all workers again and again. Of requests that fail alike the first is
    told, and then their number: after 10 s, then ever less often, and at the end.
    """

    _FIRST_S, _LONGEST_S = 10.0, 640.0

    def __init__(self, stream: TextIO, *, items: bool, requests: bool) -> None:
        self._stream, self._items, self._requests = stream, items, requests
        self._failing: dict[str, _Failing] = {}  # by the reason

    def of(self, event: Event) -> Iterator[str]:
        now = time.monotonic()
        yield from self.left(now)
        level, text = "info", ""
        match event:
            case Warned(warning):
                level, text = "warning", warning
            case EndpointDown(host, reason, _):
                level, text = "warning", f"reading from the others, {host} failed: {reason}"
            case EndpointUp(host):
                text = f"{host} answers again"
            case Retrying(_, _, delay_s, reason):
                if self._requests or reason not in self._failing:
                    self._failing[reason] = _Failing(now + self._FIRST_S, self._FIRST_S)
                    text = f"trying again in {delay_s:.1f}s: {reason}"
                else:
                    self._failing[reason].count += 1
            case TransferStarted(size=size, earlier=earlier) if earlier:
                text = f"continuing: {size_text(earlier)} of {size_text(earlier + size)} are there"
            case TransferStarted(size=size, held=held) if held:
                text = f"{size_text(held)} of {size_text(held + size)} are there already"
            case ArchiveDone(archive, size) if self._items:
                text = f"archive {archive} ({size_text(size)}), {_archives(event)}"
            case BlobDone(digest, size, sent) if self._items:
                text = f"blob {digest} ({size_text(size)}{'' if sent else ', was there'})"
            case ManifestDone(repository, digest) if self._items:
                text = f"manifest {repository or '/'}@{digest}"
            case TagDone(repository, tag, digest) if self._items:
                text = f"tag {repository or '/'}:{tag} is {digest}"
        if text:
            yield message(paragraph(text), level, self._stream)

    def left(self, now: float = inf) -> Iterator[str]:
        """The counts that are due, and forget what has not failed since the last one; without
        `now` all."""
        for reason, one in [(key, one) for key, one in self._failing.items() if one.due <= now]:
            if not one.count:
                del self._failing[reason]
                continue
            text = f"trying again: {reason} {counted(one.count, 'more time')}"
            wait_s = min(2 * one.wait_s, self._LONGEST_S)
            self._failing[reason] = _Failing(now + wait_s, wait_s)
            yield message(paragraph(text), "info", self._stream)


@dataclass(slots=True)
class _Failing:
    """How often requests failed alike since that was told, and when to tell it next."""

    due: float
    wait_s: float
    count: int = 0


# -- logs ------------------------------------------------------------------------------------------


class Cleaned(logging.Formatter):
    """Records as people may see them: one message and its traceback are one paragraph."""

    def format(self, record: logging.LogRecord) -> str:
        text = paragraph(super().format(record))
        return message(text, record.levelname.lower()) if Messages.as_json else text


@contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """The library's own messages on stderr, each once; of others' only warnings."""
    ours = logging.getLogger("mirror")
    before = ours.level
    handler: logging.Handler = logging.NullHandler()
    if not any(isinstance(one.formatter, Cleaned) for one in ours.handlers):
        handler = logging.StreamHandler(sys.stderr)
        form = "%(message)s" if Messages.as_json else "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(Cleaned(form))
    ours.addHandler(handler)
    ours.setLevel(min(level, before or level))
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)
