"""Which images a registry must hold before a cluster may depend on it.

`Default`: all images of the critical embedded modules, by digest, and those of the deployment
`deckhouse`. `Relax`: the tag of that deployment's main image alone, for a change of edition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.documents import parse_json
from mirror.errors import InvalidDigestError, InvalidReferenceError, RequiredImagesError
from mirror.modes.settings import CheckMode
from mirror.oci import Digest, Reference
from mirror.sync.inventory import Inventory


@dataclass(frozen=True, slots=True)
class RequiredImage:
    """One image: the repository below the registry's base, and a tag or digest there.

    `source` tells who needs it: `module/<module>/<image>` or `deckhouse/containers/<name>`.
    """

    below: str
    reference: str | Digest
    source: str

    @property
    def key(self) -> tuple[str, str]:
        """Its identity, whoever needs it; images are asked for in this order."""
        return (self.below, str(self.reference))


@dataclass(frozen=True, slots=True)
class RequiredSet:
    """The images that are required, each once, in order. Never empty."""

    mode: CheckMode
    images: tuple[RequiredImage, ...]

    @classmethod
    def of(cls, mode: CheckMode, images: Iterable[RequiredImage]) -> RequiredSet:
        """Of several entries for the same image the first counts.

        Raises:
            RequiredImagesError: there are none; such a check would always succeed.
        """
        each: dict[tuple[str, str], RequiredImage] = {}
        for image in images:
            each.setdefault(image.key, image)
        if not each:
            raise RequiredImagesError(
                "no image is required, so a check would prove nothing; give the digests of the "
                "modules, an inventory, or the image of the deployment deckhouse"
            )
        return cls(mode, tuple(each[key] for key in sorted(each)))

    def __len__(self) -> int:
        return len(self.images)


def from_values(
    values: Mapping[str, Any], critical: Iterable[str], deployment: Mapping[str, Any] | None = None
) -> RequiredSet:
    """What a cluster's values require (`global.modulesImages.digests`) of its critical modules."""
    wanted = frozenset(map(kebab, critical))
    if not wanted:
        raise RequiredImagesError(
            "no module is critical and embedded, which cannot be; give the cluster's Modules"
        )
    digests = _at(values, "global", "modulesImages", "digests")
    if not isinstance(digests, Mapping) or not digests:
        raise RequiredImagesError("the values have no digests at global.modulesImages.digests")
    chosen = {module: of for module, of in digests.items() if kebab(str(module)) in wanted}
    none = (
        "global.modulesImages.digests has no digest of a critical module: "
        f"{', '.join(sorted(wanted)[:10])}"
    )
    return _all(_module_images(chosen, "global.modulesImages.digests"), none, deployment)


def from_digest_list(
    text: str, where: str = "the digest list", deployment: Mapping[str, Any] | None = None
) -> RequiredSet:
    """What a list requires: every entry.

    It is a release's `images_digests.json`, a JSON list, or lines that end with a digest.
    """
    return _all(_listed(text, where), f"{where} has no digest in it", deployment)


def from_inventory(
    inventory: Inventory, deployment: Mapping[str, Any] | None = None
) -> RequiredSet:
    """What an inventory requires: every image that one of its tags names."""
    found = [
        RequiredImage(path, digest, f"inventory/{path}:{tag}" if path else f"inventory/{tag}")
        for path, content in sorted(inventory.repositories.items())
        for tag, digest in sorted(content.tags.items())
    ]
    return _all(found, "the inventory names no image", deployment)


def _all(
    found: Iterable[RequiredImage], none: str, deployment: Mapping[str, Any] | None
) -> RequiredSet:
    """`found` and the platform's own; `none` is the message where nothing was found."""
    every = list(found)
    if not every:
        raise RequiredImagesError(none)
    return RequiredSet.of(CheckMode.DEFAULT, [*every, *_deployment_images(deployment)])


def required_images(
    mode: CheckMode, *, inventory: Inventory | None, deckhouse_image: str | None = None
) -> RequiredSet:
    """What the check `mode` requires, from a bundle's inventory and the platform's own image.

    `Default`: all that the inventory holds, and the image; `Relax`: the image alone, by its tag.

    Raises:
        RequiredImagesError: nothing that the check needs is given.
    """
    deployment = None if deckhouse_image is None else deployment_of(deckhouse_image)
    if mode is CheckMode.RELAX:
        return relaxed(deployment)
    if inventory is None:
        raise RequiredImagesError("the check Default needs an inventory, such as that of a bundle")
    return from_inventory(inventory, deployment)


