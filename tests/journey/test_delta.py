"""Deltas between two neighbouring releases: what they hold, need, and become again when merged."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from examples.release_tree import TreeSpec, spread
from mirror.serve import MemoryStorage
from mirror.testing import Answer, Delay, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry, MakeRealRegistry
from tests.support.processes import ServerProcess
from tests.support.program import Finished, RunningMirror, call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.wire import sealed_repositories

WRITES = ("POST", "PUT", "PATCH", "DELETE")
VERSIONS = ("v1.69.1", "v1.70.0", "v1.70.1", "v1.71.0")


def released(count: int) -> TreeSpec:
    """The tree as it was when the first `count` versions of the platform were out."""
    versions = VERSIONS[:count]
    return replace(TINY, versions=versions, channels=spread(versions))


@dataclass(frozen=True)
class History:
    """Pulls of one source at three moments: complete, and as deltas each to the one before."""

    source: Source
    full: tuple[Path, Path, Path]
    delta: tuple[Path, Path]
    runs: tuple[Finished, Finished]


def pull(folder: Path, root: str, *flags: str | Path) -> Finished:
    run = call_mirror("pull", folder, "--source", root, "--insecure", "--json", *flags)
    return run.succeeded()


@pytest.fixture(scope="module")
def history(
    _this_machine_only: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[History]:
    folder = tmp_path_factory.mktemp("history")
    full = (folder / "full-0", folder / "full-1", folder / "full-2")
    delta = (folder / "delta-1", folder / "delta-2")
    runs = []
    with EmbeddedRegistry(MemoryStorage()) as registry:
        for moment, place in enumerate(full):
            source = serve(released(2 + moment), registry)
            pull(place, source.root)
            if moment:
                base = full[moment - 1]
                runs.append(pull(delta[moment - 1], source.root, "--base", base))
        yield History(source, full, delta, (runs[0], runs[1]))


@pytest.fixture
def target(make_embedded_registry: MakeEmbeddedRegistry) -> EmbeddedRegistry:
    """An empty registry to push to."""
    return make_embedded_registry()


def root_of(target: EmbeddedRegistry | ServerProcess) -> str:
    return f"{target.address}/dkp/ee"


def push(bundle: Path, target: EmbeddedRegistry | ServerProcess) -> Finished:
    return call_mirror("push", bundle, root_of(target), "--insecure", "--json")


def deeply(bundle: Path, target: EmbeddedRegistry | ServerProcess) -> Finished:
    against = ("--against", root_of(target), "--deep", "--insecure", "--json")
    return call_mirror("verify", bundle, *against).succeeded()


def blobs_in(bundle: Path) -> dict[str, dict[str, set[str]]]:
    """Archive → layout → digests of the files in it, as GNU tar would find them."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in sorted(bundle.glob("*.tar")):
        layouts = found.setdefault(path.name, {})
        with tarfile.open(path, "r:") as tar:
            for name in tar.getnames():
                layout, blobs, digest = f"/{name}".rpartition("/blobs/sha256/")
                if blobs:
                    layouts.setdefault(layout.strip("/"), set()).add(f"sha256:{digest}")
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Name → bytes of all files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def archives(folder: Path) -> dict[str, bytes]:
    """The same of the archives alone."""
    return {name: data for name, data in files(folder).items() if name.endswith(".tar")}


def seal_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "inventory.json").read_bytes())
    return document


