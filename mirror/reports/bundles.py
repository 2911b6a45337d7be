"""What a person reads at the end: summaries of what was done and found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from mirror.bundle.format import SIGNATURE, size_text
from mirror.errors import counted, counts, paragraph, printable
from mirror.layout import (
    CHANNELS,
    INSTALL,
    INSTALLER,
    RELEASE_CHANNEL,
    SECURITY_DATABASES,
    TOOL_FILE,
    component_of,
    is_attachment_tag,
    is_digest_tag,
    tags_of_versions,
)
from mirror.reports.messages import columns, duration_text, few, fitted, lines_of, page, table
from mirror.sync.observation import NOTHING_THERE, listed
from mirror.sync.observe import Verification

if TYPE_CHECKING:
    from pathlib import Path

    from mirror.bundle.archive import Compressed, Omissions
    from mirror.bundle.inspect import BundleInsight, ComponentInsight, ImageInsight
    from mirror.bundle.verify import BundleReport
    from mirror.oci import Digest
    from mirror.operations.compare import RegistryReport
    from mirror.operations.merge import MergeReport
    from mirror.operations.pull import CleanReport, PlannedReference, PullPlan, PullReport
    from mirror.operations.push_reports import PushPlan, PushReport, Share
    from mirror.operations.repair import RepairReport
    from mirror.operations.trees import RegistryInventory
    from mirror.release.select import SelectedContent
    from mirror.release.source import SourceTree
    from mirror.sync import Finding, Inventory


def pull_summary(report: PullReport, elapsed_s: float, *, verbose: bool = False) -> str:
    """What was packed, in words; `verbose` adds the versions of every module and package."""
    tool = f"  beside them {TOOL_FILE}, the program itself: {size_text(report.tool or 0)}"
    versions = _version_rows(report.selection) if verbose else []
    text = page(
        f"{_title(report.omissions)} {report.folder} is complete",
        [
            *_origin_rows(report.tree),
            *_plugin_rows(report.selection),
            *_contents_rows(report.inventory),
            *report.omissions.rows(),
        ],
        [
            *_archive_lines(report.archives, report.compressed),
            *([] if report.tool is None else [tool]),
        ],
        foot=(
            f"inventory {report.digest}",
            f"{size_text(report.fetched)} fetched in {duration_text(elapsed_s)}",
        ),
    )
    return f"{text}\n\n{lines_of(table(versions))}" if verbose else text


def plan_summary(plan: PullPlan, elapsed_s: float) -> str:
    """What would be packed: in words, then the sizes, then every image by archive."""
    inventory, omissions = plan.inventory, plan.omissions
    fetch = [f"To fetch: {size_text(plan.fetch)}; what images share is fetched once"]
    if omissions.base is not None:
        fetch.append(f"  the base saves {size_text(omissions.size)}: the bundle is a delta")
    return page(
        "This would be pulled",
        [
            *_origin_rows(plan.tree),
            *_part_rows(inventory),
            *_version_rows(plan.selection),
            *_plugin_rows(plan.selection),
            _total_row(inventory),
            *omissions.rows(),
        ],
        ["Archive sizes", *_archive_lines(plan.archives)],
        fetch,
        _reference_lines(list(plan.references())),
        foot=(
            f"inventory {inventory.digest()}",
            f"planned in {duration_text(elapsed_s)}; nothing was pulled",
        ),
    )


def _title(omissions: Omissions) -> str:
    return "Bundle" if omissions.base is None else "Delta"


_NAME_WIDTH = 42
"""Columns for the names of images; the few longer ones push the rest of their line."""


def _reference_lines(references: Sequence[PlannedReference]) -> list[str]:
    """Every image, below the archive that it goes into."""
    archives = dict.fromkeys(one.archive for one in references)
    again = len(references) - len({(one.repository, one.tag) for one in references})
    total = f"{counted(len(references), 'image')} in {counted(len(archives), 'archive')}"
    if again:
        total += f", {again} of them repeated: package-versions describes all packages again"
    lines = [total, "Sizes count shared parts each time; --wide and --json have whole digests"]
    for archive in archives:
        lines += ["", f"  {archive}"]
        for one in references:
            if one.archive == archive:
                name = _name_in_bundle(one)
                pad = " " * (_NAME_WIDTH - len(fitted(name, None)))  # as it is shown
                lines.append(f"    {name}{pad}  {size_text(one.size):>10}  {one.digest}")
    return lines


def _name_in_bundle(one: PlannedReference) -> str:
    """The path and tag; in place of a tag that says nothing, the component; `/` is the root."""
    path = one.repository or "/"
    if one.tag != one.digest.encoded:
        return f"{path}:{one.tag}"
    return f"{path} {one.component}".rstrip()


def _origin_rows(tree: SourceTree) -> list[tuple[str, str]]:
    return [("Source", str(tree.root)), ("Edition", (tree.edition or "").upper())]


def _version_rows(selection: SelectedContent) -> list[tuple[str, str]]:
    """Every module and package with its versions, oldest first."""
    return [
        (noun, f"{name} {', '.join(versions)}")
        for noun, items in (("Module", selection.modules), ("Package", selection.packages))
        for name, versions in items.items()
    ]


def _plugin_rows(selection: SelectedContent) -> list[tuple[str, str]]:
    """Every plugin with what it is taken for."""
    return [
        ("Plugin", f"{name} {choice.tag} {'; '.join(map(str, choice.edges))}")
        for name, choices in selection.plugins.items()
        for choice in choices
    ]


def _archive_lines(archives: Mapping[str, int], compressed: Compressed | None = None) -> list[str]:
    files = [(name, size_text(size)) for name, size in sorted(archives.items())]
    files.append(("in total", size_text(sum(archives.values()))))
    width = max(len(name) for name, _ in files)
    saved = () if compressed is None else compressed.rows()
    lines = [f"  {name:<{width}}  {size:>10}" for name, size in files]
    return [*lines, *(f"  {title.lower()} {text}" for title, text in saved)]


_SEEN = {
    Verification.NONE: "accepted the whole bundle (--verify none: nothing was asked for)",
    Verification.TAGS: "has every tag of the bundle",
    Verification.ALL: "holds the whole bundle",
}
"""What may be said of a registry after a push that asked for so much."""


def push_summary(report: PushReport, elapsed_s: float) -> str:
    """What the registry holds now, and what that took."""
    plan, done = report.plan, report.done
    uploaded = sum(step.mount_from is None for step in plan.blobs)
    sent = f"{counted(uploaded, 'blob')} ({size_text(done.sent)})"
    put = counts(manifest=done.manifests, tag=done.tags)
    number = report.published.statement.generation
    return page(
        f"Registry {report.target} {_SEEN[report.verification]}",
        [
            *_contents_rows(report.inventory),
            ("Uploaded", f"{sent}, {put}" if plan else "nothing: all of it was there"),
            ("Published", f"generation {number}{'' if report.new else ', as before'}"),
            *(("Onto base", f"inventory {base}") for base in report.bases),
        ],
        foot=(f"inventory {report.digest}", f"done in {duration_text(elapsed_s)}"),
    )


def push_plan_summary(report: PushPlan, elapsed_s: float) -> str:
    """What a push would send, in words and by repository."""
    from mirror.operations.push_reports import shares  # a pull prints without it

    plan, shard = report.plan, "" if report.shard is None else f" as shard {report.shard}"
    sent = f"{counted(report.uploads, 'blob')}, {size_text(plan.size)}"
    mounted = f"{counted(report.mounts, 'blob')} that another repository has"
    written = counts(manifest=plan.manifest_count, tag=plan.tag_count)
    return page(
        f"This would be pushed to {report.tree.root}{shard}",
        [
            *_contents_rows(report.inventory),
            ("To send", sent if plan else "nothing: all of it is there"),
            ("To mount", mounted if plan else ""),
            ("To write", written if plan else ""),
            ("Components", few(report.components, 12)),
        ],
        [_share_line(report.tree.locate(path), one) for path, one in shares(plan).items()],
        foot=(
            f"inventory {report.inventory.digest()}",
            f"planned in {duration_text(elapsed_s)}; nothing was written",
        ),
    )


def _share_line(repository: str, share: Share) -> str:
    """One repository's part in a push, with the first of the tags that people gave."""
    named = [tag for tag in share.tags if not is_digest_tag(tag)]
    by_digest = len(share.tags) - len(named)
    tags = (few(named, 5, " "), f"{by_digest} by digest" if by_digest else "")
    parts = [
        f"{counted(share.blobs, 'blob')} ({size_text(share.size)})" if share.blobs else "",
        f"{share.mounts} mounted" if share.mounts else "",
        counted(share.manifests, "manifest") if share.manifests else "",
        f"tags {' and '.join(filter(None, tags))}" if share.tags else "",
    ]
    return f"  {repository}: {', '.join(filter(None, parts))}"


