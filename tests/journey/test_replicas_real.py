"""Clean-up, comparison and interruption, on real registries."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examples.release_tree import ModuleSpec, spread
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.errors import DamagedReplicaError
from mirror.oci import Digest
from mirror.operations.compare import diff, status, verify
from mirror.operations.replicate import Outcome
from mirror.operations.sync import sync_replicas
from mirror.release.discovery import discovery_images
from mirror.run import Run
from mirror.serve import MemoryStorage
from mirror.sync import Inventory, MemoryStore, make_plan, transfer, union
from mirror.sync.publication_state import read_state
from mirror.testing import EmbeddedRegistry
from tests.journey.test_sync import ROOT as SYNCED
from tests.journey.test_sync import MakeReplica, Replica, held_alike, make_replica, push
from tests.support.inventories import put_image
from tests.support.lines import BreakingLine
from tests.support.program import RunningMirror, call_mirror
from tests.support.release_source import TINY, serve
from tests.support.tools import require_tool

__all__ = ["make_replica"]


def disk(replica: Replica) -> int:
    """Bytes of all files of a registry."""
    return sum(path.stat().st_size for path in replica.registry.root.rglob("*") if path.is_file())


def dangling(replica: Replica, wanted: Inventory) -> list[str]:
    """Tags that are there and do not lead to all that they need."""
    client, locate = replica.tree.client, replica.tree.locate
    found = []
    for path, content in wanted.repositories.items():
        for tag in content.tags:
            named = client.resolve(locate(path), tag)
            if named is None:
                continue
            node = content.manifests[named.digest]
            found += [
                f"{path}:{tag} lacks {blob.digest}"
                for blob in node.blobs
                if client.blob_size(locate(path), blob.digest) != blob.size
            ]
            found += [
                f"{path}:{tag} lacks {child.digest}"
                for child in node.children
                if client.resolve(locate(path), child.digest) is None
            ]
    return found


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.soak)])
def test_a_sync_killed_at_any_moment_leaves_no_dangling_tag_and_the_next_completes(
    tiny_bundle: Path, make_replica: MakeReplica, kills: int
) -> None:
    leader, replica = make_replica(), make_replica()
    push(tiny_bundle, leader)
    wanted = leader.stated()
    size = sum(wanted.blob_sizes().values())
    chance = random.Random(5)
    killed = 0
    with BreakingLine(replica.registry.port) as line:
        command = ("sync", "--insecure", "--from", leader.name, "--to", f"{line.address}/{SYNCED}")
        for _ in range(kills):
            # By bytes and not by time: as often in its midst on every machine.
            until = line.carried + chance.randrange(1, size)
            with RunningMirror(*command, "--jobs", "2") as sync:
                while sync.running and line.carried < until:
                    time.sleep(0.002)
                code = sync.stop(signal.SIGKILL).code
            killed += code == -signal.SIGKILL
            assert dangling(replica, wanted) == []
            if code == 0:
                # It was through: from the beginning, then.
                replica.registry.kill()
                subprocess.run(["rm", "-rf", str(replica.registry.root)], check=True)
                replica.registry.start()
    assert killed
    report = sync_replicas(leader.tree, [replica.tree])
    assert report.exit_code == 0, report.failures
    held_alike(leader, replica)


def test_what_is_pruned_is_reclaimed_and_all_that_is_kept_verifies_to_the_byte(
    small_bundle: Path, tiny_bundle: Path, make_replica: MakeReplica
) -> None:
    replica = make_replica()
    push(small_bundle, replica)
    push(tiny_bundle, replica)
    standing = read_state(replica.tree)
    assert standing.generation == 2
    words = ("prune", replica.name, "--insecure", "--keep", tiny_bundle)
    planned = call_mirror(*words, "--dry-run", "--json").succeeded().document
    assert planned["removed"]["manifests"]
    removed = {(entry["repository"], entry["tag"]) for entry in planned["removed"]["tags"]}
    kept = discovery_images(read_inventory(tiny_bundle)).inventory().repositories
    assert kept
    for path, content in kept.items():
        assert not {(path, tag) for tag in content.tags} & removed, "clusters need the index"
    assert planned["freedBytes"] > 0
    assert standing.current is not None
    assert replica.stated() == standing.current.statement.inventory
    before = disk(replica)
    done = call_mirror(*words, "--json").succeeded().document
    assert done["removed"] == planned["removed"]
    assert done["generation"] == 3
    program = require_tool("docker-registry")
    replica.registry.stop()
    subprocess.run(
        [program, "garbage-collect", str(replica.registry.config_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
    )
    replica.registry.start()
    assert before - disk(replica) > planned["freedBytes"] * 0.9
    call_mirror(
        "verify", tiny_bundle, "--against", replica.name, "--deep", "--insecure"
    ).succeeded()
    held_alike(replica)
    again = call_mirror(*words, "--json").succeeded().document
    assert again["removed"] == {"tags": [], "manifests": []}


def test_a_damaged_blob_is_named_where_its_file_cannot_be_reached(
    tiny_bundle: Path, make_replica: MakeReplica
) -> None:
    leader, replica = make_replica(), make_replica()
    push(tiny_bundle, leader)
    sync_replicas(leader.tree, [replica.tree])
    victim = max(leader.stated().blob_sizes().items(), key=lambda one: one[1])[0]
    file = replica.registry.blob_path(str(victim))
    file.write_bytes(b"x" * file.stat().st_size)
    words = ("sync", "--insecure", "--from", leader.name, "--to", replica.name, "--deep")
    failed = call_mirror(*words, "--json")
    assert failed.code == 4
    (failure,) = failed.document["failures"]
    assert failure["type"] == DamagedReplicaError.__name__
    assert str(file.relative_to(replica.registry.root)) in failure["message"]
    storage = f"{replica.name}={replica.registry.root}"
    healed = call_mirror(*words, "--storage", storage).succeeded()
    assert "repaired: 1" in healed.stdout
    held_alike(leader, replica)


def test_diff_and_status_tell_places_of_all_kinds_apart(
    small_bundle: Path, tiny_bundle: Path, make_replica: MakeReplica
) -> None:
    one, other = make_replica(), make_replica()
    push(tiny_bundle, one)
    push(tiny_bundle, other)
    assert not diff(one.tree, other.tree).difference
    call_mirror("diff", one.name, other.name, "--insecure").succeeded()
    call_mirror("diff", tiny_bundle, tiny_bundle / "inventory.json").succeeded()
    # A bundle has no index of modules; what a push made of it is no difference.
    call_mirror("diff", tiny_bundle, one.name, "--insecure").succeeded()
    call_mirror("diff", one.name, tiny_bundle, "--insecure").succeeded()
    told = call_mirror("diff", tiny_bundle, small_bundle)
    assert told.code == 3
    assert re.search(r"Different: \d+ tags", told.stdout)
    assert [one.complete for one in status([one.tree, other.tree]).replicas] == [True, True]
    push(small_bundle, one)
    report = status([one.tree, other.tree])
    assert report.exit_code == 3
    assert [found.lag for found in report.replicas] == [0, 1]
    found = call_mirror("diff", one.name, other.name, "--insecure", "--json")
    assert found.code == 3
    assert {entry["b"] is None for entry in found.document["tags"]} == {True, False}
    lost = other.stated().repository("install")
    digest = next(iter(lost.manifests))
    other.tree.client.delete_manifest(other.tree.locate("install"), digest)
    shown = call_mirror("status", one.name, other.name, "--insecure", "--json")
    assert shown.code == 4
    replicas = {entry["replica"]: entry for entry in shown.document["replicas"]}
    assert any(f"manifest install@{digest}" == item for item in replicas[other.name]["missing"])
    assert (
        replicas[other.name]["verified"]["manifests"]
        < (replicas[other.name]["declared"]["manifests"])
    )
    assert call_mirror("status", other.name, "--insecure").code == 4


def broken_images(wanted: Inventory, victim: Digest) -> set[tuple[str, tuple[str, ...]]]:
    """Repository and tags of all that need a blob, walked from the tags down."""
    found = set()
    for path, content in wanted.repositories.items():
        if victim in content.blobs:
            tags = []
            for tag, digest in content.tags.items():
                pending, needed = [digest], set[Digest]()
                while pending:
                    node = content.manifests[pending.pop()]
                    needed.update(blob.digest for blob in node.blobs)
                    pending += [child.digest for child in node.children]
                if victim in needed:
                    tags.append(tag)
            found.add((path, tuple(sorted(tags))))
    return found


@pytest.fixture(scope="module")
def least_bundle(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One version of everything."""
    module = ModuleSpec("console", ("v1.0.0",), spread(("v1.0.0",)))
    versions = TINY.versions[-1:]
    spec = replace(
        TINY, versions=versions, channels=spread(versions), components=2, modules=(module,)
    )
    folder = tmp_path_factory.mktemp("least") / "bundle"
    with EmbeddedRegistry(MemoryStorage()) as registry:
        root = serve(spec, registry).root
        call_mirror("pull", folder, "--source", root, "--insecure").succeeded()
    return folder


