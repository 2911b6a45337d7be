"""What a push writes down of its uploads, and what the next one makes of it."""

from __future__ import annotations

import json
import os
import resource
import stat
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest

from mirror.durable import Folder
from mirror.errors import CancelledError, DigestMismatchError, FileSystemError, UnreachableError
from mirror.oci import Digest, verified
from mirror.registry import RegistryClient, UploadJournal, upload_journal, upload_sessions
from mirror.registry.answers import Response
from mirror.run import Run
from tests.conftest import MakeRealRegistry
from tests.registry.conftest import MakeClient
from tests.registry.test_uploads import Source, method
from tests.support.fake_api import FakeRegistry, error, times
from tests.support.scripted_server import Hangup, Reply, Request, ScriptedServer
from tests.support.watched_client import watch

DATA = bytes(range(256)) * 12_000  # three million
DIGEST = Digest.of(DATA)
HOST = "registry.example:5000"
OTHER = Digest.of(b"other")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "uploads"


# -- the file --------------------------------------------------------------------------------------


def test_what_is_unfinished_is_known_to_the_next_run(folder: Path) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("a/b", DIGEST, "http://r/1", 0)
        journal.note("a/b", DIGEST, "http://r/2", 100)
        journal.note("a/c", DIGEST, "http://r/3", 7)
        journal.forget("a/c", DIGEST)
    with UploadJournal(folder, HOST) as journal:
        kept = journal.find("a/b", DIGEST)
        assert kept is not None
        assert (kept.location, kept.offset) == ("http://r/2", 100)
        assert journal.find("a/c", DIGEST) is None
        assert journal.find("a/b", OTHER) is None
        assert len(journal.path.read_text().splitlines()) == 1


def test_a_journal_with_nothing_in_it_is_gone(folder: Path) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("a", DIGEST, "http://r/1", 0)
        assert journal.path.exists()
        journal.forget("a", DIGEST)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("room", [0, 1, 200, 500, 1000])
