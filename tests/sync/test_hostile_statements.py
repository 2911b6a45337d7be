"""Nothing that a statement or a seal says costs more memory than what it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import pytest

from mirror.bundle.seal import parse_seal, seal_bytes
from mirror.errors import DamagedBundleError, MirrorError
from mirror.serve import MemoryStorage, put_blob
from mirror.sync.statement import (
    ARTIFACT_TYPE,
    LAYER_TYPE,
    MAX_STATEMENT_BYTES,
    REPOSITORY,
    Statement,
    joined,
    make_artifact,
)
from mirror.testing import EmbeddedRegistry
from tests.support.measured import measured, peak
from tests.support.program import ROOT, environment

MOST_MEMORY = 200_000_000
MIB = 1 << 20
VALUES = 1_000_000
ENTRIES = 100_000


def many(text: bytes, count: int = ENTRIES) -> bytes:
    return b",".join([text % {b"n": number} for number in range(count)])


def said(blobs: bytes = b"", manifests: bytes = b"", former: bytes = b"") -> list[bytes]:
    """A statement with these members in their places."""
    return [
        b'{"former":{"":{%b}},"generation":1,"inventory":{"manifests":{%b},' % (former, manifests),
        b'"repositories":{"":{"blobs":{%b},"manifests":[],"tags":{}}},' % blobs,
        b'"schemaVersion":1},"schemaVersion":1,"tool":""}',
    ]


def filled(start: bytes, piece: bytes) -> Iterable[bytes]:
    """A document of the largest size, which begins so and goes on so."""
    return chain([start], repeat(piece, MAX_STATEMENT_BYTES // len(piece)))


KINDS: dict[str, Callable[[], Iterable[bytes]]] = {
    "values": lambda: [b"[", b"{}," * VALUES, b"{}]"],
    "values in their place": lambda: said(manifests=b'"a":{},' * VALUES + b'"a":{}'),
    "values of one manifest": lambda: said(manifests=b'"a":{"blobs":[' + b"[]," * VALUES + b"[]]}"),
    "keys": lambda: [b"{", (many(b'"%(n)d":0') + b",") * 20, b'"":0}'],
    "texts": lambda: filled(b"[", many(b'"%(n)030d"', 30_000) + b","),
    "one text of wide characters": lambda: filled('{"a":"\U0001f600'.encode(), b"a" * MIB),
    "one key of wide characters": lambda: filled('{"\U0001f600'.encode(), b"a" * MIB),
    "spaces": lambda: filled(b"{", b" " * MIB),
    "depth": lambda: filled(b"{", b'"a":{' * 200_000),
    "one digest everywhere": lambda: [b"[", b'"sha256:%064d",' % 7 * 300_000, b"0]"],
    "blobs": lambda: said(blobs=many(b'"sha256:%(n)064d":1')),
    "manifests": lambda: said(many(b'"sha256:%(n)064d":{"mediaType":"a/b","size":1}')),
    "tags": lambda: said(former=many(b'"v%(n)d":"sha256:%(n)064d"')),
}


def peak_of(kind: str, read: Callable[[bytes], object]) -> int:
    """The largest resident set of this process since this began, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    with suppress(MirrorError, ValueError):
        read(joined(KINDS[kind]()))
    return peak()


def test_no_statement_and_no_seal_exhausts_the_memory_of_who_reads_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sync.test_hostile_statements"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        check=True,
    )
    peaks = json.loads(done.stdout)
    assert set(peaks) == set(KINDS)
    print("\n".join(f"{kind}: {bytes_ / 1e6:.0f} MB" for kind, bytes_ in peaks.items()))
    assert {kind: bytes_ for kind, bytes_ in peaks.items() if bytes_ > MOST_MEMORY} == {}


@pytest.mark.parametrize("kind", ["one text of wide characters", "spaces", "texts"])
def test_what_speaks_of_no_content_is_not_read_to_its_end(kind: str, tmp_path: Path) -> None:
    pieces = iter(KINDS[kind]())
    with pytest.raises(ValueError, match="more than 32 MiB of it speak of no content"):
        joined(pieces)
    assert next(pieces)
    with (tmp_path / "inventory.json").open("wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(DamagedBundleError, match=r"inventory.json.*speak of no content.*copy it"):
        seal_bytes(tmp_path / "inventory.json")


@pytest.mark.usefixtures("_this_machine_only")
def test_a_registry_that_states_rubbish_is_told_of_in_little_memory(tmp_path: Path) -> None:
    whole = b"".join(KINDS["values"]())
    storage, repository = MemoryStorage(), f"dkp/ee/{REPOSITORY}"
    artifact = make_artifact(ARTIFACT_TYPE, layer=whole, layer_type=LAYER_TYPE)
    for blob in (whole, b"{}"):
        put_blob(storage, repository, blob)
    storage.put_manifest(repository, artifact.manifest, "latest")
    with EmbeddedRegistry(storage) as registry:
        tree = f"{registry.address}/dkp/ee"
        (run,), most = measured(("inventory", tree, "-o", tmp_path / "found", "--insecure"))
    assert "it is not a published inventory" in run.stderr
    assert most < MOST_MEMORY


if __name__ == "__main__":
    readers = (Statement.from_json, partial(parse_seal, where="a seal"))
    peaks = {kind: max(peak_of(kind, read) for read in readers) for kind in KINDS}
    sys.stdout.write(json.dumps(peaks))
