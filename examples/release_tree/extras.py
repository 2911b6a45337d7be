"""Security databases and plugins of the `d8` command line.

<root>/security/<db>                    OCI artifacts under rolling schema tags
<bare>/deckhouse-cli/plugins            a tag for each plugin's name
<bare>/deckhouse-cli/plugins/<name>     vX.Y.Z: mostly indexes, with a `contract` annotation
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from examples.release_tree.images import AMD64, DARWIN, Image, artifact, image, index, layer
from examples.release_tree.spec import PluginSpec
from examples.release_tree.tree import PublishedPlugin, Workshop
from mirror.oci import Platform

_TRIVY = "application/vnd.aquasec.trivy"
_DATABASES = (
    ("trivy-db", "2", f"{_TRIVY}.config.v1+json", f"{_TRIVY}.db.layer.v1.tar+gzip"),
    ("trivy-bdu", "1", f"{_TRIVY}.config.v1+json", f"{_TRIVY}.bdu.layer.v1.tar+gzip"),
    ("trivy-java-db", "1", f"{_TRIVY}.config.v1+json", f"{_TRIVY}.javadb.layer.v1.tar+gzip"),
    (
        "trivy-checks",
        "0",
        "application/vnd.cncf.openpolicyagent.config.v1+json",
        "application/vnd.cncf.openpolicyagent.layer.v1.tar+gzip",
    ),
)


def build_databases(workshop: Workshop) -> None:
    """Publish the four security databases, each an artifact of its own type."""
    for name, tag, config_type, layer_type in _DATABASES:
        content = layer(
            {
                "metadata.json": '{"Version":2,"UpdatedAt":"2025-02-03T04:05:06Z"}',
                f"{name}.db": workshop.noise(8 * workshop.spec.layer_bytes, "database", name),
            }
        )
        made = artifact(
            config_type,
            [(layer_type, "db.tar.gz", content.blob)],
            annotations={"org.opencontainers.image.created": "2025-02-03T04:05:06Z"},
        )
        repository = f"{workshop.spec.root}/security/{name}"
        workshop.tree.databases[f"{name}:{tag}"] = workshop.publish(repository, made, tag)


def build_plugins(workshop: Workshop) -> None:
    """Publish the plugins and their list of names."""
    directory = f"{workshop.spec.bare}/deckhouse-cli/plugins"
    for spec in workshop.spec.plugins:
        workshop.publish(directory, image([layer({"name": spec.name})]), spec.name)
        repository = f"{directory}/{spec.name}"
        contracts: dict[str, Mapping[str, object] | None] = {}
        digests = {}
        for version, requirements in spec.versions.items():
            contract = None if requirements is None else _contract(spec, version, requirements)
            made = _plugin(workshop, spec, version, contract)
            digests[version] = workshop.publish(repository, made, version)
            contracts[version] = contract
        workshop.tree.plugins[spec.name] = PublishedPlugin(repository, digests, contracts)


def _contract(
    spec: PluginSpec, version: str, requirements: Mapping[str, object]
) -> dict[str, object]:
    return {
        "name": spec.name,
        "version": version,
        "description": f"The plugin {spec.name}",
        "env": [{"name": "KUBECONFIG"}],
        "flags": [{"name": "--context"}],
        "requirements": dict(requirements),
    }


def _plugin(
    workshop: Workshop, spec: PluginSpec, version: str, contract: Mapping[str, object] | None
) -> Image:
    said = (
        {"contract": base64.b64encode(json.dumps(contract).encode()).decode()} if contract else None
    )

    def single(platform: Platform, annotations: Mapping[str, str] | None) -> Image:
        key = (spec.name, version, platform)
        program = workshop.noise(workshop.size(*key), "plugin", *key)
        files = {f"bin/{spec.name}": program}
        return image([layer(files)], platform=platform, annotations=annotations)

    if not spec.platforms:
        return single(AMD64, said)
    return index(
        [
            (platform, single(platform, None if spec.on_index else said))
            for platform in (AMD64, DARWIN)
        ],
        annotations=said if spec.on_index else None,
    )
