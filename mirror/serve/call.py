"""What the handlers of all requests share, and how errors become answers.

Error bodies follow the distribution specification ("Error Codes").
"""

from __future__ import annotations

import asyncio
import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mirror.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
    MirrorError,
    NoSpaceError,
)
from mirror.serve.store import ReadableStore, Store

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

CLIENT_GONE = 499
"""The status that is recorded when the client hangs up before its answer (as in nginx)."""


class RefusedError(Exception):
    """Answers a request with `status`, and `code` from the specification."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


class Auth(ABC):
    """Decides on requests. The repository `""` means the registry: its root and catalogue."""

    @abstractmethod
    def check(self, request: Request, repository: str, actions: Set[str]) -> None:
        """Let the request pass.

        Raises:
            RefusedError: 401 with a challenge, or 403.
        """

    def allows(self, request: Request, repository: str, actions: Set[str]) -> bool:
        """Whether `check` would let it pass."""
        try:
            self.check(request, repository, actions)
        except RefusedError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers share. `writable` is None in a registry that only serves."""

    store: ReadableStore
    writable: Store | None
    auth: Auth
    page_limit: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """An allowed request; `repository` has been checked, and is empty if the path names none."""

    request: Request
    service: Service
    repository: str

    @property
    def store(self) -> ReadableStore:
        return self.service.store

    @property
    def target(self) -> Store:
        """The store, for changing it.

        Raises:
            RefusedError: the registry is read-only.
        """
        if self.service.writable is None:
            raise RefusedError(405, "UNSUPPORTED", "this registry is read-only")
        return self.service.writable

    def part(self, name: str) -> str:
        """The part of the path that the route calls `name`."""
        return str(self.request.path_params[name])

    def url(self, tail: str) -> str:
        """The address of something in this repository, for `Location` and `Link`."""
        return f"/v2/{self.repository}/{tail}"


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a method of a store in a thread, so that its disk holds up no other request."""
    return await asyncio.to_thread(function, *args, **kwargs)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error with the body that the specification prescribes."""
    body = {"errors": [{"code": code, "message": message}]}
    return JSONResponse(body, status_code=status, headers=headers)


_CODES: dict[type[MirrorError], str] = {
    InvalidDigestError: "DIGEST_INVALID",
    DigestMismatchError: "DIGEST_INVALID",
    InvalidReferenceError: "NAME_INVALID",
    InvalidManifestError: "MANIFEST_INVALID",
}
"""Errors of the client; every other `MirrorError` is a failure of the registry."""


async def _refused(_request: Request, err: Exception) -> Response:
    assert isinstance(err, RefusedError)
    return error_response(err.status, err.code, err.message, err.headers)


async def _failed(_request: Request, err: Exception) -> Response:
    for kind, code in _CODES.items():
        if isinstance(err, kind):
            return error_response(400, code, str(err))
    full = isinstance(err, NoSpaceError) or (
        isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)
    )
    if full:
        logger.error("the registry's disk is full: %s", err)
        return error_response(507, "UNKNOWN", "the registry's disk is full; free space there")
    logger.error("request failed: %s", err, exc_info=err)
    return error_response(500, "UNKNOWN", "internal error")


async def _http(_request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    code = "UNSUPPORTED" if err.status_code == 405 else "NAME_UNKNOWN"
    return error_response(err.status_code, code, err.detail, err.headers)


async def _gone(_request: Request, _err: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _bug(_request: Request, _err: Exception) -> Response:
    return error_response(500, "UNKNOWN", "internal error")


HANDLERS = {
    RefusedError: _refused,
    MirrorError: _failed,
    HTTPException: _http,
    ClientDisconnect: _gone,
    OSError: _failed,
    Exception: _bug,
}
"""Exception → the handler that answers it; `Exception` itself is a bug, which the server logs."""
