"""Programs that tests run, and the Debian packages that bring them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGES = {
    "docker-registry": "docker-registry",
    "skopeo": "skopeo",
    "ctr": "containerd",
    "containerd": "containerd",
    "nginx": "nginx-light",
    "zstd": "zstd",
    "strace": "strace",
    "tar": "tar",
    "openssl": "openssl",
    "unshare": "util-linux",
    "chromium": "chromium",
}


def require_tool(name: str) -> Path:
    """Where the program is; without it the test is skipped, and fails where CI runs it."""
    # nginx lives in sbin, which is not on everybody's PATH.
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is not None:
        return Path(found)
    message = f"{name} is missing; install the Debian package {PACKAGES.get(name, name)}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
