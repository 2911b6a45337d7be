"""How a command ends: its result or its failure, as text and as JSON, and its exit code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mirror.commands.process import INTERRUPTED, MESSAGE, show, shows_unicode, stopping, tell
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

_JSON, _REPORTED = "mirror.json", "mirror.reported"
PROFILE = "mirror.profile"
"""Where the context has the place of the profile in use: `FILE: profiles.NAME`."""
_CONSTRAINTS = frozenset({"--include-platform"})
_OTHERS = frozenset({"inspect", "merge", "serve", "mode", "config"})
"""Commands that ask no registry for which there are flags."""


def print_json(document: Mapping[str, Any]) -> None:
    """Print a result for a program."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if not (shows_unicode() and text.replace("\n", "").isprintable()):
        text = json.dumps(document, indent=2)
    show(text)


class Group(click.Group):
    """Turns what commands raise into a message and an exit code; nothing else in mirror does."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        as_json = _asks_for_json(args)
        try:
            ctx = super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            _report_usage(error, as_json=as_json)
        ctx.meta[_JSON] = as_json
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        with stopping(lambda: _report_interruption(ctx)) as asked:
            try:
                return super().invoke(ctx)
            except click.BadOptionUsage as error:
                _report_usage(_with_hint(error), as_json=ctx.meta[_JSON])
            except click.BadParameter as error:
                _report_usage(_from_where(error), as_json=ctx.meta[_JSON])
            except click.UsageError as error:
                _report_usage(error, as_json=ctx.meta[_JSON])
            except MirrorError as error:
                _report_error(ctx, error)
                ctx.exit(error.exit_code)
            except KeyboardInterrupt:
                _report_interruption(ctx)
                ctx.exit(INTERRUPTED)
            except (click.exceptions.Exit, click.ClickException):
                raise
            except Exception as error:
                # After an interruption: KeyboardInterrupt may strike inside a lock or a callback,
                # which then raises something else. Without an interruption this is a bug.
                if (lacking := shortage(error)) is not None and not asked():
                    _report_error(ctx, lacking)
                    ctx.exit(lacking.exit_code)
                if not asked():
                    raise
                _report_interruption(ctx)
                ctx.exit(INTERRUPTED)


def _asks_for_json(args: Sequence[str]) -> bool:
    """Whether `--json` is among the arguments, even if the others cannot be parsed."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options


def _report(
    ctx: click.Context,
    message: str,
    code: int,
    kind: str,
    more: Mapping[str, Any] | None = None,
    *,
    hint: str = "",
) -> None:
    """Report a failure: as text, and with `--json` as a document, too."""
    as_json = ctx.meta[_JSON]
    tell(f"{paragraph(message)}{hint}", "error", surely=not as_json)
    if as_json:
        with suppress(click.ClickException):  # standard output is full; standard error has it
            _print_error(message + hint, code, kind, more)


def _report_error(ctx: click.Context, error: MirrorError) -> None:
    hint = _hints(ctx.invoked_subcommand, error)
    _report(ctx, str(error), error.exit_code, type(error).__name__, _failures(error), hint=hint)


def _print_error(message: str, code: int, kind: str, more: Mapping[str, Any] | None = None) -> None:
    print_json({"error": {"type": kind, "message": message, "exitCode": code, **(more or {})}})


def _with_hint(error: click.BadOptionUsage) -> click.BadOptionUsage:
    """The same error, which says why a constraint may be missing at the end of a line."""
    if error.option_name not in _CONSTRAINTS:
        return error
    hint = f"quote constraints, or the shell takes > and <: {error.option_name} '>=1.68'"
    return click.BadOptionUsage(error.option_name, f"{error.message} ({hint})", error.ctx)


def _from_where(error: click.BadParameter) -> click.UsageError:
    """The same error; of a value from a profile it names the place, and not a flag or variable."""
    ctx, param = error.ctx, error.param
    if ctx is None or param is None or param.name is None:
        return error
    if ctx.get_parameter_source(param.name) is not ParameterSource.DEFAULT_MAP:
        return error
    key = max(param.opts, key=len).removeprefix("--")
    return click.UsageError(f"{ctx.meta[PROFILE]}.{key}: {error.message}", ctx)


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
