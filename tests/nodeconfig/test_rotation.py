"""Authority, token keys and passwords change in steps, each of which goes with its neighbours."""

from __future__ import annotations

import base64
import datetime
import ipaddress
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from mirror.controller import RotationTurn, next_turn
from mirror.errors import RenderingError
from mirror.modes import ModeKind, RegistryUser
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node, load_access
from mirror.nodeconfig.render import access_of, render, rotation_outcome
from mirror.nodeconfig.service_secrets import (
    Rotated,
    RotationPhase,
    ServiceSecrets,
    advance_rotation,
    begin_rotation,
    prepare_secrets,
    read_secrets,
    renewed,
    rotation_steps,
    write_secrets,
)
from mirror.nodeconfig.tree import PKI_CONFIG, SERVICE_CONFIG
from tests.support.mode_samples import node
from tests.support.running_cluster import LOCAL

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
MASTERS = (Node("master-0", "10.0.0.1"), Node("master-1", "10.0.0.2"))
SUBSETS = [one for size in (1, 2, 3) for one in combinations(Rotated, size)]


pytestmark = pytest.mark.usefixtures("quick_keys")


@pytest.fixture
def held(quick_keys: None) -> ServiceSecrets:
    return prepare_secrets(None, MASTERS, NOW)


def walk(held: ServiceSecrets, what: Sequence[Rotated]) -> list[ServiceSecrets]:
    """What is held before, and after each step."""
    walked = [held, begin_rotation(held, what, NOW)]
    for _ in range(2):
        walked.append(advance_rotation(walked[-1], MASTERS, NOW + len(walked) * HOUR))
    return walked


def assert_go_together(one: ServiceSecrets, other: ServiceSecrets) -> None:
    """A master of either and a client of either: connection, token and login."""
    for server in (one, other):
        for client in (one, other):
            for master in MASTERS:
                for pair in (
                    server.nodes[master.name].auth,
                    server.nodes[master.name].distribution,
                ):
                    store = Store(pki.parse_certificates(client.trusted, "trusted"))
                    address = x509.IPAddress(ipaddress.ip_address(master.address))
                    verifier = PolicyBuilder().store(store).time(NOW + 9 * HOUR)
                    verifier.build_server_verifier(address).verify(pair.parsed(), [])
            assert client.token.certificate in server.tokens.trusted  # its server signed with it
            for user in RegistryUser:
                accepted = [account.account for account in server.accepted(user)]
                assert client.users[user].account in accepted


@pytest.mark.parametrize("what", SUBSETS)
def test_whoever_is_a_step_behind_works_with_whoever_is_ahead(
    held: ServiceSecrets, what: Sequence[Rotated]
) -> None:
    walked = walk(held, what)
    for before, after in pairwise(walked):
        assert_go_together(before, after)
        assert before != after
    last = walked[-1]
    assert last.rotation is None
    assert prepare_secrets(last, MASTERS, NOW + 9 * HOUR) == last


@pytest.mark.parametrize("what", SUBSETS)
def test_in_the_end_the_old_is_worth_nothing_and_the_rest_is_as_it_was(
    held: ServiceSecrets, what: Sequence[Rotated]
) -> None:
    last = walk(held, what)[-1]
    authority = Rotated.AUTHORITY in what
    token = authority or Rotated.TOKEN in what
    assert (held.authority.certificate in last.trusted) is not authority
    assert (last.nodes == held.nodes) is not authority
    assert (held.token.certificate in last.tokens.trusted) is not token
    assert (last.tokens.successor, last.tokens.former, last.successor) == (None, (), None)
    for user in RegistryUser:
        (only,) = last.accepted(user)
        assert (only == held.users[user]) is (Rotated.USERS not in what)
    assert last.http_secret == held.http_secret


def test_a_user_has_two_names_in_turn(held: ServiceSecrets) -> None:
    once = walk(held, [Rotated.USERS])
    assert [one.users[RegistryUser.RO].account.name for one in once] == ["ro", "ro", "ro-2", "ro-2"]
    again = walk(once[-1], [Rotated.USERS])
    assert [one.users[RegistryUser.RO].account.name for one in again][-1] == "ro"
    assert again[-1].users[RegistryUser.RO].account != held.users[RegistryUser.RO].account


