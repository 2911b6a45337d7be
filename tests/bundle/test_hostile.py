"""Bundles made to harm who reads them: refused or harmless, and never with much memory."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from mirror.bundle.format import (
    LARGE,
    LARGE_FROM,
    ORDINARY,
    REF_NAME,
    SEAL,
    SHORT_TAG,
    SUMS,
)
from mirror.oci.manifest import MAX_MANIFEST_BYTES
from mirror.oci.manifest import OCI_INDEX as INDEX
from mirror.oci.manifest import OCI_MANIFEST as TYPE
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.bundles import pack_store
from tests.support.inventories import sample_store
from tests.support.measured import measured
from tests.support.patience import ends_within
from tests.support.program import call_mirror

MOST_MEMORY = 200_000_000
END = bytes(1024)


class Tar:
    """A layout at the archive's root, made quickly however large it is."""

    def __init__(self, path: Path) -> None:
        self._out = path.open("wb")
        self.descriptors: list[dict[str, object]] = []

    def member(self, name: str, data: bytes, size: int | None = None) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data) if size is None else size
        self._out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))

    def blob(self, data: bytes) -> str:
        encoded = hashlib.sha256(data).hexdigest()
        self.member(f"blobs/sha256/{encoded}", data)
        return f"sha256:{encoded}"

    def manifest(self, document: object, *, media_type: str = TYPE, tag: str = "") -> str:
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = self.blob(raw)
        tag = tag or f"v{len(self.descriptors)}"
        self.descriptors.append(described(media_type, digest, len(raw), tag))
        return digest

    def close(self, index: bytes | None = None) -> None:
        if index is None:
            index = json.dumps({"schemaVersion": 2, "manifests": self.descriptors}).encode()
        self.member("index.json", index)
        self.member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        self._out.write(END)
        self._out.close()


def described(media_type: str, digest: str, size: int, tag: str) -> dict[str, object]:
    named = {SHORT_TAG: tag, REF_NAME: f"registry.example.com/d:{tag}"}
    return {"mediaType": media_type, "digest": digest, "size": size, "annotations": named}


def image(layers: list[dict[str, object]], config: dict[str, object], **more: object) -> object:
    return {"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": layers, **more}


def descriptor(digest: str, size: int = 2, media_type: str = "a/b") -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def numbered(number: int) -> str:
    """A digest of something, whatever that is."""
    return f"sha256:{number:064x}"


def entries(prefix: str, first: int, count: int) -> bytes:
    """`count` entries of a byte each, whose names have a number, quickly."""
    info = tarfile.TarInfo(f"{prefix}/000000000/" + "x" * 60)
    info.size = 1
    one = bytearray(info.tobuf(tarfile.GNU_FORMAT) + b"1" + bytes(511))
    plain = sum(one[:148]) + 8 * 32 + sum(one[156:512]) - 9 * 48
    at, out = len(prefix) + 1, bytearray()
    for number in range(first, first + count):
        one[at : at + 9] = digits = b"%09d" % number
        one[148:156] = b"%06o\0 " % (plain + sum(digits))
        out += one
    return bytes(out)


def tiny_entries(folder: Path) -> None:
    """Twice as many entries of a byte each as an archive may have."""
    with (folder / "platform.tar").open("wb") as out:
        out.write(entries("modules", 0, 100_000))
        # Behind those that are read at all it does not matter that names repeat.
        block = entries("modules", 100_000, 100_000)
        out.write(block)
        out.write(END)


def many_archives_of_many_entries(folder: Path) -> None:
    """Nearly as many as an archive may have, in each of two."""
    for archive in range(2):
        data = entries(f"modules/m{archive}", 0, ORDINARY.members - 10)
        (folder / f"module-m{archive}.tar").write_bytes(data + END)


def compressed_entries(folder: Path) -> None:
    """3 · 10⁶ entries that take 5 MB of disk."""
    info = tarfile.TarInfo("modules/" + "x" * 80)
    piece = info.tobuf(tarfile.GNU_FORMAT) * 2048
    frame = zstandard.ZstdCompressor().compress(piece)
    count = 1500
    entries = struct.pack("<II", len(frame), len(piece)) * count
    table = struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries
    table += struct.pack("<IBI", count, 0, 0x8F92EAB1)
    (folder / "platform.tar.zst").write_bytes(frame * count + table)


def zstd_bomb(folder: Path) -> None:
    """A frame of 1 GiB, which the table knows, and one that it does not know of."""
    writer = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
    zeros = bytes(16 << 20)
    frame = b"".join([*(writer.compress(zeros) for _ in range(64)), writer.flush()])
    for name, claimed in (("platform", 1 << 30), ("security", 1 << 20)):
        entry = struct.pack("<II", len(frame), claimed)
        table = struct.pack("<II", 0x184D2A5E, len(entry) + 9) + entry
        table += struct.pack("<IBI", 1, 0, 0x8F92EAB1)
        (folder / f"{name}.tar.zst").write_bytes(frame + table)


