"""A controller that finds all images, led pass by pass beside a cluster that lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from mirror.controller import Reconciled, RotationTurn, next_turn
from mirror.controller.cluster import Controller
from mirror.controller.kube import KubeApi
from mirror.modes.outcomes import StepOutcome
from mirror.modes.settings import RegistrySettings
from mirror.modes.state import RegistryState, inputs_hash
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.render import Rendered, RenderOptions, render
from mirror.nodeconfig.service_secrets import ServiceSecrets, prepare_secrets, secrets_text
from tests.controller.cluster_life import Life
from tests.support.kube_api import KubeCluster
from tests.support.rendered_cluster import ALL_IMAGES, kept

OPTIONS = RenderOptions(images=ALL_IMAGES)


@pytest.fixture
def made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of certificates take long to make, and the same files to render again and again."""

    def prepared(
        held: ServiceSecrets | None, nodes: Sequence[Node], now: datetime
    ) -> ServiceSecrets:
        key = (secrets_text(held or kept()), tuple(nodes))
        if key not in PREPARED:
            PREPARED[key] = prepare_secrets(held or kept(), nodes, now)
        return PREPARED[key]

    def turned(
        held: ServiceSecrets, request: str, *more: Any, complete: bool | None
    ) -> RotationTurn:
        key = (secrets_text(held), request, more[0], complete)
        if key not in TURNED:
            TURNED[key] = next_turn(held, request, *more, complete=complete)
        return TURNED[key]

    def remembered(
        settings: RegistrySettings, nodes: Any, secrets: ServiceSecrets, **more: Any
    ) -> Rendered:
        previous = more.get("previous")
        switch = (inputs_hash(settings, previous), more.get("switched"), tuple(nodes))
        key = (*switch, secrets_text(secrets))
        if key not in RENDERED:
            RENDERED[key] = render(settings, nodes, secrets, **more)
        return RENDERED[key]

    monkeypatch.setattr("mirror.controller.prepare_secrets", prepared)
    monkeypatch.setattr("mirror.controller.next_turn", turned)
    monkeypatch.setattr("mirror.controller.render", remembered)


PREPARED: dict[Any, ServiceSecrets] = {}
TURNED: dict[Any, RotationTurn] = {}
RENDERED: dict[Any, Rendered] = {}


def controller(api: KubeApi, **more: Any) -> Controller:
    """One that finds all images where it looks."""
    more = {"force": True, "images": lambda *_: StepOutcome(True), **more}
    return Controller(api, OPTIONS, **more)


def settle(one: Controller, life: Life) -> Reconciled:
    """Passes, between which the cluster does its part, until the wanted mode is reached."""
    for _ in range(30):
        done = one.reconcile()
        assert not isinstance(done, str), done
        life.live()
        if done.reached:
            return done
    raise AssertionError("it does not come to rest")


def state_of(cluster: KubeCluster) -> RegistryState:
    return RegistryState.load(cluster.get("Secret", "registry-state"))
