"""From images to manifests: all that the images of a bundle reach, as inventories.

Image by image, with what is attached to it: cosign's tags and OCI 1.1 referrers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mirror.errors import SourceContentError
from mirror.oci import Descriptor, Digest, Manifest, Platform
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import referrers_tag
from mirror.release.selection import Selection, WantedImage
from mirror.release.source import ReleaseSource, json_object
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.content import ForeignLayers, SparseIndexes, foreign_notice, sparse_notice
from mirror.sync.inventory import canonical_json

_VEX_SUFFIXES = (".att",)
_SIGNATURE_SUFFIXES = (".sig", ".sbom", "")
"""What cosign appends to `sha256-<hex>`; the referrers tag schema appends nothing."""

_MAX_GENERATIONS = 8
"""Signatures may be signed in turn; real chains have one or two links."""


def resolve(
    source: ReleaseSource, images: Sequence[WantedImage], selection: Selection
) -> Mapping[str, Inventory]:
    """Read the manifests of `images` and of what belongs to them; return an inventory per archive.

    The inventories are closed. Multi-arch indexes stay whole, unless the selection names platforms
    and a tag names the index; one that others reference by digest would get another digest.

    Raises:
        SourceContentError: an image that is not optional is missing at the source.
    """
    resolving = _Resolving(source, selection)
    fresh = resolving.add(images)
    suffixes = _VEX_SUFFIXES * selection.vex + _SIGNATURE_SUFFIXES * selection.signatures
    # Tried once, on an image that exists.
    has_api = selection.signatures and any(
        source.referrers(one.repository, one.manifest.digest) is not None for one in fresh[:1]
    )
    for _ in range(_MAX_GENERATIONS):
        if not fresh or not suffixes:
            break
        attached = _attached(source, fresh, suffixes, selection, has_api=has_api)
        fresh = resolving.add(attached, thin=False)
    else:
        if fresh:
            source.warn(
                f"signatures of signatures were followed {_MAX_GENERATIONS} times and there are "
                f"more, such as of {fresh[0].manifest.digest}; these are left out"
            )
    return resolving.inventories()


@dataclass(frozen=True, slots=True)
class _Added:
    """A manifest that went into an archive."""

    archive: str
    repository: str
    manifest: Manifest

    def attachment(
        self, suffix: str, why: str, reference: Digest | None = None, *, listed: bool = True
    ) -> WantedImage:
        """What is attached to it under the tag of its digest with `suffix`.

        A tag may have gone since it was `listed`, and the image stands without it.
        """
        tag = referrers_tag(self.manifest.digest) + suffix
        where = self.archive, self.repository
        optional = reference is None
        return WantedImage(
            *where, tag, reference or tag, why, optional=optional, notable=optional and listed
        )


_WITHOUT = ", or take the index without it (--sparse-indexes carry)"


class _Resolving:
    """Collects manifests, archive by archive."""

    def __init__(self, source: ReleaseSource, selection: Selection) -> None:
        self._source, self._platforms = source, selection.platforms
        self._rules = selection.rules
        self._builders: dict[str, InventoryBuilder] = {}
        self._seen: dict[tuple[str, str, Digest], ManifestNode] = {}
        self._missing: dict[tuple[str, str | Digest], SourceContentError] = {}

    def inventories(self) -> Mapping[str, Inventory]:
        """All that was added, with the foreign layers that the source has.

        Raises:
            SourceContentError: something is missing; it names all that is.
        """
        self._mark_sparse_indexes()
        if self._missing:
            raise SourceContentError.of_all([*map(str, self._missing.values())])
        self._add_foreign_layers()
        return {archive: builder.build() for archive, builder in sorted(self._builders.items())}

    def _mark_sparse_indexes(self) -> None:
        """Note which images of an index the source does not have."""
        absent: dict[Digest, set[Digest]] = {}
        for (archive, path, digest), node in self._seen.items():
            for child in node.children:
                if (archive, path, child.digest) not in self._seen:
                    absent.setdefault(digest, set()).add(child.digest)
                    if self._rules.sparse_indexes is SparseIndexes.REFUSE:
                        error = self._source.missing(
                            path, child.digest, f"index {digest}", _WITHOUT
                        )
                        self._missing.setdefault((path, child.digest), error)
        if self._missing:
            return
        for (archive, path, digest), node in self._seen.items():
            if digest in absent:  # the same in every repository, since they share one table
                sparse = replace(node, absent=frozenset(absent[digest]))
                self._builders[archive].add_manifest(path, sparse)
        if absent:
            self._source.warn(sparse_notice(self._source.content.name, absent))

    def _add_foreign_layers(self) -> None:
        """Add the layers that a registry need not hold and that this one holds."""
        wanted = sorted(
            {
                (archive, path, layer)
                for (archive, path, _), node in self._seen.items()
                for layer in node.foreign
            }
        )
        sizes: Sequence[int | None] = [None] * len(wanted)
        if self._rules.foreign_layers is ForeignLayers.CARRY:
            sizes = self._source.each("foreign layers", wanted, self._foreign_size)
        lacking: set[Descriptor] = set()
        for (archive, path, layer), size in zip(wanted, sizes, strict=True):
            if size == layer.size:
                self._builders[archive].add_blob(path, layer.digest, size)
            else:
                lacking.add(layer)
        if lacking:
            self._source.warn(foreign_notice(self._source.content.name, len(lacking), self._rules))

    def _foreign_size(self, place: tuple[str, str, Descriptor]) -> int | None:
        _, path, layer = place
        return self._source.content.client.blob_size(self._source.tree.locate(path), layer.digest)

    def add(self, images: Sequence[WantedImage], *, thin: bool = True) -> list[_Added]:
        """Add images and all that they reach; return what was not there before.

        Do not `thin` indexes of signatures: their entries have no platform.
        """
        # Many things may want one image; the source is asked for it once.
        questions = list(dict.fromkeys((one.repository, one.reference) for one in images))
        answers = self._source.each("manifests", questions, lambda ask: self._source.manifest(*ask))
        found = dict(zip(questions, answers, strict=True))
        added: list[_Added] = []
        for wanted in images:
            manifest = found[wanted.repository, wanted.reference]
            if manifest is None:
                self._absent(wanted)
                continue
            named = wanted.tag != manifest.digest.encoded
            if thin and self._platforms and manifest.is_index and named:
                manifest = self._thinned(wanted, manifest)
            builder = self._builders.setdefault(wanted.archive, InventoryBuilder())
            builder.add_tag(wanted.repository, wanted.tag, manifest.digest)
            added += self._note(wanted.archive, wanted.repository, manifest)
        return added + self._children(added)

    def _note(self, archive: str, repository: str, manifest: Manifest) -> list[_Added]:
        key = (archive, repository, manifest.digest)
        if key in self._seen:
            return []
        self._seen[key] = node = ManifestNode.of(manifest)
        self._builders[archive].add_manifest(repository, node)
        return [_Added(archive, repository, manifest)]

    def _absent(self, wanted: WantedImage) -> None:
        if not wanted.optional:
            what = wanted.repository, wanted.reference
            self._missing.setdefault(what, self._source.missing(*what, wanted.needed_by))
        elif wanted.notable:
            where = self._source.where(wanted.repository, wanted.reference)
            self._source.warn(f"{where} is not there ({wanted.needed_by}); it is left out")

    def _children(self, parents: Sequence[_Added]) -> list[_Added]:
        """Add what indexes hold, generation by generation."""
        all_added: list[_Added] = []
        while parents:
            wanted = dict.fromkeys(
                (one.archive, one.repository, child.descriptor.digest)
                for one in parents
                for child in one.manifest.children
            )
            missing = [key for key in wanted if key not in self._seen]
            if not missing:
                break
            places = list(dict.fromkeys(key[1:] for key in missing))
            answers = self._source.each(
                "images of indexes", places, lambda asked: self._source.manifest(*asked)
            )
            found = dict(zip(places, answers, strict=True))
            parents = [
                added
                for archive, where, digest in missing
                if (child := found[where, digest]) is not None
                for added in self._note(archive, where, child)
            ]
            all_added += parents
        return all_added

    def _asked_for(self, platform: Platform) -> bool:
        """Whether `--platform` names it. `linux/arm64` stands for all variants of it."""
        return any(
            (one.os, one.architecture) == (platform.os, platform.architecture)
            and one.variant in ("", platform.variant)
            for one in self._platforms
        )

    def _thinned(self, wanted: WantedImage, index: Manifest) -> Manifest:
        """The index without the images for other platforms; whole if it has none for these."""
        where = self._source.where(wanted.repository, wanted.reference)
        document = json_object(index.raw, where, "the index")
        document["manifests"] = [
            raw
            for raw, child in zip(document.get("manifests") or (), index.children, strict=True)
            if child.platform is not None and self._asked_for(child.platform)
        ]
        if not document["manifests"]:
            self._source.warn(f"{where} has no image for the platforms asked for; it stays whole")
            return index
        if len(document["manifests"]) == len(index.children):
            return index
        thinned = Manifest.parse(canonical_json(document), index.media_type)
        self._source.content.remember(thinned)
        return thinned


def _attached(
    source: ReleaseSource,
    images: Sequence[_Added],
    suffixes: Sequence[str],
    selection: Selection,
    *,
    has_api: bool,
) -> list[WantedImage]:
    """What vouches for `images`, by tag."""
    subjects = sorted(images, key=lambda one: one.repository)
    listed: dict[str, frozenset[str] | None] = {}
    if not selection.probing:
        paths = sorted({one.repository for one in images})
        listed = dict(zip(paths, source.each("signatures", paths, source.tags), strict=True))
    for path in (path for path, tags in listed.items() if tags is None):
        source.warn(
            f"{source.tree.origin(path)}: images are there, and the list of tags is not (HTTP "
            "404); what vouches for them was not looked for; pull again if there should be some"
        )

    def may_exist(one: _Added, suffix: str) -> bool:
        if selection.probing:
            return bool(suffix) or not has_api  # the API knows what the referrers' own tag names
        return referrers_tag(one.manifest.digest) + suffix in (listed[one.repository] or ())

    found = [
        one.attachment(suffix, f"what vouches for {one.manifest.digest}", listed=bool(listed))
        for one in subjects
        for suffix in suffixes
        if may_exist(one, suffix)
    ]
    if has_api:
        referring = _referrers(source, subjects, listed)
        named = {(one.repository, one.tag) for one in referring}
        found = [one for one in found if (one.repository, one.tag) not in named] + referring
    return found


def _referrers(
    source: ReleaseSource, subjects: Sequence[_Added], listed: Mapping[str, frozenset[str] | None]
) -> list[WantedImage]:
    """What the source's referrers API knows of the images, as indexes under the tag schema's tags.

    So the bundle holds them under tags like everything else, and they are found in a target with
    the API and in one without. What an index under such a tag at the source has beside them, from
    before the source had the API, is in it too.
    """
    questions = list(dict.fromkeys((one.repository, one.manifest.digest) for one in subjects))

    def ask(question: tuple[str, Digest]) -> list[dict[str, Any]]:
        path, digest = question
        answer = source.referrers(path, digest)
        if answer is None:
            source.warn(
                f"{source.where(path, digest)}: the registry knows what refers to other images and "
                "denies to know it of this one (HTTP 404); it was not looked for"
            )
        found = [*(answer or ())]
        has_index = referrers_tag(digest) in (listed.get(path) or ())
        earlier = source.manifest(path, referrers_tag(digest)) if has_index else None
        if found and earlier is not None and earlier.is_index:
            known = {one["digest"] for one in found}
            every = json_object(earlier.raw, source.where(path, referrers_tag(digest)), "the index")
            others = every.get("manifests") or ()
            found += [one for one in others if one["digest"] not in known]
            found.sort(key=lambda one: str(one["digest"]))
        return found

    answers = source.each("referrers", questions, ask)
    indexes: dict[tuple[str, Digest], Manifest] = {}
    for question, children in zip(questions, answers, strict=True):
        if children:
            document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}
            index = Manifest.parse(canonical_json(document), OCI_INDEX)
            source.content.remember(index)
            indexes[question] = index
    return [
        one.attachment("", f"the referrers of {one.manifest.digest}", referring.digest)
        for one in subjects
        if (referring := indexes.get((one.repository, one.manifest.digest))) is not None
    ]