def huge_table(folder: Path) -> None:
    """Two million frames of 4 MiB each: an archive of 8 TB, of which nothing is there."""
    count = 2_000_000
    frame = zstandard.ZstdCompressor().compress(bytes(4 << 20))
    entries = struct.pack("<II", 1, 4 << 20) * count
    table = struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries
    table += struct.pack("<IBI", count, 0, 0x8F92EAB1)
    (folder / "platform.tar.zst").write_bytes(frame[:1] * count + table)


def index_of_million(folder: Path) -> None:
    tar = Tar(folder / "platform.tar")
    one = json.dumps(described(TYPE, numbered(1), 2, "v1")).encode()
    tar.close(b'{"schemaVersion": 2, "manifests": [' + b",".join([one] * 10**6) + b"]}")


def index_of_nothings(folder: Path) -> None:
    """8 MB of text that become 200 MB of objects."""
    tar = Tar(folder / "platform.tar")
    tar.close(b'{"manifests":[' + b",".join([b"{}"] * (ORDINARY.index_bytes // 3 - 10)) + b"]}")


def nested_json(folder: Path) -> None:
    tar = Tar(folder / "platform.tar")
    deep = b"[" * 400_000
    tar.manifest(b'{"schemaVersion": 2, "x": ' + deep[:100_000])
    tar.manifest(b'{"schemaVersion": 2, "manifests": ' + deep[:100_000])
    tar.close(b'{"manifests": ' + deep)


def deep_indexes(folder: Path) -> None:
    """1,000 indexes, each below another."""
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    below = tar.manifest(image([], descriptor(config)))
    size, media_type = len(json.dumps(image([], descriptor(config)))), TYPE
    for _ in range(1000):
        document = {"schemaVersion": 2, "mediaType": INDEX}
        raw = json.dumps({**document, "manifests": [descriptor(below, size, media_type)]}).encode()
        tar.descriptors.clear()
        below, size, media_type = tar.manifest(raw, media_type=INDEX, tag="v1"), len(raw), INDEX
    tar.close()


def manifests_of_objects(folder: Path) -> None:
    """Manifests as large as they may be, full of fields that nobody knows."""
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    filler = b"{}," * ((MAX_MANIFEST_BYTES - 1000) // 3) + b"{}"
    for number in range(8):
        head = json.dumps(image([], descriptor(config), n=number)).encode()[:-1]
        tar.manifest(head + b', "x": [' + filler + b"]}")
    tar.close()


def manifests_of_text(folder: Path) -> None:
    """60 manifests of 4 MB of annotations each."""
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    for number in range(60):
        text = {"a": f"{number:02}" * (MAX_MANIFEST_BYTES // 2 - 1000)}
        tar.manifest(image([], descriptor(config), annotations=text))
    tar.close()


def manifests_of_layers(folder: Path, count: int = 9) -> None:
    """Manifests of 15,000 layers each, none of which is there."""
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    for number in range(count):
        layers = [
            descriptor(numbered(number * 15_000 + layer), media_type=f"a/{number}.{layer}")
            for layer in range(15_000)
        ]
        tar.manifest(image(layers, descriptor(config)))
    tar.close()


def more_manifests_of_layers(folder: Path) -> None:
    manifests_of_layers(folder, 20)


def long_media_types(folder: Path) -> None:
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    for number in range(60):
        media_type = f"a/{number}" + "x" * 3_900_000
        tar.manifest(image([descriptor(config, media_type=media_type)], descriptor(config)))
    tar.close()


def everybody_needs_everything(folder: Path) -> None:
    """500 tags on indexes that share 1,000 children: 5 · 10⁵ dependencies."""
    tar = Tar(folder / "platform.tar")
    config = tar.blob(b"{}")
    children = []
    for number in range(1000):
        raw = json.dumps(image([], descriptor(config), n=number)).encode()
        children.append(descriptor(tar.blob(raw), len(raw), TYPE))
    shared = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}).encode()
    below = descriptor(tar.blob(shared), len(shared), INDEX)
    for number in range(500):
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [below], "n": number}
        tar.manifest(document, media_type=INDEX)
    tar.close()


def untagged(folder: Path) -> None:
    """20 layouts whose indexes have 60,000 descriptors each, with a tag or without."""
    for turn in range(20):
        tar = Tar(folder / f"module-m{turn}.tar")
        descriptors = b",".join(
            b'{"digest":"%s"%s}'
            % (
                numbered(number).encode(),
                b',"annotations":{"%s":"t%d"}' % (SHORT_TAG.encode(), number)
                if number % 2
                else b"",
            )
            for number in range(60_000)
        )
        tar.member(f"modules/m{turn}/index.json", b'{"manifests":[' + descriptors + b"]}")
        tar.close(b'{"manifests":null}')


def gigantic_sizes(folder: Path) -> None:
    """An entry of 8 EB; a manifest and a layer that are said to have 8 EB."""
    tar = Tar(folder / "module-a.tar")
    config = tar.blob(b"{}")
    tar.manifest(image([descriptor(config, 1 << 62)], descriptor(config)))
    tar.close()
    tar = Tar(folder / "platform.tar")
    tar.member("blobs/sha256/" + "0" * 64, b"", size=(1 << 63) - 1)
    tar.close()


def huge_seal(folder: Path) -> None:
    """A table of contents of 30 MB that is none."""
    Tar(folder / "platform.tar").close()
    (folder / "inventory.json").write_bytes(b"[" + b",".join([b"{}"] * 10_000_000) + b"]")


BOMBS: dict[Callable[[Path], None], str] = {
    tiny_entries: f"it holds more than {ORDINARY.members} files",
    many_archives_of_many_entries: f"the bundle has more than {ORDINARY.files} files in all",
    compressed_entries: "is there twice",
    zstd_bomb: "unpack it with `zstd -d",
    huge_table: "frame 0, which cannot be decompressed",
    index_of_million: "is larger than any layout's",
    index_of_nothings: "more values than the index of any layout",
    nested_json: "not the index of a layout",
    deep_indexes: "",
    manifests_of_objects: "has more values than any manifest",
    manifests_of_text: "",
    manifests_of_layers: f"more than {ORDINARY.names} tags and references in all",
    more_manifests_of_layers: f"more than {ORDINARY.names} tags and references in all",
    long_media_types: "has a media type longer than any",
    everybody_needs_everything: "",
    untagged: "is missing",
    gigantic_sizes: "beyond the archive's end",
    huge_seal: "more values than any bundle's table of contents",
}
"""What makes a bundle → what is said of it; nothing, where it does no harm."""

HARMLESS = (deep_indexes, manifests_of_text, everybody_needs_everything)
SLOW = (
    deep_indexes,
    many_archives_of_many_entries,
    huge_table,
    manifests_of_text,
    more_manifests_of_layers,
    long_media_types,
    everybody_needs_everything,
    untagged,
)
"""Of each kind one that takes less time is tried too."""


@pytest.fixture(scope="module")
def target(_this_machine_only: None) -> Iterator[str]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield f"{registry.address}/dkp/ee"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=make.__name__, marks=[pytest.mark.soak] if make in SLOW else [])
        for make in BOMBS
    ],
)
def test_no_bundle_exhausts_the_memory_of_who_reads_it(
    make: Callable[[Path], None], tmp_path: Path, target: str
) -> None:
    make(tmp_path)
    told = BOMBS[make]
    (verified, quick, inspected, pushed), peak = measured(
        ("verify", tmp_path),
        ("verify", "--quick", tmp_path),
        ("inspect", tmp_path),
        ("push", tmp_path, target, "--insecure"),
    )
    print(f"{make.__name__}: {peak / 1e6:.0f} MB")
    assert peak < MOST_MEMORY
    for run in (verified, quick, inspected, pushed):
        assert "Traceback" not in run.text
    assert inspected.code in (0, 4)
    if make in HARMLESS:
        assert (verified.code, pushed.code) == (0, 0), verified
    else:
        assert (verified.code, pushed.code) == (4, 4), pushed
        assert told in verified.text, verified.text[:2000]
        assert told in pushed.text, pushed.text[:2000]


