"""Commands that take the address of a bundle in place of its folder; a web server with TLS."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.testing import EmbeddedRegistry, Fault, FaultyProxy, Redirect
from tests.support.bundles import pack_store
from tests.support.inventories import sample_store
from tests.support.nginx import Nginx
from tests.support.program import call_mirror
from tests.support.tls import Authority


@dataclass(frozen=True)
class Place:
    """The same bundle in a folder and at an address; `ca` are the flags that trust its server."""

    folder: Path
    url: str
    ca: tuple[str | Path, ...]
    asked: Path

    def headers(self) -> str:
        """What of a login every request that came brought."""
        return self.asked.read_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tmp = tmp_path_factory.mktemp("static")
    folder = tmp / "files" / "a release"
    pack_store(sample_store(), folder)
    authority, asked = Authority.create(tmp / "authority"), tmp / "asked"
    with Nginx(
        tmp / "nginx",
        files=tmp / "files",
        tls=authority.issue(),
        http="log_format asked '$http_authorization$http_cookie';",
        location=[f"access_log {asked} asked;"],
    ) as nginx:
        url = f"{nginx.url}/a%20release"
        yield Place(folder, url, ("--ca", authority.certificate), asked)


def without_times(text: str) -> str:
    return re.sub(r'"elapsedSeconds": [0-9.]+|in [0-9.]+ (s|ms)', "", text)


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_the_result_is_that_of_the_folder(place: Place, command: str) -> None:
    there = call_mirror(command, place.url, *place.ca, "--json").succeeded().document
    here = call_mirror(command, place.folder, "--json").succeeded().document
    for document in (there, here):
        del document["elapsedSeconds"]
        document.pop("written", None), document.pop("bundle", None), document.pop("name", None)
    assert there == here


def test_a_difference_and_a_base_need_the_seal_alone(place: Place, tmp_path: Path) -> None:
    call_mirror("diff", place.url, place.folder, *place.ca).succeeded()
    merged = tmp_path / "whole"
    call_mirror("merge", place.url, merged, *place.ca).succeeded()
    assert (merged / "SHA256SUMS").read_bytes() == (place.folder / "SHA256SUMS").read_bytes()


def test_a_push_sends_the_server_of_the_bundle_no_login_of_the_registry(
    place: Place, tmp_path: Path, embedded_registry: EmbeddedRegistry
) -> None:
    host = place.url.split("/")[2]
    stored = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(f'{{"auths": {{"{host}": {{"auth": "{stored}"}}}}}}')
    env = {"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    target = f"{embedded_registry.address}/dkp"
    push = ("push", place.url, target, *place.ca, "--insecure", "-u", "ci", "-p", "-")
    call_mirror(*push, env=env, stdin="S3cret\n").succeeded()
    call_mirror("verify", place.url, "--against", target, *place.ca, "--insecure").succeeded()
    assert place.headers().strip("-\n") == ""


@pytest.mark.parametrize(
    ("address", "code", "told"),
    [
        ("http://127.0.0.1:1/x", 2, "is plain HTTP; use https, or add --insecure"),
        ("https://a:b@127.0.0.1:1/x", 2, "a user or password is not taken"),
        ("ftp://127.0.0.1/x", 2, "is not an address of a bundle: write https://host/path"),
    ],
)
def test_an_address_that_cannot_be_meant_is_told(address: str, code: int, told: str) -> None:
    call_mirror("verify", address).failed(code, told)


def test_a_server_without_trust_is_told_as_a_registry_would_be(place: Place) -> None:
    call_mirror("verify", place.url).failed(5, "is not trusted", "--ca")


def test_a_redirect_does_not_leave_tls(place: Place, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    with (
        Nginx(tmp_path / "plain", files=place.folder.parent) as plain,
        FaultyProxy(plain.url, tls=authority.issue()) as proxy,
    ):
        proxy.faults.add(Fault(Redirect(plain.url), times=None))
        verify = ("verify", f"{proxy.url}/a%20release", "--ca", authority.certificate)
        call_mirror(*verify).failed(1, "leads to 127.0.0.1 without TLS; let it lead to https")


def test_an_address_that_holds_no_bundle_is_told(place: Place) -> None:
    nowhere = place.url.replace("a%20release", "nowhere")
    call_mirror("inspect", nowhere, *place.ca).failed(2, "a web server lists no files")
