"""Bundles in a bucket, as the command line makes and reads them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.run import Run
from mirror.testing import EmbeddedRegistry
from tests.support.object_storage import LOGIN, ObjectStorage
from tests.support.program import call_mirror
from tests.support.release_source import Source
from tests.support.terminal import on_a_terminal

ADDRESS = "s3://bundles/of/today"


@pytest.fixture(scope="module")
def storage(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    """A server with a bundle at `ADDRESS`."""
    with ObjectStorage.of_this_process(tmp_path_factory.mktemp("storage")) as server:
        pull = ("pull", ADDRESS, "--source", source.root, "--insecure")
        done = call_mirror(*pull, env=server.environment()).succeeded()
        assert f"Bundle {ADDRESS} is complete" in done.stdout
        assert LOGIN[1] not in done.stdout + done.stderr
        yield server


def test_a_pull_makes_the_bundle_that_a_folder_would_hold(
    storage: ObjectStorage, bundle: Path
) -> None:
    assert storage.content("of/today") == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }


def test_machines_that_share_a_pull_make_the_same_bundle(
    storage: ObjectStorage, source: Source, bundle: Path
) -> None:
    """Two as the pods of an Indexed Job are told, and one by hand."""
    place = "s3://bundles/shared"
    pull = ("pull", place, "--source", source.root, "--insecure", "--shard")
    env = {**storage.environment(), "JOB_COMPLETIONS": "3"}
    first = call_mirror(*pull, "auto", env={**env, "JOB_COMPLETION_INDEX": "0"}).succeeded()
    assert f"Shard 1/3 of bundle {place} is there" in first.stdout
    assert "of it still to come from other shards" in first.stdout
    third = call_mirror(*pull, "auto", "--json", env={**env, "JOB_COMPLETION_INDEX": "2"})
    assert (third.document["shard"], third.document["sealed"]) == ("3/3", False)
    done = call_mirror(*pull, "2/3", env=env).succeeded()
    assert f"Bundle {place} is complete" in done.stdout
    assert storage.content("shared") == {path.name: path.read_bytes() for path in bundle.iterdir()}
    call_mirror(*pull, "2/3", env=env).succeeded()
    call_mirror(*pull, "2/2", env=env).failed(2, "s3://bundles/shared has another bundle")


@pytest.mark.parametrize(
    ("place", "more", "told"),
    [
        ("bundle", ("--shard", "1/2"), "--shard is for a bundle in a bucket: s3://bucket/prefix"),
        ("s3://bundles/x", ("--shard", "2/1"), "2/1 is not one of several shards"),
        ("s3://bundles/x", ("--shard", "1/2", "--force"), "--shard takes no --force"),
        ("s3://bundles/x", ("--shard", "1/2", "--dry-run"), "--shard takes no --dry-run"),
    ],
)
def test_what_a_shard_cannot_do_is_told(
    source: Source, tmp_path: Path, place: str, more: tuple[str, ...], told: str
) -> None:
    where = place if "://" in place else tmp_path / place
    call_mirror("pull", where, "--source", source.root, "--insecure", *more).failed(2, told)


def test_machines_that_share_a_push_fill_the_registry(
    storage: ObjectStorage, bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    """One as the pod of an Indexed Job is told, and one by hand."""
    target = f"{embedded_registry.address}/dkp"
    push = ("push", ADDRESS, target, "--insecure", "--shard")
    env = {**storage.environment(), "JOB_COMPLETIONS": "2", "JOB_COMPLETION_INDEX": "1"}
    planned = call_mirror(*push, "auto", "--dry-run", env=env).succeeded()
    assert f"This would be pushed to {target} as shard 2/2" in planned.stdout
    planned = call_mirror(*push, "auto", "--dry-run", "--json", env=env).succeeded()
    upload = planned.document["upload"]
    assert (planned.document["shard"], upload["manifests"], upload["tags"]) == ("2/2", 0, 0)
    first = call_mirror(*push, "auto", env=env).succeeded()
    assert f"Registry {target} has the blobs of shard 2/2" in first.stdout
    assert "no tag was set: it lacks blobs of 1/2; the last shard sets the tags" in first.stdout
    again = call_mirror(*push, "auto", "--json", env=env).succeeded().document
    assert (again["blobs"], again["bytes"], again["awaited"], again["push"]) == (0, 0, [1], None)
    done = call_mirror(*push, "1/2", env=env).succeeded()
    assert f"Registry {target} has every tag of the bundle" in done.stdout
    assert "  shard 1/2: " in done.stdout
    again = call_mirror(*push, "1/2", "--json", env=env).succeeded().document
    assert again["push"]["published"]["new"] is False
    call_mirror("verify", bundle, "--against", target, "--insecure").succeeded()


def test_a_push_to_several_registries_is_not_shared(bundle: Path) -> None:
    push = ("push", bundle, "a.example.com/dkp", "--replica", "b.example.com/dkp", "--shard", "1/2")
    call_mirror(*push).failed(2, "--shard is for one registry at a time; leave --replica out")
    call_mirror(*push[:3], "--shard", "3/2").failed(2, "3/2 is not one of several shards")


def test_machines_that_share_a_verification_gather_what_they_find(
    storage: ObjectStorage, tmp_path: Path, bundle: Path
) -> None:
    env = {**storage.environment(), "JOB_COMPLETIONS": "2", "JOB_COMPLETION_INDEX": "0"}
    verify = ("verify", ADDRESS, "--shard")
    alone = call_mirror(*verify, "1/3", env=env).succeeded()
    told = (
        "Shard 1/3 of the bundle is right, and the bundle is whole if each of the 3 shards says so"
    )
    assert told in alone.stdout
    place = ("--findings", "s3://bundles/findings/today")
    first = call_mirror(*verify, "auto", *place, env=env).succeeded()
    assert "the bundle is whole if these find nothing either: 2/2" in first.stdout
    last = call_mirror(*verify, "2/2", *place, env=env).succeeded()
    assert "The bundle is whole (sealed: every byte is accounted for)" in last.stdout
    assert "2 shards read it between " in last.stdout
    shown = call_mirror(*verify, "2/2", *place, "--json", env=env).succeeded().document
    assert (shown["ok"], shown["complete"], shown["awaited"]) == (True, True, [])
    assert (shown["findings"], shown["read"]) == ([], False)
    again = call_mirror(*verify, "2/2", *place, env=env).succeeded()
    assert again.stdout.startswith("Nothing was read now. This was found between ")
    assert "The bundle was whole (sealed: every byte is accounted for)" in again.stdout
    call_mirror("clean", place[1], "--yes", env=env).succeeded()

    damaged = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    largest = max(damaged.glob("*.tar"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    ended = [
        call_mirror("verify", damaged, "--shard", f"{number}/3", "--findings", tmp_path / "run")
        for number in (1, 2, 3)
    ]
    assert 4 in [one.code for one in ended[:2]] or "Shard" not in ended[2].stdout
    ended[2].failed(4)
    assert "The bundle is damaged or incomplete: 1 finding" in ended[2].stdout


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--findings", "x"), "--findings goes with --shard N/COUNT; one machine gathers nothing"),
        (("--shard", "1/2", "--against", "a.example.com/dkp"), "--shard is for the bytes of a"),
        (("--shard", "1/2", "--html", "page.html"), "--shard is for the bytes of a bundle"),
        (
            ("--shard", "1/2", "--findings", "https://a/b"),
            "a place of findings cannot be made at https",
        ),
    ],
)
def test_what_a_shard_of_a_verification_cannot_do_is_told(
    bundle: Path, more: tuple[str, ...], told: str
) -> None:
    call_mirror("verify", bundle, *more).failed(2, told)


def test_who_reads_bundles_reads_that_one(
    storage: ObjectStorage, bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    env, target = storage.environment(), f"{embedded_registry.address}/dkp"
    call_mirror("verify", ADDRESS, env=env).succeeded()
    call_mirror("inspect", ADDRESS, env=env).succeeded()
    call_mirror("diff", ADDRESS, bundle, env=env).succeeded()
    call_mirror("push", ADDRESS, target, "--insecure", env=env).succeeded()
    call_mirror("verify", bundle, "--against", target, "--insecure").succeeded()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://key:secret@bundles/x", "is not a place in a bucket; write s3://bucket/prefix"),
        ("s3://Bundles/x", "is not a place in a bucket"),
        ("s3://bundles/x/../y", "is not a place in a bucket"),
        ("https://files.example.com/x", "a bundle cannot be made at https://files.example.com/x"),
    ],
)
def test_a_place_where_no_bundle_can_be_made_is_told(
    source: Source, address: str, told: str
) -> None:
    pull = ("pull", address, "--source", source.root, "--insecure")
    assert "secret@" not in call_mirror(*pull).failed(2, told).stderr


def test_a_merge_replaces_no_delta_in_a_bucket(
    storage: ObjectStorage, source: Source, bundle: Path
) -> None:
    env, place = storage.environment(), "s3://bundles/delta"
    pull = ("pull", place, "--source", source.root, "--insecure", "--base", bundle)
    call_mirror(*pull, env=env).succeeded()
    kept = storage.content("delta")
    told = f"{place}, the last place named, is where the result goes, and has a delta to {bundle}; "
    call_mirror("merge", bundle, place, "--force", "--yes", env=env).failed(2, told)
    assert storage.content("delta") == kept


def test_a_merge_makes_in_a_bucket_what_it_makes_in_a_folder(
    storage: ObjectStorage, bundle: Path, tmp_path: Path
) -> None:
    """From a folder or a bucket, and never into one of the bundles or onto another one."""
    env = storage.environment()
    merges: list[tuple[str | Path, tuple[str, ...]]] = [(bundle, ()), (ADDRESS, ("--dedupe",))]
    for number, (one, flags) in enumerate(merges):
        place, folder = f"s3://bundles/merged/{number}", tmp_path / str(number)
        done = call_mirror("merge", one, place, *flags, env=env).succeeded()
        assert f"Bundle {place} is complete" in done.stdout
        call_mirror("merge", bundle, folder, *flags).succeeded()
        here = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert storage.content(f"merged/{number}") == here
        assert not storage.pending(f"merged/{number}")
    again = call_mirror("merge", bundle, "s3://bundles/merged/0", env=env).succeeded()
    assert "holds this bundle already; nothing was written" in again.stderr
    told = f"{ADDRESS} is one of the bundles to merge; name another place"
    call_mirror("merge", ADDRESS, ADDRESS, "--force", "--yes", env=env).failed(2, told)
    there = (
        "s3://bundles/merged/1 is not empty (it has inventory.json); name an empty place, or add "
    )
    call_mirror("merge", bundle, "s3://bundles/merged/1", env=env).failed(2, there)
    call_mirror("merge", bundle, "https://h/x").failed(2, "a bundle cannot be made at https://h/x")


@pytest.mark.parametrize("address", [ADDRESS, "https://h/of", "http://h/of", "s3://me:secret@b/of"])
def test_a_bundle_at_an_address_is_not_repaired_and_no_folder_of_that_name_either(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, Path(address))
    told = "a bundle is repaired in a folder: copy it into one, repair that and put it back, or"
    refused = call_mirror("repair", address).failed(2, told, "mirror pull --force")
    assert "secret" not in refused.stderr


def test_what_is_read_at_an_address_is_not_read_from_a_folder_of_that_name(
    storage: ObjectStorage, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, "bundle")
    Path(ADDRESS).mkdir(parents=True)
    (archive,) = list(Path("bundle").glob("platform.tar*"))
    archive.unlink()
    env = storage.environment()
    nothing = ("repair", "bundle", "--from", "s3://bundles/nothing")
    call_mirror(*nothing, env=env).failed(4, "s3://bundles/nothing has no archives of a bundle")
    done = call_mirror("repair", "bundle", "--from", ADDRESS, "--json", env=env).succeeded()
    assert ADDRESS in done.document["given"]
    assert call_mirror("diff", ADDRESS, bundle, env=env).succeeded()


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("s3:/bundles/x", "s3://bundles/x"),
        ("S3://bundles/x", "s3://bundles/x"),
        ("s3:///bundles/x", "s3://bundles/x"),
        ("https:/files.example.com/x", "https://files.example.com/x"),
        ("HTTP://me:secret@files.example.com/x", "http://files.example.com/x"),
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        "pull {} --source 127.0.0.1:1/dkp",
        "pull x --source 127.0.0.1:1/dkp --base {}",
        "verify {}",
        "inspect {}",
        "clean {}",
        "serve {}",
        "serve --storage {}",
        "merge . {}",
        "push {} 127.0.0.1:1/dkp",
        "diff . {}",
        "repair {}",
        "repair . --from {}",
        "inventory 127.0.0.1:1/dkp -o {}",
    ],
)
def test_a_mistyped_address_is_told_and_becomes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, mistyped: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = f"is not an address; did you mean {meant}?"
    refused = call_mirror(*line.format(mistyped).split()).failed(2, told)
    assert "secret" not in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("inventory 127.0.0.1:1/dkp -o {}", "--output {}: a result goes into a file of this"),
        ("inventory 127.0.0.1:1/dkp -o x --known {}", "--known {}: name a path, not an address"),
        ("push --file {} 127.0.0.1:1/dkp", "--file {}: name a path, not an address"),
        ("repair . --request {}", "--request {}: a result goes into a file of this machine"),
    ],
)
def test_what_takes_a_path_alone_says_so_of_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(ADDRESS).mkdir(parents=True)
    call_mirror(*line.format(ADDRESS).split()).failed(2, told.format(ADDRESS))


def test_an_endpoint_that_is_none_is_told(storage: ObjectStorage) -> None:
    env = {**storage.environment(), "AWS_ENDPOINT_URL_S3": "https://key:secret@s3.example.com"}
    told = call_mirror("verify", ADDRESS, env=env).failed(2, "AWS_ENDPOINT_URL_S3 is not").stderr
    assert "secret@" not in told


def test_without_credentials_it_says_which_to_set(storage: ObjectStorage) -> None:
    env = {**storage.environment(), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    told = call_mirror("verify", ADDRESS, env=env).failed(6, "set AWS_ACCESS_KEY_ID").stderr
    assert "--registry-login" not in told, "a bucket asks for no login of a registry"
    env = {**storage.environment(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    told = call_mirror("verify", ADDRESS, env=env).failed(6, "check the credentials (AWS_").stderr
    assert "--registry-login" not in told


def test_without_the_extra_it_says_how_to_get_it(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "awscrt", None)
    told = "pip install 'deckhouse-mirror[s3]'"
    call_mirror("verify", ADDRESS, env=storage.environment()).failed(2, told)


def test_a_bucket_that_is_not_there_is_told(storage: ObjectStorage) -> None:
    other = ("verify", "s3://other-bucket/x")
    call_mirror(*other, env=storage.environment()).failed(1, "NoSuchBucket", "create the bucket")


def test_what_a_pull_has_left_goes_when_somebody_says_yes(storage: ObjectStorage) -> None:
    place, env = "s3://bundles/given/up", storage.environment()
    with closing(storage.bucket("given/up")) as bucket:
        bucket.put("inventory.json.partial", b"{}", Run())
        upload = bucket.begin("platform.tar", "plan", Run())
        bucket.put_part("platform.tar", upload, 1, bytes(3 << 20), Run())
    shown = call_mirror("clean", place, "--dry-run", env=env).succeeded().stdout
    assert shown.splitlines() == [
        f"This would be removed from {place}",
        "  inventory.json.partial            2 B",
        "  platform.tar (unfinished upload)  3.0 MiB",
        "",
        "  3.0 MiB in all",
    ]
    code, out, told = on_a_terminal("clean", place, answer="n", env=env)
    assert (code, out) == (1, "")
    assert "platform.tar (unfinished upload)  3.0 MiB" in told
    assert told.endswith(f"Remove this from {place} for good? [y/N] n\r\nnothing was changed\r\n")
    assert storage.pending("given/up") == ["platform.tar"]
    done = call_mirror("clean", place, "--json", env=env).succeeded().document
    assert (done["bundle"], done["dryRun"], done["bytes"]) == (place, False, (3 << 20) + 2)
    assert done["removed"] == {"inventory.json.partial": 2, "platform.tar": 3 << 20}
    assert done["uploads"] == ["platform.tar"]
    assert (storage.pending("given/up"), storage.names("given/up")) == ([], [])
    said = call_mirror("clean", ADDRESS, env=env).succeeded().stdout
    assert said == f"{ADDRESS} has nothing that an interrupted pull has left\n"
