"""The fixtures that other tests stand on."""

from __future__ import annotations

import os
import socket
import ssl

import httpx
import pytest

from mirror.testing import EmbeddedRegistry
from tests.conftest import MakeRealRegistry
from tests.support.loopback import OutsideTrafficError
from tests.support.real_registry import ACCOUNT, HTPASSWD, RealRegistry
from tests.support.tls import Authority


def test_the_embedded_registry_answers_at_its_address(embedded_registry: EmbeddedRegistry) -> None:
    assert httpx.get(f"http://{embedded_registry.address}/v2/").json() == {}
    assert embedded_registry.requests.count("GET", "^/v2/", 200) == 1


def test_the_real_registry_answers_and_comes_back_on_its_port(real_registry: RealRegistry) -> None:
    url = f"{real_registry.url}/v2/"
    assert httpx.get(url).status_code == 200
    real_registry.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    real_registry.restart()
    assert httpx.get(url).status_code == 200


def test_the_real_registry_speaks_tls(
    make_real_registry: MakeRealRegistry, authority: Authority
) -> None:
    registry = make_real_registry(tls=authority.issue())
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    assert httpx.get(f"{registry.url}/v2/", verify=trust).status_code == 200


def test_the_real_registry_asks_for_a_password(make_real_registry: MakeRealRegistry) -> None:
    url = f"{make_real_registry(htpasswd=HTPASSWD).url}/v2/"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, auth=ACCOUNT).status_code == 200


def test_no_test_reaches_another_machine() -> None:
    with pytest.raises(OutsideTrafficError), socket.socket() as sock:
        sock.connect(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror):
        socket.create_connection(("registry.example.com", 443))
    assert "HTTPS_PROXY" not in os.environ
