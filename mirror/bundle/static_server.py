"""A bundle that lies on a web server, which serves files and ranges of them and lists nothing.

`SHA256SUMS` tells which files there are, or else the seal does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace
from urllib.parse import quote, urlsplit

from mirror.bundle import sums
from mirror.bundle.format import LARGE, MAX_SUMS_BYTES, SEAL, SIGNATURE, SUMS, ZSTD_SUFFIX
from mirror.bundle.location import RemotePath, is_name
from mirror.bundle.seal import parse_seal
from mirror.errors import DamagedBundleError, DeniedError, InputError, InvalidReferenceError
from mirror.registry.answers import reworded
from mirror.registry.downloads import FileState, file_range, file_state
from mirror.registry.hosts import Origin
from mirror.registry.options import ConnectionOptions
from mirror.registry.transport import Transport, Wire
from mirror.run import Run, gather


class StaticServer:
    """The files below an address (`https://host[:port]/path`), as `location.Objects`.

    Nobody's login goes there, neither a stored one nor a client certificate.

    Raises:
        InputError: the address cannot be used, or asks for plain HTTP and the options do not.
    """

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        shown = url.rpartition("@")[2]
        try:
            parts, origin = urlsplit(url), Origin.of(url)
        except ValueError as err:
            raise InputError(f"{shown!r} is not an address of a bundle: {err}") from err
        if "@" in parts.netloc:
            raise InputError(
                f"an address with a user or password is not taken ({shown}): it would show in "
                "logs, and mirror sends no login to a server of files"
            )
        if origin.scheme not in ("http", "https"):
            raise InputError(f"{shown!r} is not an address of a bundle: write https://host/path")
        if parts.query or parts.fragment:
            raise InputError(f"{shown!r} has a query; name the folder of the bundle alone")
        plain = origin.scheme == "http"
        if plain and not options.plain_http:
            raise InputError(f"{shown} is plain HTTP; use https, or add --insecure")
        options = replace(options, plain_http=plain, certificate=None)
        try:
            self._wire = Wire(parts.netloc.lower(), options=options, credentials=None)
        except InvalidReferenceError as err:
            raise InputError(f"{url!r} is not an address of a bundle: {err}") from err
        self.where = f"{origin.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        self._base = f"{self._wire.base}{quote(parts.path, safe='/%').rstrip('/')}/"

    def close(self) -> None:
        self._wire.close()

    def states(self, run: Run) -> Mapping[str, FileState]:
        """Ask for every file that `SHA256SUMS` names, or else for those of the seal."""
        run = Run.of(run)
        found = self._ask((SUMS, SEAL, SIGNATURE), run)
        names = self._named(found, run)
        if not names:
            raise InputError(
                f"{self.where} holds no {SEAL} and no {SUMS} that can be read: a web server lists "
                "no files, so that they alone tell what a bundle there consists of; check the "
                "address, or copy the bundle into a folder"
            )
        return {**found, **self._ask(sorted(names - found.keys()), run)}

    def chunks(
        self, name: str, state: FileState, offset: int, size: int, run: Run
    ) -> Generator[bytes, None, None]:
        transport = Transport(self._wire, run)
        try:
            yield from file_range(transport, self._address(name), offset, size, state)
        except DeniedError as err:
            raise self._denied(err) from err

    def _ask(self, names: Iterable[str], run: Run) -> dict[str, FileState]:
        transport, names = Transport(self._wire, run), tuple(names)

        def ask(name: str) -> FileState | None:
            try:
                return file_state(transport, self._address(name))
            except DeniedError as err:
                if name == SIGNATURE and err.status == 403:
                    return None  # what some storages say of a file that is not there
                raise self._denied(err) from err

        answers = gather(names, ask, run=run)
        return {name: state for name, state in zip(names, answers, strict=True) if state}

    def _named(self, found: Mapping[str, FileState], run: Run) -> set[str]:
        """The files that must be there, as far as anything tells."""

        def read(name: str, most: int) -> bytes:
            size = min(found[name].size, most + 1) if name in found else 0
            return b"".join(self.chunks(name, found[name], 0, size, run)) if size else b""

        try:
            names = set(sums.parse_whole(read(SUMS, MAX_SUMS_BYTES)))
        except DamagedBundleError:  # a verification says so
            names = set()
        if SEAL not in names:
            try:
                seal = parse_seal(read(SEAL, LARGE.seal_bytes), SEAL)
                names |= {one + end for one in seal.archives for end in ("", ZSTD_SUFFIX)}
                names |= seal.files.keys()
            except DamagedBundleError:
                pass
        return set(filter(is_name, names))

    def _address(self, name: str) -> str:
        return self._base + quote(name)

    def _denied(self, err: DeniedError) -> DeniedError:
        told = f"{err.where}: {self._wire.host} denies this (HTTP {err.status}); mirror sends no "
        told += "login to a server of files: let everybody read the bundle there, or copy it"
        denied = reworded(err, told)
        assert isinstance(denied, DeniedError)
        return denied


def remote_folder(
    url: str, *, options: ConnectionOptions | None = None, run: Run | None = None
) -> RemotePath:
    """Give the bundle's folder at `url` (`https://host/path`), to be read in place.

    It is for `BundleReader`, and a context manager. Nothing is asked for yet. `options` say whom to
    trust; `run` is what all waiting listens to.

    Raises:
        InputError: the address cannot be used.
    """
    return RemotePath(StaticServer(url, options or ConnectionOptions()), run)
