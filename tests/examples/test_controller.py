"""The example controller at work: real replicas, and nodes that apply what it renders."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

import mirror
from examples import controller as example
from examples.controller import Controller
from mirror import ConditionType, Mode, Reconciled, RegistryState, RegistryUser, StepOutcome, Switch
from mirror.modes import ModeKind, conditions_of
from mirror.modes.settings import Account
from mirror.nodeconfig.pulling import Containerd
from mirror.nodeconfig.render import RenderOptions
from mirror.nodeconfig.services import Distribution
from mirror.nodeconfig.tree import SERVICE_CONFIG
from tests.support.mode_stack import DEBIAN_NGINX, Registry, in_tree, master, master_node
from tests.support.patience import PATIENCE_S
from tests.support.program import ROOT
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.runnable_images import client, image, pack_images
from tests.support.tls import Authority

IMAGES = {"": image("platform"), "install": image("installer")}


class World:
    """A cluster that does what it is told: its nodes apply what was rendered, when they look."""

    def __init__(self, folder: Path, upstream: RealRegistry, running: ExitStack) -> None:
        self.folder, self.upstream, self._running = folder, upstream, running
        folder.mkdir()
        self.nodes = tuple(master_node(f"master-{number}") for number in range(2))
        self.registries: dict[str, Registry] = {}
        self.services: dict[str, str] = {}
        self.write("nodes.yaml", [self._node(node) for node in self.nodes])
        self.version = "unknown"
        self.report()
        options = RenderOptions(
            Containerd.STOCK,
            Distribution.STOCK,
            DEBIAN_NGINX,
            in_place_root=PurePosixPath(folder / "rendered"),
        )
        bundle = pack_images(folder.with_name("bundle"), IMAGES)
        self.controller = Controller(folder, bundle, options)

    @staticmethod
    def _node(node: Any) -> dict[str, Any]:
        ports = {name: getattr(node.ports, name) for name in node.ports.__slots__}
        return {"name": node.name, "address": node.address, "ports": ports}

    def write(self, name: str, document: Any) -> None:
        (self.folder / name).write_text(yaml.safe_dump(document), encoding="utf-8")

    def want(self, mode: str, path: str = "dkp/ee") -> None:
        """Change the ModuleConfig."""
        registry: dict[str, Any] = {"mode": mode}
        if mode != "Local":
            assert self.upstream.tls is not None
            registry[mode.lower()] = {
                "imagesRepo": f"localhost:{self.upstream.port}/{path}",
                "username": ACCOUNT[0],
                "password": ACCOUNT[1],
                "ca": self.upstream.tls.certificate.with_name("ca.crt").read_text(),
            }
        config = {
            "apiVersion": "deckhouse.io/v1alpha1",
            "kind": "ModuleConfig",
            "metadata": {"name": "deckhouse"},
            "spec": {"version": 1, "settings": {"registry": registry}},
        }
        self.write("module-config.yaml", config)

    def report(self) -> None:
        """What the cluster says of itself."""
        nodes = [
            {
                "name": node.name,
                "master": True,
                "ready": True,
                "schedulable": True,
                "cri": "Containerd",
                "containerdConfig": "default",
                "version": self.version,
                "services": self.services.get(node.name, "unknown"),
            }
            for node in self.nodes
        ]
        facts = dict.fromkeys(("bootstrapped", "managedByDkp", "static", "queueEmpty"), True)
        self.write("facts.yaml", {**facts, "savedParameters": False, "nodes": nodes})

    def apply(self) -> None:
        """The nodes start what has files, and take over the configuration of the day."""
        rendered = self.folder / "rendered"
        for node in self.nodes:
            config = SERVICE_CONFIG / "distribution/config.yaml"
            there = in_tree(rendered, f"nodes/{node.name}", config).exists()
            if there and node.name not in self.registries:
                self.registries[node.name] = self._running.enter_context(master(rendered, node))
                told = json.loads((rendered / "services.json").read_text())
                self.services[node.name] = told[node.name]
        version = rendered / "version"
        self.version = version.read_text() if version.exists() else "unknown"
        self.report()

    def settle(self) -> Reconciled:
        """Passes, between which the nodes do their part, until the wanted mode is reached.

        How many it takes depends on how long a replica's programs take to start.
        """
        deadline = time.monotonic() + 120
        while not (done := self.controller.reconcile()).reached:
            assert time.monotonic() < deadline, done.summary()
            self.apply()
        return done

    @property
    def state(self) -> RegistryState:
        return RegistryState.load(self.folder / "registry-state.yaml")

    def files(self) -> dict[str, tuple[int, bytes]]:
        """All files and when they were written, without the replicas' stores and logs."""
        return {
            str(path.relative_to(self.folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in self.folder.rglob("*")
            if path.is_file() and "opt" not in path.parts and path.suffix != ".log"
        }

    def assert_replicas_hold_the_bundle(self) -> None:
        secrets = mirror.read_secrets(self.folder / "registry-secrets.json")
        assert secrets is not None
        ca = self.folder / "ca.crt"
        ca.write_text(secrets.authority.certificate)
        for node in self.nodes:
            with client(node.registry, ca, secrets.users[RegistryUser.RO].account) as reader:
                for path, one in IMAGES.items():
                    repository = f"system/deckhouse/{path}".rstrip("/")
                    assert reader.manifest(repository, "v1.70.0").raw == one.raw


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as running:
        authority = Authority.create(tmp_path / "authority")
        upstream = RealRegistry(tmp_path / "up", tls=authority.issue(), htpasswd=HTPASSWD)
        running.enter_context(upstream)
        yield World(tmp_path / "cluster", upstream, running)


def statuses(done: Reconciled) -> dict[str, bool]:
    return {one.type.value: one.status for one in done.state.conditions}


def test_the_controller_leads_a_cluster_from_mode_to_mode(world: World) -> None:
    # Unmanaged: the bundle goes to the registry outside, and the nodes learn the way there.
    world.want("Unmanaged")
    first = world.controller.reconcile()
    assert not first.reached
    assert first.state.conditions[-2].type is ConditionType.TRANSITION
    assert "0/2 node(s) ready" in first.state.conditions[-2].message
    world.settle()
    assert_upstream_holds(world, "dkp/ee")

    # Parameters change: another path, which lacks everything.
    world.want("Unmanaged", "dkp/fe")
    world.settle()
    assert_upstream_holds(world, "dkp/fe")

    # Local: services first, then the bundle at every master, then the nodes.
    world.want("Local")
    begun = world.controller.reconcile()
    assert statuses(begun) == {
        "ContainerdConfigPreflightReady": True,
        "NodeServicesReady": False,
        "Ready": False,
    }
    assert (world.state.mode, world.state.target_mode) == (Mode.UNMANAGED, Mode.LOCAL)
    done = world.settle()
    world.assert_replicas_hold_the_bundle()
    assert [one.type for one in done.state.conditions] == list(conditions_of(ModeKind.LOCAL))
    assert all(one.status for one in done.state.conditions)
    assert (world.state.mode, world.state.target_mode) == (Mode.LOCAL, Mode.LOCAL)

    # Nothing is due, so nothing is touched; what is lost is brought back.
    before = world.files()
    assert world.controller.reconcile().reached
    assert world.files() == before
    lose_an_image(world)
    assert world.controller.reconcile().reached
    world.assert_replicas_hold_the_bundle()

    # Local → Proxy is refused with the way that is open; the wish withdrawn, all is well again.
    world.want("Proxy")
    refused = world.controller.reconcile()
    assert not refused.reached
    assert "go Local → Direct → Proxy" in refused.summary()
    assert world.state.conditions[-1].type is ConditionType.NOT_SUPPORTED
    assert world.state.mode is Mode.LOCAL
    world.want("Local")
    assert world.controller.reconcile().reached
    assert ConditionType.NOT_SUPPORTED not in [one.type for one in world.state.conditions]
    assert (world.folder / "registry-state.yaml").stat().st_mode & 0o777 == 0o600


def assert_upstream_holds(world: World, path: str) -> None:
    assert world.upstream.tls is not None
    ca = world.upstream.tls.certificate.with_name("ca.crt")
    with client(world.upstream.address, ca, Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))) as reader:
        assert reader.resolve(f"{path}/install", "v1.70.0") is not None


