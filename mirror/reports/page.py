"""What is in a bundle, or how a fleet stands, as one page of HTML, which opens offline and prints.

The page asks for nothing from anywhere: styles and script are in it (`page.html`), and its content
security policy allows no others. Its tables are complete without the script, which adds the map of
sizes, the search and sorting. Every name in it comes from a bundle, so every name is escaped; the
script never makes markup of text, and the policy names the one script that may run by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape as html_escape
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from mirror.bundle.format import size_text
from mirror.bundle.inspect import ArchiveInsight, BundleInsight, ImageInsight, RepositoryInsight
from mirror.errors import counted, counts, printable
from mirror.layout import KINDS, archive_of, component_of, is_digest_tag
from mirror.oci import Digest
from mirror.reports.bundles import channels_text
from mirror.sync import Finding

if TYPE_CHECKING:
    from mirror.watch.monitoring import FleetStatus

Names: TypeAlias = Mapping[Digest, str]
"""What images that go by their digests are called: `module/image`."""

_NO_NAMES: Names = MappingProxyType({})
_BYTES = ("Size#", "Own#", "In this delta#", "Behind#", "Rate#", "In A#", "In B#")


def escape(text: str) -> str:
    """Foreign text as a page may show it."""
    return html_escape(printable(text))


def html(
    found: BundleInsight,
    names: Names = _NO_NAMES,
    findings: Sequence[Finding] = (),
    notes: Iterable[tuple[str, str]] = (),
) -> str:
    """Render the page; equal insights give equal pages.

    Of a delta the map shows what the delta itself carries, and the tables tell it beside the whole.
    `findings` are what a repair must bring; they stand before everything else. `notes`, a title and
    a text each, say in the head what was done with the bundle.
    """
    shown = found.carried or found
    kinds = {component.kind for component in shown.components}
    archives = (
        (archive.name, archive.size, len(archive.repositories), archive.image_count)
        for archive in found.archives
    )
    layers = ((f"{one.digest}", one.size, one.images, one.copies) for one in found.layers)
    return filled(
        title(found),
        _origin(found),
        _summary(found, notes),
        {
            "Components": _components(found),
            "Images": _images(found, names),
            "Largest layers": data_table(
                "layers", ("Layer", "Size#", "Images#", "Copies#"), layers
            ),
            "Archives": data_table(
                "archives", ("Archive", "Size#", "Repositories#", "Images#"), archives
            ),
        },
        damage=_damage(findings, names),
        legend="".join(f'<li class="kind {kind}">{kind}</li>' for kind in KINDS if kind in kinds),
        tree=_tree(shown, names),
    )


def filled(
    title: str,
    origin: Iterable[str],
    summary: str,
    sections: Mapping[str, str],
    *,
    damage: str = "",
    legend: str = "",
    tree: Mapping[str, Any] = MappingProxyType({"children": ()}),
) -> str:
    """The page with its parts; all but `title` are HTML; without a `tree` it has no map."""
    page = resources.files("mirror.reports").joinpath("page.html").read_text(encoding="utf-8")
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{script_hash}'",
        "title": escape(title),
        "heading": _breakable(title),
        "origin": "".join(f"<p>{line}</p>" for line in origin),
        "summary": summary,
        "damage": damage,
        "legend": legend,
        "sections": "\n".join(
            f"<section><h2>{title}</h2>{table}</section>" for title, table in sections.items()
        ),
        # In JSON only this character could end the element that holds it.
        "data": json.dumps(dict(tree), ensure_ascii=False).replace("<", "\\u003c"),
    }
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], page)


# -- the page of a fleet ---------------------------------------------------------------------------


def fleet_html(found: FleetStatus) -> str:
    """Who holds which generation, as a page; equal states give equal pages."""
    late = [one for one in found.members if not one.complete]
    away = sum(one.error is not None for one in late)
    known = [one.behind for one in late if one.behind is not None]
    behind = size_text(sum(known)) if known or not late else "unknown"
    large = (
        ("Complete", f"{found.complete}", f"of {counted(len(found.members), 'member')}"),
        ("Late", f"{len(late) - away}", "answer, and do not hold it"),
        ("Silent", f"{away}", "do not answer"),
        ("Behind", behind, "in blobs, as far as known"),
    )
    rows = (
        (
            *(one.name, one.ring),
            "complete" if one.complete else "late" if one.error is None else "silent",
            *(one.generation, one.lag, one.behind, None if one.rate is None else round(one.rate)),
            "; ".join(filter(None, (str(one.error or ""), one.waiting, *one.errors))),
        )
        for one in sorted(found.members, key=lambda one: one.complete)
    )
    titles = ("Member", "Ring", "State", "Generation#", "Lag#", "Behind#", "Rate#", "Says")
    return filled(
        f"Fleet of {found.hub}: generation {found.generation or 'unknown'}",
        (f"Statement <code>{found.statement}</code>",),
        tiles(large),
        {"Members": data_table("members", titles, rows)},
    )


# -- head ------------------------------------------------------------------------------------------


def title(found: BundleInsight) -> str:
    """What the bundle is, in a line: `Deckhouse EE v1.72.0, v1.71.3 (delta)`."""
    platform = next((one for one in found.components if one.kind == "platform"), None)
    holds = platform.versions if platform is not None else ()
    if not found.source and not holds:
        return found.name[:1].upper() + found.name[1:]
    named = ["Deckhouse", found.edition.upper()]
    if not holds and all(one.name != archive_of("") for one in found.archives):
        named.append("without the platform:")
        holds = tuple(one.name for one in found.components)
    named.append(", ".join(holds[:4]))
    if len(holds) > 4:
        named.append(f"and {len(holds) - 4} more")
    if found.omissions.base is not None:
        named.append("(delta)")
    return " ".join(filter(None, named))


def _origin(found: BundleInsight) -> Iterator[str]:
    """Where the bundle comes from and where it lies."""
    if found.source:
        yield f"Pulled from <code>{_breakable(found.source)}</code>"
    written = f", written on {found.written:%Y-%m-%d}" if found.written is not None else ""
    yield f"{_breakable(found.name[:1].upper() + found.name[1:])}{written}"


def _breakable(path: str) -> str:
    """A path that a narrow page may break after each of its parts."""
    return escape(path).replace("/", "/<wbr>")


def _summary(found: BundleInsight, notes: Iterable[tuple[str, str]]) -> str:
    told: tuple[tuple[str, str, str], ...] = (
        ("Size", size_text(found.size), f"{counted(len(found.archives), 'archive')}"),
        ("Images", f"{found.images}", counts(tag=found.tags, blob=found.blobs)),
        ("Unique", size_text(found.unique), "each manifest and blob once"),
        ("Shared layers", size_text(found.shared), "less than without layers in common"),
        ("Repeated", size_text(found.repeated), "content that several repositories have"),
    )
    if found.carried is not None:
        carried = found.carried
        note = counts(manifest=carried.manifests, blob=carried.blobs)
        rest = f"of {size_text(found.unique)} that the registry will hold"
        told = (
            ("In this delta", size_text(carried.unique), note),
            ("At the base", size_text(found.omissions.size), rest),
            *told[:2],
        )
    omissions = tuple(found.omissions.rows())
    return (
        tiles(told)
        + ("" if omissions else _bar(found))
        + "".join(
            f"<p><b>{escape(title)}</b>: {escape(text)}.</p>"
            for title, text in (*notes, *found.compressed_rows(), *omissions)
        )
        + f"<p><small>{'' if omissions else _BAR_LEGEND}"
        + f"Inventory <code>{found.inventory}</code>, "
        + f"{'sealed' if found.sealed else 'not sealed'}.</small></p>"
    )


def tiles(told: Iterable[tuple[str, str, str]]) -> str:
    """What is told in large letters: title, value, note."""
    shown = (
        f"<div><b>{escape(title)}</b><strong>{escape(value)}</strong>{escape(note)}</div>"
        for title, value, note in told
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


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


# -- tables ----------------------------------------------------------------------------------------


def _components(found: BundleInsight) -> str:
    column, own = _carried(found)
    return data_table(
        "components",
        ("Component", "Kind", "Size#", *column, "Images#", "Versions", "Channels"),
        (
            (
                *(one.name, one.kind),
                *(one.size, *own(one.kind, one.name), one.images),
                *(", ".join(one.versions), channels_text(one.channels)),
            )
            for one in found.components
        ),
    )


def _carried(found: BundleInsight) -> tuple[tuple[str, ...], Callable[..., tuple[int, ...]]]:
    """The title of the column with the bytes of a component or an image that a delta carries, and
    what is in it; a complete bundle has no such column."""
    if (carried := found.carried) is None:
        return (), lambda *_: ()
    sizes: dict[tuple[Any, ...], int] = {
        (one.kind, one.name): one.size for one in carried.components
    }
    for archive, repository, image in carried.every_image():
        sizes[archive.name, repository.path, image.digest] = image.size
    return ("In this delta#",), lambda *place: (sizes.get(place, 0),)


def _damage(findings: Sequence[Finding], names: Names) -> str:
    """What is missing or damaged; nothing of a bundle where that is unknown or nothing."""
    if not findings:
        return ""
    rows = (
        (
            one.place,
            one.problem,
            "" if one.repository is None else one.repository or "/",
            names.get(one.digest, "") if one.digest is not None else "",
            ", ".join(tag for tag in one.tags if not is_digest_tag(tag)),
        )
        for one in findings
    )
    digests = (f"{one.digest or ''}" for one in findings)
    titles = ("Archive", "Missing or damaged", "Repository", "Component", "Tags")
    title = f"<h2>Damage: {counted(len(findings), 'finding')}</h2>"
    return f'<section class="damage">{title}{data_table("damage", titles, rows, digests)}</section>'


def _images(found: BundleInsight, names: Names) -> str:
    column, own = _carried(found)
    return data_table(
        "images",
        ("Image", "Repository", "Size#", *column, "Own#", "Layers#"),
        (
            (
                *(called(image, names), repository.path or "/"),
                *(image.size, *own(archive.name, repository.path, image.digest)),
                *(image.own, image.layers),
            )
            for archive, repository, image in found.every_image()
        ),
        (f"{image.digest}" for _, _, image in found.every_image()),
    )


def called(image: ImageInsight, names: Names) -> str:
    """What a person calls an image: its tags, or what it is a component's image for."""
    component = names.get(image.digest)
    return image.title if component is None or image.names else f"{component} {image.title}"


