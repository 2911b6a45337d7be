"""nginx on a node, with its files and static pods: the balancer, and the relay.

Two pods and not one, for the kubelet ends a static pod whose manifest has changed, with all of its
containers, before it starts the next some ten seconds later. A switch between Direct mode behind a
relay and a mode behind the balancer would otherwise take both away at the same time, the old way
and the new. So each pod's manifest depends on what its own nginx reads and on nothing else, and
carries no version of the whole configuration: the balancer's file is the same in every mode, so
that no switch restarts it, and a relay stays untouched until nodes no longer need it. A relay
restarts where its upstream changes; the ways of both sides are in its file from the first restart
to the last.

Each runs the file that was rendered, `nginx_new.conf` for the balancer. An `nginx.conf` beside it
would be a copy that a reloader has tested; there is none in these pods, and of two files a restart
in the midst of a switch could find the older one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mirror.errors import RenderingError
from mirror.modes import constants
from mirror.modes.render.balancer import Nginx, Relayed, balancer_conf, relay_conf
from mirror.modes.render.hosts import Way, relay_slot
from mirror.modes.render.layout import Node, Places
from mirror.modes.render.pod import (
    HASH_ANNOTATION,
    config_hash,
    container,
    host_path,
    http_get,
    manifest,
    probes,
    security,
    tcp,
    yaml_file,
)
from mirror.modes.render.tree import PUBLIC, RenderedFile, Tree

BALANCER_NAME = "registry-proxy"
RELAY_NAME = "registry-relay"
USER = 64535
"""Deckhouse's user without rights. As root, nginx would need capabilities to become another."""

GRACE_S = 5
"""While it drains, nginx accepts nobody: longer would spare few downloads and refuse many."""


def balancer_files(node: Node, nodes: Sequence[Node], nginx: Nginx, image: str | None) -> Tree:
    """The balancer of a node in front of the masters among `nodes`; its pod if there is an image.

    Raises:
        RenderingError: a value may not be written.
    """
    files = {constants.BALANCER_FILE: RenderedFile(balancer_conf(node, nodes, nginx))}
    if image is None:
        return files
    # It lives while it accepts, and is ready while it leads to a replica: restarting it brings back
    # no master. A question at "/" needs no login.
    ready = http_get("HTTPS", "127.0.0.1", node.ports.balancer, "/")
    pod = _pod(
        BALANCER_NAME,
        f"node {node.name}: balancer port",
        node.ports.balancer,
        constants.BALANCER_FILE,
        files,
        nginx,
        image,
        ready,
    )
    return files | {constants.BALANCER_POD: yaml_file(pod, PUBLIC)}


def relay_files(
    node: Node, ways: Sequence[Way], places: Places, nginx: Nginx, image: str | None
) -> Tree:
    """The relay of a node to `ways`, nothing if there are none; its pod if there is an image.

    Raises:
        RenderingError: a value may not be written.
    """
    files: dict[PurePosixPath, RenderedFile] = {}
    behind = []
    for way in ways:
        slot = relay_slot(way)
        authority = None
        if way.ca is not None and way.scheme == "https":
            path = constants.BALANCER_CONFIG / f"relay-{slot}-ca.crt"
            files[path] = RenderedFile(way.ca.encode())
            authority = places.on_node(path)
        behind.append(Relayed(way, slot, authority))
    if not behind:
        return files
    files[constants.RELAY_FILE] = RenderedFile(relay_conf(node.relay, behind, nginx))
    if image is None:
        return files
    pod = _pod(
        RELAY_NAME,
        f"node {node.name}: relay port",
        node.ports.relay,
        constants.RELAY_FILE,
        files,
        nginx,
        image,
    )
    return files | {constants.RELAY_POD: yaml_file(pod, PUBLIC)}


def _pod(
    name: str,
    port_of: str,
    port: int,
    config: PurePosixPath,
    files: Mapping[PurePosixPath, RenderedFile],
    nginx: Nginx,
    image: str,
    ready: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    if port < 1024:
        raise RenderingError(
            f"{port_of}: expected 1024 or above, found {port}; in its static pod nginx has no "
            "rights to listen below. Give another port, or leave the image nginx out"
        )
    runtime, folder = PurePosixPath(nginx.runtime), constants.BALANCER_CONFIG
    if runtime.is_relative_to(folder) or folder.is_relative_to(runtime):
        raise RenderingError(
            f"nginx runtime folder: expected one apart from {folder}, which the static pod may "
            f"only read, found {runtime}; give another, such as /tmp"
        )
    arguments = ["nginx", "-e", "stderr", "-c", str(config), "-g", "daemon off;"]
    one = container(
        "nginx",
        image,
        # As the command, since an image's own entry point may want to write configuration.
        {"command": arguments},
        probes=probes(tcp("127.0.0.1", port), ready),
        # At its place on the node, so that the paths in the file lead to the same.
        mounts={"config": str(folder), "runtime": str(runtime)},
        writable={"runtime"},
    )
    return manifest(
        name,
        # Never the labels of the Service: it leads to replicas alone.
        {"component": name},
        {HASH_ANNOTATION: config_hash(files)},
        # The node's own: images are pulled through this pod, those of the cluster's DNS too.
        dns_policy="Default",
        spec={
            "securityContext": security(USER),
            "terminationGracePeriodSeconds": GRACE_S,
            "containers": [one],
            "volumes": [host_path("config", folder), {"name": "runtime", "emptyDir": {}}],
        },
    )