def test_a_journal_that_finds_no_room_fails_no_upload_and_keeps_what_it_could_write(
    room: int, folder: Path
) -> None:
    """The system refuses it as a full disk does, part of a line taken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with UploadJournal(folder, HOST) as journal:
            for number in range(10):
                journal.note("a", Digest.of(bytes([number])), f"http://r/{number}", number)
            written = journal.path.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(written) == room
    with UploadJournal(folder, HOST) as journal:
        for number in range(written.count(b"\n")):
            kept = journal.find("a", Digest.of(bytes([number])))
            assert kept is not None
            assert (kept.location, kept.offset) == (f"http://r/{number}", number)
        assert journal.find("a", Digest.of(b"\x09")) is None
        journal.note("a", DIGEST, "http://r/new", 5)
    with UploadJournal(folder, HOST) as journal:
        assert journal.find("a", DIGEST) is not None


def test_only_its_owner_may_read_it(folder: Path) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("a", DIGEST, "http://r/1?_state=signed", 0)
        assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert "signed" not in repr(journal.find("a", DIGEST))
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600  # written anew when it was closed


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_line_costs_that_line(folder: Path, cut: int) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("a", DIGEST, "http://r/1", 0)
        journal.note("b", DIGEST, "http://r/2", 5)
        whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-cut])
    with UploadJournal(folder, HOST) as again:
        assert again.find("a", DIGEST) is not None
        assert (again.find("b", DIGEST) is None) == (cut > 1)
        again.note("c", DIGEST, "http://r/3", 0)
    with UploadJournal(folder, HOST) as third:
        assert third.find("c", DIGEST) is not None


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"repository":"a","digest":"md5:1","location":"x","offset":0,"at":0}',
        b'{"repository":"a","digest":"%s","location":"x","offset":"?","at":9e99}'
        % str(DIGEST).encode(),
        b"[" * 100_000,
    ],
)
def test_whatever_else_is_in_it_is_passed_over(folder: Path, line: bytes) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("b", OTHER, "http://r/1", 0)
    journal.path.write_bytes(line + b"\n" + journal.path.read_bytes())
    with UploadJournal(folder, HOST) as again:
        assert again.find("a", DIGEST) is None
        assert again.find("b", OTHER) is not None


def test_a_journal_that_cannot_be_written_leaves_nothing_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwritable(_folder: Folder, _name: str) -> BinaryIO:
        return os.fdopen(os.open(os.devnull, os.O_RDONLY), "r+b", buffering=0)

    monkeypatch.setattr(upload_journal, "_locked", unwritable)
    before = len([*Path("/proc/self/fd").iterdir()])
    with UploadJournal(folder, HOST) as journal:
        journal.note("a", DIGEST, "http://r/1", 0)
        journal.forget("a", DIGEST)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_what_registries_have_forgotten_by_now_is_forgotten(folder: Path) -> None:
    with UploadJournal(folder, HOST, clock=lambda: 0.0) as journal:
        journal.note("a", DIGEST, "http://r/1", 0)
    day = 24 * 3600.0
    with UploadJournal(folder, HOST, clock=lambda: 6 * day) as journal:
        assert journal.find("a", DIGEST) is not None
    with UploadJournal(folder, HOST, clock=lambda: 8 * day) as journal:
        assert journal.find("a", DIGEST) is None


def test_registries_have_journals_of_their_own_and_two_processes_never_share_one(
    folder: Path,
) -> None:
    with UploadJournal(folder, HOST) as first, UploadJournal(folder, "else:5000") as other:
        first.note("a", DIGEST, "http://r/1", 0)
        assert other.find("a", DIGEST) is None
        with UploadJournal(folder, HOST) as second:
            assert second.find("a", DIGEST) is None
            second.note("b", DIGEST, "http://r/2", 0)
            assert second.find("b", DIGEST) is None
        assert b"/2" not in first.path.read_bytes()


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileSystemError, match="name another folder with --state-dir"):
        UploadJournal(tmp_path / "file" / "uploads", HOST).__enter__()


# -- uploads that go on ----------------------------------------------------------------------------


Interrupt = Callable[[], bool]


class Dying(Source):
    """Content whose reader dies at an offset, as Ctrl-C has it."""

    def __init__(self, at: int) -> None:
        super().__init__(DATA)
        self.at = at

    def __call__(self, offset: int) -> Generator[bytes, None, None]:
        for piece in super().__call__(offset):
            if offset >= self.at:
                raise KeyboardInterrupt
            yield piece
            offset += len(piece)


def interrupted(client: RegistryClient, server: ScriptedServer, folder: Path) -> None:
    """Leave an upload in the journal, and a registry that has noticed."""
    with UploadJournal(folder, server.host) as journal, pytest.raises(KeyboardInterrupt):
        client.upload("a", DIGEST, len(DATA), Dying(2_000_000), journal=journal)
    while not server.has_answered("PUT"):
        time.sleep(0.005)  # it learns of the break a little later
    assert list(folder.iterdir())


def test_an_upload_goes_on_in_the_next_process_where_the_registry_got_to(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    interrupted(client, fake_server, folder)
    # Nobody cancelled it; what it has of the broken request is the registry's own affair.
    fake.sessions["s1"] = bytearray(DATA[:1_900_000])
    assert fake.cancelled == []
    fake_server.log.clear()
    source = Source(DATA)
    with UploadJournal(folder, fake_server.host) as journal:
        sent = client.upload("a", DIGEST, len(DATA), source, journal=journal)
    assert sent == len(DATA) - 1_900_000
    assert source.opened == [1_900_000]
    assert [one.method for one in fake_server.log] == ["GET", "PUT"]
    assert fake.blobs == {str(DIGEST): DATA}
    assert list(folder.iterdir()) == []


def test_a_session_that_the_registry_forgot_costs_that_blob(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    interrupted(client, fake_server, folder)
    fake.sessions.clear()
    fake_server.log.clear()
    with UploadJournal(folder, fake_server.host) as journal:
        assert client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal) == len(DATA)
    assert [one.method for one in fake_server.log] == ["GET", "HEAD", "POST", "PUT"]
    assert fake.blobs == {str(DIGEST): DATA}


def test_a_finished_upload_whose_answer_nobody_heard_is_not_sent_again(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    interrupted(client, fake_server, folder)
    fake.sessions.clear()
    fake.blobs[str(DIGEST)] = DATA
    with UploadJournal(folder, fake_server.host) as journal:
        assert client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("step", range(4))
def test_a_line_that_breaks_while_an_upload_is_taken_up_costs_an_attempt(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path, step: int
) -> None:
    interrupted(client, fake_server, folder)
    if step % 2:
        fake.sessions.clear()
    steps = iter(range(99))

    def hang_up(request: Request) -> Reply | None:
        if next(steps) == step // 2:
            raise Hangup
        return None

    fake.fault = hang_up
    with UploadJournal(folder, fake_server.host) as journal:
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.blobs == {str(DIGEST): DATA}
    assert list(folder.iterdir()) == []


def test_a_session_over_which_the_registry_breaks_down_costs_that_blob(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    """Distribution that was killed while it noted the state of its hash answers so for ever."""
    interrupted(client, fake_server, folder)
    fake.sessions["s1"] = bytearray(DATA[:1_000_000])

    def broken(request: Request) -> Reply | None:
        if request.method in ("PUT", "PATCH") and request.path.endswith("/s1"):
            request.body  # noqa: B018
            return error(500, "UNKNOWN")
        return None

    fake.fault = broken
    with UploadJournal(folder, fake_server.host) as journal:
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.blobs == {str(DIGEST): DATA}
    assert fake.opened == 2
    assert list(folder.iterdir()) == []


def test_a_journal_that_lies_is_found_out_by_the_registry(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    """The session is another upload's: its bytes are not ours, and the digest tells."""
    interrupted(client, fake_server, folder)
    fake.sessions["s1"] = bytearray(b"x" * 1_000_000)
    with UploadJournal(folder, fake_server.host) as journal:
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.blobs == {str(DIGEST): DATA}


