"""Which statuses tell that a registry did what it was asked for (distribution-spec, "Endpoints").

No other 2xx counts: whatever stands between, a portal or a firewall with a page of its own, likes
to answer 200. A few registries depart from the specification; who does is told beside the status.
Where a registry answers some other 2xx to what was put, it is asked whether that is there.
"""

from __future__ import annotations

READ = (200,)
"""GET and HEAD of `/v2/`, manifests, blobs, tags and referrers (end-1 to end-3, end-8, end-12)."""

UNCHANGED = (304,)
"""GET and HEAD with `If-None-Match` (RFC 9110, 13.1.2), which the specification does not have."""

OPEN = (202,)
"""POST that opens an upload (end-4a)."""

MOUNT = (201, 202)
"""POST with `mount` (end-11): mounted, or an upload opened in its place."""

CHUNK = (202, 201, 204)
"""PATCH (end-5). ECR answers 201, Pulp 204."""

SESSION = (204, 200)
"""GET of an upload (end-13). 200 is of Quay."""

PUT_BLOB = (201,)
"""PUT that completes an upload (end-6)."""

PUT_MANIFEST = (201, 202)
"""PUT of a manifest (end-7). 202 is of the specification's ancestor, Docker Registry 2.0."""

DELETE = (202,)
"""DELETE of manifests, tags and blobs (end-9, end-10)."""

CANCEL = (204, 202, 200)
"""DELETE of an upload, which the specification does not have."""

UNSAID = (200, 202, 204)
"""What else a PUT or a DELETE is answered with: true if what was put is there, or gone."""
