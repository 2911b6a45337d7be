"""Large layers through a proxy that limits how large the body of a request may be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTarget
from tests.support.inventories import put_image
from tests.support.nginx import Nginx
from tests.support.registries import (
    CRANE,
    DISTRIBUTION,
    DOCKER_REGISTRY,
    EMBEDDED,
    OLAREG,
    PASSING_ON,
    REDIRECTING,
    Kind,
)
from tests.support.walker import Walker

MIB = 1 << 20


@pytest.mark.parametrize(
    ("kind", "limit", "size"),
    [
        pytest.param(kind, limit, size, id=f"{kind.name} {limit}", marks=marks)
        for kind, marks in (
            (DOCKER_REGISTRY, ()),
            (OLAREG, ()),
            (EMBEDDED, pytest.mark.soak),
            (CRANE, pytest.mark.soak),
            (DISTRIBUTION, pytest.mark.soak),
            (REDIRECTING, pytest.mark.soak),
            (PASSING_ON, pytest.mark.soak),
        )
        for limit, size in (("1m", 5 * MIB), ("16m", 36 * MIB))
    ],
)
def test_a_layer_larger_than_the_limit_arrives_in_pieces(
    kind: Kind, limit: str, size: int, tmp_path: Path, record_property: Callable[..., None]
) -> None:
    store = MemoryStore("bundle")
    layer = random.Random(5).randbytes(size)
    digest = put_image(store, "deckhouse/ee", "v1", layers=(layer,))
    wanted = store.inventory()
    with (
        kind.start(tmp_path / "registry") as address,
        Nginx(tmp_path / "nginx", address, body_limit=limit) as front,
    ):
        with RegistryClient(front.address, options=ConnectionOptions(plain_http=True)) as client:
            target = RegistryTarget(client, lambda path: path)
            transfer(make_plan(wanted, Inventory()), store, target)
        with Walker(f"http://{front.address}") as walker:
            walk = walker.walk({"deckhouse/ee": {"v1": str(digest)}})
    assert walk.wrong == []
    assert walk.bytes > size
    assert Digest.of(layer) in wanted.repository("deckhouse/ee").blobs
    record_property("bytes", walk.bytes)
