"""The money of one proxy process: every request passes `admit` before it is forwarded, `settle` or `release` when it has ended.

The order for a request: this proxy's own lease at the wanted rung in force (`admit`, synchronous, a few microseconds); else it
asks the ledger's keeper with a ticket and gets the best rung that can be granted (`admit_later`, `waiting`). Nothing is ever
forwarded whose worst case is not reserved in every Hard budget of its route, and in the log. `exchange` calls this; the syncer
brings money and config.
"""

from collections.abc import Callable, Sequence
from struct import error as StructError
from typing import Final

from stepdown.model.config import Reason, RequestClass
from stepdown.proxy.books import ESTIMATED, SUCCESS, UNPRICED
from stepdown.proxy.clock import Clock
from stepdown.proxy.fit import DRAIN_S, Fit, candidates, output_tokens, worst_case_nusd
from stepdown.proxy.hold import Hold, Offer, Tab, Usage
from stepdown.proxy.identity import StateDir
from stepdown.proxy.lease import Lease
from stepdown.proxy.refusal import Refused, log_unavailable, no_account, route_gone, unbounded
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.share import PremiumShare
from stepdown.proxy.table import RouteEntry, RungEntry, Table
from stepdown.proxy.waiting import Queue, Wish
from stepdown.proxy.wal import LogUnavailable

__all__ = ["Hold", "Refused", "Till", "Usage"]

_DAY_S: Final = 86_400
_MOST_NUSD: Final = 10**15
"""A million USD. A worst case above it is no bound, a stated usage above it is rubbish; and sums stay far below 64 bits."""
_MOST_TOKENS: Final = 1 << 40


