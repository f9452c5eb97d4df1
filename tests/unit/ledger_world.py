"""Proxies, a network and a plan in a few lines, for the ledger's state machine: they obey the sync protocol and nothing else.

`Proxy` is an honest model of a proxy's till (the real one has its own tests): it reserves what it may, consumes, returns, asks.
`World` keeps the true bill apart from the ledger, request by request, so that the two can be compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from stepdown.budget.account import Binding
from stepdown.model.config import SHARDS, account_id, shard_of
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncAnswer, SyncRequest

FLEET = "shop/default"
HORIZON_S = 600.0
LONGEST_S = 60.0
DAY_S = 86_400
PERIOD_S = 5 * DAY_S
FIRST_S = 20_000 * DAY_S + 22 * 3600
"""Periods begin at 22:00 UTC: each has an edge day on either side."""
ROUTES = ("shop/a", "shop/b", "shop/c")


@dataclass(frozen=True)
class Account:
    name: str
    start_s: int
    end_s: int
    hard: bool


@dataclass(frozen=True)
class Config:
    """What a proxy obeys: by route, the accounts that a request of it is charged to. One number stands for every digest."""

    version: int = 0
    routes: dict[str, tuple[Account, ...]] = field(default_factory=dict)

    def digest(self, shard: int) -> str:
        plain = f"{shard}:" + ";".join(f"{r}={self.routes.get(r, ())}" for r in ROUTES if shard_of(r) == shard)
        return plain.replace(",", " ")  # (a comma stands between digests)

    @property
    def digests(self) -> dict[int, str]:
        return {shard: self.digest(shard) for shard in range(SHARDS)}


@dataclass(eq=False)
class Spent:
    """One request as the upstream's bill has it."""

    instance: str
    route: str
    admitted_s: float
    charged: frozenset[str]
    cost: int = 0
    metered: bool = True
    """Whether a proxy lived to count it."""


@dataclass(eq=False)
class Hold:
    spent: Spent
    amount: int
    config: Config


@dataclass
class Pending:
    ask: Ask
    route: str


