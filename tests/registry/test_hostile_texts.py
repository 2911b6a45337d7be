"""Whatever texts an answer has in its fields, what leaves the client is an error of ours.

No network is asked: a request that would go elsewhere ends where its connection would begin.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mirror.errors import MirrorError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_INDEX
from mirror.registry import (
    ConnectionOptions,
    Credentials,
    RegistryClient,
    RetryPolicy,
    UploadJournal,
)
from mirror.registry.answers import Response
from mirror.registry.connections import Connections, _Destination
from mirror.registry.hosts import Origin
from mirror.registry.http1 import Body, Connection, Headers, Patience, WireError, WireFault
from tests.support.hostile import json_documents
from tests.support.strategies import MORE_EXAMPLES

HOST = "registry.example"
BLOB = b"content"
DIGEST = Digest.of(BLOB)
INDEX = Manifest.parse(b'{"schemaVersion":2,"manifests":[]}', OCI_INDEX)

_SCHEMES = (
    *("http://", "https://", "HTTP://", "ftp://", "//", "", ":", "http:/", "http:", "javascript:"),
)
_HOSTS = (
    *("a", "xn--", "a" * 64, "a" * 300, "a." * 130, "☃.example", "ß", "\u2024", "a\u3002b", "％41"),
    *("[::1", "[::1]", "[fe80::1%25eth0]", "[::ffff:1.2.3.4]", "1.2.3.4.5", "0x7f.1", "127.1"),
    *("", ".", "..", "-", "a b", "a\tb", "user:word@host", "@", "@@", "\x00", "\udc80", "\u202e"),
    *(HOST, "xn--" + "9" * 60, "\u0130.example", "a\u00adb", "१.example", "[v1.x]", "[", "]"),
)
_PORTS = ("", ":", ":0", ":80", ":99999", ":-1", ":abc", ":٣", ":1" + "0" * 5000)
_PATHS = ("", "/", "/v2/a", "//x", "/../..", "/%", "/%zz", "/\u2028", "/a b", "/" + "x" * 70_000)
_TAILS = (
    *("", "?", "?a=b&c", "#f", "?#", "?" + "a=" * 3000, "\\", "%0d%0a", "?digest=x", "?\udcff"),
    *('"', ">", ";", '>; rel="next"', ","),
)
_NUMBERS = (
    *("0", "-1", "1e999", "9" * 5000, "٣", "0x10", "nan", "0-0", "0-" + "9" * 30, "bytes=0-5"),
    *("bytes 0-1/2", "bytes */" + "9" * 25, "bytes 5-1/3", "Fri, 31 Dec 99999 99:99:99 GMT", "1 1"),
    *("Thu, 01 Jan 0000 00:00:00 +9999", "5,5", str(DIGEST), "sha256:" + "A" * 64, "md5:x"),
)

texts = (
    st.tuples(*map(st.sampled_from, (_SCHEMES, _HOSTS, _PORTS, _PATHS, _TAILS))).map("".join)
    | st.sampled_from(_NUMBERS)
    | st.text(max_size=40)
)
"""Texts that are nearly addresses, ranges, dates or digests, and some that are nothing."""

challenges = st.builds(
    lambda scheme, key, text, more: f'{scheme} {key}="{text}"{more}',
    st.sampled_from(["Bearer", "bearer", "Basic", "Negotiate", "Bearer Bearer", ""]),
    st.sampled_from(["realm", "service", "scope", "error", "realm=realm"]),
    texts,
    st.sampled_from(["", ',service="s"', ',scope="repository:a:pull"', ', realm="https://b/t"']),
)
fields = st.one_of(
    st.tuples(
        st.sampled_from(
            [
                *("location", "retry-after", "range", "content-range", "docker-content-digest"),
                *("content-type", "content-encoding", "oci-subject", "oci-filters-applied"),
                *("oci-chunk-min-length", "docker-upload-uuid", "link", "content-length"),
            ]
        ),
        texts,
    ),
    st.tuples(st.just("www-authenticate"), challenges),
    st.tuples(st.just("link"), texts.map(lambda text: f'<{text}>; rel="next"')),
)
answers = st.tuples(
    st.sampled_from([200, 201, 202, 206, 301, 302, 307, 308, 400, 401, 403, 404, 405, 416, 429]),
    st.lists(fields, max_size=4),
    st.sampled_from([b"", b"{}", b'{"tags": ["v1"]}', b'{"token": "t"}', BLOB, INDEX.raw, b"<p>"])
    | json_documents(["tags", "errors", "token", "expires_in", "manifests", "schemaVersion"]),
)


class _Told(Response):
    """An answer that no connection brought."""

    def __init__(
        self, method: str, url: str, answer: tuple[int, list[tuple[str, str]], bytes], shown: str
    ) -> None:
        self.method, self.url, self.authorization = method, url, shown or None
        self.status, found, body = answer
        self.headers, self._pieces = Headers(found), iter([body])

    def pieces(self) -> Iterator[bytes]:
        return self._pieces

    def close(self, *, keep: bool = False) -> None:
        pass


class Unplugged(Connections):
    """Answers by a script at home and at token servers, and connects to nobody."""

    def __init__(self, script: list[tuple[int, list[tuple[str, str]], bytes]]) -> None:
        super().__init__(ConnectionOptions(plain_http=True), Origin("http", HOST, 80))
        self.script = script

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body | None,
        patience: Patience,
    ) -> Response:
        answer = self.script.pop(0) if self.script else (404, [], b"")
        try:
            super().send(method, url, headers, body, patience)
        except WireError as err:
            if err.fault is not WireFault.CONNECT:
                raise
        return _Told(method, url, answer, headers.get("Authorization", ""))

    def _opened(self, route: _Destination, patience: Patience) -> Connection:
        raise WireError(WireFault.CONNECT, "unplugged")


def pieces(offset: int) -> Generator[bytes, None, None]:
    yield BLOB[offset:]


QUESTIONS: dict[str, Callable[[RegistryClient], object]] = {
    "ping": lambda client: client.ping(),
    "tags": lambda client: client.tags("a"),
    "catalogue": lambda client: list(client.catalogue()),
    "manifest": lambda client: client.manifest("a", "v1"),
    "resolve": lambda client: client.resolve("a", DIGEST),
    "referrers": lambda client: client.referrers("a", DIGEST),
    "blob": lambda client: list(client.blob("a", DIGEST)),
    "blob from the middle": lambda client: list(client.blob("a", DIGEST, offset=3)),
    "blob size": lambda client: client.blob_size("a", DIGEST),
    "upload": lambda client: client.upload("a", DIGEST, len(BLOB), pieces),
    "mount": lambda client: client.mount("a", DIGEST, "b"),
    "put": lambda client: client.put_manifest("a", "v1", INDEX),
    "delete": lambda client: client.delete_manifest("a", DIGEST),
}


@MORE_EXAMPLES
@given(
    what=st.sampled_from(sorted(QUESTIONS)),
    script=st.lists(answers, min_size=1, max_size=4),
    login=st.booleans(),
)
@example(
    what="tags",
    script=[(401, [("www-authenticate", 'Bearer realm="http://127.0.0.1:99999/t"')], b"")],
    login=True,
)
@example(what="upload", script=[(202, [("location", "http://xn--/a")], b"")], login=False)
@example(what="tags", script=[(200, [("link", '<http://[::1>; rel="next"')], b"{}")], login=False)
def test_no_field_of_an_answer_breaks_the_client(
    what: str, script: list[tuple[int, list[tuple[str, str]], bytes]], login: bool
) -> None:
    waits: list[float] = []
    options = ConnectionOptions(
        plain_http=True, retries=RetryPolicy(attempts=2, sleep=waits.append)
    )
    credentials = Credentials("alice", "s3cr3t-pass") if login else None
    with RegistryClient(HOST, options=options, credentials=credentials) as client:
        client._transport._wire.connections = Unplugged(list(script))
        with suppress(MirrorError):
            QUESTIONS[what](client)
        assert all(0 <= wait_s < 1000 for wait_s in waits)


@settings(max_examples=30, deadline=None)
@given(
    line=json_documents(["repository", "digest", "location", "offset", "at"]),
    location=texts,
)
def test_no_line_of_an_upload_journal_breaks_the_next_push(
    line: bytes, location: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("uploads")
    with UploadJournal(folder, HOST) as journal:
        journal.note("b", DIGEST, location, 0)
        path = journal.path
    path.write_bytes(line + b"\n" + path.read_bytes() + line)
    retries = RetryPolicy(attempts=2, sleep=lambda delay_s: None)
    options = ConnectionOptions(plain_http=True, retries=retries)
    with UploadJournal(folder, HOST) as again, RegistryClient(HOST, options=options) as client:
        client._transport._wire.connections = Unplugged([])
        again.find("b", DIGEST)
        with suppress(MirrorError):
            client.upload("b", DIGEST, len(BLOB), pieces, journal=again)
