"""What a person writes down of a cluster: where its registry is, and in which state the cluster is.

Messages never quote a file, as it may hold passwords. A path inside a file is relative to the file.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from mirror.documents import mistake
from mirror.errors import InputError
from mirror.modes import rules
from mirror.modes.constants import PUSH_NAME, UNKNOWN_VERSION
from mirror.modes.facts import ClusterFacts, ContainerdConfig, Node, Store
from mirror.modes.module_config import read_documents
from mirror.modes.settings import RegistrySettings
from mirror.modes.sites import Account, Sites, User

_NAME = "%s"


class _Written(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, hide_input_in_errors=True
    )


class SitesFile(_Written):
    """Where a cluster's registry replicas are, as `--sites` reads it."""

    masters: tuple[str, ...] = ()
    """Addresses (InternalIP), without a port."""
    ca: str | None = None
    """The module's own authority, in PEM."""
    ca_file: Path | None = None
    public_host: str | None = None
    """The push address, `registry.<PUBLIC_DOMAIN>`."""
    public_domain_template: str | None = None
    """The cluster's template for names, such as `%s.apps.example.com`, in place of that."""
    public_ca: str | None = None
    """Who vouches for the push address besides the system's roots."""
    public_ca_file: Path | None = None
    users: Mapping[User, SecretStr] = {}
    """The passwords of the registry's users: ro, rw, mirror-puller, mirror-pusher."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for one, other, names in (
            (self.ca, self.ca_file, "ca and caFile"),
            (self.public_ca, self.public_ca_file, "publicCa and publicCaFile"),
            (self.public_host, self.public_domain_template, "publicHost and publicDomainTemplate"),
        ):
            if one is not None and other is not None:
                raise ValueError(f"{names} exclude each other; keep one")
        for number, master in enumerate(self.masters):
            if not _is_address(master):
                raise ValueError(
                    f"masters.{number}: expected an address or a name without scheme, port and "
                    "path, as in 10.0.0.1"
                )
            if master in self.masters[:number]:
                raise ValueError(f"masters.{number}: it is there twice; give each master once")
        template = self.public_domain_template
        if template is not None and template.count(_NAME) != 1:
            raise ValueError(f"publicDomainTemplate must have {_NAME} in it, once")
        for key, pem in (("ca", self.ca), ("publicCa", self.public_ca)):
            problem = rules.certificates(pem) if pem is not None else None
            if problem is not None:
                raise ValueError(f"{key}: {problem}")
        return self

    def sites(self, folder: Path) -> Sites:
        """The same, with the files read that it names."""
        host = self.public_host
        if self.public_domain_template is not None:
            host = self.public_domain_template.replace(_NAME, PUSH_NAME)
        return Sites(
            masters=self.masters,
            ca=self.ca if self.ca_file is None else _authority(folder / self.ca_file),
            public_host=host,
            public_ca=(
                self.public_ca
                if self.public_ca_file is None
                else _authority(folder / self.public_ca_file)
            ),
            accounts={user: Account(user.value, word) for user, word in self.users.items()},
        )


def _is_address(text: str) -> bool:
    """Whether it is an IP address, with or without brackets, or a host's name."""
    try:
        ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return re.fullmatch(r"[0-9A-Za-z]([0-9A-Za-z.-]*[0-9A-Za-z])?", text) is not None
    return True


class NodeFile(_Written):
    """One node, as `--facts` reads it."""

    name: str
    master: bool = False
    ready: bool | None = None
    schedulable: bool | None = None
    cri: str | None = None
    containerd_config: ContainerdConfig | None = None
    version: str = UNKNOWN_VERSION


class FactsFile(_Written):
    """In which state a cluster is before a switch, as `--facts` reads it. What is left out is
    not known, and a plan then says what is to be looked at."""

    bootstrapped: bool | None = None
    managed_by_dkp: bool | None = None
    static: bool | None = None
    queue_empty: bool | None = None
    node_config_managed: bool | None = None
    saved_parameters: bool | None = None
    images_present: bool | None = None
    nodes: tuple[NodeFile, ...] | None = None
    stores: frozenset[Store] | None = None
    aborted: Mapping[str, Any] | None = None
    """The registry section to which a switch was under way that was not completed."""

    def facts(self) -> ClusterFacts:
        """The same as values."""
        return ClusterFacts(
            bootstrapped=self.bootstrapped,
            managed_by_dkp=self.managed_by_dkp,
            static=self.static,
            queue_empty=self.queue_empty,
            node_config_managed=self.node_config_managed,
            saved_parameters=self.saved_parameters,
            images_present=self.images_present,
            nodes=None if self.nodes is None else tuple(Node(**dict(node)) for node in self.nodes),
            stores=self.stores,
            aborted=None if self.aborted is None else RegistrySettings.load(self.aborted),
        )


def load_sites(path: Path) -> Sites:
    """Read a file with the keys of `SitesFile`.

    Raises:
        InputError: it, or a file that it names, cannot be read or is not what it must be.
    """
    return _parsed(SitesFile, path).sites(path.parent)


def load_facts(path: Path) -> ClusterFacts:
    """Read a file with the keys of `FactsFile`.

    Raises:
        InputError: it cannot be read or is not what it must be.
    """
    return _parsed(FactsFile, path).facts()


def read_document(path: Path) -> Mapping[str, Any]:
    """The one mapping that a YAML or JSON file holds; an empty one if the file is empty.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    documents = read_documents(_read(path), str(path))
    if len(documents) > 1:
        raise InputError(f"{path}: it holds {len(documents)} documents; keep one")
    return documents[0] if documents else {}


_File = TypeVar("_File", bound=_Written)


def _parsed(kind: type[_File], path: Path) -> _File:
    document = read_document(path)
    try:
        return kind.model_validate(document)
    except ValidationError as err:
        known = ", ".join(field.alias or name for name, field in kind.model_fields.items())
        lines = [
            f"  {'.'.join(map(str, one['loc'])) or 'the document'}: {mistake(one)}"
            for one in err.errors(include_url=False, include_input=False)
        ]
        # Not `from err`, whose text may quote the document.
        raise InputError("\n".join([f"{path} has mistakes:", *lines, f"  keys: {known}"])) from None


def _authority(path: Path) -> str:
    text = _read(path).decode("utf-8", errors="replace")
    problem = rules.certificates(text)
    if problem is not None:
        raise InputError(f"{path}: {problem}")
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
