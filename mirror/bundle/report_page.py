"""The page of `mirror.bundle.report_html` without what it shows: markup, style and script.

`@name@` in the markup is where something of that name goes.
"""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="@policy@">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>@name@</title>
<link rel="icon" href="data:,">
<style>@style@</style>
</head>
<body>
<header><h1>@name@</h1>@summary@</header>
<main>
<section id="sizes" hidden>
<h2>Where the bytes are</h2>
<nav id="path" aria-label="place on the map"></nav>
<ul class="legend">@legend@</ul>
<div id="map"></div>
<p><small>Archives, their repositories, their images. Striped areas are layers that several images
of a repository share. Click to look closer, Escape to step back.</small></p>
</section>
<section><h2>Components</h2>@components@</section>
<section><h2>Images</h2>@images@</section>
<section><h2>Largest layers</h2>@layers@</section>
<section><h2>Archives</h2>@archives@</section>
</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">@data@</script>
<script>@script@</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --raised: #fff; --ink: #1d2126;
  --quiet: #5b6570; --line: #dfe2e6; --accent: #1f5fbf; --l: 80%; --s: 55%; --mark: #0002; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14171b; --raised: #1b1f25; --ink: #e6e9ed; --quiet: #9aa5b1; --line: #2d333b;
    --accent: #7fb0ff; --l: 30%; --s: 34%; --mark: #fff2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 1280px; margin: auto; padding: 0 24px; }
h1 { font-size: 22px; margin: 28px 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 10px; }
small, .tiles div { color: var(--quiet); font-size: 13px; }
code { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; }
.tiles div { background: var(--raised); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.tiles b, .tiles strong { display: block; font-weight: 500; }
.tiles strong { font-size: 24px; color: var(--ink); font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 12px; margin: 16px 0 6px; border-radius: 6px; overflow: hidden;
  background: var(--line); }
.bar i { background: var(--accent); }
.bar i + i { opacity: .45; } .bar i + i + i { opacity: .2; }
#map { position: relative; height: min(68vh, 720px); min-height: 360px; overflow: hidden;
  border-radius: 8px; background: var(--line); }
#map div { position: absolute; overflow: hidden; }
#map .box { background: var(--raised); cursor: zoom-in; border-radius: 3px; }
#map .box > span { display: block; padding: 1px 6px; font-size: 12px; font-weight: 600;
  height: 20px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
#map .box .box > span { font-weight: 400; color: var(--quiet); font-size: 11px; height: 16px;
  line-height: 15px; }
#map .leaf { border-radius: 2px; padding: 2px 5px; font-size: 11px; line-height: 1.3;
  white-space: pre; text-overflow: ellipsis;
  background: hsl(var(--h) var(--s) calc(var(--l) + var(--d))); }
#map .rest { background: repeating-linear-gradient(45deg, transparent 0 7px, var(--mark) 7px 9px),
  hsl(var(--h) calc(var(--s) / 2) var(--l)); }
#map .leaf:hover { outline: 2px solid var(--ink); outline-offset: -2px; }
.kind::before { content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 6px;
  border-radius: 3px; background: hsl(var(--h) var(--s) var(--l)); border: 1px solid var(--mark); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 0 0 8px;
  padding: 0; font-size: 13px; color: var(--quiet); }
.platform { --h: 214; } .installer { --h: 280; } .security { --h: 12; } .module { --h: 152; }
.package { --h: 46; } .plugin { --h: 325; } .other { --h: 210; --s: 6%; }
nav { min-height: 26px; font-size: 13px; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
nav button { color: var(--accent); }
nav button + button::before { content: "/"; margin: 0 6px; color: var(--quiet); }
button:focus-visible, input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; background: var(--raised); font-size: 13.5px;
  border: 1px solid var(--line); }
section { overflow-x: auto; }
th, td { text-align: left; padding: 5px 12px; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { position: sticky; top: 0; background: var(--raised); white-space: nowrap; }
th button { font-weight: 600; }
th[aria-sort] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: var(--mark); }
input { font: inherit; font-size: 13.5px; color: inherit; background: var(--raised);
  padding: 5px 9px; border: 1px solid var(--line); border-radius: 6px; margin: 0 0 8px;
  width: min(340px, 100%); }
.more { margin: 8px 0; color: var(--accent); font-size: 13.5px; }
#tip { position: fixed; z-index: 2; max-width: 460px; pointer-events: none; background: var(--ink);
  color: var(--ground); padding: 8px 11px; border-radius: 6px; font-size: 12.5px;
  overflow-wrap: anywhere; }
#tip b { display: block; font-size: 13.5px; }
@media print { #sizes, input, .more { display: none; } }
"""

SCRIPT = """
"use strict";
const root = JSON.parse(document.getElementById("data").textContent);
const map = document.getElementById("map"), tip = document.getElementById("tip");
const path = document.getElementById("path");
let place = [root];

function make(parent, tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  parent.append(made);
  return made;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < 4) { count /= 1024; unit += 1; }
  return unit ? count.toFixed(1) + " " + units[unit] : count + " B";
}

