"""The client of an S3-compatible bucket: the requests that bundles need (Amazon S3 API Reference).

They go over the same wire as those to registries, so that waiting, retries and cancellation are the
same, and are never redirected. `awscrt`, an extra, finds credentials and signs (AWS Signature
Version 4).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree

from mirror.bundle.location import is_name
from mirror.bundle.s3_answers import number, parsed, refusal, refused, text
from mirror.errors import (
    DeniedError,
    InputError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    printable,
)
from mirror.registry.downloads import FileState, file_range
from mirror.registry.hosts import PORTS, Origin
from mirror.registry.http1 import Body
from mirror.registry.options import ConnectionOptions, patience
from mirror.registry.transport import Transport, WholeAnswer, Wire
from mirror.run import Run

PLAN = "x-amz-meta-mirror-plan"
"""The header of an archive's object that names its plan."""
_MOST_ANSWER, _ANY, _LOOK_S = 4 << 20, range(100, 600), 0.2
_MOST_LISTED, _MOST_LISTS, _MOST_PAGES = 200_000, 24 << 20, 200
"""Entries, bytes and pages of one list. Pages have 1,000 entries; a bundle has fewer files."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOTHING = hashlib.sha256(b"").hexdigest()


class Part(NamedTuple):
    """A part of an upload that has arrived: `size` in bytes, and the server's mark for it."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket and what the names in it begin with, `s3://bucket/prefix`."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> BucketAddress:
        """Read one.

        Raises:
            InputError: it is not such an address, or it contains a login.
        """
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        parts = prefix.strip("/").split("/") if prefix.strip("/") else []
        odd = any(part in ("", ".", "..") or not part.isprintable() for part in parts)
        if not text.startswith("s3://") or not _BUCKET.fullmatch(bucket) or odd:
            raise InputError(
                f"{printable(text.rpartition('@')[2])} is not a place in a bucket; write "
                "s3://bucket/prefix, and give credentials and endpoint by the variables of AWS "
                "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3)"
            )
        return cls(bucket, "/".join(parts))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """What an object of this name is called in the bucket."""
        return f"{self.prefix}/{name}" if self.prefix else name


class _Signer:
    """Signs requests to one region (AWS Signature Version 4). Thread-safe."""

    def __init__(self, region: str, host: str) -> None:
        try:
            from awscrt import auth, http
        except ImportError as err:
            raise InputError(
                "bundles in buckets need the package awscrt; install it: "
                "`pip install 'deckhouse-mirror[s3]'`"
            ) from err
        self._auth, self._http = auth, http
        self._region, self._host = region, host

    @cached_property
    def _credentials(self) -> Any:
        return self._auth.AwsCredentialsProvider.new_default_chain()

    def signed(
        self,
        check: Callable[[], None],
        method: str,
        url: str,
        headers: Mapping[str, str],
        digest: str = _NOTHING,
    ) -> dict[str, str]:
        """`headers` with those that sign them; `digest` is the SHA-256 of the body, in hex.

        Credentials are waited for while `check` returns.

        Raises:
            DeniedError: there are no credentials, or they cannot be had.
        """
        kinds = self._auth
        target = url.partition("://")[2].partition("/")[2]
        fields = self._http.HttpHeaders([("Host", self._host), *headers.items()])
        request = self._http.HttpRequest(method, f"/{target}", fields)
        config = kinds.AwsSigningConfig(
            algorithm=kinds.AwsSigningAlgorithm.V4,
            signature_type=kinds.AwsSignatureType.HTTP_REQUEST_HEADERS,
            credentials_provider=self._credentials,
            region=self._region,
            service="s3",
            use_double_uri_encode=False,
            should_normalize_uri_path=False,
            signed_body_value=digest,
            signed_body_header_type=kinds.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
        )
        try:
            # The chain asks its providers one after the other, each with a time-out of its own.
            signing = kinds.aws_sign_request(request, config)
            while not wait((signing,), _LOOK_S).done:
                check()
            answered = signing.result()
        except MirrorError:
            raise
        except Exception as err:
            # awscrt turns its codes into AwsCrtError, or into built-in exceptions of many kinds.
            code = getattr(err, "name", type(err).__name__)
            raise DeniedError(
                f"no credentials for the bucket were found ({code}); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
                where="s3://",
            ) from err
        return {name: text for name, text in answered.headers if name != "Host"}


