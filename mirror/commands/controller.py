"""`mirror mode apply`, which brings rendered objects into a cluster, and `mirror controller`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from mirror.commands import options
from mirror.commands.options import FILE, Decorator, Work, flag, grouped
from mirror.controller.kube import RESOURCES, KubeApi
from mirror.documents import read_documents
from mirror.errors import InputError
from mirror.nodeconfig.cluster import read_text
from mirror.nodeconfig.render import MANIFESTS

_ORDER = ("Secret", "Service", "PodDisruptionBudget", "Deployment", "Ingress")
"""What others need first."""


def _connect(kubeconfig: Path | None, in_cluster: bool) -> KubeApi:
    if (kubeconfig is None) != in_cluster:
        raise InputError(
            "name the cluster: --kubeconfig FILE, or --in-cluster where this runs in one of its "
            "pods"
        )
    return KubeApi.connect(kubeconfig)


api_options: Decorator = grouped(
    "api",
    _connect,
    click.option(
        "--kubeconfig",
        type=FILE,
        envvar="KUBECONFIG",
        help="File with the cluster's API and the login there  [env: KUBECONFIG]",
    ),
    flag("--in-cluster", text="The cluster in which this runs, as the Pod's service account."),
)
force_option = flag(
    "--force-conflicts",
    text="Take over fields that somebody else manages. Without it they are left, and told.",
)


@click.command(
    "apply",
    epilog=options.example("mirror mode apply files --kubeconfig admin.conf --dry-run"),
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@api_options
@force_option
@flag("--dry-run", text="Let the cluster's API say what would change; change nothing.")
@options.as_json
def apply_command(
    *, folder: Path, api: KubeApi, force_conflicts: bool, dry_run: bool, work: Work
) -> None:
    """Bring the objects that `mirror mode render --out FOLDER` wrote into the cluster.

    This is a server-side apply as field manager deckhouse-mirror: it sets only the fields of the
    rendered objects, and a field that somebody else manages is a conflict. It removes no object
    that is no longer rendered, and does not bring the nodes' own files to the nodes.
    """
    work.callback(api.close)
    done = {
        f"{one['kind']} {one['metadata']['name']}": api.bring(
            one, force=force_conflicts, dry_run=dry_run
        )
        for one in _rendered(folder)
    }
    counts = {how: [*done.values()].count(how) for how in ("created", "changed", "unchanged")}
    total = ", ".join(f"{count} {how}" for how, count in counts.items())
    title = f"{'Would apply' if dry_run else 'Applied'} {len(done)} objects to {api.host}: {total}"
    work.say(
        {"cluster": api.host, "dryRun": dry_run, "objects": done},
        [title, *(f"  {how}: {name}" for name, how in done.items() if how != "unchanged")],
    )


def _rendered(folder: Path) -> list[Mapping[str, Any]]:
    """The objects of a folder, in the order in which they are to be applied."""
    found = list(_objects(folder / MANIFESTS))
    if not found:
        raise InputError(
            f"{folder}: no rendered objects in {MANIFESTS}/; run `mirror mode render --out "
            f"{folder}` first"
        )
    return sorted(found, key=lambda one: _ORDER.index(one["kind"]))


def _objects(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(folder.glob("*.yaml")):
        for one in read_documents(read_text(path), str(path), "expected an object"):
            named = isinstance(one.get("metadata"), Mapping) and one["metadata"].get("name")
            kind = str(one.get("kind"))
            if kind not in _ORDER or one.get("apiVersion") != RESOURCES[kind].version or not named:
                raise InputError(
                    f"{path}: expected a {', '.join(_ORDER)} as rendered, found "
                    f"{kind[:40]}; render anew, or apply it with kubectl"
                )
            yield one
