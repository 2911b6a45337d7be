"""The registries that the tutorial practises with."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

from mirror.serve import MemoryStorage
from mirror.testing import EmbeddedRegistry
from tests.support.program import ROOT, call_mirror

_READY = "Enter publishes the vendor's next release. Ctrl-C ends both.\n"


def test_practice_registries_serve_a_release_and_then_the_next() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "examples.practice", "0", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, _READY))
        source, target = re.findall(r"127\.0\.0\.1:\S+", said)
        assert call_mirror("history", target, "--insecure").text
        newest = ("pull", "unused", "--source", source, "--insecure", "--dry-run", "--json")
        versions = call_mirror(*newest).succeeded().document["platform"]["versions"]
        assert "v1.71.0" not in versions
        process.stdin.write("\n")
        process.stdin.flush()
        assert "v1.71.0 is published.\n" in iter(process.stdout.readline, "")
        assert "v1.71.0" in call_mirror(*newest).succeeded().document["platform"]["versions"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_told_with_the_way_to_name_another() -> None:
    with EmbeddedRegistry(MemoryStorage()) as other:
        taken = other.address.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "examples.practice", taken, "0"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: ports {taken} and 0 of 127.0.0.1 cannot be used (Address already in use); "
        "name two free ones: ./run practice 5100 5101\n"
    )
