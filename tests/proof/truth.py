"""What really happened, kept apart from the product at every instant: what was promised, what was billed, and what was left.

A promise is one reservation that a proxy made. Until its bill is known it is worth what was reserved, from then on what the
upstream billed; so the sum over an account is the most that its bill can still become. That sum must never pass the ceiling.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepdown.proxy.hold import Hold, Usage
from tests.proof.sums import Sums
from tests.upstream.bill import Price, Tokens, cost_nusd

if TYPE_CHECKING:
    from tests.proof.host import Host


class Violation(Exception):
    """The invariant does not hold."""


@dataclass(eq=False)
class Promise:
    """One reservation."""

    accounts: tuple[str, ...]
    hard: tuple[str, ...]
    instance: str
    amount: int
    admitted_s: float
    model: str
    prices: tuple[int, int, int] | None
    sent: bool = False
    open: bool = True
    """Its proxy has not ended it, and lives."""
    final: bool = False
    """The upstream has nothing more to bill."""
    billed: int = 0
    tokens: Tokens | None = None
    charged: int | None = None
    """What the proxy charged, once it did."""
    estimated: bool = False
    settled_in: str = ""
    """The instance that charged it."""

    @property
    def worth(self) -> int:
        """Without what an upstream took beyond the worst case: that is `excess`."""
        if self.final:
            return min(self.billed, self.amount)
        return self.amount if self.sent or self.open else 0

    @property
    def excess(self) -> int:
        return max(0, self.billed - self.amount)

    @property
    def unseen(self) -> int:
        """The part of the excess that nobody could see: the answer, or whoever would have counted it, was lost."""
        return max(0, self.billed - max(self.amount, self.charged or 0))


@dataclass
class Ceiling:
    """One hard account: what its bill may be at most, edits taken into account."""

    limit: int
    allowed: int


@dataclass(eq=False)
class Waiting:
    """A request that waits for money."""

    hard: tuple[str, ...]
    since_s: float
    most: int = -1
    """The most that lay there through two whole exchanges of everybody with the keeper, one after the other."""

    def aim(self, hard: tuple[str, ...]) -> None:
        """Another config or another period, perhaps: then what lay in the accounts of before is not what it was refused for."""
        if hard != self.hard:
            self.hard, self.most = tuple(dict.fromkeys((*self.hard, *hard))), -1


@dataclass
class Tally:
    """What a schedule comes to."""

    promises: int = 0
    bill_nusd: int = 0
    estimated_nusd: int = 0
    unreconciled_nusd: int = 0
    refusals: int = 0
    for_want_of_a_keeper: int = 0
    excess_nusd: int = 0
    """What an upstream took beyond max_tokens, over all accounts."""
    judged: int = 0
    """Refusals for want of money whose every moment was calm, and which were judged."""
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1


class Truth:
    """Of one schedule. `hosts`: those that run now. `base`: what others than these hold of an account, by the ledger."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.tally = Tally()
        self.violations: list[str] = []
        self.promises: list[Promise] = []
        self._by_hold: dict[int, Promise] = {}
        self._keep: list[Hold] = []
        self.worth: dict[str, int] = {}
        self.ceilings: dict[str, Ceiling] = {}
        self.exceeds = False
        """The upstream does not obey max_tokens."""
        self.excess: dict[str, int] = {}
        """By account: what it took beyond the worst cases."""
        self.put_back = False
        """An older ledger has come back: what was excess before cannot be told apart in it."""
        self.softened: set[str] = set()
        """Accounts that were hard: nothing is claimed of them until they are hard again, everywhere."""
        self.unheard_of: dict[str, int] = {}
        """By account that was soft for a while: what was spent of it then by those that nobody will hear."""
        self.hosts: list[Host] = []
        self.others: dict[str, int] = {}
        """By account: what those hold that do not run, closed ones' spend included, as of the last look at the ledger."""
        self.look: Callable[[], None] = lambda: None
        self.lost: set[str] = set()
        self.calm: Callable[[], bool] = lambda: True
        """Whether nothing is under way that holds money back: no witness that cannot be raised, no disk that is full."""
        self.quiet = False
        """Nobody asks for anything: time has to pass."""
        self._lows: list[dict[str, int]] = [{}, {}, {}]
        """The least that was left of each account: in the round that goes on, the one before, and the one before that."""
        self._round_s = self._earlier_s = 0.0
        self._spoken: set[Host] = set()
        self.waiting: list[Waiting] = []

    def violated(self, what: str) -> Violation:
        """To be raised; and remembered, since a task that it ends may have nobody who listens."""
        self.violations.append(what)
        return Violation(what)

    # Promises -----------------------------------------------------------------------------------------------------------

    def promised(self, host: "Host", hold: Hold) -> None:
        accounts = tuple(lease.account for lease in hold.tab.leases)
        self._check_accounts(hold, accounts)
        hard = tuple(lease.account for lease in hold.tab.hard)
        promise = Promise(
            accounts,
            hard,
            host.till.log.identity.instance,
            hold.amount_nusd,
            hold.admitted_s,
            hold.rung.upstream_id,
            hold.prices,
        )
        self.promises.append(promise)
        self._by_hold[id(hold)] = promise
        self._keep.append(hold)
        self.tally.promises += 1
        self._move(promise, 0)
        for account in hard:
            ceiling = self.ceilings.get(account)
            if ceiling is None:
                continue
            if self.worth[account] > ceiling.allowed:
                raise self.violated(
                    f"over: {account} may come to {self.worth[account]} nUSD, allowed are {ceiling.allowed} (limit "
                    f"{ceiling.limit}), after {promise.amount} were promised by {host.name}"
                )
            self._sink(account)

    def _check_accounts(self, hold: Hold, accounts: tuple[str, ...]) -> None:
        """By the config that the request came under, and the ledger's time."""
        shard_budgets = {budget.name: budget for budget in hold.route.budgets}
        should = tuple(
            account.id
            for name in hold.route.config.budgets
            for account in shard_budgets[name].accounts
            if account.start_s <= hold.admitted_s < account.end_s
        )
        if accounts != should:
            raise self.violated(f"charged to {accounts}, by its config and time it is {should}")

    def _move(self, promise: Promise, was: int) -> None:
        change = promise.worth - was
        if change:
            for account in promise.accounts:
                self.worth[account] = self.worth.get(account, 0) + change

    def sent(self, hold: Hold | None) -> None:
        if hold is None:
            raise self.violated("a request went out under no reservation")
        promise = self._by_hold.get(id(hold))
        if promise is None:
            raise self.violated("a request went out under a reservation that nobody made")
        if promise.sent:
            raise self.violated("two requests went out under one reservation")
        was, promise.sent = promise.worth, True
        self._move(promise, was)

    def billed(self, hold: Hold | None, tokens: Tokens | None, nusd: int) -> None:
        assert hold is not None
        promise = self._by_hold[id(hold)]
        was = promise.worth
        promise.final, promise.billed, promise.tokens = True, nusd, tokens
        self.tally.bill_nusd += nusd
        if nusd > promise.amount and not self.exceeds:
            raise self.violated(f"over: the upstream billed {nusd} nUSD, reserved were {promise.amount}")
        self._move(promise, was)
        for account in promise.accounts if promise.excess else ():
            self.excess[account] = self.excess.get(account, 0) + promise.excess

    def settled(self, host: "Host", hold: Hold, usage: Usage | None, cost: int) -> None:
        promise = self._by_hold[id(hold)]
        if promise.charged is not None:
            return
        was = promise.worth
        promise.open, promise.charged, promise.settled_in = False, cost, host.till.log.identity.instance
        promise.estimated = usage is None
        self._move(promise, was)
        for account in promise.hard:
            if account in self.ceilings:
                self._sink(account)

    def released(self, host: "Host", hold: Hold) -> None:
        promise = self._by_hold[id(hold)]
        if promise.charged is not None:
            return
        was = promise.worth
        promise.open, promise.charged, promise.settled_in = False, 0, host.till.log.identity.instance
        self._move(promise, was)

    def killed(self, holds: Iterable[Hold]) -> list[Promise]:
        """Their proxy is dead: what was not sent never will be."""
        promises = [self._by_hold[id(hold)] for hold in holds]
        for promise in promises:
            was, promise.open = promise.worth, False
            self._move(promise, was)
        return promises

    def gone(self, instance: str, promises: Iterable[Promise]) -> None:
        """Nobody goes on as this instance: what was in flight there was its, and nobody will count it."""
        self.lost.add(instance)
        for promise in promises:
            promise.settled_in = instance

    def statement(self, instance: str) -> dict[str, int]:
        """What the upstream billed for one instance's requests, by account: what an administrator reads off the bill."""
        stated: dict[str, int] = {}
        for each in self.promises:
            if each.settled_in == instance:
                for account in each.accounts:
                    stated[account] = stated.get(account, 0) + each.billed
        return stated

    def bill(self, account: str) -> int:
        return sum(each.billed for each in self.promises if account in each.accounts)

    # Ceilings -----------------------------------------------------------------------------------------------------------

    def bound(self, account: str, limit: int, committed: int) -> None:
        """What an edit pushes over the limit is what was committed when it came into force, and no more."""
        known = self.ceilings.get(account)
        if known is None:
            self.ceilings[account] = Ceiling(limit, max(limit, 0))
        elif known.limit != limit:
            self.ceilings[account] = Ceiling(limit, max(limit, min(known.allowed, committed)))
            if limit < committed:
                self.tally.note("lowered under what is committed")

    def freed(self, account: str) -> None:
        """It is soft now."""
        if self.ceilings.pop(account, None) is not None:
            self.softened.add(account)

    def hardened(self, account: str, limit: int, committed: int) -> None:
        """It is hard again, and everybody who runs knows it."""
        self.softened.discard(account)
        unheard_of = self.unheard_of[account] = max(0, self.worth.get(account, 0) - committed)
        self.ceilings[account] = Ceiling(limit, max(limit, committed) + unheard_of)
        self.tally.note("hard again")

    def committed(self, sums: Mapping[str, Sums], believed: Mapping[str, int], now_s: float) -> None:
        """At a look at the ledger: whatever may have been spent is committed there, and never more than is allowed.

        `believed`: what an older copy thinks to be leased to those who have not said everything since.
        """
        for name, ceiling in self.ceilings.items():
            account = sums.get(name)
            if account is None or account.end_s <= now_s:
                continue
            if self.worth.get(name, 0) > account.committed + self.unheard_of.get(name, 0):
                raise self.violated(
                    f"lost: {name} may come to {self.worth[name]} nUSD, the ledger knows of {account.committed}: {account}"
                )
            allowed = ceiling.allowed + self.beyond(name, account.excess)
            if account.granted - believed.get(name, 0) > allowed:
                raise self.violated(f"over: the ledger has granted {account.granted} nUSD, allowed are {allowed}: {account}")

    def beyond(self, account: str, recorded: int) -> int:
        """By how much the upstream's excess may have pushed it over."""
        return max(recorded, self.excess.get(account, 0)) if self.put_back else recorded

    # Refusals -----------------------------------------------------------------------------------------------------------

    def left(self, account: str) -> int:
        """Limit less settled and reserved, and less what those hold that do not run or cannot be heard."""
        ceiling = self.ceilings[account]
        used = self.others.get(account, 0)
        for host in self.hosts:
            lease = host.till.books.leases.get(account)
            if lease is not None:
                used += lease.consumed + lease.reserved
        return ceiling.limit - used

    def _sink(self, account: str) -> None:
        left = self.left(account)
        low = self._lows[0]
        low[account] = min(left, low.get(account, left))

    def disturbed(self) -> None:
        """Something went wrong: what lies there now is on its way."""
        self.look()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._lows = [{}, {}, {}]
        self._spoken.clear()
        self._round_s = self._earlier_s = self._now_s()
        for each in self.waiting:
            each.since_s, each.most = self._round_s, -1

    def exchanged(self, host: "Host", began_s: float) -> None:
        """One exchange with the keeper is over. When everybody has had one since the round began, another begins."""
        if not self.calm():
            self._begin_anew()
            return
        if began_s >= self._round_s:
            self._spoken.add(host)
        if not all(each in self._spoken for each in self.hosts):
            return
        if self.waiting:  # what the keeper has come to hold for those that it cannot hear is not there for them
            self.look()
        for account in self.ceilings:
            self._sink(account)
        for wait in self.waiting:
            if wait.since_s <= self._earlier_s:
                wait.most = max(wait.most, self._lain(wait.hard, 2))
        self._lows = [{}, *self._lows[:2]]
        self._earlier_s, self._round_s = self._round_s, self._now_s()
        self._spoken.clear()
        for account in self.ceilings:
            self._sink(account)

    def _lain(self, hard: tuple[str, ...], rounds: int) -> int:
        """What lay there all through so many rounds, the one that goes on included; less than nothing: nobody can say."""
        lows = self._lows[:rounds]
        return min((low.get(account, -1) for account in hard for low in lows), default=-1)

    def served(self, wait: Waiting) -> None:
        """Who asked earlier has got what lay there: it was never there for those behind him."""
        for each in self.waiting[self.waiting.index(wait) + 1 :]:
            if not set(each.hard).isdisjoint(wait.hard):
                each.since_s, each.most = self._now_s(), -1

    def refused(self, wait: Waiting, needed: int, what: str) -> None:
        """For want of money: two whole exchanges of everybody had it, in the wait or right before."""
        self.tally.refusals += 1
        if not self.calm():
            return
        self.tally.judged += 1
        most = max(wait.most, self._lain(wait.hard, 3))
        if most >= needed:
            raise self.violated(f"false refusal: {what} needed {needed} nUSD, {most} lay there through two exchanges")

    # The end ------------------------------------------------------------------------------------------------------------

    def check_charges(self, dear: Callable[[Promise], Price]) -> None:
        """Every request that was settled by its usage was charged what it is worth by other arithmetic than the product's."""
        for each in self.promises:
            if each.charged is None or each.estimated:
                continue
            if not each.charged:
                if each.billed:
                    raise self.violated(f"lost: {each.billed} nUSD were billed for what was given back: {each}")
                continue
            if each.tokens is None:
                raise self.violated(f"lost: {each.charged} nUSD were charged for what nobody bills: {each}")
            should = cost_nusd(dear(each), each.tokens)
            if each.charged != should:
                raise self.violated(f"lost: charged were {each.charged} nUSD, it is worth {should}: {each}")
