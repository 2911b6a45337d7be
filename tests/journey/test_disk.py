"""What a pull and a push write, as the kernel saw it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from examples.release_tree import SMALL
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeEmbeddedRegistry
from tests.support.program import Finished, run_mirror
from tests.support.release_source import Source, serve
from tests.support.tools import require_tool

SPEC = replace(SMALL, layer_bytes=60_000)
"""Some megabytes, so that what is written about the content is small beside it."""

_OPENS = ("open", "openat", "openat2", "creat")
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "splice")
_WRITES_WITH_TWO_FILES = ("copy_file_range", "truncate", "ftruncate", "fallocate")
_NAMES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "link")
_LINKS = ("linkat", "symlink", "symlinkat", "mknod", "mknodat")
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_NO_FILE = re.compile(r"(socket|pipe|anon_inode|TCP|UNIX):|/proc/|/dev/(?!shm/)")


@dataclass(frozen=True)
class Call:
    """One system call that succeeded."""

    name: str
    arguments: str
    result: int

    @property
    def file(self) -> str:
        """The path behind its first file descriptor; empty where that is no file of a disk."""
        match = re.match(r"\d+<([^>]*)>", self.arguments)
        path = match[1] if match else ""
        return "" if _NO_FILE.match(path) or not path.startswith("/") else path


def traced(folder: Path, *args: str | Path) -> tuple[Finished, list[Call]]:
    """Run `mirror` and answer every call by which it could have changed a disk."""
    folder.mkdir()
    watched = ",".join(
        f"?{name}" for name in (*_OPENS, *_WRITES, *_WRITES_WITH_TWO_FILES, *_NAMES, *_LINKS)
    )
    # A file per thread (-ff), in which no call is interrupted by another thread's.
    strace = (require_tool("strace"), "-ff", "-y", "-s", "0", "-o", folder / "t", "-e", watched)
    run = run_mirror(*args, before=strace)
    return run, [call for trace in sorted(folder.iterdir()) for call in _calls(trace)]


def _calls(trace: Path) -> Iterator[Call]:
    for line in trace.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match and int(match[3]) >= 0:
            yield Call(match[1], match[2], int(match[3]))


def written(calls: list[Call]) -> dict[str, int]:
    """Bytes written, by file."""
    files: dict[str, int] = {}
    for call in calls:
        if call.name in _WRITES and call.file:
            files[call.file] = files.get(call.file, 0) + call.result
    return files


def opened_for_writing(calls: list[Call]) -> list[Call]:
    """Openings of files that could be written or come into being, devices left out."""
    return [
        call
        for call in calls
        if call.name in _OPENS
        and (
            call.name == "creat" or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE", call.arguments)
        )
        and not re.search(r'"/(dev|proc)/', call.arguments)
    ]


@pytest.fixture(scope="module")
def source(_this_machine_only: None) -> Iterator[Source]:
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield serve(SPEC, registry)


@dataclass(frozen=True)
class Pulled:
    """A bundle and how it came to the disk."""

    bundle: Path
    temporary: Path
    calls: list[Call]

    @property
    def size(self) -> int:
        """Bytes of all files of the bundle."""
        return sum(path.stat().st_size for path in self.bundle.iterdir())


@pytest.fixture(scope="module")
def pulled(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Pulled:
    folder = tmp_path_factory.mktemp("disk")
    bundle, temporary = folder / "bundle", folder / "tmp"
    temporary.mkdir()
    run, calls = traced(
        folder / "trace",
        *("pull", bundle, "--source", source.root, "--insecure", "--tmp-dir", temporary),
    )
    run.succeeded()
    return Pulled(bundle, temporary, calls)


def test_a_pull_writes_hardly_more_than_the_bundle(pulled: Pulled) -> None:
    files = written(pulled.calls)
    assert pulled.size > 5_000_000
    assert pulled.size <= sum(files.values()) <= 1.02 * pulled.size, files


def test_a_pull_writes_each_byte_of_an_archive_once(pulled: Pulled) -> None:
    files = written(pulled.calls)
    for archive in pulled.bundle.glob("*.tar"):
        assert files[f"{archive}.partial"] == archive.stat().st_size


def test_a_pull_makes_no_large_temporary_file(pulled: Pulled) -> None:
    final = {path.name for path in pulled.bundle.iterdir()}
    temporary = {
        path: size
        for path, size in written(pulled.calls).items()
        if Path(path).name.replace(".partial", "") not in final
    }
    # The journal, from which an interrupted pull goes on, and nothing else.
    assert max(temporary.values(), default=0) <= 1 << 20, temporary
    assert all("journal" in Path(path).name for path in temporary), temporary
    assert not list(pulled.temporary.iterdir())
    for call in opened_for_writing(pulled.calls):
        assert str(pulled.bundle) in call.arguments, call


def test_a_push_writes_down_its_unfinished_uploads_and_nothing_else(
    pulled: Pulled, make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    registry = make_embedded_registry()
    before = {path.name: path.stat().st_mtime_ns for path in pulled.bundle.iterdir()}
    state = tmp_path / "state"
    run, calls = traced(
        *(tmp_path / "trace", "push", pulled.bundle, f"{registry.address}/dkp/ee", "--insecure"),
        *("--state-dir", state),
    )
    run.succeeded()
    assert registry.requests.received("/blobs/uploads/") > 5_000_000
    made = f'{state.parent}>, "{state.name}"'
    journal = [call for call in calls if str(state) in call.arguments or made in call.arguments]
    assert sum(written(journal).values()) <= 64 << 10, written(journal)
    assert not [path for path in state.rglob("*") if path.is_file()]
    assert_untouched([call for call in calls if call not in journal])
    assert {path.name: path.stat().st_mtime_ns for path in pulled.bundle.iterdir()} == before


def test_a_verification_writes_nothing_at_all(pulled: Pulled, tmp_path: Path) -> None:
    run, calls = traced(tmp_path / "trace", "verify", pulled.bundle)
    run.succeeded()
    assert_untouched(calls)


def assert_untouched(calls: list[Call]) -> None:
    """No file was written, created, named, renamed or removed."""
    assert any(call.name == "openat" for call in calls), "strace saw nothing"
    assert opened_for_writing(calls) == []
    assert written(calls) == {}
    changes = {*_WRITES_WITH_TWO_FILES, *_NAMES, *_LINKS}
    assert [call for call in calls if call.name in changes] == []