class Proxy:
    """One instance."""

    def __init__(self, name: str, bill: list[Spent], *, sparse: bool = False) -> None:
        """`sparse`: it says only what has changed, as the real one does, until the keeper wants to hear everything."""
        self.name, self.bill, self.sparse = name, bill, sparse
        self.everything = True
        self.acked: dict[str, LeaseReport] = {}
        self.config = Config()
        self.config_seq = -1
        self.granted: dict[str, int] = {}
        self.returned: dict[str, int] = {}
        self.consumed: dict[str, int] = {}
        self.estimated: dict[str, int] = {}
        self.want: dict[str, int] = {}
        self.holds: list[Hold] = []
        self.asks: dict[int, Pending] = {}
        self.counters: dict[tuple[str, int], list[int]] = {}
        self.unacknowledged: set[tuple[str, int]] = set()
        self.seq = 0
        self.last_ask = 0
        self.sent: dict[int, tuple[float, dict[tuple[str, int], int], tuple[LeaseReport, ...], bool]] = {}
        self.lease_until_s = 0.0
        self.fenced = False
        self.closed = False

    # Money ------------------------------------------------------------------------------------------------------------

    def reserved(self, account: str) -> int:
        return sum(hold.amount for hold in self.holds if account in hold.spent.charged)

    def free(self, account: str) -> int:
        held = self.granted.get(account, 0) - self.returned.get(account, 0)
        return held - self.consumed.get(account, 0) - self.reserved(account)

    def spoken_for(self, account: str) -> int:
        """What requests that wait for an answer may take: newcomers and returns keep off it."""
        return sum(max(rung.get(account, 0) for rung in pending.ask.rungs) for pending in self.asks.values())

    def charged_now(self, route: str, now_s: float) -> list[Account]:
        return [each for each in self.config.routes.get(route, ()) if each.start_s <= now_s < each.end_s]

    def may_spend(self, now_s: float) -> bool:
        return now_s <= self.lease_until_s

    def admit(self, route: str, amount: int, now_s: float) -> bool:
        """Reserves from its own leases; False: it would have to ask."""
        if not self.config.version:
            return False  # It has no config, and so no routes.
        accounts = self.charged_now(route, now_s)
        hard = [each.name for each in accounts if each.hard]
        if hard and not self.may_spend(now_s):
            return False
        if any(self.free(name) - self.spoken_for(name) < amount for name in hard):
            return False
        self._hold(route, accounts, amount, now_s)
        return True

    def _hold(self, route: str, accounts: Iterable[Account], amount: int, now_s: float) -> None:
        spent = Spent(self.name, route, now_s, frozenset(each.name for each in accounts))
        self.holds.append(Hold(spent, amount, self.config))
        self.bill.append(spent)

    def ask(self, route: str, amounts: list[int], now_s: float) -> None:
        hard = [each.name for each in self.charged_now(route, now_s) if each.hard]
        if hard:
            self.last_ask += 1
            rungs = tuple(dict.fromkeys(hard, amount) for amount in sorted(amounts, reverse=True))
            self.asks[self.last_ask] = Pending(Ask(id=self.last_ask, rungs=rungs), route)

    def settle(self, hold: Hold, cost: int, *, estimated: bool = False) -> None:
        self.holds.remove(hold)
        hold.spent.cost = cost
        for account in hold.spent.charged:
            self.consumed[account] = self.consumed.get(account, 0) + cost
            if estimated:
                self.estimated[account] = self.estimated.get(account, 0) + cost
        key = (hold.spent.route, int(hold.spent.admitted_s // DAY_S))
        count = self.counters.setdefault(key, [0, 0])
        count[0] += 1
        count[1] += cost
        self.unacknowledged.add(key)

    def time_out(self, now_s: float) -> None:
        for hold in [each for each in self.holds if each.spent.admitted_s + LONGEST_S <= now_s]:
            self.settle(hold, hold.amount, estimated=True)

    def crash_and_resume(self) -> None:
        """What was in flight is charged at its reservation; what was asked is forgotten; the log has the rest."""
        for hold in list(self.holds):
            self.settle(hold, hold.amount, estimated=True)
        self.asks.clear()

    def vanish(self) -> None:
        """The log is lost: what was in flight has cost something that no proxy will ever count."""
        for hold in self.holds:
            hold.spent.cost, hold.spent.metered = hold.amount // 2, False
        self.holds.clear()
        self.fenced = True

    # Messages ---------------------------------------------------------------------------------------------------------

    def message(self, now_s: float, *, closing: bool = False) -> SyncRequest:
        self.seq += 1
        accounts = (
            set(self.granted) | set(self.consumed) | {a for hold in self.holds for a in hold.spent.charged} | set(self.want)
        )
        whole = closing or self.everything
        keys = sorted(self.counters if whole else self.unacknowledged)
        leases = tuple(self.report(account) for account in sorted(accounts))
        if self.sparse and not whole:
            asked = {account for pending in self.asks.values() for rung in pending.ask.rungs for account in rung}
            leases = tuple(
                each
                for each in leases
                if each != self.acked.get(each.account) or self.free(each.account) > 0 or each.account in asked
            )
        self.sent[self.seq] = (now_s, {key: self.counters[key][0] for key in keys}, leases, whole)
        under = {}
        for shard in range(SHARDS):
            flying = (hold.config.digest(shard) for hold in self.holds)
            under[shard] = ",".join(dict.fromkeys((self.config.digest(shard), *flying)))
        return SyncRequest(
            instance=self.name,
            fleet=FLEET,
            seq=self.seq,
            longest_s=LONGEST_S,
            digests=self.config.digests,
            acknowledged=under if self.config.version else {},
            leases=leases,
            asks=tuple(pending.ask for pending in self.asks.values()),
            counters=tuple(
                Counter(
                    route=route,
                    model="m",
                    request_class="default",
                    day=day,
                    requests=self.counters[route, day][0],
                    cost_nusd=self.counters[route, day][1],
                )
                for route, day in keys
            ),
            closing=closing,
            whole=whole,
        )

    def report(self, account: str) -> LeaseReport:
        return LeaseReport(
            account=account,
            granted=self.granted.get(account, 0),
            returned=self.returned.get(account, 0),
            consumed=self.consumed.get(account, 0),
            estimated=self.estimated.get(account, 0),
            reserved=self.reserved(account),
            want=self.want.get(account, 0),
        )

    def receive(self, answer: SyncAnswer, config: Config, now_s: float) -> None:
        """Applies an answer, be it late or a copy. A ticket that was granted is spent at once, if it still can be."""
        if answer.verdict == "fenced":
            self.fenced = True
            return
        sent_s, counted, reported, whole = self.sent[answer.seq]
        if answer.whole:
            self.everything = True
        elif whole and answer.verdict == "ok" and answer.seq > self.config_seq:
            self.everything = False
        if answer.verdict == "ok" and answer.seq > self.config_seq:
            self.acked |= {each.account: each for each in reported}
        self.lease_until_s = max(self.lease_until_s, sent_s + HORIZON_S)
        if answer.verdict == "ok":
            self.unacknowledged -= {key for key, requests in counted.items() if self.counters[key][0] == requests}
        if answer.seq > self.config_seq and answer.verdict == "ok":
            self.config, self.config_seq = config, answer.seq
        for grant in answer.leases:
            self.granted[grant.account] = max(self.granted.get(grant.account, 0), grant.granted)
        for each in answer.asks:
            if each.rung >= 0 and (pending := self.asks.get(each.id)) is not None:
                self._take(each.id, pending, each.rung, now_s)
        for grant in answer.leases:
            back = min(grant.recall, self.free(grant.account) - self.spoken_for(grant.account))
            if back > 0:
                self.returned[grant.account] = self.returned.get(grant.account, 0) + back

    def _take(self, id_: int, pending: Pending, rung: int, now_s: float) -> None:
        del self.asks[id_]
        amounts = pending.ask.rungs[rung]
        for account, amount in amounts.items():
            assert self.free(account) >= amount, (
                f"{self.name}: ticket {id_} was granted {amount} of {account}, {self.free(account)} is free"
            )
        accounts = self.charged_now(pending.route, now_s)
        if self.may_spend(now_s) and {each.name for each in accounts if each.hard} == set(amounts):
            self._hold(pending.route, accounts, max(amounts.values()), now_s)


@dataclass
class Budget:
    name: str
    limit: int
    hard: bool
    routes: frozenset[str]


class World:
    """The plan, and the truth."""

    def __init__(self) -> None:
        self.now_s = float(FIRST_S + 3600)
        self.budgets: dict[str, Budget] = {}
        self.config = Config()
        self.bill: list[Spent] = []
        self.ever_bound: dict[str, set[str]] = {}
        self.lowered: set[str] = set()
        """Accounts whose limit was once lowered, or that were not there all the time: their bill may be above the limit."""
        self.soft: set[str] = set()
        """Accounts that once did not limit: what their proxies have not reported is nowhere."""

    def bindings(self) -> list[Binding]:
        period = int((self.now_s - FIRST_S) // PERIOD_S)
        found = []
        for budget in self.budgets.values():
            for index in (period, period + 1):
                start = FIRST_S + index * PERIOD_S
                binding = Binding(budget.name, start, start + PERIOD_S, budget.limit, budget.hard, budget.routes)
                self.ever_bound.setdefault(binding.account, set()).update(budget.routes)
                if not budget.hard:
                    self.soft.add(binding.account)
                found.append(binding)
        return found

    def plan(self) -> list[Binding]:
        bindings = self.bindings()
        routes: dict[str, tuple[Account, ...]] = {}
        for route in ROUTES:
            routes[route] = tuple(Account(b.account, b.start_s, b.end_s, b.hard) for b in bindings if route in b.routes)
        if routes != self.config.routes:
            self.config = Config(self.config.version + 1, routes)
        return bindings

    def account_now(self, budget: str) -> str:
        period = int((self.now_s - FIRST_S) // PERIOD_S)
        return account_id(budget, FIRST_S + period * PERIOD_S)

    def charged(self, account: str) -> int:
        """What requests have cost that were admitted under a config that names the account."""
        return sum(each.cost for each in self.bill if account in each.charged)

    def truth(self, account: str, start_s: int, end_s: int, routes: frozenset[str], lost: set[str]) -> int:
        """What the account's routes have cost in its period, under whatever config; the uncountable aside.

        What a lost instance spent before it knew of the account, and has not reported, the ledger cannot know either.
        """
        return sum(
            each.cost
            for each in self.bill
            if start_s <= each.admitted_s < end_s
            and (account in each.charged or (each.route in routes and each.metered and each.instance not in lost))
        )
