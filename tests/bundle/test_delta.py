"""Deltas of small stores: read, pushed and merged where release trees do not happen to lead."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle.archive import COMPLETE, Coverage, against
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader, read_inventory
from mirror.bundle.seal import Seal
from mirror.bundle.staging import Journal
from mirror.bundle.verify import verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.durable import Folder
from mirror.errors import InputError, MissingBaseError, NotFoundError
from mirror.oci import Digest
from mirror.operations.merge import merge
from mirror.operations.push import push
from mirror.run import Run
from mirror.sync import BlobContent, Inventory, MemoryStore, make_plan, transfer, union
from mirror.sync.tree import RegistryTarget
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.support.bundles import archives_of, pack, seal_of
from tests.support.inventories import put_image, put_index, sample_store, stores
from tests.support.places import below, client_of, storage_of, stored, tree_of

LAYER = b"a layer that two repositories have" * 40


def before_and_after() -> tuple[MemoryStore, MemoryStore]:
    """A store, and the same one later: a layer of `install` is now one of a module's too."""
    before, after = MemoryStore(), MemoryStore()
    for store in (before, after):
        child = put_image(store, "install", layers=(LAYER,))
        put_index(store, "install", "v1.0.0", children=[child])
    put_image(after, "modules/console", "v1.0.0", layers=(LAYER, b"new"))
    old = after.manifest("install", child)
    after.put_tag("install", "latest", old)  # by a new tag what was there all the time
    return before, after


def fill(store: MemoryStore, registry: EmbeddedRegistry) -> None:
    with client_of(registry) as client:
        target = RegistryTarget(client, below("dkp/ee"))
        transfer(make_plan(store.inventory(), Inventory()), store, target)
    registry.requests.clear()


def load(folder: Path, registry: EmbeddedRegistry) -> int:
    """Push a bundle; return the bytes that were sent."""
    with BundleReader([folder]) as reader, client_of(registry) as client:
        return push(reader, tree_of(client), run=Run(jobs=2)).done.sent


@pytest.fixture
def delta(tmp_path: Path) -> tuple[MemoryStore, MemoryStore, Path]:
    before, after = before_and_after()
    wanted = after.inventory()
    pack(after, wanted, tmp_path / "delta", coverage=against(before.inventory(), wanted))
    return before, after, tmp_path / "delta"


# -- reading ---------------------------------------------------------------------------------------


def test_a_delta_answers_for_what_it_carries_and_speaks_of_all(
    delta: tuple[MemoryStore, MemoryStore, Path],
) -> None:
    before, after, folder = delta
    with BundleReader([folder]) as reader:
        assert reader.inventory() == after.inventory()
        assert reader.bases == (before.inventory().digest(),)
        assert reader.carried() == reader._seals[folder].carried
        assert b"".join(reader.blob("modules/console", Digest.of(b"new"), 3)) == b"new"
        for repository in ("install", "modules/console"):
            with pytest.raises(NotFoundError, match="no blob"):
                b"".join(reader.blob(repository, Digest.of(LAYER), len(LAYER)))
        for digest in before.inventory().manifest_nodes():
            with pytest.raises(NotFoundError, match="no manifest"):
                reader.manifest("install", digest)
    # As the base of the next delta it counts as what a target holds that it was pushed to.
    assert read_inventory(folder) == read_inventory(folder / "inventory.json") == after.inventory()


def test_a_deduplicated_bundle_answers_for_every_layout(tmp_path: Path) -> None:
    store = sample_store()
    seal = pack(store, store.inventory(), tmp_path, coverage=Coverage(once=True))
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == store.inventory()
        for path, content in store.inventory().repositories.items():
            for digest, size in content.blobs.items():
                half = size // 2
                expected = b"".join(store.blob(path, digest, size))
                assert b"".join(reader.blob(path, digest, size)) == expected
                assert b"".join(reader.blob(path, digest, size, half)) == expected[half:]
        with pytest.raises(NotFoundError):  # it follows what the layout speaks of, and no more
            b"".join(reader.blob("release-channel", Digest.of(b"component"), 9))
        assert verify_bundle(reader).findings == ()
    assert (seal.omissions.repeats or 0) > 0


