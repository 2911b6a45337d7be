"""The controller in a cluster: what a pass asks the API, how its result is carried out, and when.

It holds a Lease while it acts, and acts on nothing that it cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from mirror.controller import DEFAULTS, PAUSE_S, Reconciled, Switch, reconcile
from mirror.controller.kube import (
    MANAGER,
    KubeApi,
    Object,
    has_condition,
    notes_of,
    read_as_told,
    texts_of,
)
from mirror.documents import read_documents
from mirror.errors import (
    CancelledError,
    ConflictError,
    InputError,
    MirrorError,
    NotFoundError,
    RenderingError,
)
from mirror.modes import (
    LOGICAL_BASE,
    LOGICAL_HOST,
    MODULE_LABELS,
    SECRET_STATE,
    UNKNOWN_VERSION,
    outcomes,
)
from mirror.modes.check import check_images, targets_for
from mirror.modes.outcomes import ReplicaPod, StepOutcome
from mirror.modes.required import RequiredImage, RequiredSet, from_digest_list, relaxed
from mirror.modes.settings import (
    CheckMode,
    ClusterFacts,
    ContainerdConfig,
    NodeFacts,
    RegistrySettings,
)
from mirror.modes.state import RegistryState, inputs_hash
from mirror.nodeconfig import pods
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pods import VERSION
from mirror.nodeconfig.render import Rendered, RenderOptions
from mirror.nodeconfig.service_secrets import ServiceSecrets, parse_secrets, secrets_text
from mirror.oci import Reference
from mirror.run import Run

_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_CONTAINERD = "node.deckhouse.io/containerd-config-registry"
_CONFIGURED = frozenset(one.value for one in ContainerdConfig)
_DECKHOUSE = "deckhouse"
ROTATE = f"{MANAGER}/rotate"
"""The annotation of `registry-state` that asks for a rotation: `authority,token,users`."""
_OURS = ("Ingress", "Service", "Deployment", "PodDisruptionBudget", "Secret")
"""The kinds of what may go, in this order: nobody is led to what is gone."""
_CHECK_S = 30.0
_STAYING = ("deckhouse-registry", "registry-bashible-config", "registry-config")
_AT_REST = frozenset(("Secret", name) for name in _STAYING)
"""What others read in a cluster without a managed registry."""

Images = Callable[[Switch], StepOutcome]


@dataclass
class Controller:
    """Leads one cluster. `may_act` is asked before each change, and `images` in place of the API
    and the registries, whether a registry has what the cluster needs.

    `digests` is the text of a list of the required images; without it they are what the platform's
    pods run now. With `force` fields are taken over that somebody else manages.
    """

    api: KubeApi
    options: RenderOptions = DEFAULTS
    force: bool = False
    digests: str | None = None
    images: Images | None = None
    may_act: Callable[[], bool] = lambda: True
    run: Run | None = None

    def reconcile(self) -> Reconciled | str:
        """Passes, until there is something to wait for; a text where nothing can be done.

        Raises:
            MirrorError: the API does not answer or refuses, or what it has cannot be worked with.
        """
        while True:
            done = self._pass(datetime.now(UTC))
            if isinstance(done, str) or done.requeue_s:
                return done

    def _pass(self, now: datetime) -> Reconciled | str:
        secret = self.api.get("Secret", SECRET_STATE)
        state = RegistryState.load(secret)
        kept = _kept(state)

        def stopped(what: str, err: MirrorError) -> str:
            said = f"ModuleConfig {_DECKHOUSE} cannot be {what}, and nothing is changed: {err}"
            self._write(secret, state.stopped(said, now), kept)
            return said

        try:
            wanted = _wanted(self.api.get("ModuleConfig", _DECKHOUSE))
            RegistrySettings.load(wanted)
        except (InputError, NotFoundError) as err:
            return stopped("read", err)
        observer = _ApiObserver(self, _nodes(self.api))
        try:
            done = reconcile(
                wanted,
                state,
                observer.facts(),
                [one for one, _ in observer.nodes],
                kept,
                observer,
                now,
                installed=_installed(self.api.get("Secret", "deckhouse-registry")),
                options=self.options,
                rotate=notes_of(secret).get(ROTATE, ""),
            )
        except RenderingError as err:
            return stopped("carried out", err)
        begun = not (kept and kept.rotation) and bool(done.kept and done.kept.rotation)
        written = self._write(secret, done.state, done.kept or kept, begun=begun)
        try:
            self._roll_out(done)
        except (ConflictError, RenderingError) as err:
            state = done.state.stopped(str(err), now)
            self._write(written, state, done.kept or kept)
            return replace(done, state=state, requeue_s=PAUSE_S)
        return done

    # -- what is written ---------------------------------------------------------------------------

    def _act(self) -> None:
        if not self.may_act():
            raise CancelledError("another one leads now; this pass ends here")

    def _write(
        self,
        before: Mapping[str, Any] | None,
        state: RegistryState,
        kept: ServiceSecrets | None,
        *,
        begun: bool = False,
    ) -> Mapping[str, Any] | None:
        """Keep state and secrets together, without what asked for a rotation that has `begun`."""
        if kept is not None:
            state = state.remembering({**state.noted(), "secrets": secrets_text(kept)})
        secret = state.to_secret()
        if before is not None:
            if before.get("data") == secret["data"]:
                return before
            known = before["metadata"]
            labels = {**(known.get("labels") or {}), **secret["metadata"]["labels"]}
            notes = {key: v for key, v in notes_of(before).items() if key != ROTATE or not begun}
            notes |= secret["metadata"]["annotations"]
            same = {"resourceVersion": known["resourceVersion"], "annotations": notes}
            secret["metadata"] = {**secret["metadata"], **same, "labels": labels}
        self._act()
        return self.api.put(secret)

    def _roll_out(self, done: Reconciled) -> None:
        if done.rendered is None:
            if done.reached and not done.plan.target.row.managed:
                # A late request of a former leader may have brought back what went.
                self._remove_others(_AT_REST)
            return
        for one in done.due:
            self._apply(one)
        if done.complete:
            every = done.rendered.objects
            self._remove_others({(one["kind"], one["metadata"]["name"]) for one in every})

    def _apply(self, one: Object) -> None:
        """Apply an object as it is now: a request that is late must not undo the next leader's."""
        name = one["metadata"]["name"]
        there = self.api.get(one["kind"], name)
        version = "" if there is None else there["metadata"]["resourceVersion"]
        self._act()  # after we looked: what a next leader does changes the version
        try:
            self.api.apply(one, force=self.force, version=version)
        except ConflictError:
            now = self.api.get(one["kind"], name)
            if now is not None and now["metadata"]["resourceVersion"] == version:
                raise  # fields of somebody else
            said = f"{one['kind']} {name} changed while this pass worked; the next one looks again"
            raise CancelledError(said) from None

    def _remove_others(self, wanted: Set[tuple[str, str]]) -> None:
        """Remove what we brought here and is not wanted any more (kinds and names)."""
        ours = ",".join(f"{key}={value}" for key, value in MODULE_LABELS.items() if key != "app")
        for kind in _OURS:
            for one in self.api.list(kind, selector=ours):
                metadata = one["metadata"]
                keep = (metadata.get("annotations") or {}).get("helm.sh/resource-policy") == "keep"
                keep = keep or metadata["name"] == SECRET_STATE  # `mode apply` may have brought it
                if (kind, metadata["name"]) in wanted or keep or not _is_ours(one):
                    continue
                self._act()
                self.api.delete(one)


