from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from semver import Version

from mirror.errors import SourceContentError
from mirror.release.contracts import MAX_CONTRACT, Contract, parse_contract, valid_plugin_name

WHERE = "registry/deckhouse-cli/plugins/pg:v1.2.0"

EXAMPLE = {
    "name": "postgresql-mgr",
    "version": "v1.2.0",
    "description": "…",
    "env": [{"name": "X"}],
    "flags": [{"name": "--y"}],
    "requirements": {
        "kubernetes": {"constraint": ">=1.27"},
        "deckhouse": {"constraint": ">=1.70.0"},
        "modules": {
            "mandatory": [{"name": "postgresql", "constraint": ">=1.0.0"}],
            "conditional": [{"name": "prometheus"}],
            "anyOf": [
                {
                    "name": "cni",
                    "description": "…",
                    "modules": [
                        {"name": "cni-cilium", "constraint": ">=1.0"},
                        {"name": "cni-flannel"},
                    ],
                }
            ],
            "noneOf": [{"name": "old", "modules": [{"name": "old-postgresql"}]}],
        },
        "plugins": {
            "mandatory": [{"name": "db-connector", "constraint": ">=0.9.0"}],
            "conditional": [{"name": "backup", "constraint": "1.2 - 1.4"}],
        },
    },
}


def encoded(document: str | bytes) -> str:
    raw = document.encode() if isinstance(document, str) else document
    return base64.b64encode(raw).decode()


def read(document: Any) -> Contract:
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    return parse_contract(encoded(text), name="pg", version="v1.2.0", where=WHERE)


def modules(**kinds: Any) -> dict[str, Any]:
    return {"requirements": {"modules": kinds}}


@pytest.mark.parametrize("text", [json.dumps(EXAMPLE), yaml.safe_dump(EXAMPLE)])
def test_a_contract_is_read_from_json_and_from_yaml(text: str) -> None:
    contract = read(text)
    assert (contract.name, contract.version) == ("postgresql-mgr", "v1.2.0")
    assert str(contract.kubernetes) == ">=1.27"
    assert str(contract.deckhouse) == ">=1.70.0"
    assert [*map(str, contract.mandatory_modules)] == ["postgresql >=1.0.0"]
    assert [*map(str, contract.conditional_modules)] == ["prometheus"]
    [cni] = contract.any_of
    assert (cni.name, [*map(str, cni.members)]) == ("cni", ["cni-cilium >=1.0", "cni-flannel"])
    [old] = contract.none_of
    assert [*map(str, old.members)] == ["old-postgresql"]
    assert [*map(str, contract.mandatory_plugins)] == ["db-connector >=0.9.0"]
    assert [*map(str, contract.conditional_plugins)] == ["backup 1.2 - 1.4"]
    assert contract.served_modules == {"postgresql", "cni-cilium", "cni-flannel"}


def test_no_annotation_is_a_contract_without_needs() -> None:
    contract = parse_contract(None, name="pg", version="v1.2.0", where=WHERE)
    assert contract == Contract("pg", "v1.2.0")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"name": "", "version": None, "requirements": None},
        {"requirements": {"modules": None, "plugins": {}, "deckhouse": None}},
        {"requirements": {"modules": {"mandatory": None, "anyOf": []}, "kubernetes": {}}},
        "requirements:\n  modules:\n  plugins: {mandatory: }\n",
    ],
)
def test_what_a_contract_leaves_out_is_filled_in(document: Any) -> None:
    assert read(document) == Contract("pg", "v1.2.0")


def test_a_member_of_any_of_serves_only_where_the_module_is_not_mandatory() -> None:
    contract = read(EXAMPLE)
    assert [*map(str, contract.serves("postgresql"))] == ["postgresql >=1.0.0"]
    assert [*map(str, contract.serves("cni-cilium"))] == ["cni-cilium >=1.0"]
    assert contract.serves("prometheus") == ()


