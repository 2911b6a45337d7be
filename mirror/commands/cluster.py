"""The registries of a cluster, as `--module-config` and `--sites` describe it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from mirror.commands.access import AccessOptions, TreeAccess, credentials_for
from mirror.errors import InputError, UnreachableError
from mirror.layout import normalised_suffix
from mirror.modes.addressing import (
    ClusterRepository,
    RepositoryNames,
    Route,
    check_write,
    routes_for,
)
from mirror.modes.constants import LOGICAL_HOST, LOGICAL_PATH, RegistryUser
from mirror.modes.endpoints import Endpoint, replica_endpoints
from mirror.modes.routes import Plane, Role
from mirror.modes.settings import NO_ACCESS, Account, ClusterAccess, RegistrySettings
from mirror.nodeconfig.cluster import load_access
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's settings, and its places as far as they are known."""

    settings: RegistrySettings
    access: ClusterAccess

    @classmethod
    def load(cls, module_config: Path, sites_file: Path | None) -> Cluster:
        """Read the files that a command line names."""
        settings = RegistrySettings.load(module_config)
        return cls(settings, NO_ACCESS if sites_file is None else load_access(sites_file))

    def reach(self, registry: str | None, asked: AccessOptions, *, writes: bool) -> TreeAccess:
        """The registry into which images are brought, or from which they are read.

        `registry` is its logical address, its real one, or None for the root. The login is the one
        that the command line gives, else the one in the files, else the one that docker or oras
        stored. If there are several replicas and no common push address, the first replica that
        answers is used.
        """
        names = RepositoryNames(self.settings, self.access)
        place = names.read(registry or "")
        if writes:
            check_write(
                self.settings, Plane.OPERATOR, self.access, external=place.external, action="push"
            )
        routes, given = self._routes(names, place, writes, asked)
        options = _connection(asked)
        route = _first_that_answers(routes, given, options) if len(routes) > 1 else routes[0]
        endpoint = Endpoint.of(route, given)
        credentials = endpoint.credentials
        if credentials is None:
            credentials = credentials_for(f"{route.host}/{route.repository}")
        root = Repository(route.host, route.repository)
        return TreeAccess(root, _suffix(asked), endpoint.connection(options), credentials)

    def replicas(self, asked: AccessOptions) -> dict[str, TreeAccess]:
        """The replicas of a cluster in Local mode by name, one for each master.

        The login is the one that is given, or that of `mirror-pusher`, or of `rw`.
        """
        options = _connection(asked)
        given = asked.given_credentials(f"the replicas of {LOGICAL_HOST}")
        return {
            str(root): TreeAccess(
                root, _suffix(asked), endpoint.connection(options), endpoint.credentials
            )
            for root, endpoint in replica_endpoints(self.settings, self.access, given)
        }

    def _routes(
        self, names: RepositoryNames, place: ClusterRepository, writes: bool, asked: AccessOptions
    ) -> tuple[tuple[Route, ...], Credentials | None]:
        """The ways there, and the login that takes the place of theirs."""
        access, plane = self.access, Plane.OPERATOR
        host = self.access.public_host or LOGICAL_PATH
        upstream = self.settings.upstream
        if upstream is not None:
            host = upstream.host
        given = asked.given_credentials(host)
        if self.settings.kind.row.holds_own_images and access.account(RegistryUser.RW) is None:
            # What was given or stored for the push address stands in for the unknown password.
            stored = access.public_host and credentials_for(f"{access.public_host}/{LOGICAL_PATH}")
            given = given or stored or None
            if given is not None:
                account = Account(RegistryUser.RW.value, SecretStr(""))  # `given` goes before it
                access = replace(access, accounts={**access.accounts, RegistryUser.RW: account})
            elif not writes and access.account(RegistryUser.RO) is not None and access.masters:
                plane = Plane.API  # to read, `ro` will do
        routes = routes_for(names.address(place, plane), self.settings, plane, access)
        if plane is Plane.API:  # single replicas: the Service is for those inside
            routes = tuple(route for route in routes if route.role is Role.MASTER)
        return routes, given


def _suffix(asked: AccessOptions) -> str:
    return normalised_suffix(asked.modules_path_suffix)


def _connection(asked: AccessOptions) -> ConnectionOptions:
    if asked.insecure:
        raise InputError("--insecure does not go with --module-config, which has the scheme")
    return asked.connection()


def _first_that_answers(
    routes: tuple[Route, ...], given: Credentials | None, options: ConnectionOptions
) -> Route:
    hasty = replace(options, retries=replace(options.retries, attempts=1, retry_for_s=0.0))
    failures: list[str] = []
    for route in routes:
        try:
            with Endpoint.of(route, given).client(hasty) as client:
                client.ping()
        except UnreachableError as err:
            failures.append(f"  {err}")
        else:
            return route
    hosts = ", ".join(route.host for route in routes)
    raise UnreachableError(
        "\n".join([f"none of {len(routes)} replicas answers:", *failures]), where=hosts
    )
