"""Lists: tags, the catalogue, referrers (distribution-spec, "Content Discovery")."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from mirror.oci import Digest, Manifest
from mirror.oci.manifest import descriptor_json
from mirror.oci.media_types import OCI_INDEX
from mirror.serve.call import Call, in_thread
from mirror.serve.errors import RefusedError
from mirror.serve.store import ReadableStore

_COUNT = re.compile(r"[0-9]{1,9}")


async def list_tags(call: Call) -> Response:
    """GET tags/list: in code-point order, in pages if `n` asks for them."""
    if not await in_thread(call.store.has_repository, call.repository):
        raise RefusedError(404, "NAME_UNKNOWN", f"there is no repository {call.repository}")
    tags = await in_thread(call.store.tags, call.repository)
    page, headers = _page(call, tags, call.url("tags/list"))
    return JSONResponse({"name": call.repository, "tags": page}, headers=headers)


async def list_repositories(call: Call) -> Response:
    """GET _catalog: as Docker's registry has it; the specification knows none."""
    repositories = await in_thread(call.store.repositories)
    page, headers = _page(call, repositories, "/v2/_catalog")
    return JSONResponse({"repositories": page}, headers=headers)


async def list_referrers(call: Call) -> Response:
    """GET referrers: an index of what refers to a digest, empty where nothing does."""
    subject = Digest.parse(call.part("digest"))
    wanted = call.request.query_params.get("artifactType")
    found = await in_thread(_referrers, call.store, call.repository, subject)
    headers = {}
    if wanted is not None:
        found = [entry for entry in found if entry.get("artifactType") == wanted]
        headers["OCI-Filters-Applied"] = "artifactType"
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    return JSONResponse(index, headers=headers, media_type=OCI_INDEX)


def _referrers(store: ReadableStore, repository: str, subject: Digest) -> list[dict[str, Any]]:
    entries = []
    for digest in store.referrers(repository, subject):
        held = store.manifest(repository, digest)
        if held is None:
            continue  # deleted meanwhile
        manifest = Manifest.parse(held.raw, held.media_type, algorithm=digest.algorithm)
        entry = descriptor_json(manifest.descriptor)
        kind = manifest.artifact_type or (manifest.config and manifest.config.media_type)
        if kind:
            entry["artifactType"] = kind
        if manifest.annotations:
            entry["annotations"] = dict(manifest.annotations)
        entries.append(entry)
    return entries


def _page(call: Call, names: Sequence[str], path: str) -> tuple[list[str], dict[str, str]]:
    """The part of `names` that `n` and `last` ask for, and the `Link` to the next part."""
    query = call.request.query_params
    limit = call.service.page_limit
    if "n" in query:
        if not _COUNT.fullmatch(query["n"]):
            raise RefusedError(400, "UNSUPPORTED", "n is a number")
        asked = int(query["n"])
        limit = asked if limit is None else min(asked, limit)
    last = query.get("last")
    rest = [name for name in names if last is None or name > last]
    if limit is None or len(rest) <= limit:
        return rest, {}
    page = rest[:limit]
    if not page:
        return page, {}  # n=0: nothing to go on from
    link = f"{path}?{urlencode({'n': limit, 'last': page[-1]})}"
    return page, {"Link": f'<{link}>; rel="next"'}
