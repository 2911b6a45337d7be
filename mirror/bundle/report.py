"""What is inside a bundle, shown to people: tables for a terminal, and one page of HTML.

The page asks for nothing from anywhere: styles and script are in it (`report.html`), and its
content security policy allows no others. Its tables are complete without the script, which adds the
map of sizes and sorting. Every name in it comes from a bundle, so every name is escaped; the script
never makes markup of text, and the policy names the one script that may run by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape as html_escape
from importlib import resources
from typing import Any

from mirror.bundle.format import size_text
from mirror.bundle.inspect import ArchiveInsight, BundleInsight, RepositoryInsight
from mirror.errors import printable
from mirror.layout import KINDS, component_of

# -- text ------------------------------------------------------------------------------------------

_SHOWN = 8  # rows of lists of the largest
_NUMBERS = frozenset({"Size", "Repositories", "Images", "Layers", "Copies"})


def channels_text(channels: Mapping[str, Sequence[str]]) -> str:
    """`alpha, beta → v1.2.0; stable → v1.1.0`; `?` for a version that is missing."""
    leading: dict[str, list[str]] = {}
    for channel, versions in channels.items():
        leading.setdefault(versions[0] if versions else "?", []).append(channel)
    return "; ".join(f"{', '.join(names)} → {version}" for version, names in leading.items())


def insight_text(found: BundleInsight) -> str:
    lines = [
        f"{found.name[:1].upper()}{found.name[1:]} holds",
        *_overview(found),
        "",
        *_text_table(
            ("Component", "Size", "Versions", "Channels"),
            [
                (
                    component.name
                    if component.kind in ("platform", "installer")
                    else f"{component.kind} {component.name}",
                    size_text(component.size),
                    _some(component.versions),
                    channels_text(component.channels),
                )
                for component in found.components
            ],
        ),
        "",
        *_text_table(
            ("Archive", "Size", "Repositories", "Images"),
            [
                (
                    archive.name,
                    size_text(archive.size),
                    f"{len(archive.repositories)}",
                    f"{sum(len(one.images) for one in archive.repositories)}",
                )
                for archive in found.archives
            ],
        ),
        "",
        *_text_table(
            ("Largest images", "Size", "Layers"),
            [
                (f"{path or '/'} {image.title}", size_text(image.size), f"{image.layers}")
                for path, image in found.largest_images(_SHOWN)
            ],
        ),
        "",
        *_text_table(
            ("Largest layers", "Size", "Images", "Copies"),
            [
                (
                    f"{layer.digest.algorithm}:{layer.digest.encoded[:12]}",
                    size_text(layer.size),
                    f"{layer.images}",
                    f"{layer.copies}",
                )
                for layer in found.layers[:_SHOWN]
            ],
        ),
    ]
    return "\n".join(map(printable, lines))


def _overview(found: BundleInsight) -> Iterator[str]:
    rows = (
        ("Size", f"{size_text(found.size)} in {len(found.archives)} archives"),
        ("Contents", f"{found.images} images, {found.tags} tags, {found.blobs} blobs"),
        ("Unique", f"{size_text(found.unique)}, each manifest and blob counted once"),
        ("Shared", f"{size_text(found.shared)} less than without layers in common"),
        ("Repeated", f"{size_text(found.repeated)} for content that several repositories have"),
        *found.compressed_rows(),
        *found.omissions.rows(),
        ("Inventory", f"{found.inventory}" + (", sealed" if found.sealed else ", not sealed")),
    )
    width = max(len(title) for title, _ in rows)
    yield from (f"  {title:<{width}}  {text}" for title, text in rows)


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _text_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns under their titles; those of numbers to the right."""
    lines = [titles, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    right = {column for column, title in enumerate(titles) if title in _NUMBERS}
    for line in lines:
        cells = (
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()


# -- HTML ------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Foreign text as a page may show it."""
    return html_escape(printable(text))


def html(found: BundleInsight) -> str:
    """Render the page; equal insights give equal pages."""
    page = resources.files("mirror.bundle").joinpath("report.html").read_text(encoding="utf-8")
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{script_hash}'",
        "name": escape(found.name),
        "summary": _summary(found),
        "legend": "".join(
            f'<li class="kind {kind}">{kind}</li>'
            for kind in KINDS
            if any(component.kind == kind for component in found.components)
        ),
        "components": _table(
            ("Component", "Kind", "Size#", "Images#", "Versions", "Channels"),
            (
                (
                    component.name,
                    component.kind,
                    component.size,
                    component.images,
                    ", ".join(component.versions),
                    channels_text(component.channels),
                )
                for component in found.components
            ),
        ),
        "images": _table(("Image", "Repository", "Size#", "Own#", "Layers#"), _image_rows(found)),
        "layers": _table(
            ("Layer", "Size#", "Images#", "Copies#"),
            ((f"{layer.digest}", layer.size, layer.images, layer.copies) for layer in found.layers),
        ),
        "archives": _table(
            ("Archive", "Size#", "Repositories#", "Images#"),
            (
                (
                    archive.name,
                    archive.size,
                    len(archive.repositories),
                    sum(len(one.images) for one in archive.repositories),
                )
                for archive in found.archives
            ),
        ),
        # In JSON only this character could end the element that holds it.
        "data": json.dumps(_tree(found), ensure_ascii=False).replace("<", "\\u003c"),
    }
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], page)


