"""What a push says before it does anything, and what its flags change."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.commands.access import AccessOptions, open_trees
from mirror.events import ignore
from mirror.registry import RegistryClient, RetryPolicy
from mirror.registry.gate import HostState
from mirror.registry.options import BRIEF
from mirror.serve import BasicAuth, User
from mirror.sync import MemoryStore
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry
from tests.support.inventories import put_image
from tests.support.program import call_mirror
from tests.support.release_source import Source
from tests.support.tars import layout_files, tar_of

WRITES = {"POST", "PUT", "PATCH", "DELETE"}


def writes(registry: EmbeddedRegistry) -> list[str]:
    """Requests that change something."""
    return [f"{one.method} {one.path}" for one in registry.requests if one.method in WRITES]


# -- --dry-run -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_push_would_do_and_writes_nothing(
    bundle: Path, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    target = f"{embedded_registry.address}/dkp/ee"
    push = ("push", bundle, target, "--insecure", "--state-dir", tmp_path / "state", "--json")
    planned = call_mirror(*push, "--dry-run").succeeded().document
    assert len(embedded_registry.requests) > 0
    assert writes(embedded_registry) == []
    assert not (tmp_path / "state").exists()
    assert planned["target"] == target
    upload = planned["upload"]
    assert upload.keys() == {"blobs", "bytes", "mounts", "manifests", "tags"}

    shares = planned["uploadByRepository"]
    assert list(shares) == sorted(shares, key=lambda name: name.replace("/", "\x00"))
    assert all(name.startswith("dkp/ee") for name in shares)
    for key in ("blobs", "bytes", "mounts", "manifests"):
        assert upload[key] == sum(share[key] for share in shares.values())
    assert upload["tags"] == sum(len(share["tags"]) for share in shares.values())
    assert "alpha" in shares["dkp/ee/release-channel"]["tags"]
    assert "admissionPolicyEngine/agent" in planned["components"]

    embedded_registry.requests.clear()
    done = call_mirror(*push).succeeded().document["uploaded"]
    assert {key: upload[key] for key in ("blobs", "bytes", "manifests", "tags")} == done
    mounted = embedded_registry.requests.matching("POST", "mount=", 201)
    assert len(mounted) == upload["mounts"]

    again = call_mirror(*push, "--dry-run").succeeded().document
    assert again["upload"] == {"blobs": 0, "bytes": 0, "mounts": 0, "manifests": 0, "tags": 0}
    assert again["uploadByRepository"] == {}
    assert again["components"] == []


def test_a_dry_run_of_a_prune_names_the_components_whose_images_would_go(
    source: Source, bundle: Path, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    target, lesser = f"{embedded_registry.address}/dkp/ee", tmp_path / "lesser"
    older = ("--deckhouse-tag", "v1.69.1", "--no-modules", "--no-packages")
    call_mirror("pull", lesser, "--source", source.root, "--insecure", *older).succeeded()
    for one in (bundle, lesser):
        call_mirror("push", one, target, "--insecure").succeeded()
    prune = ("prune", target, "--keep", lesser, "--insecure")
    planned = call_mirror(*prune, "--dry-run", "--json").succeeded().document
    assert planned["components"] == ["certManager/controller"], "others are in the older one too"
    assert "\n    components: certManager/controller\n" in call_mirror(*prune, "--dry-run").stdout
    call_mirror(*prune, "--yes").succeeded()
    again = call_mirror(*prune, "--dry-run", "--json").succeeded().document
    assert again["components"] == []


def test_a_dry_run_tells_a_person_repository_by_repository(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    target = f"{embedded_registry.address}/dkp/ee"
    push = ("push", bundle, target, "--insecure")
    text = call_mirror(*push, "--dry-run").succeeded().stdout
    assert text.startswith(f"This would be pushed to {target}\n")
    assert "  dkp/ee/release-channel: " in text
    assert "nothing was written" in text
    assert "To mount" in text
    assert "\n  Components  admissionPolicyEngine/agent, " in text
    call_mirror(*push).succeeded()
    assert "nothing: all of it is there" in call_mirror(*push, "--dry-run").succeeded().stdout


def test_a_dry_run_needs_no_right_to_write(
    bundle: Path, make_embedded_registry: MakeEmbeddedRegistry
) -> None:
    reader = User("right", frozenset({"pull"}))
    registry = make_embedded_registry(auth=BasicAuth({"ci": reader}))
    push = ("push", bundle, f"{registry.address}/dkp", "--insecure", "-u", "ci", "-p", "right")
    call_mirror(*push, "--dry-run").succeeded()
    registry.requests.clear()
    run = call_mirror(*push).failed(6, "dkp", "may not be written to, so nothing was sent")
    assert run.stdout == ""
    assert set(writes(registry)) == {
        one for one in writes(registry) if one.startswith("POST") and one.endswith("/uploads/")
    }


# -- --no-access-check -----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_the_check_of_access_can_be_left_out(
    bundle: Path, embedded_registry: EmbeddedRegistry, by: str
) -> None:
    target = f"{embedded_registry.address}/dkp"
    flags = ("--no-access-check",) if by == "flag" else ()
    env = {} if by == "flag" else {"MIRROR_BYPASS_ACCESS_CHECKS": "1"}
    embedded_registry.faults.add(Fault(Answer(403), "POST", "/blobs/uploads/", times=None))
    run = call_mirror("push", bundle, target, "--insecure", *flags, env=env)
    run.failed(6, "blobs could not be brought from")


# -- --state-dir -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, ".local/state/mirror"),
        ({"XDG_STATE_HOME": "{home}/states"}, "states/mirror"),
        ({"XDG_STATE_HOME": "relative"}, ".local/state/mirror"),
        ({"MIRROR_STATE_DIR": "{home}/mine"}, "mine"),
    ],
)
def test_unfinished_uploads_are_written_down_in_the_state_folder(
    bundle: Path,
    embedded_registry: EmbeddedRegistry,
    tmp_path: Path,
    env: dict[str, str],
    place: str,
) -> None:
    settings = {name: text.format(home=tmp_path) for name, text in env.items()}
    target = f"{embedded_registry.address}/dkp"
    call_mirror(
        "push", bundle, target, "--insecure", env={"HOME": str(tmp_path), **settings}
    ).succeeded()
    folder = tmp_path / place / "uploads"
    assert list(folder.iterdir()) == []  # all is done
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_state_folder_that_cannot_be_is_an_error_only_for_who_asked_for_it(
    bundle: Path, embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    target = f"{embedded_registry.address}/dkp"
    push = ("push", bundle, target, "--insecure")
    asked = call_mirror(*push, "--state-dir", tmp_path / "file/state")
    asked.failed(1, "uploads under way cannot be written down", "--state-dir")
    run = call_mirror(*push, env={"XDG_STATE_HOME": str(tmp_path / "file")}).succeeded()
    assert "uploads under way cannot be written down" in run.stderr


# -- archives in the older form --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["modules", "/my/mods"])
def test_a_module_s_archive_of_the_older_form_goes_where_modules_go(
    embedded_registry: EmbeddedRegistry, tmp_path: Path, suffix: str
) -> None:
    store = MemoryStore()
    put_image(store, "modules/console", "v1.0.0", layers=(b"module",))
    archive = tmp_path / "module-console.tar"
    archive.write_bytes(tar_of(layout_files(store, "modules/console", prefix="")))
    target = f"{embedded_registry.address}/dkp"
    call_mirror(
        "push", "--file", archive, target, "--insecure", "--modules-path-suffix", suffix
    ).succeeded()
    storage = embedded_registry.storage
    modules = f"dkp/{suffix.strip('/')}"
    assert list(storage.tags(f"{modules}/console")) == ["v1.0.0"]
    assert list(storage.tags(modules)) == ["console"]  # by which a cluster finds it


# -- --limit-rate ----------------------------------------------------------------------------------


def test_a_rate_that_is_none_is_refused_before_anything_is_sent(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    target = f"{embedded_registry.address}/dkp/ee"
    for command in (("push", bundle, target), ("verify", bundle, "--against", target)):
        call_mirror(*command, "--insecure", "--limit-rate", "fast").failed(2, "such as 20MB/s")
    assert len(embedded_registry.requests) == 0


def test_every_byte_of_a_command_counts_against_its_rate(
    bundle: Path,
    embedded_registry: EmbeddedRegistry,
    make_embedded_registry: MakeEmbeddedRegistry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What goes out and what comes in, of both sides, as the gates are told; nobody waits."""
    spent: list[tuple[float | None, int]] = []

    def spend(state: HostState, count: int, _now: float) -> float:
        spent.append((state._limit_rate, count))
        return 0.0

    monkeypatch.setattr(HostState, "spend", spend)
    leader, replica = embedded_registry.address, make_embedded_registry().address
    flags = ("--insecure", "--limit-rate", "20MB/s", "--json")
    done = call_mirror("push", bundle, f"{leader}/dkp/ee", *flags).succeeded().document
    sent = done["uploaded"]["bytes"]
    assert {rate for rate, _ in spent} == {20e6}
    assert sum(count for _, count in spent) >= sent > 0

    spent.clear()
    call_mirror("sync", "--from", f"{leader}/dkp/ee", "--to", f"{replica}/x", *flags).succeeded()
    assert {rate for rate, _ in spent} == {20e6}
    assert sum(count for _, count in spent) >= 2 * sent


