"""Answers: their bodies, which statuses count as success, and why something was refused.

No 2xx counts but those that the specification has (distribution-spec, "Endpoints"): whatever stands
between, a portal or a firewall with a page of its own, likes to answer 200. A few registries depart
from it; who does is told beside the status. Where a registry answers some other 2xx to what was
put, it is asked whether that is there.

The reason of a refusal is foreign text. It is looked for wherever servers put it
(distribution-spec, "Error Codes"; RFC 6749, 5.2; plain text), cleaned and bounded. Like those of
`retries`, each function returns what to raise: a `TransientFailure` where sending the same again
can help, else the error.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mirror.documents import parse_json
from mirror.errors import DeniedError, RegistryError, RegistryNotFoundError, UnreachableError
from mirror.registry.http1 import Connection, WireError, WireFault
from mirror.registry.retries import TransientFailure, clean, retry_after_s


class Response:
    """An answer whose body is unread. To be closed; used by one thread.

    `url` is where it came from, and `authorization` what was shown there.
    """

    def __init__(
        self, connection: Connection, method: str, url: str, authorization: str | None
    ) -> None:
        self._connection: Connection | None = connection
        self.method, self.url, self.authorization = method, url, authorization
        self.status, self.headers, self._keeps = connection.head()
        pieces = self._framed(connection)
        self._pieces: Iterator[bytes] = pieces or iter(())
        if pieces is None:
            self.close(keep=self._keeps)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces that belong to the caller; raises WireError."""
        try:
            yield from self._pieces
        except WireError as err:
            err.url = self.url
            raise
        self.close(keep=self._keeps)

    def close(self, *, keep: bool = False) -> None:
        """Let go of the connection. It serves again if the body was read to its end."""
        connection, self._connection = self._connection, None
        if connection is not None:  # else it may serve another request by now
            connection.done(keep=keep)

    def _framed(self, connection: Connection) -> Iterator[bytes] | None:
        """How the body ends; None if there is none."""
        headers = self.headers
        if self.method == "HEAD" or self.status in (204, 304):
            return None
        if (coding := headers.get("transfer-encoding")) is not None:
            if coding.lower() != "chunked":
                raise WireError(WireFault.BROKEN, "an unknown transfer coding")
            if headers.pop("content-length", None) is not None:
                self._keeps = False  # one of the two is wrong
            return connection.chunks()
        if "content-length" in headers:
            if (length := headers.length) is None:
                raise WireError(WireFault.BROKEN, "an answer with a wrong Content-Length")
            return connection.counted(length) if length else None
        self._keeps = False
        return connection.rest()


def read_whole(headers: Mapping[str, str], pieces: Iterable[bytes], limit: int) -> bytes | None:
    """The body that comes in `pieces`, or little more than `limit` bytes of it.

    One gzip or deflate, which some caches send to whoever asks, is undone within that limit. None
    for any other encoding: nobody asked for one.

    Raises:
        WireError: it is damaged.
    """
    collected = bytearray()
    for piece in pieces:
        collected += piece
        if len(collected) > limit:
            break
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return bytes(collected)
    if coding not in ("gzip", "x-gzip", "deflate"):
        return None
    try:
        return zlib.decompressobj(_ANY_WINDOW).decompress(collected, limit + 1)
    except zlib.error as err:
        raise WireError(WireFault.BROKEN, "an answer that cannot be decompressed") from err


def is_page(headers: Mapping[str, str], body: bytes = b"<") -> bool:
    """Whether an answer is a page for people. Some registries call what they answer HTML."""
    return "html" in headers.get("content-type", "").lower() and body.lstrip().startswith(b"<")


# -- success ---------------------------------------------------------------------------------------