class Bucket:
    """A bundle's place in a bucket: `location.Objects`, and what writing needs. Thread-safe.

    `environment` gives endpoint (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL), region (AWS_REGION,
    AWS_DEFAULT_REGION) and authorities (AWS_CA_BUNDLE). A server other than Amazon's gets the
    bucket in the path. Methods raise what those of `Objects` do; RegistryNotFoundError says that an
    upload is over.
    """

    def __init__(
        self,
        address: BucketAddress,
        *,
        environment: Mapping[str, str] = os.environ,
        options: ConnectionOptions | None = None,
    ) -> None:
        self.address, self.where = address, str(address)
        named = [environment.get(name) for name in ("AWS_REGION", "AWS_DEFAULT_REGION")]
        region = next(filter(None, named), "us-east-1")
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        self._root = f"/{address.bucket}"
        if not endpoint:
            endpoint = f"https://s3.{region}.amazonaws.com"
            if "." not in address.bucket:  # else no certificate would match
                endpoint, self._root = f"https://{address.bucket}.{endpoint[8:]}", ""
        origin = _origin(endpoint)
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.port != PORTS[origin.scheme]:
            host += f":{origin.port}"
        self._signer = _Signer(region, host)
        self._base = f"{origin.scheme}://{host}"
        options = options or ConnectionOptions(retries=patience())
        authorities = environment.get("AWS_CA_BUNDLE")
        options = replace(
            options,
            plain_http=origin.scheme == "http",
            ca_file=options.ca_file or (Path(authorities) if authorities else None),
            certificate=None,
        )
        if "." not in host and ":" not in host:  # else it would not look like a host
            host += f":{origin.port}"
        self._wire = Wire(host, options=options, credentials=None, follows=False)

    def __str__(self) -> str:
        return self.where

    def close(self) -> None:
        """End all connections."""
        self._wire.close()

    # -- reading -------------------------------------------------------------------------------

    def states(self, run: Run) -> dict[str, FileState]:
        """Every object directly below the prefix, by name (ListObjectsV2)."""
        query, markers = (
            {"list-type": "2", "delimiter": "/"},
            {"continuation-token": "NextContinuationToken"},
        )
        return {
            name: FileState(number(one, "Size"), text(one, "ETag"))
            for name, one in self._listed(query, markers, "Contents", run)
        }

    def chunks(
        self, name: str, state: FileState, offset: int, size: int, run: Run
    ) -> Generator[bytes, None, None]:
        """Read a range of an object in pieces as they arrive; it must be in this `state`.

        Raises:
            ConflictError: it is not any more.
        """
        transport, url = Transport(self._wire, run), self._url(name)
        try:
            sign = partial(self._signer.signed, transport.check)
            yield from file_range(transport, url, offset, size, state, sign)
        except RegistryError as err:
            if err.status in (400, 403):
                raise refused(err.status, "", "", f"GET {self.where}/{name}") from err
            raise

    def read(self, name: str, state: FileState, run: Run) -> bytes:
        """All of a small object; raises as `chunks`."""
        return b"".join(self.chunks(name, state, 0, state.size, run))

    def plan_of(self, name: str, run: Run) -> tuple[int, str] | None:
        """The size of an object and the plan that it names; None if it is not there."""
        answer = self._call("HEAD", name, run, accept=(200, 404))
        there = answer.headers.length or 0, answer.headers.get(PLAN, "")
        return there if answer.status == 200 else None

    # -- writing -------------------------------------------------------------------------------

    def put(self, name: str, data: bytes, run: Run, *, only_new: bool = False) -> bool:
        """Write a small object at once; with `only_new`, return False if it is there already.

        A server that knows no conditions may replace what came there just now.
        """
        if not only_new:
            return self._call("PUT", name, run, data=data).status == 200
        if (status := self._put_new(name, data, run)) != 501:
            return status == 200
        return self.plan_of(name, run) is None and self.put(name, data, run)

    def _put_new(self, name: str, data: bytes, run: Run) -> int:
        condition, accept = {"If-None-Match": "*"}, (200, 409, 412, 501)
        return self._call("PUT", name, run, accept=accept, headers=condition, data=data).status

    def knows_conditions(self, name: str, data: bytes, run: Run) -> bool:
        """Whether the server refuses to put an object that is there, and has this content."""
        return self._put_new(name, data, run) not in (200, 501)

    def remove(self, name: str, run: Run) -> None:
        """Remove an object, if it is there."""
        self._call("DELETE", name, run, accept=(200, 204, 404))

    def uploads(self, run: Run) -> list[tuple[str, str]]:
        """The name and the id of each unfinished upload below the prefix (ListMultipartUploads)."""
        markers = {"key-marker": "NextKeyMarker", "upload-id-marker": "NextUploadIdMarker"}
        found = self._listed({"uploads": ""}, markers, "Upload", run)
        return [(name, text(one, "UploadId")) for name, one in found]

    def begin(self, name: str, plan: str, run: Run) -> str:
        """Begin an upload of an object that names its plan; return the upload's id."""
        answer = self._call("POST", name, run, query={"uploads": ""}, headers={PLAN: plan})
        return text(self._tree(answer, "POST", name), "UploadId")

    def parts(self, name: str, upload: str, run: Run) -> dict[int, Part]:
        """The parts of an upload that have arrived, by number (ListParts).

        One of several contents has not (size -1): SeaweedFS lists what was replaced, too.
        """
        found: dict[int, Part] = {}
        markers = {"part-number-marker": "NextPartNumberMarker"}
        for page in self._pages({"uploadId": upload}, markers, run, name):
            for one in page.iterfind("{*}Part"):
                part = Part(number(one, "Size"), text(one, "ETag"))
                of = number(one, "PartNumber")
                found[of] = part if found.get(of, part) == part else Part(-1, "")
        return found

    def put_part(
        self, name: str, upload: str, number: int, data: bytes | memoryview, run: Run
    ) -> Part:
        """Write a part, in place of one of this number; the server checks its digest."""
        query = {"partNumber": str(number), "uploadId": upload}
        answer = self._call("PUT", name, run, query=query, data=data)
        if not (etag := answer.headers.get("etag", "")):
            raise RegistryError(
                f"{self.where}/{name}: the answer to part {number} has no ETag, so that it is not "
                "an S3 server's; check AWS_ENDPOINT_URL_S3, and for a proxy between",
                where=self.where,
            )
        return Part(len(data), etag)

    def complete(
        self, name: str, upload: str, parts: Mapping[int, Part], plan: str, run: Run
    ) -> None:
        """Make the object of its parts. If an answer was lost, the object tells.

        Raises:
            RegistryError: it has other bytes than the parts, or is of another plan.
        """
        listed = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag></Part>"
            for number, part in sorted(parts.items())
        )
        data = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        size = sum(part.size for part in parts.values())
        lost: RegistryNotFoundError | None = None
        try:
            self._call("POST", name, run, query={"uploadId": upload}, data=data, slow=True)
        except RegistryNotFoundError as err:
            lost = err
        if self.plan_of(name, run) != (size, plan):  # some 200 is a proxy's, or tells of an error
            raise lost or RegistryError(
                f"{self.where}/{name}: the S3 server says that the upload is complete, but the "
                "object is another; let one pull at a time work there, and run it again",
                where=self.where,
            )

    def abort(self, name: str, upload: str, run: Run) -> None:
        """Give an upload up; its parts go."""
        self._call("DELETE", name, run, query={"uploadId": upload}, accept=(200, 204, 404))

    # -- one request ---------------------------------------------------------------------------

    def _url(self, name: str | None, query: Mapping[str, str] | None = None) -> str:
        """The address of an object, or of the bucket; a query in the order that is signed."""
        path = "/" if name is None else "/" + quote(self.address.key(name), safe="/~")
        asked = "&".join(f"{k}={quote(v, safe='~')}" for k, v in sorted((query or {}).items()))
        return f"{self._base}{self._root}{path}" + (f"?{asked}" if asked else "")

    def _call(
        self,
        method: str,
        name: str | None,
        run: Run,
        *,
        query: Mapping[str, str] | None = None,
        accept: Iterable[int] = (200,),
        headers: Mapping[str, str] | None = None,
        data: bytes | memoryview = b"",
        slow: bool = False,
    ) -> WholeAnswer:
        """Send a request, signed anew for each attempt, and return the whole answer."""
        transport, url = Transport(self._wire, run), self._url(name, query)
        where = f"{method} {self.where}/{name or ''}".rstrip("/")
        digest = hashlib.sha256(data).hexdigest() if data else _NOTHING
        body = None
        if data or method in ("PUT", "POST"):
            body = Body(len(data), lambda: transport.watch(where).sent((data,)))
        wait_s = transport.options.answer_timeout_s if slow else None

        def attempt() -> WholeAnswer:
            signed = self._signer.signed(transport.check, method, url, headers or {}, digest)
            with transport.open(
                method, url, headers=signed, body=body, answer_timeout_s=wait_s
            ) as response:
                answer = transport.whole(response, accept=_ANY, limit=_MOST_ANSWER, where=where)
            failed = method == "POST" and answer.status == 200 and b"<Error>" in answer.body
            if answer.status not in accept or failed:
                raise refusal(answer.status, answer.headers, answer.body, where)
            return answer

        return transport.patiently(where, attempt)

    def _listed(
        self, query: Mapping[str, str], markers: Mapping[str, str], entry: str, run: Run
    ) -> Iterator[tuple[str, ElementTree.Element]]:
        """The entries of a list that are directly below the prefix, by name; others are left out,
        also if the server lists them: what is removed goes by this."""
        prefix = self.address.key("")
        query = {**query, "prefix": prefix, "encoding-type": "url"}
        for page in self._pages(query, markers, run):
            is_encoded = text(page, "EncodingType", "") == "url"
            for one in page.iterfind(f"{{*}}{entry}"):
                key = text(one, "Key")
                key = unquote_plus(key) if is_encoded else key
                if key.startswith(prefix) and is_name(name := key[len(prefix) :]):
                    yield name, one

    def _pages(
        self,
        query: Mapping[str, str],
        markers: Mapping[str, str],
        run: Run,
        name: str | None = None,
    ) -> Iterator[ElementTree.Element]:
        """Every page of a listing; `markers` say which field of a page leads to the next."""
        asked, entries, size = dict(query), 0, 0
        while entries <= _MOST_LISTED and size <= _MOST_LISTS:
            answer = self._call("GET", name, run, query=asked)
            page = self._tree(answer, "GET", name)
            size += max(len(answer.body), _MOST_LISTS // _MOST_PAGES)
            entries += len(page)
            yield page
            if text(page, "IsTruncated", "false") != "true":
                return
            former, asked = asked, dict(query)
            asked |= {key: text(page, field) for key, field in markers.items()}
            if asked == former:
                break
        raise RegistryError(
            f"{self.where}: the S3 server's list does not end; use a prefix that holds the bundle "
            "alone",
            where=self.where,
        )

    def _tree(self, answer: WholeAnswer, method: str, name: str | None) -> ElementTree.Element:
        try:
            return parsed(answer.body)
        except ElementTree.ParseError as err:
            where = f"{method} {self.where}/{name or ''}".rstrip("/")
            raise RegistryError(
                f"{where}: the answer is not that of an S3 server; check AWS_ENDPOINT_URL_S3",
                where=where,
                status=answer.status,
            ) from err


def _origin(endpoint: str) -> Origin:
    """Where an endpoint is, `https://host[:port]`. InputError: it is something else."""
    with suppress(ValueError):
        parts = urlsplit(endpoint)
        more = parts.username or parts.query or parts.path.strip("/")
        if parts.scheme in PORTS and parts.hostname and not more:
            return Origin.of(f"{parts.scheme}://{parts.netloc.lower()}")
    raise InputError(
        "AWS_ENDPOINT_URL_S3 is not the address of a server; write https://host[:port], without a "
        "path or a login"
    )
