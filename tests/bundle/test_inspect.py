from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given

from mirror.bundle.archive import lay_out
from mirror.bundle.inspect import BundleInsight, insight, inspect_bundle
from mirror.bundle.reader import BundleReader
from mirror.bundle.seal import Seal
from mirror.bundle.writer import BundleWriter
from mirror.layout import archive_of, component_of
from mirror.oci import Digest
from mirror.reports.bundles import channels_text, insight_text
from mirror.sync import Inventory, InventoryBuilder, ManifestNode, make_plan, transfer, union
from tests.support.inventories import fake_blob, fake_manifest, inventories, sample_store


def by_archive(inventory: Inventory) -> dict[str, Inventory]:
    archives: dict[str, Inventory] = {}
    for path, content in sorted(inventory.repositories.items()):
        held = archives.get(archive_of(path), Inventory())
        archives[archive_of(path)] = union([held, Inventory({path: content})])
    return archives


def seen(inventory: Inventory, overhead: int = 1000) -> BundleInsight:
    """The insight into a bundle of `inventory`, whose archives have `overhead` bytes of headers."""
    archives = by_archive(inventory)
    sizes = {}
    for name, part in archives.items():
        sizes[name] = overhead + sum(
            size
            for content in part.repositories.values()
            for size in {
                **content.blobs,
                **{digest: node.descriptor.size for digest, node in content.manifests.items()},
            }.values()
        )
    return insight("bundle here", archives, sizes)


def tagged(builder: InventoryBuilder, path: str, node: ManifestNode, *tags: str) -> Digest:
    builder.add_manifest(path, node)
    for tag in tags:
        builder.add_tag(path, tag, node.descriptor.digest)
    return node.descriptor.digest


# -- sizes -----------------------------------------------------------------------------------------


@given(inventories())
def test_every_byte_is_somewhere_once(inventory: Inventory) -> None:
    found = seen(inventory)
    for archive in found.archives:
        assert archive.size == archive.content + 1000
        for one in archive.repositories:
            own = sum(image.own for image in one.images)
            assert one.size == own + one.shared + one.untagged
            assert all(0 <= image.own <= image.size <= one.size for image in one.images)
    assert found.size == found.content + 1000 * len(found.archives)
    assert found.content == found.unique + found.repeated
    assert found.repeated >= 0 <= found.shared
    assert sum(component.size for component in found.components) == found.content


@given(inventories())
def test_counts_are_those_of_the_inventory(inventory: Inventory) -> None:
    found = seen(inventory)
    assert found.inventory == inventory.digest()
    assert found.blobs == len(inventory.blob_sizes())
    assert found.manifests == len(inventory.manifest_nodes())
    assert found.tags == sum(len(one.tags) for one in inventory.repositories.values())
    json.dumps(found.to_document())
    assert insight_text(found)


def test_shared_layers_count_as_saved_once_per_further_image() -> None:
    base, a, b = fake_blob(0), fake_blob(1), fake_blob(2)  # of 100, 101 and 102 bytes
    builder = InventoryBuilder()
    for number, own in enumerate((a, b)):
        tagged(builder, "", fake_manifest([base, own], salt=number), f"v{number}")
    found = seen(builder.build())
    (archive,) = found.archives
    (root,) = archive.repositories
    assert found.shared == root.shared == base.size
    assert found.repeated == 0
    assert found.unique == found.content == root.size
    assert [(image.title, image.own) for image in root.images] == [
        ("v1", b.size + 401),
        ("v0", a.size + 400),
    ]


def test_what_several_layouts_hold_counts_as_repeated() -> None:
    node = fake_manifest([fake_blob(0)])
    builder = InventoryBuilder()
    tagged(builder, "", node, "v1.0.0")
    tagged(builder, "install", node, "v1.0.0")
    found = seen(builder.build())
    assert found.repeated == 100 + node.descriptor.size
    assert found.shared == 0
    assert (found.images, found.layers[0].images, found.layers[0].copies) == (1, 1, 2)


