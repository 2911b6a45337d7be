"""What is inside a bundle, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mirror.bundle.compress import Compressed
from mirror.bundle.delta import Omissions
from mirror.bundle.inspect import BundleInsight
from mirror.bundle.parts import size_text

_SHOWN = 8  # rows of lists of the largest
_NUMBERS = frozenset({"Size", "Repositories", "Images", "Layers", "Copies"})


def channels_text(channels: Mapping[str, Sequence[str]]) -> str:
    """`alpha, beta → v1.2.0; stable → v1.1.0`; a question mark for a version that is not there."""
    leading: dict[str, list[str]] = {}
    for channel, versions in channels.items():
        leading.setdefault(versions[0] if versions else "?", []).append(channel)
    return "; ".join(f"{', '.join(names)} → {version}" for version, names in leading.items())


def insight_text(found: BundleInsight) -> str:
    """What a person sees of it on a terminal."""
    return "\n".join(
        [
            f"{found.name[:1].upper()}{found.name[1:]} holds",
            *_overview(found),
            "",
            *_table(
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
            *_table(
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
            *_table(
                ("Largest images", "Size", "Layers"),
                [
                    (f"{path or '/'} {image.title}", size_text(image.size), f"{image.layers}")
                    for path, image in found.largest_images(_SHOWN)
                ],
            ),
            "",
            *_table(
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
    )


def _overview(found: BundleInsight) -> Iterator[str]:
    rows = (
        ("Size", f"{size_text(found.size)} in {len(found.archives)} archives"),
        ("Contents", f"{found.images} images, {found.tags} tags, {found.blobs} blobs"),
        ("Unique", f"{size_text(found.unique)}, each manifest and blob counted once"),
        ("Shared", f"{size_text(found.shared)} less than without layers in common"),
        ("Repeated", f"{size_text(found.repeated)} for content that several repositories have"),
        *compression_rows(found.compressed),
        *omission_rows(found.omissions),
        ("Inventory", f"{found.inventory}" + (", sealed" if found.sealed else ", not sealed")),
    )
    width = max(len(title) for title, _ in rows)
    yield from (f"  {title:<{width}}  {text}" for title, text in rows)


def omission_rows(omissions: Omissions) -> Iterator[tuple[str, str]]:
    """What a delta or a deduplicated bundle leaves out: titles with a text."""
    if omissions.base is not None:
        left = f"{omissions.manifests} manifests and {omissions.blobs} blobs"
        yield "Delta", f"leaves {left} ({size_text(omissions.size)}) to its base"
        yield "Base", f"inventory {omissions.base}"
    if omissions.repeats is not None:
        saved = size_text(omissions.repeats)
        yield "Deduplicated", f"each blob once, {saved} less; only mirror reads it"


def compression_rows(compressed: Compressed | None) -> Iterator[tuple[str, str]]:
    """What compressing saved, if a bundle is compressed: a title with a text."""
    if compressed is not None:
        saved = max(0, compressed.before - compressed.size)
        share = f"{100 * saved / compressed.before:.1f}" if compressed.before else "0"
        saves = f"which saves {size_text(saved)} ({share} %)"
        yield "Compressed", f"to {size_text(compressed.size)}, {saves}"


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns under their titles; those of numbers to the right."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    right = {column for column, title in enumerate(titles) if title in _NUMBERS}
    for line in lines:
        cells = (
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield ("  " + "  ".join(cells)).rstrip()
