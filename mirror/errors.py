"""One tree of errors: each says what happened, where, and what to do next.

Every failure that the library raises on purpose is a `MirrorError`; anything else is a bug, or a
`ValueError` for a caller's mistake. `exit_code` is what the command line ends with (`EXIT_CODES`).
This module is the ground floor: every room may import it and it imports none of them.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mirror.oci import Digest

Failure = TypeVar("Failure", bound=BaseException)

EXIT_CODES = {
    0: "done",
    1: "failed",
    2: "usage",
    3: "replicas differ",
    4: "corrupt",
    5: "unreachable",
    6: "denied",
    130: "interrupted",
}
"""The whole table of exit codes; `docs/` and the tests are checked against it."""


_NOT_PLAIN = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """Foreign `text` for people, on one line: what does not print is an escape (`\\x1b`).

    Names and answers come from registries, bundles and settings of others. What is not printable
    in them could move a terminal's cursor, turn the direction of a line, or forge a line of our
    own: control and format characters, separators other than the space, halves of surrogate pairs
    (bytes of a path that are not text), and what Unicode has not assigned. Every place that renders
    text for people cleans it with this; JSON keeps the true values, escaped.
    """
    return text if text.isprintable() else _NOT_PLAIN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else ascii(found[0])[1:-1]


def paragraph(text: str, indent: str = "  ") -> str:
    """A message for people: each line `printable`, and none but the first without `indent`.

    So nothing in a message looks like the beginning of another one.
    """
    first, *others = text.split("\n")
    further = (line if line.startswith(indent) else indent + line for line in others)
    return "\n".join(map(printable, (first, *further)))


def counted(count: int, noun: str) -> str:
    """A number of things: `1 archive`, `2 repositories`."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{count} {noun}s"


def counts(**numbers: int) -> str:
    """Numbers of things, by their names: `1 blob, 2 tags`."""
    return ", ".join(counted(number, noun) for noun, number in numbers.items())


class MirrorError(Exception):
    """Every failure raised on purpose; anything else is a bug.

    The text is `where: problem; advice`, each part that is known: the place (a file, a request, a
    repository), what happened there, and what to do next. All three are attributes, so that nobody
    has to cut a text apart.
    """

    exit_code: int = 1

    def __init__(self, problem: str = "", *, where: str = "", advice: str = "") -> None:
        self.where, self.problem, self.advice = where, problem, advice
        super().__init__(f"{where}: {self.explanation}" if where else self.explanation)

    @property
    def explanation(self) -> str:
        """The text without the place: for whoever has named that already."""
        return f"{self.problem}; {self.advice}" if self.advice else self.problem

    def relocate(self, where: str) -> None:
        """Name another place: a caller that passes it on may know better where it happened."""
        self.where = where
        self.args = (f"{where}: {self.explanation}",)

    def seen_from(self, place: str) -> str:
        """The text for a list about `place`, which it does not name again."""
        return self.explanation if self.where == place else str(self)


class InputError(MirrorError):
    """What the user asked for cannot be understood or contradicts itself."""

    exit_code = 2


class InvalidDigestError(InputError):
    """Some text is not a digest as the image specification spells it."""


class InvalidReferenceError(InputError):
    """Some text is not a reference to a repository, tag or digest."""


class InvalidCertificateError(InputError):
    """Some text is not a valid certificate or key."""


class RenderingError(InputError):
    """A node's configuration cannot be written: a value is unsafe, or the flavour cannot do it."""


class ForbiddenByModeError(InputError):
    """The mode of the cluster's registry does not allow this here; the message says where it does.

    `mode` and `plane` are the names of `mirror.modes.Mode` and `Plane`.
    """

    def __init__(self, message: str, *, mode: str, plane: str) -> None:
        super().__init__(message)
        self.mode, self.plane = mode, plane


class InvalidManifestError(MirrorError):
    """Some bytes are not a valid manifest, or are one of a kind that this tool does not carry."""


class UnreadableImageError(MirrorError):
    """An image's layers cannot be read: damaged, of an unknown kind, or beyond the set limits."""


class SourceContentError(MirrorError):
    """The source's release tree lacks information that it must have (where, and what is wrong)."""

    @classmethod
    def of_all(cls, texts: Collection[str]) -> SourceContentError:
        """One error for images that the source lacks; it names the first 20."""
        if len(texts) == 1:
            return cls(*texts)
        more = f"\n  and {len(texts) - 20} more" if len(texts) > 20 else ""
        lines = "".join(f"\n  {text}" for text in list(texts)[:20])
        return cls(f"the source lacks {len(texts)} images:{lines}{more}")


class BundleLimitError(MirrorError):
    """A bundle would exceed a limit that its readers have (which, and by how much)."""


