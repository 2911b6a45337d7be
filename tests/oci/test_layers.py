from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import CancelledError, DigestMismatchError, UnreadableImageError
from mirror.oci import Digest, layer_stream, verified
from mirror.oci.layer_stream import EntryKind, TarStream
from mirror.oci.layers import LayerOpener, Layers, read_files
from mirror.oci.root_fs import Leaf, RootFs
from mirror.run import Cancellation, Run
from tests.support.program import ROOT

FILE, DIR, SYM, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@dataclass(frozen=True)
class Item:
    """One entry of a layer; `text` is a file's content or a link's target."""

    name: str
    text: str = ""
    type: bytes = FILE

    def put(self, tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(self.name)
        info.type = self.type
        data = b""
        if self.type == FILE:
            data = self.text.encode()
            info.size = len(data)
        else:
            info.linkname = self.text
        tar.addfile(info, io.BytesIO(data))


def tar_of(*items: Item, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for item in items:
            item.put(tar)
    return out.getvalue()


def file(name: str, text: str) -> Item:
    return Item(name, text)


def directory(name: str) -> Item:
    return Item(name, type=DIR)


def symlink(name: str, target: str) -> Item:
    return Item(name, target, SYM)


def hardlink(name: str, target: str) -> Item:
    return Item(name, target, LINK)


def whiteout(name: str) -> Item:
    head, slash, tail = name.rpartition("/")
    return Item(f"{head}{slash}.wh.{tail}")


def opaque(name: str) -> Item:
    return Item(f"{name}/.wh..wh..opq" if name else ".wh..wh..opq")


@dataclass
class Layer:
    """A layer that counts how it is used, and hands its bytes out in pieces of `step`."""

    data: bytes
    step: int = 1000
    opened: int = 0
    drained: int = 0
    closed: int = 0

    def __call__(self) -> Iterator[bytes]:
        self.opened += 1
        return self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        try:
            for at in range(0, len(self.data), self.step):
                yield self.data[at : at + self.step]
            self.drained += 1
        finally:
            self.closed += 1


def image(*layers: Sequence[Item]) -> list[LayerOpener]:
    return [Layer(tar_of(*items)) for items in layers]


def read(layers: Sequence[LayerOpener], *paths: str) -> dict[str, str]:
    return {path: data.decode() for path, data in read_files(layers, paths).items()}


def applied(layers: Sequence[LayerOpener], *, max_entries: int = 1000) -> RootFs:
    return RootFs(Layers(layers, "image", 1 << 30, lambda: None), max_entries=max_entries)


def found_in(files: RootFs, *paths: str) -> dict[str, str]:
    """The same as `read` gives, of all layers as one."""
    places = {}
    for path in paths:
        found = files.find(path)
        if found is not None and isinstance(found[1], Leaf) and found[1].kind is EntryKind.FILE:
            assert not found[1].problem
            places[path] = found[1].place
    data = {place: b"".join(pieces) for place, pieces in files.data(set(places.values()))}
    return {path: data[place].decode() for path, place in places.items()}


# -- whiteouts, names and what hides what ----------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([[file("a/f", "1")]], "1", id="a file"),
        pytest.param([[file("a/f", "1")], [file("a/f", "2")]], "2", id="the upper one"),
        pytest.param([[file("a/f", "1")], []], "1", id="an empty layer above"),
        pytest.param([[file("a/f", "1"), file("a/f", "2")]], "2", id="the last in a layer"),
        pytest.param([[file("./a/f", "1")]], "1", id="dot"),
        pytest.param([[file("/a//f", "1")]], "1", id="slashes"),
        pytest.param([[file("x/../a/./f", "1")]], "1", id="dots inside"),
        pytest.param([[file("a/f", "1"), file("../a/f", "2")]], "1", id="an escaping name"),
        pytest.param([[file("a/f", "1")], [whiteout("a/f")]], None, id="whiteout"),
        pytest.param([[file("a/f", "1")], [whiteout("./a/f")]], None, id="whiteout with dot"),
        pytest.param([[file("a/f", "1")], [whiteout("a")]], None, id="whiteout of a parent"),
        pytest.param([[file("a/f", "1")], [whiteout("a/g")]], "1", id="whiteout of another"),
        pytest.param([[file("a/f", "1")], [whiteout("a/f")], [file("a/f", "2")]], "2", id="back"),
        pytest.param(
            [[file("a/f", "1")], [file("a/f", "2"), whiteout("a/f")]], "2", id="own layer"
        ),
        pytest.param([[file("a/f", "1")], [whiteout("a/f"), file("a/f", "2")]], "2", id="order"),
        pytest.param([[file("a/f", "1")], [whiteout("a"), file("a/g", "2")]], None, id="renewed"),
        pytest.param([[file("a/f", "1")], [opaque("a")]], None, id="opaque"),
        pytest.param([[file("a/f", "1")], [opaque("")]], None, id="opaque root"),
        pytest.param([[file("a/f", "1")], [opaque("b")]], "1", id="another is opaque"),
        pytest.param([[file("a/f", "1")], [file("a/f", "2"), opaque("a")]], "2", id="opaque, own"),
        pytest.param([[file("a/f", "1")], [file("a", "2")]], None, id="a file as parent"),
        pytest.param(
            [[file("a/f", "1")], [file("a", "2")], [directory("a")]], None, id="file, directory"
        ),
        pytest.param([[file("a/f", "1")], [directory("a")]], "1", id="a directory as parent"),
        pytest.param([[file("a/f", "1")], [directory("a/f")]], None, id="a directory instead"),
        pytest.param([[file("a/f", "1")], [file("a/f/x", "2")]], None, id="an implied directory"),
        pytest.param([[file("a", "0"), file("a/f", "1")]], "1", id="a file in the way, earlier"),
        pytest.param([[file("a/f", "1"), file("a", "0")]], None, id="a file in the way, later"),
        pytest.param([[file("a/f", "1")], [Item("a/f", type=tarfile.FIFOTYPE)]], None, id="pipe"),
        pytest.param([[file("a/f", "1")], [Item("a/.wh...")]], "1", id="whiteout of dot-dot"),
        pytest.param([[file("a/f", "1")], [Item("a/.wh.")]], "1", id="whiteout of nothing"),
        pytest.param([[file("a/f", "1")], [Item(".wh..wh.plnk/.wh.a")]], "1", id="storage driver"),
        pytest.param([[], []], None, id="nothing"),
        pytest.param([], None, id="no layers"),
    ],
)
def test_the_merged_file_system_is_read(layers: list[list[Item]], expected: str | None) -> None:
    found = read(image(*layers), "a/f")
    assert found == ({} if expected is None else {"a/f": expected})
    assert found_in(applied(image(*layers)), "a/f") == found


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([[file("x", "1"), symlink("a/f", "../x")]], "1", id="relative"),
        pytest.param([[file("x", "1"), symlink("a/f", "/x")]], "1", id="absolute"),
        pytest.param([[file("x", "1"), symlink("a/f", "../../../x")]], "1", id="above the root"),
        pytest.param([[file("b/f", "1"), symlink("a", "b")]], "1", id="parent"),
        pytest.param([[file("b/f", "1"), symlink("a", "/b/")]], "1", id="parent, absolute"),
        pytest.param([[file("c/f", "1"), symlink("b", "c"), symlink("a", "./b")]], "1", id="chain"),
        pytest.param([[file("b/f", "1")], [symlink("a", "b")]], "1", id="to a lower layer"),
        pytest.param([[symlink("a", "b")], [file("b/f", "1")]], "1", id="to an upper layer"),
        pytest.param(
            [[file("b/f", "1"), symlink("a", "b")], [whiteout("b/f")]], None, id="hidden target"
        ),
        pytest.param(
            [[file("b/f", "1"), symlink("a", "b")], [directory("a")]], None, id="directory above"
        ),
        pytest.param(
            [[file("b/f", "1"), symlink("a", "b")], [file("a/g", "2")]], None, id="implied above"
        ),
        pytest.param([[file("a/f", "1")], [symlink("a", "b")]], None, id="dangling"),
        pytest.param([[file("x", "1"), symlink("a/f", "y/../x")]], None, id="through nothing"),
        pytest.param(
            [[file("c/x", "1"), directory("c/d"), symlink("y", "c/d"), symlink("a/f", "/y/../x")]],
            "1",
            id="back out of a link",
        ),
        pytest.param([[directory("b"), symlink("a/f", "../b")]], None, id="to a directory"),
        pytest.param([[file("x", "1"), hardlink("a/f", "x")]], "1", id="hard"),
        pytest.param([[file("x", "1"), hardlink("a/f", "./x")]], "1", id="hard, dot"),
        pytest.param([[file("x", "1")], [hardlink("a/f", "x")]], "1", id="hard, lower"),
        pytest.param(
            [[file("x", "1"), hardlink("a/f", "x")], [file("x", "2")]], "1", id="hard, replaced"
        ),
        pytest.param(
            [[file("x", "1"), hardlink("a/f", "x")], [whiteout("x")]], "1", id="hard, removed"
        ),
        pytest.param(
            [[file("x", "1"), hardlink("a/f", "x"), file("x", "2")]], "1", id="hard, bound"
        ),
        pytest.param([[hardlink("a/f", "x"), file("x", "1")]], "1", id="hard, forwards"),
        pytest.param(
            [[file("x", "1"), hardlink("y", "x"), hardlink("a/f", "y")]], "1", id="hard, twice"
        ),
        pytest.param(
            [[file("a/x", "1"), symlink("y", "x"), hardlink("a/f", "y")]], "1", id="hard to soft"
        ),
    ],
)
def test_links_are_followed_inside_the_image(
    layers: list[list[Item]], expected: str | None
) -> None:
    found = read(image(*layers), "a/f")
    assert found == ({} if expected is None else {"a/f": expected})
    assert found_in(applied(image(*layers)), "a/f") == found


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([symlink("a", "a")], "more than 40 links"),
        ([symlink("a", "b"), symlink("b", "a")], "more than 40 links"),
        ([hardlink("a", "a")], "more than 40 links"),
        ([hardlink("a", "x")], "layer 1 of 1: a is a hard link to 'x'"),
        ([directory("x"), hardlink("a", "x")], "is a hard link to 'x'"),
        ([symlink("a", "a/" + "b/" * 1000)], "longer than 4096"),
    ],
)
def test_links_that_lead_nowhere_are_errors(items: list[Item], message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        read(image(items), "a")


def test_forty_links_are_followed() -> None:
    chain = [symlink(f"l{n}", f"l{n + 1}") for n in range(40)]
    assert read(image([*chain, file("l40", "end")]), "l0") == {"l0": "end"}


def test_paths_come_back_as_they_were_asked_for() -> None:
    layers = image([file("a", "1"), file("b", "2")])
    assert read(layers, "/b", "./a", "a", "c") == {"/b": "2", "./a": "1", "a": "1"}


def test_a_name_without_a_file_behind_it_is_told_when_it_is_asked_for() -> None:
    bad = [hardlink("a", "a"), hardlink("b", "x"), symlink("c", "c"), hardlink("d", "c/e")]
    files = applied(image([*bad, file("good", "1")]))
    assert found_in(files, "good") == {"good": "1"}
    for name, target in (("a", "a"), ("b", "x"), ("d", "c/e")):
        found = files.find(name)
        assert found is not None
        assert isinstance(found[1], Leaf)
        assert found[1].problem == f"is a hard link to {target!r}, where there is no file"
    with pytest.raises(UnreadableImageError, match="more than 40 links on the way to c"):
        files.find("c")


def test_entries_and_their_names_are_bounded() -> None:
    with pytest.raises(UnreadableImageError, match="more than 2 entries"):
        applied(image([file("a", ""), file("a", ""), file("a", "")]), max_entries=2)


def test_the_links_of_an_image_have_a_budget_together(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [symlink(f"s{n}", "./" * 100 + f"s{n + 1}") for n in range(9)]
    items = [file("f", "text"), *chain, symlink("s9", "./" * 100 + ".")]
    hard = [hardlink(f"h{n}", "s0/f") for n in range(40)]
    asked: list[int] = []
    layers = Layers(image([*items, *hard]), "image", 1 << 30, lambda: asked.append(1))
    files = RootFs(layers, max_entries=1000)
    assert found_in(files, "h39") == {"h39": "text"}
    assert len(asked) > 40 * 10  # each link can be the last one
    monkeypatch.setattr("mirror.oci.root_fs._MAX_LINK_STEPS", 10_000)
    assert found_in(applied(image([*items, *hard[:5]])), "h4") == {"h4": "text"}
    with pytest.raises(UnreadableImageError, match="image: the ways of its links have more than"):
        applied(image([*items, *hard]))
    files = applied(image(items))
    for _ in range(9):
        assert files.find("s0/f") is not None
    with pytest.raises(UnreadableImageError, match="the ways of its links"):
        files.find("s0/f")


@pytest.mark.parametrize("path", ["", "/", ".", "../a", "a/../.."])
def test_a_path_outside_the_image_is_the_callers_mistake(path: str) -> None:
    with pytest.raises(ValueError, match="inside an image"):
        read_files([], [path])


# -- how the layers are used -----------------------------------------------------------------------


def test_layers_below_the_answer_are_not_opened() -> None:
    layers = [Layer(tar_of(file("a", "1"))), Layer(tar_of(file("a", "2"))), Layer(tar_of())]
    assert read(layers, "a") == {"a": "2"}
    assert [layer.opened for layer in layers] == [0, 1, 1]


def test_many_paths_take_one_pass() -> None:
    layers = [Layer(tar_of(*(file(f"{n}/{m}", "") for m in range(5)))) for n in range(4)]
    paths = [f"{n}/{m}" for n in range(5) for m in range(5)]
    assert len(read(layers, *paths)) == 20
    assert [layer.opened for layer in layers] == [1, 1, 1, 1]


def test_a_linked_directory_takes_a_second_pass_for_all_its_files() -> None:
    layers = [
        Layer(tar_of(symlink("candi", "v1"), file("v1/a", "1"), file("v1/b", "2"))),
        Layer(tar_of(file("other", ""))),
    ]
    assert read(layers, "candi/a", "candi/b", "none") == {"candi/a": "1", "candi/b": "2"}
    assert [layer.opened for layer in layers] == [2, 2]


def test_an_opened_layer_is_read_to_its_end_and_closed() -> None:
    good, bad = Layer(tar_of(file("a", "1"))), Layer(b"x" * 9000)
    read([good], "a")
    with pytest.raises(UnreadableImageError):
        read([bad], "a")
    for layer in (good, bad):
        assert (layer.opened, layer.drained, layer.closed) == (1, 1, 1)


def test_a_layer_of_wrong_bytes_is_reported_as_such() -> None:
    right = gzip.compress(tar_of(file("a", "1")))
    wrong = Layer(right[:-20] + bytes(20))
    with pytest.raises(DigestMismatchError):
        read_files([lambda: verified(wrong(), Digest.of(right), None, where="blob")], ["a"])


# -- compression -----------------------------------------------------------------------------------


def zstd(data: bytes, *, checksum: bool = True, content_size: bool = True) -> bytes:
    compressor = zstandard.ZstdCompressor(
        level=1, write_checksum=checksum, write_content_size=content_size
    )
    return compressor.compress(data)


def zstd_streamed(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    pieces = [compressor.compress(data[at : at + 999]) for at in range(0, len(data), 999)]
    return b"".join(pieces) + compressor.flush()


def members(data: bytes, pack: type[gzip.GzipFile] | None) -> bytes:
    halves = data[: len(data) // 2], data[len(data) // 2 :]
    return b"".join(gzip.compress(half) if pack else zstd(half) for half in halves)


SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\0\0\0Hello"
NOISE = random.Random(1).randbytes(300_000).decode("latin-1")
BIG_TAR = tar_of(file("z", NOISE), file("y", "y" * 300_000), file("a", "found"), file("x", "x"))
PACKED = {
    "plain": BIG_TAR,
    "gzip": gzip.compress(BIG_TAR, 1),
    "gzip members": members(BIG_TAR, gzip.GzipFile),
    "gzip padded": gzip.compress(BIG_TAR, 1) + bytes(700),
    "zstd": zstd(BIG_TAR),
    "zstd bare": zstd(BIG_TAR, checksum=False, content_size=False),
    "zstd streamed": zstd_streamed(BIG_TAR),
    "zstd frames": members(BIG_TAR, None),
    "zstd skippable": SKIPPABLE + zstd(BIG_TAR) + SKIPPABLE,
    "zstd small": zstd(tar_of(file("a", "found"))),
}


@pytest.mark.parametrize("step", [1, 7, 65536])
@pytest.mark.parametrize("name", PACKED)
def test_every_compression_is_recognised(name: str, step: int) -> None:
    packed = PACKED[name]
    if step == 1:  # the borders of everything, in a short stream
        small = tar_of(file("a", "found"))
        packed = (
            gzip.compress(small) if "gzip" in name else zstd(small) if "zstd" in name else small
        )
    assert read([Layer(packed, step)], "a") == {"a": "found"}


@given(name=st.sampled_from(sorted(PACKED)), where=st.floats(0, 1, exclude_max=True))
def test_a_cut_layer_is_an_error_wherever_the_cut_is(name: str, where: float) -> None:
    packed = PACKED[name].rstrip(b"\0") if name == "gzip padded" else PACKED[name]
    if name == "plain":
        packed = packed.rstrip(b"\0") + bytes(512)  # what is behind the marker carries nothing
    cut = int(len(packed) * where)
    if name == "zstd skippable" and cut in (13, len(packed) - 13):
        return  # whole frames
    try:
        found = read([Layer(packed[:cut], 65536)], "a", "none")
    except UnreadableImageError as err:
        assert "image, layer 1 of 1" in str(err)  # noqa: PT017
    else:
        # Two members are two valid streams: then the first is one, and its archive is cut.
        pytest.fail(f"cut at {cut} of {len(packed)} and read as {found}")


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_harmless(name: str, at: float, bit: int) -> None:
    packed = bytearray(PACKED[name])
    packed[int(len(packed) * at)] ^= 1 << bit
    with contextlib.suppress(UnreadableImageError):
        assert read([Layer(bytes(packed), 65536)], "a") == {"a": "found"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"\xfd7zXZ\0\0\4", "compressed with xz"),
        (b"no tar at all" * 100, "it starts with no header"),
        (b"short", "cut off at a header"),
        (b"", "cut off at a header"),
        (gzip.compress(BIG_TAR) + b"more", "other data after its gzip|gzip data is damaged"),
        (gzip.compress(BIG_TAR) + b"\0\0more", "other data after its gzip"),
        (zstd(BIG_TAR) + b"more", "zstd data is damaged"),
    ],
)
def test_a_layer_of_another_kind_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        read_files([Layer(data)], ["a"])


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packed.compress(tar_of(file("a", "1"))) + packed.flush()
    with pytest.raises(UnreadableImageError, match="too much memory"):
        read_files([Layer(data)], ["a"])


# -- archives --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_format(format: int) -> None:  # noqa: A002
    name = "/".join(["directory-of-some-length"] * 9)
    target = "/".join(["d"] * 40)
    items = [file(name, "1"), symlink("l", target), file(target, "2")]
    layer = Layer(tar_of(*items, format=format))
    assert read([layer], name, "l") == {name: "1", "l": "2"}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_very_long_names_are_read(format: int) -> None:  # noqa: A002
    name, target = "ы" * 1000, "d/" * 1500 + "t"
    items = [file(name, "1"), symlink("l", target), file(target, "2"), hardlink("h", target)]
    layer = Layer(tar_of(*items, format=format))
    assert read([layer], name, "l", "h") == {name: "1", "l": "2", "h": "2"}


def test_a_damaged_header_in_the_middle_is_an_error() -> None:
    data = bytearray(tar_of(file("a", "1"), file("b", "2")))
    data[1024 + 5] ^= 1
    with pytest.raises(UnreadableImageError, match=r"image, layer 1 of 1: .* at byte 1024"):
        read_files([Layer(gzip.compress(bytes(data)))], ["b"])


def test_zeros_in_the_middle_are_an_error() -> None:
    data = tar_of(file("a", "1")).rstrip(b"\0")
    data += bytes(-len(data) % 512) + bytes(512) + tar_of(file("b", "2"))
    with pytest.raises(UnreadableImageError, match="zeros in the middle"):
        read_files([Layer(data)], ["b"])


def test_a_compressed_archive_may_lack_its_end_marker() -> None:
    data = tar_of(file("a", "1"))[:1024]
    assert read([Layer(gzip.compress(data))], "a") == {"a": "1"}
    with pytest.raises(UnreadableImageError, match="cut off"):
        read([Layer(data)], "a")


def test_a_global_header_names_no_file() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"path": "b", "comment": "c"}) as tar:
        file("a", "1").put(tar)
    assert read([Layer(out.getvalue())], "a", "b") == {"a": "1"}