def bundle_summary(report: BundleReport, elapsed_s: float) -> str:
    """Whether a bundle is whole."""
    if report.findings:
        damaged = any(not one.place.endswith(SIGNATURE) for one in report.findings)
        title = "damaged or incomplete" if damaged else "not what the holder of the key signed"
        return _findings_text(f"The bundle is {title}", report.findings)
    what = _title(report.omissions).lower()
    alone = "nothing tells whether other archives belong to it"
    if report.quick:
        seal = "sealed" if report.sealed else f"not sealed: {alone}"
        title = (
            f"The structure of the {what} is whole ({seal}). The bytes of layers were not checked: "
            "`mirror verify` without --quick does that"
        )
    elif report.sealed:
        title = f"The {what} is whole (sealed: every byte is accounted for)"
    else:
        title = f"The {what} is whole (not sealed: what is here is right, but {alone})"
    return page(
        title,
        [
            ("Archives", f"{report.archives}, {size_text(report.size)}"),
            ("Contents", counts(repository=report.repositories, tag=report.tags)),
            ("", counts(manifest=report.manifests, blob=report.blobs)),
            *report.omissions.rows(),
        ],
        foot=[f"{'looked through' if report.quick else 'read'} in {duration_text(elapsed_s)}"],
    )


def repair_summary(report: RepairReport, elapsed_s: float, *, request: Path | None = None) -> str:
    """What was brought back, and whether the bundle is whole."""
    done = [f"repaired: {size_text(report.written)} written"]
    done += (f"  {size_text(size)} from {giver}" for giver, size in report.given.items())
    done += (f"  {name} as a whole" for name in report.files)
    idle = "nothing could be repaired" if report.verified.findings else "nothing was damaged"
    lines = done if report.written or report.files else [idle]
    if report.lacking.repositories:
        asked = f"{request} lists it: outside, mirror pull PATCH --only {request} --source …"
        lines.append(f"nobody has the rest; {asked if request else 'name more with --from'}")
    return "\n".join([*map(printable, lines), "", bundle_summary(report.verified, elapsed_s)])


