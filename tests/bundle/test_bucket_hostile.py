"""An S3 server that lies: that is told, nothing else of the bucket is touched, it costs little."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import count
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from mirror.bundle.bucket import Bucket, BucketAddress, Part
from mirror.bundle.bucket_place import BucketPlace
from mirror.bundle.s3_answers import parsed, text
from mirror.errors import CancelledError, InputError, RegistryError
from mirror.registry.options import ConnectionOptions, RetryPolicy
from mirror.run import Cancellation, Run
from tests.support.object_storage import LOGIN
from tests.support.patience import PATIENCE_S, ends_within
from tests.support.scripted_server import Reply, Request, ScriptedServer

MIB = 1 << 20
PREFIX = "of/today"


@pytest.fixture(autouse=True)
def _login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", LOGIN[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", LOGIN[1])


@contextmanager
def answering(
    script: Callable[[Request], Reply], prefix: str = PREFIX
) -> Iterator[tuple[Bucket, ScriptedServer]]:
    """A place in the bucket of a server that answers as `script` says."""
    options = ConnectionOptions(retries=RetryPolicy(attempts=3, sleep=lambda _seconds: None))
    with ScriptedServer(script) as server:
        environment = {"AWS_ENDPOINT_URL_S3": server.url}
        place = BucketAddress("bundles", prefix)
        with closing(Bucket(place, environment=environment, options=options)) as bucket:
            yield bucket, server


def page(*entries: str, more: str = "", encoded: bool = True) -> Reply:
    """A page of a list; `more` is what says that others follow."""
    coding = "<EncodingType>url</EncodingType>" if encoded else ""
    return Reply(200, {}, f"<List>{coding}{more}{''.join(entries)}</List>".encode())


def listed(key: str, size: int = 1, tag: str = "Contents", more: str = "") -> str:
    fields = f"<Key>{escape(key)}</Key><Size>{size}</Size><ETag>e</ETag>{more}"
    return f"<{tag}>{fields}</{tag}>"


# -- lists that lie --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "of/today/../yesterday/platform.tar",
        "of/today/%2E%2E",
        "of/today/a%2Fplatform.tar",
        "of/other/platform.tar",
        "of/todayplatform.tar",
        "elsewhere-platform.tar",
        "of/today/a%00b.tar",
        "of/today/a%1Bb.tar",
        "of/today/" + "x" * 1000,
        "",
    ],
)
def test_a_listed_name_that_is_of_no_file_there_leads_nowhere(key: str) -> None:
    def script(request: Request) -> Reply:
        if request.method == "DELETE":
            return Reply(204)
        tag = "Contents" if "delimiter" in request.query else "Upload"
        there = listed("of/today/platform.tar", tag=tag, more="<UploadId>u</UploadId>")
        return page(listed(key, tag=tag, more="<UploadId>v</UploadId>"), there)

    with answering(script) as (bucket, server):
        assert list(bucket.states(Run())) == ["platform.tar"]
        BucketPlace(bucket, Run()).clear()
    removed = {one.path for one in server.log if one.method == "DELETE"}
    assert removed == {"/bundles/of/today/platform.tar"}


@pytest.mark.parametrize("encoded", [True, False])
def test_names_are_read_as_the_server_says_that_it_wrote_them(*, encoded: bool) -> None:
    key = "my+%2B+bundles/a+b%25.tar" if encoded else "my + bundles/a b%.tar"
    with answering(lambda _: page(listed(key), encoded=encoded), "my + bundles") as (bucket, _):
        assert list(bucket.states(Run())) == ["a b%.tar"]


DEEP = (4 * MIB - 7) // 7
MANY = {
    "entries": "<a/>" * (MIB - 4),
    "depth": "<a>" * DEEP + "</a>" * DEEP,
    "attributes": "<a " + " ".join(f"a{one:x}=''" for one in range(300_000)) + "/>",
}


@pytest.mark.parametrize("kind", MANY)
def test_an_answer_that_has_more_than_any_list_costs_nothing(kind: str) -> None:
    with pytest.raises(ElementTree.ParseError, match="more in it than any list"):
        parsed(f"<List>{MANY[kind]}</List>".encode())


BOMB = '<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><List>&b;</List>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "cp037", "utf-7"])
def test_no_encoding_hides_a_document_type(encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    for answer in ((declared + BOMB).encode(encoding), declared.encode() + BOMB.encode(encoding)):
        with pytest.raises(ElementTree.ParseError):
            parsed(answer)


@pytest.mark.parametrize("name", ["UploadId", "Key"])
def test_a_field_that_is_longer_than_any_is_refused(name: str) -> None:
    tree = ElementTree.fromstring(f"<a><{name}>{'x' * 5000}</{name}></a>")
    with pytest.raises(RegistryError, match=f"is not to be believed: it has too long a {name}"):
        text(tree, name)


def test_a_list_without_end_is_left_while_it_takes_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mirror.bundle.bucket._MOST_LISTED", 2000)
    entries = "".join(listed(f"{PREFIX}/{one}") for one in range(500))
    tokens = count()

    def endless(_request: Request) -> Reply:
        token = f"<NextContinuationToken>{next(tokens)}</NextContinuationToken>"
        return page(entries, more=f"<IsTruncated>true</IsTruncated>{token}")

    ends = pytest.raises(RegistryError, match="list does not end; use a prefix that holds the")
    with answering(endless) as (bucket, server), ends:
        bucket.states(Run())
    assert len(server.log) == 4


def test_a_seal_as_large_as_the_server_says_is_not_read() -> None:
    def script(request: Request) -> Reply:
        assert "delimiter" in request.query, "nothing is read"
        return page(
            *(listed(f"{PREFIX}/{name}", 10**15) for name in ("inventory.json", "SHA256SUMS"))
        )

    with answering(script) as (bucket, _), pytest.raises(InputError, match="not empty"):
        BucketPlace(bucket, Run()).check(force=False)


# -- uploads that lie ------------------------------------------------------------------------------

PARTS = {1: Part(5, "a"), 2: Part(6, "b")}


@pytest.mark.parametrize(
    ("size", "plan"), [(5, "plan"), (12, "plan"), (11, "another plan"), (None, "plan")]
)
def test_an_object_that_lacks_a_part_or_is_of_another_plan_is_not_complete(
    size: int | None, plan: str
) -> None:
    def script(request: Request) -> Reply:
        if request.method == "POST":
            return Reply(200, {}, b"<CompleteMultipartUploadResult/>")
        if size is None:
            return Reply(404)
        return Reply(200, {"Content-Length": str(size), "x-amz-meta-mirror-plan": plan})

    told = pytest.raises(RegistryError, match="says that the upload is complete, but the object")
    with answering(script) as (bucket, _), told:
        bucket.complete("platform.tar", "id", PARTS, "plan", Run())


def test_a_part_whose_answer_is_not_an_s3_servers_has_not_arrived() -> None:
    told = pytest.raises(RegistryError, match="the answer to part 3 has no ETag")
    with answering(lambda _: Reply(200)) as (bucket, _), told:
        bucket.put_part("platform.tar", "id", 3, b"x", Run())


def test_who_is_stopped_does_not_wait_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's chain asks services that a machine may not have, each for as long as it likes."""
    asked = threading.Event()

    def never(*_given: object) -> Future[object]:
        asked.set()
        return Future()

    monkeypatch.setattr("awscrt.auth.aws_sign_request", never)
    cancellation, ends = Cancellation(), list[BaseException]()
    with answering(lambda _: page()) as (bucket, server):

        def work() -> None:
            try:
                bucket.states(Run(cancellation=cancellation))
            except CancelledError as err:
                ends.append(err)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        assert asked.wait(PATIENCE_S)
        with ends_within(2.0):
            cancellation.cancel()
            worker.join(PATIENCE_S)
        assert server.log == []
    assert len(ends) == 1


def test_no_key_of_the_answer_is_shown_to_another_host_or_in_a_message() -> None:
    with ScriptedServer(lambda _: Reply(200, {}, b"<List/>")) as other:
        where = f"http://localhost:{other.host.rpartition(':')[2]}/x?X-Amz-Signature=s3cret"

        def script(_request: Request) -> Reply:
            body = b"<Error><Code>TemporaryRedirect</Code></Error>"
            return Reply(307, {"Location": where}, body)

        with answering(script) as (bucket, _), pytest.raises(RegistryError) as caught:
            bucket.states(Run())
        assert other.log == []
    assert "s3cret" not in str(caught.value)
