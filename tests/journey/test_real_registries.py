"""The whole journey between two registries of the kind that people run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from examples.release_tree import SMALL
from tests.conftest import MakeRealRegistry
from tests.support.program import Finished, call_mirror, run_mirror
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.release_source import Published, publish
from tests.support.skopeo import run_skopeo, skopeo_copy, skopeo_inspect
from tests.support.tls import Authority
from tests.support.wire import Wire, joined, sealed_repositories, sha256

SPEC = replace(SMALL, layer_bytes=100_000)
SELECTED = ("v1.68.2", "v1.69.1", "v1.70.1", "v1.71.0")
"""Of the versions in the tree: from rock-solid to alpha, of each minor the latest patch."""
TARGET = "dkp/mirror"


@dataclass(frozen=True)
class Journey:
    """A source that was pulled from, the bundle, and the target that it was pushed to."""

    source: Published
    bundle: Path
    target: RealRegistry
    runs: dict[str, Finished]

    @property
    def root(self) -> str:
        """What the push's REGISTRY was."""
        return f"{self.target.address}/{TARGET}"


@pytest.fixture(scope="module")
def journey(
    _this_machine_only: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Journey]:
    folder = tmp_path_factory.mktemp("journey")
    bundle = folder / "bundle"
    with RealRegistry(folder / "source") as source, RealRegistry(folder / "target") as target:
        published = publish(SPEC, source.address)
        to = f"{target.address}/{TARGET}"
        runs = {
            "pull": run_mirror("pull", bundle, "--source", published.root, "--insecure", "--json"),
            "verify": run_mirror("verify", bundle, "--json"),
            "push": run_mirror("push", bundle, to, "--insecure", "--json"),
            "against": run_mirror(
                "verify", bundle, "--against", to, "--deep", "--insecure", "--json"
            ),
        }
        yield Journey(published, bundle, target, runs)


@pytest.fixture
def arrived(journey: Journey) -> Iterator[Wire]:
    """The target on the wire."""
    with httpx.Client(base_url=journey.target.url) as http:
        yield Wire(http)


@pytest.fixture
def origin(journey: Journey) -> Iterator[Wire]:
    """The source on the wire."""
    with httpx.Client(base_url=f"http://{journey.source.address}") as http:
        yield Wire(http)


def test_every_command_of_the_journey_succeeds(journey: Journey) -> None:
    for run in journey.runs.values():
        run.succeeded()
    assert journey.runs["verify"].document["ok"] is True
    assert journey.runs["against"].document["ok"] is True
    assert journey.runs["against"].document["deep"] is True


def test_all_places_agree_on_the_digest_of_what_they_hold(journey: Journey) -> None:
    names = {journey.runs[name].document["inventory"] for name in ("pull", "push", "against")}
    assert names == {json.loads((journey.bundle / "inventory.json").read_bytes())["inventory"]}


def test_every_tag_of_the_inventory_arrives_byte_for_byte(
    journey: Journey, origin: Wire, arrived: Wire
) -> None:
    checked = 0
    for path, content in sealed_repositories(journey.bundle).items():
        host, _, repository = content.origin.partition("/")
        assert host == journey.source.address
        for tag, digest in content.tags.items():
            there = arrived.manifest(joined(TARGET, path), tag)
            assert there is not None, (path, tag)
            assert sha256(there) == digest, (path, tag)
            # What goes by its digest has the bare hex as its tag in the mirror alone.
            by_digest = f"sha256:{tag}" == digest
            assert there == origin.manifest(repository, digest if by_digest else tag)
            checked += 1
    assert checked == journey.runs["push"].document["tags"] > 80


def test_every_manifest_and_blob_of_the_inventory_arrives_byte_for_byte(
    journey: Journey, origin: Wire, arrived: Wire
) -> None:
    for path, content in sealed_repositories(journey.bundle).items():
        repository = content.origin.partition("/")[2]
        for digest in content.manifests:
            there = arrived.manifest(joined(TARGET, path), digest)
            assert there is not None, (path, digest)
            assert sha256(there) == digest
            assert there == origin.manifest(repository, digest)
        for digest, size in content.blobs.items():
            blob = arrived.blob(joined(TARGET, path), digest)
            assert blob is not None, (path, digest)
            assert (len(blob), sha256(blob)) == (size, digest)
            assert blob == origin.blob(repository, digest)