def data_table(
    name: str,
    titles: Sequence[str],
    rows: Iterable[Sequence[str | int | None]],
    digests: Iterable[str] = (),
) -> str:
    """A table; titles that end with `#` are of numbers, those in `_BYTES` of bytes.

    None is an unknown number. Rows are also found by `digests`, which they do not show. On a
    narrow page each row is a card, in which styles say the titles.
    """
    plain = [title.removesuffix("#") for title in titles]
    style = "".join(
        f'#{name} td:nth-child({number})::before{{content:"{title}"}}'
        for number, title in enumerate(plain, start=1)
        if number > 1  # the first is the card's own title
    )
    head = "".join(
        f'<th scope="col"{" class=n" if title.endswith("#") else ""}>'
        f"<button>{escape(title.removesuffix('#'))}</button></th>"
        for title in titles
    )
    body: list[str] = []
    known = iter(digests)
    for row in rows:
        cells = []
        for title, value in zip(titles, row, strict=True):
            if isinstance(value, str):
                cells.append(f"<td>{_breakable(value)}</td>")
            else:
                shown = size_text if title in _BYTES else str
                text, value = ("&ndash;", -1) if value is None else (shown(value), value)
                cells.append(f'<td class=n data-v="{value}">{text}</td>')
        digest = next(known, "")
        found_by = f' data-digest="{escape(digest)}"' if digest else ""
        body.append(f"<tr{found_by}>{''.join(cells)}</tr>")
    return (
        f"<style>@media (max-width:640px){{{style}}}</style>"
        f'<table id="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )


# -- map -------------------------------------------------------------------------------------------


def _tree(found: BundleInsight, names: Names) -> dict[str, Any]:
    """What the map shows: a node has name, size in bytes, kind, and children or facts.

    `label` is a shorter name for where the nodes around it say the rest; `nameless` are images
    that go by their digest.
    """
    return {
        "name": printable(found.name),
        "size": sum(map(_spoken_of, found.archives)),
        "children": [_archive_node(archive, names) for archive in found.archives],
    }


def _spoken_of(archive: ArchiveInsight) -> int:
    """What an archive takes, or what its images would if it does not carry all that they need."""
    return max(archive.size, archive.content)


def _archive_node(archive: ArchiveInsight, names: Names) -> dict[str, Any]:
    paths = [repository.path for repository in archive.repositories]
    kind, name = component_of(paths[0]) if paths else ("other", archive.name)
    rest = "headers and indexes" if paths else "cannot be read"
    return {
        "name": printable(archive.name),
        "label": printable(name if archive.name == f"{kind}-{name}.tar" else archive.name),
        "size": _spoken_of(archive),
        "kind": kind,
        "children": [
            *(_repository_node(repository, names) for repository in archive.repositories),
            *_rest(rest, archive.size - archive.content),
        ],
    }


def _repository_node(repository: RepositoryInsight, names: Names) -> dict[str, Any]:
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
                    "name": printable(called(image, names)),
                    "label": printable(
                        image.title if image.names else names.get(image.digest, image.title)
                    ).removeprefix(f"{image.digest.algorithm}:"),
                    "nameless": not image.names and image.digest not in names,
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
