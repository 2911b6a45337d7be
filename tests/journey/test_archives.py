"""What is in a bundle, seen by other people's tools: GNU tar, sha256, skopeo."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.release_source import Source
from tests.support.skopeo import run_skopeo, skopeo_copy, skopeo_inspect
from tests.support.tools import require_tool
from tests.support.wire import reached, sha256

ARCHIVES = {
    "installer.tar": {"installer"},
    "module-console.tar": {"modules/console", "modules/console/release"},
    "module-operator-argo.tar": {"modules/operator-argo", "modules/operator-argo/release"},
    "module-postgresql.tar": {
        "modules/postgresql",
        "modules/postgresql/release",
        "modules/postgresql/extra/backup-agent",
        "modules/postgresql/extra/trivy-db",
    },
    "package-grafana.tar": {"packages/grafana", "packages/grafana/version"},
    "package-redis.tar": {
        "packages/redis",
        "packages/redis/version",
        "packages/redis/extra/exporter",
    },
    "package-versions.tar": {"packages/grafana/version", "packages/redis/version"},
    "platform.tar": {"", "install", "install-standalone", "release-channel"},
    "plugin-postgresql-mgr.tar": {"deckhouse-cli/plugins/postgresql-mgr"},
    "security.tar": {
        "security/trivy-bdu",
        "security/trivy-checks",
        "security/trivy-db",
        "security/trivy-java-db",
    },
}
"""The layouts of each archive, as `d8 mirror` expects them."""

BESIDE = {"inventory.json", "SHA256SUMS", "deckhousereleases.yaml"}

SHORT_TAG, REF_NAME = "io.deckhouse.image.short_tag", "org.opencontainers.image.ref.name"


@pytest.fixture(scope="module")
def unpacked(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every archive unpacked by GNU tar into a folder of its name."""
    folder = tmp_path_factory.mktemp("unpacked")
    for archive in small_bundle.glob("*.tar"):
        (folder / archive.name).mkdir()
        gnu_tar("-x", "-f", archive, "-C", folder / archive.name)
    return folder


