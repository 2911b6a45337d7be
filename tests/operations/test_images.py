"""Single images, blobs and releases out of a registry, and what does not get onto the disk."""

from __future__ import annotations

import gzip
import io
import json
import stat
import tarfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import mirror
from mirror import Digest, Platform, RegistryClient
from mirror.errors import (
    DigestMismatchError,
    FileSystemError,
    IncompleteError,
    NotFoundError,
    RegistryNotFoundError,
    SourceContentError,
    UnreadableImageError,
)
from mirror.oci import Manifest
from mirror.oci.manifest import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, descriptor_json
from mirror.run import Cancellation, Run
from mirror.serve import MemoryStorage, put_blob
from mirror.sync.tree import RegistryTree
from mirror.testing import CorruptBody, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry
from tests.support.release_source import TINY, serve
from tests.support.synced import Recorder

FILE, DIR, SYM, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
REPOSITORY = "dkp/ee/install"


def entry(name: str, text: str = "", kind: bytes = FILE, mode: int = 0o644) -> Any:
    """An entry of a layer: `text` is a file's content or a link's target."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    data = text.encode() if kind == FILE else b""
    info.size, info.linkname = len(data), "" if kind == FILE else text
    return info, io.BytesIO(data)


def layer(*entries: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in entries:
            tar.addfile(info, data)
    return gzip.compress(out.getvalue(), 1)


class Shelf:
    """An embedded registry that images are put into behind its server's back."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        assert isinstance(registry.storage, MemoryStorage)
        self.registry, self.storage = registry, registry.storage
        self.client = RegistryClient(
            registry.address, options=mirror.ConnectionOptions(plain_http=True)
        )

    def put(self, document: dict[str, Any], media_type: str, *tags: str) -> Manifest:
        raw = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode()
        manifest = Manifest.parse(raw, media_type)
        self.storage.put_manifest(REPOSITORY, manifest)
        for tag in tags:
            self.storage.put_manifest(REPOSITORY, manifest, tag)
        return manifest

    def image(self, tag: str, *layers: bytes) -> Manifest:
        blobs = [b'{"architecture":"amd64","os":"linux"}', *layers]
        descriptors = [
            descriptor_json(
                mirror.Descriptor(kind, put_blob(self.storage, REPOSITORY, data), len(data))
            )
            for data, kind in zip(blobs, [OCI_CONFIG, *[OCI_LAYER_GZIP] * len(layers)], strict=True)
        ]
        return self.put({"config": descriptors[0], "layers": descriptors[1:]}, OCI_MANIFEST, tag)

    def index(self, tag: str, **children: Manifest) -> Manifest:
        listed = []
        for platform, child in children.items():
            system, architecture, *variant = platform.split("_")
            described = {"os": system, "architecture": architecture}
            if variant:
                described["variant"] = variant[0]
            listed.append({**descriptor_json(child.descriptor), "platform": described})
        return self.put({"manifests": listed}, OCI_INDEX, tag)

    def extract(self, path: str, into: Path, **options: Any) -> mirror.ExtractReport:
        return mirror.extract_image(self.client, REPOSITORY, "v1", path, into, **options)


@pytest.fixture
def shelf(make_embedded_registry: MakeEmbeddedRegistry) -> Iterator[Shelf]:
    made = Shelf(make_embedded_registry())
    with made.client:
        yield made