def test_the_target_has_no_repository_but_those_of_the_bundle_and_ours(
    journey: Journey, arrived: Wire
) -> None:
    tree, held = journey.source.tree, sealed_repositories(journey.bundle)
    expected = {joined(TARGET, path) for path in held}
    for index, names in (("modules", tree.modules), ("packages", tree.packages)):
        expected.add(f"{TARGET}/{index}")
        assert arrived.tags(f"{TARGET}/{index}") == sorted(names)
    plugins = {path.split("/")[2] for path in held if path.startswith("deckhouse-cli/plugins/")}
    assert arrived.tags(f"{TARGET}/deckhouse-cli/plugins") == sorted(plugins)
    beside = {f"{TARGET}/deckhouse-cli/plugins", f"{TARGET}/mirror/inventory"}
    assert set(arrived.repositories()) == expected | beside


def test_the_releases_between_rock_solid_and_alpha_arrive_whole(
    journey: Journey, arrived: Wire
) -> None:
    tree = journey.source.tree
    assert journey.runs["pull"].document["platform"]["versions"] == list(SELECTED)
    for version in SELECTED:
        release = tree.platform[version]
        for path, digest in (
            ("", release.image),
            ("install", release.install),
            ("install-standalone", release.install_standalone),
            ("release-channel", release.release),
        ):
            manifest = arrived.manifest(joined(TARGET, path), version)
            assert manifest is not None, (path, version)
            assert sha256(manifest) == str(digest), (path, version)
        for name, digest in release.components.items():
            assert arrived.manifest(TARGET, str(digest)) is not None, (version, name)
            assert arrived.manifest(TARGET, digest.encoded) is not None, (version, name)


def test_releases_outside_of_the_channels_stay_behind(journey: Journey, arrived: Wire) -> None:
    tree = journey.source.tree
    others = set(tree.platform) - set(SELECTED)
    assert {"v1.67.5", "v1.68.0", "pr12345"} <= others
    for path in ("", "install", "release-channel"):
        assert others.isdisjoint(arrived.tags(joined(TARGET, path)))
    wanted = {d for version in SELECTED for d in tree.platform[version].components.values()}
    left = {d for version in others for d in tree.platform[version].components.values()} - wanted
    assert left
    for digest in left:
        assert arrived.manifest(TARGET, str(digest)) is None


def test_every_channel_leads_to_the_release_that_it_had_at_the_source(
    journey: Journey, arrived: Wire
) -> None:
    tree = journey.source.tree
    assert set(tree.channels) == {"alpha", "beta", "early-access", "stable", "rock-solid"}
    for channel in tree.channels:
        manifest = arrived.manifest(f"{TARGET}/release-channel", channel)
        assert manifest is not None
        assert sha256(manifest) == str(tree.tag(f"{tree.root}/release-channel", channel))


@pytest.mark.parametrize(("kind", "releases"), [("modules", "release"), ("packages", "version")])
def test_every_module_and_package_arrives_with_its_channels_internal_and_extra_images(
    journey: Journey, arrived: Wire, kind: str, releases: str
) -> None:
    tree = journey.source.tree
    published = {"modules": tree.modules, "packages": tree.packages}[kind]
    assert published
    for name, item in published.items():
        repository = f"{TARGET}/{kind}/{name}"
        for channel, version in item.channels.items():
            truth = item.versions[version]
            for where, tag, digest in (
                (f"{repository}/{releases}", channel, truth.release),
                (f"{repository}/{releases}", version, truth.release),
                (repository, version, truth.image),
            ):
                manifest = arrived.manifest(where, tag)
                assert manifest is not None, (where, tag)
                assert sha256(manifest) == str(digest), (where, tag)
            for digest in truth.internal.values():
                assert arrived.manifest(repository, str(digest)) is not None
            for extra, tag in truth.extra.items():
                found = arrived.manifest(f"{repository}/extra/{extra}", tag)
                assert found is not None
                assert sha256(found) == str(tree.tag(f"{item.repository}/extra/{extra}", tag))


def test_plugins_arrive_as_they_were_published(journey: Journey, arrived: Wire) -> None:
    tree = journey.source.tree
    taken = {
        path.rpartition("/")[2]: content.tags
        for path, content in sealed_repositories(journey.bundle).items()
        if path.startswith("deckhouse-cli/plugins/")
    }
    assert "postgresql-mgr" in taken  # a module of the bundle needs it
    for name, tags in taken.items():
        for version, digest in tags.items():
            assert digest == str(tree.plugins[name].versions[version])
            manifest = arrived.manifest(f"{TARGET}/deckhouse-cli/plugins/{name}", version)
            assert manifest is not None
            assert sha256(manifest) == digest


