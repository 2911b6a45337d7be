"""What is wrong with the input is told clearly, with the next step, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mirror.commands.access
from examples.release_tree import TreeSpec
from mirror.bundle.format import size_text
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, RegistryClient
from mirror.registry.options import RetryPolicy
from mirror.serve import BasicAuth, MemoryStorage, TokenAuth, User
from mirror.testing import Answer as FaultAnswer
from mirror.testing import CorruptBody, Fault, Refuse
from tests.conftest import MakeEmbeddedRegistry
from tests.support.processes import free_port
from tests.support.program import Finished, call_mirror
from tests.support.release_source import TINY, Source, replace_images, serve
from tests.support.wire import reached


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries wait for next to nothing."""
    retries = RetryPolicy(base_delay_s=0.01, max_delay_s=0.01, max_retry_after_s=0.01)
    monkeypatch.setattr(mirror.commands.access, "patience", lambda _asked: retries)
    monkeypatch.setattr(mirror.commands.access, "BRIEF", retries)


def pull(folder: Path, root: str, *more: str | Path, **run: Any) -> Finished:
    """`mirror pull` from a registry without TLS."""
    return call_mirror("pull", folder, "--source", root, "--insecure", *more, **run)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file in a folder: content and time of its last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# -- registries that do not answer -----------------------------------------------------------------


def test_a_host_without_a_registry_is_unreachable(tmp_path: Path, tiny_bundle: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}/deckhouse/ee"
    words = ("refuses connections", nowhere.partition("/")[0], "check that the server runs")
    pull(tmp_path / "bundle", nowhere).failed(5, *words)
    assert not (tmp_path / "bundle").exists()
    before = snapshot(tiny_bundle)
    call_mirror("push", tiny_bundle, nowhere, "--insecure").failed(5, *words)
    call_mirror("verify", tiny_bundle, "--against", nowhere, "--insecure").failed(5, *words)
    assert snapshot(tiny_bundle) == before


def test_a_name_that_nobody_knows_is_unreachable(tmp_path: Path) -> None:
    pull(tmp_path / "bundle", "registry.invalid/deckhouse/ee").failed(
        5, "registry.invalid", "cannot be resolved", "check its spelling"
    )


def test_a_registry_without_tls_is_told_from_one_that_is_down(
    source: Source, tmp_path: Path
) -> None:
    call_mirror("pull", tmp_path / "bundle", "--source", source.root).failed(5, "--insecure")


def test_a_registry_that_keeps_failing_is_unreachable(source: Source, tmp_path: Path) -> None:
    source.registry.faults.add(Fault(FaultAnswer(503), times=None))
    run = pull(tmp_path / "bundle", source.root).failed(5, "503", "check the registry")
    assert "trying again" in run.stderr


def test_a_registry_that_fails_for_a_moment_does_no_harm(source: Source, tmp_path: Path) -> None:
    source.registry.faults.add(Fault(FaultAnswer(503), nth=3, times=2))
    source.registry.faults.add(Fault(FaultAnswer(429, {"Retry-After": "1"}), nth=30, times=3))
    run = pull(tmp_path / "bundle", source.root).succeeded()
    assert source.registry.faults.struck == 5
    assert "trying again" in run.stderr
    call_mirror("verify", tmp_path / "bundle").succeeded()


