"""A Debian package, written without Debian's tools: deb(5) is an `ar` of two tars."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from mirror.commands.program import DISTRIBUTION
from shipping import man
from shipping.runtime import GLIBC, ROOT, VERSION, Machine, add_tree

_COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/mirror",
    "zsh": "usr/share/zsh/vendor-completions/_mirror",
    "fish": "usr/share/fish/vendor_completions.d/mirror.fish",
}

SERVICE = {
    "usr/lib/systemd/system/mirror-sync.service": "deploy/systemd/mirror-sync.service",
    "usr/lib/sysusers.d/mirror.conf": "deploy/systemd/mirror.sysusers.conf",
}
"""The replication daemon's unit, which nobody starts unasked, and its user: path → source."""


def version() -> str:
    """The version as Debian orders it: `1.0.0~rc1` is before `1.0.0`."""
    for mark in ("a", "b", "rc"):
        head, found, tail = VERSION.partition(mark)
        if found:
            return f"{head}~{mark}{tail}"
    return VERSION


def beside(licences: bytes) -> dict[str, bytes]:
    """What a package installs besides the program: manual pages, completion, licences, a unit."""
    files = {f"usr/share/doc/{DISTRIBUTION}/copyright": licences}
    files[f"usr/share/doc/{DISTRIBUTION}/changelog.gz"] = gzip.compress(
        (ROOT / "CHANGELOG.md").read_bytes(), mtime=0
    )
    for name, page in man.pages().items():
        files[f"usr/share/man/man1/{name}.gz"] = gzip.compress(page.encode(), mtime=0)
    for path, source in SERVICE.items():
        files[path] = (ROOT / source).read_bytes()
    for shell, path in _COMPLETIONS.items():
        command = [sys.executable, "-m", "mirror", "completion", shell]
        files[path] = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout
    return files


def write(
    target: Path, *, machine: Machine, program: Path, files: dict[str, bytes], at: int
) -> None:
    """Write the package. `program` has `bin/mirror` and `lib/mirror`, and becomes `/usr`."""
    sums: list[str] = []
    size = 0
    for path in sorted(program.rglob("*")):
        if path.is_file():
            sums.append(f"{_md5(path.read_bytes())}  usr/{path.relative_to(program)}\n")
            size += path.stat().st_size
    for name, data in sorted(files.items()):
        sums.append(f"{_md5(data)}  {name}\n")
        size += len(data)
    control = (
        f"Package: {DISTRIBUTION}\n"
        f"Version: {version()}\n"
        f"Architecture: {machine.debian}\n"
        "Maintainer: The authors of mirror <mirror@example.invalid>\n"
        f"Installed-Size: {size // 1024}\n"
        f"Depends: libc6 (>= {'.'.join(map(str, GLIBC))}), libgcc-s1 | libgcc1\n"
        "Recommends: ca-certificates\n"
        "Section: admin\n"
        "Priority: optional\n"
        "Description: carry Deckhouse Kubernetes Platform images across an air gap\n"
        " mirror packs the images of Deckhouse Kubernetes Platform into a bundle, loads\n"
        " it into a registry without a way to the internet, and proves that all of it\n"
        " arrived. It brings a Python interpreter of its own.\n"
    )
    packed_control = gzip.compress(
        _tar({"control": control.encode(), "md5sums": "".join(sums).encode()}, None, at), mtime=0
    )
    data = gzip.compress(_tar(files, program, at), 6, mtime=0)
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": packed_control,
        "data.tar.gz": data,
    }
    with target.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, content in members.items():
            out.write(f"{name:<16}{at:<12}0     0     100644  {len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))


def _md5(data: bytes) -> str:
    # What dpkg compares installed files with; nothing is trusted for it.
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _tar(files: dict[str, bytes], tree: Path | None, at: int) -> bytes:
    """A tar as dpkg reads it: every folder before what it holds, all below `./`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folders = {str(path) for name in files for path in Path(name).parents}
        for name in sorted({*folders, *(["usr"] if tree is not None else [])}):
            _add(archive, "./" if name == "." else f"./{name}", None, at)
        if tree is not None:
            add_tree(archive, tree, "./usr/", at)
        for name, data in sorted(files.items()):
            _add(archive, f"./{name}", data, at)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes | None, at: int) -> None:
    member = tarfile.TarInfo(name)
    member.mtime = at
    if data is None:
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)
    else:
        member.size, member.mode = len(data), 0o644
        archive.addfile(member, io.BytesIO(data))


def lay_out(tree: Path, launcher: Path, folder: Path) -> Path:
    """Arrange the program as packages and images install it, by links to the same files."""
    (folder / "bin").mkdir(parents=True)
    os.link(launcher, folder / "bin/mirror")
    for path in sorted(tree.rglob("*")):
        to = folder / "lib/mirror" / path.relative_to(tree)
        if path.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, to)
    return folder
