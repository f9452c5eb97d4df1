"""An API server that answers what a test tells it to, over a real socket: for faults that a real one makes on no demand."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from aiohttp import web

from stepdown.cluster.client import Cluster
from stepdown.cluster.wire import Limits

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
QUICK = Limits(connect_s=0.5, total_s=0.5, silence_s=0.4)


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


def run(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


class Api:
    """`async with Api(tmp_path) as api`: answers from `script`, in turn; then from `otherwise`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script: deque[Answer] = deque()
        self.otherwise: Answer = status(500, "InternalError", "the test's script is over")
        self.asked: list[Asked] = []
        self._more = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self.port = 0

    async def __aenter__(self) -> "Api":
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def until(self, asked: int) -> None:
        """Waits for so many requests."""
        async with asyncio.timeout(10):
            while len(self.asked) < asked:
                await self._more.wait()
                self._more.clear()

    def answer(self, *answers: Answer) -> "Api":
        self.script.extend(answers)
        return self

    def kubeconfig(self, user: dict[str, Any] | None = None) -> Path:
        return write_kubeconfig(self.folder, f"http://127.0.0.1:{self.port}", user)

    @contextlib.asynccontextmanager
    async def cluster(self, limits: Limits = QUICK) -> AsyncIterator[Cluster]:
        async with Cluster.connect(self.kubeconfig(), limits=limits) as cluster:
            yield cluster

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.asked.append(Asked(request.method, request.rel_url.raw_path, dict(request.query), dict(request.headers), body))
        self._more.set()
        answer = self.script.popleft() if self.script else self.otherwise
        return await answer(request)


def write_kubeconfig(folder: Path, server: str, user: dict[str, Any] | None = None) -> Path:
    """A kubeconfig for one server."""
    path = folder / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": "a-token"} if user is None else user}],
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def status(code: int, reason: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> Answer:
    """A Status object, as the API server refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
    return page(json.dumps({**body, "details": details}), code, headers, "application/json")


def obj(value: Any, code: int = 200) -> Answer:
    return page(json.dumps(value), code, None, "application/json")


def page(text: str, code: int = 200, headers: dict[str, str] | None = None, content_type: str = "text/html") -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=code, text=text, headers=headers, content_type=content_type)

    return answer


def hang() -> Answer:
    """Never a byte."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    return answer


def reset() -> Answer:
    """The connection ends instead of an answer."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return answer


def cut(text: str) -> Answer:
    """A head that promises more than comes."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(text) + 100)})
        await response.prepare(request)
        await response.write(text.encode())
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def stream(*parts: str | float, then: str = "end") -> Answer:
    """Parts of a watch's body, and pauses in seconds between them. `then`: end, or hang."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for part in parts:
            if isinstance(part, str):
                await response.write(part.encode())
            else:
                await asyncio.sleep(part)
        if then == "hang":
            await asyncio.sleep(60)
        await response.write_eof()
        return response

    return answer


def drip(text: str, pause_s: float) -> Answer:
    """A body that comes byte by byte: no silence, and no end."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in text.encode():
            await response.write(bytes([byte]))
            await asyncio.sleep(pause_s)
        return response

    return answer


def config_map(name: str, version: str = "1", **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version, "uid": f"uid-{name}"},
        "data": data,
    }
