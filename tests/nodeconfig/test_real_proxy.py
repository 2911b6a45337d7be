"""Proxy mode at work, from rendered files."""

from __future__ import annotations

import dataclasses
import datetime
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from examples.release_tree.images import Image
from mirror.errors import DeniedError, RegistryNotFoundError
from mirror.modes import DATA_ROOT, RegistryUser
from mirror.nodeconfig.services import Distribution
from mirror.nodeconfig.tree import SERVICE_CONFIG
from tests.support.mode_stack import ContainerdProcess, balancer, fork, in_tree, master
from tests.support.runnable_images import client, image, push
from tests.support.running_cluster import LOCAL, LOGICAL, Cluster, running, with_upstream
from tests.support.token_server import TokenServer


def test_a_cache_fetches_once_and_serves_without_its_upstream(
    tmp_path: Path, containerd: ContainerdProcess
) -> None:
    one = image("cached")
    source = Cluster.create(tmp_path / "upstream", 1)
    source.render(LOCAL)
    (outside,) = source.masters
    reader = source.account(RegistryUser.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "proxy", 2)
    repo = f"{outside.registry}/system/deckhouse"
    cluster.render(with_upstream("Proxy", repo, login, source.ca))
    trust = {"SSL_CERT_FILE": str(source.ca)}
    reference = f"{LOGICAL}/install@{one.digest}"
    with ExitStack() as stack:
        with master(source.out, outside):  # caches want their upstream when they start
            with client(outside.registry, source.ca, source.account(RegistryUser.RW)) as to:
                push(to, "system/deckhouse/install", "v1", one)
            caches = [
                stack.enter_context(master(cluster.out, node, trust)) for node in cluster.masters
            ]
            stack.enter_context(running(balancer(cluster.out, cluster.worker)))
            with client(outside.registry, source.ca, source.account(RegistryUser.RW)) as to:
                push(to, "system/deckhouse/cold", "v1", image("cold"))
            caches[0].kill()
            cold = f"{LOGICAL}/cold:v1"
            done = containerd.pull(cold, cluster.hosts, login=cluster.login(RegistryUser.RO))
            assert done.returncode == 0, done.stderr
            containerd.forget(cold)
            caches[0].start()
            for node in cluster.masters:  # the balancer chooses: both have it then
                with client(node.registry, cluster.ca, cluster.account(RegistryUser.RO)) as reading:
                    found = reading.manifest("system/deckhouse/install", "v1")
                    assert found.raw == one.raw
                    for blob in found.blobs:
                        body = reading.blob("system/deckhouse/install", blob.digest, size=blob.size)
                        assert sum(map(len, body)) == blob.size
            _until_cached(cluster, one)
        done = containerd.pull(reference, cluster.hosts, login=cluster.login(RegistryUser.RO))
        assert done.returncode == 0, done.stderr
        containerd.forget(reference)
        with (
            client(
                cluster.masters[0].registry, cluster.ca, cluster.account(RegistryUser.RO)
            ) as reading,
            pytest.raises(DeniedError),
        ):
            push(reading, "system/deckhouse/install", "v2", one)


def test_the_forks_cache_asks_its_upstream_for_the_upstreams_own_path_in_tokens_too(
    tmp_path: Path, containerd: ContainerdProcess
) -> None:
    one = image("mapped")
    source = Cluster.create(tmp_path / "upstream", 1)
    source.render(LOCAL)
    (outside,) = source.masters
    reader = source.account(RegistryUser.RO)
    login = (reader.name, reader.password.get_secret_value())
    cluster = Cluster.create(tmp_path / "proxy", 1)
    cluster.options = dataclasses.replace(cluster.options, distribution=Distribution.DECKHOUSE)
    cluster.render(with_upstream("Proxy", f"{outside.registry}/dkp/ee", login, source.ca))
    (node,) = cluster.masters
    files = in_tree(cluster.out, f"nodes/{node.name}", SERVICE_CONFIG)
    with master(source.out, outside) as there, ExitStack() as stack:
        with client(outside.registry, source.ca, source.account(RegistryUser.RW)) as to:
            push(to, "dkp/ee/install", "v1", one)
        tokens = stack.enter_context(TokenServer(files / "auth/config.yaml"))
        del there.tokens.asked[:]
        stack.enter_context(fork(cluster.out, node))
        stack.enter_context(running(balancer(cluster.out, cluster.worker)))
        reference = f"{LOGICAL}/install:v1"
        done = containerd.pull(reference, cluster.hosts, login=cluster.login(RegistryUser.RO))
        assert done.returncode == 0, done.stderr
        containerd.forget(reference)
        asked = {scope for one in there.tokens.asked for scope in one.scopes}
        assert asked == {"repository:dkp/ee/install:pull"}
        assert {(one.account, one.status) for one in there.tokens.asked} == {(reader.name, 200)}
        assert {scope for one in tokens.asked for scope in one.scopes} == {
            "repository:system/deckhouse/install:pull"
        }
        with client(node.registry, cluster.ca, cluster.account(RegistryUser.RO)) as reading:
            with pytest.raises(RegistryNotFoundError):
                reading.manifest("dkp/ee/install", "v1")
            assert reading.manifest("system/deckhouse/install", "v1").raw == one.raw


def _until_cached(cluster: Cluster, one: Image) -> None:
    """Caches store what they passed on behind the client's back."""
    layers = [f"_layers/sha256/{digest.encoded}/link" for digest in one.blobs]
    links = [f"_manifests/revisions/sha256/{one.digest.encoded}/link", *layers]
    deadline = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    for node in cluster.masters:
        data = in_tree(cluster.out, f"nodes/{node.name}", DATA_ROOT)
        stored = data / "docker/registry/v2/repositories/system/deckhouse/install"
        while not all((stored / link).is_file() for link in links):
            assert datetime.datetime.now(datetime.UTC) < deadline, "the cache stays empty"
            threading.Event().wait(0.05)
