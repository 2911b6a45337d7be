"""Deltas that are compressed, deduplicated and in parts at once, and what is left of them alone."""

from __future__ import annotations

import json
import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.journey.test_delta import deeply, files, pull, push, root_of
from tests.support.program import call_mirror
from tests.support.release_source import serve
from tests.support.releases import SPECS
from tests.support.tools import require_tool

EVERYTHING = ("--compress", "zstd", "--dedupe", "-c", "1MB")


@dataclass(frozen=True)
class Made:
    """Two releases after one another: the first as usual, and the second as usual, and as a delta
    to the first that has all powers at once."""

    first: Path
    second: Path
    delta: Path
    run: dict[str, Any]


@pytest.fixture(scope="module")
def made(_this_machine_only: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    first, second, delta = (folder / name for name in ("first", "second", "delta"))
    with EmbeddedRegistry(MemoryStorage()) as registry:
        pull(first, serve(SPECS[0], registry).root)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(SPECS[1], registry)
        pull(second, source.root)
        run = pull(delta, source.root, "--base", first, *EVERYTHING).document
    return Made(first, second, delta, run)


@pytest.mark.parametrize("how", [(), ("--quick",)])
def test_it_is_verified(made: Made, how: tuple[str, ...]) -> None:
    assert (made.delta / "platform.tar.zst.0000.chunk").exists()
    found = call_mirror("verify", made.delta, "--json", *how).succeeded().document
    assert (found["ok"], found["sealed"]) == (True, True)
    assert (found["delta"], found["dedupe"]) == (made.run["delta"], made.run["dedupe"])


def test_it_is_inspected_with_what_each_power_saves(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = call_mirror("inspect", made.delta, "--json", "--html", page).succeeded().document
    for power in ("delta", "dedupe", "compressed"):
        assert found[power] == made.run[power]
    parts = sum(path.stat().st_size for path in made.delta.glob("*.chunk"))
    assert found["compressed"]["bytes"] == parts == found["bytes"] - found["compressed"]["saved"]
    shown = call_mirror("inspect", made.delta).succeeded().stdout
    for title in ("Delta", "Base", "Deduplicated", "Compressed"):
        assert f"\n  {title} " in shown
        assert f"<b>{title}</b>" in page.read_text()
    data = re.search(r'id="data">(.*?)</script>', page.read_text())
    assert data is not None
    assert_fits(json.loads(data[1]))


def assert_fits(node: dict[str, Any]) -> None:
    """A tile of the map of sizes has room for those in it, also where they lie in the base."""
    children = node.get("children", [])
    assert sum(child["size"] for child in children) <= node["size"], node["name"]
    for child in children:
        assert_fits(child)


def test_an_ordinary_bundle_says_nothing_of_compression(made: Made) -> None:
    assert "compressed" not in call_mirror("inspect", made.second, "--json").document
    assert "Compressed" not in call_mirror("inspect", made.second).stdout


def test_it_goes_onto_its_base_and_onto_nothing_else(made: Made, target: EmbeddedRegistry) -> None:
    push(made.delta, target).failed(1, "leaves to its base", "nothing was written")
    push(made.first, target).succeeded()
    assert push(made.delta, target).succeeded().document["uploaded"]["manifests"] > 0
    deeply(made.delta, target)
    deeply(made.second, target)


def test_it_merges_into_the_complete_pull_whatever_the_outcome_is_written_as(
    made: Made, tmp_path: Path
) -> None:
    call_mirror("merge", made.first, made.delta, tmp_path / "plain").succeeded()
    assert files(tmp_path / "plain") == files(made.second)
    packed, again = tmp_path / "packed", tmp_path / "again"
    run = call_mirror(
        "merge", made.first, made.delta, packed, "--compress", "zstd", "--json"
    ).succeeded()
    assert run.document["compressed"]["bytes"] == sum(
        path.stat().st_size for path in packed.glob("*.tar.zst")
    )
    call_mirror("verify", packed).succeeded()
    assert (packed / "inventory.json").read_bytes() == (made.second / "inventory.json").read_bytes()
    call_mirror("merge", packed, again).succeeded()
    assert files(again) == files(made.second)


def test_a_flipped_byte_anywhere_is_found(made: Made, tmp_path: Path) -> None:
    dice = random.Random(4)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in files(made.delta).items():
        (copy / name).write_bytes(data)
    for path in sorted(copy.iterdir()):
        damaged = bytearray(path.read_bytes())
        at = dice.randrange(len(damaged))
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        run = call_mirror("verify", copy)
        assert run.code == 4, (path.name, at, run)
        damaged[at] = (made.delta / path.name).read_bytes()[at]
        path.write_bytes(damaged)
    call_mirror("verify", copy).succeeded()


def test_a_compressed_archive_is_pushed_alone(
    made: Made, target: EmbeddedRegistry, tmp_path: Path
) -> None:
    call_mirror("merge", made.second, tmp_path / "packed", "--compress", "zstd").succeeded()
    (archive,) = (tmp_path / "packed").glob("module-*.tar.zst")
    to = (root_of(target), "--insecure", "--json")
    pushed = call_mirror("push", "--file", archive, *to).succeeded().document
    assert pushed["uploaded"]["tags"] > 0


def test_an_archive_of_a_delta_is_sent_back_to_its_folder(
    made: Made, target: EmbeddedRegistry, tmp_path: Path
) -> None:
    part = made.delta / "platform.tar.zst.0000.chunk"
    to = (root_of(target), "--insecure")
    call_mirror("push", "--file", part, *to).failed(
        2, "platform.tar is an archive of a delta", f"name the folder {made.delta}"
    )
    alone = tmp_path / "platform.tar.zst"
    packed = sorted(made.delta.glob("platform.tar.zst.*"))
    alone.write_bytes(b"".join(path.read_bytes() for path in packed))
    hint = (
        "archives of a delta or a deduplicated bundle are complete only beside their inventory.json"
    )
    call_mirror("push", "--file", alone, *to).failed(4, hint)
    verified = call_mirror("verify", tmp_path, "--json").failed(4)
    assert verified.document["notices"] == [hint]
    assert hint in call_mirror("verify", tmp_path).failed(4).stderr


def test_an_archive_of_a_deduplicated_bundle_is_too(
    made: Made, target: EmbeddedRegistry, tmp_path: Path
) -> None:
    call_mirror("merge", made.second, tmp_path / "once", "--dedupe").succeeded()
    seal = json.loads((tmp_path / "once" / "inventory.json").read_bytes())
    archive = tmp_path / "once" / max(seal["archives"])
    call_mirror("push", "--file", archive, root_of(target), "--insecure").failed(
        2, "is an archive of a deduplicated bundle"
    )


def test_unpacked_beside_its_seal_a_bundle_says_what_to_do(made: Made, tmp_path: Path) -> None:
    zstd, tar = require_tool("zstd"), require_tool("tar")
    for first in made.delta.glob("*.0000.chunk"):
        parts = sorted(made.delta.glob(first.name.replace("0000", "*")))
        data = b"".join(path.read_bytes() for path in parts)
        data = subprocess.run([zstd, "-dc"], input=data, capture_output=True, check=True).stdout
        subprocess.run([tar, "x", "-C", str(tmp_path)], input=data, check=True)
    assert call_mirror("verify", tmp_path).code == 4  # a delta, and nothing says so
    (tmp_path / "inventory.json").write_bytes((made.delta / "inventory.json").read_bytes())
    call_mirror("verify", tmp_path).failed(2, "instead of its archives", "put the archives back")
