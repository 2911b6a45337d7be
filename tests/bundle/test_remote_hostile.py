"""A web server that lies about the files of a bundle: it is told so, and costs little."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mirror.bundle.location import RemotePath
from mirror.bundle.static_server import remote_folder
from mirror.errors import ConflictError, MirrorError
from mirror.registry import ConnectionOptions
from mirror.registry.downloads import FileState
from mirror.registry.options import RetryPolicy
from mirror.run import Run
from tests.support.scripted_server import Hangup, Reply, Request, ScriptedServer

MIB = 1 << 20
AT_ONCE = RetryPolicy(attempts=3, sleep=lambda _seconds: None)
SUM = "0" * 64
SEALS = ("inventory.json", "inventory.json.sig")


@contextmanager
def served(script: Callable[[Request], Reply]) -> Iterator[tuple[RemotePath, ScriptedServer]]:
    """The folder `/b` of a server that answers as `script` says."""
    options = ConnectionOptions(plain_http=True, retries=AT_ONCE)
    with (
        ScriptedServer(script) as server,
        remote_folder(f"{server.url}/b", options=options) as folder,
    ):
        yield folder, server


def ranged(content: bytes, **headers: str) -> Callable[[Request], Reply]:
    """A script that serves `content`, whatever is asked for, with ranges."""

    def script(request: Request) -> Reply:
        asked = request.headers.get("range")
        if request.method == "HEAD" or asked is None:
            return Reply(200, dict(headers), content)
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        told = {"Content-Range": f"bytes {first}-{last}/{len(content)}", **headers}
        return Reply(206, told, content[first : last + 1])

    return script


def read(folder: RemotePath, name: str, state: FileState, offset: int, size: int) -> bytes:
    objects = folder._objects
    return b"".join(objects.chunks(name, state, offset, size, Run()))


def test_what_comes_behind_the_bytes_that_were_asked_for_is_not_waited_for() -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += MIB
            yield bytes(MIB)

    def script(_request: Request) -> Reply:
        return Reply(206, {"Content-Range": "bytes 10-19/1000"}, endless())

    with served(script) as (folder, _):
        assert read(folder, "a.tar", FileState(1000), 10, 10) == bytes(10)
    assert sent < 32 * MIB


@pytest.mark.parametrize("name", ["..", ".", "a\x1bb", "a\udc80", "x" * 300])
def test_a_name_in_sums_that_no_file_of_a_bundle_has_is_asked_for_nowhere(name: str) -> None:
    sums = f"{SUM}  ".encode() + name.encode(errors="surrogateescape") + b"\n"
    sums += f"{SUM}  platform.tar\n".encode()
    with served(ranged(sums)) as (folder, server):
        assert {file.name for file in folder.iterdir()} >= {"SHA256SUMS", "platform.tar"}
    asked = {one.path for one in server.log}
    assert asked <= {f"/b/{one}" for one in ("SHA256SUMS", *SEALS, "platform.tar")}


@pytest.mark.parametrize("mark", ["ETag", "Last-Modified"])
def test_a_file_that_is_replaced_by_one_of_its_size_is_never_mixed(mark: str) -> None:
    marks = iter(['"1"', '"1"', '"2"', '"2"', '"2"', '"2"'])

    def script(request: Request) -> Reply:
        reply = ranged(bytes(100))(request)
        reply.headers[mark] = next(marks)
        return reply

    with served(script) as (folder, _):
        state = FileState(100, '"1"')
        assert read(folder, "a.tar", state, 0, 10) == bytes(10)
        assert read(folder, "a.tar", state, 10, 10) == bytes(10)
        with pytest.raises(ConflictError, match="was changed while it was read"):
            read(folder, "a.tar", state, 20, 10)


@pytest.mark.parametrize("answer", [Reply(403), Reply(500), Reply(200), Reply(206, {}, b"x"), None])
def test_what_a_redirect_signs_is_shown_nowhere(
    answer: Reply | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    def far(_request: Request) -> Reply:
        if answer is None:
            raise Hangup
        return answer

    with ScriptedServer(far) as other:
        where = f"http://localhost:{other.host.rpartition(':')[2]}/x?X-Amz-Signature=s3cret"
        script = Reply(307, {"Location": where})
        with served(lambda _: script) as (folder, _), pytest.raises(MirrorError) as caught:
            read(folder, "a.tar", FileState(100), 10, 10)
        assert all("authorization" not in one.headers for one in other.log)
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told + caplog.text
    assert "127.0.0.1" in told
