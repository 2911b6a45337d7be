"""What is inside a bundle, shown to people as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mirror.bundle.format import size_text
from mirror.bundle.inspect import BundleInsight
from mirror.errors import printable

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
        *((("Source", found.source),) if found.source else ()),
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
