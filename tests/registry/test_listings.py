"""Lists come whole, page after page, and come to an end."""

from __future__ import annotations

import itertools
import json
import string
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import InvalidManifestError, RegistryError, RegistryNotFoundError
from mirror.events import Event, Warned
from mirror.oci import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.registry import client, manifests
from mirror.registry.manifests import next_link
from mirror.run import Run
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import error
from tests.support.scripted_server import Reply, Request

SUBJECT = Digest.of(b"subject")


def tags_reply(tags: list[str] | None, link: str | None = None) -> Reply:
    headers = {"Link": f'<{link}>; rel="next"'} if link else {}
    return Reply(200, headers, json.dumps({"name": "a", "tags": tags}).encode())


def test_tags_of_all_pages_come_in_order_and_once(serve: Serve, make_client: MakeClient) -> None:
    def pages(request: Request) -> Reply:
        assert request.query["n"] == ["1000"]
        last = request.query.get("last", [""])[0]
        if not last:
            return tags_reply(["v2", "v1"], "/v2/a/tags/list?n=1000&last=v1")
        if last == "v1":
            return tags_reply(["v1", "v3"], f"http://{host}/v2/a/tags/list?last=v3&n=1000")
        return tags_reply(["v0"])

    server = serve(pages)
    host = server.host
    assert make_client(host).tags("a") == ["v2", "v1", "v3", "v0"]


MANY = [f"v{number}" for number in range(2500)]


def test_full_pages_without_a_link_count_together(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_MAX_LIST_BYTES", 100_000)

    def endless(request: Request) -> Reply:
        begin = int(request.query.get("last", ["n0"])[0].rpartition("n")[2])
        return tags_reply([f"{'x' * 30}n{number}" for number in range(begin + 1, begin + 1001)])

    server = serve(endless)
    with pytest.raises(RegistryError, match="is larger than"):
        make_client(server.host).tags("a")
    assert len(server.log) == 3


@pytest.mark.parametrize("count", [2000, 2500])
@pytest.mark.parametrize(
    "at_the_end", [tags_reply([]), tags_reply(None), error(404, "NAME_UNKNOWN")]
)
def test_a_full_page_without_a_link_is_no_end(
    at_the_end: Reply, count: int, serve: Serve, make_client: MakeClient
) -> None:
    """A group of Nexus lists as many tags as it is asked for, and no `Link` to the others."""

    tags = MANY[:count]

    def pages(request: Request) -> Reply:
        begin = tags.index(request.query["last"][0]) + 1 if "last" in request.query else 0
        page = tags[begin : begin + int(request.query["n"][0])]
        return tags_reply(page) if page else at_the_end

    server = serve(pages)
    assert make_client(server.host).tags("a") == tags
    assert len(server.log) == 3


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000])
def test_a_registry_that_knows_no_pages_is_asked_once_more_at_most(
    count: int, serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda request: tags_reply(MANY[:count]))
    assert make_client(server.host).tags("a") == MANY[:count]
    assert len(server.log) == 1 + (count == 1000)


def test_a_list_of_full_pages_that_never_ends_is_refused(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "_MAX_LIST_NAMES", 3500)

    def endless(request: Request) -> Reply:
        begin = int(request.query.get("last", ["v0"])[0][1:])
        return tags_reply([f"v{number}" for number in range(begin + 1, begin + 1001)])

    with pytest.raises(RegistryError, match="lists more than 3500 tags"):
        make_client(serve(endless).host).tags("a")


