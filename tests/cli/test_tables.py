"""Results on a screen of 80 columns: short digests, wrapped lines, and names beside digests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mirror.errors import counted, counts
from mirror.reports.messages import fitted
from tests.support.program import call_mirror
from tests.support.release_source import Source
from tests.support.terminal import on_a_terminal

DIGEST = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def two(source: Source, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A registry of two generations, the first without modules, and the words to reach it."""
    lesser = tmp_path_factory.mktemp("tables") / "lesser"
    flags = ("--source", source.root, "--insecure", "--no-modules", "--no-packages")
    call_mirror("pull", lesser, *flags).succeeded()
    target = f"{source.address}/tables/dkp"
    for folder in (lesser, bundle):
        call_mirror("push", folder, target, "--insecure").succeeded()
    return [target, str(bundle), str(lesser)]


def commands(target: str, bundle: str, lesser: str) -> dict[str, tuple[str, ...]]:
    """Command lines that print much."""
    host = target.partition("/")[0]
    return {
        "inspect": ("inspect", bundle),
        "history": ("history", target, "--insecure"),
        "rollback": ("rollback", target, "--dry-run", "--insecure"),
        "prune": ("prune", target, "--keep", lesser, "--dry-run", "--insecure"),
        "diff": ("diff", bundle, lesser),
        "push": ("push", bundle, f"{host}/tables/other", "--dry-run", "--insecure"),
        "pull": ("pull", "b", "--source", f"{host}/deckhouse/ee", "--insecure", "--dry-run"),
    }


@pytest.mark.parametrize("name", commands("", "", ""))
def test_results_fit_80_columns_and_wide_ones_are_whole(two: list[str], name: str) -> None:
    command = commands(*two)[name]
    wide = call_mirror(*command, "-q", "--wide").stdout
    assert DIGEST.search(wide)
    assert (
        call_mirror(*command, "-q").stdout.splitlines()[1:-1]
        == (fitted(wide, None).splitlines()[1:-1])
    ), "without a screen no line is broken"
    for line in fitted(wide, 80).splitlines():
        assert len(line) <= 80 or max(map(len, line.split())) > 60, line
        assert not DIGEST.search(line)


def test_a_screen_gets_lines_as_wide_as_it_is(bundle: Path) -> None:
    quiet = ("--progress", "none")
    _, _, shown = on_a_terminal("inspect", bundle, *quiet, columns=60, results=True)
    assert "Largest layers" in shown
    lines = shown.replace(str(bundle), "").splitlines()
    assert [line for line in lines if len(line) > 60] == []


def test_documents_have_whole_digests(two: list[str]) -> None:
    document = call_mirror("history", two[0], "--insecure", "--json").succeeded().document
    assert all(len(one["inventory"]) == 71 for one in document["generations"])


def test_a_history_names_components_each_once_with_its_versions(two: list[str]) -> None:
    text = call_mirror("history", two[0], "--insecure").succeeded().stdout
    assert re.findall(r"^    Versions +(\w+) v", text, re.MULTILINE) == ["console", "platform"]
    assert "modules/console/release" not in text


def test_images_without_a_tag_have_the_name_that_the_installer_lists(bundle: Path) -> None:
    shown = call_mirror("inspect", bundle).succeeded().stdout
    images = shown.partition("Largest images")[2].partition("Largest layers")[0].splitlines()[1:]
    by_digest = [line for line in images if line.startswith("  / sha256:")]
    assert by_digest
    assert all(re.match(r"  / sha256:[0-9a-f]{12} \w+/\w+ ", line) for line in by_digest)


def test_sizes_of_planned_images_stand_below_one_another_whatever_their_names(
    two: list[str],
) -> None:
    shown = call_mirror(*commands(*two)["pull"]).succeeded().stdout
    rows = [line for line in shown.splitlines() if re.search(r" [KMG]?i?B  sha256:\w{12}$", line)]
    assert any(re.match(r"    \S*:sha256-[0-9a-f]{12}\.att ", row) for row in rows)
    assert any(re.match(r"    / \w+/\w+ ", row) for row in rows)
    assert {row.index("  sha256:") for row in rows if len(row.split()[0]) <= 42} == {58}


def test_a_push_names_tags_that_people_gave_and_counts_the_others(two: list[str]) -> None:
    shown = call_mirror(*commands(*two)["push"]).succeeded().stdout
    assert re.search(r"tables/other: .*, tags v1\S+ .*and \d+ by digest$", shown, re.MULTILINE)


def test_a_paths_name_stays_whole_although_it_looks_like_a_digest() -> None:
    name = "ab" * 32
    text = f"Bundle /srv/{name} is complete, inventory sha256:{name}"
    assert fitted(text, None) == f"Bundle /srv/{name} is complete, inventory sha256:{name[:12]}"


def test_a_long_line_goes_on_below_its_text() -> None:
    line = "  Versions  " + "v1.70.0, " * 6
    assert fitted(line.rstrip(), 40).splitlines() == [
        "  Versions  v1.70.0, v1.70.0, v1.70.0,",
        "            v1.70.0, v1.70.0, v1.70.0,",
    ]


def test_one_of_a_thing_is_no_plural() -> None:
    assert counts(blob=1, tag=2, repository=0) == "1 blob, 2 tags, 0 repositories"
    assert counted(1, "registry") == "1 registry"
