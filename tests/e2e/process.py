"""`stepdown run` as users start it: a process of its own, on a free loopback port. The end-to-end tests and the demo use it."""

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

START_S = 60.0
"""How long a failing test waits; one that passes waits for events only."""


class RunProcess:
    """Starts `stepdown run`, waits until it is ready, keeps its log, and ends it."""

    def __init__(
        self,
        folder: Path | Sequence[Path],
        ledger: Path | None,
        *arguments: str,
        upstream: str = "",
        env: dict[str, str] | None = None,
        log_format: str = "json",
        cwd: Path | None = None,
    ) -> None:
        """Without a `ledger` it is the environment's."""
        roots = [folder] if isinstance(folder, Path) else list(folder)
        self._command = [sys.executable, "-m", "stepdown", "run", *(part for root in roots for part in ("-f", str(root)))]
        self._command += ["--listen", "127.0.0.1:0", "--log-format", log_format]
        self._command += ["--ledger", str(ledger)] if ledger is not None else []
        self._command += ["--upstream", upstream] if upstream else []
        self._command += arguments
        self._env = {**os.environ, "UPSTREAM_API_KEY": "sk-upstream", "UPSTREAM_API_KEY_PRO": "ga_pro_upstream", **(env or {})}
        self._cwd = cwd
        self.log: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()

    def launch(self) -> Self:
        """Starts it without waiting for anything."""
        self.process = subprocess.Popen(
            self._command,
            env=self._env,
            cwd=self._cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def start(self) -> Self:
        self.launch()
        ready = self.wait_for("ready")
        self.url = str(ready["url"])
        self.port = int(re.search(r":(\d+)/", self.url)[1])  # type: ignore[index]
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
        self.close()

    def close(self) -> None:
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    @property
    def error(self) -> str:
        """All of stderr so far, as text."""
        while not self._lines.empty():
            if (raw := self._lines.get()) is not None:
                self._keep(raw)
        return "\n".join(self.raw)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and nothing less."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def wait(self, timeout_s: float = START_S) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def wait_for(self, event: str, matching: Callable[[dict[str, Any]], bool] = lambda line: True) -> dict[str, Any]:
        """The next log line of that event; lines before it are kept in `log`."""
        until_s = time.monotonic() + START_S
        for line in self.log:
            if line.get("event") == event and not line.get("seen") and matching(line):
                line["seen"] = True
                return line
        while time.monotonic() < until_s:
            try:
                raw = self._lines.get(timeout=max(0.01, until_s - time.monotonic()))
            except queue.Empty:
                break
            if raw is None:
                break
            kept = self._keep(raw)
            if kept is not None and kept.get("event") == event and matching(kept):
                kept["seen"] = True
                return kept
        raise AssertionError(f"no log line of event {event!r}; the log was:\n" + "\n".join(self.raw))

    def _keep(self, raw: str) -> dict[str, Any] | None:
        self.raw.append(raw)
        try:
            line: dict[str, Any] = json.loads(raw)
        except ValueError:
            return None
        self.log.append(line)
        return line

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            self._lines.put(raw.rstrip("\n"))
        self._lines.put(None)

    def chat(self, model: str, content: str = "Why is the sky blue?", **body: Any) -> "Reply":
        """One chat completion, read whole."""
        return self.request("POST", "/v1/chat/completions", {"model": model, "messages": [_user(content)], **body})

    def request(self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> "Reply":
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def stream(self, model: str, **body: Any) -> "Stream":
        """A streaming chat completion; its head has been read when this returns."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        body = {"model": model, "messages": [_user("Tell me a story.")], "stream": True, **body}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        return Stream(connection, connection.getresponse())


class Reply:
    """An answer, read whole."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def model(self) -> str:
        """What the upstream was asked for."""
        return str(self.json.get("model", ""))


class Stream:
    """An answer that is still coming."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status

    def next_event(self) -> str:
        """The next `data:` line, without its name; empty at the end."""
        while line := self._response.readline():
            if line.startswith(b"data: "):
                return line[6:].strip().decode()
        return ""

    def rest(self) -> list[str]:
        events = []
        while event := self.next_event():
            events.append(event)
        self._connection.close()
        return events


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}
