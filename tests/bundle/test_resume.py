"""A pull that was stopped goes on where it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.bundle.archive import Entry
from mirror.bundle.place import EARLIER, Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.staging import JOURNAL, Journal
from mirror.bundle.verify import verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.durable import Folder
from mirror.errors import CancelledError, ChangedLeftoversError, IncompleteError, IntegrityError
from mirror.oci import Digest
from mirror.run import Cancellation, Run
from mirror.sync import MemoryStore, make_plan, transfer
from mirror.sync.plan import Plan
from tests.support.bundles import archives_of, pack_store, seal_of
from tests.support.inventories import put_image
from tests.support.sources import CountedSource, StopError

PIECE = 1 << 20
BIG = 12 << 20


def _store(*, version: str = "v1") -> MemoryStore:
    """A few small images, and one layer of 12 MiB that several repositories share."""
    store = MemoryStore()
    big = bytes(range(256)) * (BIG // 256)
    put_image(store, "", version, layers=(big, b"root " + version.encode()))
    put_image(store, "install", version, layers=(big, b"install"))
    put_image(store, "security/trivy-db", "2", layers=(b"db" * 5000,))
    put_image(store, "modules/m", "v3", layers=(b"m" * 300_000,))
    return store


STORE = _store()
SEAL = seal_of(archives_of(STORE.inventory()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Digest]:
    """The bundle of one uninterrupted pull."""
    folder = tmp_path_factory.mktemp("plain")
    pack_store(STORE, folder)
    return files_in(folder)


def files_in(folder: Path) -> dict[str, Digest]:
    """Every file of a folder by what it hashes to."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: Digest.of(path.read_bytes()) for path in files}


def pull(source: CountedSource, folder: Path, seal: Seal = SEAL, *, jobs: int = 1) -> Plan:
    """What a pull does with a plan; return what it had to carry.

    Like `operations.pull.pack`, it goes on once without what an earlier run had written wrongly.
    """
    try:
        return pull_once(source, folder, seal, jobs=jobs)
    except ChangedLeftoversError:
        return pull_once(source, folder, seal, jobs=jobs)


def pull_once(source: CountedSource, folder: Path, seal: Seal = SEAL, *, jobs: int = 1) -> Plan:
    with BundleWriter(folder, seal) as writer:
        plan = make_plan(seal.inventory, writer.held(seal.inventory))
        transfer(plan, source, writer, run=Run(jobs=jobs))
        writer.finish()
    return plan


@settings(max_examples=12)
@given(stops=st.lists(st.integers(0, 13 << 20), min_size=1, max_size=4), jobs=st.integers(1, 3))
def test_stopped_anywhere_any_number_of_times_it_ends_with_the_same_bytes(
    stops: list[int],
    jobs: int,
    plain: dict[str, Digest],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("resumed")
    given_bytes = 0
    for stop in stops:
        source = CountedSource(STORE, most=stop)
        with suppress(StopError):
            pull(source, folder, jobs=jobs)
        given_bytes += source.given
        if (folder / "inventory.json").exists():
            break
        assert not list(folder.glob("*.tar"))
    else:
        source = CountedSource(STORE)
        pull(source, folder, jobs=jobs)
        given_bytes += source.given
    assert files_in(folder) == plain
    # Of every blob under way when it stopped up to 256 KiB were not noted yet, and two pieces each
    # were in hand; each worker may have begun one more before it heard of the end.
    lost = len(stops) * jobs * ((256 << 10) + 3 * PIECE)
    assert given_bytes <= sum(STORE.inventory().blob_sizes().values()) + lost


def test_finished_blobs_are_not_fetched_again_and_a_half_one_continues(tmp_path: Path) -> None:
    sizes = STORE.inventory().blob_sizes()
    big = max(sizes, key=lambda digest: sizes[digest])
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=11 << 20), tmp_path)
    noted = Journal(Folder(tmp_path)).progress[big]
    assert (10 << 20) <= noted <= (11 << 20)
    first = CountedSource(STORE, most=(2 << 20) + 1)
    with pytest.raises(StopError):
        pull(first, tmp_path)
    assert first.asked[0] == (big, noted), "the noted half is not read again"
    finished = {d for d, n in Journal(Folder(tmp_path)).progress.items() if n == sizes[d]}
    assert finished
    second = CountedSource(STORE)
    plan = pull(second, tmp_path)
    assert {step.digest for step in plan.blobs} == sizes.keys() - finished
    assert not finished & {digest for digest, _ in second.asked}
    assert big in finished


