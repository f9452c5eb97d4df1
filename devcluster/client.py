"""One request to an API server, over TLS with a client certificate and no proxy: enough to ask whether it is ready."""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Client:
    server: str
    ca: Path
    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.cert, self.key)
        return context

    def request(self, method: str, path: str, body: object = None, timeout_s: float = 10.0) -> tuple[int, Any]:
        """The status, and the body: parsed if it is JSON, else text. Raises OSError or HTTPException if nobody answers."""
        url = urlsplit(self.server)
        connection = http.client.HTTPSConnection(str(url.hostname), url.port, timeout=timeout_s, context=self.context())
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def exists(self, path: str) -> bool:
        """Whether a GET is answered with 200; a server that is not there yet is a no."""
        try:
            return self.request("GET", path, timeout_s=2.0)[0] == 200
        except (OSError, http.client.HTTPException):
            return False
