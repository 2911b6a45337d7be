"""Situations that begin with a registry: what it answers, or that it does not."""

from __future__ import annotations

import json

from mirror.errors import (
    DeniedError,
    DigestMismatchError,
    IncompleteError,
    InvalidManifestError,
    PruneRefusedError,
    RegistryError,
    RegistryNotFoundError,
    SizeMismatchError,
    StalledError,
    UnreachableError,
)
from mirror.oci import Digest, Manifest
from mirror.oci.manifest import OCI_INDEX
from mirror.serve import BasicAuth, TokenAuth, User
from mirror.sync.removal import check_deletes
from mirror.testing import Answer, CorruptBody, Fault, Stall
from tests.errors.lab import Lab, Told
from tests.errors.situation import situation
from tests.support.processes import free_port

CI = {"ci": User("right")}
EMPTY = Manifest.parse(b'{"schemaVersion":2,"manifests":[]}', OCI_INDEX)
_ENOSPC = {"Driver": "filesystem", "Enclosed": {"Op": "write", "Path": "/data", "Err": 28}}
READER = {"reader": User("secret", frozenset({"pull"}))}


def _refusal(status: int, code: str, message: str, detail: object = None) -> Answer:
    """An answer in the form of the distribution specification."""
    error = {"code": code, "message": message, "detail": detail}
    return Answer(status, body=json.dumps({"errors": [error]}).encode())


# -- no answer -------------------------------------------------------------------------------------


@situation(
    UnreachableError,
    "Nobody listens",
    cause="The registry is down, or the port is another one.",
    cure="Check that it runs, and the port; then run the command again.",
)
def _refused(lab: Lab) -> Told:
    address = f"127.0.0.1:{free_port()}"
    lab.called(address, "registry.example.com:5000")
    return lab.mirror("push", lab.sealed, f"{address}/dkp", "--insecure")


@situation(
    UnreachableError,
    "A name that cannot be resolved",
    cause="The name is spelled wrong, or is known to another network's name server only.",
    cure="Correct the name; ask the name server of this machine for it.",
)
def _no_name(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, "registry.invalid/dkp", "--insecure")


@situation(
    UnreachableError,
    "Plain HTTP where TLS was expected",
    cause="The registry speaks HTTP without TLS.",
    cure="Say `--insecure`, if that is meant to be so.",
)
def _plain(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, lab.registry())


@situation(
    UnreachableError,
    "A certificate of an unknown authority",
    cause="The registry's certificate was issued by an authority of your own.",
    cure="Name the authority's certificate by `--ca`.",
)
def _unknown_authority(lab: Lab) -> Told:
    return lab.mirror("push", lab.sealed, lab.registry(tls=lab.authority.issue()))


@situation(
    UnreachableError,
    "A registry that keeps failing",
    cause="The registry, or the proxy before it, is overloaded or broken.",
    cure="Look into its log; run the command again, it goes on where it was.",
)
def _failing(lab: Lab) -> Told:
    address = lab.registry(Fault(Answer(503), times=None))
    return lab.mirror("push", lab.sealed, address, "--insecure")


@situation(
    UnreachableError,
    "A registry that limits requests",
    cause="Too many requests in a time, of you or of everybody behind one address.",
    cure="Wait; log in, as many registries allow more then; use fewer `--jobs`.",
)
def _limited(lab: Lab) -> Told:
    said = _refusal(429, "TOOMANYREQUESTS", "You have reached your pull rate limit")
    address = lab.registry(Fault(said, times=None))
    return lab.mirror("push", lab.sealed, address, "--insecure")


@situation(
    UnreachableError,
    "A web page in place of a registry",
    cause="A portal, a firewall or a web server answers in place of the registry.",
    cure="Log in to the portal; check host and port; ask for the address with `curl`.",
)
def _portal(lab: Lab) -> Told:
    page = Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
    client = lab.client(lab.registry(Fault(page, "GET", "/manifests/")))
    return lab.raised(lambda: client.manifest("dkp/ee", "v1.70.0"))


@situation(
    UnreachableError,
    "A proxy that is down",
    cause="`HTTPS_PROXY`, `HTTP_PROXY` or `ALL_PROXY` names a proxy that does not answer.",
    cure="Correct the variable, or except the registry from it by `NO_PROXY`.",
)
def _proxy(lab: Lab) -> Told:
    address = f"127.0.0.1:{free_port()}"
    lab.called(address, "proxy.example.com:3128")
    push = ("push", lab.sealed, "registry.example.com/dkp", "--insecure")
    return lab.mirror(*push, HTTP_PROXY=f"http://{address}")


