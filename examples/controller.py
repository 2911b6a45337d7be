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
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import mirror
from mirror import (
    ConditionType,
    Mode,
    Plane,
    Reconciled,
    RegistryState,
    RenderOptions,
    StepOutcome,
    Switch,
    outcomes,
)

HASTY = mirror.impatient(mirror.ConnectionOptions())
DECKHOUSE = RenderOptions()


class Controller:
    """Brings a cluster to the mode that its ModuleConfig says."""

    def __init__(self, folder: Path, bundle: Path, options: RenderOptions = DECKHOUSE) -> None:
        self.folder, self.bundle, self.options = folder, bundle, options
        self.state_file, self.out = folder / "registry-state.yaml", folder / "rendered"

    def reconcile(self) -> Reconciled:
        """Pass after pass, until there is something to wait for.

        Raises:
            mirror.MirrorError: a file is not what it must be.
        """
        while (done := self._pass()).requeue_s == 0:
            pass
        return done

    def _pass(self) -> Reconciled:
        """What the library decides, carried out in its order: state, secrets, files."""
        wanted = (self.folder / "module-config.yaml").read_text(encoding="utf-8")
        state = RegistryState.load(self.state_file if self.state_file.exists() else None)
        facts = mirror.load_facts(self.folder / "facts.yaml")
        nodes = mirror.load_nodes(self.folder / "nodes.yaml")
        secrets = self.folder / "registry-secrets.json"
        kept, now = mirror.read_secrets(secrets), datetime.now(UTC)
        site = Files(self.bundle, self.out, facts)
        done = mirror.reconcile(wanted, state, facts, nodes, kept, site, now, options=self.options)
        if done.state != state:
            done.state.save(self.state_file)
        if done.kept is not None:
            mirror.write_secrets(done.kept, secrets)
        if done.rendered is not None:
            mirror.write_cluster(done.rendered, self.out)
            self._tell("services.json", json.dumps(dict(done.rendered.masters)))
            if done.step is not ConditionType.NODE_SERVICES:
                self._tell("version", done.rendered.version)
        return done

    def _tell(self, name: str, text: str) -> None:
        told = self.out / name
        if not told.exists() or told.read_text() != text:
            told.write_text(text)


class Files:
    """How far each step of a switch is: what answers, and what is rendered."""

    def __init__(self, bundle: Path, out: Path, facts: mirror.ClusterFacts) -> None:
        self.bundle, self.out, self.facts = bundle, out, facts

    def images(self, switch: Switch) -> StepOutcome:
        """The wanted mode's registry holds what the cluster needs; what lacks is brought there."""
        with mirror.BundleReader([self.bundle]) as reader:
            mode = switch.target.check_mode
            required = mirror.required_images(mode, inventory=reader.inventory())
            targets = mirror.targets_for(switch.target, switch.access)
            report = mirror.check_images(required, targets, limit_s=60.0)
            if not report.ready:
                try:
                    self._push(reader, switch)
                except mirror.MirrorError as err:  # in Proxy it says where to push instead
                    return StepOutcome(False, f"{report.message}\n{err}")
                report = mirror.check_images(required, targets, limit_s=60.0)
        return report.outcome

    def _push(self, reader: mirror.BundleReader, switch: Switch) -> None:
        """Where the mode takes images in: in Local one replica, which the others then follow."""
        operator = Plane.OPERATOR
        with mirror.connect(switch.target, access=switch.access, plane=operator) as client:
            mirror.push(reader, mirror.RegistryTree(client, client.root))
        if switch.target.mode is Mode.LOCAL and len(switch.masters) > 1:
            with mirror.replica_trees(switch.target, switch.access) as replicas:
                mirror.sync_replicas(None, replicas, audit=True)

    def replicas(self, switch: Switch) -> list[outcomes.ReplicaPod]:
        """Which replicas let their reader in, with the version that facts have of them."""
        serving = mirror.serving_masters(switch.access)
        told = {name: mirror.NodeFacts(name) for name in switch.masters}
        told |= {node.name: node for node in self.facts.nodes or () if node.name in told}
        return [
            outcomes.ReplicaPod(name, one.ready is not False, name in serving, one.services)
            for name, one in told.items()
        ]

    def proxy(self, switch: Switch) -> StepOutcome:
        """Whether it answers."""
        return outcomes.in_cluster_proxy(1, int(self.components(switch).ready))

    def components(self, switch: Switch) -> StepOutcome:
        """Whether the registry answers where components ask."""
        client = mirror.connect(switch.target, access=switch.access, options=HASTY)
        with suppress(mirror.MirrorError), client:
            client.ping()
            return StepOutcome(True)
        return StepOutcome(False)

    def left(self, switch: Switch) -> Iterable[str]:
        """The masters whose replica answers."""
        return mirror.serving_masters(switch.access)

    def proxy_exists(self, _: Switch) -> bool:
        """Whether it has files."""
        return any(path.is_file() for path in (self.out / "in-cluster").rglob("*"))


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
