"""The registry settings: every rule, all findings at once, and no secret shown."""

from __future__ import annotations

import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from mirror.errors import InputError, InvalidSettingsError
from mirror.modes import Mode
from mirror.modes.module_config import IMAGES_REPO_PATTERN
from mirror.modes.settings import CheckMode, ProxySection, RegistrySettings, UpstreamSection
from tests.support.tls import Authority

REPO = "nexus.corp.example:8443/dkp/ee"
SECRET = "hunter2-s3cret"


def direct(**fields: Any) -> dict[str, Any]:
    """A section of Direct mode; None takes a field out."""
    section = {"imagesRepo": REPO, **fields}
    kept = {key: value for key, value in section.items() if value is not None}
    return {"mode": "Direct", "direct": kept}


def proxy(**fields: Any) -> dict[str, Any]:
    return {"mode": "Proxy", "proxy": {"imagesRepo": REPO, **fields}}


def findings(document: Any) -> dict[str, str]:
    """What is wrong with a document, by field."""
    with pytest.raises(InvalidSettingsError) as caught:
        RegistrySettings.load(document)
    assert len(dict(caught.value.findings)) == len(caught.value.findings), "two for one field"
    return dict(caught.value.findings)


# -- what is right ---------------------------------------------------------------------------------


def test_the_examples_of_every_mode_are_read() -> None:
    text = """\
    {mode: Direct, direct: {imagesRepo: nexus.corp.example/dkp/ee, username: u, password: p}}
---
    {mode: Proxy, proxy: {imagesRepo: registry.deckhouse.ru/deckhouse/ee, license: KEY, ttl: 72h}}
---
    {mode: Local}
---
    {mode: Unmanaged, unmanaged: {imagesRepo: "10.0.0.9:5000/dkp", scheme: HTTP, checkMode: Relax}}
---
    {mode: Unmanaged}
    """
    read = [RegistrySettings.load(one) for one in yaml.safe_load_all(text)]
    assert [one.mode.value for one in read] == [
        *("Direct", "Proxy", "Local", "Unmanaged", "Unmanaged"),
    ]
    one, two, three, four, five = (each.upstream for each in read)
    assert one is not None
    assert one.account is not None
    assert (one.host, one.path, one.scheme, one.username) == (
        *("nexus.corp.example", "dkp/ee", "https", "u"),
    )
    assert one.account.password.get_secret_value() == "p"
    assert two is not None
    assert two.account is not None
    assert (two.username, two.account.password.get_secret_value()) == ("license-token", "KEY")
    assert read[1].proxy is not None
    assert read[1].proxy.ttl_s == 72 * 3600
    assert three is None
    assert four is not None
    assert (four.base, four.scheme, four.account) == ("10.0.0.9:5000/dkp", "http", None)
    assert read[3].check_mode is CheckMode.RELAX
    assert five is None
    assert [one.configurable for one in read] == [True, True, True, True, False]
    assert [one.managed for one in read] == [True, True, True, False, False]


def test_a_module_config_is_found_in_a_file_of_many(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        """
apiVersion: deckhouse.io/v1
kind: ClusterConfiguration
---
apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata: {name: global}
spec: {version: 2, settings: {registry: {mode: nonsense}}}
---
# a remark alone
---
apiVersion: deckhouse.io/v1alpha1
kind: ModuleConfig
metadata: {name: deckhouse}
spec:
  version: 1
  enabled: true
  settings: {bundle: Default, registry: {mode: Local}}
"""
    )
    assert RegistrySettings.load(file).mode is Mode.LOCAL
    assert RegistrySettings.load(file.read_text()).mode is Mode.LOCAL


def config(settings: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "deckhouse.io/v1alpha1",
        "kind": "ModuleConfig",
        "metadata": {"name": "deckhouse"},
        "spec": {"version": 1, "settings": settings, **spec},
    }


@pytest.mark.parametrize(
    "document",
    [
        config({"registry": direct()}),
        {"registry": direct()},
        {"registry": direct(), "bundle": "Default"},
        direct(),
        yaml.safe_dump(config({"registry": direct()})),
        yaml.safe_dump({"registry": direct()}),
        yaml.safe_dump(direct()),
    ],
)
def test_a_document_its_settings_and_the_section_say_the_same(document: Any) -> None:
    assert RegistrySettings.load(document) == RegistrySettings.load(direct())


