"""Bundles of other writers: what they may look like, and what is wrong with those that are not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle.contents import Contents
from mirror.bundle.format import REF_NAME, SHORT_TAG
from mirror.bundle.reader import BundleReader
from mirror.errors import DamagedBundleError
from mirror.oci import Digest
from mirror.oci import manifest as types
from mirror.oci.manifest import MAX_MANIFEST_BYTES
from mirror.run import Run
from mirror.sync import Finding, Inventory, MemoryStore, make_plan, transfer, union
from tests.support.inventories import put_image, put_index, sample_store, stores
from tests.support.strategies import MORE_EXAMPLES
from tests.support.tars import descriptor, gnu_tar, index, layout_files, member, tar_of

STORE = sample_store()
WANTED = STORE.inventory()

Bundle = Callable[[Mapping[str, bytes]], BundleReader]


@pytest.fixture
def bundle(tmp_path: Path) -> Any:
    """Read a bundle of these archives: name to bytes."""
    with ExitStack() as opened:

        def read(archives: Mapping[str, bytes]) -> BundleReader:
            for name, data in archives.items():
                (tmp_path / name).write_bytes(data)
            return opened.enter_context(BundleReader([tmp_path]))

        yield read


def platform(**changed: bytes | None) -> dict[str, bytes]:
    """The files of a platform archive; those of `changed` differ, None is missing."""
    files = {**layout_files(STORE, ""), **layout_files(STORE, "release-channel")}
    for path, data in changed.items():
        if data is None:
            del files[path]
        else:
            files[path] = data
    return files


def tags_of(contents: Contents, repository: str = "") -> dict[str, Digest]:
    return dict(contents.inventory.repository(repository).tags)


# -- what must be read -----------------------------------------------------------------------------


def test_a_bundle_of_d8_is_read_as_what_it_holds(bundle: Bundle) -> None:
    reader = bundle(
        {
            "platform.tar": tar_of(platform()),
            "security.tar": tar_of(layout_files(STORE, "security/trivy-db")),
            "module-console.tar": tar_of(
                {
                    **layout_files(STORE, "modules/console"),
                    **layout_files(STORE, "modules/console/release"),
                }
            ),
        }
    )
    expected = WANTED.filtered(lambda path: not path.startswith("modules/a-module"))
    # What no tag leads to is not seen: it is of no use to anybody.
    assert reader.inventory() == expected
    assert reader.contents.findings == ()
    assert reader.contents.notices == ()
    target = MemoryStore()
    transfer(make_plan(reader.inventory(), Inventory()), reader, target)
    assert target.inventory() == expected


def test_an_index_without_images_is_an_empty_repository(bundle: Bundle) -> None:
    files = platform()
    files["installer/installer/index.json"] = index(None)
    files["installer/installer/oci-layout"] = b"{}"
    files["install/index.json"] = index([])
    reader = bundle({"platform.tar": tar_of(files)})
    assert set(reader.inventory().repositories) == {"", "release-channel"}
    assert reader.contents.findings == ()
    assert reader.contents.notices == ()


def test_of_two_images_with_one_tag_the_later_counts(bundle: Bundle) -> None:
    store = MemoryStore()
    old, new = (put_image(store, "", text, layers=(text.encode(),)) for text in ("old", "new"))
    files = layout_files(store, "")
    twice = [descriptor(store, "", digest, "v1.0.0") for digest in (old, new)]
    files["index.json"] = index(twice)
    assert tags_of(bundle({"platform.tar": tar_of(files)}).contents) == {"v1.0.0": new}


def test_of_two_archives_with_one_layout_both_count(bundle: Bundle) -> None:
    one, other = MemoryStore(), MemoryStore()
    path = "packages/redis/version"
    put_image(one, path, "v1.0.0", "stable", layers=(b"1",))
    put_image(other, path, "v1.1.0", "stable", layers=(b"2",))
    reader = bundle(
        {
            "package-redis.tar": tar_of(layout_files(one, path)),
            "package-versions.tar": tar_of(layout_files(other, path)),
        }
    )
    # As when they are unpacked over each other, that of the package last.
    assert reader.inventory() == union([other.inventory(), one.inventory()])
    target = MemoryStore()
    transfer(make_plan(reader.inventory(), Inventory()), reader, target)
    assert target.inventory() == reader.inventory()


def test_an_image_without_a_tag_is_left_out_with_a_notice(bundle: Bundle) -> None:
    store = MemoryStore()
    kept, nameless = put_image(store, "", "v1"), put_image(store, "", layers=(b"nameless",))
    described = [descriptor(store, "", digest, "v1") for digest in (kept, nameless)]
    for notes in ({REF_NAME: "registry.example.com/x:v2"}, None):
        described[1]["annotations"] = notes
        files = {**layout_files(store, ""), "index.json": index(described)}
        contents = bundle({"platform.tar": tar_of(files)}).contents
        assert tags_of(contents) == {"v1": kept}
        assert contents.findings == ()
        (notice,) = contents.notices
        assert notice == (
            f"platform.tar: index.json: {nameless} has no annotation {SHORT_TAG}, "
            "so it has no tag to go by; left out"
        )


def test_blobs_that_nothing_needs_do_not_matter(bundle: Bundle) -> None:
    files = platform()
    orphan = b"left from a pull that was interrupted"
    files[f"blobs/sha256/{Digest.of(orphan).encoded}"] = orphan
    files["notes.txt"] = b"and files of nobody"
    reader = bundle({"platform.tar": tar_of(files)})
    assert reader.inventory() == WANTED.filtered(lambda path: path in ("", "release-channel"))


@pytest.mark.parametrize("kept_path", [False, True], ids=["legacy", "renamed"])
def test_an_archive_of_the_first_format_belongs_below_its_module(
    bundle: Bundle, kept_path: bool
) -> None:
    store = MemoryStore()
    put_image(store, "modules/console", "v1", layers=(b"module",))
    put_image(store, "modules/console/release", "v1", "alpha", layers=(b"release",))
    put_image(store, "modules/console/extra/agent", "3", layers=(b"agent",))
    files = {}
    for path in store.inventory().repositories:
        prefix = path if kept_path else path.removeprefix("modules/console").removeprefix("/")
        files.update(layout_files(store, path, prefix=prefix))
    # With its path it may be called what it likes.
    name = "module-console-v1.tar" if kept_path else "module-console.tar"
    reader = bundle({name: tar_of(files)})
    assert reader.inventory() == store.inventory()
    target = MemoryStore()
    transfer(make_plan(reader.inventory(), Inventory()), reader, target)
    assert target.inventory() == store.inventory()


def test_an_image_whose_document_keeps_its_type_to_itself_has_that_of_its_descriptor(
    bundle: Bundle,
) -> None:
    store = MemoryStore()
    digest = put_image(store, "", "v1", docker=True)
    document = json.loads(store.manifest("", digest).raw)
    del document["mediaType"]
    bare = json.dumps(document).encode()
    typeless = store.add_manifest("", bare, types.DOCKER_MANIFEST, tags=["v1"])
    assert typeless.media_type == types.DOCKER_MANIFEST
    listed = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": types.DOCKER_INDEX,
            "manifests": [
                {
                    "mediaType": types.DOCKER_MANIFEST,
                    "digest": str(typeless.digest),
                    "size": len(bare),
                }
            ],
        }
    ).encode()
    child = MemoryStore()
    put_image(child, "", docker=True)
    child.add_manifest("", bare, types.DOCKER_MANIFEST)
    child.add_manifest("", listed, types.DOCKER_INDEX, tags=["v1"])
    for made in (store, child):
        reader = bundle({"platform.tar": tar_of(layout_files(made, ""))})
        node = reader.inventory().repository("").manifests[typeless.digest]
        assert node.descriptor.media_type == types.DOCKER_MANIFEST


@pytest.mark.parametrize("dialect", ["gnu", "pax"])
def test_archives_that_were_packed_by_hand_are_read_too(tmp_path: Path, dialect: str) -> None:
    files = {}
    for path in WANTED.repositories:
        files.update(layout_files(STORE, path))
    (tmp_path / "bundle").mkdir()
    gnu_tar(files, tmp_path, tmp_path / "bundle/everything.tar", f"--format={dialect}", ".")
    with BundleReader([tmp_path / "bundle"]) as reader:
        assert reader.inventory() == WANTED


# -- what is wrong ---------------------------------------------------------------------------------


def refused(reader: BundleReader) -> tuple[Finding, ...]:
    """What is wrong with a bundle, which therefore nobody may push from."""
    findings = reader.contents.findings
    assert findings
    with pytest.raises(DamagedBundleError) as caught:
        reader.inventory()
    message = str(caught.value)
    assert message.startswith(f"{reader.name} is damaged or incomplete; copy it again")
    assert all(f"\n  {finding}" in message for finding in findings[:20])
    return findings


def test_every_missing_blob_is_named_with_its_tags(bundle: Bundle) -> None:
    content = WANTED.repository("")
    for blob in content.blobs:
        files = platform(**{f"blobs/sha256/{blob.encoded}": None})
        (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
        assert (finding.place, finding.repository) == ("platform.tar", "")
        assert finding.digest == blob
        assert finding.problem == f"blob {blob} is missing"
        assert finding.tags
        assert set(finding.tags) <= set(content.tags)
    base = Digest.of(b"base layer " * 300)
    files = platform(**{f"blobs/sha256/{base.encoded}": None})
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    component = Digest.parse(str(content.manifests[content.tags["v1.0.0"]].children[0].digest))
    assert finding.tags == tuple(sorted(["latest", "v1.0.0", "v1.1.0", component.encoded]))


def test_every_missing_manifest_is_named_with_its_tags(bundle: Bundle) -> None:
    content = WANTED.repository("")
    for digest in content.manifests:
        files = platform(**{f"blobs/sha256/{digest.encoded}": None})
        findings = refused(bundle({"platform.tar": tar_of(files)}))
        missing = [one for one in findings if one.problem == f"manifest {digest} is missing"]
        assert [(one.repository, one.digest) for one in missing] == [("", digest)]
        assert missing[0].tags


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "index.json: not the index of a layout"),
        (b"not JSON", "index.json: not the index of a layout"),
        (b"\xff\xfe\x00", "index.json: not the index of a layout"),
        (b"[]", "index.json: not the index of a layout"),
        (b"3", "index.json: not the index of a layout"),
        (b"{}", "index.json: not the index of a layout"),
        (b'{"manifests": {"a": 1}}', "index.json: not the index of a layout"),
        (b'{"manifests": [[]]}', "index.json: not the index of a layout"),
        (b'{"manifests": [{"digest": 7}]}', "index.json: not the index of a layout"),
        (b'{"manifests": [{"digest": "sha256:short"}]}', "is not a digest"),
        (b"[" * 100_000, "index.json: not the index of a layout"),
        (b"9" * 5_000, "index.json: not the index of a layout"),
    ],
    ids=lambda one: repr(one[:30]) if isinstance(one, bytes) else "",
)
def test_an_index_that_is_none_is_found(bundle: Bundle, data: bytes, told: str) -> None:
    reader = bundle({"platform.tar": tar_of(platform(**{"index.json": data}))})
    (finding,) = refused(reader)
    assert (finding.place, finding.repository) == ("platform.tar", "")
    assert told in finding.problem
    # The other layouts of the archive are read nonetheless.
    assert tags_of(reader.contents, "release-channel")


@pytest.mark.parametrize("tag", ["", "a/b", "../x", "-x", "v1\n", "é", "x" * 129, 7, ["v1"]])
def test_a_tag_that_no_registry_takes_is_found(bundle: Bundle, tag: Any) -> None:
    store = MemoryStore()
    digest = put_image(store, "", "v1")
    described = descriptor(store, "", digest, "v1")
    described["annotations"][SHORT_TAG] = tag
    files = {**layout_files(store, ""), "index.json": index([described])}
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    assert finding.problem == f"index.json: {tag!r} is not a tag"


@pytest.mark.parametrize("path", ["Upper", "a b", "a/_/b", "-x", "é"])
def test_a_layout_whose_path_names_no_repository_is_found(bundle: Bundle, path: str) -> None:
    files = platform()
    files.update(layout_files(STORE, "release-channel", prefix=path))
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    assert finding.place == "platform.tar"
    assert f"{path!r} is not a repository path" in finding.problem


def test_a_blob_of_the_wrong_length_is_found(bundle: Bundle) -> None:
    blob = Digest.of(b"component")
    files = platform(**{f"blobs/sha256/{blob.encoded}": b"component!"})
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    assert finding.problem == f"blob {blob} has 10 bytes instead of 9"
    assert "v1.0.0" in finding.tags


def test_a_manifest_of_other_bytes_is_found(bundle: Bundle) -> None:
    digest = WANTED.repository("release-channel").tags["alpha"]
    path = f"release-channel/blobs/sha256/{digest.encoded}"
    files = platform()
    files[path] = files[path].replace(b"schemaVersion", b"schemaversion")
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    assert finding.tags == ("alpha", "v1.0.0")
    assert f"manifest {digest} is damaged: its bytes hash to sha256:" in finding.problem


def _tagged(raw: bytes) -> dict[str, bytes]:
    """A layout whose one tag names some bytes."""
    digest = Digest.of(raw)
    entry = {"digest": str(digest), "annotations": {SHORT_TAG: "v1"}}
    return {f"blobs/sha256/{digest.encoded}": raw, "index.json": index([entry])}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"{", "cannot be read"),
        (b"[" * 50_000, "cannot be read"),
        (b'{"schemaVersion": 1}', "only 2 is carried"),
        (b'{"schemaVersion": 2, "mediaType": "text/plain"}', "has media type text/plain"),
        (b'{"schemaVersion": 2, "config": {"digest": "sha256:x", "size": 1}}', "is not a digest"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "bytes, more than any manifest has"),
    ],
    ids=lambda one: repr(one[:30]) if isinstance(one, bytes) else "",
)
def test_a_manifest_that_is_none_is_found(bundle: Bundle, raw: bytes, told: str) -> None:
    (finding,) = refused(bundle({"platform.tar": tar_of(_tagged(raw))}))
    assert finding.tags == ("v1",)
    assert finding.digest == Digest.of(raw)
    assert told in finding.problem


def test_a_manifest_may_not_name_a_digest_that_is_not_there(bundle: Bundle) -> None:
    gone = Digest.of(b"gone")
    config = {"mediaType": types.OCI_CONFIG, "digest": str(gone), "size": 4}
    raw = json.dumps({"schemaVersion": 2, "mediaType": types.OCI_MANIFEST, "config": config})
    (finding,) = refused(bundle({"platform.tar": tar_of(_tagged(raw.encode()))}))
    assert str(finding) == f"platform.tar: repository /, tag v1: blob {gone} is missing"


def test_indexes_may_nest_as_deep_as_they_like(bundle: Bundle) -> None:
    store = MemoryStore()
    digest = put_image(store, "")
    for level in range(3_000):
        digest = put_index(store, "", children=[digest], note=str(level))
    store.put_tag("", "deep", store.manifest("", digest))
    files = layout_files(store, "")
    assert bundle({"platform.tar": tar_of(files)}).inventory() == store.inventory()
    blob = Digest.of(b"layer")
    del files[f"blobs/sha256/{blob.encoded}"]
    (finding,) = refused(bundle({"platform.tar": tar_of(files)}))
    assert finding.tags == ("deep",)


def test_a_file_that_is_there_twice_is_found(bundle: Bundle) -> None:
    files = platform()
    path = next(iter(files))
    for again in (path, "./" + path):
        data = tar_of([*files.items(), (again, b"other bytes")])
        (finding,) = refused(bundle({"platform.tar": data}))
        assert f"{path} is there twice" in finding.problem


def test_a_damaged_header_is_located_and_what_lies_behind_is_missing(bundle: Bundle) -> None:
    files = platform()
    data = bytearray(tar_of(files))
    at = data.index(b"index.json\0")
    data[at] ^= 1
    findings = refused(bundle({"platform.tar": bytes(data)}))
    assert findings[0].problem.startswith(f"at byte {at}: this is not a header")


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"6"], ids=["hard", "symlink", "dev", "pipe"])
def test_links_and_devices_are_found(bundle: Bundle, kind: bytes) -> None:
    data = tar_of(platform())[:-1024] + member("blobs/x", kind=kind, link="/etc") + bytes(1024)
    reader = bundle({"platform.tar": data})
    (finding,) = refused(reader)
    assert "'blobs/x', which is not a regular file; bundles have no others" in finding.problem


# -- anything at all -------------------------------------------------------------------------------


@settings(max_examples=25)
@given(store=stores())
def test_reading_a_bundle_gives_back_what_was_put_in(
    store: MemoryStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files: dict[str, bytes] = {}
    for path in store.inventory().repositories:
        files.update(layout_files(store, path))
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "all.tar").write_bytes(tar_of(files))
    with BundleReader([folder]) as reader:
        assert reader.inventory() == store.inventory()
        target = MemoryStore()
        transfer(make_plan(reader.inventory(), Inventory()), reader, target, run=Run(jobs=2))
    assert target.inventory() == store.inventory()


WHOLE = tar_of({**platform(), **layout_files(STORE, "modules/console")})


@MORE_EXAMPLES
@given(data=st.data())
def test_whatever_happened_to_the_bytes_the_answer_is_ours(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mutated = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        some = data.draw(st.binary(min_size=1, max_size=20))
        mutated[at : at + len(some)] = some
    if data.draw(st.booleans()):
        del mutated[data.draw(st.integers(0, len(mutated))) :]
    path = tmp_path_factory.getbasetemp() / "module-x.tar"
    path.write_bytes(mutated)
    with BundleReader([path]) as reader:
        contents = reader.contents
        for finding in contents.findings:
            assert finding.place == "module-x.tar"
            assert finding.problem
        if not contents.findings:
            assert list(reader.inventory().gaps()) == []
        elif not reader._archives[0].problem:
            with pytest.raises(DamagedBundleError, match=r"module-x.tar is damaged or incomplete"):
                reader.inventory()
