from __future__ import annotations

import io
import json
import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle.archive import (
    BLOCK,
    OCI_LAYOUT,
    TRAILER_SIZE,
    Archive,
    header_size,
    index_json,
    lay_out,
    tar_header,
)
from mirror.bundle.format import REF_NAME, SHORT_TAG, blob_path, inside, source_reference
from mirror.errors import InputError
from mirror.layout import archive_of
from mirror.oci import Digest
from mirror.sync import Inventory, MemoryStore
from tests.support.bundles import ORIGIN, archives_of, origins, pack_store
from tests.support.inventories import (
    inventories,
    items,
    put_image,
    sample_store,
    stores,
    with_only,
)
from tests.support.tools import require_tool

# -- the layout is a pure function -----------------------------------------------------------------


@given(inventories(), st.randoms(use_true_random=False))
def test_where_bytes_go_depends_on_the_content_alone(inventory: Inventory, random: Random) -> None:
    shuffled = items(inventory)
    random.shuffle(shuffled)
    again = with_only(inventory, shuffled)
    assert lay_out("a.tar", again, origins(again)) == lay_out(
        "a.tar", inventory, origins(inventory)
    )


@given(inventories())
def test_an_index_is_json_that_is_indented_by_two_spaces(inventory: Inventory) -> None:
    for path, content in inventory.repositories.items():
        text = index_json(content, f"{ORIGIN}/{path}").decode()
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False)


@given(inventories())
def test_entries_follow_each_other_without_gaps(inventory: Inventory) -> None:
    archive = lay_out("a.tar", inventory, origins(inventory))
    ends = [entry.data_offset + entry.size + entry.padding for entry in archive.entries]
    assert [entry.offset for entry in archive.entries] == [0, *ends][: len(ends)]
    assert archive.trailer_offset == (ends[-1] if ends else 0)
    assert archive.size == archive.trailer_offset + TRAILER_SIZE
    assert archive.size % BLOCK == 0
    assert all(entry.offset % BLOCK == 0 for entry in archive.entries)


@given(inventories())
def test_every_file_is_there_once_in_the_order_of_a_directory_walk(inventory: Inventory) -> None:
    archive = lay_out("a.tar", inventory, origins(inventory))
    paths = [entry.path for entry in archive.entries]
    assert all(
        earlier.split("/") < later.split("/") for earlier, later in pairwise(paths)
    )  # hence each once
    expected = set()
    for layout, content in inventory.repositories.items():
        expected |= {inside(layout, "index.json"), inside(layout, "oci-layout")}
        expected |= {blob_path(layout, digest) for digest in (*content.blobs, *content.manifests)}
    assert set(paths) == expected


# -- the format ------------------------------------------------------------------------------------


@given(
    st.text(st.sampled_from("abc-./0"), min_size=1, max_size=300).filter(
        lambda path: not path.startswith("/") and not path.endswith("/")
    ),
    st.integers(0, 2**40),
)
def test_headers_are_those_of_the_tarfile_module(path: str, size: int) -> None:
    header = tar_header(path, size)
    assert len(header) % BLOCK == 0
    assert len(header) == header_size(path)
    with tarfile.open(fileobj=io.BytesIO(header + bytes(TRAILER_SIZE))) as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size) == (path, size)
    assert (info.mode, info.uid, info.gid, info.mtime) == (0o777, 0, 0, 0)
    assert info.uname == info.gname == ""
    assert info.type == tarfile.REGTYPE


def test_a_long_name_takes_a_header_of_its_own() -> None:
    assert len(tar_header("a" * 100, 1)) == BLOCK
    assert len(tar_header("a" * 101, 1)) == 3 * BLOCK
    assert tar_header("a" * 101, 1).startswith(b"././@LongLink\0")


def test_an_index_has_what_others_read_in_it() -> None:
    inventory = sample_store().inventory()
    archive = lay_out("platform.tar", inventory, origins(inventory))
    files = {entry.path: entry.content for entry in archive.entries if entry.content is not None}
    assert files["oci-layout"] == OCI_LAYOUT == b'{\n    "imageLayoutVersion": "1.0.0"\n}'
    index = json.loads(files["index.json"] or b"")
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    held = inventory.repository("")
    named = {one["annotations"][SHORT_TAG]: one for one in index["manifests"]}
    assert named.keys() == held.tags.keys()
    references = [one["annotations"][REF_NAME] for one in index["manifests"]]
    assert references == sorted(references)
    for tag, descriptor in named.items():
        digest = held.tags[tag]
        assert descriptor["digest"] == str(digest)
        assert descriptor["size"] == held.manifests[digest].descriptor.size
        assert descriptor["mediaType"] == held.manifests[digest].descriptor.media_type
        expected = f"{ORIGIN}@{digest}" if tag == digest.encoded else f"{ORIGIN}:{tag}"
        assert descriptor["annotations"][REF_NAME] == expected
        # What others take for the tag: the text behind the last colon.
        assert expected.rpartition(":")[2] == tag
    database = json.loads(files["security/trivy-db/index.json"] or b"")
    (descriptor,) = database["manifests"]
    assert descriptor["artifactType"] == "application/vnd.example.config.v1+json"
    assert "artifactType" not in named["v1.0.0"]


