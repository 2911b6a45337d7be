"""What lies beside the archives of a bundle: sums, GOST sums, a signature; archives in parts."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mirror import signing
from mirror.bundle.gost import gost_digest
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal, read_files
from mirror.bundle.verify import check_signature, check_signed, verify_bundle
from mirror.bundle.writer import BundleWriter
from mirror.errors import DamagedBundleError, IntegrityError, MirrorError, SignatureError
from mirror.events import Event, Warned
from mirror.operations.merge import merge
from mirror.operations.push import plan_push
from mirror.registry import RegistryClient
from mirror.run import Run
from mirror.sync import make_plan, transfer
from tests.support.bundles import archives_of, seal_of
from tests.support.inventories import sample_store
from tests.support.places import tree_of

STORE = sample_store()
WANTED = STORE.inventory()
SEAL = seal_of(archives_of(WANTED))
FILES = {"deckhousereleases.yaml": b"---\nkind: DeckhouseRelease\n"}


def _keys() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return private, public


PRIVATE, PUBLIC = _keys()


def _sign(data: bytes) -> bytes:
    return signing.sign(data, PRIVATE)


def pack(
    folder: Path,
    *,
    part_size: int = 0,
    gost: bool = False,
    signed: bool = False,
    compress: bool = False,
) -> None:
    seal = type(SEAL).over(SEAL.archives.values(), SEAL.selection, SEAL.tool, FILES)
    with BundleWriter(
        folder,
        seal,
        FILES,
        Packing(
            part_size=part_size, gost_digest=gost, sign=_sign if signed else None, compress=compress
        ),
    ) as writer:
        transfer(make_plan(WANTED, writer.held(WANTED)), STORE, writer, run=Run(jobs=3))
        writer.finish()


@pytest.mark.parametrize("part_size", [0, 512, 1000, 10_000])
def test_sha256sum_confirms_every_file(tmp_path: Path, part_size: int) -> None:
    pack(tmp_path, part_size=part_size, gost=True, signed=True)
    run = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    confirmed = {line.removesuffix(": OK") for line in run.stdout.splitlines()}
    assert confirmed == {path.name for path in tmp_path.iterdir()} - {"SHA256SUMS"}


@pytest.mark.parametrize("part_size", [512, 1000, 4096])
def test_parts_have_exact_sizes_and_join_to_the_whole(tmp_path: Path, part_size: int) -> None:
    pack(tmp_path / "whole")
    pack(tmp_path / "parts", part_size=part_size)
    assert not list((tmp_path / "parts").glob("*.tar"))
    for archive in SEAL.archives.values():
        parts = sorted((tmp_path / "parts").glob(f"{archive.name}.*.chunk"))
        sizes = [part.stat().st_size for part in parts]
        assert sizes[:-1] == [part_size] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= part_size
        joined = b"".join(part.read_bytes() for part in parts)
        assert joined == (tmp_path / "whole" / archive.name).read_bytes()
    for name in ("inventory.json", "deckhousereleases.yaml"):
        whole, parted = ((tmp_path / where / name).read_bytes() for where in ("whole", "parts"))
        assert whole == parted, "what is in the bundle does not depend on how it is cut"
    with BundleReader([tmp_path / "parts"]) as reader:
        assert reader.inventory() == WANTED
        assert not verify_bundle(reader).findings


def test_a_pull_in_parts_goes_on_where_it_was_and_other_parts_begin_from_its_bytes(
    tmp_path: Path,
) -> None:
    pack(tmp_path / "once", part_size=1000)
    with BundleWriter(tmp_path / "twice", SEAL, packing=Packing(part_size=700)) as writer:
        transfer(make_plan(WANTED, writer.held(WANTED)), STORE, writer)
    with BundleWriter(tmp_path / "twice", SEAL, packing=Packing(part_size=700)) as writer:
        assert not make_plan(WANTED, writer.held(WANTED)).blobs
    pack(tmp_path / "twice", part_size=1000)
    once, twice = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("once", "twice")
    )
    assert once == twice


def test_a_gost_sum_is_that_of_its_file(tmp_path: Path) -> None:
    pack(tmp_path, part_size=3000, gost=True)
    sums = sorted(tmp_path.glob("*.gostsum"))
    assert [path.name for path in sums] == [
        f"{path.name}.gostsum" for path in sorted(tmp_path.glob("*.chunk"))
    ]
    for path in sums:
        assert path.read_text() == gost_digest([path.with_suffix("").read_bytes()])


def is_damaged(folder: Path) -> bool:
    """Whether a verification says so, one way or the other."""
    try:
        with BundleReader([folder]) as reader:
            return bool(verify_bundle(reader, key=PUBLIC).findings)
    except MirrorError as err:
        return err.exit_code == IntegrityError.exit_code


@pytest.mark.parametrize("times", [150, pytest.param(2000, marks=pytest.mark.soak)])
def test_every_flipped_byte_of_any_file_is_found(times: int, tmp_path: Path) -> None:
    pack(tmp_path, part_size=9000, gost=True, signed=True)
    dice = random.Random(7)
    files = sorted(tmp_path.iterdir())
    for number in range(times):
        # Small files as often as large ones: each has its own way of being checked.
        path = files[number % len(files)]
        data = path.read_bytes()
        at = dice.randrange(len(data))
        changed = bytearray(data)
        changed[at] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        assert is_damaged(tmp_path), (path.name, at)
        path.write_bytes(data)
    assert not is_damaged(tmp_path)


def test_every_flipped_bit_of_the_first_line_of_sums_is_found(tmp_path: Path) -> None:
    """It is a comment for `sha256sum`, and no file's sum."""
    pack(tmp_path, signed=True)
    assert not is_damaged(tmp_path)
    path = tmp_path / "SHA256SUMS"
    data = path.read_bytes()
    for at in range(data.index(b"\n") + 1):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        assert is_damaged(tmp_path), at


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_sums_that_lack_a_file_are_found(lines: int, tmp_path: Path) -> None:
    pack(tmp_path)
    path = tmp_path / "SHA256SUMS"
    kept = path.read_bytes().splitlines(keepends=True)[1:][:lines]
    path.write_bytes(b"".join(kept))
    with BundleReader([tmp_path]) as reader:
        problems = [(one.place, one.problem) for one in verify_bundle(reader).findings]
    assert all(place == "SHA256SUMS" and "does not list" in told for place, told in problems)
    assert len(problems) == len(SEAL.archives) + len(FILES) + 1 - lines


