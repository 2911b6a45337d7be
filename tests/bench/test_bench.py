"""`./run bench` works: all operations of all tools that can be had here, on tiny inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import ROOT, environment
from tests.support.tools import require_tool

OPERATIONS = {
    *("pull", "dry pull", "verify", "push", "push again"),
    *("sync", "sync again", "sync one"),
}
BESIDE = {"dry pull": [], "verify": ["hashlib"], "pull": ["skopeo", "skopeo + sync"]}
"""What operations are compared with that other tools do not have, or do in two ways."""


@pytest.mark.parametrize("name", ["c-tls", pytest.param("b", marks=pytest.mark.soak)])
def test_a_scenario_is_measured_with_every_operation(name: str, tmp_path: Path) -> None:
    require_tool("docker-registry")
    require_tool("skopeo")
    options = ["--quick", "--only", "--scenario", name, "--peer", "skopeo"]
    places = ["--folder", str(tmp_path / "work"), "--output", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *options, *places],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results/bench.json").read_bytes())
    [scenario] = results["scenarios"]
    assert scenario["name"] == name
    operations = scenario["operations"]
    assert set(operations) == OPERATIONS
    for operation, samples in operations.items():
        assert set(samples) == {"mirror", *BESIDE.get(operation, ["skopeo"])}
    [push], [again] = operations["push"]["mirror"], operations["push again"]["mirror"]
    assert push["sent"] > 10 * again["sent"] > 0
    assert push["requests"] > again["requests"] > 0
    assert push["memory"] > 10 << 20
    [pull], [flushed] = operations["pull"]["skopeo"], operations["pull"]["skopeo + sync"]
    assert flushed["seconds"] > pull["seconds"], "what is on the disk took longer"
    page = (tmp_path / "results/bench.html").read_text()
    assert page.count("<svg") == len(OPERATIONS)
    assert "http://" not in page
    assert scenario["title"] in done.stdout
