"""Machines that share one bundle, as processes of this machine.

`python -m tests.support.shards 2 4 8` measures what sharing gains where the source sends 10 MB/s to
a connection.
"""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import click

from mirror.bundle.bucket import Bucket, BucketAddress
from mirror.bundle.format import Shard
from mirror.bundle.place import Packing
from mirror.bundle.seal import Seal
from mirror.oci import Digest, Manifest, Repository
from mirror.operations.pull import PullPlan, pack
from mirror.operations.shards import pull_shard
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.release.select import SelectedContent
from mirror.release.source import ReleaseSource, SourceTree
from mirror.run import Run
from mirror.sync import MemoryStore
from tests.support.bundles import archives_of
from tests.support.inventories import put_image
from tests.support.object_storage import ObjectStorage

MIB = 1 << 20
FILES = {"releases.json": b"{}"}
ASKED = {"selection": {"platform": True}}


def large_store(blobs: int, size: int) -> MemoryStore:
    """A platform of some large blobs, and a small module."""
    store, made = MemoryStore(), random.Random(7)
    put_image(store, "", "v1", layers=[made.randbytes(size) for _ in range(blobs)])
    put_image(store, "modules/console", "v1", layers=[made.randbytes(6 * MIB), b"small"])
    return store


def plan_of(seal: Seal) -> PullPlan:
    """A pull that was decided."""
    tree = SourceTree(Repository.parse("registry.example.com/dkp"))
    source = ReleaseSource(RegistryClient("registry.example.com"), tree)
    return PullPlan(tree, SelectedContent(()), seal, source, FILES)


STORE = large_store(4, 8 * MIB)
SEAL = Seal.over(archives_of(STORE.inventory()), {}, "mirror 0.test", FILES)


class _Paced:
    """A source that sends each answer with so many bytes a second; 0 for as fast as it can."""

    name = "source"

    def __init__(self, store: MemoryStore, bytes_per_s: float) -> None:
        self._store, self._bytes_per_s = store, bytes_per_s

    def manifest(self, repository: str, digest: Digest) -> Manifest:
        return self._store.manifest(repository, digest)

    def blob(
        self, repository: str, digest: Digest, size: int, offset: int = 0
    ) -> Generator[bytes, None, None]:
        started, sent = time.monotonic(), 0
        for chunk in self._store.blob(repository, digest, size, offset):
            for at in range(0, len(chunk), 256 << 10):
                piece = chunk[at : at + (256 << 10)]
                sent += len(piece)
                if self._bytes_per_s:
                    due = started + sent / self._bytes_per_s
                    time.sleep(max(0.0, due - time.monotonic()))
                yield piece


def _work(
    place: str,
    shard: str | None,
    environment: Mapping[str, str],
    killed_after_s: float | None,
    bytes_per_s: float,
    store: MemoryStore | None,
) -> None:
    """Be a machine; the signal of the timer kills it wherever it is."""
    if killed_after_s is not None:
        signal.setitimer(signal.ITIMER_REAL, killed_after_s)
    store = store or STORE
    seal = Seal.over(archives_of(store.inventory()), {}, "mirror 0.test", FILES)
    source, run = _Paced(store, bytes_per_s), Run(jobs=1 if bytes_per_s else 2)
    packing = Packing(part_size=64 * MIB if bytes_per_s else 0)
    address, options = BucketAddress.parse(place), ConnectionOptions(plain_http=True)
    with (
        mock.patch.dict("os.environ", environment),
        closing(Bucket(address, environment=environment, options=options)) as bucket,
    ):
        if shard is None:
            pack(seal, FILES, source, bucket, packing, run=run)
        else:
            plan = partial(plan_of, seal)
            pull_shard(bucket, Shard.parse(shard), ASKED, plan, source, packing=packing, run=run)


def killed_in_turn(count: int, deaths: int, start: Callable[[str, bool], BaseProcess]) -> None:
    """Run all shards at the same time. Each dies so often, is started again, and ends well.

    `start` is given a shard, such as 3/8, and whether that process is to be killed.
    """
    left = {f"{number}/{count}": deaths for number in range(1, count + 1)}
    at_work: dict[str, BaseProcess] = {}
    while left or at_work:
        for shard in [*left]:
            is_killed = left[shard] > 0
            if is_killed:
                left[shard] -= 1
            else:
                del left[shard]
            if shard in at_work:
                at_work[shard].join()
            at_work[shard] = start(shard, is_killed)
        for shard in [one for one in at_work if one not in left]:
            at_work[shard].join()
            assert at_work.pop(shard).exitcode == 0


def start(
    place: str,
    shard: str | None,
    environment: Mapping[str, str],
    *,
    killed_after_s: float | None = None,
    bytes_per_s: float = 0,
    store: MemoryStore | None = None,
) -> BaseProcess:
    """Start a machine, or with `shard` None one that makes all; it dies after so many seconds.

    With a `store` of its own the caller has no other threads, and is forked.
    """
    args = (place, shard, dict(environment), killed_after_s, bytes_per_s, store)
    process: BaseProcess
    if store is not None:
        process = get_context("fork").Process(target=_work, args=args)
    else:
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        process = context.Process(target=_work, args=args)
    process.start()
    return process


@click.command()
@click.argument("counts", nargs=-1, type=int)
@click.option("--rate", default=10.0, show_default=True, help="MB/s of a connection to the source.")
@click.option("--size", default=16, show_default=True, help="MiB of each of the 24 blobs.")
def measure(counts: tuple[int, ...], rate: float, size: int) -> None:
    """Print how long one machine takes, and so many (4), with one connection for each."""
    store, took = large_store(24, size * MIB), dict[int, float]()
    with tempfile.TemporaryDirectory() as folder, ObjectStorage(Path(folder)) as storage:
        for count in (1, *(counts or (4,))):
            machines = [f"{number + 1}/{count}" for number in range(count)] if count > 1 else [None]
            started, place = time.monotonic(), f"s3://{storage.BUCKET}/{count}"
            at_work = [
                start(place, one, storage.environment(), bytes_per_s=rate * 1e6, store=store)
                for one in machines
            ]
            for machine in at_work:
                machine.join()
                assert machine.exitcode == 0
            took[count] = time.monotonic() - started
            assert storage.content("1") == storage.content(str(count))
            times = f"{took[1] / took[count]:.2f} times as fast"
            click.echo(f"{count} machines: {took[count]:.1f} s, {times}")


if __name__ == "__main__":
    measure()