def test_rendering_again_takes_no_step(held: ServiceSecrets) -> None:
    for one in walk(held, [*Rotated]):
        assert prepare_secrets(one, MASTERS, NOW + 4 * HOUR) == one
    assert advance_rotation(held, MASTERS, NOW) == held


def test_the_secrets_file_keeps_every_step(held: ServiceSecrets, tmp_path: Path) -> None:
    for one in walk(held, [*Rotated]):
        write_secrets(one, tmp_path / "secrets.json")
        assert read_secrets(tmp_path / "secrets.json") == one


def test_a_second_rotation_waits_for_the_first(held: ServiceSecrets) -> None:
    begun = begin_rotation(held, [Rotated.USERS], NOW)
    with pytest.raises(RenderingError) as caught:
        begin_rotation(begun, [Rotated.TOKEN], NOW)
    assert str(caught.value) == (
        "a rotation of users is under way and has come to trusted; complete it first: leave "
        "--rotate out, and render with --facts FILE when the nodes have applied its files"
    )
    with pytest.raises(ValueError, match="nothing is to be rotated"):
        begin_rotation(held, [], NOW)


def test_the_walk_is_told(held: ServiceSecrets) -> None:
    steps = rotation_steps([Rotated.USERS, Rotated.AUTHORITY])
    assert [step.phase for step in steps] == [RotationPhase.TRUSTED, RotationPhase.USED, None]
    assert [step.action for step in steps] == [
        "trust what is new beside the old: authority, token pair, passwords",
        "use what is new, and trust the old: authority, token pair, passwords",
        "trust the old no more: authority, token pair, passwords",
    ]
    begun = begin_rotation(held, [Rotated.TOKEN, Rotated.USERS], NOW)
    assert renewed(held, begun) == (
        "next token pair (until 2036-02-27), known from now on",
        *(f"login {name}-2" for name in ("ro", "rw", "mirror-puller", "mirror-pusher")),
    )


def test_it_is_told_when_an_authority_signs_and_when_it_is_gone(held: ServiceSecrets) -> None:
    walked = walk(held, [Rotated.AUTHORITY])
    told = [renewed(before, after)[0] for before, after in pairwise(walked)]
    assert told == [
        "next authority (until 2036-02-27), trusted from now on; it signs in the next step",
        "authority (until 2036-02-27) signs from now on; the former one stays trusted",
        "1 former authorities are not trusted any more",
    ]


def test_a_step_is_applied_when_every_node_has_its_version(held: ServiceSecrets) -> None:
    made = render(LOCAL, MASTERS, held)
    first, second = (node(name, version=made.version) for name in ("master-0", "master-1"))
    behind = rotation_outcome([first, node("master-1", version="b" * 64)], made)
    assert not behind.ready
    assert 'master-1: "bbbbbbbb' in behind.message
    assert rotation_outcome([first, second], made).ready
    for facts, unknown in (([first], "master-1"), (None, "master-0, master-1")):
        outcome = rotation_outcome(facts, made)
        assert (
            outcome.message == f"nobody has said which version these nodes have applied: {unknown}"
        )
        assert not outcome.ready


# -- what is rendered of it ------------------------------------------------------------------------


def rendered(kept: ServiceSecrets) -> dict[str, Any]:
    """Of a master's files what a rotation touches."""
    files = render(LOCAL, MASTERS, kept).nodes["master-0"]
    base = SERVICE_CONFIG
    auth = yaml.safe_load(files[base / "auth/config.yaml"].content)
    return {
        "users": [*auth["users"]],
        "acl": [(line["match"]["account"], *line["actions"]) for line in auth["acl"]],
        "token": files[PKI_CONFIG / "token.crt"].content.decode(),
        "ca": files[PKI_CONFIG / "ca.crt"].content.decode(),
        "replication": yaml.safe_load(files[base / "mirrorer/config.yaml"].content)["users"],
    }


