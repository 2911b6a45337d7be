"""Nothing is written that its place is not for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import RenderingError
from mirror.nodeconfig.cluster import Node, Ports
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.pulling import Nginx
from mirror.nodeconfig.tree import (
    checked_address,
    checked_file_path,
    checked_image,
    checked_name,
    checked_registry_host,
    checked_repository_path,
    checked_scheme,
    checked_secret,
    checked_user_name,
)

METACHARACTERS = "\n\r\t\0 '\"`$(){}[];|&<>\\*?!#~%^,"


CHECKS: dict[str, Callable[[str], str]] = {
    "node name": checked_name,
    "address": lambda text: checked_address(text, "x"),
    "host": lambda text: checked_registry_host(text, "x"),
    "repository": lambda text: checked_repository_path(text, "x"),
    "file": lambda text: checked_file_path(f"/{text}", "x"),
    "image": lambda text: checked_image(text, "x"),
    "scheme": lambda text: checked_scheme(text, "x"),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("bad", METACHARACTERS)
def test_no_metacharacter_gets_through(check: str, bad: str) -> None:
    for text in (f"a{bad}", f"{bad}a", f"a{bad}b"):
        with pytest.raises(RenderingError):
            CHECKS[check](text)


@given(st.text())
def test_what_is_accepted_as_a_host_is_plain(text: str) -> None:
    try:
        accepted = checked_registry_host(text, "host")
    except RenderingError:
        return
    assert accepted == text
    assert all(one.isascii() and (one.isalnum() or one in ".-:") for one in text)


@given(st.text())
def test_what_is_accepted_as_a_password_is_one_line(text: str) -> None:
    if text and text.isprintable():
        assert checked_secret(text, "password") == text
        assert len(text.splitlines()) == 1
        return
    with pytest.raises(RenderingError) as found:
        checked_secret(text, "password")
    assert not text or text not in str(found.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("10.0.0.1", "10.0.0.1"), ("fd00:0::1", "fd00::1"), ("127.0.0.1", "127.0.0.1")],
)
def test_addresses_are_canonical(text: str, found: str) -> None:
    assert Node("a", text).address == found


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1:5001", "0.0.0.0", "::", "224.0.0.1", "10.0.0", "master-0", "10.0.0.1\n"]
)
def test_what_is_no_nodes_address_is_refused(text: str) -> None:
    with pytest.raises(RenderingError, match=r"node a: expected .*; correct it and try again"):
        Node("a", text)


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a..b", "../x", "a" * 254])
def test_what_is_no_nodes_name_is_refused(name: str) -> None:
    with pytest.raises(RenderingError, match="node name: expected lower-case letters"):
        Node(name, "10.0.0.1")


@pytest.mark.parametrize("number", [0, -1, 65536, True])
def test_what_is_no_port_is_refused(number: int) -> None:
    with pytest.raises(RenderingError, match=r"ports\.debug: expected a port"):
        Ports(debug=number)


def test_a_user_name_holds_no_colon() -> None:
    assert checked_user_name("license-token", "user") == "license-token"
    with pytest.raises(RenderingError, match="without ':'"):
        checked_user_name("a:b", "user")


@pytest.mark.parametrize("path", ["a/../b", "..", "a//b", "/a", "a/"])
def test_a_path_stays_where_it_is(path: str) -> None:
    with pytest.raises(RenderingError, match="upstream path"):
        checked_repository_path(path, "upstream path")


def test_images_and_modules_are_checked_too() -> None:
    with pytest.raises(RenderingError, match="auth image"):
        Images("r.example/a:1", "$(reboot)", "r.example/c:1")
    with pytest.raises(RenderingError, match="nginx image"):
        Images(nginx="nginx; reboot")
    with pytest.raises(RenderingError, match="nginx module"):
        Nginx(modules=("/x;\nuser root",))
    with pytest.raises(RenderingError, match="runtime"):
        Nginx(runtime="relative")
