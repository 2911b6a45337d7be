"""A blob from several endpoints: where one breaks off, the next continues."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from mirror.errors import DigestMismatchError, IntegrityError, MirrorError
from mirror.modes.endpoints import Endpoint
from mirror.modes.failover import Reading
from mirror.oci import Digest, Verifier

_PROGRESS_BYTES = 64 << 10
"""A round that moved less counts as failed, or a trickle could go on for ever."""


class BlobReading:
    """One blob on its way to us. Used by one thread, once.

    `open_at(endpoint, offset)` opens the bytes that an endpoint has from there on, unchecked.
    """

    def __init__(
        self,
        reading: Reading,
        open_at: Callable[[Endpoint, int], Generator[bytes, None, None]],
        digest: Digest,
        size: int | None,
        offset: int,
        *,
        verify: bool,
    ) -> None:
        self._reading, self._open_at = reading, open_at
        self._digest, self._size, self._offset = digest, size, offset
        # From the middle on there is nothing to hash: whoever holds the beginning checks the whole.
        self._verify = verify and offset == 0
        self._from: list[Endpoint] = []
        self._restart()

    def _restart(self) -> None:
        self._position, self._held = self._offset, b""
        self._from.clear()
        self._verifier = (
            Verifier(self._digest, self._size, self._reading.what) if self._verify else None
        )

    def chunks(self) -> Generator[bytes, None, None]:
        """The blob's bytes; see `ModeClient.blob`."""
        for endpoint in self._reading:
            began = self._position
            self._from.append(endpoint)
            try:
                yield from self._rest(endpoint)
            except MirrorError as err:
                if self._position - began >= _PROGRESS_BYTES:
                    self._reading.progressed()
                self._bear(endpoint, err, brought=self._position > began)
                continue
            self._reading.served(endpoint)
            if self._held:
                yield self._held
            return
        raise self._reading.verdict()

    def _rest(self, endpoint: Endpoint) -> Generator[bytes, None, None]:
        """Everything from the present position on; with checking, all but the last chunk."""
        with closing(self._open_at(endpoint, self._position)) as chunks:
            for chunk in chunks:
                self._position += len(chunk)
                if self._verifier is None:
                    yield chunk
                    continue
                self._verifier.update(chunk)
                if self._held:
                    yield self._held
                self._held = chunk
        if self._verifier is not None:
            self._verifier.finish()

    def _bear(self, endpoint: Endpoint, err: MirrorError, *, brought: bool) -> None:
        """Go on after `err`, if bytes that are out already do not forbid it.

        `brought`: `endpoint` has sent some of them.

        Raises:
            IntegrityError: wrong bytes are out.
        """
        if isinstance(err, DigestMismatchError) or (isinstance(err, IntegrityError) and brought):
            for one in self._from:  # any of them may have sent them; ask others first next time
                self._reading.patience.health.lacked(one, self._reading.what)
            if self._position > self._offset + len(self._held):
                raise err
            self._reading.failed(endpoint, err)
            self._restart()
            return
        self._reading.failed(endpoint, err)
