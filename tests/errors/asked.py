"""Situations that begin with what was asked for, or with the settings of a cluster."""

from __future__ import annotations

import datetime

from mirror.errors import (
    ForbiddenByModeError,
    InputError,
    InvalidCertificateError,
    InvalidDigestError,
    InvalidReferenceError,
    InvalidSettingsError,
    InvalidStateError,
    RenderingError,
    RequiredImagesError,
    RouteError,
)
from mirror.nodeconfig.cluster import Node, check_nodes
from mirror.nodeconfig.pki import Authorities, KeyPair, authorities_to_use, create_authority
from mirror.oci import Digest
from tests.errors.lab import Lab, Told
from tests.errors.situation import situation

DIRECT = {"mode": "Direct", "direct": {"imagesRepo": "nexus.example.com:8443/dkp/ee"}}
PROXY = {"mode": "Proxy", "proxy": {"imagesRepo": "nexus.example.com:8443/dkp/ee"}}


@situation(
    InputError,
    "A folder without a bundle",
    cause="The folder holds no archive: it is the wrong one, or the copy is not finished.",
    cure="Name the folder in which the `*.tar` files lie.",
)
def _empty_folder(lab: Lab) -> Told:
    (lab.folder / "empty").mkdir()
    return lab.mirror("push", lab.folder / "empty", "registry.example.com/dkp")


@situation(
    InputError,
    "A pull that was not finished",
    cause="The folder holds what an interrupted pull has left, and no bundle yet.",
    cure="Run the same pull again; it goes on where it was. If nobody wants it any more, "
    "`mirror clean` removes it.",
)
def _unfinished(lab: Lab) -> Told:
    folder = lab.folder / "bundle"
    folder.mkdir()
    lab.write("bundle/platform.tar.partial", b"")
    return lab.mirror("verify", folder)


@situation(
    InputError,
    "A folder that is in use",
    cause="The folder holds other files, or a bundle of another selection.",
    cure="Name an empty folder, or replace the bundle by `--force`.",
)
def _occupied(lab: Lab) -> Told:
    folder = lab.bundle()
    lab.write("bundle/notes.txt", "mine")
    (folder / "inventory.json").unlink()
    return lab.mirror("pull", folder, "--source", lab.source.root, "--insecure")


@situation(
    InputError,
    "A login without a password",
    cause="A user was named and no password.",
    cure="Give the password by `--registry-password -` (asked for, or read from a pipe) or by the "
    "environment.",
)
def _no_password(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, "registry.example.com/dkp", "-u", "ci")


@situation(
    InputError,
    "A file of certificate authorities that holds none",
    cause="`--ca` names a file that is not PEM: a DER file, a key, a request.",
    cure="Name a file that begins with `-----BEGIN CERTIFICATE-----`.",
)
def _no_ca(lab: Lab) -> Told:
    file = lab.write("ca.der", b"\x30\x82")
    return lab.mirror("push", lab.sealed, "registry.example.com/dkp", "--ca", file)


@situation(
    InputError,
    "A settings file with an unknown key",
    cause="A key of `--config` is spelled differently.",
    cure="`mirror config schema` prints what there is.",
)
def _unknown_setting(lab: Lab) -> Told:
    file = lab.write("mirror.yaml", {"sorce": "registry.example.com/deckhouse/ee"})
    return lab.mirror("pull", lab.folder / "bundle", "--config", file)


@situation(
    InputError,
    "`https://` and `--insecure` at once",
    cause="The address asks for TLS, and the flag for none.",
    cure="Leave one of them out.",
)
def _contradiction(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, "https://registry.example.com/dkp", "--insecure")


@situation(
    InputError,
    "One login for several registries",
    cause="`-u` and `-p`, or a certificate, are given to a command that speaks to several hosts.",
    cure="Store a login for each (`docker login`), or say `--same-login`.",
)
def _same_login(lab: Lab) -> Told:
    where = ("--from", "a.example.com/dkp", "--to", "b.example.com/dkp")
    return lab.mirror("sync", *where, "-u", "ci", "-p", "-", stdin="secret\n")


