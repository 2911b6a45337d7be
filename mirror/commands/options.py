"""Options that several commands share, and the frame in which every command works."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

import click
from click.core import ParameterSource

from mirror.commands.process import keep_memory, print_json, show, tell
from mirror.durable import write_durably
from mirror.errors import (
    InputError,
    IntegrityError,
    MirrorError,
    RegistryError,
    paragraph,
    printable,
)
from mirror.events import Warned
from mirror.reports.messages import Messages, fitted
from mirror.reports.progress import FORMS, progress
from mirror.reports.progress import logging_to_stderr as logging_to_stderr
from mirror.run import DEFAULT_JOBS, WIDEST, Run

if TYPE_CHECKING:
    from mirror.bundle.bucket import Bucket
    from mirror.bundle.location import Location
    from mirror.commands.access import AccessOptions
    from mirror.registry import ConnectionOptions

_MEANT = re.compile(r"(s3|https?):/+", re.IGNORECASE)
"""How an address begins, perhaps mistyped. `s3:5000/dkp` is a registry's, and has no slash here."""


def is_address(text: object) -> bool:
    """Whether an argument is an address, not a path here. InputError: one that was mistyped."""
    if not isinstance(text, str):
        return False
    meant = _MEANT.match(text)
    right = f"{meant[1].lower()}://" if meant else ""
    if meant and meant[0] != right:
        given, better = _shown(text), _shown(f"{right}{text[meant.end() :]}")
        raise InputError(
            f"{given} is not an address; did you mean {better}? A folder of that name is ./{given}"
        )
    return "://" in text


def _shown(address: str) -> str:
    """An address for a message, without the login that it may have."""
    return printable(re.sub("//.*@", "//", address))


class PathHere(click.Path):
    """A path of this machine; what to do `instead` of an address, which it would turn into one."""

    def __init__(self, *, instead: str = "name a path, not an address", **kind: Any) -> None:
        super().__init__(path_type=Path, **kind)
        self._instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            option = f"{param.opts[-1]} " if isinstance(param, click.Option) else ""
            raise InputError(f"{option}{_shown(value)}: {self._instead}")
        return super().convert(value, param, ctx)


class _BundleType(click.Path):
    """A path of this machine, or an address. Addresses stay text: a `Path` would change them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_address(value) else super().convert(value, param, ctx)


class _ResultFile(PathHere):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file = Path(str(super().convert(value, param, ctx)))
        if value == STANDARD_OUTPUT and self.allow_dash:
            return file
        above, dev = file.absolute().parent, Path("/dev")  # as root we would replace devices
        if not above.is_dir() or above == dev or (file.exists() and not file.is_file()):
            raise InputError(f"{file} is not a file in a folder that exists; name another one")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{above}: nothing can be written in this folder; name another one")
        return file


FILE = PathHere(exists=True, dir_okay=False)
"""A file that is there."""
BUNDLE = _BundleType(path_type=Path)
"""A bundle's folder, here (`Path`) or at an address (`str`)."""
BUNDLE_HERE = _BundleType(path_type=Path, exists=True)
"""The same; what is here must be there."""
STANDARD_OUTPUT = "-"
_RESULT = "a result goes into a file of this machine; name one"
RESULT_FILE = _ResultFile(instead=_RESULT)
"""A file that a result is written to. That it can be is seen before the work, which takes time."""
RESULT_FILE_OR_DASH = _ResultFile(instead=_RESULT, allow_dash=True)


def located(bundle: Path | str, access: AccessOptions, work: Work) -> Location:
    """A bundle's folder here, or at an address, where it is read in place."""
    connection = access.connection()
    if isinstance(bundle, Path):
        return bundle
    if bundle.startswith("s3://"):
        from mirror.bundle.location import RemotePath

        return work.enter_context(RemotePath(bucket_at(bundle, connection), work.run))
    from mirror.bundle.static_server import remote_folder

    return work.enter_context(remote_folder(bundle, options=connection, run=work.run))


def bucket_at(address: str, connection: ConnectionOptions) -> Bucket:
    """A bundle's place in a bucket, `s3://bucket/prefix`."""
    from mirror.bundle.bucket import Bucket, BucketAddress

    return Bucket(BucketAddress.parse(address), options=connection)


def bundle_at(text: str, access: AccessOptions, work: Work) -> Location | None:
    """A path that is here, or the bundle at an address; None: `text` may name a registry."""
    if not is_address(text):
        return Path(text) if Path(text).exists() else None
    place = located(text, access, work)
    if text.startswith("https://"):  # as registries may be written, too
        try:
            next(iter(place.iterdir()))
        except (InputError, RegistryError):
            return None
    return place


# -- how options are declared ----------------------------------------------------------------------


def _read(
    read: Callable[[Any], Any], _ctx: click.Context, _option: click.Parameter, value: Any
) -> Any:
    try:
        return None if value is None else read(value)
    except ValueError as err:
        raise click.BadParameter(str(err)) from None


