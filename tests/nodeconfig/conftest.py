"""Programs that several tests of modes pull with and from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mode_stack import (
    ContainerdProcess,
    master,
)
from tests.support.real_registry import HTPASSWD, RealRegistry
from tests.support.runnable_images import pack_images
from tests.support.running_cluster import (
    INSTALLER,
    LOCAL,
    PLATFORM,
    Cluster,
)
from tests.support.tls import Authority


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three replicas with TLS and tokens; nothing is in them yet."""
    cluster = Cluster.create(tmp_path_factory.mktemp("local"), 3)
    cluster.render(LOCAL)
    with ExitStack() as running:
        for node in cluster.masters:
            cluster.registries[node.name] = running.enter_context(master(cluster.out, node))
        yield cluster


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdProcess]:
    """One containerd for all; each test makes it forget what it pulled."""
    with ContainerdProcess(tmp_path_factory.mktemp("containerd")) as process:
        yield process


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two images that a containerd can unpack: the platform's own and the installer."""
    return pack_images(tmp_path_factory.mktemp("bundle"), {"": PLATFORM, "install": INSTALLER})


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[RealRegistry]:
    """A registry outside, with a login and a certificate of its own authority."""
    authority = Authority.create(tmp_path / "authority")
    registry = RealRegistry(tmp_path / "up", tls=authority.issue(), htpasswd=HTPASSWD)
    registry.start()
    yield registry
    registry.stop()