def test_all_lists_of_a_registry_together_have_a_limit(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_MOST_TAGS", 2500)
    reader = make_client(serve(lambda request: tags_reply(MANY[:999])).host)
    for repository in ("a", "b", "a", "b"):  # whoever looks again and again holds the newest
        assert len(reader.tags(repository)) == 999
    with pytest.raises(RegistryError, match="/c: the registry has more than 2500 tags in all rep"):
        reader.within(Run()).tags("c")


def test_no_tags_are_an_empty_list_and_no_repository_is_an_error(
    serve: Serve, make_client: MakeClient
) -> None:
    assert make_client(serve(lambda r: tags_reply(None)).host).tags("a") == []
    client = make_client(serve(lambda r: error(404, "NAME_UNKNOWN")).host)
    with pytest.raises(RegistryNotFoundError, match="/a: no such repository") as caught:
        client.tags("a")
    assert caught.value.codes == ("NAME_UNKNOWN",)


@pytest.mark.parametrize("link", ["/v2/a/tags/list?n=1000", "?n=1000", "/v2/a/tags/list?n=1000#x"])
def test_pages_in_a_circle_are_noticed(link: str, serve: Serve, make_client: MakeClient) -> None:
    client = make_client(serve(lambda r: tags_reply(["v1"], link)).host)
    with pytest.raises(RegistryError, match="never ends"):
        client.tags("a")


def test_a_list_that_goes_on_elsewhere_is_refused(serve: Serve, make_client: MakeClient) -> None:
    other = serve(lambda r: tags_reply(["stolen"]))
    client = make_client(serve(lambda r: tags_reply(["v1"], f"{other.url}/v2/")).host)
    with pytest.raises(RegistryError, match="at another host"):
        client.tags("a")
    assert other.log == []


@pytest.mark.parametrize("host", ["", "http://{host}", "http://inner.example:8081"])
@pytest.mark.parametrize("inner", ["/repository/docker-proxy", "/artifactory/api/docker/dkp"])
def test_a_list_that_goes_on_below_an_inner_path_is_followed_where_it_began(
    inner: str, host: str, serve: Serve, make_client: MakeClient
) -> None:
    """Nexus names the path that the repository has on its main port alone."""

    def pages(request: Request) -> Reply:
        if not request.path.startswith("/v2/a/"):
            return Reply(400)
        if "last" in request.query:
            assert request.query["n"] == ["1000"]
            return tags_reply(["v2"])
        link = f"{host.format(host=server.host)}{inner}/v2/a/tags/list?n=1000&last=v1"
        return tags_reply(["v1"], link)

    server = serve(pages)
    assert make_client(server.host).tags("a") == ["v1", "v2"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"<html>", b"[]", b'{"tags": "v1"}', b'{"tags": [1]}', b"{}"),
        *(b'{"tags": ["\\ud800"]}', b'{"tags": NaN}', b"[" * 100_000),
    ],
)
def test_something_else_than_a_list_is_reported(
    body: bytes, serve: Serve, make_client: MakeClient
) -> None:
    client = make_client(serve(lambda r: Reply(body=body)).host)
    with pytest.raises(RegistryError, match="does not answer with a list of tags"):
        client.tags("a")


def test_the_catalogue_is_read_page_by_page(serve: Serve, make_client: MakeClient) -> None:
    def pages(request: Request) -> Reply:
        if "last" in request.query:
            return Reply(body=b'{"repositories": ["c"]}')
        link = '</v2/_catalog?last=b>; rel="next"'
        return Reply(200, {"Link": link}, b'{"repositories": ["a", "b"]}')

    server = serve(pages)
    repositories = make_client(server.host).catalogue()
    assert next(repositories) == "a"
    assert len(server.log) == 1
    assert list(repositories) == ["b", "c"]


WRONG_TAGS = ["", ".x", "y" * 129, "sha256:" + "1" * 64, "a\x1b[2J"]
WRONG_REPOSITORIES = ["", "A", "a//b", "y" * 256, "a\x1b[2J"]