@read_as_told("the fields of an object")
def _is_ours(one: Object) -> bool:
    return any(
        own["manager"] == MANAGER and own["operation"] == "Apply"
        for own in one["metadata"].get("managedFields") or ()
    )


# -- what is read ----------------------------------------------------------------------------------


def _wanted(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a ModuleConfig says of the registry, without what the API notes about it."""
    if config is None:
        raise NotFoundError("it is not there")
    spec = config.get("spec") or {}
    settings = spec.get("settings") or {}
    registry = settings.get("registry") if isinstance(settings, Mapping) else settings
    kept = {"version": spec.get("version"), "settings": {"registry": registry}}
    return {"kind": "ModuleConfig", "metadata": {"name": _DECKHOUSE}, "spec": kept}


def _kept(state: RegistryState) -> ServiceSecrets | None:
    """The secrets that the last pass wrote down."""
    memory = state.noted()
    text = memory.get("secrets") if isinstance(memory, dict) else None
    # None may be another program's, which the pass refuses.
    return None if text is None else parse_secrets(text, SECRET_STATE)


def _installed(secret: Mapping[str, Any] | None) -> RegistrySettings | None:
    """The registry of the installation, as components read it; None where they read by us."""
    if secret is None:
        return None
    data = texts_of(secret)
    if data.get("address", LOGICAL_HOST) == LOGICAL_HOST:
        return None
    given = {
        "imagesRepo": data["address"] + data.get("path", ""),
        "registryDockerCfg": (secret.get("data") or {}).get(".dockerconfigjson"),
        "registryScheme": data.get("scheme", "https").upper(),
        "registryCA": data.get("ca") or None,
    }
    return RegistrySettings.load({"kind": "InitConfiguration", "deckhouse": given})


@read_as_told("a Node")
def _nodes(api: KubeApi) -> list[tuple[Node, NodeFacts]]:
    found = []
    for one in api.list("Node"):
        metadata, status = one["metadata"], one.get("status") or {}
        labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
        name, master = metadata["name"], _CONTROL_PLANE in labels
        addresses = [a["address"] for a in status.get("addresses", ()) if a["type"] == "InternalIP"]
        if not addresses:
            raise RenderingError(f"node {name}: it has no InternalIP yet")
        configured = labels.get(_CONTAINERD, "")
        facts = NodeFacts(
            name,
            master,
            ready=has_condition(status, "Ready"),
            schedulable=not (one.get("spec") or {}).get("unschedulable", False),
            cri=_cri((status.get("nodeInfo") or {}).get("containerRuntimeVersion")),
            containerd_config=(ContainerdConfig(configured) if configured in _CONFIGURED else None),
            version=notes.get(VERSION, UNKNOWN_VERSION),
        )
        found.append((Node(name, addresses[0], master), facts))
    return found


def _cri(version: str | None) -> str | None:
    """`containerd://2.0.4` in the words of the cluster."""
    name, _, number = (version or "").partition("://")
    if name != "containerd":
        return name or None
    return "Containerd" if number.startswith("1.") else "ContainerdV2"


class _ApiObserver:
    """The cluster as one pass asks for it."""

    def __init__(self, owner: Controller, nodes: list[tuple[Node, NodeFacts]]) -> None:
        self._owner, self._api, self.nodes = owner, owner.api, nodes

    def facts(self) -> ClusterFacts:
        """What the API tells; Deckhouse's queue of tasks is not there."""
        api = self._api
        configuration = api.get("Secret", "d8-cluster-configuration", "kube-system")
        started = api.get("ConfigMap", "d8-cluster-is-bootstraped", "kube-system")
        return ClusterFacts(
            bootstrapped=started is not None,
            managed_by_dkp=configuration is not None,
            static=None if configuration is None else _is_static(configuration),
            node_config_managed=api.get("Secret", "registry-bashible-config") is not None,
            nodes=tuple(facts for _, facts in self.nodes),
        )

    def images(self, switch: Switch) -> StepOutcome:
        if self._owner.images is not None:
            return self._owner.images(switch)
        report = check_images(
            self._required(switch.target.check_mode),
            targets_for(switch.target, switch.access),
            limit_s=_CHECK_S,
            run=self._owner.run,
        )
        return report.outcome

    @read_as_told("Deployment deckhouse, or a Pod")
    def _required(self, mode: CheckMode) -> RequiredSet:
        deployment = self._api.get("Deployment", _DECKHOUSE)
        if mode is CheckMode.RELAX:
            return relaxed(deployment)
        if self._owner.digests is not None:
            return from_digest_list(self._owner.digests, "--digests", deployment)
        return RequiredSet.of(mode, self._running())

    def _running(self) -> Iterable[RequiredImage]:
        """What the pods of the platform run, by digest, out of its own repository."""
        secret = self._api.get("Secret", "deckhouse-registry")
        data = texts_of(secret) if secret is not None else {}
        bases = {LOGICAL_BASE, data.get("address", "") + data.get("path", "")}
        for pod in self._api.list("Pod", None):
            space, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
            if not space.startswith("d8-"):
                continue
            for container in pod["spec"]["containers"]:
                with suppress(MirrorError):  # of another registry, in another form
                    image = Reference.parse(container["image"])
                    if image.digest is not None and str(image.repository) in bases:
                        yield RequiredImage("", image.digest, f"pod {space}/{name}")

    @read_as_told("a Pod")
    def replicas(self, _: Switch) -> Sequence[ReplicaPod]:
        there = {pod["spec"].get("nodeName"): pod for pod in self._pods()}
        found = []
        for node, facts in self.nodes:
            if not node.master:
                continue
            pod = there.get(node.name, {})
            notes = pod.get("metadata", {}).get("annotations") or {}
            version = notes.get(pods.VERSION_ANNOTATION, UNKNOWN_VERSION)
            ready = has_condition(pod.get("status") or {}, "Ready")
            found.append(ReplicaPod(node.name, bool(facts.ready), ready, version))
        return found

    def _pods(self) -> list[dict[str, Any]]:
        return self._api.list("Pod", selector="component=registry-service,type=node-services")

    @read_as_told("Deployment registry-incluster-proxy")
    def proxy(self, switch: Switch) -> StepOutcome:
        wanted = _named(switch.final, "Deployment", pods.PROXY)
        if wanted is None:
            return StepOutcome(
                False,
                "the images of the in-cluster proxy are not known; start the controller with "
                "--image distribution=… and --image auth=…",
            )
        there = self._api.get("Deployment", pods.PROXY)
        count, status = wanted["spec"]["replicas"], (there or {}).get("status") or {}
        if there is None or notes_of(there).get(VERSION) != notes_of(wanted).get(VERSION):
            return outcomes.in_cluster_proxy(count, 0)
        if status.get("observedGeneration", 0) < there["metadata"].get("generation", 0):
            return outcomes.in_cluster_proxy(count, 0)
        return outcomes.in_cluster_proxy(
            count, status.get("readyReplicas") or 0, status.get("updatedReplicas") or 0
        )

    @read_as_told("Deployment deckhouse, or its Pod")
    def components(self, switch: Switch) -> StepOutcome:
        wanted = _named(switch.final, "Secret", "deckhouse-registry")
        if wanted is None:
            return StepOutcome(True)  # nothing is rendered for them
        secret = self._api.get("Secret", "deckhouse-registry") or {}
        given = secret.get("data") or {}
        current = all(given.get(key) == value for key, value in wanted["data"].items())
        # Keyed: pods show it to whoever may not read the Secret.
        version = inputs_hash(wanted["data"], switch.kept.http_secret)
        if current:
            self._restart(version)
        there = self._api.list("Pod", selector="app=deckhouse")
        new = [pod for pod in there if notes_of(pod).get(VERSION) == version]
        ready = [pod for pod in new if has_condition(pod.get("status") or {}, "Ready")]
        return outcomes.registry_switch(
            secret_current=current,
            annotated=current,
            pod_exists=bool(new),
            pod_ready=len(ready) == len(there),
        )

    def _restart(self, version: str) -> None:
        """Let Deckhouse's own pod start anew with the registry that it reads now."""
        there = self._api.get("Deployment", _DECKHOUSE)
        template = (there or {}).get("spec", {}).get("template", {})
        if there is not None and notes_of(template).get(VERSION) != version:
            self._owner._act()
            # As it was read: a request that is late must not start it anew for what was before.
            known = {"resourceVersion": there["metadata"]["resourceVersion"]}
            note = {"template": {"metadata": {"annotations": {VERSION: version}}}}
            self._api.merge("Deployment", _DECKHOUSE, {"metadata": known, "spec": note})

    def left(self, _: Switch) -> Iterable[str]:
        return [str((pod.get("spec") or {}).get("nodeName")) for pod in self._pods()]

    def proxy_exists(self, _: Switch) -> bool:
        return self._api.get("Deployment", pods.PROXY) is not None


def _is_static(secret: Mapping[str, Any]) -> bool | None:
    text = texts_of(secret).get("cluster-configuration.yaml")
    if text is None:
        return None
    documents = read_documents(text, "Secret d8-cluster-configuration", "expected keys and values")
    return any(one.get("clusterType") == "Static" for one in documents)


def _named(rendered: Rendered, kind: str, name: str) -> Object | None:
    found = (one for one in rendered.objects if one["kind"] == kind)
    return next((one for one in found if one["metadata"]["name"] == name), None)