def test_where_a_build_comes_from_does_not_matter_to_a_need() -> None:
    [need] = read(EXAMPLE).mandatory_modules
    assert need.accepts(Version.parse("1.0.0-main"))
    assert need.accepts(Version.parse("1.0.0+b1"))
    assert not need.accepts(Version.parse("1.1.0-rc.1"))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("[]", "invalid contract: expected keys and values"),
        ("just text", "invalid contract: expected keys and values"),
        ("{", "neither JSON nor YAML"),
        ("a: &x 1\nb: *x", "references (*name) are not read"),
        ("[" * 5000, "neither JSON nor YAML"),
        (b"\xff\xfe", "not base64 of a text"),
        ({"name": 7}, "name: expected text"),
        ({"requirements": {"modules": []}}, "requirements.modules: a list is the form of old"),
        ({"requirements": {"plugins": [{"name": "a"}]}}, "requirements.plugins: a list is the"),
        ({"requirements": {"deckhouse": {"constraint": "new"}}}, "requirements.deckhouse: 'new'"),
        (modules(mandatory=[{"constraint": "1"}]), "requirements.modules.mandatory[0] has no name"),
        (
            modules(mandatory=[{"name": "a", "constraint": ">"}]),
            "requirements.modules.mandatory[0] (a): '>' is not a version constraint",
        ),
        (
            modules(mandatory=[{"name": "a"}], conditional=[{"name": "a"}]),
            "requirements.modules: 'a' is both mandatory and conditional",
        ),
        (
            modules(mandatory=[{"name": "a"}], anyOf=[{"name": "g", "modules": [{"name": "a"}]}]),
            "'a' is both mandatory and anyOf",
        ),
        (
            modules(
                anyOf=[{"name": "g", "modules": [{"name": "a"}]}],
                noneOf=[{"name": "g", "modules": [{"name": "a"}]}],
            ),
            "'a' is both anyOf and noneOf",
        ),
        (
            modules(anyOf=[{"modules": [{"name": "a"}]}]),
            "requirements.modules.anyOf[0] has no name",
        ),
        (modules(anyOf=[{"name": "g"}]), "requirements.modules.anyOf[0] (g) has no modules"),
        (
            modules(anyOf=[{"name": "g", "modules": [{"name": "a"}, {"name": "a"}]}]),
            "requirements.modules.anyOf[0] (g) names 'a' twice",
        ),
        (
            modules(noneOf=[{"name": "g", "modules": [{"name": n}]} for n in "ab"]),
            "requirements.modules.noneOf[1]: another group is named 'g' too",
        ),
        (
            {"requirements": {"plugins": {"mandatory": [{"name": "../x"}]}}},
            "requirements.plugins.mandatory[0]: '../x' is not the name of a plugin",
        ),
        ("#" * (MAX_CONTRACT + 10), "it is longer than 131072 bytes"),
    ],
)
def test_an_invalid_contract_says_where_and_what(document: Any, problem: str) -> None:
    with pytest.raises(SourceContentError) as caught:
        read(document)
    assert str(caught.value).startswith(f"{WHERE}: invalid contract: ")
    assert problem in str(caught.value)


def test_what_is_no_base64_is_refused() -> None:
    with pytest.raises(SourceContentError, match="invalid contract: not base64 of a text"):
        parse_contract("{not base64}", name="pg", version="v1", where=WHERE)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("pg", True),
        ("a.b_c-d9", True),
        ("a--b", False),
        ("A", False),
        ("-a", False),
        ("", False),
        ("a/b", False),
        ("a\n", False),
        ("a" * 129, False),
    ],
)
def test_names_of_plugins(name: str, valid: bool) -> None:
    assert valid_plugin_name(name) is valid


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "version",
                    "constraint",
                    "requirements",
                    "modules",
                    "plugins",
                    "mandatory",
                    "conditional",
                    "anyOf",
                    "noneOf",
                    "deckhouse",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.one_of(
        st.text(),
        st.text().map(encoded),
        st.binary().map(encoded),
        st.text(alphabet="{}[]:,-&*!%@|>'\"#? \n\tnab01~<=", max_size=60).map(encoded),
        json_values.map(lambda value: encoded(json.dumps({"requirements": value}))),
        json_values.map(lambda value: encoded(json.dumps({"requirements": {"modules": value}}))),
    )
)
def test_any_annotation_is_read_or_refused_with_its_place(annotation: str) -> None:
    try:
        parse_contract(annotation, name="pg", version="v1.2.0", where=WHERE)
    except SourceContentError as err:
        assert str(err).startswith(f"{WHERE}: ")  # noqa: PT017 - refusal is one of two outcomes