def test_attestations_of_the_components_arrive_under_their_own_tags(
    journey: Journey, arrived: Wire
) -> None:
    tree = journey.source.tree
    selected = {d for version in SELECTED for d in tree.platform[version].components.values()}
    attested = {
        tag: tree.tag(repository, tag)
        for (repository, subject), tag in tree.attestations.items()
        if repository == tree.root and subject in selected
    }
    assert attested
    for tag, digest in attested.items():
        manifest = arrived.manifest(TARGET, tag)
        assert manifest is not None
        assert sha256(manifest) == str(digest)


def test_the_security_databases_and_the_installer_arrive(journey: Journey, arrived: Wire) -> None:
    tree = journey.source.tree
    assert len(tree.databases) == 4
    for name, digest in tree.databases.items():
        database, _, tag = name.partition(":")
        manifest = arrived.manifest(f"{TARGET}/security/{database}", tag)
        assert manifest is not None
        assert sha256(manifest) == str(digest)
    installer = arrived.manifest(f"{TARGET}/installer", "latest")
    assert installer is not None
    assert sha256(installer) == str(tree.tag("deckhouse/installer", "latest"))


def test_nothing_in_the_target_dangles(arrived: Wire) -> None:
    for repository in arrived.repositories():
        assert arrived.dangling(repository) == []


def test_skopeo_inspects_a_release_and_its_components(journey: Journey) -> None:
    release = journey.source.tree.platform["v1.71.0"]
    seen = skopeo_inspect(f"docker://{journey.root}:v1.71.0")
    assert seen["Digest"] == str(release.image)
    assert seen["Labels"] == {"org.opencontainers.image.version": "v1.71.0"}
    assert "stable" not in seen["RepoTags"]  # channels live in release-channel alone
    for digest in list(release.components.values())[:3]:
        assert skopeo_inspect(f"docker://{journey.root}@{digest}")["Digest"] == str(digest)


def test_skopeo_copies_images_out_of_the_target(journey: Journey, tmp_path: Path) -> None:
    tree = journey.source.tree
    release = tree.platform["v1.71.0"]
    images = {
        "release": f"{journey.root}:v1.71.0",
        "installer": f"{journey.root}/install:v1.71.0",
        "component": f"{journey.root}@{next(iter(release.components.values()))}",
        "channel": f"{journey.root}/release-channel:alpha",
        "module": f"{journey.root}/modules/console:v1.1.0",
        "database": f"{journey.root}/security/trivy-db:2",
    }
    for name, image in images.items():
        skopeo_copy(f"docker://{image}", f"dir:{tmp_path / name}", all_images=False)
        for path in (tmp_path / name).iterdir():
            if len(path.name) == 64:
                assert sha256(path.read_bytes()) == f"sha256:{path.name}"
    assert sha256((tmp_path / "release/manifest.json").read_bytes()) == str(release.image)


def test_skopeo_copies_an_image_of_several_platforms(
    journey: Journey, arrived: Wire, tmp_path: Path
) -> None:
    components = journey.source.tree.platform["v1.71.0"].components
    indexes = {
        digest
        for digest in components.values()
        if b'"manifests"' in (arrived.manifest(TARGET, str(digest)) or b"")
    }
    assert indexes, "the tree has no component for several platforms"
    digest = min(indexes)
    skopeo_copy(f"docker://{journey.root}@{digest}", f"dir:{tmp_path / 'all'}")
    assert sha256((tmp_path / "all/manifest.json").read_bytes()) == str(digest)
    assert len(list((tmp_path / "all").glob("*.manifest.json"))) == 2


def test_skopeo_lists_the_tags_that_a_cluster_looks_for(journey: Journey) -> None:
    said = run_skopeo("list-tags", "--tls-verify=false", f"docker://{journey.root}/modules")
    assert sorted(json.loads(said)["Tags"]) == ["console", "operator-argo", "postgresql"]


def test_a_second_push_uploads_nothing_and_changes_nothing(journey: Journey) -> None:
    before = on_disk(journey.target)
    done = call_mirror("push", journey.bundle, journey.root, "--insecure", "--json").succeeded()
    assert done.document["uploaded"] == {"blobs": 0, "bytes": 0, "manifests": 0, "tags": 0}
    assert on_disk(journey.target) == before
    said = call_mirror("push", journey.bundle, journey.root, "--insecure").succeeded().stdout
    assert "nothing: all of it was there" in said


