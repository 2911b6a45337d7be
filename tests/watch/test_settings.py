"""The settings of `mirror sync --watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.documents import seconds
from mirror.errors import InputError
from mirror.registry import ClientCertificate
from mirror.sync.content import AS_USUAL, ContentRules, ForeignLayers, SparseIndexes
from mirror.watch.settings import WatchSettings

THREE: dict[str, Any] = {
    "root": "system/deckhouse",
    "leader": "a",
    "registries": {name: {"address": f"10.0.0.{n}:5001"} for n, name in enumerate("abc", 1)},
}
MIRRORER: dict[str, Any] = {
    "ca": "/pki/ca.crt",
    "users": {
        "puller": {"name": "mirror-puller", "password": "pull-secret"},
        "pusher": {"name": "mirror-pusher", "password": "push-secret"},
    },
    "local": "10.0.0.1:5001",
    "remote": ["10.0.0.2:5001", "10.0.0.3:5001"],
}


def load(tmp_path: Path, document: Any) -> WatchSettings:
    """What is read from a file that holds `document`."""
    path = tmp_path / "watch.yaml"
    path.write_text(yaml.safe_dump(document))
    return WatchSettings.load(path)


def complaint(tmp_path: Path, document: Any) -> str:
    """The message for a file that holds `document`."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, document)
    return str(caught.value)


def test_all_but_the_leader_follow_it(tmp_path: Path) -> None:
    settings = load(tmp_path, THREE)
    assert settings.followers == ("b", "c")
    assert str(settings.repository("b")) == "10.0.0.2:5001/system/deckhouse"


def test_with_a_registry_of_its_own_the_daemon_brings_up_only_that(tmp_path: Path) -> None:
    assert load(tmp_path, {**THREE, "this": "c"}).followers == ("c",)
    assert load(tmp_path, {**THREE, "this": "a"}).followers == ("b", "c")
    assert load(tmp_path, {**THREE, "leader": "auto", "this": "a"}).followers == ("a",)


def test_an_address_may_have_a_path_of_its_own(tmp_path: Path) -> None:
    registries = {**THREE["registries"], "a": {"address": "nexus.corp:8443/dkp/ee"}}
    settings = load(tmp_path, {**THREE, "registries": registries})
    assert str(settings.repository("a")) == "nexus.corp:8443/dkp/ee"


def test_the_mirrorers_configuration_serves_unchanged(tmp_path: Path) -> None:
    settings = load(tmp_path, MIRRORER)
    assert (settings.leader, settings.this, settings.followers) == ("auto", "local", ("local",))
    assert (settings.interval, settings.jobs) == (10, 3)
    assert str(settings.repository("local")) == "10.0.0.1:5001/system/deckhouse"
    own, peer = settings.registries["local"], settings.registries["10.0.0.2:5001"]
    assert (own.login, own.secret(), own.ca) == ("mirror-pusher", "push-secret", "/pki/ca.crt")
    assert (peer.login, peer.secret(), peer.ca) == ("mirror-puller", "pull-secret", "/pki/ca.crt")


def test_the_mirrorers_pace_is_kept_and_our_own_keys_may_stand_beside_it(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        {**MIRRORER, "sleep": 25, "parallelizm": 7, "storage": "/data", "listen": "0.0.0.0:5003"},
    )
    assert (settings.interval, settings.jobs) == (25, 7)
    assert settings.registries["local"].storage == Path("/data")
    assert settings.listener() == ("0.0.0.0", 5003)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parallelizm": -1}, "jobs: must be 1 or more"),
        ({"sleep": -5}, "interval: must be more than 0"),
        ({"remote": []}, "there is no peer to replicate from"),
        ({"remote": "10.0.0.2:5001"}, "remote: a list of the peers' addresses is missing"),
        ({"local": ""}, "local: the address of the own registry is missing"),
        ({"users": {"pusher": {"name": "x"}}}, "users.pusher: name and password are needed"),
        ({"users": {"pusher": {"nam": "x"}}}, "users.pusher.nam: unknown setting"),
        ({"registries": {}}, "registries and local exclude each other"),
        ({"unknown": 1}, "unknown: unknown key"),
        ({"intervall": 1}, "intervall: unknown key; did you mean interval?"),
    ],
)
def test_what_the_mirrorer_would_have_passed_over_is_told(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    assert words in complaint(tmp_path, {**MIRRORER, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"leader": "d"}, "leader: 'd' is not one of the registries (a, b, c)"),
        ({"this": "d"}, "this: 'd' is not one of the registries"),
        ({"replicas": ["b", "x"]}, "replicas: 'x' is not one of the registries"),
        ({"replicas": ["a"]}, "a is the leader, which follows nobody"),
        ({"interval": "10 minutes"}, "'10 minutes' is not a duration; write 30s, 5m, 1h30m or 2d"),
        ({"interval": ""}, "'' is not a duration"),
        ({"interval": True}, "a duration is needed"),
        ({"interval": 0}, "interval: must be more than 0"),
        ({"jitter": 0.9}, "jitter: must be 0.5 or less"),
        ({"listen": "5003"}, "listen: '5003' is not host:port"),
        ({"root": "Not A Path"}, "registries.a.address:"),
        ({"registries": {"a": {"address": "a.example"}}}, "registries:"),
        (
            {"registries": {"a": {"adress": "a:5001"}, "b": {"address": "b:5001"}}},
            "registries.a.adress: unknown key; did you mean address?",
        ),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    assert words in complaint(tmp_path, {**THREE, **change})


def test_a_login_goes_with_one_password_or_its_file(tmp_path: Path) -> None:
    def problem(**account: str) -> str:
        registries = {**THREE["registries"], "b": {"address": "10.0.0.2:5001", **account}}
        return complaint(tmp_path, {**THREE, "registries": registries})

    assert "a login goes with a password or password-file" in problem(login="rw")
    assert "a login goes with a password or password-file" in problem(password="geheim")
    both = problem(login="rw", password="geheim", **{"password-file": "/p"})
    assert "password and password-file exclude each other" in both
    assert "geheim" not in both


def test_a_registry_has_a_certificate_and_hosts_to_trust_of_its_own(tmp_path: Path) -> None:
    more = {"cert": "/pki/c.crt", "cert-key": "/pki/c.key", "trusted-hosts": ["auth.lan"]}
    registries = {**THREE["registries"], "a": {"address": "10.0.0.1:5001", **more}}
    settings = load(tmp_path, {**THREE, "registries": registries})
    options = settings.registries["a"].connection()
    assert options.certificate == ClientCertificate(Path("/pki/c.crt"), Path("/pki/c.key"))
    assert options.trusted_hosts == {"auth.lan"}
    other = settings.registries["b"].connection()
    assert (other.certificate, other.trusted_hosts) == (None, frozenset())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"address": "https://10.0.0.1/x", "insecure": True}, "insecure is plain HTTP, and the"),
        ({"address": "10.0.0.1:5001", "cert-key": "/k"}, "cert-key goes with cert"),
    ],
)
def test_settings_of_a_registry_that_contradict_each_other_are_refused(
    wrong: dict[str, Any], told: str, tmp_path: Path
) -> None:
    assert told in complaint(tmp_path, {**THREE, "registries": {**THREE["registries"], "a": wrong}})