def below(folder: Path) -> dict[str, str]:
    """Every path in a folder: a file's text, → a link's target, / for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"→ {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


# -- which image -----------------------------------------------------------------------------------


def test_an_index_is_followed_to_the_image_for_a_platform(shelf: Shelf) -> None:
    amd, arm, old = (shelf.image(f"one-{name}", layer(entry(name))) for name in ("a", "b", "c"))
    inner = shelf.index("inner", linux_arm64_v8=arm)
    shelf.index("v1", linux_amd64=amd, linux_arm_v6=old, linux_arm64=inner)

    def found(*platform: str) -> Digest:
        wanted = Platform(*platform)
        return mirror.find_image(shelf.client, REPOSITORY, "v1", wanted).digest

    assert found("linux", "amd64") == amd.digest
    assert found("linux", "arm64") == found("linux", "arm64") == arm.digest
    assert found("linux", "arm", "v6") == old.digest
    with pytest.raises(NotFoundError) as caught:
        found("linux", "arm", "v7")
    assert str(caught.value) == (
        f"{shelf.registry.address}/{REPOSITORY}:v1: no image for linux/arm/v7 in this index, which "
        "has linux/amd64, linux/arm/v6, linux/arm64; ask for another platform"
    )
    plain = mirror.find_image(shelf.client, REPOSITORY, "one-a", Platform("linux", "s390x"))
    assert plain.digest == amd.digest


def test_files_are_read_out_of_the_layers(shelf: Shelf) -> None:
    shelf.image("v1", layer(entry("a/f", "1"), entry("a/g", "2")), layer(entry("a/.wh.g")))
    found = mirror.read_image(shelf.client, REPOSITORY, "v1", ["a/f", "/a/g"])
    assert found == {"a/f": b"1"}
    with pytest.raises(UnreadableImageError, match="a/f has 1 bytes; at most 0 are read"):
        mirror.read_image(shelf.client, REPOSITORY, "v1", ["a/f"], max_file_bytes=0)


# -- unpacking -------------------------------------------------------------------------------------


def test_a_folder_is_taken_out_as_a_container_would_see_it(shelf: Shelf, tmp_path: Path) -> None:
    shelf.image(
        "v1",
        layer(
            entry("app/keep", "1"),
            entry("app/gone", "2"),
            entry("app/cleared/old", "3"),
            entry("other", "4"),
        ),
        layer(
            entry("app/run", "5", mode=0o4777),
            entry("app/secret", "6", mode=0o440),
            entry("app/empty", kind=DIR),
            entry("app/.wh.gone"),
            entry("app/cleared/.wh..wh..opq"),
            entry("app/cleared/new", "7"),
            entry("app/same", "app/run", LINK),
        ),
    )
    report = shelf.extract("app", tmp_path / "new" / "out")
    assert below(tmp_path / "new") == {
        "out": "/",
        "out/cleared": "/",
        "out/cleared/new": "7",
        "out/empty": "/",
        "out/keep": "1",
        "out/run": "5",
        "out/same": "5",
        "out/secret": "6",
    }
    assert report == mirror.ExtractReport(files=5, size=4)
    modes = {
        name: stat.S_IMODE((tmp_path / "new/out" / name).stat().st_mode)
        for name in ("run", "secret")
    }
    assert modes == {"run": 0o755, "secret": 0o640}
    assert (tmp_path / "new/out/same").samefile(tmp_path / "new/out/run")


def test_a_file_is_taken_out_under_the_name_that_it_was_asked_for_by(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.image(
        "v1",
        layer(entry("usr/bin/tool-1.2", "1"), entry("bin", "usr/bin", SYM)),
        layer(entry("usr/bin/tool", "tool-1.2", SYM)),
    )
    (tmp_path / "out").mkdir()
    shelf.extract("/bin/tool", tmp_path / "out")
    assert below(tmp_path) == {"out": "/", "out/tool": "1"}


def test_links_end_inside_or_are_left_out(shelf: Shelf, tmp_path: Path) -> None:
    """A link's text alone says nothing: what is on its way may be a link too."""
    shelf.image(
        "v1",
        layer(
            entry("app/file", "1"),
            entry("app/a/b/deep", "2"),
            entry("etc/passwd", "3"),
            entry("app/near", "file", SYM),
            entry("app/a/absolute", "/app/a/b/../../file", SYM),
            entry("app/a/here", ".", SYM),
            entry("app/a/b/up", "/app", SYM),
            entry("app/out", "../etc/passwd", SYM),
            entry("app/far", "/etc", SYM),
            entry("app/beyond", "../../../../etc/passwd", SYM),
            entry("app/trick", "a/here/../../etc/passwd", SYM),
            entry("app/nowhere", "none", SYM),
            entry("app/circle", "circle", SYM),
            entry("app/pipe", kind=tarfile.FIFOTYPE),
            entry("app/disk", kind=tarfile.BLKTYPE),
            entry("../escape", "4"),
            entry("/app/../../escape", "4"),
        ),
    )
    report = shelf.extract("app", tmp_path / "out")
    assert below(tmp_path) == {
        "out": "/",
        "out/a": "/",
        "out/a/absolute": "→ ../file",
        "out/a/b": "/",
        "out/a/b/deep": "2",
        "out/a/b/up": "→ ../..",
        "out/a/here": "→ .",
        "out/file": "1",
        "out/near": "→ file",
    }
    assert sorted(report.left_out) == [
        *("beyond", "circle", "disk", "far", "nowhere", "out", "pipe", "trick"),
    ]
    everything = shelf.extract("", tmp_path / "all")
    assert (tmp_path / "all/app/out").read_text() == "3"
    assert sorted(everything.left_out) == [
        *("app/circle", "app/disk", "app/nowhere", "app/pipe"),
    ]


