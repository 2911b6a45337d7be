"""A cluster's API on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.controller.kube import KubeApi
from tests.controller.leading import made_once as made_once
from tests.support.kube_api import KubeCluster, KubeServer, kube_server


@pytest.fixture
def cluster() -> KubeCluster:
    return KubeCluster()


@pytest.fixture
def server(tmp_path: Path, cluster: KubeCluster) -> Iterator[KubeServer]:
    with kube_server(tmp_path, cluster) as running:
        yield running


@pytest.fixture
def api(server: KubeServer) -> Iterator[KubeApi]:
    one = KubeApi.connect(server.kubeconfig)
    yield one
    one.close()