@pytest.mark.parametrize("fault", [Refuse(), FaultAnswer(503)])
@pytest.mark.parametrize("command", ["pull", "push", "sync"])
def test_a_registry_that_dies_in_the_middle_is_told_of_once_with_a_count(
    command: str,
    fault: Refuse | FaultAnswer,
    source: Source,
    tiny_bundle: Path,
    make_embedded_registry: MakeEmbeddedRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mirror.reports.progress._Texts._FIRST_S", 3600.0)  # on a slow machine too
    target = make_embedded_registry(MemoryStorage())
    dying = target if command == "push" else source.registry
    places = {
        "pull": (tmp_path / "bundle", "--source", source.root),
        "push": (tiny_bundle, f"{target.address}/tree"),
        "sync": ("--from", source.root, "--to", f"{target.address}/tree"),
    }
    dying.faults.add(Fault(fault, nth=30, times=None))
    run = call_mirror(command, *places[command], "--insecure", "-v")
    told = [line for line in run.stderr.splitlines() if "trying again" in line]
    assert run.code != 0
    assert dying.faults.struck >= 5, "several requests failed"
    assert len(told) == 2, run.stderr
    assert told[0].startswith("trying again in 0.0s: ")
    assert re.fullmatch(r"trying again: .* [0-9]+ more times?", told[1])
    again = call_mirror(command, *places[command], "--insecure", "-vv").stderr
    assert again.count("trying again in 0.0s: ") > 1


# -- logins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BasicAuth, TokenAuth])
def test_a_wrong_login_is_denied_and_told_how_to_give_another(
    make_embedded_registry: MakeEmbeddedRegistry,
    tiny_bundle: Path,
    tmp_path: Path,
    kind: type[BasicAuth] | type[TokenAuth],
) -> None:
    registry = make_embedded_registry(auth=kind({"ci": User("right-one")}))
    root = f"{registry.address}/deckhouse/ee"
    for more in ((), ("--source-login", "ci", "--source-password", "wrong-one")):
        run = pull(tmp_path / "bundle", root, *more)
        run.failed(6, "--source-login", "--license", "docker login")
        assert "wrong-one" not in run.text
    run = call_mirror("push", tiny_bundle, root, "--insecure", "-u", "ci", "-p", "wrong-one")
    run.failed(6, "--registry-login")
    assert "wrong-one" not in run.text
    assert not list((tmp_path / "bundle").glob("*"))


def test_a_login_that_may_not_write_is_denied_before_any_tag(
    make_embedded_registry: MakeEmbeddedRegistry, tiny_bundle: Path
) -> None:
    reader = User("secret", frozenset({"pull"}))
    registry = make_embedded_registry(auth=BasicAuth({"reader": reader}))
    root = f"{registry.address}/dkp/ee"
    run = call_mirror("push", tiny_bundle, root, "--insecure", "-u", "reader", "-p", "secret")
    run.failed(6, "user reader may not do this")
    assert registry.requests.count("PUT", status=201) == 0


def test_a_password_goes_with_a_login_and_the_other_way_round(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    push = ("push", tiny_bundle, "127.0.0.1:1/dkp")
    call_mirror(*push, "-p", "secret").failed(2, "without a login", "name the user")
    call_mirror(*push, "-u", "ci").failed(2, "a password for ci is missing")
    call_mirror(*push, "-u", "ci", "-p", "-", stdin="\n").failed(2, "a password for ci is missing")
    root = "127.0.0.1:1/deckhouse/ee"
    pull(tmp_path / "b", root, "--source-password", "secret").failed(2, "without a login")
    pull(tmp_path / "b", root, "--source-login", "ci").failed(2, "a password for ci is missing")


# -- what the user asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("root", ["registry.example.com", "localhost:5000", "localhost:5000/"])
def test_a_registry_without_a_path_is_refused(root: str, tmp_path: Path, tiny_bundle: Path) -> None:
    words = ("has no path", "deckhouse/ee")
    pull(tmp_path / "bundle", root).failed(2, *words)
    call_mirror("push", tiny_bundle, root).failed(2, *words)
    call_mirror("verify", tiny_bundle, "--against", root).failed(2, *words)
    assert not (tmp_path / "bundle").exists()


def test_a_path_that_no_registry_takes_is_refused(tmp_path: Path) -> None:
    pull(tmp_path / "bundle", "localhost:5000/Deckhouse/EE").failed(2, "lower-case")
    pull(tmp_path / "bundle", "bad host/x").failed(2, "host[:port]/path")


def test_a_folder_that_is_not_empty_is_left_alone_without_force(
    source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "platform.tar").write_bytes(b"an earlier bundle")
    (folder / "notes.txt").write_bytes(b"mine")
    before = snapshot(folder)
    pull(folder, source.root).failed(2, "is not empty", "--force")
    assert snapshot(folder) == before
    assert len(source.registry.requests) == 0, "the registry was asked for nothing"


def test_force_replaces_the_bundle_and_keeps_what_is_none_of_it(
    source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "platform.tar").write_bytes(b"an earlier bundle")
    (folder / "module-gone.tar").write_bytes(b"a module that is no longer there")
    (folder / "notes.txt").write_bytes(b"mine")
    pull(folder, source.root, "--force").succeeded()
    assert (folder / "notes.txt").read_bytes() == b"mine"
    assert not (folder / "module-gone.tar").exists()
    call_mirror("verify", folder).succeeded()


def test_a_pull_with_force_that_fails_leaves_the_earlier_bundle_as_it_was(
    source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    pull(folder, source.root).succeeded()
    before = snapshot(folder)
    # Every fetch of some component fails for good, when much else has been written.
    component = next(iter(source.tree.platform["v1.70.0"].components.values()))
    lost = some_layer(source, component)
    source.registry.faults.add(Fault(FaultAnswer(404), path=f"/blobs/{lost}", times=None))
    run = pull(folder, source.root, "--force")
    run.failed(1, str(lost))
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert all(name.endswith(".partial") for name in after.keys() - before.keys())
    call_mirror("verify", folder).succeeded()


def some_layer(source: Source, digest: Digest) -> str:
    """The last layer of an image, or of an index's first image."""
    with RegistryClient(source.address, options=ConnectionOptions(plain_http=True)) as client:
        manifest = client.manifest(source.tree.root, digest)
        while manifest.is_index:
            child = manifest.children[0].descriptor.digest
            manifest = client.manifest(source.tree.root, child)
    return [digest for kind, digest in reached(manifest.raw) if kind == "blobs"][-1]


def test_a_bundle_must_not_go_where_a_file_is(source: Source, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"a file")
    pull(tmp_path / "bundle", source.root).failed(2, "is not a folder")
    assert (tmp_path / "bundle").read_bytes() == b"a file"


def test_options_that_contradict_each_other_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = tmp_path / "bundle"
    both = ("-i", "console", "-e", "postgresql")
    pull(folder, "localhost:1/ee", *both).failed(2, "include-module", "exclude-module")
    call_mirror("verify", tiny_bundle, "--deep").failed(2, "--against")
    call_mirror("push", "localhost:1/ee").failed(2, "name the bundle to push")
    call_mirror("push", tiny_bundle, tiny_bundle, "localhost:1/ee").failed(2, "--file")
    call_mirror("push").failed(2, "Missing argument")
    call_mirror("pull", folder, "--jobs", "0").failed(2, "jobs")
    call_mirror("pull", folder, "--ca", tmp_path / "no-such.pem").failed(2, "no-such.pem")
    call_mirror("pull", folder, "--no-such-option").failed(2, "--no-such-option")
    call_mirror("mend").failed(2, "mend")


def test_a_ca_file_that_is_none_is_named(tmp_path: Path, source: Source) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    run = call_mirror(
        "pull", tmp_path / "bundle", "--source", source.root, "--ca", tmp_path / "ca.pem"
    )
    run.failed(2, "ca.pem")


# -- bundles that are none -------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["push", "verify"])
def test_a_folder_without_a_bundle_is_told_from_a_damaged_one(command: str, tmp_path: Path) -> None:
    registry = ("127.0.0.1:1/dkp",) if command == "push" else ()
    empty = tmp_path / "empty"
    empty.mkdir()
    call_mirror(command, empty, *registry).failed(2, "holds no bundle", "it has no *.tar file")
    call_mirror(command, tmp_path / "nowhere", *registry).failed(2, "does not exist")
    (empty / "platform.tar.partial").write_bytes(b"half")
    call_mirror(command, empty, *registry).failed(
        2, "was not finished", "run it again", "mirror clean"
    )
    (empty / "platform.tar.0000.chunk").write_bytes(b"chunk")
    run = call_mirror(command, empty, *registry)
    assert run.code == 4
    assert "platform.tar: at byte 0: the archive ends" in run.stdout + run.stderr


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.tar").write_bytes(b"\x89PNG" * 500)
    call_mirror("push", tmp_path, "127.0.0.1:1/dkp").failed(4, "photo.tar")
    assert call_mirror("verify", tmp_path).code == 4


# -- a disk that is full ---------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`folder` is a disk of `size` bytes: a real one where we may mount it, else it says so."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount and os.geteuid() == 0:
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run([mount, *options], capture_output=True).returncode == 0:
            try:
                yield
            finally:
                subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    said = SimpleNamespace(f_bavail=size // 4096, f_frsize=4096)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _path: said)
        yield


def test_a_disk_that_is_too_small_is_told_before_any_content_moves(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull(tmp_path / "whole", source.root).succeeded()
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    free = needed // 2 // 4096 * 4096
    source.registry.requests.clear()
    with small_disk(tmp_path / "small", free, monkeypatch):
        folder = tmp_path / "small/bundle"
        run = pull(folder, source.root, "--json").failed(
            1,
            f"needs {size_text(needed)} and",
            f"has {size_text(free)} free",
            f"{size_text(needed - free)} too few",
        )
        assert run.document["error"]["type"] == "NoSpaceError"
        assert not list(folder.glob("*"))
    # Of the blobs only those were read that describe releases.
    fetched = {request.path for request in source.registry.requests.matching("GET", "/blobs/")}
    components = {
        some_layer(source, digest)
        for release in source.tree.platform.values()
        for digest in release.components.values()
    }
    assert fetched
    assert not [path for path in fetched if path.rpartition("/")[2] in components]


def archive_sizes(source: Source, folder: Path) -> Mapping[str, int]:
    """File names and sizes of the bundle that a pull makes."""
    run = pull(folder, source.root, "--json").succeeded()
    sizes: Mapping[str, int] = run.document["archives"]
    return sizes


def test_a_disk_that_holds_just_the_bundle_is_large_enough(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    archive_sizes(source, whole)
    pages = sum(-(-path.stat().st_size // 4096) for path in whole.iterdir())
    with small_disk(tmp_path / "small", (pages + 4) * 4096, monkeypatch):
        pull(tmp_path / "small/bundle", source.root).succeeded()
        call_mirror("verify", tmp_path / "small/bundle").succeeded()


def test_a_disk_without_room_for_the_table_of_contents_is_told_beforehand(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = sum(-(-size // 4096) for size in archive_sizes(source, tmp_path / "whole").values())
    with small_disk(tmp_path / "small", pages * 4096, monkeypatch):
        run = pull(tmp_path / "small/bundle", source.root)
        run.failed(1, "too few", "nothing was fetched")
        assert not list((tmp_path / "small/bundle").glob("*"))


# -- sources that are not what they should be ------------------------------------------------------


def test_a_repository_that_is_not_there_is_named(source: Source, tmp_path: Path) -> None:
    run = pull(tmp_path / "bundle", f"{source.address}/deckhouse/fe")
    run.failed(1, "deckhouse/fe/release-channel", "--source")
    assert not list((tmp_path / "bundle").glob("*"))


def test_a_module_that_is_not_there_is_named_beside_those_that_are(
    source: Source, tmp_path: Path
) -> None:
    run = pull(tmp_path / "bundle", source.root, "-i", "consol")
    run.failed(1, "no module consol", "it has: console")


def test_a_suspended_channel_stops_a_pull_until_told_otherwise(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    spec = TreeSpec(
        versions=TINY.versions,
        channels=TINY.channels,
        suspended=frozenset({"beta", "alpha"}),
        components=3,
        layer_bytes=500,
    )
    source = serve(spec, make_embedded_registry())
    run = pull(tmp_path / "bundle", source.root)
    run.failed(1, "alpha", "beta", "suspended", "--ignore-suspend")
    assert not list((tmp_path / "bundle").glob("*"))
    pull(tmp_path / "bundle", source.root, "--ignore-suspend").succeeded()


def test_a_missing_component_is_named_with_the_installer_that_wants_it(
    source: Source, tmp_path: Path
) -> None:
    absent = f"sha256:{'0' * 64}"
    listed = json.dumps({"cniCilium": {"agent": absent}})
    replace_images(
        source.registry,
        {"install:v1.70.0": {"deckhouse/candi/images_digests.json": listed}},
    )
    run = pull(tmp_path / "bundle", source.root)
    run.failed(1, absent, "cniCilium/agent", "install:v1.70.0", "incomplete")
    assert not list((tmp_path / "bundle").glob("*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"changelog.yaml": "{}"}, ["no version.json"]),
        ({"version.json": "{"}, ["version.json cannot be read"]),
        ({"version.json": '{"version": "yesterday"}'}, ["'yesterday'", "not a semantic version"]),
        ({"version.json": "[]"}, ["version.json cannot be read"]),
        ({"version.json": b"\xff\xfe"}, ["version.json cannot be read"]),
    ],
    ids=["missing", "no JSON", "no version", "no object", "no text"],
)
def test_a_broken_version_json_is_named(
    source: Source, tmp_path: Path, content: Mapping[str, bytes | str], words: list[str]
) -> None:
    replace_images(source.registry, {"release-channel:alpha": content})
    run = pull(tmp_path / "bundle", source.root)
    run.failed(1, "release-channel:alpha", *words)
    assert not list((tmp_path / "bundle").glob("*"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"readme": "hello"}, ["images_digests.json", "images_tags.json"]),
        ({"deckhouse/candi/images_digests.json": "["}, ["images_digests.json", "cannot be read"]),
        (
            {"deckhouse/candi/images_digests.json": '{"common": {"init": "latest"}}'},
            ["common/init", "latest"],
        ),
        (
            {"deckhouse/candi/images_digests.json": '{"common": ["init"]}'},
            ["common", "not a mapping"],
        ),
    ],
    ids=["missing", "no JSON", "no digest", "no mapping"],
)
def test_a_broken_component_list_is_named(
    source: Source, tmp_path: Path, content: Mapping[str, bytes | str], words: list[str]
) -> None:
    replace_images(source.registry, {"install:v1.70.0": content})
    pull(tmp_path / "bundle", source.root).failed(1, "install:v1.70.0", *words)


def test_a_missing_channel_is_named_beside_those_that_are_there(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    some = {"alpha": "v1.70.0", "rock-solid": "v1.69.1"}
    spec = TreeSpec(versions=TINY.versions, channels=some, components=3, layer_bytes=500)
    source = serve(spec, make_embedded_registry(MemoryStorage()))
    run = pull(tmp_path / "bundle", source.root)
    run.failed(1, "beta, early-access, stable", "found: alpha, rock-solid", "--source")


def test_bytes_that_change_on_the_way_never_reach_a_bundle(source: Source, tmp_path: Path) -> None:
    component = next(iter(source.tree.platform["v1.70.0"].components.values()))
    damaged = some_layer(source, component)
    source.registry.faults.add(Fault(CorruptBody(100), path=f"/blobs/{damaged}", times=None))
    pull(tmp_path / "bundle", source.root).failed(4, damaged, "damaged")
    assert {path.suffix for path in (tmp_path / "bundle").iterdir()} == {".partial"}
