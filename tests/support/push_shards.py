"""Machines that share one push, or one verification, as processes of this machine.

`python -m tests.support.push_shards [MB/s]` measures what sharing gains where a machine sends that
much (2.5) to the registry, CNCF distribution.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from mirror.bundle.format import Shard
from mirror.bundle.reader import BundleReader
from mirror.oci import Repository
from mirror.operations.push import push
from mirror.operations.shards import push_shard, verify_shard
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync import MemoryStore
from mirror.sync.publication_state import read_state
from mirror.sync.tree import RegistryTree
from tests.support.bundles import pack
from tests.support.inventories import put_image, sample_store
from tests.support.places import tree_of
from tests.support.real_registry import RealRegistry
from tests.support.shards import large_store

_random = random.Random(16)
LARGE = [_random.randbytes(90_000 + 10_000 * number) for number in range(8)]


def _store() -> MemoryStore:
    """A release of some large layers; two repositories share one of them."""
    store = sample_store()
    put_image(store, "install", "v1.70.0", layers=LARGE[:5])
    put_image(store, "modules/console", "v1", layers=[*LARGE[4:7], b"small"])
    put_image(store, "modules/deckhouse", "v2", layers=[LARGE[7], b"smaller"])
    return store


STORE = _store()


def _work(
    bundle: Path,
    target: str,
    shard: str | None,
    killed_after_s: float | None,
    verifies: bool,
    bytes_per_s: float | None,
) -> None:
    """Be a machine; the signal of the timer kills it wherever it is."""
    if killed_after_s is not None:
        signal.setitimer(signal.ITIMER_REAL, killed_after_s)
    part, run = None if shard is None else Shard.parse(shard), Run(jobs=1 if bytes_per_s else 2)
    with BundleReader([bundle]) as reader:
        if verifies:
            assert part is not None
            verify_shard(reader, part, Path(target), run=run)
            return
        root = Repository.parse(target)
        options = ConnectionOptions(plain_http=True, limit_rate=bytes_per_s)
        with RegistryClient(root.host, options=options) as client:
            tree = RegistryTree(client, root)
            if part is None:
                push(reader, tree, run=run)
            else:
                push_shard(reader, tree, part, run=run)


def start(
    bundle: Path,
    target: str,
    shard: str | None,
    *,
    killed_after_s: float | None = None,
    verifies: bool = False,
    bytes_per_s: float | None = None,
) -> BaseProcess:
    """Start a machine that pushes to `target`, with `shard` None all, or that `verifies` and has
    that for the findings; it dies after so many seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    args = (bundle, target, shard, killed_after_s, verifies, bytes_per_s)
    process = context.Process(target=_work, args=args)
    process.start()
    return process


def measure(count: int = 4, mb_per_s: float = 2.5) -> None:
    """Print how long one machine takes, and several, with so much for each."""
    store = large_store(24, 4 << 20)
    with tempfile.TemporaryDirectory() as folder, RealRegistry(Path(folder) / "registry") as to:
        bundle = Path(folder) / "bundle"
        pack(store, store.inventory(), bundle)
        took = []
        for machines in ([None], [f"{number + 1}/{count}" for number in range(count)]):
            started = time.monotonic()
            target = f"{to.address}/of-{len(machines)}"
            at_work = [start(bundle, target, one, bytes_per_s=mb_per_s * 1e6) for one in machines]
            for machine in at_work:
                machine.join()
                assert machine.exitcode == 0
            took.append(time.monotonic() - started)
            print(f"{len(machines)} machines: {took[-1]:.1f} s", flush=True)
        with RegistryClient(to.address, options=ConnectionOptions(plain_http=True)) as client:
            trees = [tree_of(client, f"of-{of}") for of in (1, count)]
            one, several = (read_state(tree).newest for tree in trees)
            assert one is not None
            assert one == several
        print(f"{took[0] / took[1]:.2f} times as fast")


if __name__ == "__main__":
    measure(mb_per_s=float((*sys.argv[1:], "2.5")[0]))
