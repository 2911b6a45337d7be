"""What the daemon takes: the figures of docs/operations.md.

`pytest -m soak -s tests/watch/test_capacity.py` prints them. Images are small, as it is manifests
and blobs that a look asks for, and not their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from mirror.layout import publication_stage
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.run import Run
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.statement import Statement
from tests.support.inventories import put_image
from tests.support.places import state, tree_of
from tests.support.processes import free_port
from tests.support.program import RunningMirror
from tests.support.real_registry import RealRegistry
from tests.support.replicas import ROOT
from tests.watch.test_metrics import samples


def release(images: int) -> MemoryStore:
    """So many images of four layers, of which two are shared by all, in ten repositories."""
    store = MemoryStore()
    for number in range(images):
        layers = (b"base", b"tools", b"a %d" % number, b"b %d" % number)
        repository = f"modules/m{number % 10}" if number % 10 else ""
        put_image(store, repository, f"v1.0.{number}", layers=layers, config=b'{"n":%d}' % number)
    return store


@pytest.mark.soak
@pytest.mark.parametrize("images", [500, 1_000])
def test_what_a_daemon_takes_for_a_replica(tmp_path: Path, images: int) -> None:
    with ExitStack() as opened:
        # Without passwords, whose check would be all that these registries do.
        leader, replica = (opened.enter_context(RealRegistry(tmp_path / name)) for name in "ab")
        fill(leader.address, release(images))
        port = free_port()
        config = tmp_path / "watch.yaml"
        registries = {"a": {"address": leader.address}, "b": {"address": replica.address}}
        document = {
            "root": ROOT,
            "leader": "a",
            "interval": "0.2s",
            "jitter": 0,
            "audit-every": "5s",
            "listen": f"127.0.0.1:{port}",
            "registries": {name: {**one, "insecure": True} for name, one in registries.items()},
        }
        config.write_text(yaml.safe_dump(document))
        with RunningMirror("sync", "--watch", "--config", config) as daemon:

            def measured() -> dict[tuple[str, ...], float]:
                try:
                    return samples(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text)
                except httpx.TransportError:
                    return {}

            def looks(depth: str) -> float:
                return measured().get(("mirror_sync_cycle_seconds_count", depth, "b"), 0)

            def patiently(condition: Callable[[], bool]) -> None:
                for _ in range(5):  # so much takes longer than other things
                    with suppress(AssertionError):
                        daemon.wait_until(condition)
                        return
                raise AssertionError("that never happened")

            patiently(lambda: measured().get(("mirror_replica_complete", "b")) == 1)
            first = measured()
            patiently(lambda: looks("statement") >= 20 and looks("audit") >= 2)
            now = measured()
        took = {
            depth: (now[total, depth, "b"] - first.get((total, depth, "b"), 0))
            / (now[count, depth, "b"] - first.get((count, depth, "b"), 0))
            for depth in ("statement", "audit")
            for total, count in [
                ("mirror_sync_cycle_seconds_sum", "mirror_sync_cycle_seconds_count")
            ]
        }
        memory = now[("process_resident_memory_bytes",)] / (1 << 20)
        print(
            f"\n{now['mirror_replica_declared_digests', 'b']:.0f} digests: {memory:.0f} MiB, "
            f"{first[('process_cpu_seconds_total',)]:.1f} s of a processor for the first copy; "
            f"a look {1000 * took['statement']:.0f} ms, an audit {took['audit']:.1f} s"
        )
        assert memory < 256, "the chart's limit is twice that"


def fill(address: str, store: MemoryStore) -> None:
    """Push all of `store` to a registry, and state it."""
    with RegistryClient(address, options=ConnectionOptions(plain_http=True)) as client:
        tree, wanted = tree_of(client, ROOT), store.inventory()
        place = tree.target(Run(4))
        transfer(make_plan(wanted, place.held(wanted), stage=publication_stage), store, place)
        state(tree, Statement(wanted, 1, tool="tests"))
