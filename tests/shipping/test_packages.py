"""The Debian package and the image, of a small tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from shipping import deb, image
from shipping.deb import lay_out
from shipping.runtime import MACHINES, VERSION
from tests.support.mode_stack import ContainerdProcess
from tests.support.program import call_mirror
from tests.support.tools import require_tool

AMD64 = MACHINES["x86_64"]
FILES = {
    "usr/share/man/man1/mirror.1.gz": b"page",
    "usr/share/doc/deckhouse-mirror/copyright": b"c",
}
AT = 1_700_000_000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "tree/bin").mkdir(parents=True)
    (folder / "tree/bin/python3").write_text("interpreter")
    (folder / "tree/bin/python3").chmod(0o755)
    (folder / "launcher").write_text("launcher")
    (folder / "launcher").chmod(0o755)
    return lay_out(folder / "tree", folder / "launcher", folder / "usr")


def _deb(program: Path, target: Path) -> Path:
    deb.write(target, machine=AMD64, program=program, files=FILES, at=AT)
    return target


def test_dpkg_reads_the_package_and_finds_the_program_where_it_belongs(
    program: Path, tmp_path: Path
) -> None:
    tool = require_tool("dpkg-deb")
    package = _deb(program, tmp_path / "mirror.deb")
    fields = subprocess.run([tool, "-f", package], check=True, capture_output=True, text=True)
    assert "Package: deckhouse-mirror\n" in fields.stdout
    assert "Architecture: amd64\n" in fields.stdout
    assert "Depends: libc6 (>= 2.28), libgcc-s1 | libgcc1\n" in fields.stdout
    subprocess.run([tool, "-x", package, tmp_path / "root"], check=True)
    assert (tmp_path / "root/usr/bin/mirror").read_text() == "launcher"
    interpreter = tmp_path / "root/usr/lib/mirror/bin/python3"
    assert interpreter.stat().st_mode & 0o777 == 0o755
    subprocess.run([tool, "-e", package, tmp_path / "control"], check=True)
    sums = subprocess.run(
        ["md5sum", "-c", "--quiet", tmp_path / "control/md5sums"], cwd=tmp_path / "root"
    )
    assert sums.returncode == 0


def test_equal_trees_give_equal_packages(program: Path, tmp_path: Path) -> None:
    first, second = (_deb(program, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("release", "expected"),
    [("1.0.0rc1", "1.0.0~rc1"), ("1.2.3", "1.2.3"), ("2.0.0a4", "2.0.0~a4")],
)
def test_a_candidate_comes_before_its_release(
    monkeypatch: pytest.MonkeyPatch, release: str, expected: str
) -> None:
    monkeypatch.setattr(deb, "VERSION", release)
    assert deb.version() == expected


def _image(program: Path, tmp_path: Path, name: str = "image.tar") -> Path:
    lower = tmp_path / "lower"
    (lower / "lib64").mkdir(parents=True, exist_ok=True)
    (lower / "lib64/libc.so.6").write_text("library")
    target = tmp_path / name
    image.write(target, machine=AMD64, lower=lower, program=program, licences=b"texts", at=AT)
    return target


def test_equal_trees_give_equal_images(program: Path, tmp_path: Path) -> None:
    first, second = (_image(program, tmp_path, name).read_bytes() for name in "ab")
    assert first == second


def test_containerd_imports_and_unpacks_the_image(
    program: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tar = _image(program, tmp_path)
    folder = tmp_path_factory.mktemp("c")  # short, as addresses of sockets are
    with ContainerdProcess(folder) as containerd:
        done = containerd.ctr("images", "import", "--snapshotter", "native", tar)
        assert done.returncode == 0, done.stderr
        names = containerd.ctr("images", "ls", "-q").stdout.splitlines()
        assert f"localhost/mirror:{VERSION}" in names
    (mirror,) = (folder / "root").glob("*native/snapshots/*/usr/bin/mirror")
    assert mirror.read_text() == "launcher"
    root = mirror.parents[2]
    assert (root / "lib64/libc.so.6").read_text() == "library"
    assert (root / "home/mirror").stat().st_uid == image.USER
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777


def test_mirror_pushes_the_image_by_its_version(program: Path, tmp_path: Path) -> None:
    tar = _image(program, tmp_path)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        target = f"{registry.address}/tools/mirror"
        pushed = call_mirror("push", "--file", tar, target, "--insecure").succeeded().stdout
        assert f"  Images     /:{VERSION}\n" in pushed
        assert "Platform" not in pushed
        shown = call_mirror("inventory", target, "--insecure", "-o", tmp_path / "i.json")
        shown.succeeded()
        assert f'"{VERSION}"' in (tmp_path / "i.json").read_text()