@pytest.mark.parametrize(
    "document",
    ["", "{}", {}, {"registry": {}}, {"registry": None}, config({}), config({"registry": {}})],
)
def test_nothing_said_is_the_deprecated_kind_of_unmanaged(document: Any) -> None:
    settings = RegistrySettings.load(document)
    assert (settings.mode, settings.configurable) == (Mode.UNMANAGED, False)


def test_empty_texts_and_nulls_mean_that_nothing_is_given() -> None:
    same = direct(username="", password="", license="", ca="", checkMode=None)
    same["proxy"] = None
    assert RegistrySettings.load(same) == RegistrySettings.load(direct())


@pytest.mark.parametrize("key", ["checkMode", "ttl", "license", "ca"])
def test_every_empty_text_is_as_good_as_none(key: str) -> None:
    document = {"mode": "Proxy", "proxy": {"imagesRepo": REPO}}
    empty = {"mode": "Proxy", "proxy": {"imagesRepo": REPO, key: ""}}
    assert RegistrySettings.load(empty) == RegistrySettings.load(document)


@pytest.mark.parametrize("key", ["username", "password", "license"])
def test_a_login_with_a_line_break_is_a_finding_that_does_not_quote_it(key: str) -> None:
    given = {"license": ""} if key != "license" else {"username": "", "password": ""}
    said = findings(direct(**{"username": "u", "password": "p", **given, key: "se\ncret"}))
    assert said.keys() == {f"registry.direct.{key}"}
    (message,) = said.values()
    assert message == f"{key.capitalize()} has a line break or another control character in it"


@pytest.mark.parametrize("source", [[1], 1, None])
def test_what_can_hold_no_settings_is_refused(source: Any) -> None:
    with pytest.raises(InvalidSettingsError, match="expected a mapping of fields"):
        RegistrySettings.load(source)


def test_settings_are_frozen() -> None:
    settings = RegistrySettings.load(direct())
    with pytest.raises(ValidationError):
        settings.mode = Mode.LOCAL  # type: ignore[misc]  # mypy refuses it, too
    assert settings.direct is not None
    with pytest.raises(ValidationError):
        settings.direct.username = "other"  # type: ignore[misc]  # likewise


def test_constructors_keep_the_rules_too() -> None:
    section = UpstreamSection(images_repo=REPO, username="u", password=SecretStr("p"))
    assert RegistrySettings(mode=Mode.DIRECT, direct=section).upstream == section.upstream
    with pytest.raises(InvalidSettingsError, match="imagesRepo: does not match"):
        UpstreamSection(images_repo="https://x")
    with pytest.raises(InvalidSettingsError, match="'direct' section must be specified"):
        RegistrySettings(mode=Mode.DIRECT)
    with pytest.raises(InvalidSettingsError, match="ttl"):
        ProxySection(images_repo=REPO, ttl="4m")


# -- every rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Direct", "Proxy"])
def test_a_mode_without_its_section_is_a_finding(mode: str) -> None:
    name = mode.lower()
    said = findings({"mode": mode})[f"registry.{name}"]
    assert said == f"is required: when mode is '{mode}', '{name}' section must be specified"


@pytest.mark.parametrize("mode", ["Direct", "Proxy", "Local", "Unmanaged"])
@pytest.mark.parametrize("section", ["direct", "proxy", "unmanaged"])
def test_a_section_belongs_to_its_own_mode_alone(mode: str, section: str) -> None:
    document: dict[str, Any] = {"mode": mode, section: {"imagesRepo": REPO}}
    if mode in ("Direct", "Proxy"):
        document[mode.lower()] = {"imagesRepo": REPO}
    owner = section.capitalize()
    if owner == mode:
        assert RegistrySettings.load(document).configurable
        return
    said = findings(document)
    assert said.keys() == {f"registry.{section}"}
    assert said[f"registry.{section}"] == (
        f"Section '{section}' must be empty when mode is not '{owner}': when mode is not "
        f"'{owner}', '{section}' section must be omitted"
    )


@pytest.mark.parametrize("mode", ["direct", "", "Managed", 5, ["Direct"], True])
def test_another_mode_is_a_finding(mode: Any) -> None:
    said = findings({"mode": mode})["registry.mode"]
    assert said.startswith("Unknown registry mode: ")
    assert said.endswith("expected Direct, Proxy, Local, Unmanaged")


