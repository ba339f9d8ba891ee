"""A Kubernetes API server on loopback: objects in memory, RBAC of our own manifests, statuses that follow a script.

It refuses what the rendered Roles do not grant, as a real one does, and notes every verb that was used, so that a
test can tell both: nothing is missing, and nothing is granted that is not used.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Key = tuple[str, str, str]  # resource with its group ("rayjobs.ray.io", "pods"), namespace, name
ANYONE = "anyone"  # an account that may do everything


@dataclass
class FakeKubernetes:
    """State of the server. `script` maps an object to the statuses that its next readings show; the last one stays."""

    objects: dict[Key, dict[str, Any]] = field(default_factory=dict)
    script: dict[Key, list[Any]] = field(default_factory=dict)
    on_create: dict[str, list[Any]] = field(default_factory=dict)  # by resource: the script of whatever is created
    faults: list[tuple[str, str, int]] = field(default_factory=list)  # (method, part of the path, answer), each once
    rules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by account
    used: set[tuple[str, str, str]] = field(default_factory=set)  # account, resource, verb
    bodies: list[tuple[str, str, Any]] = field(default_factory=list)  # method, path, body of every write
    groups: set[str] = field(default_factory=lambda: {"ray.io/v1", "batch/v1"})
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *manifests: Mapping[str, Any]) -> None:
        for manifest in manifests:
            body = deepcopy(dict(manifest))
            name, namespace = body["metadata"]["name"], body["metadata"].get("namespace", "")
            self.objects[resource_of(body), namespace, name] = body

    def grant(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Take Roles and RoleBindings from rendered objects."""
        roles = {o["metadata"]["name"]: o["rules"] for o in objects if o["kind"] == "Role"}
        for binding in (o for o in objects if o["kind"] == "RoleBinding"):
            for subject in binding["subjects"]:
                self.rules.setdefault(subject["name"], []).extend(roles[binding["roleRef"]["name"]])

    def kubeconfig(self, account: str, folder: Path) -> Path:
        """A kubeconfig file for one service account."""
        path = folder / f"{account}.kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
                    "users": [{"name": account, "user": {"token": account}}],
                    "contexts": [
                        {
                            "name": "fake",
                            "context": {"cluster": "fake", "user": account, "namespace": "wiki-assets"},
                        }
                    ],
                }
            )
        )
        return path

    def created(self, resource: str) -> list[dict[str, Any]]:
        """Bodies of everything that was created, oldest first."""
        return [body for method, path, body in self.bodies if method == "POST" and path.split("/")[-1] == resource]

    # --- what the handler asks

    def answer(
        self, account: str, method: str, path: str, query: Mapping[str, list[str]], body: Any
    ) -> tuple[int, Any]:
        with self._lock:
            for fault in self.faults:
                if fault[0] == method and fault[1] in path:
                    self.faults.remove(fault)
                    return fault[2], failure(fault[2], "Fault", f"{method} {path}")
            parts = path.strip("/").split("/")
            if parts[0] == "version":
                return 200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
            group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
            if not parts:
                return self._discovery(path)
            namespace = ""
            if parts[0] == "namespaces" and len(parts) > 2:
                namespace, parts = parts[1], parts[2:]
            kind, name, sub = [*parts, "", ""][:3]
            resource = f"{kind}.{group}" if group else kind
            verb = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}.get(method)
            verb = verb or ("get" if name else "list")
            asked = f"{kind}/{sub}" if sub else kind
            self.used.add((account, f"{asked}.{group}" if group else asked, verb))
            if not self._granted(account, group, asked, verb):
                message = f"{kind} is forbidden: User {account} cannot {verb} resource {asked} in API group {group!r}"
                return 403, failure(403, "Forbidden", message)
            if method != "GET":
                self.bodies.append((method, path, body))
            if resource.endswith("accessreviews.authorization.k8s.io"):
                spec = body["spec"]["resourceAttributes"]
                who = body["spec"].get("user", account).rpartition(":")[2]
                allowed = self._granted(who, spec.get("group", ""), spec["resource"], spec["verb"])
                return 201, {**body, "status": {"allowed": allowed}}
            return self._serve(method, (resource, namespace, name), sub, query, body)

    def _discovery(self, path: str) -> tuple[int, Any]:
        known = path.removeprefix("/apis/").removeprefix("/api/")
        if known in self.groups:
            return 200, {"kind": "APIResourceList", "groupVersion": known, "resources": []}
        return 404, failure(404, "NotFound", "the server could not find the requested resource")

    def _granted(self, account: str, group: str, resource: str, verb: str) -> bool:
        if account == ANYONE or resource.endswith("accessreviews"):
            return True
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules.get(account, [])
        )

    def _serve(self, method: str, key: Key, sub: str, query: Mapping[str, list[str]], body: Any) -> tuple[int, Any]:
        resource, namespace, name = key
        if method == "POST":
            name = body["metadata"]["name"]
            if (resource, namespace, name) in self.objects:
                return 409, failure(409, "AlreadyExists", f"{resource} {name!r} already exists")
            kept = deepcopy(body)
            kept["metadata"].setdefault("namespace", namespace)
            self.objects[resource, namespace, name] = kept
            if resource in self.on_create:
                self.script[resource, namespace, name] = list(self.on_create[resource])
            return 201, kept
        if not name:
            wanted = dict(
                pair.split("=", 1) for text in query.get("labelSelector", []) for pair in text.split(",") if "=" in pair
            )
            field_name = dict(p.split("=", 1) for text in query.get("fieldSelector", []) for p in text.split(","))
            items = [
                deepcopy(item)
                for (r, ns, n), item in self.objects.items()
                if r == resource
                and ns in ("", namespace)
                and field_name.get("metadata.name", n) == n
                and wanted.items() <= (item["metadata"].get("labels") or {}).items()
            ]
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}
        if key not in self.objects:
            return 404, failure(404, "NotFound", f"{resource} {name!r} not found")
        if method == "DELETE":
            del self.objects[key]
            return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if method == "PATCH":
            for step in body if isinstance(body, list) else []:
                place = self.objects[key]
                *way, last = step["path"].strip("/").split("/")
                for part in way:
                    place = place[part]
                place[last] = step["value"]
            return 200, self.objects[key]
        if sub == "log":
            return 200, "a line of the log\n"
        found = deepcopy(self.objects[key])
        if script := self.script.get(key):
            found["status"] = script.pop(0) if len(script) > 1 else script[0]
        return 200, found


def failure(code: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message}  # fmt: skip


def resource_of(manifest: Mapping[str, Any]) -> str:
    """`rayjobs.ray.io` of a RayJob, `pods` of a Pod."""
    group = manifest["apiVersion"].rpartition("/")[0]
    kind = manifest["kind"].lower()
    plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
    return f"{plural}.{group}" if group else plural


@contextmanager
def fake_kubernetes() -> Iterator[FakeKubernetes]:
    """Serve until the end of the block."""
    state = FakeKubernetes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # headers and body are two writes

        def _do(self) -> None:
            url = urlsplit(self.path)
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            account = self.headers.get("Authorization", "").removeprefix("Bearer ")
            code, answer = state.answer(account, self.command, url.path, parse_qs(url.query), body)
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _do

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
