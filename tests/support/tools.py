"""Programs that tests run, and the Debian packages that bring them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from bench.programs import built

PACKAGES = {
    "docker-registry": "docker-registry",
    "skopeo": "skopeo",
    "ctr": "containerd",
    "containerd": "containerd",
    "nginx": "nginx-light",
    "zstd": "zstd",
    "strace": "strace",
    "tar": "tar",
    "dpkg-deb": "dpkg",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
    "unshare": "util-linux",
    "chromium": "chromium",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "qemu-aarch64-static": "qemu-user-static",
}


def require_tool(name: str) -> Path:
    """Where the program is; without it the test is skipped, and fails where CI runs it."""
    # nginx lives in sbin, which is not on everybody's PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        missing(f"{name} is missing; install the Debian package {PACKAGES.get(name, name)}")
    return Path(found)


def require_program(name: str) -> Path:
    """A program of the Go module proxy, built if need be; else as `require_tool`."""
    try:
        return built(name)
    except (OSError, subprocess.CalledProcessError) as err:
        missing(f"{name} cannot be built: {err}")


def missing(message: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
