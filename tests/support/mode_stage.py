"""A cluster on loopback that is switched from mode to mode as a plan says, step by step."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from examples.release_tree.images import Image
from mirror.modes import DATA_ROOT, LOGICAL_HOST, ConditionType, Mode, Plane, StoreContent
from mirror.modes.client import connect
from mirror.modes.outcomes import Risk
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.settings import ClusterFacts, ContainerdConfig, NodeFacts, RegistrySettings
from mirror.nodeconfig.tree import PKI_CONFIG
from mirror.registry import ConnectionOptions, RetryPolicy
from tests.support.mode_stack import (
    ContainerdProcess,
    NginxProcess,
    balancer,
    in_cluster_relay,
    in_tree,
    master,
    relay,
)
from tests.support.program import Finished, call_mirror
from tests.support.running_cluster import LOGICAL, Cluster
from tests.support.service import resolving

_C = ConditionType


class Pulling:
    """Pulls one image again and again in a thread; `failures` is what containerd said.

    `reference` and `login` may be changed meanwhile, as they are when components get another
    address, and another password. Between two pulls are `pause_s` seconds, unless somebody waits.
    """

    def __init__(
        self,
        containerd: ContainerdProcess,
        reference: str,
        cluster: Cluster,
        login: str,
        *,
        pause_s: float = 0.0,
    ) -> None:
        self.reference, self._pause_s = reference, pause_s
        self.failures: list[str] = []
        self._containerd = containerd
        self.login = login
        self._cluster = cluster
        self._begun = self._done = self._wanted = 0
        self._more = threading.Condition()
        self._stop, self._pull = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Pulling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Pull no more."""
        self._stop.set()
        with self._more:
            self._more.notify_all()
        self._thread.join(60)

    def wait_for(self, pulls: int) -> None:
        """Until so many more were tried."""
        self._wait(lambda: self._done + pulls)

    def wait_for_new(self) -> None:
        """Until one was tried that began after this call."""
        self._wait(lambda: self._begun + 1)

    def _wait(self, number: Callable[[], int]) -> None:
        with self._more:
            wanted = number()
            self._wanted = max(self._wanted, wanted)
            self._more.notify_all()
            assert self._more.wait_for(lambda: self._done >= wanted, timeout=60)

    @contextmanager
    def between(self) -> Iterator[None]:
        """No pull is under way in the block."""
        with self._pull:
            yield

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._more:
                self._begun += 1
            reference = self.reference
            with self._pull:
                done = self._containerd.pull(reference, self._cluster.hosts, login=self.login)
            if done.returncode:
                self.failures.append(f"{reference}: {done.stderr}")
            self._containerd.forget(reference)
            with self._more:
                self._done += 1
                self._more.notify_all()
                # Each pull costs the processor three programs.
                self._more.wait_for(self._is_awaited, timeout=self._pause_s)

    def _is_awaited(self) -> bool:
        return self._stop.is_set() or self._wanted > self._done