def pax_header(payload: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(payload) if size is None else size
    return info.tobuf(tarfile.GNU_FORMAT) + payload + bytes(-len(payload) % 512)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (pax_header(b"not a record\n"), "damaged extended header"),
        (pax_header(b"99 path=x\n"), "damaged extended header"),
        (pax_header(b"3 path=x\n"), "damaged extended header"),
        (pax_header(b"11 size=-1\n"), "an invalid size"),
        (pax_header(b"18 size=999999999\n"), "cut off"),
        (pax_header(b"", 8 << 30), "extended headers"),
        (pax_header(b"10 path=x\n") * 3000, "extended headers"),
        (pax_header(b"5005 path=" + b"x" * 4994 + b"\n"), "more than 4096 characters"),
    ],
)
def test_a_bad_extended_header_is_an_error(header: bytes, message: str) -> None:
    with pytest.raises(UnreadableImageError, match=message):
        read_files([Layer(header + tar_of(file("a", "1")))], ["a"])


def sparse_tar(magic: dict[str, str] | None) -> bytes:
    """A sparse file `s` of the pax or the old GNU kind, then a plain file `a`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("GNUSparseFile.0/s" if magic else "s")
        info.size = 1024
        if magic:
            info.pax_headers = magic
        else:
            info.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(info, io.BytesIO(bytes(1024)))
        file("a", "1").put(tar)
    return out.getvalue()


@pytest.mark.parametrize(
    "magic",
    [
        None,
        {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "s",
            "GNU.sparse.realsize": "999999",
        },
    ],
)
def test_a_sparse_file_is_passed_over_or_refused(magic: dict[str, str] | None) -> None:
    layer = Layer(sparse_tar(magic))
    assert read([layer], "a") == {"a": "1"}
    with pytest.raises(UnreadableImageError, match="file s is stored as a sparse file"):
        read([layer], "s")


# -- limits ----------------------------------------------------------------------------------------


def test_a_file_beyond_the_limit_is_refused_only_if_it_shows() -> None:
    big = [file("a", "x" * 1001)]
    assert read_files(image(big, [file("a", "1")]), ["a"], max_file_bytes=1000) == {"a": b"1"}
    assert read_files(image(big), ["a"], max_file_bytes=1001)
    with pytest.raises(UnreadableImageError, match="file a has 1001 bytes; at most 1000"):
        read_files(image(big, []), ["a"], max_file_bytes=1000)


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_stopped_in_bounded_memory(pack: type[bytes]) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 256 << 20
    bomb = pack(info.tobuf() + bytes(info.size))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImageError, match="more than 134217728 bytes"):
            read_files([Layer(bomb)], ["a"], max_unpacked_bytes=128 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def _long_window(data: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


_BOMBS_AT_ONCE = """
import sys, threading
from mirror.errors import UnreadableImageError
from mirror.oci.layers import read_files
from tests.support.measured import peak
bomb = sys.stdin.buffer.read()
before, refused = peak(), []
def work():
    try:
        read_files([lambda: iter([bomb])], ["a"], max_unpacked_bytes=150 << 20)
    except UnreadableImageError as err:
        refused.append(err)