@pytest.mark.parametrize(
    "repo",
    [
        *("a", "registry.example", "10.0.0.9:5000/dkp", "h:1/x", "h:65535/x", "a-b.c/d_e/F-g.h"),
        *("UPPER.example/Path", "a/..b/c..", "a/.../b"),
    ],
)
def test_an_address_of_images_is_taken(repo: str) -> None:
    assert RegistrySettings.load(direct(imagesRepo=repo)).upstream is not None


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        (None, "Field 'imagesRepo' is required"),
        ("", "Field 'imagesRepo' is required"),
        ("https://h/x", "does not match the regexp pattern"),
        ("h/x/", "does not match the regexp pattern"),
        ("h//x", "does not match the regexp pattern"),
        ("h/x\n", "does not match the regexp pattern"),
        (" h/x", "does not match the regexp pattern"),
        ("h/x y", "does not match the regexp pattern"),
        ("h:/x", "does not match the regexp pattern"),
        ("h:123456/x", "does not match the regexp pattern"),
        ("h:٥/x", "does not match the regexp pattern"),
        ("hö/x", "does not match the regexp pattern"),
        ("h_h/x", "does not match the regexp pattern"),
        ("h/x:tag", "does not match the regexp pattern"),
        ("h/x@sha256", "does not match the regexp pattern"),
        ("u:p@h/x", "does not match the regexp pattern"),
        ("/x", "does not match the regexp pattern"),
        ("h:0/x", "port 0 does not exist"),
        ("h:65536/x", "port 65536 does not exist"),
        ("h:99999/x", "port 99999 does not exist"),
        ("../../etc/x", "a part of the address is . or .."),
        ("h/./x", "a part of the address is . or .."),
        ("h/x/..", "a part of the address is . or .."),
        ("./x", "a part of the address is . or .."),
        (5, "expected a text, found a number"),
        (["h/x"], "expected a text, found a list"),
    ],
)
def test_another_address_of_images_is_a_finding(repo: Any, said: str) -> None:
    assert findings(direct(imagesRepo=repo))["registry.direct.imagesRepo"].startswith(said)


def test_the_pattern_is_shown_as_the_cluster_has_it() -> None:
    assert (
        f"`{IMAGES_REPO_PATTERN}`"
        in findings(direct(imagesRepo="-/"))["registry.direct.imagesRepo"]
    )


@pytest.mark.parametrize("scheme", ["http", "Https", "ftp", ""])
def test_another_scheme_is_a_finding(scheme: str) -> None:
    said = findings(direct(scheme=scheme))["registry.direct.scheme"]
    assert said == f"Invalid scheme {scheme!r}; expected 'HTTP' or 'HTTPS'"


def test_an_authority_makes_no_sense_without_tls(authority: Authority) -> None:
    pem = authority.certificate.read_text()
    said = findings(direct(ca=pem, scheme="HTTP"))
    assert said == {"registry.direct.ca": "CA is not allowed when scheme is 'HTTP'"}
    upstream = RegistrySettings.load(direct(ca=pem)).upstream
    assert upstream is not None
    assert upstream.ca == pem
    assert RegistrySettings.load(direct(ca=pem + pem, scheme="HTTPS")).upstream is not None


def test_an_authority_must_be_certificates(authority: Authority) -> None:
    pem = authority.certificate.read_text()
    cut = pem.replace("-----END CERTIFICATE-----", "")
    broken = pem[:100] + "AAAA" + pem[104:]
    for bad in ("nonsense", cut, broken, pem + cut):
        said = findings(direct(ca=bad))["registry.direct.ca"]
        assert said.startswith("CA cannot be read; expected certificates in PEM form")
    key = authority.issue("key").key.read_text()
    assert "CA holds a private key" in findings(direct(ca=pem + key))["registry.direct.ca"]


def test_name_and_password_go_together() -> None:
    assert findings(direct(username="u")) == {
        "registry.direct.password": "Password is required when username is provided: "
        "'password' is required when 'username' is provided"
    }
    assert findings(direct(password="p")) == {
        "registry.direct.username": "Username is required when password is provided: "
        "'username' is required when 'password' is provided"
    }
    assert "':'" in findings(direct(username="a:b", password="p"))["registry.direct.username"]