class Stage:
    """The programs of a cluster in mode `current`, each from its rendered files.

    `switch` does what the steps of the plan say, in their order, while somebody pulls.
    """

    def __init__(self, cluster: Cluster, current: RegistrySettings, bundle: Path) -> None:
        self.cluster, self.current, self.bundle = cluster, current, bundle
        self.store = StoreContent.EMPTY
        self._opened = ExitStack()
        self._masters = ExitStack()
        self._nginx: dict[str, NginxProcess] = {}

    def __enter__(self) -> Stage:
        self.service = self._opened.enter_context(resolving("registry.d8-system.svc"))
        self._opened.push(self._masters)
        self.cluster.render(self.current)
        if self.current.mode is Mode.LOCAL:
            self.start_masters(self.current)
        self._follow_files()
        self._point_service(self.current)
        return self

    def __exit__(self, *error: Any) -> None:
        for one in self._nginx.values():
            one.stop()
        self._opened.__exit__(*error)

    # -- the command line, as an administrator has it ---------------------------------------------

    def mirror(
        self, command: str, *arguments: str | Path, settings: RegistrySettings | None = None
    ) -> Finished:
        """Run a command on this cluster, by its settings."""
        config = self.cluster.out / "module-config.yaml"
        config.write_text(yaml.safe_dump(_document(settings or self.current)))
        sites = self.cluster.sites_file()
        words = command.split()
        return call_mirror(*words, *arguments, "--module-config", config, "--sites", sites)

    def check(self, settings: RegistrySettings) -> Finished:
        """`mirror mode check` for what the bundle holds."""
        return self.mirror("mode check", "--inventory", self.bundle, settings=settings)

    # -- programs ---------------------------------------------------------------------------------

    def start_masters(self, settings: RegistrySettings) -> None:
        """Registry and token server of each master."""
        for node in self.cluster.masters:
            environment: Mapping[str, str] = {}
            if settings.mode is Mode.PROXY:  # which the static pod would have
                tree = f"nodes/{node.name}"
                trust = PKI_CONFIG / "upstream-registry-ca.crt"
                environment = {"SSL_CERT_FILE": str(in_tree(self.cluster.out, tree, trust))}
            self.cluster.registries[node.name] = self._masters.enter_context(
                master(self.cluster.out, node, environment)
            )

    def _follow_files(self) -> None:
        """Balancer, relay and in-cluster proxy run while their files are there, with what these
        say now; who loses its file goes on with what it has until it is stopped."""
        out, worker = self.cluster.out, self.cluster.worker
        for name, one in {
            "relay": relay(out, worker),
            "balancer": balancer(out, worker),
            "proxy": in_cluster_relay(out, worker),
        }.items():
            if name in self._nginx and one.config.exists():
                self._nginx[name].reload()
            elif one.config.exists():
                one.check()
                one.start()
                self._nginx[name] = one

    def _point_service(self, settings: RegistrySettings) -> None:
        """What the headless Service leads to in a mode."""
        if settings.mode is Mode.DIRECT:
            self.service[:] = [("127.0.0.1", self.cluster.worker.ports.registry)]
        elif settings.mode in (Mode.LOCAL, Mode.PROXY):
            masters = self.cluster.masters
            self.service[:] = [(one.address, one.ports.registry) for one in masters]

    # -- a switch ---------------------------------------------------------------------------------

    def plan(self, target: RegistrySettings) -> SwitchPlan:
        """How to come to `target` from where the cluster is."""
        nodes = tuple(
            NodeFacts(one.name, one.master, True, True, "Containerd", ContainerdConfig.DEFAULT)
            for one in self.cluster.nodes
        )
        facts = ClusterFacts(
            bootstrapped=True,
            managed_by_dkp=True,
            static=True,
            queue_empty=True,
            saved_parameters=False,
            nodes=nodes,
            stores=frozenset({self.store}),
        )
        return plan_switch(self.current, target, facts)

    def switch(self, target: RegistrySettings, pulling: Pulling, one: Image) -> SwitchPlan:
        """Carry out the plan to `target`. `one` lies at `install:v1.70.0` wherever it leads."""
        plan = self.plan(target)
        assert plan.allowed, plan.refusals
        lost = any(warning.risk is Risk.DATA_LOSS for warning in plan.warnings)
        acts: dict[ConditionType, Callable[[], None]] = {
            _C.IMAGES: lambda: self._bring_images(target),
            _C.PREFLIGHT: lambda: None,  # the nodes of a stage have no settings of their own
            _C.NODE_SERVICES: lambda: self._start_services(target, wipe=lost),
            _C.TRANSITION: lambda: self._render(target, self.current),
            _C.IN_CLUSTER_PROXY: lambda: self._nginx["proxy"].check(),
            _C.REGISTRY_SWITCH: lambda: self._give_address(target, pulling, one),
            _C.FINAL: lambda: self._render(target, None),
            _C.CLEANUP_NODE_SERVICES: lambda: self._stop_services(),
            _C.CLEANUP_IN_CLUSTER_PROXY: lambda: self._stop("proxy"),
            _C.READY: lambda: None,
        }
        for step in plan.steps:
            acts[step.condition]()
            pulling.wait_for_new()
            assert pulling.failures == [], (step.condition, pulling.failures)
        if target.mode is not Mode.DIRECT:
            self._stop("relay")
        self.current = target
        pulling.wait_for_new()
        return plan

    def _bring_images(self, target: RegistrySettings) -> None:
        if target.mode is Mode.LOCAL:
            masters = len(self.cluster.masters)
            done = self.check(target)
            if self.store is not StoreContent.PLAIN:
                assert done.code == 4, done
                assert done.stdout.count("404 Not Found") >= masters
            self.mirror("push", self.bundle, settings=target).succeeded()
            if masters > 1:
                # One replica holds it now, and every one must.
                assert self.check(target).code == (0 if self.store is StoreContent.PLAIN else 4)
                self.mirror("sync", settings=target).succeeded()
            self.store = StoreContent.PLAIN
        self.check(target).succeeded()

    def _start_services(self, target: RegistrySettings, *, wipe: bool) -> None:
        if wipe:  # as Deckhouse's registry does where a store becomes a cache
            for node in self.cluster.masters:
                shutil.rmtree(in_tree(self.cluster.out, f"nodes/{node.name}", DATA_ROOT))
        self.cluster.render_masters(target, self.current)
        self.start_masters(target)
        if target.mode is Mode.PROXY:
            self.store = StoreContent.CACHE

    def _render(self, target: RegistrySettings, previous: RegistrySettings | None) -> None:
        self.cluster.render(target, previous)
        self._follow_files()

    def _give_address(self, target: RegistrySettings, pulling: Pulling, one: Image) -> None:
        """Components read by the Service from now on, and images go by the logical address."""
        self._point_service(target)
        options = ConnectionOptions(retries=RetryPolicy(attempts=1))
        sites = self.cluster.sites
        with connect(target, access=sites, plane=Plane.API, options=options) as components:
            assert components.endpoints[0].host == LOGICAL_HOST
            assert components.manifest(f"{LOGICAL}/install:v1.70.0").raw == one.raw
            assert components.exists(f"{LOGICAL}/install@{one.digest}")
        pulling.reference = f"{LOGICAL}/install:v1.70.0"

    def _stop_services(self) -> None:
        self._masters.close()
        self.cluster.registries.clear()
        self._stop("balancer")

    def _stop(self, name: str) -> None:
        if name in self._nginx:
            self._nginx.pop(name).stop()


def _document(settings: RegistrySettings) -> dict[str, Any]:
    """A ModuleConfig with these settings, secrets included."""
    registry: dict[str, Any] = {"mode": settings.mode.value}
    upstream = settings.upstream
    if upstream is not None:
        section: dict[str, Any] = {"imagesRepo": upstream.base, "ca": upstream.ca}
        if upstream.account is not None:
            section["username"] = upstream.account.name
            section["password"] = upstream.account.password.get_secret_value()
        registry[settings.mode.lower()] = section
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "kind": "ModuleConfig",
        "metadata": {"name": "deckhouse"},
        "spec": {"version": 1, "enabled": True, "settings": {"registry": registry}},
    }
