"""The page about a bundle: its text, and what a browser makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mirror.bundle.archive import Omissions
from mirror.bundle.inspect import BundleInsight, insight
from mirror.errors import MirrorError
from mirror.oci import Descriptor, Digest
from mirror.oci import manifest as types
from mirror.operations.compare import DiffReport
from mirror.reports.page import fleet_html, html, title
from mirror.reports.registries import diff_html
from mirror.sync import Finding, Inventory, InventoryBuilder, ManifestNode
from mirror.sync.observation import Failure
from mirror.sync.plan import Difference, TagDifference
from mirror.watch.monitoring import FleetStatus, MemberStatus
from tests.support.browser import Browser, browsing

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">'&<b>"
VOID = frozenset({"meta", "link", "input", "img", "br", "wbr"})


def image(*sizes: int, name: str) -> ManifestNode:
    layers = tuple(
        Descriptor(types.OCI_LAYER_GZIP, Digest.of(f"{size}".encode()), size) for size in sizes
    )
    descriptor = Descriptor(types.OCI_MANIFEST, Digest.of(name.encode()), 1000)
    return ManifestNode(descriptor, layers)


def inventory(path: str, images: dict[str, ManifestNode]) -> Inventory:
    builder = InventoryBuilder()
    for tag, node in images.items():
        builder.add_manifest(path, node)
        builder.add_tag(path, tag, node.descriptor.digest)
    return builder.build()


def sample(name: str = "bundle", **further: Inventory) -> BundleInsight:
    """A platform of 60 images with a layer in common, and some modules."""
    archives = {
        "platform.tar": inventory(
            "", {f"v1.0.{n}": image(50_000_000, 10**6 + n**4, name=f"p{n}") for n in range(60)}
        ),
        **{
            f"module-m{n}.tar": inventory(
                f"modules/m{n}", {f"v0.{n}.0": image(10**6 * n**2 + n, name=f"m{n}")}
            )
            for n in range(1, 9)
        },
        **further,
    }
    sizes = {
        key: 4096 + sum(sum(one.blobs.values()) for one in value.repositories.values()) + 60_000
        for key, value in archives.items()
    }
    return insight(name, archives, sizes, sealed=True)


# -- the page as text ------------------------------------------------------------------------------


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Every element of that kind inside."""
        found = [child for child in self.children if child.tag == tag]
        return found + [one for child in self.children for one in child.all(tag)]

    def words(self) -> str:
        """All text inside."""
        return self.text + "".join(child.words() for child in self.children)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.stack[-1].children.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.stack[-1].text += data


