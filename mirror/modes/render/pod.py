"""What all static pods have in common: the shape of a manifest, of a container and of a probe."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from mirror.modes import constants
from mirror.modes.render.tree import SECRET, RenderedFile

HASH_ANNOTATION = "registry.deckhouse.io/config-hash"
VERSION_ANNOTATION = "registry.deckhouse.io/config-version"


def manifest(
    name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    *,
    dns_policy: str,
    spec: Mapping[str, Any],
) -> dict[str, Any]:
    """A pod on the node's network. The kubelet adds the node's name to `name`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": constants.NAMESPACE,
            "labels": {"heritage": "deckhouse", "module": "registry", **labels},
            "annotations": dict(annotations),
        },
        "spec": {
            "hostNetwork": True,
            "dnsPolicy": dns_policy,
            "priorityClassName": "system-node-critical",
            **spec,
        },
    }


def security(user: int) -> dict[str, Any]:
    """The pod's security context: everything runs as `user`, and as its group."""
    return {
        "runAsUser": user,
        "runAsGroup": user,
        "runAsNonRoot": user != 0,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container(
    name: str,
    image: str,
    run: Mapping[str, Sequence[str]],
    *,
    probes: Mapping[str, Any],
    mounts: Mapping[str, str],
    writable: Collection[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A container that may do nothing but what `run` (`command`, `args`) needs.

    `mounts` are names of volumes → paths; what is not `writable` is read-only, as is all else.
    """
    made: dict[str, Any] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        **{part: list(words) for part, words in run.items()},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **probes,
        "resources": {"requests": {"cpu": "50m", "memory": "50Mi"}},
        "volumeMounts": [
            {"name": volume, "mountPath": path, "readOnly": volume not in writable}
            for volume, path in mounts.items()
        ],
    }
    if environment:
        made["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    return made


def probes(live: Mapping[str, Any], ready: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Both probes of a container; one question serves for both unless there are two."""
    return {
        "livenessProbe": {**live, "initialDelaySeconds": 5, "periodSeconds": 10},
        "readinessProbe": {**(ready or live), "periodSeconds": 5},
    }


def http_get(scheme: str, host: str, port: int, path: str) -> dict[str, Any]:
    """The kubelet asks from the node, and verifies no certificate."""
    return {"httpGet": {"scheme": scheme, "host": host, "port": port, "path": path}}


def tcp(host: str, port: int) -> dict[str, Any]:
    """The kubelet connects, from the node."""
    return {"tcpSocket": {"host": host, "port": port}}


def host_path(name: str, path: PurePosixPath, kind: str = "Directory") -> dict[str, Any]:
    """A folder of the node. A single file would stay the old one when it is replaced."""
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def config_hash(files: Mapping[PurePosixPath, RenderedFile]) -> str:
    """SHA-256 of files with their names. A changed manifest makes the kubelet restart the pod."""
    digest = hashlib.sha256()
    for path, file in sorted(files.items()):
        digest.update(f"{path}\0{len(file.content)}\0".encode())
        digest.update(file.content)
    return digest.hexdigest()


class _Dumper(yaml.SafeDumper):
    """Block style, and never an alias for what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- PyYAML's signature
        return True


def yaml_file(document: Mapping[str, Any], mode: int = SECRET) -> RenderedFile:
    """A document as a file, in block style."""
    text = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return RenderedFile(text.encode(), mode)
