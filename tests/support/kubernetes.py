"""What a cluster's API says of objects, and where its Services lead."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

utils.schema_contents = functools.cache(utils.schema_contents)  # it reads them for every object

VERSIONS = ("1.29", "1.37")
"""The oldest API and the newest that objects are made for."""


def check_object(document: Mapping[str, Any]) -> None:
    """Refuse what the API would refuse, and unknown keys too, which it would drop silently."""
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


class Pod:
    """A pod as Services see it: its labels, and its ports by name."""

    def __init__(self, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
        self.name = str(metadata.get("name", ""))
        self.labels: Mapping[str, str] = metadata.get("labels", {})
        self.ports = {
            port["name"]: f"{port.get('hostIP', self.name)}:{port['containerPort']}"
            for container in spec["containers"]
            for port in container.get("ports", ())
        }


def pods_of(documents: Iterable[Mapping[str, Any]]) -> Iterator[Pod]:
    """The pods among objects, and those that their Deployments make."""
    for one in documents:
        if one["kind"] == "Pod":
            yield Pod(one["metadata"], one["spec"])
        elif one["kind"] == "Deployment":
            template = one["spec"]["template"]
            selector = one["spec"]["selector"]["matchLabels"]
            assert selector.items() <= template["metadata"]["labels"].items(), "it owns its pods"
            yield Pod({"name": one["metadata"]["name"], **template["metadata"]}, template["spec"])


def endpoints(service: Mapping[str, Any], pods: Iterable[Pod]) -> list[str]:
    """The pods behind a Service: address (a pod's name, if it has none of a node) and port.

    As the endpoints' controller has it: a pod without a port of that name is not behind it.
    """
    spec = service["spec"]
    (port,) = spec["ports"]
    selected = [pod for pod in pods if spec["selector"].items() <= pod.labels.items()]
    named = port["targetPort"]
    return [pod.ports[named] for pod in selected if named in pod.ports]
