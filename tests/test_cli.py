"""How the program begins and ends: usage, interruption, failures, secrets on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

import mirror
from mirror.oci import Digest
from mirror.serve import BasicAuth, User
from mirror.sync import MemoryStore
from mirror.testing import Answer, EmbeddedRegistry, Fault
from tests.conftest import MakeEmbeddedRegistry
from tests.support.bundles import pack_store
from tests.support.inventories import put_image
from tests.support.program import PROGRAM, ROOT, call_mirror, environment

INTERRUPTED = "error: interrupted; run the same command again\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with forty blobs."""
    store = MemoryStore()
    layers = tuple(f"layer {number}".encode() for number in range(39))
    put_image(store, "", "v1.70.0", layers=layers)
    folder = tmp_path / "bundle"
    pack_store(store, folder)
    return folder


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("verify", "--json"), "Missing argument 'BUNDLE_DIR'"),
        (("verify", "x", "--mend", "--json"), "--mend"),
        (("--mend", "verify", "x", "--json"), "--mend"),
        (("mend", "--json"), "mend"),
        (("push", "x", "reg/x", "--jobs", "many", "--json"), "many"),
        (("config", "schemes", "--json"), "schemes"),
    ],
)
def test_a_usage_error_is_told_to_programs_too(arguments: tuple[str, ...], told: str) -> None:
    run = call_mirror(*arguments).failed(2, "Usage: mirror", told)
    error = run.document["error"]
    assert error.keys() == {"type", "message", "exitCode"}
    assert (error["type"], error["exitCode"]) == ("UsageError", 2)
    assert told in error["message"]


def test_without_json_a_usage_error_prints_no_document() -> None:
    assert call_mirror("verify").failed(2, "BUNDLE_DIR").stdout == ""
    assert call_mirror("verify", "--", "--json", "more").failed(2, "more").stdout == ""