@pytest.mark.parametrize(
    ("repository", "archive"),
    [
        ("", "platform.tar"),
        ("install", "platform.tar"),
        ("install-standalone", "platform.tar"),
        ("release-channel", "platform.tar"),
        ("installer", "installer.tar"),
        ("security/trivy-db", "security.tar"),
        ("modules/console", "module-console.tar"),
        ("modules/console/extra/agent", "module-console.tar"),
        ("packages/redis/version", "package-redis.tar"),
        ("deckhouse-cli/plugins/netcheck", "plugin-netcheck.tar"),
    ],
)
def test_each_repository_travels_in_its_archive(repository: str, archive: str) -> None:
    assert archive_of(repository) == archive


@pytest.mark.parametrize("repository", ["elsewhere", "security", "security/a/b", "modules"])
def test_a_repository_outside_of_the_format_has_no_archive(repository: str) -> None:
    with pytest.raises(InputError, match=f"'{repository}' has no place in a bundle"):
        archive_of(repository)


def test_references_name_images_as_their_source_did() -> None:
    digest = Digest.of(b"x")
    assert source_reference("host/a", "v1", digest) == "host/a:v1"
    assert source_reference("host/a", digest.encoded, digest) == f"host/a@{digest}"


# -- other readers ---------------------------------------------------------------------------------


def files_of(archive: Archive, store: MemoryStore) -> dict[str, bytes]:
    """What the archive must hold."""
    files: dict[str, bytes] = {}
    for entry in archive.entries:
        if entry.content is not None:
            files[entry.path] = entry.content
        elif entry.digest in archive.inventory.repository(entry.repository).manifests:
            files[entry.path] = store.manifest(entry.repository, entry.digest).raw
        else:
            chunks = store.blob(entry.repository, entry.digest, entry.size)
            files[entry.path] = b"".join(chunks)
    return files


@settings(max_examples=30)
@given(store=stores())
def test_the_tarfile_module_reads_what_was_packed(
    store: MemoryStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    pack_store(store, folder)
    for archive in archives_of(store.inventory()):
        path = folder / archive.name
        assert path.stat().st_size == archive.size
        with tarfile.open(path, "r:") as tar:
            infos = tar.getmembers()
            read = {info.name: file.read() for info in infos if (file := tar.extractfile(info))}
        assert read == files_of(archive, store)
        assert [info.name for info in infos] == [entry.path for entry in archive.entries]
        assert [info.offset for info in infos] == [entry.offset for entry in archive.entries]
        assert all(info.isreg() for info in infos)


def test_gnu_tar_lists_and_unpacks_what_was_packed(tmp_path: Path) -> None:
    gnu_tar = require_tool("tar")
    store = sample_store()
    put_image(store, "modules/console", "empty", layers=(b"", bytes(512), bytes(511)))
    pack_store(store, tmp_path / "bundle")
    archives = archives_of(store.inventory())
    assert any(len(entry.path) > 100 for archive in archives for entry in archive.entries)
    for archive in archives:
        packed = tmp_path / "bundle" / archive.name
        listed = subprocess.run([gnu_tar, "tvf", packed], capture_output=True, text=True)
        assert (listed.returncode, listed.stderr) == (0, "")
        lines = [line.split() for line in listed.stdout.splitlines()]
        assert [line[-1] for line in lines] == [entry.path for entry in archive.entries]
        assert [int(line[2]) for line in lines] == [entry.size for entry in archive.entries]
        assert {(line[0], line[1]) for line in lines} == {("-rwxrwxrwx", "0/0")}
        folder = tmp_path / "unpacked" / archive.name
        folder.mkdir(parents=True)
        done = subprocess.run([gnu_tar, "xf", packed, "-C", folder], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert found == files_of(archive, store)
