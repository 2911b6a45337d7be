"""A small registry in memory whose every step a test may disturb."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TypeAlias

from mirror.oci import Digest
from tests.support.scripted_server import Hangup, Reply, Request

Fault: TypeAlias = Callable[[Request], Reply | None]
"""Looked at before each request; a reply of its own replaces the registry's."""


class FakeRegistry:
    """Blobs, manifests and upload sessions, as distribution-spec has them."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.sessions: dict[str, bytearray] = {}
        self.cancelled: list[str] = []
        self.fault: Fault = lambda request: None
        self.start_headers: dict[str, str] = {}
        self.location = "{path}?state=a%2Fb"
        self.opened = 0
        self.proves = True
        """Whether a digest is compared with the bytes."""

    def __call__(self, request: Request) -> Reply:
        reply = self.fault(request)
        if reply is not None:
            return reply
        if request.path == "/v2/":
            return Reply()
        if "/blobs/uploads/" in request.path:
            return self._upload(request)
        digest = request.path.rpartition("/")[2]
        if "/blobs/" in request.path:
            return self._blob(request, digest)
        return error(404, "NAME_UNKNOWN")

    def _blob(self, request: Request, digest: str) -> Reply:
        data = self.blobs.get(digest)
        if request.method == "DELETE":
            return Reply(202 if self.blobs.pop(digest, None) is not None else 404)
        if data is None:
            return error(404, "BLOB_UNKNOWN")
        start = start_of(request)
        if start is None:
            return Reply(body=data)
        if start >= len(data):
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        content_range = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Reply(206, {"Content-Range": content_range}, data[start:])

    def _upload(self, request: Request) -> Reply:
        name = request.path.rpartition("/")[2]
        if request.method == "POST":
            self.opened += 1
            name = f"s{self.opened}"
            self.sessions[name] = bytearray()
            return self._accepted(request.path + name, name, more=self.start_headers)
        if name not in self.sessions:
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        assert request.query["state"] == ["a/b"], "the session's own query was changed"
        held = self.sessions[name]
        if request.method == "DELETE":
            self.cancelled.append(name)
            del self.sessions[name]
            return Reply(204)
        if request.method == "GET":
            return self._accepted(request.path, name, status=204)
        told = request.headers.get("content-range")
        if told is not None and int(told.partition("-")[0]) != len(held):
            return self._accepted(request.path, name, status=416)
        body = request.body
        held += body
        if len(body) < request.length:
            raise Hangup
        if request.method == "PATCH":
            return self._accepted(request.path, name)
        digest = request.query["digest"][0]
        if self.proves and str(Digest.of(bytes(held))) != digest:
            del self.sessions[name]
            return error(400, "DIGEST_INVALID")
        self.blobs[digest] = bytes(held)
        del self.sessions[name]
        return Reply(201, {"Docker-Content-Digest": digest, "Location": "/"})

    def _accepted(
        self, path: str, name: str, status: int = 202, more: Mapping[str, str] | None = None
    ) -> Reply:
        held = self.sessions[name]
        return Reply(
            status,
            {
                "Location": self.location.format(path=path),
                "Range": f"0-{max(0, len(held) - 1)}",
                **(more or {}),
            },
        )


def error(status: int, code: str, message: str = "no", **headers: str) -> Reply:
    """An error as registries write it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Reply(status, {"Content-Type": "application/json", **headers}, body)


def start_of(request: Request) -> int | None:
    """Where the `Range` of a request starts."""
    text = request.headers.get("range")
    return int(text.removeprefix("bytes=").partition("-")[0]) if text else None


def once(condition: Callable[[Request], bool], reply: Callable[[Request], Reply]) -> Fault:
    """A fault that strikes the first request that meets `condition`."""
    return times(1, condition, reply)


def times(
    count: int, condition: Callable[[Request], bool], reply: Callable[[Request], Reply]
) -> Fault:
    """A fault that strikes the first `count` requests that meet `condition`."""
    left = count

    def fault(request: Request) -> Reply | None:
        nonlocal left
        if left and condition(request):
            left -= 1
            return reply(request)
        return None

    return fault
