"""A disk that fills up at any byte: the message says so, and the next run completes the work."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from examples.release_tree import SMALL
from mirror.bundle.place import Packing
from mirror.bundle.reader import BundleReader
from mirror.errors import IncompleteError, NoSpaceError
from mirror.nodeconfig.render import Rendered, render, write_cluster
from mirror.nodeconfig.service_secrets import write_secrets
from mirror.operations.merge import merge
from mirror.operations.pull import pack
from mirror.run import Run
from mirror.serve import FolderStorage, MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.bundle.test_power_cut import ALL, FILES, SEAL, STORE, WHOLE
from tests.support.disk import Disk
from tests.support.program import PROGRAM, ROOT, call_mirror, environment
from tests.support.release_source import Source, serve
from tests.support.rendered_cluster import NODES, kept, local
from tests.support.sample_images import fill
from tests.support.tools import require_tool

SIZES = 20
"""At so many sizes of the disk each command is tried."""


def pulling(packing: Packing) -> Callable[[Path, Path], None]:
    def pull(folder: Path, _beside: Path) -> None:
        pack(SEAL, FILES, STORE, folder, packing, run=Run(1))

    return pull


def merging(folder: Path, beside: Path) -> None:
    if not beside.exists():
        pack(SEAL, FILES, STORE, beside, WHOLE)
    with BundleReader([beside]) as reader:
        merge([reader], folder, run=Run(1))


def rendering(folder: Path, _beside: Path) -> None:
    write_secrets(kept(), folder / "secrets.json")
    write_cluster(rendered(), folder)


@cache
def rendered() -> Rendered:
    return render(local(), NODES[:1], kept())


WORK: dict[str, Callable[[Path, Path], None]] = {
    "pull": pulling(WHOLE),
    "pull in parts": pulling(Packing(5_000)),
    "pull compressed and signed": pulling(ALL),
    "merge": merging,
    "mode render": rendering,
}


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file by its path; hidden ones were never given their names."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def written(disk: Disk) -> int:
    return sum(len(change.data) for change in disk.changes)


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_full_disk_is_called_that_and_the_next_run_completes(
    work: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    with Disk(tmp_path / "whole") as disk:
        work(tmp_path / "whole", tmp_path / "beside")
    expected, size = files_in(tmp_path / "whole"), written(disk)
    for room in range(0, size, size // SIZES):
        folder = tmp_path / str(room)
        with (
            Disk.full(folder, room),
            pytest.raises((NoSpaceError, IncompleteError), match="No space left on device") as told,
        ):
            work(folder, tmp_path / "beside")
        assert told.value.exit_code == NoSpaceError.exit_code
        assert "free some space there and run the command again" in str(told.value)
        work(folder, tmp_path / "beside")
        assert files_in(folder) == expected, room


def damaged(bundle: Path, folder: Path) -> None:
    """A copy of a bundle with damage in each archive, and without its list of releases."""
    shutil.copytree(bundle, folder)
    for archive in folder.glob("*.tar"):
        data = bytearray(archive.read_bytes())
        for at in range(700, len(data), 3000):
            data[at] ^= 1
        archive.write_bytes(data)
    (folder / "deckhousereleases.yaml").unlink(missing_ok=True)


def sizes_up_to(size: int, count: int = 4) -> range:
    assert size > count, "it writes something"
    return range(0, size, size // count)


def test_a_repair_on_a_full_disk_is_completed_by_the_next(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    damaged(tiny_bundle, tmp_path / "whole")
    with Disk(tmp_path / "whole") as disk:
        call_mirror("repair", tmp_path / "whole", "--from", tiny_bundle).succeeded()
    expected = files_in(tiny_bundle)
    assert files_in(tmp_path / "whole") == expected
    for room in sizes_up_to(written(disk)):
        folder = tmp_path / str(room)
        damaged(tiny_bundle, folder)
        with Disk.full(folder, room):
            call_mirror("repair", folder, "--from", tiny_bundle).failed(
                NoSpaceError.exit_code, "No space left on device", "free some space there"
            )
        call_mirror("repair", folder, "--from", tiny_bundle).succeeded()
        assert files_in(folder) == expected, room


RESULTS: dict[str, tuple[str, ...]] = {
    "inventory": ("inventory", "{registry}", "--insecure", "-o", "{file}"),
    "inspect": ("inspect", "{bundle}", "--html", "{file}"),
    "verify": ("verify", "{bundle}", "--html", "{file}"),
    "diff": ("diff", "{bundle}", "{bundle}", "--html", "{file}"),
    "repair": ("repair", "{bundle}", "--from", "{bundle}", "--html", "{file}"),
}


@pytest.mark.parametrize("command", RESULTS.values(), ids=RESULTS)
def test_a_result_that_finds_no_room_leaves_the_earlier_one(
    command: tuple[str, ...], source: Source, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "here" / "result"
    places = {"bundle": tiny_bundle, "registry": source.root, "file": file}
    arguments = [one.format(**places) for one in command]
    with Disk(file.parent) as disk:
        call_mirror(*arguments).succeeded()
    expected = file.read_bytes()
    for room in sizes_up_to(written(disk), 2):
        file.write_bytes(b"earlier")
        with Disk.full(file.parent, room):
            call_mirror(*arguments).failed(
                NoSpaceError.exit_code, "No space left on device", "free some space there"
            )
        assert files_in(file.parent) == {file.name: b"earlier"}, room
    call_mirror(*arguments).succeeded()
    assert len(file.read_bytes()) == len(expected)


def test_a_registrys_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    with Disk(tmp_path / "whole") as disk:
        fill(FolderStorage(tmp_path / "whole"))
    expected, size = files_in(tmp_path / "whole"), written(disk)
    for room in range(0, size, size // SIZES):
        folder = tmp_path / str(room)
        with Disk.full(folder, room), pytest.raises(OSError, match="No space left") as told:
            fill(FolderStorage(folder))
        assert told.value.errno == errno.ENOSPC
        assert not FolderStorage(folder).tags("a/b"), "a tag names what is not there"
        fill(FolderStorage(folder))
        assert files_in(folder) == expected, room


_ON_A_DISK = """
mount -t tmpfs -o size="$1" tmpfs "$2" || exit 90
shift 2
"$@"; first=$?
mount -o remount,size=1g "$where" || exit 91
"$@" || exit 92
"$python" -m mirror verify "$where/bundle" >&2 || exit 93
exit $first
"""


@pytest.mark.soak
@pytest.mark.usefixtures("_this_machine_only")
@pytest.mark.parametrize("options", [(), ("--compress=zstd",), ("--images-bundle-chunk-size=1MB",)])
def test_a_real_disk_of_any_size_is_filled_told_and_gone_on_with(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """A file system of its own, in a name space of its own; who is not root needs `unshare -r`."""
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(SMALL, registry)
        sizes = [200 * (number + 1) for number in range(SIZES)]
        for number in range(SIZES):
            where = tmp_path / str(number)
            where.mkdir()
            pull = ("pull", where / "bundle", "--source", source.root, "--insecure", *options)
            done = subprocess.run(
                [
                    *(require_tool("unshare"), "-mr", "sh", "-c", _ON_A_DISK, "sh"),
                    *(f"{sizes[number]}k", str(where), *PROGRAM, *map(str, pull)),
                ],
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=environment({"where": str(where), "python": PROGRAM[0]}),
                check=False,
            )
            assert done.returncode in (0, NoSpaceError.exit_code), (number, done.stderr)
            assert "Traceback" not in done.stderr
            if done.returncode:
                assert "free some space there" in done.stderr, done.stderr
