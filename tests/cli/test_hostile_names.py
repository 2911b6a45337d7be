"""What others write never steers a terminal or forges a line, whichever command meets it."""

from __future__ import annotations

import http.client
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.bundle.format import SEAL
from mirror.commands.process import print_json
from mirror.errors import paragraph, printable
from mirror.events import EndpointDown, PhaseStarted, Retrying, Warned
from mirror.reports.progress import Cleaned, progress
from tests.support.program import Finished, call_mirror
from tests.support.release_source import Source
from tests.support.scripted_server import Reply, Request, ScriptedServer

EVIL = "x\nerror: FORGED\r\x1b[2J\x9b31m\x08\x7f\u202e\u2066\u2028\ud83d\0y"
IN_HEADERS = "x\x1b[2J\x9b31m"


def assert_clean(run: Finished) -> None:
    """Nothing printed steers a terminal, and nothing foreign begins a line."""
    for text in (run.stdout, run.stderr):
        for line in text.split("\n"):
            assert line.isprintable(), ascii(line)
            assert not re.match(r"\S*FORGED|error: FORGED", line), text
    assert "Traceback" not in run.text


# -- the function itself ---------------------------------------------------------------------------


def test_what_does_not_print_is_written_as_an_escape() -> None:
    assert printable("obychny текст 🦊 → é") == "obychny текст 🦊 → é"
    shown = r"x\nerror: FORGED\r\x1b[2J\x9b31m\x08\x7f\u202e\u2066\u2028\ud83d\x00y"
    assert printable(EVIL) == shown
    assert printable(printable(EVIL)) == shown


def test_further_lines_of_a_message_are_indented() -> None:
    assert paragraph("a:\n  b\nerror: c\x1b") == "a:\n  b\n  error: c\\x1b"


def test_json_means_the_same_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({EVIL: [EVIL, "\U000e0001"]})
    text = capsys.readouterr().out
    assert json.loads(text) == {EVIL: [EVIL, "\U000e0001"]}
    assert all(line.isprintable() for line in text.split("\n"))
    print_json({"é": "🦊"})
    assert "é" in capsys.readouterr().out


# -- progress and logs -----------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_shows_foreign_text_on_lines_of_its_own_message(
    capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    with progress(form="none" if quiet else "auto") as on_event:
        on_event(PhaseStarted(EVIL, 3))
        on_event(Warned(EVIL))
        on_event(Retrying(EVIL, 1, 0.5, EVIL))
        on_event(EndpointDown(EVIL, EVIL, 1.0))
    assert_clean(Finished(0, *capsys.readouterr()))


def test_a_record_of_the_log_begins_one_line() -> None:
    record = logging.LogRecord("mirror", logging.INFO, "", 0, "%s: %s", (EVIL, EVIL), None)
    text = Cleaned("%(levelname)s %(message)s").format(record)
    assert text.startswith("INFO x\n  error: FORGED\\r")
    assert_clean(Finished(0, text, ""))


# -- every command, against a registry that says such things ---------------------------------------

Change = Callable[[Request, Reply], Reply]


def refusals(request: Request, reply: Reply) -> Reply:
    """Every answer about content is an error with such a body."""
    if request.path in ("/v2/", "/v2"):
        return reply
    error = {"code": EVIL, "message": EVIL, "detail": {"reason": EVIL}}
    return Reply(403, {"Content-Type": IN_HEADERS}, json.dumps({"errors": [error]}).encode())


def challenges(_: Request, reply: Reply) -> Reply:
    """A login is asked for, at such a place."""
    challenge = f'Bearer realm="http://127.0.0.1:1/{IN_HEADERS}",service="{IN_HEADERS}"'
    return Reply(401, {"WWW-Authenticate": challenge}, reply.body)


def listings(request: Request, reply: Reply) -> Reply:
    """Lists of tags have such names."""
    if not request.path.startswith("/v2/") or "/tags/list" not in request.path:
        return reply
    assert isinstance(reply.body, bytes)
    document = json.loads(reply.body)
    return Reply(200, {}, json.dumps({**document, "tags": [*document["tags"], EVIL]}).encode())


def links(request: Request, reply: Reply) -> Reply:
    """Lists of tags go on at such a place, and uploads begin there."""
    place = {"Link": f'<{IN_HEADERS}>; rel="next"', "Location": f"/{IN_HEADERS}"}
    return Reply(reply.status, {**reply.headers, **place}, reply.body)


def manifests(request: Request, reply: Reply) -> Reply:
    """Manifests have such media types and annotations."""
    if "/manifests/" not in request.path or reply.status != 200:
        return reply
    assert isinstance(reply.body, bytes)
    document = json.loads(reply.body) if reply.body else {}
    document = {**document, "mediaType": EVIL, "artifactType": EVIL, "annotations": {EVIL: EVIL}}
    return Reply(200, {"Content-Type": IN_HEADERS}, json.dumps(document).encode())


def digests(request: Request, reply: Reply) -> Reply:
    """Answers name such digests and types."""
    told = {"Docker-Content-Digest": IN_HEADERS, "Content-Type": IN_HEADERS}
    return Reply(reply.status, {**reply.headers, **told}, reply.body)


