"""`./run build`: make what travels, with sums, an SBOM and the licences, in `dist/`."""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from mirror.commands.program import DISTRIBUTION
from shipping import contents, deb, executable, image, runtime
from shipping.runtime import HERE, MACHINES, ROOT, VERSION, Machine, Runner


@dataclass(frozen=True)
class Made:
    """What is made for one machine, and where: all kinds are made of the same tree.

    `program` is that tree as packages install it, below `/usr`.
    """

    machine: Machine
    tree: Path
    program: Path
    scratch: Path
    launcher: Path
    output: Path
    licences: bytes
    at: int

    @property
    def name(self) -> str:
        """The beginning of the files' names."""
        return f"mirror-{VERSION}-linux-{self.machine.name}"


def _executable(made: Made) -> Path:
    target = made.output / made.name
    executable.join(made.launcher, made.tree, target)
    return target


def _deb(made: Made) -> Path:
    target = made.output / f"{DISTRIBUTION}_{deb.version()}_{made.machine.debian}.deb"
    files = deb.beside(made.licences)
    deb.write(target, machine=made.machine, program=made.program, files=files, at=made.at)
    return target


def _image(made: Made) -> Path | None:
    if made.machine != HERE or shutil.which("apt-get") is None:
        _say("no image: the C library comes from the packages of a Debian of that architecture")
        return None
    target = made.output / f"{made.name}.oci.tar"
    digest = image.write(
        target,
        machine=made.machine,
        lower=image.base(made.scratch),
        program=made.program,
        licences=made.licences,
        at=made.at,
    )
    _say(f"image {digest}")
    return target


KINDS: dict[str, Callable[[Made], Path | None]] = {
    "executable": _executable,
    "deb": _deb,
    "image": _image,
}


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)))
@click.option(
    "--arch",
    "machines",
    multiple=True,
    type=click.Choice(list(MACHINES)),
    default=[HERE.name] if HERE is not None else [],
    help="For which processors. Repeatable; by default this machine's.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "dist",
    show_default="dist",
    help="Where to put them. Files of the same name are replaced.",
)
def main(kinds: tuple[str, ...], machines: tuple[str, ...], output: Path) -> None:
    """Make KINDS (by default all) of packages that need neither Python nor a network.

    SOURCE_DATE_EPOCH is the time that goes into them; by default that of the last commit.
    """
    output.mkdir(parents=True, exist_ok=True)
    at = int(os.environ.get("SOURCE_DATE_EPOCH") or _last_commit())
    os.environ["SOURCE_DATE_EPOCH"] = str(at)
    with tempfile.TemporaryDirectory(prefix="mirror-build-") as scratch:
        runner = Runner.made(Path(scratch))
        for name in machines:
            _make(MACHINES[name], runner, Path(scratch), output, kinds or tuple(KINDS), at)
    _write_sums(output)


def _make(
    machine: Machine, runner: Runner, scratch: Path, output: Path, kinds: tuple[str, ...], at: int
) -> None:
    tree, wheels = scratch / f"tree-{machine.name}", scratch / f"wheels-{machine.name}"
    _say(f"{machine.name}: interpreter and wheels")
    runtime.make(machine, runner, wheels, tree)
    parts = contents.parts_of(tree, wheels, runner.python)
    launcher = executable.build_launcher(machine, scratch / f"launcher-{machine.name}")
    program = deb.lay_out(tree, launcher, scratch / f"usr-{machine.name}")
    made = Made(machine, tree, program, scratch, launcher, output, contents.licences(parts), at)
    for wheel in wheels.glob("deckhouse_mirror-*.whl"):
        shutil.copyfile(wheel, output / wheel.name)
    (output / f"{made.name}.licenses.txt").write_bytes(made.licences)
    when = datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for kind in kinds:
        target = KINDS[kind](made)
        if target is None:
            continue
        with target.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        _say(f"{target} ({target.stat().st_size / 1e6:.0f} MB)")
        if kind == "executable":
            described = contents.sbom(parts, target.name, sha256, when)
            target.with_name(target.name + ".cdx.json").write_bytes(described)


def _last_commit() -> str:
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip() or "0"


def _write_sums(output: Path) -> None:
    """`SHA256SUMS` over all that lies in the folder, for `sha256sum -c`."""
    lines = []
    for path in sorted(output.iterdir()):
        if path.is_file() and path.name != "SHA256SUMS":
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (output / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _say(text: str) -> None:
    click.echo(f"== {text}", err=True)


if __name__ == "__main__":
    main()
