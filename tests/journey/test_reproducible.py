"""The same content makes the same bundle, byte for byte, wherever and however it is pulled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from mirror.testing import EmbeddedRegistry
from tests.support.program import run_mirror
from tests.support.release_source import TINY, serve


class Surroundings(NamedTuple):
    """What differs between two machines and must not show."""

    hash_seed: int
    time_zone: str
    language: str
    umask: str
    jobs: int


MACHINES = (
    Surroundings(0, "UTC", "C", "022", 1),
    Surroundings(1, "Asia/Kathmandu", "C.UTF-8", "000", 8),
    Surroundings(4242, "America/St_Johns", "tr_TR.UTF-8", "077", 16),
)
WAYS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "deduplicated": ("--dedupe",),
    "compressed-in-parts": ("--compress", "zstd", "--images-bundle-chunk-size", "1MB"),
}


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_hash_seed_time_zone_language_umask_and_jobs_do_not_show_in_a_bundle(
    embedded_registry: EmbeddedRegistry, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    source = serve(replace(TINY, layer_bytes=200_000), embedded_registry)
    bundles = []
    for number, machine in enumerate(MACHINES):
        folder = tmp_path / str(number)
        command = ("pull", str(folder), "--source", source.root, "--insecure", *flags)
        run_mirror(
            *command,
            "--jobs",
            str(machine.jobs),
            env={
                "PYTHONHASHSEED": str(machine.hash_seed),
                "TZ": machine.time_zone,
                "LC_ALL": machine.language,
            },
            before=("sh", "-c", f'umask {machine.umask}; exec "$@"', "sh"),
        ).succeeded()
        bundles.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert any(name.endswith(".chunk") for name in bundles[0]) == ("--compress" in flags)
    for bundle in bundles[1:]:
        assert bundle.keys() == bundles[0].keys()
        assert [name for name, data in bundle.items() if data != bundles[0][name]] == []
