"""Local mode at work, from rendered files."""

from __future__ import annotations

import dataclasses
import json
import queue
import signal
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mirror.errors import DeniedError
from mirror.modes import RegistryUser
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.tree import SERVICE_CONFIG
from tests.support.mode_stack import ContainerdProcess, in_tree
from tests.support.mode_stage import Stage
from tests.support.program import RunningMirror
from tests.support.runnable_images import client, image, pack_images, push
from tests.support.running_cluster import INSTALLER, LOCAL, LOGICAL, PLATFORM, Cluster
from tests.support.scripted_server import Reply, Request, ScriptedServer


@pytest.mark.soak  # the ordinary run has the pods, in test_real_stack
def test_a_push_to_one_replica_reaches_all_and_containerd_goes_on_when_one_dies(
    tmp_path: Path, bundle: Path, containerd: ContainerdProcess
) -> None:
    cluster = Cluster.create(tmp_path / "local", 3, addresses=True)
    names = (LOGICAL, f"{LOGICAL}/install")
    newer = {"": image("platform, newer"), "install": image("installer, newer")}
    later = pack_images(tmp_path / "later", newer, "v1.71.0")
    with Stage(cluster, LOCAL, bundle) as stage, ExitStack() as replication:

        def everywhere(release: Path) -> bool:
            return stage.mirror("mode check", "--inventory", release).code == 0

        pushed = stage.mirror("push", bundle, "--json").succeeded()
        first, second, _ = cluster.masters
        assert pushed.document["target"] == f"{first.registry}/system/deckhouse"
        assert not everywhere(bundle)
        daemons = [
            replication.enter_context(
                RunningMirror("sync", "--watch", "--config", replication_config(cluster, node))
            )
            for node in cluster.masters
        ]
        daemons[1].wait_until(lambda: everywhere(bundle))

        def pull(*references: str) -> None:
            for reference in references:
                done = containerd.pull(
                    reference, cluster.hosts, login=cluster.login(RegistryUser.RO)
                )
                assert done.returncode == 0, done.stderr
                containerd.forget(reference)

        tags = tuple(f"{name}:v1.70.0" for name in names)
        digests = (f"{names[0]}@{PLATFORM.digest}", f"{names[1]}@{INSTALLER.digest}")
        pull(*tags, *digests)
        cluster.registries[second.name].kill()
        pull(*tags, *digests, *tags)
        cluster.registries[second.name].start()
        pull(*tags, *digests)
        stage.mirror("push", later).succeeded()
        daemons[1].wait_until(lambda: everywhere(later))
        cluster.registries[first.name].kill()  # which took the push
        pull(*(f"{name}:v1.71.0" for name in names), f"{names[0]}@{newer[''].digest}")
        for daemon in daemons:
            assert daemon.stop(signal.SIGTERM).code == 0


def replication_config(cluster: Cluster, node: Node) -> Path:
    """What was rendered for a master's replication container."""
    path = SERVICE_CONFIG / "mirrorer/config.yaml"
    return in_tree(cluster.out, f"nodes/{node.name}", path)


def test_each_user_may_do_what_the_access_list_says(local: Cluster) -> None:
    node = local.masters[0]
    one = image("access")
    with client(node.registry, local.ca, local.account(RegistryUser.RW)) as to:
        push(to, "system/deckhouse/access", "v1", one)
    with client(node.registry, local.ca, local.account(RegistryUser.RO)) as reader:
        assert reader.manifest("system/deckhouse/access", "v1").raw == one.raw
        with pytest.raises(DeniedError):
            push(reader, "system/deckhouse/access", "v2", one)
        with pytest.raises(DeniedError):
            list(reader.catalogue())
    with client(node.registry, local.ca, local.account(RegistryUser.MIRROR_PULLER)) as puller:
        assert "system/deckhouse/access" in list(puller.catalogue())
        assert puller.resolve("system/deckhouse/access", "v1")
        with pytest.raises(DeniedError):
            push(puller, "system/deckhouse/access", "v2", one)
    with client(node.registry, local.ca, local.account(RegistryUser.MIRROR_PUSHER)) as pusher:
        push(pusher, "system/deckhouse/access", "v2", one)
        pusher.delete_manifest("system/deckhouse/access", one.digest)
    wrong = dataclasses.replace(local.account(RegistryUser.RO), name="rw")
    with (
        client(node.registry, local.ca, wrong) as stranger,
        pytest.raises(DeniedError),
    ):
        stranger.manifest("system/deckhouse/access", "v1")
    with client(node.registry, local.ca, None) as nobody, pytest.raises(DeniedError):
        nobody.manifest("system/deckhouse/access", "v1")


def test_metrics_are_on_the_loopback_port(local: Cluster) -> None:
    node = local.masters[2]
    answer = httpx.get(f"http://127.0.0.1:{node.ports.debug}/metrics")
    assert answer.status_code == 200
    assert "registry_http" in answer.text


def test_pythons_strictest_verification_accepts_the_replica(local: Cluster) -> None:
    context = ssl.create_default_context(cadata=local.kept.authority.certificate)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    answer = httpx.get(f"https://{local.masters[0].registry}/v2/", verify=context)
    assert answer.status_code == 401
    challenge = answer.headers["www-authenticate"]
    assert f'realm="https://{local.masters[0].token}/auth"' in challenge


def test_a_push_is_told_to_replication(local: Cluster) -> None:
    node = local.masters[0]
    events: queue.Queue[Any] = queue.Queue()

    def hear(request: Request) -> Reply:
        events.put((request.path, json.loads(request.body)))
        return Reply()

    with ScriptedServer(hear, at=("127.0.0.1", node.ports.replication)):
        with client(node.registry, local.ca, local.account(RegistryUser.RW)) as to:
            push(to, "system/deckhouse/told", "v1", image("told"))
            push(to, "system/deckhouse/told", "v2", image("told again"))
        # It was away during the tests before, and what it missed then is told now too.
        told: list[dict[str, Any]] = []
        while not any(one["target"].get("tag") == "v2" for one in told):
            path, body = events.get(timeout=30)
            assert path == "/notify"
            told += [one for one in body["events"] if "told" in one["target"]["repository"]]
        assert "push" in {one["action"] for one in told}
