from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from examples.release_tree import CHANNELS, LARGE, SMALL, ReleaseTree, TreeSpec, build, spread
from examples.release_tree.images import image, layer
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci import manifest as types
from mirror.oci.layers import LayerOpener, read_files
from mirror.sync.content import MemoryStore


class Built:
    """A tree and the store it is in, with the reading that tests need."""

    def __init__(self, spec: TreeSpec) -> None:
        self.store = MemoryStore()
        self.tree: ReleaseTree = build(spec, self.store)

    def blob(self, repository: str, blob: Descriptor) -> bytes:
        return b"".join(self.store.blob(repository, blob.digest, blob.size))

    def files(self, repository: str, digest: Digest, *paths: str) -> dict[str, str]:
        manifest = self.store.manifest(repository, digest)
        layers: list[LayerOpener] = [
            functools.partial(self.store.blob, repository, one.digest, one.size)
            for one in manifest.layers
        ]
        found = read_files(layers, paths, where=f"{repository}@{digest}")
        return {path: data.decode() for path, data in found.items()}

    def json(self, repository: str, digest: Digest, path: str) -> Any:
        return json.loads(self.files(repository, digest, path)[path])

    def manifests(self) -> Iterator[tuple[str, Manifest]]:
        for repository, held in self.tree.repositories.items():
            for digest in held.manifests:
                yield repository, self.store.manifest(repository, digest)

    def images(self) -> Iterator[tuple[str, Manifest]]:
        for repository, manifest in self.manifests():
            if manifest.config and manifest.config.media_type in types.IMAGE_CONFIGS:
                yield repository, manifest


@pytest.fixture(scope="module")
def built() -> Built:
    return Built(SMALL)


# -- the whole -------------------------------------------------------------------------------------


def test_equal_specs_make_equal_bytes(built: Built) -> None:
    again = Built(SMALL)
    assert again.tree == built.tree
    assert again.store.inventory() == built.store.inventory()


def test_another_seed_makes_other_bytes(built: Built) -> None:
    other = Built(replace(SMALL, seed=2)).tree
    assert other.repositories.keys() == built.tree.repositories.keys()
    assert other.platform["v1.71.0"].image != built.tree.platform["v1.71.0"].image


def test_one_more_component_leaves_the_others_alone(built: Built) -> None:
    more = Built(replace(SMALL, components=SMALL.components + 1)).tree
    for version, platform in built.tree.platform.items():
        assert platform.components.items() < more.platform[version].components.items()


def test_the_books_are_right(built: Built) -> None:
    inventory = built.store.inventory()
    tags = {path: dict(held.tags) for path, held in inventory.repositories.items()}
    assert tags == {path: held.tags for path, held in built.tree.repositories.items()}
    sizes: dict[Digest, int] = {}
    for _, manifest in built.manifests():
        sizes[manifest.digest] = len(manifest.raw)
        sizes.update((blob.digest, blob.size) for blob in manifest.blobs)
    assert built.tree.size == sum(sizes.values()) < 2 << 20


def test_all_that_a_manifest_needs_is_beside_it(built: Built) -> None:
    for repository, manifest in built.manifests():
        for child in manifest.children:
            found = built.store.manifest(repository, child.descriptor.digest)
            assert found.descriptor == child.descriptor
        for blob in manifest.blobs:
            data = built.blob(repository, blob)
            assert (Digest.of(data), len(data)) == (blob.digest, blob.size)


def test_a_large_tree_is_as_wide_as_a_real_one() -> None:
    tree = build(LARGE, MemoryStore())
    assert {len(version.components) for version in tree.platform.values()} == {300}
    assert (len(tree.modules), len(tree.packages), len(tree.plugins)) == (40, 20, 10)
    assert tree.size < 20 << 20


def test_a_channel_without_its_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"channels of the platform .*v9\.9\.9"):
        build(replace(SMALL, channels={"alpha": "v9.9.9"}), MemoryStore())


def test_a_root_without_an_edition_holds_everything() -> None:
    tree = build(replace(SMALL, root="deckhouse-oss"), MemoryStore())
    assert all(path.startswith("deckhouse-oss") for path in tree.repositories)
    assert tree.tag("deckhouse-oss/installer", "latest")


def test_channels_are_spread_from_the_newest_down() -> None:
    assert spread(["v1", "v2", "v3", "v4", "v5"]) == dict(
        zip(CHANNELS, ["v5", "v4", "v3", "v2", "v1"], strict=True)
    )
    assert set(spread(["v1"]).values()) == {"v1"}
    assert spread(["v1", "v2"])["rock-solid"] == "v1"


# -- images ----------------------------------------------------------------------------------------


