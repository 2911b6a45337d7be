"""What a command says while it works, to people and to programs, and what it asks first."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from unittest import mock

import pytest

from mirror.bundle.format import size_text
from mirror.layout import PACKAGE_VERSIONS_ARCHIVE
from mirror.oci import Manifest
from mirror.oci.manifest import OCI_INDEX
from mirror.serve import MemoryStorage
from mirror.testing import Answer, EmbeddedRegistry, Fault
from mirror.testing.plugin import MakeEmbeddedRegistry
from tests.support.program import call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.schemas import jsonschema
from tests.support.terminal import on_a_terminal


def lines(text: str) -> list[dict[str, object]]:
    """Each line as the JSON that it must be."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def target(bundle: Path, embedded_registry: EmbeddedRegistry) -> str:
    """A registry that holds two generations."""
    root = f"{embedded_registry.address}/dkp/ee"
    call_mirror("push", bundle, root, "--insecure").succeeded()
    return root


# -- more, less, and for programs ------------------------------------------------------------------


def test_quiet_shows_the_result_and_nothing_else(bundle: Path) -> None:
    run = call_mirror("verify", bundle, "-q").succeeded()
    assert run.stderr == ""
    assert run.stdout.startswith("The bundle is whole")


def test_verbose_tells_of_every_tag_and_twice_of_every_request(target: str, bundle: Path) -> None:
    push = ("push", bundle, f"{target}-2", "--insecure")
    assert "tag install:v1.70.0 is sha256:" not in call_mirror(*push, "--dry-run").stderr
    run = call_mirror(*push, "-v").succeeded()
    assert "\ntag install:v1.70.0 is sha256:" in run.stderr
    assert "DEBUG" not in run.stderr
    again = call_mirror(*push, "-vv").succeeded()
    assert "/tags/list" in again.stderr
    assert again.stderr.count("DEBUG") == again.stderr.count(" DEBUG "), "each line once"


def test_progress_for_programs_is_a_line_of_json_for_each_event_as_the_schema_says(
    source: Source, tmp_path: Path
) -> None:
    schema = call_mirror("config", "schema", "progress").succeeded().document
    pull = ("pull", tmp_path / "b", "--source", source.root, "--insecure", "--progress", "json")
    run = call_mirror(*pull, "--json").succeeded()
    assert run.document["bundle"] == str(tmp_path / "b"), "the result is still one document"
    events = lines(run.stderr)
    rules = jsonschema.Draft202012Validator(schema)
    for event in events:
        rules.validate(event)
    started = [one for one in events if one["event"] == "transferStarted"]
    assert [one["size"] for one in started] == [run.document["fetched"]]
    told = [one["digest"] for one in events if one["event"] == "blobDone"]
    assert len(told) == len(set(told)) == started[0]["blobs"]


