"""The whole daemon: clients, threads and pages from one settings file, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mirror.errors import FileSystemError
from mirror.layout import normalised_suffix
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    RegistryClient,
    RetryPolicy,
    find_credentials,
)
from mirror.serve.server import ServerThread, listen
from mirror.sync.tree import RegistryTree
from mirror.watch.cycle import Replicator
from mirror.watch.daemon import Daemon
from mirror.watch.pages import create_app
from mirror.watch.settings import RegistryPlace, WatchSettings

_RETRIES = RetryPolicy(attempts=4, base_delay_s=0.5, max_delay_s=5.0)
"""Less patience than a push has: whoever looks at a replica looks again soon."""


@contextmanager
def running(settings: WatchSettings) -> Iterator[tuple[Daemon, str | None]]:
    """The daemon, at work while the `with` block lasts, and the URL of its pages if it has any.

    On leaving, what is under way is stopped; no thread of ours is left.

    Raises:
        FileSystemError: `listen` is an address that cannot be had.
        InputError: a password file cannot be read.
    """
    with ExitStack() as opened:
        trees = {
            name: _tree(settings, name, place, opened)
            for name, place in settings.registries.items()
        }
        replicator = Replicator(trees, settings.leader, prune=settings.prune, jobs=settings.jobs)
        daemon = Daemon(settings.followers, replicator, pace=settings.pace, this=settings.this)
        url = _serve(settings, daemon, opened) if settings.listen else None
        opened.callback(daemon.stop)
        daemon.start()
        yield daemon, url


def watch(settings: WatchSettings, stop: threading.Event) -> None:
    """Keep the replicas equal until `stop` is set; raises as `running`."""
    with running(settings):
        stop.wait()


def _serve(settings: WatchSettings, daemon: Daemon, opened: ExitStack) -> str:
    host, port = settings.listener()
    try:
        listener = listen(host, port)
    except OSError as err:
        raise FileSystemError(
            f"cannot listen on {settings.listen}: {err.strerror}; name another address as `listen`"
        ) from err
    token = settings.notify_token
    server = ServerThread(
        create_app(daemon, notify_token=token.get_secret_value() if token else None), listener
    )
    server.start()
    opened.callback(server.stop)
    return f"http://{host}:{listener.getsockname()[1]}"


def _tree(
    settings: WatchSettings, name: str, place: RegistryPlace, opened: ExitStack
) -> RegistryTree:
    root = settings.repository(name)
    options = ConnectionOptions(
        plain_http=place.insecure,
        verify=not place.tls_skip_verify,
        retries=_RETRIES,
        max_connections=settings.jobs * (len(settings.registries) + 1) + 8,
    )
    if place.ca is not None:
        # As text in the mirrorer's way, or the file that has it.
        is_text = "-----BEGIN" in place.ca
        options = (
            replace(options, ca=place.ca) if is_text else replace(options, ca_file=Path(place.ca))
        )
    secret = place.secret()
    credentials = (
        Credentials(place.login, secret)
        if place.login is not None and secret is not None
        else find_credentials(root.host)
    )
    client = opened.enter_context(
        RegistryClient(root.host, options=options, credentials=credentials)
    )
    suffix = normalised_suffix(settings.modules_path_suffix)
    return RegistryTree(client, root, suffix, storage=place.storage)