# -- what a delta holds ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1])
def test_a_delta_holds_exactly_what_is_new(history: History, step: int) -> None:
    before, after = history.full[step], history.full[step + 1]
    old, whole = sealed_repositories(before), blobs_in(after)
    held = {digest for one in old.values() for digest in one.blobs}
    manifests = set(seal_of(after)["manifests"])
    expected = {
        archive: {
            layout: {
                digest
                for digest in digests
                if digest not in (old[layout].manifests if layout in old else ())
                and (digest in manifests or digest not in held)
            }
            for layout, digests in layouts.items()
        }
        for archive, layouts in whole.items()
    }
    found = blobs_in(history.delta[step])
    for archive, layouts in expected.items():
        for layout, digests in layouts.items():
            assert found[archive].get(layout, set()) == digests, (archive, layout)
    assert found.keys() == whole.keys()
    assert any(digests for layouts in expected.values() for digests in layouts.values())
    # The other module and the package have not changed: nothing of them is carried.
    assert found["module-console.tar"] == found["package-redis.tar"] == {}


def test_a_delta_fetches_what_it_holds_and_no_more(history: History) -> None:
    run, bundle = history.runs[0].document, history.delta[0]
    carried = {d for layouts in blobs_in(bundle).values() for one in layouts.values() for d in one}
    sizes = {d: n for one in sealed_repositories(bundle).values() for d, n in one.blobs.items()}
    blobs = carried & sizes.keys()
    assert run["fetched"] == sum(sizes[digest] for digest in blobs)
    assert run["delta"]["saved"] == sum(sizes.values()) - run["fetched"] > 0
    assert run["delta"]["blobs"] == len(sizes.keys() - blobs)
    assert run["delta"]["base"] == seal_of(history.full[0])["inventory"]
    assert run["inventory"] == seal_of(history.full[1])["inventory"]
    assert run["bytes"] < sum(map(len, archives(history.full[1]).values())) / 2


def test_the_seal_says_what_base_it_needs_and_what_of_it(history: History) -> None:
    seal = seal_of(history.delta[0])
    assert seal["schemaVersion"] == 2
    assert seal["base"]["digest"] == seal_of(history.full[0])["inventory"]
    assert seal["inventory"] == seal_of(history.full[1])["inventory"]
    old = sealed_repositories(history.full[0])
    for path, content in seal["base"]["repositories"].items():
        assert content["tags"] == {}
        assert set(content["manifests"]) <= old[path].manifests
        assert content["blobs"].items() <= old[path].blobs.items()
    assert seal_of(history.full[1])["schemaVersion"] == 1


def test_the_same_delta_is_made_again_byte_for_byte(history: History, tmp_path: Path) -> None:
    again = tmp_path / "again"
    pull(again, history.source.root, "--base", history.full[1], "--jobs", "1")
    assert files(again) == files(history.delta[1])


def test_an_interrupted_delta_is_completed_as_if_nothing_had_happened(
    history: History, tmp_path: Path
) -> None:
    folder, registry = tmp_path / "delta", history.source.registry
    registry.faults.add(Fault(Delay(0.1), "GET", "/blobs/", times=None))
    registry.requests.clear()
    command = ("pull", folder, "--source", history.source.root, "--insecure")
    try:
        with RunningMirror(*command, "--base", history.full[1], "--jobs", "2") as running:
            running.wait_until(lambda: any(folder.glob("*.partial")))
            begun = registry.requests.count("GET", "/blobs/")
            running.wait_until(lambda: registry.requests.count("GET", "/blobs/") >= begun + 4)
    finally:
        registry.faults.clear()
    assert {path.suffix for path in folder.iterdir()} == {".partial"}
    pull(folder, history.source.root, "--base", history.full[1])
    assert files(folder) == files(history.delta[1])


def test_a_bundle_a_seal_a_list_and_a_registry_are_equal_bases(
    history: History, target: EmbeddedRegistry, tmp_path: Path
) -> None:
    push(history.full[1], target).succeeded()
    held = tmp_path / "held.json"
    call_mirror("inventory", root_of(target), "-o", held, "--insecure").succeeded()
    bases: dict[str, str | Path] = {
        "seal": history.full[1] / "inventory.json",
        "list": held,
        "registry": root_of(target),
    }
    for name, base in bases.items():
        pull(tmp_path / name, history.source.root, "--base", base)
        assert archives(tmp_path / name) == archives(history.delta[1]), name
    # A registry has the index of modules besides, so its inventory is another one.
    assert seal_of(tmp_path / "list") == seal_of(tmp_path / "registry")
    assert (
        seal_of(tmp_path / "list")["base"]["repositories"]
        == (seal_of(history.delta[1])["base"]["repositories"])
    )