def argument(**settings: Any) -> Any:
    """An argument of the command, as the default of the parameter that receives it."""
    return lambda name: click.Argument([name], **settings)


def option(text: str | None, *names: str, **settings: Any) -> Any:
    """An option of the command, as the default of the parameter that receives it.

    Its long name is that parameter's, unless there is one among its other `names`. These are
    written as `--help` shows them: `--from LEADER`. A value is passed through `read`, if given.
    """
    if "read" in settings:
        settings["callback"] = partial(_read, settings.pop("read"))
    settings.setdefault("show_default", settings.get("default") is not None)
    settings.setdefault("show_envvar", "envvar" in settings)
    if names:
        last, _, metavar = names[-1].partition(" ")
        names, settings["metavar"] = (*names[:-1], last), metavar or None

    def declare(name: str) -> click.Option:
        long = any(one.startswith("--") for one in names)
        known = names if long else (*names, f"--{name.replace('_', '-')}")
        return click.Option([*known, name], help=text, **settings)

    return declare


flag = partial(option, is_flag=True)
"""A switch that is off unless it is given."""
file_option = partial(option, type=FILE)
"""An option that names a file, which is there."""
repeatable = partial(option, multiple=True)
"""An option that may be given several times."""


@dataclass(frozen=True, slots=True)
class _Grouped:
    make: Callable[..., Any]
    members: Mapping[str, Any]

    def params(self) -> Iterator[click.Parameter]:
        for name, declared in self.members.items():
            if isinstance(declared, _Grouped):
                yield from declared.params()
            else:
                yield declared(name)

    def made(self, values: Mapping[str, Any]) -> Any:
        given = {}
        for name, declared in self.members.items():
            if isinstance(declared, _Grouped):
                given[name] = declared.made(values)
            elif name in values:  # click keeps some to itself
                given[name] = values[name]
        return self.make(**given)


def grouped(make: Callable[..., Any], **members: Any) -> Any:
    """Options whose values reach the command as one argument: what `make` makes of them."""
    return _Grouped(make, members)