@pytest.mark.parametrize("part_size", [700, 5000])
def test_a_delta_comes_in_parts_too(
    delta: tuple[MemoryStore, MemoryStore, Path], tmp_path: Path, part_size: int
) -> None:
    before, after, whole = delta
    wanted, folder = after.inventory(), tmp_path / "parts"
    coverage = against(before.inventory(), wanted)
    pack(after, wanted, folder, coverage=coverage, part_size=part_size)
    for archive in whole.glob("*.tar"):
        parts = sorted(folder.glob(f"{archive.name}.*.chunk"))
        assert b"".join(part.read_bytes() for part in parts) == archive.read_bytes()
    with BundleReader([folder]) as reader:
        assert reader.inventory() == wanted
        assert verify_bundle(reader).findings == ()


def test_a_pull_that_gets_another_base_keeps_what_it_has(tmp_path: Path) -> None:
    before, after = before_and_after()
    wanted = after.inventory()
    full = seal_of(archives_of(wanted))
    with BundleWriter(tmp_path / "new", full) as writer:
        plan = make_plan(wanted, writer.held(wanted))
        for step in plan.blobs:
            writer.put_blob(step, _content(after, step.source, step.digest, step.size))
    # Now as a delta: nothing has to come from the source again.
    delta = full.carried_as(against(before.inventory(), wanted))
    pack(after, wanted, tmp_path / "clean", coverage=delta.coverage)
    with BundleWriter(tmp_path / "new", delta) as writer:
        plan = make_plan(delta.carried, writer.held(delta.carried))
        for step in plan.blobs:
            assert writer.put_blob(step, _content(MemoryStore(), "", step.digest, step.size)) == 0
        for wave in plan.manifests:
            for put in wave:
                writer.put_manifest(put.repository, after.manifest(put.repository, put.digest))
        writer.finish()
    assert _files(tmp_path / "new") == _files(tmp_path / "clean")


def test_a_delta_without_any_content_is_completed_after_its_very_end_was_cut_off(
    tmp_path: Path,
) -> None:
    before, _ = before_and_after()
    wanted, folder = before.inventory(), tmp_path / "delta"
    coverage = against(wanted, wanted)
    seal = pack(before, wanted, tmp_path / "whole", coverage=coverage)
    assert seal.carried.blob_sizes() == {}
    with pytest.MonkeyPatch.context() as patch, BundleWriter(folder, seal) as writer:
        # Archives have their names by then, and the seal has not.
        patch.setattr(Folder, "write", _interrupted)
        for wave in make_plan(seal.carried, Inventory()).manifests:
            for put in wave:
                writer.put_manifest(put.repository, before.manifest(put.repository, put.digest))
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert (folder / "platform.tar").exists()
    assert not (folder / "inventory.json").exists()
    pack(before, wanted, folder, coverage=coverage)
    assert _files(folder) == _files(tmp_path / "whole")


def test_a_delta_without_any_content_takes_no_archive_for_its_own_that_was_there_before(
    tmp_path: Path,
) -> None:
    before, _ = before_and_after()
    wanted = before.inventory()
    seal = seal_of(archives_of(wanted)).carried_as(against(wanted, wanted))
    # It was killed before it had made its first archive; these are of a bundle without a seal.
    (tmp_path / "platform.tar").write_bytes(b"earlier")
    (tmp_path / "inventory.json.partial").write_bytes(seal.to_json())
    Journal(Folder(tmp_path)).close()
    with BundleWriter(tmp_path, seal):
        assert (tmp_path / "platform.tar").read_bytes() == b"earlier"
    assert (tmp_path / "platform.tar").read_bytes() == b"earlier"


def _interrupted(*_: object, **_options: object) -> None:
    raise KeyboardInterrupt


def _content(store: MemoryStore, path: str, digest: Digest, size: int) -> BlobContent:
    return BlobContent(store, path, digest, size)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- pushing ---------------------------------------------------------------------------------------


def test_what_a_new_repository_shares_with_the_base_is_mounted(
    delta: tuple[MemoryStore, MemoryStore, Path], embedded_registry: EmbeddedRegistry
) -> None:
    before, after, folder = delta
    fill(before, embedded_registry)
    sent = load(folder, embedded_registry)
    mounted = embedded_registry.requests.matching("POST", f"mount={_quoted(LAYER)}", 201)
    assert [request.path for request in mounted] == ["/v2/dkp/ee/modules/console/blobs/uploads/"]
    assert sent < len(LAYER)
    assert embedded_registry.requests.count("GET", "/blobs/") == 0
    assert _holds(embedded_registry, after.inventory())


