"""Manifests by tag and digest: read with every byte checked, written, deleted.

Distribution-spec, "Pulling manifests", "Pushing manifests", "Deleting tags", "Deleting manifests".
"""

from __future__ import annotations

from mirror.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidManifestError,
    RegistryError,
    RegistryNotFoundError,
)
from mirror.oci import Descriptor, Digest, Manifest
from mirror.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    OCI_INDEX,
    OCI_MANIFEST,
)
from mirror.oci.reference import check_tag
from mirror.registry import scopes
from mirror.registry.failures import reworded
from mirror.registry.transport import Answer, Transport

ACCEPT = ", ".join(
    (
        OCI_INDEX,
        OCI_MANIFEST,
        DOCKER_INDEX,
        DOCKER_MANIFEST,
    )
)
_MAX_ANSWER_BYTES = 64 << 10


def parsed(reference: str | Digest) -> str | Digest:
    """Tell a digest from a tag.

    Raises:
        InvalidReferenceError, InvalidDigestError: neither.
    """
    if isinstance(reference, Digest):
        return reference
    if ":" in reference:
        return Digest.parse(reference)
    check_tag(reference)
    return reference


def get(transport: Transport, repository: str, reference: str | Digest) -> Manifest:
    """See `RegistryClient.manifest`."""
    reference = parsed(reference)
    url = _url(transport, repository, reference)
    try:
        answer = transport.call(
            "GET",
            url,
            accept=(200,),
            limit=MAX_MANIFEST_BYTES + 1,
            scopes=scopes.pull(repository),
            headers={"Accept": ACCEPT},
        )
    except RegistryNotFoundError as err:
        raise _not_found(transport, repository, reference, err) from err
    what = _name(transport, repository, reference)
    raw = answer.body
    if len(raw) > MAX_MANIFEST_BYTES:
        raise InvalidManifestError(
            f"{what} is larger than {MAX_MANIFEST_BYTES} bytes, more than any manifest may be"
        )
    expected = reference if isinstance(reference, Digest) else _told_digest(answer)
    algorithm = "sha256" if expected is None else expected.algorithm
    actual = Digest.of(raw, algorithm)
    if expected is not None and actual != expected:
        raise DigestMismatchError(where=what, expected=expected, actual=actual)
    return Manifest.parse(raw, _media_type(answer), algorithm=algorithm)


def resolve(transport: Transport, repository: str, reference: str | Digest) -> Descriptor | None:
    """See `RegistryClient.resolve`."""
    reference = parsed(reference)
    try:
        answer = transport.call(
            "HEAD",
            _url(transport, repository, reference),
            accept=(200,),
            limit=0,
            scopes=scopes.pull(repository),
            headers={"Accept": ACCEPT},
        )
        told = _told(answer)
        if told is not None and (isinstance(reference, str) or reference == told.digest):
            return told
    except RegistryNotFoundError:
        return None
    except RegistryError as err:
        # Some registries and proxies refuse HEAD alone; with no answer at all, or one that asks
        # for patience, another request would not fare better.
        if err.status is None or err.status == 429:
            raise
    try:
        return get(transport, repository, reference).descriptor
    except RegistryNotFoundError:
        return None


def put(transport: Transport, repository: str, reference: str | Digest, manifest: Manifest) -> None:
    """See `RegistryClient.put_manifest`."""
    reference = parsed(reference)
    if isinstance(reference, Digest) and reference != manifest.digest:
        raise ValueError(f"manifest {manifest.digest} cannot be put under {reference}")
    answer = transport.call(
        "PUT",
        _url(transport, repository, reference),
        accept=(200, 201, 202, 204),
        limit=_MAX_ANSWER_BYTES,
        scopes=scopes.push(repository),
        headers={"Content-Type": manifest.media_type},
        content=manifest.raw,
    )
    told = _told_digest(answer)
    # A digest by another algorithm is no contradiction.
    if told is None or told.algorithm != manifest.digest.algorithm or told == manifest.digest:
        return
    raise DigestMismatchError(
        where=_name(transport, repository, reference), expected=manifest.digest, actual=told
    )


def delete(transport: Transport, repository: str, reference: str | Digest) -> None:
    """See `RegistryClient.delete_manifest` and `RegistryClient.delete_tag`."""
    reference = parsed(reference)
    url = _url(transport, repository, reference)
    try:
        delete_at(transport, repository, url)
    except RegistryError as err:
        if isinstance(reference, Digest) or err.status not in (400, 405):
            raise
        raise reworded(
            err,
            f"{_name(transport, repository, reference)}: {transport.host} does not delete tags, "
            "only manifests by digest (and with them all their tags)",
        ) from err


def delete_at(transport: Transport, repository: str, url: str) -> None:
    """DELETE `url`; registries that do not delete say so with 405, some with 400."""
    where = transport.where("DELETE", url)
    try:
        transport.call(
            "DELETE",
            url,
            accept=(200, 202, 204),
            limit=_MAX_ANSWER_BYTES,
            scopes=scopes.delete(repository),
        )
    except RegistryError as err:
        if err.status == 405 or "UNSUPPORTED" in err.codes:
            raise reworded(
                err,
                f"{where}: {transport.host} does not delete this; enable deletion in the "
                "registry's configuration (distribution: storage.delete.enabled)",
            ) from err
        raise


def _url(transport: Transport, repository: str, reference: str | Digest) -> str:
    return transport.at(repository, f"manifests/{reference}")


def _name(transport: Transport, repository: str, reference: str | Digest) -> str:
    joint = "@" if isinstance(reference, Digest) else ":"
    return f"{transport.host}/{repository}{joint}{reference}"


def _not_found(
    transport: Transport, repository: str, reference: str | Digest, err: RegistryNotFoundError
) -> RegistryError:
    missing = "repository" if "NAME_UNKNOWN" in err.codes else "manifest"
    return reworded(
        err,
        f"{_name(transport, repository, reference)}: no such {missing} in the registry; "
        "check the repository path and the tag",
    )


def _media_type(answer: Answer) -> str | None:
    text: str = answer.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower() or None


def _told_digest(answer: Answer) -> Digest | None:
    try:
        return Digest.parse(answer.headers.get("docker-content-digest", ""))
    except InvalidDigestError:
        return None  # absent, or of an algorithm that proves nothing to us


def _told(answer: Answer) -> Descriptor | None:
    """The descriptor that the headers tell, if they tell all of it."""
    digest, media_type = _told_digest(answer), _media_type(answer)
    length = answer.headers.get("content-length", "")
    if digest is None or media_type not in MANIFESTS or not length.isdigit():
        return None
    return Descriptor(media_type, digest, int(length))