class NotFoundError(MirrorError):
    """A registry or bundle does not have what was requested."""


class ConflictError(MirrorError):
    """Somebody else changed the same registry meanwhile; their changes were not overwritten."""


class DowngradeError(MirrorError):
    """The registry has something newer, and replacing it by something older was not allowed."""


class PruneRefusedError(MirrorError):
    """Nothing was deleted, because it is uncertain what must be kept (what, and why)."""


class GostUnavailableError(MirrorError):
    """This machine's OpenSSL has no GOST R 34.11-2012; the message says what to install."""


class FileSystemError(MirrorError):
    """The operating system refused to read or write a file of ours."""


class NoSpaceError(FileSystemError):
    """The disk has no room: for what the plan would write, before a blob moves, or for a file."""


class ResourceError(MirrorError):
    """The operating system gives this process no more files, threads or memory (which limit)."""


_SHORTAGES = {
    "files": ("too many open files", "ulimit -n, LimitNOFILE of a service"),
    "threads": ("no more threads can be started", "ulimit -u, ulimit -v, a container's pids"),
    "memory": ("there is no more memory", "ulimit -v, a container's memory"),
}
_SCARCE = {errno.EMFILE: "files", errno.ENFILE: "files", errno.ENOMEM: "memory"}


def same(err: Failure) -> Failure:
    """An error of its own with the same content, for another thread to raise.

    Raising changes an error's traceback.
    """
    from copy import copy  # few need it

    is_foreign = isinstance(err, OSError | UnicodeError)  # whose content is not in `args` alone
    twin = copy(err) if is_foreign else type(err).__new__(type(err), *err.args)
    twin.__dict__.update(err.__dict__)
    twin.__cause__ = err.__cause__
    return twin


def shortage(err: BaseException) -> ResourceError | None:
    """What `err` says that this process lacks, as the error to raise; None if it says no such."""
    kind = _SCARCE.get(err.errno or 0) if isinstance(err, OSError) else None
    if isinstance(err, MemoryError):
        kind = "memory"
    elif isinstance(err, RuntimeError) and "start new thread" in str(err):
        kind = "threads"
    if kind is None:
        return None
    problem, limit = _SHORTAGES[kind]
    return ResourceError(
        f"{problem}: the limit of this process is reached",
        advice=f"raise it ({limit}), or work with fewer --jobs; nothing is lost, run it again",
    )


class CancelledError(MirrorError):
    """The work was stopped on request, at a point from which it can be taken up again."""

    exit_code = 130


class DeadlineError(CancelledError):
    """The deadline passed before the work was done; run it again with more time."""

    exit_code = 5


def common_exit_code(errors: Iterable[MirrorError]) -> int:
    """The exit code that all errors share; 1 where they differ, 0 where there are none."""
    codes = {error.exit_code for error in errors} or {0}
    return codes.pop() if len(codes) == 1 else MirrorError.exit_code


class IncompleteError(MirrorError):
    """Some items could not be done; `failures` names each with its reason.

    The text has one line for all that failed for one reason, `MOST_LINES` lines in all.
    """

    MOST_LINES = 20

    def __init__(self, message: str, failures: Sequence[tuple[str, MirrorError]]) -> None:
        super().__init__("\n".join([message, *self._lines(failures)]))
        self.failures = tuple(failures)
        self.exit_code = common_exit_code(error for _, error in failures) or MirrorError.exit_code

    @classmethod
    def _lines(cls, failures: Sequence[tuple[str, MirrorError]]) -> list[str]:
        alike: dict[tuple[type[MirrorError], str], list[tuple[str, MirrorError]]] = {}
        for item, error in failures:
            alike.setdefault((type(error), _reason(error)), []).append((item, error))
        groups = sorted(alike.values(), key=len, reverse=True)
        shown = groups if len(groups) <= cls.MOST_LINES else groups[: cls.MOST_LINES - 1]
        lines = []
        for group in shown:
            item, error = group[0]
            others = f" and {len(group) - 1} more for the same reason" if len(group) > 1 else ""
            lines.append(f"  {item}{others}: {error}")
        if rest := sum(map(len, groups[len(shown) :])):
            lines.append(f"  and {rest} more")
        return lines


_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{64,}")


def _reason(error: MirrorError) -> str:
    """What an error says apart from the item it is about."""
    return _DIGEST.sub("", str(error).removeprefix(f"{getattr(error, 'where', '')}: "))


class MissingBaseError(MirrorError):
    """A delta relies on content that is not there; nothing was written.

    `lacking` says each missing piece in one line; the text has the first `MOST_LINES`.
    """

    MOST_LINES = 20

    def __init__(self, message: str, lacking: Sequence[str]) -> None:
        lines = [f"  {one}" for one in lacking[: self.MOST_LINES]]
        if len(lacking) > self.MOST_LINES:
            lines.append(f"  and {len(lacking) - self.MOST_LINES} more")
        super().__init__("\n".join([message, *lines]))
        self.lacking = tuple(lacking)


