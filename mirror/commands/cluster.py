"""A cluster: its registries, as `--module-config` and `--sites` describe it, and its own API.

`mirror mode apply` brings rendered objects there, and `mirror controller` leads it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from click.core import ParameterSource
from pydantic import SecretStr

from mirror.commands import options
from mirror.commands.mode_render import cache_proxies_option, images_option, push_ingress_option
from mirror.commands.options import Work, argument, command, file_option, flag, option
from mirror.commands.process import handling
from mirror.controller.cluster import Controller
from mirror.controller.kube import RESOURCES, KubeApi
from mirror.controller.leading import Lease, lead
from mirror.documents import read_documents
from mirror.errors import InputError, UnreachableError
from mirror.modes import LOGICAL_HOST, LOGICAL_PATH, Plane, RegistryUser, Role
from mirror.modes.addressing import (
    ClusterRepository,
    RepositoryNames,
    Route,
    check_write,
    routes_for,
)
from mirror.modes.endpoints import Endpoint, replica_endpoints
from mirror.modes.settings import NO_ACCESS, Account, ClusterAccess, RegistrySettings
from mirror.nodeconfig.cluster import load_access, read_text
from mirror.nodeconfig.objects import PushIngress
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.render import MANIFESTS, RenderOptions
from mirror.oci import Repository
from mirror.registry import ConnectionOptions, Credentials, find_credentials

if TYPE_CHECKING:
    from mirror.commands.access import AccessOptions, TreeAccess


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
            credentials = find_credentials(f"{route.host}/{route.repository}")
        root = Repository(route.host, route.repository)
        return asked.tree(root, endpoint.connection(options), credentials)

    def replicas(self, asked: AccessOptions) -> dict[str, TreeAccess]:
        """The replicas of a cluster in Local mode by name, one for each master.

        The login is the one that is given, or that of `mirror-pusher`, or of `rw`.
        """
        options = _connection(asked)
        given = asked.given_credentials(f"the replicas of {LOGICAL_HOST}")
        return {
            str(root): asked.tree(root, endpoint.connection(options), endpoint.credentials)
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
            stored = access.public_host and find_credentials(f"{access.public_host}/{LOGICAL_PATH}")
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


# -- the cluster's API ----------------------------------------------------------------------------

_ORDER = ("Secret", "Service", "PodDisruptionBudget", "Deployment", "Ingress")
"""What others need first."""


def _connect(kubeconfig: Path | None, in_cluster: bool) -> KubeApi:
    if in_cluster and options.given_by(ParameterSource.ENVIRONMENT, "kubeconfig"):
        kubeconfig = None
    if (kubeconfig is None) != in_cluster:
        raise InputError(
            "name the cluster: --kubeconfig FILE, or --in-cluster where this runs in one of its "
            "pods"
        )
    return KubeApi.connect(kubeconfig)


api_options = options.grouped(
    _connect,
    kubeconfig=file_option(
        "File with the cluster's API and the login there.  [env: KUBECONFIG]",
        envvar="KUBECONFIG",
        show_envvar=False,
    ),
    in_cluster=flag("The cluster in which this runs, as the Pod's service account."),
)
force_option = flag(
    "Take over fields that somebody else manages. Otherwise they stay, with a warning.",
    "--force-conflicts",
)


@command("apply", "mirror mode apply files --kubeconfig admin.conf --dry-run")
def apply_command(
    folder: Path = argument(type=options.PathHere(exists=True, file_okay=False)),
    api: KubeApi = api_options,
    force_conflicts: bool = force_option,
    dry_run: bool = flag("Let the cluster's API say what would change; change nothing."),
    work: Work = options.as_json,
) -> None:
    """Bring the objects that `mirror mode render --out FOLDER` wrote into the cluster.

    This is a server-side apply as field manager deckhouse-mirror: it sets only the fields of the
    rendered objects, and a field that somebody else manages is a conflict. It removes no object
    that is no longer rendered, and does not bring the nodes' own files to the nodes.
    """
    work.callback(api.close)
    done = {
        f"{one['kind']} {one['metadata']['name']}": api.bring(
            one, force=force_conflicts, dry_run=dry_run
        )
        for one in _rendered(folder)
    }
    counts = {how: [*done.values()].count(how) for how in ("created", "changed", "unchanged")}
    total = ", ".join(f"{count} {how}" for how, count in counts.items())
    title = f"{'Would apply' if dry_run else 'Applied'} {len(done)} objects to {api.host}: {total}"
    work.say(
        {"cluster": api.host, "dryRun": dry_run, "objects": done},
        [title, *(f"  {how}: {name}" for name, how in done.items() if how != "unchanged")],
    )


def _rendered(folder: Path) -> list[Mapping[str, Any]]:
    """The objects of a folder, in the order in which to apply them."""
    found = []
    for path in sorted((folder / MANIFESTS).glob("*.yaml")):
        for one in read_documents(read_text(path), str(path), "expected an object"):
            named = isinstance(one.get("metadata"), Mapping) and one["metadata"].get("name")
            kind = str(one.get("kind"))
            if kind not in _ORDER or one.get("apiVersion") != RESOURCES[kind].version or not named:
                raise InputError(
                    f"{path}: expected a {', '.join(_ORDER)} as rendered, found "
                    f"{kind[:40]}; render anew, or apply it with kubectl"
                )
            found.append(one)
    if not found:
        raise InputError(
            f"{folder}: no rendered objects in {MANIFESTS}/; run `mirror mode render --out "
            f"{folder}` first"
        )
    return sorted(found, key=lambda one: _ORDER.index(one["kind"]))


@command("controller", "mirror controller --kubeconfig admin.conf --digests digests.json")
def controller_command(
    api: KubeApi = api_options,
    force_conflicts: bool = force_option,
    lease: str = option(
        "The Lease in d8-system that the acting controller holds; others wait for it.",
        "--lease NAME",
        default="mirror-controller",
    ),
    digests: str | None = file_option(
        "images_digests.json of the release, or lines with digests: the required images.  "
        "[default: what the platform's pods run]",
        read=read_text,
    ),
    images: Images = images_option,
    push_ingress: PushIngress | None = push_ingress_option,
    cache_proxies: dict[str, str] = cache_proxies_option,
    once: bool = flag("Run one pass without the Lease, tell it, and end."),
    work: Work = options.as_json,
) -> None:
    """Lead a cluster to the mode that its ModuleConfig deckhouse wants, step by step.

    It watches the ModuleConfig, Secrets, nodes and pods, writes conditions to the Secret
    registry-state and applies what each step needs. It runs until SIGTERM or Ctrl-C, and ends with
    exit code 0. docs/controller.md says what it never does.
    """
    controller = Controller(
        api,
        RenderOptions(images=images, environment=cache_proxies, push_ingress=push_ingress),
        force=force_conflicts,
        digests=digests,
    )
    work.callback(api.close)
    if once:
        done = controller.reconcile()
        if isinstance(done, str):
            raise InputError(done)
        found = {"plan": done.plan.to_document(), "state": done.state.to_document()}
        work.say({**found, "reached": done.reached}, [done.summary()], code=int(not done.reached))
        return
    stop = threading.Event()
    identity = f"{gethostname()}-{uuid4().hex[:8]}"
    with options.logging_to_stderr(logging.INFO), handling(stop.set, once=True):
        lead(controller, Lease(api, lease, identity), stop)
