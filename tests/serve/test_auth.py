"""Who may do what."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import httpx
import pytest

from mirror.oci import Digest
from mirror.serve import BasicAuth, MemoryStorage, TokenAuth, User, put_blob
from tests.conftest import MakeEmbeddedRegistry
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.sample_images import LAYER, codes, fill

USERS = {
    "reader": User("r-secret", frozenset({"pull"})),
    "writer": User("w-secret", frozenset({"pull", "push"})),
    "owner": User("o-secret"),
}
READER, WRITER, OWNER = (
    ("reader", "r-secret"),
    ("writer", "w-secret"),
    ("owner", "o-secret"),
)


@pytest.fixture
def storage() -> MemoryStorage:
    made = MemoryStorage()
    fill(made)
    return made


@pytest.mark.parametrize(
    ("who", "pull", "push", "delete"),
    [
        (None, 401, 401, 401),
        (("reader", "wrong"), 401, 401, 401),
        (("nobody", "r-secret"), 401, 401, 401),
        (READER, 200, 403, 403),
        (WRITER, 200, 202, 403),
        (OWNER, 200, 202, 202),
    ],
)
def test_basic_credentials_allow_what_their_owner_may(
    make_embedded_registry: MakeEmbeddedRegistry,
    storage: MemoryStorage,
    who: tuple[str, str] | None,
    pull: int,
    push: int,
    delete: int,
) -> None:
    registry = make_embedded_registry(storage, auth=BasicAuth(USERS))
    with httpx.Client(base_url=registry.url, auth=who) as client:
        assert client.get("/v2/").status_code == pull
        assert client.get("/v2/_catalog").status_code == pull
        assert client.get("/v2/a/b/manifests/v1").status_code == pull
        assert client.post("/v2/a/b/blobs/uploads/").status_code == push
        answer = client.delete("/v2/a/b/manifests/v1")
        assert answer.status_code == delete
    if delete == 401:
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry"'
        assert codes(answer) == ["UNAUTHORIZED"]
    if delete == 403:
        assert codes(answer) == ["DENIED"]


def test_anonymous_clients_may_pull_where_that_is_allowed(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=BasicAuth(USERS, anonymous={"pull"}))
    with httpx.Client(base_url=registry.url) as client:
        assert client.get("/v2/").status_code == 200
        assert client.get("/v2/a/b/manifests/v1").status_code == 200
        assert client.post("/v2/a/b/blobs/uploads/").status_code == 401


@pytest.mark.parametrize(
    "header",
    [
        *(b"Basic", b"Basic !!!", b"Basic dXNlcg==", b"Bearer x", b"x y z"),
        *(b"Basic \xe9", b"Basic //79", b"Bearer \xe9"),
    ],
)
def test_a_header_that_cannot_be_read_allows_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage, header: bytes
) -> None:
    for auth in (BasicAuth(USERS), TokenAuth(USERS)):
        registry = make_embedded_registry(storage, auth=auth)
        headers = [(b"Authorization", header)]
        assert httpx.get(f"{registry.url}/v2/", headers=headers).status_code == 401
        if isinstance(auth, TokenAuth):
            assert httpx.get(f"{registry.url}/token", headers=headers).status_code == 401


def test_without_credentials_there_is_no_token_where_nothing_is_open_to_all(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS))
    answer = httpx.get(f"{registry.url}/token", params={"scope": "repository:a/b:pull"})
    assert (answer.status_code, codes(answer)) == (401, ["UNAUTHORIZED"])
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="registry"'


def test_the_token_of_somebody_who_may_do_nothing_opens_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    users = {**USERS, "guest": User("g-secret", frozenset())}
    registry = make_embedded_registry(storage, auth=TokenAuth(users))
    with httpx.Client(base_url=registry.url) as client:
        token = token_for(client.get("/v2/"), ("guest", "g-secret"))
        for path in ("/v2/", "/v2", "/v2/_catalog", "/v2/a/b/tags/list"):
            answer = client.get(path, headers=token)
            assert challenge(answer)["error"] == "insufficient_scope"


def test_a_scope_without_a_repository_opens_nothing(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS, anonymous={"push"}))
    with httpx.Client(base_url=registry.url) as client:
        answer = client.get("/token", params={"scope": "repository::pull repository:pull :::"})
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert client.get("/v2/", headers=headers).status_code == 200
        assert client.get("/v2/a/b/tags/list", headers=headers).status_code == 401


def test_the_catalogue_opens_with_a_right_of_its_own_that_nobody_has_without_an_account(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS, anonymous={"pull"}))
    with httpx.Client(base_url=registry.url) as client:
        asked = client.get("/v2/_catalog")
        assert challenge(asked)["scope"] == "registry:catalog:*"
        everybody = token_for(asked, None)
        assert client.get("/v2/", headers=everybody).status_code == 200
        refused = client.get("/v2/_catalog", headers=everybody)
        assert challenge(refused)["error"] == "insufficient_scope"
        # A token for something else is none for the catalogue, whoever has it.
        other = token_for(client.get("/v2/a/b/tags/list"), OWNER)
        assert challenge(client.get("/v2/_catalog", headers=other))["scope"] == "registry:catalog:*"
        assert client.get("/v2/_catalog", headers=token_for(asked, READER)).status_code == 200


def challenge(answer: httpx.Response) -> dict[str, str]:
    kind, _, rest = answer.headers["WWW-Authenticate"].partition(" ")
    assert (answer.status_code, kind) == (401, "Bearer")
    return dict(re.findall(r'(\w+)="([^"]*)"', rest))


def token_for(answer: httpx.Response, who: tuple[str, str] | None) -> dict[str, str]:
    said = challenge(answer)
    params = {"service": said["service"]} | ({"scope": said["scope"]} if "scope" in said else {})
    token = httpx.get(said["realm"], params=params, auth=who).json()["token"]
    return {"Authorization": f"Bearer {token}"}


def test_a_challenge_leads_to_a_token_that_opens(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS))
    with httpx.Client(base_url=registry.url) as client:
        root = client.get("/v2/")
        assert challenge(root)["realm"] == f"{registry.url}/token"
        assert client.get("/v2/", headers=token_for(root, READER)).status_code == 200
        refused = client.get("/v2/a/b/manifests/v1")
        assert challenge(refused)["scope"] == "repository:a/b:pull"
        pull = token_for(refused, READER)
        assert client.get("/v2/a/b/manifests/v1", headers=pull).status_code == 200
        elsewhere = client.get("/v2/a/c/manifests/v1", headers=pull)
        assert challenge(elsewhere)["error"] == "insufficient_scope"


def test_a_token_covers_only_what_its_owner_may(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS))
    uploads = f"{registry.url}/v2/a/b/blobs/uploads/"
    refused = httpx.post(uploads)
    assert challenge(refused)["scope"] == "repository:a/b:pull,push"
    assert httpx.post(uploads, headers=token_for(refused, WRITER)).status_code == 202
    still = httpx.post(uploads, headers=token_for(refused, READER))
    assert challenge(still)["error"] == "insufficient_scope"
    wrong = httpx.get(f"{registry.url}/token", auth=("reader", "wrong"))
    assert (wrong.status_code, codes(wrong)) == (401, ["UNAUTHORIZED"])


def test_a_token_expires_and_can_be_revoked(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    auth = TokenAuth(USERS, anonymous={"pull"}, expires_s=1.5)
    url = f"{make_embedded_registry(storage, auth=auth).url}/v2/a/b/manifests/v1"
    headers = token_for(httpx.get(url), None)
    assert httpx.get(url, headers=headers).status_code == 200
    wait_until(lambda: httpx.get(url, headers=headers).status_code == 401)
    headers = token_for(httpx.get(url), None)
    auth.revoke_all()
    assert httpx.get(url, headers=headers).status_code == 401


def test_mounting_takes_the_right_to_pull_from_the_source(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    put_blob(storage, "secret", LAYER)
    registry = make_embedded_registry(storage, auth=TokenAuth(USERS))
    url = f"{registry.url}/v2/new/blobs/uploads/?mount={Digest.of(LAYER)}&from=secret"
    ours = {"scope": "repository:new:pull,push"}
    both = {"scope": "repository:new:pull,push repository:secret:pull"}
    for params, status in ((ours, 202), (both, 201)):
        token = httpx.get(f"{registry.url}/token", params=params, auth=WRITER).json()["token"]
        answer = httpx.post(url, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status


def test_passwords_are_not_shown(
    make_embedded_registry: MakeEmbeddedRegistry, storage: MemoryStorage
) -> None:
    assert "secret" not in repr(USERS)
    registry = make_embedded_registry(storage, auth=BasicAuth(USERS))
    httpx.get(f"{registry.url}/v2/", auth=OWNER)
    assert "authorization" not in repr(list(registry.requests)).lower()
    assert next(iter(registry.requests)).headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("tokens", [False, True])
def test_strangers_who_guess_hold_up_nobody_who_is_known(
    make_embedded_registry: MakeEmbeddedRegistry,
    storage: MemoryStorage,
    monkeypatch: pytest.MonkeyPatch,
    tokens: bool,
) -> None:
    """A hash takes a third of a second by design; here it takes until the known one was served."""
    served = threading.Event()

    def checkpw(password: bytes, _hashed: bytes) -> bool:
        if password == b"right":
            return True
        assert served.wait(PATIENCE_S)
        return False

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    users = {"ana": User("a hash", hashed=True)}
    auth = TokenAuth(users) if tokens else BasicAuth(users)
    registry = make_embedded_registry(storage, auth=auth)
    path = "/token" if tokens else "/v2/"

    def ask(password: str) -> int:
        return httpx.get(
            registry.url + path, auth=("ana", password), timeout=PATIENCE_S
        ).status_code

    assert ask("right") == 200
    with ThreadPoolExecutor(12) as pool:
        guesses = [pool.submit(ask, f"guess {number}") for number in range(12)]
        assert [ask("right") for _ in range(3)] == [200] * 3
        served.set()
        assert {guess.result() for guess in guesses} == {401}
