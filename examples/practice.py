"""Two registries on this machine to try commands against, as the tutorial does.

    ./run practice [PORT PORT]

One stands for the vendor's and holds a small made-up release tree; the other, empty, stands for
the one in the closed zone. Enter publishes the vendor's next release. Ctrl-C ends both registries,
which keep nothing.
"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack

from examples.demo import fill
from examples.release_tree import ModuleSpec, TreeSpec, spread
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry

PORTS = (5000, 5001)


def _published(*versions: str, console: tuple[str, ...]) -> TreeSpec:
    return TreeSpec(
        versions=versions,
        channels=spread(versions),
        components=4,
        modules=(ModuleSpec("console", console, spread(console)),),
        packages=(ModuleSpec("postgres", ("v1.0.0",), spread(("v1.0.0",))),),
    )


NOW = _published("v1.69.1", "v1.70.0", console=("v1.0.0", "v1.1.0"))
NEXT = _published("v1.69.1", "v1.70.0", "v1.71.0", console=("v1.1.0", "v1.2.0"))
"""What the vendor publishes, one after the other."""


def main() -> None:
    """Serve both until Ctrl-C."""
    first, second = map(int, sys.argv[1:]) if sys.argv[1:] else PORTS
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    offered = MemoryStorage()
    with ExitStack() as running:
        try:
            vendor = running.enter_context(EmbeddedRegistry(offered, port=first))
            closed = running.enter_context(EmbeddedRegistry(MemoryStorage(), port=second))
        except OSError as err:
            sys.exit(
                f"error: ports {first} and {second} of 127.0.0.1 cannot be used ({err.strerror}); "
                "name two free ones: ./run practice 5100 5101"
            )
        tree = fill(offered, NOW)
        print(f"the vendor's registry: {vendor.address}/{tree.root}")
        print(f"the closed zone's:     {closed.address}/system/deckhouse (empty)")
        print("Enter publishes the vendor's next release. Ctrl-C ends both.", flush=True)
        sys.stdin.readline()
        fill(offered, NEXT)
        print("v1.71.0 is published.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