CHANGES = (refusals, challenges, listings, links, manifests, digests)


@pytest.fixture(scope="module")
def filled(source: Source, bundle: Path) -> str:
    """A path in the registry that holds the bundle, as two generations."""
    target = f"{source.address}/hostile/filled"
    call_mirror("push", bundle, target, "--insecure").succeeded()
    return target


def forwarding(address: str, change: Change) -> Callable[[Request], Reply]:
    """Answers of the registry at `address`, changed."""

    def script(request: Request) -> Reply:
        connection = http.client.HTTPConnection(address, timeout=20)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
        try:
            body = request.body if request.method in ("POST", "PUT", "PATCH") else None
            connection.request(request.method, request.path, body, headers)
            answer = connection.getresponse()
            kept = {
                name: value.replace(f"http://{address}", "")
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "date", "server", "connection")
            }
            return change(request, Reply(answer.status, kept, answer.read()))
        finally:
            connection.close()

    return script


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_command_prints_what_a_registry_says_as_it_is(
    source: Source, bundle: Path, tmp_path: Path, filled: str, change: Change
) -> None:
    address, _, path = filled.partition("/")
    with ScriptedServer(forwarding(address, change)) as server:
        place = f"{server.host}/{path}"
        root = source.root.partition("/")[2]
        wanted = [
            ("pull", tmp_path / "new", "--source", f"{server.host}/{root}"),
            ("pull", tmp_path / "dry", "--source", f"{server.host}/{root}", "--dry-run"),
            ("push", bundle, place),
            ("push", bundle, place, "--dry-run"),
            ("sync", "--from", place, "--to", f"{address}/{path}-copy"),
            ("sync", "--from", f"{address}/{path}", "--to", place, "--dry-run"),
            ("status", place),
            ("diff", place, bundle),
            ("prune", place, "--keep", bundle, "--dry-run"),
            ("history", place),
            ("rollback", place, "--dry-run"),
            ("verify", bundle, "--against", place),
            ("inventory", place, "-o", tmp_path / "inventory.json"),
        ]
        for command in wanted:
            assert_clean(call_mirror(*command, "--insecure"))
        for command in (wanted[0], wanted[6], wanted[12]):
            run = call_mirror(*command, "--insecure", "--json")
            assert_clean(run)
            json.loads(run.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", EVIL),
        ("push", EVIL, EVIL),
        (EVIL,),
        ("status", EVIL),
        ("verify", f"--{IN_HEADERS}"),
        ("sync", "--from", EVIL, "--to", EVIL),
        ("pull", "/nonexistent", "--source", EVIL, "--include-module", EVIL),
        ("merge", EVIL, EVIL, EVIL),
        ("mode", "show", "--module-config", EVIL),
        ("inventory", EVIL, "-o", EVIL),
        ("prune", "registry.example/x", "--keep", EVIL),
    ],
)
def test_no_command_repeats_its_arguments_as_they_are(arguments: tuple[str, ...]) -> None:
    possible = (one.replace("\0", "").replace("\ud83d", "\udc9b") for one in arguments)
    run = call_mirror(*possible)
    assert run.code == 2
    for line in run.text.split("\n"):
        assert line.isprintable(), ascii(line)


# -- bundles that were altered on their way --------------------------------------------------------


def names(value: Any) -> Any:
    """The same document with every tag and annotation changed."""
    if isinstance(value, dict):
        return {
            key: EVIL
            if key in ("io.deckhouse.mirror.image", "org.opencontainers.image.ref.name")
            else names(one)
            for key, one in value.items()
        }
    return [names(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(params=["archives", "seal", "notes", "type"])
def altered(bundle: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A bundle that names things so, in one of its files."""
    folder = tmp_path / f"bundle {IN_HEADERS}\nerror: FORGED"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    seal = folder / SEAL
    match request.param:
        case "archives":
            (folder / "platform.tar").rename(folder / f"module-{EVIL[:60].strip(chr(0))[:20]}.tar")
        case "notes":
            (folder / "a\nerror: FORGED\x1b.tar").write_bytes(b"nothing")
        case "seal":
            seal.write_bytes(
                re.sub(
                    rb'"([a-z0-9.-]+)\.tar"', rb'"\1\\u001b\\nerror: FORGED.tar"', seal.read_bytes()
                )
            )
        case "type":
            seal.write_bytes(
                seal.read_bytes().replace(b"application/", b"\\u001b\\nerror: FORGED/")
            )
    return folder


def test_no_command_prints_what_a_bundle_says_as_it_is(
    source: Source, altered: Path, bundle: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    target = f"{source.address}/hostile/altered"
    for command in (
        ("verify", altered),
        ("verify", altered, "--quick"),
        ("inspect", altered),
        ("inspect", altered, "--json"),
        ("inspect", altered, "--html", page),
        ("push", altered, target, "--insecure"),
        ("diff", altered, bundle),
        ("diff", bundle, altered),
        ("merge", altered, tmp_path / "merged"),
        ("verify", altered, "--against", target, "--insecure"),
    ):
        assert_clean(call_mirror(*command))
    if page.exists():
        for line in page.read_text().split("\n"):
            assert line.isprintable(), ascii(line)
