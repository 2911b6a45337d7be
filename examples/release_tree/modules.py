"""Modules and packages, which differ only in where they are.

<root>/modules               a tag for each module's name
<root>/modules/<m>           vX.Y.Z; internal images without tags; .att
<root>/modules/<m>/release   vX.Y.Z, channels: version.json
<root>/modules/<m>/extra/<x> images with tags of their own
<root>/packages/<p>          the same with `version` in the place of `release`
"""

from __future__ import annotations

import json

from examples.release_tree.images import Content, Image, image, layer
from examples.release_tree.spec import ModuleSpec
from examples.release_tree.tree import ModuleVersion, PublishedModule, Workshop
from mirror.oci import Digest


def build_modules(workshop: Workshop) -> None:
    """Publish all modules and packages, each list of names as tags of its directory."""
    root, tree = workshop.spec.root, workshop.tree
    for spec in workshop.spec.modules:
        tree.modules[spec.name] = _build(workshop, spec, f"{root}/modules", "release")
    for spec in workshop.spec.packages:
        tree.packages[spec.name] = _build(workshop, spec, f"{root}/packages", "version")


def _build(workshop: Workshop, spec: ModuleSpec, directory: str, release: str) -> PublishedModule:
    repository, releases = f"{directory}/{spec.name}", f"{directory}/{spec.name}/{release}"
    workshop.publish(directory, image([layer({"name": spec.name})]), spec.name)
    extra = {name: str(tag) for name, tag in spec.extra.items()}
    versions: dict[str, ModuleVersion] = {}
    for number, version in enumerate(spec.versions):
        internal = {
            f"{name}Image": workshop.publish(repository, _internal(workshop, spec, name, number))
            for name in ("controller", "webhook", "agent", "ui", "hooks")[: spec.internal]
        }
        main = _main_image(spec, version, internal)
        # What the channels say sometimes lacks the `v`.
        said = version.removeprefix("v") if number % 3 == 1 else version
        versions[version] = ModuleVersion(
            version=version,
            image=workshop.publish(repository, main, version),
            release=workshop.publish(releases, _release_image(spec, said, number), version),
            internal=internal,
            extra=extra,
        )
        for digest in list(internal.values())[:1]:
            workshop.attest(repository, digest)
    for tag in spec.tags:
        workshop.retag(repository, versions[spec.versions[-1]].image, tag)
    for channel, version in spec.channels.items():
        workshop.retag(releases, versions[version].release, channel)
    for name, tag in extra.items():
        files: dict[str, Content] = {
            f"srv/{name}.db": workshop.noise(workshop.size(spec.name, name), "extra", name, tag)
        }
        workshop.publish(f"{repository}/extra/{name}", image([layer(files)]), tag)
    return PublishedModule(repository, releases, spec.channels, versions)


def _internal(workshop: Workshop, spec: ModuleSpec, name: str, number: int) -> Image:
    """An image of the module's own. Every second version brings a new one."""
    key = (spec.name, name, (number + len(name)) // 2)
    files: dict[str, Content] = {
        f"usr/bin/{name}": workshop.noise(workshop.size(*key), "module", *key),
        f"etc/{name}/config.yaml": f"module: {spec.name}\n",
    }
    compressed = workshop.random("module", *key).choice(("gzip", "zstd"))
    program = layer(files, compression="zstd" if compressed == "zstd" else "gzip")
    return image([workshop.base("distroless"), program], entrypoint=[f"/usr/bin/{name}"])


def _main_image(spec: ModuleSpec, version: str, internal: dict[str, Digest]) -> Image:
    files: dict[str, Content] = {
        "module.yaml": f"name: {spec.name}\nweight: 900\nstage: General Availability\n",
        "version.json": json.dumps({"version": version}),
        "openapi/values.yaml": "type: object\nproperties: {}\n",
        "templates/deployment.yaml": f"# {spec.name} {version}\nkind: Deployment\n",
    }
    if internal:
        listed = {name: str(digest) for name, digest in internal.items()}
        files["images_digests.json"] = json.dumps(listed)
    if spec.extra:
        files["extra_images.json"] = json.dumps(dict(spec.extra))
    odd = len(version + spec.name) % 2 == 0
    return image([layer(files, compression="zstd" if odd else "gzip", dotted=odd)])


def _release_image(spec: ModuleSpec, version: str, number: int) -> Image:
    files: dict[str, Content] = {
        "version.json": json.dumps({"version": version}),
        "changelog.yaml": f"{spec.name}:\n  features: []\n",
    }
    return image([layer(files, dotted=number % 2 == 1)], family="oci" if number % 2 else "docker")
