"""What is inside a bundle, shown to people as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from mirror.bundle.format import size_text
from mirror.bundle.inspect import BundleInsight, ImageInsight
from mirror.errors import counted, counts, printable
from mirror.oci import Digest

_WIDTH, _LEAST = 80, 24
"""Columns of a table, and of its last column at least."""

_SHOWN = 8  # rows of lists of the largest
_NUMBERS = frozenset({"Size", "Repositories", "Images", "Layers", "Copies"})


def channels_text(channels: Mapping[str, Sequence[str]]) -> str:
    """`alpha, beta → v1.2.0; stable → v1.1.0`; `?` for a version that is missing."""
    leading: dict[str, list[str]] = {}
    for channel, versions in channels.items():
        leading.setdefault(versions[0] if versions else "?", []).append(channel)
    return "; ".join(f"{', '.join(names)} → {version}" for version, names in leading.items())


def versions_text(
    versions: Sequence[str], channels: Mapping[str, Sequence[str]], most: int = 4
) -> str:
    """`v1.2.0 (alpha, beta), v1.1.0`: the first versions with the channels that lead to them.

    Channels that lead to none of them follow: `lts → v1.0.0`, `stable → ?`.
    """
    leading: dict[str, list[str]] = {}
    for channel, found in channels.items():
        leading.setdefault(found[0] if found else "?", []).append(channel)
    shown = [
        f"{version} ({', '.join(leading.pop(version))})" if version in leading else version
        for version in versions[:most]
    ]
    rest = [f"{len(versions) - most} more"] if len(versions) > most else []
    others = [f"{', '.join(names)} → {version}" for version, names in leading.items()]
    return ", ".join([*shown, *rest, *others])


def insight_text(found: BundleInsight, names: Mapping[Digest, str] | None = None) -> str:
    """`names` says what images are called that go by their digest alone."""
    lines = [
        f"{found.name[:1].upper()}{found.name[1:]} holds",
        *_overview(found),
        "",
        *_text_table(
            ("Component", "Size", "Versions"),
            [
                (
                    component.name
                    if component.kind in ("platform", "installer")
                    else f"{component.kind} {component.name}",
                    size_text(component.size),
                    versions_text(component.versions, component.channels),
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
                (_called(path, image, names or {}), size_text(image.size), f"{image.layers}")
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
        (
            "Size",
            f"{size_text(found.size)} in {counted(len(found.archives), 'archive')}",
        ),
        (
            "Contents",
            counts(image=found.images, tag=found.tags, blob=found.blobs),
        ),
        ("Unique", f"{size_text(found.unique)}, each manifest and blob counted once"),
        ("Shared", f"{size_text(found.shared)} less than without layers in common"),
        ("Repeated", f"{size_text(found.repeated)} for content that several repositories have"),
        *found.compressed_rows(),
        *found.omissions.rows(),
        ("Inventory", f"{found.inventory}" + (", sealed" if found.sealed else ", not sealed")),
    )
    width = max(len(title) for title, _ in rows)
    yield from (f"  {title:<{width}}  {text}" for title, text in rows)


def _called(path: str, image: ImageInsight, names: Mapping[Digest, str]) -> str:
    name = names.get(image.digest, "") if not image.names else ""
    return " ".join(filter(None, (path or "/", image.title, name)))


def _text_table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns under their titles; those of numbers to the right, a last one of words wrapped."""
    lines = [titles, *(tuple(map(printable, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    right = {column for column, title in enumerate(titles) if title in _NUMBERS}
    before = sum(widths[:-1]) + 2 * len(widths)
    for line in lines:
        *_, last = line
        if len(titles) - 1 in right:
            first, *others = [last]
        else:
            first, *others = wrap(last, max(_WIDTH - before, _LEAST), break_on_hyphens=False) or [
                ""
            ]
        cells = (
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip((*line[:-1], first), widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
        yield from (" " * before + other for other in others)