def test_sums_that_were_made_anew_are_taken(tmp_path: Path) -> None:
    pack(tmp_path, part_size=9000)
    path = tmp_path / "SHA256SUMS"
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings


def test_a_signature_is_openssls(tmp_path: Path) -> None:
    pack(tmp_path, signed=True)
    (tmp_path / "key.pub").write_bytes(PUBLIC)
    script = (
        "base64 -d inventory.json.sig > raw.sig && "
        "openssl dgst -sha256 -verify key.pub -signature raw.sig inventory.json"
    )
    run = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "Verified OK\n")


def test_a_bundle_must_be_signed_by_the_key_that_is_asked_for(tmp_path: Path) -> None:
    pack(tmp_path, signed=True)
    with BundleReader([tmp_path]) as reader:
        check_signature(reader, PUBLIC)
        _, stranger = _keys()
        with pytest.raises(SignatureError):
            check_signature(reader, stranger)
        (finding,) = verify_bundle(reader, key=stranger).findings
        assert finding.place == "inventory.json.sig"
    pack(tmp_path / "unsigned")
    with BundleReader([tmp_path / "unsigned"]) as reader:
        with pytest.raises(SignatureError, match="is not signed: it has no inventory"):
            check_signature(reader, PUBLIC)
        (finding,) = verify_bundle(reader, key=PUBLIC).findings
        assert "a pull with --sign-key makes one" in finding.problem


def test_a_seal_that_is_exchanged_behind_its_reading_does_not_pass_for_the_signed_one(
    tmp_path: Path,
) -> None:
    """What is pushed is what was read; so that, and no other, must be what was signed."""
    pack(tmp_path, signed=True)
    signed = (tmp_path / "inventory.json").read_bytes()
    forged = Seal.over(SEAL.archives.values(), {"forged": True}, SEAL.tool, FILES)
    (tmp_path / "inventory.json").write_bytes(forged.to_json())
    with BundleReader([tmp_path]) as reader:
        (tmp_path / "inventory.json").write_bytes(signed)
        told = "was exchanged while the bundle was read, .*; find out who may write there"
        with pytest.raises(SignatureError, match=told):
            check_signature(reader, PUBLIC)


@pytest.mark.parametrize("spoil", ["change", "lose"])
def test_a_signed_bundle_is_pushed_only_with_every_file_that_was_signed(
    spoil: str, tmp_path: Path
) -> None:
    """A list of releases goes into the cluster beside the images."""
    pack(tmp_path, signed=True)
    (name,) = FILES
    file = tmp_path / name
    if spoil == "change":
        file.write_bytes(file.read_bytes().replace(b"a", b"b"))
    else:
        file.unlink()
    with BundleReader([tmp_path]) as reader, RegistryClient("nowhere.invalid") as registry:
        told = f"is not what was signed: copy it again from its origin\n  {name}: "
        with pytest.raises(DamagedBundleError, match=told):
            plan_push(reader, tree_of(registry), key=PUBLIC)


