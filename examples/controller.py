"""A controller of the registry module, on files: ModuleConfig in, `registry-state` out.

    python -m examples.controller FOLDER --bundle BUNDLE_DIR [--watch SECONDS]

FOLDER stands for the cluster's API:

    module-config.yaml     read: ModuleConfig `deckhouse`, which says what is wanted
    facts.yaml             read: what the cluster says of itself, the nodes' versions included
    nodes.yaml             read: the nodes and their addresses
    registry-state.yaml    written: the Secret `registry-state`, how far the switch is
    registry-secrets.json  written: authority, keys and users of the module's own registry
    rendered/              written: the configuration of every node, for others to roll out
    rendered/version       written: what a node that has applied it reports in facts.yaml (version)
    rendered/services.json written: master → the same of its own registry's files (services)

A pass looks at everything anew, does what is due, and ends; so it can die anywhere and be run
again, and where nothing is due it changes nothing. Exit code 0: reached; 1: not yet, or refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

import mirror
from mirror import ConditionType, Mode, Plane, RegistryState, RenderOptions, StepOutcome, outcomes
from mirror import RegistrySettings as Settings

HASTY = mirror.impatient(mirror.ConnectionOptions())
DECKHOUSE = RenderOptions()


@dataclass(frozen=True)
class Pass:
    """What one pass came to."""

    plan: mirror.SwitchPlan
    state: RegistryState

    @property
    def reached(self) -> bool:
        """Whether the cluster is what is wanted."""
        return self.plan.allowed and not self.state.in_flight

    def summary(self) -> str:
        """For people; no message of the library has a secret in it."""
        lines = [f"{self.plan.current} → {self.plan.target}"]
        lines += [f"  warning: {one.message}" for one in self.plan.warnings]
        lines += [f"  refused: {one.message}" for one in self.plan.refusals]
        for one in self.state.conditions:
            lines.append(f"  {'+' if one.status else '-'} {one.type} {one.message}".rstrip())
        return "\n".join(lines)


class Controller:
    """Brings a cluster to the mode that its ModuleConfig says."""

    def __init__(self, folder: Path, bundle: Path, options: RenderOptions = DECKHOUSE) -> None:
        self.folder, self.bundle, self.options = folder, bundle, options
        self.state_file = folder / "registry-state.yaml"

    def reconcile(self) -> Pass:
        """One pass.

        Raises:
            mirror.MirrorError: a file is not what it must be.
        """
        wanted = (self.folder / "module-config.yaml").read_text(encoding="utf-8")
        target = Settings.load(wanted)
        state = RegistryState.load(self.state_file if self.state_file.exists() else None)
        # What was completed and what was begun, with passwords: the private part of the Secret.
        memory = json.loads(state.private.get_secret_value()) if state.private else {}
        current = Settings.load(memory.get("completed") or {"mode": Mode.UNMANAGED})
        facts = mirror.load_facts(self.folder / "facts.yaml")
        if memory.get("begun") and (begun := Settings.load(memory["begun"])) != target:
            facts = replace(facts, aborted=begun)
        now = datetime.now(UTC)
        plan = mirror.plan_switch(current, target, facts)
        if not plan.allowed:
            if plan.current and len(plan.path) > 1:
                state = state.refused(plan.current, plan.target, now)
                state.save(self.state_file)
            return Pass(plan, state)
        rests = plan.verdict is mirror.Verdict.NOTHING and "begun" not in memory
        if rests and not target.managed:
            return Pass(plan, state)  # nothing of ours is there, and nothing is to come
        state = state.aiming_at(target.mode, mirror.inputs_hash(target))
        if target != current:  # saved before anything is done, for who comes after a crash
            memory["begun"] = wanted
            replace(state, private=SecretStr(json.dumps(memory))).save(self.state_file)
        previous = facts.aborted if current == target else current
        switch = Switch(self, target, previous or target, facts)
        saved = facts.saved_parameters is not False
        state = state.advanced(plan.target, switch.observe, now, saved_parameters=saved)
        if not state.in_flight:
            memory = {"completed": wanted}
        state = replace(state, private=SecretStr(json.dumps(memory)))
        state.save(self.state_file)
        return Pass(plan, state)


class Switch:
    """One pass of a switch from `previous` to `target`; where they are equal, a look after it."""

    def __init__(
        self, owner: Controller, target: Settings, previous: Settings, facts: mirror.ClusterFacts
    ) -> None:
        self.target, self.facts, self.managed = target, facts, bool(facts.node_config_managed)
        self.bundle, self.out = owner.bundle, owner.folder / "rendered"
        self.nodes = mirror.load_nodes(owner.folder / "nodes.yaml")
        self.masters = [node.name for node in self.nodes if node.master]
        path, now = owner.folder / "registry-secrets.json", datetime.now(UTC)
        kept = mirror.prepare_secrets(mirror.read_secrets(path), self.nodes, now)
        mirror.write_secrets(kept, path)
        self.access = mirror.access_of(self.nodes, kept)
        # In the transition the old ways stay, until every node has the new ones.
        before, options = None if previous == target else previous, owner.options
        self.final = mirror.render(target, self.nodes, kept, options=options)
        self.transition = mirror.render(target, self.nodes, kept, previous=before, options=options)

    def observe(self, step: ConditionType) -> StepOutcome:
        """Do what is due for one step, and say whether it is reached. Called in order."""
        try:
            return self._observe(step)
        except mirror.MirrorError as err:
            return StepOutcome(False, str(err))

    def _observe(self, step: ConditionType) -> StepOutcome:
        nodes = self.facts.nodes or ()
        match step:
            case ConditionType.IMAGES:
                return self._images()
            case ConditionType.PREFLIGHT:
                return outcomes.preflight(nodes, node_config_managed=self.managed)
            case ConditionType.NODE_SERVICES:
                return self._node_services()
            case ConditionType.TRANSITION:
                # Who has the final configuration already is behind this step.
                passed = {self.transition.version, self.final.version}
                if nodes and all(node.version in passed for node in nodes):
                    return StepOutcome(True)
                return self._roll_out(self.transition)
            case ConditionType.IN_CLUSTER_PROXY:
                return outcomes.in_cluster_proxy(1, int(self._components_are_served()))
            case ConditionType.REGISTRY_SWITCH:
                return StepOutcome(self._components_are_served())
            case ConditionType.FINAL:
                return self._roll_out(self.final)
            case ConditionType.CLEANUP_NODE_SERVICES:
                return outcomes.cleanup_node_services(mirror.serving_masters(self.access))
            case ConditionType.CLEANUP_IN_CLUSTER_PROXY:
                files = (path for path in (self.out / "in-cluster").rglob("*") if path.is_file())
                return outcomes.cleanup_in_cluster_proxy(exists=any(files))
        raise ValueError(f"{step} is no step of a switch")

    def _images(self) -> StepOutcome:
        """The wanted mode's registry holds what the cluster needs; what lacks is brought there."""
        with mirror.BundleReader([self.bundle]) as reader:
            required = mirror.required_images(self.target.check_mode, inventory=reader.inventory())
            report = self._check(required)
            if not report.ready:
                try:
                    self._push(reader)
                except mirror.MirrorError as err:  # in Proxy it says where to push instead
                    return StepOutcome(False, f"{report.message}\n{err}")
                report = self._check(required)
        return report.outcome

    def _check(self, required: mirror.RequiredSet) -> mirror.CheckReport:
        targets = mirror.targets_for(self.target, self.access)
        return mirror.check_images(required, targets, limit_s=60.0)

    def _push(self, reader: mirror.BundleReader) -> None:
        """Where the mode takes images in: in Local one replica, which the others then follow."""
        with mirror.connect(self.target, access=self.access, plane=Plane.OPERATOR) as client:
            mirror.push(reader, mirror.RegistryTree(client, client.root))
        if self.target.mode is Mode.LOCAL and len(self.masters) > 1:
            with mirror.replica_trees(self.target, self.access) as replicas:
                mirror.sync_replicas(None, replicas, audit=True)

    def _node_services(self) -> StepOutcome:
        """Every master's replica serves. The other nodes hear nothing of it before."""
        serving = mirror.serving_masters(self.access)
        told = {name: mirror.NodeFacts(name) for name in self.masters}
        told |= {node.name: node for node in self.facts.nodes or () if node.name in told}
        pods = [
            outcomes.ReplicaPod(name, one.ready is not False, name in serving, one.services)
            for name, one in told.items()
        ]
        outcome = outcomes.node_services(pods, self.transition.masters)
        if not outcome.ready:
            trees = {name: self.transition.nodes[name] for name in self.masters}
            mirror.write_cluster(replace(self.transition, nodes=trees, in_cluster={}), self.out)
            self._tell("services.json", json.dumps(dict(self.transition.masters)))
        return outcome

    def _roll_out(self, rendered: mirror.Rendered) -> StepOutcome:
        """Write what nodes are to apply, and look who has."""
        mirror.write_cluster(rendered, self.out)
        self._tell("version", rendered.version)
        return outcomes.containerd_config(self.facts.nodes or (), rendered.version)

    def _tell(self, name: str, text: str) -> None:
        told = self.out / name
        if not told.exists() or told.read_text() != text:
            told.write_text(text)

    def _components_are_served(self) -> bool:
        client = mirror.connect(self.target, access=self.access, options=HASTY)
        with suppress(mirror.MirrorError), client:
            client.ping()
            return True
        return False


def main() -> int:
    """Run one pass, or with --watch one after the other."""
    parser = argparse.ArgumentParser(description="The registry module's modes, on files.")
    parser.add_argument("folder", type=Path, help="module-config.yaml, facts.yaml, nodes.yaml")
    parser.add_argument("--bundle", type=Path, required=True, help="what the cluster needs")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="go on, with such pauses")
    given = parser.parse_args()
    controller = Controller(given.folder, given.bundle)
    while True:
        try:
            done = controller.reconcile()
            print(done.summary(), flush=True)
            code = 0 if done.reached else 1
        except (mirror.MirrorError, OSError) as err:
            print(err, file=sys.stderr, flush=True)
            code = 2
        if given.watch is None:
            return code
        time.sleep(given.watch)


if __name__ == "__main__":
    sys.exit(main())
