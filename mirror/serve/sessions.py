"""Upload sessions: what a client has sent so far (distribution-spec, "Pushing blobs")."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from mirror.serve.errors import RefusedError
from mirror.serve.store import Staging


@dataclass(slots=True)
class Session:
    """An open upload. Hold `lock` while using `staging`."""

    id: str
    repository: str
    staging: Staging
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class UploadSessions:
    """The open uploads of one server; they end with it, as clients are ready to begin anew.

    Used from the event loop only. A session that nobody touches for `idle_s` seconds is dropped.
    There are at most `limit`, since each holds an open file.
    """

    def __init__(self, idle_s: float = 3600.0, limit: int = 500) -> None:
        self._idle_s, self._limit = idle_s, limit
        self._sessions: dict[str, Session] = {}

    def make_room(self) -> None:
        """Drop what is idle, before one more is opened.

        Raises:
            RefusedError: TOOMANYREQUESTS, all that are open are in use.
        """
        oldest = time.monotonic() - self._idle_s
        for session in [held for held in self._sessions.values() if held.used_at < oldest]:
            if not session.lock.locked():
                self.close(session)
                session.staging.discard()
        if len(self._sessions) >= self._limit:
            raise RefusedError(
                429, "TOOMANYREQUESTS", "too many uploads are open", headers={"Retry-After": "1"}
            )

    def open(self, repository: str, staging: Staging) -> Session:
        """Begin one for bytes that go into `staging`."""
        session = Session(secrets.token_hex(16), repository, staging, time.monotonic())
        self._sessions[session.id] = session
        return session

    def find(self, repository: str, session_id: str) -> Session:
        """The open session of that repository and id.

        Raises:
            RefusedError: BLOB_UPLOAD_UNKNOWN.
        """
        session = self._sessions.get(session_id)
        if session is None or session.repository != repository:
            raise RefusedError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload; begin a new one")
        session.used_at = time.monotonic()
        return session

    def close(self, session: Session) -> None:
        """Forget a session; its staging is the caller's to commit or discard."""
        self._sessions.pop(session.id, None)

    def discard_all(self) -> None:
        """Drop every session and its bytes."""
        while self._sessions:
            self._sessions.popitem()[1].staging.discard()
