"""Where a registry's answers may lead us, and what we take along (SECURITY.md)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mirror.errors import DeniedError, MirrorError, RegistryError
from mirror.oci import Digest
from mirror.registry import Credentials, RegistryClient
from mirror.registry.connections import Connections
from mirror.registry.hosts import is_inner
from tests.registry.conftest import MakeClient, Serve
from tests.support.scripted_server import Reply, Request

ALICE = Credentials("alice", "s3cr3t")
BLOB = b"content"
DIGEST = Digest.of(BLOB)


@pytest.mark.parametrize(
    ("address", "inner"),
    [
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.0.1", True),
        ("127.0.0.1", True),
        ("169.254.169.254", True),  # where clouds tell machines their credentials
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::a00:1", True),
        ("64:ff9b::808:808", False),
        ("2002:0a00:0001::", True),
        ("::10.0.0.1", True),
        ("8.8.8.8", False),
        ("2001:4860:4860::8888", False),
    ],
)
def test_private_addresses_are_known_in_every_dress(address: str, inner: bool) -> None:
    assert is_inner(address) is inner


@pytest.fixture
def public_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registries of this test are, to their clients, in the internet."""
    monkeypatch.setattr(Connections, "_is_home_inner", lambda self, wait: False)


Ways = dict[str, tuple[Callable[[Request, str], Reply], Callable[[RegistryClient], object]]]


def challenge(request: Request, other: str) -> Reply:
    return Reply(401, {"WWW-Authenticate": f'Bearer realm="{other}/token",service="s"'})


def redirect(request: Request, other: str) -> Reply:
    return Reply(307, {"Location": f"{other}{request.path}"})


def session(request: Request, other: str) -> Reply:
    return Reply(202, {"Location": f"{other}/upload"})


def upload(client: RegistryClient) -> object:
    return client.upload("a", DIGEST, len(BLOB), lambda offset: (piece for piece in [BLOB]))


