"""Selecting: the source is asked for its facts, and what belongs in the bundle follows."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import DeniedError
from mirror.layout import CHANNELS
from mirror.release.phases.extras import installer_image, security_images
from mirror.release.phases.items import (
    MODULE,
    PACKAGE,
    SelectedItem,
    package_version_images,
    select_items,
)
from mirror.release.phases.platform import PlatformPhase, select_platform_images
from mirror.release.phases.plugins import select_plugin_images
from mirror.release.platform import PlatformSelection
from mirror.release.selection import Selection, Wanted, Wishes
from mirror.release.source import ReleaseSource


def select(source: ReleaseSource, wishes: Wishes) -> Selection:
    """Ask `source` what there is and say what of it `wishes` puts into a bundle.

    Raises:
        SourceContentError: the release tree contradicts itself; the message says where.
        NotFoundError: what was asked for by name is not there.
        DeniedError, UnreachableError: the registry does not answer as it should.
    """
    images: list[Wanted] = []
    platform = PlatformPhase(PlatformSelection((), ()), ())
    if wishes.platform is not None:
        platform = select_platform_images(source, wishes.platform, probing=wishes.probing)
        images += platform.images
    if wishes.installer_tag is not None:
        images.append(installer_image(wishes.installer_tag))
    if wishes.security:
        images += security_images(source)
    modules: list[SelectedItem] = []
    if wishes.modules is not None:
        modules = select_items(source, MODULE, wishes.modules, wishes)
    packages: list[SelectedItem] = []
    if wishes.packages is not None:
        packages = select_items(source, PACKAGE, wishes.packages, wishes)
    for item in (*modules, *packages):
        images += item.images
    if not wishes.probing and not wishes.only_extra_images:
        images += _without_stray_channels(_described_packages(source, wishes), images)
    module_versions = {item.name: item.versions for item in modules}
    plugins = select_plugin_images(source, wishes, module_versions, platform.selection.versions)
    images += plugins.images
    return Selection(
        tuple(sorted(dict.fromkeys(images))),
        (*platform.selection.tags, *platform.selection.custom_tags),
        platform.channels,
        module_versions,
        {item.name: item.versions for item in packages},
        plugins.choices,
        platform.files,
    )


def _described_packages(source: ReleaseSource, wishes: Wishes) -> list[Wanted]:
    """What describes all packages. Who wants none of them need not have access to them."""
    try:
        return package_version_images(source, wishes.packages)
    except DeniedError as err:
        if wishes.packages is not None:
            raise
        source.warn(f"no packages are described in the bundle: {err}")
        return []


def _without_stray_channels(versions: Iterable[Wanted], selected: Iterable[Wanted]) -> list[Wanted]:
    """`versions` without the channels of selected packages, whose own archives have them."""
    repositories = {image.repository for image in selected}
    return [
        image
        for image in versions
        if image.tag not in CHANNELS or image.repository not in repositories
    ]