def test_a_pull_that_goes_on_says_how_much_an_earlier_one_left(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    registry = make_embedded_registry()
    source = serve(TINY, registry)
    pull = ("pull", tmp_path / "bundle", "--source", source.root, "--insecure")
    path = ".*/security/trivy-db/blobs/.*"
    registry.faults.add(Fault(Answer(404), method="GET", path=path, times=None))
    first = call_mirror(*pull)
    assert first.code != 0
    assert "continuing" not in first.stderr
    assert "continuing" not in call_mirror(*pull, "-q").stderr, "only warnings and the result"
    registry.faults.clear()
    again = call_mirror(*pull).succeeded()
    told = re.search(r"^continuing: (.+) of (.+) are there$", again.stderr, re.MULTILINE)
    assert told is not None
    whole = call_mirror("pull", tmp_path / "new", *pull[2:], "--json").succeeded().document
    assert told[2] == size_text(whole["fetched"])


def test_a_push_says_how_much_the_registry_has_of_the_bundle(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    push = ("push", bundle, f"{embedded_registry.address}/dkp/ee", "--insecure")
    embedded_registry.faults.add(Fault(Answer(403), method="PUT", path=".*/security/trivy-db/.*"))
    first = call_mirror(*push)
    assert first.code != 0
    assert "there already" not in first.stderr
    embedded_registry.faults.clear()
    again = call_mirror(*push).succeeded()
    told = re.search(r"^(.+) of (.+) are there already$", again.stderr, re.MULTILINE)
    assert told is not None
    last = call_mirror(*push).succeeded()
    assert f"{told[2]} of {told[2]} are there already" in last.stderr


@pytest.mark.parametrize("command", ["pull", "verify", "push", "merge"])
def test_each_archive_is_told_when_it_is_through(
    command: str,
    bundle: Path,
    source: Source,
    embedded_registry: EmbeddedRegistry,
    tmp_path: Path,
) -> None:
    arguments = {
        "pull": (tmp_path / "b", "--source", source.root, "--insecure"),
        "verify": (bundle,),
        "push": (bundle, f"{embedded_registry.address}/dkp/ee", "--insecure"),
        "merge": (bundle, tmp_path / "b"),
    }[command]
    events = lines(call_mirror(command, *arguments, "--progress", "json").succeeded().stderr)
    told = [event for event in events if event["event"] == "archiveDone"]
    archives = sorted(path.name for path in bundle.glob("*.tar"))
    if command != "verify":  # the others count the descriptions of packages with the packages
        archives.remove(PACKAGE_VERSIONS_ARCHIVE)
    assert sorted(str(event["archive"]) for event in told) == archives
    assert [event["done"] for event in told] == list(range(1, len(archives) + 1))
    assert {event["total"] for event in told} == {len(archives)}


def test_a_dry_run_looks_at_the_disk(source: Source, tmp_path: Path) -> None:
    dry = ("pull", tmp_path / "far/b", "--source", source.root, "--insecure", "--dry-run")
    assert "too few" not in call_mirror(*dry).succeeded().stderr
    real = os.statvfs(tmp_path)
    full = os.statvfs_result([*real[:3], 1, 1, *real[5:], real.f_namemax])
    with mock.patch.object(os, "statvfs", return_value=full):
        told = call_mirror(*dry).succeeded().stderr
    assert "warning: the bundle needs " in told
    assert "too few; nothing was fetched" in told


def test_the_form_of_progress_may_come_from_the_environment(bundle: Path) -> None:
    run = call_mirror("verify", bundle, env={"MIRROR_PROGRESS": "json"}).succeeded()
    assert lines(run.stderr)


def test_messages_for_programs_are_lines_of_json_with_time_and_level(
    source: Source, tmp_path: Path
) -> None:
    flags = ("--log-format", "json", "-q")
    run = call_mirror("verify", tmp_path, *flags).failed(2)
    (told,) = lines(run.stderr)
    assert told["level"] == "error"
    assert told["message"] == f"{tmp_path} holds no bundle: it has no *.tar file"
    pull = ("pull", tmp_path / "b", "--source", source.root, "--insecure", "--dry-run", "-vv")
    env = {"D8_MIRROR_TIMEOUT": "1h"}
    levels = {one["level"] for one in lines(call_mirror(*pull, *flags, env=env).stderr)}
    assert levels == {"warning", "debug"}
    assert call_mirror("verify", tmp_path).stderr.startswith("error: "), "for one command"


def test_colours_are_for_terminals_of_people_who_want_them(tmp_path: Path) -> None:
    missing = ("verify", tmp_path / "nowhere")
    coloured = "\x1b[1;31merror:\x1b[0m "
    assert on_a_terminal(*missing)[2].startswith(coloured)
    for plain in (
        on_a_terminal(*missing, "--no-color")[2],
        on_a_terminal(*missing, env={"NO_COLOR": "1"})[2],
        on_a_terminal(*missing, env={"TERM": "dumb"})[2],
        call_mirror(*missing).stderr,
    ):
        assert plain.startswith("error: ")
        assert "\x1b" not in plain


# -- questions -------------------------------------------------------------------------------------


def test_a_prune_on_a_terminal_shows_what_would_go_and_asks(
    make_embedded_registry: MakeEmbeddedRegistry, bundle: Path
) -> None:
    storage = MemoryStorage()
    target = f"{make_embedded_registry(storage).address}/dkp/ee"
    call_mirror("push", bundle, target, "--insecure").succeeded()
    extra = Manifest.parse(b'{"schemaVersion": 2, "manifests": []}', media_type=OCI_INDEX)
    storage.put_manifest("dkp/ee/install", extra, "of-nobody")
    prune = ("prune", target, "--keep", bundle, "--insecure")
    code, out, shown = on_a_terminal(*prune, answer="n")
    assert (code, out) == (1, "")
    assert "(of-nobody)" in shown
    assert f"Remove this from {target} for good? [y/N] " in shown
    assert shown.rstrip().endswith("nothing was changed")
    assert "of-nobody" in storage.tags("dkp/ee/install")
    code, out, shown = on_a_terminal(*prune, answer="y")
    assert (code, out.splitlines()[0]) == (0, f"Removed from registry {target}")
    assert "of-nobody" not in storage.tags("dkp/ee/install")


def test_a_rollback_on_a_terminal_asks_and_yes_answers_beforehand(target: str) -> None:
    back = ("rollback", target, "--to", "0", "--insecure")
    code, _, shown = on_a_terminal(*back, answer="no")
    assert code == 1
    assert f"Turn the tags of {target} back? [y/N] " in shown
    code, out, shown = on_a_terminal(*back, "--yes", answer="n")
    assert code == 0, shown
    assert "[y/N]" not in shown
    assert out.startswith(f"Turned registry {target} back")


@pytest.mark.parametrize("command", ["pull", "merge"])
def test_to_replace_a_bundle_is_asked_for_on_a_terminal_alone(
    source: Source, bundle: Path, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    arguments = {
        "pull": ("pull", folder, "--source", source.root, "--insecure", "--no-modules", "--force"),
        "merge": ("merge", bundle, folder, "--dedupe", "--force"),
    }[command]
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    code, _, shown = on_a_terminal(*arguments, answer="n")
    assert code == 1
    assert f"Replace the bundle in {folder}?" in shown
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    call_mirror(*arguments).succeeded()
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} != before
