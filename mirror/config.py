"""A pull's settings as one document: from a file, from flags, or from a file that flags override.

Every key is the flag of the same name without the leading dashes. Secrets have no keys, so that the
file can be reviewed and kept under version control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)
from pydantic_core import ErrorDetails

from mirror.bundle.format import parse_part_size
from mirror.documents import mistake, parse_duration, parse_rate, read_mapping
from mirror.errors import InputError
from mirror.layout import MODULES, normalised_suffix
from mirror.oci import Platform, Repository
from mirror.release.selection import Filter, PlatformSelection, Selection
from mirror.release.source import SourceTree
from mirror.run import DEFAULT_JOBS
from mirror.sync.content import ContentRules, ForeignLayers, SparseIndexes

_HELP = "see `mirror config schema`"
_PROFILES = ("profile", "profiles")
"""Keys that may stand beside those of a pull: the same file may have the profiles."""

NOTHING: Mapping[str, Any] = {}
DEFAULT_SOURCE = "registry.deckhouse.ru/deckhouse/ee"


def _as_list(value: Any) -> Any:
    """One text stands for the list of it."""
    return (value,) if isinstance(value, str) else value


Texts = Annotated[
    tuple[str, ...], BeforeValidator(_as_list, json_schema_input_type=tuple[str, ...] | str)
]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _about(text: str, default: Any = None) -> Any:
    return Field(default, description=text)


class PullConfig(BaseModel):
    """What `mirror pull` takes, and from where."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_kebab)

    source: str = _about("Source registry and path: host[:port]/path.", DEFAULT_SOURCE)
    modules_path_suffix: str = _about("Path of the modules below the source.", "/modules")
    insecure: bool = _about("Speak plain HTTP to the registry.", False)
    tls_skip_verify: bool = _about("Accept any certificate of the registry.", False)
    ca: Path | None = _about("PEM file of additional certificate authorities to trust.")
    cert: Path | None = _about("Certificate (PEM) to show to a registry that asks for one.")
    cert_key: Path | None = _about("Private key (PEM) of `cert`, if that file does not have it.")
    trust_host: Texts = _about(
        "Hosts to which the source may lead although they are in a private network, and which may "
        "get the login as its token server although they have no TLS.",
        (),
    )
    jobs: Annotated[int, Field(ge=1, le=64, strict=True)] = _about(
        "How many items to work on at a time at most. Where this is not given, up to 64 small ones "
        "if the source is far away and bears them.",
        DEFAULT_JOBS,
    )

    limit_rate: StrictStr | None = _about("Limit of the download rate: 20MB/s, 512KiB/s.")

    retry_for: StrictStr | None = _about(
        "How long to wait for a registry that is away or busy: 30s, 5m, 1h30m.  [default: 5m, once "
        "it has answered]"
    )

    images_bundle_chunk_size: StrictStr | StrictInt | StrictFloat | None = _about(
        "Cut archives into parts of this size: GB (4, 0.7), 700MB, 4GiB, or dvd, bd, fat32."
    )
    compress: Literal["none", "zstd"] = _about(
        "Compress archives (*.tar.zst). This saves little: most layers are compressed already.",
        "none",
    )
    gost_digest: bool = _about(
        "Write a GOST R 34.11-2012 digest beside each archive (*.gostsum).", False
    )
    dedupe: bool = _about(
        "Keep one copy of each blob in the whole bundle. Other tools cannot read such a bundle.",
        False,
    )

    with_tool: bool = _about(
        "Put this program into the bundle, for the other side: the one file it runs from.",
        False,
    )
    tool: Path | None = _about("Put this file there instead, as for another processor.")

    since_version: str | None = _about(
        "Platform: begin with this version, unless a channel begins earlier."
    )
    include_platform: str | None = _about("Platform: releases that this constraint accepts.")
    deckhouse_tag: str | None = _about("Platform: one release: a channel, version or other tag.")
    ignore_suspend: bool = _about("Platform: take suspended release channels too.", False)
    no_platform: bool = _about("Leave the platform out.", False)

    installer_tag: str = _about("Standalone installer: its tag.", "latest")
    no_installer: bool = _about("Leave the standalone installer out.", False)
    no_security_db: bool = _about("Leave the security databases out.", False)

    include_module: Texts = _about("Modules to take: name[@versions]; no others then.", ())
    exclude_module: Texts = _about(
        "Modules, or versions of them, to leave out: name[@versions].", ()
    )
    no_modules: bool = _about("Leave modules out.", False)
    include_package: Texts = _about("Packages to take: name[@versions]; no others then.", ())
    exclude_package: Texts = _about(
        "Packages, or versions of them, to leave out: name[@versions].", ()
    )
    no_packages: bool = _about("Leave packages out.", False)
    include_plugin: Texts = _about(
        "Plugins to take: name[@versions], besides those that modules need.", ()
    )
    no_plugins: bool = _about("Leave plugins out.", False)
    only_extra_images: bool = _about(
        "Take only the extra images of modules and packages, such as databases.", False
    )

    skip_vex_images: bool = _about("Leave VEX attestations (.att) out.", False)
    no_signatures: bool = _about("Leave signatures, SBOMs and OCI referrers out.", False)
    platform: Texts = _about(
        "Thin multi-arch images that tags name to these: os/architecture[/variant].", ()
    )
    foreign_layers: Literal["carry", "leave-out"] = _about(
        "Non-distributable layers (layers with `urls`) that the source holds.", "carry"
    )
    sparse_indexes: Literal["refuse", "carry"] = _about(
        "Multi-arch indexes that lack some images at the source.", "refuse"
    )
    proxy_registry: bool = _about("The source cannot list tags: try versions one by one.", False)

    @classmethod
    def load(
        cls, path: Path | None, flags: Mapping[str, Any], profile: Mapping[str, Any] = NOTHING
    ) -> Self:
        """The settings of a YAML file, where `flags` (by field name) do not override them.

        Those of a `profile` (by field name) hold where neither has any.

        A flag takes the place of the file's value as a whole, lists too. Of settings that exclude
        each other, the command line's beats the file's; one that is switched off excludes nothing.
        """
        file = read_mapping(path, _HELP) if path is not None else {}
        for key in _PROFILES:
            file.pop(key, None)
        flags, profile = ({_kebab(k): v for k, v in one.items()} for one in (flags, profile))
        try:
            return cls.model_validate(_over(_over(profile, file), flags))
        except ValidationError as err:
            found = err.errors(include_url=False)
            if path is None:
                raise InputError("; ".join(f"--{_problem(one)}" for one in found)) from err
            raise InputError(f"{path}: {'; '.join(map(_problem, found))}; {_HELP}") from err

    def bytes_per_s(self) -> float | None:
        """The rate that `limit_rate` allows; None for any."""
        return _parsed(self.limit_rate, parse_rate, "--limit-rate")

    def retry_for_s(self) -> float | None:
        """The seconds that `retry_for` allows; None for the default."""
        return _parsed(self.retry_for, parse_duration, "--retry-for")

    @property
    def brings_tool(self) -> bool:
        """Whether the bundle is to bring the program: a file that is named counts as a wish."""
        denied = "with_tool" in self.model_fields_set and not self.with_tool
        return self.with_tool or (self.tool is not None and not denied)

    def part_size(self) -> int:
        """Bytes of an archive's parts; 0 leaves archives whole."""
        return parse_part_size(str(self.images_bundle_chunk_size or 0))

    def tree(self) -> SourceTree:
        """Where the source keeps its release tree."""
        return SourceTree(
            Repository.parse(self.source), normalised_suffix(self.modules_path_suffix)
        )

    def selection(self) -> tuple[Selection, tuple[str, ...]]:
        """What to select, and what the user should know of how that was understood."""
        self._check_contradictions()
        platform = PlatformSelection.from_flags(
            deckhouse_tag=self.deckhouse_tag,
            include_platform=self.include_platform,
            since_version=self.since_version,
            ignore_suspend=self.ignore_suspend,
        )
        no_modules = self.no_modules and not self.only_extra_images
        no_packages = self.no_packages and not self.only_extra_images
        modules = _filter("module", self.include_module, self.exclude_module)
        packages = _filter("package", self.include_package, self.exclude_package)
        plugins = Filter.including(self.include_plugin, "--include-plugin")
        if self.proxy_registry and not self.include_package:
            # Which packages there are cannot be asked of such a source.
            no_packages = True
        selection = Selection(
            platform=None if self.no_platform else platform,
            installer_tag=None if self.no_installer else self.installer_tag,
            security=not self.no_security_db,
            modules=None if no_modules else modules,
            packages=None if no_packages else packages,
            plugins=None if self.no_plugins or self.only_extra_images else plugins,
            only_extra_images=self.only_extra_images,
            vex=not self.skip_vex_images,
            signatures=not self.no_signatures,
            platforms=tuple(_platform(text) for text in self.platform),
            probing=self.proxy_registry,
            rules=ContentRules(
                ForeignLayers(self.foreign_layers), SparseIndexes(self.sparse_indexes)
            ),
            modules_must_exist="modules_path_suffix" in self.model_fields_set,
        )
        if self.proxy_registry:
            self._check_probing(selection)
        suffix = normalised_suffix(self.modules_path_suffix)
        if suffix == MODULES or selection.modules is None:
            return selection, ()
        where = f"{suffix} below the source" if suffix else "the source itself"
        return selection, (f"modules are read from {where}, not from {MODULES}",)

    def _check_contradictions(self) -> None:
        """Refuse two settings if one leaves out what the other asks for."""
        given = {
            name for name in self.model_fields_set if getattr(self, name) not in (None, False, ())
        }
        for one, others, why in _CONTRADICTIONS:
            for other in others:
                if {one, other} <= given:
                    flags = f"--{_kebab(one)} and --{_kebab(other)}"
                    raise InputError(f"{flags} contradict each other: {why}; drop one of them")

    def _check_probing(self, selection: Selection) -> None:
        """A source that cannot list must be told where to begin."""
        for flag, value in (
            ("--deckhouse-tag", self.deckhouse_tag),
            ("--since-version", self.since_version),
        ):
            if value is not None:
                raise InputError(
                    f"--proxy-registry and {flag} exclude each other; say what to try with "
                    "--include-platform, such as '>=1.68 <=1.70'"
                )
        # A tag that --include-platform pins (=TAG) needs no list.
        if selection.platform is not None and self.include_platform is None:
            raise InputError(
                "--proxy-registry cannot list the platform's versions; say which to try with "
                "--include-platform, such as '>=1.68 <=1.70', or add --no-platform"
            )
        kinds = (("module", selection.modules), ("package", selection.packages))
        if selection.only_extra_images:
            # Their versions come from the channels, which can be asked for one by one.
            if not any(items is not None and items.names for _, items in kinds):
                raise InputError(
                    "--proxy-registry cannot list modules and packages; name those whose extra "
                    "images to take with --include-module and --include-package, or drop "
                    "--only-extra-images"
                )
        else:
            for noun, items in kinds:
                if items is not None and (
                    not items.names or any(not items.items[name].wanted for name in items.names)
                ):
                    raise InputError(
                        f"--proxy-registry cannot list {noun}s and their versions; name each with "
                        f"--include-{noun} 'name@>=1.0 <2.0', or add --no-{noun}s"
                    )
        plugins = selection.plugins
        if plugins is not None and any(not plugins.items[name].is_exact for name in plugins.names):
            raise InputError(
                "--proxy-registry cannot list plugin versions; pin each with "
                "--include-plugin name@=v1.2.3"
            )
        if (
            selection.platform is None
            and selection.modules is None
            and not (plugins and plugins.names)
        ):
            raise InputError(
                "--proxy-registry has nothing to look for: the platform and modules are left out "
                "and no plugin is named"
            )

    def selection_document(self) -> dict[str, Any]:
        """The settings that decide what is in the bundle, for its seal: what differs from the
        defaults, without how the source is reached."""
        document = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for key in _OUTWARD:
            document.pop(key, None)
        return document


