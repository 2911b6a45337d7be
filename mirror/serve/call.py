"""One request on its way through a handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from starlette.requests import Request

from mirror.serve.auth import Auth
from mirror.serve.errors import RefusedError
from mirror.serve.sessions import UploadSessions
from mirror.serve.store import ReadableStore, Store

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Service:
    """What the handlers share. `writable` is None in a registry that only serves."""

    store: ReadableStore
    writable: Store | None
    auth: Auth
    sessions: UploadSessions
    page_limit: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is allowed; `repository` is parsed, and empty where the path names none."""

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
        """A part of the path, by its name in the route."""
        return str(self.request.path_params[name])

    def url(self, tail: str) -> str:
        """The address of something in this repository, for `Location` and `Link`."""
        return f"/v2/{self.repository}/{tail}"


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run a store's method where it may wait for the disk without stopping other requests."""
    return await asyncio.to_thread(function, *args, **kwargs)
