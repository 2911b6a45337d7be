"""What the pages speak of, on this machine: registries by their names, disks, and what happens.

`python -m tests.docs.lab` writes into the pages what their commands print now, and the same into
their translations.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from examples.practice import NEXT, NOW
from mirror.serve import BasicAuth, MemoryStorage, User
from mirror.testing import EmbeddedRegistry
from tests.docs import translations
from tests.docs.pages import Reader, alike
from tests.support.loopback import leave_home, stay_on_loopback
from tests.support.one_file import stand_in
from tests.support.program import ROOT
from tests.support.release_source import serve
from tests.support.tls import Authority

PAGES = tuple(
    sorted(
        [
            *(ROOT / "docs/tutorial.md", ROOT / "docs/install.md"),
            *(ROOT / "docs/howto").glob("*.md"),
        ],
        key=lambda one: one.name,
    )
)
"""Pages of which every command is carried out."""
_VENDOR = ("127.0.0.1:5000", "registry.example.com")
_CLOSED = (
    "127.0.0.1:5001",
    "registry.closed.example",
    "master-0:5001",
    "master-1:5001",
    "master-2:5001",
)
_FOLDERS = ("/mnt/disk", "/mnt/second", "/srv/mirror", "/etc/mirror")
_KEY, _PASSWORD = "a-licence-key", "a-password"


@contextlib.contextmanager
def reader(page: str, folder: Path, authority: Authority) -> Iterator[Reader]:
    """Somebody in a folder of their own, with all that a page speaks of."""
    with contextlib.ExitStack() as running:
        running.enter_context(contextlib.chdir(folder))
        names: dict[str, str] = {}
        events: dict[str, Callable[[], object]] = {}
        logins = {}
        for name in (*_VENDOR, *_CLOSED):
            if name not in page:
                continue
            plain = name.startswith("127.0.0.1")
            user = "license-token" if name in _VENDOR else "admin"
            password = _KEY if name in _VENDOR else _PASSWORD
            registry = running.enter_context(
                EmbeddedRegistry(
                    MemoryStorage(),
                    tls=None if plain else authority.issue(name),
                    auth=None if plain else BasicAuth({user: User(password)}),
                )
            )
            names[name] = registry.address
            if name in _VENDOR:
                serve(NOW, registry)
                events["the vendor publishes a release"] = partial(serve, NEXT, registry)
            elif not plain:
                token = b64encode(f"{user}:{password}".encode()).decode()
                logins[registry.address] = {"auth": token}
                events[f"{name} loses its data"] = partial(_lose, registry)
        for name in _FOLDERS:
            here = folder / "root" / name.lstrip("/")
            here.mkdir(parents=True)
            names[name] = str(here)
        (folder / "docker").mkdir()
        (folder / "docker/config.json").write_text(json.dumps({"auths": logins}))
        events["the release was downloaded"] = partial(stand_in, folder)
        events["a bit of the disk flips"] = partial(_flip, Path(names["/mnt/disk"]))
        env = {
            "DOCKER_CONFIG": str(folder / "docker"),
            "SSL_CERT_FILE": str(authority.certificate),
            "D8_MIRROR_LICENSE_TOKEN": _KEY,
            "MIRROR_STATE_DIR": str(folder / "state"),
        }
        yield Reader(folder, names, events, env)


def _lose(registry: EmbeddedRegistry) -> None:
    """As a registry is whose disk was replaced: empty."""
    vars(registry.storage).update(vars(MemoryStorage()))


def _flip(disk: Path) -> None:
    """As a disk does it: silently, in the middle of the largest archive."""
    path = max(disk.rglob("*.tar"), key=lambda one: one.stat().st_size)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def main() -> None:
    """Write into the pages, or those that are named, what their commands print."""
    named = {Path(name).resolve() for name in sys.argv[1:]}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        leave_home(patch, Path(name))
        stay_on_loopback(patch)
        authority = Authority.create(Path(name) / "authority")
        for path in PAGES:
            if named and path not in named:
                continue
            folder = Path(name) / path.stem
            folder.mkdir()
            page = path.read_text("utf-8")
            with reader(page, folder, authority) as somebody:
                printed = somebody.read(page)
            if alike(printed) != alike(page):  # else only times and digests differ
                path.write_text(printed, "utf-8")
            translations.copy_blocks(path)


if __name__ == "__main__":
    main()