def test_an_index_counts_with_the_images_of_all_platforms() -> None:
    config, layer, other = fake_blob(0), fake_blob(1), fake_blob(2)
    children = [fake_manifest([config, layer]), fake_manifest([config, layer, other], salt=1)]
    builder = InventoryBuilder()
    for child in children:
        builder.add_manifest("", child)
    tagged(builder, "", fake_manifest(children=children), "v1.0.0")
    ((image,),) = [one.images for one in seen(builder.build()).archives[0].repositories]
    assert image.layers == 2
    assert image.size == image.own == 100 + 101 + 102 + 400 + 401 + 400


def test_blobs_without_a_tag_are_told_apart() -> None:
    builder = InventoryBuilder()
    tagged(builder, "", fake_manifest(), "v1.0.0")
    builder.add_blob("", fake_blob(7).digest, 107)
    (root,) = seen(builder.build()).archives[0].repositories
    assert root.untagged == 107


def test_the_largest_come_first_and_once_each() -> None:
    builder = InventoryBuilder()
    small, large = fake_manifest([fake_blob(1)]), fake_manifest([fake_blob(1), fake_blob(9)])
    for path in ("", "install"):
        tagged(builder, path, small, "v1")
        tagged(builder, path, large, "v2", large.descriptor.digest.encoded)
    found = seen(builder.build())
    assert [(path, image.title) for path, image in found.largest_images(5)] == [
        ("", "v2"),
        ("", "v1"),
    ]
    assert len(found.largest_images(1)) == 1
    assert [layer.size for layer in found.layers] == [109, 101]


def test_images_that_go_by_their_digest_are_called_by_its_start() -> None:
    builder = InventoryBuilder()
    node = fake_manifest()
    tagged(builder, "", node, node.descriptor.digest.encoded, f"sha256-{'0' * 64}.att")
    ((image,),) = [one.images for one in seen(builder.build()).archives[0].repositories]
    assert image.title == f"sha256:{node.descriptor.digest.encoded[:12]}"
    assert image.names == ()


# -- components ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "component"),
    [
        ("", ("platform", "platform")),
        ("install-standalone", ("platform", "platform")),
        ("release-channel", ("platform", "platform")),
        ("installer", ("installer", "installer")),
        ("security/trivy-db", ("security", "trivy-db")),
        ("modules/console", ("module", "console")),
        ("modules/console/release", ("module", "console")),
        ("modules/console/extra/scanner", ("module", "console")),
        ("packages/redis/version", ("package", "redis")),
        ("deckhouse-cli/plugins/system", ("plugin", "system")),
        ("modules", ("other", "modules")),
        ("elsewhere/x", ("other", "elsewhere/x")),
    ],
)
def test_a_path_tells_its_component(path: str, component: tuple[str, str]) -> None:
    assert component_of(path) == component