def test_patience_is_a_setting_of_every_command_that_reaches_a_registry() -> None:
    usual = AccessOptions().connection().retries
    assert (usual.retry_for_s, usual.from_start) == (300, False)
    asked = AccessOptions(retry_for=90)
    assert asked.connection().retries == RetryPolicy(retry_for_s=90, from_start=True)
    with open_trees(["127.0.0.1:1/x"], asked, ignore) as (tree,):
        assert isinstance(tree.client, RegistryClient)
        policy = tree.client._transport.options.retries
    assert policy == replace(BRIEF, retry_for_s=90, from_start=True)


@pytest.mark.parametrize(
    "command",
    [
        ["push", ".", "127.0.0.1:1/x"],
        ["pull", "{folder}", "--source", "127.0.0.1:1/x"],
        ["sync", "--from", "127.0.0.1:1/x", "--to", "127.0.0.1:2/x"],
        ["status", "127.0.0.1:1/x", "127.0.0.1:2/x"],
        ["diff", "127.0.0.1:1/x", "127.0.0.1:2/x"],
        ["history", "127.0.0.1:1/x"],
        ["rollback", "127.0.0.1:1/x"],
        ["prune", "127.0.0.1:1/x"],
        ["inventory", "127.0.0.1:1/x", "-o", "{folder}.json"],
        ["verify", ".", "--against", "127.0.0.1:1/x"],
    ],
    ids=lambda command: command[0],
)
def test_a_patience_that_is_no_duration_is_refused(command: list[str], tmp_path: Path) -> None:
    words = [word.format(folder=tmp_path / "new") for word in command]
    call_mirror(*words, "--insecure", "--retry-for", "long").failed(
        2, "'long' is not a duration; write 30s, 5m, 1h30m or 2d"
    )


def test_a_rate_reaches_the_connections_of_a_command() -> None:
    asked = AccessOptions(limit_rate=20e6)
    assert asked.connection().limit_rate == 20e6