# -- integrity ---------------------------------------------------------------------------------


class IntegrityError(MirrorError):
    """Bytes are not what their name promises. Never cured by a retry of the same copy."""

    exit_code = 4


_TAKE_AGAIN = "this copy is damaged, take it again from its origin"


class DigestMismatchError(IntegrityError):
    """Content hashes to another digest than the one it goes by; if `told`, a registry says so."""

    def __init__(self, *, where: str, expected: Digest, actual: Digest, told: bool = False) -> None:
        got = "the registry says that it took" if told else "got"
        advice = "look at the registry, or at what answers in its place" if told else _TAKE_AGAIN
        super().__init__(f"expected {expected}, {got} {actual}", where=where, advice=advice)
        self.expected, self.actual, self.told = expected, actual, told


class SizeMismatchError(IntegrityError):
    """Content is longer or shorter than its descriptor says (sizes in bytes)."""

    def __init__(self, *, where: str, expected: int, actual: int) -> None:
        problem = f"expected {expected} bytes, got {actual}"
        super().__init__(problem, where=where, advice=_TAKE_AGAIN)
        self.expected, self.actual = expected, actual


class ChangedLeftoversError(IntegrityError):
    """What an interrupted run had written has changed since; the next run fetches it again."""


class SignatureError(IntegrityError):
    """A bundle lacks a valid signature by the required key."""


class DamagedBundleError(IntegrityError):
    """A bundle's structure cannot be read (which archive, what was found there)."""


class StatementError(IntegrityError):
    """What a registry publishes as its inventory cannot be read, or cannot be trusted."""


class UntrustedStatementError(StatementError):
    """No trusted key signed what a registry publishes as its inventory."""


class DamagedReplicaError(IntegrityError):
    """A registry keeps serving damaged content (what, and which file to remove)."""


class NoSoundCopyError(IntegrityError):
    """No place that was asked has some content whole.

    `failures` has each place with its reason. One that did not answer, or denied access, decides
    the exit code, and so do refusals where nobody answered anything else: the content may be sound
    there.
    """

    def __init__(self, message: str, failures: Sequence[tuple[str, MirrorError]]) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        codes = {error.exit_code for _, error in failures}
        for kind in (UnreachableError, DeniedError):
            if kind.exit_code in codes:
                self.exit_code = kind.exit_code
                return
        if all(type(error) is RegistryError for _, error in failures):
            self.exit_code = RegistryError.exit_code


# -- registries --------------------------------------------------------------------------------


class RegistryError(MirrorError):
    """A registry answered with an error.

    `where` is the request as `METHOD host/path`, `status` the HTTP status, `codes` the error codes
    of the answer's body (distribution-spec, "Error Codes"), such as `MANIFEST_BLOB_UNKNOWN`, and
    `reason` what the body says for people, clean and bounded.
    `may_pass` says that it was the weather and no answer: the same request can succeed later;
    `of_all`, that nobody should ask this registry on.
    """

    may_pass = of_all = False

    def __init__(
        self,
        message: str,
        *,
        where: str,
        status: int | None = None,
        codes: Sequence[str] = (),
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.where, self.status, self.codes, self.reason = where, status, tuple(codes), reason


class RegistryNotFoundError(RegistryError, NotFoundError):
    """404: the registry has no such manifest, blob or repository."""


class DeniedError(RegistryError):
    """401 or 403: the credentials are missing, wrong, or do not allow this."""

    exit_code = 6


class UnreachableError(RegistryError):
    """No usable answer: name, connection, TLS, time-out, or a server that keeps failing."""

    exit_code = 5


class StalledError(UnreachableError):
    """A transfer moved too few bytes for too long."""


# -- the registry module's modes ---------------------------------------------------------------


class InvalidSettingsError(InputError):
    """Registry settings break rules; `findings` has each as (path of the field, what is wrong)."""

    def __init__(self, findings: Sequence[tuple[str, str]], where: str = "") -> None:
        at = f"{where}: " if where else ""
        super().__init__(
            f"{at}the registry settings have {counted(len(findings), 'mistake')}:"
            + "".join(f"\n  {path}: {message}" for path, message in findings)
        )
        self.findings = tuple(findings)


class RouteError(InputError):
    """An image cannot be reached in this mode and with these settings, or must not be."""


class InvalidStateError(InputError):
    """The document `registry-state` is not what it must be (which key, what was expected)."""


class RequiredImagesError(InputError):
    """It cannot be said which images a cluster needs (which document, and what it lacks)."""
