"""Archives of other programs are read, and those that mean no good are refused."""

from __future__ import annotations

import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.files import ReadAt
from mirror.bundle.members import TarMember, members
from mirror.errors import DamagedBundleError
from tests.support.inventories import LONG_PATH, sample_store
from tests.support.strategies import MORE_EXAMPLES
from tests.support.tars import gnu_tar, layout_files, member, tar_of

END = bytes(1024)


def read(path: Path) -> dict[str, bytes]:
    """Every file that is found in an archive, with its bytes."""
    with closing(ReadAt(path)) as file:
        return {one.path: file.read(one.offset, one.size) for one in members(file)}


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[bytes], Path]:
    """Put some bytes where an archive would be."""

    def put(data: bytes) -> Path:
        path = tmp_path / "platform.tar"
        path.write_bytes(data)
        return path

    return put


# -- dialects --------------------------------------------------------------------------------------


def _sample_files(longest: int) -> dict[str, bytes]:
    files = {}
    for path in ("", "release-channel", "modules/console", LONG_PATH):
        files.update(layout_files(sample_store(), path))
    files["empty"] = b""
    files["exactly-one-block"] = bytes(range(256)) * 2
    return {path: data for path, data in files.items() if len(path) <= longest}


@pytest.mark.parametrize("arguments", [["."], ["--no-recursion", "."]], ids=["dotted", "nothing"])
@pytest.mark.parametrize(
    ("dialect", "longest"),
    [("gnu", 999), ("oldgnu", 999), ("pax", 999), ("ustar", 230), ("v7", 90)],
)
def test_every_dialect_of_gnu_tar_is_read(
    tmp_path: Path, dialect: str, longest: int, arguments: list[str]
) -> None:
    files = _sample_files(longest)
    assert any(len(path) > 100 for path in files) == (longest > 100)
    path = tmp_path / "platform.tar"
    gnu_tar(files, tmp_path, path, f"--format={dialect}", *arguments)
    assert read(path) == (files if arguments == ["."] else {})


@pytest.mark.parametrize("options", [["--sort=name"], ["-b1"], ["--numeric-owner", "-b1"]])
def test_prefixes_directories_and_blocking_make_no_difference(
    tmp_path: Path, options: list[str]
) -> None:
    files = _sample_files(999)
    path = tmp_path / "platform.tar"
    names = sorted({name.partition("/")[0] for name in files})
    gnu_tar(files, tmp_path, path, *options, *names)
    assert read(path) == files


def test_a_pax_header_wins_over_what_the_plain_one_has_room_for(
    archive: Callable[[bytes], Path],
) -> None:
    data = b"x" * 700
    entry = member("short", data, size=0, pax={"path": "a/" + "long/" * 40 + "name", "size": "700"})
    # Global headers carry comments and are passed over.
    comment = member("pax_global_header", b"24 comment=of no matter\n", kind=tarfile.XGLTYPE)
    path = archive(comment + entry + member("next", b"y") + END)
    assert read(path) == {"a/" + "long/" * 40 + "name": data, "next": b"y"}
    # One that speaks of every file's path or size would be read in one way here, in another there.
    for record in (b"12 path=abc\n", b"9 size=1\n"):
        path = archive(member("g", record, kind=tarfile.XGLTYPE) + entry + END)
        with pytest.raises(DamagedBundleError, match="a pax header for all files"):
            read(path)


def test_a_long_name_of_gnu_tar_holds_for_one_entry(archive: Callable[[bytes], Path]) -> None:
    path = archive(tar_of({"n" * 300: b"one", "short": b"two"}))
    assert read(path) == {"n" * 300: b"one", "short": b"two"}


def test_offsets_are_those_of_header_and_data(archive: Callable[[bytes], Path]) -> None:
    path = archive(tar_of({"a": b"one", "n" * 300: b"two"}))
    with closing(ReadAt(path)) as file:
        assert list(members(file)) == [
            TarMember("a", 0, 512, 3),
            TarMember("n" * 300, 1024, 1024 + 3 * 512, 3),
        ]


