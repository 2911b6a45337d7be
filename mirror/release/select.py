"""What belongs in a bundle: the images that a selection leads to, and all that they reach.

`select` finds the images part by part: platform, installer, databases, modules, packages, plugins.
`resolve` makes inventories of them, with what is attached to each: cosign's tags and referrers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType
from typing import Any

from mirror.errors import SourceContentError
from mirror.layout import CHANNELS, INSTALLER, MODULES, PACKAGES, PLUGINS, SECURITY_DATABASES
from mirror.oci import Descriptor, Digest, Manifest, Platform
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import referrers_tag
from mirror.release.discovery import json_object
from mirror.release.items import package_version_images, select_items
from mirror.release.platform import SelectedPlatform, select_platform_images
from mirror.release.plugins import PluginChoice, plugins_for
from mirror.release.selection import Selection, WantedImage
from mirror.release.source import ReleaseSource, answers
from mirror.sync import Inventory, InventoryBuilder, ManifestNode
from mirror.sync.content import ForeignLayers, SparseIndexes, foreign_notice, sparse_notice
from mirror.sync.inventory import canonical_json


@dataclass(frozen=True, slots=True)
class SelectedContent:
    """All images for a bundle, in canonical order, and what a person would call them.

    `channels` are the platform's channels that travel. Versions are tags, oldest first. `files`
    lie beside the archives.
    """

    images: tuple[WantedImage, ...]
    platform_versions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    plugins: Mapping[str, tuple[PluginChoice, ...]] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("modules", "packages", "plugins", "files"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def to_document(self) -> dict[str, Any]:
        """The names of what was selected, as JSON values."""
        return {
            "platform": {"versions": list(self.platform_versions), "channels": list(self.channels)},
            "modules": {name: list(versions) for name, versions in self.modules.items()},
            "packages": {name: list(versions) for name, versions in self.packages.items()},
            "plugins": {
                name: {choice.tag: [str(edge) for edge in choice.edges] for choice in choices}
                for name, choices in self.plugins.items()
            },
        }


def select(source: ReleaseSource, selection: Selection) -> SelectedContent:
    """Ask `source` what it has, and choose what of it `selection` puts into a bundle.

    Raises:
        SourceContentError: the release tree contradicts itself; the message says where.
        NotFoundError: the source does not have what the user named.
    """
    platform = SelectedPlatform()
    if selection.platform is not None:
        platform = select_platform_images(source, selection.platform, probing=selection.probing)
    images = [*platform.images]
    if selection.installer_tag is not None:
        images.append(
            WantedImage.of(
                INSTALLER, selection.installer_tag, "--installer-tag", optional=True, notable=True
            )
        )
    if selection.security:
        images += _security_databases(source)
    modules = select_items(source, MODULES, selection.modules, selection)
    packages = select_items(source, PACKAGES, selection.packages, selection)
    for item in (*modules, *packages):
        images += item.images
    if not selection.probing and not selection.only_extra_images:
        # The channels of packages that are taken lie in archives of their own.
        taken = {image.repository for image in images}
        images += [
            image
            for image in package_version_images(source, selection.packages)
            if image.tag not in CHANNELS or image.repository not in taken
        ]
    module_versions = {item.name: item.versions for item in modules}
    plugins: tuple[PluginChoice, ...] = ()
    if selection.plugins is not None and (selection.plugins.names or module_versions):
        plugins = plugins_for(
            source,
            selection.plugins,
            module_versions,
            platform.selection.versions,
            proxy=selection.probing,
        )
    for choice in plugins:
        why = " and ".join(edge.subject for edge in choice.edges) or "the selection of plugins"
        images.append(WantedImage.of(f"{PLUGINS}/{choice.name}", choice.tag, why))
    return SelectedContent(
        tuple(sorted(dict.fromkeys(images))),
        (*platform.selection.tags, *platform.selection.custom_tags),
        platform.channels,
        module_versions,
        {item.name: item.versions for item in packages},
        {
            name: tuple(choices)
            for name, choices in groupby(plugins, key=lambda choice: choice.name)
        },
        platform.files,
    )


def _security_databases(source: ReleaseSource) -> list[WantedImage]:
    """All security databases; none if the edition does not have the first of them."""
    first = next(iter(SECURITY_DATABASES))
    if source.manifest(first, SECURITY_DATABASES[first]) is None:
        source.warn(f"{source.tree.root} offers no security databases; they are left out")
        return []
    return [
        WantedImage.of(path, tag, "the security databases", optional=True, notable=True)
        for path, tag in SECURITY_DATABASES.items()
    ]


# -- what the images reach -------------------------------------------------------------------------

_VEX_SUFFIXES = (".att",)
_SIGNATURE_SUFFIXES = (".sig", ".sbom", "")
"""What cosign appends to `sha256-<hex>`; the referrers tag schema appends nothing."""

_INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX}

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
                        self._note_missing(path, child.digest, f"index {digest}", _WITHOUT)
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
            (archive, path, layer)
            for (archive, path, _), node in self._seen.items()
            for layer in node.foreign
        )

        def size_of(place: tuple[str, str, Descriptor]) -> int | None:
            _, path, layer = place
            content, repository = self._source.content, self._source.tree.locate(path)
            return content.client.blob_size(repository, layer.digest)

        carries = self._rules.foreign_layers is ForeignLayers.CARRY
        sizes = answers(self._source, "foreign layers", wanted, size_of) if carries else {}
        lacking: set[Descriptor] = set()
        for place in wanted:
            archive, path, layer = place
            if sizes.get(place) == layer.size:
                self._builders[archive].add_blob(path, layer.digest, layer.size)
            else:
                lacking.add(layer)
        if lacking:
            self._source.warn(foreign_notice(self._source.content.name, len(lacking), self._rules))

    def add(self, images: Sequence[WantedImage], *, thin: bool = True) -> list[_Added]:
        """Add images and all that they reach; return what was not there before.

        Do not `thin` indexes of signatures: their entries have no platform.
        """
        # Many things may want one image; the source is asked for it once.
        found = self._manifests("manifests", ((one.repository, one.reference) for one in images))
        added: list[_Added] = []
        for wanted in images:
            manifest = found[wanted.repository, wanted.reference]
            if manifest is None:
                self._leave_out(wanted)
                continue
            named = wanted.tag != manifest.digest.encoded
            if thin and self._platforms and manifest.is_index and named:
                manifest = self._thinned(wanted, manifest)
            builder = self._builders.setdefault(wanted.archive, InventoryBuilder())
            builder.add_tag(wanted.repository, wanted.tag, manifest.digest)
            added += self._note(wanted.archive, wanted.repository, manifest)
        return added + self._children(added)

    def _children(self, parents: Sequence[_Added]) -> list[_Added]:
        """Add what indexes hold, generation by generation."""
        all_added: list[_Added] = []
        while parents:
            places = dict.fromkeys(
                (one.archive, one.repository, child.descriptor.digest)
                for one in parents
                for child in one.manifest.children
            )
            fresh = [place for place in places if place not in self._seen]
            found = self._manifests("images of indexes", (place[1:] for place in fresh))
            parents = [
                added
                for archive, path, digest in fresh
                if (child := found[path, digest]) is not None
                for added in self._note(archive, path, child)
            ]
            all_added += parents
        return all_added

    def _manifests(
        self, phase: str, places: Iterable[tuple[str, str | Digest]]
    ) -> Mapping[tuple[str, str | Digest], Manifest | None]:
        return answers(self._source, phase, places, lambda place: self._source.manifest(*place))

    def _note(self, archive: str, repository: str, manifest: Manifest) -> list[_Added]:
        key = (archive, repository, manifest.digest)
        if key in self._seen:
            return []
        self._seen[key] = node = ManifestNode.of(manifest)
        self._builders[archive].add_manifest(repository, node)
        return [_Added(archive, repository, manifest)]

    def _leave_out(self, wanted: WantedImage) -> None:
        if not wanted.optional:
            self._note_missing(wanted.repository, wanted.reference, wanted.needed_by)
        elif wanted.notable:
            where = self._source.where(wanted.repository, wanted.reference)
            self._source.warn(f"{where} is not there ({wanted.needed_by}); it is left out")

    def _note_missing(
        self, path: str, reference: str | Digest, needed_by: str, way_out: str = ""
    ) -> None:
        error = self._source.missing(path, reference, needed_by, way_out)
        self._missing.setdefault((path, reference), error)

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
        return _made(self._source, document, index.media_type)


def _made(source: ReleaseSource, document: Mapping[str, Any], media_type: str) -> Manifest:
    """An index that the source does not have, which a transfer finds there all the same."""
    index = Manifest.parse(canonical_json(document), media_type)
    source.content.remember(index)
    return index


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
    listed: Mapping[str, frozenset[str] | None] = {}
    if not selection.probing:
        listed = answers(source, "signatures", (one.repository for one in subjects), source.tags)
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
    if not has_api:
        return found
    referring = _referrers(source, subjects, listed)
    named = {(one.repository, one.tag) for one in referring}
    return [one for one in found if (one.repository, one.tag) not in named] + referring


def _referrers(
    source: ReleaseSource, subjects: Sequence[_Added], listed: Mapping[str, frozenset[str] | None]
) -> list[WantedImage]:
    """What the source's referrers API knows of the images, as indexes under the tag schema's tags.

    So the bundle holds them under tags like everything else, and they are found in a target with
    the API and in one without. What an index under such a tag at the source has beside them, from
    before the source had the API, is in it too.
    """

    def ask(question: tuple[str, Digest]) -> list[dict[str, Any]]:
        path, digest = question
        answer = source.referrers(path, digest)
        if answer is None:
            source.warn(
                f"{source.where(path, digest)}: the registry knows what refers to other images and "
                "denies to know it of this one (HTTP 404); it was not looked for"
            )
        found = [*(answer or ())]
        tag = referrers_tag(digest)
        earlier = source.manifest(path, tag) if tag in (listed.get(path) or ()) else None
        if found and earlier is not None and earlier.is_index:
            known = {one["digest"] for one in found}
            every = json_object(earlier.raw, source.where(path, tag), "the index")
            others = every.get("manifests") or ()
            found += [one for one in others if one["digest"] not in known]
            found.sort(key=lambda one: str(one["digest"]))
        return found

    questions = ((one.repository, one.manifest.digest) for one in subjects)
    indexes = {
        question: _made(source, _INDEX | {"manifests": children}, OCI_INDEX)
        for question, children in answers(source, "referrers", questions, ask).items()
        if children
    }
    return [
        one.attachment("", f"the referrers of {one.manifest.digest}", referring.digest)
        for one in subjects
        if (referring := indexes.get((one.repository, one.manifest.digest))) is not None
    ]
