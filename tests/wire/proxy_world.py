"""A proxy on real sockets for the wire tests: its upstream (the simulator, or one that says what a test tells it), a keeper
that plays fair, and a client that shows every byte.
"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import uvloop

from stepdown.model.config import Channel, Fleet, Ladder, Model, Parameters, PriceFrom, Route
from stepdown.proxy.app import App
from stepdown.proxy.clock import Clock
from stepdown.proxy.keys import FixedKeys, KeySource
from stepdown.proxy.server import ServerConfig
from stepdown.proxy.wire import Limits
from tests.unit.proxy_money import NOW_S, TEAM, Keeper, budget, shards
from tests.upstream import STANDARD_KEY, Simulator, price_of
from tests.upstream import Model as Behaviour

T = TypeVar("T")

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sd-caller"
OTHER_KEY = "sd-other"
EXACT = Behaviour(rule="worst", output_tokens=(100, 100), cached_of_100=0, chunks=10)
"""What the simulator answers: 100 tokens in 10 chunks."""
LIMIT_NUSD = 1_000_000_000


def run(scene: Coroutine[Any, Any, T]) -> T:
    return uvloop.run(asyncio.wait_for(scene, 30))


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def model(name: str, output_usd: str, **more: Any) -> Model:
    """Input $1/M; output as stated, so that a better rung is always the dearer."""
    output_pusd = int(float(output_usd) * 1_000_000)
    prices = (PriceFrom(0, 1_000_000, 1_000_000, output_pusd),)
    return Model(
        name=name, upstream_id=f"up/{name}", tier="MidRange", channel=more.pop("channel", "standard"), prices=prices, **more
    )


MODELS = (model("big", "8"), model("mid", "4"), model("small", "2"), model("spare", "8"), model("best", "20"))
PRICES = {f"up/{each.name}": price_of("1", str(each.prices[0].output_pusd / 1_000_000)) for each in MODELS}


def route(name: str = "shop/chat", rungs: Sequence[str] = ("big", "mid", "small"), **fields: Any) -> Route:
    fallbacks = tuple(fields.pop("fallbacks", ()))
    ladders: dict[Any, Ladder] = {"default": Ladder(rungs=tuple(rungs), fallbacks=fallbacks)}
    ladders |= fields.pop("ladders", {})
    timeout_s = fields.pop("timeout_s", 5.0)
    parameters = fields.pop("parameters", Parameters(timeout_s=timeout_s, max_tokens=1000))
    budgets = fields.pop("budgets", ("shop/team",))
    return Route(name=name, ladders=ladders, parameters=parameters, budgets=budgets, **fields)


class World:
    """`async with World() as world`, then `world.chat(...)`, `world.app`, `world.sim`, `world.keeper`."""

    def __init__(
        self,
        routes: Sequence[Route] | None = None,
        *,
        upstream: "Scripted | Simulator | None" = None,
        base_url: str = "",
        limits: Limits | None = None,
        keys: KeySource | None = None,
        models: Sequence[Model] = MODELS,
        limit_nusd: int = LIMIT_NUSD,
        hard: bool = True,
        fleet: dict[str, Any] | None = None,
        **app: Any,
    ) -> None:
        self.upstream: Scripted | Simulator = upstream or Simulator(model=EXACT, prices=PRICES, bill_on_disconnect="full")
        self._routes = [route()] if routes is None else list(routes)
        self._base_url = base_url
        self._limits = limits or Limits()
        self._keys = keys or FixedKeys({"standard": STANDARD_KEY, "pro": "ga_pro_upstream"})
        self._models = models
        self._budget = budget(limit_nusd=limit_nusd, hard=hard)
        self._fleet = fleet or {}
        self._app = app
        self.keeper = Keeper({TEAM: limit_nusd})
        self.keeper.latency_s = 0.0

    @property
    def sim(self) -> Simulator:
        assert isinstance(self.upstream, Simulator)
        return self.upstream

    async def __aenter__(self) -> Self:
        await self.upstream.__aenter__()
        self.publish(self._routes)
        self._folder = tempfile.TemporaryDirectory()
        self.clock = Clock(now_s=NOW_S)
        self.keeper.now_s = self.clock.now_s
        self.app = App(
            ServerConfig(limits=self._limits),
            self.keeper.sync,
            Path(self._folder.name) / "state",
            "shop/proxy",
            self._keys,
            clock=self.clock,
            **self._app,
        )
        await self.app.start()
        self._drained = False
        return self

    def publish(self, routes: Sequence[Route]) -> None:
        """What the keeper sends down with its next answer."""
        fields = {"channels": (Channel(name="standard"), Channel(name="pro")), "lease_horizon_s": 60.0, "wait_s": 0.5}
        base_url = self._base_url or self.upstream.url
        self.keeper.fleet = Fleet(name="shop/proxy", namespace="shop", base_url=base_url, **(fields | self._fleet))
        self.keeper.shards = shards(routes, self._models, (self._budget,))

    async def __aexit__(self, *exc_info: object) -> None:
        if not self._drained:
            await self.drain(0.0)
        await self.upstream.__aexit__(*exc_info)
        self._folder.cleanup()

    async def drain(self, timeout_s: float = 5.0) -> bool:
        self._drained = True
        return await self.app.drain(timeout_s, close_s=1.0)

    @property
    def port(self) -> int:
        return self.app.port

    def client(self) -> "Client":
        return Client(self.port)

    async def chat(self, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None, **fields: Any) -> "Answer":
        """One request on a connection of its own."""
        async with self.client() as client:
            return await client.chat(body, headers, **fields)

    async def settled(self) -> None:
        """Waits until no attempt is in flight, drained ones included."""
        while self.app.server.wire.attempts:  # noqa: ASYNC110 (the product has no use for such an event)
            await asyncio.sleep(0.005)

    @property
    def consumed_nusd(self) -> int:
        return self.app.till.books.lease(TEAM).consumed

    @property
    def estimated_nusd(self) -> int:
        return self.app.till.books.lease(TEAM).estimated

    @property
    def reserved_nusd(self) -> int:
        return self.app.till.books.lease(TEAM).reserved


def hello(**fields: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": HELLO, "max_tokens": 100, **fields}


class Answer:
    """Status, headers (names in lower case) and the body as bytes."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, chunks: list[bytes] | None = None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.chunks = chunks or []

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json()["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        parts = [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]
        return [json.loads(part) for part in parts if part != b"[DONE]"]


class Client:
    """One connection to the proxy."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_chat(
        self, body: dict[str, Any] | bytes | None = None, headers: dict[str, str] | None = None, **fields: Any
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body or hello(**fields)).encode()
        self.send(request("POST", "/v1/chat/completions", raw, headers))

    async def chat(
        self, body: dict[str, Any] | bytes | None = None, headers: dict[str, str] | None = None, **fields: Any
    ) -> Answer:
        self.send_chat(body, headers, **fields)
        return await self.answer()

    async def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        self.send(request(method, path, b"", headers))
        return await self.answer()

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            if line:
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
        return int(lines[0].split()[1]), headers

    async def answer(self) -> Answer:
        """Raises IncompleteReadError where the connection ends before the answer does."""
        status, headers = await self.head()
        if "content-length" in headers:
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") != "chunked":
            return Answer(status, headers, await self.reader.read())
        chunks = []
        while chunk := await self.chunk():
            chunks.append(chunk)
        return Answer(status, headers, b"".join(chunks), chunks)

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def ended(self) -> bytes:
        """Waits for the end of the connection; what came before it."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


def request(method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = {"Host": "proxy", "Content-Length": str(len(body)), **(headers or {})}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode("latin-1") + b"\r\n" + body


class Heard:
    """One request as the scripted upstream got it."""

    def __init__(self, head: bytes, raw: bytes, on_connection: int) -> None:
        self.head = head
        self.raw = raw
        self.body: dict[str, Any] = json.loads(raw)
        self.on_connection = on_connection
        """0 for the first request of its connection."""

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}


Script = Callable[[Heard, "asyncio.StreamWriter"], Awaitable[bool | None]]
"""Answers one request; False ends the connection."""


class Scripted:
    """An upstream that says what a test tells it, byte for byte."""

    def __init__(self, script: Script | bytes, **listen: Any) -> None:
        self._script = script
        self._listen = listen
        self.heard: list[Heard] = []
        self.gone = 0
        """Connections that the proxy has ended."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, **self._listen)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        scheme = "https" if "ssl" in self._listen else "http"
        return f"{scheme}://127.0.0.1:{self.port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                heard = Heard(head, await reader.readexactly(length), served)
                self.heard.append(heard)
                served += 1
                if isinstance(self._script, bytes):
                    writer.write(self._script)
                elif await self._script(heard, writer) is False:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()


def plain(body: bytes | dict[str, Any], status: str = "200 OK", headers: str = "content-type: application/json\r\n") -> bytes:
    """A whole answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(raw)}\r\n\r\n".encode() + raw


def chunked(*chunks: bytes, headers: str = "content-type: text/event-stream\r\n", end: bool = True) -> bytes:
    head = f"HTTP/1.1 200 OK\r\n{headers}transfer-encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + (b"0\r\n\r\n" if end else b"")


USAGE = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
USAGE_NUSD = 20 * 1_000 + 10 * 8_000
"""On `big`: $1/M in, $8/M out."""
COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    "usage": USAGE,
}
