"""What an image that goes by its digest is called: `module/image`, as installers list it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial

from mirror.errors import MirrorError
from mirror.layout import INSTALL
from mirror.oci import Descriptor, Digest, verified
from mirror.oci.layers import read_files
from mirror.release.platform import IMAGES_DIGESTS, IMAGES_TAGS, parse_components
from mirror.sync import Inventory, Source


def component_names(content: Source, inventory: Inventory) -> dict[Digest, str]:
    """Return the name of each image that an installer in `inventory` lists.

    Layers of the installers are read, as far down as their lists lie, and of a delta those that it
    carries. An installer that cannot be read names nothing.
    """
    names: dict[Digest, str] = {}
    tags, carried = inventory.repository("").tags, inventory.blob_sizes().keys()
    for digest in dict.fromkeys(inventory.repository(INSTALL).tags.values()):
        with suppress(MirrorError):
            for name, component in _listed(content, digest, carried).items():
                image = name if isinstance(name, Digest) else tags.get(name)
                if image is not None:
                    names.setdefault(image, component)
    return names


def _listed(
    content: Source, digest: Digest, carried: Collection[Digest]
) -> Mapping[Digest | str, str]:
    image = content.manifest(INSTALL, digest)
    while image.is_index:
        if not image.children:
            return {}
        image = content.manifest(INSTALL, image.children[0].descriptor.digest)

    def layer(one: Descriptor) -> Iterator[bytes]:
        where = f"{content.name}: layer {one.digest}"
        return verified(
            content.blob(INSTALL, one.digest, one.size), one.digest, one.size, where=where
        )

    where = f"{content.name}: {INSTALL}@{digest}"
    layers = [partial(layer, one) for one in image.layers if one.digest in carried]
    found = read_files(layers, (IMAGES_DIGESTS, IMAGES_TAGS), where=where)
    listed = parse_components(found.get(IMAGES_TAGS, b"{}"), where, IMAGES_TAGS)
    return listed or parse_components(found.get(IMAGES_DIGESTS, b"{}"), where, IMAGES_DIGESTS)
