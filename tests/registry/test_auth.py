"""Who we are is proved when asked, to whom it concerns, and not more often than needed."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs

import pytest

from mirror.errors import DeniedError, InputError, MirrorError, RegistryError, UnreachableError
from mirror.oci import Digest
from mirror.registry import ConnectionOptions, Credentials
from mirror.registry.auth import PULL, PUSH, Authenticator, Challenge, Scopes
from mirror.registry.auth import merge_scopes as merge
from tests.registry.conftest import MakeClient, Serve
from tests.support.fake_api import error
from tests.support.scripted_server import Reply, Request, ScriptedServer

SECRET = "hunter2-s3cr3t"
BASIC = "Basic " + base64.b64encode(f"alice:{SECRET}".encode()).decode()
ALICE = Credentials("alice", SECRET)


def pull(repository: str) -> Scopes:
    return (PULL.format(repository),)


def push(repository: str) -> Scopes:
    return (PUSH.format(repository),)


class Carrier:
    """Answers an authenticator's requests by a function; its run is never stopped."""

    def __init__(self, answer: Callable[[str], bytes]) -> None:
        self.answer = answer

    def fetch_token(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes
    ) -> bytes:
        return self.answer(url)

    def check(self) -> None:
        pass


class TokenRegistry:
    """A registry that wants bearer tokens, and its token server."""

    def __init__(self, serve: Serve, allowed: str | None = BASIC) -> None:
        self.allowed = allowed
        self.answer: dict[str, object] = {}
        self.issued = 0
        self.valid: dict[str, set[str]] = {}
        self.needs = pull("a")
        self.challenge_more = ""
        self.challenge_before = ""
        self.realm = serve(self._token)
        self.server = serve(self._registry)

    @property
    def host(self) -> str:
        return self.server.host

    def _token(self, request: Request) -> Reply:
        if request.method == "POST":
            form = parse_qs(request.body.decode())
            assert form["grant_type"] == ["refresh_token"]
            granted = form["refresh_token"] == ["identity"]
            scopes = form.get("scope", [""])[0].split()
        else:
            granted = request.headers.get("authorization") == self.allowed
            scopes = request.query.get("scope", [])
        if not granted:
            return error(401, "UNAUTHORIZED", "wrong password")
        self.issued += 1
        token = f"token-{self.issued}"
        self.valid[token] = set(scopes)
        body = json.dumps({"token": token, **self.answer}).encode()
        return Reply(body=body)

    def _registry(self, request: Request) -> Reply:
        repository = request.path.removeprefix("/v2/").partition("/tags")[0]
        needed = set() if request.path == "/v2/" else set(pull(repository))
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme == "Bearer" and token in self.valid and needed <= self.valid[token]:
            return Reply(body=b'{"tags": ["t"]}')
        scope = f',scope="{next(iter(needed))}"' if needed else ""
        challenge = f'Bearer realm="{self.realm.url}/token",service="reg"{scope}'
        reply = error(401, "UNAUTHORIZED")
        reply.headers["WWW-Authenticate"] = self.challenge_before + challenge + self.challenge_more
        return reply


@pytest.fixture
def tokens(serve: Serve) -> TokenRegistry:
    return TokenRegistry(serve)


def scopes_of(server: ScriptedServer) -> list[list[str]]:
    return [request.query.get("scope", []) for request in server.log]


