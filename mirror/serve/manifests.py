"""Manifests by tag and by digest (distribution-spec, "Pulling manifests", "Pushing manifests")."""

from __future__ import annotations

from starlette.responses import Response

from mirror.errors import InvalidManifestError
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import MAX_MANIFEST_BYTES
from mirror.oci.media_types import MANIFESTS
from mirror.oci.reference import valid_tag
from mirror.serve.bodies import read_bounded
from mirror.serve.call import Call, in_thread
from mirror.serve.errors import RefusedError
from mirror.serve.store import ReadableStore, Store, StoredManifest


async def get_manifest(call: Call) -> Response:
    """GET and HEAD: the exact bytes that were pushed, whatever `Accept` says."""
    digest, held = await in_thread(_find, call.store, call.repository, call.part("reference"))
    headers = {
        "Content-Type": held.media_type,
        "Content-Length": str(len(held.raw)),
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
    }
    return Response(held.raw if call.request.method == "GET" else b"", headers=headers)


async def put_manifest(call: Call) -> Response:
    """PUT: kept if it is what its digest says and everything it needs is in the repository."""
    store, reference = call.target, call.part("reference")
    tag: str | None = None
    algorithm = "sha256"
    if ":" in reference:
        algorithm = Digest.parse(reference).algorithm
    elif valid_tag(reference):
        tag = reference
    else:
        raise RefusedError(400, "MANIFEST_INVALID", f"{reference[:200]!r} is not a tag")
    raw = await read_bounded(call.request, MAX_MANIFEST_BYTES, "SIZE_INVALID")
    manifest = _parse(raw, call.request.headers.get("content-type"), algorithm)
    if tag is None and str(manifest.digest) != reference:
        raise RefusedError(400, "DIGEST_INVALID", f"the manifest's digest is {manifest.digest}")
    await in_thread(_keep, store, call.repository, manifest, tag)
    headers = {
        "Location": call.url(f"manifests/{manifest.digest}"),
        "Docker-Content-Digest": str(manifest.digest),
        "Content-Length": "0",
    }
    if manifest.subject:
        # Tells the client that it need not maintain the referrers tag.
        headers["OCI-Subject"] = str(manifest.subject.digest)
    return Response(status_code=201, headers=headers)


async def delete_manifest(call: Call) -> Response:
    """DELETE: by digest the manifest and its tags, by tag the tag alone."""
    store, reference = call.target, call.part("reference")
    if ":" in reference:
        found = await in_thread(store.delete_manifest, call.repository, Digest.parse(reference))
    else:
        found = valid_tag(reference) and await in_thread(
            store.delete_tag, call.repository, reference
        )
    if not found:
        raise _unknown(reference)
    return Response(status_code=202, headers={"Content-Length": "0"})


def missing(store: ReadableStore, repository: str, manifest: Manifest) -> tuple[str, Digest] | None:
    """The first thing that `manifest` needs and `repository` lacks, with its error code.

    The subject is not needed: it may be pushed later (distribution-spec, "Pushing Manifests with
    Subject").
    """
    for blob in manifest.blobs:
        if store.blob_size(repository, blob.digest) is None:
            return "MANIFEST_BLOB_UNKNOWN", blob.digest
    for child in manifest.children:
        if store.manifest(repository, child.descriptor.digest) is None:
            return "MANIFEST_UNKNOWN", child.descriptor.digest
    return None


def _find(store: ReadableStore, repository: str, reference: str) -> tuple[Digest, StoredManifest]:
    digest: Digest | None = None
    if ":" in reference:
        digest = Digest.parse(reference)
    elif valid_tag(reference):
        digest = store.resolve(repository, reference)
    held = store.manifest(repository, digest) if digest else None
    if digest is None or held is None:
        raise _unknown(reference)
    return digest, held


def _keep(store: Store, repository: str, manifest: Manifest, tag: str | None) -> None:
    lacking = missing(store, repository, manifest)
    if lacking:
        code, digest = lacking
        raise RefusedError(400, code, f"{digest} is not in this repository; push it first")
    store.put_manifest(repository, manifest, tag)


def _parse(raw: bytes, content_type: str | None, algorithm: str) -> Manifest:
    said = (content_type or "").partition(";")[0].strip()
    manifest = Manifest.parse(raw, said if said in MANIFESTS else None, algorithm=algorithm)
    if said in MANIFESTS and said != manifest.media_type:
        raise InvalidManifestError(
            f"manifest {manifest.digest} says it is {manifest.media_type}, but Content-Type {said}"
        )
    return manifest


def _unknown(reference: str) -> RefusedError:
    message = f"{reference[:200]} is not in this repository"
    return RefusedError(404, "MANIFEST_UNKNOWN", message)