def test_a_password_is_read_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("geheim\n")
    account = {"login": "rw", "password-file": str(file)}
    registries = {**THREE["registries"], "b": {"address": "10.0.0.2:5001", **account}}
    settings = load(tmp_path, {**THREE, "registries": registries})
    assert settings.registries["b"].secret() == "geheim"
    file.unlink()
    with pytest.raises(InputError, match="cannot read the password file"):
        settings.registries["b"].secret()


def test_no_password_is_ever_shown(tmp_path: Path) -> None:
    settings = load(tmp_path, MIRRORER)
    for text in (repr(settings), str(settings), settings.model_dump_json(), str(vars(settings))):
        assert "push-secret" not in text
        assert "pull-secret" not in text
    wrong = {**MIRRORER, "users": {"pusher": {"name": "x", "password": ["push-secret"]}}}
    assert "push-secret" not in complaint(tmp_path, wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("1h30m", 5400), ("2d", 172800), ("0.5s", 0.5), (7, 7), ("1d1h1m1s", 90061)],
)
def test_durations_are_written_as_people_write_them(text: Any, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(("written", "rate"), [("20MB/s", 20e6), (1000, 1000.0)])
def test_a_rate_is_a_text_or_bytes_a_second(tmp_path: Path, written: object, rate: float) -> None:
    assert load(tmp_path, {**THREE, "limit-rate": written}).limit_rate == rate
    assert load(tmp_path, THREE).limit_rate is None


def test_what_need_not_be_whole_is_said_as_for_a_sync(tmp_path: Path) -> None:
    settings = load(tmp_path, {**THREE, "foreign-layers": "leave-out", "sparse-indexes": "carry"})
    assert settings.rules == ContentRules(ForeignLayers.LEAVE_OUT, SparseIndexes.CARRY)
    assert load(tmp_path, THREE).rules == AS_USUAL
    told = complaint(tmp_path, {**THREE, "foreign-layers": "fetch"})
    assert "foreign-layers" in told
    assert "'carry' or 'leave-out'" in told


def test_patience_with_a_registry_is_a_duration(tmp_path: Path) -> None:
    assert load(tmp_path, {**THREE, "retry-for": "5m"}).retry_for == 300
    assert load(tmp_path, {**THREE, "retry-for": 0}).retry_for == 0
    assert load(tmp_path, THREE).retry_for is None
    assert "'long' is not a duration" in complaint(tmp_path, {**THREE, "retry-for": "long"})


def test_what_is_no_rate_is_named(tmp_path: Path) -> None:
    message = complaint(tmp_path, {**THREE, "limit-rate": "fast"})
    assert "limit-rate" in message
    assert "'fast' is not a rate; write bytes a second, such as 20MB/s" in message


def test_a_key_that_is_mistyped_is_answered_with_the_nearest(tmp_path: Path) -> None:
    registries = {"a": {"adress": "a:5001/x"}, "b": {"address": "b:5001/x"}}
    told = complaint(tmp_path, {"registries": registries})
    assert "registries.a.adress: unknown key; did you mean address?" in told


def test_the_token_of_notifications_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("between-us\n")
    assert load(tmp_path, {**THREE, "notify-token-file": str(file)}).token() == "between-us"
    assert load(tmp_path, {**THREE, "notify-token": "spoken"}).token() == "spoken"
    assert load(tmp_path, THREE).token() is None
    both = {**THREE, "notify-token": "spoken", "notify-token-file": str(file)}
    assert "notify-token and notify-token-file exclude each other" in complaint(tmp_path, both)
    file.unlink()
    settings = load(tmp_path, {**THREE, "notify-token-file": str(file)})
    with pytest.raises(InputError, match=r"cannot read the token file .*token"):
        settings.token()
