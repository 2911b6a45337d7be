"""What a registry has: tags, repositories, referrers.

Distribution-spec, "Listing tags", "Listing referrers", "Unavailable Referrers API"; the catalogue
is distribution's own and only some registries have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

from mirror.documents import parse_json
from mirror.errors import InvalidManifestError, MirrorError, RegistryError, RegistryNotFoundError
from mirror.oci import Child, Digest, Manifest
from mirror.oci.manifest import INDEXES, MAX_MANIFEST_BYTES, OCI_INDEX
from mirror.oci.reference import referrers_tag, valid_repository, valid_tag
from mirror.registry import manifests, scopes
from mirror.registry.failures import clean, reworded
from mirror.registry.transport import Answer, Transport

_PAGE = 1000
_MAX_PAGES = 10_000
_MAX_PAGE_BYTES = 64 << 20  # some registries ignore `n` and send all at once

# No `<` within a target: a header full of them is read in linear time.
_LINK = re.compile(r'<([^<>]*)>((?:\s*;\s*[^\s;,="]+(?:\s*=\s*(?:"[^"]*"|[^\s;,"]*))?)*)')
_NEXT = re.compile(
    r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next(?![^\s;]))', re.IGNORECASE
)


def next_link(headers: list[str]) -> str | None:
    """The target with `rel=next` among `Link` headers (RFC 8288), as it stands there."""
    for header in headers:
        for target, parameters in _LINK.findall(header):
            if _NEXT.search(parameters):
                return str(target)
    return None


def tags(transport: Transport, repository: str) -> list[str]:
    """See `RegistryClient.tags`."""
    url = transport.at(repository, f"tags/list?n={_PAGE}")
    names: dict[str, None] = {}
    try:
        for answer in _pages(transport, url, scopes.pull(repository), _MAX_PAGE_BYTES):
            names.update(dict.fromkeys(_names(transport, answer, "tags")))
    except RegistryNotFoundError as err:
        missing = f"{transport.host}/{repository}: no such repository in the registry"
        raise reworded(err, f"{missing}; check the path") from err
    return _valid(transport, list(names), valid_tag, f"/{repository}: its list of tags")


def catalogue(transport: Transport) -> Iterator[str]:
    """See `RegistryClient.catalogue`."""
    url = transport.url(f"/v2/_catalog?n={_PAGE}")
    for answer in _pages(transport, url, scopes.CATALOGUE, _MAX_PAGE_BYTES):
        names = _names(transport, answer, "repositories")
        yield from _valid(transport, names, valid_repository, ": its list of repositories")


def referrers(
    transport: Transport, repository: str, digest: Digest, artifact_type: str | None
) -> list[Child]:
    """See `RegistryClient.referrers`."""
    found = referrers_api(transport, repository, digest, artifact_type)
    return _by_tag(transport, repository, digest, artifact_type) if found is None else found


def referrers_api(
    transport: Transport, repository: str, digest: Digest, artifact_type: str | None
) -> list[Child] | None:
    """See `RegistryClient.referrers_api`."""
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    url = transport.at(repository, f"referrers/{digest}{query}")
    found: dict[Digest, Child] = {}
    try:
        for answer in _pages(transport, url, scopes.pull(repository), MAX_MANIFEST_BYTES):
            index = _index(answer)
            if index is None:
                return None
            found.update((child.descriptor.digest, child) for child in index.children)
    except RegistryError as err:
        # 404 is what the specification says; 405 comes from registries that only know fixed routes.
        if err.status not in (404, 405):
            raise
        return None
    return _filtered(list(found.values()), artifact_type)


def _by_tag(
    transport: Transport, repository: str, digest: Digest, artifact_type: str | None
) -> list[Child]:
    """Referrers as clients keep them where the registry has no API: an index under a tag."""
    try:
        manifest = manifests.get(transport, repository, referrers_tag(digest))
    except RegistryNotFoundError:
        return []
    return _filtered(list(manifest.children), artifact_type)


def _filtered(children: list[Child], artifact_type: str | None) -> list[Child]:
    # Done in any case: servers may, and need not, filter.
    if artifact_type is None:
        return children
    return [child for child in children if child.artifact_type == artifact_type]


def _index(answer: Answer) -> Manifest | None:
    """The answer as an index; None from a web server that answers every path with some page."""
    try:
        index = Manifest.parse(answer.body, OCI_INDEX)
    except InvalidManifestError:
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type in INDEXES:
            raise
        return None
    return index if index.is_index else None


def _pages(transport: Transport, url: str, wanted: scopes.Scopes, limit: int) -> Iterator[Answer]:
    """Follow `Link` from page to page, at this registry only and never in a circle."""
    seen: set[str] = set()
    where = transport.where("GET", url)
    while True:
        seen.add(url)
        answer = transport.call("GET", url, accept=(200,), limit=limit, scopes=wanted)
        yield answer
        link = next_link(answer.headers.all("link"))
        if link is None:
            return
        url = transport.resolved(link, answer.url)
        if not transport.at_home(url):
            raise _broken(where, f"{transport.host} continues its list at another host")
        if url in seen or len(seen) >= _MAX_PAGES:
            raise _broken(
                where, f"the list of {transport.host} never ends: page after page repeats"
            )


def _names(transport: Transport, answer: Answer, key: str) -> list[str]:
    where = transport.where("GET", answer.url)
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
