"""Every kind of content that registries hold, after the list of the OCI conformance suite.

Each kind is written to a registry by plain requests, without any code under test.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
RESTRICTED = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"

AMD64 = {"architecture": "amd64", "os": "linux"}
ARM64 = {"architecture": "arm64", "os": "linux", "variant": "v8"}

FOUR_MIB = 4 << 20

ACCEPT = ", ".join((INDEX, IMAGE, DOCKER_LIST, DOCKER_IMAGE))
"""The header of who reads manifests of every kind."""


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """A digest as the wire spells it."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


@dataclass
class Content:
    """What one repository is to hold: blobs and manifests by digest, in the order of pushing.

    `absent` are digests that its manifests name and that are not there.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def blob(
        self,
        content: bytes,
        media_type: str = LAYER,
        /,
        *,
        algorithm: str = "sha256",
        there: bool = True,
        **more: Any,
    ) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = digest_of(content, algorithm)
        if there:
            self.blobs[digest] = content
        else:
            self.absent.add(digest)
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def manifest(
        self,
        document: Mapping[str, Any],
        media_type: str,
        tag: str | None = None,
        *,
        algorithm: str = "sha256",
        there: bool = True,
        **more: Any,
    ) -> dict[str, Any]:
        """Add a manifest; return its descriptor."""
        raw = json.dumps({"schemaVersion": 2, **document}).encode()
        digest = digest_of(raw, algorithm)
        if there:
            self.manifests[digest] = (media_type, raw)
        else:
            self.absent.add(digest)
        if tag is not None:
            self.tags[tag] = digest
        return {"mediaType": media_type, "digest": digest, "size": len(raw), **more}

    def image(
        self, *layers: Mapping[str, Any], tag: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """Add an OCI image with `layers`; return its descriptor."""
        config = self.blob(b'{"architecture":"amd64","os":"linux"}', CONFIG)
        document = {"mediaType": IMAGE, "config": config, "layers": list(layers)}
        known = {key: more.pop(key) for key in ("algorithm", "there") if key in more}
        return self.manifest({**document, **more}, IMAGE, tag, **known)

    def index(self, *children: Mapping[str, Any], tag: str | None = None, **more: Any) -> Any:
        """Add an OCI index of `children`; return its descriptor."""
        document = {"mediaType": INDEX, "manifests": list(children), **more}
        return self.manifest(document, INDEX, tag)

    def put(self, http: httpx.Client, repository: str) -> None:
        """Write all of it into a registry, children before parents."""
        for digest, data in self.blobs.items():
            opened = http.post(f"/v2/{repository}/blobs/uploads/")
            assert opened.status_code == 202, opened.text
            place = httpx.URL(opened.headers["Location"]).copy_merge_params({"digest": digest})
            done = http.put(place, content=data)
            assert done.status_code == 201, (digest, done.text)
        named = {digest: tag for tag, digest in self.tags.items()}
        for digest, (media_type, raw) in self.manifests.items():
            reference = digest
            if digest.startswith("sha256:"):
                reference = named.get(digest, digest)
            done = http.put(
                f"/v2/{repository}/manifests/{reference}",
                content=raw,
                headers={"Content-Type": media_type},
            )
            assert done.status_code == 201, (digest, done.text)
            subject = json.loads(raw).get("subject")
            if subject and "OCI-Subject" not in done.headers:
                self._list_referrer(http, repository, subject["digest"], digest)

    def _list_referrer(
        self, http: httpx.Client, repository: str, subject: str, digest: str
    ) -> None:
        """Do what the specification asks of whoever pushes to a registry without referrers."""
        path = f"/v2/{repository}/manifests/{subject.replace(':', '-')}"
        media_type, raw = self.manifests[digest]
        kind = json.loads(raw).get("artifactType", CONFIG)
        entry = {"mediaType": media_type, "digest": digest, "size": len(raw), "artifactType": kind}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        done = http.put(path, json=index, headers={"Content-Type": INDEX})
        assert done.status_code == 201, done.text

    def differences(self, http: httpx.Client, repository: str) -> list[str]:
        """What of it a registry does not hold, byte for byte."""
        wrong = []
        for kind, expected in (
            ("blobs", self.blobs),
            ("manifests", {digest: raw for digest, (_, raw) in self.manifests.items()}),
            ("manifests", {tag: self.manifests[digest][1] for tag, digest in self.tags.items()}),
        ):
            for reference, data in expected.items():
                answer = http.get(
                    f"/v2/{repository}/{kind}/{reference}", headers={"Accept": ACCEPT}
                )
                if answer.status_code != 200 or answer.content != data:
                    wrong.append(f"{kind[:-1]} {reference}: HTTP {answer.status_code}")
        return wrong


def _image(content: Content) -> None:
    content.image(content.blob(b"base"), content.blob(b"top"), tag="v1")


def _docker_list(content: Content) -> None:
    images = []
    for number, platform in enumerate((AMD64, ARM64)):
        document = {
            "mediaType": DOCKER_IMAGE,
            "config": content.blob(b'{"os":"linux","n":%d}' % number, DOCKER_CONFIG),
            "layers": [content.blob(b"docker %d" % number, DOCKER_LAYER)],
        }
        images.append(content.manifest(document, DOCKER_IMAGE, platform=platform))
    content.manifest({"mediaType": DOCKER_LIST, "manifests": images}, DOCKER_LIST, "v1")


def _artifact(content: Content) -> None:
    document = {
        "mediaType": IMAGE,
        "config": content.blob(b'{"old": "artifact"}', "application/vnd.example.config.v1+json"),
        "layers": [content.blob(b"anything", "text/plain")],
    }
    content.manifest(document, IMAGE, "v1")


def _artifact_type(content: Content) -> None:
    empty = content.blob(b"{}", EMPTY)
    document = {
        "mediaType": IMAGE,
        "artifactType": "application/vnd.example.thing",
        "config": empty,
        "layers": [empty],
        "annotations": {"org.example.note": "с примечанием"},
    }
    content.manifest(document, IMAGE, "v1")


def _no_layers(content: Content) -> None:
    content.image(tag="v1")


def _zero_bytes(content: Content) -> None:
    content.image(content.blob(b""), content.blob(b"beside nothing"), tag="v1")


def _twice(content: Content) -> None:
    layer = content.blob(b"the same layer")
    content.image(layer, content.blob(b"between"), layer, tag="v1")


def _two_hundred(content: Content) -> None:
    content.image(*(content.blob(b"layer %d" % number) for number in range(200)), tag="v1")


def _odd_media_types(content: Content) -> None:
    odd = ("", "application/x.odd+json; charset=utf-8", "Text/PLAIN", "nothing at all", LAYER)
    layers = [content.blob(b"odd %d" % n, media_type) for n, media_type in enumerate(odd)]
    content.image(*layers, tag="v1")


def _without_media_type(content: Content) -> None:
    document = {"config": content.blob(b'{"n":2}', CONFIG), "layers": [content.blob(b"plain")]}
    image = content.manifest(document, IMAGE, platform=AMD64)
    content.manifest({"manifests": [image]}, INDEX, "v1")


def _inline(content: Content) -> None:
    data = b"small enough to be inline"
    content.image(content.blob(data, data=base64.b64encode(data).decode()), tag="v1")


def _index(content: Content) -> None:
    children = [
        {**content.image(content.blob(b"for %d" % n)), "platform": platform}
        for n, platform in enumerate((AMD64, ARM64))
    ]
    again = {**children[0], "annotations": {"listed": "twice"}}
    content.index(*children, again, tag="v1", annotations={"note": "an index"})


def _nested_index(content: Content) -> None:
    image = content.image(content.blob(b"deep inside"))
    inner = content.index(image, annotations={"depth": "2"})
    content.index(content.index(inner), content.image(content.blob(b"beside")), tag="v1")


def _empty_index(content: Content) -> None:
    # Distribution lists no repository without blobs.
    content.index(content.index(), content.image(content.blob(b"beside nothing")), tag="v1")


def _subject(content: Content) -> None:
    image = content.image(content.blob(b"signed"), tag="v1")
    bare = {key: image[key] for key in ("mediaType", "digest", "size")}
    kind = "application/vnd.example.signature"
    signature = content.image(content.blob(b"signature"), subject=bare, artifactType=kind)
    bare = {key: signature[key] for key in ("mediaType", "digest", "size")}
    content.image(content.blob(b"signed signature"), subject=bare, artifactType=kind)


def _absent_subject(content: Content) -> None:
    """A subject may come later, or never."""
    subject = {"mediaType": IMAGE, "digest": digest_of(b"not yet pushed"), "size": 14}
    content.image(content.blob(b"early"), subject=subject, tag="v1")


def _large_manifest(content: Content) -> None:
    size = len(json.dumps({"annotations": {"filling": ""}}))
    bare = Content().image(content.blob(b"large"))["size"]
    content.image(
        content.blob(b"large"), annotations={"filling": "x" * (FOUR_MIB - bare - size)}, tag="v1"
    )
    (raw,) = (raw for _, raw in content.manifests.values())
    assert len(raw) == FOUR_MIB


def _sha512_blobs(content: Content) -> None:
    layer = content.blob(b"a layer by sha512", algorithm="sha512")
    content.image(layer, content.blob(b"a layer by sha256"), tag="v1")


def _sha512_manifest(content: Content) -> None:
    layer = content.blob(b"below sha512", algorithm="sha512")
    content.index(content.image(layer, algorithm="sha512"), tag="v1")


def _foreign(content: Content) -> None:
    urls = ["http://192.0.2.1/base"]  # an address that leads nowhere
    content.image(
        content.blob(b"windows base", FOREIGN, urls=urls),
        content.blob(b"restricted", RESTRICTED, urls=urls),
        content.blob(b"of any type", urls=urls),
        tag="v1",
    )


def sparse_index() -> Content:
    """An index of two images, one of which is not there."""
    content = Content()
    there = content.image(content.blob(b"for amd64"), there=True)
    absent = Content().image(Content().blob(b"for arm64"))
    content.absent.add(absent["digest"])
    content.index({**there, "platform": AMD64}, {**absent, "platform": ARM64}, tag="v1")
    return content


KINDS: Mapping[str, Callable[[Content], None]] = {
    "image": _image,
    "docker-list": _docker_list,
    "artifact": _artifact,
    "artifact-type": _artifact_type,
    "no-layers": _no_layers,
    "zero-bytes": _zero_bytes,
    "twice": _twice,
    "two-hundred": _two_hundred,
    "odd-media-types": _odd_media_types,
    "without-media-type": _without_media_type,
    "inline": _inline,
    "index": _index,
    "nested-index": _nested_index,
    "empty-index": _empty_index,
    "subject": _subject,
    "absent-subject": _absent_subject,
    "large-manifest": _large_manifest,
    "sha512-blobs": _sha512_blobs,
    "sha512-manifest": _sha512_manifest,
    "foreign": _foreign,
}
"""Name → how it is made. Each has the tag `v1`."""


def content_of(kind: str) -> Content:
    """The content of that kind."""
    content = Content()
    KINDS[kind](content)
    return content