def test_nothing_but_the_bundle_stays_behind(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=5 << 20), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {JOURNAL, "inventory.json.partial"}
    assert (tmp_path / JOURNAL).stat().st_size < 4096
    pull(CountedSource(STORE), tmp_path)
    assert set(files_in(tmp_path)) == {"inventory.json", "SHA256SUMS", *SEAL.archives}


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=11 << 20), tmp_path)
    source = CountedSource(STORE)
    with BundleWriter(tmp_path, SEAL, packing=Packing(resume=False)) as writer:
        assert not writer.held(SEAL.inventory).repositories
        transfer(make_plan(SEAL.inventory, writer.held(SEAL.inventory)), source, writer)
        writer.finish()
    assert source.given == sum(STORE.inventory().blob_sizes().values())


# -- changed plans -------------------------------------------------------------------------------


def test_of_a_changed_source_only_the_difference_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    newer = _store(version="v2")
    seal = seal_of(archives_of(newer.inventory()))
    source = CountedSource(newer)
    pull(source, tmp_path, seal)
    assert source.given < 1 << 20, "the large layer is taken over from the interrupted pull"
    with BundleReader([tmp_path]) as reader:
        assert reader.inventory() == newer.inventory()
        assert not verify_bundle(reader).findings
    assert set(files_in(tmp_path)) == {"inventory.json", "SHA256SUMS", *seal.archives}
    assert not (tmp_path / EARLIER).exists()


