"""Parts, sums, signatures and what is inside a bundle, as the command line offers them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from mirror.commands.options import RESULT_FILE
from mirror.errors import InputError
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.program import call_mirror
from tests.support.release_source import Source
from tests.support.tools import require_tool


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key, made by openssl as an administrator would."""
    openssl = require_tool("openssl")
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "key.pem", folder / "key.pub"
    curve = ["-name", "prime256v1", "-genkey", "-noout"]
    subprocess.run([openssl, "ecparam", *curve, "-out", private], check=True)
    subprocess.run(
        [openssl, "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True
    )
    return private, public


@pytest.fixture(scope="module")
def parted(
    source: Source, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A signed bundle in parts of 1 MB, with GOST digests."""
    folder = tmp_path_factory.mktemp("parted") / "bundle"
    call_mirror(
        *("pull", folder, "--source", source.root, "--insecure", "-c", "1MB"),
        *("--gost-digest", "--sign-key", keys[0]),
    ).succeeded()
    return folder


def test_a_pull_cuts_archives_and_adds_sums_and_a_signature(parted: Path) -> None:
    names = {path.name for path in parted.iterdir()}
    assert "platform.tar.0000.chunk" in names
    assert "platform.tar.0000.chunk.gostsum" in names
    assert not list(parted.glob("*.tar"))
    assert {"SHA256SUMS", "inventory.json", "inventory.json.sig"} <= names
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=parted, check=False
    )
    assert check.returncode == 0


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("4 apples", "not a size for a part"),
        ("1000B", "not a size for a part"),
        ("0.0001", "the least is"),
    ],
)
def test_a_size_that_is_none_is_told_with_what_is_one(
    source: Source, tmp_path: Path, size: str, told: str
) -> None:
    run = call_mirror("pull", tmp_path, "--source", source.root, "--insecure", "-c", size)
    run.failed(2, told)


def test_the_signature_is_insisted_on(
    source: Source, parted: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, public = keys
    call_mirror("verify", parted, "--key", public).succeeded()
    target = f"{source.address}/targets/signed"
    call_mirror("push", parted, target, "--insecure", "--verify-key", public).succeeded()
    call_mirror("verify", parted, "--against", target, "--insecure", "--deep").succeeded()

    unsigned = tmp_path / "unsigned"
    call_mirror("pull", unsigned, "--source", source.root, "--insecure").succeeded()
    told = "is not signed"
    assert told in call_mirror("verify", unsigned, "--key", public).stdout
    nowhere = f"{source.address}/targets/unsigned"
    run = call_mirror("push", unsigned, nowhere, "--insecure", "--verify-key", public)
    run.failed(4, told, "--sign-key")
    assert source.registry.requests.count("PUT", "/v2/targets/unsigned") == 0


def test_a_key_that_is_none_is_told_before_anything_is_fetched(
    source: Source, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    source.registry.requests.clear()
    run = call_mirror(
        *("pull", tmp_path / "b", "--source", source.root, "--insecure", "--sign-key", keys[1])
    )
    run.failed(2, "key")
    assert not list(source.registry.requests)


def test_a_pull_lists_versions_when_asked_to(source: Source, tmp_path: Path) -> None:
    run = call_mirror(
        *("pull", tmp_path / "b", "--source", source.root, "--insecure", "--verbose-summary")
    ).succeeded()
    for name, module in source.tree.modules.items():
        (line,) = [one for one in run.stdout.splitlines() if f"  {name} " in one]
        assert set(module.channels.values()) <= set(line.replace(",", " ").split())


def test_what_is_inside_is_shown_as_text_as_json_and_as_a_page(
    source: Source, parted: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    run = call_mirror("inspect", parted, "--html", page).succeeded()
    for word in ("platform.tar", "security.tar", "Largest images", "Largest layers"):
        assert word in run.stdout
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert "platform.tar" in text
    assert run.stdout.endswith(f"The page is {page}; any browser opens it offline\n")
    for release in source.tree.platform.values():
        for component in release.components:
            assert component.replace("/", "/<wbr>") in text
    document = call_mirror("inspect", parted, "--json").succeeded().document
    assert document["sealed"] is True
    assert document["source"] == source.root
    verified = call_mirror("verify", parted, "--json").succeeded().document
    assert document["bytes"] == verified["bytes"]
    assert {one["name"] for one in document["archives"]} >= {"platform.tar", "security.tar"}


def test_the_page_about_a_damaged_bundle_says_what_is_missing(parted: Path, tmp_path: Path) -> None:
    bundle, page = tmp_path / "bundle", tmp_path / "report.html"
    shutil.copytree(parted, bundle)
    for part in bundle.glob("security.tar*"):
        part.unlink()
    run = call_mirror("inspect", bundle, "--html", page).succeeded()
    assert "archives are missing or damaged" in run.stderr
    text = page.read_text(encoding="utf-8")
    assert "<td>security.tar</td><td>the archive is missing</td><td>security/<wbr>trivy-db" in text


def test_a_verification_writes_the_page_with_all_that_it_found(
    parted: Path, tmp_path: Path
) -> None:
    bundle, page = tmp_path / "bundle", tmp_path / "report.html"
    shutil.copytree(parted, bundle)
    whole = call_mirror("verify", bundle, "--html", page).succeeded()
    assert whole.stdout.endswith(f"The page is {page}; any browser opens it offline\n")
    assert "Damage" not in page.read_text(encoding="utf-8")
    archive = max(bundle.glob("platform.tar.*.chunk"), key=lambda path: path.stat().st_size)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1  # in a layer, which no look at indexes finds
    archive.write_bytes(data)
    call_mirror("verify", bundle, "--html", page).failed(4)
    text = page.read_text(encoding="utf-8")
    assert "<h2>Damage: " in text
    assert "<td>platform.tar" in text
    repaired = call_mirror("repair", bundle, "--from", parted, "--html", page).succeeded()
    assert repaired.stdout.endswith(f"The page is {page}; any browser opens it offline\n")
    text = page.read_text(encoding="utf-8")
    assert "<h2>Damage: " not in text
    assert re.search(rf"<b>Result</b>: repaired: [^;]+ written; [^;]+ from {parted}\.</p>", text)


def test_the_page_of_a_repair_that_leaves_damage_has_the_sealed_inventory_and_counts(
    parted: Path, tmp_path: Path
) -> None:
    bundle, page = tmp_path / "bundle", tmp_path / "report.html"
    shutil.copytree(parted, bundle)
    call_mirror("inspect", bundle, "--html", page).succeeded()
    tiles = re.compile(r"<b>(?:Images|Unique)</b>.*?</div>|Inventory <code>.*?</small>")
    whole = tiles.findall(page.read_text(encoding="utf-8"))
    assert len(whole) == 3
    for part in bundle.glob("security.tar*"):
        part.unlink()
    call_mirror("repair", bundle, "--html", page).failed(4)
    text = page.read_text(encoding="utf-8")
    assert "<h2>Damage: " in text
    assert tiles.findall(text) == whole


def test_the_page_of_an_inspection_says_that_it_shows_what_could_be_read(
    parted: Path, tmp_path: Path
) -> None:
    bundle, page = tmp_path / "bundle", tmp_path / "report.html"
    shutil.copytree(parted, bundle)
    call_mirror("inspect", bundle, "--html", page).succeeded()
    assert "Not all of it" not in page.read_text(encoding="utf-8")
    for part in bundle.glob("security.tar*"):
        part.unlink()
    run = call_mirror("inspect", bundle, "--html", page).succeeded()
    said = "archives are missing or damaged; this is what could be read, and `mirror verify` tells"
    assert said in " ".join(run.stderr.split())
    text = page.read_text(encoding="utf-8")
    assert re.search(rf"<b>Not all of it</b>: [0-9]+ [^<]*{said}", text)
    assert "<h2>Damage: " in text


def test_a_page_says_what_a_registry_lacks_of_a_bundle(
    parted: Path, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    root, page = f"{embedded_registry.address}/dkp", tmp_path / "report.html"
    call_mirror("push", parted, root, "--insecure").succeeded()
    verify = ("verify", parted, "--against", root, "--insecure", "--html", page)
    call_mirror(*verify).succeeded()
    assert f"<b>Result</b>: Registry {root} holds the whole bundle" in page.read_text("utf-8")
    for method in ("HEAD", "GET"):
        embedded_registry.faults.add(Fault(Answer(404), method=method, path=".*/security/.*"))
    call_mirror(*verify).failed(4)
    text = page.read_text(encoding="utf-8")
    assert f"<b>Result</b>: Registry {root} does not hold the whole bundle: " in text
    assert "<h2>Damage: " in text


def test_a_page_says_what_differs_between_two_places(
    parted: Path, bundle: Path, tmp_path: Path
) -> None:
    page, other = tmp_path / "report.html", tmp_path / "other"
    run = call_mirror("diff", parted, parted, "--html", page).succeeded()
    assert run.stdout.endswith(f"The page is {page}; any browser opens it offline\n")
    text = page.read_text("utf-8")
    assert f"<title>{parted} and {parted} hold the same</title>" in text
    assert "<table" not in text.partition("<script")[0], "there is nothing to list"
    other.mkdir()
    shutil.copy(bundle / "platform.tar", other)
    call_mirror("diff", bundle, other, "--html", page).failed(3)
    text = page.read_text(encoding="utf-8")
    assert f"<title>{bundle} and {other} differ</title>" in text
    assert "<td>v1.1.0</td><td>modules/<wbr>console</td><td>only in A</td>" in text


def test_a_bundle_and_the_registry_that_has_it_have_the_number_that_every_command_tells(
    parted: Path, embedded_registry: EmbeddedRegistry
) -> None:
    root = f"{embedded_registry.address}/dkp"
    pushed = call_mirror("push", parted, root, "--insecure", "--json").succeeded().document
    for places in ((parted, root), (root, parted)):
        run = call_mirror("diff", *places, "--insecure", "--json").succeeded()
        numbers = {run.document[side]["inventory"] for side in "ab"}
        assert numbers == {pushed["inventory"]}, "the index that the push made is not told apart"
    # What else is there tells the registry apart, and the bundle keeps its number.
    manifests = f"http://{embedded_registry.address}/v2/dkp/install/manifests"
    manifest = httpx.get(f"{manifests}/v1.70.0").raise_for_status()
    kind = {"Content-Type": manifest.headers["Content-Type"]}
    httpx.put(f"{manifests}/mine", content=manifest.content, headers=kind).raise_for_status()
    other = call_mirror("diff", parted, root, "--insecure", "--json").failed(3).document
    assert other["a"]["inventory"] == pushed["inventory"] != other["b"]["inventory"]


def test_findings_are_told_though_the_file_for_them_cannot_be_written(
    parted: Path, tmp_path: Path
) -> None:
    bundle, above = tmp_path / "bundle", tmp_path / "reports"
    shutil.copytree(parted, bundle)
    for part in bundle.glob("security.tar*"):
        part.unlink()
    for place in (above / "page.html", tmp_path):
        run = call_mirror("verify", bundle, "--html", place)
        run.failed(2, f"{place} is not a file in a folder that exists; name another one")
    above.mkdir()
    long = above / ("n" * 250 + ".html")  # with our hidden name before it, longer than names may be
    for command in (("verify", bundle, "--html", long), ("repair", bundle, "--request", long)):
        run = call_mirror(*command).failed(4, f"cannot write {long}: File name too long")
        assert "The bundle is damaged or incomplete" in run.stdout
        assert str(long) not in run.stdout
        run = call_mirror(*command, "--json").failed(4, f"cannot write {long}")
        assert run.document["findings"]
    run = call_mirror("inspect", parted, "--html", long).failed(1, f"cannot write {long}")
    assert "Largest layers" in run.stdout


def test_a_pipe_or_device_is_not_replaced_by_a_result(parted: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    run = call_mirror("inspect", parted, "--html", pipe)
    run.failed(2, f"{pipe} is not a file in a folder that exists; name another one")
    assert pipe.is_fifo()
    with pytest.raises(InputError, match="/dev/new is not a file in a folder that exists"):
        RESULT_FILE.convert("/dev/new", None, None)


def test_inspecting_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    call_mirror("inspect", tmp_path).failed(2, "holds no bundle")


def test_a_delta_has_parts_sums_and_a_signature_as_any_bundle(
    parted: Path, source: Source, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    root = ("--source", source.root, "--insecure")
    base, delta, out = tmp_path / "base", tmp_path / "delta", tmp_path / "out"
    call_mirror(
        *("pull", base, *root, "--no-modules", "--gost-digest", "--sign-key", private)
    ).succeeded()
    call_mirror(
        *("pull", delta, *root, "--base", base, "-c", "1MB"),
        *("--gost-digest", "--sign-key", private),
    ).succeeded()
    assert (delta / "platform.tar.0000.chunk.gostsum").exists()
    call_mirror("verify", delta, "--key", public).succeeded()
    check = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=delta)
    assert check.returncode == 0
    target = f"{source.address}/targets/delta"
    call_mirror("push", base, target, "--insecure").succeeded()
    call_mirror("merge", base, delta, "--force").failed(
        2, f"{delta}, the last place named, is where the result goes, and has a delta to {base}; "
    )
    call_mirror("push", delta, target, "--insecure", "--verify-key", public).succeeded()
    # Merged and cut it is the complete bundle, but for the signatures, of which no two are equal.
    settings = ("-c", "1MB", "--gost-digest", "--sign-key", private)
    call_mirror("merge", base, delta, out, "--verify-key", public, *settings).succeeded()
    made, whole = (
        {
            path.name: path.read_bytes()
            for path in folder.iterdir()
            if path.name not in ("inventory.json.sig", "SHA256SUMS")
        }
        for folder in (out, parted)
    )
    assert made == whole
    call_mirror("verify", out, "--key", public).succeeded()
    (base / "inventory.json.sig").unlink()
    call_mirror("merge", base, delta, tmp_path / "new", "--verify-key", public).failed(
        4, f"bundle {base} is not signed"
    )


def test_a_compressed_bundle_goes_the_same_way_and_says_what_it_saved(
    source: Source, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    arguments = ("pull", bundle, "--source", source.root, "--insecure", "--compress", "zstd")
    run = call_mirror(*arguments, "--json").succeeded()
    told = run.document["compressed"]
    on_disk = {path.name: path.stat().st_size for path in bundle.glob("*.tar.zst")}
    assert {f"{name}.zst": size for name, size in told["archives"].items()} == on_disk
    assert told["bytes"] == sum(on_disk.values())
    assert told["saved"] == run.document["bytes"] - told["bytes"] > 0
    again = call_mirror(*arguments, "--force").succeeded()
    assert "compressed to" in again.stdout
    assert "which saves" in again.stdout
    call_mirror("verify", bundle).succeeded()
    call_mirror("inspect", bundle).succeeded()
    target = f"{source.address}/targets/compressed"
    call_mirror("push", bundle, target, "--insecure").succeeded()
    call_mirror("verify", bundle, "--against", target, "--insecure").succeeded()


def test_a_quick_verification_says_what_it_left_out(parted: Path) -> None:
    run = call_mirror("verify", "--quick", parted).succeeded()
    assert "The bytes of layers were not checked" in run.stdout
    assert call_mirror("verify", "--quick", parted, "--json").document["quick"] is True
    call_mirror("verify", "--quick", parted, "--against", "localhost:1/x").failed(2, "--quick is")
