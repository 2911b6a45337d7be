"""The process of a command: its standard streams, Ctrl-C and SIGTERM, and how it fails.

Streams are as the caller left them: closed, full, or short of letters. A result that cannot be
written is told and ends the command with 1. Progress that cannot be written is lost, and the work
goes on. A stream that was closed, or whose reader went away, is wanted by nobody: what goes there
is dropped, and the exit code says how the work ended.
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

import click
from click.core import ParameterSource

from mirror.commands import INTERRUPTED, MESSAGE
from mirror.errors import (
    DeniedError,
    DigestMismatchError,
    IncompleteError,
    IntegrityError,
    MirrorError,
    MissingBaseError,
    paragraph,
    printable,
    shortage,
)
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


def show(text: str) -> None:
    """Print a result."""
    _print(text, sys.stdout)


def tell(text: str, level: str = "info", *, surely: bool = False) -> None:
    """Print a message on standard error; where that is lost, `surely` prints it as a result."""
    _print(message(text, level, sys.stderr), sys.stderr)
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if surely and isinstance(raw, _CarefulStream) and raw.lost:
        show(message(text, level))


def _print(text: str, stream: TextIO | None) -> None:
    if stream is not None:
        stream.write(f"{text}\n")
        stream.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """Print a result for a program."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    if not (unicode and text.replace("\n", "").isprintable()):
        text = json.dumps(document, indent=2)
    show(text)


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


# -- failures --------------------------------------------------------------------------------------

_JSON, _REPORTED, PROFILE = "mirror.json", "mirror.reported", "mirror.profile"
_OTHERS = frozenset({"inspect", "merge", "serve", "mode", "config"})
"""Commands that ask no registry for which there are flags."""


class Profile(NamedTuple):
    """What the context has of the profile in use, below `PROFILE`."""

    place: str  # FILE: profiles.NAME
    registry: str | None
    hosts: frozenset[str]  # of the registries that it names


class Group(click.Group):
    """Turns what commands raise into a message and an exit code; nothing else in mirror does."""

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **extra: Any
    ) -> click.Context:
        # Even if the other arguments cannot be parsed.
        as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
        try:
            ctx = super().make_context(info_name, args, *more, **extra)
        except click.UsageError as error:
            _report_usage(error, as_json=as_json)
        ctx.meta[_JSON] = as_json
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        with stopping(lambda: _report_interruption(ctx)) as asked:
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                _report_usage(_better_told(error), as_json=ctx.meta[_JSON])
            except MirrorError as error:
                _fail(ctx, error)
            except (click.exceptions.Exit, click.ClickException):
                raise
            except (KeyboardInterrupt, Exception) as error:
                # KeyboardInterrupt may strike inside a lock or a callback, which then raises
                # something else. Without an interruption this is a bug.
                if asked() or isinstance(error, KeyboardInterrupt):
                    _report_interruption(ctx)
                    ctx.exit(INTERRUPTED)
                if (lacking := shortage(error)) is None:
                    raise
                _fail(ctx, lacking)


def _report(
    ctx: click.Context, message: str, code: int, kind: str, hint: str = "", **more: object
) -> None:
    """Report a failure: as text, and with `--json` as a document with `more`, too."""
    as_json = ctx.meta[_JSON]
    tell(f"{paragraph(message)}{hint}", "error", surely=not as_json)
    if as_json:
        with suppress(click.ClickException):  # standard output is full; standard error has it
            _print_error(message + hint, code, kind, **more)


def _fail(ctx: click.Context, error: MirrorError) -> NoReturn:
    hint, kind = _hints(ctx.invoked_subcommand, error), type(error).__name__
    _report(ctx, str(error), error.exit_code, kind, hint, **_failures(error))
    ctx.exit(error.exit_code)


def _print_error(message: str, code: int, kind: str, **more: object) -> None:
    print_json({"error": {"type": kind, "message": message, "exitCode": code, **more}})


def _better_told(error: click.UsageError) -> click.UsageError:
    """The same error, where we know more of its cause than click."""
    ctx = error.ctx
    if isinstance(error, click.BadOptionUsage) and error.option_name == "--include-platform":
        hint = f"quote constraints, or the shell takes > and <: {error.option_name} '>=1.68'"
        return click.BadOptionUsage(error.option_name, f"{error.message} ({hint})", ctx)
    param = error.param if isinstance(error, click.BadParameter) else None
    if ctx is None or param is None or param.name is None:
        return error
    if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT_MAP:
        return error
    key = max(param.opts, key=len).removeprefix("--")
    return click.UsageError(f"{ctx.meta[PROFILE].place}.{key}: {error.message}", ctx)


def _report_usage(error: click.UsageError, *, as_json: bool) -> NoReturn:
    """Show it with the command's usage, as click does."""
    if as_json:
        _print_error(error.format_message(), error.exit_code, click.UsageError.__name__)
    shown = io.StringIO()
    error.show(shown)
    lines = shown.getvalue().rstrip("\n").split("\n")
    tell("\n".join(map(printable, lines)), surely=not as_json)
    raise click.exceptions.Exit(error.exit_code) from None


def _report_interruption(ctx: click.Context) -> None:
    if not ctx.meta.setdefault(_REPORTED, False):
        ctx.meta[_REPORTED] = True
        _report(ctx, MESSAGE, INTERRUPTED, "Interrupted")


def _failures(error: MirrorError) -> dict[str, Any]:
    """All that failed, however much of it the message names."""
    if isinstance(error, MissingBaseError):
        return {"lacking": list(error.lacking)}
    if not isinstance(error, IncompleteError):
        return {}
    return {
        "failures": [
            {"item": item, "type": type(reason).__name__, "message": str(reason)}
            for item, reason in error.failures
        ]
    }


def _hints(command: str | None, error: MirrorError) -> str:
    """What this command offers against `error`, as further lines of its message."""
    reasons: Sequence[MirrorError] = (error,)
    if isinstance(error, IncompleteError):
        reasons = [reason for _, reason in error.failures]
        lies = [one for one in reasons if isinstance(one, DigestMismatchError) and one.told]
        damaged = [one for one in reasons if isinstance(one, IntegrityError) and one not in lies]
        if command == "push" and len(damaged) == len(reasons):
            return "\n`mirror verify` names the archive"
    denied = [one for one in reasons if isinstance(one, DeniedError)]
    if command not in _OTHERS and any("://" not in one.where for one in denied):  # no bucket did
        flags, more = "--registry-login and --registry-password", ""
        if command == "pull":
            flags = "--source-login and --source-password, or --license"
            more = "; a licence may have expired, or not cover this edition"
        return f"\nCredentials are given by {flags}, or stored by `docker login`{more}"
    return ""
