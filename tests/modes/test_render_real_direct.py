"""Direct mode at work, from rendered files, with stock programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import httpx
import pytest

from mirror.errors import DeniedError
from mirror.modes import constants
from mirror.modes.sites import User
from tests.modes.images import client, image, push
from tests.modes.stack import (
    LOCAL,
    LOGICAL,
    Cluster,
    by_name,
    direct,
    fill,
    running,
    upstream_ca,
)
from tests.support.mode_stack import (
    ContainerdProcess,
    in_cluster_relay,
    relay,
)
from tests.support.real_registry import ACCOUNT, RealRegistry


def test_containerd_reaches_another_path_through_the_relay_with_its_own_login(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    one = image("direct")
    fill(upstream, "dkp/ee/install", "v1", one)
    fill(upstream, "dkp/ee-evil/x", "v1", image("evil"))
    cluster = Cluster.create(tmp_path / "direct", 1)
    cluster.render(direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream)))
    with running(relay(cluster.out, cluster.worker)):
        for reference in (f"{LOGICAL}/install:v1", f"{LOGICAL}/install@{one.digest}"):
            done = containerd.pull(reference, cluster.hosts)
            assert done.returncode == 0, done.stderr
            containerd.forget(reference)
        slot = "/".join(_only_url(cluster).split("/")[:4])
        evil = httpx.get(f"{slot}/v2/system/deckhouse-evil/x/manifests/v1", auth=ACCOUNT)
        assert evil.status_code == 404
        assert "only system/deckhouse is here" in evil.text
        assert httpx.get(f"{slot}/v2/", auth=ACCOUNT).status_code == 200
        assert httpx.get(f"{slot}/v2/").status_code == 401
        base = f"{slot}/v2/system/deckhouse/install"
        assert httpx.post(f"{base}/blobs/uploads/", auth=ACCOUNT).status_code == 403


def _only_url(cluster: Cluster) -> str:
    import tomllib

    text = (cluster.hosts / constants.LOGICAL_HOST / "hosts.toml").read_text()
    (url,) = tomllib.loads(text)["host"]
    assert isinstance(url, str)
    return url


def test_containerd_reaches_a_prefixed_path_without_a_relay(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "a/b/system/deckhouse/install", "v1", image("prefixed"))
    cluster = Cluster.create(tmp_path / "direct", 1)
    repo = f"{by_name(upstream)}/a/b/system/deckhouse"
    cluster.render(direct(repo, ACCOUNT, upstream_ca(upstream)))
    reference = f"{LOGICAL}/install:v1"
    done = containerd.pull(reference, cluster.hosts)
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)


def test_the_api_plane_passes_through_to_a_token_server_that_knows_the_real_path(
    tmp_path: Path, local: Cluster
) -> None:
    one = image("api")
    node = local.masters[0]
    with client(node.registry, local.ca, local.account(User.RW)) as to:
        push(to, "dkp/ee/install", "v1", one)
    reader = local.account(User.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "direct", 1)
    repo = f"localhost:{node.ports.registry}/dkp/ee"
    cluster.render(direct(repo, login, local.ca))
    # One file of authorities for both: the proxy's own, and the token server's beyond it.
    both = tmp_path / "both.crt"
    both.write_text(cluster.kept.authority.certificate + local.kept.authority.certificate)
    with running(in_cluster_relay(cluster.out, cluster.nodes[0])):
        address = f"127.0.0.1:{cluster.nodes[0].ports.registry}"
        with client(address, both, reader) as through:
            found = through.manifest("system/deckhouse/install", "v1")
            assert found.raw == one.manifest
            for blob in found.blobs:
                body = through.blob("system/deckhouse/install", blob.digest, size=blob.size)
                assert sum(map(len, body)) == blob.size
        wrong = dataclasses.replace(reader, name="rw")
        with client(address, both, wrong) as stranger, pytest.raises(DeniedError):
            stranger.manifest("system/deckhouse/install", "v1")


def test_containerd_trusts_a_module_source_by_its_own_authority(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    fill(upstream, "modules/x", "v1", image("module"))
    cluster = Cluster.create(tmp_path / "sources", 1)
    sources = {upstream.address: upstream_ca(upstream).read_text()}
    cluster.options = dataclasses.replace(cluster.options, sources=sources)
    cluster.render(LOCAL)
    reference = f"{upstream.address}/modules/x:v1"
    done = containerd.pull(reference, cluster.hosts, login=":".join(ACCOUNT))
    assert done.returncode == 0, done.stderr
    containerd.forget(reference)