@pytest.mark.parametrize(
    "step", [5, pytest.param(1, marks=pytest.mark.soak)], ids=["every fifth", "every one"]
)
def test_each_blob_that_a_replica_loses_is_found_with_all_that_it_breaks(
    least_bundle: Path, make_replica: MakeReplica, step: int
) -> None:
    replica = make_replica()
    push(least_bundle, replica)
    bundle = read_inventory(least_bundle)
    index = discovery_images(bundle).inventory()
    assert index.repositories
    wanted = union([bundle, index])
    assert wanted == replica.stated()
    site, told = replica.tree, 0
    blobs = sorted(wanted.blob_sizes())
    contents = wanted.repositories.values()
    shared = max(blobs, key=lambda blob: sum(blob in content.blobs for content in contents))
    victims = {shared, *blobs[::step]}
    with BundleReader([least_bundle]) as reader:
        for victim in sorted(victims):
            file = replica.registry.blob_path(str(victim))
            aside = file.rename(file.with_name("aside"))
            report = verify(reader, against=site, run=Run(jobs=4))
            aside.rename(file)
            named = {(f.repository, f.tags) for f in report.findings}
            assert named == broken_images(wanted, victim)
            assert {f.digest for f in report.findings} == {victim}
            assert all(str(victim) in f.problem for f in report.findings)
            told += len(named)
        assert verify(reader, against=site).findings == ()
    assert told > len(victims), "some of them are needed in several repositories"
    # And as a person sees it, of the largest: a layer of the platform.
    victim = max(bundle.repository("").blobs, key=bundle.repository("").blobs.__getitem__)
    replica.registry.blob_path(str(victim)).unlink()
    shown = call_mirror("verify", least_bundle, "--against", replica.name, "--insecure")
    assert shown.code == 4
    for path, tags in broken_images(wanted, victim):
        assert f"repository {path or '/'}, tag" in shown.text
        assert any(tag in shown.text for tag in tags)