def _parsed(text: str | None, parse: Callable[[str], float], flag: str) -> float | None:
    try:
        return None if text is None else parse(text)
    except ValueError as err:
        raise InputError(f"{flag}: {err}") from None


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`lower` with `upper` over it, which drops what its settings exclude."""
    for group in _EXCLUSIVE:
        if any(upper.get(key, False) is not False for key in group):
            lower = {key: value for key, value in lower.items() if key not in group}
    return {**lower, **upper}


_OUTWARD = frozenset(
    {
        *("insecure", "tls-skip-verify", "ca", "jobs", "limit-rate", "retry-for"),
        *("cert", "cert-key", "trust-host"),
        *("images-bundle-chunk-size", "gost-digest", "compress", "dedupe", "with-tool", "tool"),
    }
)
"""Settings that do not change what is in a bundle."""

_CONTRADICTIONS = (
    (
        "no_platform",
        ("deckhouse_tag", "include_platform", "since_version"),
        "the one leaves out all releases, the other asks for some",
    ),
    ("no_installer", ("installer_tag",), "the one leaves the installer out, the other asks for it"),
    ("no_modules", ("include_module",), "the one leaves out all modules, the other asks for some"),
    (
        "no_packages",
        ("include_package",),
        "the one leaves out all packages, the other asks for some",
    ),
    ("no_plugins", ("include_plugin",), "the one leaves out all plugins, the other asks for some"),
    ("only_extra_images", ("include_plugin",), "--only-extra-images takes no plugins"),
)
"""Settings that exclude others, and why; those of the platform's releases exclude each other too,
and an inclusion excludes an exclusion (`PlatformSelection.from_flags`, `_filter`)."""

_SECRETS = {
    **dict.fromkeys(("license", "license-key", "license-token"), "D8_MIRROR_LICENSE_TOKEN"),
    **dict.fromkeys(("source-login", "login", "user", "username"), "D8_MIRROR_SOURCE_LOGIN"),
    **dict.fromkeys(("source-password", "password"), "D8_MIRROR_SOURCE_PASSWORD"),
    "sign-key": "--sign-key",
}
"""What people write into the file and must not → where it belongs."""

_EXCLUSIVE = (
    frozenset({"no-platform", "since-version", "include-platform", "deckhouse-tag"}),
    frozenset({"no-installer", "installer-tag"}),
    frozenset({"no-modules", "include-module", "exclude-module"}),
    frozenset({"no-packages", "include-package", "exclude-package"}),
    frozenset({"no-plugins", "include-plugin"}),
)
"""Groups of settings: one makes the others of its group void or contradicts them."""


def _problem(error: ErrorDetails) -> str:
    """What is wrong with one setting, by its key."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if _kebab(key) in _SECRETS:
            return (
                f"unknown setting {key!r}: no secret is read from the file; give it by "
                f"{_SECRETS[_kebab(key)]}"
            )
        known = [_kebab(name) for name in PullConfig.model_fields]
        close = get_close_matches(_kebab(key), known, n=1)
        return f"unknown setting {key!r}" + (f"; did you mean {close[0]}?" if close else "")
    hint = _quoting_hint(error["type"], error["input"])
    return f"{key or 'the document'}: {mistake(error)}{hint}"


def _quoting_hint(kind: str, value: Any) -> str:
    """YAML reads 1.70 as the number 1.7, which no longer says which version was meant."""
    if kind != "string_type" or isinstance(value, bool):
        return ""
    if isinstance(value, (int, float)):
        return f" (YAML reads it as the number {value}; write it in quotes)"
    if isinstance(value, date):
        return f" (YAML reads it as the date {value}; write it in quotes)"
    return ""


def _filter(noun: str, include: Texts, exclude: Texts) -> Filter:
    if include and exclude:
        raise InputError(
            f"--include-{noun} and --exclude-{noun} exclude each other: the one names all that is "
            "taken, the other all that is not; keep one of them"
        )
    if include:
        return Filter.including(include, f"--include-{noun}")
    return Filter.excluding(exclude, f"--exclude-{noun}")


def _platform(text: str) -> Platform:
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InputError(f"--platform {text!r}: write os/architecture[/variant], as linux/amd64")
    return Platform(*parts)
