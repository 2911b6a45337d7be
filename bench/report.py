"""The results for people: tables as text, and one page with charts that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from bench.scenarios import OPERATIONS

_OURS = "mirror"
_COLOURS = {
    _OURS: "#2563eb",
    "skopeo": "#9ca3af",
    "crane": "#d97706",
    "regsync": "#059669",
    "hashlib": "#7c3aed",
}
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{border-bottom:1px solid #ddd;padding:.15rem .7rem;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}svg text{font:12px system-ui,sans-serif}"""

Document = Mapping[str, Any]
"""What `python -m bench` writes as JSON."""


def rows_of(samples: Mapping[str, Sequence[Document]]) -> list[list[str]]:
    """One row for each tool: medians, and the ratio of its seconds to ours, pair by pair."""
    rows = []
    ours = samples.get(_OURS, ())
    for tool, own in samples.items():
        ratios = [
            theirs["seconds"] / mine["seconds"] for theirs, mine in zip(own, ours, strict=False)
        ]
        rows.append(
            [
                tool,
                f"{_middle(own, 'seconds'):.2f}",
                _spread(ratios) if tool != _OURS else "",
                f"{_middle(own, 'processor_s'):.2f}",
                f"{_middle(own, 'registry_s'):.2f}",
                f"{_middle(own, 'requests'):.0f}",
                _mib(_middle(own, "sent")),
                _mib(_middle(own, "received")),
                _mib(_middle(own, "written")),
                _mib(max(one["memory"] for one in own)),
            ]
        )
    return rows


HEADS = [
    "tool",
    "seconds",
    "× ours (min–max)",
    "processor s",
    "registries' s",
    "requests",
    "sent MiB",
    "received MiB",
    "written MiB",
    "memory MiB",
]

_SHORT = ["seconds", "processor s", "registries' s", "requests", "memory MiB"]


def text(document: Document) -> str:
    """All tables, in Markdown."""
    lines = []
    for title, heads, rows in _tables(document):
        lines += [f"### {title}", "", _line(heads), _line(["---"] * len(heads))]
        lines += [*map(_line, rows), ""]
    return "\n".join(lines)


def summary(document: Document) -> str:
    """One table for each scenario, with all tools side by side, in Markdown."""
    lines = []
    for title, heads, rows in _tables(document):
        if heads is not HEADS:
            lines += [f"**{title}**", "", _line(heads), _line(["---"] * len(heads))]
            lines += [*map(_line, rows), ""]
    for scenario in document["scenarios"]:
        operations: Mapping[str, Mapping[str, Sequence[Document]]] = scenario["operations"]
        peers = list(dict.fromkeys(tool for by_tool in operations.values() for tool in by_tool))
        peers.remove(_OURS)
        heads = ["", *_SHORT, *(f"× {peer}" for peer in peers)]
        lines += [f"**{scenario['title']}**", "", _line(heads), _line(["---"] * len(heads))]
        for operation, by_tool in operations.items():
            by_name = {row[0]: row for row in rows_of(by_tool)}
            ours = by_name[_OURS]
            cells = [ours[HEADS.index(name)] for name in _SHORT]
            ratios = [by_name[peer][2] if peer in by_name else "" for peer in peers]
            lines.append(_line([OPERATIONS[operation], *cells, *ratios]))
        lines.append("")
    return "\n".join(lines)


def page(document: Document) -> str:
    """The same with charts, as one HTML page."""
    parts = []
    for title, heads, rows in _tables(document):
        parts.append(f"<h2>{html.escape(title)}</h2>")
        if heads == HEADS:
            parts.append(_chart([(row[0], float(row[1])) for row in rows]))
        parts.append(_html_table(heads, rows))
    return (
        f"<!doctype html><meta charset=utf-8><title>mirror: figures</title><style>{_STYLE}</style>"
        f"<h1>mirror and its peers</h1><p>{html.escape(document['machine'])}, "
        f"{document['date']}, version {document['commit']}. Medians of {document['pairs']} "
        "alternating rounds; shorter bars are better.</p>" + "".join(parts)
    )


def _tables(document: Document) -> Iterable[tuple[str, Sequence[str], list[list[str]]]]:
    if limits := document["limits"]:
        yield (
            "Limits of this machine",
            ["what", "at most"],
            [[name, _limit(name, value)] for name, value in limits.items()],
        )
    if start := document["startUp"]:
        yield (
            "Start-up, seconds of processor time",
            ["what", "median"],
            [[name, f"{value:.3f}"] for name, value in start.items()],
        )
    for scenario in document["scenarios"]:
        for operation, samples in scenario["operations"].items():
            title = f"{scenario['title']}: {OPERATIONS[operation]}"
            yield title, HEADS, rows_of(samples)
    if growth := document["growth"]:
        yield (
            "Growth with the number of tags",
            list(growth[0]),
            [[str(value) for value in row.values()] for row in growth],
        )


def _limit(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}/s" if name.startswith("requests") else f"{_mib(value)} MiB/s"


def _chart(bars: Sequence[tuple[str, float]]) -> str:
    longest = max(seconds for _, seconds in bars) or 1.0
    drawn = []
    for number, (tool, seconds) in enumerate(bars):
        top, width = 24 * number, 440 * seconds / longest
        colour = _COLOURS.get(tool, "#6b7280")
        drawn.append(
            f'<text x="0" y="{top + 15}">{html.escape(tool)}</text>'
            f'<rect x="70" y="{top + 2}" width="{width:.1f}" height="18" fill="{colour}"/>'
            f'<text x="{75 + width:.1f}" y="{top + 15}">{seconds:.2f} s</text>'
        )
    return f'<svg width="600" height="{24 * len(bars)}" role="img">{"".join(drawn)}</svg>'


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(one)}</td>" for one in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _middle(samples: Sequence[Document], name: str) -> float:
    return float(median(one[name] for one in samples))


def _spread(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f}" if size < 10 * 2**20 else f"{size / 2**20:.0f}"