class Till:
    """One process's money. One event loop owns it; nothing here blocks."""

    __slots__ = (
        "_expect_at_s",
        "_shares",
        "_tabs",
        "books",
        "clock",
        "deadline_s",
        "excess_nusd",
        "kick",
        "log",
        "overruns",
        "queue",
        "reachable",
        "refusals",
        "sharers",
        "state",
        "table",
        "unlogged",
    )

    def __init__(self, state: StateDir, clock: Clock, table: Table | None = None) -> None:
        self.state = state
        self.books = state.books
        self.log = state.log
        self.clock = clock
        self.table = table
        """None until the first sync or a stored config."""
        self.deadline_s = 0.0
        """When the leases die, in seconds since boot: one horizon after the sending of the last acknowledged sync."""
        self.reachable = False
        """Whether the last sync was answered."""
        self.sharers = 1
        """Proxies of the fleet that the keeper hears, this one included: what is rationed to the fleet is divided by it."""
        self.unlogged = ""
        """Why a grant could not be written down, and so not used: nothing more is asked for until it is. Empty: it was."""
        self.kick: Callable[[], None] = _nobody
        """Asks the syncer to send a message at once."""
        self.excess_nusd = 0
        """What requests cost beyond their reservation: an upstream that did not honour its bound."""
        self.overruns: dict[str, int] = {}
        """By model: the largest overrun seen here that the config does not know of yet."""
        self.refusals: dict[str, int] = {}
        self._expect_at_s = 0.0
        """A horizon before this moment there is a next period to look out for: the nearest start, then once a second."""
        self._tabs: dict[tuple[RouteEntry, RequestClass, RungEntry], Tab] = {}
        self._shares: dict[str, PremiumShare] = {}
        self.queue = Queue(self)
        if table is not None:
            self.swap(table)

    @property
    def wait_s(self) -> float:
        return self.table.fleet.wait_s if self.table is not None else 0.0

    def admit(
        self,
        route: RouteEntry,
        request_class: RequestClass,
        shape: RequestShape,
        *,
        rungs: Sequence[RungEntry] | None = None,
        reason: Reason | None = None,
    ) -> Hold | None:
        """The wanted rung in force if this proxy's own leases hold its worst case, reserved and logged; None: `admit_later`
        must ask.

        `rungs`: instead of the ladder (an outage's fallbacks), with the reason to state. Raises Refused.
        """
        clock = self.clock
        boot_s = clock.boot_s()
        now_s = boot_s + clock.offset_s
        try:
            if rungs is None:
                ladder = route.ladders[request_class]
                tab = self._tabs.get((route, request_class, ladder.rungs[0]))
                # The usual case, without a list: nothing hidden, no share to watch, today's tab known.
                if (
                    tab is not None
                    and tab.from_s <= now_s < tab.until_s
                    and not (ladder.in_force or tab.premium or route.home.retired)
                ):
                    worst = worst_case_nusd(tab.rung, shape, route.max_tokens, now_s, now_s + route.timeout_s + DRAIN_S)
                    if worst is not None:
                        amount_nusd, max_tokens = worst
                        for lease in tab.hard:
                            if lease.free < amount_nusd or lease.asking or boot_s > self.deadline_s:
                                return None
                        return self._hold(tab, amount_nusd, max_tokens, "Wanted", now_s)
            offer = self.offers(Wish(route, request_class, shape, rungs, reason), now_s)[0]
            return None if any(lease.asking for lease in offer.tab.hard) else self.take(offer, boot_s, now_s)
        except Refused as refused:
            self._count(refused)
            raise

    async def admit_later(
        self,
        route: RouteEntry,
        request_class: RequestClass,
        shape: RequestShape,
        *,
        rungs: Sequence[RungEntry] | None = None,
        reason: Reason | None = None,
    ) -> Hold:
        """As `admit`, but asks the keeper and waits, bounded, where the own lease does not do. Raises Refused."""
        wish = Wish(route, request_class, shape, rungs, reason)
        try:
            boot_s = self.clock.boot_s()
            now_s = boot_s + self.clock.offset_s
            offers = self.offers(wish, now_s)
            if not any(lease.asking for lease in offers[0].tab.hard):
                hold = self.take(offers[0], boot_s, now_s)
                if hold is not None:
                    return hold
            return await self.queue.wait(wish, offers)
        except Refused as refused:
            self._count(refused)
            raise

    def settle(self, hold: Hold, usage: Usage | None, *, success: bool) -> int:
        """Ends a hold by its usage, or by its reservation (`estimated`) where there is none. Returns the cost in nUSD.

        The settlement is in the log when this returns. A cost above the reservation is charged in full. Ending twice does
        nothing.
        """
        if not hold.open:
            return hold.cost_nusd
        flags = SUCCESS if success else 0
        prices = hold.prices
        if prices is None:
            flags |= UNPRICED
        if usage is None:
            flags |= ESTIMATED
            cost_nusd = hold.amount_nusd
            uncached = cached = output = 0
        else:
            uncached, cached, output = usage
            cost_nusd = 0
            if prices is not None:
                cost_nusd = -(-(uncached * prices[0] + cached * prices[1] + output * prices[2]) // 1000)
            if cost_nusd > _MOST_NUSD or uncached + cached + output > _MOST_TOKENS:
                return self.settle(hold, None, success=success)
        try:
            self.log.settle(hold.id, cost_nusd, uncached, cached, output, flags)
        except StructError:  # below zero: the upstream answers rubbish, and the reservation stands
            return self.settle(hold, None, success=success)
        hold.open = False
        hold.cost_nusd = cost_nusd
        self.books.settle(hold, cost_nusd, uncached, cached, output, flags)
        if cost_nusd > hold.amount_nusd and hold.tab.leases:
            self._exceeded(hold, cost_nusd)
        tab = hold.tab
        if tab.share is not None and not tab.premium:
            self._share(tab.route.name).earn(tab.share)
        if self.queue.waiting:
            self.queue.retry(tab.hard)
        return cost_nusd

    def release(self, hold: Hold, *, attempted: bool) -> None:
        """Ends a hold at no cost: no connection, or a complete 4xx or 5xx head. `attempted`: it counts as a request."""
        if not hold.open:
            return
        self.log.release(hold.id, attempted=attempted)
        hold.open = False
        self.books.release(hold, attempted=attempted)
        tab = hold.tab
        if tab.premium and tab.share is not None:
            self._share(tab.route.name).refund(tab.share)
        if self.queue.waiting:
            self.queue.retry(tab.hard)

    def offers(self, wish: Wish, now_s: float) -> list[Offer]:
        """The rungs that may serve a request, best first, each strictly cheaper than those before it. Raises Refused."""
        route, request_class, shape, rungs, reason = wish
        if route.home.retired:
            route, rungs = self._current(route, rungs)
        ladder = route.ladders[request_class]
        first: Reason = "StepInForce" if ladder.in_force else "Wanted"
        share = route.share if rungs is None and request_class == "critical" else None
        if share is not None and not self._share(route.name).has(share):
            ladder = route.ladders["default"]
            first = "PremiumShare"
        visible = ladder.visible if rungs is None else tuple(rungs)
        until_s = now_s + route.timeout_s + DRAIN_S + self.wait_s
        fits = [
            fit
            for fit in candidates(visible, ladder.hidden, shape, route.max_tokens, now_s, until_s)
            if fit.amount_nusd <= _MOST_NUSD
        ]
        if not route.hard:
            worst = worst_case_nusd(visible[0], shape, route.max_tokens, now_s, until_s)
            if worst is None or worst[0] > _MOST_NUSD:  # no bound is no reason to serve another rung than the wanted one
                fits = [Fit(visible[0], worst[0] if worst else 0, output_tokens(visible[0], shape, route.max_tokens))]
            fits = fits[:1]
        elif not fits:
            raise unbounded(route.name, ", ".join(rung.name for rung in visible))
        offers: list[Offer] = []
        for fit in fits:
            tab = self._tab(route, request_class, fit.rung, now_s)
            why: Reason = reason or (first if not offers and (fit.rung is visible[0] or ladder.in_force) else "BudgetFit")
            offers.append(Offer(tab, fit.amount_nusd, fit.max_tokens, why))
        return offers

    def take(self, offer: Offer, boot_s: float, now_s: float) -> Hold | None:
        """Reserves an offer if this proxy's own leases hold it. Raises Refused when it cannot be logged."""
        tab = offer.tab
        for lease in tab.hard:
            if lease.free < offer.amount_nusd or boot_s > self.deadline_s:
                return None
        if tab.premium and tab.share is not None and not self._share(tab.route.name).has(tab.share):
            return None
        return self._hold(tab, offer.amount_nusd, offer.max_tokens, offer.reason, now_s)

    def swap(self, table: Table) -> None:
        """Another config is in force; those who wait are judged by it."""
        self.table = table
        self.overruns = {model: nusd for model, nusd in self.overruns.items() if table.expect(model, nusd)}
        self._tabs.clear()
        now_s = self.clock.now_s()
        starts_s = [
            account.start_s for shard in table.shards.values() for budget in shard.budgets for account in budget.accounts
        ]
        self._expect_at_s = float(min((start_s for start_s in starts_s if start_s > now_s), default=float("inf")))
        for shard in table.shards.values():
            for budget in shard.budgets:
                for account in budget.accounts:
                    lease = self.books.leases.get(account.id)
                    if lease is not None:
                        lease.describe(account, budget.hard)
        self.queue.retry()

    def expect_next_period(self, now_s: float, horizon_s: float) -> None:
        """Within a horizon of a period's end, wants a lease in the next one: the keeper may be away when it begins."""
        if self.table is None or now_s + horizon_s < self._expect_at_s:
            return
        self._expect_at_s = now_s + horizon_s + 1
        for shard in self.table.shards.values():
            for budget in shard.budgets:
                account = budget.account_at(now_s + horizon_s) if budget.hard else None
                if account is None or account.start_s <= now_s:
                    continue
                present = budget.account_at(now_s)
                lease = self.books.leases.get(present.id) if present is not None else None
                if lease is not None and lease.rate_nusd_s > 0:
                    heir = self.books.lease(account.id)
                    heir.describe(account, budget.hard)
                    heir.expected_nusd_s = lease.rate_nusd_s

    def renew(self) -> None:
        """The keeper has fenced this instance: another id, another log (`StateDir.renew`). Raises LogUnavailable."""
        self.books = self.state.renew()
        self.log = self.state.log
        self.deadline_s = 0.0
        self.unlogged = ""
        self._tabs.clear()
        self.queue.renew()

    def holds(self) -> list[Hold]:
        """The attempts in flight, oldest first."""
        return [hold for hold in self.books.open.values() if isinstance(hold, Hold)]

    def credit(self, route: str) -> int:
        """The premium credit of a route, for tests and people."""
        return self._share(route).credit

    def _hold(self, tab: Tab, amount_nusd: int, max_tokens: int | None, reason: Reason, now_s: float) -> Hold:
        books = self.books
        rung = tab.rung
        if amount_nusd > _MOST_NUSD:
            if tab.hard:
                raise unbounded(tab.route.name, rung.name)
            amount_nusd = _MOST_NUSD
        prices = rung.flat or rung.prices_at(now_s, now_s + tab.route.timeout_s + DRAIN_S)
        hold = Hold(books.next_hold, tab, amount_nusd, max_tokens, reason, prices, now_s)
        try:
            self.log.reserve(hold.id, tab, amount_nusd)
        except LogUnavailable as error:
            raise log_unavailable(tab.route.name, error) from error
        books.reserve(hold)
        if tab.premium and tab.share is not None:
            self._share(tab.route.name).spend(tab.share)
        return hold

    def _exceeded(self, hold: Hold, cost_nusd: int) -> None:
        """What the upstream has done once it may do again, here and now: later requests for the model reserve that much more.

        The keeper hears of it with the counters, and tells everybody.
        """
        self.excess_nusd += cost_nusd - hold.amount_nusd
        tab = hold.tab
        if not tab.hard:
            return
        overrun_nusd = cost_nusd - hold.amount_nusd + hold.margin_nusd
        tab.count.overrun_nusd = max(overrun_nusd, tab.count.overrun_nusd)
        if overrun_nusd > self.overruns.get(tab.rung.name, 0):
            self.overruns[tab.rung.name] = overrun_nusd
            if self.table is not None:
                self.table.expect(tab.rung.name, overrun_nusd)
            self.kick()

    def _tab(self, route: RouteEntry, request_class: RequestClass, rung: RungEntry, now_s: float) -> Tab:
        key = (route, request_class, rung)
        tab = self._tabs.get(key)
        if tab is not None and tab.from_s <= now_s < tab.until_s:
            return tab
        day = int(now_s) // _DAY_S
        from_s, until_s = float(day * _DAY_S), float((day + 1) * _DAY_S)
        leases: list[Lease] = []
        for budget in route.budgets:
            account = budget.account_at(now_s)
            if account is None:
                if budget.hard:
                    raise no_account(route.name, budget.name)
                until_s = min(until_s, now_s + 1)
                continue
            from_s, until_s = max(from_s, account.start_s), min(until_s, account.end_s)
            lease = self.books.lease(account.id)
            lease.describe(account, budget.hard)
            leases.append(lease)
        count = self.books.counters.get((route.name, rung.name, request_class, day))
        tab = self._tabs[key] = Tab(count, tuple(leases), route, request_class, rung, from_s, until_s)
        return tab

    def _current(self, route: RouteEntry, rungs: Sequence[RungEntry] | None) -> tuple[RouteEntry, Sequence[RungEntry] | None]:
        """The same route in the config in force: what the operator has been told to be in force must hold for every
        admission."""
        current = self.table.route(route.name) if self.table is not None else None
        if current is None:
            raise route_gone(route.name)
        if rungs is None:
            return current, None
        known = [rung for rung in (current.rung(old.name) for old in rungs) if rung is not None]
        if not known:
            raise route_gone(route.name)
        return current, known

    def _share(self, route: str) -> PremiumShare:
        share = self._shares.get(route)
        if share is None:
            share = self._shares[route] = PremiumShare()
        return share

    def _count(self, refused: Refused) -> None:
        self.refusals[refused.code] = self.refusals.get(refused.code, 0) + 1


def _nobody() -> None:
    """Before a syncer has been started there is nobody to ask."""