threads = [threading.Thread(target=work) for _ in range(4)]
[one.start() for one in threads]
[one.join(60) for one in threads]
print(len(refused), peak() - before)
"""


def test_large_windows_of_many_layers_are_held_one_after_the_other() -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 160 << 20
    bomb = _long_window(info.tobuf() + bytes(info.size))
    done = subprocess.run(
        [sys.executable, "-c", _BOMBS_AT_ONCE],
        input=bomb,
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    refused, grown = map(int, done.stdout.split())
    assert refused == 4
    assert grown < 200 << 20


def test_who_waits_for_a_large_window_hears_that_it_is_over() -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 20 << 20
    run = Run(cancellation=(cancellation := Cancellation()))
    layers = [Layer(_long_window(info.tobuf() + bytes(info.size)))]

    def stop() -> None:
        cancellation.cancel()
        run.check()

    with layer_stream._LARGE_WINDOW, pytest.raises(CancelledError):
        read_files(layers, ["a"], check=stop)
    assert read_files(layers, ["a"], check=Run().check) == {}


def test_a_layer_that_was_given_up_lets_the_next_large_window_begin() -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 20 << 20
    bomb = _long_window(info.tobuf() + bytes(info.size))
    kept = []
    for _ in range(3):  # the errors live on, and with them what they came from
        with pytest.raises(UnreadableImageError) as caught:
            read_files([Layer(bomb)], ["a"], max_unpacked_bytes=10 << 20)
        kept.append(caught.value)
    assert len(kept) == 3


def test_a_layer_of_many_entries_is_read_in_bounded_memory() -> None:
    one = tar_of(whiteout("some/name"), file("other/name", ""))[:1024]
    entries = one * 5_000 + bytes(1024)
    tracemalloc.start()
    try:
        assert read([Layer(entries, 65536)], "a") == {}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# -- against a model -------------------------------------------------------------------------------


@dataclass
class Model:
    """A file system in a dict, to which layers are applied one by one, from the base upwards."""

    nodes: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def remove(self, path: str, *, itself: bool = True) -> None:
        for other in list(self.nodes):
            if other.startswith(f"{path}/" if path else "") or (itself and other == path):
                del self.nodes[other]

    def apply(self, items: Sequence[Item]) -> None:
        for item in items:
            head, _, name = item.name.rpartition("/")
            if name == ".wh..wh..opq":
                self.remove(head, itself=False)
            elif name.startswith(".wh."):
                self.remove(f"{head}/{name[4:]}".lstrip("/"))
        upper = Model()
        for item in items:
            if ".wh." in item.name:
                continue
            parts = item.name.split("/")
            for above in itertools.accumulate(parts[:-1], "{}/{}".format):
                if upper.nodes.get(above, (b"", ""))[0] != DIR:
                    upper.nodes[above] = (DIR, "")
            node = (item.type, item.text)
            if item.type == LINK:
                source = upper if item.text in upper.nodes else self
                node = source.nodes[item.text]
            if item.type != DIR:
                upper.remove(item.name)
            upper.nodes[item.name] = node
        for path, (kind, _) in sorted(upper.nodes.items()):
            if kind != DIR or self.nodes.get(path, (DIR, ""))[0] != DIR:
                self.remove(path)
        self.nodes.update(upper.nodes)

    def read(self, path: str) -> str | None:
        """The content of the file at `path`, links followed; LoopError for too many."""
        here: list[str] = []
        rest = path.split("/")
        node = (DIR, "")
        hops = 0
        while rest:
            name = rest.pop(0)
            if name == "..":
                here, node = here[:-1], (DIR, "")
                continue
            found = self.nodes.get("/".join([*here, name]))
            if found is None:
                return None
            if found[0] == SYM:
                hops += 1
                if hops > 40:
                    raise RecursionError
                here = [] if found[1].startswith("/") else here
                node, rest = (DIR, ""), found[1].strip("/").split("/") + rest
                continue
            if rest and found[0] != DIR:
                return None
            here, node = [*here, name], found
        return node[1] if node[0] == FILE else None


NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.builds(
    "{}{}".format,
    st.sampled_from(["", "/", "../", "../../", "b/../"]),
    PATHS,
)
ITEMS = st.one_of(
    st.builds(file, PATHS, st.text("xyz", max_size=3)),
    st.builds(directory, PATHS),
    st.builds(symlink, PATHS, TARGETS),
    st.builds(whiteout, PATHS),
    st.builds(opaque, st.one_of(st.just(""), PATHS)),
)


@st.composite
def _layers_and_model(draw: st.DrawFn) -> tuple[list[list[Item]], Model]:
    """Layers as builders make them: a hard link names an earlier file of its layer or below it."""
    model = Model()
    layers: list[list[Item]] = []
    for _ in range(draw(st.integers(1, 4))):
        items = draw(st.lists(ITEMS, max_size=6))
        last = items[-1] if items else opaque("")
        if last.type == FILE and ".wh." not in last.name:
            link = hardlink(draw(PATHS), last.name)
            # A link above or below its target would remove the target first.
            ends = {f"{last.name}/", f"{link.name}/"}
            if not max(ends).startswith(min(ends)):
                items.append(link)
                items.extend(draw(st.lists(ITEMS, max_size=2)))
        model.apply(items)
        layers.append(items)
    return layers, model


@given(drawn=_layers_and_model(), paths=st.lists(PATHS, min_size=1, max_size=4, unique=True))
def test_reading_equals_applying_all_layers(
    drawn: tuple[list[list[Item]], Model], paths: list[str]
) -> None:
    layers, model = drawn
    try:
        expected = {path: text for path in paths if (text := model.read(path)) is not None}
    except RecursionError:
        with pytest.raises(UnreadableImageError, match="links"):
            read(image(*layers), *paths)
    else:
        assert read(image(*layers), *paths) == expected
        assert found_in(applied(image(*layers)), *paths) == expected


@given(junk=st.binary(max_size=2000), start=st.integers(0, 1500))
def test_junk_never_raises_anything_else(junk: bytes, start: int) -> None:
    data = tar_of(symlink("b", "c"), file("a", "1" * 600))
    data = data[:start] + junk + data[start + len(junk) :]
    for packed in (data, b"\x1f\x8b\x08\x00" + junk, b"\x28\xb5\x2f\xfd" + junk):
        with contextlib.suppress(UnreadableImageError):
            read_files([Layer(packed, 65536)], ["a", "b"])
        with contextlib.suppress(UnreadableImageError):
            found_in(applied([Layer(packed, 65536)]), "b/none")


def _one_file(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("version.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_gzip_layer_without_the_end_of_its_checksum_is_cut_off(missing: int) -> None:
    layer = gzip.compress(_one_file(b"{}"))[:-missing]
    with pytest.raises(UnreadableImageError, match="its gzip data is cut off before the end"):
        read_files([lambda: iter([layer])], ["version.json"])


def test_a_file_of_an_archive_is_read_whole_or_not_at_all() -> None:
    stream = TarStream(iter([_one_file(b"x" * 700)[: 512 + 600]]), "layer", end_marker=True)
    next(iter(stream))
    with pytest.raises(UnreadableImageError, match="cut off inside a file"):
        stream.read()
