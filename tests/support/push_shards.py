"""Machines that share one push, or one verification, as processes of this machine."""

from __future__ import annotations

import random
import signal
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from mirror.bundle.reader import BundleReader
from mirror.bundle.share import Shard
from mirror.oci import Repository
from mirror.operations.shards import push_shard, verify_shard
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync import MemoryStore
from mirror.sync.tree import RegistryTree
from tests.support.inventories import put_image, sample_store

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
    bundle: Path, target: str, shard: str, killed_after_s: float | None, verifies: bool
) -> None:
    """Be a machine; the signal of the timer kills it wherever it is."""
    if killed_after_s is not None:
        signal.setitimer(signal.ITIMER_REAL, killed_after_s)
    with BundleReader([bundle]) as reader:
        if verifies:
            verify_shard(reader, Shard.parse(shard), Path(target), run=Run(jobs=2))
            return
        root = Repository.parse(target)
        options = ConnectionOptions(plain_http=True)
        with RegistryClient(root.host, options=options) as client:
            push_shard(reader, RegistryTree(client, root), Shard.parse(shard), run=Run(jobs=2))


def start(
    bundle: Path,
    target: str,
    shard: str,
    *,
    killed_after_s: float | None = None,
    verifies: bool = False,
) -> BaseProcess:
    """Start a machine that pushes to `target`, or `verifies` and has that for the findings; it dies
    after so many seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    args = (bundle, target, shard, killed_after_s, verifies)
    process = context.Process(target=_work, args=args)
    process.start()
    return process