def lose_an_image(world: World) -> None:
    """One replica loses what nobody asked for since."""
    store = world.registries["master-1"].data / "docker/registry/v2/repositories"
    digest = IMAGES["install"].digest.encoded
    link = store / f"system/deckhouse/install/_manifests/revisions/sha256/{digest}/link"
    link.unlink()


def test_a_replica_with_other_files_is_waited_for_though_it_serves(world: World) -> None:
    world.want("Local")
    world.settle()
    assert world.controller.reconcile().reached
    world.services["master-1"] = "of yesterday"
    world.report()
    waiting = world.controller.reconcile()
    assert not statuses(waiting)["NodeServicesReady"]
    assert "master-1: services pod(s) is not Ready or config version mismatch" in waiting.summary()
    assert world.state.mode is Mode.LOCAL


class Crash(Exception):
    """The process died."""


def test_a_controller_that_dies_anywhere_is_run_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.want("Local")
    observe = Switch.observe
    for last in conditions_of(ModeKind.LOCAL)[:-1]:

        def dying(self: Switch, step: ConditionType, last: ConditionType = last) -> StepOutcome:
            outcome = observe(self, step)
            if step is last:  # done, and nobody has written it down
                raise Crash
            return outcome

        with monkeypatch.context() as patch:
            patch.setattr(Switch, "observe", dying)
            if last is ConditionType.IMAGES:
                patch.setattr(mirror, "sync_replicas", dead, raising=False)
            died, deadline = False, time.monotonic() + PATIENCE_S
            while not died and time.monotonic() < deadline:  # until the step is reached
                try:
                    world.controller.reconcile()
                except Crash:
                    died = True
                else:
                    world.apply()
            assert died, last
            assert world.state.target_mode is Mode.LOCAL
            assert world.state.mode is Mode.UNMANAGED
        world.apply()
    world.settle()
    world.assert_replicas_hold_the_bundle()
    assert world.state.mode is Mode.LOCAL


