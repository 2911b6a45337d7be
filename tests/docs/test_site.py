"""The documentation as a site: it is whole, and needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from mirror.config import PullConfig
from tests.docs import commands, settings, site
from tests.support.program import ROOT

PAGES = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; its pages have no dead link and no dead anchor."""
    return site.build(tmp_path_factory.mktemp("build"))


def test_the_site_has_every_page(built: Path) -> None:
    for page in (*PAGES, *site.MADE, *site.BESIDE):
        assert (built / page).with_suffix(".html").is_file(), page


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("adr/")])
def test_a_reader_finds_every_page_in_the_navigation(page: str) -> None:
    assert re.search(rf"\s{re.escape(page)}$", site.CONFIG.read_text("utf-8"), re.MULTILINE)


def test_a_reader_in_a_closed_zone_fetches_nothing_from_outside(built: Path) -> None:
    fetched = r"<(?:script|img|iframe|link)[^>]* (?:src|href)=\"?(https?:)?//[^>]*>"
    for page in built.rglob("*.html"):
        assert re.search(fetched, page.read_text("utf-8")) is None, page
    assert (built / "assets/iframe-worker.js").is_file()  # search, in pages opened from a disk
    assert (built / "search.js").is_file()


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("rollback", "howto/monthly-update.html"),
        ("rollback", "cli.html"),
        ("--keep", "sync.html"),
        ("откат", "ru/howto/monthly-update.html"),
    ],
)
def test_the_index_of_the_search_without_a_network_has_the_words_of_every_page(
    built: Path, word: str, page: str
) -> None:
    index = (built / "search.js").read_text("utf-8").removeprefix("var __index = ").rstrip(";\n")
    found = {
        one["location"].partition("#")[0]
        for one in json.loads(index)["items"]
        if word in f"{one['title']} {one['text']}".lower()
    }
    assert page in found


def test_a_dead_link_is_told_with_its_place(tmp_path: Path) -> None:
    config = site.CONFIG.read_text("utf-8").partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{config}\nnav: [index.md]\n", "utf-8")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/index.md").write_text("# x\n\n[a](nowhere.md) [b](index.md#nothing)\n")
    with pytest.raises(SystemExit) as ended:
        site.render(tmp_path)
    told = str(ended.value)
    assert "index.md:3:5" in told
    assert "index.md:3:" in told.partition("anchor does not exist")[2]


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CHANGELOG.md"])
def test_the_pages_beside_the_documents_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", (ROOT / name).read_text("utf-8")):
        assert (ROOT / target).exists(), target


def test_the_page_of_commands_has_every_option() -> None:
    page = commands.page()
    for path, command in commands.commands():
        section = page.partition(f"## mirror {' '.join(path)}\n")[2].partition("\n## ")[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                for name in option.opts:
                    assert re.search(rf"`[^`]*{name}\b", section), (path, name)


def test_the_page_of_settings_has_every_setting() -> None:
    page = settings.page()
    for field in PullConfig.model_fields.values():
        assert f"\n| `{field.alias}` | " in page
        assert str(field.description).replace("|", "\\|") in page
