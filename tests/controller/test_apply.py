"""`mirror mode apply`: rendered objects in a cluster."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from mirror.controller import rendered_state
from mirror.controller.kube import KubeApi
from mirror.modes import Verdict
from mirror.nodeconfig.service_secrets import parse_secrets
from tests.controller.cluster_life import Life
from tests.controller.leading import controller, settle, state_of
from tests.support.kube_api import KubeCluster, KubeServer
from tests.support.program import call_mirror
from tests.support.rendered_cluster import MASTERS

SETTINGS = (
    "mode: Direct\ndirect: {imagesRepo: nexus.example/dkp/ee, username: u, password: hidden}\n"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `mirror mode render` wrote."""
    folder = tmp_path_factory.mktemp("rendered")
    settings, out = folder / "settings.yaml", folder / "files"
    settings.write_text(SETTINGS)
    nodes = ("--nodes", "master-0=10.0.0.1", "--out", out)
    images = ("--image", "distribution=r.example/d:1", "--image", "auth=r.example/a:1")
    call_mirror("mode", "render", "--module-config", settings, *nodes, *images).succeeded()
    return out


def test_rendered_objects_are_applied_once_and_then_unchanged(
    files: Path, server: KubeServer, cluster: KubeCluster
) -> None:
    where = ("--kubeconfig", server.kubeconfig, "--json")
    tried = call_mirror("mode", "apply", files, *where, "--dry-run").succeeded().document
    assert cluster.objects == {}
    done = call_mirror("mode", "apply", files, *where).succeeded().document
    assert {**done, "dryRun": True} == tried
    assert set(done["objects"].values()) == {"created"}
    assert {f"{kind} {name}" for kind, _, name in cluster.objects} == set(done["objects"])
    kinds = list(dict.fromkeys(name.split()[0] for name in done["objects"]))
    assert kinds == ["Secret", "Service", "PodDisruptionBudget", "Deployment"]
    again = call_mirror("mode", "apply", files, *where).succeeded()
    assert set(again.document["objects"].values()) == {"unchanged"}
    assert "hidden" not in again.text


def test_what_somebody_else_manages_is_told_and_left(
    files: Path, server: KubeServer, cluster: KubeCluster
) -> None:
    where = ("--kubeconfig", server.kubeconfig)
    call_mirror("mode", "apply", files, *where).succeeded()
    service = cluster.get("Service", "registry")
    assert service is not None
    cluster.write({**service, "spec": {**service["spec"], "selector": {"app": "x"}}}, "kubectl")
    call_mirror("mode", "apply", files, *where).failed(1, 'conflict with "kubectl"', "selector")
    done = call_mirror("mode", "apply", files, *where, "--force-conflicts").succeeded()
    assert "1 changed" in done.stdout
    assert "changed: Service registry" in done.stdout


def test_mistakes_are_told_with_what_to_do(
    files: Path, server: KubeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    call_mirror("mode", "apply", files).failed(2, "name the cluster: --kubeconfig FILE")
    where = ("--kubeconfig", server.kubeconfig)
    call_mirror("mode", "apply", files, *where, "--in-cluster").failed(2, "name the cluster")
    variable = {"KUBECONFIG": str(server.kubeconfig)}
    call_mirror("mode", "apply", files, "--dry-run", env=variable).succeeded()
    inside = call_mirror("mode", "apply", files, "--in-cluster", env=variable)
    inside.failed(2, "the Pod's service account: it leads to no cluster")
    call_mirror("mode", "apply", tmp_path, *where).failed(2, "run `mirror mode render --out")
    (files / "manifests" / "odd.yaml").write_text("{apiVersion: v1, kind: Node}")
    call_mirror("mode", "apply", files, *where).failed(2, "odd.yaml", "found Node")
    (files / "manifests" / "odd.yaml").unlink()
    with server.down():
        call_mirror("mode", "apply", files, *where).failed(5, "API does not answer")


@pytest.mark.usefixtures("quick_keys")
def test_a_controller_goes_on_from_what_was_rendered_and_applied_by_hand(
    files: Path, server: KubeServer, cluster: KubeCluster, api: KubeApi
) -> None:
    """With the same authority, and without a switch."""
    life = Life(cluster)
    life.want("Direct")
    nodes = ",".join(f"{node.name}={node.address}" for node in MASTERS)
    config, out = files.with_name("wanted.yaml"), files.with_name("by-hand")
    config.write_text(yaml.safe_dump(cluster.get("ModuleConfig", "deckhouse")))
    arguments = ("--module-config", config, "--nodes", nodes, "--workers", "worker-0=10.0.0.9")
    images = (
        "--image",
        "distribution=r.example/distribution:1",
        "--image",
        "auth=r.example/auth:1",
    )
    call_mirror("mode", "render", *arguments, "--out", out, *images).succeeded()
    where = ("--kubeconfig", server.kubeconfig, "--force-conflicts")
    call_mirror("mode", "apply", out, *where).succeeded()
    authority = cluster.get("Secret", "registry-pki")
    done = settle(controller(api), life)
    assert done.plan.verdict is Verdict.NOTHING
    assert authority is not None
    assert (cluster.get("Secret", "registry-pki") or {})["data"] == authority["data"]
    assert state_of(cluster).mode == "Direct"


@pytest.mark.usefixtures("made_once", "quick_keys")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Direct", "Local"),
        *(
            pytest.param(*pair, marks=pytest.mark.soak)
            for pair in pairwise(("Unmanaged", "Direct", "Proxy", "Unmanaged"))
        ),
    ],
)
def test_a_controller_completes_a_transition_that_was_rendered(
    cluster: KubeCluster, api: KubeApi, before: str, after: str
) -> None:
    life, texts = Life(cluster), []
    for mode in (before, after):
        life.want(mode)
        texts.append(yaml.safe_dump(cluster.get("ModuleConfig", "deckhouse")))
        if mode == before:
            settle(controller(api), life)
    private = state_of(cluster).private
    assert private is not None
    held = parse_secrets(json.loads(private.get_secret_value())["secrets"], "the state")
    cluster.write(rendered_state(texts[1], held, texts[0]).to_secret())
    settle(controller(api), life)
    assert state_of(cluster).mode == after
    assert life.broken == life.untrue == []
