"""A cluster's API over HTTP, in memory, as strict as the real one in what a controller relies on.

Versions of objects and conflicts over them, lists in pages, watches with bookmarks that may have
become too old, server-side apply with the owners of each field, dry runs, and rights.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import yaml

from mirror.controller.kube import RESOURCES
from tests.support.kubernetes import check_object

Field = tuple[str, ...]
TOKEN = "token-of-the-controller"
ACCOUNT = "system:serviceaccount:d8-system:mirror-controller"
_IDENTITY = {("apiVersion",), ("kind",), *(("metadata", one) for one in ("name", "namespace"))}
_ATOMIC = {("spec", "selector")}
"""Mappings that have one owner as a whole, as lists have."""
_SERVERS = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")
_FIELDS = {
    *("apiVersion", "kind", "metadata", "spec", "status"),
    *("data", "immutable", "stringData", "type"),
}
_KINDS = {resource.plural: kind for kind, resource in RESOURCES.items()}
_KEYED: dict[Field, dict[str, Any]] = {
    ("Service", "spec", "ports"): {"port": None, "protocol": "TCP"},
    **{
        ("Deployment", "spec", "template", "spec", name): {"name": None}
        for name in ("containers", "initContainers", "volumes")
    },
}
"""Lists whose items have owners of their own: the fields that tell items apart, with defaults."""
_COUNTED = ("Deployment", "Ingress", "ModuleConfig", "PodDisruptionBudget")
"""The kinds whose generation counts what is wanted, and whose status is written beside them."""


class Refused(Exception):
    """The API says no."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.document = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            "code": status,
        }


def _plural(kind: str) -> str:
    """A kind as messages name it: `secrets`, `deployments.apps`."""
    group = RESOURCES[kind].version.rpartition("/")[0]
    return RESOURCES[kind].plural + (f".{group}" if group else "")


def _conflict(kind: str, name: str, what: str) -> Refused:
    message = f'Operation cannot be fulfilled on {_plural(kind)} "{name}": {what}'
    return Refused(409, "Conflict", message)


