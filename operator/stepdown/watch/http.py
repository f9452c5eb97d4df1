"""The operator's plain HTTP: health, metrics, and what it knows, to read. `run` starts it; the kubelet, Prometheus and
kubectl's plugin ask it. Nothing here changes anything, and nothing here is secret: names, states, sums, and specs in force.
Whoever asks a Service cannot choose a replica: one that does not lead passes a question for figures on to the one that does.

    /healthz        the event loop turns
    /readyz         this process does what it should: it leads and has published a config, or it follows
    /metrics        Prometheus
    /v1/status      `views.Overview`: balances, routes' traffic, what is in force: what `stepdown status` and `explain` need
    /v1/counters    ?since_day=&until_day= traffic by route, model, class and day: what `stepdown report` needs
    /v1/books       ?since_day=&until_day= the same with accounts and purchase orders: what `stepdown statement` needs
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from stepdown.ledger.errors import LedgerError
from stepdown.watch.metrics import CONTENT_TYPE

PASSED_ON = "x-stepdown-passed-on"
_LEADER_S = 10.0
_MAX_DAYS = 3660


class Views:
    """What is asked of the process."""

    def __init__(
        self,
        *,
        ready: Callable[[], str],
        metrics: Callable[[], Awaitable[bytes]],
        status: Callable[[], Awaitable[Any]],
        counters: Callable[[int, int], Awaitable[Any]],
        books: Callable[[int, int], Awaitable[Any]],
        leader: Callable[[], str] = str,
    ) -> None:
        """`ready`: why not, or nothing. `status`, `counters` and `books` give None where this process does not lead; `leader`
        is the URL of this server's like at the replica that does, as far as it is known."""
        self.ready, self.metrics, self.status, self.counters, self.books = ready, metrics, status, counters, books
        self.leader = leader


class HttpServer:
    """The listening socket."""

    def __init__(self, views: Views) -> None:
        self._views = views
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the address cannot be listened on."""
        app = web.Application(middlewares=[self._passed_on])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/v1/counters", self._counters)
        app.router.add_get("/v1/books", self._books)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    @property
    def port(self) -> int:
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _passed_on(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """To the leader, but nothing twice: who leads may have changed on the way."""
        leader = self._views.leader() if request.path.startswith("/v1/") and PASSED_ON not in request.headers else ""
        if not leader:
            return await handler(request)
        limit = aiohttp.ClientTimeout(total=_LEADER_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(f"{leader}{request.raw_path}", headers={PASSED_ON: "1"}, allow_redirects=False) as answer,
            ):
                return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _error(503, f"the replica that leads, at {leader}, does not answer: {error or 'in time'}")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        why_not = self._views.ready()
        return web.Response(text=f"{why_not or 'ok'}\n", status=503 if why_not else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._views.metrics(), headers={"content-type": CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.Response:
        return await _json(self._views.status())

    async def _counters(self, request: web.Request) -> web.Response:
        return await self._of_days(request, self._views.counters)

    async def _books(self, request: web.Request) -> web.Response:
        return await self._of_days(request, self._views.books)

    async def _of_days(self, request: web.Request, view: Callable[[int, int], Awaitable[Any]]) -> web.Response:
        try:
            since, until = int(request.query["since_day"]), int(request.query["until_day"])
        except (KeyError, ValueError):
            return _error(
                400, "since_day and until_day are whole days since 1970-01-01, such as ?since_day=20760&until_day=20790"
            )
        if not 0 <= until - since <= _MAX_DAYS:
            return _error(400, f"until_day is {until}, since_day {since}: ask for 0 to {_MAX_DAYS} days, the later one last")
        return await _json(view(since, until))


async def _json(answer: Awaitable[Any]) -> web.Response:
    try:
        found = await answer
    except LedgerError as error:
        return _error(503, f"the ledger: {error}")
    if found is None:
        return _error(503, "this operator does not lead, or has not listed everything yet: ask the one that does, or again")
    body = await asyncio.to_thread(msgspec.json.encode, found)
    return web.Response(body=body, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    body = msgspec.json.encode({"error": {"message": message}})
    return web.Response(body=body, status=status, content_type="application/json")