def gnu_tar(*args: str | Path) -> str:
    """Run GNU tar, which must have nothing to complain about; answer what it printed."""
    done = subprocess.run(
        [require_tool("tar"), *map(str, args)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def layouts(unpacked: Path) -> Iterator[tuple[str, Path]]:
    """(path in the target, folder) of every layout of every archive."""
    for index in sorted(unpacked.glob("*/**/index.json")):
        path = index.parent.relative_to(unpacked)
        yield "/".join(path.parts[1:]), index.parent


def descriptors(layout: Path) -> list[dict[str, Any]]:
    """What a layout's index lists."""
    found: list[dict[str, Any]] = json.loads((layout / "index.json").read_bytes())["manifests"]
    return found


def test_a_bundle_has_these_files_and_no_others(small_bundle: Path) -> None:
    assert {path.name for path in small_bundle.iterdir()} == {*ARCHIVES, *BESIDE}


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_gnu_tar_lists_regular_files_that_look_alike_on_every_machine(
    small_bundle: Path, name: str
) -> None:
    listing = gnu_tar(
        "-t", "-v", "--utc", "--full-time", "--numeric-owner", "-f", small_bundle / name
    )
    lines = listing.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"-rwxrwxrwx 0/0 +\d+ 1970-01-01 00:00:00 \S+", line), line
    names = [line.split()[-1] for line in lines]
    assert names == sorted(names, key=lambda path: path.split("/"))
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_an_archive_is_read_to_its_end_and_ends_with_two_blocks_of_zeros(
    small_bundle: Path, name: str
) -> None:
    data = (small_bundle / name).read_bytes()
    assert data[-1024:] == bytes(1024)
    with tarfile.open(small_bundle / name, "r:") as tar:
        last = max(tar.getmembers(), key=lambda member: member.offset_data)
    assert len(data) - 1024 == last.offset_data + -(-last.size // 512) * 512


@pytest.mark.parametrize("name", sorted(ARCHIVES))
def test_an_archive_has_the_layouts_of_its_repositories(unpacked: Path, name: str) -> None:
    found = {
        "/".join(index.parent.relative_to(unpacked / name).parts)
        for index in (unpacked / name).rglob("index.json")
    }
    assert found == ARCHIVES[name]


def test_every_layout_is_a_valid_one(unpacked: Path) -> None:
    seen = 0
    for path, layout in layouts(unpacked):
        assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
        index = json.loads((layout / "index.json").read_bytes())
        assert index["schemaVersion"] == 2
        assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
        blobs = {file.name: file.read_bytes() for file in (layout / "blobs/sha256").iterdir()}
        for name, data in blobs.items():
            assert sha256(data) == f"sha256:{name}", (path, name)
        for descriptor in index["manifests"]:
            data = blobs[descriptor["digest"].removeprefix("sha256:")]
            assert descriptor["size"] == len(data)
            assert descriptor["mediaType"] == json.loads(data)["mediaType"]
        assert needed(layout) == set(blobs), path  # all of it, and nothing besides
        seen += 1
    assert seen == sum(map(len, ARCHIVES.values()))


def needed(layout: Path) -> set[str]:
    """Names of all blob files that the tags of a layout reach."""
    pending = [descriptor["digest"] for descriptor in descriptors(layout)]
    found: set[str] = set()
    while pending:
        name = pending.pop().removeprefix("sha256:")
        if name in found:
            continue
        found.add(name)
        for kind, digest in reached((layout / "blobs/sha256" / name).read_bytes()):
            if kind == "manifests":
                pending.append(digest)
            else:
                found.add(digest.removeprefix("sha256:"))
    return found


def test_images_are_named_as_d8_names_them(unpacked: Path, small_source: Source) -> None:
    tagged = by_digest = 0
    for path, layout in layouts(unpacked):
        repository = origin(small_source, path)
        for descriptor in descriptors(layout):
            annotations, digest = descriptor["annotations"], descriptor["digest"]
            assert annotations.keys() == {SHORT_TAG, REF_NAME}
            tag = annotations[SHORT_TAG]
            if re.fullmatch("[0-9a-f]{64}", tag):  # bare hex: it has no other name
                assert digest == f"sha256:{tag}"
                assert annotations[REF_NAME] == f"{repository}@{digest}"
                by_digest += 1
            else:
                assert annotations[REF_NAME] == f"{repository}:{tag}"
                tagged += 1
    assert tagged > 30
    assert by_digest > 20


def origin(source: Source, path: str) -> str:
    """What the repository at `path` of a bundle is called at the source."""
    shared = path == "installer" or path.startswith("deckhouse-cli/")
    root = "deckhouse" if shared else "deckhouse/ee"
    return f"{source.address}/{root}/{path}".rstrip("/")


def test_an_index_is_sorted_by_the_names_of_its_images(unpacked: Path) -> None:
    for path, layout in layouts(unpacked):
        names = [descriptor["annotations"][REF_NAME] for descriptor in descriptors(layout)]
        assert names == sorted(names), path
        tags = [descriptor["annotations"][SHORT_TAG] for descriptor in descriptors(layout)]
        assert len(tags) == len(set(tags)), path


def test_artifacts_alone_tell_their_type(unpacked: Path) -> None:
    for path, layout in layouts(unpacked):
        for descriptor in descriptors(layout):
            assert ("artifactType" in descriptor) == path.startswith("security/"), path
    types = {
        descriptor["artifactType"]
        for path, layout in layouts(unpacked)
        if path == "security/trivy-db"
        for descriptor in descriptors(layout)
    }
    assert types == {"application/vnd.aquasec.trivy.config.v1+json"}


def test_skopeo_reads_images_out_of_the_layouts(
    unpacked: Path, small_source: Source, tmp_path: Path
) -> None:
    read = 0
    for path, layout in layouts(unpacked):
        # In layouts skopeo looks at OCI manifests only; images of Docker's kind are carried as
        # they are, and `docker load` or a push reads those.
        images = [
            descriptor
            for descriptor in descriptors(layout)
            if descriptor["mediaType"].startswith("application/vnd.oci.")
        ]
        for descriptor in images[:3]:
            image = f"oci:{layout}:{descriptor['annotations'][REF_NAME]}"
            raw = run_skopeo("inspect", "--raw", image)
            assert sha256(raw.encode()) == descriptor["digest"], path
            read += 1
        for descriptor in images[:1]:
            image = f"oci:{layout}:{descriptor['annotations'][REF_NAME]}"
            copied = tmp_path / str(read)
            skopeo_copy(image, f"dir:{copied}")
            assert sha256((copied / "manifest.json").read_bytes()) == descriptor["digest"]
    assert read > 25
    installer = f"{small_source.root}/install:v1.71.0"
    seen = skopeo_inspect(f"oci:{unpacked / 'platform.tar/install'}:{installer}")
    assert seen["Digest"] == str(small_source.tree.platform["v1.71.0"].install)


def test_the_seal_can_be_checked_by_hand(small_bundle: Path) -> None:
    data = (small_bundle / "inventory.json").read_bytes()
    seal = json.loads(data)
    stated = seal.pop("digest")

    def canonical(document: Any) -> bytes:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    assert sha256(canonical(seal)) == stated
    assert canonical({**seal, "digest": stated}) == data
    assert {name: archive["size"] for name, archive in seal["archives"].items()} == {
        name: (small_bundle / name).stat().st_size for name in ARCHIVES
    }
