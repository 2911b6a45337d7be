"""Places that a command line names: paths of this machine, and addresses of bundles."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.errors import InputError, RegistryError, printable

if TYPE_CHECKING:
    from mirror.bundle.bucket import Bucket
    from mirror.bundle.location import Location
    from mirror.commands.options import Work
    from mirror.registry import ConnectionOptions

_MEANT = re.compile(r"(s3|https?):/+", re.IGNORECASE)
"""How an address begins, perhaps mistyped. `s3:5000/dkp` is a registry's, and has no slash here."""


def is_address(text: object) -> bool:
    """Whether an argument is an address, and not a path of this machine.

    Raises:
        InputError: it is neither, but looks like an address that was mistyped.
    """
    if not isinstance(text, str):
        return False
    meant = _MEANT.match(text)
    right = f"{meant[1].lower()}://" if meant else ""
    if meant and meant[0] != right:
        given, better = _shown(text), _shown(f"{right}{text[meant.end() :]}")
        raise InputError(
            f"{given} is not an address; did you mean {better}? A folder of that name is ./{given}"
        )
    return "://" in text


def _shown(address: str) -> str:
    """An address for a message, without the login that it may have."""
    return printable(re.sub("//.*@", "//", address))


class PathHere(click.Path):
    """A path of this machine. An address is refused: as a `Path` it would be a folder's here.

    `instead`: what to do, for the message.
    """

    def __init__(
        self, *, instead: str = "an address cannot be used here, name a path", **kind: Any
    ) -> None:
        super().__init__(path_type=Path, **kind)
        self._instead = instead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_address(value):
            option = f"{param.opts[-1]} " if isinstance(param, click.Option) else ""
            raise InputError(f"{option}{_shown(value)}: {self._instead}")
        return super().convert(value, param, ctx)


class _BundleType(click.Path):
    """A path of this machine, or an address, as text, of which a `Path` would make another."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if is_address(value) else super().convert(value, param, ctx)


class _ResultFile(PathHere):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file = Path(str(super().convert(value, param, ctx)))
        if value == STANDARD_OUTPUT and self.allow_dash:
            return file
        above, dev = file.absolute().parent, Path("/dev")  # as root we would replace devices
        if not above.is_dir() or above == dev or (file.exists() and not file.is_file()):
            raise InputError(f"{file} is not a file in a folder that exists; name another one")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{above}: nothing can be written in this folder; name another one")
        return file


FILE = PathHere(exists=True, dir_okay=False)
"""A file that is there."""
BUNDLE = _BundleType(path_type=Path)
"""A bundle's folder, here (`Path`) or at an address (`str`)."""
BUNDLE_HERE = _BundleType(path_type=Path, exists=True)
"""The same; what is here must be there."""
STANDARD_OUTPUT = "-"
_RESULT = "a result goes into a file of this machine; name one"
RESULT_FILE = _ResultFile(instead=_RESULT)
"""A file that a result is written to. That it can be is seen before the work, which takes time."""
RESULT_FILE_OR_DASH = _ResultFile(instead=_RESULT, allow_dash=True)


def located(bundle: Path | str, connection: ConnectionOptions, work: Work) -> Location:
    """A bundle's folder here, or at an address, where it is read in place."""
    if isinstance(bundle, Path):
        return bundle
    if bundle.startswith("s3://"):
        from mirror.bundle.location import RemotePath

        return work.enter_context(RemotePath(bucket_at(bundle, connection), work.run))
    from mirror.bundle.static_server import remote_folder

    return work.enter_context(remote_folder(bundle, options=connection, run=work.run))


def bucket_at(address: str, connection: ConnectionOptions) -> Bucket:
    """A bundle's place in a bucket, `s3://bucket/prefix`."""
    from mirror.bundle.bucket import Bucket, BucketAddress

    return Bucket(BucketAddress.parse(address), options=connection)


def bundle_at(text: str, connection: ConnectionOptions, work: Work) -> Location | None:
    """A path that is here, or the bundle at an address; None: `text` may name a registry."""
    if not is_address(text):
        return Path(text) if Path(text).exists() else None
    place = located(text, connection, work)
    if text.startswith("https://"):  # as registries may be written, too
        try:
            next(iter(place.iterdir()))
        except (InputError, RegistryError):
            return None
    return place
