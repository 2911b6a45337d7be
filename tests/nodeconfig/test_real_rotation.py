"""A rotation at work: new authority, token keys and passwords while containerd pulls."""

from __future__ import annotations

import base64
import dataclasses
import datetime
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from mirror.errors import DeniedError, UnreachableError
from mirror.modes import RegistryUser
from mirror.modes.settings import NodeFacts, RegistrySettings
from mirror.nodeconfig import service_secrets
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.render import render, rotation_outcome
from mirror.nodeconfig.service_secrets import (
    Rotated,
    RotationPhase,
    advance_rotation,
    begin_rotation,
)
from mirror.nodeconfig.tree import SERVICE_CONFIG
from tests.support.mode_stack import ContainerdProcess, balancer, in_tree, master
from tests.support.mode_stage import Pulling
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import LOCAL, LOGICAL, Cluster, running, with_upstream

INSTALL = f"{LOGICAL}/install:v1.70.0"


class Masters:
    """Registry and token server of each master, which are started anew when their files change."""

    def __init__(
        self, cluster: Cluster, stack: ExitStack, environment: Mapping[str, str] | None = None
    ) -> None:
        self._environment = environment
        self._cluster, self._running = cluster, {node.name: ExitStack() for node in cluster.masters}
        for one in self._running.values():
            stack.enter_context(one)

    def start(self, node: Node) -> None:
        programs = master(self._cluster.out, node, self._environment)
        registry = self._running[node.name].enter_context(programs)
        self._cluster.registries[node.name] = registry

    def restart(self, node: Node, pulling: Pulling) -> None:
        self._cluster.registries[node.name].stop()
        # Whoever has been sent to the token server beside it is served there first. (Behind
        # Deckhouse's registry clients get tokens through the balancer, too.)
        pulling.wait_for(2)
        self._running[node.name].close()
        self.start(node)
        log = self._cluster.registries[node.name].log
        since = log.stat().st_size
        while b'"HEAD /v2/' not in log.read_bytes()[since:]:  # the balancer asks it again
            pulling.wait_for(1)


@pytest.fixture(autouse=True)
def light_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_secrets, "BCRYPT_COST", 4)


ONE = image("rotated")


def local(cluster: Cluster, stack: ExitStack) -> tuple[RegistrySettings, Masters]:
    """Replicas that hold the image."""
    cluster.render(LOCAL)
    masters = Masters(cluster, stack)
    for node in cluster.masters:
        masters.start(node)
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RW)) as to:
            push(to, "system/deckhouse/install", "v1.70.0", ONE)
    return LOCAL, masters


def proxy(cluster: Cluster, stack: ExitStack) -> tuple[RegistrySettings, Masters]:
    """Caches of a registry that holds it."""
    source = Cluster.create(cluster.out.with_name("upstream"), 1)
    source.render(LOCAL)
    (outside,) = source.masters
    stack.enter_context(master(source.out, outside))
    with client(outside.registry, source.ca, source.account(RegistryUser.RW)) as to:
        push(to, "system/deckhouse/install", "v1.70.0", ONE)
    reader = source.account(RegistryUser.RO)
    login = (reader.name, reader.password.get_secret_value())
    settings = with_upstream("Proxy", f"{outside.registry}/system/deckhouse", login, source.ca)
    cluster.render(settings)
    masters = Masters(cluster, stack, {"SSL_CERT_FILE": str(source.ca)})
    for node in cluster.masters:
        masters.start(node)
    return settings, masters


def as_the_agent_writes(cluster: Cluster, settings: RegistrySettings) -> None:
    """Let the token servers know whom the module's agent knows: one login in each user's place."""
    options = dataclasses.replace(cluster.options, in_place_root=None)
    rendered = render(settings, cluster.nodes, cluster.kept, options=options)
    for node in cluster.masters:
        (secret,) = (
            one
            for one in rendered.objects
            if one["metadata"]["name"] == f"registry-node-config-{node.name}"
        )
        config = yaml.safe_load(base64.b64decode(secret["data"]["config"]))
        places = {"user_ro": config["user_ro"], **config["local_mode"]}
        path = in_tree(cluster.out, f"nodes/{node.name}", SERVICE_CONFIG / "auth/config.yaml")
        document = yaml.safe_load(path.read_text())
        ro, rw, pusher, puller = (places[f"user_{key}"] for key in ("ro", "rw", "pusher", "puller"))
        document["users"] = {
            one["name"]: {"password": one["password_hash"]} for one in (ro, rw, pusher, puller)
        }
        document["acl"] = [
            {"match": {"account": one["name"], **match}, "actions": [action]}
            for one, match, action in (
                (ro, {}, "pull"),
                (rw, {}, "*"),
                (pusher, {}, "*"),
                (puller, {"type": "registry", "name": "catalog"}, "*"),
                (puller, {}, "pull"),
            )
        ]
        path.write_text(yaml.safe_dump(document))


@pytest.mark.parametrize(
    ("mode", "agent"),
    [
        pytest.param(local, False, marks=pytest.mark.soak),  # test_real_stack has one of the pods
        pytest.param(local, True, marks=pytest.mark.soak),
        (proxy, False),
    ],
    ids=["local", "local by the agent", "proxy"],
)
def test_no_pull_fails_while_authority_token_keys_and_passwords_are_rotated(
    tmp_path: Path,
    containerd: ContainerdProcess,
    mode: Callable[[Cluster, ExitStack], tuple[RegistrySettings, Masters]],
    agent: bool,
) -> None:
    cluster = Cluster.create(tmp_path / "rotation", 2, addresses=True)
    old, old_ca = cluster.account(RegistryUser.RO), cluster.kept.authority
    login = cluster.login(RegistryUser.RO)
    pulling = Pulling(containerd, INSTALL, cluster, login, pause_s=0.2)
    with ExitStack() as stack:
        settings, masters = mode(cluster, stack)
        stack.enter_context(running(balancer(cluster.out, cluster.worker)))
        stack.enter_context(pulling)
        pulling.wait_for(1)
        now = datetime.datetime.now(datetime.UTC)
        cluster.kept = begin_rotation(cluster.kept, [*Rotated], now)
        phases = []
        while True:
            phases.append(cluster.kept.rotation and cluster.kept.rotation.phase)
            made = cluster.rendered(settings)
            cluster.render(settings)  # nodes apply at once what they are given
            if agent:
                as_the_agent_writes(cluster, settings)
            pulling.login = cluster.login(RegistryUser.RO)
            applied = [NodeFacts("worker-0", version=made.version)]
            for node in cluster.masters:
                assert not rotation_outcome(applied, made).ready
                masters.restart(node, pulling)
                applied.append(NodeFacts(node.name, True, version=made.version))
            assert rotation_outcome(applied, made).ready
            assert pulling.failures == [], phases
            if cluster.kept.rotation is None:
                break
            cluster.kept = advance_rotation(cluster.kept, cluster.nodes, now)
        pulling.wait_for(2)
        assert phases == [RotationPhase.TRUSTED, RotationPhase.USED, None]
        place = cluster.masters[0].registry
        with client(place, cluster.ca, old) as stranger, pytest.raises(DeniedError):
            stranger.manifest("system/deckhouse/install", "v1.70.0")
        (tmp_path / "old.crt").write_text(old_ca.certificate)
        with client(place, tmp_path / "old.crt", old) as late, pytest.raises(UnreachableError):
            late.ping()
    assert pulling.failures == []
