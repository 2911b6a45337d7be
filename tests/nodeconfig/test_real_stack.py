"""Local mode whole, from rendered files alone: three masters' pods, the ingress, replication, a
death and a rotation, while a containerd pulls."""

from __future__ import annotations

import datetime
import random
import re
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from examples.release_tree.images import Image
from mirror.errors import DeniedError, MirrorError, UnreachableError
from mirror.modes import RegistryUser
from mirror.nodeconfig.service_secrets import Rotated, advance_rotation, begin_rotation
from mirror.nodeconfig.services import Distribution
from tests.support.ingress import ingress
from tests.support.kubelet import Kubelet
from tests.support.machines import BALANCER, SERVICES, Machines, check
from tests.support.mode_stack import ContainerdProcess
from tests.support.mode_stage import Pulling
from tests.support.patience import wait_until
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import LOCAL, LOGICAL
from tests.support.tls import Authority

LARGE = image(random.Random(7).randbytes(1 << 20).hex())
"""Twice as large as what nginx takes where nobody says how much."""
REPOSITORY = "system/deckhouse/app"
ELSEWHERE = "127.0.0.99"


@pytest.mark.usefixtures("quick_keys")
def test_no_pull_fails_whatever_is_pushed_dies_or_changes_its_keys(
    tmp_path: Path, containerd: ContainerdProcess
) -> None:
    outside = Authority.create(tmp_path / "outside")
    machines = Machines(
        *(tmp_path, 3, LOCAL),
        flavour=Distribution.DECKHOUSE,
        ingress_client_ca=outside.certificate.read_text(),
    )
    cluster, kubelets = machines.cluster, machines.kubelets
    masters = {node.name: kubelets[node.name] for node in cluster.masters}
    rules, behind = machines.object("Ingress", "registry"), machines.behind("registry-push")
    assert behind == [node.registry for node in cluster.masters]

    with ExitStack() as running:
        with ThreadPoolExecutor() as together:
            [*together.map(running.enter_context, kubelets.values())]
        for kubelet in masters.values():
            check(kubelet, SERVICES, BALANCER)
        door = running.enter_context(ingress(rules, behind, tmp_path / "in", outside))
        public = f"localhost:{door.port}"
        whoever_may_push(public, outside, masters)

        def pushed(tag: str, one: Image) -> None:
            with client(public, outside.certificate, cluster.account(RegistryUser.RW)) as to:
                push(to, REPOSITORY, tag, one)

        pushed("v1", LARGE)
        wait_until(lambda: held(machines, "v1"), every_s=0.5)
        login = cluster.login(RegistryUser.RO)
        pulling = Pulling(containerd, f"{LOGICAL}/app:v1", cluster, login, pause_s=0.8)
        running.enter_context(pulling)
        pulling.wait_for(1)

        (took,) = asked(masters, "host", public, "PUT")
        with pulling.between():  # what a dead one was in the midst of nobody else can go on with
            masters[took].cut()
        pulling.wait_for(2)
        pushed("v2", image("while one is dead"))
        (other,) = asked(masters, "host", public, "PUT")
        assert other != took, "the same pusher is led to one of the others"
        masters[took].sync()
        wait_until(lambda: held(machines, "v2"), every_s=0.5)
        pulling.reference = f"{LOGICAL}/app:v2"

        old, old_ca = cluster.account(RegistryUser.RO), cluster.ca.read_text()
        now = datetime.datetime.now(datetime.UTC)
        cluster.kept = begin_rotation(cluster.kept, [*Rotated], now)
        while True:
            phase = cluster.kept.rotation and cluster.kept.rotation.phase
            machines.render()
            pulling.login = cluster.login(RegistryUser.RO)
            for kubelet in masters.values():
                kubelet.sync()
                pulling.wait_for(1)
            assert pulling.failures == [], phase
            if cluster.kept.rotation is None:
                break
            cluster.kept = advance_rotation(cluster.kept, cluster.nodes, now)
        pulling.wait_for(1)
        pulling.stop()
        pushed("v3", image("by the new login"))
        wait_until(lambda: held(machines, "v3"), every_s=0.5)

        place = cluster.masters[0].registry
        with client(place, cluster.ca, old) as stranger, pytest.raises(DeniedError):
            stranger.manifest(REPOSITORY, "v2")
        (tmp_path / "old.crt").write_text(old_ca)
        with client(place, tmp_path / "old.crt", old) as late, pytest.raises(UnreachableError):
            late.ping()
    assert pulling.failures == []


def whoever_may_push(public: str, outside: Authority, masters: dict[str, Kubelet]) -> None:
    """Addresses of the list are let through, each to one master, which learns the address."""
    trust = ssl.create_default_context(cafile=str(outside.certificate))

    def post(address: str, content: bytes = b"") -> int:
        way = httpx.HTTPTransport(verify=trust, local_address=address)
        with httpx.Client(transport=way) as sender:
            url = f"https://{public}/v2/{REPOSITORY}/blobs/uploads/"
            return sender.post(url, content=content).status_code

    assert post(ELSEWHERE) == 403
    assert post("127.0.0.1", bytes(2 << 20)) != 413, "a body may have any size"
    pushers = [f"127.0.0.{number}" for number in range(2, 18)]
    for address in (*pushers, *pushers):
        assert post(address) == 401
    found = [asked(masters, "remoteaddr", address, "POST") for address in pushers]
    assert {len(one) for one in found} == {1}, "one pusher stays at one replica"
    assert len({*map(tuple, found)}) > 1, "and they do not all stay at the same"
    assert asked(masters, "remoteaddr", ELSEWHERE, "POST") == []


def asked(masters: dict[str, Kubelet], field: str, value: str, method: str) -> list[str]:
    """The masters that run and had such a request, by what their registries have logged."""
    line = re.compile(rf'request.method={method}.*request.{field}="?{re.escape(value)}[ "]')
    other = re.compile(rf'request.{field}="?{re.escape(value)}[ "].*request.method={method}')
    running = {name: one for name, one in masters.items() if SERVICES in one.pids()}
    logs = {name: one.logs(SERVICES, "distribution") for name, one in running.items()}
    return [name for name, said in logs.items() if line.search(said) or other.search(said)]


def held(machines: Machines, tag: str) -> bool:
    """Whether every master has a tag."""
    cluster = machines.cluster
    for node in cluster.masters:
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RO)) as there:
            try:
                if tag not in there.tags(REPOSITORY):
                    return False
            except MirrorError:
                return False
    return True
