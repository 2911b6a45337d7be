"""What bundles of other writers have that ours do not: older forms, and altered images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from mirror.layout import digest_of_tag
from mirror.oci import Digest
from mirror.sync import Finding, Inventory


def legacy_prefix(name: str, paths: Collection[str]) -> str:
    """Return where a first-format `module-<name>.tar` belongs, which has no path inside."""
    stem = name.removesuffix(".tar")
    if not stem.startswith("module-") or not paths:
        return ""
    # Any path below modules/ means the newer format, whatever the file was renamed to since.
    if any(path.startswith("modules/") for path in paths):
        return ""
    return f"modules/{stem.removeprefix('module-')}"


def flattened(archives: Mapping[str, Inventory]) -> Iterator[Finding]:
    """Find the multi-arch images of which only the image for one platform is there.

    `d8 mirror pull` packs components like that. Each still goes by the digest of the whole, which
    a cluster asks for and no registry can give it any more.
    """
    for archive, inventory in archives.items():
        for path, content in inventory.repositories.items():
            for tag, digest in content.tags.items():
                whole = digest_of_tag(tag)
                if whole is None or whole == digest or whole in content.manifests:
                    continue
                problem = (
                    f"of the multi-arch image {whole} only the image for one platform is there, "
                    f"{digest}"
                )
                yield Finding(archive, problem, path, (tag,), digest)


def disputes(archives: Mapping[str, Inventory]) -> Iterator[str]:
    """Say of each tag that several archives give to different images whose image counts.

    That is the last one's, in the order of `archives`.
    """
    holders: dict[str, list[str]] = {}
    for name, inventory in archives.items():
        for path in inventory.repositories:
            holders.setdefault(path, []).append(name)
    for path, names in holders.items():
        known: dict[str, tuple[str, Digest]] = {}
        for name in names if len(names) > 1 else ():
            for tag, digest in sorted(archives[name].repositories[path].tags.items()):
                other, before = known.get(tag, (name, digest))
                if before != digest:
                    yield (
                        f"{path or '/'}:{tag} is {before} in {other} and {digest} in {name}; "
                        f"that of {name} counts"
                    )
                known[tag] = (name, digest)
