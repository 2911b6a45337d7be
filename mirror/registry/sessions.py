"""Upload sessions: the small requests around the bytes (distribution-spec, "Pushing blobs")."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from urllib.parse import quote

from mirror.errors import MirrorError, RegistryError
from mirror.oci import Digest
from mirror.registry import scopes
from mirror.registry.retry import TransientFailure
from mirror.registry.transport import Answer, Body, Transport

_log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 << 10
_RANGE = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")


def attempt(
    transport: Transport,
    method: str,
    url: str,
    *,
    accept: tuple[int, ...],
    wanted: scopes.Scopes,
) -> Answer:
    """One small request of an upload's life, without retries of its own (TransientFailure)."""
    where = transport.where(method, url)
    body = Body(0, lambda: ()) if method != "GET" else None
    with transport.open(method, url, scopes=wanted, body=body) as response:
        return transport.whole(response, accept=accept, limit=MAX_ANSWER_BYTES, where=where)


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload session that a registry has opened and that nothing was sent into yet."""

    location: str = field(repr=False)  # it may be signed


def open_upload(transport: Transport, repository: str) -> OpenUpload:
    """See `RegistryClient.open_upload`."""
    url = transport.url(f"/v2/{repository}/blobs/uploads/")
    answer = transport.call(
        "POST", url, accept=(202,), limit=MAX_ANSWER_BYTES, scopes=scopes.push(repository)
    )
    return OpenUpload(location_of(transport, answer))


def mount_or_open(
    transport: Transport, repository: str, digest: Digest, from_repository: str
) -> bool | OpenUpload:
    """See `RegistryClient.mount_or_open`."""
    url = transport.url(
        f"/v2/{repository}/blobs/uploads/?mount={quote(str(digest), safe='')}"
        f"&from={quote(from_repository, safe='')}"
    )
    wanted = scopes.merge(scopes.push(repository), scopes.pull(from_repository))
    try:
        answer = transport.call(
            "POST", url, accept=(201, 202), limit=MAX_ANSWER_BYTES, scopes=wanted
        )
    except RegistryError as err:
        # Mounting only spares an upload: where it is refused, the upload tells the real reason.
        if err.status is None or not 400 <= err.status < 500 or err.status in (408, 429):
            raise
        _log.debug("mount of %s refused: %s", digest, err)
        return False
    if answer.status == 201:
        return True
    if answer.headers.get("location"):
        return OpenUpload(location_of(transport, answer))
    return False


def cancel(transport: Transport, location: str, wanted: scopes.Scopes) -> bool:
    """DELETE a session, and say whether the registry answered.

    Nothing is raised: registries forget old sessions by themselves.
    """
    try:
        attempt(transport, "DELETE", location, accept=(200, 202, 204), wanted=wanted)
    except (MirrorError, TransientFailure) as err:
        _log.debug("an upload session could not be cancelled: %s", err)
        error = err.error if isinstance(err, TransientFailure) else err
        return isinstance(error, RegistryError) and error.status is not None
    return True


def location_of(transport: Transport, answer: Answer, default: str | None = None) -> str:
    """Where an upload continues.

    Raises:
        RegistryError: the registry does not say it.
    """
    location = answer.headers.get("location") or default
    if location is None:
        raise RegistryError(
            f"{transport.host} opened an upload without saying where; check that it is a registry",
            where=transport.where("POST", answer.url),
            status=answer.status,
        )
    return transport.resolved(location, answer.url)


def with_digest(location: str, digest: Digest) -> str:
    """`location` with the digest added and its own query untouched, as it may be signed."""
    bare = location.partition("#")[0]
    return f"{bare}{'&' if '?' in bare else '?'}digest={quote(str(digest), safe='')}"


def offset_told(answer: Answer) -> int | None:
    """How many bytes a session has; its `Range` names the last one, inclusive.

    `0-0` is what registries send for none as well as for one. It is taken for none: if that was
    wrong, the registry refuses the upload in the end, and a new session starts.
    """
    match = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    if match is None:
        return None
    last = int(match[1])
    return last + 1 if last else 0
