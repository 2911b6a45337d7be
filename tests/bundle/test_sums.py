from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundle.format import SUMS
from mirror.bundle.sums import parse, render
from mirror.errors import DamagedBundleError
from mirror.oci import Digest
from tests.support.tools import require_tool

A, B = Digest.of(b"a"), Digest.of(b"b")

NAMES = (
    "platform.tar",
    "module-a.tar.0000.chunk",
    "Ω",
    "with space",
    " leading",
    "trailing ",
    "back\\slash",
    "new\nline",
    "\\n",
    "carriage\rreturn",
    "*star",
    "#hash",
    "-dash",
    os.fsdecode(b"not-utf8-\xff"),
)


def names() -> st.SearchStrategy[str]:
    anything = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"\0", b"\\"))
    odd = st.text("\\nr\r\n ab*", min_size=1, max_size=8)
    return st.one_of(anything.map(os.fsdecode), odd)


@given(st.dictionaries(names(), st.sampled_from([A, B])))
def test_what_is_rendered_parses_to_the_same(sums: dict[str, Digest]) -> None:
    assert parse(render(sums)) == sums


@given(st.dictionaries(names(), st.sampled_from([A, B])))
def test_equal_sums_have_equal_files_in_whatever_order_they_were_made(
    sums: dict[str, Digest],
) -> None:
    assert render(dict(reversed(sums.items()))) == render(sums)


def test_the_text_is_that_of_coreutils() -> None:
    assert render({"b": B, "a\\": A, "B": B}) == (
        f"{B.encoded}  B\n\\{A.encoded}  a\\\\\n{B.encoded}  b\n".encode()
    )


def test_sha256sum_writes_and_checks_the_same(tmp_path: Path) -> None:
    tool = require_tool("sha256sum")
    sums = {}
    for name in NAMES:
        (tmp_path / name).write_bytes(os.fsencode(name))
        sums[name] = Digest.of(os.fsencode(name))
    (tmp_path / SUMS).write_bytes(render(sums))
    done = subprocess.run([tool, "--check", "--strict", SUMS], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done
    assert not done.stderr
    written = subprocess.run([tool, "--", *sorted(NAMES)], cwd=tmp_path, capture_output=True)
    assert parse(written.stdout) == sums
    assert sorted(written.stdout.splitlines()) == sorted(render(sums).splitlines())
    tagged = subprocess.run([tool, "--tag", "--", *NAMES], cwd=tmp_path, capture_output=True)
    assert parse(tagged.stdout) == sums


def test_sha256sum_finds_what_changed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"b")
    (tmp_path / SUMS).write_bytes(render({"x": A}))
    done = subprocess.run([require_tool("sha256sum"), "-c", SUMS], cwd=tmp_path)
    assert done.returncode == 1


def test_other_spellings_of_coreutils_are_read() -> None:
    upper = A.encoded.upper()
    assert parse(f"# note\n{upper} *x\n  {B.encoded}  y".encode()) == {"x": A, "y": B}
    assert parse(f"\\SHA256 (a\\nb) = {A.encoded}\n".encode()) == {"a\nb": A}
    assert parse(b"") == {}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no sum",
        A.encoded[:-1].encode() + b"  x",
        A.encoded.encode() + b" x",
        A.encoded.encode() + b"  ",
        A.encoded.encode() + b"  x\0y",
        b"\\" + A.encoded.encode() + b"  bad \\t escape",
        b"\\" + A.encoded.encode() + b"  ends with \\",
        b"sha512 (x) = " + A.encoded.encode(),
    ],
)
def test_a_line_that_is_no_checksum_is_named(line: bytes) -> None:
    good = render({"x": A})
    with pytest.raises(DamagedBundleError, match="SHA256SUMS: line 2 is not a checksum"):
        parse(good + line + b"\n" + good)


def test_a_file_that_is_named_twice_is_told() -> None:
    with pytest.raises(DamagedBundleError, match="line 2 names 'x' a second time"):
        parse(render({"x": A}) * 2)


@pytest.mark.parametrize(
    ("name", "digest"), [("", A), ("a\0b", A), ("x", Digest.of(b"a", "sha512"))]
)
def test_what_the_format_cannot_say_is_the_callers_mistake(name: str, digest: Digest) -> None:
    with pytest.raises(ValueError, match="is no"):
        render({name: digest})
