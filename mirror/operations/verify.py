"""Verify: prove that a bundle is whole, or that a registry holds all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mirror.bundle.reader import BundleReader
from mirror.bundle.verify import BundleReport, verify_bundle
from mirror.events import PhaseStarted
from mirror.oci import Digest
from mirror.release.discovery import discovery_images, index_of
from mirror.run import Run
from mirror.sync import Finding, Inventory, union
from mirror.sync.findings import findings_of
from mirror.sync.observation import Depth
from mirror.sync.observe import observe
from mirror.sync.tags import tags_of, tags_only
from mirror.sync.tree import RegistryTree


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """Whether a registry holds all of an inventory; no findings means that it does."""

    target: str
    inventory: Inventory
    digest: Digest
    deep: bool
    findings: tuple[Finding, ...]

    def to_document(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {
            "ok": not self.findings,
            "target": self.target,
            "deep": self.deep,
            "inventory": str(self.digest),
            **self.inventory.counts(),
            "findings": [finding.to_document() for finding in self.findings],
        }


def verify(
    reader: BundleReader,
    *,
    key: bytes | None = None,
    quick: bool = False,
    run: Run | None = None,
) -> BundleReport:
    """Check every byte of a bundle (`mirror.bundle.verify.verify_bundle`), and with `key`, a public
    key in PEM, that its holder signed it; with `quick`, its structure and sizes only."""
    return verify_bundle(reader, run=run, key=key, quick=quick)


def verify_registry(
    reader: BundleReader,
    tree: RegistryTree,
    *,
    deep: bool = False,
    run: Run | None = None,
) -> RegistryReport:
    """Check that a registry holds every tag, manifest and blob of a bundle, and the index by which
    clusters find its modules, packages and plugins.

    The registry is asked for each; with `deep` each is also read back and hashed. Of the bundle
    its structure is read, and not every byte.

    Raises:
        DamagedBundleError: the bundle does not tell what it holds.
        CancelledError: `run` was stopped.
    """
    run = Run.of(run)
    tree = tree.within(run)
    inventory = reader.inventory()
    tree.client.ping()  # one clear answer about name, TLS and login, before many ask in parallel
    target = tree.target(run)
    index = tags_only(tags_of(discovery_images(inventory).inventory()))
    wanted = union([inventory, index_of(inventory, tags_of(target.held(index)))])
    run.on_event(PhaseStarted("comparing with the registry"))
    found = observe(target, wanted, Depth.DEEP if deep else Depth.AUDIT, run=run)
    findings = findings_of(wanted, found)
    return RegistryReport(str(tree.root), inventory, inventory.digest(), deep, findings)
