"""The one file of `./run build`, in small: the real launcher, and this Python behind it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from shipping.executable import build_launcher, join
from shipping.runtime import HERE

NAME = "mirror-1.0.0rc1-linux-x86_64"


def stand_in(folder: Path) -> Path:
    """Make one in `folder`, with the sums of a release beside it."""
    assert HERE is not None
    python = folder / "one-file/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    launcher = build_launcher(HERE, folder / "one-file/launcher", trimmed=False)
    join(launcher, folder / "one-file", folder / NAME)
    digest = hashlib.sha256((folder / NAME).read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {NAME}\n{'0' * 64}  another.deb\n")
    return folder / NAME
