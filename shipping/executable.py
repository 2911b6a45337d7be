"""One file: the launcher, the runtime tree behind it, and a trailer that names that."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from bench.programs import HOME, go
from shipping.runtime import Machine, pack

MAGIC = b"MIRROR-1"
TRAILER_BYTES = len(MAGIC) + 8 + hashlib.sha256().digest_size


def build_launcher(machine: Machine, target: Path, *, trimmed: bool = True) -> Path:
    """Build the first program: static, and `trimmed` the same wherever the same Go builds it.

    Not trimmed, it is made of what Go has compiled for other programs already.
    """
    environment = {
        **os.environ,
        "HOME": str(HOME),  # where Go keeps what it has compiled
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": machine.go,
        "GOWORK": "off",
        "GOFLAGS": f"-mod=mod -buildvcs=false -trimpath={str(trimmed).lower()}",
        "GOAMD64": "v1",
        "GOTOOLCHAIN": "local",
    }
    subprocess.run(
        [go(), "build", "-ldflags", "-s -w -buildid=", "-o", target.resolve(), "."],
        check=True,
        cwd=Path(__file__).parent / "launcher",
        env=environment,
        stdout=sys.stderr,
    )
    return target


def join(launcher: Path, tree: Path, target: Path) -> None:
    """Write the executable `target`."""
    packed = target.with_name(target.name + ".tar.gz")
    pack(tree, packed)
    content = packed.read_bytes()
    packed.unlink()
    trailer = MAGIC + len(content).to_bytes(8, "big") + hashlib.sha256(content).digest()
    target.write_bytes(launcher.read_bytes() + content + trailer)
    target.chmod(0o755)
