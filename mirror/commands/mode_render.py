"""`mirror mode render`: node and service configuration of a mode, or of the transition to it."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click

from mirror.commands import options
from mirror.commands.options import Work, command, file_option, flag, option, repeatable
from mirror.controller import rendered_state
from mirror.documents import document
from mirror.errors import InputError, RenderingError
from mirror.modes import NAMESPACE
from mirror.modes.outcomes import StepOutcome
from mirror.modes.settings import RegistrySettings
from mirror.nodeconfig.cluster import Node, Ports, load_facts, load_nodes, read_text
from mirror.nodeconfig.objects import PushIngress
from mirror.nodeconfig.pods import Images
from mirror.nodeconfig.pulling import Containerd, Nginx
from mirror.nodeconfig.render import (
    MANIFESTS,
    Rendered,
    RenderOptions,
    possible_rotation,
    render,
    rotation_outcome,
    write_cluster,
)
from mirror.nodeconfig.service_secrets import (
    Rotated,
    advance_rotation,
    begin_rotation,
    prepare_secrets,
    read_secrets,
    renewed,
    write_secrets,
)
from mirror.nodeconfig.services import Distribution

if TYPE_CHECKING:
    from mirror.nodeconfig.tree import TreeChanges

SECRETS_FILE = "registry-secrets.json"
FLAVOURS = ("deckhouse", "stock")
IMAGE_NAMES = ("distribution", "auth", "mirror", "nginx")


def _pairs(
    texts: Iterable[str], what: str, expected: str, advice: str, names: Collection[str] = ()
) -> dict[str, str]:
    """NAME=VALUE as a mapping; each name once, and among `names` if there are any."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name in found or (names and name not in names):
            odd = f"{name} twice" if name in found else repr(text)
            raise RenderingError(f"{what}: expected {expected}, found {odd}; {advice}")
        found[name] = value
    return found


def _nodes(texts: tuple[str, ...], *, master: bool) -> list[Node]:
    files = [text for text in texts if "=" not in text and master]
    for text in files:
        if not Path(text).exists():
            raise RenderingError(
                f"nodes: expected NAME=ADDRESS or a YAML file of nodes, found {text!r}, which "
                "is not a file; write master-0=10.0.0.1"
            )
    listed = (one for text in texts if text not in files for one in text.split(","))
    named = _pairs(listed, "nodes", "NAME=ADDRESS", "write master-0=10.0.0.1")
    return [
        *(node for text in files for node in load_nodes(Path(text))),
        *(Node(name, address, master) for name, address in named.items()),
    ]


def _images(texts: tuple[str, ...]) -> Images:
    expected = f"NAME=IMAGE with each of {', '.join(IMAGE_NAMES)} at most once"
    return Images(**_pairs(texts, "images", expected, "correct it", IMAGE_NAMES))


def _ports(texts: tuple[str, ...]) -> Ports:
    found: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in ("registry", "debug", "token") or not (
            number.isascii() and number.isdigit() and len(number) < 6
        ):
            raise RenderingError(
                "in-cluster ports: expected NAME=PORT with registry, debug or token as the name, "
                f"found {text!r}; write registry=7001"
            )
        found[name] = int(number)
    return Ports(**found)


