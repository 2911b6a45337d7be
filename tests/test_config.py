"""A pull's settings: every flag in a file, the file under the flags, contradictions told."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import yaml

from examples.release_tree import SMALL
from mirror.cli import main
from mirror.commands.program import SCHEMAS, schema
from mirror.config import PullConfig
from mirror.errors import InputError
from mirror.oci import Platform
from mirror.testing import EmbeddedRegistry
from tests.support.program import ROOT, call_mirror
from tests.support.release_source import TINY, serve
from tests.support.schemas import jsonschema

EXAMPLE = ROOT / "examples" / "mirror.yaml"
OUTSIDE = {
    "bundle_dir": "where the bundle goes",
    "config_file": "the file itself",
    "dry_run": "what to do",
    "base": "what to compare with",
    "only": "what a repair lacks",
    "shard": "which machine this is",
    "force": "what to do with what is there",
    "no_pull_resume": "what to do with what is there",
    "verbose_summary": "how to tell",
    "sign_key": "a secret",
    "login": "a secret",
    "password": "a secret",
    "license_key": "a secret",
    "module_config": "where the source is",
    "sites_file": "where the source is",
    "tmp_dir": "nothing any more",
    "yes": "what to do with what is there",
    **dict.fromkeys(
        ("as_json", "verbose", "quiet", "form", "wide", "log_format", "no_color"), "how to tell"
    ),
}
"""Parameters of `mirror pull` that say nothing of what is pulled from where."""


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "mirror.yaml"
    path.write_text(text)
    return path


def refused(text: str, folder: Path) -> str:
    """The message about a settings file that is none."""
    path = settings_file(folder, text)
    with pytest.raises(InputError) as caught:
        PullConfig.load(path, {})
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


# -- keys and flags --------------------------------------------------------------------------------


def pull_options() -> dict[str, click.Parameter]:
    command = main.commands["pull"]
    return {str(one.name): one for one in command.params}


def test_every_setting_is_a_flag_and_every_flag_a_setting() -> None:
    options = pull_options()
    # A new flag of neither kind: give it a key, or say here why it needs none.
    assert set(options) - set(OUTSIDE) == set(PullConfig.model_fields)
    for name, setting in PullConfig.model_fields.items():
        option = options[name]
        assert f"--{setting.alias}" in option.opts
        assert isinstance(option, click.Option)
        assert option.multiple == isinstance(setting.default, tuple)
        assert option.is_flag == isinstance(setting.default, bool)
        assert option.default is None or not option.default, f"{name} would override the file"
        assert bool(option.secondary_opts) == option.is_flag, f"{name} cannot be switched off"


def parsed_flags(*flags: str) -> dict[str, Any]:
    """What the command line makes of `flags`, as `PullConfig.load` gets it."""
    above = click.Context(main, **main.context_settings)
    context = main.commands["pull"].make_context("pull", ["never-written", *flags], parent=above)
    return {
        name: value
        for name, value in context.params.items()
        if name in PullConfig.model_fields and value not in (None, ())
    }


@pytest.mark.parametrize(
    "name", [name for name, one in PullConfig.model_fields.items() if isinstance(one.default, bool)]
)
def test_what_a_file_switches_on_a_flag_switches_off(tmp_path: Path, name: str) -> None:
    path = settings_file(tmp_path, f"{name.replace('_', '-')}: true\n")
    assert getattr(PullConfig.load(path, parsed_flags()), name) is True
    (opposite,) = pull_options()[name].secondary_opts
    assert parsed_flags(opposite) == {name: False}
    assert getattr(PullConfig.load(path, parsed_flags(opposite)), name) is False


@pytest.mark.parametrize(
    ("flag", "opposite"),
    [
        ("--insecure", "--no-insecure"),
        ("--no-modules", "--modules"),
        ("--no-security-db", "--security-db"),
        ("--no-platform", "--with-platform"),
    ],
)
def test_a_switchs_opposite_goes_by_a_plain_name(flag: str, opposite: str) -> None:
    (option,) = [one for one in pull_options().values() if flag in one.opts]
    assert option.secondary_opts == [opposite]
    assert f"{flag} / {opposite}" in call_mirror("pull", "--help").succeeded().stdout


def test_the_opposite_of_a_switch_leaves_the_files_other_settings_alone(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "no-modules: true\ninclude-module: [a]\nsince-version: '1.70'\n")
    config = PullConfig.load(path, parsed_flags("--modules", "--with-platform"))
    assert (config.no_modules, config.include_module) == (False, ("a",))
    assert config.since_version == "1.70"


def test_all_that_can_be_said_by_flags_can_be_said_in_a_file(tmp_path: Path) -> None:
    flags: dict[str, Any] = {}
    for name, setting in PullConfig.model_fields.items():
        default = setting.get_default()
        if isinstance(default, bool):
            flags[name] = True
        elif isinstance(default, tuple):
            flags[name] = ("a", "b@=v1")
        elif get_origin(setting.annotation) is Literal:
            flags[name] = next(one for one in get_args(setting.annotation) if one != default)
        else:
            flags[name] = 3 if isinstance(default, int) else f"value-of-{name}"
    document = {
        name.replace("_", "-"): list(value) if isinstance(value, tuple) else value
        for name, value in flags.items()
    }
    path = settings_file(tmp_path, yaml.safe_dump(document))
    from_file, from_flags = PullConfig.load(path, {}), PullConfig.load(None, flags)
    assert from_file == from_flags
    assert from_file.selection_document() == from_flags.selection_document()
    assert all(getattr(from_file, name) != PullConfig.model_fields[name].default for name in flags)


def test_secrets_have_no_keys() -> None:
    assert not [
        name
        for name in PullConfig.model_fields
        if re.search("login|password|licen[cs]e|token|secret", name)
    ]


# -- the file under the flags ----------------------------------------------------------------------


def test_a_flag_takes_the_place_of_a_files_value_as_a_whole(tmp_path: Path) -> None:
    path = settings_file(
        tmp_path,
        "source: reg/a/ee\ninstaller-tag: v1\ninclude-module: [x, y]\nno-packages: true\njobs: 3\n",
    )
    config = PullConfig.load(path, {"source": "reg/b/fe", "include_module": ("z",), "jobs": 5})
    assert (config.source, config.include_module, config.jobs) == ("reg/b/fe", ("z",), 5)
    assert (config.installer_tag, config.no_packages) == ("v1", True)


@pytest.mark.parametrize(
    ("text", "flags", "left"),
    [
        ("include-platform: '>=1.68'", {"deckhouse_tag": "stable"}, "include_platform"),
        ("deckhouse-tag: stable", {"since_version": "1.68"}, "deckhouse_tag"),
        ("since-version: '1.68'", {"include_platform": "~1.70"}, "since_version"),
        ("include-module: [a]", {"exclude_module": ("b",)}, "include_module"),
        ("exclude-package: [a]", {"include_package": ("b",)}, "exclude_package"),
        ("include-module: [a]", {"no_modules": True}, "include_module"),
        ("exclude-module: [a]", {"no_modules": True}, "exclude_module"),
        ("no-modules: true", {"include_module": ("a",)}, "no_modules"),
        ("no-modules: true", {"exclude_module": ("a",)}, "no_modules"),
        ("include-package: [a]", {"no_packages": True}, "include_package"),
        ("no-packages: true", {"include_package": ("a",)}, "no_packages"),
        ("include-plugin: [a]", {"no_plugins": True}, "include_plugin"),
        ("no-plugins: true", {"include_plugin": ("a",)}, "no_plugins"),
        ("no-platform: true", {"deckhouse_tag": "stable"}, "no_platform"),
        ("no-platform: true", {"include_platform": "~1.70"}, "no_platform"),
        ("no-platform: true", {"since_version": "1.68"}, "no_platform"),
        ("since-version: '1.68'", {"no_platform": True}, "since_version"),
        ("include-platform: '>=1.68'", {"no_platform": True}, "include_platform"),
        ("deckhouse-tag: stable", {"no_platform": True}, "deckhouse_tag"),
        ("no-installer: true", {"installer_tag": "v1"}, "no_installer"),
    ],
)
def test_of_settings_that_exclude_each_other_the_command_lines_counts(
    tmp_path: Path, text: str, flags: Mapping[str, Any], left: str
) -> None:
    config = PullConfig.load(settings_file(tmp_path, text), flags)
    _, warnings = config.selection()
    assert warnings == ()
    assert not getattr(config, left)
    assert all(getattr(config, name) == value for name, value in flags.items())


def test_modules_of_the_file_stay_out_when_a_flag_says_so(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "include-module: [a]\ninclude-package: [b]\n")
    selection, _ = PullConfig.load(path, parsed_flags("--no-modules", "--no-packages")).selection()
    assert (selection.modules, selection.packages) == (None, None)
    path = settings_file(tmp_path, "no-modules: true\n")
    selection, _ = PullConfig.load(path, parsed_flags("-i", "x")).selection()
    assert selection.modules is not None
    assert selection.modules.names == ("x",)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("jobs: many", ("--jobs", "3")),
        ("no-modules: maybe", ("--modules",)),
        ("no-modules: maybe", ("-i", "a")),
        ("include-module: {}", ("--no-modules",)),
        ("since-version: 1.70", ("--since-version", "1.70")),
        ("since-version: 1.70", ("--no-platform",)),
        ("installer-tag: [x]", ("--no-installer",)),
    ],
)
def test_a_wrong_value_that_a_flag_overrides_does_no_harm(
    tmp_path: Path, text: str, flags: tuple[str, ...]
) -> None:
    refused(text, tmp_path)
    PullConfig.load(settings_file(tmp_path, text), parsed_flags(*flags)).selection()


def test_one_text_stands_for_a_list_of_it(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "include-module: console@^1\nplatform: linux/amd64\n")
    config = PullConfig.load(path, {})
    assert (config.include_module, config.platform) == (("console@^1",), ("linux/amd64",))
    assert config.selection_document()["include-module"] == ["console@^1"]


def test_a_file_alone_cannot_contradict_itself(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "include-module: [a]\nexclude-module: [b]\n")
    with pytest.raises(InputError, match="--include-module and --exclude-module exclude"):
        PullConfig.load(path, {}).selection()


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert PullConfig.load(settings_file(tmp_path, "# nothing\n"), {}) == PullConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "include-modul: [a]",
            ["unknown setting 'include-modul'; did you mean include-module?"],
        ),
        ("no_modules: true", ["unknown setting 'no_modules'; did you mean no-modules?"]),
        (
            "source-password: x",
            ["unknown setting 'source-password': no secret is read", "D8_MIRROR_SOURCE_PASSWORD"],
        ),
        ("license: x", ["unknown setting 'license': no secret", "D8_MIRROR_LICENSE_TOKEN"]),
        ("license_token: x", ["'license_token': no secret", "D8_MIRROR_LICENSE_TOKEN"]),
        ("include-module: 1", ["include-module: expected a list"]),
        ("include-module: [1]", ["include-module.0: expected text"]),
        ("no-modules: maybe", ["no-modules: expected true or false"]),
        ("jobs: many", ["jobs: expected a whole number"]),
        ("jobs: 0", ["jobs: must be 1 or more"]),
        ("since-version: 1.70", ["since-version", "the number 1.7", "write it in quotes"]),
        ("installer-tag: 2024-01-02", ["installer-tag", "the date 2024-01-02", "in quotes"]),
        (
            "jobs: 1\nsince-version: 2024-99-99",
            ["'2024-99-99' is not what it looks like", "month must be", "(line 2)"],
        ),
        ("jobs: 0b_", ["'0b_' is not what it looks like"]),
        ("no-modules: !!bool x", ["'x' is not what it looks like"]),
        ("jobs: !!timestamp x", ["'x' is not what it looks like"]),
        ("jobs: 3\nsource: a\njobs: 3", ["jobs is set twice", "(line 3)"]),
        ("jobs: 3\n'jobs': 4", ["jobs is set twice"]),
        ("? [a]\n: 1", ["unhashable key"]),
        ("1: x", ["1"]),
        ("source: 1\njobs: 99", ["source: ", "jobs: ", "must be 64 or less"]),
        ("- a", ["not a mapping of settings"]),
        ("a: [", ["is not YAML"]),
        ("a: !!python/object:os.system x", ["could not determine a constructor", "(line 1)"]),
        ("\x00", ["is not YAML"]),
    ],
)
def test_a_file_that_is_none_is_told_by_key(tmp_path: Path, text: str, words: list[str]) -> None:
    message = refused(text, tmp_path)
    for word in words:
        assert word in message
    if "YAML" not in words[0]:
        assert "mirror config schema" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot read {tmp_path}"):
        PullConfig.load(tmp_path, {})
    call_mirror("pull", tmp_path / "b", "--config", tmp_path / "none.yaml").failed(2, "none.yaml")


def test_a_wrong_flag_is_told_without_a_file() -> None:
    with pytest.raises(InputError, match=r"^--jobs: "):
        PullConfig.load(None, {"jobs": 65})
    call_mirror("pull", "never-written", "--jobs", "65").failed(2, "jobs: ")


# -- the schema and the example --------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_kind_of_settings_has_a_schema_by_a_name_of_its_own(kind: str) -> None:
    printed = call_mirror("config", "schema", kind).succeeded().document
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed["$id"] == f"urn:deckhouse:mirror:schema:{kind}"
    with click.Context(main):
        assert printed == schema(kind)
    kept = ROOT / f"docs/schemas/{kind}.json"
    assert json.loads(kept.read_bytes()) == printed, (
        f"stale; run: mirror config schema {kind} > docs/schemas/{kind}.json"
    )


def test_the_schema_of_a_pull_has_a_word_about_every_key() -> None:
    printed = call_mirror("config", "schema").succeeded().document
    assert printed["$id"] == "urn:deckhouse:mirror:schema:pull"
    assert printed["additionalProperties"] is False
    names = {name.replace("_", "-") for name in PullConfig.model_fields}
    assert set(printed["properties"]) == names
    assert all(one["description"] for one in printed["properties"].values())


def test_editors_find_the_schema_of_the_example() -> None:
    first = EXAMPLE.read_text(encoding="utf-8").splitlines()[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert (EXAMPLE.parent / named).resolve() == ROOT / "docs/schemas/pull.json"


def test_the_example_is_valid_and_loads() -> None:
    document = yaml.safe_load(EXAMPLE.read_bytes())
    schema = PullConfig.model_json_schema(by_alias=True)
    jsonschema.validate(document, schema)
    for wrong in ({"jobs": 0}, {"nothing": 1}, {"include-module": 1}, {"since-version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, **wrong}, schema)
    config = PullConfig.load(EXAMPLE, {})
    selection, warnings = config.selection()
    assert warnings == ()
    assert selection.modules is not None
    assert selection.modules.names == tuple(
        sorted(one.partition("@")[0] for one in document["include-module"])
    )
    assert selection.platforms == (Platform("linux", "amd64"),)
    assert selection.packages is None
    assert config.tree().edition == "ee"


# -- contradictions --------------------------------------------------------------------------------

PROXY: dict[str, Any] = {"proxy_registry": True}
CONFLICTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    (
        {"include_module": ("a",), "exclude_module": ("b",)},
        ("--include-module and --exclude-module exclude each other", "keep one"),
    ),
    (
        {"include_package": ("a",), "exclude_package": ("b",)},
        ("--include-package and --exclude-package exclude each other", "keep one"),
    ),
    (
        {"include_platform": ">=1.68", "deckhouse_tag": "stable"},
        ("--deckhouse-tag and --include-platform contradict each other", "keep one"),
    ),
    (
        {"include_platform": ">=1.68", "since_version": "1.68"},
        ("--include-platform and --since-version contradict each other", "keep one"),
    ),
    (
        {"deckhouse_tag": "stable", "since_version": "1.68"},
        ("--deckhouse-tag and --since-version contradict each other", "keep one"),
    ),
    (
        {"deckhouse_tag": "stable", "no_platform": True},
        ("--no-platform", "--deckhouse-tag", "drop one"),
    ),
    (
        {"only_extra_images": True, "include_plugin": ("a",)},
        ("--only-extra-images takes no plugins", "--include-plugin contradict", "drop one"),
    ),
    (
        {"no_plugins": True, "include_plugin": ("a",)},
        ("--no-plugins and --include-plugin", "drop one"),
    ),
    (
        {**PROXY, "deckhouse_tag": "stable", "no_modules": True},
        ("--proxy-registry and --deckhouse-tag exclude each other", "--include-platform"),
    ),
    (
        {**PROXY, "since_version": "1.68", "no_modules": True},
        ("--proxy-registry and --since-version exclude each other", "--include-platform"),
    ),
    ({**PROXY, "no_modules": True}, ("--include-platform", "or add --no-platform")),
    (
        {**PROXY, "no_platform": True},
        ("cannot list modules", "--include-module 'name@", "or add --no-modules"),
    ),
    (
        {**PROXY, "no_platform": True, "include_module": ("a@>=1", "b")},
        ("cannot list modules", "--include-module 'name@"),
    ),
    (
        {**PROXY, "no_platform": True, "exclude_module": ("a",)},
        ("cannot list modules", "or add --no-modules"),
    ),
    (
        {**PROXY, "no_platform": True, "include_module": ("a@=v1",), "include_package": ("b",)},
        ("cannot list packages", "--include-package 'name@"),
    ),
    (
        {**PROXY, "no_platform": True, "no_modules": True, "include_plugin": ("a@>=1",)},
        ("cannot list plugin versions", "--include-plugin name@=v1.2.3"),
    ),
    (
        {**PROXY, "no_platform": True, "no_modules": True},
        ("--proxy-registry has nothing to look for",),
    ),
    (
        {**PROXY, "no_platform": True, "only_extra_images": True},
        ("name those whose extra images to take", "--include-module", "--only-extra-images"),
    ),
    ({"include_module": ("a@",)}, ("constraint is missing after '@'", "'a@>=1.0.0'")),
    ({"include_module": ("@=v1",)}, ("names nothing", "name@version")),
    ({"include_module": ("A",)}, ("is not a name", "lower-case")),
    ({"include_package": ("a@!=1.2",)}, ("--include-package 'a@!=1.2'", "write =TAG")),
    ({"include_package": ("a@=>1.2",)}, ("no registry can hold", "'>=1.2'")),
    ({"include_platform": ""}, ("has no version constraint", "'>=1.64'")),
    ({"include_platform": "./bundle"}, ("is a path, not a version",)),
    ({"include_platform": "--dry-run"}, ("is another flag", "unless they are quoted", "'>=1.64'")),
    ({"deckhouse_tag": "a b"}, ("--deckhouse-tag 'a b' is not a tag",)),
    ({"since_version": "new"}, ("--since-version 'new' is not a version",)),
    ({"platform": ("linux",)}, ("--platform 'linux'", "os/architecture")),
]


@pytest.mark.parametrize(
    ("flags", "words"), CONFLICTS, ids=[" ".join(map(str, one)) for one, _ in CONFLICTS]
)
def test_contradictions_are_told_with_what_to_do(
    flags: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        PullConfig.load(None, flags).selection()
    for word in words:
        assert word in str(caught.value)


def test_a_contradiction_is_told_before_any_request() -> None:
    call_mirror(
        *("pull", "never-written", "--source", "registry.invalid/deckhouse/ee"),
        *("--include-platform", ">=1.68", "--deckhouse-tag", "stable"),
    ).failed(2, "contradict each other")


GIVEN: dict[str, Any] = {
    "since_version": "1.68",
    "include_platform": ">=1.68",
    "deckhouse_tag": "stable",
    "ignore_suspend": True,
    "no_platform": True,
    "installer_tag": "latest",
    "no_installer": True,
    "no_security_db": True,
    "include_module": ("a",),
    "exclude_module": ("b",),
    "no_modules": True,
    "include_package": ("c",),
    "exclude_package": ("d",),
    "no_packages": True,
    "include_plugin": ("e",),
    "no_plugins": True,
    "only_extra_images": True,
    "skip_vex_images": True,
    "no_signatures": True,
    "platform": ("linux/amd64",),
    "foreign_layers": "leave-out",
    "sparse_indexes": "carry",
}
"""Every setting that says what is taken, as a flag gives it."""

CONTRADICTIONS = {
    *map(
        frozenset, itertools.combinations(("since_version", "include_platform", "deckhouse_tag"), 2)
    ),
    frozenset({"no_platform", "since_version"}),
    frozenset({"no_platform", "include_platform"}),
    frozenset({"no_platform", "deckhouse_tag"}),
    frozenset({"no_installer", "installer_tag"}),
    frozenset({"include_module", "exclude_module"}),
    frozenset({"include_package", "exclude_package"}),
    frozenset({"no_modules", "include_module"}),
    frozenset({"no_packages", "include_package"}),
    frozenset({"no_plugins", "include_plugin"}),
    frozenset({"only_extra_images", "include_plugin"}),
}
"""The pairs of them of which one takes back what the other asks for."""


def test_of_all_pairs_of_settings_exactly_the_contradictions_are_refused() -> None:
    refusals: dict[frozenset[str], str] = {}
    for pair in itertools.combinations(GIVEN, 2):
        try:
            PullConfig.load(None, {name: GIVEN[name] for name in pair}).selection()
        except InputError as err:
            refusals[frozenset(pair)] = str(err)
    assert set(refusals) == CONTRADICTIONS
    for refused_pair, message in refusals.items():
        assert re.search("(contradict|exclude) each other.*(drop|keep) one of them", message)
        assert all(f"--{name.replace('_', '-')}" in message for name in refused_pair)


def test_every_setting_that_says_what_is_taken_is_in_the_table_of_pairs() -> None:
    assert set(PullConfig.model_fields) - set(GIVEN) == {
        *("source", "modules_path_suffix", "insecure", "tls_skip_verify", "ca", "jobs"),
        *("limit_rate", "images_bundle_chunk_size", "compress", "gost_digest", "dedupe"),
        *("retry_for", "trust_host", "cert", "cert_key", "with_tool", "tool"),
        "proxy_registry",  # which needs others: see the cases above
    }


@pytest.mark.parametrize(
    "flags",
    [
        {"include_platform": ">=1.68 <1.70", "no_modules": True},
        {"no_platform": True, "include_module": ("a@~1.2", "b@=v1")},
        {"no_platform": True, "no_modules": True, "include_plugin": ("a@=v1.0.0",)},
        {"no_platform": True, "only_extra_images": True, "include_module": ("a",)},
        {"no_platform": True, "only_extra_images": True, "include_package": ("a",)},
    ],
)
def test_what_a_source_without_lists_needs_is_enough(flags: dict[str, Any]) -> None:
    selection, _ = PullConfig.load(None, {**PROXY, **flags}).selection()
    assert selection.probing


def test_an_exact_release_is_a_pinned_one() -> None:
    selection, _ = PullConfig.load(None, {"include_platform": "=pr1+stable"}).selection()
    assert selection.platform is not None
    assert selection.platform.tag == "pr1"
    assert selection.platform.constraint is None


def test_extra_images_only_brings_modules_and_packages_back() -> None:
    flags = {"only_extra_images": True, "no_modules": True, "no_packages": True}
    selection, _ = PullConfig.load(None, flags).selection()
    assert selection.modules is not None
    assert selection.packages is not None
    assert selection.plugins is None


# -- what the seal says ----------------------------------------------------------------------------


def test_the_seal_says_what_was_asked_for_and_not_how_it_was_reached(
    embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    source = serve(TINY, embedded_registry)
    config = settings_file(
        tmp_path,
        f"source: {source.root}\ninsecure: true\njobs: 3\nno-packages: true\n"
        "include-module: [console]\n",
    )
    authority = tmp_path / "authority.pem"
    folder = tmp_path / "bundle"
    secrets = ("tester", "s3cret-word")
    call_mirror(
        *("pull", folder, "--config", config, "--deckhouse-tag", "stable", "--tmp-dir", tmp_path),
        *("--source-login", secrets[0], "--source-password", secrets[1]),
    ).succeeded()
    text = (folder / "inventory.json").read_text()
    selection = json.loads(text)["selection"]
    assert selection == {
        "source": source.root,
        "deckhouse-tag": "stable",
        "include-module": ["console"],
        "no-packages": True,
    }
    for word in (*secrets, str(tmp_path), "insecure", "mirror.yaml"):
        assert word not in text
    document = PullConfig.load(
        None, {"ca": authority, "tls_skip_verify": True}
    ).selection_document()
    assert document == {}
    # What was asked for can be asked for again.
    again = settings_file(tmp_path, yaml.safe_dump(selection))
    call_mirror("pull", tmp_path / "again", "--config", again, "--insecure").succeeded()
    assert (tmp_path / "again" / "inventory.json").read_text() == text


# -- what a delta would save -----------------------------------------------------------------------


def test_a_dry_run_against_a_base_tells_the_bytes_that_are_saved(
    embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    source = serve(SMALL, embedded_registry)
    base = tmp_path / "base"
    run = ("--source", source.root, "--insecure")
    small = ("--deckhouse-tag", "stable", "--no-modules", "--no-packages")
    call_mirror("pull", base, *run, *small).succeeded()
    embedded_registry.requests.clear()

    def planned(*flags: str | Path) -> dict[str, Any]:
        document: dict[str, Any] = (
            call_mirror("pull", tmp_path / "new", *run, "--dry-run", "--json", *flags)
            .succeeded()
            .document
        )
        return document

    held = blobs(json.loads((base / "inventory.json").read_bytes()))
    everything = planned("--base", base)
    by_file = planned("--base", base / "inventory.json")
    assert by_file["delta"] == everything["delta"]
    call_mirror("pull", tmp_path / "all", *run).succeeded()
    wanted = blobs(json.loads((tmp_path / "all" / "inventory.json").read_bytes()))
    common = held.keys() & wanted.keys()
    assert everything["delta"]["saved"] == sum(wanted[digest] for digest in common) > 0
    assert everything["fetch"] + everything["delta"]["saved"] == sum(wanted.values())
    same = planned("--base", base, *small)
    assert (same["delta"]["saved"], same["fetch"]) == (planned(*small)["fetch"], 0)
    assert same["delta"]["base"] == same["inventory"]
    assert "delta" not in planned()
    assert everything["bytes"] < planned()["bytes"]
    text = call_mirror("pull", tmp_path / "new", *run, "--dry-run", "--base", base).succeeded()
    assert "the base saves" in text.stdout
    assert f"leaves {everything['delta']['manifests']} manifests" in text.stdout
    assert not (tmp_path / "new").exists()


def blobs(seal: Mapping[str, Any]) -> dict[str, int]:
    """Every blob of a bundle with its size."""
    return {
        digest: size
        for archive in seal["archives"].values()
        for content in archive["repositories"].values()
        for digest, size in content["blobs"].items()
    }


def test_a_base_is_a_bundle_or_its_inventory(tmp_path: Path) -> None:
    wrong = settings_file(tmp_path, "source: x\n")
    call_mirror("pull", tmp_path / "b", "--dry-run", "--base", wrong).failed(
        2, str(wrong), "neither a bundle's folder nor an inventory"
    )
    call_mirror("pull", tmp_path / "b", "--base", tmp_path / "nowhere").failed(
        2, str(tmp_path / "nowhere"), "no file or folder of that name", "not a registry"
    )


@pytest.mark.parametrize(
    "text",
    [
        *("images-bundle-chunk-size: true", "images-bundle-chunk-size: 4_7"),
        *("jobs: true", "jobs: 1_0", "jobs: 2.0"),
    ],
)
def test_a_slip_of_the_key_is_not_taken_for_a_number(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        PullConfig.load(settings_file(tmp_path, text + "\n"), {})
