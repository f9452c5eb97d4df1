"""A till that remembers what was left at every moment: the spending tests ask it whether each refusal was right.

Money that comes back is for a moment on its way: to the ledger, or to somebody who asked earlier, first come, first served. So
what counts as left to a request is what lay there during two whole exchanges with the ledger, one after the other: somebody who
waits is told within one, and could have had it.

It only listens: every decision is the product's. What is left is ``limit - settled - reserved``, summed here from the holds
that went out and what they ended at, not read from the product's own sums.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy.hold import Hold, Offer, Usage
from stepdown.proxy.refusal import Refused
from stepdown.proxy.till import Till

if TYPE_CHECKING:
    from stepdown.model.config import Reason, RequestClass
    from stepdown.proxy.shape import RequestShape
    from stepdown.proxy.table import RouteEntry, RungEntry


@dataclass
class Wait:
    """What was left, at the least, in the exchange with the ledger that goes on, and in the one before."""

    now: int = 0
    before: int = 0
    most: int = 0

    def exchange(self, left_nusd: int) -> None:
        """One is over, another begins."""
        self.most = max(self.most, min(self.now, self.before))
        self.before, self.now = self.now, left_nusd


@dataclass(frozen=True)
class Refusal:
    """One request that was refused for want of money, in nUSD."""

    needed: int
    """The worst case of its cheapest rung."""
    most_left: int
    """The most that was left at any moment of its wait, and when it ended by the refusal's own word."""


class WitnessTill(Till):
    """Watches one hard account with this limit."""

    __slots__ = ("_holds", "_looking", "_waits", "least_left", "limit", "refused", "reserved", "settled")

    def watch(self, limit_nusd: int, settled_nusd: int = 0) -> None:
        """To be called before the first request."""
        self.limit = limit_nusd
        self.settled = settled_nusd
        self.least_left = limit_nusd - settled_nusd
        self.reserved = 0
        self.refused: list[Refusal] = []
        self._holds: set[int] = set()
        self._looking = False
        self._waits: dict[int, Wait] = {}

    def watched(self, sync: Callable[[SyncRequest], Awaitable[SyncAnswer]]) -> Callable[[SyncRequest], Awaitable[SyncAnswer]]:
        """The same exchange, noticed."""

        async def watched(request: SyncRequest) -> SyncAnswer:
            for wait in self._waits.values():
                wait.exchange(self.left)
            return await sync(request)

        return watched

    @property
    def left(self) -> int:
        return self.limit - self.settled - self.reserved

    def admit(
        self,
        route: "RouteEntry",
        request_class: "RequestClass",
        shape: "RequestShape",
        *,
        rungs: "Sequence[RungEntry] | None" = None,
        reason: "Reason | None" = None,
    ) -> Hold | None:
        hold = super().admit(route, request_class, shape, rungs=rungs, reason=reason)
        if hold is not None:
            self._out(hold)
        return hold

    async def admit_later(
        self,
        route: "RouteEntry",
        request_class: "RequestClass",
        shape: "RequestShape",
        *,
        rungs: "Sequence[RungEntry] | None" = None,
        reason: "Reason | None" = None,
    ) -> Hold:
        key = id(shape)
        wait = self._waits[key] = Wait()
        try:
            return await super().admit_later(route, request_class, shape, rungs=rungs, reason=reason)
        except Refused as refused:
            if refused.code == "budget_exhausted":
                assert refused.needed_nusd is not None and refused.remaining_nusd is not None
                self.refused.append(Refusal(refused.needed_nusd, max(wait.most, refused.remaining_nusd)))
            raise
        finally:
            del self._waits[key]

    def take(self, offer: Offer, boot_s: float, now_s: float) -> Hold | None:
        hold = super().take(offer, boot_s, now_s)
        if hold is not None:
            self._out(hold)
        return hold

    def settle(self, hold: Hold, usage: Usage | None, *, success: bool) -> int:
        cost_nusd = super().settle(hold, usage, success=success)
        self._back(hold, cost_nusd)
        return cost_nusd

    def release(self, hold: Hold, *, attempted: bool) -> None:
        super().release(hold, attempted=attempted)
        self._back(hold, 0)

    def _out(self, hold: Hold) -> None:
        if hold.id not in self._holds:
            self._holds.add(hold.id)
            self.reserved += hold.amount_nusd
            self._changed()

    def _back(self, hold: Hold, cost_nusd: int) -> None:
        if hold.id in self._holds:
            self._holds.remove(hold.id)
            self.reserved -= hold.amount_nusd
            self.settled += cost_nusd
            self._changed()

    def _changed(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """At the end of a turn: what is left now was left to everybody who waits."""
        self._looking = False
        self.least_left = min(self.least_left, self.left)
        for wait in self._waits.values():
            wait.now = min(wait.now, self.left)