def _proxies(texts: tuple[str, ...]) -> dict[str, str]:
    """The environment of the caches, in both spellings: programs differ in which they read."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    advice = "write HTTPS_PROXY=http://proxy.example.com:3128"
    found = _pairs(texts, "cache proxies", f"NAME=VALUE of {', '.join(names)}", advice, names)
    return found | {name.lower(): value for name, value in found.items()}


def _push_ingress(texts: tuple[str, ...]) -> PushIngress | None:
    """The ingress of `--push-ingress`; None without one."""
    fields = {"host": "host", "class": "ingress_class", "tls-secret": "tls_secret"}
    advice = "write host=registry.apps.example.com"
    names = (*fields, "allow")
    found = _pairs(texts, "push ingress", f"NAME=VALUE of {', '.join(names)}", advice, names)
    if not found:
        return None
    if "host" not in found:
        raise RenderingError(f"push ingress: expected a host, found none; {advice}")
    allow = found.pop("allow", "")
    given = {fields[name]: value for name, value in found.items()}
    return PushIngress(**given, allow=tuple(allow.split(",")) if allow else ())


def _sources(texts: tuple[str, ...]) -> dict[str, str]:
    advice = "write registry.example=ca.crt"
    found = _pairs(texts, "module sources", "HOST=FILE", advice)
    return {host: read_text(Path(path)) for host, path in found.items()}


images_option = repeatable(
    "Images of pods: distribution, auth and (Local) mirror on masters; nginx of each node's "
    "balancer and relay. Without its images, a pod is not written.",
    "--image NAME=IMAGE",
    read=_images,
)
cache_proxies_option = repeatable(
    "Proxy through which caches (Proxy) and the in-cluster proxy (Direct) reach the upstream: "
    "HTTP_PROXY, HTTPS_PROXY or NO_PROXY. Repeatable.",
    "--cache-proxy NAME=VALUE",
    read=_proxies,
)
push_ingress_option = repeatable(
    "The public address for pushes (Local mode): host=registry.example.com, and if needed "
    "class=NAME, tls-secret=NAME, allow=NETWORK,… Repeatable.",
    "--push-ingress NAME=VALUE",
    read=_push_ingress,
)


@command("render", "mirror mode render --module-config local.yaml --nodes a=10.0.0.1 --out files")
def render_command(
    config: Path = file_option(
        "ModuleConfig deckhouse, or its registry section: the mode to configure.",
        "--module-config",
        required=True,
    ),
    previous: Path | None = file_option(
        "The present settings: render the transition, which keeps the old routes as well.", "--from"
    ),
    nodes: tuple[str, ...] = repeatable(
        "Masters with addresses, or a YAML file of all nodes (name, address, master, ports).",
        "--nodes NAME=ADDRESS,…|FILE",
        required=True,
    ),
    workers: tuple[str, ...] = repeatable(
        "Nodes without a replica of the registry.", "--workers NAME=ADDRESS,…"
    ),
    out: Path = option(
        "Folder for the trees nodes/NAME and in-cluster, and for the cluster's objects "
        "(manifests). Files no longer needed are removed.",
        type=options.PathHere(file_okay=False),
        required=True,
    ),
    secrets_path: Path | None = option(
        f"Where authority, keys and users are kept (0600)  [default: OUT/{SECRETS_FILE}]",
        "--secrets",
        type=options.PathHere(dir_okay=False),
    ),
    flavour: str = option(
        "Whose containerd and registry: Deckhouse's or the stock ones.",
        type=click.Choice(FLAVOURS),
        default="deckhouse",
    ),
    containerd: str | None = option("Flavour of containerd alone.", type=click.Choice(FLAVOURS)),
    images: Images = images_option,
    nginx_modules: tuple[str, ...] = repeatable(
        "A module for nginx to load, such as Debian's ngx_stream_module.so.", "--nginx-module PATH"
    ),
    ingress_client_ca: str | None = file_option(
        "CA of the push ingress's client certificate (Local mode).", read=read_text
    ),
    source_cas: dict[str, str] = repeatable(
        "A module source's registry and its CA, for containerd on every node.",
        "--source-ca HOST=FILE",
        read=_sources,
    ),
    in_cluster_ports: Ports = repeatable(
        "A port of Direct mode's in-cluster proxy (registry, debug, token) that is not the "
        "module's own.",
        "--in-cluster-port NAME=PORT",
        read=_ports,
    ),
    cache_proxies: dict[str, str] = cache_proxies_option,
    push_ingress: PushIngress | None = push_ingress_option,
    switched: bool = flag("In a transition (--from): the components already read by the new way."),
    rotated: tuple[str, ...] = repeatable(
        "Begin to change the authority, the token keys or the users' passwords, without a gap: "
        "trust the new beside the old. --facts takes the next steps. Repeatable.",
        "--rotate",
        type=click.Choice([one.value for one in Rotated]),
    ),
    facts_file: Path | None = file_option(
        "YAML file with facts about the cluster: a rotation under way takes its next step if every "
        "node has applied the files of the last one (nodes, version).",
        "--facts",
    ),
    in_place: bool = flag(
        "Let files name their paths below OUT, for services that run without containers."
    ),
    work: Work = options.as_json,
) -> None:
    """Write the configuration of nodes and services for a mode.

    For every node its hosts.toml tree, the balancer, and on masters the registry, its token server
    and replication; for Direct mode the in-cluster proxy; and the cluster's objects: Secrets,
    Services, the Deployment of the proxy, the ingress for pushes. The authority and the passwords
    are made once and kept, so that the same settings render the same files.
    """
    if switched and previous is None:
        raise RenderingError("--switched: expected a transition, found none; add --from")
    all_nodes = [*_nodes(nodes, master=True), *_nodes(workers, master=False)]
    how = RenderOptions(
        containerd=Containerd(containerd or flavour),
        distribution=Distribution(flavour),
        nginx=Nginx(modules=nginx_modules),
        images=images,
        environment=cache_proxies,
        in_cluster_ports=in_cluster_ports,
        push_ingress=push_ingress,
        ingress_client_ca=ingress_client_ca,
        sources=source_cas,
        in_place_root=PurePosixPath(out.resolve()) if in_place else None,
    )
    settings = RegistrySettings.load(config)
    before = None if previous is None else RegistrySettings.load(previous)
    kept_at = secrets_path or out / SECRETS_FILE
    now = datetime.datetime.now(datetime.UTC)
    held = read_secrets(kept_at)
    kept, waiting = prepare_secrets(held, all_nodes, now), ""
    if rotated and before is not None:
        raise InputError("--rotate excludes --from: complete the switch first, then rotate")
    possible = partial(possible_rotation, kind=settings.kind, by_agent=not in_place)
    if rotated:
        kept = begin_rotation(kept, possible(rotated), now)
    elif kept.rotation is not None and before is None:
        facts = None if facts_file is None else load_facts(facts_file).nodes
        applied = rotation_outcome(facts, render(settings, all_nodes, kept, options=how))
        try:
            possible(kept.rotation.what)
        except InputError as err:  # another mode came after it had begun
            applied = StepOutcome(False, str(err))
        waiting = "" if applied.ready else applied.message
        kept = advance_rotation(kept, all_nodes, now) if applied.ready else kept
    changes = renewed(held, kept)
    rendered = render(settings, all_nodes, kept, previous=before, switched=switched, options=how)
    # Before the files that depend on them: a run cut short here leaves nothing to be forgotten.
    write_secrets(kept, kept_at)
    if rendered.objects:
        state = rendered_state(
            read_text(config), kept, None if previous is None else read_text(previous)
        )
        rendered = replace(rendered, objects=(*rendered.objects, state.to_secret()))
    done = write_cluster(rendered, out)
    result = {
        "mode": settings.mode.value,
        "from": None if before is None else before.mode.value,
        "version": rendered.version,
        "secrets": str(kept_at),
        "trees": {
            name: document(one, "written", "unchanged", "removed", "kept")
            for name, one in done.items()
        },
        "renewed": list(changes),
        "rotation": kept.rotation
        and {**document(kept.rotation, "what", "phase"), "waiting": waiting},
        "notes": list(rendered.notes),
    }
    rows = [*_summary(settings, before, rendered, done, out)]
    rows += (f"  new: {one}" for one in changes)
    if kept.rotation is not None:
        what, phase = ", ".join(kept.rotation.what), kept.rotation.phase
        rows.append(f"Rotation of {what}: what is new is {phase}")
        rows.append(waiting or "Render with --facts FILE when every node has applied these files")
    elif held is not None and held.rotation is not None:
        rows.append(f"Rotation of {', '.join(held.rotation.what)}: the old is trusted no more")
    work.say(result, [*rows, *(f"Note: {note}" for note in rendered.notes)])


def _summary(
    settings: RegistrySettings,
    before: RegistrySettings | None,
    rendered: Rendered,
    done: Mapping[str, TreeChanges],
    out: Path,
) -> list[str]:
    what = f"{settings.mode} mode" if before is None else f"{before.mode} → {settings.mode}"
    rows = [f"Configuration of {what} in {out}, version {rendered.version[:12]}"]
    rows += [
        f"  {name}: {len(one.written)} written, {len(one.unchanged)} unchanged, "
        f"{len(one.removed)} removed"
        + (f", {len(one.kept)} kept for containerd until the next run" if one.kept else "")
        for name, one in done.items()
    ]
    if gone := done[MANIFESTS].removed if MANIFESTS in done else ():
        objects = " ".join(path.stem.replace("-", "/", 1) for path in gone)
        rows.append(f"  when the cluster has all that: kubectl -n {NAMESPACE} delete {objects}")
    return rows