@pytest.mark.parametrize(
    "login", [{"username": "u", "password": "p"}, {"username": "u"}, {"password": "p"}]
)
def test_a_license_excludes_another_login(login: dict[str, str]) -> None:
    said = findings(direct(license="KEY", **login))["registry.direct.license"]
    assert said == (
        "License field must be empty when using credentials (username/password): "
        "'license' and 'username'/'password' are mutually exclusive"
    )


def test_another_check_mode_is_a_finding() -> None:
    said = findings(direct(checkMode="relax"))
    assert said == {"registry.direct.checkMode": "unknown registry check mode: relax"}


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        ("5m", 300),
        ("300s", 300),
        ("168h10m5s", 605405),
        ("0h5m", 300),
        ("2562047h", 2562047 * 3600),
    ],
)
def test_a_time_to_live_is_read(ttl: str, seconds: int) -> None:
    settings = RegistrySettings.load(proxy(ttl=ttl))
    assert settings.proxy is not None
    assert settings.proxy.ttl_s == seconds


@pytest.mark.parametrize(
    "ttl",
    [
        *("4m59s", "0s", "1.5h", "7d", "5", "m", "10m5h", "5m5m", "-5m", "5m\n", "٥h", " 5m"),
        *("2562048h", "9" * 5000 + "h"),
    ],
)
def test_another_time_to_live_is_a_finding(ttl: str) -> None:
    said = findings(proxy(ttl=ttl))["registry.proxy.ttl"]
    assert said.startswith(f'invalid ttl format "{ttl[:64]}')
    assert 'must be at least "5m0s"' in said or 'must be at most "2562047h"' in said


def test_an_empty_time_to_live_counts_as_absent() -> None:
    settings = RegistrySettings.load(proxy(ttl=""))
    assert settings.proxy is not None
    assert settings.proxy.ttl_s is None


def test_what_is_no_settings_at_all_is_said_so() -> None:
    wrong: Any = [1]
    with pytest.raises(InvalidSettingsError, match="expected a mapping of fields, found a list"):
        RegistrySettings.load(wrong)


def test_only_a_cache_has_a_time_to_live() -> None:
    said = findings(direct(ttl="1h"))
    assert said.keys() == {"registry.direct.ttl"}
    assert said["registry.direct.ttl"].startswith("unknown field; known are imagesRepo,")


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (direct(imagesrepo="x"), "registry.direct.imagesrepo"),
        (direct(check_mode="Relax"), "registry.direct.check_mode"),
        ({**direct(), "local": {}}, "registry.local"),
        ({**direct(), "legacy": {"imagesRepo": REPO}}, "registry.legacy"),
        ({"Mode": "Local"}, "registry.Mode"),
        ({"regsitry": {"mode": "Local"}}, "registry.regsitry"),
        ({"registry": {"mode": "Local"}, "mode": "Local"}, "registry.registry"),
    ],
)
def test_a_misspelt_field_is_a_finding(document: Any, path: str) -> None:
    assert findings(document)[path].startswith("unknown field; known are ")


@pytest.mark.parametrize("value", [[], "text", 5, True])
def test_a_section_that_is_no_mapping_is_a_finding(value: Any) -> None:
    assert "expected a mapping" in findings({"mode": "Direct", "direct": value})["registry.direct"]
    assert "expected a mapping" in findings({"registry": value})["registry"]


def test_another_version_of_the_settings_is_a_finding() -> None:
    document = config({"registry": direct()}, version=2)
    assert findings(document).keys() == {"spec.version"}


def test_everything_that_is_wrong_is_said_at_once() -> None:
    document = config(
        {
            "registry": {
                "mode": "Proxy",
                "typo": 1,
                "direct": {},
                "proxy": {
                    "imagesRepo": "h//x",
                    "scheme": "http",
                    "ca": "nonsense",
                    "username": "u",
                    "license": "KEY",
                    "checkMode": "None",
                    "ttl": "7d",
                    "insecure": "true",
                },
            }
        },
        version=3,
    )
    assert findings(document).keys() == {
        *("spec.version", "registry.typo", "registry.direct", "registry.direct.imagesRepo"),
        *(
            f"registry.proxy.{name}"
            for name in (
                *("imagesRepo", "scheme", "ca", "password", "license", "checkMode", "ttl"),
                "insecure",
            )
        ),
    }


