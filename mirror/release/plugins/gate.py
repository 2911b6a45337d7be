"""What the rest of a bundle offers to plugins: modules and platform releases."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from semver import Version

from mirror.layout import comparable, in_order
from mirror.release.constraints import Constraint
from mirror.release.plugins.contract import Contract, Requirement


class Surroundings:
    """The modules (each with at least one version) and platform releases of a bundle."""

    def __init__(
        self, modules: Mapping[str, Collection[Version]], platform: Collection[Version]
    ) -> None:
        self.modules = {name: in_order(found) for name, found in sorted(modules.items()) if found}
        self.platform = in_order(platform)

    def lacking(self, contract: Contract, module: str = "") -> list[str]:
        """What a plugin needs and does not find. `module` is known to be there as needed.

        Without any platform release that need is not judged. What a plugin says of Kubernetes and
        of modules that must not be there concerns the cluster, not the bundle.
        """
        lacking = [
            f"it needs module {need}, and the bundle {self.describe(need.name)}"
            for need in contract.mandatory_modules
            if need.name != module and not self.has(need)
        ]
        lacking += [
            f"it needs one of the modules {', '.join(map(str, group.members))} ({group.name}), and "
            "the bundle has none of them in such a version"
            for group in contract.any_of
            if not any(self.has(member) for member in group.members)
        ]
        platform = contract.deckhouse
        if platform is not None and self.platform and not self._has_platform(platform):
            lacking.append(
                f"it needs a platform release {platform}, and the bundle has "
                f"{', '.join(map(str, self.platform))}"
            )
        return lacking

    def has(self, need: Requirement) -> bool:
        """Whether some version of the module is there that will do."""
        return any(need.accepts(version) for version in self.modules.get(need.name, ()))

    def describe(self, module: str) -> str:
        """Which versions of a module are there, to follow the words `the bundle`."""
        versions = self.modules.get(module)
        return f"has {', '.join(map(str, versions))}" if versions else "does not have it"

    def _has_platform(self, constraint: Constraint) -> bool:
        return any(constraint.accepts(comparable(version)) for version in self.platform)
