"""Options that several commands share, and the frame in which every command works."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from mirror.commands.errors import print_json
from mirror.commands.process import show
from mirror.errors import paragraph, printable
from mirror.events import OnEvent, Warned
from mirror.reports.progress import progress
from mirror.run import DEFAULT_JOBS, Run

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""A file that is there."""


def flag(*names: str, text: str) -> Decorator:
    """A switch that is off unless it is given."""
    return click.option(*names, is_flag=True, help=text)


def together(*options: Decorator) -> Decorator:
    """Several option decorators as one, in the order in which `--help` lists them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def grouped(name: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Options whose values reach the command as one argument: what `make` makes of them."""
    declare = together(*options)
    own = {param.name for param in getattr(declare(lambda: None), "__click_params__", [])}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def called(**values: Any) -> Any:
            given = {key: values.pop(key) for key in own}
            return command(**values, **{name: make(**given)})

        return declare(called)

    return decorate


# -- the frame of a command ------------------------------------------------------------------------


class Report(Protocol):
    """What an operation returns."""

    def to_document(self) -> Mapping[str, Any]:
        """As JSON values."""
        ...


Shown = TypeVar("Shown", bound=Report)


class Work(ExitStack):
    """A command at work. What it opens here is closed before it shows its result.

    `run` is how its operation works; progress goes to standard error.
    """

    def __init__(self, as_json: bool, jobs: int = DEFAULT_JOBS) -> None:
        super().__init__()
        self.as_json, self._started = as_json, time.monotonic()
        self.on_event = self.enter_context(progress(quiet=as_json))
        self.run = Run(jobs, self.on_event)

    def show(
        self, report: Shown, summary: Callable[[Shown, float], str], *, code: int = 0, **more: Any
    ) -> None:
        """Close everything and print `report`, for a person or, with `more`, for a program."""
        self.close()
        elapsed = time.monotonic() - self._started
        document: Mapping[str, Any] = {}
        lines: list[str] = []
        if self.as_json:
            document = {**report.to_document(), **more, "elapsedSeconds": round(elapsed, 3)}
        else:
            lines = [summary(report, elapsed)]
        self.say(document, lines, code=code)

    def say(self, document: Mapping[str, Any], lines: Iterable[str], *, code: int = 0) -> None:
        """Print the one or the other, and end the command if `code` is not 0."""
        try:
            self._print(document, lines)
        except click.ClickException as unwritten:
            if not code:
                raise
            unwritten.show()  # what was found still decides how the command ends
        if code:
            click.get_current_context().exit(code)

    def _print(self, document: Mapping[str, Any], lines: Iterable[str]) -> None:
        if self.as_json:
            print_json(document)
        else:
            show("\n".join(printable(line) for text in lines for line in text.split("\n")))


_WARNINGS = "mirror.warnings"


def warn_at_start(ctx: click.Context, about: str, text: str) -> None:
    """Warn once of a kind of thing, when the command begins: options are read before that."""
    ctx.meta.setdefault(_WARNINGS, {}).setdefault(about, text)


def _work(**values: Any) -> Work:
    ctx = click.get_current_context()
    work = ctx.with_resource(Work(**values))
    for text in ctx.meta.pop(_WARNINGS, {}).values():
        work.on_event(Warned(text))
    return work


_JSON = flag("--json", "as_json", text="Print the result as JSON and no progress.")
as_json = grouped("work", _work, _JSON)
running = grouped(
    "work",
    _work,
    click.option(
        "--jobs",
        type=click.IntRange(1, 64),
        default=DEFAULT_JOBS,
        show_default=True,
        help="How many items to work on at a time.",
    ),
    _JSON,
)

# -- the environment -------------------------------------------------------------------------------


def is_from_environment(name: str) -> bool:
    """Whether a parameter of the command has its value from an environment variable."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.ENVIRONMENT


def tell_ignored_variables(on_event: OnEvent) -> None:
    """Warn of the variable by which `d8 mirror` is given time, and which has no effect here."""
    if os.environ.get("D8_MIRROR_TIMEOUT"):
        on_event(
            Warned(
                "D8_MIRROR_TIMEOUT has no effect: a transfer may take any time as long as bytes "
                "move, and a registry that stops answering is noticed without it"
            )
        )


class Cleaned(logging.Formatter):
    """Records as people may see them: one message and its traceback are one paragraph."""

    def format(self, record: logging.LogRecord) -> str:
        return paragraph(super().format(record))


@contextmanager
def logging_to_stderr(level: int) -> Iterator[None]:
    """The library's own messages on stderr; of others' only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Cleaned("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("mirror")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(level)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


# -- options ---------------------------------------------------------------------------------------

sign_key = click.option(
    "--sign-key",
    type=FILE,
    help="Sign the bundle with this private key (PEM or cosign's). MIRROR_SIGN_PASSWORD or a "
    "prompt gives its passphrase.",
)
tmp_dir = click.option("--tmp-dir", hidden=True, help="Accepted for compatibility; none is needed.")