def command(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function. Each parameter's default declares what it receives.

    `--help` lists them in this order, and at its end an `example` from real life.
    """

    def decorate(run: Callable[..., None]) -> click.Command:
        all_of_it = _Grouped(run, {k: v.default for k, v in signature(run).parameters.items()})
        params, epilog = [*all_of_it.params()], f"\b\nExample:\n  {example}"
        called = wraps(run)(lambda **values: all_of_it.made(values))
        return click.command(name, params=params, epilog=epilog)(called)

    return decorate


def given_by(source: ParameterSource, *names: str | None) -> bool:
    """Whether one of these parameters of the command has its value from there."""
    ctx = click.get_current_context()
    return any(ctx.get_parameter_source(name or "") is source for name in names)


# -- the frame of a command ------------------------------------------------------------------------


class Report(Protocol):
    """What an operation returns."""

    def to_document(self) -> Mapping[str, Any]:
        """As JSON values."""


Shown = TypeVar("Shown", bound=Report)


class Work(ExitStack):
    """A command at work. What it opens here is closed before it shows its result.

    `run` is how its operation works; progress goes to standard error.
    """

    def __init__(
        self,
        as_json: bool,
        jobs: int | None = None,
        *,
        form: str | None = None,
        quiet: bool = False,
        verbose: int = 0,
        wide: bool = False,
    ) -> None:
        super().__init__()
        self.as_json, self._wide, self._started = as_json, wide, time.monotonic()
        self._unwritten: MirrorError | None = None
        self._page = ""
        self._form = form = form or ("none" if as_json or quiet else "auto")
        if verbose > 1 and form == "auto":
            self._form = form = "plain"  # a bar among many lines would be drawn again behind each
        if verbose:
            self.enter_context(logging_to_stderr(logging.DEBUG if verbose > 1 else logging.INFO))
        told = progress(form=form, items=verbose > 0, requests=verbose > 1)
        self.on_event = self.enter_context(told)
        self.run = Run(jobs or DEFAULT_JOBS, self.on_event, widest=0 if jobs else WIDEST)
        keep_memory()

    def asks(self, yes: bool) -> bool:
        """Whether to ask before what cannot be undone: somebody is there, and has not agreed."""
        return not yes and not self.as_json and sys.stdin.isatty() and sys.stderr.isatty()

    def look(
        self, operate: Callable[[Run], Shown], summary: Callable[[Shown, float], str]
    ) -> Shown:
        """Tell what `operate` finds that would be done, before the question whether to do it."""
        started = time.monotonic()
        with progress(form=self._form) as on_event:  # no bar may be open at the question
            found = operate(replace(self.run, on_event=on_event))
        tell(self._fitted(summary(found, time.monotonic() - started), sys.stderr))
        return found

    def _fitted(self, text: str, stream: TextIO) -> str:
        """`text` as wide as the screen is, if there is one, unless it may have any width."""
        if self._wide:
            return text
        return fitted(text, shutil.get_terminal_size().columns if stream.isatty() else None)

    def confirm(self, question: str) -> None:
        """Ask; unless the answer is yes, end the command with nothing done."""
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in _AGREED:
            tell("nothing was changed")
            click.get_current_context().exit(1)

    def write(self, file: Path, data: bytes) -> bool:
        """Write a result to a file; False if that fails, which `show` tells after the result."""
        try:
            write_durably(file, data)
        except MirrorError as err:
            self._unwritten = err
        return self._unwritten is None

    def write_page(self, file: Path, page: str) -> None:
        """Write a page; the result says where it is."""
        if self.write(file, page.encode()):
            self._page = f"\n\nThe page is {file}; any browser opens it offline"

    def show(
        self,
        report: Shown,
        summary: Callable[[Shown, float], str],
        *,
        code: int = 0,
        whole: bool = False,
        **more: Any,
    ) -> None:
        """Close everything and print `report`, for a person or, with `more`, for a program.

        `whole` leaves digests and lines of the summary as they are, and so do findings: whoever is
        to look for something needs its whole name.
        """
        self.close()
        elapsed = time.monotonic() - self._started
        if self.as_json:
            found = {**report.to_document(), **more, "elapsedSeconds": round(elapsed, 3)}
            self.say(found, (), code=code)
            return
        text = summary(report, elapsed) + self._page
        whole = whole or code == IntegrityError.exit_code
        self.say({}, [text if whole else self._fitted(text, sys.stdout)], code=code)

    def say(self, document: Mapping[str, Any], lines: Iterable[str], *, code: int = 0) -> None:
        """Print the one or the other, and end the command if `code` is not 0."""
        try:
            if self.as_json:
                print_json(document)
            else:
                show("\n".join(printable(line) for text in lines for line in text.split("\n")))
        except click.ClickException as unwritten:
            if not code:
                raise
            unwritten.show()  # what was found still decides how the command ends
        if self._unwritten is not None:
            tell(paragraph(str(self._unwritten)), "error", surely=not self.as_json)
            code = code or self._unwritten.exit_code
        if code:
            click.get_current_context().exit(code)


_AGREED = frozenset({"y", "yes", "д", "да"})
_WARNINGS = "mirror.warnings"


def warn_at_start(about: str, text: str) -> None:
    """Warn once of a kind of thing, when the command begins: options are read before that."""
    click.get_current_context().meta.setdefault(_WARNINGS, {}).setdefault(about, text)


def _work(**values: Any) -> Work:
    ctx = click.get_current_context()
    work = ctx.with_resource(Work(**values))
    for text in ctx.meta.pop(_WARNINGS, {}).values():
        work.on_event(Warned(text))
    return work


def _messages(key: str, meant: object, value: bool) -> Callable[..., None]:
    """Sets `key` of `Messages` while the program runs, for an option that is given as `meant`."""

    def set_it(ctx: click.Context, _option: click.Parameter, given: object) -> None:
        if given == meant:
            # An error is told when the command's own context is closed.
            ctx.find_root().call_on_close(partial(setattr, Messages, key, getattr(Messages, key)))
            setattr(Messages, key, value)

    return set_it


_feedback = {
    "as_json": flag("Print the result as JSON, and no progress.", "--json"),
    "verbose": option(
        "Show each blob, archive, manifest and tag that is done; -vv also each request.",
        "-v",
        count=True,
    ),
    "wide": flag("Print whole digests, and lines of any length."),
    "quiet": flag("Show no progress, only warnings and the result.", "-q"),
    "form": option(
        "Progress on standard error: bars, plain lines, or a line of JSON for each event (`mirror "
        "config schema progress`).  [default: bars on a terminal, else plain lines]",
        "--progress",
        type=click.Choice(FORMS),
        envvar="MIRROR_PROGRESS",
    ),
    "log_format": option(
        "Form of warnings, errors and logs on standard error.  [default: text]",
        type=click.Choice(["text", "json"]),
        envvar="MIRROR_LOG_FORMAT",
        is_eager=True,
        expose_value=False,
        callback=_messages("as_json", "json", True),
    ),
    "no_color": flag(
        "No colours on a terminal; NO_COLOR=1 means the same.",
        is_eager=True,
        expose_value=False,
        callback=_messages("coloured", True, False),
    ),
}
as_json = grouped(_work, **_feedback)
running = grouped(
    _work,
    jobs=option(
        "How many items to work on at a time at most.  [default: 8, and up to 64 small ones where "
        "a registry is far away and bears them]",
        type=click.IntRange(1, WIDEST),
    ),
    **_feedback,
)

# -- options ---------------------------------------------------------------------------------------

yes_option = flag("Do not ask; without a terminal nothing is asked anyway.", "-y")
html_option = option(
    "Write a self-contained HTML report with a map of sizes to this file.",
    "--html",
    type=RESULT_FILE,
)
