"""What `./run build` makes, on systems that have nothing: `./run soak tests/shipping`.

`MIRROR_DIST` names a folder with a build to be tried; by default one is made. The aarch64 file runs
in the emulator of Debian's qemu-user-static.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from shipping.runtime import GLIBC, MACHINES, VERSION, Machine
from tests.shipping.bare import bare_root, run_inside
from tests.support.mode_stack import ContainerdProcess
from tests.support.program import ROOT
from tests.support.release_source import TINY, serve
from tests.support.tools import require_tool

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
NAMES = {name: f"mirror-{VERSION}-linux-{name}" for name in MACHINES}
NAME = NAMES["x86_64"]
SYSTEMS = ("bullseye", "bookworm", "focal")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a build makes, for both machines."""
    if given := os.environ.get("MIRROR_DIST"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("dist")
    machines = [word for name in MACHINES for word in ("--arch", name)]
    subprocess.run(
        [sys.executable, "-m", "shipping", *machines, "--output", folder],
        check=True,
        cwd=ROOT,
        timeout=1500,
    )
    return folder


def test_the_file_needs_no_variable_and_no_program_of_this_machine(
    release: Path, tmp_path: Path
) -> None:
    nothing = {"MIRROR_RUNTIME_DIR": str(tmp_path / "runtime")}

    def run(*arguments: str | Path) -> str:
        command = [release / NAME, *arguments]
        done = subprocess.run(command, env=nothing, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"one file: {release / NAME}" in run("version")
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source, target = serve(TINY, registry), f"{registry.address}/closed"
        run("pull", tmp_path / "bundle", "--source", source.root, "--insecure")
        assert "The bundle is whole" in run("verify", tmp_path / "bundle")
        run("push", tmp_path / "bundle", target, "--insecure")
        against = run("verify", tmp_path / "bundle", "--against", target, "--insecure")
    assert "holds the whole bundle" in against


@pytest.fixture(scope="module")
def disk(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the one file pulls: a bundle with itself, `x86_64`, and one with that of `aarch64`."""
    folder = tmp_path_factory.mktemp("disk")
    with EmbeddedRegistry(MemoryStorage()) as registry:
        source = serve(TINY, registry)
        for machine, tool in (("x86_64", "--with-tool"), ("aarch64", "--tool")):
            named = [str(release / NAMES[machine])] if tool == "--tool" else []
            how = ("--source", source.root, "--insecure", tool, *named)
            subprocess.run(
                [str(release / NAME), "pull", str(folder / machine), *how],
                check=True,
                env={**os.environ, "MIRROR_RUNTIME_DIR": str(folder / "runtime")},
                timeout=300,
            )
    return folder


JOURNEY = (
    'rm -rf /root/.cache; ! command -v python3; test -z "$(sed 1d /proc/net/route)"; uname -m\n'
    "cd /media/bundle; sha256sum --quiet -c SHA256SUMS; ./mirror version\n"
    "./mirror verify . && ./mirror push . $REGISTRY/deckhouse --insecure\n"
    "./mirror verify . --against $REGISTRY/deckhouse --insecure\n"
)


@pytest.mark.parametrize(
    ("system", "machine"), [*((system, "x86_64") for system in SYSTEMS), ("bookworm", "aarch64")]
)
def test_the_disk_brings_all_that_a_bare_system_without_a_network_needs(
    system: str, machine: str, disk: Path
) -> None:
    foreign = machine == "aarch64"
    emulator = require_tool("qemu-aarch64-static") if foreign else None
    root = bare_root(system, arm64=foreign)
    shutil.rmtree(root / "media/bundle", ignore_errors=True)
    shutil.copytree(disk / machine, root / "media/bundle")
    done = run_inside(root, JOURNEY, emulator)
    assert done.code == 0, done.text
    assert f"{machine}\n" in done.stdout
    assert "The bundle is whole" in done.stdout
    assert "holds the whole bundle" in done.stdout
    assert "one file: /media/bundle/mirror" in done.stdout
    assert {"awscrt", "kubernetes"} <= {line.split()[0] for line in done.stdout.split("\n") if line}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_package_installs_and_goes_without_a_trace(system: str, release: Path) -> None:
    root = bare_root(system)
    (package,) = release.glob("*_amd64.deb")
    shutil.copyfile(package, root / "media/mirror.deb")
    done = run_inside(
        root,
        "dpkg -i /media/mirror.deb >&2; dpkg -V deckhouse-mirror; mirror version --json\n"
        "test -s /usr/share/bash-completion/completions/mirror\n"
        "dpkg -r deckhouse-mirror >&2; ! ls /usr/lib/mirror /usr/bin/mirror 2>&1\n",
    )
    assert done.code == 0, done.text
    found = json.loads(done.stdout.partition("\n}")[0] + "\n}")
    assert found["version"] == VERSION
    assert found["executable"] is None


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_no_program_inside_asks_for_a_newer_c_library_than_the_oldest_that_must_do(
    machine: Machine, release: Path
) -> None:
    (package,) = release.glob(f"*_{machine.debian}.deb")
    unpacked = subprocess.run(
        [require_tool("dpkg-deb"), "--fsys-tarfile", package], check=True, capture_output=True
    )
    wanted = {
        tuple(int(number) for number in version.split(b"."))
        for version in re.findall(rb"\0GLIBC_([0-9.]+)(?=\0)", unpacked.stdout)
    }
    assert (2, 17) in wanted
    assert max(wanted) <= GLIBC


def test_containerd_runs_the_image_as_nobody(
    release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with ContainerdProcess(tmp_path_factory.mktemp("c")) as containerd:
        tar = release / f"{NAME}.oci.tar"
        assert containerd.ctr("images", "import", "--snapshotter", "native", tar).returncode == 0
        name = f"localhost/mirror:{VERSION}"
        run = ("run", "--rm", "--snapshotter", "native", name, "one", "/usr/bin/mirror", "version")
        done = containerd.ctr(*run)
    assert done.returncode == 0, done.stderr
    assert f"mirror {VERSION}\n" in done.stdout


def test_the_sums_and_the_bill_of_materials_are_those_of_the_files(release: Path) -> None:
    check = ["sha256sum", "--quiet", "--strict", "-c", "SHA256SUMS"]
    assert subprocess.run(check, cwd=release).returncode == 0
    document = json.loads((release / f"{NAME}.cdx.json").read_text())
    digest = hashlib.sha256((release / NAME).read_bytes()).hexdigest()
    assert document["metadata"]["component"]["hashes"][0]["content"] == digest
    parts = {part["name"]: part for part in document["components"]}
    assert {"CPython", "openssl", "cryptography", "httpx", "zstandard"} <= parts.keys()
    unclear = [
        name
        for name, part in parts.items()
        if part["licenses"] == [{"license": {"id": "NOASSERTION"}}]
    ]
    assert not unclear
    assert (release / NAME).stat().st_size < 80e6
