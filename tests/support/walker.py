"""A registry as its bytes on the wire: what it really serves, by nothing but `http.client`.

It shares no code with what it judges. Every manifest and every blob that a tag reaches is fetched
and hashed, each once in each repository.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import ssl
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.content_kinds import ACCEPT


@dataclass
class Walk:
    """What was seen. `tags` is repository → tag → digest of the bytes that it names."""

    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    redirects: int = 0
    """How many blobs the registry sent us elsewhere for."""
    wrong: list[str] = field(default_factory=list)
    """What is missing, or is not what its name or its descriptor promises."""


class Walker:
    """Walks one registry. `login` is a name and a password, `client` a PEM certificate and key."""

    def __init__(
        self,
        url: str,
        *,
        authority: Path | None = None,
        login: tuple[str, str] | None = None,
        client: tuple[Path, Path] | None = None,
    ) -> None:
        self._parts = urllib.parse.urlsplit(url)
        self._context = ssl.create_default_context(cafile=authority)
        if client is not None:
            self._context.load_cert_chain(*client)
        self._login = login
        self._tokens: dict[str, str] = {}
        self._connection = self._connect(self._parts)

    def __enter__(self) -> Walker:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def walk(self, repositories: Mapping[str, Mapping[str, str]]) -> Walk:
        """Follow all tags of these repositories; a tag is to name the digest given for it."""
        walk = Walk()
        for repository, wanted in repositories.items():
            seen: set[str] = set()
            found = walk.tags.setdefault(repository, {})
            for tag in self.tags(repository):
                found[tag] = self._manifest(walk, repository, tag, seen)
            for tag, digest in wanted.items():
                if found.get(tag) != digest:
                    walk.wrong.append(f"{repository}:{tag} is {found.get(tag)} and not {digest}")
        return walk

    def tags(self, repository: str) -> list[str]:
        """All tags, page after page; none if there is no such repository."""
        path, found = f"/v2/{repository}/tags/list", list[str]()
        while path:
            status, headers, body = self._get(repository, path)
            if status == 404:
                break
            assert status == 200, (path, status, body)
            found += json.loads(body)["tags"] or []
            link = re.match(r'\s*<([^>]*)>\s*;\s*rel="?next"?', headers.get("link", ""))
            path = urllib.parse.urljoin(path, link[1]) if link else ""
        return found

    def _manifest(self, walk: Walk, repository: str, reference: str, seen: set[str]) -> str:
        path = f"/v2/{repository}/manifests/{reference}"
        status, headers, body = self._get(repository, path)
        if status != 200:
            walk.wrong.append(f"{repository}@{reference}: HTTP {status}")
            return ""
        algorithm = reference.partition(":")[0] if ":" in reference else "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
        for said in (headers.get("docker-content-digest", digest), reference):
            if ":" in said and said.startswith(algorithm) and said != digest:
                walk.wrong.append(f"{repository}@{reference}: bytes of {digest}, said to be {said}")
        if digest in seen:
            return digest
        seen.add(digest)
        walk.manifests += 1
        document: dict[str, Any] = json.loads(body)
        if document.get("mediaType", kind := headers.get("content-type", "")) != kind:
            walk.wrong.append(f"{repository}@{digest}: served as {kind}")
        for child in document.get("manifests", ()):
            self._manifest(walk, repository, child["digest"], seen)
        blobs = [document["config"], *document["layers"]] if "config" in document else []
        for blob in blobs:
            self._blob(walk, repository, blob, seen)
        return digest

    def _blob(self, walk: Walk, repository: str, wanted: Mapping[str, Any], seen: set[str]) -> None:
        digest, size = wanted["digest"], wanted["size"]
        if digest in seen:
            return
        seen.add(digest)
        walk.blobs += 1
        status, headers, body = self._get(repository, f"/v2/{repository}/blobs/{digest}")
        if status == 307:
            walk.redirects += 1
            status, body = self._elsewhere(headers["location"])
        walk.bytes += len(body)
        algorithm, _, encoded = digest.partition(":")
        if status != 200:
            walk.wrong.append(f"{repository} blob {digest}: HTTP {status}")
        elif (len(body), hashlib.new(algorithm, body).hexdigest()) != (size, encoded):
            walk.wrong.append(f"{repository} blob {digest}: {len(body)} other bytes")

    def _get(self, repository: str, path: str) -> tuple[int, dict[str, str], bytes]:
        answer = self._request(path, self._authorization(repository))
        if answer[0] == 401 and self._login:
            challenge = answer[1].get("www-authenticate", "")
            if challenge.lower().startswith("bearer "):
                self._tokens[repository] = self._token(challenge, repository)
                answer = self._request(path, self._authorization(repository))
        return answer

    def _request(
        self, path: str, authorization: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        self._connection.request("GET", path, headers={"Accept": ACCEPT, **authorization})
        with self._connection.getresponse() as answer:
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()

    def _elsewhere(self, url: str) -> tuple[int, bytes]:
        """What an address holds that the registry names; it gets no login."""
        parts = urllib.parse.urlsplit(url)
        connection = self._connect(parts)
        try:
            connection.request("GET", f"{parts.path}?{parts.query}")
            with connection.getresponse() as answer:
                return answer.status, answer.read()
        finally:
            connection.close()

    def _authorization(self, repository: str) -> dict[str, str]:
        if repository in self._tokens:
            return {"Authorization": f"Bearer {self._tokens[repository]}"}
        return self._basic()

    def _basic(self) -> dict[str, str]:
        if self._login is None:
            return {}
        pair = base64.b64encode(":".join(self._login).encode()).decode()
        return {"Authorization": f"Basic {pair}"}

    def _token(self, challenge: str, repository: str) -> str:
        said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = urllib.parse.urlsplit(said["realm"])
        scope = f"repository:{repository}:pull"
        query = urllib.parse.urlencode({"service": said.get("service", ""), "scope": scope})
        connection = self._connect(realm)
        try:
            connection.request("GET", f"{realm.path}?{query}", headers=self._basic())
            with connection.getresponse() as answer:
                document = json.loads(answer.read())
        finally:
            connection.close()
        return str(document.get("token") or document["access_token"])

    def _connect(self, to: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        assert to.hostname is not None
        if to.scheme == "https":
            return http.client.HTTPSConnection(to.hostname, to.port, context=self._context)
        return http.client.HTTPConnection(to.hostname, to.port)
