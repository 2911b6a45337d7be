"""A bundle as a registry: whatever its form, it is served as if it had been pushed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from mirror.bundle.archive import against
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.errors import DamagedBundleError, MissingBaseError
from mirror.oci import Digest
from mirror.oci.manifest import OCI_MANIFEST, descriptor_json
from mirror.operations.merge import merge
from mirror.release.discovery import discovery_images
from mirror.serve import create_app
from mirror.serve.app import BlobResponse
from mirror.serve.server import ServerThread, listen
from mirror.serve.store import BundleStorage
from mirror.sync import MemoryStore, union
from tests.support.bundles import pack, pack_store
from tests.support.inventories import put_image, put_index, sample_store
from tests.support.places import stored

ROOT = "deckhouse/ee"
LAYER = b"a layer that two repositories have" * 4000
SPLIT = bytes(range(256)) * 9000
"""2.2 MiB: lies in three parts."""


def content() -> MemoryStore:
    """Images, an index, what refers to an image, and a layer that several parts hold."""
    store = sample_store()
    child = put_image(store, "install", layers=(LAYER,))
    put_index(store, "install", "v9", children=[child])
    put_image(store, "modules/console", "v9", layers=(LAYER, SPLIT))
    return store


STORE = content()
WANTED = STORE.inventory()


def plain(folder: Path) -> list[Path]:
    pack_store(STORE, folder / "plain")
    return [folder / "plain"]


def in_parts(folder: Path) -> list[Path]:
    pack(STORE, WANTED, folder / "parts", part_size=10**6)
    assert len(list((folder / "parts").glob("module-console.tar.*"))) == 3
    return [folder / "parts"]


def compressed(folder: Path) -> list[Path]:
    with BundleReader(plain(folder)) as reader:
        merge([reader], folder / "zstd", packing=Packing(compress=True))
    return [folder / "zstd"]


def deduplicated(folder: Path) -> list[Path]:
    with BundleReader(plain(folder)) as reader:
        merge([reader], folder / "once", dedupe=True)
    return [folder / "once"]


def delta(folder: Path) -> list[Path]:
    """A delta in parts behind a delta behind a complete bundle."""
    base, between = MemoryStore(), MemoryStore()
    for store in (base, between):
        put_image(store, "install", "old", layers=(LAYER,))
    put_image(between, "security/trivy-db", "2", layers=(SPLIT,))
    pack_store(base, folder / "base")
    cover = against(base.inventory(), between.inventory())
    pack(between, between.inventory(), folder / "between", coverage=cover)
    cover = against(between.inventory(), WANTED)
    pack(STORE, WANTED, folder / "delta", coverage=cover, part_size=10**6)
    return [folder / "delta", folder / "between", folder / "base"]


def of_d8(folder: Path) -> list[Path]:
    """Without a seal, as other tools make them."""
    [made] = plain(folder)
    for beside in ("inventory.json", "SHA256SUMS"):
        (made / beside).unlink()
    return [made]


FORMS = [plain, in_parts, compressed, deduplicated, delta, of_d8]


@contextmanager
def opened(paths: list[Path], root: str = ROOT) -> Iterator[BundleStorage]:
    with ExitStack() as readers:
        bundle, *bases = (readers.enter_context(BundleReader([one])) for one in paths)
        index = discovery_images(bundle.inventory())
        yield BundleStorage(bundle, bases, root=root, index=index)


@contextmanager
def served(paths: list[Path]) -> Iterator[httpx.Client]:
    """A registry over a bundle, without anything in front of it."""
    with opened(paths) as storage:
        listener = listen("127.0.0.1", 0)
        server = ServerThread(create_app(storage, read_only=True), listener)
        server.start()
        try:
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=30) as client:
                yield client
        finally:
            server.stop()


def blobs(store: MemoryStore) -> Iterator[tuple[str, Digest, bytes]]:
    for path, held in store.inventory().repositories.items():
        for digest, size in held.blobs.items():
            yield path, digest, b"".join(store.blob(path, digest, size))


@pytest.mark.parametrize("form", FORMS)
def test_it_holds_what_a_registry_does_after_a_push(
    form: Callable[[Path], list[Path]], tmp_path: Path
) -> None:
    with opened(form(tmp_path)) as storage:
        assert stored(storage, ROOT) == union([WANTED, discovery_images(WANTED).inventory()])
        assert storage.tags("deckhouse/ee/modules") == [
            "a-module" + "-with-a-long-name" * 4,
            "console",
        ]
        for beside in ("deckhouse", "deckhouse/eel", "install", "deckhouse/ee/none"):
            assert not storage.has_repository(beside)
            assert storage.blob_size(beside, Digest.of(LAYER)) is None


@pytest.mark.parametrize("form", FORMS)
def test_every_byte_comes_out_whole_and_in_ranges(
    form: Callable[[Path], list[Path]], tmp_path: Path
) -> None:
    with served(form(tmp_path)) as client:
        for path, digest, data in blobs(STORE):
            url = f"/v2/{ROOT}/{path}/blobs/{digest}".replace("//blobs", "/blobs")
            assert client.get(url).content == data
            assert client.head(url).headers["content-length"] == str(len(data))
            for first, last in ((0, 0), (len(data) // 3, len(data) - 1), (999_000, 1_001_000)):
                if first < len(data):
                    answer = client.get(url, headers={"Range": f"bytes={first}-{last}"})
                    assert (answer.status_code, answer.content) == (206, data[first : last + 1])
            behind = client.get(url, headers={"Range": f"bytes={len(data)}-"})
            assert behind.status_code == 416


def test_the_disk_hands_the_bytes_of_plain_archives_to_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a blob was read into this process")

    monkeypatch.setattr(BlobResponse, "_read_ahead", read)
    for form in (plain, in_parts):
        with served(form(tmp_path / form.__name__)) as client:
            url = f"/v2/{ROOT}/modules/console/blobs/{Digest.of(SPLIT)}"
            for _ in range(3):  # the connection stays good
                assert client.get(url).content == SPLIT
            assert client.get(f"/v2/{ROOT}/modules/console/tags/list").status_code == 200


def test_it_writes_nothing_and_says_so(tmp_path: Path) -> None:
    [folder] = plain(tmp_path)
    for file in folder.iterdir():
        file.chmod(0o444)
    before = {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())}
    with served([folder]) as client:
        refused = [
            client.post(f"/v2/{ROOT}/blobs/uploads/"),
            client.put(f"/v2/{ROOT}/manifests/v1", content=b"{}"),
            client.delete(f"/v2/{ROOT}/manifests/{Digest.of(b'')}"),
            client.delete(f"/v2/{ROOT}/blobs/{Digest.of(LAYER)}"),
        ]
    for answer in refused:
        assert answer.status_code == 405
        assert answer.json()["errors"][0]["code"] == "UNSUPPORTED"
        assert answer.json()["errors"][0]["message"] == "this registry is read-only"
    assert {file: file.stat().st_mtime_ns for file in (folder, *folder.iterdir())} == before


def test_what_is_not_there_is_answered_in_the_words_of_the_specification(tmp_path: Path) -> None:
    nothing = Digest.of(b"nothing")
    with served(plain(tmp_path)) as client:
        for tail, code in (
            (f"blobs/{nothing}", "BLOB_UNKNOWN"),
            (f"manifests/{nothing}", "MANIFEST_UNKNOWN"),
            ("manifests/none", "MANIFEST_UNKNOWN"),
            ("none/tags/list", "NAME_UNKNOWN"),
        ):
            answer = client.get(f"/v2/{ROOT}/{tail}")
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, code)
        page = client.get("/v2/_catalog?n=2")
        assert page.json()["repositories"] == [ROOT, f"{ROOT}/install"]
        assert 'rel="next"' in page.headers["link"]


def test_what_refers_to_an_image_is_listed(tmp_path: Path) -> None:
    store = MemoryStore()
    subject = store.manifest("install", put_image(store, "install", "v1")).descriptor
    signature = {**json.loads(store.manifest("install", subject.digest).raw)}
    signature |= {"artifactType": "application/x-signature", "subject": descriptor_json(subject)}
    store.add_manifest("install", json.dumps(signature).encode(), OCI_MANIFEST, tags=["signed"])
    pack_store(store, tmp_path / "bundle")
    with served([tmp_path / "bundle"]) as client:
        found = client.get(f"/v2/{ROOT}/install/referrers/{subject.digest}").json()["manifests"]
        assert [one["digest"] for one in found] == [
            str(store.inventory().repository("install").tags["signed"])
        ]


def test_a_delta_without_its_base_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    [last, between, _] = delta(tmp_path)
    for paths in ([last], [last, between]):
        refusal = r"is a delta, made against .* with --base"
        with pytest.raises(MissingBaseError, match=refusal), opened(paths):
            pass


def test_a_damaged_bundle_is_refused_and_damage_that_comes_later_is_never_a_manifest(
    tmp_path: Path,
) -> None:
    [folder] = plain(tmp_path)
    whole = (folder / "platform.tar").read_bytes()
    digest = WANTED.repository("").tags["v1.0.0"]
    with served([folder]) as client:
        raw = STORE.manifest("", digest).raw
        (folder / "platform.tar").write_bytes(whole.replace(raw, b"x" + raw[1:]))
        assert client.get(f"/v2/{ROOT}/manifests/v1.0.0").status_code == 500
    with pytest.raises(DamagedBundleError, match="is damaged or incomplete"), opened([folder]):
        pass


def test_an_unpacked_bundle_is_served_too(tmp_path: Path) -> None:
    [folder] = plain(tmp_path)
    (tmp_path / "tree").mkdir()
    for archive in folder.glob("*.tar"):
        shutil.unpack_archive(archive, tmp_path / "tree", filter="data")
    with opened([tmp_path / "tree"]) as storage:
        assert stored(storage, ROOT) == union([WANTED, discovery_images(WANTED).inventory()])
