"""Stopped anywhere, by a person or by a power cut, the same command run again completes."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mirror.serve import MemoryStorage
from mirror.testing import Delay, EmbeddedRegistry, Fault, Stall
from tests.support.patience import without_waiting
from tests.support.program import Finished, RunningMirror, call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.wire import Wire, sealed_repositories

STALL_S = 45.0
_RUN = """
from mirror.commands import process
process._PATIENCE_S = 300.0
from mirror.__main__ import main
main()
"""
PATIENT = (sys.executable, "-c", _RUN)
"""The program, which never gives up by itself on threads that hang."""
CHANNELS = "alpha|beta|early-access|stable|rock-solid"
ASKED = (signal.SIGINT, signal.SIGTERM)
"""Signals by which people and service managers ask a program to stop."""


def ended(run: Finished, by: signal.Signals) -> None:
    """It ended as that signal makes it end."""
    if by is signal.SIGKILL:
        assert run.code == -signal.SIGKILL
    else:
        run.failed(130, "interrupted; run the same command again")


# -- pull --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_source(_this_machine_only: None) -> Iterator[Source]:
    """A tree that tests pull from one after the other; each leaves it without faults."""
    with EmbeddedRegistry(MemoryStorage()) as registry:
        yield serve(TINY, registry)


@pytest.fixture(scope="module")
def whole(quick_source: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted pull makes: every file of the bundle."""
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    call_mirror("pull", folder, "--source", quick_source.root, "--insecure").succeeded()
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    """Name → bytes of all files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def slow_source(quick_source: Source) -> Iterator[Source]:
    """The source, each of whose blobs takes its time."""
    quick_source.registry.faults.add(Fault(Delay(0.1), "GET", "/blobs/", times=None))
    quick_source.registry.requests.clear()
    yield quick_source
    quick_source.registry.faults.clear()


def interrupted_pull(source: Source, folder: Path, by: signal.Signals) -> Finished:
    """Run a pull and stop it when it has fetched some of the content."""
    with RunningMirror("pull", folder, "--source", source.root, "--insecure") as pull:
        pull.wait_until(lambda: any(folder.glob("*.partial")))
        begun = source.registry.requests.count("GET", "/blobs/")
        pull.wait_until(lambda: source.registry.requests.count("GET", "/blobs/") >= begun + 12)
        return pull.stop(by)


@pytest.mark.parametrize("by", [*ASKED, signal.SIGKILL], ids=lambda by: by.name)
def test_an_interrupted_pull_leaves_no_archive_and_the_next_one_is_as_good_as_new(
    slow_source: Source, whole: dict[str, bytes], tmp_path: Path, by: signal.Signals
) -> None:
    folder = tmp_path / "bundle"
    ended(interrupted_pull(slow_source, folder, by), by)
    assert {path.suffix for path in folder.iterdir()} == {".partial"}
    slow_source.registry.faults.clear()
    call_mirror("pull", folder, "--source", slow_source.root, "--insecure").succeeded()
    assert files(folder) == whole


def test_an_interrupted_pull_with_force_leaves_the_earlier_bundle_as_it_was(
    slow_source: Source, whole: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    arguments = ("pull", folder, "--source", slow_source.root, "--insecure", "--force")
    with RunningMirror(*arguments) as pull:
        pull.wait_until(lambda: any(folder.glob("*.partial")))
        ended(pull.stop(signal.SIGKILL), signal.SIGKILL)
    kept = {name: data for name, data in files(folder).items() if not name.endswith(".partial")}
    assert kept == whole
    call_mirror("verify", folder).succeeded()
    slow_source.registry.faults.clear()
    call_mirror(*arguments).succeeded()
    assert files(folder) == whole


def test_a_pull_that_is_interrupted_while_it_selects_leaves_nothing(
    quick_source: Source, tmp_path: Path
) -> None:
    registry, folder = quick_source.registry, tmp_path / "bundle"
    registry.faults.add(Fault(Delay(0.3), "GET", "/manifests/", times=None))
    registry.requests.clear()
    try:
        with RunningMirror("pull", folder, "--source", quick_source.root, "--insecure") as pull:
            pull.wait_until(lambda: registry.requests.count("GET", "/manifests/") > 0)
            ended(pull.stop(signal.SIGINT), signal.SIGINT)
    finally:
        registry.faults.clear()
    assert not folder.exists() or not list(folder.iterdir())


def test_results_of_an_interrupted_run_are_told_as_json_too(
    slow_source: Source, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    arguments = ("pull", folder, "--source", slow_source.root, "--insecure", "--json")
    with RunningMirror(*arguments) as pull:
        pull.wait_until(lambda: any(folder.glob("*.partial")))
        run = pull.stop(signal.SIGINT).failed(130)
    assert run.document["error"]["exitCode"] == 130


# -- push --------------------------------------------------------------------------------------

RELEASES = "/release(-channel)?"
MOMENTS = {
    "blobs": ("POST", "/blobs/uploads/", ("PUT", "/blobs/uploads/", 6)),
    "manifests": ("PUT", "/manifests/sha256:", ("PUT", "/manifests/sha256:", 6)),
    "images": ("PUT", "/manifests/v1", ("PUT", "/manifests/v1", 3)),
    "versions": ("PUT", f"{RELEASES}/manifests/v1", ("PUT", f"{RELEASES}/manifests/v1", 1)),
    "channels": ("PUT", f"/manifests/({CHANNELS})", ("PUT", f"/manifests/({CHANNELS})", 1)),
}
"""While what is being sent the push is stopped: requests to slow down, and how many to await."""


@pytest.fixture
def wire(target: EmbeddedRegistry) -> Iterator[Wire]:
    """The target as bare HTTP shows it."""
    with httpx.Client(base_url=target.url) as http:
        yield Wire(http)


@pytest.mark.parametrize(
    ("by", "moment"),
    [
        *((signal.SIGINT, moment) for moment in MOMENTS),
        (signal.SIGKILL, "blobs"),
        (signal.SIGKILL, "images"),
        (signal.SIGKILL, "versions"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_interrupted_push_leaves_no_dangling_tag_and_the_next_one_completes(
    tiny_bundle: Path, target: EmbeddedRegistry, wire: Wire, moment: str, by: signal.Signals
) -> None:
    method, path, (awaited_method, awaited_path, count) = MOMENTS[moment]
    target.faults.add(Fault(Delay(0.15), method, path, times=None))
    arguments = ("push", tiny_bundle, f"{target.address}/dkp/ee", "--insecure")
    with RunningMirror(*arguments, "--jobs", "2") as push:
        push.wait_until(
            lambda: target.requests.count(awaited_method, awaited_path, status=201) >= count
        )
        ended(push.stop(by), by)
    target.faults.clear()

    for repository in wire.repositories():
        assert wire.dangling(repository) == []
    assert_channels_come_last(tiny_bundle, wire)
    lacking = call_mirror("verify", tiny_bundle, "--against", f"{target.address}/dkp/ee", *PLAIN)
    assert lacking.code == 4, "the push was over before it was stopped"

    again = call_mirror(*arguments, "--json").succeeded()
    if moment in ("images", "versions", "channels"):  # what had arrived is not sent again
        assert again.document["uploaded"]["blobs"] == 0
    if moment in ("versions", "channels"):
        assert again.document["uploaded"]["manifests"] == 0
    against = ("verify", tiny_bundle, "--against", f"{target.address}/dkp/ee", "--deep")
    call_mirror(*against, *PLAIN).succeeded()


PLAIN = ("--insecure",)


def assert_channels_come_last(bundle: Path, wire: Wire) -> None:
    """A channel that is there leads to releases all of whose images are there."""
    wanted = sealed_repositories(bundle)
    channels = set(CHANNELS.split("|"))
    turned = [
        f"{path}:{channel}"
        for path in wanted
        if path.rpartition("/")[2] in ("release-channel", "release")
        for channel in channels & set(wire.tags(f"dkp/ee/{path}"))
    ]
    indexed = wire.tags("dkp/ee/modules")
    if turned or indexed:
        for path, content in wanted.items():
            there = set(wire.tags(f"dkp/ee/{path}".rstrip("/")))
            missing = set(content.tags) - there - (set() if indexed else channels)
            assert not missing, (turned, indexed, path)


def test_a_push_stopped_by_a_service_manager_ends_as_by_a_person(
    tiny_bundle: Path, target: EmbeddedRegistry
) -> None:
    target.faults.add(Fault(Delay(0.15), "POST", "/blobs/uploads/", times=None))
    with RunningMirror("push", tiny_bundle, f"{target.address}/dkp/ee", *PLAIN) as push:
        push.wait_until(lambda: target.requests.count("PUT", "/blobs/uploads/") > 0)
        ended(push.stop(signal.SIGTERM), signal.SIGTERM)


# -- how soon --------------------------------------------------------------------------------------


def test_a_pull_that_waits_for_a_silent_registry_still_ends_soon(
    quick_source: Source, whole: dict[str, bytes], tmp_path: Path
) -> None:
    registry, folder = quick_source.registry, tmp_path / "bundle"
    struck = registry.faults.struck
    registry.faults.add(Fault(Stall(10, STALL_S), "GET", "/blobs/", nth=25, times=None))
    try:
        with RunningMirror("pull", folder, "--source", quick_source.root, "--insecure") as pull:
            pull.wait_until(lambda: registry.faults.struck >= struck + 4)
            with without_waiting(STALL_S):
                ended(pull.stop(signal.SIGINT), signal.SIGINT)
    finally:
        registry.faults.clear()
    assert not list(folder.glob("*.tar"))
    call_mirror("pull", folder, "--source", quick_source.root, "--insecure").succeeded()
    assert files(folder) == whole


def test_a_second_interrupt_ends_at_once(quick_source: Source, tmp_path: Path) -> None:
    registry, folder = quick_source.registry, tmp_path / "bundle"
    struck = registry.faults.struck
    registry.faults.add(Fault(Stall(10, STALL_S), "GET", "/blobs/", nth=25, times=None))
    try:
        command = ("pull", folder, "--source", quick_source.root, "--insecure")
        with RunningMirror(*command, program=PATIENT) as pull:
            pull.wait_until(lambda: registry.faults.struck >= struck + 4)
            # Again and again, as two signals at the same moment count as one.
            with without_waiting(STALL_S):
                while pull.running:
                    pull.send(signal.SIGINT)
                    time.sleep(0.1)
                ended(pull.stop(signal.SIGINT), signal.SIGINT)
    finally:
        registry.faults.clear()