def merge_summary(report: MergeReport, elapsed_s: float) -> str:
    """What was merged into one bundle."""
    copied, merged = size_text(report.copied), ", ".join(report.merged)
    done = f"{copied} copied in {duration_text(elapsed_s)}, from {merged}"
    return page(
        f"Bundle {report.folder} is complete",
        [*_contents_rows(report.inventory), *report.omissions.rows()],
        _archive_lines(report.archives, report.compressed),
        foot=(f"inventory {report.digest}", done),
    )


def clean_summary(report: CleanReport, _elapsed_s: float) -> str:
    """What was removed of interrupted pulls, or would be."""
    if not report.removed:
        return f"{report.bundle} has nothing that an interrupted pull has left"
    done = "This would be removed from" if report.dry_run else "Removed from"
    marks = dict.fromkeys(report.uploads, " (unfinished upload)")
    rows = [(name + marks.get(name, ""), size_text(size)) for name, size in report.removed.items()]
    return page(f"{done} {report.bundle}", rows, foot=(f"{size_text(report.size)} in all",))


def inventory_summary(found: RegistryInventory, elapsed_s: float, *, output: str, size: int) -> str:
    """What a registry was seen to hold, and the file of `size` bytes that says so."""
    inventory = found.inventory
    blobs, unread = inventory.blob_sizes(), len(found.failures)
    return page(
        f"Registry {found.target} holds {size_text(sum(blobs.values()))}",
        [
            *_contents_rows(inventory),
            ("", counts(manifest=len(inventory.manifest_nodes()), blob=len(blobs))),
            ("Missing", f"{found.gaps} of what its manifests need" if found.gaps else ""),
            ("Not read", f"{unread} (see the warning)" if unread else ""),
        ],
        foot=(
            f"inventory {found.digest}",
            f"{output} has {size_text(size)}",
            f"{counted(found.requests, 'request')} in {duration_text(elapsed_s)}",
        ),
    )