def warned(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


@pytest.mark.parametrize("name", WRONG_TAGS)
def test_a_listed_name_that_is_no_tag_is_reported_once_and_left_out(
    name: str, serve: Serve, make_client: MakeClient, events: list[Event]
) -> None:
    def pages(request: Request) -> Reply:
        if "last" in request.query:
            return tags_reply([name, "v2"])
        return tags_reply(["v1", name], "/v2/a/tags/list?last=v1")

    server = serve(pages)
    client = make_client(server.host)
    assert client.tags("a") == ["v1", "v2"]
    assert client.tags("a") == ["v1", "v2"]
    (message,) = warned(events)
    assert message.startswith(f"{server.host}/a: ")
    assert repr(name) in message
    assert message.isprintable()


def test_each_run_hears_of_names_that_are_no_tags(serve: Serve, make_client: MakeClient) -> None:
    client = make_client(serve(lambda r: tags_reply([".x"])).host)
    for _ in range(2):
        heard: list[Event] = []
        assert client.within(Run(on_event=heard.append)).tags("a") == []
        assert len(warned(heard)) == 1


def test_many_names_that_are_no_tags_make_one_short_warning(
    serve: Serve, make_client: MakeClient, events: list[Event]
) -> None:
    wrong = [f".{n}" for n in range(1000)]
    assert make_client(serve(lambda r: tags_reply([*wrong, "v1"])).host).tags("a") == ["v1"]
    (message,) = warned(events)
    assert "1000" in message
    assert len(message) < 500


@pytest.mark.parametrize("name", WRONG_REPOSITORIES)
def test_a_listed_name_that_is_no_repository_is_reported_once_and_left_out(
    name: str, serve: Serve, make_client: MakeClient, events: list[Event]
) -> None:
    body = json.dumps({"repositories": ["a", name, "b"]}).encode()
    client = make_client(serve(lambda r: Reply(body=body)).host)
    assert list(client.catalogue()) == ["a", "b"]
    assert list(client.catalogue()) == ["a", "b"]
    (message,) = warned(events)
    assert repr(name) in message
    assert message.isprintable()


def test_proper_names_cause_no_warning(
    serve: Serve, make_client: MakeClient, events: list[Event]
) -> None:
    assert make_client(serve(lambda r: tags_reply(["v1", "_", "y" * 128])).host).tags("a")
    assert events == []


def index_of(*types: str) -> bytes:
    manifests = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": str(Digest.of(str(n).encode())),
            "size": n,
            "artifactType": artifact_type,
        }
        for n, artifact_type in enumerate(types)
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return json.dumps(index).encode()


OCI = {"Content-Type": OCI_INDEX}


def test_referrers_come_from_the_api_and_are_filtered_by_us_where_it_does_not(
    serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(200, OCI, index_of("sig", "sbom", "sig")))
    client = make_client(server.host)
    assert [c.artifact_type for c in client.referrers("a", SUBJECT)] == ["sig", "sbom", "sig"]
    assert [c.descriptor.size for c in client.referrers("a", SUBJECT, "sig")] == [0, 2]
    assert server.log[1].path == f"/v2/a/referrers/{SUBJECT}"
    assert server.log[1].query == {"artifactType": ["sig"]}


def test_referrers_of_several_pages_come_together(serve: Serve, make_client: MakeClient) -> None:
    def pages(request: Request) -> Reply:
        if request.query:
            return Reply(200, OCI, index_of("a", "b", "c"))
        return Reply(200, {**OCI, "Link": "<?p=2>; rel=next"}, index_of("a"))

    client = make_client(serve(pages).host)
    assert [c.artifact_type for c in client.referrers("a", SUBJECT)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "refusal", [Reply(404), Reply(405), Reply(200, {"Content-Type": "text/html"}, b"<html>")]
)
def test_without_the_api_the_tag_schema_is_read(
    refusal: Reply, serve: Serve, make_client: MakeClient
) -> None:
    def registry(request: Request) -> Reply:
        if "/referrers/" in request.path:
            return refusal
        return Reply(200, OCI, index_of("sig", "sbom"))

    server = serve(registry)
    client = make_client(server.host)
    assert [c.artifact_type for c in client.referrers("a", SUBJECT, "sbom")] == ["sbom"]
    assert server.log[1].path == f"/v2/a/manifests/sha256-{SUBJECT.encoded}"
    assert client.referrers_api("a", SUBJECT) is None


def test_nothing_that_refers_is_an_empty_list(serve: Serve, make_client: MakeClient) -> None:
    client = make_client(serve(lambda r: error(404, "MANIFEST_UNKNOWN")).host)
    assert client.referrers("a", SUBJECT) == []