def test_a_delta_of_the_same_selection_carries_no_content(history: History, tmp_path: Path) -> None:
    run = pull(tmp_path / "none", history.source.root, "--base", history.full[2])
    assert run.document["fetched"] == 0
    assert all(layouts == {} for layouts in blobs_in(tmp_path / "none").values())


def test_against_a_base_that_shares_nothing_the_bundle_is_complete(
    history: History, tmp_path: Path
) -> None:
    other = {"schemaVersion": 1, "manifests": {}, "repositories": {}}
    base = tmp_path / "other.json"
    base.write_text(json.dumps(other))
    source = ("--source", history.source.root, "--insecure")
    run = call_mirror("pull", tmp_path / "bundle", *source, "--base", base).succeeded()
    assert "the base holds none of the selected content" in run.stderr
    assert files(tmp_path / "bundle") == files(history.full[2])


def test_a_dry_run_tells_what_the_delta_would_be(history: History, tmp_path: Path) -> None:
    planned = pull(
        tmp_path / "x", history.source.root, "--base", history.full[1], "--dry-run"
    ).document
    made = history.runs[1].document
    for key in ("archives", "bytes", "delta", "inventory"):
        assert planned[key] == made[key]
    assert planned["fetch"] == made["fetched"]


# -- verify, inspect -------------------------------------------------------------------------------


def test_verify_and_inspect_know_a_delta_from_a_complete_bundle(history: History) -> None:
    bundle, base = history.delta[0], seal_of(history.full[0])["inventory"]
    verified = call_mirror("verify", bundle, "--json").succeeded().document
    assert (verified["ok"], verified["findings"]) == (True, [])
    assert verified["delta"] == history.runs[0].document["delta"]
    told = call_mirror("verify", bundle, "--wide").succeeded().stdout
    assert "The delta is whole (sealed" in told
    assert base in told
    assert base in call_mirror("inspect", bundle, "--wide").succeeded().stdout
    shown = call_mirror("inspect", bundle, "--json").succeeded().document
    assert shown["delta"] == verified["delta"]
    assert "delta" not in call_mirror("verify", history.full[0], "--json").document
    assert "The bundle is whole" in call_mirror("verify", history.full[0]).stdout
    pulled = call_mirror("inspect", history.full[0], "--json").succeeded().document
    assert "delta" not in pulled