def unpacked(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("gzip"):
        return zlib.decompress(data, wbits=31)
    return zstandard.decompress(data) if media_type.endswith("zstd") else data


def test_configs_tell_the_truth_about_their_layers(built: Built) -> None:
    for repository, manifest in built.images():
        assert manifest.config
        config = json.loads(built.blob(repository, manifest.config))
        assert config["rootfs"]["diff_ids"] == [
            str(Digest.of(unpacked(built.blob(repository, one), one.media_type)))
            for one in manifest.layers
        ]
        filled = [step for step in config["history"] if not step.get("empty_layer")]
        assert len(filled) == len(manifest.layers)


def types_of_layers() -> set[str]:
    return {
        types.OCI_LAYER,
        types.OCI_LAYER_GZIP,
        types.OCI_LAYER_ZSTD,
        types.DOCKER_LAYER,
        types.DOCKER_LAYER_GZIP,
    }


def test_indexes_tell_the_truth_about_their_platforms(built: Built) -> None:
    for repository, manifest in built.manifests():
        for child in manifest.children:
            made = built.store.manifest(repository, child.descriptor.digest)
            assert made.config
            assert child.platform
            config = json.loads(built.blob(repository, made.config))
            assert (config["os"], config["architecture"], config.get("variant", "")) == (
                child.platform.os,
                child.platform.architecture,
                child.platform.variant,
            )


def test_every_kind_of_manifest_and_layer_occurs(built: Built) -> None:
    kinds = {manifest.media_type for _, manifest in built.manifests()}
    assert kinds >= types.IMAGE_MANIFESTS | {types.OCI_INDEX}
    assert types.DOCKER_INDEX in {
        manifest.media_type for _, manifest in Built(replace(SMALL, multi_arch=1)).manifests()
    }
    layers = {one.media_type for _, manifest in built.manifests() for one in manifest.layers}
    assert layers >= types_of_layers() - {types.DOCKER_LAYER, types.OCI_LAYER}
    assert layers & {types.DOCKER_LAYER, types.OCI_LAYER}


def test_layers_are_shared_between_images_and_repositories(built: Built) -> None:
    users: dict[Digest, set[str]] = {}
    for repository, manifest in built.images():
        for one in manifest.layers:
            users.setdefault(one.digest, set()).add(repository)
    assert max(len(repositories) for repositories in users.values()) > 5


def test_layers_unpack(built: Built, tmp_path: Path) -> None:
    component = next(iter(built.tree.platform["v1.71.0"].components.values()))
    manifest = built.store.manifest(SMALL.root, component)
    for one in manifest.layers:
        data = unpacked(built.blob(SMALL.root, one), one.media_type)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(tmp_path, filter="data")
    assert list(tmp_path.glob("usr/bin/*"))
    # Links that lead upwards, but not out.
    assert (tmp_path / "etc/localtime").read_bytes().startswith(b"TZif2")
    assert (tmp_path / "usr/share/zoneinfo/Etc/GMT").stat().st_nlink == 2


def test_docker_images_have_no_zstd_layers() -> None:
    with pytest.raises(ValueError, match="no zstd"):
        image([layer({"a": "1"}, compression="zstd")], family="docker")


# -- the platform ----------------------------------------------------------------------------------


def test_channels_lead_to_releases_that_exist(built: Built) -> None:
    repository = f"{SMALL.root}/release-channel"
    for channel, version in SMALL.channels.items():
        digest = built.tree.tag(repository, channel)
        assert digest == built.tree.platform[version].release
        said = built.json(repository, digest, "version.json")
        assert (said["version"], "suspend" in said) == (version, False)
        assert "pull_request" in built.files(repository, digest, "changelog.yaml")["changelog.yaml"]
        for path in (SMALL.root, f"{SMALL.root}/install", f"{SMALL.root}/install-standalone"):
            assert built.tree.tag(path, version)


def test_a_suspended_channel_says_so_and_its_version_does_not() -> None:
    built = Built(replace(SMALL, suspended=frozenset({"beta"})))
    repository = f"{SMALL.root}/release-channel"
    beta, version = built.tree.tag(repository, "beta"), built.tree.channels["beta"]
    assert built.json(repository, beta, "version.json")["suspend"] is True
    assert "suspend" not in built.json(
        repository, built.tree.tag(repository, version), "version.json"
    )


@pytest.mark.parametrize("version", [*SMALL.versions, "pr12345"])
def test_installers_list_components_that_exist(built: Built, version: str) -> None:
    platform = built.tree.platform[version]
    directory = "deckhouse/candi/images_digests.json"
    for name, digest in (
        ("install", platform.install),
        ("install-standalone", platform.install_standalone),
    ):
        repository = f"{SMALL.root}/{name}"
        assert built.tree.tag(repository, version) == digest
        listed = built.json(repository, digest, directory)
        flat = {
            f"{m}/{i}": Digest.parse(d) for m, images in listed.items() for i, d in images.items()
        }
        assert flat == platform.components
        tags = "deckhouse/candi/images_tags.json"
        assert built.files(repository, digest, tags) == {}
    held = built.tree.repositories[SMALL.root]
    assert set(platform.components.values()) <= held.manifests
    assert not set(platform.components.values()) & set(held.tags.values())
    assert len(platform.components) == SMALL.components


def test_neighbouring_versions_share_most_components(built: Built) -> None:
    versions = [set(built.tree.platform[one].components.values()) for one in SMALL.versions]
    kept = [len(before & after) for before, after in itertools.pairwise(versions)]
    assert SMALL.components / 2 < sum(kept) / len(kept) < SMALL.components


def test_the_standalone_installer_lies_outside_of_the_edition(built: Built) -> None:
    tags = built.tree.repositories["deckhouse/installer"].tags
    assert tags["latest"] == tags["v1.71.0"] != tags["v1.70.1"]


def test_attestations_are_where_their_images_are(built: Built) -> None:
    assert any(repository == SMALL.root for repository, _ in built.tree.attestations)
    for (repository, subject), tag in built.tree.attestations.items():
        assert subject in built.tree.repositories[repository].manifests
        assert tag == f"sha256-{subject.encoded}.att"
        assert built.tree.tag(repository, tag)


# -- modules, databases, plugins -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["modules", "packages"])
def test_modules_have_what_their_lists_name(built: Built, kind: str) -> None:
    tree = built.tree
    published = tree.modules if kind == "modules" else tree.packages
    assert set(tree.repositories[f"{SMALL.root}/{kind}"].tags) == set(published)
    for module in published.values():
        for version in module.versions.values():
            assert tree.tag(module.repository, version.version) == version.image
            files = built.files(
                module.repository, version.image, "images_digests.json", "extra_images.json"
            )
            found = re.findall("sha256:[a-f0-9]{64}", files.get("images_digests.json", ""))
            assert found == [str(digest) for digest in version.internal.values()]
            assert set(version.internal.values()) <= tree.repositories[module.repository].manifests
            extra = json.loads(files.get("extra_images.json", "{}"))
            assert {name: str(tag) for name, tag in extra.items()} == version.extra
            for name, tag in version.extra.items():
                assert tree.tag(f"{module.repository}/extra/{name}", tag)
            assert tree.tag(module.release_repository, version.version) == version.release
        for channel, name in module.channels.items():
            digest = tree.tag(module.release_repository, channel)
            said = built.json(module.release_repository, digest, "version.json")["version"]
            assert f"v{said.removeprefix('v')}" == name


def test_an_extra_image_may_have_a_number_for_a_tag(built: Built) -> None:
    version = built.tree.modules["postgresql"].versions["v1.10.0"]
    raw = built.files(f"{SMALL.root}/modules/postgresql", version.image, "extra_images.json")
    assert json.loads(raw["extra_images.json"])["trivy-db"] == 2


def test_databases_are_artifacts_of_their_own_types(built: Built) -> None:
    assert set(built.tree.databases) == {
        "trivy-db:2",
        "trivy-bdu:1",
        "trivy-java-db:1",
        "trivy-checks:0",
    }
    for name, digest in built.tree.databases.items():
        repository = f"{SMALL.root}/security/{name.partition(':')[0]}"
        assert built.tree.tag(repository, name.partition(":")[2]) == digest
        assert built.store.manifest(repository, digest).artifact_type
        (held,) = built.store.manifest(repository, digest).layers
        data = unpacked(built.blob(repository, held), held.media_type)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert "metadata.json" in archive.getnames()


def test_plugins_carry_their_contracts(built: Built) -> None:
    directory = "deckhouse/deckhouse-cli/plugins"
    assert set(built.tree.repositories[directory].tags) == set(built.tree.plugins)
    for plugin in built.tree.plugins.values():
        for version, digest in plugin.versions.items():
            assert built.tree.tag(plugin.repository, version) == digest
            manifest = built.store.manifest(plugin.repository, digest)
            said = manifest.annotations.get("contract")
            contract = json.loads(base64.b64decode(said)) if said else None
            assert contract == plugin.contracts[version]
            assert manifest.is_index == (len(manifest.children) == 2)


def test_a_contract_may_be_on_the_images_of_an_index_only() -> None:
    plugin = replace(SMALL.plugins[0], on_index=False)
    built = Built(replace(SMALL, plugins=(plugin,)))
    published = built.tree.plugins[plugin.name]
    manifest = built.store.manifest(published.repository, published.versions["v1.1.0"])
    assert "contract" not in manifest.annotations
    first = built.store.manifest(published.repository, manifest.children[0].descriptor.digest)
    assert json.loads(base64.b64decode(first.annotations["contract"]))["version"] == "v1.1.0"
