"""What the registry module's documentation says of modes, and the command that shows each of it.

`python -m tests.modes.statements` writes both tables into docs/modes.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirror.modes import ModeKind, Verdict
from mirror.modes.outcomes import Cause
from mirror.modes.plan import plan_switch
from mirror.modes.settings import ClusterFacts, ContainerdConfig
from tests.support.mode_samples import GOOD, SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "modes.md"
FILES = Path(__file__).parents[2] / "examples" / "modes"
_BEGIN = "<!-- {} is made by python -m tests.modes.statements -->"
_END = "<!-- the end of {} -->"


@dataclass(frozen=True)
class Statement:
    """A sentence, the module that makes it true, and a command with what it then says.

    `command` may go on with `&& cat FILE`; `shows` is in what is printed, `hides` is not, and
    `code` is the exit code.
    """

    says: str
    where: str
    command: str
    shows: str
    code: int = 0
    hides: str = ""


def _plan(before: str, after: str, facts: str = "facts") -> str:
    return f"mode plan --from {before}.yaml --to {after}.yaml --facts {facts}.yaml"


def _file(mode: str, path: str, more: str = "") -> str:
    command = f"mode render --module-config {mode}.yaml --nodes nodes.yaml --out out{more}"
    return f"{command} && cat out/{path}"


_MASTER = "nodes/master-0/etc/kubernetes"
_PODS = " --image distribution=r/d --image auth=r/a"
_WRONG = "facts-wrong"

GROUPS: dict[str, list[Statement]] = {
    "Modes": [
        Statement(
            "In Direct, Proxy and Local every image has the address "
            "`registry.d8-system.svc:5001/system/deckhouse`",
            "modes",
            "mode show --module-config local.yaml",
            "images go by     registry.d8-system.svc:5001/system/deckhouse",
        ),
        Statement(
            "Direct: nodes pull from the registry itself; containerd rewrites the path",
            "nodeconfig.pulling",
            _file(
                "direct",
                "nodes/worker-0/etc/containerd/registry.d/registry.d8-system.svc:5001/hosts.toml",
            ),
            'replace = "dkp/ee${1}"',
        ),
        Statement(
            "Direct: components read through a proxy on the masters, which keeps nothing",
            "nodeconfig.objects",
            _file("direct", "manifests/deployment-registry-incluster-proxy.yaml", _PODS),
            "node-role.kubernetes.io/control-plane",
        ),
        Statement(
            "Direct: another registry or login changes no image's address, and nothing restarts or "
            "is downloaded again",
            "modes.outcomes",
            _plan("direct", "direct-other"),
            "TransitionContainerdConfigReady",
            hides="Restart",
        ),
        Statement(
            "Proxy: masters keep what nodes asked for, as long as `ttl` says",
            "nodeconfig.services",
            _file("proxy", f"{_MASTER}/registry/distribution/config.yaml"),
            "ttl: 72h",
        ),
        Statement(
            "Proxy, Local: a static pod on each master, with its data in `/opt/deckhouse/registry`",
            "nodeconfig.pods",
            _file("proxy", f"{_MASTER}/manifests/registry-nodeservices.yaml", _PODS),
            "/opt/deckhouse/registry/local_data",
        ),
        Statement(
            "Proxy, Local: a balancer on every node leads to the masters",
            "nodeconfig.pulling",
            _file("local", "nodes/worker-0/etc/kubernetes/registry-proxy/nginx_new.conf"),
            "server 10.0.0.2:5001 ",
        ),
        Statement(
            "Proxy, Local: components read from the masters by the Service `registry`",
            "nodeconfig.objects",
            _file("local", "manifests/service-registry.yaml"),
            "type: node-services",
        ),
        Statement(
            "Local: works without any registry outside",
            "modes",
            "mode resolve --module-config local.yaml --sites sites.yaml --plane replica install",
            "https://10.0.0.1:5001/system/deckhouse/install",
        ),
        Statement(
            "Local: images are pushed to `registry.<PUBLIC_DOMAIN>` as user `rw`",
            "modes.addressing",
            "mode resolve --module-config local.yaml --sites sites.yaml --plane operator install",
            "https://registry.apps.corp.example/system/deckhouse/install  (public, as rw",
        ),
        Statement(
            "Local: the ingress for pushes limits no body and keeps a client at one master",
            "nodeconfig.objects",
            _file(
                "local",
                "manifests/ingress-registry.yaml",
                " --push-ingress host=registry.apps.corp.example",
            ),
            "nginx.ingress.kubernetes.io/proxy-body-size: '0'",
        ),
        Statement(
            "Local: replicas copy to each other what one of them received",
            "nodeconfig.services",
            _file("local", f"{_MASTER}/registry/mirrorer/config.yaml"),
            "remote:\n- 10.0.0.2:5001",
        ),
        Statement(
            "Local: user `ro` reads, `rw` writes; replicas have users of their own",
            "nodeconfig.services",
            _file("local", f"{_MASTER}/registry/auth/config.yaml"),
            "account: mirror-pusher",
        ),
        Statement(
            "Unmanaged: images have the real address, and everyone asks the registry itself",
            "modes.addressing",
            "mode show --module-config unmanaged.yaml",
            "images go by     nexus.corp.example:8443/dkp/ee",
        ),
        Statement(
            "Unmanaged (deprecated): the registry of the installation, set in InitConfiguration",
            "modes.module_config",
            "mode show --module-config init-configuration.yaml",
            "mode             Unmanaged (legacy)",
        ),
    ],
    "Settings": [
        Statement(
            "Only the section of the mode may be there; `ttl` is five minutes or more",
            "modes.module_config",
            "mode show --module-config two-sections.yaml",
            "'ttl' should be at least 5 minutes",
            code=2,
        ),
        Statement(
            "`license` stands for the user `license-token`",
            "modes.settings",
            "mode show --module-config direct-other.yaml",
            "login            license-token",
        ),
        Statement(
            "`checkMode: Relax` asks only for the platform's own image",
            "modes.required",
            "mode show --module-config unmanaged.yaml",
            "required images  Relax",
        ),
    ],
    "Restrictions": [
        Statement(
            "A cluster is installed in mode Direct or Unmanaged",
            "modes.outcomes",
            "mode plan --installing --to local.yaml",
            "a cluster cannot be installed in mode Local",
            code=1,
        ),
        Statement(
            "Mode and parameters change only after bootstrap",
            "modes.outcomes",
            _plan("direct", "direct-other", _WRONG),
            "only after bootstrap has completely finished",
            code=1,
        ),
        Statement(
            "Every node runs containerd",
            "modes.outcomes",
            _plan("deprecated", "direct", _WRONG),
            "Containerd or ContainerdV2: master-0 (Docker)",
            code=1,
        ),
        Statement(
            "Not in a Managed Kubernetes",
            "modes.outcomes",
            _plan("deprecated", "unmanaged", _WRONG),
            "not be a Managed Kubernetes",
            code=1,
        ),
        Statement(
            "Proxy and Local only in static clusters",
            "modes.outcomes",
            _plan("direct", "proxy", _WRONG),
            "works only in static clusters",
            code=1,
        ),
        Statement(
            "Before the first switch: custom settings of containerd are moved to `registry.d`",
            "modes.outcomes",
            _plan("deprecated", "direct", _WRONG),
            "move custom registry settings from containerd's configuration to "
            "/etc/containerd/registry.d",
            code=1,
        ),
        Statement(
            "Before the first switch: masters are Ready, and Deckhouse's queue is empty",
            "modes.outcomes",
            _plan("unmanaged", "local", _WRONG),
            "Deckhouse's queue must be empty",
            code=1,
        ),
    ],
    "Switching": [
        Statement(
            "The registry holds the required images before the switch begins",
            "modes.outcomes",
            _plan("unmanaged", "proxy", _WRONG),
            "must hold all images that the cluster needs",
            code=1,
        ),
        Statement(
            "A switch to Local waits until every master holds them",
            "modes.plan",
            _plan("direct", "local"),
            "3. RegistryContainsRequiredImages",
        ),
        Statement(
            "Between Local and Proxy only by Direct or Unmanaged",
            "modes.outcomes",
            _plan("local", "proxy"),
            "go Local → Direct → Proxy",
            code=1,
        ),
        Statement(
            "To the deprecated Unmanaged only from Unmanaged",
            "modes.outcomes",
            _plan("direct", "deprecated"),
            "go Direct → Unmanaged → Unmanaged (legacy)",
            code=1,
        ),
        Statement(
            "A switch that was begun and not completed counts like one",
            "modes.outcomes",
            _plan("unmanaged", "local", "facts-aborted"),
            "go back to Unmanaged first, then to Local",
            code=1,
        ),
        Statement(
            "The first switch to a managed mode restarts the platform's components",
            "modes.outcomes",
            _plan("unmanaged", "direct"),
            "all components of the platform restart",
        ),
        Statement(
            "A cache that starts over a registry's store deletes it, and the reverse",
            "modes.outcomes",
            _plan("unmanaged", "proxy", _WRONG),
            "DataLoss: when the Proxy replicas start, they delete all images",
            code=1,
        ),
        Statement(
            "Leaving the managed modes drops certificates and users",
            "modes.outcomes",
            _plan("local", "unmanaged"),
            "drops the registry's certificates and the passwords",
        ),
        Statement(
            "In between nodes have the old way, then the new one",
            "nodeconfig.pulling",
            _file(
                "local",
                "nodes/worker-0/etc/containerd/registry.d/registry.d8-system.svc:5001/hosts.toml",
                " --from direct.yaml",
            ),
            '[host."https://nexus.corp.example:8443"]',
        ),
        Statement(
            "Components turn to the new way only when all nodes have it",
            "nodeconfig.objects",
            _file("local", "manifests/service-registry.yaml", " --from direct.yaml"),
            "type: incluster-proxy",
        ),
        Statement(
            "The state is in the Secret `registry-state`",
            "modes.state",
            "mode plan --state registry-state.yaml --to unmanaged.yaml --facts facts.yaml",
            "Local → Unmanaged",
        ),
    ],
}


def statements() -> Iterator[str]:
    """The table of statements, as Markdown."""
    for group, rows in GROUPS.items():
        yield f"**{group}**\n"
        yield "| The module's documentation | Where it is true | Shown by `mirror …` |"
        yield "|---|---|---|"
        for one in rows:
            yield f"| {one.says} | `{one.where}` | `{one.command}` |"
        yield ""


# -- preconditions of every pair -------------------------------------------------------------------


def _every_node(**changes: Any) -> Callable[[ClusterFacts], ClusterFacts]:
    def wrong(facts: ClusterFacts) -> ClusterFacts:
        assert facts.nodes is not None
        return replace(facts, nodes=tuple(replace(one, **changes) for one in facts.nodes))

    return wrong


PRECONDITIONS: dict[str, tuple[Cause, Callable[[ClusterFacts], ClusterFacts]]] = {
    "bootstrapped": (Cause.BOOTSTRAP, lambda facts: replace(facts, bootstrapped=False)),
    "containerd": (Cause.CRI, _every_node(cri="Docker")),
    "own cluster": (Cause.MANAGED_KUBERNETES, lambda facts: replace(facts, managed_by_dkp=False)),
    "static": (Cause.NOT_STATIC, lambda facts: replace(facts, static=False)),
    "no custom settings": (
        Cause.CONTAINERD_CONFIG,
        _every_node(containerd_config=ContainerdConfig.CUSTOM),
    ),
    "masters ready": (Cause.MASTERS, _every_node(ready=False)),
    "empty queue": (Cause.QUEUE, lambda facts: replace(facts, queue_empty=False)),
    "images": (Cause.IMAGES, lambda facts: replace(facts, images_present=False)),
}
"""Name → what refuses a switch where it does not hold, and facts in which it does not."""


def matrix() -> Iterator[str]:
    """Each pair of modes with its preconditions, as the code has them."""
    yield "| from → to | " + " | ".join(PRECONDITIONS) + " |"
    yield "|---" * (len(PRECONDITIONS) + 1) + "|"
    for before in (None, *ModeKind):
        for after in ModeKind:
            yield f"| {_name(before)} → {_name(after)} | {' | '.join(cells(before, after))} |"
    yield ""


def cells(before: ModeKind | None, after: ModeKind) -> list[str]:
    """What each precondition is to a switch: yes if it is one, or why there is no such switch."""
    current, target = None if before is None else SETTINGS[before], SETTINGS[after]
    if before is after and before is not None and after.row.switches[after] is Verdict.PARAMETERS:
        other = {"imagesRepo": "other.example/x"}
        target = type(target).load({"mode": after.mode, after.value.lower(): other})
    good = plan_switch(current, target, GOOD)
    if good.verdict is Verdict.NOTHING or good.refusals:
        word = "nothing to do"
        if good.refusals:
            word = "no: " + " → ".join(_name(kind) for kind in good.refusals[0].path)
        return [word, *[""] * (len(PRECONDITIONS) - 1)]
    found = []
    for cause, wrong in PRECONDITIONS.values():
        refusals = {one.cause for one in plan_switch(current, target, wrong(GOOD)).refusals}
        assert refusals <= {cause}
        found.append("yes" if refusals else "")
    return found


def _name(kind: ModeKind | None) -> str:
    if kind is None:
        return "installation"
    return "deprecated" if kind is ModeKind.LEGACY else kind.value


PARTS = {"the table of statements": statements, "the table of preconditions": matrix}


def made(page: str) -> str:
    """The page with its tables as they must be."""
    for name, table in PARTS.items():
        begin, end = _BEGIN.format(name), _END.format(name)
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = "".join([before, "\n".join([begin, "", *table(), end]), after])
    return page


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