def test_a_damaged_list_of_referrers_is_no_empty_one(serve: Serve, make_client: MakeClient) -> None:
    client = make_client(serve(lambda r: Reply(200, OCI, b"{")).host)
    with pytest.raises(InvalidManifestError):
        client.referrers("a", SUBJECT)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        (["</x>; rel=next"], "/x"),
        (['</x?a=1,2>; rel="next"'], "/x?a=1,2"),
        (['</p>; rel="prev", </n>; rel="next"'], "/n"),
        (['</p>; rel="prev"', '</n>; title="a, b"; rel="last next"'], "/n"),
        (['</x>; rel="nextish"', "</x>; rel=nextish"], None),
        (["</x>;REL=NEXT"], "/x"),
        (["</x>;rel=next;", ""], "/x"),
        ([""], None),
        (["/v2/a/tags/list?last=v1", '</n>; rel="next"'], "/n"),
    ],
)
def test_the_next_page_is_found_among_links(headers: list[str], expected: str | None) -> None:
    assert next_link(headers) == expected


@given(st.text(string.ascii_letters + "/?&=,;:%._-", min_size=1, max_size=40))
def test_any_address_is_found_again(target: str) -> None:
    assert next_link([f'</first>; rel="first", <{target}>; rel="next"']) == target


UNCLEAR_LINKS = [
    "/v2/a/tags/list?last=v1",  # the address alone, as some proxies write it
    "</v2/a/tags/list?last=v1>",
    '</v2/a/tags/list?last=v1>; title="next"',
    "</p>; rel=prev, /v2/a/tags/list?last=v1; rel=next",
    '"/v2/a/tags/list?last=v1"; rel="next"',
    "<",
]


@pytest.mark.parametrize("link", UNCLEAR_LINKS)
def test_a_link_that_is_not_understood_is_an_error_and_not_the_end_of_the_list(
    link: str, serve: Serve, make_client: MakeClient
) -> None:
    def first_page(request: Request) -> Reply:
        key = {"tags": ["v1"], "repositories": ["a"]}
        body = index_of("sig") if "/referrers/" in request.path else json.dumps(key).encode()
        return Reply(200, {**OCI, "Link": link}, body)

    client = make_client(serve(first_page).host)
    for listing in (
        lambda: client.tags("a"),
        lambda: list(client.catalogue()),
        lambda: client.referrers("a", SUBJECT),
    ):
        with pytest.raises(RegistryError, match="may continue its list") as caught:
            listing()
        assert f"(Link: {link})" in str(caught.value)
        assert 'write Link: <address>; rel="next"' in str(caught.value)


@given(st.lists(st.text(max_size=60)))
def test_no_link_header_breaks_the_reader(headers: list[str]) -> None:
    with suppress(ValueError):
        next_link(headers)


@pytest.mark.parametrize(
    ("page", "told"),
    [
        (b'{"tags": [' + b'"a",' * 1_100_000 + b'"a"]}', "lists more than 1000000 tags"),
        (b'{"tags": ["' + b"a" * (17 << 20) + b'"]}', "is larger than 16777216 bytes"),
    ],
)
def test_no_list_takes_more_memory_than_the_longest_that_is_true(
    page: bytes, told: str, serve: Serve, make_client: MakeClient
) -> None:
    client = make_client(serve(lambda request: Reply(body=page)).host)
    tracemalloc.start()
    try:
        with pytest.raises(RegistryError, match=told):
            client.tags("a")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_pages_without_end_count_together(serve: Serve, make_client: MakeClient) -> None:
    names = ",".join(f'"{"n" * 100}-{number}"' for number in range(50_000))
    page = f'{{"tags": [{names}]}}'.encode()
    numbers = itertools.count()

    def endless(request: Request) -> Reply:
        link = f'</v2/a/tags/list?last={next(numbers)}>; rel="next"'
        return Reply(200, {"Link": link}, page)

    server = serve(endless)
    with pytest.raises(RegistryError, match="is larger than"):
        make_client(server.host).tags("a")
    assert len(server.log) == 4
