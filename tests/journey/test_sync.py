"""Replicas of a real registry, kept equal and mended behind its back."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.errors import MirrorError, NotFoundError
from mirror.oci import Digest, Repository
from mirror.operations.replicate import Outcome
from mirror.operations.sync import sync_replicas
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.sync import Inventory
from mirror.sync.publication_state import reached_note, read_statement, statement_digest
from mirror.sync.tree import RegistryTree
from tests.support.program import call_mirror
from tests.support.real_registry import RealRegistry

ROOT = "system/deckhouse"
PATIENCE = RetryPolicy(attempts=2, base_delay_s=0.02, max_delay_s=0.05)


@dataclass
class Replica:
    """A registry process and the tree in it."""

    registry: RealRegistry
    tree: RegistryTree

    @property
    def name(self) -> str:
        """`host:port/path`, as the command line takes it."""
        return self.tree.name

    def stated(self) -> Inventory:
        """The inventory that it states."""
        published = read_statement(self.tree)
        assert published is not None
        return published.statement.inventory

    def content(self) -> dict[str, bytes]:
        """Every file that tells what it serves: blobs, and the links of tags and manifests."""
        base = self.registry.root / "docker/registry/v2"
        return {
            str(path.relative_to(base)): path.read_bytes()
            for path in sorted(base.rglob("*"))
            if path.is_file() and "_uploads" not in path.parts
        }


MakeReplica = Callable[..., Replica]


@pytest.fixture
def make_replica(tmp_path: Path) -> Iterator[MakeReplica]:
    """Start registries; `cached` keeps descriptors in memory as Debian configures it."""
    with ExitStack() as opened:
        made = 0

        def make(*, cached: bool = False) -> Replica:
            nonlocal made
            made += 1
            folder = tmp_path / f"replica-{made}"
            registry = RealRegistry(folder)
            if cached:
                config = json.loads(registry.config_path.read_text())
                config["storage"]["cache"] = {"blobdescriptor": "inmemory"}
                registry.config_path.write_text(json.dumps(config))
            opened.enter_context(registry)
            client = opened.enter_context(
                RegistryClient(
                    registry.address,
                    options=ConnectionOptions(plain_http=True, retries=PATIENCE),
                )
            )
            root = Repository.parse(f"{registry.address}/{ROOT}")
            return Replica(registry, RegistryTree(client, root, storage=registry.root))

        yield make


def push(bundle: Path, replica: Replica) -> None:
    call_mirror("push", bundle, replica.name, "--insecure").succeeded()


def some_layers(inventory: Inventory, count: int) -> list[Digest]:
    """Blobs of some size, spread over the release."""
    sized = sorted(d for d, size in inventory.blob_sizes().items() if size > 200)
    return sized[:: max(1, len(sized) // count)][:count]


def held_alike(*replicas: Replica) -> None:
    """Every replica serves every byte of what the first one states."""
    wanted = replicas[0].stated()
    for replica in replicas:
        assert replica.stated() == wanted
        client, locate = replica.tree.client, replica.tree.locate
        for path, content in wanted.repositories.items():
            for tag, digest in content.tags.items():
                found = client.resolve(locate(path), tag)
                assert found is not None
                assert found.digest == digest
            for digest in content.manifests:
                client.manifest(locate(path), digest)
            for digest, size in content.blobs.items():
                for _ in client.blob(locate(path), digest, size=size):
                    pass


# -- the whole story -----------------------------------------------------------------------------


class Puller:
    """A client that pulls by digest all the time, and looks at channels as a cluster does."""

    def __init__(self, replica: Replica, wanted: Inventory, broken: frozenset[Digest]) -> None:
        self._replica, self._wanted, self._broken = replica, wanted, broken
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.wrong: list[str] = []
        self.rounds = self.pulled = 0

    def __enter__(self) -> Puller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._channels()
            self._blobs()
            self.rounds += 1

    def _blobs(self) -> None:
        client, locate = self._replica.tree.client, self._replica.tree.locate
        for path, content in self._wanted.repositories.items():
            for digest in content.blobs:
                if self._stop.wait(0.01):  # many clients would pause as well, between them
                    return
                try:
                    data = b"".join(client.blob(locate(path), digest, verify=False))
                except (NotFoundError, MirrorError):
                    continue  # absent, or the registry is down: never wrong
                self.pulled += 1
                if Digest.of(data) != digest and digest not in self._broken:
                    self.wrong.append(f"{path}@{digest}")

    def _channels(self) -> None:
        """Where a channel is seen, all that its version needs is there."""
        client, locate = self._replica.tree.client, self._replica.tree.locate
        try:
            seen = client.resolve(locate("release-channel"), "stable")
            if seen is None:
                return
            for path in ("", "install", "install-standalone"):
                content = self._wanted.repository(path)
                for tag, digest in content.tags.items():
                    if digest not in self._broken and client.resolve(locate(path), tag) is None:
                        self.wrong.append(f"stable is there and {path}:{tag} is not")
        except MirrorError:
            return


@pytest.mark.parametrize(
    "cached", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["plain", "cached"]
)
def test_three_replicas_are_equal_again_after_one_cycle(
    tiny_bundle: Path, make_replica: MakeReplica, *, cached: bool
) -> None:
    leader, second, third = (make_replica(cached=cached) for _ in range(3))
    push(tiny_bundle, leader)
    wanted = leader.stated()
    report = sync_replicas(leader.tree, [second.tree, third.tree])
    assert not report.failures, report.failures
    assert [one.outcome for one in report.replicas] == [Outcome.SYNCED] * 2
    held_alike(leader, second, third)
    # The second is killed and comes back empty; the third loses and gets wrong bytes unseen.
    second.registry.kill()
    shutil.rmtree(second.registry.root)
    second.registry.start()
    victims = some_layers(wanted, 8)
    manifests = sorted(wanted.manifest_nodes())[:4]
    broken = []
    for number, digest in enumerate([*victims, *manifests]):
        file = third.registry.blob_path(str(digest))
        broken.append(digest)
        if number % 3 == 0:
            file.unlink()
        elif number % 3 == 1:
            file.write_bytes(b"x" * file.stat().st_size)
        else:
            file.write_bytes(file.read_bytes()[:-7])
    with (
        Puller(second, wanted, frozenset()) as one,
        Puller(third, wanted, frozenset(broken)) as other,
        Puller(leader, wanted, frozenset()) as at_leader,
    ):
        report = sync_replicas(leader.tree, [second.tree, third.tree], deep=True)
        assert not report.failures, [str(failure) for failure in report.failures]
    for puller in (one, other, at_leader):
        assert puller.wrong == []
        assert puller.pulled > 0
    held_alike(leader, second, third)
    digests = {statement_digest(r.tree) for r in (leader, second, third)}
    assert len(digests) == 1
    note = reached_note(leader.tree, 1)  # each registry has a date of its own
    assert note is not None
    files = {
        path: data
        for path, data in leader.content().items()
        if path.startswith("blobs/sha256") and note.digest.encoded not in path
    }
    for replica in (second, third):
        theirs = replica.content()
        assert {path: theirs[path] for path in files} == files
    again = sync_replicas(leader.tree, [second.tree, third.tree], deep=True)
    assert [one.outcome for one in again.replicas] == [Outcome.EQUAL] * 2
    assert not again.failures
