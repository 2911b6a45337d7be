"""What a bundle must hold, told from what was published and from the rules alone.

Nothing here asks the code under test: versions and channels are said by the tests, by hand, and
this expands them into images. Rules: which repositories a version has, what the installer and the
modules list by digest, which tags cosign derives from a digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from examples.release_tree import PublishedModule, ReleaseTree
from mirror.oci import Digest, Manifest
from tests.support.depot import References, cosign

FIVE = ("alpha", "beta", "early-access", "stable", "rock-solid")
ALL = (*FIVE, "lts")
ReadManifest = Callable[[str, Digest], Manifest]


@dataclass
class Truth:
    """Collects expectations: `references` says all of them, with what vouches for the images."""

    tree: ReleaseTree
    read: ReadManifest
    wanted: dict[tuple[str, str, str], Digest] = field(default_factory=dict)
    replaced: dict[tuple[str, str, str], Digest] = field(default_factory=dict)
    """What is named in the place of a source's image; `wanted` says whose signatures count."""

    # -- the platform ------------------------------------------------------------------------------

    def platform(self, versions: Iterable[str], channels: Iterable[str] = ()) -> Truth:
        """Releases with all they consist of, and channels that lead where the source's do."""
        for version in versions:
            released = self.tree.platform[version]
            self._add("", version, released.image)
            self._add("install", version, released.install)
            self._add("install-standalone", version, released.install_standalone)
            if released.release is not None:
                self._add("release-channel", version, released.release)
            for digest in released.components.values():
                self._add("", digest.encoded, digest)
        for channel in channels:
            self._add("release-channel", channel, self._tag("release-channel", channel))
        return self

    def led_to(self, tag: str, channels: Iterable[str] = FIVE) -> Truth:
        """Channels that the bundle leads to the release that was asked for."""
        for channel in channels:
            self._add("release-channel", channel, self._tag("release-channel", tag))
        return self

    def installer(self, tag: str = "latest") -> Truth:
        self._add("installer", tag, self._tag("installer", tag))
        return self

    def databases(self) -> Truth:
        for name, digest in self.tree.databases.items():
            database, _, tag = name.partition(":")
            self._add(f"security/{database}", tag, digest)
        return self

    # -- modules and packages ----------------------------------------------------------------------

    def module(
        self, name: str, versions: Iterable[str], channels: Mapping[str, str] | None = None
    ) -> Truth:
        """A module's versions. `channels` says where each leads."""
        return self._item(f"modules/{name}", "release", self.tree.modules[name], versions, channels)

    def package(
        self, name: str, versions: Iterable[str], channels: Mapping[str, str] | None = None
    ) -> Truth:
        item = self.tree.packages[name]
        return self._item(f"packages/{name}", "version", item, versions, channels)

    def _item(
        self,
        path: str,
        releases: str,
        item: PublishedModule,
        versions: Iterable[str],
        channels: Mapping[str, str] | None,
    ) -> Truth:
        for version in versions:
            published = item.versions[version]
            self._add(path, version, published.image)
            self._add(f"{path}/{releases}", version, published.release)
            for digest in published.internal.values():
                self._add(path, digest.encoded, digest)
            self._extra(path, published.extra)
        for channel, version in (channels or {}).items():
            self._add(f"{path}/{releases}", channel, item.versions[version].release)
        return self

    def extra_images(self, path: str) -> Truth:
        """The extra images alone of `modules/<m>` or `packages/<p>`."""
        kind, _, name = path.partition("/")
        items = self.tree.modules if kind == "modules" else self.tree.packages
        for version in items[name].versions.values():
            self._extra(path, version.extra)
        return self

    def _extra(self, path: str, extra: Mapping[str, str]) -> None:
        for name, tag in extra.items():
            where = f"{path}/extra/{name}"
            self._add(where, tag, self._tag(where, tag))

    def package_versions(self, selected: Iterable[str] = ()) -> Truth:
        """What describes all packages. Those that are selected have their channels elsewhere."""
        taken = frozenset(selected)
        for name in self.tree.packages:
            path = f"packages/{name}/version"
            for tag, digest in self.tree.repositories[self._at(path)].tags.items():
                if name not in taken or tag not in ALL:
                    self.wanted["package-versions.tar", path, tag] = digest
        return self

    def forget(self, archive: str, path: str, tags: Iterable[str]) -> Truth:
        """Tags that are not to be there after all."""
        for tag in tags:
            self.wanted.pop((archive, path, tag), None)
        return self

    def plugin(self, name: str, *versions: str) -> Truth:
        for version in versions:
            digest = self.tree.plugins[name].versions[version]
            self._add(f"deckhouse-cli/plugins/{name}", version, digest)
        return self

    # -- all of it ---------------------------------------------------------------------------------

    def references(self, suffixes: Iterable[str] = (".att", ".sig", ".sbom", "")) -> References:
        """Everything, with the tags that speak of it and have one of `suffixes`."""
        found = dict(self.wanted)
        pending = list(found.items())
        seen: set[tuple[str, str, Digest]] = set()
        while pending:
            (archive, path, _), digest = pending.pop()
            if (archive, path, digest) in seen:
                continue
            seen.add((archive, path, digest))
            tags = self.tree.repositories[self._at(path)].tags
            pending += [
                ((archive, path, ""), child.descriptor.digest)
                for child in self.read(self._at(path), digest).children
            ]
            for suffix in suffixes:
                tag = cosign(digest, suffix)
                if tag in tags:
                    found[archive, path, tag] = tags[tag]
                    pending.append(((archive, path, tag), tags[tag]))
        return {key: str(digest) for key, digest in (found | self.replaced).items()}

    def _add(self, path: str, tag: str, digest: Digest) -> None:
        self.wanted[archive(path), path, tag] = digest

    def _tag(self, path: str, tag: str) -> Digest:
        return self.tree.tag(self._at(path), tag)

    def _at(self, path: str) -> str:
        outside = path == "installer" or path.startswith("deckhouse-cli/")
        head = self.tree.spec.bare if outside else self.tree.root
        return f"{head}/{path}" if path else head


def archive(path: str) -> str:
    """Which archive a repository travels in."""
    first, _, rest = path.partition("/")
    name = rest.partition("/")[0]
    match first:
        case "modules":
            return f"module-{name}.tar"
        case "packages":
            return f"package-{name}.tar"
        case "deckhouse-cli":
            return f"plugin-{rest.partition('/')[2]}.tar"
        case "installer" | "security":
            return f"{first}.tar"
    return "platform.tar"


def thinned(index: Manifest, architecture: str) -> Digest:
    """The digest of an index that keeps the images of one architecture alone."""
    document = json.loads(index.raw)
    document["manifests"] = [
        one for one in document["manifests"] if one["platform"]["architecture"] == architecture
    ]
    raw = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Digest.of(raw.encode())
