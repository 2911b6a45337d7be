"""`mirror mode`: what the settings mean, what a switch does, and whether all images are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from pydantic import SecretStr

from mirror.bundle.reader import read_inventory
from mirror.commands import options
from mirror.commands.access import cluster_options
from mirror.commands.cluster import Cluster, apply_command
from mirror.commands.mode_render import render_command
from mirror.commands.options import Work, argument, command, file_option, flag, option, repeatable
from mirror.documents import document, file_text
from mirror.errors import (
    InputError,
    IntegrityError,
    InvalidSettingsError,
    MirrorError,
    RequiredImagesError,
    RouteError,
    common_exit_code,
)
from mirror.modes import LOGICAL_BASE, MODULE_ROLES, Mode, Plane, RegistryUser, Verdict
from mirror.modes.addressing import RepositoryNames, Route, push_address, routes_for
from mirror.modes.check import CheckReport, ItemState, check_images, connect_with, targets_for
from mirror.modes.outcomes import Cause
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.required import (
    RequiredSet,
    critical_modules,
    deployment_of,
    from_digest_list,
    from_inventory,
    from_values,
    relaxed,
)
from mirror.modes.settings import Account, CheckMode, ClusterFacts, RegistrySettings, Upstream
from mirror.modes.state import RegistryState
from mirror.nodeconfig.cluster import load_facts, read_document, read_modules
from mirror.nodeconfig.render import possible_rotation
from mirror.nodeconfig.service_secrets import Rotated, RotationStep, rotation_steps
from mirror.oci import Digest, Reference, Repository
from mirror.registry import ConnectionOptions

required_cluster = cluster_options(Cluster.load, required=True)

_PLANES = {
    Plane.CRI: "nodes pull",
    Plane.API: "components read",
    Plane.OPERATOR: "images are pushed",
    Plane.REPLICA: "replicas ask",
}
"""Plane → what is done there."""


@command("show", "mirror mode show --module-config deckhouse.yaml")
def show_command(cluster: Cluster = required_cluster, work: Work = options.as_json) -> None:
    """Show what the settings mean: the mode, the registry, and the routes of each plane.

    The output contains no secrets and, without --sites, nothing that only the cluster knows.
    """
    found = _settings_document(cluster)
    found["planes"] = {
        plane.value: _routes(cluster, Repository.parse(LOGICAL_BASE), plane) for plane in Plane
    }
    work.say(found, [*_settings_lines(found), "", *_plane_lines(found["planes"])])


@command("resolve", "mirror mode resolve install:v1.70.0 --module-config deckhouse.yaml")
def resolve_command(
    reference: str = argument(metavar="REF"),
    cluster: Cluster = required_cluster,
    plane: Plane | None = option(
        "Who asks: containerd on a node (cri), a pod (api), whoever pushes (operator), or a "
        "replica.  [default: all]",
        type=click.Choice([plane.value for plane in Plane]),
        read=Plane,
    ),
    work: Work = options.as_json,
) -> None:
    """Show where REF is requested: the routes in order, the login and the trusted authority.

    REF is an image or a repository: by its logical address
    (registry.d8-system.svc:5001/system/deckhouse/install:v1.70.0), or relative to that root
    (install:v1.70.0). This only reads files and contacts no registry.
    """
    asked = _asked(reference, cluster)
    asking = [plane] if plane else list(Plane)
    planes = {one.value: _routes(cluster, asked, one) for one in asking}
    if all("error" in way for way in planes.values()):
        raise RouteError(next(iter(planes.values()))["error"])
    found = {"reference": str(asked), "mode": cluster.settings.mode.value, "planes": planes}
    work.say(found, [str(asked), *_plane_lines(planes)])


def _asked(text: str, cluster: Cluster) -> Reference | Repository:
    """The image or repository that `text` means, by its logical or its real address."""
    names = RepositoryNames(cluster.settings, cluster.access)
    if "@" not in text and ":" not in text.rpartition("/")[2]:
        return names.address(names.read(text), Plane.OPERATOR)
    place, what = names.read_image(text, None)
    repository = names.address(place, Plane.OPERATOR)
    if isinstance(what, Digest):
        return Reference(repository, digest=what)
    return Reference(repository, tag=what)


# -- documents -------------------------------------------------------------------------------------


def _settings_document(cluster: Cluster) -> dict[str, Any]:
    settings, upstream = cluster.settings, cluster.settings.upstream
    return {
        **document(settings, "mode", "kind", "check_mode"),
        "push": push_address(settings, cluster.access),
        "upstream": upstream
        and {
            **document(upstream, "address=base", "scheme", "user=username"),
            "trust": _trust(upstream.scheme, upstream.ca),
        },
        "images": LOGICAL_BASE if settings.managed else upstream and upstream.base,
        **({"ttlSeconds": settings.proxy.ttl_s} if settings.proxy is not None else {}),
    }


def _routes(cluster: Cluster, asked: Reference | Repository, plane: Plane) -> dict[str, Any]:
    """The routes of one plane, or why there are none."""
    # Who asks is known even where the password is not.
    accounts = {user: Account(user.value, SecretStr("")) for user in RegistryUser}
    access = replace(cluster.access, accounts={**accounts, **cluster.access.accounts})
    try:
        routes = routes_for(asked, cluster.settings, plane, access)
    except RouteError as err:
        return {"error": str(err)}
    return {"routes": [_route_document(route, cluster.settings.upstream) for route in routes]}


def _route_document(route: Route, upstream: Upstream | None) -> dict[str, Any]:
    inside = route.role in MODULE_ROLES
    given = route.ca
    if inside:
        # Whoever is only passed on is trusted as at the upstream itself.
        theirs = upstream.ca if upstream is not None else None
        given = theirs if theirs and theirs in (route.ca or "") else None
    # Where the manifest is asked for; of a repository, where it lies.
    place = f"{route.scheme}://{route.host}/{route.repository}"
    return {
        **document(route, "role", "host", "repository"),
        "address": place if route.reference is None else route.url,
        "user": None if route.credential is None else route.credential.name,
        "trust": _trust(route.scheme, given, inside=inside),
    }


def _trust(scheme: str, ca: str | None, *, inside: bool = False) -> str:
    """Whom one trusts, in a few words. `ca` is the authority that the settings or sites give."""
    if scheme == "http":
        return "none (plain HTTP)"
    module = "the module's authority" if inside else ""
    given = f"the given {'one' if inside else 'authority'}" if ca is not None else ""
    whom = ", ".join(filter(None, (module, given)))
    return f"{whom} and the system's roots" if whom else "the system's roots"


# -- text ------------------------------------------------------------------------------------------


def _settings_lines(found: Mapping[str, Any]) -> list[str]:
    images = found["images"] or "the registry of the installation, which is not named here"
    rows = [("mode", found["kind"]), ("images go by", images)]
    upstream = found["upstream"]
    if upstream is not None:
        rows += [
            ("registry", f"{upstream['scheme']}://{upstream['address']}"),
            ("login", upstream["user"] or "anonymous"),
            ("trust", upstream["trust"]),
        ]
    if found.get("ttlSeconds"):
        rows.append(("cached for", _duration(found["ttlSeconds"])))
    rows += [("required images", found["checkMode"]), ("push to", found["push"])]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _duration(seconds: int) -> str:
    """`72 h`, or `5 min 30 s`: hours, minutes and seconds, without those that are zero."""
    (hours, rest), units = divmod(seconds, 3600), ("h", "min", "s")
    parts = zip((hours, *divmod(rest, 60)), units, strict=True)
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def _plane_lines(planes: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, ways in planes.items():
        yield f"{name}: how {_PLANES[Plane(name)]}"
        if "error" in ways:
            yield f"  not known: {ways['error']}"
        for route in ways.get("routes", ()):
            who = f"as {route['user']}" if route["user"] else "anonymously"
            yield f"  {route['address']}  ({route['role']}, {who}; trusts {route['trust']})"


# -- plan and check -------------------------------------------------------------------------------


@command("plan", "mirror mode plan --from direct.yaml --to local.yaml --facts facts.yaml")
def plan_command(
    current_file: Path | None = file_option(
        "YAML file with the cluster's present ModuleConfig.", "--from"
    ),
    state: RegistryState | None = file_option(
        "YAML or JSON file with the Secret registry-state: the present mode and any switch under "
        "way.",
        read=RegistryState.load,
    ),
    target: RegistrySettings = file_option(
        "YAML file with the ModuleConfig to switch to.",
        "--to",
        required=True,
        read=RegistrySettings.load,
    ),
    facts: ClusterFacts | None = file_option(
        "YAML file with facts about the cluster (bootstrapped, static, nodes, …). The plan lists "
        "what it does not say as still to be checked.",
        read=load_facts,
    ),
    rotated: tuple[str, ...] = repeatable(
        "Plan a rotation too: of the authority, the token keys or the users' passwords, as `mirror "
        "controller` does it. Repeatable.",
        "--rotate",
        type=click.Choice([one.value for one in Rotated]),
    ),
    installing: bool = flag("The cluster is being installed: there is no mode yet."),
    undocumented: bool = flag(
        "Allow what the cluster can do and its documentation advises against."
    ),
    work: Work = options.as_json,
) -> None:
    """Plan a switch: its steps in order, what it costs, and what prevents it.

    This changes nothing in the cluster. A refused switch ends with exit code 1, and the output
    names a path that reaches the target.
    """
    facts = facts or ClusterFacts()
    current: RegistrySettings | None = None
    if not installing:
        current = _current(current_file, state)
        facts = _with_aborted(facts, state, target)
    elif current_file is not None or state is not None:
        raise InputError("--installing excludes --from and --state: there is no mode yet")
    plan = plan_switch(current, target, facts, strict=not undocumented)
    if rotated and plan.verdict is not Verdict.NOTHING:
        raise InputError(
            f"--rotate: a switch to {plan.target} comes first; rotate when it is complete"
        )
    walk = rotation_steps(possible_rotation(rotated, target.kind)) if rotated else ()
    steps = [document(one, "phase", "action", "condition") for one in walk]
    found = {**plan.to_document(), "rotation": steps}
    work.say(found, _lines(plan, walk), code=0 if plan.allowed else MirrorError.exit_code)


def _current(current_file: Path | None, state: RegistryState | None) -> RegistrySettings:
    """The settings that the cluster completed last."""
    if current_file is not None:
        current = RegistrySettings.load(current_file)
        if state is not None and state.mode is not current.mode:
            raise InputError(
                f"--from {current_file} is mode {current.mode}, and --state says that the mode "
                f"completed last is {state.mode}; give the settings of {state.mode}"
            )
        return current
    if state is None:
        raise InputError(
            "give the cluster's present state: --from FILE (its ModuleConfig), --state FILE (the "
            "Secret registry-state), or --installing"
        )
    return _without_parameters(
        state.mode,
        f"--state says that the mode is {state.mode}, and not with which parameters; add --from "
        "FILE with that ModuleConfig",
    )


def _with_aborted(
    facts: ClusterFacts, state: RegistryState | None, target: RegistrySettings
) -> ClusterFacts:
    """`facts` with the switch that the state says is under way, if it goes elsewhere."""
    if state is None or facts.aborted is not None or state.target_mode in (state.mode, target.mode):
        return facts
    aborted = _without_parameters(
        state.target_mode,
        f"--state says that a switch to {state.target_mode} was begun and not completed; add its "
        "registry section to --facts, as `aborted`",
    )
    return replace(facts, aborted=aborted)


def _without_parameters(mode: Mode, otherwise: str) -> RegistrySettings:
    """The settings of a mode that has none beside its name; of another the error `otherwise`."""
    try:
        return RegistrySettings(mode=mode)
    except InvalidSettingsError:  # it needs a section
        raise InputError(otherwise) from None


def _lines(plan: SwitchPlan, walk: Sequence[RotationStep]) -> Iterator[str]:
    before = "installation" if plan.current is None else plan.current.value
    yield f"{before} → {plan.target}"
    if plan.verdict is Verdict.NOTHING:
        yield "There is nothing to change"
    if walk:
        yield "Rotation"
    for number, turn in enumerate(walk, 1):
        yield f"{number:>3}. {turn.action}"
        yield f"     until {turn.condition}"
    for number, step in enumerate(plan.steps, 1):
        yield f"{number:>3}. {step.condition}: {step.action}"
    if plan.warnings:
        yield "Warnings"
        yield from (f"  {one.risk}: {one.message}" for one in plan.warnings)
    if plan.doubts:
        yield "Still to check"
        yield from (f"  {one.cause}: {one.message}" for one in plan.doubts)
    if plan.refusals:
        yield "Refused"
        for refusal in plan.refusals:
            yield f"  {refusal.cause}: {refusal.message}"
            way = " → ".join([before, *refusal.path])
            if refusal.path and refusal.cause is not Cause.NOT_SUPPORTED:  # which has it
                yield f"    switch by this path instead: {way}"


@dataclass(frozen=True, slots=True)
class _Required:
    """The options of a check that say which images the cluster needs."""

    digests_file: Path | None
    inventory_path: Path | None
    values_file: Path | None
    modules_file: Path | None
    deckhouse_image: str | None

    def images(self, mode: CheckMode) -> RequiredSet:
        """The required images."""
        image = self.deckhouse_image
        deployment = None if image is None else deployment_of(image)
        sources = (self.digests_file, self.inventory_path, self.values_file)
        if sum(path is not None for path in sources) > 1:
            raise InputError("--digests, --inventory and --values exclude each other; keep one")
        if (self.modules_file is None) is not (self.values_file is None):
            raise InputError("--values and --modules go together; give both")
        if mode is CheckMode.RELAX:
            return relaxed(deployment)
        if self.digests_file is not None:
            digests = file_text(self.digests_file, RequiredImagesError)
            return from_digest_list(digests, str(self.digests_file), deployment)
        if self.inventory_path is not None:
            return from_inventory(read_inventory(self.inventory_path), deployment)
        if self.values_file is not None and self.modules_file is not None:
            critical = critical_modules(read_modules(self.modules_file))
            return from_values(read_document(self.values_file), critical, deployment)
        raise InputError(
            "say what is required: --digests FILE, --inventory BUNDLE_DIR, or --values FILE with "
            "--modules FILE"
        )


@command("check", "mirror mode check --module-config direct.yaml --inventory bundle")
def check_command(
    cluster: Cluster = required_cluster,
    required: _Required = options.grouped(
        _Required,
        digests_file=file_option(
            "Require these images: a release's images_digests.json, or one digest a line.",
            "--digests",
        ),
        inventory_path=option(
            "Require the images of this bundle or inventory.json.",
            "--inventory",
            type=options.PathHere(exists=True),
        ),
        values_file=file_option(
            "Require the images of critical modules that these values name (YAML or JSON with "
            "global.modulesImages.digests).",
            "--values",
        ),
        modules_file=file_option(
            "With --values: the cluster's modules (kubectl get modules -o yaml), which say what is "
            "critical.",
            "--modules",
        ),
        deckhouse_image=option(
            "Also require this image of the platform's own container; with checkMode Relax, only "
            "this."
        ),
    ),
    tls_skip_verify: bool = flag("Accept any certificate of the registry."),
    work: Work = options.running,
) -> None:
    """Check that the registry of these settings holds every image that the cluster needs.

    This is the registry outside the cluster or, in mode Local, every master's replica. The exit
    code is 4 if images are missing.
    """
    report = check_images(
        required.images(cluster.settings.check_mode),
        targets_for(cluster.settings, cluster.access),
        connect_with(ConnectionOptions(verify=not tls_skip_verify), work.on_event),
        workers=work.run.jobs,
        run=work.run,
    )
    # The cluster's status says the same below the head, where `Mode` is that of the check.
    head = f"mode {cluster.settings.mode}, checkMode {report.mode}"
    told = "\n".join([head, *(one.message for one in report.registries)])
    code = 0 if report.ready else _exit_code(report)
    work.show(report, lambda *_: told, code=code, whole=True)


def _exit_code(report: CheckReport) -> int:
    """4 where something is missing; else what kept the registries from answering."""
    items = [item for one in report.registries for item in one.items]
    if any(item.state is ItemState.MISSING for item in items):
        return IntegrityError.exit_code
    errors = [item.error for item in items if item.error is not None]
    return common_exit_code(errors) or MirrorError.exit_code


mode_group = click.Group(
    "mode",
    commands=[
        show_command,
        resolve_command,
        plan_command,
        check_command,
        render_command,
        apply_command,
    ],
    help="The modes of a cluster's registry: Direct, Proxy, Local, Unmanaged.",
)
