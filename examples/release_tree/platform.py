"""The platform: controller and component images, installers, release channels.

<root>                       vX.Y.Z, channels; component images without tags; .att, .sig
<root>/release-channel       vX.Y.Z, channels: version.json, changelog.yaml
<root>/install               vX.Y.Z, channels: deckhouse/candi/images_digests.json
<root>/install-standalone    the same without a cluster
<bare>/installer             latest, vX.Y.Z: outside of the edition
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from examples.release_tree.images import (
    AMD64,
    ARM64,
    Compression,
    Content,
    Image,
    Layer,
    Symlink,
    image,
    index,
    layer,
)
from examples.release_tree.tree import PlatformVersion, Workshop
from mirror.oci import Digest, Platform

_MODULES = (
    "admissionPolicyEngine",
    "certManager",
    "cniCilium",
    "common",
    "controlPlaneManager",
    "dashboard",
    "deckhouse",
    "documentation",
    "flowSchema",
    "ingressNginx",
    "istio",
    "kubeDns",
    "logShipper",
    "loki",
    "monitoringPing",
    "nodeManager",
    "operatorTrivy",
    "prometheus",
    "registryPackages",
    "runtimeAuditEngine",
    "userAuthn",
    "verticalPodAutoscaler",
)
_IMAGES = (
    "agent",
    "controller",
    "webhook",
    "exporter",
    "operator",
    "proxy",
    "init",
    "cainjector",
    "scheduler",
    "reloader",
    "migrator",
    "ui",
    "api",
    "csiDriver",
)
_ATTESTED = 0.2
"""The share of component images that a VEX document speaks of."""


def build_platform(workshop: Workshop) -> None:
    """Publish all versions of the platform and let the channels name them."""
    spec, root = workshop.spec, workshop.spec.root
    releases: dict[str, Image] = {}
    made: dict[tuple[str, int], Digest] = {}
    for number, version in enumerate(spec.versions):
        releases[version] = _release_image(workshop, version)
        _build_version(workshop, version, number, releases[version], made)
    for tag in spec.dev_tags:
        _build_version(workshop, tag, len(spec.versions) - 1, None, made)
    for channel, version in spec.channels.items():
        release = releases[version]
        if channel in spec.suspended:
            release = _release_image(workshop, version, suspend=True)
        workshop.publish(f"{root}/release-channel", release, channel)
        built = workshop.tree.platform[version]
        # The vendor's registry has them here too; a mirror takes them from release-channel alone.
        for repository, digest in ((root, built.image), (f"{root}/install", built.install)):
            workshop.retag(repository, digest, channel)


def _build_version(
    workshop: Workshop,
    version: str,
    number: int,
    release: Image | None,
    made: dict[tuple[str, int], Digest],
) -> None:
    """Publish one version with its components, of which earlier versions have `made` most."""
    root, bare = workshop.spec.root, workshop.spec.bare
    controller = image(
        [
            workshop.base("distroless"),
            layer(
                {
                    "deckhouse/version": f"{version}\n",
                    "usr/bin/deckhouse-controller": workshop.noise(
                        2 * workshop.spec.layer_bytes, "controller", version
                    ),
                }
            ),
        ],
        family="docker",
        entrypoint=["/usr/bin/deckhouse-controller"],
        labels={"org.opencontainers.image.version": version},
    )
    components: dict[str, Digest] = {}
    for name, generation in _components(workshop, number):
        digest = made.get((name, generation))
        if digest is None:
            digest = workshop.publish(root, _component(workshop, name, generation))
            made[name, generation] = digest
            if workshop.random("vex", name).random() < _ATTESTED:
                workshop.attest(root, digest)
        components[name] = digest
    published = workshop.publish(root, controller, version)
    workshop.sign(root, published)
    # The installers list the components by module, so that bootstrap scripts find them.
    listed: dict[str, dict[str, str]] = {}
    for name, digest in components.items():
        module, _, part = name.partition("/")
        listed.setdefault(module, {})[part] = str(digest)
    installer = image(list(_installer_layers(workshop, version, number, listed)))
    standalone = image(
        [
            workshop.base("distroless"),
            layer(
                {"deckhouse/version": version, "deckhouse/candi/images_digests.json": _dump(listed)}
            ),
        ],
        family="docker",
    )
    everything = image(
        [
            workshop.base("python"),
            layer({"installer/site/index.html": f"<h1>Deckhouse installer {version}</h1>\n"}),
        ]
    )
    newest = version == workshop.spec.versions[-1]
    if version in workshop.spec.versions:
        workshop.publish(f"{bare}/installer", everything, version, *["latest"] * newest)
    workshop.tree.platform[version] = PlatformVersion(
        version=version,
        image=published,
        install=workshop.publish(f"{root}/install", installer, version),
        install_standalone=workshop.publish(f"{root}/install-standalone", standalone, version),
        release=workshop.publish(f"{root}/release-channel", release, version) if release else None,
        components=components,
    )


# -- components ----------------------------------------------------------------------------------


def _components(workshop: Workshop, number: int) -> Iterator[tuple[str, int]]:
    """The components of the version at place `number`: name, and how often it changed by then.

    A minor release changes many, a patch release few.
    """
    versions = workshop.spec.versions
    minors = [version.rpartition(".")[0] for version in versions]
    for place in range(workshop.spec.components):
        module = _MODULES[place % len(_MODULES)]
        row = place // len(_MODULES)
        part = _IMAGES[(row + place) % len(_IMAGES)] + (str(row) if row >= len(_IMAGES) else "")
        name = f"{module}/{part}"
        generation = 0
        for at in range(1, number + 1):
            spec = workshop.spec
            chance = spec.patch_changes if minors[at] == minors[at - 1] else spec.minor_changes
            generation += workshop.random("change", name, at).random() < chance
        yield name, generation


def _component(workshop: Workshop, name: str, generation: int) -> Image:
    """A component's image: a shared base, a layer that stays, and one that changed."""
    random = workshop.random("component", name)
    if random.random() < workshop.spec.multi_arch:
        family = random.choice(("oci", "docker"))
        return index(
            [
                (
                    platform,
                    image(
                        [
                            workshop.base("distroless", platform),
                            _program(workshop, name, generation, "gzip", platform),
                        ],
                        family="docker" if family == "docker" else "oci",
                        platform=platform,
                    ),
                )
                for platform in (AMD64, ARM64)
            ]
        )
    compression: Compression = random.choice(("gzip", "gzip", "gzip", "zstd", "zstd", "plain"))
    base = "python" if compression == "zstd" and random.random() < 0.5 else "distroless"
    short = name.rpartition("/")[2]
    data = {f"usr/share/{short}/rules.dat": workshop.noise(workshop.size(name) // 2, "data", name)}
    return image(
        [
            workshop.base(base),
            layer(data, compression=compression),
            _program(workshop, name, generation, compression, AMD64),
        ],
        # Docker has no media type for zstd.
        family="docker" if compression != "zstd" and random.random() < 0.5 else "oci",
        entrypoint=[f"/usr/bin/{short}"],
    )


def _program(
    workshop: Workshop, name: str, generation: int, compression: Compression, platform: Platform
) -> Layer:
    short = name.rpartition("/")[2]
    config = "\n".join(f"option_{number}: {name}-{number % 7}" for number in range(100))
    return layer(
        {
            f"usr/bin/{short}": workshop.noise(
                workshop.size(name), "program", name, generation, platform
            ),
            f"etc/{short}/config.yaml": f"generation: {generation}\n{config}\n",
            # What is left of a package manager's work: it hides a file of the base.
            "etc/.wh.localtime": b"",
        },
        compression=compression,
        comment=f"RUN build {name}",
    )


# -- metadata ------------------------------------------------------------------------------------


def _release_image(workshop: Workshop, version: str, *, suspend: bool = False) -> Image:
    document = {
        "version": version,
        **({"suspend": True} if suspend else {}),
        "requirements": {"k8s": "1.27", "ingressNginx": "1.9", "nodesMinimalOSVersionUbuntu": "20"},
        "disruptions": {"1.69": ["ingressNginx"]},
    }
    changelog = (
        f"{_MODULES[2]}:\n  fixes:\n    - summary: Fix of {version}.\n"
        "      pull_request: https://github.com/deckhouse/deckhouse/pull/10000\n"
    )
    odd = workshop.random("release", version).random() < 0.5
    files = {"version.json": _dump(document), "changelog.yaml": changelog}
    return image([layer(files, compression="zstd" if odd else "gzip", dotted=odd)])


def _installer_layers(
    workshop: Workshop, version: str, number: int, listed: Mapping[str, Mapping[str, str]]
) -> Iterator[Layer]:
    """The installer, in each of the shapes that a reader of its digest list must cope with."""
    digests = _dump(listed)
    program: dict[str, Content] = {
        "usr/bin/dhctl": workshop.noise(workshop.spec.layer_bytes, "dhctl", version),
        "deckhouse/version": f"{version}\n",
    }
    yield workshop.base("distroless")
    match number % 4:
        case 0:  # one plain layer
            yield layer({**program, "deckhouse/candi/images_digests.json": digests})
        case 1:  # names that start with ./, in a zstd layer
            yield layer(
                {**program, "deckhouse/candi/images_digests.json": digests},
                compression="zstd",
                dotted=True,
            )
        case 2:  # an upper layer with the right list, over one with a leftover
            yield layer({**program, "deckhouse/candi/images_digests.json": '{"old":{}}'})
            yield layer({"deckhouse/candi/images_digests.json": digests}, compression="zstd")
        case _:  # the directory is a link; a list of tags was removed later
            yield layer(
                {
                    **program,
                    "deckhouse/candi": Symlink(f"releases/{version}"),
                    f"deckhouse/releases/{version}/images_digests.json": digests,
                    f"deckhouse/releases/{version}/images_tags.json": '{"common":{"init":"old"}}',
                }
            )
            yield layer({f"deckhouse/releases/{version}/.wh.images_tags.json": b""})


def _dump(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"