ENDS: dict[str, Callable[[bytes], bytes]] = {
    "longer": lambda data: data + b"hidden",
    "shorter": lambda data: data[:-1],
    "other end marker": lambda data: data[:-2] + b"\1\0",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize(
    "how", [{}, {"part_size": 5000}, {"compress": True}], ids=["whole", "parts", "compressed"]
)
def test_a_signed_bundle_is_used_only_with_archives_that_end_as_they_were_signed(
    end: Callable[[bytes], bytes], how: dict[str, Any], tmp_path: Path
) -> None:
    """No content lies there, so that no digest of a blob tells."""
    pack(tmp_path / "signed", signed=True, **how)
    file = max((tmp_path / "signed").glob("platform.tar*"))
    file.write_bytes(end(file.read_bytes()))
    with BundleReader([tmp_path / "signed"]) as reader, RegistryClient("no.invalid") as registry:
        told = r"copy it again from its origin.*\n  platform\.tar"
        with pytest.raises(DamagedBundleError, match=told):
            plan_push(reader, tree_of(registry), key=PUBLIC)
        with pytest.raises(DamagedBundleError, match=told):
            merge([reader], tmp_path / "merged", key=PUBLIC)
    assert not list((tmp_path / "merged").glob("*"))


@pytest.mark.parametrize("spoil", ["change", "empty", "lose"])
@pytest.mark.parametrize("name", ["SHA256SUMS", "platform.tar.gostsum"])
def test_sums_that_are_not_what_was_pulled_are_told_before_a_signed_bundle_is_used(
    name: str, spoil: str, tmp_path: Path
) -> None:
    """The signature cannot cover them, and no image depends on them; `verify` refuses them."""
    pack(tmp_path / "signed", signed=True, gost=True)
    file = tmp_path / "signed" / name
    if spoil == "lose":
        file.unlink()
    else:
        file.write_bytes(b"" if spoil == "empty" else file.read_bytes()[::-1])
    heard: list[Event] = []
    with BundleReader([tmp_path / "signed"]) as reader:
        assert name in {one.place for one in verify_bundle(reader).findings}
        merge([reader], tmp_path / "merged", key=PUBLIC, run=Run(on_event=heard.append))
    (warning,) = (event.message for event in heard if isinstance(event, Warned))
    assert warning.startswith(
        "the signature does not cover sums, and these are not what the pull wrote; what follows "
        f"goes by the signed seal:\n  {name}: "
    )


def test_files_that_nothing_speaks_for_are_told(tmp_path: Path) -> None:
    pack(tmp_path, signed=True, gost=True)
    for name in ("install.sh", "NOTES.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "platform.tar.0000.chunk.partial").write_text("a leftover")
    with BundleReader([tmp_path]) as reader:
        told = "not listed in inventory.json, so that no seal or signature speaks for it: "
        heard: list[Event] = []
        check_signed(reader, PUBLIC, Run(on_event=heard.append))
        assert heard == [Warned(f"{told}NOTES.txt, install.sh")]
        report = verify_bundle(reader)
        assert not report.findings
        assert report.notices == (f"{told}NOTES.txt, install.sh",)


@pytest.mark.parametrize("name", ["SHA256SUMS", "deckhousereleases.yaml"])
def test_a_file_that_is_missing_beside_the_archives_is_named(tmp_path: Path, name: str) -> None:
    pack(tmp_path, gost=True)
    (tmp_path / name).unlink()
    with BundleReader([tmp_path]) as reader:
        (finding,) = verify_bundle(reader).findings
    assert (finding.place, finding.problem) == (name, "the file is missing")


def test_a_file_beside_the_archives_is_taken_over_only_as_it_was_sealed(tmp_path: Path) -> None:
    pack(tmp_path)
    seal = Seal.from_json((tmp_path / "inventory.json").read_bytes())
    assert read_files(tmp_path, seal) == FILES
    file = tmp_path / "deckhousereleases.yaml"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(DamagedBundleError, match=r"\.yaml is missing, or not what"):
        read_files(tmp_path, seal)


def test_sums_tell_that_the_seal_is_lost_and_what_else(tmp_path: Path) -> None:
    """Without its seal a bundle could lack anything, and be whole for all that its archives say."""
    pack(tmp_path)
    archive = min(SEAL.archives)
    for name in ("inventory.json", archive):
        (tmp_path / name).unlink()
    with BundleReader([tmp_path]) as reader:
        report = verify_bundle(reader)
    assert not report.sealed
    assert {(one.place, one.problem.partition(",")[0]) for one in report.findings} == {
        ("inventory.json", "the file is missing"),
        (archive, "the file is missing"),
    }


def test_sums_of_somebody_else_say_nothing_of_a_seal(tmp_path: Path) -> None:
    pack(tmp_path)
    (tmp_path / "inventory.json").unlink()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  notes.txt\n")
    with BundleReader([tmp_path]) as reader:
        assert not verify_bundle(reader).findings


def test_a_new_bundle_leaves_no_sums_and_no_signature_of_the_earlier_one(tmp_path: Path) -> None:
    pack(tmp_path, part_size=2000, gost=True, signed=True)
    pack(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *SEAL.archives,
        *FILES,
        *("inventory.json", "SHA256SUMS"),
    }
