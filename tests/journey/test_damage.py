"""Whatever befalls a bundle on its way, `mirror verify` says so and says where."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import flip
from tests.support.program import Finished, call_mirror
from tests.support.wire import reached

OFFSETS = 50
_BLOCK = 512


@dataclass(frozen=True)
class Place:
    """A stretch of an archive: a file's bytes, and what the file is."""

    archive: str
    path: str
    start: int
    end: int

    @property
    def repository(self) -> str:
        """The layout that it belongs to."""
        return self.path.rpartition("blobs/")[0].rstrip("/") if self.digest else self._parent

    @property
    def _parent(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def digest(self) -> str | None:
        """Its name, if it is content."""
        head, _, name = self.path.rpartition("/")
        return f"sha256:{name}" if head.endswith("blobs/sha256") else None


@cache
def places(bundle: Path) -> tuple[Place, ...]:
    """Every file in every archive, as Python's own tar reader finds them."""
    found = []
    for archive in sorted(bundle.glob("*.tar")):
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                start = member.offset_data
                found.append(Place(archive.name, member.name, start, start + member.size))
    return tuple(found)


@cache
def dependents(bundle: Path, archive: str, repository: str) -> dict[str, set[str]]:
    """Digest → the tags of the repository that need it, read from the archive itself."""
    prefix = f"{repository}/" if repository else ""
    needing: dict[str, set[str]] = {}
    with tarfile.open(bundle / archive, "r:") as tar:

        def content(path: str) -> bytes:
            file = tar.extractfile(prefix + path)
            assert file is not None
            return file.read()

        for descriptor in json.loads(content("index.json"))["manifests"]:
            tag = descriptor["annotations"]["io.deckhouse.image.short_tag"]
            pending = [("manifests", descriptor["digest"])]
            while pending:
                kind, digest = pending.pop()
                needing.setdefault(digest, set()).add(tag)
                if kind == "manifests":
                    pending += reached(content(f"blobs/sha256/{digest.removeprefix('sha256:')}"))
    return needing


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def verified(bundle: Path) -> Finished:
    """What a verification says, as JSON."""
    return call_mirror("verify", bundle, "--json")


def findings(bundle: Path) -> list[dict[str, Any]]:
    """What a verification finds; there must be something, and the exit code must say so."""
    run = verified(bundle)
    assert run.code == 4, run
    document = run.document
    assert document["ok"] is False
    found: list[dict[str, Any]] = document["findings"]
    assert found
    return found


def random_damage(bundle: Path) -> Iterator[tuple[Path, int, int]]:
    """(file, offset, mask) in all files, each as likely as it is large, and at every file's end."""
    chance = random.Random(20250203)
    files = sorted(path for path in bundle.iterdir() if path.name != "inventory.json")
    sizes = [path.stat().st_size for path in files]
    for path in files:
        yield path, path.stat().st_size - 1, 0x80
        yield path, 0, 1
    for path in chance.choices(files, sizes, k=OFFSETS):
        yield path, chance.randrange(path.stat().st_size), 1 << chance.randrange(8)


def test_an_untouched_bundle_is_whole(small_bundle: Path) -> None:
    document = verified(small_bundle).succeeded().document
    assert document["ok"] is True
    assert document["sealed"] is True
    assert document["findings"] == []


def test_a_damaged_byte_anywhere_is_found_and_located(bundle: Path) -> None:
    in_content = elsewhere = 0
    for path, offset, mask in random_damage(bundle):
        place = next(
            (
                one
                for one in places(bundle)
                if one.archive == path.name and one.start <= offset < one.end
            ),
            None,
        )
        flip(path, offset, mask)
        found = findings(bundle)
        flip(path, offset, mask)
        at = (path.name, offset, found)
        assert {one["place"] for one in found} == {path.name}, at
        if place is None:  # a header, the padding or the end
            elsewhere += 1
        else:
            (one,) = found
            assert one["repository"] == place.repository, at
            if place.digest is None:
                assert place.path in one["problem"], at
                elsewhere += 1
            else:
                assert one["digest"] == place.digest, at
                needing = dependents(bundle, path.name, place.repository)[place.digest]
                assert one["tags"] == sorted(needing), at
                in_content += 1
    assert in_content > 15
    assert elsewhere > 20
    verified(bundle).succeeded()


def first(bundle: Path, kind: str) -> Place:
    """Some file of the platform's archive, of a kind of content."""
    for place in places(bundle):
        if place.archive != "platform.tar" or place.digest is None:
            continue
        with (bundle / place.archive).open("rb") as file:
            file.seek(place.start)
            data = file.read(place.end - place.start)
        is_json = data.startswith(b"{")
        document = json.loads(data) if is_json else {}
        if kind == (
            "index"
            if "manifests" in document
            else "manifest"
            if "layers" in document
            else "config"
            if "rootfs" in document
            else "layer"
        ):
            return place
    raise AssertionError(f"no {kind} in platform.tar")


@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layer"])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_damaged_content_is_named_for_a_person(bundle: Path, kind: str, sealed: bool) -> None:
    if not sealed:
        (bundle / "inventory.json").unlink()
        (bundle / "SHA256SUMS").unlink()
    place = first(bundle, kind)
    assert place.digest is not None
    tags = sorted(dependents(bundle, place.archive, place.repository)[place.digest])
    flip(bundle / place.archive, place.start + 7)
    run = call_mirror("verify", bundle)
    assert run.code == 4
    for word in ("damaged", "platform.tar", place.digest, tags[0][:12], "repository"):
        assert word in run.stdout, run.stdout


@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layer"])
def test_damaged_content_is_found_in_a_bundle_without_a_seal(bundle: Path, kind: str) -> None:
    (bundle / "inventory.json").unlink()
    (bundle / "SHA256SUMS").unlink()
    assert verified(bundle).succeeded().document["sealed"] is False
    place = first(bundle, kind)
    assert place.digest is not None
    needing = dependents(bundle, place.archive, place.repository)[place.digest]
    flip(bundle / place.archive, place.end - 2)
    by_digest = {one["digest"]: one for one in findings(bundle)}
    one = by_digest[place.digest]
    assert one["place"] == "platform.tar"
    assert one["repository"] == place.repository
    assert one["tags"] == sorted(needing)


def test_damage_in_many_places_is_told_of_each(bundle: Path) -> None:
    content = [place for place in places(bundle) if place.digest is not None]
    damaged = random.Random(7).sample(content, 8)
    for place in damaged:
        flip(bundle / place.archive, place.start)
    assert {(one["place"], one["repository"], one["digest"]) for one in findings(bundle)} == {
        (place.archive, place.repository, place.digest) for place in damaged
    }


@pytest.mark.parametrize("path", ["index.json", "oci-layout", "install/index.json"])
def test_a_damaged_index_is_named(bundle: Path, path: str) -> None:
    place = next(p for p in places(bundle) if (p.archive, p.path) == ("platform.tar", path))
    flip(bundle / "platform.tar", place.start + 10)
    (one,) = findings(bundle)
    assert one["place"] == "platform.tar"
    assert one["repository"] == path.rpartition("/")[0]
    assert path in one["problem"]


def test_a_damaged_seal_is_named(bundle: Path) -> None:
    seal = bundle / "inventory.json"
    size = seal.stat().st_size
    for offset in (0, 1, size // 3, size // 2, size - 30, size - 1):
        flip(seal, offset)
        run = verified(bundle).failed(4, "inventory.json", "copy it again from its origin")
        assert run.document["error"]["exitCode"] == 4
        flip(seal, offset)
    seal.write_bytes(b"")
    verified(bundle).failed(4, "inventory.json")


def test_a_missing_archive_is_named_with_all_that_it_held(bundle: Path) -> None:
    (bundle / "module-console.tar").unlink()
    found = findings(bundle)
    assert {one["place"] for one in found} == {"module-console.tar"}
    by_repository = {one["repository"]: one for one in found}
    assert by_repository.keys() == {"modules/console", "modules/console/release"}
    assert "v1.1.0" in by_repository["modules/console"]["tags"]
    assert "alpha" in by_repository["modules/console/release"]["tags"]
    for one in found:
        assert one["digest"].startswith("sha256:")
        assert "missing" in one["problem"]
    text = call_mirror("verify", bundle).stdout
    assert "module-console.tar" in text
    assert "alpha" in text


def test_an_archive_that_does_not_belong_is_named(bundle: Path) -> None:
    shutil.copy(bundle / "installer.tar", bundle / "module-other.tar")
    (one,) = findings(bundle)
    assert one["place"] == "module-other.tar"


def rewrite(archive: Path, keep: Callable[[tarfile.TarInfo], bool]) -> None:
    """Pack an archive anew with only some of its files."""
    out = io.BytesIO()
    with (
        tarfile.open(archive, "r:") as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in old:
            if keep(member):
                new.addfile(member, old.extractfile(member))
    archive.write_bytes(out.getvalue())


@pytest.mark.parametrize("kind", ["index", "manifest", "config", "layer"])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_missing_content_is_named(bundle: Path, kind: str, sealed: bool) -> None:
    if not sealed:
        (bundle / "inventory.json").unlink()
        (bundle / "SHA256SUMS").unlink()
    place = first(bundle, kind)
    assert place.digest is not None
    needing = dependents(bundle, place.archive, place.repository)[place.digest]
    rewrite(bundle / place.archive, lambda member: member.name != place.path)
    found = findings(bundle)
    assert {one["place"] for one in found} == {"platform.tar"}
    (one,) = (
        one
        for one in found
        if one["digest"] == place.digest and one["repository"] == place.repository
    )
    assert one["tags"] == sorted(needing)
    if not sealed:
        assert len(found) == 1
        assert "missing" in one["problem"]


def test_a_missing_index_is_found(bundle: Path) -> None:
    rewrite(bundle / "platform.tar", lambda member: member.name != "install/index.json")
    assert any(one["repository"] == "install" for one in findings(bundle))


@pytest.mark.parametrize("cut", [1, 512, 1024, 5000, 100_000])
def test_a_truncated_archive_is_named(bundle: Path, cut: int) -> None:
    archive = bundle / "platform.tar"
    with archive.open("r+b") as file:
        file.truncate(archive.stat().st_size - cut)
    assert {one["place"] for one in findings(bundle)} == {"platform.tar"}


@pytest.mark.parametrize("tail", [b"\0", bytes(_BLOCK), b"more"])
def test_an_archive_that_grew_is_named(bundle: Path, tail: bytes) -> None:
    with (bundle / "security.tar").open("ab") as file:
        file.write(tail)
    assert {one["place"] for one in findings(bundle)} == {"security.tar"}


def test_an_empty_archive_is_named(bundle: Path) -> None:
    (bundle / "installer.tar").write_bytes(b"")
    assert {one["place"] for one in findings(bundle)} == {"installer.tar"}


def test_archives_of_two_pulls_do_not_mix(bundle: Path, tiny_bundle: Path) -> None:
    shutil.copy(tiny_bundle / "module-console.tar", bundle / "module-console.tar")
    assert {one["place"] for one in findings(bundle)} == {"module-console.tar"}


def test_a_damaged_bundle_is_not_pushed(bundle: Path, make_target: Callable[[], str]) -> None:
    target = make_target()
    place = first(bundle, "manifest")
    flip(bundle / place.archive, place.start + 7)
    run = call_mirror("push", bundle, target, "--insecure")
    run.failed(4, "platform.tar", str(place.digest), "mirror verify")


def test_a_damaged_layer_never_arrives_and_no_tag_leads_to_it(
    bundle: Path, make_target: Callable[[], str]
) -> None:
    target = make_target()
    place = first(bundle, "layer")
    flip(bundle / place.archive, place.start + 7)
    call_mirror("push", bundle, target, "--insecure").failed(4, str(place.digest), "blob")
    run = call_mirror("verify", bundle, "--against", target, "--insecure", "--json")
    assert run.code == 4
    missing = {one["digest"] for one in run.document["findings"] if "blob" in one["problem"]}
    assert place.digest in missing
