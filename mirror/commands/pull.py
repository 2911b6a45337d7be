"""`mirror pull`, and `mirror clean` of what it leaves when it is interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from mirror.bundle import gost
from mirror.bundle.folder import check_space
from mirror.bundle.format import MAX_COMPANION_BYTES, Shard
from mirror.bundle.place import Packing
from mirror.bundle.reader import read_inventory
from mirror.commands import options, program
from mirror.commands.access import (
    STORED,
    AccessOptions,
    ClusterFiles,
    TreeAccess,
    bundle_access,
    cluster_files,
    from_environment,
    login_options,
    profile_hosts,
    read_secret,
    secret,
    sign_key_option,
    signer,
)
from mirror.commands.options import Work, argument, command, file_option, flag, option
from mirror.config import PullConfig
from mirror.durable import os_errors
from mirror.errors import InputError, InvalidReferenceError, NoSpaceError, printable
from mirror.events import Warned
from mirror.layout import tool_name
from mirror.oci import Digest
from mirror.operations.pull import PullPlan, clean, place_of, plan_patch, plan_pull
from mirror.registry import find_credentials
from mirror.release.source import ReleaseSource, SourceTree
from mirror.reports.bundles import clean_summary, plan_summary, pull_summary

if TYPE_CHECKING:
    from mirror.bundle.bucket import Bucket


_SHORT = {
    "include_module": "-i",
    "exclude_module": "-e",
    "images_bundle_chunk_size": "-c",
    "cert_key": "--key",
}
_VARIABLES = {"cert": "D8_MIRROR_SOURCE_CERT", "cert_key": "D8_MIRROR_SOURCE_KEY"}


def _config_options() -> dict[str, Any]:
    """One option for every setting of `PullConfig`, absent unless it is given.

    A switch has an opposite, for what a file switches on: `--no-modules/--modules`.
    """
    found = {}
    for name, setting in PullConfig.model_fields.items():
        long = name.replace("_", "-")
        names = [f"--{long}", *([_SHORT[name]] if name in _SHORT else [])]
        default, text = setting.get_default(), setting.description
        how: dict[str, Any] = {"shell_complete": program.PULL.get(name)}
        if isinstance(default, bool):
            names[0] += f"/--{_opposite(long)}"
            how = {"is_flag": True}
        elif isinstance(default, tuple):
            text = f"{text} Repeatable."
            how |= {"multiple": True}
        else:
            text = f"{text}  [default: {default}]" if default is not None else text
            how |= {
                "type": int if isinstance(default, int) else str,
                "envvar": _VARIABLES.get(name),
            }
            if get_origin(setting.annotation) is Literal:
                how["type"] = click.Choice(get_args(setting.annotation))
        found[name] = option(text, *names, default=None, **how)
    return found


def _opposite(name: str) -> str:
    """The flag that takes back what `name` says."""
    if name.startswith("with-"):
        return f"without-{name.removeprefix('with-')}"
    if not name.startswith("no-"):
        return f"no-{name}"
    bare = name.removeprefix("no-")
    # --platform is a setting of its own: what to thin multi-arch images to.
    return f"with-{bare}" if bare.replace("-", "_") in PullConfig.model_fields else bare


_LOGINS = {
    **login_options("source", f"User of the source; {STORED}"),
    "license_key": from_environment(
        "Deckhouse license key, instead of user and password; '-' as above.",
        "--license",
        "-l",
        variable="D8_MIRROR_LICENSE_TOKEN",
        callback=secret,
    ),
}


@command("pull", "mirror pull bundle --source registry.deckhouse.ru/deckhouse/ee --license -")
def pull_command(
    bundle_dir: Path | str = argument(type=options.BUNDLE),
    config_file: Path | None = file_option(
        "YAML file with any of the settings below. Flags override it.", "--config"
    ),
    dry_run: bool = flag("Print what would be pulled; pull nothing."),
    base: str | None = option(
        "Make a delta that leaves out what this bundle (a folder or an address), inventory or "
        "registry holds. A registry is reached like the source, with its own stored login."
    ),
    only: Path | None = file_option(
        "Pull just what this file of `mirror repair --request` lists: a patch for that bundle."
    ),
    shard: Shard | None = option(
        "Carry one of COUNT shares of a bundle in a bucket, as 3/8, which as many machines make "
        "together. `auto`: the share of a pod of a Kubernetes Indexed Job.",
        "--shard N/COUNT",
        read=Shard.parse,
    ),
    force: bool = flag("Replace the bundle that is in BUNDLE_DIR."),
    yes: bool = options.yes_option,
    no_pull_resume: bool = flag("Start over; ignore what an interrupted pull left."),
    verbose_summary: bool = flag("List the versions of every module and package."),
    sign_key: Path | None = sign_key_option,
    login: str | None = _LOGINS["login"],
    password: str | None = _LOGINS["password"],
    license_key: str | None = _LOGINS["license_key"],
    cluster: ClusterFiles = cluster_files,
    _d8: None = program.for_d8,
    settings: Mapping[str, Any] = options.grouped(dict, **_config_options()),
    work: Work = options.as_json,
) -> None:
    """Pack a release tree into a bundle in BUNDLE_DIR, or in a bucket: s3://BUCKET/PREFIX.

    By default: the platform's releases between the rock-solid and the alpha channel with all their
    components, the standalone installer, security databases, and all modules and packages at the
    versions that their release channels lead to, with the plugins that they need.

    \b
    Versions, behind @ or for --include-platform:
      =TAG[+channel]   exactly this tag, published to the channel (default: to all)
      '>=1.2 <1.5'     a constraint (also ~1.2.3, ^1.2, ||); quote it for the shell
      1.2.0            this and all later versions of its major version
    """
    if password and not login and options.given_by(ParameterSource.ENVIRONMENT, "password"):
        # d8 ignores it, too: scripts leave it set.
        work.on_event(Warned("D8_MIRROR_SOURCE_PASSWORD is not used: no login goes with it"))
        password = None
    if license_key and login:
        work.on_event(Warned("the licence key is not used, since --source-login is given"))
    flags = {name: value for name, value in settings.items() if value not in (None, ())}
    lower = ParameterSource.DEFAULT_MAP
    profile = {name: flags.pop(name) for name in [*flags] if options.given_by(lower, name)}
    config = PullConfig.load(config_file, flags, profile)
    access = AccessOptions(
        login,
        password,
        config.modules_path_suffix,
        config.insecure,
        config.tls_skip_verify,
        config.ca,
        config.cert,
        config.cert_key,
        config.trust_host,
        config.bytes_per_s(),
        config.retry_for_s(),
        whose="source",
        meant_for=profile_hosts(),
    )
    source = _source(config, access, license_key, cluster)
    tool = _tool(config)
    selection, warnings = config.selection()
    sign, public_key = signer(None if dry_run else sign_key)
    packing = Packing(
        part_size=config.part_size(),
        gost_digest=config.gost_digest,
        sign=sign,
        public_key=public_key,
        resume=not no_pull_resume,
        compress=config.compress == "zstd",
    )
    if config.gost_digest:
        gost.require()
    base_tree = base_place = None
    if base is not None:
        base_place = options.bundle_at(base, access, work)
        if base_place is None:
            base_tree = _base(base, source, access, given=bool(login or license_key))
    held = read_inventory(base_place) if base_place is not None else None
    run = work.run.with_jobs(config.jobs) if "jobs" in config.model_fields_set else work.run
    client = work.enter_context(source.open(work.on_event)).client
    for warning in warnings:
        work.on_event(Warned(warning))
    place = made_at(bundle_dir, access, work)
    if shard is None:
        place_of(place, run).check(force=force)
    elif isinstance(place, Path):
        raise InputError("--shard is for a bundle in a bucket: s3://bucket/prefix, not a folder")
    elif dry_run or force:
        other = "--dry-run" if dry_run else "--force"
        raise InputError(f"--shard takes no {other}; leave one of them out")
    if force and not dry_run:
        confirm_replacing(work, place, yes)
    tree = SourceTree(source.root, source.modules_suffix)
    chosen = config.selection_document()

    def planned() -> PullPlan:
        if only is not None:
            return plan_patch(client, tree, read_inventory(only), run=run)
        base_held = held
        if base_tree is not None:
            with base_tree.open(work.on_event) as at_base:
                from mirror.operations.trees import registry_inventory  # for such a base alone

                base_held = registry_inventory(at_base, run=run).inventory
        return plan_pull(
            client,
            tree,
            selection,
            selection=chosen,
            base=base_held,
            dedupe=config.dedupe,
            tool=tool,
            run=run,
        )

    if shard is not None and not isinstance(place, Path):
        from mirror.operations.shards import pull_shard  # few need these
        from mirror.reports.registries import shard_summary

        asked = {
            "selection": chosen,
            "source": str(tree.root),
            "modules-path-suffix": tree.modules_suffix,
            "base": base if held is None else str(held.digest()),
            "only": None if only is None else str(read_inventory(only).digest()),
            "dedupe": config.dedupe,
            "tool": None if tool is None else str(Digest.of(tool)),
            "version": tool_name(),
        }
        content = ReleaseSource(client.within(run), tree, run=run).content
        report = pull_shard(place, shard, asked, planned, content, packing=packing, run=run)
        work.show(report, shard_summary)
    elif dry_run:
        plan = planned()
        try:
            if isinstance(place, Path):
                check_space(place, sum(plan.archives.values()))
        except NoSpaceError as err:
            work.on_event(Warned(str(err)))
        work.show(plan, plan_summary)
    else:
        done = planned().carry_out(place, force=force, packing=packing, run=run)
        work.show(done, partial(pull_summary, verbose=verbose_summary))


@command("clean", "mirror clean s3://bundles/1.70 --dry-run")
def clean_command(
    bundle_dir: Path | str = argument(type=options.BUNDLE_HERE),
    dry_run: bool = flag("Print what would be removed; remove nothing."),
    yes: bool = options.yes_option,
    access: AccessOptions = bundle_access,
    work: Work = options.as_json,
) -> None:
    """Remove what interrupted pulls have left in BUNDLE_DIR, or in a bucket: s3://BUCKET/PREFIX.

    These are partial archives, and in a bucket unfinished uploads, which no listing shows and which
    cost as much as objects. A sealed bundle stays, and so do files that are not a bundle's. Use it
    for pulls that you give up: the next one starts over. It also removes what the shards of a
    verification have put into PLACE (verify --findings).
    """
    place = made_at(bundle_dir, access, work)
    if not dry_run and work.asks(yes):
        found = work.look(lambda run: clean(place, dry_run=True, run=run), clean_summary)
        if found.removed:
            work.confirm(f"Remove this from {place} for good?")
    work.show(clean(place, dry_run=dry_run, run=work.run), clean_summary)


def _tool(config: PullConfig) -> bytes | None:
    """The program that the bundle is to bring; None for none. InputError: it is none."""
    if not config.brings_tool:
        return None
    path = config.tool or program.executable()
    if path is None:
        raise InputError(
            "this mirror was installed as a package and is not one file that could go into the "
            "bundle; make that with `./run build`, or take it from a release, and name it: "
            "--tool FILE"
        )
    with os_errors(path, "read"), path.open("rb") as file:
        data = file.read(MAX_COMPANION_BYTES + 1)
    if not data.startswith(b"\x7fELF") or len(data) > MAX_COMPANION_BYTES:
        raise InputError(
            f"{path} is not a program for Linux; name the one file that `./run build` makes: "
            "mirror-VERSION-linux-ARCHITECTURE"
        )
    return data


def made_at(
    bundle: Path | str, access: AccessOptions, work: Work, what: str = "a bundle"
) -> Path | Bucket:
    """Where a bundle is made, or `what` else."""
    if isinstance(bundle, Path):
        return bundle
    if not bundle.startswith("s3://"):
        raise InputError(
            f"{what} cannot be made at {printable(bundle.rpartition('@')[2])}; name a folder, or "
            "a place in a bucket: s3://bucket/prefix"
        )
    bucket = options.bucket_at(bundle, access.connection())
    work.callback(bucket.close)
    return bucket


def confirm_replacing(work: Work, folder: Path | Bucket, yes: bool) -> None:
    """Ask before the bundle in `folder` goes, if one is there."""
    if work.asks(yes) and (not isinstance(folder, Path) or any(folder.glob("*.tar*"))):
        work.confirm(f"Replace the bundle in {folder}? It stays until the new one is complete.")


def _source(
    config: PullConfig, access: AccessOptions, license_key: str | None, cluster: ClusterFiles
) -> TreeAccess:
    """Where to pull from: the registry of the settings, or by default that of the cluster."""
    if license_key and not access.login:
        key = read_secret(license_key, "Licence key: ")
        if not key:
            raise InputError("--license - found no key on standard input")
        access = replace(access, login="license-token", password=key)
    named = config.source if not cluster or "source" in config.model_fields_set else None
    return cluster.reach(named, access, writes=False)


def _base(base: str, source: TreeAccess, access: AccessOptions, *, given: bool) -> TreeAccess:
    """The registry that `--base` names, reached as the source is, with a login of its own.

    `given`: that of the source was given, and not found.
    """
    try:
        root = access.root(base)
    except InvalidReferenceError as err:
        raise InputError(
            f"--base {base}: there is no file or folder of that name here, and it is not a "
            f"registry (host[:port]/path): {err}"
        ) from err
    login = find_credentials(str(root))
    if root.host != source.root.host:
        options = replace(source.options, certificate=None)  # who we are at the source
        return replace(source, root=root, options=options, credentials=login)
    if given or login is None:
        login = source.credentials
    return replace(source, root=root, credentials=login)