def relaxed(deployment: Mapping[str, Any] | None) -> RequiredSet:
    """The platform's own image alone, by its tag."""
    every = _deployment_images(deployment)
    own = [image for image in every if image.source == "deckhouse/containers/deckhouse"]
    if not own:
        raise RequiredImagesError(
            "the check Relax needs the Deployment d8-system/deckhouse with the image of its "
            "container deckhouse"
        )
    if isinstance(own[0].reference, Digest):
        raise RequiredImagesError(
            "the check Relax needs the image of the container deckhouse by its tag, and the "
            "deployment names it by digest"
        )
    return RequiredSet.of(CheckMode.RELAX, own[:1])


def critical_modules(modules: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of those `Module` objects that are critical and embedded, sorted."""
    names = {
        _at(module, "metadata", "name")
        for module in modules
        if _at(module, "properties", "critical") is True
        and _at(module, "properties", "source") == "Embedded"
    }
    return tuple(sorted(name for name in names if isinstance(name, str)))


def deployment_of(image: str) -> dict[str, Any]:
    """A Deployment that has only the platform's own image."""
    containers = [{"name": "deckhouse", "image": image}]
    return {"spec": {"template": {"spec": {"containers": containers}}}}


def kebab(name: str) -> str:
    """`controlPlaneManager` as `control-plane-manager`."""
    return re.sub(r"(?<!^)(?<!-)(?=[A-Z])", "-", name).lower()


# -- reading documents -----------------------------------------------------------------------------


def _module_images(digests: Mapping[str, Any], where: str) -> Iterable[RequiredImage]:
    for module, images in digests.items():
        if not isinstance(images, Mapping):
            raise RequiredImagesError(f"{where}: {module} is not a mapping of images to digests")
        for image, text in images.items():
            source = f"module/{kebab(str(module))}/{kebab(str(image))}"
            yield RequiredImage("", _digest(text, f"{where}: {module}.{image}"), source)


def _listed(text: str, where: str) -> Iterable[RequiredImage]:
    if text.lstrip()[:1] in ("{", "["):
        try:
            document = parse_json(text)
        except (ValueError, RecursionError) as err:
            raise RequiredImagesError(f"{where} is not JSON: {err}") from err
        if isinstance(document, Mapping):
            yield from _module_images(document, where)
            return
        lines = list(enumerate(document, 1))
    else:
        bare = (line.partition("#")[0].strip() for line in text.splitlines())
        lines = [(number, line) for number, line in enumerate(bare, 1) if line]
    for number, line in lines:
        last = line.rpartition("@")[2] if isinstance(line, str) else line
        yield RequiredImage("", _digest(last, f"{where}, entry {number}"), "list")


def _digest(value: object, where: str) -> Digest:
    if not isinstance(value, str):
        raise RequiredImagesError(f"{where}: expected a digest, found no text")
    try:
        return Digest.parse(value)
    except InvalidDigestError as err:
        raise RequiredImagesError(f"{where}: {err}") from err


def _deployment_images(deployment: Mapping[str, Any] | None) -> Iterable[RequiredImage]:
    """The images of a Deployment's containers, at the registry's base, with their tag or digest."""
    if deployment is None:
        return
    where = "the Deployment deckhouse"
    pod = _at(deployment, "spec", "template", "spec")
    if not isinstance(pod, Mapping):
        raise RequiredImagesError(f"{where} has no spec.template.spec")
    for kind in ("containers", "initContainers"):
        for container in pod.get(kind) or ():
            if not isinstance(container, Mapping):
                raise RequiredImagesError(f"{where}: {kind} is not a list of containers")
            name, image = str(container.get("name")), str(container.get("image"))
            try:
                parsed = Reference.parse(image)
            except (InvalidReferenceError, InvalidDigestError) as err:
                raise RequiredImagesError(f"{where}: container {name}: {err}") from err
            named = parsed.digest or str(parsed.tag)
            yield RequiredImage("", named, f"deckhouse/containers/{name}")


def _at(document: Any, *keys: str) -> Any:
    """What a document has at a path of keys; None where it ends before."""
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document