def read(page: str) -> Element:
    """The elements of `page`, whose tags must match."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.stack) == 1
    return reader.stack[0]


def test_the_page_asks_for_nothing_from_anywhere() -> None:
    page = html(sample())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|\bsrc=|fetch\(|XMLHttp|WebSocket", page)
    links = [element.attributes for element in read(page).all("link")]
    assert links == [{"rel": "icon", "href": "data:,"}]
    (policy,) = (
        one.attributes["content"]
        for one in read(page).all("meta")
        if "http-equiv" in one.attributes
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'sha256-" in policy


def test_without_its_script_it_has_all_tables() -> None:
    found = sample()
    page = read(html(found))
    tables = page.all("table")
    assert [len(table.all("tr")) - 1 for table in tables] == [
        len(found.components),
        60 + 8,
        len(found.layers),
        len(found.archives),
    ]
    assert "v0.3.0" in tables[0].words()


def test_equal_insights_have_equal_pages() -> None:
    assert html(sample()) == html(sample())


def test_names_are_text_wherever_they_stand() -> None:
    page = read(html(sample(HOSTILE)))
    assert page.all("img") == page.all("b")[5:] == []
    assert HOSTILE in page.all("header")[0].all("p")[0].words()
    assert len(page.all("script")) == 2


def test_a_name_that_is_all_there_is_to_tell_is_text_too() -> None:
    page = read(html(insight(HOSTILE, {}, {})))
    assert page.all("title")[0].text == HOSTILE
    assert HOSTILE in page.all("h1")[0].text


def test_an_empty_bundle_has_a_page() -> None:
    page = read(html(insight("bundle", {}, {})))
    assert "0 archives" in page.words()


def test_its_head_says_what_the_bundle_is_where_it_comes_from_and_of_when() -> None:
    found = replace(
        sample("bundle /mnt/disk"),
        source="registry.example.com/deckhouse/ee",
        written=datetime(2026, 3, 1, 12, tzinfo=UTC),
    )
    assert title(found) == "Deckhouse EE v1.0.59, v1.0.58, v1.0.57, v1.0.56 and 56 more"
    page = read(html(found))
    assert page.all("title")[0].text == page.all("h1")[0].text == title(found)
    head = [line.words() for line in page.all("header")[0].all("p")]
    assert head[:2] == [
        "Pulled from registry.example.com/deckhouse/ee",
        "Bundle /mnt/disk, written on 2026-03-01",
    ]


def test_a_bundle_without_the_platform_is_called_by_what_it_has() -> None:
    console = inventory("modules/console", {"v1.1.0": image(1000, name="console")})
    found = insight("bundle", {"module-console.tar": console}, {"module-console.tar": 5000})
    found = replace(found, source="registry.example.com/deckhouse/fe")
    assert title(found) == "Deckhouse FE without the platform: console"


def test_images_without_a_tag_go_by_their_components() -> None:
    digest = Digest.of(b"some image")
    builder = InventoryBuilder()
    builder.add_manifest("", image(5_000_000, name="some image"))
    builder.add_tag("", digest.encoded, digest)
    found = insight("bundle", {"platform.tar": builder.build()}, {"platform.tar": 5_010_000})
    page = read(html(found, {digest: "nodeManager/bashible"}))
    (row,) = page.all("table")[1].all("tbody")[0].all("tr")
    assert row.all("td")[0].words() == f"nodeManager/bashible sha256:{digest.encoded[:12]}"
    assert row.attributes["data-digest"] == str(digest), "the search finds it by all of its digest"
    assert '"nodeManager/bashible"' in page.all("script")[0].words(), "the map says it too"


def delta() -> BundleInsight:
    """Sixty images, of which the delta itself carries one and one module."""
    whole = sample()
    new = {
        "platform.tar": inventory("", {"v1.0.59": image(10**6 + 59**4, name="p59")}),
        "module-m8.tar": inventory("modules/m8", {"v0.8.0": image(10**6 * 64 + 8, name="m8")}),
    }
    carried = insight("bundle", new, dict.fromkeys(new, 80_000_000))
    left = Omissions(Digest.of(b"base"), 67, 68, 50_000_000)
    return replace(whole, carried=carried, omissions=left)


def test_of_a_delta_it_says_what_the_delta_itself_carries() -> None:
    page = read(html(delta()))
    assert page.all("h1")[0].text.endswith("(delta)")
    tiles = [one.words() for kind in ("b", "strong") for one in page.all("header")[0].all(kind)]
    assert tiles[:2] == ["In this delta", "At the base"]
    assert tiles[tiles.index("Images") + 4] == "47.7 MiB"
    components = page.all("table")[0]
    titles = [head.words() for head in components.all("th")]
    carried = titles.index("In this delta")
    shown = {
        row.all("td")[0].words(): row.all("td")[carried].words()
        for row in components.all("tbody")[0].all("tr")
    }
    assert shown["m8"] == "61.0 MiB"
    assert shown["m7"] == "0 B"
    assert "m7" not in page.all("script")[0].words(), "the map shows the delta alone"


def test_what_is_missing_stands_first_by_names_that_say_something() -> None:
    lost = Digest.of(b"lost")
    findings = (
        Finding("platform.tar", f"blob {lost} is missing", "", (lost.encoded, "v1.0.3"), lost),
        Finding("module-m1.tar", "the archive is missing"),
    )
    page = read(html(sample(), {lost: "istio/agent"}, findings))
    assert page.all("main")[0].all("h2")[0].text == "Damage: 2 findings"
    rows = page.all("table")[0].all("tbody")[0].all("tr")
    assert [[cell.words() for cell in row.all("td")] for row in rows] == [
        ["platform.tar", f"blob {lost} is missing", "/", "istio/agent", "v1.0.3"],
        ["module-m1.tar", "the archive is missing", "", "", ""],
    ]
    assert "Damage" not in html(sample(), {}, ())


def difference(tag: str = HOSTILE) -> DiffReport:
    """Two places with tags of each kind, images without a tag, and one that was not read."""
    ours, theirs = (Digest.of(name) for name in (b"ours", b"theirs"))
    lost = Failure("registry.example/dkp", "modules/m1:v1.0.0", MirrorError("not there"))
    found = Difference(
        (
            TagDifference("", "v1.0.1", ours, theirs, 1 << 20, 2 << 20),
            TagDifference(LONG_PATH, ours.encoded, ours, None, 1 << 20),
            TagDifference("modules/m1", tag, None, theirs, 0, 3 << 30),
        ),
        (("modules/m2", ours),),
        (("", theirs),),
        1 << 20,
        3 << 30,
    )
    return DiffReport("bundle", f"registry.example/{tag}", ours, theirs, found, (lost,))


def test_the_page_of_a_difference_has_every_tag_with_its_sizes() -> None:
    page = read(diff_html(difference()))
    tags, images, failures = (
        [[cell.words() for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")]
        for table in page.all("table")
    )
    short = Digest.of(b"ours").encoded[:12]
    assert failures == [["registry.example/dkp", "modules/m1:v1.0.0", "not there"]]
    assert tags == [
        ["v1.0.1", "/", "changed", "1.0 MiB", "2.0 MiB"],
        [short, LONG_PATH, "only in A", "1.0 MiB", "0 B"],
        [HOSTILE, "modules/m1", "only in B", "0 B", "3.0 GiB"],
    ]
    assert [row[1:] for row in images] == [["modules/m2", "only in A"], ["/", "only in B"]]
    assert page.all("h1")[0].text.endswith(" differ")
    assert page.all("img") == []


# -- the page in a browser -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, with no network to ask."""
    with browsing(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def shown(browser: Browser, tmp_path: Path) -> Browser:
    """The page about a bundle with long names, on a desk's screen by day."""
    browser.media()
    long = {"plugin-some-remarkably-long-plugin-name.tar": LONG}
    lost = Finding("platform.tar", f"blob {Digest.of(b'lost')} is missing", LONG_PATH, ("v1.1.0",))
    found = sample("bundle /mnt/disk/" + "deckhouse/" * 12, **long)
    show(browser, html(found, {}, [lost]), tmp_path)
    return browser


LONG_PATH = "deckhouse-cli/plugins/some-remarkably-long-plugin-name"
LONG = inventory(
    LONG_PATH, {f"v1.{n}.0-rc.{n}": image(9_000_000 + n, name=f"l{n}") for n in (1, 2, 3)}
)


def show(browser: Browser, page: str, folder: Path, *, width: int = 1300) -> Element:
    """The document as the browser has it after the script ran."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.open(path, width=width)
    return read(browser.dom())


@dataclass(frozen=True)
class Tile:
    """A rectangle of the map, in pixels."""

    name: str
    size: int
    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, element: Element) -> Tile:
        left, top, width, height = (
            float(element.attributes[side] or "") for side in ("x", "y", "width", "height")
        )
        size = int(element.attributes["data-bytes"] or "")
        return cls(element.attributes["data-name"] or "", size, left, top, width, height)

    def overlaps(self, other: Tile) -> bool:
        return (
            self.left + self.width > other.left + 0.01
            and other.left + other.width > self.left + 0.01
            and self.top + self.height > other.top + 0.01
            and other.top + other.height > self.top + 0.01
        )


def check_map(parent: Element) -> int:
    """Check that tiles lie side by side and inside what they are part of; count them."""
    elements = [child for child in parent.children if child.tag == "svg"]
    tiles = [Tile.of(element) for element in elements]
    for number, tile in enumerate(tiles):
        assert tile.left >= 0 <= tile.top
        assert not any(tile.overlaps(other) for other in tiles[:number])
        if parent.attributes.get("id") != "map":
            around = Tile.of(parent)
            assert tile.left + tile.width <= around.width + 0.01
            assert tile.top + tile.height <= around.height + 0.01
    return len(tiles) + sum(check_map(element) for element in elements)


def test_in_a_browser_areas_are_sizes(browser: Browser, tmp_path: Path) -> None:
    found = sample()
    page = show(browser, html(found), tmp_path)
    assert page.all("html")[0].attributes.get("data-ready") == "yes", "the script failed"
    (chart,) = (one for one in page.all("svg") if one.attributes.get("id") == "map")
    assert check_map(chart) > 60
    tiles = [Tile.of(child) for child in chart.children]
    assert {tile.name for tile in tiles} <= {archive.name for archive in found.archives}
    # Gaps of a pixel on each side are no part of the sizes.
    areas = {tile.name: (tile.width + 2) * (tile.height + 2) for tile in tiles}
    whole = sum(areas.values())
    for tile in tiles:
        assert areas[tile.name] / whole == pytest.approx(tile.size / found.size, rel=0.02, abs=1e-4)
        if tile.size > found.size / 50:
            assert max(tile.width / tile.height, tile.height / tile.width) < 4, tile


def test_in_a_browser_tables_are_sorted_and_short(browser: Browser, tmp_path: Path) -> None:
    page = show(browser, html(sample()), tmp_path)
    _, images, _, _ = page.all("table")
    rows = images.all("tbody")[0].all("tr")
    sizes = [int(row.all("td")[2].attributes["data-v"] or "") for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sum("hidden" not in row.attributes for row in rows) == 25
    assert "Show all 68" in page.words()


def test_in_a_browser_the_page_of_a_fleet_has_the_late_first_and_no_map(
    browser: Browser, tmp_path: Path
) -> None:
    members = tuple(
        MemberStatus(f"e{n}", "rest", complete=n != 7, generation=2, behind=n) for n in range(30)
    )
    status = FleetStatus(
        "hub", Digest.of(b"statement"), 2, (*members, MemberStatus(HOSTILE, "rest"))
    )
    page = show(browser, fleet_html(status), tmp_path)
    assert page.all("html")[0].attributes.get("data-ready") == "yes"
    (table,) = page.all("table")
    rows = table.all("tbody")[0].all("tr")
    assert [row.all("td")[2].text for row in rows[:3]] == ["late", "late", "complete"]
    assert page.all("img") == []
    (sizes,) = (one for one in page.all("section") if one.attributes.get("id") == "sizes")
    assert "hidden" in sizes.attributes


def test_in_a_browser_hostile_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    hostile = {HOSTILE: inventory("other", {HOSTILE: image(70_000_000, name="x")})}
    page = show(browser, html(sample(HOSTILE, **hostile)), tmp_path)
    assert page.all("html")[0].attributes.get("data-ready") == "yes"
    assert "pwned" not in page.all("title")[0].text
    assert page.all("img") == []
    assert any(one.attributes.get("data-name") == HOSTILE for one in page.all("svg")), (
        "it is on the map"
    )


# Elements that reach beyond the right edge. What lies on the map is cut at its edges.
WIDER = """[...document.body.querySelectorAll(":not(#map *)")].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 0.5;
}).map((one) => one.outerHTML.slice(0, 200))"""

# Words (between spaces, hyphens and slashes) of cells that take more than one line. Digests may.
BROKEN = """[...document.querySelectorAll("td, th")].flatMap((cell) => {
  const words = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const word of texts.currentNode.data.matchAll(/[^\\s/-]+/g)) {
      const range = document.createRange();
      range.setStart(texts.currentNode, word.index);
      range.setEnd(texts.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1 && word[0].length < 60) words.push(word[0]);
    }
  }
  return words;
})"""


@pytest.mark.parametrize("width", [390, 1280])
def test_of_a_difference_nothing_is_wider_than_screen_or_paper(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    for media, dark in (("", False), ("", True), ("print", False)):
        browser.media(media, dark=dark)
        page = show(browser, diff_html(difference("v0.0.9")), tmp_path, width=width)
        assert page.all("html")[0].attributes.get("data-ready") == "yes", "the script failed"
        assert browser.evaluate(WIDER) == []
        assert browser.evaluate(BROKEN) == []
    browser.media()
    assert search(browser, f"{Digest.of(b'theirs')}") == [
        "v1.0.1",
        "v0.0.9",
        f"sha256:{Digest.of(b'theirs').encoded[:12]}",
    ]


@pytest.mark.parametrize("width", [390, 700, 1280])
def test_nothing_is_wider_than_the_screen_and_no_word_is_broken(shown: Browser, width: int) -> None:
    shown.resize(width)
    assert shown.evaluate("innerWidth") == width
    assert shown.evaluate(WIDER) == []
    assert shown.evaluate(BROKEN) == []


def test_on_a_phone_every_value_stands_beside_its_title(shown: Browser) -> None:
    shown.resize(390)
    titles = shown.evaluate(
        """[...document.querySelector("#images tbody tr").cells].map(
          (cell) => getComputedStyle(cell, "::before").content)"""
    )
    assert titles == ["none", '"Repository"', '"Size"', '"Own"', '"Layers"']


def test_on_paper_the_map_is_there_and_cut_tables_say_so(shown: Browser) -> None:
    shown.media("print")
    shown.resize(718)  # A4 between usual margins
    assert shown.evaluate(WIDER) == []
    assert shown.evaluate(BROKEN) == []
    box = shown.evaluate("document.querySelector('#map').getBoundingClientRect().toJSON()")
    width = shown.evaluate("document.documentElement.clientWidth")
    assert box["width"] == width
    assert 300 < box["height"] < 1000, "it fits a page"
    last = "[...document.querySelectorAll('#map rect')].map((x) => x.getBoundingClientRect().right)"
    assert max(shown.evaluate(last)) <= width + 1, "the whole map was scaled"
    note = "getComputedStyle(document.querySelector('#images ~ .more'), '::after').content"
    assert shown.evaluate(note) == '"The first 25 of 71 are shown."'
    assert shown.evaluate("getComputedStyle(document.querySelector('#find')).display") == "none"
    assert shown.printed().startswith(b"%PDF")


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_by_day_and_by_night(shown: Browser, dark: bool) -> None:
    shown.media(dark=dark)
    for selector in ("h1", "td", "small", ".more", "#map .leaf text", "#map .box > text"):
        colors = shown.evaluate(
            f"""(() => {{
              const one = document.querySelector("{selector}"), look = getComputedStyle(one);
              const drawn = one.tagName === "text";
              const tile = drawn && getComputedStyle(one.parentNode.querySelector("rect"));
              return [drawn ? look.fill : look.color,
                      drawn ? tile.fill : getComputedStyle(document.body).backgroundColor];
            }})()"""
        )
        light, darker = sorted((luminance(color) for color in colors), reverse=True)
        assert (light + 0.05) / (darker + 0.05) >= 4.5, (selector, colors)  # WCAG 2, level AA


def luminance(color: str) -> float:
    """The relative luminance of `rgb(…)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


VISIBLE = """[...document.querySelectorAll("tbody tr")].filter((row) => row.getClientRects().length)
  .map((row) => row.cells[0].textContent)"""


def search(browser: Browser, text: str) -> list[str]:
    """The first cells of all rows that are left when somebody types `text`."""
    browser.evaluate(
        f"""(() => {{ const input = document.querySelector("#find input");
          input.value = {text!r}; input.dispatchEvent(new Event("input")); }})()"""
    )
    rows: list[str] = browser.evaluate(VISIBLE)
    return rows


def test_one_search_looks_into_all_tables(shown: Browser) -> None:
    assert search(shown, "remarkably-long") == [
        "platform.tar",  # which lacks something of it
        "some-remarkably-long-plugin-name",
        *(f"v1.{n}.0-rc.{n}" for n in (3, 2, 1)),
        "plugin-some-remarkably-long-plugin-name.tar",
    ]
    assert search(shown, "Remarkably v1.2.0-rc") == [
        "some-remarkably-long-plugin-name",
        "v1.2.0-rc.2",
    ]
    assert search(shown, f"{Digest.of(b'p7')}") == ["v1.0.7"], "an image by its digest"
    assert search(shown, "no such thing") == []
    assert len(search(shown, "")) == 1 + 25 + 10 + 20 + 10
