"""Conditions: their mechanics, their messages, and the document that keeps them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from mirror.errors import InvalidStateError
from mirror.modes import ConditionType, Mode, ModeKind, conditions_of, outcomes
from mirror.modes.outcomes import ReplicaPod, StepOutcome
from mirror.modes.settings import ContainerdConfig, RegistrySettings
from mirror.modes.state import (
    Condition,
    Conditions,
    Reason,
    RegistryState,
    evaluate,
    inputs_hash,
    set_condition,
)
from tests.support.mode_samples import SETTINGS, node

C = ConditionType
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
SECRET = "hunter2-s3cret"


def run(
    kind: ModeKind, ready: set[C], conditions: Conditions = (), now: datetime = NOW
) -> Conditions:
    """One run in which exactly `ready` is reached."""
    return evaluate(
        kind,
        conditions,
        lambda step: StepOutcome(step in ready, "" if step in ready else "why"),
        now,
    )


def types(conditions: Conditions) -> list[C]:
    return [one.type for one in conditions]


# -- mechanics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ModeKind)
def test_a_run_stops_at_the_first_step_that_is_not_reached(kind: ModeKind) -> None:
    steps = conditions_of(kind)[:-1]
    for number in range(len(steps)):
        asked: list[C] = []

        def observe(step: C, asked: list[C] = asked, last: int = number) -> StepOutcome:
            asked.append(step)
            return StepOutcome(len(asked) <= last, "why")

        conditions = evaluate(kind, (), observe, NOW)
        assert tuple(asked) == steps[: number + 1]
        assert types(conditions) == [*steps[: number + 1], C.READY]
        assert [one.status for one in conditions] == [*[True] * number, False, False]
        assert conditions[-1].message == f"Transitioning to {kind.mode}"
        assert conditions[-2].reason is conditions[-1].reason is Reason.PROCESSING


@pytest.mark.parametrize("kind", ModeKind)
def test_a_run_that_reaches_everything_is_ready(kind: ModeKind) -> None:
    conditions = run(kind, set(C))
    assert types(conditions) == list(conditions_of(kind))
    assert all(one.status for one in conditions)
    reasons = {one.type: one.reason for one in conditions}
    assert reasons.pop(C.IMAGES) is Reason.READY
    assert set(reasons.values()) == {Reason.NONE}


def test_what_was_reached_once_is_asked_for_again() -> None:
    done = run(ModeKind.DIRECT, set(C))
    again = run(ModeKind.DIRECT, set(C) - {C.IMAGES}, done, LATER)
    status = {one.type: one.status for one in again}
    assert not status[C.IMAGES]
    assert not status[C.READY]
    assert types(again)[-2:] == [C.IMAGES, C.READY]  # the order of the last evaluation


def test_the_time_of_a_transition_moves_with_the_status_alone() -> None:
    first = run(ModeKind.DIRECT, {C.IMAGES})
    second = run(ModeKind.DIRECT, {C.IMAGES, C.PREFLIGHT}, first, LATER)
    times = {one.type: one.last_transition_time for one in second}
    assert times[C.IMAGES] == NOW
    assert times[C.PREFLIGHT] == LATER
    assert times[C.TRANSITION] == LATER
    assert times[C.READY] == NOW


def test_another_message_moves_no_time() -> None:
    old = Condition(C.IMAGES, False, NOW, Reason.PROCESSING, "Initializing")
    new = Condition(C.IMAGES, False, LATER, Reason.PROCESSING, "1 of 2")
    (kept,) = set_condition((old,), new)
    assert (kept.last_transition_time, kept.message) == (NOW, "1 of 2")


def test_a_refused_switch_is_a_true_condition_and_goes_with_the_next_run() -> None:
    conditions = RegistryState().refused(ModeKind.PROXY, ModeKind.LOCAL, NOW).conditions
    (error,) = conditions
    assert error.to_document() == {
        "type": "ErrTransitionNotSupported",
        "status": "True",
        "reason": "Error",
        "message": "mode transition from Proxy to Local not supported",
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }
    assert C.NOT_SUPPORTED not in types(run(ModeKind.PROXY, set(), conditions))


@given(
    st.lists(
        st.tuples(st.sampled_from(list(ModeKind)), st.sets(st.sampled_from(list(C)))), max_size=6
    )
)
def test_ready_means_that_every_step_of_the_target_was_just_reached(
    runs: list[tuple[ModeKind, set[C]]],
) -> None:
    conditions: Conditions = ()
    for number, (kind, ready) in enumerate(runs):
        conditions = run(kind, ready, conditions, NOW + timedelta(minutes=number))
        assert len(set(types(conditions))) == len(conditions)
        assert conditions[-1].type is C.READY
        assert conditions[-1].status is (set(conditions_of(kind)[:-1]) <= ready)


# -- messages --------------------------------------------------------------------------------------

V1, V2 = "a1b2c3d4" + "0" * 56, "e5f6a7b8" + "0" * 56


def test_preflight_names_each_node_and_why() -> None:
    nodes = [
        node("worker-1", containerd_config=None),
        node("master-0", containerd_config=ContainerdConfig.CUSTOM),
    ]
    assert outcomes.preflight(nodes, node_config_managed=False) == StepOutcome(
        False,
        "Check current nodes configuration\n"
        "2/2 node(s) Unready:\n"
        "- master-0: has custom toml merge containerd configuration\n"
        "- worker-1: unknown containerd configuration, waiting...",
    )
    assert outcomes.preflight(nodes, node_config_managed=True).ready
    assert outcomes.preflight([node("a")], node_config_managed=False).ready
    nobody = outcomes.preflight([], node_config_managed=False)
    assert nobody == StepOutcome(False, "Check current nodes configuration")


def test_replicas_are_waited_for_one_by_one() -> None:
    pods = [
        ReplicaPod("master-0", True, True, V2),
        ReplicaPod("master-2", True, True, V1),
        ReplicaPod("master-1", False, True, V2),
    ]
    assert outcomes.node_services(pods, V2) == StepOutcome(
        False,
        "1/3 node(s) ready. Waiting:\n"
        "- master-1: node is not Ready\n"
        "- master-2: services pod(s) is not Ready or config version mismatch "
        '(!= "e5f6a7b8…")',
    )
    assert outcomes.node_services(pods[:1], V2) == StepOutcome(True)
    assert not outcomes.node_services([ReplicaPod("m", True, False, V2)], V2).ready
    assert not outcomes.node_services([], V2).ready
    each = {"master-0": V2, "master-2": V1}
    assert outcomes.node_services(pods[:2], each).ready
    assert not outcomes.node_services(pods[:2], {**each, "master-2": V2}).ready
    unknown = ReplicaPod("master-3", True, True)  # nobody has said what it runs with
    assert not outcomes.node_services([unknown], {}).ready


def test_nodes_are_waited_for_until_they_have_the_version() -> None:
    nodes = [node("worker-0", version=V1), node("a", version=V2), node("b")]
    assert outcomes.containerd_config(nodes, V2) == StepOutcome(
        False,
        "1/3 node(s) ready. Waiting:\n"
        '- b: "unknown" → "e5f6a7b8…"\n'
        '- worker-0: "a1b2c3d4…" → "e5f6a7b8…"',
    )
    assert outcomes.containerd_config([node("a", version=V2)] * 3, V2) == StepOutcome(
        True, "All 3 node(s) updated to version e5f6a7b8…"
    )
    assert outcomes.containerd_config(nodes, None).message == "Creating Managed configuration..."
    assert outcomes.containerd_config(nodes, None, managed=False).message == (
        "Creating Unmanaged configuration..."
    )
    assert outcomes.containerd_config(nodes, V2, written=False).message == (
        "Applying configuration to nodes"
    )
    assert not outcomes.containerd_config([], V2).ready


@pytest.mark.parametrize(("count", "more"), [(10, None), (11, 1), (250, 240)])
def test_a_list_has_ten_nodes_at_most(count: int, more: int | None) -> None:
    nodes = [node(f"worker-{number:03}") for number in range(count)]
    messages = (
        outcomes.containerd_config(nodes, V2).message,
        outcomes.cleanup_node_services([one.name for one in nodes]).message,
        outcomes.preflight(
            [node(one.name, containerd_config=None) for one in nodes], node_config_managed=False
        ).message.partition("\n")[2],
    )
    for message in messages:
        _, *lines = message.splitlines()
        assert sum(line.startswith("- worker-") for line in lines) == 10
        assert lines[10:] == ([] if more is None else [f"...and {more} more"])


def test_the_controller_is_followed_step_by_step() -> None:
    messages = []
    for done in range(5):
        flags = [number < done for number in range(4)]
        outcome = outcomes.registry_switch(
            secret_current=flags[0], annotated=flags[1], pod_exists=flags[2], pod_ready=flags[3]
        )
        messages.append(outcome.message)
        assert outcome.ready is (done == 4)
    assert messages == [
        "Updating registry for deckhouse components",
        "Applying new registry to deckhouse-controller",
        "Waiting for deckhouse-controller pod",
        "Waiting for deckhouse-controller to become ready",
        "",
    ]


def test_cleanup_waits_for_what_is_left() -> None:
    left = outcomes.cleanup_node_services(["master-1", "master-0"])
    assert left == StepOutcome(False, "Waiting for nodes cleanup:\n- master-0\n- master-1")
    assert outcomes.cleanup_node_services([]).ready
    assert outcomes.cleanup_in_cluster_proxy(exists=False).ready
    assert not outcomes.cleanup_in_cluster_proxy(exists=True).ready


def test_the_proxy_is_there_when_all_of_it_is_new_and_ready() -> None:
    assert outcomes.in_cluster_proxy(3, 3).ready
    assert not outcomes.in_cluster_proxy(3, 3, updated=2).ready
    assert not outcomes.in_cluster_proxy(0, 0).ready
    assert outcomes.in_cluster_proxy(3, 2).message == (
        "Waiting for rollout: 2/3 updated, 2/3 ready"
    )


# -- the state document ----------------------------------------------------------------------------


def only_preflight(step: C) -> StepOutcome:
    return StepOutcome(True) if step is C.PREFLIGHT else StepOutcome(False, "why")


def in_flight() -> RegistryState:
    state = RegistryState(mode=Mode.DIRECT, private=SecretStr(f"users: {SECRET}\n"))
    aimed = state.aiming_at(Mode.LOCAL, "abc")
    return aimed.advanced(ModeKind.LOCAL, only_preflight, NOW)


def test_a_state_says_what_was_completed_and_what_is_wanted() -> None:
    assert in_flight().to_document() == {
        "hash": "abc",
        "mode": "Direct",
        "target_mode": "Local",
        "conditions": [
            {
                "type": "ContainerdConfigPreflightReady",
                "status": "True",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            },
            {
                "type": "NodeServicesReady",
                "status": "False",
                "reason": "Processing",
                "message": "why",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            },
            {
                "type": "Ready",
                "status": "False",
                "reason": "Processing",
                "message": "Transitioning to Local",
                "lastTransitionTime": "2026-01-02T03:04:05Z",
            },
        ],
    }
    assert in_flight().in_flight


def test_the_mode_follows_when_everything_is_reached() -> None:
    done = in_flight().advanced(ModeKind.LOCAL, lambda _: StepOutcome(True), LATER)
    assert (done.mode, done.target_mode, done.in_flight) == (Mode.LOCAL, Mode.LOCAL, False)
    with pytest.raises(ValueError, match="aims at Local, not at Proxy"):
        done.advanced(ModeKind.PROXY, lambda _: StepOutcome(True), LATER)


def test_another_target_clears_the_conditions_and_other_parameters_do_not() -> None:
    state = in_flight()
    assert state.aiming_at(Mode.LOCAL, "def").conditions == state.conditions
    cleared = state.aiming_at(Mode.DIRECT, "def")
    assert cleared.conditions == ()
    assert cleared.private == state.private


def test_a_cluster_without_the_secret_is_unmanaged(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    sources: list[Path | str | dict[str, str] | None] = [None, "", {}, tmp_path / "empty"]
    for source in sources:
        state = RegistryState.load(source)
        assert (state.mode, state.target_mode, state.conditions) == (
            *(Mode.UNMANAGED, Mode.UNMANAGED, ()),
        )


def test_the_secret_comes_back_as_it_was(tmp_path: Path) -> None:
    state = in_flight()
    secret = state.to_secret()
    assert secret["type"] == "registry/state"
    metadata = secret["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("registry-state", "d8-system")
    file = tmp_path / "state.yaml"
    file.write_text(yaml.safe_dump(secret))
    for source in (secret, json.dumps(secret), yaml.safe_dump(secret), file):
        assert RegistryState.load(source) == state
    assert base64.b64decode(secret["data"]["state"]).decode() == f"users: {SECRET}\n"


def test_plain_keys_are_read_too() -> None:
    state = in_flight()
    document = state.to_document()
    assert RegistryState.load(document).conditions == state.conditions
    texts = {**document, "conditions": yaml.safe_dump(document["conditions"]), "state": SECRET}
    read = RegistryState.load({"kind": "Secret", "stringData": texts})
    assert read.conditions == state.conditions
    assert read.private is not None
    # YAML makes times of what looks like one.
    assert RegistryState.load(yaml.safe_dump(document)).conditions == state.conditions
    assert RegistryState.load("mode: Proxy").target_mode is Mode.PROXY


def test_the_private_part_is_carried_and_never_shown() -> None:
    state = in_flight()
    assert SECRET not in repr(state)
    assert SECRET not in str(state)
    assert SECRET not in json.dumps(state.to_document())
    assert "state" not in state.to_document()


def test_conditions_of_another_version_are_dropped() -> None:
    conditions = [
        {"type": "FutureReady", "status": "True"},
        *in_flight().to_document()["conditions"],
    ]
    state = RegistryState.load({"mode": "Direct", "conditions": conditions})
    assert types(state.conditions) == [C.PREFLIGHT, C.NODE_SERVICES, C.READY]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("- a", "not a mapping"),
        ("a: [", "not YAML"),
        ("mode: !!int", "not YAML \\(line 1\\)"),
        ({"replicas": 1}, "found other keys"),
        ({"kind": "ConfigMap", "data": {}}, "another kind of object"),
        ({"kind": "Secret", "metadata": {"name": "other"}, "data": {}}, "another Secret"),
        ({"kind": "Secret", "data": {"mode": "%"}}, "data.mode: expected text in base64"),
        ({"kind": "Secret", "data": [1]}, "data: expected a mapping"),
        ({"mode": "Managed"}, "mode: expected Direct, Proxy, Local, Unmanaged, found 'Managed'"),
        ({"mode": "Local", "conditions": 5}, "expected a list of conditions"),
        ({"mode": "Local", "conditions": [5]}, "expected a list of conditions"),
        ({"mode": "Local", "conditions": [{}]}, "a condition has no type"),
        ({"mode": "Local", "conditions": [{"type": "Ready"}]}, "neither True nor False"),
        (
            {"mode": "Local", "conditions": [{"type": "Ready", "status": "True"}]},
            "lastTransitionTime is not a time",
        ),
    ],
)
def test_another_document_is_refused_with_its_reason(source: Any, said: str) -> None:
    with pytest.raises(InvalidStateError, match=said):
        RegistryState.load(source)


def test_no_message_repeats_what_is_private(tmp_path: Path) -> None:
    for source in (
        f"state: '{SECRET}",
        {"kind": "Secret", "data": {"state": SECRET}},
        tmp_path / "none",
    ):
        with pytest.raises(InvalidStateError) as caught:
            RegistryState.load(source)
        assert SECRET not in str(caught.value)


def test_the_hash_follows_from_all_inputs_passwords_included() -> None:
    def proxy(password: str) -> RegistrySettings:
        section = {"imagesRepo": "h/x", "username": "u", "password": password}
        return RegistrySettings.load({"mode": "Proxy", "proxy": section})

    first = inputs_hash(proxy("a"), {"masters": ["m"]})
    assert first == inputs_hash(proxy("a"), {"masters": ["m"]})
    assert len(first) == 64
    others = {
        inputs_hash(proxy("b"), {"masters": ["m"]}),
        inputs_hash(proxy("a"), {"masters": ["n"]}),
        inputs_hash(SETTINGS[ModeKind.LOCAL], {"masters": ["m"]}),
        inputs_hash(proxy("a")),
    }
    assert len(others | {first}) == 5