@situation(
    IncompleteError,
    "An upload that is sent to an inner host",
    cause="The registry names itself by an address that only its own network knows.",
    cure="Let the proxy before it pass on `Host`, or set `http.host` in the registry.",
)
def _inner_host(lab: Lab) -> Told:
    inner = {"Location": "http://registry.invalid:5000/v2/dkp/blobs/uploads/1"}
    address = lab.registry(Fault(Answer(202, inner), "POST", "/blobs/uploads/", times=None))
    return lab.mirror("push", lab.sealed, address, "--insecure", "--no-access-check", "--jobs=1")


@situation(
    StalledError,
    "A transfer that stands still",
    cause="The line, a proxy or the registry lets next to nothing through.",
    cure="Look for what lies between; run the command again, it goes on where it was.",
)
def _stalled(lab: Lab) -> Told:
    source = lab.own_source()
    source.registry.faults.add(Fault(Stall(64, 5.0), "GET", "/blobs/", times=None))
    client = lab.client(source.address, stall_timeout_s=0.2)
    release = source.tree.platform["v1.70.0"]
    manifest = client.manifest(source.tree.root, release.image)
    blob = manifest.blobs[0]
    return lab.raised(lambda: list(client.blob(source.tree.root, blob.digest, size=blob.size)))


@situation(
    RegistryError,
    "A storage that is full",
    cause="The registry's disk is full, or a quota of the project is used up.",
    cure="Make room there, then run the same command again: what has arrived is not sent twice.",
)
def _full(lab: Lab) -> Told:
    said = _refusal(500, "UNKNOWN", "unknown error", _ENOSPC)
    client = lab.client(lab.registry(Fault(said, "PUT", "/manifests/")))
    return lab.raised(lambda: client.put_manifest("dkp/ee", "v1.70.0", EMPTY))


@situation(
    RegistryError,
    "A body that is too large",
    cause="The registry, or a proxy before it, limits how large a request may be, and takes not "
    "even small pieces.",
    cure="Raise the limit (nginx: `client_max_body_size 0;`).",
)
def _too_large(lab: Lab) -> Told:
    client = lab.client(lab.registry(Fault(Answer(413), "PUT", "/manifests/")))
    return lab.raised(lambda: client.put_manifest("dkp/ee", "v1.70.0", EMPTY))


@situation(
    RegistryNotFoundError,
    "A repository that has to be created first",
    cause="Some registries make no repository (Amazon ECR) or no project (Harbor) by themselves.",
    cure="Create it there, then run the same command again.",
)
def _create_first(lab: Lab) -> Told:
    said = _refusal(404, "NAME_UNKNOWN", "The repository with name 'dkp' does not exist")
    address = lab.registry(Fault(said, "POST", "/blobs/uploads/", times=None))
    return lab.mirror("push", lab.sealed, address, "--insecure")


# -- refusals --------------------------------------------------------------------------------------


@situation(
    DeniedError,
    "A registry that wants a login",
    cause="No login was given, and none is stored for this host.",
    cure="`docker login HOST`, or the flags and variables that the message names.",
)
def _no_login(lab: Lab) -> Told:
    address = lab.registry(auth=BasicAuth(CI))
    return lab.mirror("push", lab.sealed, address, "--insecure")


@situation(
    DeniedError,
    "A login that is refused",
    cause="The password is wrong, or has expired.",
    cure="Give another one; the message names the user it was tried with.",
)
def _wrong_login(lab: Lab) -> Told:
    address = lab.registry(auth=BasicAuth(CI))
    login = ("-u", "ci", "-p", "-")
    return lab.mirror("push", lab.sealed, address, "--insecure", *login, stdin="wrong\n")


@situation(
    DeniedError,
    "A login that a token server refuses",
    cause="As above; the registry sends its clients to a token server for their logins.",
    cure="Give another one; the message names the token server.",
)
def _wrong_token(lab: Lab) -> Told:
    address = lab.registry(auth=TokenAuth(CI))
    login = ("-u", "ci", "-p", "-")
    return lab.mirror("push", lab.sealed, address, "--insecure", *login, stdin="wrong\n")


@situation(
    DeniedError,
    "A token that is not valid",
    cause="The registry does not accept what its token server has just given, as where their "
    "clocks differ by minutes, or the registry trusts another key.",
    cure="Set the clocks of both. If they agree, look at the registry's log, and at the "
    "certificate of the token server that it trusts.",
)
def _invalid_token(lab: Lab) -> Told:
    address = lab.registry(auth=TokenAuth(CI, expires_s=0))
    login = ("-u", "ci", "-p", "-")
    return lab.mirror("push", lab.sealed, address, "--insecure", *login, stdin="right\n")


