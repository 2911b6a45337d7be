"""Registries whose content lies in object storage: what is other there than on a disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mirror.oci import Digest
from mirror.serve import MemoryStorage
from mirror.sync import MemoryStore
from mirror.testing import EmbeddedRegistry, FaultyProxy
from tests.support.bundles import pack, pack_store
from tests.support.inventories import put_image, sample_store
from tests.support.program import call_mirror
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.registries import in_bucket, object_storage

EMPTY = Digest.of(b"")
"""CNCF distribution 2 cannot keep it in a bucket."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    store = sample_store()
    empty = [path for path, one in store.inventory().repositories.items() if EMPTY in one.blobs]
    pack(store, store.inventory().filtered(lambda path: path not in empty), folder)
    return folder


# -- redirects -------------------------------------------------------------------------------------


def test_blobs_are_read_at_presigned_addresses_without_the_login(
    tmp_path: Path, bundle: Path
) -> None:
    """The storage judges by the signature in the address, and is not to learn the password."""
    name, password = ACCOUNT
    env = {"D8_MIRROR_REGISTRY_LOGIN": name, "D8_MIRROR_REGISTRY_PASSWORD": password}
    with (
        object_storage(tmp_path / "objects") as address,
        FaultyProxy(f"http://{address}") as storage,
    ):
        with RealRegistry(tmp_path / "writer", extra={"storage": in_bucket(address)}) as registry:
            root = f"{registry.address}/dkp/ee"
            assert call_mirror("push", bundle, root, "--insecure").code == 0
        extra = {"storage": in_bucket(storage.address)}
        with RealRegistry(tmp_path / "reader", htpasswd=HTPASSWD, extra=extra) as registry:
            root = f"{registry.address}/dkp/ee"
            verify = ("verify", bundle, "--against", root, "--deep", "--insecure")
            assert call_mirror(*verify).code == 6
            assert call_mirror(*verify, env=env).code == 0
        read = storage.requests.matching("GET", "X-Amz-Signature", 200)
    assert len(read) > 5
    assert all("authorization" not in request.headers for request in read)


# -- lists that lag --------------------------------------------------------------------------------


class LaggingStorage(MemoryStorage):
    """Lists the tags of a repository as they were when it was asked `lag` times before."""

    lag = 2

    def __init__(self) -> None:
        super().__init__()
        self.earlier: dict[str, list[Sequence[str]]] = {}

    def tags(self, repository: str) -> Sequence[str]:
        seen = self.earlier.setdefault(repository, [[]] * self.lag)
        seen.append(super().tags(repository))
        return seen[-1 - self.lag]

    def held(self) -> dict[str, dict[str, Digest | None]]:
        """The tags that there really are; when a generation was reached, each registry notes."""
        return {
            path: {
                tag: self.resolve(path, tag)
                for tag in super(LaggingStorage, self).tags(path)
                if not tag.startswith("reached-")
            }
            for path in self.repositories()
        }


@pytest.fixture
def lagging() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(LaggingStorage()) as registry:
        yield registry


@pytest.mark.parametrize("lag", [1, 5])
def test_a_list_that_lags_costs_requests_and_never_a_tag(bundle: Path, lag: int) -> None:
    storage, other = LaggingStorage(), LaggingStorage()
    storage.lag = other.lag = lag
    with EmbeddedRegistry(storage) as one, EmbeddedRegistry(other) as two:
        root, replica = f"{one.address}/dkp/ee", f"{two.address}/dkp/ee"
        assert call_mirror("push", bundle, root, "--insecure").code == 0
        whole = storage.held()
        again = call_mirror("push", bundle, root, "--insecure", "--json")
        assert again.code == 0
        assert again.document["uploaded"]["bytes"] == 0
        assert storage.held() == whole
        done = call_mirror("verify", bundle, "--against", root, "--insecure")
        assert done.code == 0, done
        done = call_mirror("sync", "--from", root, "--to", replica, "--insecure")
        assert done.code == 0, done
        done = call_mirror(
            "sync", "--from", root, "--to", replica, "--insecure", "--audit", "--prune"
        )
        assert done.code == 0, done
        assert other.held() == whole
        done = call_mirror("prune", replica, "--keep", bundle, "--insecure")
        assert done.code == 0, done
        assert other.held() == whole


# -- what cannot be done there ---------------------------------------------------------------------


def test_a_damaged_object_is_named_and_replaced_once_it_is_gone(tmp_path: Path) -> None:
    store = MemoryStore("bundle")
    put_image(store, "security/trivy-db", "2", layers=(b"a layer" * 100,))
    folder = tmp_path / "bundle"
    pack_store(store, folder)
    [layer] = [d for d, size in store.inventory().blob_sizes().items() if size == 700]
    with (
        object_storage(tmp_path / "objects") as storage,
        RealRegistry(tmp_path / "leader") as leader,
        RealRegistry(tmp_path / "replica", extra={"storage": in_bucket(storage)}) as replica,
    ):
        one, other = (f"{registry.address}/dkp/ee" for registry in (leader, replica))
        sync = ("sync", "--from", one, "--to", other, "--insecure", "--deep")
        assert call_mirror("push", folder, one, "--insecure").code == 0
        assert call_mirror(*sync).code == 0
        [damaged] = (tmp_path / "objects/data").glob(f"*/**/{layer.encoded}/data")
        damaged.write_bytes(b"A layer" * 100)
        told = call_mirror(*sync)
        assert told.code == 4
        key = f"docker/registry/v2/blobs/sha256/{layer.encoded[:2]}/{layer.encoded}/data"
        assert f"delete the file {key} below the registry's data root (in object" in told.stdout
        assert "storage, the object of that name) and sync again" in told.stdout
        damaged.unlink()
        assert call_mirror(*sync).code == 0
        assert damaged.read_bytes() == b"a layer" * 100


def test_object_storage_is_no_storage_of_a_repair() -> None:
    place = "registry.example.com/dkp"
    told = call_mirror(
        *("sync", "--from", "leader.example.com/dkp", "--to", place, "--deep"),
        *("--storage", f"{place}=s3://images/registry"),
    )
    assert told.code == 2
    assert told.stderr == (
        "error: --storage s3://images/registry: a repair removes damaged files from a folder of "
        "this machine, and nothing from object storage; leave --storage out: the sync names the "
        "damaged object, delete it there and sync again\n"
    )


def test_a_registry_of_this_program_keeps_nothing_in_object_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = call_mirror("serve", "--storage", "s3://images/registry", "--json")
    assert told.code == 2
    assert json.loads(told.stdout)["error"]["message"] == (
        "--storage s3://images/registry: mirror serve keeps its images in a folder of this "
        "machine; name one, or run a registry that has a driver for object storage, such as CNCF "
        "distribution"
    )
    assert not list(tmp_path.iterdir())
