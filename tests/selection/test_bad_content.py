"""What is wrong with a source is told with its place, and never taken for "not there"."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from examples.release_tree import SMALL
from examples.release_tree.images import image, layer
from mirror.oci import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.testing import Answer, CorruptBody, Fault
from tests.selection.conftest import TINY, MakeOffer
from tests.support.depot import Offer, cosign, files_image, references, release_image
from tests.support.program import call_mirror
from tests.support.sample_images import descriptor

DIGESTS = "deckhouse/candi/images_digests.json"
TAGS = "deckhouse/candi/images_tags.json"
NOWHERE = Digest.of(b"nowhere")


@pytest.fixture
def source(offer: MakeOffer) -> Offer:
    return offer(replace(TINY, components=8, multi_arch=0.5))


# -- what releases say of themselves ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"version.json": "v1.70.0"}, "version.json cannot be read: Invalid JSON"),
        ({"version.json": "[]"}, "version.json cannot be read"),
        ({"version.json": '{"version": "v1.70.0+b"}'}, "names 'v1.70.0+b', which no tag can spell"),
        ({"version.json": '{"suspend": true}'}, "version: is missing"),
        ({"version.json": '{"version": "newest"}'}, "'newest', which is not a semantic version"),
        ({"changelog.yaml": "{}"}, "the image has no version.json"),
    ],
    ids=["no JSON", "no object", "build", "no version", "no semver", "missing"],
)
@pytest.mark.parametrize(
    "path", ["release-channel", "modules/console/release", "packages/grafana/version"]
)
def test_a_release_image_that_does_not_say_which_version_it_is(
    source: Offer, path: str, files: dict[str, str], words: str
) -> None:
    source.depot.put(source.at(path), files_image(files), "alpha")
    where = f"{source.registry.address}/{source.at(path)}:alpha"
    source.plan().failed(1, where, words)


def test_a_changelog_that_is_no_mapping(source: Offer) -> None:
    files = {"version.json": '{"version": "v1.70.0"}', "changelog.yaml": "- fix"}
    source.depot.put(source.at("release-channel"), files_image(files), "v1.70.0")
    source.plan().failed(1, "release-channel:v1.70.0", "changelog.yaml is not a mapping")


# -- what installers list --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({DIGESTS: '{"common": {"init": "v1"}}'}, (DIGESTS, "common/init", "'v1'")),
        ({DIGESTS: '{"common": "sha256:1"}'}, (DIGESTS, "common: not a mapping of images")),
        ({DIGESTS: '{"common": {"init": 1}}'}, (DIGESTS, "common/init: not a string")),
        ({DIGESTS: "[]"}, (f"{DIGESTS} is not a JSON object",)),
        ({DIGESTS: "{"}, (f"{DIGESTS} cannot be read",)),
        ({TAGS: '{"common": {"init": "no tag"}}'}, (TAGS, "common/init", "'no tag' is not a tag")),
        ({"deckhouse/version": "v1.70.0"}, ("neither", DIGESTS, TAGS)),
    ],
)
def test_a_list_of_components_that_cannot_be_read(
    source: Offer, files: dict[str, str], words: tuple[str, ...]
) -> None:
    source.depot.put(source.at("install"), files_image(files), "v1.70.0")
    where = f"{source.registry.address}/{source.at('install')}:v1.70.0"
    source.plan().failed(1, where, *words)


def test_a_cut_layer_is_not_a_missing_list(source: Offer) -> None:
    made = layer({DIGESTS: json.dumps({"common": {"init": str(NOWHERE)}})}, compression="gzip")
    cut = replace(made, blob=made.blob[:-40])
    cut = replace(cut, digest=Digest.of(cut.blob))
    source.depot.put(source.at("install"), image([cut]), "v1.70.0")
    source.plan().failed(1, source.at("install"), "layer 1 of 1")


def test_a_component_that_is_not_there_is_named_with_the_installer_that_lists_it(
    source: Offer,
) -> None:
    released = source.tree.platform["v1.69.1"]
    newer = set(source.tree.platform["v1.70.0"].components.values())
    name, digest = next(
        (name, digest) for name, digest in released.components.items() if digest not in newer
    )
    source.depot.drop(source.at(""), digest)
    source.plan().failed(
        1,
        f"{source.root}@{digest} is not there",
        f"component {name} of installer {source.root}/install:v1.69.1 leads to it",
        "the source is incomplete",
    )


def test_an_old_installer_lists_tags_and_they_count(source: Offer) -> None:
    root, components = source.at(""), source.tree.platform["v1.70.0"].components
    listed: dict[str, dict[str, str]] = {}
    for number, (name, digest) in enumerate(components.items()):
        module, _, part = name.partition("/")
        tag = f"{digest.encoded[:12]}-{number}"
        listed.setdefault(module, {})[part] = tag
        source.depot.tag(root, tag, digest)
    both = {
        DIGESTS: json.dumps({"old": {"gone": str(NOWHERE)}}),
        TAGS: json.dumps(listed),
    }
    source.depot.put(source.at("install"), files_image(both), "v1.70.0")
    flags = ("--deckhouse-tag", "v1.70.0", "--no-modules", "--no-packages")
    found = references(source.plan(*flags).succeeded().document)
    for images in listed.values():
        for tag in images.values():
            assert found["platform.tar", "", tag] == str(source.depot.storage.resolve(root, tag))
    assert ("platform.tar", "", NOWHERE.encoded) not in found
    # An empty list of tags counts for nothing.
    both[TAGS] = "{}"
    source.depot.put(source.at("install"), files_image(both), "v1.70.0")
    source.plan(*flags).failed(1, str(NOWHERE), "old/gone")
    source.depot.put(source.at("install"), files_image({DIGESTS: "{}"}), "v1.70.0")
    source.plan(*flags).succeeded()


@pytest.mark.parametrize("path", ["", "install"])
def test_a_release_without_one_of_its_own_images(source: Offer, path: str) -> None:
    source.depot.drop(source.at(path), "v1.70.0")
    source.plan().failed(
        1, f"{source.registry.address}/{source.at(path)}:v1.70.0 is not there", "platform release"
    )


def test_a_release_may_lack_its_standalone_installer(source: Offer) -> None:
    source.depot.drop(source.at("install-standalone"), "v1.70.0")
    run = source.plan().succeeded()
    found = references(run.document)
    assert f"{source.at('install-standalone')}:v1.70.0 is not there" in run.stderr
    assert ("platform.tar", "install-standalone", "v1.70.0") not in found
    assert ("platform.tar", "install-standalone", "v1.69.1") in found


def test_an_index_with_a_child_that_is_not_there(source: Offer) -> None:
    root = source.at("")
    multi = next(
        digest
        for digest in source.tree.platform["v1.70.0"].components.values()
        if source.depot.manifest(root, digest).is_index
    )
    child = source.depot.manifest(root, multi).children[1].descriptor.digest
    source.depot.drop(root, child)
    source.plan().failed(1, f"{source.root}@{child} is not there", f"index {multi} leads to it")


# -- what modules list -----------------------------------------------------------------------------


def test_an_internal_image_that_is_not_there(source: Offer) -> None:
    version = source.tree.modules["console"].versions["v1.1.0"]
    digest = next(iter(version.internal.values()))
    source.depot.drop(source.at("modules/console"), digest)
    source.plan().failed(
        1, f"{source.root}/modules/console@{digest} is not there", "images_digests.json of"
    )


def test_a_channel_that_leads_to_a_module_version_that_is_not_there(source: Offer) -> None:
    source.depot.drop(source.at("modules/console"), "v1.1.0")
    source.plan().failed(1, f"{source.root}/modules/console:v1.1.0 is not there", "module console")


def test_an_exact_version_that_is_not_there(source: Offer) -> None:
    source.plan("-i", "console@=v9.9.9").failed(
        1, "module console has no tag v9.9.9 at the source; its newest are v1."
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "extra_images.json is not a JSON object"),
        ("{", "extra_images.json cannot be read"),
        ('{"db": "no tag"}', "extra_images.json: db: 'no tag' is not a tag"),
    ],
)
def test_a_list_of_extra_images_that_cannot_be_read(source: Offer, text: str, words: str) -> None:
    made = files_image({"extra_images.json": text})
    source.depot.put(source.at("modules/console"), made, "v1.1.0")
    source.plan().failed(1, f"{source.root}/modules/console:v1.1.0", words)


def test_extra_images_may_have_numbers_for_tags_and_be_missing(source: Offer) -> None:
    listed = {"db": 2, "other": 3.0, "odd": [1], "yes": True, "agent": "v1.2.3"}
    made = files_image({"extra_images.json": json.dumps(listed)})
    source.depot.put(source.at("modules/console"), made, "v1.1.0")
    source.depot.put(source.at("modules/console/extra/db"), release_image("x"), "2")
    source.depot.put(source.at("modules/console/extra/agent"), release_image("x"), "v1.2.3")
    run = source.plan().succeeded()
    assert {
        (path.rpartition("/")[2], tag)
        for _, path, tag in references(run.document)
        if "/extra/" in path
    } == {("db", "2"), ("agent", "v1.2.3")}
    assert f"warning: {source.root}/modules/console/extra/other:3 is not there" in run.stderr
    assert "left out" in run.stderr


def test_a_name_without_images_makes_no_archive_and_no_failure(source: Offer) -> None:
    source.depot.put(source.at("modules"), release_image("x"), "empty")
    run = source.plan().succeeded()
    assert "module-empty.tar" not in run.document["archives"]
    assert "module-console.tar" in run.document["archives"]
    run = source.plan("-i", "empty", "-i", "console").succeeded()
    assert "warning: module empty has no version at the source; it is left out" in run.stderr


# -- what was asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "flag"), [("module", "--include-module"), ("package", "--include-package")]
)
def test_a_name_that_nobody_knows_is_told_with_those_that_exist(
    small: Offer, noun: str, flag: str
) -> None:
    known = ", ".join(sorted(getattr(small.tree, f"{noun}s")))
    small.plan(flag, "konsole", flag, "nobody@=v1").failed(
        1, f"{small.root}/{noun}s has no {noun} konsole, nobody", f"it has: {known}"
    )


def test_a_plugin_that_nobody_knows(small: Offer) -> None:
    items = ("--no-platform", "--no-modules", "--no-packages")
    small.plan(*items, "--include-plugin", "nobody").failed(
        1, "--include-plugin nobody", "publishes no plugin nobody"
    )
    small.plan(*items, "--include-plugin", "db-connector@=v7.0.0").failed(
        1, "--include-plugin db-connector@=v7.0.0", "v0.9.0, v1.0.0"
    )


def test_a_constraint_that_no_release_fits(small: Offer) -> None:
    small.plan("--include-platform", ">=2").failed(
        1, "no platform release that fits >=2", "v1.67.5 to v1.71.0"
    )


def test_a_tag_that_is_not_there(small: Offer) -> None:
    for tag in ("pr999", "v1.66.0"):
        small.plan("--deckhouse-tag", tag).failed(1, f"no platform release {tag}")


def test_a_pull_of_nothing(small: Offer) -> None:
    small.plan(
        *("--no-platform", "--only-extra-images", "--no-security-db"),
        *("--no-installer", "-i", "console", "--include-package", "grafana"),
    ).failed(1, "nothing at", "was selected")


# -- parts that an edition may lack ----------------------------------------------------------------


def test_an_edition_may_have_no_security_databases(source: Offer) -> None:
    source.depot.drop(source.at("security/trivy-db"), "2")
    run = source.plan().succeeded()
    assert "security.tar" not in run.document["archives"]
    assert "offers no security databases; they are left out" in run.stderr


def test_one_of_the_security_databases_may_be_missing(source: Offer) -> None:
    source.depot.drop(source.at("security/trivy-bdu"), "1")
    run = source.plan().succeeded()
    assert "security/trivy-bdu:1 is not there" in run.stderr
    found = {path for archive, path, _ in references(run.document) if archive == "security.tar"}
    assert found == {"security/trivy-db", "security/trivy-java-db", "security/trivy-checks"}


def test_the_standalone_installer_may_be_missing(source: Offer) -> None:
    run = source.plan("--installer-tag", "v0.0.1").succeeded()
    assert "deckhouse/installer:v0.0.1 is not there (--installer-tag)" in run.stderr
    assert "installer.tar" not in run.document["archives"]


# -- access ----------------------------------------------------------------------------------------

PLACES = [
    "modules/console/manifests/",
    "modules/console/tags/",
    "modules/console/release/",
    "modules/tags/",
    "packages/grafana/version/",
    "release-channel/",
    "install/manifests/",
    "security/trivy-db/",
    "deckhouse/installer/",
]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("place", PLACES)
def test_a_refused_access_is_never_taken_for_not_there(
    source: Offer, place: str, status: int
) -> None:
    source.registry.faults.add(Fault(Answer(status), path=place, times=None))
    run = source.plan().failed(6, place.rpartition("/")[0].rpartition("/")[0])
    assert "not there" not in run.stderr


def test_no_access_to_one_module_does_not_concern_who_leaves_it_out(source: Offer) -> None:
    source.registry.faults.add(Fault(Answer(403), path="modules/console/", times=None))
    source.plan("-e", "console").succeeded()
    source.plan("--no-modules").succeeded()


def test_no_access_to_packages_does_not_concern_who_takes_none(source: Offer) -> None:
    source.registry.faults.add(Fault(Answer(403), path="/packages", times=None))
    source.plan().failed(6, "packages")
    run = source.plan("--no-packages").succeeded()
    assert "warning: no packages are described in the bundle" in run.stderr


def test_plugins_may_lie_where_the_licence_does_not_reach(offer: MakeOffer) -> None:
    source = offer(replace(TINY, modules=SMALL.modules[1:2], plugins=SMALL.plugins))
    source.registry.faults.add(Fault(Answer(403), path="/deckhouse-cli/", times=None))
    run = source.plan().succeeded()
    assert run.document["plugins"] == {}
    assert "access to" in run.stderr
    assert "deckhouse-cli/plugins is denied" in run.stderr
    source.registry.faults.clear()
    one = "/deckhouse-cli/plugins/postgresql-mgr/"
    source.registry.faults.add(Fault(Answer(403), path=one, times=None))
    run = source.plan().succeeded()
    assert run.stderr.count("plugins/postgresql-mgr is denied") == 1
    # What was named must not go missing with a warning.
    source.registry.faults.add(Fault(Answer(403), path="/deckhouse-cli/", times=None))
    source.plan("--include-plugin", "netcheck").failed(6, "deckhouse-cli/plugins/netcheck")


def test_a_login_that_is_refused_ends_it_at_once(source: Offer) -> None:
    source.registry.faults.add(Fault(Answer(401), path="", times=None))
    source.registry.requests.clear()
    source.plan().failed(6, source.registry.address)
    assert source.registry.requests.count() <= 2


# -- trouble ---------------------------------------------------------------------------------------


def test_a_server_that_fails_for_a_moment_is_asked_again(source: Offer) -> None:
    calm = source.plan().succeeded()
    for path in ("/manifests/alpha", "/tags/list", "/blobs/", "/manifests/sha256:"):
        source.registry.faults.add(Fault(Answer(503), path=path, times=2))
    shaken = source.plan().succeeded()
    assert source.registry.faults.struck == 8
    assert references(shaken.document) == references(calm.document)
    assert "trying again" in shaken.stderr


@pytest.mark.parametrize("path", ["modules/console/release/manifests/stable", "/tags/list"])
def test_a_server_that_keeps_failing_is_unreachable(source: Offer, path: str) -> None:
    source.registry.faults.add(Fault(Answer(500), path=path, times=None))
    run = source.plan().failed(5, source.registry.address)
    assert "not there" not in run.stderr
    assert source.registry.faults.struck > 1


def test_a_failed_dry_run_writes_nothing_and_tells_programs(source: Offer) -> None:
    source.depot.drop(source.at("install"), "v1.70.0")
    run = call_mirror(
        "pull", "x", "--source", source.root, "--insecure", "--dry-run", "--json"
    ).failed(1)
    error = run.document["error"]
    assert error["type"] == "SourceContentError"
    assert error["exitCode"] == 1
    assert "install:v1.70.0" in error["message"]


# -- oddities that are no errors -------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        '{"version": "v1.70.0", "suspend": null, "requirements": null, "disruptions": null}',
        '{"version": "1.70.0", "canary": {"enabled": true}, "cooldown": "2025-01-01"}',
    ],
)
def test_a_release_may_say_nothing_of_itself_in_many_ways(source: Offer, said: str) -> None:
    source.depot.put(
        source.at("release-channel"), files_image({"version.json": said}), "alpha", "v1.70.0"
    )
    source.plan().succeeded()


def test_of_what_a_module_release_says_the_version_alone_counts(source: Offer) -> None:
    said = {"version": "1.1.0", "suspend": "no", "requirements": {"modules": {"x": ">=1"}}}
    files = {"version.json": json.dumps(said)}
    source.depot.put(source.at("modules/console/release"), files_image(files), "alpha")
    run = source.plan().succeeded()
    assert "v1.1.0" in run.document["modules"]["console"]


def test_tags_that_name_no_module_are_passed_over(source: Offer) -> None:
    index = source.at("modules")
    digest = source.depot.put(index, release_image("x"), "Not_A_Module")
    source.depot.refer(index, digest, cosign(digest, ".sig"), native=False)
    source.registry.requests.clear()
    run = source.plan().succeeded()
    assert set(run.document["modules"]) == {"console"}
    assert source.registry.requests.count(path="sha256-.*tags/list") == 0
    for kind in ("packages", "deckhouse-cli/plugins"):
        where = source.at(kind).replace("ee/deckhouse-cli", "deckhouse-cli")
        source.depot.put(where, release_image("x"), "Not_A_Name")
    source.plan().succeeded()


def test_an_extra_image_with_a_name_that_no_repository_has(source: Offer) -> None:
    made = files_image({"extra_images.json": '{"Trivy DB": 2}'})
    source.depot.put(source.at("modules/console"), made, "v1.1.0")
    source.plan().failed(
        1, f"{source.root}/modules/console:v1.1.0", "extra_images.json", "'Trivy DB'"
    )


def test_a_manifest_of_a_kind_that_is_not_carried_is_named_with_its_place(source: Offer) -> None:
    kind = "application/vnd.docker.distribution.manifest.v1+json"
    raw = json.dumps({"schemaVersion": 1, "mediaType": kind, "name": "x"}).encode()
    answer = Answer(200, {"Content-Type": kind}, raw)
    path = "/install/manifests/v1.70.0"
    source.registry.faults.add(Fault(answer, path=path, times=None))
    source.plan().failed(1, f"{source.root}/install:v1.70.0: manifest sha256:", "only 2 is carried")


def test_other_bytes_than_a_digest_promises_are_damage(source: Offer) -> None:
    digest = next(iter(source.tree.platform["v1.70.0"].components.values()))
    fault = Fault(CorruptBody(5), path=f"/manifests/{digest}", times=None)
    source.registry.faults.add(fault)
    source.plan().failed(4, f"{source.root}@{digest}", "damaged")


# -- content that is made to hurt ------------------------------------------------------------------

BOMB = "\n".join(
    ["x0: &x0 {a: 1}", *(f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, 60))]
)


@pytest.mark.parametrize(
    ("changelog", "words"),
    [
        (BOMB, "references (*name) are not read"),
        ("a: " + "[" * 60 + "]" * 60, "nests more than 50 levels"),
        ("a: " + "x" * (5 << 20), "are read"),
        ("a: 0x" + "f" * 5000, "a number has more than 100 digits"),
        ("a: 2024-99-99", "cannot be read: month must be in 1..12"),
    ],
    ids=["references", "depth", "length", "number", "date"],
)
def test_a_changelog_that_would_hurt_is_refused_at_once(
    source: Offer, changelog: str, words: str
) -> None:
    files = {"version.json": '{"version": "v1.70.0"}', "changelog.yaml": changelog}
    source.depot.put(source.at("release-channel"), files_image(files), "v1.70.0")
    source.plan().failed(1, "release-channel:v1.70.0", "changelog.yaml", words)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e400", "NaN", "-Infinity", "-1"])
def test_an_extra_image_of_a_number_that_is_no_tag(source: Offer, number: str) -> None:
    files = {"extra_images.json": f'{{"db": {number}}}'}
    source.depot.put(source.at("modules/console"), files_image(files), "v1.0.0")
    run = source.plan("-i", "console@=v1.0.0")
    run.failed(1, "modules/console:v1.0.0", "extra_images.json")


def test_requirements_may_be_numbers(source: Offer) -> None:
    document = '{"version": "v1.70.0", "requirements": {"k8s": 1.23}}'
    files = {"version.json": document, "changelog.yaml": "{}"}
    source.depot.put(source.at("release-channel"), files_image(files), "v1.70.0", "alpha")
    source.plan().succeeded()


# -- packages that nobody asked for ----------------------------------------------------------------


def test_a_broken_description_of_a_package_nobody_asked_for_fails_nothing(source: Offer) -> None:
    where = source.at("packages/grafana/version")
    entry = {"mediaType": OCI_MANIFEST, "digest": str(NOWHERE), "size": 7}
    broken = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
    source.depot.add_manifest(where, broken.encode(), OCI_INDEX, tags=["dev"])
    run = source.plan("--no-packages").succeeded()
    tags = {
        tag
        for (_, repository, tag) in references(run.document)
        if repository.startswith("packages/")
    }
    assert tags
    assert "dev" not in tags


def test_a_denied_package_nobody_asked_for_is_left_out_with_a_warning(source: Offer) -> None:
    source.registry.faults.add(Fault(Answer(403), path="packages/grafana/version/tags", times=None))
    run = source.plan("--no-packages").succeeded()
    assert "package grafana is not described in the bundle" in run.stderr
    source.plan("--include-package", "grafana").failed(6, "grafana")


# -- what selects nothing --------------------------------------------------------------------------


def test_a_constraint_that_nothing_fits_and_an_unknown_exclusion_are_told(source: Offer) -> None:
    run = source.plan("-i", "console@>=9").succeeded()
    assert "no version of module console fits >=9" in run.stderr
    run = source.plan("-e", "consol").succeeded()
    assert "there is no module consol to leave out; is the name right?" in run.stderr


# -- indexes that name one image in many ways ------------------------------------------------------


def test_nested_indexes_are_read_once_however_often_they_are_named(source: Offer) -> None:
    path = source.at("packages/grafana/version")
    nested = source.depot.put(path, release_image("v9.0.0"))
    for _ in range(40):
        held = source.depot.manifest(path, nested)
        one = descriptor(held.media_type, held.raw)
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one, one]}
        raw = json.dumps(document).encode()
        nested = source.depot.add_manifest(path, raw, OCI_INDEX, tags=["v9.0.0"]).digest
    source.registry.requests.clear()
    plan = source.plan("--no-platform", "--no-modules", "--no-packages").succeeded().document
    assert ("package-versions.tar", "packages/grafana/version", "v9.0.0") in references(plan)
    # Each of the 41 manifests, and no 2 ** 40 of them.
    assert len(source.registry.requests) < 200
