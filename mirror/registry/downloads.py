"""Fetching a blob, or a range of any file: continued where a connection broke.

A blob is verified while it passes. Distribution-spec, "Pulling blobs"; ranges as in RFC 9110,
section 14.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, TypeAlias

from mirror.errors import ConflictError, RegistryError, SizeMismatchError, UnreachableError
from mirror.oci import Digest, Verifier
from mirror.registry import answers
from mirror.registry.answers import Response, is_page
from mirror.registry.auth import PULL, Scopes
from mirror.registry.hosts import host_of
from mirror.registry.http1 import Headers
from mirror.registry.retries import TransientFailure, clean
from mirror.registry.transport import Transport

_log = logging.getLogger(__name__)

_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")
_PROGRESS_BYTES = 64 << 10
"""An attempt that moved less counts as failed in a row, or a trickle could go on for ever."""


class Download:
    """One blob on its way to us. Used by one thread, once."""

    def __init__(
        self,
        transport: Transport,
        repository: str,
        digest: Digest,
        size: int | None,
        offset: int,
        *,
        verify: bool = True,
    ) -> None:
        if offset < 0 or (size is not None and offset > size):
            raise ValueError(f"offset {offset} lies outside of the blob's {size} bytes")
        self._transport, self._size = transport, size
        self._url = _url(transport, repository, digest)
        self._scopes = (PULL.format(repository),)
        self._what = f"{transport.host}/{repository}@{digest}"
        self._where = f"GET {self._what}"
        self._position = offset
        self._past_caches = False
        # From the middle on there is nothing to hash: whoever holds the beginning checks the whole.
        self._verifier = Verifier(digest, size, self._what) if verify and offset == 0 else None

    def chunks(self) -> Generator[bytes, None, None]:
        """The blob's bytes; see `RegistryClient.blob`."""
        chunks = self._resumed()
        return chunks if self._verifier is None else self._verifier.passing(chunks)

    def _resumed(self) -> Generator[bytes, None, None]:
        if self._position == self._size and self._position > 0:
            return
        backoff = self._transport.backoff(self._where)
        while True:
            began = self._position
            try:
                yield from self._attempt()
                backoff.progressed()
                return
            except TransientFailure as failure:
                if self._position - began >= _PROGRESS_BYTES:
                    backoff.progressed()
                backoff.wait(failure)
            except SizeMismatchError as err:
                if self._past_caches:
                    raise
                _log.debug("%s: asking past caches: %s", self._where, err)
                self._past_caches = True

    def _attempt(self) -> Generator[bytes, None, None]:
        """Everything from the present position to the end, or as far as one connection goes."""
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        if self._past_caches:
            headers["Cache-Control"] = "no-cache"
        transport = self._transport
        with transport.open("GET", self._url, scopes=self._scopes, headers=headers) as response:
            skip = self._judge(response)
            if skip is None:
                return
            watch = transport.watch(self._where)
            for chunk in watch.received(response.pieces()):
                fresh = chunk
                if skip:
                    fresh, skip = chunk[skip:], max(0, skip - len(chunk))
                if not fresh:
                    continue
                # Before the position moves: another attempt asks for what comes behind it.
                if self._size is not None and (end := self._position + len(fresh)) > self._size:
                    raise SizeMismatchError(where=self._what, expected=self._size, actual=end)
                self._position += len(fresh)
                yield fresh
        if skip or (self._size is not None and self._position < self._size):
            # An answer without a length can end early and look whole.
            told = (
                f"after {self._position} bytes, before the blob's end; check the network and the "
                "registry's storage"
            )
            raise _ended_early(transport, self._where, told)

    def _judge(self, response: Response) -> int | None:
        """How many bytes of this answer to skip; None when there is nothing left to come."""
        status, headers = response.status, response.headers
        if status == 200:
            self._check_form(headers)
            self._learn_size(headers.length)
            return self._position
        if status in (206, 416) and self._position:
            match, total = _told_range(response)
            self._learn_size(total)
            if status == 416 and total is not None and total == self._position:
                return None
            if status == 206:
                if match is not None and match[1] == str(self._position):
                    return 0
                raise _other_range(response, self._where, f"from {self._position} on, the registry")
        self._transport.whole(response, accept=(), where=self._where)
        raise AssertionError("a refused answer always raises")

    def _check_form(self, headers: Headers) -> None:
        """Find out bytes that are not the blob's own. What has its length has its form.

        Some storages call stored bytes encoded that were compressed before they got there.
        """
        if self._size is not None and headers.length == self._size:
            return
        host, coding = self._transport.host, headers.get("content-encoding", "identity")
        if is_page(headers):
            raise answers.page(200, self._where, host)
        if coding.lower() != "identity":
            raise RegistryError(
                f"{self._where}: {host} sends this blob encoded ({clean(coding)}) although its "
                "own bytes were asked for; switch compression off in the proxy or cache before "
                "it (nginx: gzip off)",
                where=self._where,
                status=200,
            )

    def _learn_size(self, total: int | None) -> None:
        if total is None:
            return
        if self._size is None:
            self._size = total
        elif self._size != total:
            raise SizeMismatchError(where=self._what, expected=self._size, actual=total)


