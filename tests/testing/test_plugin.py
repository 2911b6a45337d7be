"""The fixtures that other projects name in `pytest_plugins`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TEST = """
from mirror.testing import Answer, Fault
import httpx

def test_it(embedded_registry, make_embedded_registry, make_faulty_proxy):
    embedded_registry.faults.add(Fault(Answer(418)))
    proxy = make_faulty_proxy(make_embedded_registry().url)
    assert httpx.get(embedded_registry.url + "/v2/").status_code == 418
    assert httpx.get(proxy.url + "/v2/").status_code == 200
"""


def test_a_project_that_names_the_plugin_has_its_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["mirror.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
