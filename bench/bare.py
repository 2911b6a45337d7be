"""`python -m bench.bare`: what a docker-registry takes for the requests of a push of (b), no more.

Bare `http.client` sends them from a few threads: each blob as `POST` and `PUT`, each manifest by
its tag, one `HEAD` of each tag. It decides nothing, so no Python program that sends these requests
is much faster on this machine.
"""

from __future__ import annotations

import http.client
import random
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from bench.peers import CACHE
from bench.servers import Registry
from examples.release_tree.images import Layer, image, layer
from mirror.oci import Digest
from mirror.oci.manifest import OCI_MANIFEST

_LAYER_BYTES = 8 << 10


class Client:
    """Requests to one registry, over a connection for each thread."""

    def __init__(self, address: str) -> None:
        self._address, self._local = address, threading.local()

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> str:
        """Send a request that has to succeed; return the path that the answer names."""
        if not hasattr(self._local, "connection"):
            self._local.connection = http.client.HTTPConnection(self._address)
        connection: http.client.HTTPConnection = self._local.connection
        connection.request(method, path, body, {"Content-Type": kind, "Accept": kind})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 201, 202), f"{method} {path}: {answer.status}"
        return "/" + (answer.headers.get("Location") or "").partition("//")[2].partition("/")[2]

    def put_blob(self, repository: str, digest: Digest, data: bytes) -> None:
        """Upload a blob: two requests."""
        upload = self.ask("POST", f"/v2/{repository}/blobs/uploads/")
        self.ask("PUT", f"{upload}&digest={digest}", data, "application/octet-stream")


def _layer(name: str) -> Layer:
    return layer({name: random.Random(name).randbytes(_LAYER_BYTES)})


@click.command()
@click.option("--images", default=400, show_default=True)
@click.option("--threads", default=8, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=CACHE / "bare")
def main(images: int, threads: int, folder: Path) -> None:
    """Measure on this machine."""
    shared = _layer("shared")
    made = [image([shared, _layer(f"{n}a"), _layer(f"{n}b")]) for n in range(images)]
    blobs = list({digest: data for one in made for digest, data in one.blobs.items()}.items())
    shutil.rmtree(folder, ignore_errors=True)
    seconds = 0.0
    with Registry(folder.absolute()) as registry, ThreadPoolExecutor(threads) as pool:
        client = Client(registry.address)

        def measure(name: str, act: Callable[[int], object], count: int) -> None:
            nonlocal seconds
            before, begun = registry.load().processor_s, time.monotonic()
            list(pool.map(act, range(count)))
            took = time.monotonic() - begun
            work = registry.load().processor_s - before
            seconds += took
            each, cost = took / count * 1000, work / count * 1000
            click.echo(
                f"{name}: {count} in {took:.2f} s, {each:.2f} ms each, registry {cost:.2f} ms"
            )

        def put(number: int) -> None:
            client.ask("PUT", f"/v2/bare/manifests/{number}", made[number].raw, OCI_MANIFEST)

        def look(number: int) -> None:
            client.ask("HEAD", f"/v2/bare/manifests/{number}", kind=OCI_MANIFEST)

        measure("blobs", lambda number: client.put_blob("bare", *blobs[number]), len(blobs))
        measure("manifests", put, images)
        measure("looks", look, images)
    click.echo(f"all: {seconds:.2f} s")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
