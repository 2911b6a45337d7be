"""Options that several commands share, and the frame in which every command works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin

import click

from mirror.commands.errors import print_json
from mirror.config import PullConfig
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
        if self.as_json:
            print_json(document)
        else:
            click.echo("\n".join(lines))
        if code:
            click.get_current_context().exit(code)


def _work(**values: Any) -> Work:
    return click.get_current_context().with_resource(Work(**values))


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
        help="Items worked on at a time.",
    ),
    _JSON,
)

# -- options ---------------------------------------------------------------------------------------

sign_key = click.option(
    "--sign-key",
    type=FILE,
    help="Private key (PEM, also cosign's) to sign the bundle with; its passphrase is asked for, "
    "or taken from MIRROR_SIGN_PASSWORD.",
)
tmp_dir = click.option("--tmp-dir", hidden=True, help="Accepted for compatibility; none is needed.")


def config_options(*, short: Mapping[str, str]) -> Decorator:
    """One option for every setting of `PullConfig`, absent unless it is given.

    A switch has an opposite, for what a file switches on: `--no-modules/--modules`.
    """
    options = []
    for name, setting in PullConfig.model_fields.items():
        long = name.replace("_", "-")
        names = [f"--{long}", *([short[name]] if name in short else [])]
        default, help_text = setting.get_default(), setting.description
        if isinstance(default, bool):
            names[0] += f"/--{_opposite(long)}"
            options.append(click.option(*names, is_flag=True, default=None, help=help_text))
        elif isinstance(default, tuple):
            repeatable = f"{help_text} Repeatable."
            options.append(click.option(*names, multiple=True, default=None, help=repeatable))
        else:
            shown = f"{help_text}  [default: {default}]" if default is not None else help_text
            kind: Any = int if isinstance(default, int) else str
            if get_origin(setting.annotation) is Literal:
                kind = click.Choice(get_args(setting.annotation))
            options.append(click.option(*names, type=kind, default=None, help=shown))
    return together(*options)


def _opposite(name: str) -> str:
    """The flag that takes back what `name` says."""
    if not name.startswith("no-"):
        return f"no-{name}"
    bare = name.removeprefix("no-")
    # --platform is a setting of its own: what to thin multi-arch images to.
    return f"with-{bare}" if bare.replace("-", "_") in PullConfig.model_fields else bare
