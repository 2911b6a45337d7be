"""The tree that runs anywhere: an interpreter, the wheels that constraints.txt pins, and `mirror`.

The interpreter is one of python-build-standalone, which needs glibc 2.17 and nothing else. The Go
module `go-embed-python` carries it, so a package registry serves it and its checksum is known.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.programs import HOME, go
from mirror.commands.program import DISTRIBUTION

ROOT = Path(__file__).parents[1]
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PYTHON = "3.14"
EXTRAS = "kubernetes,s3"
"""All of them: where the file goes, nobody can install what is missing."""
MODULE = "github.com/kluctl/go-embed-python"
MODULE_VERSION = "v0.0.0-3.14.6-20260610-1"
SUM = "h1:oGUS7++Wm3LgxUfD6AmJgKbKQD2wdQFO9PzyJv6T+E4="
GLIBC = (2, 28)
"""The oldest that must do: that of RHEL 8, Debian 10 and Astra Linux 1.7."""

_UNUSED = re.compile(
    r"lib/python3\.\d+/(tkinter|turtledemo|idlelib|ensurepip|pydoc_data|lib2to3|config-.*|"
    r"turtle\.py|lib-dynload/_(test|xx|ctypes_test|tkinter|dbm).*)(/.*)?"
)
"""Of the interpreter: what no module of ours imports, and would need a display or a compiler."""


@dataclass(frozen=True)
class Machine:
    """A processor architecture, as Linux, Go and Debian call it."""

    name: str
    go: str
    debian: str

    @property
    def wheel_tags(self) -> Iterator[str]:
        """The platforms of wheels that run there with our glibc, the newest first."""
        for minor in range(GLIBC[1], 4, -1):
            yield f"manylinux_2_{minor}_{self.name}"
        yield f"manylinux2014_{self.name}"


_MACHINES = (Machine("x86_64", "amd64", "amd64"), Machine("aarch64", "arm64", "arm64"))
MACHINES = {one.name: one for one in _MACHINES}
HERE = MACHINES.get(os.uname().machine)
"""Whose interpreter can be run on this machine."""


@dataclass(frozen=True)
class Runner:
    """An interpreter of the shipped version that runs on this machine, with a pip.

    `source` is the folder of the Go module that both come from.
    """

    source: Path
    python: Path
    pip: Path

    @classmethod
    def made(cls, folder: Path) -> Runner:
        """Unpack one below `folder`."""
        if HERE is None:
            raise SystemExit(f"error: build this on one of {', '.join(MACHINES)}")
        source = _interpreter_source()
        unpack_interpreter(source, HERE, folder / "runner")
        _copy_unzipped(source / "pip/internal/data", folder / "pip")
        return cls(source, folder / "runner/bin/python3", folder / "pip")

    def run_pip(self, *arguments: str | Path) -> None:
        """Run pip, which sees nothing of this machine's own Python."""
        quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        subprocess.run(
            [self.python, "-s", "-m", "pip", *arguments, "--quiet"],
            check=True,
            env={**os.environ, **quiet, "PYTHONPATH": str(self.pip)},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )


def make(machine: Machine, runner: Runner, wheels: Path, tree: Path) -> None:
    """Make the tree for a machine; the wheels that go into it are fetched into `wheels`.

    Raises:
        subprocess.CalledProcessError: something could not be had; its output is on standard error.
    """
    unpack_interpreter(runner.source, machine, tree)
    _fetch_wheels(runner, machine, wheels)
    _install(runner, machine, wheels, tree)
    _compile(runner, tree)


def _interpreter_source() -> Path:
    """The folder of the Go module, whose checksum is ours."""
    done = subprocess.run(
        [go(), "mod", "download", "-json", f"{MODULE}@{MODULE_VERSION}"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "HOME": str(HOME), "GOFLAGS": "-mod=mod", "GOWORK": "off"},
        cwd=Path(__file__).parent / "launcher",
    )
    found = json.loads(done.stdout)
    if found["Sum"] != SUM:
        raise SystemExit(f"error: {MODULE} {MODULE_VERSION} has checksum {found['Sum']}, not {SUM}")
    return Path(found["Dir"])


