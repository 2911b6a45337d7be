"""What a power cut can take from a bundle: the order of system calls, as the kernel saw it.

The law: bytes are on the disk before their file takes its name, names are on the disk before the
next step relies on them, and the seal's name comes last of all.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.release_tree import SMALL
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import run_mirror
from tests.support.release_source import Source, serve
from tests.support.tools import require_tool

_CALLS = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,rename,renameat,renameat2,unlinkat"
_LINE = re.compile(r"(?P<time>[0-9.]+) (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?[0-9]+)")
_NAMED = re.compile(r'\d+<([^>]*)>, "([^"]*)"')


@dataclass(frozen=True, order=True)
class Step:
    """A change of the disk, or the wait for one. `file` is its name in the bundle's folder."""

    time: float
    kind: str
    file: str
    target: str = ""


@pytest.fixture(scope="module")
def source(_this_machine_only: None) -> Iterator[Source]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield serve(SMALL, registry)


def steps_of(source: Source, folder: Path, *options: str | Path) -> list[Step]:
    """Pull into `folder` under strace; return what happened in it, in order."""
    trace = folder.with_name("trace")
    trace.mkdir()
    before = (
        *(require_tool("strace"), "-ff", "-ttt", "-y", "-s", "0", "-o", trace / "t"),
        *("-e", _CALLS),
    )
    args = ("pull", folder, "--source", source.root, "--insecure", *options)
    run_mirror(*args, before=before).succeeded()
    steps = [step for path in trace.iterdir() for step in _steps(path, folder)]
    assert steps, "strace saw nothing"
    return sorted(steps)


def _steps(trace: Path, folder: Path) -> Iterator[Step]:
    for line in trace.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or int(match["result"]) < 0:
            continue
        at, call, arguments = float(match["time"]), match["call"], match["arguments"]
        # Names of a folder that is held by its descriptor: `5</the/folder>, "name"`.
        names = [Path(folder) / name for folder, name in re.findall(_NAMED, arguments)]
        behind = re.match(r"\d+<([^>]*)>", arguments)
        if call.startswith("rename"):
            old, new = names
            if new.parent == folder:
                yield Step(at, "rename", old.name, new.name)
        elif call == "unlinkat":
            if names[0].parent == folder:
                yield Step(at, "unlink", names[0].name)
        elif behind is not None:
            path = Path(behind[1])
            kind = "sync" if call in ("fsync", "fdatasync") else "write"
            if path == folder:
                yield Step(at, kind, ".")
            elif path.parent == folder:
                yield Step(at, kind, path.name)


def last(steps: list[Step], kind: str, file: str) -> int:
    """Where the last such step is; -1 if there is none."""
    return max(
        (n for n, one in enumerate(steps) if (one.kind, one.file) == (kind, file)), default=-1
    )


def renaming(steps: list[Step], target: str) -> int:
    """Where a file gets that name for the last time."""
    found = [n for n, one in enumerate(steps) if one.kind == "rename" and one.target == target]
    assert found, f"{target} never got its name"
    return found[-1]


def assert_durable(steps: list[Step], target: str) -> None:
    """The bytes of `target` were on the disk before it got its name, and the name after that."""
    named = renaming(steps, target)
    staged = steps[named].file
    written, synced = last(steps[:named], "write", staged), last(steps[:named], "sync", staged)
    assert -1 < written < synced, f"{target}: no fsync between its last byte and its name"
    assert last(steps, "sync", ".") > named, f"{target}: no fsync of the folder behind its name"


OPTIONS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "parts": ("--images-bundle-chunk-size", "1MB"),
    "compressed": ("--compress", "zstd"),
}


@pytest.fixture(scope="module", params=OPTIONS)
def pulled(
    request: pytest.FixtureRequest, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Step]]:
    """A bundle with everything that one can have beside its archives, and how it came there."""
    key = tmp_path_factory.mktemp("key") / "key.pem"
    command = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    subprocess.run([require_tool("openssl"), *command], check=True, capture_output=True)
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    return folder, steps_of(source, folder, "--sign-key", key, *OPTIONS[request.param])


def test_every_file_is_on_the_disk_before_it_has_its_name(
    pulled: tuple[Path, list[Step]],
) -> None:
    folder, steps = pulled
    names = {path.name for path in folder.iterdir()}
    assert {"inventory.json.sig", "SHA256SUMS", "deckhousereleases.yaml"} <= names
    for name in names - {"inventory.json"}:
        assert_durable(steps, name)


def test_the_seal_gets_its_name_last_and_all_other_names_are_on_the_disk_by_then(
    pulled: tuple[Path, list[Step]],
) -> None:
    folder, steps = pulled
    sealed = renaming(steps, "inventory.json")
    assert_durable(steps[:sealed], "inventory.json.partial")
    others = [renaming(steps, p.name) for p in folder.iterdir() if p.name != "inventory.json"]
    assert max(others) < last(steps[:sealed], "sync", "."), "names may be lost that the seal lists"
    assert last(steps, "sync", ".") > sealed


def test_an_old_seal_is_gone_from_the_disk_before_archives_change(
    source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "inventory.json").write_bytes(b"{}")
    steps = steps_of(source, folder, "--force")
    gone = last(steps, "unlink", "inventory.json")
    first = min(n for n, one in enumerate(steps) if one.target.endswith(".tar"))
    assert -1 < gone < first
    assert any(one.kind == "sync" and one.file == "." for one in steps[gone:first])