class KubeCluster:
    """The objects of a cluster, by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.owners: dict[tuple[str, str, str], dict[tuple[str, str], set[Field]]] = {}
        self.events: list[tuple[int, str, tuple[str, str, str], dict[str, Any], Any]] = []
        """Version, what happened, to what, and the object as it is and as it was."""
        self._pages: dict[str, list[dict[str, Any]]] = {}
        self.version, self.forgotten = 100, 100
        self.changed = threading.Condition(threading.RLock())
        self.requests: list[str] = []
        self.watches = 0
        self.on_change: Callable[[str, tuple[str, str, str]], None] = lambda how, key: None

    # -- for tests ---------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str = "d8-system") -> dict[str, Any] | None:
        """A copy of one object."""
        with self.changed:
            key = (kind, namespace if RESOURCES[kind].namespaced else "", name)
            return copy.deepcopy(self.objects.get(key))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Copies of all objects of a kind."""
        with self.changed:
            return [copy.deepcopy(one) for key, one in self.objects.items() if key[0] == kind]

    def write(self, document: Mapping[str, Any], manager: str = "test") -> None:
        """Somebody else writes an object, whoever owns its fields."""
        metadata = document["metadata"]
        space = metadata.get("namespace", "d8-system" if self._spaced(document) else "")
        key = (document["kind"], space, metadata["name"])
        with self.changed:
            self._update(key, document, manager, dry=False)

    def remove(self, kind: str, name: str, namespace: str = "d8-system") -> None:
        """Somebody else deletes one."""
        with self.changed:
            self._delete((kind, namespace if RESOURCES[kind].namespaced else "", name))

    def forget(self) -> None:
        """What happened until now is told to no watch any more."""
        with self.changed:
            self.forgotten = self.version = self.version + 1
            self.changed.notify_all()

    @staticmethod
    def _spaced(document: Mapping[str, Any]) -> bool:
        return RESOURCES[document["kind"]].namespaced

    # -- requests ----------------------------------------------------------------------------------

    def listed(self, kind: str, space: str, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of a list, which is as the cluster was when its first page was asked for."""
        with self.changed:
            version, _, start = (query.get("continue") or "").partition("/")
            found = self._pages.get(version) or [
                one
                for key, one in sorted(self.objects.items())
                if key[0] == kind and space in ("", key[1]) and _selected(one, query)
            ]
            version, begin = version or str(self.version), int(start or 0)
            end = begin + int(query.get("limit") or len(found))
            page = copy.deepcopy(found[begin:end])
            for one in page:
                del one["kind"], one["apiVersion"]  # as the real one does
            metadata = {"resourceVersion": version}
            if end < len(found):
                self._pages[version] = found
                metadata["continue"] = f"{version}/{end}"
            return {"kind": f"{kind}List", "metadata": metadata, "items": page}

    def create(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """POST."""
        with self.changed:
            if key in self.objects:
                message = f'{_plural(key[0])} "{key[2]}" already exists'
                raise Refused(409, "AlreadyExists", message)
            if document["metadata"].get("resourceVersion"):
                message = "resourceVersion should not be set on objects to be created"
                raise Refused(500, "", message)
            return self._update(key, _of_clients(key, document, None), manager, dry=dry)

    def replace(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """PUT."""
        with self.changed:
            there = self._there(key)
            self._same_version(key, document["metadata"].get("resourceVersion"))
            return self._update(key, _of_clients(key, document, there), manager, dry=dry)

    def merge(
        self, key: tuple[str, str, str], patch: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """PATCH with a merge patch (RFC 7386)."""
        with self.changed:
            there = self._there(key)
            self._same_version(key, (patch.get("metadata") or {}).get("resourceVersion"))
            merged = _of_clients(key, _merged(there, patch), there)
            return self._update(key, merged, manager, dry=dry)

    def apply(
        self,
        key: tuple[str, str, str],
        document: Mapping[str, Any],
        manager: str,
        *,
        force: bool,
        dry: bool,
    ) -> dict[str, Any]:
        """PATCH by server-side apply."""
        if not manager:
            message = "fieldManager: Required value: is required for apply patch"
            raise Refused(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {message}')
        if odd := document.keys() - _FIELDS:
            version = document["apiVersion"]
            kind = f"{version if '/' in version else f'/{version}'}, Kind={key[0]}"
            message = f"failed to create typed patch object ({key[1]}/{key[2]}; {kind}): "
            message += f".{min(odd)}: field not declared in schema"
            raise Refused(500, "", message)
        if document["metadata"].get("managedFields"):
            raise Refused(400, "BadRequest", "metadata.managedFields must be nil")
        if (name := document["metadata"].get("name", key[2])) != key[2]:
            message = f"the name of the object ({name}) does not match the name on the URL"
            raise Refused(400, "BadRequest", f"{message} ({key[2]})")
        with self.changed:
            if key in self.objects:
                self._same_version(key, document["metadata"].get("resourceVersion"))
            old, new = _tree(self.objects.get(key, {})), _tree(document)
            owners = {who: set(fields) for who, fields in self.owners.get(key, {}).items()}
            wanted, me = _leaves(new), (manager, "Apply")
            taken = {
                who: {
                    field
                    for field in fields
                    if _touches(field, wanted) and _at(old, field) != _at(new, field)
                }
                for who, fields in owners.items()
                if who != me
            }
            if any(taken.values()) and not force:
                raise Refused(409, "Conflict", _conflicts(taken, document["apiVersion"]))
            for who, fields in taken.items():
                owners[who] -= fields
            result = copy.deepcopy(old)
            others = set().union(*(fields for who, fields in owners.items() if who != me))
            for field in owners.get(me, set()) - set(wanted) - others:
                _drop(result, field)
            for field in wanted:
                _put(result, field, _at(new, field))
            for field in _empty(new):
                if _at(result, field) is None:
                    _put(result, field, {})
            owners[me] = set(wanted)
            for field in _IDENTITY:
                if (value := _at(new, field)) is not None:
                    _put(result, field, value)
            given = _of_clients(key, _plain(result), self.objects.get(key))
            return self._store(key, given, owners, dry=dry)

    def delete(self, key: tuple[str, str, str], options: Mapping[str, Any]) -> dict[str, Any]:
        """DELETE."""
        with self.changed:
            there, only = self._there(key), options.get("preconditions") or {}
            for name in ("uid", "resourceVersion"):
                if only.get(name) not in (None, there["metadata"][name]):
                    named = {"uid": "UID", "resourceVersion": "ResourceVersion"}[name]
                    what = f"the {named} in the precondition ({only[name]}) does not match the "
                    what += f"{named} in record ({there['metadata'][name]}). The object might have "
                    what += {"uid": "been deleted and then recreated"}.get(name, "been modified")
                    message = f'Operation cannot be fulfilled on {key[0]} "{key[2]}": {what}'
                    raise Refused(409, "Conflict", message)
            self._delete(key)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def watched(
        self, kind: str, space: str, query: Mapping[str, str], closing: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """The events of a watch, with a bookmark where others' changes were passed over."""
        seen, marks = int(query.get("resourceVersion") or 0), query.get("allowWatchBookmarks")
        ends = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        with self.changed:
            self.watches += 1
        while not closing.is_set():
            with self.changed:
                if seen < self.forgotten:
                    gone = Refused(410, "Expired", f"too old resource version: {seen}")
                    yield {"type": "ERROR", "object": gone.document}
                    return
                told = [
                    {"type": how, "object": {**copy.deepcopy(one), **_versioned(one, version)}}
                    for version, what, key, one, old in self.events
                    if version > seen and key[0] == kind and space in ("", key[1])
                    if (how := _told(what, one, old, query))
                ]
                over = time.monotonic() >= ends
                if marks and not told and (self.version > seen or over):
                    bare = {"apiVersion": RESOURCES[kind].version, "kind": kind}
                    told = [
                        {"type": "BOOKMARK", "object": {**bare, **_versioned({}, self.version)}}
                    ]
                seen = self.version
                if not told and not over:
                    self.changed.wait(min(0.5, ends - time.monotonic()))
            yield from told
            if over:
                return

    # -- the store ---------------------------------------------------------------------------------

    def _there(self, key: tuple[str, str, str]) -> dict[str, Any]:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{_plural(key[0])} "{key[2]}" not found')
        return self.objects[key]

    def _same_version(self, key: tuple[str, str, str], given: str | None) -> None:
        if given and given != self.objects.get(key, {}).get("metadata", {}).get("resourceVersion"):
            what = "the object has been modified; please apply your changes to the latest version"
            raise _conflict(key[0], key[2], f"{what} and try again")

    def _update(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        new = copy.deepcopy(dict(document))
        before, after = _tree(self.objects.get(key, {})), _tree(new)
        changed = {field for field in _leaves(after) if _at(after, field) != _at(before, field)}
        owners = {
            who: {
                field for field in fields if field not in changed and _at(after, field) is not None
            }
            for who, fields in self.owners.get(key, {}).items()
        }
        owners.setdefault((manager, "Update"), set()).update(changed)
        return self._store(key, new, owners, dry=dry)

    def _store(
        self,
        key: tuple[str, str, str],
        new: dict[str, Any],
        owners: dict[tuple[str, str], set[Field]],
        *,
        dry: bool,
    ) -> dict[str, Any]:
        old = self.objects.get(key)
        metadata = new["metadata"] = dict(new.get("metadata") or {})
        if key[1]:
            metadata["namespace"] = key[1]
        for name in _SERVERS:
            metadata.pop(name, None)
        if key[0] not in ("ModuleConfig", "Node"):
            try:
                check_object(new)
            except Exception as err:
                raise Refused(422, "Invalid", f'{key[0]} "{key[2]}" is invalid: {err}') from err
        if old and key[0] == "Secret" and old.get("type") != new.get("type"):
            what = f'type: Invalid value: "{new.get("type")}": field is immutable'
            raise Refused(422, "Invalid", f'Secret "{key[2]}" is invalid: {what}')
        before = copy.deepcopy(old) or {}
        for name in _SERVERS:
            before.get("metadata", {}).pop(name, None)
        known = old["metadata"] if old else {}
        metadata["uid"] = known.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
        metadata["managedFields"] = [
            {"manager": who, "operation": how, "fieldsV1": {}}
            for (who, how), fields in sorted(owners.items())
            if fields
        ]
        if key[0] in _COUNTED:
            counted = known.get("generation", 0)
            same_spec = old is not None and old.get("spec") == new.get("spec")
            metadata["generation"] = counted if same_spec else counted + 1
        bare = {**new, "metadata": {k: v for k, v in metadata.items() if k not in _SERVERS}}
        same = old is not None and bare == before
        metadata["resourceVersion"] = known["resourceVersion"] if same else str(self.version + 1)
        if dry:
            metadata["resourceVersion"] = known.get("resourceVersion", "")
            return copy.deepcopy(new)
        self.objects[key], self.owners[key] = new, owners
        if not same:
            self._tell("MODIFIED" if old else "ADDED", key, new, old)
        return copy.deepcopy(new)

    def _delete(self, key: tuple[str, str, str]) -> None:
        gone = copy.deepcopy(self.objects.pop(key))  # snapshots of tests share the objects
        self.owners.pop(key, None)
        gone["metadata"]["resourceVersion"] = str(self.version + 1)
        self._tell("DELETED", key, gone, gone)

    def _tell(
        self, how: str, key: tuple[str, str, str], one: dict[str, Any], old: dict[str, Any] | None
    ) -> None:
        self.version += 1
        self.events.append((self.version, how, key, copy.deepcopy(one), copy.deepcopy(old)))
        self.changed.notify_all()
        self.on_change(how, key)


# -- fields ----------------------------------------------------------------------------------------


def _of_clients(
    key: tuple[str, str, str], document: Mapping[str, Any], there: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What of an object they may write: not its status, which stays as it is."""
    given = {name: one for name, one in document.items() if name != "status"}
    status = (there or {}).get("status")
    return given if status is None else {**given, "status": status}


class _Items(dict[str, Any]):
    """A list whose items have owners of their own, by what tells them apart."""


def _tree(document: Mapping[str, Any]) -> dict[str, Any]:
    """An object in which such lists are mappings, and back again (`_plain`)."""

    def made(value: Any, path: Field) -> Any:
        if isinstance(value, Mapping):
            return {key: made(one, (*path, key)) for key, one in value.items()}
        if path not in _KEYED or not isinstance(value, list):
            return value
        return _Items({_item(one, _KEYED[path]): dict(one) for one in value})

    found: dict[str, Any] = made(document, (str(document.get("kind")),))
    return found


def _item(one: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """`[port=5001,protocol="TCP"]`"""
    values = (f"{key}={json.dumps(one.get(key, default))}" for key, default in keys.items())
    return f"[{','.join(values)}]"


def _plain(tree: Any) -> Any:
    if isinstance(tree, _Items):
        return [_plain(one) for one in tree.values() if one]
    return {key: _plain(one) for key, one in tree.items()} if isinstance(tree, Mapping) else tree


def _spelt(field: Field) -> str:
    return "".join(key if key.startswith("[") else f".{key}" for key in field)


def _conflicts(taken: Mapping[tuple[str, str], set[Field]], version: str) -> str:
    """In the words of the real one, whose users read them."""
    found = {
        f'"{who}"' + (f" using {version}" if how == "Update" else ""): sorted(map(_spelt, fields))
        for (who, how), fields in sorted(taken.items())
        if fields
    }
    if (count := sum(map(len, found.values()))) == 1:
        ((who, (field,)),) = found.items()
        return f"Apply failed with 1 conflict: conflict with {who}: {field}"
    lines = [
        line
        for who, fields in found.items()
        for line in (f"conflicts with {who}:", *(f"- {field}" for field in fields))
    ]
    return f"Apply failed with {count} conflicts: " + "\n".join(lines)


def _empty(tree: Mapping[str, Any], path: Field = ()) -> Iterator[Field]:
    """The mappings in which nothing is; nobody owns anything in them."""
    for key, one in tree.items():
        if isinstance(one, Mapping):
            yield from _empty(one, (*path, key)) if one else [(*path, key)]


def _leaves(document: Mapping[str, Any]) -> dict[Field, None]:
    """The fields of a tree that have owners: what is no mapping, other lists as a whole."""
    found: dict[Field, None] = {}

    def walk(value: Any, path: Field) -> None:
        if isinstance(value, Mapping) and path not in _ATOMIC:
            for key, one in value.items():
                walk(one, (*path, key))
        elif path not in _IDENTITY and not (path[0] == "metadata" and path[1] in _SERVERS):
            found[path] = None

    walk(document, ())
    return found


def _touches(field: Field, wanted: Mapping[Field, None]) -> bool:
    return any(field[: len(one)] == one[: len(field)] for one in wanted)


def _at(document: Any, field: Field) -> Any:
    for key in field:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _put(document: dict[str, Any], field: Field, value: Any) -> None:
    for key, following in pairwise(field):
        inner = document.get(key)
        fresh = _Items() if following.startswith("[") else {}
        document[key] = inner if isinstance(inner, dict) else fresh
        document = document[key]
    document[field[-1]] = copy.deepcopy(value)


def _drop(document: dict[str, Any], field: Field) -> None:
    for key in field[:-1]:
        document = document.get(key) or {}
    document.pop(field[-1], None)


def _merged(document: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


def _selected(one: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    labels = one["metadata"].get("labels") or {}
    for part in filter(None, (query.get("labelSelector") or "").split(",")):
        name, equals, value = part.partition("=")
        if name not in labels or (equals and labels[name] != value):
            return False
    field = query.get("fieldSelector") or ""
    return not field or one["metadata"]["name"] == field.removeprefix("metadata.name=")


def _versioned(one: Mapping[str, Any], version: int) -> dict[str, Any]:
    return {"metadata": {**one.get("metadata", {}), "resourceVersion": str(version)}}


def _told(
    what: str, one: Mapping[str, Any], old: Mapping[str, Any] | None, query: Mapping[str, str]
) -> str:
    """What happened to who watches a selection: it may begin or cease to have an object."""
    now, before = _selected(one, query), old is not None and _selected(old, query)
    if what == "DELETED" or not now:
        return "DELETED" if before else ""
    return "MODIFIED" if before else "ADDED"


# -- the server ------------------------------------------------------------------------------------


class Rights:
    """What an account may do, by the rules of Roles and ClusterRoles."""

    def __init__(self, documents: list[Mapping[str, Any]]) -> None:
        roles = [one for one in documents if one["kind"] in ("Role", "ClusterRole")]
        self.rules = [
            (one["metadata"].get("namespace", ""), rule) for one in roles for rule in one["rules"]
        ]

    def allow(self, verb: str, kind: str, space: str, name: str) -> bool:
        """Whether a rule allows it."""
        resource = RESOURCES[kind]
        group = resource.version.rpartition("/")[0]
        return any(
            where in ("", space)
            and group in rule["apiGroups"]
            and resource.plural in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for where, rule in self.rules
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True
    server: _Server

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        server, api = self.server, self.server.cluster
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length) if length else b""
        if server.down:
            self.close_connection = True
            return None
        at = urlsplit(self.path)
        query = dict(parse_qsl(at.query))
        watching = query.get("watch") == "true"
        if not watching:
            api.requests.append(f"{self.command} {at.path}")
        try:
            kind, space, name = _place(at.path)
            verb = self._verb(name, watching)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            named = name or query.get("fieldSelector", "").removeprefix("metadata.name=")
            if server.rights and not server.rights.allow(verb, kind, space, named):
                raise Refused(403, "Forbidden", _forbidden(verb, kind, space, name))
            if watching:
                return self._stream(api.watched(kind, space, query, server.closing))
            body = json.loads(content) if content else {}
            known = len(api.objects)
            document = self._carry_out(verb, (kind, space, name), query, body)
            self._send(201 if len(api.objects) > known else 200, document)
        except Refused as no:
            self._send(no.status, no.document)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815

    def _verb(self, name: str, watching: bool) -> str:
        if self.command == "GET":
            return "watch" if watching else "get" if name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[
            self.command
        ]

    def _carry_out(
        self, verb: str, key: tuple[str, str, str], query: Mapping[str, str], body: Any
    ) -> dict[str, Any]:
        api, manager = self.server.cluster, query.get("fieldManager", "")
        dry = query.get("dryRun") == "All"
        match verb:
            case "list":
                return api.listed(key[0], key[1], query)
            case "get":
                with api.changed:
                    return copy.deepcopy(api._there(key))
            case "create":
                return api.create((*key[:2], body["metadata"]["name"]), body, manager, dry=dry)
            case "update":
                return api.replace(key, body, manager, dry=dry)
            case "delete":
                return api.delete(key, body)
        kind = self.headers["Content-Type"]
        if kind == "application/merge-patch+json":
            return api.merge(key, body, manager, dry=dry)
        if kind != "application/apply-patch+yaml":
            raise Refused(415, "UnsupportedMediaType", kind)
        force = query.get("force") == "true"
        return api.apply(key, body, manager, force=force, dry=dry)

    def _send(self, status: int, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")


def _forbidden(verb: str, kind: str, space: str, name: str) -> str:
    group = RESOURCES[kind].version.rpartition("/")[0]
    where = f'in the namespace "{space}"' if space else "at the cluster scope"
    what = f'cannot {verb} resource "{RESOURCES[kind].plural}" in API group "{group}" {where}'
    named = _plural(kind) + (f' "{name}"' if name else "")
    return f'{named} is forbidden: User "{ACCOUNT}" {what}'


def _place(path: str) -> tuple[str, str, str]:
    """Kind, namespace and name of an address."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    space = ""
    if len(parts) > 2 and parts[0] == "namespaces":
        space, parts = parts[1], parts[2:]
    if parts[0] not in _KINDS:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return _KINDS[parts[0]], space, parts[1] if len(parts) > 1 else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, cluster: KubeCluster, rights: Rights | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cluster, self.rights, self.down = cluster, rights, False
        self.closing = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class KubeServer:
    """The API at work; `kubeconfig` leads to it."""

    def __init__(self, cluster: KubeCluster, server: _Server, kubeconfig: Path) -> None:
        self.cluster, self._server, self.kubeconfig = cluster, server, kubeconfig

    @contextmanager
    def down(self) -> Iterator[None]:
        """It answers nobody."""
        self._server.down = True
        try:
            yield
        finally:
            self._server.down = False


@contextmanager
def kube_server(
    folder: Path, cluster: KubeCluster, rights: list[Mapping[str, Any]] | None = None
) -> Iterator[KubeServer]:
    """Serve `cluster` on loopback, to whom `rights` (Roles, ClusterRoles) allow."""
    server = _Server(cluster, Rights(rights) if rights else None)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(server.server_address[1])))
    try:
        yield KubeServer(cluster, server, kubeconfig)
    finally:
        server.closing.set()
        with cluster.changed:
            cluster.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()


def _kubeconfig(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