def test_a_report_on_a_delta_says_so(history: History, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    call_mirror("inspect", history.delta[0], "--html", page).succeeded()
    text = page.read_text(encoding="utf-8")
    assert seal_of(history.full[0])["inventory"] in text
    assert "to its base" in text


def test_damage_to_a_delta_is_found(history: History, tmp_path: Path) -> None:
    bundle = tmp_path / "delta"
    bundle.mkdir()
    for name, content in files(history.delta[0]).items():
        (bundle / name).write_bytes(content)
    archive = bundle / "platform.tar"
    data = bytearray(archive.read_bytes())
    for offset in range(0, len(data), len(data) // 25):
        data[offset] ^= 1
        archive.write_bytes(data)
        call_mirror("verify", bundle, "--json").failed(4)
        data[offset] ^= 1
    archive.write_bytes(data)
    call_mirror("verify", bundle).succeeded()
    (bundle / "module-console.tar").unlink()  # though it carries nothing but its index
    call_mirror("verify", bundle).failed(4)


def test_without_its_seal_a_delta_is_an_incomplete_bundle(history: History, tmp_path: Path) -> None:
    for name, data in archives(history.delta[0]).items():
        (tmp_path / name).write_bytes(data)
    assert call_mirror("verify", tmp_path).code == 4


# -- push ------------------------------------------------------------------------------------------


def test_a_delta_goes_onto_its_base_and_the_target_is_complete(
    history: History, target: EmbeddedRegistry
) -> None:
    push(history.full[0], target).succeeded()
    target.requests.clear()
    run = push(history.delta[0], target).succeeded().document
    assert run["delta"] == {"bases": [seal_of(history.full[0])["inventory"]]}
    assert run["inventory"] == seal_of(history.full[1])["inventory"]
    assert run["uploaded"]["bytes"] == history.runs[0].document["fetched"]
    # Nothing of what was there comes back, apart from manifests that their tags are set with.
    statement = r"/mirror/inventory/blobs/"
    blobs = target.requests.matching("GET", "/blobs/")
    assert len(blobs) == target.requests.count("GET", statement)
    for bundle in (history.delta[0], history.full[1]):
        assert deeply(bundle, target).document["ok"] is True
    target.requests.clear()
    push(history.delta[0], target).succeeded()
    assert not any(target.requests.count(method) for method in WRITES)
    # And on it goes.
    push(history.delta[1], target).succeeded()
    assert deeply(history.full[2], target).document["ok"] is True


def test_a_delta_is_refused_by_an_empty_target_before_the_first_write(
    history: History, target: EmbeddedRegistry
) -> None:
    run = push(history.delta[0], target).failed(1, root_of(target), "push that base first")
    assert target.requests.count("HEAD") > 10
    assert {method: target.requests.count(method) for method in WRITES} == dict.fromkeys(WRITES, 0)
    error = run.document["error"]
    assert error["type"] == "MissingBaseError"
    seal = seal_of(history.delta[0])
    needed = {
        digest
        for content in seal["base"]["repositories"].values()
        for digest in (*content["manifests"], *content["blobs"])
    }
    assert {digest for digest in needed if any(digest in line for line in error["lacking"])} == (
        needed
    )
    lines = run.stderr.splitlines()
    assert len(lines) == 22
    assert lines[-1] == f"  and {len(error['lacking']) - 20} more"
    assert seal["base"]["digest"] in lines[0]
    assert lines[1].startswith("  repository /, tag v1.")


def test_one_missing_piece_of_the_base_is_named_with_repository_tag_and_digest(
    history: History, target: EmbeddedRegistry
) -> None:
    push(history.full[0], target).succeeded()
    (path,) = [p for p in seal_of(history.delta[0])["base"]["repositories"] if p == "install"]
    content = sealed_repositories(history.full[0])[path]
    tag = "v1.69.1"
    digest = content.tags[tag]
    target.requests.clear()
    pattern = f"/dkp/ee/install/manifests/({digest}|{tag})"
    target.faults.add(Fault(Answer(404), "HEAD", pattern, times=None))
    run = push(history.delta[0], target).failed(1, "repository install", tag, digest)
    assert len(run.document["error"]["lacking"]) == 1
    assert not any(target.requests.count(method) for method in WRITES)


def test_the_wrong_base_is_refused_too(history: History, target: EmbeddedRegistry) -> None:
    push(history.full[0], target).succeeded()
    target.requests.clear()
    push(history.delta[1], target).failed(1, seal_of(history.full[1])["inventory"])
    assert not any(target.requests.count(method) for method in WRITES)


def test_a_delta_goes_from_and_to_registries_that_people_run(
    history: History, make_real_registry: MakeRealRegistry, tmp_path: Path
) -> None:
    real = make_real_registry()
    push(history.full[1], real).succeeded()
    held = tmp_path / "held.json"
    run = call_mirror("inventory", root_of(real), "-o", held, "--insecure", "--json").succeeded()
    assert run.document["gaps"] == 0
    pull(tmp_path / "delta", history.source.root, "--base", held)
    assert archives(tmp_path / "delta") == archives(history.delta[1])
    push(tmp_path / "delta", real).succeeded()
    assert deeply(history.full[2], real).document["ok"] is True
    push(tmp_path / "delta", make_real_registry()).failed(1, "nothing was written")


# -- merge -----------------------------------------------------------------------------------------


def merge(*paths: str | Path) -> Finished:
    return call_mirror("merge", *paths, "--json")


def test_base_and_delta_merge_into_the_complete_pull_byte_for_byte(
    history: History, tmp_path: Path
) -> None:
    run = merge(history.full[0], history.delta[0], tmp_path / "out").succeeded().document
    assert files(tmp_path / "out") == files(history.full[1])
    assert run["inventory"] == seal_of(history.full[1])["inventory"]
    sizes = {
        d: n for c in sealed_repositories(history.full[1]).values() for d, n in c.blobs.items()
    }
    assert run["copied"] == sum(sizes.values())
    call_mirror("verify", tmp_path / "out").succeeded()


def test_deltas_merge_one_by_one_or_all_at_once(history: History, tmp_path: Path) -> None:
    base, (one, two) = history.full[0], history.delta
    merge(base, one, tmp_path / "first").succeeded()
    merge(tmp_path / "first", two, tmp_path / "second").succeeded()
    merge(base, one, two, tmp_path / "at-once").succeeded()
    assert files(tmp_path / "second") == files(history.full[2])
    assert files(tmp_path / "at-once") == files(history.full[2])


def test_a_merge_with_the_wrong_base_says_which_one_it_takes(
    history: History, tmp_path: Path
) -> None:
    run = merge(history.full[0], history.delta[1], tmp_path / "out").failed(
        1,
        "nothing was written",
        f"made against inventory {seal_of(history.full[1])['inventory']}",
        f"{history.full[0]} has inventory {seal_of(history.full[0])['inventory']}",
    )
    assert run.document["error"]["lacking"]
    assert not (tmp_path / "out").exists()
    merge(history.delta[0], tmp_path / "out").failed(1, "no base was named")


def test_a_merge_in_the_wrong_order_is_refused(history: History, tmp_path: Path) -> None:
    base, (one, two), out = history.full[0], history.delta, tmp_path / "out"
    told = "is a delta to bundle {}, which is named behind it; name the base first"
    merge(one, base, out).failed(2, told.format(base))
    merge(base, two, one, out).failed(2, told.format(one))
    assert not out.exists()


def test_a_merge_takes_the_settings_of_a_bundle(history: History, tmp_path: Path) -> None:
    out, base, delta = tmp_path / "out", history.full[0], history.delta[0]
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    merge(base, delta, out).failed(2, "not empty")
    merge(base, delta, out, "--force", "-c", "1MB").succeeded()
    assert (out / "platform.tar.0000.chunk").read_bytes() == (
        history.full[1] / "platform.tar"
    ).read_bytes()
    assert (out / "notes.txt").exists()
    merge(base, base, "--force").failed(2, "one of the bundles to merge")
    call_mirror("merge", base).failed(2, "mirror merge BASE DELTA OUT")
    call_mirror("merge", tmp_path / "nothing", tmp_path / "new").failed(2, "does not exist")


def test_a_damaged_base_does_not_become_part_of_a_merged_bundle(
    history: History, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, content in files(history.full[0]).items():
        (base / name).write_bytes(content)
    with tarfile.open(base / "security.tar", "r:") as tar:
        largest = max(tar.getmembers(), key=lambda member: member.size)
    data = bytearray((base / "security.tar").read_bytes())
    data[largest.offset_data + largest.size // 2] ^= 1
    (base / "security.tar").write_bytes(data)
    merge(base, history.delta[0], tmp_path / "out").failed(4, largest.name.rpartition("/")[2])
    assert not list((tmp_path / "out").glob("*.tar"))
