"""One request's life: checked, admitted, sent, retried elsewhere on an outage, relayed. `front` starts one for each chat
completion.

    start → admit ──▶ send ──▶ streams/answered ──▶ finish
              ▲          │
              └─ next ◀──┴─ failed    (only before the first byte went to the client)

No task runs on the usual way: everything happens in the callbacks of the two connections. A task is made to wait for money
(`_wait`) and, by the attempt, to dial. What an attempt costs, the attempt decides; here it is decided who answers.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from stepdown.model.config import Reason, RequestClass
from stepdown.model.money import nusd_to_usd
from stepdown.proxy import canon
from stepdown.proxy.attempt import Attempt, Failure
from stepdown.proxy.errors import (
    ApiError,
    Forbidden,
    NotFound,
    Unavailable,
    UpstreamFailed,
    refusal,
)
from stepdown.proxy.hold import Hold
from stepdown.proxy.plainchat import PlainChat
from stepdown.proxy.refusal import Refused
from stepdown.proxy.sse import error_message
from stepdown.proxy.table import RouteEntry, RungEntry, UnknownClass, UnknownRoute
from stepdown.proxy.upstream import Headers
from stepdown.proxy.wire import Unreachable, Wire, header_value

if TYPE_CHECKING:
    from stepdown.proxy.front import Front

_GONE: Final = 499
"""What is counted for a client that left before its answer had ended, as nginx does."""

_STREAM_HEAD: Final = b"cache-control: no-cache\r\n"


class Exchange:
    """One chat completion for one client."""

    __slots__ = (
        "_attempt",
        "_began_s",
        "_chat",
        "_class",
        "_front",
        "_route",
        "_streaming",
        "_task",
        "_tried",
        "_wire",
    )

    def __init__(self, wire: Wire, front: "Front") -> None:
        self._wire = wire
        self._front = front
        self._attempt: Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._tried: list[Failure] = []
        self._streaming = False

    def start(self, body: bytes, digest: bytes | None, authorization: bytes, header_class: str | None) -> None:
        wire = self._wire
        self._began_s = wire.loop.time()
        wire.exchanges += 1
        route: RouteEntry | None = None
        try:
            parsed = canon.read(body)
            model = parsed.model if type(parsed) is PlainChat else canon.model_of(parsed)
            route, self._class = self._find(model, digest, authorization, header_class)
            self._route = route
            chat = canon.plain(parsed, body, route.temperature) if type(parsed) is PlainChat else None
            if chat is None:
                chat = canon.chat(
                    parsed if type(parsed) is dict else canon.parse(body),
                    hard=route.hard,
                    extra_fields=wire.till.table.fleet.extra_body_fields,  # type: ignore[union-attr]  # `_find` has looked
                    temperature=route.temperature,
                )
            self._chat = chat
        except ApiError as error:
            self._refuse(error, route)
            return
        wire.retries.request()
        self._admit()

    def client_gone(self) -> None:
        """The client has closed its connection: what runs for it is given up, what was sent is still metered."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abandon()
        self._finish(_GONE)

    def pause(self) -> None:
        """The client reads slower than the upstream writes."""
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        if self._attempt is not None:
            self._attempt.resume()

    def _find(
        self, model: str, digest: bytes | None, authorization: bytes, header_class: str | None
    ) -> tuple[RouteEntry, RequestClass]:
        """The route that the client names, if it may call it. Raises ApiError."""
        wire = self._wire
        table = wire.till.table
        if table is None:
            raise Unavailable("this proxy has no config yet: it has not heard from the operator. Try again", code="no_config")
        try:
            route, request_class = table.find(model, header_class)
        except UnknownRoute as no_route:
            raise wire.callers(table).stranger(digest, authorization, model, str(no_route)) from None
        except UnknownClass as no_class:
            raise NotFound(str(no_class), param="model", code="class_not_found", status=400) from None
        if route.key_hashes is not None and digest not in route.key_hashes:
            callers = wire.callers(table)
            if not callers.may_call(route, digest, authorization):
                raise callers.stranger(digest, authorization, model, "")
        if route.config.refuse:
            raise Forbidden(f"route {route.name}: {route.config.refuse}", param="model")
        return route, request_class

    # Money

    def _admit(self, rungs: Sequence[RungEntry] | None = None, reason: Reason | None = None, *, fresh: bool = False) -> None:
        try:
            hold = self._wire.till.admit(self._route, self._class, self._chat.shape, rungs=rungs, reason=reason)
        except Refused as refused:
            self._no_money(refused)
            return
        if hold is not None:
            self._send(hold, fresh)
            return
        self._task = self._wire.loop.create_task(self._wait(rungs, reason, fresh))

    async def _wait(self, rungs: Sequence[RungEntry] | None, reason: Reason | None, fresh: bool) -> None:
        try:
            hold = await self._wire.till.admit_later(self._route, self._class, self._chat.shape, rungs=rungs, reason=reason)
        except Refused as refused:
            self._task = None
            self._no_money(refused)
            return
        self._task = None
        self._send(hold, fresh)

    def _no_money(self, refused: Refused) -> None:
        if self._tried:
            self._give_up(f". No other model could be tried: {refused.message}")
        else:
            self._refuse(refusal(refused), self._route)

    # The upstream

    def _send(self, hold: Hold, fresh: bool) -> None:
        wire = self._wire
        rung = hold.tab.rung
        if wire.breakers.bad and not wire.breakers.closed(rung.name, wire.sweeper.now_s):
            wire.till.release(hold, attempted=False)
            wait_s = wire.breakers.retry_after_s(rung.name, wire.sweeper.now_s)
            self._after(Failure(rung.name, "it failed lately and is left alone for now", 503, wait_s, sent=False))
            return
        try:
            way = wire.way(rung)
        except Unreachable as error:
            wire.till.release(hold, attempted=False)
            self._after(Failure(rung.name, str(error), 503, sent=False))
            return
        if wire.rates.limited:
            wait_s = wire.rates.take(rung.channel, wire.till.sharers, wire.sweeper.now_s)
            if wait_s > 0:
                wire.till.release(hold, attempted=False)
                why = wire.rates.said(rung.channel, wire.till.sharers)
                self._after(Failure(rung.name, why, 429, wait_s, sent=False))
                return
        if wire.breakers.bad:
            wire.breakers.sent(rung.name)
        chat = self._chat
        self._attempt = attempt = Attempt(wire, self, hold, chat.stream, chat.include_usage)
        attempt.start(way.pool, way.head, chat.body(way.model, way.max_tokens, hold.max_tokens), fresh)
        if self._front.is_paused:
            attempt.pause()

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        """By the attempt."""
        if attempt is not self._attempt:
            return
        self._attempt = None
        if self._streaming:
            self._break(failure)
        elif failure.stale and not any(each.stale for each in self._tried):
            self._tried.append(failure)
            if self._wire.retries.take():
                self._wire.retried += 1
                self._admit((attempt.hold.tab.rung,), attempt.hold.reason, fresh=True)
            else:
                self._give_up()
        else:
            self._after(failure)

    def _after(self, failure: Failure) -> None:
        """Another model after one that cannot serve."""
        self._tried.append(failure)
        rungs = self._others()
        if not rungs or (failure.sent and not self._wire.retries.take()):
            self._give_up()
            return
        if failure.sent:
            self._wire.retried += 1
        self._admit(rungs, "Outage")

    def _others(self) -> list[RungEntry]:
        """The fallbacks, then the rungs in force, without what was tried, is left alone, or has had its minute's requests."""
        route = self._route
        ladder = route.ladders[self._class]
        tried = {failure.model for failure in self._tried}
        if self._class == "critical" and route.share is not None:
            tried.add(ladder.rungs[0].name)  # premium is not a fallback: its share is counted where it is wanted
        wire = self._wire
        now_s = wire.sweeper.now_s
        others: list[RungEntry] = []
        for rung in (*ladder.fallbacks, *ladder.visible):
            if rung.name in tried or not wire.breakers.closed(rung.name, now_s):
                continue
            if wire.rates.wait_s(rung.channel, wire.till.sharers, now_s) == 0:
                tried.add(rung.name)
                others.append(rung)
        return others

    def _give_up(self, more: str = "") -> None:
        """Nobody is left to ask. The client is told what was tried."""
        tried = self._tried
        said = "; ".join(f"{failure.model}: {failure.what}" for failure in tried)
        statuses = {failure.status for failure in tried}
        if statuses == {429}:
            status, code = 429, "upstream_rate_limited"
        elif statuses == {504}:
            status, code = 504, "upstream_timeout"
        elif statuses <= {429, 503}:
            status, code = 503, "upstream_unavailable"
        else:
            status, code = 502, "upstream_failed"
        waits_s = [failure.retry_after_s for failure in tried if failure.retry_after_s is not None]
        headers = {"retry-after": str(max(1, -(-int(min(waits_s) * 1000) // 1000)))} if waits_s and status in (429, 503) else {}
        message = f"no model of route {self._route.name} could answer: {said}{more}"
        self._refuse(UpstreamFailed(message, status=status, code=code, headers=headers), self._route)

    # The answer

    def streams(self, attempt: Attempt, content_type: bytes) -> None:
        """By the attempt: the answer begins, and from here on there is no fallback."""
        self._streaming = True
        hold = attempt.hold
        lines = self._wire.labels(hold.tab.route, hold.tab.rung, hold.reason)
        self._front.begin_stream(b"content-type: %b\r\n%b%b" % (content_type, _STREAM_HEAD, lines))

    def relay(self, data: bytes) -> None:
        """By the attempt."""
        self._front.write_chunk(data)

    def flush(self) -> None:
        """By the attempt."""
        self._front.flush()

    def streamed(self, attempt: Attempt) -> None:
        """By the attempt: the stream has come whole and is settled."""
        self._attempt = None
        self._finish(200)
        self._front.end_stream()

    def answered(self, attempt: Attempt, status: int, headers: Headers, body: bytes, cost_nusd: int) -> None:
        """By the attempt: a whole answer, or the upstream's own refusal."""
        self._attempt = None
        if status in (401, 403):
            self._unwelcome(attempt, status, body)
            return
        hold = attempt.hold
        lines = self._wire.labels(hold.tab.route, hold.tab.rung, hold.reason)
        content_type = headers.get(b"content-type", b"application/json")
        cost = nusd_to_usd(cost_nusd).encode()
        head = b"content-type: %b\r\n%bx-stepdown-cost-usd: %b\r\n" % (content_type, lines, cost)
        if b"x-request-id" in headers:
            head = b"%bx-request-id: %b\r\n" % (head, headers[b"x-request-id"])
        self._finish(status)
        self._front.reply(status, head, body)

    def _unwelcome(self, attempt: Attempt, status: int, body: bytes) -> None:
        """The upstream refuses the platform's key. Relayed, a 401 would send the client looking for a fault in its own."""
        rung = attempt.hold.tab.rung
        said = error_message(body)
        message = (
            f"the upstream refused the platform's API key for channel {rung.channel!r}, not yours: {rung.name} answered"
            f" {status}{f' ({said})' if said else ''}. The key comes from {self._wire.keys.whence(rung.channel)}"
        )
        self._refuse(UpstreamFailed(message, code="upstream_key_refused"), self._route)

    def _break(self, failure: Failure) -> None:
        """A stream that will not come whole: the client is told in the stream, and its end is missing."""
        error = UpstreamFailed(f"{failure.model}: {failure.what}. The answer is not complete", code="stream_interrupted")
        self._finish(error.status)
        self._front.break_stream(b"data: %b\n\n" % error.body())

    def _refuse(self, error: ApiError, route: RouteEntry | None) -> None:
        head = error.head()
        if route is not None:
            head = b"%bx-stepdown-route: %b\r\n" % (head, header_value(route.name))
        self._finish(error.status)
        self._front.reply(error.status, head, error.body())

    def _finish(self, status: int) -> None:
        wire = self._wire
        wire.exchanges -= 1
        wire.statuses[status] = wire.statuses.get(status, 0) + 1
        wire.latency.observe(wire.loop.time() - self._began_s)
