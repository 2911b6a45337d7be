"""Bundles with one copy of each blob: smaller, and as good as any other for this program."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.journey.test_delta import archives, files, pull
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.wire import sealed_repositories


@dataclass(frozen=True)
class Pair:
    """The same selection, once as usual and once deduplicated."""

    source: Source
    plain: Path
    once: Path
    run: dict[str, Any]


@pytest.fixture(scope="module")
def pair(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(TINY, registry)
        pull(folder / "plain", source.root)
        run = pull(folder / "once", source.root, "--dedupe").document
        yield Pair(source, folder / "plain", folder / "once", run)


def members(bundle: Path) -> list[tuple[str, int]]:
    """(digest, size) of every blob and manifest of every archive."""
    found = []
    for path in sorted(bundle.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            found += [
                (f"sha256:{one.name.rpartition('/')[2]}", one.size)
                for one in tar.getmembers()
                if "blobs/sha256/" in one.name
            ]
    return found


def test_each_blob_is_there_once_and_none_is_lacking(pair: Pair) -> None:
    blobs = {d: n for one in sealed_repositories(pair.plain).values() for d, n in one.blobs.items()}
    copies = Counter(digest for digest, _ in members(pair.once) if digest in blobs)
    assert copies == dict.fromkeys(blobs, 1)
    usual = Counter(digest for digest, _ in members(pair.plain) if digest in blobs)
    assert set(usual) == set(blobs)
    assert max(usual.values()) > 1
    saved = sum((count - 1) * blobs[digest] for digest, count in usual.items())
    assert pair.run["dedupe"] == {"saved": saved}
    sizes = [sum(map(len, archives(bundle).values())) for bundle in (pair.plain, pair.once)]
    assert sizes[0] - sizes[1] > saved > 0
    manifests = {digest for digest, _ in members(pair.plain)} - set(blobs)
    assert manifests == {digest for digest, _ in members(pair.once)} - set(blobs)


def test_its_seal_says_so_and_is_otherwise_that_of_the_usual_bundle(pair: Pair) -> None:
    seals = [json.loads((one / "inventory.json").read_bytes()) for one in (pair.plain, pair.once)]
    assert (seals[1].pop("dedupe"), seals[1].pop("schemaVersion")) == (True, 2)
    assert seals[0].pop("schemaVersion") == 1
    for seal in seals:
        del seal["digest"]
        for archive in seal["archives"].values():
            del archive["size"]
    assert seals[0] == seals[1]


def test_it_is_reproducible(pair: Pair, tmp_path: Path) -> None:
    pull(tmp_path / "again", pair.source.root, "--dedupe", "--jobs", "1")
    assert files(tmp_path / "again") == files(pair.once)


def test_it_is_verified_inspected_and_told_from_others(pair: Pair, tmp_path: Path) -> None:
    verified = call_mirror("verify", pair.once, "--json").succeeded().document
    assert (verified["ok"], verified["dedupe"]) == (True, pair.run["dedupe"])
    usual = call_mirror("verify", pair.plain, "--json").succeeded().document
    for key in ("repositories", "tags", "manifests", "blobs"):
        assert verified[key] == usual[key]
    for command in ("verify", "inspect"):
        assert "only mirror reads it" in call_mirror(command, pair.once).succeeded().stdout
        assert "only mirror" not in call_mirror(command, pair.plain).succeeded().stdout
    inspected = call_mirror("inspect", pair.once, "--json").succeeded().document
    assert inspected["dedupe"] == pair.run["dedupe"]
    page = tmp_path / "report.html"
    call_mirror("inspect", pair.once, "--html", page).succeeded()
    assert "only mirror reads it" in page.read_text(encoding="utf-8")


def test_it_is_pushed_as_any_other(pair: Pair, embedded_registry: EmbeddedRegistry) -> None:
    root = f"{embedded_registry.address}/dkp/ee"
    run = call_mirror("push", pair.once, root, "--insecure", "--json").succeeded()
    assert "delta" not in run.document
    for bundle in (pair.once, pair.plain):
        against = ("--against", root, "--deep", "--insecure")
        call_mirror("verify", bundle, *against).succeeded()


def test_a_flipped_byte_of_the_only_copy_is_found(pair: Pair, tmp_path: Path) -> None:
    for name, content in files(pair.once).items():
        (tmp_path / name).write_bytes(content)
    archive = tmp_path / "platform.tar"
    with tarfile.open(archive, "r:") as tar:
        one = max(tar.getmembers(), key=lambda member: member.size)
    data = bytearray(archive.read_bytes())
    data[one.offset_data + 5] ^= 1
    archive.write_bytes(data)
    call_mirror("verify", tmp_path).failed(4)
    archive.unlink()
    assert "the archive is missing" in call_mirror("verify", tmp_path).stdout


def test_an_archive_alone_is_no_bundle(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "release.tar").write_bytes((pair.once / "package-versions.tar").read_bytes())
    assert call_mirror("verify", tmp_path).code == 4


def test_a_merge_makes_a_usual_bundle_of_it_and_the_reverse(pair: Pair, tmp_path: Path) -> None:
    call_mirror("merge", pair.once, tmp_path / "plain").succeeded()
    assert files(tmp_path / "plain") == files(pair.plain)
    call_mirror("merge", pair.plain, tmp_path / "once", "--dedupe").succeeded()
    assert files(tmp_path / "once") == files(pair.once)


def test_a_deduplicated_delta_is_both(pair: Pair, tmp_path: Path) -> None:
    narrow = ("--no-security-db",)  # whose four databases have one config
    pull(tmp_path / "base", pair.source.root, *narrow)
    run = pull(tmp_path / "delta", pair.source.root, "--base", tmp_path / "base", "--dedupe")
    assert run.document["delta"]["saved"] > 0
    assert run.document["dedupe"]["saved"] > 0
    verified = call_mirror("verify", tmp_path / "delta", "--json").succeeded().document
    assert [verified[key] for key in ("delta", "dedupe")] == [
        run.document[key] for key in ("delta", "dedupe")
    ]
    call_mirror("merge", tmp_path / "base", tmp_path / "delta", tmp_path / "all").succeeded()
    assert files(tmp_path / "all") == files(pair.plain)
    call_mirror(
        "merge", tmp_path / "base", tmp_path / "delta", tmp_path / "once", "--dedupe"
    ).succeeded()
    assert files(tmp_path / "once") == files(pair.once)
