"""Stands between an operator and its API server, counts the writes, and pulls the plug after any one of them.

Plain HTTP in, the admin's certificate out. Leases and reviews of tokens are not counted: they come by the clock.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
from aiohttp import web
from devcluster import Cluster

_BY_THE_CLOCK = ("/leases", "/tokenreviews")
_HOP = {"transfer-encoding", "content-length", "connection", "content-encoding"}


class Gate:
    """A port of the API server. `after(n, cut)` calls `cut` once the n-th write is done, and before anybody hears of it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.writes: list[str] = []
        self._last_s = time.monotonic()
        self._failing = 0
        self._cut_at, self._cut = -1, lambda: None
        self.is_cut = threading.Event()

    def after(self, write: int, cut: Callable[[], None]) -> None:
        """From now on. 0: never."""
        self.writes.clear()
        self.is_cut.clear()
        self._cut_at, self._cut = write, cut

    def fail(self, status: int) -> None:
        """Every request is answered so from now on, and every stream cut; 0: none any more."""
        self._failing = status

    def rests(self, for_s: float) -> bool:
        """Whether there was no write for so long."""
        return time.monotonic() - self._last_s > for_s

    def kubeconfig(self, path: Path) -> Path:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(content))
        return path

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        connector = aiohttp.TCPConnector(ssl=self._cluster.ssl_context(), limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            started.set()
            await stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._failing:
            return _failure(self._failing)
        body = await request.read()
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in (*_HOP, "host", "authorization")
        }
        url = self._cluster.server + request.raw_path
        counted = request.method != "GET" and not any(part in request.path for part in _BY_THE_CLOCK)
        async with self._session.request(request.method, url, data=body or None, headers=headers) as answer:
            if counted:
                self._last_s = time.monotonic()
                self.writes.append(f"{request.method} {request.path} {answer.status}")
                if len(self.writes) == self._cut_at:
                    await answer.read()
                    self._cut()
                    self.is_cut.set()
                    return web.Response(status=500)
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP:
                    response.headers.add(name, value)
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):  # whoever asked may be dead by now
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
                    if self._failing:
                        break
                await response.write_eof()
            return response


def _failure(status: int) -> web.Response:
    """As an API server says it."""
    reasons = {429: "TooManyRequests", 500: "InternalError"}
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reasons[status],
        "code": status,
        "message": "no",
    }
    return web.json_response(body, status=status, headers={"Retry-After": "1"} if status == 429 else None)


@contextlib.contextmanager
def gate(cluster: Cluster) -> Iterator[Gate]:
    made = Gate(cluster)
    started, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        loop.run_until_complete(made.serve(started, stop))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
