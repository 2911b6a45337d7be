"""Where things are made to go wrong, and what is told then."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import mirror.commands.access
from mirror.errors import MirrorError
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, RegistryClient, RetryPolicy
from mirror.serve import MemoryStorage
from mirror.sync import Inventory, MemoryStore, make_plan, transfer
from mirror.sync.tree import RegistryTarget, RegistryTree
from mirror.testing import EmbeddedRegistry, Fault
from tests.support.program import Finished, call_mirror
from tests.support.release_source import TINY, Source, serve
from tests.support.tls import Authority

_TREE = replace(TINY, components=6)
ONCE = RetryPolicy(attempts=1, patience_s=0.0)
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{19}…")


@dataclass(frozen=True)
class Told:
    """A failure as its reader gets it: the class of the error, the exit code, the text."""

    kind: str
    code: int
    text: str


class Lab:
    """Belongs to one situation; `shared` is what all of them only read."""

    def __init__(self, folder: Path, shared: Shared, running: ExitStack) -> None:
        self.folder, self._shared, self._running = folder, shared, running
        self._names = {str(folder): "/srv", **shared.names}

    @property
    def source(self) -> Source:
        """The release tree that is pulled from; only read it."""
        return self._shared.source

    @property
    def authority(self) -> Authority:
        """A certificate authority that nobody trusts."""
        return Authority.create(self.folder / "authority")

    @property
    def sealed(self) -> Path:
        """A bundle of the source; only read it."""
        return self._shared.bundle

    def bundle(self) -> Path:
        """A copy of the bundle, to be spoilt."""
        return Path(shutil.copytree(self.sealed, self.folder / "bundle"))

    def registry(self, *faults: Fault, name: str = "registry.example.com", **options: Any) -> str:
        """Start an empty registry in which `faults` happen; answers `host:port/dkp`."""
        registry = self._running.enter_context(EmbeddedRegistry(MemoryStorage(), **options))
        for fault in faults:
            registry.faults.add(fault)
        self.called(registry.address, name)
        return f"{registry.address}/dkp"

    def own_source(self) -> Source:
        """A source to be spoilt."""
        registry = self._running.enter_context(EmbeddedRegistry(MemoryStorage()))
        self.called(registry.address, "registry.deckhouse.example")
        return serve(_TREE, registry)

    def client(self, address: str, **options: Any) -> RegistryClient:
        """A client of a registry that does not wait."""
        options = {"plain_http": True, "retries": ONCE, **options}
        host = address.partition("/")[0]
        client = RegistryClient(host, options=ConnectionOptions(**options))
        return self._running.enter_context(client)

    def tree(self, address: str) -> RegistryTree:
        """A registry's release tree, for the library."""
        host, _, path = address.partition("/")
        return RegistryTree(self.client(address), Repository(host, path))

    def write(self, name: str, content: str | bytes | Mapping[str, Any]) -> Path:
        """A file; a mapping is written as YAML."""
        path = self.folder / name
        if isinstance(content, Mapping):
            content = json.dumps(content)  # which is YAML
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def called(self, address: str, name: str) -> None:
        """Let the page show `name` for an address of this machine."""
        self._names[address] = name

    def mirror(self, *args: str | Path, stdin: str = "", **env: str) -> Told:
        """Run a command that fails; it tries nothing twice."""
        done = self._call(*args, stdin=stdin, env=env)
        error = json.loads(done.stdout)["error"]
        assert error["exitCode"] == done.code
        return Told(error["type"], done.code, self._clean(error["message"]))

    def succeeds(self, *args: str | Path) -> Finished:
        """Run a command that has to be done before."""
        return call_mirror(*args, "--json").succeeded()

    def failure(self, *args: str | Path) -> Told:
        """Run a command that does all that it can; tell the first of its failures."""
        done = self._call(*args)
        [first, *_] = _failures(done.document)
        return Told(first["type"], done.code, self._clean(first["message"]))

    def copy(self, store: MemoryStore, target: RegistryTarget) -> None:
        """Bring everything in a store to a registry."""
        transfer(make_plan(store.inventory(), Inventory()), store, target)

    def raised(self, action: Callable[[], object]) -> Told:
        """Call something of the library that fails."""
        try:
            action()
        except MirrorError as error:
            return Told(type(error).__name__, error.exit_code, self._clean(str(error)))
        raise AssertionError("nothing failed")

    def _call(self, *args: str | Path, **more: Any) -> Finished:
        with mock.patch.object(mirror.commands.access, "patience", return_value=ONCE):
            done = call_mirror(*args, "--json", **more)
        assert done.code, done
        return done

    def _clean(self, text: str) -> str:
        """The same text with names in place of addresses, paths and digests of this run."""
        for known in sorted(self._names, key=len, reverse=True):
            text = text.replace(known, self._names[known])
        made_up: dict[str, str] = {}

        def name(found: re.Match[str]) -> str:
            number = str(len(made_up)).encode()
            return made_up.setdefault(found[0], hashlib.sha256(number).hexdigest()[:12] + "…")

        return _DIGEST.sub(name, text)


def _failures(document: Any) -> list[Any]:
    """All failures of a report, wherever in it they stand."""
    if isinstance(document, list):
        return [found for one in document for found in _failures(one)]
    if not isinstance(document, dict):
        return []
    own = document.get("failures", [])
    return [*own, *_failures([value for key, value in document.items() if key != "failures"])]


def public_key() -> bytes:
    """A new one, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class Shared:
    """The source and the bundle of all situations, while the block lasts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()

    def __enter__(self) -> Shared:
        registry = self._running.enter_context(EmbeddedRegistry(MemoryStorage()))
        self.source = serve(_TREE, registry)
        self.bundle = self._folder / "bundle"
        self.names = {registry.address: "registry.deckhouse.example", str(self._folder): "/srv"}
        source = ("--source", self.source.root, "--insecure")
        call_mirror("pull", self.bundle, *source).succeeded()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