WAYS: Ways = {
    "a token server": (challenge, lambda client: client.tags("a")),
    "a redirect of a list": (redirect, lambda client: client.tags("a")),
    "a redirect of a blob": (
        redirect,
        lambda client: list(client.blob("a", DIGEST, size=len(BLOB))),
    ),
    "an upload's session": (session, upload),
    "a redirect of an upload": (redirect, upload),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("public_home")
def test_a_public_registry_leads_into_no_private_network(
    way: str, serve: Serve, make_client: MakeClient, waits: list[float]
) -> None:
    answer, ask = WAYS[way]
    inside = serve(lambda request: Reply())
    other = inside.url.replace("127.0.0.1", "localhost")
    client = make_client(serve(lambda request: answer(request, other)).host)
    with pytest.raises(RegistryError) as caught:
        ask(client)
    told = str(caught.value)
    assert f"{client.host}, which is a public address, leads to localhost (" in told
    assert "nothing was asked there" in told
    assert "--trust-host localhost" in told
    assert "correct that there (`http.host`, realm)" in told
    assert (inside.log, waits) == ([], [])


@pytest.mark.usefixtures("public_home")
def test_it_does_where_that_was_allowed(serve: Serve, make_client: MakeClient) -> None:
    inside = serve(lambda request: Reply(body=BLOB))
    other = inside.url.replace("127.0.0.1", "localhost")
    home = serve(lambda request: redirect(request, other))
    client = make_client(home.host, trusted_hosts=frozenset({"localhost"}))
    assert b"".join(client.blob("a", DIGEST, size=len(BLOB))) == BLOB


def test_a_registry_in_a_private_network_may_lead_elsewhere_in_it(
    serve: Serve, make_client: MakeClient
) -> None:
    inside = serve(lambda request: Reply(body=BLOB))
    other = inside.url.replace("127.0.0.1", "localhost")
    client = make_client(serve(lambda request: redirect(request, other)).host)
    assert b"".join(client.blob("a", DIGEST, size=len(BLOB))) == BLOB


@pytest.mark.usefixtures("public_home")
def test_another_port_of_the_registry_is_the_registrys_own_host(
    serve: Serve, make_client: MakeClient
) -> None:
    storage = serve(lambda request: Reply(body=BLOB))
    client = make_client(serve(lambda request: redirect(request, storage.url)).host)
    assert b"".join(client.blob("a", DIGEST, size=len(BLOB))) == BLOB


def test_behind_a_proxy_an_address_in_numbers_is_judged_and_a_name_is_the_proxys(
    serve: Serve, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: Request) -> Reply:
        if request.headers["host"] == "elsewhere.example":
            return Reply(body=BLOB)
        target = "10.0.0.1" if "inner" in request.path else "elsewhere.example"
        return Reply(307, {"Location": f"http://{target}/blob"})

    proxy = serve(answer)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    client = make_client("reg.example.com")
    assert b"".join(client.blob("a", DIGEST, size=len(BLOB))) == BLOB
    with pytest.raises(RegistryError, match=r"leads to 10\.0\.0\.1 \(10\.0\.0\.1\)"):
        list(client.blob("inner", DIGEST, size=len(BLOB)))


@pytest.mark.parametrize("way", sorted(set(WAYS) - {"a token server"}))
def test_no_login_goes_to_another_host(way: str, serve: Serve, make_client: MakeClient) -> None:
    answer, ask = WAYS[way]
    other = serve(lambda request: Reply(401, {"WWW-Authenticate": 'Basic realm="mine"'}))

    def registry(request: Request) -> Reply:
        if "authorization" not in request.headers:
            return Reply(401, {"WWW-Authenticate": 'Basic realm="home"'})
        return answer(request, other.url)

    client = make_client(serve(registry).host, ALICE)
    with pytest.raises(MirrorError):
        ask(client)
    assert other.log
    assert all("authorization" not in request.headers for request in other.log)


def test_a_token_server_elsewhere_gets_the_login_by_tls_alone(
    serve: Serve, make_client: MakeClient
) -> None:
    realm = serve(lambda request: Reply(body=b'{"token": "t"}'))
    other = realm.url.replace("127.0.0.1", "localhost")

    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer t":
            return Reply(body=b'{"tags": ["v1"]}')
        return challenge(request, other)

    host = serve(registry).host
    with pytest.raises(DeniedError) as caught:
        make_client(host, ALICE).tags("a")
    assert f"{host} names a token server that is reached without TLS (http://localhost)" in str(
        caught.value
    )
    assert "allow it with --trust-host localhost" in str(caught.value)
    assert realm.log == []
    assert make_client(host).tags("a") == ["v1"]  # who has no login has nothing to lose
    trusting = make_client(host, ALICE, trusted_hosts=frozenset({"localhost"}))
    assert trusting.tags("a") == ["v1"]
    assert "authorization" in realm.log[-1].headers


def test_a_token_server_that_sends_us_on_takes_no_login_along(
    serve: Serve, make_client: MakeClient
) -> None:
    thief = serve(lambda request: Reply(body=b'{"token": "t"}'))
    realm = serve(lambda request: Reply(302, {"Location": f"{thief.url}/t"}))

    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == "Bearer t":
            return Reply(body=b'{"tags": ["v1"]}')
        return challenge(request, realm.url)

    assert make_client(serve(registry).host, ALICE).tags("a") == ["v1"]
    assert "authorization" in realm.log[0].headers
    assert "authorization" not in thief.log[0].headers


def test_an_identity_token_is_sent_to_the_token_server_alone(
    serve: Serve, make_client: MakeClient
) -> None:
    thief = serve(lambda request: Reply(body=b'{"token": "t"}'))
    realm = serve(lambda request: Reply(307, {"Location": f"{thief.url}/t"}))
    host = serve(lambda request: challenge(request, realm.url)).host
    with pytest.raises(RegistryError, match="answers with a redirect that cannot be followed"):
        make_client(host, Credentials(identity_token="mine")).tags("a")
    assert [request.method for request in realm.log] == ["POST"]
    assert thief.log == []


@pytest.mark.parametrize("login", [None, ALICE, Credentials(identity_token="mine")])
def test_a_token_server_that_sends_us_nowhere_is_reported(
    login: Credentials | None, serve: Serve, make_client: MakeClient
) -> None:
    realm = serve(lambda request: Reply(304))
    host = serve(lambda request: challenge(request, realm.url)).host
    with pytest.raises(RegistryError, match="answers with a redirect that cannot be followed"):
        make_client(host, login).tags("a")


def test_a_list_goes_on_at_home_or_not_at_all(serve: Serve, make_client: MakeClient) -> None:
    other = serve(lambda request: Reply(body=b'{"tags": ["stolen"]}'))
    link = {"Link": f'<{other.url}/v2/a/tags/list?last=x>; rel="next"'}
    client = make_client(serve(lambda request: Reply(200, link, b'{"tags": ["x"]}')).host, ALICE)
    with pytest.raises(RegistryError):
        client.tags("a")
    assert other.log == []