@given(
    files=st.dictionaries(
        st.text("ab-.", min_size=1, max_size=150).filter(lambda name: name not in (".", "..")),
        st.sampled_from([0, 1, 511, 512, 513, 2000]).map(bytes),
        max_size=5,
    ),
    dialect=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_unpacking_undoes_packing(
    files: dict[str, bytes], dialect: Literal[0, 1, 2], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.tar"
    path.write_bytes(
        b"".join(member(name, data, dialect=dialect) for name, data in files.items()) + END
    )
    assert read(path) == files


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            0: st.one_of(st.sampled_from([b"b", b"n" * 100, b"d/", "ä".encode()]), st.binary()),
            124: st.sampled_from(
                [b"00000000000\0", b"3\0", b" 1 ", b"1_0", b"9", b"-1", b"\x80\1"]
            ),
            136: st.sampled_from([b"00000000017\0", b"x"]),
            148: st.sampled_from([b"0\0", b"0017777\0", b"-1", b"\0\0"]),
            156: st.sampled_from([tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, b"Z"]),
            345: st.sampled_from([b"prefix", b"/"]),
        },
    ),
    stated=st.booleans(),
)
@MORE_EXAMPLES
def test_a_header_says_the_same_behind_one_like_it_as_alone(
    fields: dict[int, bytes], stated: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "alike.tar"
    header = bytearray(member("a", dialect=tarfile.USTAR_FORMAT))
    for at, field in fields.items():
        room = {0: 100, 345: 155, 156: 1, 148: 8}.get(at, 12)
        header[at : at + room] = field[:room].ljust(room, b"\0")
    if 148 not in fields and stated:
        header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))

    def told(before: bytes) -> str:
        path.write_bytes(before + header + END)
        with closing(ReadAt(path)) as file:
            try:
                found = [(one.path, one.header_offset - len(before)) for one in members(file)]
            except DamagedBundleError as err:
                return err.problem.partition(": ")[2]
        return str(found[1:] if before else found)

    assert told(member("a", dialect=tarfile.USTAR_FORMAT)) == told(b"")