def test_what_is_taken_over_is_proved_first(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    for path in tmp_path.glob("*.tar.partial"):
        data = bytearray(path.read_bytes())
        if len(data) > BIG // 2:
            data[len(data) // 4] ^= 1  # both layouts' copies of the large layer
            data[3 * len(data) // 4] ^= 1
            path.write_bytes(data)
    newer = _store(version="v2")
    seal = seal_of(archives_of(newer.inventory()))
    source = CountedSource(newer)
    pull(source, tmp_path, seal)
    assert source.given >= BIG
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings


def test_a_changed_plan_that_is_stopped_too_still_gives_what_the_first_had(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    newer = _store(version="v2")
    seal = seal_of(archives_of(newer.inventory()))
    with pytest.raises(StopError):
        pull(CountedSource(newer, most=0), tmp_path, seal)
    source = CountedSource(newer)
    pull(source, tmp_path, seal)
    assert source.given < 1 << 20


# -- what cannot be trusted ----------------------------------------------------------------------


def test_after_a_power_cut_claims_are_proved(tmp_path: Path, plain: dict[str, Digest]) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    # The system comes up again, and what it had not put on the disk is zeros.
    path = max(tmp_path.glob("*.tar.partial"), key=lambda one: one.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)
    source = CountedSource(STORE)
    pull(source, tmp_path)
    assert files_in(tmp_path) == plain
    assert source.given >= BIG


def zero(folder: Path, archive: str, offset: int, size: int) -> None:
    """What the disk of a partial archive has lost."""
    with (folder / f"{archive}.partial").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def places_of_the_large_layer() -> list[tuple[str, Entry]]:
    """Where it belongs: (archive, entry), in the order in which they lie."""
    return [
        (archive.name, entry)
        for _, archive in sorted(SEAL.archives.items())
        for entry in archive.entries
        if entry.size == BIG
    ]


LOSSES: dict[str, Callable[[Entry], tuple[int, int]]] = {
    "a copy of it": lambda entry: (entry.data_offset + entry.size // 2, 4096),
    "its header": lambda entry: (entry.offset, 512),
    "its last bytes": lambda entry: (entry.data_offset + entry.size - 8, 8),
}


@pytest.mark.parametrize("copy", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_copy_of_a_blob_is_believed_after_a_power_cut(
    loss: str,
    copy: int,
    tmp_path: Path,
    plain: dict[str, Digest],
) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    archive, entry = places_of_the_large_layer()[copy]
    zero(tmp_path, archive, *LOSSES[loss](entry))
    pull(CountedSource(STORE), tmp_path)
    assert files_in(tmp_path) == plain


@pytest.mark.parametrize("copy", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_disk_lost_without_a_restart_is_noticed_and_fetched_by_the_next_run(
    loss: str, copy: int, tmp_path: Path, plain: dict[str, Digest]
) -> None:
    """It was pulled out and put in again: nothing but the bytes tells."""
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    archive, entry = places_of_the_large_layer()[copy]
    zero(tmp_path, archive, *LOSSES[loss](entry))
    with pytest.raises(IntegrityError, match=f"in {archive}.*run the same command again"):
        pull_once(CountedSource(STORE), tmp_path)
    assert not list(tmp_path.glob("*.tar"))
    source = CountedSource(STORE)
    pull(source, tmp_path)
    assert files_in(tmp_path) == plain
    assert source.given == BIG


def test_archives_that_were_copied_in_part_are_proved_first(
    tmp_path: Path, plain: dict[str, Digest]
) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    archive, entry = places_of_the_large_layer()[-1]
    os.truncate(tmp_path / f"{archive}.partial", entry.data_offset + BIG // 2)
    pull(CountedSource(STORE), tmp_path)
    assert files_in(tmp_path) == plain


def test_an_archive_that_was_taken_away_in_between_is_fetched_again(
    tmp_path: Path, plain: dict[str, Digest]
) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    (tmp_path / "platform.tar.partial").unlink()
    source = CountedSource(STORE)
    pull(source, tmp_path)
    assert source.given >= BIG
    assert files_in(tmp_path) == plain


def test_archives_of_an_earlier_bundle_are_not_taken_for_those_under_way(tmp_path: Path) -> None:
    """The process ended while it created its files, over a bundle that has no seal."""
    earlier = MemoryStore()
    put_image(earlier, "modules/m", "v0", layers=(b"earlier " * 1000,))
    pack_store(earlier, tmp_path)
    (tmp_path / "inventory.json").unlink()
    before = (tmp_path / "module-m.tar").read_bytes()
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=5 << 20), tmp_path)
    (tmp_path / "module-m.tar.partial").unlink()
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=0), tmp_path)
    assert (tmp_path / "module-m.tar").read_bytes() == before


def test_a_new_plan_that_gets_nowhere_keeps_what_the_first_had(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=BIG + 1), tmp_path)
    newer = _store(version="v2")
    seal = seal_of(archives_of(newer.inventory()))
    with BundleWriter(tmp_path, seal):
        pass
    source = CountedSource(newer)
    pull(source, tmp_path, seal)
    assert source.given < 1 << 20


def test_a_wrong_beginning_costs_that_blob_and_no_more(
    tmp_path: Path, plain: dict[str, Digest]
) -> None:
    with pytest.raises(StopError):
        pull(CountedSource(STORE, most=9 << 20), tmp_path)
    for path in tmp_path.glob("*.tar.partial"):
        data = bytearray(path.read_bytes())
        if len(data) > 1 << 20:
            data[1 << 20] ^= 0xFF
        path.write_bytes(data)
    pull(CountedSource(STORE), tmp_path)
    assert files_in(tmp_path) == plain


@pytest.mark.parametrize(
    "text",
    ["", "boot", "no journal\n", "parts y\n", "\xff" * 20, "parts 0\nsha256:zz 5\n"],
)
def test_a_journal_that_cannot_be_read_claims_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / JOURNAL
    path.write_text(text, encoding="latin-1")
    assert Journal(Folder(tmp_path)).progress == {}


@pytest.mark.parametrize("count", ["1e999", "9" * 5000, "-1", "0x10", "\u0665"])
def test_a_count_that_no_blob_has_claims_nothing(tmp_path: Path, count: str) -> None:
    path = tmp_path / JOURNAL
    path.write_text(f"parts 0\n{Digest.of(b'a')} {count}\n{Digest.of(b'b')} 6\n")
    assert dict(Journal(Folder(tmp_path)).progress) in ({Digest.of(b"b"): 6}, {})


def test_a_torn_last_line_is_no_claim(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    journal = Journal(Folder(tmp_path))
    journal.note(Digest.of(b"a"), 5)
    journal.note(Digest.of(b"b"), 6)
    journal.close()
    path.write_bytes(path.read_bytes()[:-1])
    again = Journal(Folder(tmp_path))
    assert again.progress == {Digest.of(b"a"): 5}


def test_a_journal_stays_small_however_much_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    journal = Journal(Folder(tmp_path))
    digests = [Digest.of(bytes([number])) for number in range(10)]
    for count in range(1200):
        for digest in digests:
            journal.note(digest, count)
        assert path.stat().st_size < 500_000
    journal.close()
    assert Journal(Folder(tmp_path)).progress == dict.fromkeys(digests, 1199)
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_item_keeps_what_the_others_brought(tmp_path: Path) -> None:
    class Lacking(CountedSource):
        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            if size == len(b"db" * 5000):
                return MemoryStore("nothing").blob(repository, digest, size, offset)
            return super().blob(repository, digest, size, offset)

    with pytest.raises(IncompleteError, match="no blob"):
        pull(Lacking(STORE), tmp_path)
    source = CountedSource(STORE)
    pull(source, tmp_path)
    assert source.given == len(b"db" * 5000)


def test_cancelling_is_a_stop_like_any_other(tmp_path: Path, plain: dict[str, Digest]) -> None:
    cancel = Cancellation()

    class Cancelling(CountedSource):
        def blob(
            self, repository: str, digest: Digest, size: int, offset: int = 0
        ) -> Generator[bytes, None, None]:
            for chunk in super().blob(repository, digest, size, offset):
                yield chunk
                if self.given > 6 << 20:
                    cancel.cancel()

    def cancelled() -> None:
        with BundleWriter(tmp_path, SEAL) as writer:
            plan = make_plan(SEAL.inventory, writer.held(SEAL.inventory))
            transfer(plan, Cancelling(STORE), writer, run=Run(1, cancellation=cancel))

    with pytest.raises(CancelledError):
        cancelled()
    pull(CountedSource(STORE), tmp_path)
    assert files_in(tmp_path) == plain