READ = (200,)  # `/v2/`, manifests, blobs, tags, referrers (end-1 to end-3, end-8, end-12)
UNCHANGED = (304,)  # with `If-None-Match` (RFC 9110, 13.1.2), which the specification lacks
OPEN = (202,)  # POST that opens an upload (end-4a)
MOUNT = (201, 202)  # POST with `mount` (end-11): mounted, or an upload opened in its place
CHUNK = (202, 201, 204)  # PATCH (end-5); ECR answers 201, Pulp 204
SESSION = (204, 200)  # GET of an upload (end-13); 200 is of Quay
PUT_BLOB = (201,)  # PUT that completes an upload (end-6)
PUT_MANIFEST = (201, 202)  # end-7; 202 is of the specification's ancestor, Docker Registry 2.0
DELETE = (202,)  # of manifests, tags and blobs (end-9, end-10)
CANCEL = (204, 202, 200)  # DELETE of an upload, which the specification lacks
UNSAID = (200, 202, 204)  # to a PUT or a DELETE: true if what was put is there, or gone

# -- refusals --------------------------------------------------------------------------------------

_ANY_WINDOW = 47  # zlib finds out which format it is
TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that say "not now" and not "no"."""

_PUSHES = ("POST ", "PUT ", "PATCH ")
_FULL = re.compile(
    r"(?i)no space left|disk full|quota.{0,20} exceeded|insufficient storage"
    r"|exceed the configured upper limit"  # Harbor, with 403 or 412
)
_KIND = re.compile(r"(?i)media ?type|artifact|config type|not (an )?accepted")
_PLAIN = frozenset({"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "UNSUPPORTED"})
"""Codes that say what 404 and 405 say by themselves."""
_CERTIFICATE = re.compile(rb"No required SSL certificate was sent|The SSL certificate error")
"""How nginx says so, in a page."""
_NO_LOGIN = frozenset({"invalid_grant", "invalid_client", "unauthorized", "UNAUTHORIZED", "DENIED"})
"""Codes by which a token server that answers 400 or 404 does mean the login."""


@dataclass(frozen=True, slots=True)
class Login:
    """Who asked, as far as messages may tell: never a password or a token.

    `user` None: no login was given; "": one without a name, an identity token. `proof` is the
    scheme of the `Authorization` that was sent, in lower case; None if none was.
    """

    user: str | None = None
    proof: str | None = None

    @property
    def name(self) -> str:
        """The user, for the middle of a sentence."""
        return f"user {self.user}" if self.user else "the holder of the stored token"


_NOBODY = Login()


def from_answer(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    where: str,
    host: str,
    login: Login = _NOBODY,
) -> TransientFailure | RegistryError:
    """Translate an answer that is not what was asked for (distribution-spec, "Error Codes")."""
    if status < 300 and is_page(headers, body):
        return page(status, where, host)
    said, fields = _told(status, headers, body, where)
    reason = fields["reason"]
    if status == 400 and (match := _CERTIFICATE.search(body)):
        return UnreachableError(
            f"{where}: {host} wants a client certificate that it accepts (HTTP 400, "
            f"{match[0].decode()}); give one that its authority signed with --cert and --key, or "
            "put it into certs.d",
            **fields,
        )
    if status == 507 or (status >= 400 and _FULL.search(reason)):
        # Patience does not help: somebody has to make room.
        return RegistryError(
            f"{where}: the storage of {host} is full, or a quota ({said}); make room there, then "
            "run the same again: what has arrived is not sent twice",
            **fields,
        )
    if status in TRANSIENT_STATUSES:
        busy = f"{host} {'is rate limiting' if status == 429 else 'has trouble'}"
        return TransientFailure(
            UnreachableError(f"{where}: {busy} ({said}); wait, or check the registry", **fields),
            f"{busy} (HTTP {status})",
            retry_after_s(headers.get("retry-after")),
        )
    told = headers.get("www-authenticate", "")
    if status == 401 and login.proof == "bearer" and 'error="invalid_token"' in told:
        # We send no token that has ended, so something else is wrong with it than with the login.
        return DeniedError(
            f"{where}: {host} does not accept the token that its token server has just given "
            f"({said}); check that the clocks of the two agree, and that the registry trusts the "
            "token server's key",
            **fields,
        )
    if status in (401, 403):
        return DeniedError(f"{where}: {_denial(status, said, host, login)}", **fields)
    if status == 404:
        missing = "check the repository path"
        if where.startswith("POST ") and where.endswith("/blobs/uploads/"):
            missing = (
                "where a registry makes no repository by itself (ECR), or no project (Harbor), "
                "create it there first; else check the path"
            )
        return RegistryNotFoundError(
            f"{where}: {host} does not have this ({said}); {missing}", **fields
        )
    if status == 400 and b"HTTPS server" in body:  # Go's and nginx' words for this mistake
        return UnreachableError(
            f"{where}: {host} wants TLS; leave out --insecure", where=where, status=status
        )
    if status == 407:
        return UnreachableError(
            f"{where}: the proxy on the way to {host} asks for a login ({said}); write "
            "http://user:password@host:port into HTTP_PROXY, or name the host in NO_PROXY",
            where=where,
            status=status,
        )
    if 300 <= status < 400:
        return RegistryError(
            f"{where}: {host} answers with a redirect that cannot be followed ({said})", **fields
        )
    if status < 300:
        return RegistryError(
            f"{where}: {host} answers {said} where the specification has another status; "
            "check that this is a registry",
            **fields,
        )
    advice = _advice(status, reason, where)
    return RegistryError(
        f"{where}: {host} refuses ({said})" + (f"; {advice}" if advice else ""), **fields
    )


def _told(
    status: int, headers: Mapping[str, str], body: bytes, where: str
) -> tuple[str, dict[str, Any]]:
    """What an answer says, for a message, and the fields of its error."""
    codes, reason = reason_in(headers, body)
    said = f"HTTP {status}" + (f", {reason}" if reason else "")
    return said, {"where": where, "status": status, "codes": codes, "reason": reason}


def page(status: int, where: str, host: str) -> UnreachableError:
    """Something that shows a page has answered in the place of a registry."""
    return UnreachableError(
        f"{where}: a web page came in the place of {host}'s answer (HTTP {status}); a portal or a "
        "firewall stands between, or this is a web server: log in there, or check host and port",
        where=where,
        status=status,
    )


def _advice(status: int, reason: str, where: str) -> str:
    """What helps against a refusal whose cause is known."""
    if not where.startswith(_PUSHES):
        return ""
    if status == 413:
        return (
            "the registry, or a proxy in front of it, limits how large a request may be; raise "
            "that limit (nginx: client_max_body_size)"
        )
    if "/manifests/" in where and status < 500 and "immutab" in reason.lower():
        return (
            "a rule of the registry keeps this tag from changing; exempt the tags that turn with "
            "each release from it: release channels and `mirror/inventory`"
        )
    if "/manifests/" in where and (status == 415 or (status < 500 and _KIND.search(reason))):
        return (
            "the registry does not take this kind of artifact; allow it in its settings, or leave "
            "it out (security databases: `pull --no-security-db`; one archive after another: "
            "`push --file`)"
        )
    if status == 405:
        return "the registry, or this path of it, is read-only or does not accept pushes"
    return ""


def _denial(status: int, said: str, host: str, login: Login) -> str:
    """What a 401 or 403 means for whom, and what to do about it."""
    if login.user is None:
        asks = "asks for a login and none was given"
        verb = asks if status == 401 else "denies this without a login"
        return f"{host} {verb} ({said}); give credentials"
    # A bearer token is proof that the login itself was accepted.
    if status == 403 or login.proof == "bearer":
        return (
            f"{login.name} may not do this at {host} ({said}); "
            "give the credentials of a user who may"
        )
    if login.proof is None:
        return f"{host} asks for another kind of login than the given ({said}); check the registry"
    return f"{host} refuses the login of {login.name} ({said}); give other credentials"


def from_token_server(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    where: str,
    host: str,
    login: Login = _NOBODY,
) -> TransientFailure | RegistryError:
    """Translate the refusal of the token server that the registry `host` named."""
    server = f"the token server of {host}"
    said, fields = _told(status, headers, body, where)
    about_login = login.user is not None and _NO_LOGIN.intersection(fields["codes"])
    if status in (401, 403) or (status in (400, 404) and about_login):
        denial = _denial(403 if status == 403 else 401, said, server, login)
        return DeniedError(f"{where}: {denial}", **fields)
    if status in (400, 404):
        # 400 and 404 are also how some say that they know no identity tokens (RFC 6749, 5.2).
        advice = "check the registry's configuration"
        if login.user is not None:
            advice = f"this is not about the login itself, {advice} (realm, service)"
        if login.user == "":
            advice += ", or log in with user and password: not all servers take identity tokens"
        return RegistryError(f"{where}: {server} refuses ({said}); {advice}", **fields)
    return from_answer(status, headers, body, where=where, host=server)


def unreadable(
    status: int, headers: Mapping[str, str], limit: int, where: str, host: str
) -> RegistryError:
    """The error for an answer that is larger than `limit` bytes, or encoded as nobody asked for."""
    told = f"the answer of {host} is larger than {limit} bytes"
    if read_whole(headers, (), 0) is None:
        told = (
            f"the answer of {host} comes encoded ({clean(headers['content-encoding'])}), although "
            "it was asked for as it is; check the cache or proxy between"
        )
    return RegistryError(f"{where}: {told}", where=where, status=status)


def reason_in(headers: Mapping[str, str], body: bytes) -> tuple[Sequence[str], str]:
    """The codes in an error answer, and its text for people, clean and bounded.

    Empty where it gives none, and for a page of HTML: there the status says enough.
    """
    if read_whole(headers, (), 0) is None:
        return (), f"a reason encoded as {clean(headers['content-encoding'])}, unasked"
    try:
        document = parse_json(body)
    except (ValueError, RecursionError):
        if not headers.get("content-type", "").lower().startswith("text/plain"):
            return (), ""
        return (), clean(body.decode(errors="replace").strip())
    found = [document]
    if isinstance(document, Mapping):
        found = document.get("errors") or [document.get("error")]
        if not isinstance(found, list) or not any(isinstance(one, Mapping) for one in found):
            found = [document]
    pairs = [(_text(one, "code", "error"), one) for one in found if isinstance(one, Mapping)]
    told = (": ".join(dict.fromkeys((*filter(None, (code, *_words(one))),))) for code, one in pairs)
    return tuple(code for code, _ in pairs if code), clean("; ".join(filter(None, told)))


def _text(entry: Mapping[str, Any], *names: str) -> str:
    """What `entry` has as text under the first of `names` that says something."""
    found = (entry.get(name) for name in names)
    return next((str(one) for one in found if one and isinstance(one, str | int)), "")


def _words(error: Mapping[str, Any]) -> Iterator[str]:
    """What an error says for people: its message, and the reason that `detail` may hold."""
    yield _text(error, "message", "error_description")
    detail = error.get("detail") or error.get("details")
    if isinstance(detail, Mapping) and len(detail) == 1:
        (detail,) = detail.values()
    enclosed = detail.get("Enclosed") if isinstance(detail, Mapping) else None
    number = enclosed.get("Err") if isinstance(enclosed, Mapping) else None
    if type(number) is int and number in errno.errorcode:  # how distribution tells of a full disk
        yield f"{os.strerror(number)}: {json.dumps(detail)}"
    elif detail:
        yield detail if isinstance(detail, str) else json.dumps(detail)


def reworded(
    err: RegistryError, text: str, kind: type[RegistryError] | None = None
) -> RegistryError:
    """The same answer said in other words, as `kind` where that is given.

    What the server says of its reasons goes before the advice in `text`, unless it says no more
    than its status does.
    """
    if err.reason and not _PLAIN.issuperset(err.codes or [""]):
        problem, joint, advice = text.partition("; ")
        text = f"{problem} ({err.reason}){joint}{advice}"
    fields: dict[str, Any] = {"status": err.status, "codes": err.codes, "reason": err.reason}
    return (kind or type(err))(text, where=err.where, **fields)
