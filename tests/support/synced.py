"""In which order a program waits for the disk and gives names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    """What happened to the disk, in order: `fsync NAME`, `rename NAME`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.names: list[tuple[int, Path, Path]] = []  # number of the step, old and new name
        fsync, replace = os.fsync, os.replace

        def recording_fsync(fd: int) -> None:
            self.steps.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
            fsync(fd)

        def recording_replace(source: Any, target: Any, **folders: int) -> None:
            old, new = _path(source, folders, "src_dir_fd"), _path(target, folders, "dst_dir_fd")
            self.names.append((len(self.steps), old, new))
            self.steps.append(f"rename {new.name}")
            replace(source, target, **folders)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(os, "replace", recording_replace)
        monkeypatch.setattr(os, "rename", recording_replace)


def _path(name: Any, folders: dict[str, int], which: str) -> Path:
    folder = folders.get(which)
    return Path(name) if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / name
