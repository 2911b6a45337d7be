"""Results to standard output, progress to standard error, for people and for programs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from examples.release_tree import SMALL
from mirror.events import EndpointDown, EndpointUp
from mirror.reports.progress import progress
from mirror.testing import EmbeddedRegistry
from tests.support.program import call_mirror, run_mirror
from tests.support.release_source import Source, serve
from tests.support.terminal import on_a_terminal

COUNTS = {"repositories", "tags", "manifests", "blobs", "elapsedSeconds"}
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DIGEST_TAG = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}")


@pytest.fixture
def target(source: Source, request: pytest.FixtureRequest) -> str:
    """A path of its own in the registry, to push to."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{source.address}/targets/{name}"


# -- JSON ------------------------------------------------------------------------------------------


def test_a_pull_answers_with_what_it_packed(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    run = call_mirror("pull", folder, "--source", source.root, "--insecure", "--json").succeeded()
    document = run.document
    assert run.stderr == ""
    keys = {"bundle", "source", "edition", "platform", "modules", "archives", "bytes", "fetched"}
    assert document.keys() >= {*keys, "inventory", *COUNTS}
    assert document["bundle"] == str(folder)
    assert document["source"] == source.root
    assert document["edition"] == "ee"
    assert document["platform"]["versions"] == ["v1.69.1", "v1.70.0"]
    channels = {"alpha", "beta", "early-access", "stable", "rock-solid"}
    assert set(document["platform"]["channels"]) == channels
    assert document["archives"] == {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    assert document["bytes"] == sum(document["archives"].values())
    assert 0 < document["fetched"] < document["bytes"]
    assert DIGEST.fullmatch(document["inventory"])


def test_a_push_answers_with_what_it_sent(bundle: Path, target: str) -> None:
    run = call_mirror("push", bundle, target, "--insecure", "--json").succeeded()
    document = run.document
    assert run.stderr == ""
    assert document.keys() == {
        *("target", "inventory", "uploaded", "verified", "published"),
        *COUNTS,
    }
    assert document["target"] == target
    published = document["published"]
    assert published.keys() == {"generation", "inventory", "digest", "new"}
    assert (published["generation"], published["new"]) == (1, True)
    assert DIGEST.fullmatch(published["inventory"])
    assert DIGEST.fullmatch(published["digest"])
    assert document["uploaded"].keys() == {"blobs", "bytes", "manifests", "tags"}
    assert all(count > 0 for count in document["uploaded"].values())


def test_a_verification_answers_with_what_it_saw(bundle: Path, target: str) -> None:
    document = call_mirror("verify", bundle, "--json").succeeded().document
    assert document.keys() >= {"ok", "sealed", "archives", "bytes", "findings", "notices", *COUNTS}
    assert (document["ok"], document["sealed"], document["findings"]) == (True, True, [])
    assert document["bytes"] == sum(path.stat().st_size for path in bundle.glob("*.tar"))

    against = ("verify", bundle, "--against", target, "--insecure", "--json")
    lacking = call_mirror(*against)
    assert lacking.code == 4
    document = lacking.document
    keys = {"ok", "target", "deep", "inventory", "findings", *COUNTS}
    assert document.keys() == keys
    assert (document["ok"], document["deep"]) == (False, False)
    for finding in document["findings"]:
        assert finding.keys() == {
            *("place", "repository", "tags", "components", "digest", "problem"),
        }
        assert target in finding["place"]

    call_mirror("push", bundle, target, "--insecure").succeeded()
    document = call_mirror(*against, "--deep").succeeded().document
    assert document.keys() == keys
    assert (document["ok"], document["deep"], document["findings"]) == (True, True, [])


def test_a_failure_answers_with_its_type_its_message_and_its_code(tmp_path: Path) -> None:
    run = call_mirror("verify", tmp_path, "--json").failed(2, "holds no bundle")
    assert run.document.keys() == {"error"}
    error = run.document["error"]
    assert error.keys() == {"type", "message", "exitCode"}
    assert (error["type"], error["exitCode"]) == ("InputError", 2)
    assert run.stderr == f"error: {error['message']}\n"


def test_the_place_of_the_flag_does_not_matter(tmp_path: Path) -> None:
    after = call_mirror("verify", tmp_path, "--json")
    before = call_mirror("verify", "--json", tmp_path)
    assert json.loads(before.stdout) == json.loads(after.stdout)


# -- text ------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_progress_to_stderr(
    source: Source, tmp_path: Path, target: str
) -> None:
    folder = tmp_path / "bundle"
    pull = run_mirror("pull", folder, "--source", source.root, "--insecure").succeeded()
    assert pull.stdout.startswith(f"Bundle {folder} is complete\n")
    for word in ("v1.70.0, v1.69.1", "rock-solid", "platform.tar", "in total", "inventory sha256:"):
        assert word in pull.stdout
    assert re.search(r"^\d+ blobs \(.*\), \d+ manifests, \d+ tags$", pull.stderr, re.MULTILINE)
    verify = call_mirror("verify", folder).succeeded()
    assert verify.stdout.startswith("The bundle is whole (sealed: every byte is accounted for)\n")
    push = call_mirror("push", folder, target, "--insecure").succeeded()
    assert push.stdout.startswith(f"Registry {target} has every tag of the bundle\n")
    assert "comparing with the registry" in push.stderr
    assert "blobs" in push.stderr


def test_plain_lines_have_no_bars_and_no_colours(source: Source, tmp_path: Path) -> None:
    run = run_mirror("pull", tmp_path / "bundle", "--source", source.root, "--insecure")
    assert not re.search(r"[\r\x1b]|%\|", run.succeeded().text)


def test_a_terminal_shows_bars_and_stdout_stays_clean(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    code, out, shown = on_a_terminal("pull", folder, "--source", source.root, "--insecure")
    assert code == 0
    assert re.search(r"\d+ blobs, (\d+) of \1 archives: 100%\|", shown)
    assert "\r" in shown
    assert out.startswith(f"Bundle {folder} is complete\n")
    assert "\r" not in out


def test_json_on_a_terminal_shows_no_bars(bundle: Path) -> None:
    code, out, shown = on_a_terminal("verify", bundle, "--json")
    assert (code, shown) == (0, "")
    assert json.loads(out)["ok"] is True


def test_an_error_on_a_terminal_is_one_message(tmp_path: Path) -> None:
    code, out, shown = on_a_terminal("verify", tmp_path / "nowhere")
    assert (code, out) == (2, "")
    assert shown.startswith("\x1b[1;31merror:\x1b[0m ")
    assert "Traceback" not in shown


def test_a_dry_run_tells_the_summary_then_the_sizes_then_every_image(
    source: Source, tmp_path: Path
) -> None:
    dry = ("pull", tmp_path / "b", "--source", source.root, "--insecure", "--dry-run")
    document = call_mirror(*dry, "--json").succeeded().document
    text = call_mirror(*dry).succeeded().stdout
    lines = text.splitlines()
    summary, sizes, fetch, *groups = text.split("\n\n")

    titles = [line.split()[0] for line in summary.splitlines()[1:]]
    assert titles[:3] == ["Source", "Edition", "Platform"]
    assert titles[-3:] == ["Module", "Package", "Contents"]
    for noun, items in (("Module", document["modules"]), ("Package", document["packages"])):
        for name, versions in items.items():
            assert f"  {noun:<9}  {name} {', '.join(versions)}" in lines

    assert sizes.startswith("Archive sizes\n")
    for name in [*document["archives"], "in total"]:
        assert f"  {name} " in sizes
    assert fetch.startswith("To fetch: ")
    assert lines[-1].endswith("; nothing was pulled")

    images = document["references"]
    distinct = {(one["repository"], one["tag"]) for one in images}
    assert groups[0].startswith(
        f"{len(images)} images in {len(document['archives'])} archives, "
        f"{len(images) - len(distinct)} of them repeated: package-versions"
    )
    assert "--wide and --json have whole digests" in groups[0]
    assert f"{document['repositories']} repositories, {len(distinct)} tags" in summary
    listed = {
        group.splitlines()[0].strip(): [line.split() for line in group.splitlines()[1:]]
        for group in groups[1:-1]
    }
    assert listed.keys() == document["archives"].keys()
    for archive, rows in listed.items():
        expected = []
        for one in images:
            if one["archive"] == archive:
                short = one["digest"][: len("sha256:") + 12]
                bare = one["digest"] == f"sha256:{one['tag']}"
                place = one["repository"] or "/"
                tag = DIGEST_TAG.sub(r"\1", one["tag"])
                called = (
                    (place, *filter(None, (one["component"],))) if bare else (f"{place}:{tag}",)
                )
                expected.append((called, short))
        assert [(tuple(row[:-3]), row[-1]) for row in rows] == expected
    assert any(row[0] == "/" and "/" in row[1] for row in listed["platform.tar"])
    assert any(row[0] == "/:v1.70.0" for row in listed["platform.tar"])
    assert not (tmp_path / "b").exists()


def test_a_dry_run_tells_what_plugins_are_for_after_what_needs_them(
    embedded_registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    source = serve(SMALL, embedded_registry)
    dry = ("pull", tmp_path / "b", "--source", source.root, "--insecure", "--dry-run")
    lines = call_mirror(*dry).succeeded().stdout.splitlines()
    titles = [line.split()[0] for line in lines[: lines.index("")]]
    order = ("Platform", "Module", "Package", "Plugin", "Contents")
    assert [one for one in dict.fromkeys(titles) if one in order] == list(order)
    assert any(
        re.search(r"^  Plugin +postgresql-mgr v\S+ for module postgresql \(", line)
        for line in lines
    )


# -- further ways to name a bundle -----------------------------------------------------------------


def test_single_archives_are_pushed_beside_or_instead_of_a_folder(
    bundle: Path, target: str
) -> None:
    files = [bundle / "platform.tar", bundle / "installer.tar"]
    alone = ("push", "--file", files[0], "--file", files[1], target, "--insecure", "--json")
    assert call_mirror(*alone).succeeded().document["uploaded"]["tags"] > 0
    both = call_mirror("push", bundle, target, "--file", files[0], "--insecure", "--json")
    assert both.succeeded().document["uploaded"]["tags"] > 0
    call_mirror("verify", bundle, "--against", target, "--insecure").succeeded()


def test_a_working_folder_is_accepted_and_not_used(
    source: Source, bundle: Path, tmp_path: Path, target: str
) -> None:
    unused = tmp_path / "work"
    folder = tmp_path / "bundle"
    pull = ("pull", folder, "--source", source.root, "--insecure", "--tmp-dir", unused)
    call_mirror(*pull).succeeded()
    call_mirror("push", folder, target, "--insecure", "--tmp-dir", unused).succeeded()
    assert not unused.exists()


def test_parts_of_the_tree_are_left_out_on_request(source: Source, tmp_path: Path) -> None:
    pull = ("--source", source.root, "--insecure", "--json")
    without = ("--no-security-db", "--no-modules", "--no-packages", "--no-installer")
    run = call_mirror("pull", tmp_path / "platform", *pull, *without).succeeded()
    # Which versions of packages there are is told all the same, as `d8 mirror` does.
    assert set(run.document["archives"]) == {"platform.tar", "package-versions.tar"}
    run = call_mirror(
        "pull", tmp_path / "rest", *pull, "--no-platform", "--no-packages", "-i", "console"
    )
    assert set(run.succeeded().document["archives"]) == {
        "installer.tar",
        "module-console.tar",
        "package-versions.tar",
        "security.tar",
    }
    call_mirror("verify", tmp_path / "rest").succeeded()


def test_endpoints_that_fail_and_return_are_told_even_when_quiet() -> None:
    stream = io.StringIO()
    with progress(stream, form="none") as on_event:
        on_event(EndpointDown("10.0.0.1:5001", "GET 10.0.0.1:5001: refuses connections", 2.0))
        on_event(EndpointUp("10.0.0.1:5001"))
    down, up = stream.getvalue().splitlines()
    assert down.startswith("warning: reading from the others, 10.0.0.1:5001 failed: GET ")
    assert up == "10.0.0.1:5001 answers again"


@pytest.mark.parametrize("what", ["nowhere", "9" * 300, "9" * 5000, "9" * 19])
def test_what_a_prune_cannot_keep_is_named(what: str) -> None:
    run = call_mirror("prune", "registry.example/dkp/ee", "--keep", what)
    assert run.code == 2
    assert "no such file or folder, and no number of a generation" in run.stderr
