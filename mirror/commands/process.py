"""The process of a command: its standard streams, Ctrl-C and SIGTERM.

Streams are as the caller left them: closed, full, or short of letters. A result that cannot be
written is told and ends the command with 1. Progress that cannot be written is lost, and the work
goes on. A stream that was closed, or whose reader went away, is wanted by nobody: what goes there
is dropped, and the exit code says how the work ended.

The program loads this before it can be interrupted, so it imports little.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from mirror.reports.messages import message

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# -- standard streams ------------------------------------------------------------------------------

_UNWANTED = frozenset({errno.EPIPE, errno.EBADF})
_IN_ASCII = {"→": "->", "…": "..."}
_REPLACED = "mirror.replaced"
"""The name of our way to replace what a terminal cannot show (`codecs.register_error`)."""


class _CarefulStream(io.FileIO):
    """The file behind a standard stream. `lost`: something could not be written."""

    def __init__(self, number: int, *, closed: bool, needed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.lost, self._needed = closed, needed

    def write(self, data: ReadableBuffer, /) -> int:
        count = memoryview(data).nbytes
        if self.lost:
            return count
        try:
            return super().write(data) or 0
        except OSError as err:
            self.lost = True
            if self._needed and err.errno not in _UNWANTED:
                import click

                raise click.ClickException(
                    f"the result cannot be written to standard output: {err.strerror}; "
                    "send it to another place"
                ) from err
            return count


def prepare() -> None:
    """Put streams of ours in the place of the standard ones, and files where there are none.

    Without a file behind each of the three, the next file that is opened would get its number, and
    receive what is printed.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # the lowest free number
    codecs.register_error(_REPLACED, _replaced)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 -- as long as the process
    sys.stdout = _stream(1, sys.stdout, closed=1 in closed, needed=True)
    sys.stderr = _stream(2, sys.stderr, closed=2 in closed, needed=False)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _stream(number: int, before: TextIO | None, *, closed: bool, needed: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_CarefulStream(number, closed=closed, needed=needed)),
        encoding=before.encoding if before is not None else "utf-8",
        errors=_REPLACED,
        line_buffering=True,
    )


def _replaced(err: UnicodeError) -> tuple[str, int]:
    """What stands for characters that the encoding lacks: letters alike, or an escape."""
    if not isinstance(err, UnicodeEncodeError):
        raise err
    text = err.object[err.start : err.end]
    return "".join(_IN_ASCII.get(one) or ascii(one)[1:-1] for one in text), err.end


def error_lost() -> bool:
    """Whether standard error was closed, or has lost something."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    return isinstance(raw, _CarefulStream) and raw.lost


def show(text: str) -> None:
    """Print a result."""
    _print(text, sys.stdout)


def tell(text: str, level: str = "info", *, surely: bool = False) -> None:
    """Print a message on standard error; where that is lost, `surely` prints it as a result."""
    _print(message(text, level, sys.stderr), sys.stderr)
    if surely and error_lost():
        show(message(text, level))


def _print(text: str, stream: TextIO | None) -> None:
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


def shows_unicode() -> bool:
    """Whether standard output takes every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def keep_memory() -> None:
    """Let freed pieces of content stay with the process, up to `_KEPT` bytes for each thread.

    To get the same memory from the system again, page by page, takes a tenth of the processor time
    of a pull. Only glibc gives it back so soon.
    """
    import ctypes

    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 4 << 20)  # larger ones are the system's, as before
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT = -1, -3, 16 << 20

# -- Ctrl-C and SIGTERM ----------------------------------------------------------------------------

INTERRUPTED = 130
MESSAGE = "interrupted; run the same command again"
_PATIENCE_S = 1.5


@contextmanager
def handling(handle: Callable[[], None], *, once: bool = False) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handle`; with `once` the second one acts as it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def called(_number: int, _frame: FrameType | None) -> None:
        if once:
            restore()
        handle()

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` and shells have it for background jobs
            signal.signal(number, called)
    try:
        yield
    finally:
        restore()


@contextmanager
def stopping(report: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the work; `_PATIENCE_S` later, or the second time, the process too.

    A signal raises KeyboardInterrupt in the main thread, which cancels the run of the operation and
    waits for its threads. If that takes longer than `_PATIENCE_S`, or a second signal comes,
    `report` is called and the process ends at once. Nothing is lost by that: every command can be
    stopped anywhere and run again.

    Yields a function that says whether a signal has come. KeyboardInterrupt may strike anywhere,
    also inside a lock of the standard library, which then raises its own complaint ("release
    unlocked lock"): an exception after a signal is a consequence of it.
    """

    def give_up() -> None:
        report()
        os._exit(INTERRUPTED)

    timer = threading.Timer(_PATIENCE_S, give_up)
    timer.daemon = True

    def interrupt() -> None:
        if timer.ident is not None:
            give_up()
        timer.start()
        raise KeyboardInterrupt

    with handling(interrupt):
        yield lambda: timer.ident is not None
    # The timer goes on: threads that were left behind would hold up the end of the process.
