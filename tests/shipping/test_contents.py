"""The parts of what travels, and what they may be used under."""

from __future__ import annotations

import json
import tomllib

from shipping.contents import Part, licences, sbom
from shipping.runtime import EXTRAS
from tests.support.program import ROOT

PARTS = (
    Part("CPython", "3.14.6", "PSF-2.0", "pkg:generic/cpython@3.14.6"),
    Part("tqdm", "4.7", "MPL-2.0 AND MIT", "pkg:pypi/tqdm@4.7", "ab" * 32, (("LICENCE", "Free."),)),
)


def test_a_bill_of_materials_names_every_part_with_version_licence_and_sum() -> None:
    document = json.loads(sbom(PARTS, "mirror", "cd" * 32, "2026-01-01T00:00:00Z"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": "cd" * 32}]
    first, second = document["components"]
    assert first["licenses"] == [{"license": {"id": "PSF-2.0"}}]
    assert second["licenses"] == [{"expression": "MPL-2.0 AND MIT"}]
    assert second["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert document["dependencies"][0]["dependsOn"] == [part.purl for part in PARTS]


def test_what_travels_has_all_extras_as_nothing_can_be_installed_where_it_goes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {*EXTRAS.split(","), "test"} == project["optional-dependencies"].keys()


def test_equal_parts_give_equal_bills() -> None:
    first, second = (sbom(PARTS, "mirror", "cd" * 32, "2026-01-01T00:00:00Z") for _ in "ab")
    assert first == second


def test_the_texts_of_licences_follow_a_table_of_all_parts() -> None:
    text = licences(PARTS).decode()
    assert "  CPython 3.14.6                        PSF-2.0\n" in text
    assert "tqdm: LICENCE\n\nFree.\n" in text