@situation(
    InvalidReferenceError,
    "An address that no registry can have",
    cause="Capital letters in a path, a space, a scheme other than `http` and `https`.",
    cure="Write `host[:port]/path`, the path in lower case.",
)
def _reference(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, "registry.example.com/Deckhouse/EE")


@situation(
    InvalidDigestError,
    "A digest that cannot be",
    cause="Something that should be a digest is cut short, or has capital letters.",
    cure="A digest is `sha256:` and 64 digits 0-9, a-f (`sha512:` and 128).",
)
def _digest(lab: Lab) -> Told:
    return lab.raised(lambda: Digest.parse("sha256:5E88"))


@situation(
    InvalidCertificateError,
    "A kept authority that cannot sign",
    cause="The files of the cluster's own authority were exchanged or cut.",
    cure="Put the files back as they were rendered; a new authority would be trusted by no node.",
)
def _certificate(lab: Lab) -> Told:
    nothing = Authorities(KeyPair("nothing", "nothing"))
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return lab.raised(lambda: authorities_to_use(nothing, now))


@situation(
    InvalidCertificateError,
    "A clock before the authority",
    cause="This machine's clock is behind: by it, the cluster's authority is not in force yet.",
    cure="Set the clock (NTP) and render again; nothing was renewed.",
)
def _clock(lab: Lab) -> Told:
    made = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    held = Authorities(create_authority(made))
    return lab.raised(lambda: authorities_to_use(held, made - datetime.timedelta(days=1)))


@situation(
    RenderingError,
    "Node configuration that cannot be written",
    cause="A value is not one that the files may have, or the flavour cannot do what is asked for.",
    cure="The message says which value, and what was expected.",
)
def _rendering(lab: Lab) -> Told:
    return lab.raised(lambda: check_nodes([Node("a", "10.0.0.1"), Node("a", "10.0.0.2")]))


@situation(
    ForbiddenByModeError,
    "A push into a cluster that only caches",
    cause="In mode Proxy the cluster's registry takes no writes.",
    cure="Push to the registry that the cluster caches.",
)
def _forbidden(lab: Lab) -> Told:
    config = lab.write("proxy.yaml", PROXY)
    return lab.mirror("push", lab.sealed, "--module-config", config)


@situation(
    InvalidSettingsError,
    "Settings of a cluster that break rules",
    cause="A field is missing, of another kind, or does not go with the mode.",
    cure="Each line names a field and what is wrong with it.",
)
def _settings(lab: Lab) -> Told:
    config = lab.write("mc.yaml", {"mode": "Direct", "direct": {"imagesRepo": "", "ttl": "1h"}})
    return lab.mirror("mode", "show", "--module-config", config)


@situation(
    RouteError,
    "An image that the mode does not lead to",
    cause="The reference lies outside of the cluster's registry.",
    cure="Ask for it by its logical name, or relative to its root.",
)
def _route(lab: Lab) -> Told:
    config = lab.write("direct.yaml", DIRECT)
    return lab.mirror("mode", "resolve", "docker.io/library/nginx:1", "--module-config", config)


@situation(
    InvalidStateError,
    "A document that is not `registry-state`",
    cause="`--state` names another object, or one that was edited by hand.",
    cure="`kubectl -n d8-system get secret registry-state -o yaml` writes the right one.",
)
def _state(lab: Lab) -> Told:
    state = lab.write("state.yaml", {"kind": "ConfigMap", "data": {}})
    to = lab.write("to.yaml", DIRECT)
    return lab.mirror("mode", "plan", "--state", state, "--to", to)


@situation(
    RequiredImagesError,
    "A list of required images with nothing in it",
    cause="The file that should list digests has none; a check of nothing would prove nothing.",
    cure="Name a release's `images_digests.json`, or a file with one digest a line.",
)
def _required(lab: Lab) -> Told:
    config, digests = lab.write("direct.yaml", DIRECT), lab.write("digests.json", "{}")
    return lab.mirror("mode", "check", "--module-config", config, "--digests", digests)