def test_names_that_no_file_can_have_are_passed_over(shelf: Shelf, tmp_path: Path) -> None:
    odd, data = entry("x")
    odd.pax_headers = {"path": "app/a\0b"}
    shelf.image("v1", layer(entry("app/f", "1"), (odd, data), entry("app/\udcff", "2")))
    shelf.extract("app", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["f", "\udcff"]


def test_nothing_is_written_where_something_is_in_the_way(shelf: Shelf, tmp_path: Path) -> None:
    shelf.image("v1", layer(entry("app/f", "1")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    with pytest.raises(FileSystemError, match="full: this folder is not empty; name a new one"):
        shelf.extract("app", tmp_path / "full")
    with pytest.raises(FileSystemError, match="remove the symbolic link there"):
        shelf.extract("app", tmp_path / "link")
    assert below(tmp_path / "full") == {"mine": "mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "link"]


BIG = "x" * 100_000


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        (
            [entry("app/f", BIG)],
            {"max_bytes": 99_999},
            "'app' has 100000 bytes, more than 99999; give a larger",
        ),
        ([entry("f", BIG)], {"max_bytes": 40_000}, "more than 80000 bytes come out of the layers"),
        ([entry("f", BIG)], {"max_bytes": 10}, "its layers have more than 20 bytes"),
        ([entry("app/f"), entry("app/g")], {"max_entries": 1}, "more than 1 entries"),
        ([entry("app/a/b/c/d/f")], {"max_entries": 4}, "more than 4 entries"),
        ([entry("app/" + "a/" * 300 + "f")], {}, "a path of more than 256 folders: app/a/a/"),
        ([entry("app/f", "none", LINK)], {}, "the file f is a hard link to 'none'"),
        ([entry("f")], {}, "nothing is at 'app' in this image; check the path"),
        ([entry("app", "app", SYM)], {}, "more than 40 links on the way to app"),
    ],
)
def test_what_is_too_large_or_broken_leaves_nothing_behind(
    shelf: Shelf, tmp_path: Path, entries: Sequence[Any], options: dict[str, int], message: str
) -> None:
    for _, data in entries:
        data.seek(0)
    shelf.image("v1", layer(*entries))
    with pytest.raises((UnreadableImageError, NotFoundError)) as caught:
        shelf.extract("app", tmp_path / "out", **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{shelf.registry.address}/{REPOSITORY}@sha256:")
    assert below(tmp_path) == {}


def test_where_one_is_counts_as_a_folder(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.image("v1", layer(entry("app/f", "text")))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shelf.extract("app", Path())
    assert below(tmp_path / "here") == {"f": "text"}


def test_a_stopped_run_leaves_nothing_behind(shelf: Shelf, tmp_path: Path) -> None:
    shelf.image("v1", layer(entry("app/f", "1")))
    stopped = Cancellation()
    stopped.cancel()
    with pytest.raises(mirror.MirrorError, match="stopped"):
        shelf.extract("app", tmp_path / "out", run=Run(cancellation=stopped))
    assert below(tmp_path) == {}


class Countdown(Cancellation):
    """Somebody asks to stop when it has been asked `left` times whether anybody did."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    @property
    def requested(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_what_is_made_of_an_image_can_be_stopped_anywhere(shelf: Shelf, tmp_path: Path) -> None:
    names = [f"app/{n}" for n in range(30)]
    links = [entry(f"app/s{n}", "0", SYM) for n in range(10)]
    again = [entry(f"app/h{n}", "app/0", LINK) for n in range(10)]
    shelf.image("v1", layer(*map(entry, names), *links, *again, entry("app/d/e/f")))
    # How often it looks depends on how long the registry is waited for, too.
    for last in count(0, 7):
        run = Run(cancellation=Countdown(last))
        try:
            shelf.extract("app", tmp_path / "out", run=run)
        except mirror.MirrorError as err:
            assert "stopped" in str(err)  # noqa: PT017
            assert not list(tmp_path.iterdir())
        else:
            break
    assert last > 2 * 51 + 10 + 10  # entries in both passes, links, other names
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


# -- damage ----------------------------------------------------------------------------------------


def test_files_are_on_the_disk_before_they_have_their_names(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = shelf.image("v1", layer(entry("app/f", "1"), entry("app/d/g", "2")))
    recorder = Recorder(monkeypatch)
    shelf.extract("app", tmp_path / "out")
    *files, renamed, parent = recorder.steps
    assert {"fsync d", "fsync f", "fsync g", "fsync tree"} <= set(files)
    assert (renamed, parent) == ("rename out", f"fsync {tmp_path.name}")
    recorder.steps.clear()
    mirror.save_blob(shelf.client, REPOSITORY, image.layers[0].digest, tmp_path / "blob")
    written, renamed, parent = recorder.steps
    assert written.startswith("fsync .")
    assert (renamed, parent) == ("rename blob", f"fsync {tmp_path.name}")


def test_damaged_bytes_never_get_a_name(shelf: Shelf, tmp_path: Path) -> None:
    image = shelf.image("v1", layer(entry("app/f", "1")))
    digest = image.layers[0].digest
    (tmp_path / "blob").write_text("old")
    shelf.registry.faults.add(Fault(CorruptBody(at=20), path=f".*/blobs/{digest}", times=None))
    with pytest.raises(DigestMismatchError):
        mirror.save_blob(shelf.client, REPOSITORY, digest, tmp_path / "blob")
    with pytest.raises(DigestMismatchError):
        shelf.extract("app", tmp_path / "out")
    with pytest.raises(DigestMismatchError):
        mirror.read_image(shelf.client, REPOSITORY, "v1", ["app/f"])
    assert below(tmp_path) == {"blob": "old"}


def test_a_blob_that_was_damaged_on_its_way_is_read_again(shelf: Shelf, tmp_path: Path) -> None:
    image = shelf.image("v1", layer(entry("app/f", "1")))
    blob = image.layers[0]
    shelf.registry.faults.add(Fault(CorruptBody(at=20), path=f".*/blobs/{blob.digest}", times=1))
    size = mirror.save_blob(shelf.client, REPOSITORY, blob.digest, tmp_path / "x" / "blob")
    assert size == blob.size
    assert Digest.of((tmp_path / "x/blob").read_bytes()) == blob.digest
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["blob"]


# -- copying ---------------------------------------------------------------------------------------


def test_an_index_is_copied_with_all_its_images(
    shelf: Shelf, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    one, two = (shelf.image(f"one-{name}", layer(entry(name))) for name in "ab")
    index = shelf.index("v1", linux_amd64=one, linux_arm64=two)
    other = Shelf(make_embedded_registry())
    with other.client:
        report = mirror.copy_image(shelf.client, REPOSITORY, "v1", other.client, to="far/away")
        assert (report.manifests, report.blobs, report.tags) == (3, 3, 1)
        assert other.client.manifest("far/away", "v1").raw == index.raw
        again = mirror.copy_image(
            shelf.client, REPOSITORY, index.digest, other.client, to="far/away", tag="v2"
        )
        assert (again.manifests, again.sent, again.tags) == (0, 0, 1)
        bare = mirror.copy_image(shelf.client, REPOSITORY, one.digest, other.client)
        assert bare.tags == 0
        assert other.client.tags("far/away") == ["v1", "v2"]
        assert other.client.tags(REPOSITORY) == []
        assert other.client.resolve(REPOSITORY, one.digest) is not None


def test_no_tag_moves_when_something_cannot_be_copied(
    shelf: Shelf, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    image = shelf.image("v1", layer(entry("a", "1")))
    shelf.registry.faults.add(
        Fault(CorruptBody(at=20), path=f".*/blobs/{image.layers[0].digest}", times=None)
    )
    other = Shelf(make_embedded_registry())
    with other.client:
        with pytest.raises(IncompleteError, match=str(image.layers[0].digest)):
            mirror.copy_image(shelf.client, REPOSITORY, "v1", other.client)
        assert not other.client.resolve(REPOSITORY, "v1")


# -- releases --------------------------------------------------------------------------------------


def test_releases_and_channels_are_read_from_their_images(
    make_embedded_registry: MakeEmbeddedRegistry,
) -> None:
    published = serve(TINY, make_embedded_registry())
    options = mirror.ConnectionOptions(plain_http=True)
    with RegistryClient(published.address, options=options) as client:
        tree = RegistryTree(client, mirror.Repository.parse(published.root))
        releases = mirror.list_releases(tree)
        assert [f"v{version}" for version in releases.versions] == list(TINY.versions)
        assert {name: f"v{one}" for name, one in releases.channels.items()} == TINY.channels
        stable = mirror.read_release(tree, "stable")
        assert f"v{stable.version}" == TINY.channels["stable"]
        named = client.resolve(tree.locate("release-channel"), "stable")
        assert named is not None
        assert stable.digest == named.digest
        assert stable.changelog
        module = mirror.list_releases(tree, "modules/console/release")
        assert [str(one) for one in module.versions] == ["1.0.0", "1.1.0"]
        assert (
            mirror.read_release(tree, "alpha", "modules/console/release").version
            == (module.channels["alpha"])
        )
        with pytest.raises(RegistryNotFoundError, match="release-channel:lts"):
            mirror.read_release(tree, "lts")
        with pytest.raises(SourceContentError, match=r"the image has no version\.json"):
            mirror.read_release(tree, TINY.versions[0], "install")
