"""What networks, registries and the proxies before them are known to do, each under a name."""

from __future__ import annotations

import gzip
import time
from collections.abc import Mapping
from email.utils import formatdate

from mirror.testing.faults import (
    Answer,
    ChangeHeaders,
    CorruptBody,
    CutResponse,
    CutUpload,
    Delay,
    Drip,
    Encode,
    EndlessBody,
    Fault,
    IgnoreRange,
    LoseAnswer,
    Redirect,
    Refuse,
    RepeatAnswer,
    ShiftRange,
    Stall,
    WrongLength,
)

BLOB = "/blobs/sha"
MANIFEST = "/manifests/"
SESSION = "/blobs/uploads/."
TAGS = "/tags/list"

_OTHER_DIGEST = "sha256:" + "0" * 64
_PORTAL = b"<!DOCTYPE html><html><body>Please accept the terms of use.</body></html>"
_LOST = b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"fault on demand"}]}'


def every_fault(elsewhere: str = "http://127.0.0.1:9", *, wait_s: float = 60.0) -> dict[str, Fault]:
    """Name → a fault that strikes the first request that it concerns.

    `replace(fault, nth=n)` strikes a later one. `elsewhere` is where foreign redirects lead to, and
    `wait_s` how many seconds a silent or busy server takes.
    """
    later = formatdate(time.time() + wait_s, usegmt=True)
    return {
        **_broken_lines(wait_s),
        **_refusals(wait_s, later),
        **_untrue_answers(),
        "redirect home": Fault(Redirect(), "GET"),
        "redirect elsewhere": Fault(Redirect(elsewhere), "GET"),
        "redirect in a loop": Fault(Redirect(), "GET", times=None),
        "redirect of a write": Fault(Redirect(elsewhere), "PUT"),
        "range ignored": Fault(IgnoreRange(), "GET", BLOB),
        "range moved": Fault(ShiftRange(1), "GET", BLOB),
        "session lost": Fault(Answer(404, {}, _LOST), path=SESSION),
        "sessions lost for ever": Fault(Answer(404, {}, _LOST), "PATCH", SESSION, times=None),
        "HEAD refused": Fault(Answer(405), "HEAD", times=None),
        "listing refused": Fault(Answer(401), path=TAGS, times=None),
        "listing unknown": Fault(Answer(404), path=TAGS, times=None),
    }


def _broken_lines(wait_s: float) -> Mapping[str, Fault]:
    return {
        "reset": Fault(Refuse()),
        "reset for a while": Fault(Refuse(), times=3),
        "reset for ever": Fault(Refuse(), times=None),
        "reset in an answer": Fault(CutResponse(7, reset=True)),
        "cut at once": Fault(CutResponse(0)),
        "cut in an answer": Fault(CutResponse(7)),
        "cut in every blob": Fault(CutResponse(7), "GET", BLOB, times=None),
        "cut in a request": Fault(CutUpload(7)),
        "lost answer": Fault(LoseAnswer()),
        "lost answer of a write": Fault(LoseAnswer(), "PUT"),
        "duplicate answer": Fault(RepeatAnswer()),
        "slow": Fault(Delay(0.02)),
        "stall": Fault(Stall(1, wait_s)),
        "silence": Fault(Delay(wait_s)),
        "drip": Fault(Drip(64, 0.001)),
    }


def _refusals(wait_s: float, later: str) -> Mapping[str, Fault]:
    patience = str(int(wait_s))
    return {
        "401 once": Fault(Answer(401)),
        "401 from then on": Fault(Answer(401), times=None),
        "403 once": Fault(Answer(403)),
        "403 from then on": Fault(Answer(403), times=None),
        "404 once": Fault(Answer(404)),
        "409 once": Fault(Answer(409)),
        "413 of a write": Fault(Answer(413), "PUT"),
        "416 once": Fault(Answer(416)),
        "429 with seconds": Fault(Answer(429, {"Retry-After": patience})),
        "429 with a date": Fault(Answer(429, {"Retry-After": later})),
        "429 with nonsense": Fault(Answer(429, {"Retry-After": "soon"})),
        **{f"{status} once": Fault(Answer(status)) for status in (500, 502, 503, 504)},
        **{f"{one} for a while": Fault(Answer(one), times=3) for one in (500, 502, 503, 504)},
        "500 from then on": Fault(Answer(500), times=None),
        "507 of a write": Fault(Answer(507), "PUT", times=None),
    }


def _untrue_answers() -> Mapping[str, Fault]:
    digest = "Docker-Content-Digest"
    bomb = gzip.compress(bytes(8 << 20))
    return {
        "flipped byte": Fault(CorruptBody(3), "GET"),
        "flipped byte in every blob": Fault(CorruptBody(3), "GET", BLOB, times=None),
        "answer too short": Fault(WrongLength(9), "GET"),
        "answer too long": Fault(WrongLength(-2), "GET"),
        "wrong digest in a header": Fault(ChangeHeaders({digest: _OTHER_DIGEST})),
        "odd digest in a header": Fault(ChangeHeaders({digest: "none"})),
        "no digest in a header": Fault(ChangeHeaders({digest: None}), times=None),
        "odd link": Fault(ChangeHeaders({"Link": "</v2/>; rel=="}), path=TAGS),
        "link without an end": Fault(
            ChangeHeaders({"Link": '</v2/_catalog?n=1>; rel="next"'}), path=TAGS
        ),
        "odd location": Fault(ChangeHeaders({"Location": "http://[::1/"}), "POST"),
        "no location": Fault(ChangeHeaders({"Location": None}), "POST"),
        "odd media type": Fault(ChangeHeaders({"Content-Type": "text/html"}), path=MANIFEST),
        "endless body": Fault(EndlessBody(), "GET"),
        "compressed": Fault(Encode("gzip"), "GET"),
        "encoding that lies": Fault(ChangeHeaders({"Content-Encoding": "zstd"}), "GET"),
        "bomb": Fault(Answer(200, {"Content-Encoding": "gzip"}, bomb), "GET"),
        "portal": Fault(Answer(200, {"Content-Type": "text/html"}, _PORTAL)),
        "portal before writes": Fault(
            Answer(200, {"Content-Type": "text/html"}, _PORTAL), "PUT", times=None
        ),
        "no content": Fault(Answer(204, {}, b"")),
    }