def _summary(found: BundleInsight) -> str:
    tiles = (
        ("Size", size_text(found.size), f"{len(found.archives)} archives"),
        ("Images", f"{found.images}", f"{found.tags} tags, {found.blobs} blobs"),
        ("Unique", size_text(found.unique), "each manifest and blob once"),
        ("Shared layers", size_text(found.shared), "less than without layers in common"),
        ("Repeated", size_text(found.repeated), "content that several repositories have"),
    )
    omissions = tuple(found.omissions.rows())
    return (
        '<div class="tiles">'
        + "".join(
            f"<div><b>{escape(title)}</b><strong>{escape(value)}</strong>{escape(note)}</div>"
            for title, value, note in tiles
        )
        + "</div>"
        + ("" if omissions else _bar(found))
        + "".join(
            f"<p><b>{escape(title)}</b>: {escape(text)}.</p>"
            for title, text in (*found.compressed_rows(), *omissions)
        )
        + f"<p><small>{'' if omissions else _BAR_LEGEND}"
        + f"Inventory <code>{found.inventory}</code>, "
        + f"{'sealed' if found.sealed else 'not sealed'}.</small></p>"
    )


_BAR_LEGEND = "The archives: unique content, content repeated, headers and indexes. "


def _bar(found: BundleInsight) -> str:
    """What the archives consist of, where they carry all that the bundle speaks of."""
    parts = (
        ("unique", found.unique),
        ("repeated", found.repeated),
        ("headers and indexes", max(0, found.size - found.content)),
    )
    whole = max(1, sum(size for _, size in parts))
    return (
        '<div class="bar" role="img" aria-label="what the archives hold">'
        + "".join(
            f'<i style="width:{100 * size / whole:.3f}%" title="{name}: {size_text(size)}"></i>'
            for name, size in parts
        )
        + "</div>"
    )


def _image_rows(found: BundleInsight) -> Iterator[tuple[str | int, ...]]:
    for archive in found.archives:
        for repository in archive.repositories:
            for image in repository.images:
                path = repository.path or "/"
                yield image.title, path, image.size, image.own, image.layers


def _table(titles: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """A table; titles that end with `#` are of numbers, `Size` and `Own` of bytes."""
    head = "".join(
        f'<th scope="col"{" class=n" if title.endswith("#") else ""}>'
        f"<button>{escape(title.removesuffix('#'))}</button></th>"
        for title in titles
    )
    body: list[str] = []
    for row in rows:
        cells = []
        for title, value in zip(titles, row, strict=True):
            if isinstance(value, str):
                cells.append(f"<td>{escape(value)}</td>")
            else:
                text = size_text(value) if title in ("Size#", "Own#") else f"{value}"
                cells.append(f'<td class=n data-v="{value}">{text}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _tree(found: BundleInsight) -> dict[str, Any]:
    """What the map shows: a node has name, size in bytes, kind, and children or facts.

    `label` is a shorter name for where the nodes around it say the rest; `nameless` are images
    that go by their digest.
    """
    return {
        "name": printable(found.name),
        "size": sum(map(_spoken_of, found.archives)),
        "children": [_archive_node(archive) for archive in found.archives],
    }


def _spoken_of(archive: ArchiveInsight) -> int:
    """What an archive takes, or what its images would if it does not carry all that they need."""
    return max(archive.size, archive.content)


def _archive_node(archive: ArchiveInsight) -> dict[str, Any]:
    paths = [repository.path for repository in archive.repositories]
    kind, name = component_of(paths[0]) if paths else ("other", archive.name)
    return {
        "name": printable(archive.name),
        "label": printable(name if archive.name == f"{kind}-{name}.tar" else archive.name),
        "size": _spoken_of(archive),
        "kind": kind,
        "children": [
            *(_repository_node(repository) for repository in archive.repositories),
            *_rest("headers and indexes", archive.size - archive.content),
        ],
    }


def _repository_node(repository: RepositoryInsight) -> dict[str, Any]:
    kind, name = component_of(repository.path)
    label = repository.path or "root"
    if kind in ("module", "package", "plugin"):
        label = label.partition(f"/{name}")[2].lstrip("/") or "images"
    elif kind == "security":
        label = name
    return {
        "name": printable(repository.path or "/"),
        "label": printable(label),
        "size": repository.size,
        "children": [
            *(
                {
                    "name": printable(image.title),
                    "label": printable(image.title).removeprefix(f"{image.digest.algorithm}:"),
                    "nameless": not image.names,
                    "size": image.own,
                    "facts": {
                        "with shared layers": image.size,
                        "layers": f"{image.layers}",
                        "digest": f"{image.digest}",
                    },
                }
                for image in repository.images
            ),
            *_rest("shared by several images", repository.shared, "shared"),
            *_rest("without a tag", repository.untagged),
        ],
    }


def _rest(name: str, size: int, label: str | None = None) -> list[dict[str, Any]]:
    return [{"name": name, "label": label or name, "size": size, "rest": True}] if size > 0 else []