def test_both_are_let_in_and_the_registry_knows_both_keys(held: ServiceSecrets) -> None:
    before, trusted, used, done = map(rendered, walk(held, [*Rotated]))
    names = ["ro", "rw", "mirror-puller", "mirror-pusher"]
    both = [name for one in names for name in (one, f"{one}-2")]
    assert before["users"] == names
    assert sorted(trusted["users"]) == sorted(used["users"]) == sorted(both)
    assert done["users"] == [f"{name}-2" for name in names]
    assert {("ro", "pull"), ("ro-2", "pull"), ("rw-2", "*")} <= {*trusted["acl"]}
    assert [one["replication"]["puller"]["name"] for one in (before, trusted, used, done)] == [
        *("mirror-puller", "mirror-puller", "mirror-puller-2", "mirror-puller-2")
    ]
    for key in ("ca", "token"):
        old, new = before[key], done[key]
        assert trusted[key] == old + new  # who reads the first alone reads the one that signs
        assert used[key] == new + old
    versions = {render(LOCAL, MASTERS, one).version for one in walk(held, [*Rotated])}
    assert len(versions) == 4


def test_the_masters_agent_which_knows_one_login_of_each_user_lets_both_in(
    held: ServiceSecrets,
) -> None:
    known = []
    for one in walk(held, [Rotated.USERS]):
        made = render(LOCAL, MASTERS, one)
        (secret,) = (
            found
            for found in made.objects
            if found["metadata"]["name"] == "registry-node-config-master-0"
        )
        config = yaml.safe_load(base64.b64decode(secret["data"]["config"]))
        places = {"user_ro": config["user_ro"], **config["local_mode"]}
        known.append({key: places[f"user_{key}"] for key in ("ro", "rw", "puller", "pusher")})
        lent = "replication by the module's node agent waits"
        assert (lent in " ".join(made.notes)) is bool(one.beside)
    names = [[place["name"] for place in each.values()] for each in known]
    assert names == [
        ["ro", "rw", "mirror-puller", "mirror-pusher"],
        ["ro", "rw", "ro-2", "rw-2"],  # the places of replication may do what readers may, and more
        ["ro-2", "rw-2", "ro", "rw"],
        ["ro-2", "rw-2", "mirror-puller-2", "mirror-pusher-2"],
    ]
    logins = [
        {(place["name"], place["password"]) for place in each.values() if len(place["name"]) < 5}
        for each in known
    ]
    assert logins[0] < logins[1] == logins[2] > logins[3]


def test_passwords_wait_where_caches_would_refuse_one_login_and_the_rest_goes_on(
    held: ServiceSecrets,
) -> None:
    def turn(kept: ServiceSecrets, kind: ModeKind) -> RotationTurn:
        return next_turn(kept, "", kind, MASTERS, NOW, complete=False)

    begun = begin_rotation(held, [Rotated.USERS], NOW)
    waits = turn(begun, ModeKind.PROXY)
    assert waits.kept is begun
    assert waits.refused
    assert turn(begun, ModeKind.DIRECT).kept.rotation is not None
    keys = begin_rotation(held, [Rotated.TOKEN], NOW)
    assert not turn(keys, ModeKind.PROXY).refused


def test_clients_get_the_name_that_is_in_use(held: ServiceSecrets, tmp_path: Path) -> None:
    kept = walk(held, [Rotated.USERS])[-1]
    access = access_of(MASTERS, kept)
    account = access.accounts[RegistryUser.RO]
    assert account.name == "ro-2"
    written = {
        "users": {
            "ro": {"name": "ro-2", "password": account.password.get_secret_value()},
            "rw": "plain",
        }
    }
    (tmp_path / "sites.yaml").write_text(yaml.safe_dump(written))
    read = load_access(tmp_path / "sites.yaml").accounts
    assert read[RegistryUser.RO] == account
    assert read[RegistryUser.RW].name == "rw"
