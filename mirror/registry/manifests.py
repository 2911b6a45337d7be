"""Manifests and the lists that lead to them: tags, repositories, referrers.

Distribution-spec, "Pulling manifests", "Pushing manifests", "Deleting tags", "Deleting manifests",
"Listing tags", "Listing referrers", "Unavailable Referrers API"; the catalogue is of distribution.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import quote, urlsplit, urlunsplit

from mirror.documents import parse_json, value_count
from mirror.errors import (
    DigestMismatchError,
    InvalidDigestError,
    InvalidManifestError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
)
from mirror.oci import Child, Descriptor, Digest, Manifest
from mirror.oci.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
)
from mirror.oci.reference import check_tag, referrers_tag, valid_repository, valid_tag
from mirror.registry import answers
from mirror.registry.answers import reworded
from mirror.registry.auth import CATALOGUE, DELETE, PULL, PUSH, Scopes
from mirror.registry.retries import clean
from mirror.registry.transport import Transport, WholeAnswer

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))


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
    url, most = _url(transport, repository, reference), transport.options.manifest_bytes
    what = _name(transport, repository, reference)
    try:
        answer = transport.call(
            "GET",
            url,
            accept=answers.READ,
            limit=most + 1,
            scopes=(PULL.format(repository),),
            headers={"Accept": ACCEPT},
        )
    except RegistryNotFoundError as err:
        missing = "repository" if "NAME_UNKNOWN" in err.codes else "manifest"
        text = f"{what}: no such {missing} in the registry; check the repository path and the tag"
        raise reworded(err, text) from err
    raw = answer.body
    if len(raw) > most:
        raise InvalidManifestError(
            f"{what} is larger than {most} bytes, more than any manifest may be there"
        )
    expected = reference if isinstance(reference, Digest) else _told_digest(answer)
    algorithm = "sha256" if expected is None else expected.algorithm
    actual = Digest.of(raw, algorithm)
    if expected is not None and actual != expected:
        raise DigestMismatchError(where=what, expected=expected, actual=actual)
    return Manifest.parse(raw, _media_type(answer), algorithm=algorithm)


def resolve(
    transport: Transport, repository: str, reference: str | Digest, known: Descriptor | None = None
) -> Descriptor | None:
    """See `RegistryClient.resolve`."""
    reference = parsed(reference)
    condition = {"If-None-Match": f'"{known.digest}"'} if known else {}
    try:
        answer = transport.call(
            "HEAD",
            _url(transport, repository, reference),
            accept=answers.READ + (answers.UNCHANGED if known else ()),
            limit=0,
            scopes=(PULL.format(repository),),
            headers={"Accept": ACCEPT, **condition},
        )
        if answer.status in answers.UNCHANGED:
            return known
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
    url = _url(transport, repository, reference)
    try:
        answer = transport.call(
            "PUT",
            url,
            accept=(*answers.PUT_MANIFEST, *answers.UNSAID),
            scopes=(PUSH.format(repository),),
            headers={"Content-Type": manifest.media_type},
            content=manifest.raw,
        )
    except RegistryError as err:
        hint = _why_refused(manifest) if err.status in (400, 500) else ""
        if not hint:
            raise
        raise reworded(err, f"{err}; {hint}") from err
    if answer.status not in answers.PUT_MANIFEST:
        there = resolve(transport, repository, reference)
        if there is None or there.digest != manifest.digest:
            raise transport.refused(answer, transport.where("PUT", url))
    told = _told_digest(answer)
    # A digest by another algorithm does not contradict it.
    if told is None or told.algorithm != manifest.digest.algorithm or told == manifest.digest:
        return
    raise DigestMismatchError(
        where=_name(transport, repository, reference),
        expected=manifest.digest,
        actual=told,
        told=True,
    )


def _why_refused(manifest: Manifest) -> str:
    """What registries refuse a manifest for without saying so; distribution with HTTP 500."""
    if manifest.foreign:
        return (
            "the image names addresses of layers (`urls`), and this registry may not allow them: "
            "distribution takes those that validation.manifests.urls.allow in its settings accepts"
        )
    if manifest.digest.algorithm != "sha256":
        return f"this registry may take no manifest by {manifest.digest.algorithm}"
    return ""


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
        answer = transport.call(
            "DELETE",
            url,
            accept=(*answers.DELETE, *answers.UNSAID),
            scopes=(DELETE.format(repository),),
        )
        if answer.status not in answers.DELETE and not _is_gone(transport, repository, url):
            raise transport.refused(answer, where)
    except RegistryError as err:
        if err.status == 405 or "UNSUPPORTED" in err.codes:
            raise reworded(
                err,
                f"{where}: {transport.host} does not delete this; enable deletion in the "
                "registry's configuration (distribution: storage.delete.enabled)",
            ) from err
        raise


def _is_gone(transport: Transport, repository: str, url: str) -> bool:
    scopes, headers = (PULL.format(repository),), {"Accept": ACCEPT}
    try:
        transport.call("HEAD", url, accept=answers.READ, limit=0, scopes=scopes, headers=headers)
    except RegistryNotFoundError:
        return True
    return False


def _url(transport: Transport, repository: str, reference: str | Digest) -> str:
    return transport.at(repository, f"manifests/{reference}")


def _name(transport: Transport, repository: str, reference: str | Digest) -> str:
    joint = "@" if isinstance(reference, Digest) else ":"
    return f"{transport.host}/{repository}{joint}{reference}"


def _media_type(answer: WholeAnswer) -> str | None:
    text: str = answer.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower() or None


def _told_digest(answer: WholeAnswer) -> Digest | None:
    try:
        return Digest.parse(answer.headers.get("docker-content-digest", ""))
    except InvalidDigestError:
        return None  # absent, or of an algorithm that proves nothing to us


def _told(answer: WholeAnswer) -> Descriptor | None:
    """The descriptor that the headers tell, if they tell all of it."""
    digest, media_type = _told_digest(answer), _media_type(answer)
    length = answer.headers.get("content-length", "")
    if digest is None or media_type not in MANIFESTS or not length.isdigit():
        return None
    return Descriptor(media_type, digest, int(length))


_PAGE = 1000
_MAX_PAGES = 10_000
_MAX_LIST_BYTES = 16 << 20  # of all pages; some registries ignore `n` and send all at once
_MAX_LIST_NAMES = 1_000_000

# No `<` within a target: a header full of them is read in linear time.
_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+(?:\s*=\s*(?:"[^"]*"|[^\s;,"]*))?)*)')
_RELATION = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;]+))', re.IGNORECASE)


def next_link(headers: list[str]) -> str | None:
    """The target with `rel=next` among `Link` headers (RFC 8288), as it stands there.

    None if they lead elsewhere.

    Raises:
        ValueError: no target is next, and one has no relation or is not spelt as the RFC says, so
            nobody knows whether it is; it names the header.
    """
    unclear: str | None = None
    for header in headers:
        for target, parameters in _LINK.findall(header):
            relation = _RELATION.search(parameters)
            if relation is None:
                unclear = unclear or header
            elif "next" in (relation[1] or relation[2] or "").lower().split():
                return str(target)
        if _LINK.sub("", header).strip(" \t,;"):
            unclear = unclear or header
    if unclear is not None:
        raise ValueError(unclear)
    return None


def tags(transport: Transport, repository: str) -> list[str]:
    """See `RegistryClient.tags`."""
    url: str | None = transport.at(repository, f"tags/list?n={_PAGE}")
    scopes, names = (PULL.format(repository),), dict[str, None]()
    left = _MAX_LIST_BYTES
    try:
        while url is not None:
            page, before = list[str](), len(names)
            for answer in _pages(transport, url, scopes, left):
                left -= len(answer.body)
                page = _names(transport, answer, "tags")
                names.update(dict.fromkeys(page))
            if len(names) > _MAX_LIST_NAMES:
                raise _broken(
                    transport.where("GET", url), f"it lists more than {_MAX_LIST_NAMES} tags"
                )
            # A group of Nexus ends a full page without a `Link` to the next.
            ends = len(page) != _PAGE or len(names) == before
            rest = "" if ends else f"tags/list?n={_PAGE}&last={quote(page[-1], safe='')}"
            url = transport.at(repository, rest) if rest else None
    except RegistryNotFoundError as err:
        if not names:
            missing = f"{transport.host}/{repository}: no such repository in the registry"
            raise reworded(err, f"{missing}; check the path") from err
    return _valid(transport, list(names), valid_tag, f"/{repository}: its list of tags")


def catalogue(transport: Transport) -> Iterator[str]:
    """See `RegistryClient.catalogue`."""
    url = transport.url(f"/v2/_catalog?n={_PAGE}")
    for answer in _pages(transport, url, CATALOGUE, _MAX_LIST_BYTES):
        names = _names(transport, answer, "repositories")
        yield from _valid(transport, names, valid_repository, ": its list of repositories")


def referrers(
    transport: Transport, repository: str, digest: Digest, artifact_type: str | None
) -> list[Child]:
    """See `RegistryClient.referrers`."""
    found = referrers_api(transport, repository, digest, artifact_type)
    if found is not None:
        return found
    try:  # as clients keep them where the registry has no API: an index under a tag
        manifest = get(transport, repository, referrers_tag(digest))
    except RegistryNotFoundError:
        return []
    return _of_type(manifest.children, artifact_type)


def referrers_api(
    transport: Transport, repository: str, digest: Digest, artifact_type: str | None
) -> list[Child] | None:
    """See `RegistryClient.referrers_api`."""
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    url = transport.at(repository, f"referrers/{digest}{query}")
    found: dict[Digest, Child] = {}
    try:
        for answer in _pages(transport, url, (PULL.format(repository),), _MAX_LIST_BYTES):
            index = _index(answer)
            if index is None:
                return None
            found.update((child.descriptor.digest, child) for child in index.children)
    except RegistryError as err:
        # 404 is what the specification says; 405 comes from registries that only know fixed routes,
        # 200 with a page from web servers in front that answer every other path with one.
        if err.status not in (200, 404, 405):
            raise
        return None
    return _of_type(found.values(), artifact_type)


def _of_type(children: Iterable[Child], artifact_type: str | None) -> list[Child]:
    # Done in any case: servers may, and need not, filter.
    return [child for child in children if artifact_type in (None, child.artifact_type)]


def _index(answer: WholeAnswer) -> Manifest | None:
    """The answer as an index; None from a web server that answers every path with some page."""
    try:
        index = Manifest.parse(answer.body, OCI_INDEX)
    except InvalidManifestError:
        if _media_type(answer) in INDEXES:
            raise
        return None
    return index if index.is_index else None


def _pages(transport: Transport, url: str, wanted: Scopes, limit: int) -> Iterator[WholeAnswer]:
    """Follow `Link` from page to page, at this registry only and never in a circle.

    All pages together have at most `limit` bytes.
    """
    seen: set[str] = set()
    where = transport.where("GET", url)
    while True:
        seen.add(url)
        answer = transport.call("GET", url, accept=answers.READ, limit=limit, scopes=wanted)
        limit -= len(answer.body)
        yield answer
        try:
            link = next_link(answer.headers.all("link"))
        except ValueError as err:
            raise RegistryError(
                f"{where}: {transport.host} may continue its list, but where cannot be understood "
                f"(Link: {clean(str(err))}); let the registry, or the proxy before it, write "
                'Link: <address>; rel="next"',
                where=where,
            ) from err
        if link is None:
            return
        url = transport.resolved(link, answer.url)
        # Some name their list as another port or an inner host of theirs knows it (Nexus): the rest
        # of it is asked for where it began.
        inner, own = urlsplit(url), urlsplit(answer.url)
        if inner.path.endswith(own.path):
            url = urlunsplit(own._replace(query=inner.query))
        if not transport.at_home(url):
            raise _broken(where, f"{transport.host} continues its list at another host")
        if url in seen or len(seen) >= _MAX_PAGES:
            raise _broken(
                where, f"the list of {transport.host} never ends: page after page repeats"
            )


def _names(transport: Transport, answer: WholeAnswer, key: str) -> list[str]:
    where = transport.where("GET", answer.url)
    if value_count(answer.body) > _MAX_LIST_NAMES:
        raise _broken(where, f"{transport.host} lists more than {_MAX_LIST_NAMES} {key}")
    try:
        names = parse_json(answer.body)[key] or []
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise _broken(where, f"{transport.host} does not answer with a list of {key}") from err
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _broken(where, f"{transport.host} does not answer with a list of {key}")
    return names


def _valid(
    transport: Transport, names: list[str], valid: Callable[[str], bool], what: str
) -> list[str]:
    """The names that a request can be made with; the run hears of the others."""
    wrong = [name for name in names if not valid(name)]
    if not wrong:
        return names
    shown = clean(", ".join(map(repr, wrong)))
    transport.warn_once(
        f"{transport.host}{what} has invalid names ({len(wrong)}), which are left out: {shown}"
    )
    return [name for name in names if valid(name)]


def _broken(where: str, text: str) -> MirrorError:
    return RegistryError(f"{where}: {text}; check that this is a registry", where=where)
