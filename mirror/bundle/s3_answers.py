"""What the answers of an S3 server say (Amazon S3 API Reference). The server may be hostile."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from mirror.errors import (
    DeniedError,
    MirrorError,
    RegistryError,
    RegistryNotFoundError,
    UnreachableError,
    printable,
)
from mirror.registry.answers import TRANSIENT_STATUSES
from mirror.registry.http1 import Headers
from mirror.registry.retries import TransientFailure, retry_after_s

_MOST_TAGS = 100_000
"""Of a page of 1,000 entries, each with up to 15 fields."""
_LONGEST = 4096
_OTHER_ENCODING = re.compile(r"<\?xml[^>]*encoding=.(?!utf-8.)", re.IGNORECASE)
_PASSING = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout"})
_REGION = "the bucket is in another region: set AWS_REGION"
_LOGIN = (
    "check the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and what "
    "they may do in this bucket"
)
_ADVICE = {
    "RequestTimeTooSkewed": "the clock of this machine is wrong, or that of the server: set it",
    "ExpiredToken": "the credentials have expired: renew them and run the same again, what has "
    "arrived stays",
    "NoSuchUpload": "somebody else has completed or given up this upload: let one pull at a time "
    "work there, and run it again",
    "NoSuchBucket": "create the bucket first, or check its name and AWS_ENDPOINT_URL_S3",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
}


def parsed(body: bytes) -> ElementTree.Element:
    """Parse an answer, which is bounded; one that declares entities may be a bomb.

    As text, so that no encoding which it names hides from us what the parser would see.

    Raises:
        ElementTree.ParseError: it is not XML in UTF-8, or has a document type or more than
            `_MOST_TAGS` tags and attributes, as no S3 server's answer has.
    """
    try:
        words = body.decode().lstrip()
    except UnicodeDecodeError as err:
        raise ElementTree.ParseError(str(err)) from err
    if _OTHER_ENCODING.match(words) or "<!" in words or "\0" in words:
        raise ElementTree.ParseError("it has a document type, or another encoding")
    if words.count("<") + words.count("=") > _MOST_TAGS:
        raise ElementTree.ParseError("it has more in it than any list")
    return ElementTree.fromstring(words)  # noqa: S314 see above


def number(tree: ElementTree.Element, name: str) -> int:
    """A field that is a size in bytes or a count; at most 20 digits.

    Raises:
        RegistryError: it is not there, or something else.
    """
    found = text(tree, name)
    if not (found.isascii() and found.isdigit() and len(found) <= 20):
        raise RegistryError(f"an answer of the S3 server has no number as {name}", where=name)
    return int(found)


def text(tree: ElementTree.Element, name: str, default: str | None = None) -> str:
    """A field, in whatever namespace; `default` where it is not there.

    Raises:
        RegistryError: it is not there, and there is no default; or it is longer than any.
    """
    found = tree.findtext(f"{{*}}{name}", default)
    if found is None or len(found) > _LONGEST:
        what = "lacks" if found is None else "is not to be believed: it has too long a"
        raise RegistryError(f"an answer of the S3 server {what} {name}", where=name)
    return found


def refusal(
    status: int, headers: Headers, body: bytes, where: str
) -> TransientFailure | MirrorError:
    """What an answer means that is not what was asked for (S3 API Reference, "Error responses")."""
    code = reason = ""
    try:
        tree = parsed(body)
        code = printable(tree.findtext("{*}Code", ""))[:60]
        reason = printable(tree.findtext("{*}Message", ""))[:200]
    except ElementTree.ParseError:
        pass  # an answer to HEAD has no body, and a proxy's is a page
    error = refused(status, code, reason, where)
    if not isinstance(error, UnreachableError):
        return error
    asked = retry_after_s(headers.get("retry-after"))
    return TransientFailure(error, f"the S3 server answers HTTP {status} {code}", asked)


def refused(status: int, code: str, reason: str, where: str) -> RegistryError:
    """The error of a refusal, whose code and reason are the server's words."""
    said = ", ".join(filter(None, (f"HTTP {status}", code, reason)))
    kind, verb, advice = RegistryError, "refuses", _ADVICE.get(code)
    if code in _PASSING or status in TRANSIENT_STATUSES:
        kind, verb, advice = UnreachableError, "has trouble", "wait, or look at the server's log"
    elif status in (401, 403) or code in ("ExpiredToken", "InvalidAccessKeyId"):
        kind, advice = DeniedError, advice or _LOGIN
    elif status in (301, 307):
        advice = _REGION
    elif status == 404:
        kind = RegistryNotFoundError
    told = f"{where}: the S3 server {verb} ({said})" + (f"; {advice}" if advice else "")
    if code == "NoSuchUpload":  # what the server says of it is long, and about something else
        told = f"{where}: {advice} (the S3 server {verb}: {said})"
    return kind(told, where=where, status=status, codes=(code,), reason=reason)
