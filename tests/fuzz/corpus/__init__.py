"""Inputs that once did something new, or something wrong: one file a target, one line an input."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path(__file__).parent
_MOST = 40
_LONGEST = 1500


def read(target: str) -> list[bytes]:
    """The kept inputs of a target."""
    path = _path(target)
    if not path.exists():
        return []
    return [base64.b64decode(line) for line in path.read_text("ascii").splitlines()]


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """Add inputs, the shortest first, until there are enough; what was kept stays."""
    kept = read(target)
    for data in sorted({*inputs} - {*kept}, key=lambda one: (len(one), one)):
        if len(kept) < _MOST and len(data) <= _LONGEST:
            kept.append(data)
    text = "".join(base64.b64encode(data).decode() + "\n" for data in kept)
    _path(target).write_text(text, "ascii")


def _path(target: str) -> Path:
    return _FOLDER / f"{target.replace(' ', '-')}.txt"