def test_the_module_goes_by_the_name_of_the_program() -> None:
    done = subprocess.run([*PROGRAM, "verify"], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.startswith("Usage: mirror verify [OPTIONS] BUNDLE_DIR\n")


def test_all_public_names_are_there_and_no_others() -> None:
    for name in mirror.__all__:
        one = getattr(mirror, name)
        # Types such as OnEvent have no name of their own; Python 3.14 calls each union "Union".
        own = getattr(one, "__name__", name).rpartition(".")[2]
        assert own in (name, "Callable", "Union")
    assert set(mirror.__all__) <= set(dir(mirror))
    with pytest.raises(AttributeError, match="has no attribute 'mend'"):
        _ = mirror.mend  # type: ignore[attr-defined]


@pytest.mark.parametrize("folder", ["bundle", "out/bundle"])
def test_a_push_with_its_arguments_in_the_wrong_order_is_told_so(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(parents=True)
    told = f"{folder} is a folder here, and the registry comes last"
    call_mirror("push", "registry.example.com/dkp", folder).failed(2, told)
    call_mirror("push", folder).failed(2, told)
    (tmp_path / "platform.tar").write_bytes(b"")
    told = "platform.tar is a file here, and the registry comes last"
    call_mirror("push", "registry.example.com/dkp", "platform.tar").failed(2, told)
    call_mirror("push", "--file", "platform.tar", "platform.tar").failed(2, told)


def test_a_folder_named_like_the_registry_is_no_hindrance(
    bundle: Path, embedded_registry: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.parent)
    (bundle.parent / embedded_registry.address / "dkp").mkdir(parents=True)
    call_mirror("push", bundle, f"{embedded_registry.address}/dkp", "--insecure").succeeded()


# -- interruption ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
@pytest.mark.parametrize("as_json", [False, True])
def test_whoever_stops_it_while_it_loads_gets_one_line(
    by: signal.Signals, as_json: bool, tmp_path: Path
) -> None:
    loading = tmp_path / "loading"
    (tmp_path / "click.py").write_text(
        f"import pathlib, time\npathlib.Path({str(loading)!r}).touch()\ntime.sleep(30)\n"
    )
    process = subprocess.Popen(
        [*PROGRAM, "verify", tmp_path, *(["--json"] if as_json else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment({"PYTHONPATH": str(tmp_path)}),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not loading.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(by)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, INTERRUPTED)
    if as_json:
        error = {"type": "Interrupted", "message": INTERRUPTED[7:-1], "exitCode": 130}
        assert json.loads(out) == {"error": error}
    else:
        assert out == ""


# -- failures --------------------------------------------------------------------------------------


def test_a_refusing_registry_is_told_shortly_and_to_programs_in_full(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    embedded_registry.faults.add(Fault(Answer(405), "POST", "/blobs/", times=None))
    target = f"{embedded_registry.address}/dkp"
    run = call_mirror("push", bundle, target, *("--insecure", "--no-access-check", "--json"))
    run.failed(1, "40 of 40 blobs could not be brought from ", f" to {target}\n", "read-only")
    error = run.document["error"]
    assert error.keys() == {"type", "message", "exitCode", "failures"}
    assert error["type"] == "IncompleteError"
    assert run.stderr == f"error: {error['message']}\n"
    assert len(error["message"].splitlines()) == 2
    assert len(error["failures"]) == 40
    for failure in error["failures"]:
        assert failure.keys() == {"item", "type", "message"}
        assert failure["item"].startswith("blob sha256:")
        assert failure["type"] == "RegistryError"
        assert "HTTP 405" in failure["message"]


def test_a_damaged_bundle_is_to_be_verified(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    archive = bundle / "platform.tar"
    archive.write_bytes(archive.read_bytes().replace(b"layer 7", b"layer X"))
    push = ("push", bundle, f"{embedded_registry.address}/dkp", "--insecure")
    run = call_mirror(*push).failed(4, "1 of 40 blobs", "\n`mirror verify` names the archive")
    embedded_registry.faults.add(Fault(Answer(405), "POST", "/blobs/", times=None))
    assert "mirror verify" not in call_mirror(*push).stderr
    assert run.stdout == ""


def test_a_registry_that_says_it_took_something_else_is_blamed_and_not_the_bundle(
    bundle: Path, embedded_registry: EmbeddedRegistry
) -> None:
    other = Digest.of(b"something else")
    lie = Answer(201, {"Docker-Content-Digest": str(other), "Location": "/v2/x"}, b"")
    embedded_registry.faults.add(Fault(lie, "PUT", "/manifests/", times=None))
    run = call_mirror("push", bundle, f"{embedded_registry.address}/dkp", "--insecure").failed(
        4,
        "expected sha256:",
        f", the registry says that it took {other}; look at the registry, or at what answers in",
    )
    assert "mirror verify" not in run.stderr
    assert "take it again" not in run.stderr


SOURCE_FLAGS = "Credentials are given by --source-login and --source-password, or --license, or"
TARGET_FLAGS = "Credentials are given by --registry-login and --registry-password, or"


def test_a_denied_command_names_its_own_flags(
    make_embedded_registry: MakeEmbeddedRegistry, bundle: Path, tmp_path: Path
) -> None:
    reader = User("right", frozenset({"pull"}))
    registry = make_embedded_registry(auth=BasicAuth({"ci": reader}))
    root = f"{registry.address}/dkp"
    pull = ("pull", tmp_path / "new", "--source", root, "--insecure")
    push = ("push", bundle, root, "--insecure")
    verify = ("verify", bundle, "--against", root, "--insecure")
    for command, flags in ((pull, SOURCE_FLAGS), (push, TARGET_FLAGS), (verify, TARGET_FLAGS)):
        run = call_mirror(*command).failed(6, "asks for a login and none was given", flags)
        assert run.stderr.count("--") == flags.count("--")
    wrong = call_mirror(*push, "-u", "ci", "-p", "wrong")
    wrong.failed(6, "refuses the login of user ci", TARGET_FLAGS)
    assert "wrong" not in wrong.stderr
    call_mirror(*push, "-u", "ci", "-p", "right").failed(6, "user ci may not do this", TARGET_FLAGS)


def test_a_failure_of_another_kind_names_no_flags(bundle: Path) -> None:
    run = call_mirror("push", bundle, "127.0.0.1:1/dkp", "--insecure", "--ca", "/etc/hostname")
    assert run.code != 0
    assert "Credentials" not in run.stderr


# -- secrets ---------------------------------------------------------------------------------------


def typed(secret: str, *arguments: str | Path) -> tuple[int, str]:
    """Run the program at a terminal and type `secret` when asked: (code, all that it showed)."""
    ours, theirs = pty.openpty()
    shown = b""
    try:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=environment({"TERM": "xterm"}),
            start_new_session=True,  # without a terminal of its own but this one
        )
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: the other side was closed
            asked = False
            while piece := os.read(ours, 65536):
                shown += piece
                if not asked and shown.rstrip().endswith(b":"):
                    asked = True
                    os.write(ours, f"{secret}\n".encode())
        process.wait(60)
    finally:
        os.close(ours)
    return process.returncode, shown.decode()


def test_a_password_is_asked_for_and_typed_unseen(
    make_embedded_registry: MakeEmbeddedRegistry, bundle: Path
) -> None:
    registry = make_embedded_registry(auth=BasicAuth({"ci": User("Pass phrase")}))
    push = ("push", bundle, f"{registry.address}/dkp", "--insecure", "-u", "ci", "-p", "-")
    code, shown = typed("Pass phrase", *push)
    assert code == 0, shown
    assert f"Password of ci at {registry.address}: " in shown
    assert "Pass phrase" not in shown


def test_a_licence_key_is_asked_for_and_typed_unseen(
    make_embedded_registry: MakeEmbeddedRegistry, tmp_path: Path
) -> None:
    registry = make_embedded_registry(auth=BasicAuth({"license-token": User("the-key")}))
    root = f"{registry.address}/deckhouse/ee"
    pull = ("pull", tmp_path / "new", "--source", root, "--insecure", "--license", "-")
    code, shown = typed("the-key", *pull)
    assert code not in (0, 2, 6, 130), shown  # let in, and there is nothing to pull
    assert "Licence key: " in shown
    assert "the-key" not in shown
    assert registry.requests.count("GET", "/v2/", status=200)


def test_a_pipe_is_asked_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, bundle: Path
) -> None:
    registry = make_embedded_registry(auth=BasicAuth({"ci": User("Pass phrase")}))
    push = ("push", bundle, f"{registry.address}/dkp", "--insecure", "-u", "ci", "-p", "-")
    run = call_mirror(*push, stdin="Pass phrase\nmore\n").succeeded()
    assert "Password" not in run.text
    call_mirror(*push, stdin="").failed(2, "a password for ci is missing")
    license_key = ("pull", bundle.parent / "new", "--license", "-")
    call_mirror(*license_key, stdin="").failed(2, "--license - found no key")
