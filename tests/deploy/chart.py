"""The chart as Helm renders it. `python -m tests.deploy.chart` writes deploy/kubernetes anew."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.program import ROOT
from tests.support.tools import require_program

CHART = ROOT / "deploy/helm/mirror-sync"
PLAIN = ROOT / "deploy/kubernetes"
FILES: Mapping[str, tuple[str, ...]] = {
    "mirror-sync.yaml": (),
    "monitoring.yaml": (
        *("--set", "monitoring.enabled=true"),
        *("--show-only", "templates/monitoring.yaml"),
    ),
}
"""The plain manifests, and by which of Helm's options they come out of the chart."""


def fingerprint() -> str:
    """What the chart is, down to its last byte."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(CHART)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def render(*options: str) -> str:
    """What Helm makes of the chart."""
    done = subprocess.run(
        [
            *(require_program("helm"), "template", "mirror-sync", CHART),
            *("--namespace", "mirror-sync"),
            # A Helm that is built without its makefile takes itself for one of Kubernetes 1.20.
            *("--kube-version", "1.29"),
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(name: str) -> str:
    """What a file of plain manifests is to be."""
    head = [
        "# Helm's rendering of the chart deploy/helm/mirror-sync with its defaults. Change that,",
        "# then run `python -m tests.deploy.chart`.",
        f"# chart sha256:{fingerprint()}",
    ]
    return "\n".join(head) + "\n" + render(*FILES[name])


def write(folder: Path) -> None:
    """Write all plain manifests."""
    for name in FILES:
        (folder / name).write_text(plain(name), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else PLAIN)
