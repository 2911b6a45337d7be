"""Error answers as the distribution specification spells them ("Error Codes")."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from mirror.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidManifestError,
    InvalidReferenceError,
    MirrorError,
)

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""The status of an answer that nobody hears, since the client has hung up (as nginx logs it)."""


class RefusedError(Exception):
    """A request that is answered with an error: `status`, and `code` from the specification."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})


_CODES: dict[type[MirrorError], str] = {
    InvalidDigestError: "DIGEST_INVALID",
    DigestMismatchError: "DIGEST_INVALID",
    InvalidReferenceError: "NAME_INVALID",
    InvalidManifestError: "MANIFEST_INVALID",
}


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error with the body that the specification prescribes."""
    body = {"errors": [{"code": code, "message": message}]}
    return JSONResponse(body, status_code=status, headers=headers)


async def _refused(_request: Request, err: Exception) -> Response:
    assert isinstance(err, RefusedError)
    return error_response(err.status, err.code, err.message, err.headers)


async def _invalid(_request: Request, err: Exception) -> Response:
    code = next((code for kind, code in _CODES.items() if isinstance(err, kind)), None)
    if code is None:
        logger.error("request failed: %s", err)
        return error_response(500, "UNKNOWN", "internal error")
    return error_response(400, code, str(err))


async def _http(_request: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    code = "UNSUPPORTED" if err.status_code == 405 else "NAME_UNKNOWN"
    return error_response(err.status_code, code, err.detail, err.headers)


async def _system(_request: Request, err: Exception) -> Response:
    assert isinstance(err, OSError)
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("the registry's disk is full: %s", err)
        return error_response(507, "UNKNOWN", "the registry's disk is full; free space there")
    logger.error("request failed: %s", err, exc_info=err)
    return error_response(500, "UNKNOWN", "internal error")


async def _gone(_request: Request, _err: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _bug(_request: Request, _err: Exception) -> Response:
    return error_response(500, "UNKNOWN", "internal error")


HANDLERS = {
    RefusedError: _refused,
    MirrorError: _invalid,
    HTTPException: _http,
    ClientDisconnect: _gone,
    OSError: _system,
    Exception: _bug,
}
"""Which exceptions become which answers; anything else is a bug, logged by the server."""
