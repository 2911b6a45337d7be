"""Modes from rendered manifests alone: every container of every pod, confined as it says."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.errors import DeniedError
from mirror.modes import RegistryUser
from mirror.modes.settings import Account, RegistrySettings
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.services import Distribution
from tests.support.kubelet import Kubelet
from tests.support.machines import BALANCER, NAMES, SERVICES, Machines, check
from tests.support.mode_stack import ContainerdProcess, master
from tests.support.real_registry import ACCOUNT, RealRegistry
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import (
    LOCAL,
    Cluster,
    by_name,
    direct,
    fill,
    pull,
    upstream_ca,
)
from tests.support.tls import Authority


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    folder = tmp_path_factory.mktemp("machines")
    return Machines(folder, 2, LOCAL, flavour=Distribution.DECKHOUSE)


def test_a_cache_works_in_its_pod(tmp_path: Path, containerd: ContainerdProcess) -> None:
    authority = Authority.create(tmp_path / "authority")
    with RealRegistry(tmp_path / "up", tls=authority.issue()) as upstream:
        fill(upstream, "system/deckhouse/app", "v1", image("app"))
        section = {
            "imagesRepo": f"localhost:{upstream.port}/system/deckhouse",
            "ca": authority.certificate.read_text(),
        }
        settings = RegistrySettings.load({"mode": "Proxy", "proxy": section})
        images = dataclasses.replace(NAMES, mirror=None)
        machines = Machines(tmp_path, 1, settings, images)
        with machines.kubelets["master-0"] as kubelet, machines.kubelets["worker-0"]:
            check(kubelet, SERVICES, BALANCER)
            pull(containerd, machines.cluster, "app")


def test_the_in_cluster_proxy_works_in_its_pod(tmp_path: Path, upstream: RealRegistry) -> None:
    fill(upstream, "dkp/ee/app", "v1", image("app"))
    settings = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    machines = Machines(tmp_path, 1, settings, Images(nginx=NAMES.nginx))
    with in_cluster_proxy(machines) as kubelet:
        check(kubelet, "proxy")
        address = f"127.0.0.1:{machines.cluster.worker.ports.registry}"
        account = Account(ACCOUNT[0], SecretStr(ACCOUNT[1]))
        with client(address, machines.cluster.ca, account) as reading:
            assert reading.tags("system/deckhouse/app") == ["v1"]


@pytest.mark.usefixtures("quick_keys")
def test_the_in_cluster_proxy_of_the_default_flavour_works_in_its_pod(tmp_path: Path) -> None:
    """Deckhouse's registry and its token server, as nobody, before another path of a registry."""
    outside = Cluster.create(tmp_path / "outside", 1)
    outside.render(LOCAL)
    (there,) = outside.masters
    app, reader = image("app"), outside.account(RegistryUser.RO)
    with master(outside.out, there):
        with client(there.registry, outside.ca, outside.account(RegistryUser.RW)) as to:
            push(to, "dkp/ee/app", "v1", app)
        login = (reader.name, reader.password.get_secret_value())
        settings = direct(f"localhost:{there.ports.registry}/dkp/ee", login, outside.ca)
        machines = Machines(tmp_path, 1, settings, flavour=Distribution.DECKHOUSE)
        with in_cluster_proxy(machines) as kubelet:
            check(kubelet, "proxy")
            for pid in kubelet.pids()["proxy"]:
                assert "\nUid:\t65534\t" in Path(f"/proc/{pid}/status").read_text()
            address = f"127.0.0.1:{machines.cluster.worker.ports.registry}"
            with client(address, machines.cluster.ca, reader) as reading:
                assert reading.tags("system/deckhouse/app") == ["v1"]
                found = reading.manifest("system/deckhouse/app", "v1")
                assert found.raw == app.raw
                for blob in found.blobs:
                    body = reading.blob("system/deckhouse/app", blob.digest, size=blob.size)
                    assert sum(map(len, body)) == blob.size
            other = outside.account(RegistryUser.RW)
            with (
                client(address, machines.cluster.ca, other) as refused,
                pytest.raises(DeniedError),
            ):
                refused.tags("system/deckhouse/app")


@contextmanager
def in_cluster_proxy(machines: Machines) -> Iterator[Kubelet]:
    """The pod of the Deployment, with what its Secret holds; it runs beside those of the worker."""
    name, kubelet = "registry-incluster-proxy", machines.kubelets["worker-0"]
    secret = machines.object("Secret", f"{name}-config")
    kubelet.secrets[f"{name}-config"] = {
        key: base64.b64decode(value) for key, value in secret["data"].items()
    }
    with kubelet:
        kubelet.run("proxy", machines.object("Deployment", name)["spec"]["template"])
        yield kubelet


# -- the stand-ins are as strict as what they stand for --------------------------------------------


@pytest.mark.parametrize(
    ("node", "pod", "how", "message"),
    [
        (
            "master-0",
            SERVICES,
            lambda pod: pod["spec"]["containers"][0]["args"].remove("-logtostderr"),
            "log: cannot create log",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["containers"][0].pop("ports"),
            "nginx listens at .* does not declare",
        ),
        (
            "master-0",
            BALANCER,
            lambda pod: pod["spec"]["containers"][0]["ports"][0].update(
                {"hostIP": "0.0.0.0", "containerPort": 5001}
            ),
            r"NodePorts: 0\.0\.0\.0:5001 is that of",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["volumes"][0]["hostPath"].update({"path": "/etc/nowhere"}),
            "hostPath type check failed: /etc/nowhere",
        ),
        (
            "worker-0",
            BALANCER,
            lambda pod: pod["spec"]["volumes"].pop(),
            "runtime",
        ),
    ],
    ids=["log file", "port not declared", "port taken", "no such folder", "no such volume"],
)
def test_a_pod_that_a_real_node_would_not_run_does_not_run_here(
    machines: Machines,
    node: str,
    pod: str,
    how: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    refused = (AssertionError, KeyError, pytest.fail.Exception)
    with machines.changed(node, pod, how), pytest.raises(refused, match=message):  # noqa: SIM117
        with machines.kubelets[node]:
            pass