// Squarified treemap (Bruls, Huizing, van Wijk): rows along the shorter side, each as long as its
// tiles get squarer by it. Yields [node, x, y, width, height].
function squarify(nodes, x, y, width, height) {
  const tiles = nodes.filter((node) => node.size > 0).sort((a, b) => b.size - a.size);
  const total = tiles.reduce((sum, node) => sum + node.size, 0);
  const scale = total ? width * height / total : 0;
  const placed = [];
  let start = 0;
  while (start < tiles.length) {
    const side = Math.min(width, height);
    let end = start, area = 0, worst = Infinity;
    while (end < tiles.length) {
      const next = area + tiles[end].size * scale;
      const most = tiles[start].size * scale, least = tiles[end].size * scale;
      const long = next * next, square = side * side;
      const ratio = Math.max(square * most / long, long / (square * least));
      if (ratio > worst) break;
      worst = ratio; area = next; end += 1;
    }
    const thick = side ? area / side : 0;
    let along = 0;
    for (const node of tiles.slice(start, end)) {
      const length = thick ? node.size * scale / thick : 0;
      placed.push(width >= height ? [node, x, y + along, thick, length]
                                  : [node, x + along, y, length, thick]);
      along += length;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    start = end;
  }
  return placed;
}

function draw(parent, node, above, x, y, width, height) {
  const depth = above.length;
  let count = 0;
  for (const [child, left, top, wide, high] of squarify(node.children, x, y, width, height)) {
    if (wide < 1.5 || high < 1.5) continue;
    const box = make(parent, "div", undefined, child.children ? "box" : "leaf");
    if (child.kind) box.classList.add(child.kind);
    if (child.rest) box.classList.add("rest");
    const gap = wide > 6 && high > 6 ? 1 : 0.25;
    box.style.left = left + gap + "px"; box.style.top = top + gap + "px";
    box.style.width = wide - 2 * gap + "px"; box.style.height = high - 2 * gap + "px";
    box.dataset.name = child.name; box.dataset.bytes = child.size;
    box.node = child; box.above = above;
    if (child.children) {
      const room = depth > 1 ? 16 : 20;
      const titled = wide > 46 && high > room + 12;
      if (titled) make(box, "span", child.label + "  " + bytes(child.size));
      const from = titled ? room : 0;
      draw(box, child, [...above, child], 0, from, wide - 2 * gap, high - 2 * gap - from);
    } else {
      box.style.setProperty("--d", [0, 4, -3, 6, -5][count % 5] + "%");
      const text = child.label, fits = wide > 7 * text.length + 10;
      // Half a digest tells nothing, half a name may.
      if (high > 17 && (fits || (wide > 44 && !child.nameless)))
        box.textContent = text + (high > 34 && wide > 66 ? "\\n" + bytes(child.size) : "");
      count += 1;
    }
  }
}

function show() {
  const here = place[place.length - 1];
  map.replaceChildren();
  map.className = place.length > 1 ? place[1].kind : "";
  draw(map, here, place, 0, 0, map.clientWidth, map.clientHeight);
  path.replaceChildren();
  place.forEach((node, depth) => {
    const step = make(path, "button", depth ? node.name : "all archives");
    step.onclick = () => { place = place.slice(0, depth + 1); show(); };
  });
  make(path, "span", "  " + bytes(here.size));
}

function tile(event) { return event.target.closest("#map .box, #map .leaf"); }

map.onclick = (event) => {
  const box = tile(event);
  if (!box) return;
  const line = box.node.children ? [...box.above, box.node] : box.above;
  const next = line.slice(0, place.length + 1);
  if (next.length > place.length) { place = next; tip.hidden = true; show(); }
};

map.onmousemove = (event) => {
  const box = tile(event);
  tip.hidden = !box;
  if (!box) return;
  const node = box.node;
  tip.replaceChildren();
  make(tip, "b", node.name);
  const where = box.above.slice(1).map((one) => one.name).join(" \\u203a ");
  if (where) make(tip, "div", where);
  const share = (100 * node.size / Math.max(1, root.size)).toFixed(2) + " % of the bundle";
  make(tip, "div", bytes(node.size) + ", " + share);
  for (const [name, value] of Object.entries(node.facts || {}))
    make(tip, "div", name + ": " + (typeof value === "number" ? bytes(value) : value));
  const beside = (at, length, room) =>
    Math.max(4, at + 16 + length > room ? at - 12 - length : at + 16);
  tip.style.left = beside(event.clientX, tip.offsetWidth, innerWidth) + "px";
  tip.style.top = beside(event.clientY, tip.offsetHeight, innerHeight) + "px";
};
map.onmouseleave = () => { tip.hidden = true; };
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && place.length > 1) { place = place.slice(0, -1); show(); }
});
addEventListener("resize", show);

function sortBy(table, column, head) {
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (row) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const compare = (a, b) =>
    typeof a === "number" ? b - a : b.localeCompare(a, "en", {numeric: true});
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (down ? 1 : -1) * compare(key(a), key(b)));
  table.tBodies[0].append(...rows);
}

// Long tables are cut to their first rows, and can be searched.
const few = 25;
for (const table of document.querySelectorAll("table")) {
  const rows = table.tBodies[0].rows;
  let all = rows.length <= few, wanted = "";
  const refresh = () => {
    let shown = 0;
    for (const row of rows) {
      const hit = !wanted || row.textContent.toLowerCase().includes(wanted);
      row.hidden = !hit || (!all && shown >= few);
      if (hit) shown += 1;
    }
    more.hidden = all || shown <= few;
    more.textContent = "Show all " + shown;
  };
  const search = document.createElement("input");
  search.type = "search"; search.placeholder = "Search";
  search.setAttribute("aria-label", "search in this table");
  search.oninput = () => { wanted = search.value.toLowerCase(); refresh(); };
  if (!all) table.before(search);
  const more = document.createElement("button");
  more.className = "more";
  more.onclick = () => { all = true; refresh(); };
  table.after(more);
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.firstChild.onclick = () => { sortBy(table, column, head); refresh(); };
    if (head.textContent === "Size") { sortBy(table, column, head); }
  });
  refresh();
}

document.getElementById("sizes").hidden = false;
show();
document.documentElement.dataset.ready = "yes";
"""
