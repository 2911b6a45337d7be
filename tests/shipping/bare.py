"""A bare Debian without a network: `unshare … python -m tests.shipping.bare ROOT SCRIPT`.

It runs in namespaces of its own, which hold the loopback interface alone. A registry of this
process is all that can be reached; the script, which runs inside ROOT, finds its address in
`$REGISTRY`. Programs for arm64 run in an emulator, if one is named behind it.
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
_FORMATS = Path("/proc/sys/fs/binfmt_misc")
# An ELF file of 64 bits, of any system and either kind of program, for the machine 183: elf(5). The
# kernel opens the emulator at once (F), as it is not inside the root.
_ARM64 = (
    rb":arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    rb":%s:FP"
)


def bare_root(release: str, *, arm64: bool = False) -> Path:
    """A minimal Debian or Ubuntu of that name, kept for the next time. It has no Python.

    That of arm64 is unpacked alone: what its packages would set up is not.

    Raises:
        subprocess.CalledProcessError: it could not be made; the reason is on standard error.
    """
    # The keys of Ubuntu are a package of its own in Debian; nothing trusts what is in this folder.
    ubuntu = ("--no-check-gpg",) if release in UBUNTU else ()
    foreign = ("--foreign", "--arch=arm64") if arm64 else ()
    root = CACHE / f"{'ubuntu' if ubuntu else 'debian'}-{release}{'-arm64' if arm64 else ''}"
    if not root.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = root.with_suffix(".partial")
        debootstrap = require_tool("debootstrap")
        how = (*ubuntu, *foreign)
        # Its mounts are its own: nothing of the machine is below the folder when that is removed.
        subprocess.run(
            ["unshare", "--mount", debootstrap, *how, "--variant=minbase", release, making],
            check=True,
            stdout=sys.stderr,
        )
        making.rename(root)
    return root


def run_inside(root: Path, script: str, emulator: Path | None = None) -> Finished:
    """Run a shell script as root inside `root`, apart from this machine.

    With an emulator the users are its own, too: the kernel then keeps what the emulator runs
    for the script alone (Linux 6.7 or later).
    """
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork"]
    if emulator is not None:
        namespaces += ["--user", "--map-root-user"]
    how = (root, script, *([emulator] if emulator else ()))
    done = subprocess.run(
        [*namespaces, sys.executable, "-m", "tests.shipping.bare", *how],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=ROOT,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def main() -> int:
    root, script, *emulator = sys.argv[1:]
    with socket.socket() as any_socket:
        request = struct.pack("16sh14x", b"lo", _UP_AND_RUNNING)
        fcntl.ioctl(any_socket, _SET_FLAGS, request)
    subprocess.run(["mount", "-t", "proc", "proc", f"{root}/proc"], check=True)
    if emulator:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", _FORMATS], check=True)
        (_FORMATS / "register").write_bytes(_ARM64 % emulator[0].encode())
    with EmbeddedRegistry(MemoryStorage()) as registry:
        clean = ("/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
        command = ["chroot", root, *clean, f"REGISTRY={registry.address}", "sh", "-euc", script]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
