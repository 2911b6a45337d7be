from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mirror.bundle.inspect import BundleInsight, insight
from mirror.bundle.report import html
from mirror.oci import Descriptor, Digest
from mirror.oci import manifest as types
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from tests.support.tools import require_tool

HOSTILE = "</script><img src=x onerror=\"document.title='pwned'\">'&<b>"
VOID = frozenset({"meta", "link", "input", "img", "br"})


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
    assert page.all("title")[0].text == HOSTILE
    assert HOSTILE in page.all("h1")[0].text
    assert len(page.all("script")) == 2


def test_an_empty_bundle_has_a_page() -> None:
    page = read(html(insight("bundle", {}, {})))
    assert "0 archives" in page.words()


# -- the page in a browser -------------------------------------------------------------------------


def browse(page: str, folder: Path) -> Element:
    """The document as Chromium has it after the script ran, with no network to ask."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            require_tool("chromium"),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *("--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *("--window-size=1300,1000", f"--user-data-dir={folder / 'profile'}", "--dump-dom"),
            path.as_uri(),
        ],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return read(done.stdout.decode())


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
        style = element.attributes["style"] or ""
        left, top, width, height = (
            float(re.findall(rf"(?:^|[ ;]){side}: ([-0-9.e]+)px", style)[0])
            for side in ("left", "top", "width", "height")
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
    elements = [child for child in parent.children if child.tag == "div"]
    tiles = [Tile.of(element) for element in elements]
    for number, tile in enumerate(tiles):
        assert tile.left >= 0 <= tile.top
        assert not any(tile.overlaps(other) for other in tiles[:number])
        if parent.attributes.get("id") != "map":
            around = Tile.of(parent)
            assert tile.left + tile.width <= around.width + 0.01
            assert tile.top + tile.height <= around.height + 0.01
    return len(tiles) + sum(check_map(element) for element in elements)


def test_in_a_browser_areas_are_sizes(tmp_path: Path) -> None:
    found = sample()
    page = browse(html(found), tmp_path)
    assert page.all("html")[0].attributes.get("data-ready") == "yes", "the script failed"
    (chart,) = (one for one in page.all("div") if one.attributes.get("id") == "map")
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


def test_in_a_browser_tables_are_sorted_and_short(tmp_path: Path) -> None:
    page = browse(html(sample()), tmp_path)
    _, images, _, _ = page.all("table")
    rows = images.all("tbody")[0].all("tr")
    sizes = [int(row.all("td")[2].attributes["data-v"] or "") for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sum("hidden" not in row.attributes for row in rows) == 25
    assert "Show all 68" in page.words()


def test_in_a_browser_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = {HOSTILE: inventory("other", {HOSTILE: image(70_000_000, name="x")})}
    page = browse(html(sample(HOSTILE, **hostile)), tmp_path)
    assert page.all("html")[0].attributes.get("data-ready") == "yes"
    assert page.all("title")[0].text == HOSTILE
    assert page.all("img") == []
    assert any(one.attributes.get("data-name") == HOSTILE for one in page.all("div")), (
        "it is on the map"
    )
