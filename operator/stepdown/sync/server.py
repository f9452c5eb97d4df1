"""Sync over HTTPS, for the proxies of a cluster. `watch` starts it; see `sync.message` for what a message is answered.

In this order, and the first that holds is the answer: 404/405 another path or method; 421 not the leader, with the leader's
URL; 503 not every kind has been listed yet (unknown is never empty); 401/403/503 who are you (`sync.auth`); 413 too much; then
the message. Nothing of a body is read before its sender is known.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import msgspec
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from stepdown.model.news import PATH as WAIT
from stepdown.model.news import Have, News
from stepdown.sync.auth import Authenticator, Caller, Forbidden, Unauthenticated, Unverifiable
from stepdown.sync.message import MAX_BODY, answered, error, misplaced, too_large
from stepdown.sync.news import Board
from stepdown.sync.service import SyncService
from stepdown.sync.tls import Tls, TlsError

PATIENCE_S = 10.0
"""How long a connection may take to say who it is; also how long a body may take."""
HANDSHAKE_S = 5.0
KEEP_ALIVE_S = 75.0
TEND_S = 30.0
"""How often the certificate is looked at."""
_BACKLOG = 1024
_HEADERS = {"Content-Type": "application/json", "Server": "stepdown"}
_LAST = (401, 403, 404, 405, 408, 413)
"""After these the connection ends: whoever is not known, or does not keep to the rules, has to begin anew."""

_log = logging.getLogger("stepdown.sync")


class SyncHttps:
    """The listening socket."""

    def __init__(
        self,
        service: Callable[[], SyncService | None],
        authenticator: Authenticator,
        tls: Tls,
        *,
        leader: Callable[[], str | None],
        ready: Callable[[], bool],
        now_s: Callable[[], float],
        board: Board | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`service`: there is one while this process leads. `leader`: None where it does, else the leader's URL ("": nobody
        knows it). `ready`: whether every kind has been listed. `now_s`: Unix seconds, for certificates. `board`: where proxies
        hear of another config."""
        self.board = board or Board()
        self._service, self._authenticator, self._tls = service, authenticator, tls
        self._leader, self._ready, self._now_s, self._patience_s = leader, ready, now_s, patience_s
        self.answers: Counter[int] = Counter()
        """By HTTP status, for metrics."""
        self._http: web.Server | None = None
        self._server: asyncio.Server | None = None
        self._tending: asyncio.Task[None] | None = None
        self._silent: set[RequestHandler] = set()

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the address cannot be listened on."""
        self._http = web.Server(
            self._handle,
            request_factory=_request,
            access_log=None,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=1.0,
            auto_decompress=False,
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connection, host, port, ssl=self._tls.context, backlog=_BACKLOG, ssl_handshake_timeout=HANDSHAKE_S
        )
        self._tending = asyncio.create_task(self._tend())

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, timeout_s: float = 5.0) -> None:
        """No new connections; messages that are being answered are answered."""
        if self._tending is not None:
            self._tending.cancel()
            with suppress(asyncio.CancelledError):
                await self._tending
        self.board.close()
        if self._server is not None:
            self._server.close()
        if self._http is not None:
            self._http.pre_shutdown()
            await self._http.shutdown(timeout_s)
        await self._authenticator.close()

    # Connections ------------------------------------------------------------------------------------------------------

    def _connection(self) -> RequestHandler:
        """One that never says who it is must not stay: descriptors are few."""
        assert self._http is not None
        handler = self._http()
        self._silent.add(handler)
        asyncio.get_running_loop().call_later(self._patience_s, self._close_if_silent, handler)
        return handler

    def _close_if_silent(self, handler: RequestHandler) -> None:
        if handler in self._silent:
            self._silent.discard(handler)
            handler.force_close()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND_S)
            try:
                self._tls.tend(self._now_s())
            except TlsError as failure:
                _log.error("%s. The certificate in use stays", failure)

    # Messages ---------------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        status, payload = await self._answer(request)
        self.answers[status] += 1
        response = web.Response(status=status, body=payload, headers=_HEADERS)
        if status in _LAST:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> tuple[int, bytes]:
        waits = request.method == "POST" and request.raw_path == WAIT
        refusal = (None if waits else misplaced(request.method, request.raw_path)) or self._not_here()
        if refusal is not None:
            return refusal
        try:
            caller = await self._authenticator.authenticate(request.headers.get("Authorization", ""))
            answer = await (self._waited if waits else self._answered)(request, caller)
        except Unauthenticated as refused:
            return 401, error("unauthenticated", str(refused))
        except Forbidden as refused:
            return 403, error("forbidden", str(refused))
        except Unverifiable as unknown:
            return 503, error("unverifiable", str(unknown))
        # A process that was paused in between may have been followed by another, whose ledger need not know of this grant.
        return self._not_here() or answer

    def _not_here(self) -> tuple[int, bytes] | None:
        leader = self._leader()
        if leader is not None:
            where = f"it is at {leader}" if leader else "who does is not known yet"
            return 421, error("not_leader", f"this replica does not keep the ledger; {where}", leader=leader)
        if not self._ready() or self._service() is None:
            return 503, error("not_listed", "the operator has not listed every kind yet: it knows of no proxy so far")
        return None

    async def _waited(self, request: web.BaseRequest, caller: Caller) -> tuple[int, bytes]:
        if caller.leaving:
            return 403, error("forbidden", f"there is no news for a proxy of a RoutingProxy that is gone: {caller.fleet}")
        try:
            async with asyncio.timeout(self._patience_s):
                have = msgspec.json.decode(await request.read(), type=Have)
        except (web.HTTPRequestEntityTooLarge, msgspec.MsgspecError, TimeoutError) as wrong:
            return 400, error("refused", f"not a question for news: {wrong or 'it was not whole in time'}")
        return 200, msgspec.json.encode(News(changed=await self.board.differs(caller.fleet, have)))

    async def _answered(self, request: web.BaseRequest, caller: Caller) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._patience_s):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return too_large()
        except TimeoutError:
            return 408, error("timeout", f"the message was not whole within {self._patience_s:g} s")
        service = self._service()
        if service is None:
            return 503, error("stopping", "this replica does not lead any more")
        return await answered(
            service,
            body,
            admit=lambda message: self._authenticator.authorize(caller, message),
            pod=caller.pod,
            leaving=caller.leaving,
        )


def _request(
    message: RawRequestMessage, payload: StreamReader, protocol: RequestHandler, writer: object, task: "asyncio.Task[None]"
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY)  # type: ignore[arg-type]