def test_the_message_names_the_file_and_counts(tmp_path: Path) -> None:
    file = tmp_path / "mc.yaml"
    file.write_text("{mode: Direct, direct: {imagesRepo: h/x, username: u, checkMode: x}}")
    with pytest.raises(InvalidSettingsError) as caught:
        RegistrySettings.load(file)
    title, *lines = str(caught.value).splitlines()
    assert title == f"{file}: the registry settings have 2 mistakes:"
    assert [line.split(":")[0] for line in lines] == [
        "  registry.direct.password",
        "  registry.direct.checkMode",
    ]
    assert caught.value.exit_code == 2


# -- what is no document ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mode: [", "not YAML"),
        ("config.yaml", "to read a file, give its path as a Path"),
        ("- mode: Direct", "expected a ModuleConfig named deckhouse"),
        ("mode: Local\nmode: Direct", r"mode is set twice; keep one \(line 2\)"),
        ("kind: Service\napiVersion: v1", "found Service"),
        ("kind: ModuleConfig\napiVersion: x\nmetadata: {name: other}", "found ModuleConfig"),
        ("\x00", "not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_something_else_is_refused_with_its_reason(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        RegistrySettings.load(text)


def test_two_configurations_are_not_chosen_between() -> None:
    text = yaml.safe_dump_all([config({"registry": direct()})] * 2)
    with pytest.raises(InputError, match="2 documents ModuleConfig; keep one"):
        RegistrySettings.load(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"cannot read {re.escape(str(tmp_path))}"):
        RegistrySettings.load(tmp_path / "none.yaml")


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"username": "u", "password": SECRET}, {"license": SECRET}])
def test_no_secret_shows_in_what_settings_say_of_themselves(fields: dict[str, str]) -> None:
    settings = RegistrySettings.load(direct(**fields))
    upstream = settings.upstream
    assert upstream is not None
    for thing in (settings, settings.direct, upstream, upstream.account):
        assert SECRET not in repr(thing)
        assert SECRET not in str(thing)
        assert SECRET not in f"{thing}"
    assert SECRET not in repr(settings.model_dump())
    assert SECRET not in settings.model_dump_json()
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    "document",
    [
        direct(password=SECRET),
        direct(password={SECRET: SECRET}),
        direct(password=[SECRET], license=[SECRET]),
        direct(username="u:x", password=SECRET, license=SECRET, ca=SECRET),
        direct(imagesRepo=f"u:{SECRET}@h/x"),
        {"mode": "Direct", "direct": SECRET},
        {"mode": "Direct", "direct": {f"password:{SECRET}": None}},
        f"{{mode: Direct, direct: {{imagesRepo: h/x, username: u, password:{SECRET}}}}}",
        f"mode: Direct\ndirect:\n  password: *{SECRET}\n",
        f"mode: Direct\ndirect:\n  password: !{SECRET} x\n",
        f"mode: Direct\ndirect:\n  password: @{SECRET}\n",
        f"mode: Direct\ndirect:\n  password: '{SECRET}\n",
        f"mode: Direct\ndirect:\n  password: {SECRET}: x\n",
        f"mode: Direct\ndirect:\n  password: x\n {SECRET}\n",
        f"{SECRET}",
        f"- {SECRET}",
    ],
)
def test_no_message_repeats_a_secret(document: Any) -> None:
    with pytest.raises(InputError) as caught:
        RegistrySettings.load(document)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__


def test_a_password_that_looks_like_a_date_is_not_quoted() -> None:
    with pytest.raises(InputError) as caught:
        RegistrySettings.load("mode: Direct\ndirect:\n  password: 2024-99-99\n")
    assert "2024" not in str(caught.value)
    assert "(line 3); write it in quotes" in str(caught.value)


def test_a_number_for_a_password_is_a_finding_and_not_shown() -> None:
    said = findings("{mode: Direct, direct: {imagesRepo: h/x, username: u, password: 123456}}")
    assert said == {
        "registry.direct.password": "expected a text, found a number; write the value in quotes"
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*("mode", "direct", "proxy", "unmanaged", "registry", "imagesRepo", "scheme")]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["mode", "direct", "proxy", "registry", "kind", "x"]), JSON))
def test_any_mapping_is_read_or_refused_with_reasons(document: dict[str, Any]) -> None:
    with suppress(InputError):  # anything else is a bug
        assert isinstance(RegistrySettings.load(document), RegistrySettings)
