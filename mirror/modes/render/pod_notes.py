"""What is to be said about static pods: which are missing, what restarts, which images are left."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.modes import constants
from mirror.modes.render.images import Images, services_needed
from mirror.modes.render.tree import Tree


def notes_of_pods(
    images: Images, trees: Sequence[Tree], *, services: bool, replication: bool, relays: Tree
) -> list[str]:
    """Sentences about the static pods in `trees`.

    `services` and `replication` say what masters run, in a pod or not; `relays` are the files of
    one of the nodes' relay before the transition that `trees` are rendered for.
    """
    notes: list[str] = []
    used: set[str] = set()
    if services and images.serve(replication=replication):
        used |= {*services_needed(replication=replication)}
    elif services:
        of = "" if images.nginx is None else "of the masters' services "
        notes.append(
            f"no static pod {of}was written: give the images of registry, token server and mirror"
        )
    if any(constants.BALANCER_POD in tree or constants.RELAY_POD in tree for tree in trees):
        used.add("nginx")
    if unused := images.unused(used):
        notes.append(f"no static pod here has a container of the image {', '.join(unused)}")
    before = relays.get(constants.RELAY_POD)
    if before is not None and all(tree.get(constants.RELAY_POD) != before for tree in trees):
        notes.append(
            "the relay of each node restarts with this configuration, and with the next: what is "
            "pulled while it does fails, and the kubelet pulls it again"
        )
    return notes
