"""Files on the disk: complete or absent, secret from the first byte, nobody else's touched."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from mirror.durable import Folder
from mirror.errors import FileSystemError, RenderingError
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState
from mirror.nodeconfig.pulling import Containerd
from mirror.nodeconfig.render import Rendered, RenderOptions, render, write_cluster
from mirror.nodeconfig.service_secrets import ServiceSecrets, read_secrets, write_secrets
from mirror.nodeconfig.tree import (
    OWN_FILES,
    SERVICE_CONFIG,
    STATIC_PODS,
    RenderedFile,
    hosts_state,
    place_tree,
    write_file,
)
from tests.support.disk import Disk, after_a_power_cut, keeping
from tests.support.rendered_cluster import (
    ALL_IMAGES,
    LOGICAL,
    NODES,
    direct,
    kept,
    legacy,
    local,
    proxy,
    unmanaged,
    upstream_ca,
)

HOSTS = PurePosixPath("/etc/containerd/registry.d")
STATE = HOSTS / "deckhouse_hosts_state.json"
IN_CLUSTER = SERVICE_CONFIG / "in-cluster"


@cache
def rendered_once(settings: RegistrySettings, previous: RegistrySettings | None) -> Rendered:
    options = RenderOptions(images=ALL_IMAGES)
    return render(settings, NODES, kept(), previous=previous, options=options)


def apply(
    out: Path, settings: RegistrySettings, previous: RegistrySettings | None = None
) -> set[str]:
    """Write a mode; the worker's files afterwards, and the masters' under their names."""
    write_cluster(rendered_once(settings, previous), out)
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def hosts_tree(*hosts: str) -> dict[PurePosixPath, RenderedFile]:
    files = {HOSTS / host / "hosts.toml": RenderedFile(b"[host]\n") for host in hosts}
    return files | {STATE: RenderedFile(hosts_state(sorted(hosts)))}


def test_the_final_tree_is_the_same_by_whatever_way_it_was_reached(tmp_path: Path) -> None:
    straight = apply(tmp_path / "straight", local())
    out = tmp_path / "by-ways"
    for settings, previous in [
        (unmanaged(), None),
        (direct(ca=upstream_ca()), unmanaged()),
        (direct(ca=upstream_ca()), None),
        (proxy(), direct(ca=upstream_ca())),
        (proxy(), None),
        (direct(), proxy()),
        (direct(), None),
        (local(), direct()),
    ]:
        apply(out, settings, previous)
    assert apply(out, local()) == straight
    for name in straight:
        assert (out / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_leaving_the_managed_modes_leaves_nothing_but_an_empty_list(tmp_path: Path) -> None:
    apply(tmp_path, local())
    left = apply(tmp_path, legacy())
    assert left == {
        "manifests/secret-registry-config.yaml",  # the mode itself
        *(
            f"nodes/{node.name}/etc/containerd/registry.d/deckhouse_hosts_state.json"
            for node in NODES
        ),
    }


def test_files_that_have_another_name_by_now_are_removed(tmp_path: Path) -> None:
    former = tmp_path / "in-cluster" / str(IN_CLUSTER / "distribution.yaml").lstrip("/")
    former.parent.mkdir(parents=True)
    former.write_text("of an earlier release")
    apply(tmp_path, direct(ca=upstream_ca()))
    assert not former.exists()
    assert former.with_name("distribution_config.yaml").exists()


def test_own_files_are_all_that_are_ever_rendered_outside_of_containerds_folder() -> None:
    options = RenderOptions(images=ALL_IMAGES, ingress_client_ca=upstream_ca())
    stock = RenderOptions(Containerd.STOCK, images=ALL_IMAGES)
    seen = set()
    for settings in (local(), direct(ca=upstream_ca()), proxy(ca=upstream_ca())):
        for each in (options, stock):
            rendered = render(settings, NODES, kept(), options=each)
            for files in [*rendered.nodes.values(), rendered.in_cluster]:
                outside = {path for path in files if not path.is_relative_to(HOSTS)}
                # Authorities of the relay are named by their ways, and found by their ending.
                seen |= {path for path in outside if not path.name.startswith("relay-to-")}
    stock_alone = {IN_CLUSTER / "relay.conf"}
    assert seen | stock_alone == set(OWN_FILES)
    assert set(STATIC_PODS) <= seen


def test_static_pods_come_after_their_files_and_go_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RenderOptions(Containerd.STOCK, images=ALL_IMAGES)
    tree = render(local(), NODES, kept(), previous=direct(), options=options).nodes["master-0"]
    assert set(STATIC_PODS) <= set(tree)
    seen: list[Path] = []
    renamed, unlinked = Folder.rename, Folder.unlink

    def replaced(self: Folder, old: str, new: str) -> None:
        seen.append(self / new)
        renamed(self, old, new)

    def removed(self: Folder, name: str) -> bool:
        if not name.startswith("."):  # our own temporary files
            seen.append(self / name)
        return unlinked(self, name)

    monkeypatch.setattr(Folder, "rename", replaced)
    monkeypatch.setattr(Folder, "unlink", removed)
    pods = [tmp_path / path.relative_to("/") for path in STATIC_PODS]
    place_tree(tree, tmp_path)
    assert sorted(seen[-3:]) == sorted(pods)
    seen.clear()
    place_tree(hosts_tree(), tmp_path).clean()
    services = [path for path in seen if not path.is_relative_to(tmp_path / "etc/containerd")]
    assert services[:3] == pods
    assert len(services) > 10


def test_peoples_own_hosts_and_the_store_stay(tmp_path: Path) -> None:
    mine = tmp_path / "etc/containerd/registry.d/mine.example/hosts.toml"
    store = tmp_path / "opt/deckhouse/registry/local_data/docker/blob"
    for path in (mine, store):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    place_tree(hosts_tree(LOGICAL, "old.example"), tmp_path).clean()
    done = place_tree(hosts_tree(LOGICAL), tmp_path).clean()
    assert done.removed == (HOSTS / "old.example",)
    assert mine.read_text() == store.read_text() == "mine"
    assert json.loads((tmp_path / "etc/containerd/registry.d" / STATE.name).read_text()) == [
        LOGICAL
    ]


def test_an_authority_that_nothing_named_goes_at_once(tmp_path: Path) -> None:
    before = hosts_tree(LOGICAL) | {HOSTS / LOGICAL / "https-a-ca.crt": RenderedFile(b"a")}
    place_tree(before, tmp_path).clean()
    done = place_tree(hosts_tree(LOGICAL), tmp_path).clean()
    assert done.removed == (HOSTS / LOGICAL / "https-a-ca.crt",)
    assert done.kept == ()


def test_an_authority_of_a_former_way_goes_when_nobody_can_be_about_to_read_it(
    tmp_path: Path,
) -> None:
    """containerd reads hosts.toml first, and then what it names."""
    authority = HOSTS / LOGICAL / "https-a-ca.crt"
    before = {
        HOSTS / LOGICAL / "hosts.toml": RenderedFile(
            b'[host."https://a"]\nca = "https-a-ca.crt"\n'
        ),
        authority: RenderedFile(b"a"),
    }
    place_tree(hosts_tree(LOGICAL) | before, tmp_path).clean()
    final = hosts_tree(LOGICAL)
    done = place_tree(final, tmp_path).clean()
    assert done.kept == (authority,)
    assert done.removed == ()
    assert (tmp_path / authority.relative_to("/")).read_bytes() == b"a"
    again = place_tree(final, tmp_path).clean()
    assert again.removed == (authority,)
    assert again.kept == ()


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    first = place_tree(hosts_tree(LOGICAL), tmp_path).clean()
    second = place_tree(hosts_tree(LOGICAL), tmp_path).clean()
    assert first.written == second.unchanged
    assert second.written == second.removed == ()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_secret_is_for_its_owner_from_its_first_byte_on(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    opened = os.open

    def watched(path: Path, flags: int, mode: int = 0o777, **folder: int) -> int:
        handle = opened(path, flags, mode, **folder)
        if flags & os.O_CREAT:
            seen.append(os.fstat(handle).st_mode & 0o077)
        return handle

    monkeypatch.setattr(os, "open", watched)
    (tmp_path / "there").mkdir()
    before = os.umask(umask)
    try:
        write_file(tmp_path / "there/secret", RenderedFile(b"x", 0o600))
        write_file(tmp_path / "there/public", RenderedFile(b"x", 0o644))
    finally:
        os.umask(before)
    assert seen[0] == 0
    assert (tmp_path / "there/secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "there/public").stat().st_mode & 0o777 == 0o644


def test_a_file_that_others_could_read_becomes_secret(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_bytes(b"x")
    path.chmod(0o644)
    assert write_file(path, RenderedFile(b"x", 0o600))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "passwd"
    victim.write_text("root")
    link = tmp_path / "hosts.toml"
    link.symlink_to(victim)
    write_file(link, RenderedFile(b"x"))
    assert victim.read_text() == "root"
    assert link.read_bytes() == b"x"
    assert not link.is_symlink()


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts.toml"
    path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileSystemError, match=r"cannot write .*hosts\.toml: No space left"):
        write_file(path, RenderedFile(b"new"))
    assert [one.name for one in tmp_path.iterdir()] == ["hosts.toml"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("text", ["nothing", "{}", "[1]", '["../../../home"]', '["a/b"]', '[".."]'])
def test_a_damaged_list_of_hosts_removes_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "etc/containerd/registry.d" / STATE.name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(RenderingError, match="expected a JSON list of host names"):
        place_tree(hosts_tree(LOGICAL), tmp_path).clean()
    assert [one.name for one in path.parent.iterdir()] == [STATE.name]


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 5, 8])
def test_cut_anywhere_the_next_run_ends_the_same(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(tmp_path / "whole", local())
    whole = apply(tmp_path / "whole", direct())
    out = tmp_path / "cut"
    apply(out, local())
    steps = 0

    def limited(handle: int) -> None:
        nonlocal steps
        steps += 1
        if steps > cut:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", limited)
        try:
            apply(out, direct())
        except FileSystemError:
            pass
        else:
            assert steps <= cut
    assert apply(out, direct()) == whole


def test_secrets_survive_their_file_and_show_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    assert read_secrets(path) is None
    assert write_secrets(kept(), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_secrets(path) == kept()
    assert not write_secrets(kept(), path)
    shown = repr(kept())
    for one in kept().users.values():
        assert one.account.password.get_secret_value() not in shown
        assert one.password_hash not in shown
    assert kept().http_secret not in shown
    assert "PRIVATE" not in shown


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_folders_of_secrets_are_closed_and_those_of_nginx_open(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        apply(tmp_path / "out", local())
        write_secrets(kept(), tmp_path / "kept/secrets.json")
        RegistryState().save(tmp_path / "state/registry-state.yaml")
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    secrets = [path for path, mode in modes.items() if path.is_file() and mode == 0o600]
    assert len(secrets) > 10
    assert {modes[path.parent] for path in secrets} == {0o700}
    nginx = {path for path in modes if path.name == "registry-proxy"}
    assert {modes[path] for path in nginx} == {0o755}
    assert len(nginx) == len(NODES)


def test_damaged_secrets_are_never_replaced_silently(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text('{"authority": {"certificate": "hidden"}}')
    with pytest.raises(RenderingError, match="restore the file from a backup") as found:
        read_secrets(path)
    assert "hidden" not in str(found.value)
    assert isinstance(kept(), ServiceSecrets)


def test_no_node_loses_anything_before_every_node_has_its_new_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(tmp_path, local())
    rendered = render(direct(), NODES, kept())
    seen = []
    unlinked = Folder.unlink

    def watched(self: Folder, name: str) -> bool:
        if not name.startswith("."):  # our own temporary files
            seen.append(name)
            for node in NODES:
                hosts = tmp_path / f"nodes/{node.name}{HOSTS}/{LOGICAL}/hosts.toml"
                assert "nexus.example" in hosts.read_text()
        return unlinked(self, name)

    monkeypatch.setattr(Folder, "unlink", watched)
    write_cluster(rendered, tmp_path)
    assert len(seen) > 10


def test_no_nodes_tree_is_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/nodes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileSystemError, match=r"symbolic links; remove the symbolic link there"):
        apply(tmp_path / "out", local())
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("at", ["etc", "etc/containerd", "etc/containerd/registry.d"])
def test_no_folder_below_the_root_is_reached_through_a_link(tmp_path: Path, at: str) -> None:
    """Who may write below the root would have files of the node written, or removed, elsewhere."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    place_tree(hosts_tree(LOGICAL), elsewhere).clean()
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    (root / at).parent.mkdir(parents=True)
    (root / at).symlink_to(elsewhere / at)
    with pytest.raises(FileSystemError, match="symbolic links; remove the symbolic link there"):
        place_tree(hosts_tree("other.example"), root).clean()
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_a_root_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "there")
    place_tree(hosts_tree(LOGICAL), tmp_path / "root").clean()
    assert (tmp_path / "there/etc/containerd/registry.d" / LOGICAL / "hosts.toml").is_file()


def test_a_power_cut_at_any_moment_loses_no_secret_that_a_node_trusts(tmp_path: Path) -> None:
    """And the next run ends with the same files."""
    rendered = rendered_once(local(), None)
    with Disk(tmp_path / "out") as disk:
        write_secrets(kept(), tmp_path / "out/secrets.json")
        write_cluster(rendered, tmp_path / "out")
    expected = content_of(tmp_path / "out")
    for at in range(0, len(disk.changes), len(disk.changes) // 25):
        cut = tmp_path / str(at)
        after_a_power_cut(disk.at_first, disk.changes[:at], keeping(at)).put_into(cut)
        for path, data in content_of(cut).items():
            assert path.name.startswith(".") or data == expected[path], (at, path)
            assert path.parts[0] != "nodes" or read_secrets(cut / "secrets.json") == kept(), at
        write_secrets(kept(), cut / "secrets.json")
        write_cluster(rendered, cut)
        found = content_of(cut)
        assert {path: found[path] for path in found if path.name[0] != "."} == expected, at


def content_of(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}