def test_where_nothing_can_be_mounted_it_is_read_from_the_target_itself(
    delta: tuple[MemoryStore, MemoryStore, Path], embedded_registry: EmbeddedRegistry
) -> None:
    before, after, folder = delta
    fill(before, embedded_registry)
    embedded_registry.faults.add(Fault(Answer(405), "POST", "mount=", times=None))
    load(folder, embedded_registry)
    read = embedded_registry.requests.matching("GET", f"/blobs/{Digest.of(LAYER)}", 200)
    assert {request.path.rpartition("/blobs/")[0] for request in read} == {"/v2/dkp/ee/install"}
    assert _holds(embedded_registry, after.inventory())


def test_a_layer_that_is_held_in_an_unwanted_repository_is_found_there(
    tmp_path: Path, embedded_registry: EmbeddedRegistry
) -> None:
    before, after = MemoryStore(), MemoryStore()
    put_image(before, "modules/given-up", "v1", layers=(LAYER,))
    put_image(after, "modules/console", "v1", layers=(LAYER, b"new"))
    wanted = after.inventory()
    pack(after, wanted, tmp_path, coverage=against(before.inventory(), wanted))
    fill(before, embedded_registry)
    assert load(tmp_path, embedded_registry) < len(LAYER)
    assert embedded_registry.requests.count("POST", "from=dkp%2Fee%2Fmodules%2Fgiven-up") == 2
    assert _holds(embedded_registry, wanted)


def test_a_target_that_holds_more_than_the_base_takes_the_delta_too(
    delta: tuple[MemoryStore, MemoryStore, Path], embedded_registry: EmbeddedRegistry
) -> None:
    before, after, folder = delta
    fill(before, embedded_registry)
    fill(sample_store(), embedded_registry)
    load(folder, embedded_registry)
    assert _holds(embedded_registry, union([before.inventory(), after.inventory()]))


def _quoted(data: bytes) -> str:
    return str(Digest.of(data)).replace(":", "%3A")


def _holds(registry: EmbeddedRegistry, wanted: Inventory) -> bool:
    return not make_plan(wanted, stored(storage_of(registry), "dkp/ee"))


# -- merging ---------------------------------------------------------------------------------------