def test_an_address_elsewhere_is_not_followed(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    with UploadJournal(folder, fake_server.host) as journal:
        journal.note("a", DIGEST, "http://127.0.0.1:1/v2/a/blobs/uploads/x", 0)
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.blobs == {str(DIGEST): DATA}


def test_an_address_that_no_request_can_have_costs_that_line(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    with UploadJournal(folder, fake_server.host) as journal:
        journal.note("a", DIGEST, f"http://{fake_server.host}/v2/a/blobs/uploads/\0", 0)
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.blobs == {str(DIGEST): DATA}
    assert not list(folder.iterdir())


def test_a_registry_that_is_down_keeps_its_sessions_for_later(
    make_client: MakeClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    fake.fault = times(99, method("PUT"), lambda request: error(503, "UNAVAILABLE"))
    client = make_client(fake_server.host, attempts=2)
    with UploadJournal(folder, fake_server.host) as journal, pytest.raises(UnreachableError):
        client.upload("a", DIGEST, len(DATA), Source(DATA), journal=journal)
    assert fake.sessions
    with UploadJournal(folder, fake_server.host) as journal:
        assert journal.find("a", DIGEST) is not None


def test_content_that_is_wrong_leaves_nothing_to_go_on_with(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    wrong = Source(DATA[:-1] + b"x")

    def content(offset: int) -> Generator[bytes, None, None]:
        yield from verified(wrong(offset), DIGEST, len(DATA), where="the bundle")

    with UploadJournal(folder, fake_server.host) as journal, pytest.raises(DigestMismatchError):
        client.upload("a", DIGEST, len(DATA), content, journal=journal)
    assert (fake.blobs, fake.sessions) == ({}, {})
    assert list(folder.iterdir()) == []


def test_small_blobs_are_not_written_down(
    client: RegistryClient, fake: FakeRegistry, fake_server: ScriptedServer, folder: Path
) -> None:
    small = DATA[:1000]

    def look(request: Request) -> Reply | None:
        if request.method == "PUT":
            assert journal.path.read_bytes() == b""
            raise Hangup
        return None

    fake.fault = times(1, method("PUT"), lambda request: look(request) or Reply(500))
    with UploadJournal(folder, fake_server.host) as journal:
        client.upload("a", Digest.of(small), len(small), Source(small), journal=journal)
    assert list(folder.iterdir()) == []


def test_distribution_goes_on_after_a_process_that_stopped_between_two_chunks(
    make_real_registry: MakeRealRegistry,
    make_client: MakeClient,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_sessions, "CHUNK", 1 << 20)
    registry = make_real_registry()
    client = make_client(registry.address)
    chunk = 1 << 20
    source = Source(DATA)
    with UploadJournal(folder, registry.address) as journal:
        run = Run()

        def confirmed(response: Response) -> None:
            kept = journal.find("a", DIGEST)
            if kept is not None and kept.offset == chunk and response.status == 202:
                run.cancellation.cancel()

        # The answer to the second chunk is here, and no byte of the third is on its way.
        watch(client, answered=confirmed)
        with pytest.raises(CancelledError):
            client.within(run).upload("a", DIGEST, len(DATA), source, journal=journal)
    source = Source(DATA)
    with UploadJournal(folder, registry.address) as journal:
        client.upload("a", DIGEST, len(DATA), source, journal=journal)
    assert source.opened[0] == 2 * chunk
    assert b"".join(client.blob("a", DIGEST, size=len(DATA))) == DATA


def test_the_journal_holds_no_credential(
    make_client: MakeClient, make_real_registry: MakeRealRegistry, folder: Path
) -> None:
    from mirror.registry import Credentials
    from tests.support.real_registry import ACCOUNT, HTPASSWD

    registry = make_real_registry(htpasswd=HTPASSWD)
    client = make_client(registry.address, Credentials(*ACCOUNT))
    with UploadJournal(folder, registry.address) as journal:
        with pytest.raises(KeyboardInterrupt):
            client.upload("a", DIGEST, len(DATA), Dying(1_000_000), journal=journal)
        (line,) = set(journal.path.read_text().splitlines())
    assert json.loads(line).keys() == {"repository", "digest", "location", "offset", "at"}
    assert ACCOUNT[1] not in line


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 5000, "NaN", '"x"', "null"])
@pytest.mark.parametrize("field", ["offset", "at"])
def test_a_number_that_makes_no_sense_costs_that_line(
    folder: Path, field: str, number: str
) -> None:
    with UploadJournal(folder, HOST) as journal:
        journal.note("a", DIGEST, "http://r/1", 5)
        path = journal.path
    lines = path.read_text().splitlines()
    broken = json.loads(lines[0]) | {"digest": str(OTHER), field: "#"}
    path.write_text("\n".join([json.dumps(broken).replace('"#"', number), *lines]) + "\n")
    with UploadJournal(folder, HOST) as journal:
        assert journal.find("a", DIGEST) is not None


def test_the_constructor_touches_no_disk(folder: Path) -> None:
    UploadJournal(folder, HOST)
    assert not folder.exists()


# -- others who may write there --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jsonl", ".new"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_what_is_planted_in_its_place_leads_nowhere(kind: str, suffix: str, tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "state"
    victim.write_bytes(b"mine")
    folder.mkdir()
    planted = UploadJournal(folder, HOST).path.with_suffix(suffix)
    match kind:
        case "symlink":
            planted.symlink_to(victim)
        case "hard link":
            os.link(victim, planted)
        case _:
            os.mkfifo(planted)
    refused = (
        pytest.raises(FileSystemError, match="cannot be written down there, name another folder")
        if suffix == ".jsonl"
        else nullcontext()
    )
    with refused, UploadJournal(folder, HOST) as journal:
        journal.note("a", Digest.of(b"a"), "http://r.example/1", 5)
    assert victim.read_bytes() == b"mine"
    assert victim.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
def test_its_folder_is_its_owners_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with UploadJournal(tmp_path / "state", HOST) as journal:
            journal.note("a", Digest.of(b"a"), "http://r.example/1", 5)
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert journal.path.stat().st_mode & 0o777 == 0o600