def registry_summary(report: RegistryReport, elapsed_s: float) -> str:
    """Whether a registry holds a bundle."""
    if report.findings:
        everywhere = len(report.findings) >= len(report.inventory.repositories)
        if everywhere and all(one.problem.startswith(NOTHING_THERE) for one in report.findings):
            return paragraph(f"Nothing of the bundle is at {report.target}; is the path right?")
        title = f"Registry {report.target} does not hold the whole bundle"
        return _findings_text(title, report.findings)
    asked = "every tag, manifest and blob is there; --deep reads them back too"
    how = "every byte read back" if report.deep else asked
    return page(
        f"Registry {report.target} holds the whole bundle ({how})",
        _contents_rows(report.inventory),
        foot=(f"inventory {report.digest}", f"checked in {duration_text(elapsed_s)}"),
    )


def _findings_text(title: str, findings: Sequence[Finding]) -> str:
    return paragraph(f"{title}: {counted(len(findings), 'finding')}{listed(findings, most=50)}")


def _contents_rows(inventory: Inventory) -> list[tuple[str, str]]:
    """Counts of what an inventory has of each kind."""
    rows = _part_rows(inventory)
    kinds = Counter(kind for kind, _ in set(map(component_of, inventory.repositories)))
    for title, kind in (("Modules", "module"), ("Packages", "package"), ("Plugins", "plugin")):
        rows.append((title, str(kinds[kind] or "")))
    if all(text in ("", "none") for _, text in rows):  # a single image, such as that of mirror
        contents = inventory.repositories.items()
        names = {f"{path or '/'}:{tag}" for path, content in contents for tag in content.tags}
        rows = [("Images", few(sorted(names), 5))]
    return [*rows, _total_row(inventory)]


def _part_rows(inventory: Inventory) -> list[tuple[str, str]]:
    """The platform and what stands beside it."""
    databases = sum(path in inventory.repositories for path in SECURITY_DATABASES)
    return [
        ("Platform", _platform_text(inventory)),
        ("Installer", ", ".join(sorted(inventory.repository(INSTALLER).tags))),
        ("Security", f"{counted(databases, 'database')}" if databases else "none"),
    ]


def _total_row(inventory: Inventory) -> tuple[str, str]:
    contents = inventory.repositories.values()
    tags = sum(len(content.tags) for content in contents)
    return ("Contents", counts(repository=len(contents), tag=tags))