def dead(*_: object, **__: object) -> None:
    """In place of a sync: one replica has the bundle, and the others do not."""
    raise Crash


@pytest.mark.parametrize("saved", [None, True, False])
def test_a_cluster_whose_registry_was_set_at_its_installation_is_at_rest(
    world: World, saved: bool | None
) -> None:
    config = {"kind": "ModuleConfig", "metadata": {"name": "deckhouse"}, "spec": {"version": 1}}
    world.write("module-config.yaml", config)
    facts = yaml.safe_load((world.folder / "facts.yaml").read_text())
    world.write("facts.yaml", {**facts, "savedParameters": saved})
    before = world.files()
    for _ in range(2):
        done = world.controller.reconcile()
        assert done.reached
        assert done.summary() == "Unmanaged (legacy) → Unmanaged (legacy)"
    assert world.files() == before


def test_a_switch_that_was_begun_can_be_withdrawn(world: World) -> None:
    world.want("Local")
    assert not world.controller.reconcile().reached
    assert world.state.target_mode is Mode.LOCAL
    world.want("Unmanaged")
    world.settle()
    assert (world.state.mode, world.state.target_mode) == (Mode.UNMANAGED, Mode.UNMANAGED)


def test_no_secret_is_printed_and_mistakes_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["controller", str(world.folder), "--bundle", str(world.controller.bundle)]
    monkeypatch.setattr("sys.argv", arguments)
    world.want("Unmanaged")
    assert example.main() == 1
    world.apply()
    world.want("Proxy")  # a static pod waits for its masters, which here nobody starts
    assert example.main() == 1
    out, err = capsys.readouterr()
    assert "Unmanaged" in out
    assert err == ""
    secrets = (world.folder / "registry-secrets.json").read_text()
    for secret in (ACCOUNT[1], *re.findall(r'"password": "([^"]+)"', secrets)):
        assert secret not in out
    world.write("module-config.yaml", {"mode": "Local", "direct": {"password": "s3cret"}})
    assert example.main() == 2
    assert "s3cret" not in "".join(capsys.readouterr())


def test_the_controller_uses_the_public_library_alone_and_is_short() -> None:
    text = (ROOT / "examples/controller.py").read_text()
    assert not re.search(r"mirror\.[a-z_]+\.[a-z]|from mirror\.", text)
    assert len(text.splitlines()) <= 250
    used = set(re.findall(r"\bmirror\.(\w+)", text))
    assert used <= {*mirror.__all__}
