"""`mirror controller` as a program."""

from __future__ import annotations

import signal
import subprocess

import pytest
import yaml

from mirror.nodeconfig.tree import SERVICE_CONFIG, STATIC_POD
from tests.controller.cluster_life import Life
from tests.support.kube_api import KubeCluster, KubeServer
from tests.support.kubernetes import check_object
from tests.support.patience import ends_within
from tests.support.program import PROGRAM, ROOT, call_mirror, environment


@pytest.fixture
def life(cluster: KubeCluster) -> Life:
    return Life(cluster)


def test_one_pass_tells_how_far_the_cluster_is(
    server: KubeServer, cluster: KubeCluster, life: Life
) -> None:
    where = ("controller", "--kubeconfig", server.kubeconfig, "--once")
    done = call_mirror(*where).succeeded()
    assert done.stdout == "Unmanaged (legacy) → Unmanaged (legacy)\n"
    life.want("Local")
    pushing = ("--push-ingress", "host=registry.example.com")
    half = call_mirror(*where, "--image", "distribution=r.example/d:1")
    half.failed(2, "ModuleConfig deckhouse cannot be carried out, and nothing is changed")
    waiting = call_mirror(*where, "--json", *pushing)
    assert waiting.code == 1
    found = waiting.document
    assert found["reached"] is False
    assert found["state"]["target_mode"] == "Local"
    assert [one["type"] for one in found["state"]["conditions"]] == [
        "ContainerdConfigPreflightReady",
        "NodeServicesReady",
        "Ready",
    ]
    assert {"registry", "registry-push"} & {key[2] for key in cluster.objects} == {
        "registry",  # the ingress for pushes
        "registry-push",
    }
    assert cluster.get("Service", "registry") is None, "nobody is led to what does not serve yet"
    cluster.remove("ModuleConfig", "deckhouse", "")
    call_mirror(*where).failed(2, "ModuleConfig deckhouse cannot be read, and nothing is changed")


def test_sigterm_ends_it_soon_and_gives_the_lease_back(
    server: KubeServer, cluster: KubeCluster, life: Life
) -> None:
    arguments = ("controller", "--kubeconfig", str(server.kubeconfig), "--lease", "mine")
    with subprocess.Popen(
        [*PROGRAM, *arguments], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        told = ""
        while "Unmanaged (legacy)" not in told:
            told += (line := running.stderr.readline())
            assert line, told
        lease = cluster.get("Lease", "mine")
        assert lease is not None
        assert lease["spec"]["holderIdentity"]
        with ends_within(2.0):
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
    lease = cluster.get("Lease", "mine")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == ""
    assert "this one leads now" in told


def test_what_installs_it_is_what_the_api_takes() -> None:
    text = (ROOT / "deploy/kubernetes/controller.yaml").read_text()
    documents = list(yaml.safe_load_all(text))
    for one in documents:
        check_object(one)
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert call_mirror(*container["args"], "--help").code == 0


def test_the_agent_of_masters_is_what_the_api_takes_and_holds_the_images_that_it_runs() -> None:
    text = (ROOT / "deploy/kubernetes/nodeservices-manager.yaml").read_text()
    documents = {one["kind"]: one for one in yaml.safe_load_all(text)}
    for one in documents.values():
        check_object(one)
    pod = documents["DaemonSet"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    agent, *holders = pod["containers"]
    run = {one["value"] for one in agent["env"] if one["name"].startswith("IMAGE_")}
    assert {one["image"] for one in holders} == run
    assert {one["command"] == ["/pause"] for one in holders} == {True}
    (folder,) = (one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one)
    for path in (SERVICE_CONFIG, STATIC_POD):
        assert path.is_relative_to(folder), "it can write what a master's services need"
    readable = [one["resources"] for one in documents["Role"]["rules"] if "watch" in one["verbs"]]
    assert readable == [["pods", "secrets"]], "of secrets it changes none"
