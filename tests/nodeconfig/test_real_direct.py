"""Direct mode at work, from rendered files, with stock programs."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import bcrypt
import httpx
import pytest

from mirror.errors import DeniedError, ForbiddenByModeError, UnreachableError
from mirror.modes import LOGICAL_HOST, Plane, RegistryUser
from mirror.modes.client import ModeClient, connect
from mirror.modes.settings import ClusterAccess, RegistrySettings
from mirror.nodeconfig.service_secrets import Rotated, advance_rotation, begin_rotation
from mirror.registry import ConnectionOptions, RetryPolicy
from tests.support.mode_stack import ContainerdProcess, in_cluster_relay, relay
from tests.support.mode_stage import Pulling
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import (
    LOCAL,
    LOGICAL,
    Cluster,
    by_name,
    direct,
    fill,
    running,
    upstream_ca,
)
from tests.support.service import resolving


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

    text = (cluster.hosts / LOGICAL_HOST / "hosts.toml").read_text()
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


def test_no_pull_fails_while_the_login_at_the_registry_outside_changes(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    """The registry outside takes both for a while, as whoever has it arranges."""
    fill(upstream, "a/b/system/deckhouse/install", "v1", image("login"))
    repo = f"{by_name(upstream)}/a/b/system/deckhouse"
    other = bcrypt.hashpw(b"n3w", bcrypt.gensalt(4)).decode()
    logins = upstream.config_path.with_name("htpasswd")
    before, after = (
        direct(repo, account, upstream_ca(upstream)) for account in (ACCOUNT, ("other", "n3w"))
    )
    cluster = Cluster.create(tmp_path / "direct", 1)
    cluster.render(before)
    with Pulling(containerd, f"{LOGICAL}/install:v1", cluster, "", pause_s=0.1) as pulling:
        pulling.wait_for(1)
        logins.write_text(f"{HTPASSWD}other:{other}\n")
        pulling.wait_for(1)
        for previous in (before, None):  # a transition, and its end
            cluster.render(after, previous)
            pulling.wait_for_new()
        logins.write_text(f"other:{other}\n")
        pulling.wait_for(2)
        assert pulling.failures == []
        cluster.render(before)
        pulling.wait_for(2)
    assert "401" in pulling.failures[-1], "the old login is worth nothing"


def test_the_api_plane_passes_through_to_a_token_server_that_knows_the_real_path(
    tmp_path: Path, local: Cluster
) -> None:
    one = image("api")
    node = local.masters[0]
    with client(node.registry, local.ca, local.account(RegistryUser.RW)) as to:
        push(to, "dkp/ee/install", "v1", one)
    reader = local.account(RegistryUser.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "direct", 1)
    settings = direct(f"localhost:{node.ports.registry}/dkp/ee", login, local.ca)
    cluster.render(settings)
    asked = local.registries[node.name].tokens.asked
    del asked[:]
    with (
        running(in_cluster_relay(cluster.out, cluster.worker)),
        resolving("registry.d8-system.svc") as service,
    ):
        service.append(("127.0.0.1", cluster.worker.ports.registry))
        with component(settings, cluster) as through:
            assert [one.host for one in through.endpoints] == [LOGICAL_HOST]
            found = through.manifest(f"{LOGICAL}/install:v1")
            assert found.raw == one.raw
            assert through.manifest(f"{LOGICAL}/install@{one.digest}").raw == one.raw
            for blob in found.blobs:
                body = through.blob(f"{LOGICAL}/install", blob.digest, size=blob.size)
                assert sum(map(len, body)) == blob.size
            assert through.tags(f"{LOGICAL}/install") == ["v1"]
            assert not through.exists(f"{LOGICAL}/install:v2")
            with pytest.raises(ForbiddenByModeError, match="push to the external registry itself"):
                push(through, "install", "v2", one)
        # The tokens that count are for the upstream's own paths, by the upstream's own login.
        scopes = [scope for request in asked for scope in request.scopes]
        assert "repository:dkp/ee/install:pull" in scopes
        assert {(request.account, request.status) for request in asked} == {(reader.name, 200)}
        stranger = direct(f"localhost:{node.ports.registry}/dkp/ee", ("rw", login[1]), local.ca)
        with component(stranger, cluster) as refused, pytest.raises(DeniedError):
            refused.manifest(f"{LOGICAL}/install:v1")


def component(settings: RegistrySettings, cluster: Cluster) -> ModeClient:
    """The registry as a component of the platform reaches it."""
    options = ConnectionOptions(retries=RetryPolicy(attempts=1))
    return connect(settings, access=cluster.sites, plane=Plane.API, options=options)


@pytest.mark.usefixtures("quick_keys")
def test_components_and_nodes_read_while_the_authority_of_the_proxy_is_rotated(
    tmp_path: Path, upstream: RealRegistry, containerd: ContainerdProcess
) -> None:
    """Whoever trusts what the files of a step say reads in the next step too, and the reverse."""
    fill(upstream, "dkp/ee/install", "v1", image("rotated"))
    cluster = Cluster.create(tmp_path / "direct", 1)
    settings = direct(f"{by_name(upstream)}/dkp/ee", ACCOUNT, upstream_ca(upstream))
    cluster.render(settings)
    way, now = in_cluster_relay(cluster.out, cluster.worker), datetime.datetime.now(datetime.UTC)
    first = cluster.sites

    def reads(access: ClusterAccess) -> bool:
        options = ConnectionOptions(retries=RetryPolicy(attempts=1))
        with connect(settings, access=access, plane=Plane.API, options=options) as through:
            return through.exists(f"{LOGICAL}/install:v1")

    pulling = Pulling(containerd, f"{LOGICAL}/install:v1", cluster, "", pause_s=0.2)
    with (
        running(way, relay(cluster.out, cluster.worker)),
        resolving("registry.d8-system.svc") as service,
        pulling,
    ):
        service.append(("127.0.0.1", cluster.worker.ports.registry))
        cluster.kept = begin_rotation(cluster.kept, [Rotated.AUTHORITY], now)
        behind = first
        for _ in range(3):
            ahead = cluster.sites
            assert reads(ahead)
            cluster.render(settings)
            way.restart()
            assert reads(behind)
            assert reads(ahead)
            behind = ahead
            pulling.wait_for(1)
            cluster.kept = advance_rotation(cluster.kept, cluster.nodes, now)
        with pytest.raises(UnreachableError, match="is not trusted"):
            reads(first)
    assert pulling.failures == []


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