@given(older=stores(), newer=stores(), newest=stores(), once=st.booleans())
@settings(max_examples=25)
def test_bases_and_deltas_merge_into_what_a_complete_pull_makes(
    older: MemoryStore, newer: MemoryStore, newest: MemoryStore, once: bool
) -> None:
    wanted = [store.inventory() for store in (older, newer, newest)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        pack(older, wanted[0], folder / "base", coverage=Coverage(once=once))
        pack(newer, wanted[1], folder / "one", coverage=against(wanted[0], wanted[1], once=once))
        pack(newest, wanted[2], folder / "two", coverage=against(wanted[1], wanted[2]))
        pack(newest, wanted[2], folder / "all")
        names = ("base", "one", "two")
        readers = [BundleReader([folder / one]) for one in names]
        try:
            merge(readers, folder / "out", run=Run(jobs=2))
        finally:
            for reader in readers:
                reader.close()
        assert _files(folder / "out") == _files(folder / "all")


def test_a_delta_may_lead_back_to_what_was_before(tmp_path: Path) -> None:
    """A release was withdrawn: the last bundle speaks of what the base does."""
    before, after = before_and_after()
    old, new = before.inventory(), after.inventory()
    pack(before, old, tmp_path / "base")
    pack(after, new, tmp_path / "forth", coverage=against(old, new))
    pack(before, old, tmp_path / "back", coverage=against(new, old))
    with ExitStack() as opened:
        names = ("base", "forth", "back")
        readers = [opened.enter_context(BundleReader([tmp_path / one])) for one in names]
        merge(readers, tmp_path / "out", run=Run(jobs=2))
    assert _files(tmp_path / "out") == _files(tmp_path / "base")


def test_what_is_in_no_bundle_is_named(tmp_path: Path) -> None:
    before, after = before_and_after()
    wanted = after.inventory()
    pack(after, wanted, tmp_path / "delta", coverage=against(before.inventory(), wanted))
    with (
        BundleReader([tmp_path / "delta"]) as reader,
        pytest.raises(MissingBaseError, match="no base was named; name the base in front") as told,
    ):
        merge([reader], tmp_path / "out")
    assert any(str(Digest.of(LAYER)) in line for line in told.value.lacking)
    assert not (tmp_path / "out").exists()


def test_a_bundle_without_a_seal_may_be_the_base_and_not_the_end(tmp_path: Path) -> None:
    before, after = before_and_after()
    wanted = after.inventory()
    pack(before, before.inventory(), tmp_path / "base")
    (tmp_path / "base" / "inventory.json").unlink()
    pack(after, wanted, tmp_path / "delta", coverage=against(before.inventory(), wanted))
    pack(after, wanted, tmp_path / "all")
    with BundleReader([tmp_path / "base"]) as base, BundleReader([tmp_path / "delta"]) as delta:
        merge([base, delta], tmp_path / "out")
        with pytest.raises(InputError, match=r"has no inventory\.json"):
            merge([delta, base], tmp_path / "other")
    assert _files(tmp_path / "out") == _files(tmp_path / "all")


def test_a_merge_whose_outcome_was_not_named_replaces_no_delta(
    delta: tuple[MemoryStore, MemoryStore, Path], tmp_path: Path
) -> None:
    """The last place named is the outcome's: with its name forgotten, that is the newest delta."""
    before, after, place = delta
    pack(before, before.inventory(), tmp_path / "base")
    pack(after, after.inventory(), tmp_path / "other")
    kept = _files(place)
    told = f"{place}, the last place named, is where the result goes, and has a delta"
    for name, rest in (
        ("base", f" to {tmp_path / 'base'}; name OUT behind it"),
        ("other", "; name OUT behind it"),
    ):
        for force in (False, True):
            with (
                BundleReader([tmp_path / name]) as reader,
                pytest.raises(InputError) as caught,
            ):
                merge([reader], place, force=force)
            assert str(caught.value) == told + rest
    assert _files(place) == kept


def test_an_interrupted_merge_is_completed_by_the_next(tmp_path: Path) -> None:
    before, after = before_and_after()
    wanted = after.inventory()
    pack(before, before.inventory(), tmp_path / "base")
    seal = pack(after, wanted, tmp_path / "delta", coverage=against(before.inventory(), wanted))
    pack(after, wanted, tmp_path / "all")
    complete = seal.carried_as(COMPLETE)
    with BundleWriter(tmp_path / "out", complete) as writer:
        step = make_plan(wanted, writer.held(wanted)).blobs[0]
        writer.put_blob(step, _content(after, step.source, step.digest, step.size))
    assert all(path.suffix == ".partial" for path in (tmp_path / "out").iterdir())
    with BundleReader([tmp_path / "base"]) as base, BundleReader([tmp_path / "delta"]) as delta:
        report = merge([base, delta], tmp_path / "out")
    assert report.copied == sum(wanted.blob_sizes().values()) - step.size
    assert _files(tmp_path / "out") == _files(tmp_path / "all")
    assert Seal.from_json((tmp_path / "out" / "inventory.json").read_bytes()) == complete


@pytest.mark.parametrize("compress", [False, True])
def test_a_damaged_copy_leaves_no_trace_where_another_bundle_has_a_sound_one(
    tmp_path: Path, compress: bool
) -> None:
    """The damaged bytes are in place, and hashed, before the whole blob proves them wrong."""
    tries = (bytes(8 << 20) + bytes([number]) for number in range(256))
    layer = next(data for data in tries if Digest.of(data).encoded.startswith("0"))  # lies in front
    store = MemoryStore()
    put_image(store, "", "v1.0.0", layers=(layer,))
    for name in ("sound", "damaged"):
        pack(store, store.inventory(), tmp_path / name)
    with (tmp_path / "damaged" / "platform.tar").open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    with (
        BundleReader([tmp_path / "sound"]) as sound,
        BundleReader([tmp_path / "damaged"]) as damaged,
    ):
        report = merge([sound, damaged], tmp_path / "out", packing=Packing(compress=compress))
    assert report.copied == len(layer) + 2
    with BundleReader([tmp_path / "out"]) as merged:
        assert verify_bundle(merged).findings == ()
    if not compress:
        assert _files(tmp_path / "out") == _files(tmp_path / "sound")
