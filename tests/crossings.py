"""How many files of the library one thing crosses on its way: `python -m tests.crossings`.

A reader who follows a blob through a sync opens as many files as are counted here. The profiler of
the interpreter sees every call; what serves the registries of the measurement, and the program
around the library (`DOORS`), is left out.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import mirror
from examples.release_tree import TreeSpec
from mirror.events import BlobDone
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import serve
from tests.test_architecture import DOORS

PACKAGE = f"{Path(mirror.__file__).parent}/"
LEFT_OUT = DOORS | {"serve", "testing"}

ONE_IMAGE = TreeSpec(
    versions=("v1.70.0",),
    channels={"stable": "v1.70.0"},
    components=1,
    layer_bytes=1000,
    modules=(),
    packages=(),
)
"""The smallest tree that has a component image."""


@dataclass
class Crossings:
    """What ran: `files` of the library in all, and for each blob that got into place its way.

    A way is the files that its thread entered, in order and with repetitions, from the first
    function of the library on its stack until `BlobDone`.
    """

    files: set[str] = field(default_factory=set)
    ways: list[list[str]] = field(default_factory=list)

    def longest_way(self) -> set[str]:
        """The files of the blob that crossed most of them."""
        return max((set(way) for way in self.ways), key=len)


class _Thread(threading.local):
    depth = 0
    """Functions of the library on this thread's stack."""
    way: list[str]


@contextmanager
def watched() -> Iterator[Crossings]:
    """Watch every call of this thread, and of threads that begin within the block."""
    seen, here = Crossings(), _Thread()

    def profile(frame: FrameType, event: str, _argument: Any) -> None:
        path = frame.f_code.co_filename
        made = event == "call" and frame.f_code.co_name == "__init__" and here.depth
        if made and isinstance(frame.f_locals.get("self"), BlobDone):
            seen.ways.append(here.way)
        if not path.startswith(PACKAGE) or frame.f_code.co_name == "<module>":
            return
        file = path.removeprefix(PACKAGE)
        if file.split("/")[0].removesuffix(".py") in LEFT_OUT:
            return
        if event == "call":
            if not here.depth:
                here.way = []
            here.depth += 1
            if not here.way or here.way[-1] != file:
                here.way.append(file)
            seen.files.add(file)
        elif event == "return" and here.depth:
            here.depth -= 1

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def pull() -> Crossings:
    """A pull of one image."""
    flags = ("--insecure", "--no-modules", "--no-security-db", "--deckhouse-tag", "v1.70.0")
    with EmbeddedRegistry(MemoryStorage()) as origin, tempfile.TemporaryDirectory() as folder:
        source = serve(ONE_IMAGE, origin).root
        # First unwatched: the bodies of modules and classes run once, when they are imported.
        call_mirror("pull", f"{folder}/first", "--source", source, *flags).succeeded()
        with watched() as seen:
            call_mirror("pull", f"{folder}/second", "--source", source, *flags).succeeded()
    return seen


def sync() -> Crossings:
    """A sync of one image to an empty replica."""
    with EmbeddedRegistry(MemoryStorage()) as leader, EmbeddedRegistry(MemoryStorage()) as replica:
        command = ("sync", "--insecure", "--from", serve(ONE_IMAGE, leader).root, "--to")
        call_mirror(*command, f"{replica.address}/first").succeeded()
        # Elsewhere, where nothing can be mounted from.
        with EmbeddedRegistry(MemoryStorage()) as second, watched() as seen:
            call_mirror(*command, f"{second.address}/second").succeeded()
    return seen


def main() -> None:
    """Print the numbers, and the files behind them."""
    for what, files in (
        ("an image of a pull", pull().files),
        ("a blob of a sync", sync().longest_way()),
    ):
        sys.stdout.write(f"{what} crosses {len(files)} files\n")
        sys.stdout.writelines(f"  {file}\n" for file in sorted(files))


if __name__ == "__main__":
    main()
