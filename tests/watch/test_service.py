"""The daemon as people run it: a process, real registries, their notifications."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from mirror.layout import publication_stage
from mirror.registry import ConnectionOptions, Credentials, RegistryClient
from mirror.run import Run
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.statement import Statement
from mirror.sync.tree import RegistryTree
from tests.support.inventories import put_image, sample_store
from tests.support.places import state, tree_of
from tests.support.processes import free_port
from tests.support.program import RunningMirror, call_mirror
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.replicas import ROOT

STORE = sample_store()
WANTED = STORE.inventory()


class Cluster:
    """Two real registries, of which the first tells the daemon what is pushed to it."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.folder = folder
        self.url_port = free_port()
        self.url = f"http://127.0.0.1:{self.url_port}"
        self.registries = [
            opened.enter_context(
                RealRegistry(
                    folder / name,
                    htpasswd=HTPASSWD,
                    notify=f"{self.url}/notify" if name == "a" else None,
                )
            )
            for name in "ab"
        ]
        login, password = ACCOUNT
        account = {"login": login, "password-file": str(folder / "password")}
        (folder / "password").write_text(f"{password}\n")
        self.document: dict[str, Any] = {
            "root": ROOT,
            "leader": "a",
            "interval": "1h",
            "audit-every": None,
            "listen": f"127.0.0.1:{self.url_port}",
            "registries": {
                name: {"address": one.address, "insecure": True, **account}
                for name, one in zip("ab", self.registries, strict=True)
            },
        }
        self.leader = self._site(self.registries[0], opened)
        self.follower = self._site(self.registries[1], opened)

    def _site(self, registry: RealRegistry, opened: ExitStack) -> RegistryTree:
        options = ConnectionOptions(plain_http=True)
        client = opened.enter_context(
            RegistryClient(registry.address, options=options, credentials=Credentials(*ACCOUNT))
        )
        return tree_of(client, ROOT)

    def config(self, **changes: Any) -> Path:
        """The settings file."""
        path = self.folder / "watch.yaml"
        path.write_text(yaml.safe_dump({**self.document, **changes}))
        return path

    def get(self, path: str) -> httpx.Response | None:
        """A page of the daemon; None while it does not listen."""
        try:
            return httpx.get(f"{self.url}{path}", timeout=5)
        except httpx.TransportError:
            return None

    def ready(self) -> bool:
        """Whether the daemon says that the replica is complete."""
        answer = self.get("/readyz")
        return answer is not None and answer.status_code == 200

    def release(self, store: MemoryStore, generation: int) -> None:
        """Push all of `store` to the leader, and state it."""
        wanted, place = store.inventory(), self.leader.target(Run(4))
        transfer(make_plan(wanted, place.held(wanted), stage=publication_stage), store, place)
        state(self.leader, Statement(wanted, generation, tool="tests"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as opened:
        yield Cluster(tmp_path, opened)


def test_a_push_is_followed_at_once_since_the_registry_tells_of_it(cluster: Cluster) -> None:
    with RunningMirror("sync", "--watch", "--config", cluster.config()) as daemon:
        daemon.wait_until(lambda: cluster.get("/healthz") is not None)
        daemon.wait_until(lambda: _errors(cluster) != [])
        assert "states no inventory and holds no image" in _errors(cluster)[0]
        cluster.release(STORE, 1)
        daemon.wait_until(cluster.ready)
        assert cluster.follower.target().held(WANTED) == WANTED
        later = sample_store()
        put_image(later, "", "v2.0.0", layers=(b"the next release",))
        cluster.release(later, 2)
        daemon.wait_until(lambda: _replica(cluster)["generation"] == 2)
        assert cluster.follower.target().held(later.inventory()) == later.inventory()
        metrics = cluster.get("/metrics")
        assert metrics is not None
        assert 'mirror_replica_complete{replica="b"} 1.0' in metrics.text
        assert 'mirror_replica_lag_generations{replica="b"} 0.0' in metrics.text
        ended = daemon.stop(signal.SIGTERM)
    assert ended.code == 0, ended
    assert ended.stderr.rstrip().endswith("stopped")
    assert "following b" in ended.stderr
    assert ACCOUNT[1] not in ended.text


def test_the_mirrorers_configuration_runs_the_daemon(cluster: Cluster) -> None:
    cluster.release(STORE, 1)
    login, password = ACCOUNT
    path = cluster.folder / "mirrorer.yaml"
    a, b = (one.address for one in cluster.registries)
    document = {
        "users": {
            "puller": {"name": login, "password": password},
            "pusher": {"name": login, "password": password},
        },
        "local": b,
        "remote": [a],
        "sleep": 1,
        "insecure": True,
        "listen": f"127.0.0.1:{cluster.url_port}",
    }
    path.write_text(yaml.safe_dump(document))
    with RunningMirror("sync", "--watch", "--config", path) as daemon:
        daemon.wait_until(cluster.ready)
        assert cluster.follower.target().held(WANTED) == WANTED
        assert daemon.stop(signal.SIGINT).code == 0


def test_a_second_daemon_on_the_same_port_says_so(cluster: Cluster) -> None:
    with RunningMirror("sync", "--watch", "--config", cluster.config()) as daemon:
        daemon.wait_until(lambda: cluster.get("/healthz") is not None)
        second = call_mirror("sync", "--watch", "--config", cluster.config())
    second.failed(1, "cannot listen on 127.0.0.1:", "name another address as `listen`")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--watch"], "--watch and --config FILE go together"),
        (["--config", "{config}"], "--watch and --config FILE go together"),
        (
            ["--watch", "--config", "{config}", "--to", "x.example/y"],
            "--to has no effect beside --watch",
        ),
        ([], "name the registries: mirror sync --from LEADER --to REPLICA"),
        (["--from", "a.example/x"], "name the registries"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(
    tmp_path: Path, args: list[str], words: str
) -> None:
    config = tmp_path / "watch.yaml"
    config.write_text("registries: {}\n")
    given = [arg.format(config=config) for arg in args]
    call_mirror("sync", *given).failed(2, words)


def test_all_that_is_wrong_with_a_settings_file_is_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "watch.yaml"
    config.write_text("interval: soon\njitter: 7\nregistries: {a: {address: a.example}}\n")
    call_mirror("sync", "--watch", "--config", config).failed(
        2, "registries:", "interval: 'soon' is not a duration", "jitter:"
    )


def _replica(cluster: Cluster) -> dict[str, Any]:
    """What the daemon says of the follower; nothing before its first look."""
    answer = cluster.get("/readyz")
    found = answer.json()["replicas"]["b"] if answer is not None else None
    return found or {"generation": None, "errors": []}


def _errors(cluster: Cluster) -> list[str]:
    return list(_replica(cluster)["errors"])