def test_of_headers_alike_the_first_alone_is_left_to_the_tarfile_module(
    archive: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tar_of({f"blobs/sha256/{number}": b"x" * number for number in range(100)}))
    frombuf, parsed = tarfile.TarInfo.frombuf, []

    def counted(data: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        parsed.append(data)
        return frombuf(data, encoding, errors)

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", counted)
    assert len(read(path)) == 100
    assert len(parsed) == 1


# -- what is refused -------------------------------------------------------------------------------


def _pax(records: bytes) -> bytes:
    return member("pax", records, kind=tarfile.XHDTYPE)


HOSTILE: dict[str, tuple[bytes, int, str]] = {
    "absolute": (member("/etc/passwd", b"x"), 0, "the name '/etc/passwd', which leads outside"),
    "parent": (member("a/../../b", b"x"), 0, "the name 'a/../../b', which leads outside"),
    "dots": (member("..", b"x"), 0, "the name '..', which leads outside"),
    "nameless": (member("./.", b"x"), 0, "which leads outside or is not a name"),
    "backslash": (member("a\\..\\b", b"x"), 0, r"the name 'a\\..\\b', which leads outside"),
    "control": (member("a\x1b[2Jb", b"x"), 0, r"the name 'a\x1b[2Jb', which leads outside"),
    "symlink": (
        member("a", kind=tarfile.SYMTYPE, link="/etc"),
        0,
        "'a', which is not a regular file",
    ),
    "symlink like a folder": (
        member("a/", kind=tarfile.SYMTYPE, link="/etc"),
        0,
        "'a/', which is not a regular file; bundles have no others",
    ),
    "hard link": (
        member("a", kind=tarfile.LNKTYPE, link="b"),
        0,
        "'a', which is not a regular file",
    ),
    "device": (member("a", kind=tarfile.CHRTYPE), 0, "'a', which is not a regular file"),
    "pipe": (member("a", kind=tarfile.FIFOTYPE), 0, "'a', which is not a regular file"),
    "unknown kind": (member("a", b"x", kind=b"Z"), 0, "'a', which is not a regular file"),
    "sparse": (member("a", b"x", kind=tarfile.GNUTYPE_SPARSE), 0, "which is not a regular file"),
    "pax sparse": (
        member("a", b"x", pax={"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}),
        512,
        "a sparse file, which bundles do not have",
    ),
    "gigantic": (
        member("a", b"x", size=8 << 40),
        0,
        "'a' of 8796093022208 bytes, beyond the archive's end",
    ),
    "negative": (member("a", b"x", size=-512), 0, "'a' of -512 bytes, beyond the archive's end"),
    "gigantic pax": (
        member("a", b"x", pax={"size": "9" * 19}),
        1024,
        f"'a' of {'9' * 19} bytes, beyond the archive's end",
    ),
    "pax size that is none": (member("a", b"x", pax={"size": "-1"}), 512, "a pax size '-1'"),
    "long name too long": (
        member("././@LongLink", b"n" * 70_000, kind=tarfile.GNUTYPE_LONGNAME) + member("a"),
        0,
        "an extended header of 70000 bytes",
    ),
    "long name without end": (
        member("././@LongLink", size=1 << 40, kind=tarfile.GNUTYPE_LONGNAME),
        0,
        "of 1099511627776 bytes, beyond the archive's end",
    ),
    "huge pax": (_pax(b"70000 comment=" + b"x" * 69_985 + b"\n"), 0, "an extended header of 70000"),
    "pax without length": (_pax(b"comment=x\n") + member("a"), 512, "this is not a pax header"),
    "pax of no length": (_pax(b"0 comment=x\n") + member("a"), 512, "this is not a pax header"),
    "pax with a short length": (_pax(b"3 a=b\n") + member("a"), 512, "this is not a pax header"),
    "pax without newline": (_pax(b"8 a=bcde") + member("a"), 512, "this is not a pax header"),
    "pax with a name outside": (
        member("a", b"x", pax={"path": "../../etc/cron.d/x"}),
        0,
        "the name '../../etc/cron.d/x', which leads outside",
    ),
    "long name of a pax header": (
        member("a", b"x", pax={"path": "n" * 513}),
        0,
        "a name of 513 characters",
    ),
    "long name outside": (
        member("././@LongLink", b"/" + b"n" * 150 + b"\0", kind=tarfile.GNUTYPE_LONGNAME)
        + member("a"),
        0,
        "which leads outside",
    ),
    "noise": (bytes(range(256)) * 2, 0, "this is not a header"),
}


@pytest.mark.parametrize("before", [b"", member("good", b"data")], ids=["first", "second"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_has_no_business_in_a_bundle_is_refused_where_it_lies(
    archive: Callable[[bytes], Path], kind: str, before: bytes
) -> None:
    data, offset, told = HOSTILE[kind]
    path = archive(before + data + END)
    with pytest.raises(DamagedBundleError) as caught:
        read(path)
    message = str(caught.value)
    # Longer archives may be read further before it shows.
    if "behind" not in told:
        assert message.startswith(f"platform.tar: at byte {len(before) + offset}: ")
    assert message.startswith("platform.tar: at byte ")
    assert told in message
    assert message.endswith(
        "; the archive is damaged or not part of a bundle, copy it again from its origin"
    )
    assert len(message) < 500


def test_nothing_that_a_header_claims_is_allocated_unseen(
    archive: Callable[[bytes], Path],
) -> None:
    path = archive(member("a", b"x", size=1 << 39) + END)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedBundleError, match="beyond the archive's end"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 700, 1024, 1500])
def test_an_archive_that_is_cut_short_says_so(archive: Callable[[bytes], Path], size: int) -> None:
    whole = tar_of({"a": b"x" * 600, "b": b"y"})
    with pytest.raises(DamagedBundleError, match=r"platform.tar: at byte \d+: .*end"):
        read(archive(whole[:size]))


def test_an_archive_without_its_end_marker_is_not_whole(archive: Callable[[bytes], Path]) -> None:
    told = "at byte 1024: the archive ends without its end marker"
    with pytest.raises(DamagedBundleError, match=told):
        read(archive(member("a", b"x")))


# -- anything at all -------------------------------------------------------------------------------


def _seeds() -> Iterator[bytes]:
    yield tar_of({"blobs/sha256/x": b"data" * 200, "n" * 200: b"y", "index.json": b"{}"})
    yield member("p" * 200, b"z" * 600, dialect=tarfile.PAX_FORMAT) + member("q", b"") + END
    yield (
        member("d/", kind=tarfile.DIRTYPE) + member("d/f", b"1", dialect=tarfile.USTAR_FORMAT) + END
    )


SEEDS = tuple(_seeds())


@given(seed=st.sampled_from(SEEDS), data=st.data())
@MORE_EXAMPLES
def test_whatever_the_bytes_are_the_answer_is_files_or_our_error(
    seed: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mutated = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + 12] = data.draw(st.binary(max_size=12))
    if data.draw(st.booleans()):
        _repair_checksums(mutated)  # a hostile author knows how to compute them
    del mutated[data.draw(st.integers(0, len(mutated))) if data.draw(st.booleans()) else 10**9 :]
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    path.write_bytes(mutated)
    try:
        found = read(path)
    except DamagedBundleError as err:
        assert str(err).startswith("mutated.tar: at byte ")  # noqa: PT017
        return
    for name, content in found.items():
        assert len(content) <= len(mutated)
        assert not name.startswith("/")
        assert ".." not in name.split("/")


def _repair_checksums(data: bytearray) -> None:
    """Give every block that was a header a right checksum again."""
    for at in range(0, len(data) - 511, 512):
        block = data[at : at + 512]
        if b"ustar" in block[250:270]:
            total = 256 + sum(block[:148]) + sum(block[156:])
            data[at + 148 : at + 156] = b"%06o\0 " % total


@given(noise=st.binary(max_size=2048))
def test_noise_is_no_archive(noise: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.tar"
    path.write_bytes(noise)
    if any(noise[:512]) or len(noise) < 512:
        with pytest.raises(DamagedBundleError, match=r"^noise.tar: at byte 0: "):
            read(path)
    else:
        assert read(path) == {}
