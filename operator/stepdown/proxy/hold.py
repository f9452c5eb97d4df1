"""One attempt's reservation, and what a request may be offered: the words between the till, those who wait and `exchange`."""

from typing import NamedTuple

from stepdown.model.config import Reason, RequestClass, Tier
from stepdown.proxy.books import Line, Reservation
from stepdown.proxy.counters import Count
from stepdown.proxy.fit import DRAIN_S
from stepdown.proxy.lease import Lease
from stepdown.proxy.table import Prices, RouteEntry, RungEntry


class Usage(NamedTuple):
    """What the upstream says that an attempt took; the three are disjoint, reasoning is part of output."""

    uncached_input: int
    cached_input: int
    output: int


class Tab(Line):
    """Where one route's requests of one class on one rung are charged, for as long as day and periods last."""

    __slots__ = ("from_s", "premium", "request_class", "route", "rung", "share", "until_s")

    def __init__(
        self,
        count: Count,
        leases: tuple[Lease, ...],
        route: RouteEntry,
        request_class: RequestClass,
        rung: RungEntry,
        from_s: float,
        until_s: float,
    ) -> None:
        super().__init__(count, leases)
        self.route = route
        self.request_class = request_class
        self.rung = rung
        self.from_s = from_s
        """Before, too: the ledger's time is heard anew each second, and may be a little earlier than it was taken to be."""
        self.until_s = until_s
        """Exclusive: from then on another day's counter, or another period's account, is charged."""
        self.share = route.share
        self.premium = self.share is not None and request_class == "critical" and rung is route.ladders["critical"].rungs[0]

    def is_stale(self, now_s: float) -> bool:
        return not self.from_s <= now_s < self.until_s or self.route.home.retired


class Hold(Reservation):
    """One attempt's reservation: what it is charged to, and what it is sent with."""

    __slots__ = ("admitted_s", "cost_nusd", "margin_nusd", "max_tokens", "open", "prices", "reason", "tab")

    def __init__(
        self,
        id_: int,
        tab: Tab,
        amount_nusd: int,
        max_tokens: int | None,
        reason: Reason,
        prices: Prices | None,
        admitted_s: float,
    ) -> None:
        self.id = id_
        self.line = self.tab = tab
        self.amount_nusd = amount_nusd
        self.max_tokens = max_tokens
        """To send; None: send no bound."""
        self.reason = reason
        self.prices = prices
        """Pinned at admission; None: Unpriced."""
        self.admitted_s = admitted_s
        self.margin_nusd = tab.rung.overrun_nusd
        """The part of `amount_nusd` that is there because of earlier overruns."""
        self.open = True
        self.cost_nusd = 0
        """Once it has ended."""

    @property
    def route(self) -> RouteEntry:
        return self.tab.route

    @property
    def request_class(self) -> RequestClass:
        return self.tab.request_class

    @property
    def rung(self) -> RungEntry:
        return self.tab.rung

    @property
    def tier(self) -> Tier:
        return self.tab.rung.tier

    @property
    def day(self) -> int:
        return self.tab.count.day

    @property
    def until_s(self) -> float:
        """The latest that it can end, by the ledger's time."""
        return self.admitted_s + self.tab.route.timeout_s + DRAIN_S


class Offer(NamedTuple):
    """A rung that would serve a request, and what it would have to reserve."""

    tab: Tab
    amount_nusd: int
    max_tokens: int | None
    reason: Reason
