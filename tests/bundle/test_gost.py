from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle import gost
from mirror.bundle.gost import (
    GostHash,
    available,
    check_gostsum,
    gost_digest,
    gostsum,
    gostsum_path,
    read_gostsum,
)
from mirror.errors import DamagedBundleError, GostUnavailableError, IntegrityError
from tests.support.tools import missing, require_tool

# RFC 6986, section 10. It prints numbers, whose last byte comes first in a file.
M1 = bytes.fromhex(
    "32313039383736353433323130393837363534333231303938373635343332"
    "3130393837363534333231303938373635343332313039383736353433323130"
)[::-1]
M1_DIGEST = "9d151eefd8590b89daa6ba6cb74af9275dd051026bb149a452fd84e5e57b5500"
M2 = bytes.fromhex(
    "fbe2e5f0eee3c820fbeafaebef20fffbf0e1e0f0f520e0ed20e8ece0ebe5f0f2"
    "f120fff0eeec20f120faf2fee5e2202ce8f6f3ede220e8e6eee1e8f0f2d1202c"
    "e8f0f2e5e220e5d1"
)[::-1]
M2_DIGEST = bytes.fromhex("508f7e553c06501d749a66fc28c6cac0b005746d97537fa85d9e40904efed29d")[
    ::-1
].hex()
EMPTY_DIGEST = "3f539a213e97c802cc229d474c6aa32a825a360b2a933a949fd925208d9ce1bb"


@pytest.fixture
def _gost() -> None:
    if available() is None:
        missing(f"no GOST digests here; install the Debian package {gost.PACKAGE}")


@pytest.fixture
def _forgetful() -> Iterator[None]:
    gost._algorithm.cache_clear()
    yield
    gost._algorithm.cache_clear()


with_gost = pytest.mark.usefixtures("_gost")
afresh = pytest.mark.usefixtures("_forgetful")


# -- the digest ------------------------------------------------------------------------------------


@with_gost
@pytest.mark.parametrize(
    ("message", "digest"), [(M1, M1_DIGEST), (M2, M2_DIGEST), (b"", EMPTY_DIGEST)]
)
def test_known_answers_in_the_byte_order_of_gostsum(message: bytes, digest: str) -> None:
    assert gost_digest([message]) == digest


def test_the_first_of_them_is_the_vector_of_the_bundle_format() -> None:
    assert M1 == b"012345678901234567890123456789012345678901234567890123456789012"


@with_gost
@afresh
@pytest.mark.parametrize("load", gost._WAYS)
def test_provider_and_engine_agree(load: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gost, "_WAYS", (load,))
    if available() is None:
        missing("this OpenSSL has no such module")
    assert gost_digest([M2]) == M2_DIGEST


@with_gost
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_how_the_bytes_are_cut_does_not_matter(pieces: list[bytes]) -> None:
    assert gost_digest(pieces) == gost_digest([b"".join(pieces)])


@with_gost
def test_openssl_itself_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(os.urandom(100_000))
    done = subprocess.run(
        [require_tool("openssl"), "dgst", "-engine", "gost", "-md_gost12_256", path],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        missing(f"this openssl has no engines: {done.stderr}")
    assert done.stdout.split()[-1] == gost_digest([path.read_bytes()])


@with_gost
def test_threads_hash_side_by_side() -> None:
    data = [bytes([number]) * 300_000 for number in range(6)]
    found: dict[int, str] = {}

    def work(number: int) -> None:
        found[number] = gost_digest(data[number][at : at + 1000] for at in range(0, 300_000, 1000))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: gost_digest([data[number]]) for number in range(6)}


@with_gost
def test_a_digest_ends_its_computation() -> None:
    one = GostHash()
    one.update(M1)
    assert one.hexdigest() == one.hexdigest() == M1_DIGEST
    with pytest.raises(ValueError, match="finished"):
        one.update(b"more")
    one.close()
    one.close()
    assert one.hexdigest() == M1_DIGEST
    given_up = GostHash()
    given_up.update(b"")
    given_up.close()
    with pytest.raises(ValueError, match="given up"):
        given_up.hexdigest()


# -- without it ------------------------------------------------------------------------------------


def nothing(_library: CDLL) -> None:
    return None


def too_old(_library: CDLL) -> None:
    raise AttributeError("no such symbol")


@afresh
@pytest.mark.parametrize("ways", [(), (nothing,), (too_old, nothing)])
def test_without_the_module_the_package_is_named(
    ways: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gost, "_WAYS", ways)
    assert available() is None
    with pytest.raises(GostUnavailableError, match="apt-get install libengine-gost-openssl"):
        GostHash()


@afresh
def test_without_openssl_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(GostUnavailableError, match="no libcrypto"):
        GostHash()


# -- .gostsum --------------------------------------------------------------------------------------


def test_a_sum_is_64_digits_beside_the_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.0000.chunk"
    written = tmp_path / "x.tar.0000.chunk.gostsum"
    assert gostsum_path(path) == written
    written.write_bytes(gostsum(M1_DIGEST))
    assert written.read_bytes() == M1_DIGEST.encode()
    assert read_gostsum(path) == M1_DIGEST


@with_gost
def test_a_sum_is_checked_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    assert check_gostsum(path, [M1]) is False
    (tmp_path / "x.tar.gostsum").write_bytes(gostsum(M1_DIGEST))
    assert check_gostsum(path, [M1]) is True
    with pytest.raises(IntegrityError, match=r"x\.tar: expected GOST digest 9d15.*, got 3f53"):
        check_gostsum(path, [])


@pytest.mark.parametrize("text", [M1_DIGEST + "\n", f"  {M1_DIGEST.upper()}\r\n"])
def test_sums_of_other_tools_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.tar.gostsum").write_text(text)
    assert read_gostsum(tmp_path / "x.tar") == M1_DIGEST


@pytest.mark.parametrize("data", [b"", b"9d15", M1_DIGEST.encode() + b"0", b"\xff" * 64])
def test_a_sum_that_is_none_is_told(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar.gostsum").write_bytes(data)
    with pytest.raises(
        DamagedBundleError, match=r"x\.tar\.gostsum: it does not hold a GOST digest"
    ):
        read_gostsum(tmp_path / "x.tar")


@pytest.mark.parametrize("digest", ["", M1_DIGEST[1:], M1_DIGEST.upper()])
def test_no_other_sum_is_written(digest: str) -> None:
    with pytest.raises(ValueError, match="is not a digest"):
        gostsum(digest)
