"""`mirror sync --watch`: the daemon in the foreground, as service managers and pods run it."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from mirror.watch.service import running
from mirror.watch.settings import WatchSettings

_log = logging.getLogger(__name__)


def watch(config: Path) -> None:
    """Keep replicas equal until SIGTERM or Ctrl-C; then end with exit code 0.

    What happens is logged to stderr, one line each.
    """
    settings = WatchSettings.load(config)
    stop = threading.Event()
    with _logging(), _stopped_by_signals(stop), running(settings) as (daemon, url):
        click.echo(f"following {', '.join(daemon.followers)}", err=True)
        if url is not None:
            click.echo(f"health, readiness and metrics at {url}", err=True)
        stop.wait()
    click.echo("stopped", err=True)


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stop`; a second one ends the process the usual way."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(_number: int, _frame: FrameType | None) -> None:
        restore()
        stop.set()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


@contextmanager
def _logging() -> Iterator[None]:
    """The library's own messages on stderr; of others' only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("mirror")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
