"""An Ingress, carried out by nginx as the controller `ingress-nginx` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirror.testing import TlsFiles
from tests.support.nginx import Nginx
from tests.support.tls import Authority

_PREFIX = "nginx.ingress.kubernetes.io/"


def ingress(
    document: Mapping[str, Any], behind: Sequence[str], folder: Path, authority: Authority
) -> Nginx:
    """nginx by the rules of an Ingress whose one Service leads to `behind` (`host:port`)."""
    spec = document["spec"]
    (rule,) = spec["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/", "Prefix")
    assert [rule["host"]] == spec["tls"][0]["hosts"]
    notes = {
        key.removeprefix(_PREFIX): value
        for key, value in document["metadata"]["annotations"].items()
        if key.startswith(_PREFIX)
    }
    scheme = notes.pop("backend-protocol", "HTTP").lower()
    allow = notes.pop("whitelist-source-range", "")
    rules = [f"allow {one};" for one in allow.split(",") if one]
    forwarded = "proxy_set_header X-Forwarded-For $remote_addr;"
    own = authority.issue("client", client=True)  # the controller's, where its image has it
    snippet = notes.pop("configuration-snippet", "").replace("/etc/nginx/ssl", str(own.key.parent))
    upstream = f"upstream behind {{ hash {notes.pop('upstream-hash-by')} consistent; "
    upstream += " ".join(f"server {one};" for one in behind) + " }"
    limit = notes.pop("proxy-body-size", "1m")
    assert not notes, f"the controller does not know {', '.join(notes)}"
    tls: TlsFiles = authority.issue("ingress", (rule["host"],))
    return Nginx(
        folder,
        "behind",
        scheme=scheme,
        tls=tls,
        body_limit=limit,
        http=upstream,
        location=[*rules, *(["deny all;"] if rules else []), forwarded, snippet],
    )