@pytest.mark.parametrize("name", [SEAL, SUMS, "platform.tar"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    pack_store(sample_store(), tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with ends_within(60.0):
        call_mirror("inspect", tmp_path)
        run = call_mirror("verify", tmp_path)
    assert run.code in (1, 4)
    assert name in run.stdout + run.stderr


def test_a_file_that_only_the_sums_name_is_not_taken_into_memory(tmp_path: Path) -> None:
    pack_store(sample_store(), tmp_path)
    with (tmp_path / "notes").open("wb") as file:
        file.truncate(300 << 20)
    digest = hashlib.sha256(bytes(1)).hexdigest()
    text = (tmp_path / SUMS).read_bytes().partition(b"\n")[2] + f"{digest}  notes\n".encode()
    (tmp_path / SUMS).write_bytes(text)
    (run,), peak = measured(("verify", tmp_path))
    run.failed(4)
    assert "notes: is damaged: SHA256SUMS has another digest" in run.stdout
    assert peak < MOST_MEMORY


@pytest.mark.soak
@pytest.mark.parametrize("text", ["{}", '"%024d":""'], ids=["nothings", "texts"])
def test_a_large_bundle_costs_who_reads_it_no_more_than_a_small_one(
    text: str, tmp_path: Path, target: str
) -> None:
    """From `LARGE_FROM` on, which a file of holes reaches too."""
    tar = Tar(tmp_path / "platform.tar")
    tar.member("hole", b"", size=LARGE_FROM)
    tar._out.seek(LARGE_FROM, os.SEEK_CUR)
    tar.close()
    count = LARGE.seal_values // 2 - 10
    if text == "{}":
        seal = "[" + ",".join([text] * count) + "]"
    else:
        seal = "{" + ",".join(text % number for number in range(count)) + "}"
    (tmp_path / "inventory.json").write_bytes(seal.encode())
    runs, peak = measured(("verify", "--quick", tmp_path), ("push", tmp_path, target, "--insecure"))
    print(f"{peak / 1e6:.0f} MB")
    assert peak < MOST_MEMORY
    assert [run.code for run in runs] == [4, 4]
