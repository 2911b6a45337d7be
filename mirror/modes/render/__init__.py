"""Node and service configuration of every mode, and of the transitions between them.

`render` is a function of values; `write_cluster` puts its outcome on a disk.
"""

from mirror.modes.render.balancer import Nginx
from mirror.modes.render.cluster import (
    Rendered,
    RenderOptions,
    render,
    sites_of,
    write_cluster,
)
from mirror.modes.render.distribution import Distribution
from mirror.modes.render.hosts import Containerd
from mirror.modes.render.images import Images
from mirror.modes.render.layout import Node, Places, Ports
from mirror.modes.render.nodes_file import load_nodes
from mirror.modes.render.service_secrets import (
    ServiceSecrets,
    prepare_secrets,
    read_secrets,
    write_secrets,
)
from mirror.modes.render.tree import RenderedFile, Tree, Written, write_tree

__all__ = [
    "Containerd",
    "Distribution",
    "Images",
    "Nginx",
    "Node",
    "Places",
    "Ports",
    "RenderOptions",
    "Rendered",
    "RenderedFile",
    "ServiceSecrets",
    "Tree",
    "Written",
    "load_nodes",
    "prepare_secrets",
    "read_secrets",
    "render",
    "sites_of",
    "write_cluster",
    "write_secrets",
    "write_tree",
]
