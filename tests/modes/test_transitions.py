"""Planning a switch: the whole matrix, every precondition, every warning, and laws of all plans."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.modes import (
    VIA_KINDS,
    ConditionType,
    Mode,
    ModeKind,
    Plane,
    StoreContent,
    Verdict,
    allowed,
    conditions_of,
    legal_path,
)
from mirror.modes.outcomes import Cause, Risk
from mirror.modes.plan import SwitchPlan, plan_switch
from mirror.modes.settings import ClusterFacts, ContainerdConfig, RegistrySettings
from tests.support.mode_samples import GOOD, SETTINGS, UPSTREAM, node

C = ConditionType

D, P, L, U, OLD = (
    ModeKind.DIRECT,
    ModeKind.PROXY,
    ModeKind.LOCAL,
    ModeKind.UNMANAGED,
    ModeKind.LEGACY,
)

OTHER = {
    kind: RegistrySettings.load(
        {"mode": kind.mode, kind.value.lower(): {**UPSTREAM, "imagesRepo": "other.example/x"}}
    )
    for kind in (D, P, U)
}
"""The kinds that have parameters, with another upstream."""

PAIRS = {(before, after): before.row.switches[after] for before in ModeKind for after in ModeKind}

DETOURS = {
    (P, L): (D, L),
    (L, P): (D, P),
    (L, OLD): (U, OLD),
    (D, OLD): (U, OLD),
    (P, OLD): (U, OLD),
}


def changed(**facts: Any) -> ClusterFacts:
    return replace(GOOD, **facts)


def planned(
    before: ModeKind, after: ModeKind, facts: ClusterFacts = GOOD, **how: Any
) -> SwitchPlan:
    """A plan; for a change of parameters, to another upstream."""
    parameters = before is after and after in OTHER
    target = OTHER[after] if parameters else SETTINGS[after]
    return plan_switch(SETTINGS[before], target, facts, **how)


def causes(plan: SwitchPlan) -> list[Cause]:
    return [refusal.cause for refusal in plan.refusals]


def risks(plan: SwitchPlan) -> dict[Risk, str]:
    return {warning.risk: warning.message for warning in plan.warnings}


# -- the matrix ------------------------------------------------------------------------------------


def test_every_cell_of_the_matrix_follows_from_what_the_modes_are() -> None:
    for (before, after), verdict in PAIRS.items():
        old, new = before.row, after.row
        if before is after:
            has_parameters = after.mode is not Mode.LOCAL and new.configurable
            expected = Verdict.PARAMETERS if has_parameters else Verdict.NOTHING
        elif old.runs_replicas and new.runs_replicas:
            expected = Verdict.FORBIDDEN  # each would delete what the other one keeps
        elif not new.configurable and old.managed:
            # It goes on with saved parameters: of a store of its own, nobody saves any.
            expected = Verdict.FORBIDDEN if old.holds_own_images else Verdict.UNDOCUMENTED
        else:
            expected = Verdict.SWITCH
        assert verdict is expected, (before, after)


def test_from_everywhere_a_stopover_can_be_reached_and_leads_everywhere() -> None:
    for stopover in VIA_KINDS:
        for kind in ModeKind:
            assert allowed(kind, stopover)
            assert allowed(stopover, kind, strict=False)
    assert all(any(allowed(stopover, kind) for stopover in VIA_KINDS) for kind in ModeKind)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_pair_is_planned_or_refused_as_the_matrix_has_it(
    before: ModeKind, after: ModeKind
) -> None:
    plan = planned(before, after)
    verdict = PAIRS[before, after]
    assert plan.verdict is verdict
    if verdict in (Verdict.FORBIDDEN, Verdict.UNDOCUMENTED):
        assert causes(plan) == [Cause.NOT_SUPPORTED]
        (refusal,) = plan.refusals
        assert refusal.path == plan.path == DETOURS[before, after]
        assert refusal.message.startswith(f"mode transition from {before} to {after} not supported")
        assert " → ".join([before, *refusal.path]) in refusal.message
        assert plan.steps == ()
    else:
        assert plan.allowed
        assert plan.path == (after,)
        assert bool(plan.steps) is (verdict is not Verdict.NOTHING)


@pytest.mark.parametrize("before", [D, P])
def test_what_documents_advise_against_is_done_when_asked_for(before: ModeKind) -> None:
    plan = planned(before, OLD, strict=False)
    assert plan.allowed
    assert plan.steps[-1].condition is C.READY
    assert not planned(L, OLD, strict=False).allowed


@pytest.mark.parametrize("kind", [D, P, U])
def test_the_same_parameters_are_nothing_to_do(kind: ModeKind) -> None:
    plan = plan_switch(SETTINGS[kind], SETTINGS[kind], GOOD)
    assert (plan.verdict, plan.steps, plan.warnings) == (Verdict.NOTHING, (), ())


def test_each_parameter_counts_but_how_images_are_checked() -> None:
    def proxy(**fields: str) -> RegistrySettings:
        return RegistrySettings.load({"mode": "Proxy", "proxy": {**UPSTREAM, **fields}})

    for change in (
        *({"imagesRepo": "x/y"}, {"username": "x"}, {"password": "x"}, {"scheme": "HTTP"}),
        {"ttl": "5h"},
    ):
        assert plan_switch(proxy(), proxy(**change), GOOD).verdict is Verdict.PARAMETERS
    for same in ({"checkMode": "Relax"}, {"scheme": "HTTPS"}):
        assert plan_switch(proxy(), proxy(**same), GOOD).verdict is Verdict.NOTHING
    hours, minutes = proxy(ttl="1h"), proxy(ttl="60m")
    assert plan_switch(hours, minutes, GOOD).verdict is Verdict.NOTHING


@pytest.mark.parametrize("kind", ModeKind)
def test_the_order_of_the_conditions_follows_from_what_a_mode_is(kind: ModeKind) -> None:
    row, order = kind.row, kind.row.conditions
    always = {C.IMAGES, C.TRANSITION, C.REGISTRY_SWITCH, C.FINAL, C.READY}
    expected = always | ({C.PREFLIGHT} if row.configurable else set())
    # What a mode runs must come up; what it does not run is cleaned up.
    expected |= {C.NODE_SERVICES if row.runs_replicas else C.CLEANUP_NODE_SERVICES}
    expected |= {C.IN_CLUSTER_PROXY if row.runs_in_cluster_proxy else C.CLEANUP_IN_CLUSTER_PROXY}
    assert set(order) == expected
    assert len(order) == len(expected)
    place = {condition: number for number, condition in enumerate(order)}
    switch = [C.TRANSITION, C.REGISTRY_SWITCH, C.FINAL]
    ends = [one for one in order if one.value.startswith("Cleanup")] + [C.READY]
    assert list(order[-len(ends) :]) == ends
    assert [one for one in order if one in switch] == switch
    assert place[C.IMAGES] < place[C.TRANSITION]
    # A store is filled by pushing into it, which its replicas must be there for.
    if row.runs_replicas:
        assert (place[C.NODE_SERVICES] < place[C.IMAGES]) is row.holds_own_images
        assert place[C.NODE_SERVICES] < place[C.TRANSITION]
    if row.runs_in_cluster_proxy:
        assert place[C.TRANSITION] < place[C.IN_CLUSTER_PROXY] < place[C.REGISTRY_SWITCH]


@pytest.mark.parametrize("pair", [p for p, v in PAIRS.items() if v is Verdict.SWITCH])
def test_the_steps_are_the_conditions_of_the_target_in_their_order(
    pair: tuple[ModeKind, ModeKind],
) -> None:
    plan = planned(*pair)
    assert [step.condition for step in plan.steps] == list(conditions_of(pair[1]))
    assert all(step.action for step in plan.steps)


def test_without_saved_parameters_the_deprecated_kind_has_fewer_steps() -> None:
    plan = planned(U, OLD, changed(saved_parameters=False))
    assert [step.condition for step in plan.steps] == list(conditions_of(OLD))[3:]


# -- preconditions ---------------------------------------------------------------------------------

MANAGED = [D, P, L]
FROM_LEGACY = [D, P, L, U]


@pytest.mark.parametrize("after", list(ModeKind))
def test_nothing_changes_before_bootstrap_is_finished(after: ModeKind) -> None:
    plan = planned(U, after, changed(bootstrapped=False))
    assert causes(plan) == [Cause.BOOTSTRAP]
    assert "completely finished" in plan.refusals[0].message


@pytest.mark.parametrize("after", list(ModeKind))
def test_a_cluster_is_installed_in_direct_or_unmanaged(after: ModeKind) -> None:
    plan = plan_switch(None, SETTINGS[after], changed(bootstrapped=None))
    if after in (P, L):
        assert causes(plan) == [Cause.BOOTSTRAP]
        assert plan.refusals[0].path == plan.path == (D, after)
    else:
        assert plan.allowed
        assert plan.path == (after,)


@pytest.mark.parametrize("after", FROM_LEGACY)
@pytest.mark.parametrize("cri", ["Docker", "NotManaged", "containerd"])
def test_every_node_must_run_a_containerd_that_is_known(after: ModeKind, cri: str) -> None:
    nodes = (*(GOOD.nodes or ()), node("worker-1", cri=cri))
    plan = planned(OLD, after, changed(nodes=nodes))
    assert causes(plan) == [Cause.CRI]
    assert plan.refusals[0].message.endswith(
        f"container runtime must be Containerd or ContainerdV2: worker-1 ({cri})"
    )
    mixed = (node("a", master=True, cri="Containerd"), node("b", cri="ContainerdV2"))
    assert planned(OLD, after, changed(nodes=mixed)).allowed


@pytest.mark.parametrize("after", FROM_LEGACY)
def test_a_managed_kubernetes_cannot_be_switched(after: ModeKind) -> None:
    plan = planned(OLD, after, changed(managed_by_dkp=False))
    assert causes(plan) == [Cause.MANAGED_KUBERNETES]
    assert "not be a Managed Kubernetes" in plan.refusals[0].message


@pytest.mark.parametrize("after", FROM_LEGACY)
def test_replicas_need_a_static_cluster(after: ModeKind) -> None:
    plan = planned(OLD, after, changed(static=False))
    assert causes(plan) == ([Cause.NOT_STATIC] if after in (P, L) else [])


@pytest.mark.parametrize("after", FROM_LEGACY)
def test_own_containerd_settings_are_moved_before_the_first_switch(after: ModeKind) -> None:
    custom = node("worker-1", containerd_config=ContainerdConfig.CUSTOM)
    nodes = (*(GOOD.nodes or ()), custom)
    plan = planned(OLD, after, changed(nodes=nodes))
    assert causes(plan) == [Cause.CONTAINERD_CONFIG]
    assert "/etc/containerd/registry.d: worker-1" in plan.refusals[0].message
    assert planned(OLD, after, changed(nodes=nodes, node_config_managed=True)).allowed


@pytest.mark.parametrize("after", FROM_LEGACY)
@pytest.mark.parametrize("change", [{"ready": False}, {"schedulable": False}])
def test_masters_are_ready_and_schedulable_at_the_first_switch(
    after: ModeKind, change: dict[str, bool]
) -> None:
    nodes = (node("master-0", master=True), node("master-1", master=True, **change))
    plan = planned(OLD, after, changed(nodes=nodes))
    assert causes(plan) == [Cause.MASTERS]
    assert plan.refusals[0].message.endswith("Ready and schedulable: master-1")
    assert planned(OLD, after, changed(nodes=(nodes[0], node("worker-0", **change)))).allowed
    # Later it must be possible to leave a mode whose master has died.
    assert planned(L, D, changed(nodes=nodes)).allowed


@pytest.mark.parametrize("after", FROM_LEGACY)
def test_the_queue_is_empty_at_the_first_switch(after: ModeKind) -> None:
    plan = planned(OLD, after, changed(queue_empty=False))
    assert causes(plan) == [Cause.QUEUE]
    assert planned(OLD, after, changed(queue_empty=False, node_config_managed=True)).allowed


@pytest.mark.parametrize("after", list(ModeKind))
def test_the_targets_registry_must_hold_the_required_images(after: ModeKind) -> None:
    plan = planned(U, after, changed(images_present=False))
    # Local is filled under way, and its switch waits for that.
    assert causes(plan) == ([] if after is L else [Cause.IMAGES])
    if after is L:
        assert plan.steps[2].condition is C.IMAGES


def test_the_deprecated_kind_without_saved_parameters_needs_no_images() -> None:
    assert planned(U, OLD, changed(images_present=False, saved_parameters=False)).allowed


@pytest.mark.parametrize("after", [D, P, U])
def test_an_address_without_a_path_is_refused_with_what_to_do(after: ModeKind) -> None:
    target = RegistrySettings.load(
        {"mode": after.mode, after.value.lower(): {"imagesRepo": "reg.example"}}
    )
    plan = plan_switch(SETTINGS[OLD], target, GOOD)
    assert causes(plan) == [Cause.SETTINGS]
    assert "such as reg.example/deckhouse/ee" in plan.refusals[0].message


def test_the_deprecated_kind_takes_no_other_address() -> None:
    target = RegistrySettings.load(
        {"kind": "InitConfiguration", "deckhouse": {"imagesRepo": "other.example/x"}}
    )
    plan = plan_switch(SETTINGS[U], target, GOOD)
    assert causes(plan) == [Cause.SETTINGS]
    assert plan.refusals[0].path == (U,)


@pytest.mark.parametrize("before", [D, P])
def test_nodes_are_not_left_without_a_way_in_the_deprecated_kind(before: ModeKind) -> None:
    plan = planned(before, OLD, changed(saved_parameters=False), strict=False)
    assert causes(plan) == [Cause.SETTINGS]
    assert "complete a switch to configurable Unmanaged first" in plan.refusals[0].message
    assert plan.refusals[0].path == (U, OLD)
    aborted = changed(saved_parameters=False, aborted=OTHER[U])
    assert causes(planned(U, OLD, aborted)) == [Cause.SETTINGS]
    assert planned(U, OLD, changed(saved_parameters=False, aborted=SETTINGS[OLD])).allowed


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = (
        node(
            "m", master=True, ready=False, cri="Docker", containerd_config=ContainerdConfig.CUSTOM
        ),
    )
    facts = ClusterFacts(
        *(False, False, False, False, False, False, False),
        nodes=bad,
    )
    plan = planned(OLD, P, facts)
    assert set(causes(plan)) == set(Cause) - {Cause.NOT_SUPPORTED, Cause.SETTINGS}
    assert plan.steps == ()


def test_what_nobody_has_looked_at_is_a_doubt_and_no_refusal() -> None:
    plan = planned(OLD, L, ClusterFacts())
    assert plan.allowed
    assert {doubt.cause for doubt in plan.doubts} == {
        *(Cause.BOOTSTRAP, Cause.MANAGED_KUBERNETES, Cause.CRI, Cause.NOT_STATIC),
        *(Cause.CONTAINERD_CONFIG, Cause.MASTERS, Cause.QUEUE),
    }
    assert planned(OLD, L).doubts == ()
    unknown = planned(OLD, D, changed(images_present=None))
    assert [doubt.cause for doubt in unknown.doubts] == [Cause.IMAGES]


def test_a_cluster_whose_nodes_were_not_found_is_in_doubt() -> None:
    plan = planned(OLD, D, changed(nodes=()))
    assert Cause.MASTERS in {doubt.cause for doubt in plan.doubts}


# -- warnings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [OLD, U, D])
@pytest.mark.parametrize(
    ("after", "stores", "loses"),
    [
        (L, {StoreContent.EMPTY}, False),
        (L, {StoreContent.PLAIN}, False),
        (L, {StoreContent.CACHE}, True),
        (L, {StoreContent.EMPTY, StoreContent.CACHE}, True),
        (P, {StoreContent.EMPTY}, False),
        (P, {StoreContent.CACHE}, False),
        (P, {StoreContent.PLAIN}, True),
        (P, {StoreContent.PLAIN, StoreContent.CACHE}, True),
        (L, None, True),
        (P, None, True),
    ],
)
def test_a_store_that_an_earlier_mode_left_is_lost_when_cache_and_registry_change_places(
    before: ModeKind, after: ModeKind, stores: set[StoreContent] | None, loses: bool
) -> None:
    known = None if stores is None else frozenset(stores)
    plan = planned(before, after, changed(stores=known))
    assert (Risk.DATA_LOSS in risks(plan)) is loses
    if loses:
        message = risks(plan)[Risk.DATA_LOSS]
        assert "/opt/deckhouse/registry/local_data" in message
        assert ("may have" in message or "if any" in message) is (stores is None)
        expected = "only after NodeServicesReady" if after is L else "keep the bundle"
        assert expected in message


@pytest.mark.parametrize(("before", "after"), [(L, P), (P, L)])
def test_the_way_round_a_closed_one_loses_the_store_too(before: ModeKind, after: ModeKind) -> None:
    plan = planned(before, after, changed(stores=None))
    assert not plan.allowed
    assert "may" not in risks(plan)[Risk.DATA_LOSS].split(":")[0]


def test_leaving_local_keeps_the_store_for_now() -> None:
    for after in (D, U):
        plan = planned(L, after, changed(stores=None))
        assert Risk.DATA_LOSS not in risks(plan)
        assert "a later switch to mode Proxy deletes them" in risks(plan)[Risk.ADVICE]


def test_images_that_an_earlier_local_left_may_be_old() -> None:
    plan = planned(D, L, changed(stores=frozenset({StoreContent.PLAIN})))
    assert "push the bundle again" in risks(plan)[Risk.ADVICE]


@pytest.mark.parametrize(
    ("aborted", "after"), [(P, L), (L, P)], ids=["Proxy then Local", "Local then Proxy"]
)
@pytest.mark.parametrize("before", [U, D, OLD])
def test_a_switch_that_was_begun_counts_like_one_that_was_completed(
    before: ModeKind, aborted: ModeKind, after: ModeKind
) -> None:
    facts = changed(aborted=SETTINGS[aborted], stores=None)
    plan = planned(before, after, facts)
    assert causes(plan) == [Cause.NOT_SUPPORTED]
    message = plan.refusals[0].message
    assert f"the switch to {aborted} was begun and not completed" in message
    assert plan.path[-1] is after
    assert all(allowed(origin, plan.path[0]) for origin in (before, aborted))
    if before is not OLD:
        assert plan.path == (before, after)  # back to where it came from, and on from there
    assert Risk.DATA_LOSS in risks(plan)


@pytest.mark.parametrize("before", [U, D])
@pytest.mark.parametrize("aborted", [P, L])
def test_one_can_go_back_and_go_on_after_an_aborted_switch(
    before: ModeKind, aborted: ModeKind
) -> None:
    facts = changed(aborted=SETTINGS[aborted])
    back = plan_switch(SETTINGS[before], SETTINGS[before], facts)
    assert back.allowed
    assert C.CLEANUP_NODE_SERVICES in [step.condition for step in back.steps]
    on = planned(before, aborted, facts)
    assert on.allowed
    assert [step.condition for step in on.steps] == list(conditions_of(aborted))


def test_local_is_gone_back_to_after_an_aborted_switch_away() -> None:
    plan = plan_switch(SETTINGS[L], SETTINGS[L], changed(aborted=SETTINGS[D]))
    assert (plan.verdict, plan.allowed) == (Verdict.SWITCH, True)
    assert [step.condition for step in plan.steps] == list(conditions_of(L))


@pytest.mark.parametrize(
    ("before", "after", "restarts"),
    [
        *((U, D, True), (OLD, L, True), (D, U, True), (U, U, True)),
        *((D, D, False), (D, P, False), (D, L, False), (L, D, False), (P, P, False)),
    ],
)
def test_components_restart_when_image_references_change(
    before: ModeKind, after: ModeKind, restarts: bool
) -> None:
    assert (Risk.RESTART in risks(planned(before, after))) is restarts


def test_leaving_the_managed_modes_drops_certificates_and_users() -> None:
    for before in (D, P, L):
        assert "certificates" in risks(planned(before, U))[Risk.CREDENTIALS]
    for before in (P, L):
        assert "passwords" in risks(planned(before, D))[Risk.CREDENTIALS]
    assert Risk.CREDENTIALS not in risks(planned(U, D))


def test_one_master_alone_has_nobody_to_stand_in() -> None:
    single = changed(nodes=(node("master-0", master=True), node("worker-0")))
    for kind in (D, P):
        assert Risk.GAP in risks(planned(kind, kind, single))
        assert Risk.GAP not in risks(planned(kind, kind))


def test_the_first_managed_mode_is_better_reached_by_configurable_unmanaged() -> None:
    for after in MANAGED:
        assert "configurable Unmanaged first" in risks(planned(OLD, after))[Risk.ADVICE]


# -- laws ------------------------------------------------------------------------------------------

SOME = st.sampled_from([*SETTINGS.values(), *OTHER.values()])
YES_NO = st.sampled_from([True, False, None])
NODES = st.none() | st.lists(
    st.builds(
        node,
        st.sampled_from(["a", "b", "c"]),
        master=st.booleans(),
        ready=YES_NO,
        schedulable=YES_NO,
        cri=st.sampled_from(["Containerd", "ContainerdV2", "Docker", None]),
        containerd_config=st.sampled_from([*ContainerdConfig, None]),
    ),
    max_size=3,
).map(tuple)
FACTS = st.builds(
    ClusterFacts,
    *([YES_NO] * 7),
    nodes=NODES,
    stores=st.none() | st.frozensets(st.sampled_from(StoreContent), min_size=1),
    aborted=st.none() | SOME,
)
EASY = st.builds(
    replace,
    st.just(GOOD),
    aborted=st.none() | SOME,
    saved_parameters=YES_NO,
    stores=st.none() | st.frozensets(st.sampled_from(StoreContent), min_size=1),
)
"""Facts under which a plan has steps, unless the way itself is closed."""


@given(current=st.none() | SOME, target=SOME, facts=FACTS, strict=st.booleans())
def test_planning_is_deterministic_and_its_document_is_json(
    current: RegistrySettings | None, target: RegistrySettings, facts: ClusterFacts, strict: bool
) -> None:
    plan = plan_switch(current, target, facts, strict=strict)
    assert plan == plan_switch(current, target, facts, strict=strict)
    text = json.dumps(plan.to_document())
    assert json.loads(text) == plan.to_document()
    assert plan.allowed or plan.steps == ()


@given(current=SOME, target=SOME, facts=FACTS | EASY, strict=st.booleans())
def test_a_closed_way_always_comes_with_an_open_one(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts, strict: bool
) -> None:
    plan = plan_switch(current, target, facts, strict=strict)
    before, after = current.kind, target.kind
    aborted = None if facts.aborted is None else facts.aborted.kind
    if plan.verdict is Verdict.NOTHING:
        return
    origins = [before] if aborted is None else [before, aborted]
    for hop in plan.path:
        assert all(allowed(origin, hop, strict=strict) for origin in origins)
        origins = [hop]
    assert plan.path[-1] is after
    assert plan.path == legal_path(before, after, aborted, strict=strict)
    closed = [one for one in plan.refusals if one.cause is Cause.NOT_SUPPORTED]
    assert bool(closed) is (len(plan.path) > 1)
    assert all(one.path == plan.path for one in closed)


@given(current=SOME, target=SOME, facts=EASY, strict=st.booleans())
def test_no_plan_removes_a_route_before_its_successor_serves(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts, strict: bool
) -> None:
    plan = plan_switch(current, target, facts, strict=strict)
    for earlier, later in zip(plan.steps, plan.steps[1:], strict=False):
        assert earlier.after == later.before
    for step in plan.steps:
        for plane in (Plane.CRI, Plane.API):
            # At any moment every name that images go by has a way at whose end something answers.
            assert step.before.serves(plane)
            assert step.after.serves(plane)
            gone = {route for route in step.removed if route.plane is plane}
            if not gone:
                continue
            left = step.after.of(plane)
            assert any(route.backend in step.after.serving for route in left)
            # What remains has been serving already, or replaces its like behind one address.
            assert step.in_place or any(route.backend in step.before.serving for route in left)
        if step.condition is C.FINAL:
            assert step.after.names <= {route.names for route in step.after.of(Plane.CRI)}


@given(current=SOME, target=SOME, facts=EASY)
def test_a_plan_ends_with_the_ways_of_its_target_alone(
    current: RegistrySettings, target: RegistrySettings, facts: ClusterFacts
) -> None:
    plan = plan_switch(current, target, facts)
    if not plan.steps or plan.target is OLD:
        return
    last = plan.steps[-1].after
    assert {route.plane for route in last.routes} == {Plane.CRI, Plane.API}
    assert len(last.routes) == 2
    running = {one for one in last.serving if not one.startswith("registry ")}
    assert running <= {route.backend for route in last.routes}


def test_the_same_host_with_a_new_path_keeps_its_old_way_until_the_end() -> None:
    old = SETTINGS[D]
    new = RegistrySettings.load(
        {"mode": "Direct", "direct": {**UPSTREAM, "imagesRepo": "nexus.corp.example:8443/new"}}
    )
    plan = plan_switch(old, new, GOOD)
    by_condition = {step.condition: step for step in plan.steps}
    hosts = {route.host for route in by_condition[C.TRANSITION].after.of(Plane.CRI)}
    assert hosts == {"nexus.corp.example:8443/dkp/ee", "nexus.corp.example:8443/new"}
    hosts = {route.host for route in by_condition[C.FINAL].after.of(Plane.CRI)}
    assert hosts == {"nexus.corp.example:8443/new"}


def test_a_plan_that_took_the_old_way_first_would_be_noticed() -> None:
    # The law above must be able to fail: the same steps in another order break it.
    from mirror.modes.plan import Layout, apply

    now = Layout(D, SETTINGS[D].upstream).routing()
    wanted = Layout(L, None)
    assert now.serves(Plane.CRI)
    assert not apply(C.FINAL, now, wanted).serves(Plane.CRI)
    assert not apply(C.CLEANUP_IN_CLUSTER_PROXY, now, wanted).serves(Plane.API)
    assert not apply(C.REGISTRY_SWITCH, now, wanted).serves(Plane.API)