def test_an_index_that_is_lost_is_found_and_one_of_another_tool_will_do(
    tiny_bundle: Path, make_replica: MakeReplica
) -> None:
    replica = make_replica()
    push(tiny_bundle, replica)
    client, locate = replica.tree.client, replica.tree.locate
    store = MemoryStore()
    put_image(store, "modules", "console", layers=(b"of another tool",))
    place = replica.tree.target()
    against = ("verify", tiny_bundle, "--against", replica.name, "--insecure", "--json")
    transfer(make_plan(store.inventory(), Inventory()), store, place)
    call_mirror(*against).succeeded()
    client.delete_manifest(locate("packages"), client.manifest(locate("packages"), "redis").digest)
    findings = call_mirror(*against).failed(4).document["findings"]
    assert {(one["repository"], *one["tags"]) for one in findings} >= {("packages", "redis")}
    assert {one["repository"] for one in findings} == {"packages"}


def test_a_real_registry_that_cannot_delete_a_tag_alone_loses_it_all_the_same(
    tiny_bundle: Path, make_replica: MakeReplica
) -> None:
    leader, replica = make_replica(), make_replica()
    push(tiny_bundle, leader)
    sync_replicas(leader.tree, [replica.tree])
    client, locate = replica.tree.client, replica.tree.locate
    tag, digest = next(iter(leader.stated().repository("install").tags.items()))
    client.put_manifest(locate("install"), "extra", client.manifest(locate("install"), digest))
    told = sync_replicas(leader.tree, [replica.tree], audit=True)
    assert told.replicas[0].extras == ("tag install:extra",)
    report = sync_replicas(leader.tree, [replica.tree], prune=True)
    assert report.exit_code == 0, report.failures
    assert report.replicas[0].outcome is Outcome.SYNCED
    assert client.resolve(locate("install"), "extra") is None
    found = client.resolve(locate("install"), tag)
    assert found is not None
    assert found.digest == digest