def blob_size(transport: Transport, repository: str, digest: Digest) -> int | None:
    """A blob's length in bytes; see `RegistryClient.blob_size`."""
    wanted = (PULL.format(repository),)
    where = transport.where("HEAD", _url(transport, repository, digest))
    return transport.patiently(where, lambda: probe_size(transport, repository, digest, wanted))


def probe_size(transport: Transport, repository: str, digest: Digest, wanted: Scopes) -> int | None:
    """As `blob_size`, without retries: TransientFailure may leave it."""
    url = _url(transport, repository, digest)
    where = transport.where("HEAD", url)
    with transport.open("HEAD", url, scopes=wanted) as response:
        status, headers = response.status, response.headers
        size = headers.length if status == 200 else None
        if size is not None and is_page(headers) and "docker-content-digest" not in headers:
            raise answers.page(status, where, transport.host)
        if status == 404 or size is not None:
            return size
        failure = answers.from_answer(status, headers, b"", where=where, host=transport.host)
    if isinstance(failure, TransientFailure):
        raise failure
    return _size_by_first_byte(transport, url, wanted)


def _size_by_first_byte(transport: Transport, url: str, wanted: Scopes) -> int | None:
    """Some storage behind registries refuses HEAD, or answers it without a length."""
    where = transport.where("GET", url)
    headers = {"Range": "bytes=0-0"}
    with transport.open("GET", url, scopes=wanted, headers=headers) as response:
        status, (_, size) = response.status, _told_range(response)
        if status == 404:
            return None
        if size is not None:
            return size
        if status >= 300:
            transport.whole(response, accept=(), where=where)
    raise RegistryError(
        f"{where}: {transport.host} does not tell the blob's size; "
        "check for a proxy between that removes Content-Length",
        where=where,
        status=status,
    )


def _url(transport: Transport, repository: str, digest: Digest) -> str:
    return transport.at(repository, f"blobs/{digest}")