def test_a_token_is_asked_for_where_a_login_with_every_request_would_do(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.challenge_before = 'Basic realm="reg", '
    assert make_client(tokens.host, ALICE).tags("a") == ["t"]
    assert tokens.issued == 1


def test_basic_credentials_are_sent_after_a_challenge_and_then_at_once(
    serve: Serve, make_client: MakeClient
) -> None:
    def registry(request: Request) -> Reply:
        if request.headers.get("authorization") == BASIC:
            return Reply(body=b'{"tags": []}')
        return Reply(401, {"WWW-Authenticate": 'Basic realm="here"'})

    server = serve(registry)
    client = make_client(server.host, ALICE)
    client.tags("a")
    client.tags("b")
    assert [r.headers.get("authorization") for r in server.log] == [None, BASIC, BASIC]


def test_wrong_basic_credentials_are_tried_once(serve: Serve, make_client: MakeClient) -> None:
    server = serve(lambda r: Reply(401, {"WWW-Authenticate": 'Basic realm="here"'}))
    client = make_client(server.host, ALICE)
    with pytest.raises(DeniedError) as caught:
        client.ping()
    assert str(caught.value) == (
        f"GET {server.host}/v2/: {server.host} refuses the login of user alice (HTTP 401); "
        "give other credentials"
    )
    assert len(server.log) == 2
    with pytest.raises(DeniedError):
        client.ping()
    assert len(server.log) == 3


def test_without_credentials_the_message_says_that_none_were_given(
    serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(401, {"WWW-Authenticate": 'Basic realm="here"'}))
    with pytest.raises(DeniedError, match="asks for a login and none was given") as caught:
        make_client(server.host).ping()
    assert caught.value.exit_code == 6
    assert len(server.log) == 1


def test_what_a_user_may_not_do_is_no_wrong_password(serve: Serve, make_client: MakeClient) -> None:
    def registry(request: Request) -> Reply:
        known = "authorization" in request.headers
        challenge = {"WWW-Authenticate": 'Basic realm="here"'}
        return error(403, "DENIED", "read only") if known else Reply(401, challenge)

    host = serve(registry).host
    with pytest.raises(DeniedError, match=r"user alice may not do this .*DENIED: read only"):
        make_client(host, ALICE).tags("a")
    denied = serve(lambda r: Reply(403))
    with pytest.raises(DeniedError, match=r"denies this without a login \(HTTP 403\)"):
        make_client(denied.host).tags("a")


def test_a_token_that_does_not_reach_far_enough_is_no_wrong_password(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.valid = {}
    tokens.answer = {"token": "of little worth"}
    with pytest.raises(DeniedError, match="user alice may not do this"):
        make_client(tokens.host, ALICE).tags("a")


@pytest.mark.parametrize("challenge", [{}, {"WWW-Authenticate": "Negotiate"}])
def test_a_login_that_could_not_be_shown_was_not_refused(
    challenge: dict[str, str], serve: Serve, make_client: MakeClient
) -> None:
    server = serve(lambda r: Reply(401, challenge))
    with pytest.raises(DeniedError, match="asks for another kind of login than the given"):
        make_client(server.host, ALICE).tags("a")


@pytest.mark.parametrize(
    ("credentials", "told"),
    [
        (None, "the token server of {host} asks for a login and none was given"),
        (Credentials("bob", SECRET), "the token server of {host} refuses the login of user bob"),
        (
            Credentials(identity_token=SECRET),
            "the token server of {host} refuses the login of the holder of the stored token",
        ),
    ],
)
def test_a_token_server_tells_the_same_apart(
    credentials: Credentials | None, told: str, tokens: TokenRegistry, make_client: MakeClient
) -> None:
    with pytest.raises(DeniedError) as caught:
        make_client(tokens.host, credentials).tags("a")
    assert told.format(host=tokens.host) in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_token_server_that_is_lost_says_nothing_about_logins(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.realm.script = lambda request: Reply(404)
    with pytest.raises(
        RegistryError, match=r"refuses \(HTTP 404\); check the registry's config"
    ) as caught:
        make_client(tokens.host).tags("a")
    assert caught.value.exit_code == 1


def test_no_flag_of_a_command_is_named_by_the_library(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    with pytest.raises(DeniedError) as caught:
        make_client(tokens.host).tags("a")
    assert "--" not in str(caught.value)


def test_a_token_is_fetched_once_a_scope_and_later_scopes_need_no_challenge(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    client = make_client(tokens.host, ALICE)
    for _ in range(3):
        client.tags("a")
    client.tags("b")
    assert scopes_of(tokens.realm) == [["repository:a:pull"], ["repository:b:pull"]]
    assert len(tokens.server.log) == 1 + 3 + 1
    query = tokens.realm.log[0].query
    assert query["service"] == ["reg"]
    assert query["account"] == ["alice"]


def test_an_anonymous_token_is_fetched_without_credentials(
    serve: Serve, make_client: MakeClient
) -> None:
    tokens = TokenRegistry(serve, allowed=None)
    make_client(tokens.host).tags("a")
    assert "authorization" not in tokens.realm.log[0].headers


def test_an_identity_token_is_exchanged_by_the_oauth_grant(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.answer = {"token": None, "access_token": "oauth"}
    tokens.valid["oauth"] = {"repository:a:pull"}
    make_client(tokens.host, Credentials(identity_token="identity")).tags("a")
    (request,) = tokens.realm.log
    assert (request.method, request.query) == ("POST", {})


def test_a_revoked_token_is_replaced_exactly_once(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    client = make_client(tokens.host, ALICE)
    client.tags("a")
    tokens.valid.clear()
    client.tags("a")
    assert tokens.issued == 2
    tokens.answer = {"token": "never valid"}
    tokens.valid.clear()
    with pytest.raises(DeniedError):
        client.tags("a")
    assert tokens.issued == 3


def test_a_refusing_token_server_is_named_and_asked_once(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    client = make_client(tokens.host, Credentials("alice", "wrong-" + SECRET))
    with pytest.raises(
        DeniedError, match=r"the token server of .* refuses .*wrong password"
    ) as err:
        client.tags("a")
    assert SECRET not in str(err.value)
    assert len(tokens.realm.log) == 1


def test_a_token_server_in_trouble_is_asked_again(
    tokens: TokenRegistry, make_client: MakeClient, waits: list[float]
) -> None:
    script = tokens.realm.script
    answers = iter([Reply(503), Reply(502)])
    tokens.realm.script = lambda request: next(answers, None) or script(request)
    make_client(tokens.host, ALICE).tags("a")
    assert waits == [1, 2]


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\nb"}'])
def test_a_token_server_that_talks_nonsense_is_reported(
    body: bytes, tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.realm.script = lambda request: Reply(body=body)
    with pytest.raises(RegistryError, match=r"token server of .* cannot be understood"):
        make_client(tokens.host, ALICE).tags("a")


def test_many_threads_that_want_one_scope_fetch_one_token(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    client = make_client(tokens.host, ALICE)
    client.tags("a")
    gate = threading.Barrier(8)

    def work(_: int) -> list[str]:
        gate.wait()
        return client.tags("b")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [["t"]] * 8
    assert tokens.issued == 2


def test_a_scope_that_the_registry_finds_too_small_is_widened_for_good(
    serve: Serve, make_client: MakeClient
) -> None:
    tokens = TokenRegistry(serve)
    inner = tokens._registry

    def registry(request: Request) -> Reply:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if "repository:a:metadata_read,pull" in tokens.valid.get(token, ()):
            return Reply(body=b'{"tags": ["t"]}')
        reply = inner(request)
        reply.status = 401
        reply.headers["WWW-Authenticate"] = (
            f'Bearer realm="{tokens.realm.url}/token",service="reg",'
            'scope="repository:a:metadata_read",error="insufficient_scope"'
        )
        return reply

    tokens.server.script = registry
    client = make_client(tokens.host, ALICE)
    client.tags("a")
    client.tags("a")
    assert scopes_of(tokens.realm) == [["repository:a:metadata_read,pull"]]


def test_a_mount_asks_for_both_repositories(tokens: TokenRegistry, make_client: MakeClient) -> None:
    def registry(request: Request) -> Reply:
        if "authorization" in request.headers:
            return Reply(201)
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{tokens.realm.url}/token"'})

    tokens.server.script = registry
    client = make_client(tokens.host, ALICE)
    assert client.mount("new", Digest.of(b""), "old")
    assert scopes_of(tokens.realm)[0] == ["repository:new:pull,push", "repository:old:pull"]


def test_the_example_scope_of_a_ping_is_not_asked_for(
    tokens: TokenRegistry, make_client: MakeClient
) -> None:
    tokens.challenge_more = ',scope="repository:user/image:pull"'
    make_client(tokens.host, ALICE).ping()
    assert scopes_of(tokens.realm) == [[]]


def test_credentials_go_to_no_plain_token_server_of_a_tls_registry() -> None:
    sent: list[str] = []

    def fetch(url: str) -> bytes:
        sent.append(url)
        return b'{"token": "t"}'

    way = Challenge("bearer", {"realm": "http://auth.example.com/token"})
    guarded = Authenticator("reg.example.com", ConnectionOptions(), credentials=ALICE)
    with pytest.raises(DeniedError, match=r"credentials are not sent there") as caught:
        guarded.renewed([way], pull("a"), None, Carrier(fetch))
    assert SECRET not in str(caught.value)
    assert sent == []
    anonymous = Authenticator("reg.example.com", ConnectionOptions(), credentials=None)
    assert anonymous.renewed([way], pull("a"), None, Carrier(fetch)) == "Bearer t"


def test_a_realm_that_is_no_address_is_reported() -> None:
    def fetch(url: str) -> bytes:
        raise AssertionError("nothing to fetch")

    auth = Authenticator("reg.example.com", ConnectionOptions(), credentials=ALICE)
    with pytest.raises(RegistryError, match="an address that is not one of the web"):
        auth.renewed(
            [Challenge("bearer", {"realm": "file:///etc/passwd"})], (), None, Carrier(fetch)
        )


def counting(answers: list[str]) -> tuple[Authenticator, Carrier, list[float], list[str]]:
    """An authenticator with a clock to turn; what carries its requests; the URLs it fetches."""
    now, urls = [0.0], list[str]()

    def fetch(url: str) -> bytes:
        urls.append(url)
        return answers[len(urls) - 1].encode()

    auth = Authenticator(
        "reg.example.com", ConnectionOptions(), credentials=ALICE, clock=lambda: now[0]
    )
    auth_way = Challenge("bearer", {"realm": "https://auth.example.com/t?x=1", "service": "s"})
    carrier = Carrier(fetch)
    auth.renewed([auth_way], pull("a"), None, carrier)
    return auth, carrier, now, urls


@pytest.mark.parametrize(
    ("answer", "lifetime_s"),
    [
        ('{"token": "t1"}', 60),
        ('{"token": "t1", "expires_in": 5}', 60),
        ('{"token": "t1", "expires_in": 300}', 300),
        ('{"access_token": "t1", "expires_in": null}', 60),
    ],
)
def test_a_token_is_replaced_before_it_expires(answer: str, lifetime_s: int) -> None:
    auth, carrier, now, urls = counting([answer, '{"token": "t2"}'])
    margin_s = max(10, lifetime_s / 10)
    now[0] = lifetime_s - margin_s - 1
    assert auth.header(pull("a"), carrier) == "Bearer t1"
    now[0] = lifetime_s - margin_s + 1
    assert auth.header(pull("a"), carrier) == "Bearer t2"
    assert urls[0].startswith(
        "https://auth.example.com/t?x=1&service=s&scope=repository%3Aa%3Apull"
    )


def test_a_failure_is_shared_by_those_who_waited_for_it() -> None:
    entered, release, calls = threading.Event(), threading.Event(), list[int]()

    def fetch(url: str) -> bytes:
        calls.append(1)
        entered.set()
        assert release.wait(5)
        raise UnreachableError("down", where="token server")

    auth = Authenticator("reg.example.com", ConnectionOptions(), credentials=ALICE)
    way = [Challenge("bearer", {"realm": "https://auth.example.com/t"})]

    class Waiting(Carrier):
        def __init__(self) -> None:
            super().__init__(fetch)
            self.waits = threading.Event()

        def check(self) -> None:
            self.waits.set()

    def work(carrier: Waiting) -> MirrorError:
        with pytest.raises(UnreachableError, match="down") as caught:
            auth.renewed(way, pull("a"), None, carrier)
        return caught.value

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(work, Waiting())
        assert entered.wait(5)
        # The first is inside of `fetch`, so whoever comes now finds it under way.
        carriers = [Waiting() for _ in range(3)]
        others = [pool.submit(work, carrier) for carrier in carriers]
        assert all(carrier.waits.wait(5) for carrier in carriers)
        release.set()
        errors = [f.result() for f in (first, *others)]
    assert len({id(error) for error in errors}) == 4  # a traceback of its own for each thread
    assert {error.where for error in errors if isinstance(error, RegistryError)} == {"token server"}
    assert len(calls) == 1


def test_a_credential_shows_in_no_repr_and_no_log(
    tokens: TokenRegistry, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = Credentials("alice", SECRET, identity_token=None)
    with caplog.at_level(logging.DEBUG):
        client = make_client(tokens.host, credentials)
        client.tags("a")
    everything = caplog.text + repr(credentials) + str(credentials) + repr(client)
    everything += repr(Credentials("x", identity_token=SECRET))
    assert "mirror.registry" in caplog.text
    for secret in (SECRET, BASIC, BASIC.removeprefix("Basic "), "token-1"):
        assert secret not in everything


def test_a_user_name_with_a_colon_is_refused() -> None:
    with pytest.raises(InputError, match="colon"):
        Credentials("a:b", "c")


def test_scopes_merge_into_one_form() -> None:
    assert merge(push("a"), pull("a")) == ("repository:a:pull,push",)
    assert merge(["repository:b:push,pull"], pull("a")) == merge(pull("a"), push("b"))
    assert merge(["registry:catalog:*", "", "nonsense"]) == ("registry:catalog:*",)
    assert merge(pull("host:5000/x")) == ("repository:host:5000/x:pull",)
