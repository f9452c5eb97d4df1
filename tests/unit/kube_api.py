"""An API server for commands, on a real socket in a thread: the objects that a test gives it, RBAC as it says, and a Service
proxy behind which an operator answers. Lists only, as that is all that a command asks for.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from stepdown.cluster.kinds import NAMESPACE, OURS

Object = dict[str, Any]
PLURALS = {kind.plural: kind for kind in (*OURS, NAMESPACE)}
PROXY = "/services/stepdown:http/proxy"


class KubeApi:
    """What there is, and who may see it. Change it between two commands."""

    def __init__(self) -> None:
        self.objects: list[Object] = []
        self.views: dict[str, Any] = {}
        """By path, as `/v1/status`: what the operator in stepdown-system answers; a string is sent as it is."""
        self.served = True
        """Whether the CRDs are installed."""
        self.known = True
        """Whether the credentials are."""
        self.forbidden: set[tuple[str, str]] = set()
        """Plural and namespace (empty: everywhere at once) that may not be listed; ("services/proxy", "") as well."""
        self.service_error: tuple[int, str] | None = None
        """What the API server says instead of asking the operator."""
        self.asked: list[str] = []
        self.port = 0

    def add(self, text: str) -> None:
        """Documents in YAML, as stored: with what an API server gives each of them."""
        for number, each in enumerate(yaml.safe_load_all(text), len(self.objects) + 1):
            metadata = {"uid": f"uid-{number}", "resourceVersion": str(number), "generation": 1, **each["metadata"]}
            metadata["managedFields"] = [{"manager": "argocd"}]
            metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
            self.objects.append({**each, "metadata": metadata})

    def get(self, kind: str, name: str) -> Object:
        (found,) = (each for each in self.objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
        return found

    def kubeconfig(self, folder: Path, namespace: str = "") -> Path:
        context = {"cluster": "c", "user": "u", **({"namespace": namespace} if namespace else {})}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": context}, {"name": "away", "context": {"cluster": "away", "user": "u"}}],
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}},
                {"name": "away", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    # Answers ---------------------------------------------------------------------------------------------------------

    def answer(self, path: str) -> tuple[int, Any]:
        if not self.known:
            return _status(401, "Unauthorized", "Unauthorized")
        if PROXY in path:
            return self._through(path)
        parts = path.strip("/").split("/")[2 if path.startswith("/api/") else 3 :]
        if parts[0] == "namespaces" and len(parts) == 2:
            return self._namespace(parts[1])
        namespace = parts.pop(1) if parts[0] == "namespaces" and len(parts) > 1 else ""
        plural = parts[-1]
        kind = PLURALS[plural]
        if kind in OURS and not self.served:
            return 404, "404 page not found"
        if self._hidden(plural, namespace):
            return _forbidden(plural, namespace)
        items = [
            {key: value for key, value in each.items() if key not in ("apiVersion", "kind")}
            for each in self.objects
            if each["kind"] == kind.kind and namespace in ("", each["metadata"].get("namespace"))
        ]
        return 200, {"kind": f"{kind.kind}List", "metadata": {"resourceVersion": "1000"}, "items": items}

    def _hidden(self, plural: str, namespace: str) -> bool:
        return (plural, namespace) in self.forbidden

    def _namespace(self, name: str) -> tuple[int, Any]:
        if self._hidden("namespaces", name):
            return _forbidden("namespaces", name)
        metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": {"kubernetes.io/metadata.name": name}}
        return 200, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}

    def _through(self, path: str) -> tuple[int, Any]:
        if self._hidden("services/proxy", ""):
            return _forbidden("services/proxy", "stepdown-system")
        if self.service_error is not None:
            return _status(self.service_error[0], "Error", self.service_error[1], name="stepdown")
        if "/namespaces/stepdown-system/" not in path:
            return _status(404, "NotFound", 'services "stepdown" not found', name="stepdown")
        view = path.partition(PROXY)[2]
        return (200, self.views[view]) if view in self.views else (404, "404: Not Found")


def _forbidden(plural: str, namespace: str) -> tuple[int, Any]:
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return _status(403, "Forbidden", f'User "dana" cannot list resource "{plural}" {where}', kind=plural)


def _status(code: int, reason: str, message: str, **details: str) -> tuple[int, Any]:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
    return code, {**body, "details": details}


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    api = KubeApi()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            api.asked.append(self.path)
            code, answer = api.answer(path)
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if isinstance(answer, Mapping | list) else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Not on a test's stderr."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A command that has its answer hangs up on the others."""

    server = Server(("127.0.0.1", 0), Handler)
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
