"""What the library promises: names, types, a page that says so, and no side effects."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mirror import Filter, ItemFilter, Manifest, SelectedContent, UploadJournal
from mirror.testing import Answer
from tests import api_page, surface
from tests.support.bundles import pack_store
from tests.support.inventories import sample_store
from tests.support.program import ROOT


def test_a_public_signature_mentions_public_types_alone() -> None:
    assert surface.leaks() == []


def test_the_page_about_the_library_is_made_of_its_docstrings() -> None:
    written = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert written == api_page.page(), "python -m tests.api_page > docs/api.md"


def test_public_names_do_not_differ_by_case_or_plural_alone() -> None:
    names = surface.public()
    types = [name for name, one in names.items() if isinstance(one, type)]
    assert len({name.casefold() for name in types}) == len(types)
    assert {f"{name}s" for name in names} & {*names} == set()


def test_importing_the_library_leaves_logging_as_it_is() -> None:
    program = (
        "import logging, mirror; before = logging.getLogger('httpx').level, logging.root.handlers\n"
        "[getattr(mirror, name) for name in mirror.__all__]\n"
        "assert (logging.getLogger('httpx').level, logging.root.handlers) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)
    assert logging.getLogger("mirror").handlers == []


def test_the_asyncio_example_verifies_a_bundle(tmp_path: Path) -> None:
    pack_store(sample_store(), tmp_path / "bundle")
    program = [sys.executable, "examples/with_asyncio.py", str(tmp_path / "bundle")]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole\n"


def test_making_a_journal_of_uploads_touches_no_disk(tmp_path: Path) -> None:
    UploadJournal(tmp_path / "uploads", "registry.example:5000")
    assert list(tmp_path.iterdir()) == []


def test_mappings_inside_frozen_values_are_read_only() -> None:
    items, headers = {"a": ItemFilter("a")}, {"Retry-After": "1"}
    selected = SelectedContent((), modules={"a": ("v1.0.0",)}, files={"f": b""})
    mappings: list[Any] = [
        Filter(items).items,
        *(selected.modules, selected.packages, selected.plugins, selected.files),
        Manifest.parse(b'{"schemaVersion": 2, "manifests": [], "annotations": {}}').annotations,
        Answer(429, headers).headers,
    ]
    for mapping in mappings:
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["b"] = None
    items["b"] = ItemFilter("b")  # the caller's own stays the caller's
    assert set(mappings[0]) == {"a"}


def test_whoever_is_told_to_install_an_extra_is_told_the_name_of_the_distribution() -> None:
    """`mirror` alone is somebody else's in the package index."""
    told = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "mirror").rglob("*.py")]
    assert len(told) > 200
    for path in told:
        found = re.findall(r"(\S*)mirror\[\w+\]", path.read_text("utf-8"))
        assert all(before.endswith("deckhouse-") for before in found), path