def unpack_interpreter(module: Path, machine: Machine, tree: Path) -> None:
    """Put the interpreter for `machine` into `tree`: its program, its modules and its licence."""
    data = module / f"python/internal/data/linux-{machine.go}"
    _copy_unzipped(data / f"lib/python{PYTHON}", tree / f"lib/python{PYTHON}")
    python = tree / "bin/python3"
    python.parent.mkdir()
    with gzip.open(data / f"bin/python{PYTHON}.gz") as packed, python.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    python.chmod(0o755)
    for path in sorted(tree.rglob("*"), reverse=True):
        if _UNUSED.fullmatch(path.relative_to(tree).as_posix()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copy_unzipped(source: Path, target: Path) -> None:
    """Copy a folder of that module, which keeps large files compressed."""
    for path in sorted(source.rglob("*")):
        to = target / path.relative_to(source)
        if path.is_dir() or path.name == ".gitattributes":
            continue
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            with gzip.open(path) as packed, to.with_suffix("").open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        else:
            to.write_bytes(path.read_bytes())


def _fetch_wheels(runner: Runner, machine: Machine, wheels: Path) -> None:
    """Bring into `wheels` what `mirror` needs there, as constraints.txt pins it, and its own wheel.

    Nothing else is built: what has no wheel for that machine is an error.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    own = f"{_own_wheel(wheels)}[{EXTRAS}]"
    pins = ("--constraint", ROOT / "constraints.txt")
    runner.run_pip("download", *_platform(machine), *pins, "--dest", wheels, own)


def _platform(machine: Machine) -> list[str]:
    tags = [word for tag in machine.wheel_tags for word in ("--platform", tag)]
    return [
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON),
        *tags,
    ]


def _own_wheel(wheels: Path) -> Path:
    """Build the wheel of this project, from a copy of its sources, into `wheels`."""
    for old in wheels.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl"):
        old.unlink()
    copy = wheels.parent / "source"
    shutil.rmtree(copy, ignore_errors=True)
    named = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for path in (*named, *sorted((ROOT / "mirror").rglob("*"))):
        if path.is_file() and "__pycache__" not in path.parts:
            to = copy / path.relative_to(ROOT)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels.resolve(), "."],
        check=True,
        cwd=copy,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    shutil.rmtree(copy)
    return next(wheels.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl")).resolve()


def _install(runner: Runner, machine: Machine, wheels: Path, tree: Path) -> None:
    site = tree / f"lib/python{PYTHON}/site-packages"
    offline = ("--no-index", "--find-links", wheels, "--no-compile", "--target", site)
    runner.run_pip("install", *_platform(machine), *offline, f"{DISTRIBUTION}[{EXTRAS}]")
    shutil.rmtree(site / "kubernetes/aio")  # the same client once more, for asyncio
    shutil.rmtree(site / "bin", ignore_errors=True)  # scripts with a path of this machine
    for note in ("direct_url.json", "REQUESTED", "INSTALLER", "RECORD"):
        for path in site.glob(f"*.dist-info/{note}"):  # of this installation, which nobody undoes
            path.unlink()


def _compile(runner: Runner, tree: Path) -> None:
    """Compile all modules, such that the outcome does not depend on when or where."""
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    how = ("--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/")
    subprocess.run(
        [runner.python, "-I", "-m", "compileall", "-q", *how, tree / f"lib/python{PYTHON}"],
        check=True,
        env=environment,
    )


def pack(tree: Path, target: Path, *, prefix: str = "", at: int = 0) -> None:
    """Write `tree` as a tar that depends on its names, modes and bytes alone, gzip around it."""
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        add_tree(archive, tree, prefix, at)


def add_tree(archive: tarfile.TarFile, tree: Path, prefix: str, at: int) -> None:
    """Add all below `tree` to a tar, below `prefix`, with owner 0 and the time `at`."""
    for path in sorted(tree.rglob("*")):
        member = tarfile.TarInfo(prefix + path.relative_to(tree).as_posix())
        member.mtime = at
        if path.is_symlink():
            member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
            archive.addfile(member)
        elif path.is_dir():
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        else:
            member.size = path.stat().st_size
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as content:
                archive.addfile(member, content)
