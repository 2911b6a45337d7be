"""Two registries on this machine to try commands against, as the tutorial does.

    python -m examples.practice [PORT PORT]

One stands for the vendor's and holds a made-up release tree of 1 MB; the other, empty, stands for
the one in the closed zone. Enter publishes the vendor's next release. Ctrl-C ends both registries,
which keep nothing.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace

from examples.demo import fill
from examples.release_tree import SMALL, ModuleSpec, spread
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry

PORTS = (5000, 5001)
_CONSOLE = ("v1.1.0", "v1.2.0")
NEXT = replace(
    SMALL,
    versions=(*SMALL.versions, "v1.72.0"),
    channels={**SMALL.channels, "alpha": "v1.72.0", "beta": "v1.71.0"},
    modules=(ModuleSpec("console", _CONSOLE, spread(_CONSOLE)), *SMALL.modules[1:]),
)
"""The release tree after the vendor's next release."""


def main() -> None:
    """Serve both until Ctrl-C."""
    first, second = map(int, sys.argv[1:]) if sys.argv[1:] else PORTS
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    offered = MemoryStorage()
    with (
        EmbeddedRegistry(offered, port=first) as vendor,
        EmbeddedRegistry(MemoryStorage(), port=second) as closed,
    ):
        tree = fill(offered, SMALL)
        print(f"the vendor's registry: {vendor.address}/{tree.root}")
        print(f"the closed zone's:     {closed.address}/system/deckhouse (empty)")
        print("Enter publishes the vendor's next release. Ctrl-C ends both.", flush=True)
        sys.stdin.readline()
        fill(offered, NEXT)
        print("v1.72.0 is published.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