def _platform_text(inventory: Inventory) -> str:
    """The platform's releases, newest first, and the channels that lead to them."""
    tags = [tag for tag in inventory.repository(INSTALL).tags if not is_attachment_tag(tag)]
    versions = tags_of_versions(tags)
    others = sorted(set(tags) - set(versions.values()))
    channels = [name for name in CHANNELS if name in inventory.repository(RELEASE_CHANNEL).tags]
    releases = ", ".join([*reversed(versions.values()), *others])
    return (releases or "none") + (f" ({', '.join(channels)})" if channels else "")


# -- what is inside ------------------------------------------------------------------------------

_SHOWN = 8  # rows of lists of the largest


def insight_text(found: BundleInsight, names: Mapping[Digest, str] = MappingProxyType({})) -> str:
    """What is inside; `names` says what images are called that go by their digest alone."""
    components = ((_component(one), one.size, _versions(one)) for one in found.components)
    archives = (
        (one.name, one.size, len(one.repositories), one.image_count) for one in found.archives
    )
    images = (
        (_called(path, image, names), image.size, image.layers)
        for path, image in found.largest_images(_SHOWN)
    )
    layers = (
        (f"{one.digest.algorithm}:{one.digest.encoded[:12]}", one.size, one.images, one.copies)
        for one in found.layers[:_SHOWN]
    )
    lines = [
        *(f"{found.name[:1].upper()}{found.name[1:]} holds", *table(_overview(found))),
        *("", *columns(("Component", "Size#", "Versions"), components)),
        *("", *columns(("Archive", "Size#", "Repositories#", "Images#"), archives)),
        *("", *columns(("Largest images", "Size#", "Layers#"), images)),
        *("", *columns(("Largest layers", "Size#", "Images#", "Copies#"), layers)),
    ]
    return lines_of(lines)


def _overview(found: BundleInsight) -> list[tuple[str, str]]:
    return [
        ("Source", found.source),
        ("Size", f"{size_text(found.size)} in {counted(len(found.archives), 'archive')}"),
        ("Contents", counts(image=found.images, tag=found.tags, blob=found.blobs)),
        ("Unique", f"{size_text(found.unique)}, each manifest and blob counted once"),
        ("Shared", f"{size_text(found.shared)} less than without layers in common"),
        ("Repeated", f"{size_text(found.repeated)} for content that several repositories have"),
        *found.compressed_rows(),
        *found.omissions.rows(),
        ("Inventory", f"{found.inventory}, {'sealed' if found.sealed else 'not sealed'}"),
    ]


def _component(one: ComponentInsight) -> str:
    return one.name if one.kind in ("platform", "installer") else f"{one.kind} {one.name}"


def _called(path: str, image: ImageInsight, names: Mapping[Digest, str]) -> str:
    name = "" if image.names else names.get(image.digest, "")
    return " ".join(filter(None, (path or "/", image.title, name)))


def _leading(channels: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The channels that lead to each version; `?` is one that is missing."""
    leading: dict[str, list[str]] = {}
    for channel, versions in channels.items():
        leading.setdefault(versions[0] if versions else "?", []).append(channel)
    return {version: ", ".join(names) for version, names in leading.items()}


def channels_text(channels: Mapping[str, Sequence[str]]) -> str:
    """`alpha, beta → v1.2.0; stable → v1.1.0`; `?` for a version that is missing."""
    return "; ".join(f"{names} → {version}" for version, names in _leading(channels).items())


def _versions(one: ComponentInsight) -> str:
    """`v1.2.0 (alpha, beta), v1.1.0`: the newest versions with the channels that lead to them.

    Channels that lead to none of them follow: `lts → v1.0.0`, `stable → ?`.
    """
    leading, most = _leading(one.channels), 4
    shown = [
        f"{version} ({leading.pop(version)})" if version in leading else version
        for version in one.versions[:most]
    ]
    rest = [f"{len(one.versions) - most} more"] if len(one.versions) > most else []
    return ", ".join([*shown, *rest, *(f"{names} → {v}" for v, names in leading.items())])
