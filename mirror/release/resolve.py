"""Resolving: every wanted image becomes manifests, with all that they reach, by digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mirror.oci import Digest, Manifest
from mirror.release.select import missing_image
from mirror.release.selection import Selection, Wanted
from mirror.release.source import ReleaseSource
from mirror.sync import Inventory, InventoryBuilder, ManifestNode


def resolve(source: ReleaseSource, selection: Selection) -> Mapping[str, Inventory]:
    """Archive → the closed inventory of what it will hold.

    Raises:
        SourceContentError: an image that is not optional is missing at the source.
    """
    # Many things may want one image; the source is asked for it once.
    questions = dict.fromkeys((wanted.repository, wanted.reference) for wanted in selection.images)
    answers = source.each("manifests", list(questions), lambda question: source.manifest(*question))
    found = dict(zip(questions, answers, strict=True))
    builders: dict[str, InventoryBuilder] = {}
    parents: list[tuple[str, str, Manifest]] = []
    for wanted in selection.images:
        manifest = found[wanted.repository, wanted.reference]
        if manifest is None:
            _absent(source, wanted)
            continue
        builder = builders.setdefault(wanted.archive, InventoryBuilder())
        builder.add_tag(wanted.repository, wanted.tag, manifest.digest)
        builder.add_manifest(wanted.repository, ManifestNode.of(manifest))
        parents.append((wanted.archive, wanted.repository, manifest))
    _add_children(source, parents, builders)
    return {archive: builder.build() for archive, builder in sorted(builders.items())}


def _absent(source: ReleaseSource, wanted: Wanted) -> None:
    if not wanted.optional:
        raise missing_image(source, wanted.repository, wanted.reference, wanted.needed_by)
    if wanted.needed_by.startswith("--"):
        source.warn(
            f"{source.tree.origin(wanted.repository)}:{wanted.reference} is not there; left out"
        )


def _add_children(
    source: ReleaseSource,
    parents: Iterable[tuple[str, str, Manifest]],
    builders: Mapping[str, InventoryBuilder],
) -> None:
    """Add what indexes hold, generation by generation."""
    seen: set[tuple[str, str, Digest]] = set()
    while True:
        children = {
            (archive, repository, child.descriptor.digest): manifest.digest
            for archive, repository, manifest in parents
            for child in manifest.children
        }
        new = {key: parent for key, parent in children.items() if key not in seen}
        if not new:
            return
        seen.update(new)
        wanted = dict.fromkeys((repository, digest) for _, repository, digest in new)
        answers = source.each(
            "images of indexes", list(wanted), lambda pair: source.manifest(*pair)
        )
        found = dict(zip(wanted, answers, strict=True))
        parents = []
        for (archive, repository, digest), parent in new.items():
            manifest = found[repository, digest]
            if manifest is None:
                raise missing_image(source, repository, digest, f"index {parent}")
            builders[archive].add_manifest(repository, ManifestNode.of(manifest))
            parents.append((archive, repository, manifest))