def _told_range(response: Response) -> tuple[re.Match[str] | None, int | None]:
    """The range that an answer says it has, and how large it says the whole is."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if response.status == 200:
        return match, response.headers.length
    if response.status not in (206, 416) or match is None or match[3] == "*":
        return match, None
    return match, int(match[3])


def _ended_early(transport: Transport, where: str, told: str) -> TransientFailure:
    error = UnreachableError(f"{where}: the answer ended {told}", where=where)
    return TransientFailure(error, f"an answer of {transport.host} ended too early")


def _other_range(response: Response, where: str, asked: str) -> RegistryError:
    """The error about an answer with other bytes than those `asked` for (which, of whom)."""
    found = response.headers.get("content-range", "no range")
    return RegistryError(
        f"{where}: asked for bytes {asked} answers with {found!r:.100}; "
        "check for a proxy between that mishandles ranges",
        where=where,
        status=response.status,
    )


# -- files that are not blobs ----------------------------------------------------------------------


class FileState(NamedTuple):
    """How a file of a server is: `size` in bytes, and a `version` that another content would not
    have (an ETag or a date; empty where the server tells neither)."""

    size: int
    version: str = ""


Signer: TypeAlias = Callable[[str, str, Mapping[str, str]], Mapping[str, str]]
"""Method, address and headers of a request → the headers to send, called for each attempt."""


def unsigned(_method: str, _url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
    """Send a request as it is."""
    return headers


def file_state(transport: Transport, url: str, sign: Signer = unsigned) -> FileState | None:
    """How the file at `url` is (HEAD); None where there is none.

    Raises:
        RegistryError: the server refuses, or does not tell the size.
        UnreachableError: no answer, and patience is at its end.
    """
    where = transport.where("HEAD", url)

    def attempt() -> FileState | None:
        headers = sign("HEAD", url, {})
        with transport.open("HEAD", url, headers=headers) as response:
            if response.status in (404, 410):
                return None
            if response.status != 200:
                transport.whole(response, accept=(), where=where)
            _check_way(transport, response, where)
            if response.headers.length is None:
                told = f"{where}: {transport.host} does not tell the size of this file"
                raise RegistryError(f"{told}; use a server that does", where=where)
            return FileState(response.headers.length, _version(response.headers))

    return transport.patiently(where, attempt)


def file_range(
    transport: Transport,
    url: str,
    offset: int,
    size: int,
    state: FileState,
    sign: Signer = unsigned,
) -> Generator[bytes, None, None]:
    """Read `size` bytes from `offset` of the file at `url`, in pieces as they arrive.

    A connection that breaks or stalls is replaced by another that continues at the byte reached.

    Raises:
        ConflictError: the file is not what `state` says of it any more.
        RegistryError: the server refuses, or serves no ranges.
        UnreachableError: no answer, and patience is at its end.
    """
    where = transport.where("GET", url)
    backoff = transport.backoff(where)
    end = offset + size
    while offset < end:
        began = offset
        headers = sign("GET", url, {"Range": f"bytes={offset}-{end - 1}"})
        try:
            with transport.open("GET", url, headers=headers) as response:
                _check_range(transport, response, where, (offset, end), state)
                for piece in transport.watch(where).received(response.pieces()):
                    fresh = piece[: end - offset]
                    offset += len(fresh)
                    yield fresh
                    # An answer that has more than was asked for may go on for ever.
                    if offset == end and response.headers.length != end - began:
                        break
            if offset < end:
                told = f"{end - offset} bytes too early; check the network and the server"
                raise _ended_early(transport, where, told)
            backoff.progressed()
        except TransientFailure as failure:
            if offset - began >= _PROGRESS_BYTES:
                backoff.progressed()
            backoff.wait(failure)


def _check_range(
    transport: Transport, response: Response, where: str, asked: tuple[int, int], state: FileState
) -> None:
    """Raise unless an answer has the bytes that were `asked` for, of the file as it was."""
    status, headers = response.status, response.headers
    if status in (200, 206):
        _check_way(transport, response, where)
    match, total = _told_range(response)
    changed = status in (404, 410, 412) or (total is not None and total != state.size)
    if status in (200, 206):
        found = _version(headers)
        changed |= bool(found and state.version and found != state.version)
    if changed:
        raise ConflictError(
            f"{where}: the file was changed while it was read",
            advice="find out who writes there, and run the command again",
        )
    if status == 200 and asked == (0, state.size):
        return
    if status == 200:
        raise RegistryError(
            f"{where}: asked for bytes {asked[0]} to {asked[1] - 1}, {transport.host} sends the "
            "whole file: it serves no ranges; use a server that does, as nginx, or copy the files "
            "into a folder",
            where=where,
            status=status,
        )
    if status != 206:
        transport.whole(response, accept=(), where=where)
    if match is None or (match[1], match[2]) != (str(asked[0]), str(asked[1] - 1)):
        raise _other_range(response, where, f"{asked[0]} to {asked[1] - 1}, {transport.host}")


def _check_way(transport: Transport, response: Response, where: str) -> None:
    """Raise if a redirect left TLS, or the file's own bytes do not come: no digest proves all."""
    coding = response.headers.get("content-encoding", "identity")
    if response.url.startswith("http://") and not transport.options.plain_http:
        told = f"leads to {host_of(response.url)} without TLS; let it lead to https"
    elif coding.lower() != "identity":
        told = f"sends this file encoded ({clean(coding)}); switch that off (nginx: gzip off)"
    else:
        return
    raise RegistryError(f"{where}: {transport.host} {told}", where=where, status=response.status)


def _version(headers: Headers) -> str:
    return headers.get("etag") or headers.get("last-modified", "")