def test_channels_lead_to_the_versions_that_have_the_same_image() -> None:
    builder = InventoryBuilder()
    images = [fake_manifest(salt=number) for number in range(4)]
    for path, versions in (
        ("release-channel", ("v1.9.0", "v1.10.2")),
        ("modules/console/release", ("v0.9.0", "v0.10.0-rc.1")),
        ("packages/redis/version", ("v7.0.0", "v7.0.1")),
    ):
        tagged(builder, path, images[0], versions[0], "stable", "rock-solid")
        tagged(builder, path, images[1], versions[1], "alpha")
        tagged(builder, path, images[2], "early-access")
    for path, *tags in (
        ("", "v1.9.0", "v1.10.2", "alpha", "pr7", "latest"),
        ("modules/console", "v0.9.0", "v0.10.0-rc.1", "v0.10.0", "stable"),
        ("modules/console/extra/scanner", "v9.9.9"),
        ("packages/redis", "v7.0.0"),
        ("security/trivy-db", "2"),
        ("installer", "latest", "v1.0.0"),
    ):
        tagged(builder, path, images[3], *tags)
    found = {one.name: one for one in seen(builder.build()).components}
    platform = found["platform"]
    assert platform.versions == ("v1.10.2", "v1.9.0")
    assert list(platform.channels.items()) == [
        ("alpha", ("v1.10.2",)),
        ("rock-solid", ("v1.9.0",)),
        ("stable", ("v1.9.0",)),
        ("early-access", ()),
    ]
    assert found["console"].versions == ("v0.10.0", "v0.10.0-rc.1", "v0.9.0")
    assert found["console"].channels["alpha"] == ("v0.10.0-rc.1",)
    assert found["redis"].channels["stable"] == ("v7.0.0",)
    assert found["trivy-db"].versions == ("2",)
    assert found["installer"].versions == ("v1.0.0", "latest")
    assert found["installer"].channels == {}
    assert list(found) == ["platform", "installer", "trivy-db", "console", "redis"]
    assert channels_text(platform.channels) == (
        "alpha → v1.10.2; rock-solid, stable → v1.9.0; early-access → ?"
    )


def test_a_component_in_several_archives_is_one() -> None:
    node, other = fake_manifest([fake_blob(1)]), fake_manifest([fake_blob(2)])
    parts: dict[str, Inventory] = {}
    for name, path, image in (
        ("package-redis.tar", "packages/redis", node),
        ("package-versions.tar", "packages/redis/version", other),
    ):
        builder = InventoryBuilder()
        tagged(builder, path, image, "v1.0.0")
        parts[name] = builder.build()
    found = insight("bundle", parts, dict.fromkeys(parts, 5000))
    (redis,) = found.components
    assert redis.size == 101 + 102 + 800
    assert redis.images == 2


# -- a real bundle ---------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    store = sample_store()
    wanted = store.inventory()
    parts = by_archive(wanted)
    archives = [
        lay_out(
            name,
            part,
            {path: f"registry.example/dkp/{path}".rstrip("/") for path in part.repositories},
        )
        for name, part in parts.items()
    ]
    folder = tmp_path / "bundle"
    with BundleWriter(folder, Seal.over(archives, {}, "test")) as writer:
        transfer(make_plan(wanted, Inventory()), store, writer)
        writer.finish()
    return folder


def test_a_bundle_on_disk_tells_the_same_as_its_inventory(bundle: Path) -> None:
    with BundleReader([bundle]) as reader:
        found = inspect_bundle(reader, layers=3)
    inventory = sample_store().inventory()
    assert found.sealed
    assert len(found.layers) == 3
    assert found.size == sum(path.stat().st_size for path in bundle.glob("*.tar"))
    assert found.components == seen(inventory).components
    assert [archive.repositories for archive in found.archives] == [
        archive.repositories for archive in seen(inventory).archives
    ]
    text = insight_text(found)
    for words in ("platform.tar", "module console", "v0.1.0 (stable)", "sealed", f"{bundle}"):
        assert words in text


@pytest.mark.parametrize("as_sealed", [False, True])
def test_of_a_damaged_bundle_the_inventory_is_the_sealed_one(as_sealed: bool, bundle: Path) -> None:
    """What is left of it may be all of another bundle, and is not to be taken for that."""
    (bundle / "platform.tar").unlink()
    with BundleReader([bundle]) as reader:
        found = inspect_bundle(reader, as_sealed=as_sealed)
    assert found.inventory == sample_store().inventory().digest()
    assert f"{found.inventory}, sealed" in insight_text(found)


def test_numbers_stand_in_columns(bundle: Path) -> None:
    with BundleReader([bundle]) as reader:
        lines = insight_text(inspect_bundle(reader)).splitlines()
    start = next(number for number, line in enumerate(lines) if "Largest layers" in line)
    rows = [line for line in lines[start:] if line]
    assert len({len(row) for row in rows}) == 1
    assert not any(line != line.rstrip() for line in lines)
