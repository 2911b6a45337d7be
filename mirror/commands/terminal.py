"""Standard output and standard error as the caller left them: closed, full, or short of letters.

A result that cannot be written is told and ends the command with 1. Progress that cannot be written
is lost, and the work goes on. A stream that was closed, or whose reader went away, is wanted by
nobody: what goes there is dropped, and the exit code says how the work ended.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_UNWANTED = frozenset({errno.EPIPE, errno.EBADF})
_IN_ASCII = {"→": "->", "…": "..."}
_REPLACED = "mirror.replaced"
"""The name of our way to replace what a terminal cannot show (`codecs.register_error`)."""


class _Stream(io.FileIO):
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
        io.BufferedWriter(_Stream(number, closed=closed, needed=needed)),
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
    return isinstance(raw, _Stream) and raw.lost


def show(text: str) -> None:
    """Print a result. Not to click's own stream, which takes ASCII for a mistake."""
    click.echo(text, sys.stdout)


def tell(text: str, *, surely: bool = False) -> None:
    """Print a message on standard error; where that is lost, `surely` prints it as a result."""
    click.echo(text, sys.stderr, err=True)
    if surely and error_lost():
        show(text)


def shows_unicode() -> bool:
    """Whether standard output takes every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
