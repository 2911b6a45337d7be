"""A cluster's API over HTTP, in memory, as strict as the real one in what a controller relies on.

Versions of objects and conflicts over them, lists in pages, watches with bookmarks that may have
become too old, server-side apply with the owners of each field, dry runs, and rights.
"""

from __future__ import annotations

import copy
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import yaml

from mirror.controller.kube import RESOURCES
from tests.support.kubernetes import check_object

Field = tuple[str, ...]
TOKEN = "token-of-the-controller"
_IDENTITY = {("apiVersion",), ("kind",), *(("metadata", one) for one in ("name", "namespace"))}
_ATOMIC = {("spec", "selector")}
"""Mappings that have one owner as a whole, as lists have."""
_SERVERS = ("uid", "resourceVersion", "creationTimestamp", "managedFields")
_KINDS = {resource.plural: kind for kind, resource in RESOURCES.items()}


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
            "reason": reason,
            "code": status,
        }


class KubeCluster:
    """The objects of a cluster, by kind, namespace and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.owners: dict[tuple[str, str, str], dict[tuple[str, str], set[Field]]] = {}
        self.events: list[tuple[int, str, tuple[str, str, str], dict[str, Any]]] = []
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
        """A page of a list."""
        with self.changed:
            found = [
                one
                for key, one in sorted(self.objects.items())
                if key[0] == kind and space in ("", key[1]) and _selected(one, query)
            ]
            start, limit = int(query.get("continue") or 0), int(query.get("limit") or len(found))
            page = copy.deepcopy(found[start : start + limit])
            for one in page:
                del one["kind"], one["apiVersion"]  # as the real one does
            more = str(start + limit) if start + limit < len(found) else ""
            metadata = {"resourceVersion": str(self.version), "continue": more}
            return {"kind": f"{kind}List", "metadata": metadata, "items": page}

    def create(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """POST."""
        with self.changed:
            if key in self.objects:
                raise Refused(409, "AlreadyExists", f'{key[0]} "{key[2]}" already exists')
            if document["metadata"].get("resourceVersion"):
                raise Refused(400, "BadRequest", "resourceVersion should not be set")
            return self._update(key, document, manager, dry=dry)

    def replace(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """PUT."""
        with self.changed:
            self._there(key)
            self._same_version(key, document["metadata"].get("resourceVersion"))
            return self._update(key, document, manager, dry=dry)

    def merge(
        self, key: tuple[str, str, str], patch: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        """PATCH with a merge patch (RFC 7386)."""
        with self.changed:
            merged = _merged(self._there(key), patch)
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
            raise Refused(400, "BadRequest", "fieldManager is required for apply patch")
        if document["metadata"].get("managedFields"):
            raise Refused(400, "BadRequest", "metadata.managedFields must be nil")
        with self.changed:
            self._same_version(key, document["metadata"].get("resourceVersion"))
            old = self.objects.get(key)
            owners = {who: set(fields) for who, fields in self.owners.get(key, {}).items()}
            wanted, me = _leaves(document), (manager, "Apply")
            conflicts = sorted(
                (who[0], ".".join(("", *field)))
                for who, fields in owners.items()
                if who != me
                for field in fields
                if _touches(field, wanted) and _at(old, field) != _at(document, field)
            )
            if conflicts and not force:
                text = "; ".join(f'conflict with "{who}": {field}' for who, field in conflicts)
                message = f"Apply failed with {len(conflicts)} conflicts: {text}"
                raise Refused(409, "Conflict", message)
            for who, fields in owners.items():
                if who != me:
                    owners[who] = {
                        field
                        for field in fields
                        if not (_touches(field, wanted) and _at(old, field) != _at(document, field))
                    }
            result = copy.deepcopy(old) if old else {}
            others = set().union(*(fields for who, fields in owners.items() if who != me))
            for field in owners.get(me, set()) - set(wanted) - others:
                _drop(result, field)
            for field in wanted:
                _put(result, field, _at(document, field))
            owners[me] = set(wanted)
            for field in _IDENTITY:
                if (value := _at(document, field)) is not None:
                    _put(result, field, value)
            return self._store(key, result, owners, dry=dry)

    def delete(self, key: tuple[str, str, str], options: Mapping[str, Any]) -> dict[str, Any]:
        """DELETE."""
        with self.changed:
            there, only = self._there(key), options.get("preconditions") or {}
            for name in ("uid", "resourceVersion"):
                if only.get(name) not in (None, there["metadata"][name]):
                    raise Refused(409, "Conflict", f"Precondition failed: {name}")
            self._delete(key)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def watched(
        self, kind: str, space: str, query: Mapping[str, str], closing: threading.Event
    ) -> Iterator[dict[str, Any]]:
        """The events of a watch, with a bookmark where others' changes were passed over."""
        seen = int(query.get("resourceVersion") or 0)
        with self.changed:
            self.watches += 1
        while not closing.is_set():
            with self.changed:
                if seen < self.forgotten:
                    gone = Refused(410, "Expired", f"too old resource version: {seen}")
                    told = [{"type": "ERROR", "object": gone.document}]
                else:
                    told = [
                        {"type": how, "object": copy.deepcopy(one)}
                        for version, how, key, one in self.events
                        if version > seen and key[0] == kind and space in ("", key[1])
                        if _selected(one, query)
                    ]
                    if not told and self.version > seen:
                        mark = {"metadata": {"resourceVersion": str(self.version)}, "kind": kind}
                        told = [{"type": "BOOKMARK", "object": mark}]
                    seen = self.version
                    if not told:
                        self.changed.wait(0.5)
            yield from told
            if told and told[0]["type"] == "ERROR":
                return

    # -- the store ---------------------------------------------------------------------------------

    def _there(self, key: tuple[str, str, str]) -> dict[str, Any]:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{RESOURCES[key[0]].plural} "{key[2]}" not found')
        return self.objects[key]

    def _same_version(self, key: tuple[str, str, str], given: str | None) -> None:
        if given and given != self.objects.get(key, {}).get("metadata", {}).get("resourceVersion"):
            message = (
                f'Operation cannot be fulfilled on "{key[2]}": the object has been modified; '
                "please apply your changes to the latest version and try again"
            )
            raise Refused(409, "Conflict", message)

    def _update(
        self, key: tuple[str, str, str], document: Mapping[str, Any], manager: str, *, dry: bool
    ) -> dict[str, Any]:
        old, new = self.objects.get(key, {}), copy.deepcopy(dict(document))
        changed = {field for field in _leaves(new) if _at(new, field) != _at(old, field)}
        owners = {
            who: {field for field in fields if field not in changed and _at(new, field) is not None}
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
            raise Refused(422, "Invalid", f'Secret "{key[2]}" is invalid: type is immutable')
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
        bare = {**new, "metadata": {k: v for k, v in metadata.items() if k not in _SERVERS}}
        same = old is not None and bare == before
        metadata["resourceVersion"] = known["resourceVersion"] if same else str(self.version + 1)
        if dry:
            metadata["resourceVersion"] = known.get("resourceVersion", "")
            return copy.deepcopy(new)
        self.objects[key], self.owners[key] = new, owners
        if not same:
            self._tell("MODIFIED" if old else "ADDED", key, new)
        return copy.deepcopy(new)

    def _delete(self, key: tuple[str, str, str]) -> None:
        gone = self.objects.pop(key)
        self.owners.pop(key, None)
        gone["metadata"]["resourceVersion"] = str(self.version + 1)
        self._tell("DELETED", key, gone)

    def _tell(self, how: str, key: tuple[str, str, str], one: dict[str, Any]) -> None:
        self.version += 1
        self.events.append((self.version, how, key, copy.deepcopy(one)))
        self.changed.notify_all()
        self.on_change(how, key)


# -- fields ----------------------------------------------------------------------------------------


def _leaves(document: Mapping[str, Any]) -> dict[Field, None]:
    """The fields that have owners: what is no mapping, lists as a whole."""
    found: dict[Field, None] = {}

    def walk(value: Any, path: Field) -> None:
        if isinstance(value, Mapping) and value and path not in _ATOMIC:
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
    for key in field[:-1]:
        inner = document.get(key)
        document[key] = inner if isinstance(inner, dict) else {}
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
                message = f'{RESOURCES[kind].plural} "{name}" is forbidden: cannot {verb}'
                raise Refused(403, "Forbidden", message)
            if watching:
                return self._stream(api.watched(kind, space, query, server.closing))
            body = json.loads(content) if content else {}
            self._send(200, self._carry_out(verb, (kind, space, name), query, body))
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
