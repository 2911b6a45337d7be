"""The server's own reason reaches the reader, with what helps against it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import DeniedError, RegistryError, RegistryNotFoundError, UnreachableError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_INDEX
from mirror.registry import Credentials, RegistryClient
from mirror.registry.answers import reason_in
from tests.registry.conftest import MakeClient, Serve
from tests.support.hostile import json_documents
from tests.support.scripted_server import Reply, Request

ALICE = Credentials("alice", "s3cr3t")
IDENTITY = Credentials(identity_token="s3cr3t")
MANIFEST = Manifest.parse(b'{"schemaVersion":2,"manifests":[]}', OCI_INDEX)
JSON, TEXT = {"content-type": "application/json"}, {"content-type": "text/plain; charset=utf-8"}


def errors(**error: object) -> bytes:
    return json.dumps({"errors": [error]}).encode()


def refused_manifest(client: RegistryClient) -> str:
    with pytest.raises(RegistryError) as caught:
        client.put_manifest("a", "v1", MANIFEST)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (errors(code="DENIED", message="no", detail={"why": "late"}), "DENIED: no: late"),
        (b'{"error": "invalid_grant", "error_description": "used up"}', "invalid_grant: used up"),
        (b'{"details": "incorrect username or password"}', "incorrect username or password"),
        (b'{"message": "Unauthorized"}', "Unauthorized"),
        (b'{"error": {"code": 403, "message": "blocked"}}', "403: blocked"),
        (b'{"error": "Not Found", "status": 404}', "Not Found"),
        (b'{"errors": [{"message": "a"}, 5, {"message": "b"}]}', "a; b"),
        (b'{"errors": "all wrong"}', ""),
        (b"<html>413</html>", ""),
        (b"[]", ""),
        (b"", ""),
    ],
)
def test_the_reason_is_found_wherever_servers_put_it(body: bytes, told: str) -> None:
    assert reason_in(JSON, body)[1] == told


def test_plain_text_is_a_reason_and_a_page_is_none() -> None:
    assert reason_in(TEXT, b"Auth failed.\n") == ((), "Auth failed.")
    assert reason_in({"content-type": "text/html"}, b"<h1>Sign in</h1>") == ((), "")
    assert reason_in({}, b"anything") == ((), "")


@given(json_documents(["errors", "error", "code", "message", "detail", "Enclosed", "Err"]))
def test_whatever_the_body_is_the_reason_is_short_and_clean(body: bytes) -> None:
    for headers in (JSON, TEXT):
        codes, text = reason_in(headers, body)
        assert len(text) <= 300
        assert text.isprintable()
        assert all(isinstance(code, str) for code in codes)


@given(st.text())
def test_no_text_of_a_registry_brings_control_characters_along(text: str) -> None:
    assert reason_in(JSON, errors(message=text, detail=text))[1].isprintable()


_HARBOR_QUOTA = (
    "of storage resource, which when updated to current usage of 95.0 MiB will exceed the "
    "configured upper limit of 100.0 MiB."
)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, body=errors(code="UNKNOWN", detail={"D": "fs", "Enclosed": {"Err": 28}})),
        Reply(500, body=errors(code="UNKNOWN", detail="write x: no space left on device")),
        Reply(403, body=errors(code="DENIED", message="quota has been exceeded")),
        Reply(403, body=errors(code="DENIED", message=f"adding 9 MiB {_HARBOR_QUOTA}")),
        Reply(412, body=errors(code="PRECONDITION", message=f"adding 9 MiB {_HARBOR_QUOTA}")),
        Reply(507),
    ],
)
def test_a_full_disk_is_called_a_full_disk_and_not_waited_for(
    reply: Reply, serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    client = make_client(serve(lambda request: reply).host)
    told = refused_manifest(client)
    assert f"the storage of {client.host} is full, or a quota (HTTP {reply.status}" in told
    assert "make room there" in told
    assert waits == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, body=errors(code="MANIFEST_INVALID", detail="x is not an accepted config type")),
        Reply(422, body=errors(code="UNSUPPORTED", message="artifact type not supported")),
        Reply(415),
    ],
)
def test_an_artifact_that_is_not_taken_is_named_with_what_helps(
    reply: Reply, serve: Serve, make_client: MakeClient
) -> None:
    told = refused_manifest(make_client(serve(lambda request: reply).host))
    assert "does not take this kind of artifact" in told
    assert "`pull --no-security-db`" in told
    assert "`push --file`" in told


def test_a_manifest_that_is_broken_is_not_called_a_foreign_kind(
    serve: Serve, make_client: MakeClient
) -> None:
    reply = Reply(400, body=errors(code="MANIFEST_BLOB_UNKNOWN", message="blob unknown"))
    assert "artifact" not in refused_manifest(make_client(serve(lambda request: reply).host))


@pytest.mark.parametrize(
    "reply",
    [
        Reply(412, body=errors(code="PRECONDITION", message="'a:v1' configured as immutable.")),
        Reply(400, body=errors(code="TAG_INVALID", message="because the tag is immutable.")),
        Reply(409, body=errors(code="DENIED", detail="tag immutability is on")),
    ],
    ids=["Harbor", "ECR", "others"],
)
def test_a_tag_that_may_not_change_is_told_with_which_tags_have_to(
    reply: Reply, serve: Serve, make_client: MakeClient
) -> None:
    told = refused_manifest(make_client(serve(lambda request: reply).host))
    assert "a rule of the registry keeps this tag from changing" in told
    assert "release channels and `mirror/inventory`" in told


@pytest.mark.parametrize("code", ["NAME_UNKNOWN", "NOT_FOUND"])
def test_a_repository_that_has_to_be_made_first_is_told_where_a_blob_is_brought(
    code: str, serve: Serve, make_client: MakeClient
) -> None:
    """ECR makes no repository by itself, Harbor no project."""
    reply = Reply(404, body=errors(code=code, message="the repository does not exist"))
    client = make_client(serve(lambda request: reply).host)
    with pytest.raises(RegistryNotFoundError, match="create it there first") as caught:
        client.upload("a", Digest.of(b"x"), 1, lambda offset: (piece for piece in [b"x"]))
    assert "check the path" in str(caught.value)
    with pytest.raises(RegistryNotFoundError) as caught:
        client.manifest("a", "v1")
    assert "create" not in str(caught.value)


def test_a_body_that_is_too_large_names_the_limit_of_a_proxy(
    serve: Serve, make_client: MakeClient
) -> None:
    told = refused_manifest(make_client(serve(lambda request: Reply(413)).host))
    assert "a proxy in front of it, limits how large a request may be" in told
    assert "client_max_body_size" in told


def test_a_location_that_only_the_registrys_own_network_knows_names_what_sets_it(
    serve: Serve, make_client: MakeClient
) -> None:
    inner = {"Location": "http://registry.invalid:5000/v2/a/blobs/uploads/1"}
    client = make_client(serve(lambda request: Reply(202, inner)).host, attempts=1)
    with pytest.raises(UnreachableError) as caught:
        client.upload("a", Digest.of(b"x"), 1, lambda offset: (piece for piece in [b"x"]))
    told = str(caught.value)
    assert f"{client.host} named this address" in told
    assert "correct that there (`http.host`, realm)" in told
    assert "pass on `Host`" in told


def told_by_token_server(
    reply: Reply, serve: Serve, make_client: MakeClient, credentials: Credentials
) -> RegistryError:
    realm = serve(lambda request: reply)

    def registry(request: Request) -> Reply:
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm.url}/token",service="s"'})

    client = make_client(serve(registry).host, credentials)
    with pytest.raises(RegistryError) as caught:
        client.tags("a")
    return caught.value


@pytest.mark.parametrize("body", [b"", b'{"error": "invalid_scope"}', b'{"details": "bad scope"}'])
def test_a_token_server_that_does_not_understand_a_request_does_not_refuse_the_login(
    body: bytes, serve: Serve, make_client: MakeClient
) -> None:
    error = told_by_token_server(Reply(400, JSON, body), serve, make_client, ALICE)
    assert "this is not about the login itself, check the registry's configuration" in str(error)
    assert "credentials" not in str(error)
    assert (error.exit_code, error.status) == (1, 400)


def test_a_server_that_may_know_no_identity_tokens_names_the_other_login(
    serve: Serve, make_client: MakeClient
) -> None:
    error = told_by_token_server(
        Reply(400, JSON, b'{"error": "unsupported_grant_type"}'), serve, make_client, IDENTITY
    )
    assert "unsupported_grant_type" in str(error)
    assert "or log in with user and password" in str(error)


def test_an_identity_token_that_is_used_up_is_a_refused_login(
    serve: Serve, make_client: MakeClient
) -> None:
    body = b'{"error": "invalid_grant", "error_description": "token is expired"}'
    error = told_by_token_server(Reply(400, JSON, body), serve, make_client, IDENTITY)
    assert isinstance(error, DeniedError)
    assert "refuses the login of the holder of the stored token (HTTP 400, invalid_grant: " in str(
        error
    )


def test_a_token_servers_plain_words_are_shown(serve: Serve, make_client: MakeClient) -> None:
    reply = Reply(401, TEXT, b"Auth failed: account is\x1b[2J locked")
    error = told_by_token_server(reply, serve, make_client, ALICE)
    assert "(HTTP 401, Auth failed: account is\\x1b[2J locked)" in str(error)


def test_the_reason_is_kept_where_an_answer_is_said_in_our_words(
    serve: Serve, make_client: MakeClient
) -> None:
    body = errors(code="NOT_FOUND", message="upstream nexus.corp is offline")
    client = make_client(serve(lambda request: Reply(404, JSON, body)).host)
    with pytest.raises(RegistryNotFoundError) as caught:
        client.manifest("a", "v1")
    assert str(caught.value) == (
        f"{client.host}/a:v1: no such manifest in the registry (NOT_FOUND: upstream nexus.corp is "
        "offline); check the repository path and the tag"
    )
    assert caught.value.reason == "NOT_FOUND: upstream nexus.corp is offline"
    with pytest.raises(RegistryNotFoundError, match=r"repository in the registry \(NOT_FOUND: up"):
        client.tags("a")
    with pytest.raises(UnreachableError, match=r"\(HTTP 404 for /v2/\) \(NOT_FOUND: upstream"):
        client.ping()


def test_what_a_code_alone_says_is_not_said_twice(serve: Serve, make_client: MakeClient) -> None:
    body = errors(code="MANIFEST_UNKNOWN", message="manifest unknown", detail={"Tag": "v1"})
    client = make_client(serve(lambda request: Reply(404, JSON, body)).host)
    with pytest.raises(RegistryNotFoundError, match=r"no such manifest in the registry; check"):
        client.manifest("a", "v1")
