"""Which images are required, from a list, an inventory, or a cluster's own values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from mirror.documents import file_text
from mirror.errors import RequiredImagesError
from mirror.modes.required import (
    RequiredImage,
    RequiredSet,
    critical_modules,
    deployment_of,
    from_digest_list,
    from_inventory,
    from_values,
    kebab,
    relaxed,
    required_images,
)
from mirror.modes.settings import CheckMode
from mirror.oci import Digest
from mirror.sync import Inventory
from tests.support.inventories import inventories

RELAX = CheckMode.RELAX


def digest(number: int) -> str:
    return str(Digest.of(b"%d" % number))


VALUES = {
    "global": {
        "modulesImages": {
            "digests": {
                "controlPlaneManager": {
                    "controlPlaneManager133": digest(1),
                    "kubeApiserver": digest(2),
                },
                "nodeManager": {"bashibleApiserver": digest(3), "sameAsOther": digest(2)},
                "console": {"frontend": digest(4)},
            }
        }
    }
}
CRITICAL = ("control-plane-manager", "node-manager", "without-images")
DEPLOYMENT = {
    "spec": {
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "deckhouse",
                        "image": "registry.d8-system.svc:5001/system/deckhouse:v1",
                    },
                    {"name": "proxy", "image": f"other.example/x/y@{digest(9)}"},
                ],
                "initContainers": [{"name": "init", "image": "reg.example:5000/a/b:v2"}],
            }
        }
    }
}


def by_source(required: RequiredSet) -> dict[str, str]:
    assert all(image.below == "" for image in required.images)
    return {image.source: str(image.reference) for image in required.images}


def test_a_clusters_values_require_its_critical_modules_and_its_deployment() -> None:
    required = from_values(VALUES, CRITICAL, DEPLOYMENT)
    assert by_source(required) == {
        "module/control-plane-manager/control-plane-manager133": digest(1),
        "module/control-plane-manager/kube-apiserver": digest(2),
        "module/node-manager/bashible-apiserver": digest(3),
        "deckhouse/containers/deckhouse": "v1",
        "deckhouse/containers/proxy": digest(9),
        "deckhouse/containers/init": "v2",
    }
    assert len(required) == 6
    keys = [image.key for image in required.images]
    assert keys == sorted(keys)


def test_relax_requires_the_platforms_own_image_by_its_tag() -> None:
    for required in (
        relaxed(DEPLOYMENT),
        required_images(RELAX, inventory=Inventory(), deckhouse_image="h/x:v1"),
        required_images(RELAX, inventory=None, deckhouse_image="h/x:v1"),
    ):
        assert by_source(required) == {"deckhouse/containers/deckhouse": "v1"}
        assert required.mode is RELAX


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        (None, "needs the Deployment"),
        ({}, "no spec.template.spec"),
        (deployment_of(f"h/x@{digest(1)}"), "names it by digest"),
        (deployment_of("h/x"), "names no image"),
        ({"spec": {"template": {"spec": {"containers": []}}}}, "needs the Deployment"),
    ],
)
def test_relax_without_a_tag_is_refused(deployment: Any, said: str) -> None:
    with pytest.raises(RequiredImagesError, match=said):
        relaxed(deployment)


@pytest.mark.parametrize(
    ("values", "critical", "said"),
    [
        (VALUES, (), "no module is critical and embedded"),
        (VALUES, ("unknown",), "no digest of a critical module: unknown"),
        ({}, CRITICAL, "no digests at global.modulesImages.digests"),
        ({"global": {"modulesImages": {"digests": {}}}}, CRITICAL, "no digests at global"),
        ({"global": {"modulesImages": {"digests": {"a": 5}}}}, ("a",), "a is not a mapping"),
        ({"global": {"modulesImages": {"digests": {"a": {"b": 5}}}}}, ("a",), "a.b: expected a d"),
        ({"global": {"modulesImages": {"digests": {"a": {"b": "x"}}}}}, ("a",), "is not a digest"),
        ({"global": {"modulesImages": {"digests": {"a": {}}}}}, ("a",), "no digest of a critical"),
    ],
)
def test_nothing_required_is_an_error_and_no_success(
    values: Any, critical: tuple[str, ...], said: str
) -> None:
    with pytest.raises(RequiredImagesError, match=said):
        from_values(values, critical, DEPLOYMENT)
    with pytest.raises(RequiredImagesError, match="a check would prove nothing"):
        RequiredSet.of(CheckMode.DEFAULT, [])


def test_critical_and_embedded_modules_are_told_from_others() -> None:
    def module(name: str, **properties: Any) -> dict[str, Any]:
        return {"kind": "Module", "metadata": {"name": name}, "properties": properties}

    modules = [
        module("node-manager", critical=True, source="Embedded"),
        module("console", critical=False, source="Embedded"),
        module("stronghold", critical=True, source="deckhouse"),
        module("cni-cilium", critical=True, source="Embedded"),
        module("old"),
        {"kind": "Module"},
    ]
    assert critical_modules(modules) == ("cni-cilium", "node-manager")


@pytest.mark.parametrize(
    ("camel", "expected"),
    [
        ("controlPlaneManager133", "control-plane-manager133"),
        ("console", "console"),
        ("cni-cilium", "cni-cilium"),
        ("a", "a"),
    ],
)
def test_names_are_spelt_as_modules_are(camel: str, expected: str) -> None:
    assert kebab(camel) == expected


def test_a_list_comes_in_three_forms(tmp_path: Path) -> None:
    lines = f"# of v1.70\n{digest(1)}\n\nreg.example/x@{digest(2)}  # remark\n{digest(1)}\n"
    nested = json.dumps({"nodeManager": {"one": digest(1), "two": digest(2)}})
    listed = json.dumps([digest(1), f"reg.example/x@{digest(2)}"])
    wanted = sorted([digest(1), digest(2)])
    for text in (lines, nested, listed):
        file = tmp_path / "digests"
        file.write_text(text)
        required = from_digest_list(file_text(file, RequiredImagesError), str(file))
        assert [str(image.reference) for image in required.images] == wanted
    assert "module/node-manager/one" in by_source(from_digest_list(nested))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no digest in it"),
        ("# nothing", "has no digest in it"),
        ("{}", "has no digest in it"),
        ("[]", "has no digest in it"),
        ("{", "is not JSON"),
        ("v1.70.0", "entry 1: 'v1.70.0' is not a digest"),
        ("[5]", "entry 1: expected a digest"),
        ('{"a": "b"}', "a is not a mapping"),
    ],
)
def test_another_list_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(RequiredImagesError, match=said):
        from_digest_list(text)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequiredImagesError, match="cannot read"):
        file_text(tmp_path / "none", RequiredImagesError)


@given(inventories())
def test_an_inventory_requires_all_that_its_tags_name(inventory: Inventory) -> None:
    wanted = {
        (path, str(named))
        for path, content in inventory.repositories.items()
        for named in content.tags.values()
    }
    if not wanted:
        with pytest.raises(RequiredImagesError, match="the inventory names no image"):
            from_inventory(inventory)
        return
    required = from_inventory(inventory)
    assert {image.key for image in required.images} == wanted
    assert len(required) == len(wanted)


def test_an_image_is_known_by_who_needs_it_first() -> None:
    images = [RequiredImage("", "v1", "first"), RequiredImage("", "v1", "second")]
    assert RequiredSet.of(CheckMode.DEFAULT, images).images == (images[0],)