def on_disk(registry: RealRegistry) -> dict[str, tuple[int, int]]:
    """Every file that a registry keeps: size and time of its last change."""
    return {
        str(path.relative_to(registry.root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in registry.root.rglob("*")
        if path.is_file()
    }


def test_a_push_repairs_what_the_target_lost(journey: Journey) -> None:
    digest = next(iter(journey.source.tree.databases.values()))
    revision = digest.encoded
    link = f"docker/registry/v2/repositories/{TARGET}/security/trivy-db/_manifests"
    path = journey.target.root / link / "revisions/sha256" / revision / "link"
    path.unlink()
    lost = call_mirror("verify", journey.bundle, "--against", journey.root, "--insecure", "--json")
    assert lost.code == 4
    findings = lost.document["findings"]
    assert {finding["repository"] for finding in findings} == {"security/trivy-db"}
    assert {finding["digest"] for finding in findings} == {str(digest)}
    assert {tag for finding in findings for tag in finding["tags"]} == {"2"}
    done = call_mirror("push", journey.bundle, journey.root, "--insecure", "--json").succeeded()
    assert done.document["uploaded"]["blobs"] == 0
    call_mirror("verify", journey.bundle, "--against", journey.root, "--insecure").succeeded()


def test_a_deep_verification_finds_a_byte_that_rotted_in_the_target(journey: Journey) -> None:
    path, content = next(
        item for item in sealed_repositories(journey.bundle).items() if item[0].startswith("sec")
    )
    digest = max(content.blobs, key=lambda one: content.blobs[one])
    stored = journey.target.blob_path(digest)
    good = stored.read_bytes()
    stored.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        arguments = ("verify", journey.bundle, "--against", journey.root, "--insecure")
        call_mirror(*arguments).succeeded()  # a registry that is only asked says that all is there
        found = call_mirror(*arguments, "--deep", "--json")
        assert found.code == 4
        (finding,) = found.document["findings"]
        assert finding["repository"] == path
        assert finding["digest"] == digest
        assert finding["tags"] == sorted(content.tags)
        assert TARGET in finding["place"]
    finally:
        stored.write_bytes(good)


def test_modules_go_where_the_suffix_says(
    journey: Journey, arrived: Wire, tiny_bundle: Path
) -> None:
    root = f"{journey.target.address}/elsewhere"
    suffix = ("--modules-path-suffix", "/my/mods/", "--insecure")
    call_mirror("push", tiny_bundle, root, *suffix).succeeded()
    assert arrived.tags("elsewhere/my/mods") == ["console"]
    assert "v1.1.0" in arrived.tags("elsewhere/my/mods/console")
    assert "alpha" in arrived.tags("elsewhere/my/mods/console/release")
    assert arrived.tags("elsewhere/modules") == arrived.tags("elsewhere/modules/console") == []
    call_mirror("verify", tiny_bundle, "--against", root, *suffix).succeeded()
    missing = call_mirror("verify", tiny_bundle, "--against", root, "--insecure")
    assert missing.code == 4
    assert "modules/console" in missing.stdout


def test_a_registry_with_tls_and_passwords_takes_the_bundle_from_who_may(
    tiny_bundle: Path, make_real_registry: MakeRealRegistry, authority: Authority
) -> None:
    registry = make_real_registry(tls=authority.issue(), htpasswd=HTPASSWD)
    root = f"{registry.address}/dkp/ee"
    user, password = ACCOUNT
    login, trust = ("-u", user), ("--ca", authority.certificate)
    push = ("push", tiny_bundle, root)
    secret = {"D8_MIRROR_REGISTRY_PASSWORD": password}

    call_mirror(*push, *login, env=secret).failed(5, "certificate", "--ca")
    call_mirror(*push, *trust).failed(6, "--registry-login", "--registry-password")
    wrong = run_mirror(*push, *trust, *login, "-p", "-", stdin="not-it\n")
    wrong.failed(6, f"refuses the login of user {user}")
    assert "not-it" not in wrong.text
    assert not list(registry.root.rglob("link")), "something was written without a login"

    careless = (*push, "--tls-skip-verify", *login, "-p", "-")
    run_mirror(*careless, stdin=f"{password}\n").succeeded()
    again = call_mirror(*push, *trust, *login, "--json", env=secret).succeeded()
    assert again.document["uploaded"]["blobs"] == 0
    against = ("verify", tiny_bundle, "--against", root, *trust, *login)
    call_mirror(*against, env=secret).succeeded()