@situation(
    DeniedError,
    "A user who may not write",
    cause="The user may read here and not write.",
    cure="Have the right granted, or log in as somebody who has it. Nothing was sent.",
)
def _may_not(lab: Lab) -> Told:
    address = lab.registry(auth=BasicAuth(READER))
    login = ("-u", "reader", "-p", "-")
    return lab.mirror("push", lab.sealed, address, "--insecure", *login, stdin="secret\n")


@situation(
    IncompleteError,
    "A registry that refuses a kind of artifact",
    cause="Some registries (Project Quay) take in only the artifact types that they were told of.",
    cure="Allow the types in the registry's settings, or leave them out.",
)
def _refused_type(lab: Lab) -> Told:
    said = _refusal(400, "MANIFEST_INVALID", "manifest invalid", {"message": "Invalid media type"})
    fault = Fault(said, "PUT", "/security/trivy-db/manifests/", times=None)
    return lab.mirror("push", lab.sealed, lab.registry(fault), "--insecure")


@situation(
    RegistryNotFoundError,
    "A repository that is not there",
    cause="The path is another one, or nothing was pushed there yet.",
    cure="Check the path.",
)
def _no_repository(lab: Lab) -> Told:
    client = lab.client(lab.registry())
    return lab.raised(lambda: client.tags("dkp/ee"))


@situation(
    RegistryError,
    "A request that a registry refuses",
    cause="The registry has a rule of its own: an immutable tag, a quota, a name that it does not "
    "allow.",
    cure="The message ends with the registry's own words.",
)
def _rule(lab: Lab) -> Told:
    said = _refusal(412, "PRECONDITION", "Failed to process request due to 'stable' is immutable.")
    client = lab.client(lab.registry(Fault(said, "PUT", "/manifests/")))
    return lab.raised(lambda: client.put_manifest("dkp/release-channel", "stable", EMPTY))


@situation(
    PruneRefusedError,
    "A registry that deletes nothing",
    cause="Deletion is switched off in its settings, as it is by default in CNCF distribution.",
    cure="Switch it on as the message says, and run the prune again.",
)
def _no_deletes(lab: Lab) -> Told:
    said = _refusal(405, "UNSUPPORTED", "The operation is unsupported.")
    address = lab.registry(Fault(said, "DELETE", "/manifests/", times=None))
    return lab.raised(lambda: check_deletes(lab.tree(address)))


# -- content that is not what it should be ---------------------------------------------------------


@situation(
    InvalidManifestError,
    "Something else than a manifest",
    cause="The registry serves a document that is neither an image manifest nor an index.",
    cure="Push that image again; tell whoever publishes it.",
)
def _no_manifest(lab: Lab) -> Told:
    said = Answer(200, {"Content-Type": OCI_INDEX}, b'{"schemaVersion": 2}')
    client = lab.client(lab.registry(Fault(said, "GET", "/manifests/")))
    return lab.raised(lambda: client.manifest("dkp/ee", "v1.70.0"))


@situation(
    DigestMismatchError,
    "Bytes that are not those of their digest",
    cause="The registry's disk, or something on the way, changed them.",
    cure="Take the content again from where it came.",
)
def _other_bytes(lab: Lab) -> Told:
    source = lab.own_source()
    source.registry.faults.add(Fault(CorruptBody(0), "GET", "/blobs/", times=None))
    client = lab.client(source.address)
    manifest = client.manifest(source.tree.root, source.tree.platform["v1.70.0"].image)
    blob = manifest.blobs[0]
    return lab.raised(lambda: list(client.blob(source.tree.root, blob.digest, size=blob.size)))


@situation(
    DigestMismatchError,
    "A registry that says it took something else",
    cause="It answers a manifest with another digest: it changes it, or is something else.",
    cure="Look at the registry, or at what answers in its place. The bundle is not at fault.",
)
def _took_something_else(lab: Lab) -> Told:
    source = lab.own_source()
    told = {"Docker-Content-Digest": str(Digest.of(b"something else"))}
    source.registry.faults.add(Fault(Answer(201, told), "PUT", "/manifests/"))
    client = lab.client(source.address)
    manifest = client.manifest(source.tree.root, source.tree.platform["v1.70.0"].image)
    return lab.raised(lambda: client.put_manifest(source.tree.root, "v1.70.0", manifest))


@situation(
    SizeMismatchError,
    "A blob of another size",
    cause="The registry's copy was cut, or its manifest was written wrong.",
    cure="Take the content again from where it came.",
)
def _other_size(lab: Lab) -> Told:
    source = lab.own_source()
    client = lab.client(source.address)
    manifest = client.manifest(source.tree.root, source.tree.platform["v1.70.0"].image)
    blob = manifest.blobs[0]
    return lab.raised(lambda: list(client.blob(source.tree.root, blob.digest, size=blob.size + 1)))
