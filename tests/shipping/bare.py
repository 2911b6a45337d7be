"""A bare Debian without a network: `unshare … python -m tests.shipping.bare ROOT SCRIPT`.

It runs in namespaces of its own, which hold the loopback interface alone. A registry of this
process is all that can be reached; the script, which runs inside ROOT, finds its address in
`$REGISTRY`.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
from pathlib import Path

from bench.programs import CACHE
from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import ROOT, Finished
from tests.support.tools import require_tool

_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x41  # netdevice(7): SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


UBUNTU = frozenset({"focal"})


def bare_root(release: str) -> Path:
    """A minimal Debian or Ubuntu of that name, kept for the next time. It has no Python.

    Raises:
        subprocess.CalledProcessError: it could not be made; the reason is on standard error.
    """
    # The keys of Ubuntu are a package of its own in Debian; nothing trusts what is in this folder.
    ubuntu = ("--no-check-gpg",) if release in UBUNTU else ()
    root = CACHE / f"{'ubuntu' if ubuntu else 'debian'}-{release}"
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = root.with_suffix(".partial")
        debootstrap = require_tool("debootstrap")
        # Its mounts are its own: nothing of the machine is below the folder when that is removed.
        subprocess.run(
            ["unshare", "--mount", debootstrap, *ubuntu, "--variant=minbase", release, making],
            check=True,
            stdout=sys.stderr,
        )
        making.rename(root)
    return root


def run_inside(root: Path, script: str) -> Finished:
    """Run a shell script as root inside `root`, apart from this machine."""
    namespaces = ("unshare", "--net", "--mount", "--pid", "--fork")
    done = subprocess.run(
        [*namespaces, sys.executable, "-m", "tests.shipping.bare", root, script],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def main() -> int:
    root, script = sys.argv[1:]
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", _UP_AND_RUNNING)
        fcntl.ioctl(any_socket, _SET_FLAGS, request)
    subprocess.run(["mount", "-t", "proc", "proc", f"{root}/proc"], check=True)
    with EmbeddedRegistry(MemoryStorage()) as registry:
        clean = ("/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
        command = ["chroot", root, *clean, f"REGISTRY={registry.address}", "sh", "-euc", script]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
