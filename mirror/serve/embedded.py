"""A whole registry inside this process, on a real socket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mirror.serve.app import create_app
from mirror.serve.auth import Auth
from mirror.serve.faults import Faults
from mirror.serve.request_log import RequestLog
from mirror.serve.server import ServerThread, listen
from mirror.serve.store import ReadableStore


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A server's certificate, with the chain to its authority, and its key: PEM files."""

    certificate: Path
    key: Path


class EmbeddedRegistry:
    """Serves `storage` while the `with` block lasts.

        with EmbeddedRegistry(FolderStorage("/srv/images"), port=5000) as registry:
            print(registry.address)

    Port 0 takes a free one. `requests` records every request, `faults` may be changed at any time;
    what the other arguments mean is said by `create_app`.
    """

    def __init__(
        self,
        storage: ReadableStore,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsFiles | None = None,
        auth: Auth | None = None,
        faults: Faults | None = None,
        read_only: bool = False,
        page_limit: int | None = None,
    ) -> None:
        self.storage = storage
        self.faults = faults if faults is not None else Faults()
        self.requests = RequestLog()
        self._host, self._port, self._tls = host, port, tls
        self._app = create_app(
            storage,
            auth=auth,
            read_only=read_only,
            faults=self.faults,
            requests=self.requests,
            page_limit=page_limit,
        )
        self._thread: ServerThread | None = None

    def __enter__(self) -> EmbeddedRegistry:
        if self._thread is not None:
            raise ValueError("this registry is running already")
        listener = listen(self._host, self._port)
        try:
            self._port = listener.getsockname()[1]  # kept, so that a second `with` is a restart
            thread = ServerThread(
                self._app,
                listener,
                certificate=self._tls.certificate if self._tls else None,
                key=self._tls.key if self._tls else None,
            )
            thread.start()
        except BaseException:
            listener.close()
            raise
        self._thread = thread
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.stop()
            self._thread = None

    @property
    def port(self) -> int:
        """The port; 0 before the first start if it was left to the system."""
        return self._port

    @property
    def address(self) -> str:
        """`host:port`, as references begin with it."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._port}"

    @property
    def url(self) -> str:
        """`address` with its scheme."""
        return f"{'https' if self._tls else 'http'}://{self.address}"
