"""Requests that wait for money: asked for with tickets, served in the order of their arrival, refused only when nothing can
help.

A request whose wanted rung does not fit this proxy's own lease comes here. While its first ticket is unanswered it is
*fresh*: it takes its wanted rung or nothing, and nobody behind it takes money of the same lease (the keeper has counted on
it). Once answered it takes any rung that fits, whenever money comes back, and no longer stands in the way of those behind it.
It is refused when the keeper says that nothing can help and nothing in flight here could free enough, or when its wait
(`Fleet.wait_s`) is over.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from stepdown.model.config import Reason, RequestClass
from stepdown.model.sync import Ask, AskAnswer
from stepdown.proxy.hold import Hold, Offer
from stepdown.proxy.lease import Lease
from stepdown.proxy.refusal import Refused, exhausted, log_unavailable, unreachable
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.table import RouteEntry, RungEntry

if TYPE_CHECKING:
    from stepdown.proxy.till import Till

POLL_S: Final = 0.2
"""How often a request that waits for money from elsewhere asks again."""
YIELD_S: Final = 1.0
"""How long what was recalled is left to whoever waits for it elsewhere: he asks several times in it."""
_AGAIN_S: Final = 0.02
"""How soon it asks again when there is reason to."""
MAX_ASKS: Final = 512
"""Tickets in one message; the rest go in the next."""


class Wish(NamedTuple):
    """What a caller of the till wants served."""

    route: RouteEntry
    request_class: RequestClass
    shape: RequestShape
    rungs: Sequence[RungEntry] | None
    reason: Reason | None


class Waiter:
    """One request that waits."""

    __slots__ = (
        "answer",
        "answers",
        "ask_at_s",
        "ask_id",
        "barred",
        "cheapest_nusd",
        "fresh",
        "future",
        "leases",
        "offers",
        "wish",
    )

    def __init__(self, wish: Wish, offers: list[Offer], future: asyncio.Future[Hold]) -> None:
        self.wish = wish
        self.future = future
        self.fresh = True
        self.ask_id = 0
        """Of its unanswered ticket; 0: it has none."""
        self.ask_at_s = 0.0
        self.answers = 0
        self.barred = False
        """The keeper has said no, though by its own numbers it could: asking at once would not change its mind."""
        self.answer: AskAnswer | None = None
        """The last one, until it has been acted on."""
        self.leases: tuple[Lease, ...] = ()
        self.aim(offers)

    def aim(self, offers: list[Offer]) -> None:
        """New offers: at arrival, and when the period, the config or the instance has changed."""
        self._count(-1)
        self.offers = offers
        self.leases = offers[0].tab.hard
        self.cheapest_nusd = offers[-1].amount_nusd
        self._count(+1)

    def settle_down(self) -> None:
        """Its first ticket has been answered, or cannot be."""
        self._count(-1)
        self.fresh = False

    def _count(self, by: int) -> None:
        if self.fresh:
            for lease in self.leases:
                lease.asking += by

    def could_be_freed(self) -> bool:
        """Whether what is in flight here could make its cheapest rung fit."""
        need = self.cheapest_nusd
        return all(lease.free >= need or (lease.reserved > 0 and lease.reachable_nusd >= need) for lease in self.leases)

    def could_be_granted(self) -> bool:
        """Whether, as far as is known, the keeper could make its cheapest rung fit now."""
        return all(lease.free + lease.headroom_nusd >= self.cheapest_nusd for lease in self.leases)

    def scraps(self, boot_s: float) -> dict[str, int] | None:
        """A rung that serves nothing yet: all that the keeper has left of what is short, where nobody else holds any of it.

        With the last of an account in one place, the next settlement serves the first who waits at once, and not after a
        message, while everybody else sees money that nobody takes. Once it is here it is not asked for again: what a ticket
        earmarks is not recalled, though it may serve somebody elsewhere. Of an account that is not short nothing is taken: a
        part of it may be what is missing to somebody who needs that account alone. And nothing is gathered of what was just
        given back for somebody elsewhere: it would be gone again before he asks.
        """
        if not all(lease.sole for lease in self.leases):
            return None
        short = [lease for lease in self.leases if lease.free + lease.headroom_nusd < self.cheapest_nusd]
        if not any(lease.headroom_nusd for lease in short) or any(boot_s < lease.recalled_s + YIELD_S for lease in short):
            return None
        return {lease.account: lease.free + lease.headroom_nusd for lease in short}


class Queue:
    """All waiting requests of one proxy, in the order of their arrival. One event loop owns it."""

    __slots__ = ("_by_ask", "_next_ask", "_till", "waiting")

    def __init__(self, till: "Till") -> None:
        self._till = till
        self.waiting: dict[Waiter, None] = {}
        """In the order of their arrival."""
        self._by_ask: dict[int, Waiter] = {}
        self._next_ask = int(till.clock.boot_s() * 1_000_000) + 1
        """Ascending over a restart of the process too: an instance that is resumed must not use an id again."""

    def __len__(self) -> int:
        return len(self.waiting)

    def waits_for(self, lease: Lease) -> bool:
        """Whether anybody waits for money of this lease."""
        return any(lease in waiter.leases for waiter in self.waiting)

    async def wait(self, wish: Wish, offers: list[Offer]) -> Hold:
        """The hold, or Refused. When the caller is cancelled, whatever it was given goes back."""
        loop = asyncio.get_running_loop()
        waiter = Waiter(wish, offers, loop.create_future())
        self.waiting[waiter] = None
        timer = loop.call_later(self._till.wait_s, self._expire, waiter)
        if not self._till.reachable or self._till.unlogged:
            waiter.settle_down()
            self.retry()
        if self._till.unlogged and waiter in self.waiting:  # what it would be granted could not be used, and lie there
            self._refuse(waiter)
        self._till.kick()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self._till.release(future.result(), attempted=False)
            raise
        finally:
            timer.cancel()
            if waiter in self.waiting:
                self._leave(waiter)
                self.retry()

    def retry(self, touched: Collection[Lease] | None = None) -> None:
        """Money has come back, to these leases or to any: everyone that it can help is served, in the order of arrival."""
        till = self._till
        boot_s = till.clock.boot_s()
        now_s = boot_s + till.clock.offset_s
        blocked: set[Lease] = set()
        again = False
        for waiter in list(self.waiting):
            if waiter.future.done() or (touched is not None and not any(lease in touched for lease in waiter.leases)):
                continue
            if blocked.isdisjoint(waiter.leases) and self._serve(waiter, boot_s, now_s):
                continue
            if waiter.fresh:
                blocked.update(waiter.leases)
            elif not (waiter.ask_id or waiter.barred) and waiter.ask_at_s > boot_s + _AGAIN_S and waiter.could_be_granted():
                waiter.ask_at_s = boot_s
                again = True
        if again:
            till.kick()

    def asks(self, boot_s: float) -> tuple[Ask, ...]:
        """The tickets for the next message: those not answered yet, and those that are due again."""
        asks: list[Ask] = []
        gathered: set[Lease] = set()
        for waiter in self.waiting:
            if waiter.future.done() or not (waiter.ask_id or waiter.ask_at_s <= boot_s):
                continue
            if not waiter.ask_id:
                waiter.ask_id = self._next_ask
                self._next_ask += 1
                self._by_ask[waiter.ask_id] = waiter
            rungs = [{lease.account: offer.amount_nusd for lease in offer.tab.hard} for offer in waiter.offers]
            if gathered.isdisjoint(waiter.leases) and (scraps := waiter.scraps(boot_s)) is not None:
                rungs.append(scraps)
            gathered.update(waiter.leases)
            asks.append(Ask(id=waiter.ask_id, rungs=tuple(rungs)))
            if len(asks) == MAX_ASKS:
                break
        return tuple(asks)

    def answered(self, answers: Sequence[AskAnswer]) -> None:
        """The keeper's answers, whose grants are in the leases already. Serves, parks or refuses."""
        boot_s = self._till.clock.boot_s()
        concerned: list[Waiter] = []
        for answer in answers:
            waiter = self._by_ask.pop(answer.id, None)
            if waiter is None:
                continue
            waiter.ask_id = 0
            waiter.answers += 1
            waiter.answer = answer
            waiter.barred = answer.rung < 0 and waiter.could_be_granted()
            waiter.ask_at_s = boot_s + (_AGAIN_S if answer.rung >= 0 else POLL_S)
            waiter.settle_down()
            concerned.append(waiter)
        self.retry()
        for waiter in concerned:
            answer_ = waiter.answer
            if waiter.future.done() or answer_ is None:
                continue
            if self._till.unlogged and answer_.rung >= 0:
                self._refuse(waiter)
            if answer_.rung >= 0 or answer_.recoverable:
                continue
            if not waiter.could_be_freed():
                self._refuse(waiter)

    def failed(self) -> None:
        """The keeper cannot be reached: nobody waits for an answer where the own lease has a lower rung."""
        for waiter in self.waiting:
            if waiter.fresh:
                waiter.settle_down()
        self.retry()

    def renew(self) -> None:
        """Another instance with other leases: every ticket is asked again under the new id."""
        self._by_ask.clear()
        for waiter in list(self.waiting):
            self._aim(waiter, self._till.clock.now_s())
        self.retry()

    def _serve(self, waiter: Waiter, boot_s: float, now_s: float) -> bool:
        """Takes what fits; True: the waiter is done, served or refused."""
        stale = waiter.offers[0].tab.is_stale(now_s)
        if stale and not self._aim(waiter, now_s):
            return True
        if any(lease.free < waiter.cheapest_nusd for lease in waiter.leases):
            return False
        try:
            for offer in waiter.offers[:1] if waiter.fresh else waiter.offers:
                hold = self._till.take(offer, boot_s, now_s)
                if hold is not None:
                    self._leave(waiter)
                    waiter.future.set_result(hold)
                    return True
        except Refused as refused:
            self._leave(waiter)
            waiter.future.set_exception(refused)
            return True
        return False

    def _aim(self, waiter: Waiter, now_s: float) -> bool:
        """Other leases or other rungs: an unanswered ticket speaks of the old ones, so it is asked anew."""
        if waiter.ask_id:
            self._by_ask.pop(waiter.ask_id, None)
            waiter.ask_id = 0
            waiter.ask_at_s = 0.0
        try:
            waiter.aim(self._till.offers(waiter.wish, now_s))
        except Refused as refused:
            self._leave(waiter)
            waiter.future.set_exception(refused)
            return False
        return True

    def _expire(self, waiter: Waiter) -> None:
        """The wait is over: one last look at every rung, then the reason."""
        if waiter.future.done():
            return
        was_fresh = waiter.fresh
        if was_fresh:
            waiter.settle_down()
        till = self._till
        boot_s = till.clock.boot_s()
        if not self._serve(waiter, boot_s, boot_s + till.clock.offset_s):
            self._refuse(waiter)
        if was_fresh:
            self.retry()

    def _refuse(self, waiter: Waiter) -> None:
        tightest = min(waiter.leases, key=lambda lease: lease.free + lease.headroom_nusd)
        route = waiter.wish.route.name
        self._leave(waiter)
        if self._till.unlogged:
            waiter.future.set_exception(log_unavailable(route, self._till.unlogged))
            return
        if not waiter.answers or not self._till.reachable:
            waiter.future.set_exception(unreachable(route, waiter.cheapest_nusd, tightest))
            return
        recoverable = waiter.answer is not None and waiter.answer.recoverable
        model = waiter.offers[-1].tab.rung.name
        now_s = self._till.clock.now_s()
        waiter.future.set_exception(
            exhausted(route, model, waiter.cheapest_nusd, tightest, now_s, recoverable=recoverable or waiter.could_be_freed())
        )

    def _leave(self, waiter: Waiter) -> None:
        self.waiting.pop(waiter, None)
        if waiter.ask_id:
            self._by_ask.pop(waiter.ask_id, None)
        if waiter.fresh:
            waiter.settle_down()
