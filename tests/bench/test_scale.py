"""The arithmetic of very large inventories takes little memory (`python -m bench.scale`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.program import ROOT
from tests.support.tools import require_tool


def measured(images: int, blobs: int) -> dict[str, Any]:
    """What the bench finds, in a process of its own."""
    line = [sys.executable, "-m", "bench.scale", str(images), "--blobs", str(blobs), "--here"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("images", "blobs", "most"),
    [
        (300, 2, 100_000_000),
        pytest.param(10_000, 10, 400_000_000, marks=pytest.mark.soak),
        pytest.param(
            100_000, 10, 2_000_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)]
        ),
    ],
)
def test_a_tree_is_compared_planned_laid_out_and_sealed_in_bounded_memory(
    images: int, blobs: int, most: int
) -> None:
    found = measured(images, blobs)
    assert {"build", "digest", "diff", "plan of all", "lay out", "seal from JSON"} <= {
        *found["steps"]
    }
    assert max(peak for _, peak in found["steps"].values()) < most


def test_the_bare_requests_of_a_push_are_measured(tmp_path: Path) -> None:
    require_tool("docker-registry")
    line = [sys.executable, "-m", "bench.bare", "--images", "2", "--folder", str(tmp_path / "bare")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    words = [line.partition(" in ")[0] for line in done.stdout.splitlines()]
    assert words[:3] == ["blobs: 7", "manifests: 2", "looks: 2"]
    assert words[3].startswith("all: ")
