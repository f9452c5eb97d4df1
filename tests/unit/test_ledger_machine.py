"""The ledger under everything that may happen to it. If this fails, somebody's bill passes its ceiling, or money is lost.

Hypothesis drives the real ledger (a SQLite file) with several proxies and overlapping budgets: messages are lost, repeated and
reordered, proxies crash, vanish and come back after a partition, the keeper restarts, budgets are edited, renamed
and deleted, and months end. The true bill is kept apart, request by request.
"""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from stepdown.model.sync import SyncAnswer, SyncRequest
from tests.unit.ledger_world import DAY_S, FIRST_S, FLEET, HORIZON_S, LONGEST_S, PERIOD_S, ROUTES, Budget, Config, Proxy, World

AMOUNTS = st.integers(1, 400)
ROUTE = st.sampled_from(ROUTES)
PICK = st.integers(0, 1000)
"""Which of those that there are; modulo their number, so that a run shrinks well."""


class LedgerMachine(RuleBasedStateMachine):
    ended_too = True
    """Whether accounts whose period is over are looked at as well."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="ledger-")
        self.path = Path(self._folder.name) / "ledger"
        self.world = World()
        self.ledger = self.open_ledger()
        self.proxies: list[Proxy] = []
        self.gone: list[Proxy] = []
        self.up: list[SyncRequest] = []
        self.down: list[tuple[Proxy, SyncAnswer, Config]] = []
        self.by_name: dict[str, Proxy] = {}
        self.before: dict[str, Balance] = {}

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.ledger.close()
            self._folder.cleanup()

    def open_ledger(self) -> Ledger:
        return Ledger.open(self.path, create=True)

    # The plan ---------------------------------------------------------------------------------------------------------

    def replan(self) -> None:
        self.ledger.bind(self.world.plan(), self.world.now_s)
        self.ledger.publish(FLEET, self.world.config.digests, HORIZON_S)

    @initialize(limits=st.lists(st.integers(100, 3000), min_size=2, max_size=2))
    def begin(self, limits: list[int]) -> None:
        self.world.budgets = {
            "shop/one": Budget("shop/one", limits[0], True, frozenset({"shop/a", "shop/b"})),
            "shop/two": Budget("shop/two", limits[1], True, frozenset({"shop/b", "shop/c"})),
        }
        self.replan()
        for _ in range(3):
            self.new_proxy()
        self.everybody_syncs()

    def new_proxy(self) -> None:
        proxy = Proxy(f"i{len(self.by_name)}", self.world.bill, sparse=True)
        self.by_name[proxy.name] = proxy
        self.proxies.append(proxy)

    @rule(
        what=st.sampled_from(["limit", "limit", "retarget", "retarget", "enforcement", "rename", "create"]),
        pick=PICK,
        limit=st.integers(0, 3000),
        routes=st.frozensets(ROUTE, min_size=1),
        to=st.sampled_from(["shop/one", "shop/two", "shop/three", ""]),
    )
    def edit(self, what: str, pick: int, limit: int, routes: frozenset[str], to: str) -> None:
        if what == "create" or not self.world.budgets:
            self.create(limit, routes)
        elif what == "limit":
            self.edit_limit(pick, limit)
        elif what == "retarget":
            self.retarget(pick, min(routes))
        elif what == "enforcement":
            self.flip_enforcement(pick)
        else:
            self.rename_or_delete(pick, to)

    def edit_limit(self, pick: int, limit: int) -> None:
        budget = list(self.world.budgets.values())[pick % len(self.world.budgets)]
        if limit < budget.limit:
            self.world.lowered |= {each.account for each in self.world.bindings() if each.budget == budget.name}
        budget.limit = limit
        self.replan()

    def retarget(self, pick: int, route: str) -> None:
        budget = list(self.world.budgets.values())[pick % len(self.world.budgets)]
        budget.routes = budget.routes ^ {route}
        self.replan()

    def flip_enforcement(self, pick: int) -> None:
        budget = list(self.world.budgets.values())[pick % len(self.world.budgets)]
        budget.hard = not budget.hard
        self.replan()

    def rename_or_delete(self, pick: int, to: str) -> None:
        """A name that was used before is taken up again: that must not reset it."""
        name = list(self.world.budgets)[pick % len(self.world.budgets)]
        if to in self.world.budgets:
            return
        budget = self.world.budgets.pop(name)
        if to:
            budget.name = to
            self.world.budgets[to] = budget
            self.world.lowered |= {each.account for each in self.world.bindings() if each.budget == to}
        self.replan()

    def create(self, limit: int, routes: frozenset[str]) -> None:
        if "shop/two" not in self.world.budgets:
            self.world.budgets["shop/two"] = Budget("shop/two", limit, True, routes)
            self.world.lowered |= {each.account for each in self.world.bindings() if each.budget == "shop/two"}
            self.replan()

    # Requests ---------------------------------------------------------------------------------------------------------

    def some(self, pick: int) -> Proxy | None:
        return self.proxies[pick % len(self.proxies)] if self.proxies else None

    @rule(
        pick=PICK,
        wanted=st.lists(st.tuples(ROUTE, st.lists(AMOUNTS, min_size=1, max_size=3)), min_size=1, max_size=4),
        at_once=st.booleans(),
    )
    def request(self, pick: int, wanted: list[tuple[str, list[int]]], at_once: bool) -> None:
        """`at_once`: the network does well, and who asks is answered."""
        proxy = self.some(pick)
        for route, amounts in wanted if proxy is not None else ():
            if not proxy.admit(route, max(amounts), self.world.now_s):
                proxy.ask(route, amounts, self.world.now_s)
        if proxy is not None and at_once:
            self.exchange(proxy)

    @rule(pick=PICK, route=ROUTE, more=st.integers(-1, 1))
    def request_all_that_is_left(self, pick: int, route: str, more: int) -> None:
        proxy = self.some(pick)
        if proxy is None:
            return
        now = self.ledger.balances(self.world.now_s)
        left = [
            now[each.name].headroom_nusd + max(0, proxy.free(each.name))
            for each in proxy.charged_now(route, self.world.now_s)
            if each.hard and each.name in now
        ]
        if left and min(left) + more > 0:
            proxy.ask(route, [min(left) + more], self.world.now_s)

    @rule(pick=PICK, percents=st.lists(st.integers(0, 100), min_size=1, max_size=4))
    def settle(self, pick: int, percents: list[int]) -> None:
        proxy = self.some(pick)
        for percent in percents if proxy is not None else ():
            if proxy.holds:
                hold = proxy.holds[percent % len(proxy.holds)]
                proxy.settle(hold, hold.amount * percent // 100)

    @rule(pick=PICK, route=ROUTE, want=st.integers(0, 50))
    def wish(self, pick: int, route: str, want: int) -> None:
        proxy = self.some(pick)
        for account in proxy.charged_now(route, self.world.now_s) if proxy is not None else ():
            proxy.want[account.name] = want

    def give_up_asking(self, pick: int) -> None:
        proxy = self.some(pick)
        if proxy is not None and proxy.asks:
            proxy.asks.pop(min(proxy.asks))

    # The network ------------------------------------------------------------------------------------------------------

    @rule(
        picks=st.lists(PICK, min_size=1, max_size=3),
        how=st.sampled_from(["well", "answer lost", "twice", "twice, in one batch"]),
    )
    def talk(self, picks: list[int], how: str) -> None:
        speakers = list({id(p): p for p in map(self.some, picks) if p is not None and not p.closed}.values())
        batch = [proxy.message(self.world.now_s) for proxy in speakers]
        if how == "twice, in one batch":
            batch += batch
        heard = self.sync(batch)
        if how == "twice":
            heard += self.sync(batch)
        for each in heard if how != "answer lost" else ():
            self.hear(*each)

    @rule(pick=PICK)
    def send(self, pick: int) -> None:
        proxy = self.some(pick)
        if proxy is not None and not proxy.closed:
            self.up.append(proxy.message(self.world.now_s))

    @precondition(lambda self: self.up)
    @rule(first=PICK, count=st.integers(1, 4), keep=st.booleans(), lose=st.booleans())
    def deliver(self, first: int, count: int, keep: bool, lose: bool) -> None:
        """Some of the messages under way arrive, in any order; `keep` leaves copies under way, `lose` loses the answers."""
        start = first % len(self.up)
        batch = self.up[start : start + count]
        if not keep:
            del self.up[start : start + count]
        answers = self.sync(batch)
        if not lose:
            self.down += answers

    @precondition(lambda self: self.down)
    @rule(first=PICK, keep=st.booleans())
    def receive(self, first: int, keep: bool) -> None:
        proxy, answer, config = self.down[first % len(self.down)]
        if not keep:
            del self.down[first % len(self.down)]
        self.hear(proxy, answer, config)

    def drop_everything(self) -> None:
        self.up.clear()
        self.down.clear()

    def sync(self, batch: list[SyncRequest]) -> list[tuple[Proxy, SyncAnswer, Config]]:
        answers = self.ledger.sync(batch, self.world.now_s)
        self.check_grants()
        return [(self.by_name[m.instance], a, self.world.config) for m, a in zip(batch, answers, strict=True)]

    def hear(self, proxy: Proxy, answer: SyncAnswer, config: Config) -> None:
        if proxy in self.proxies:
            proxy.receive(answer, config, self.world.now_s)
            if proxy.fenced:
                self.bury(proxy)

    def exchange(self, proxy: Proxy) -> None:
        """A message and its answer, without mishap."""
        for heard in self.sync([proxy.message(self.world.now_s)]):
            self.hear(*heard)

    @rule()
    def everybody_syncs(self) -> None:
        for proxy in list(self.proxies):
            if not proxy.closed:
                self.exchange(proxy)

    # Time and mishaps -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 1, 5, 5, 20, 70, 400, 700, DAY_S // 2, 3 * DAY_S, 0]), together=st.booleans())
    def time_passes(self, seconds: int, together: bool) -> None:
        if seconds:
            self.wait(seconds, together)
        else:
            self.wait_for_the_months_edge()

    def wait(self, seconds: int, together: bool) -> None:
        """`together`: nobody is partitioned, and so everybody syncs at the end of it."""
        self.world.now_s += seconds
        for proxy in self.proxies:
            proxy.time_out(self.world.now_s)
        self.replan()
        if together:
            self.everybody_syncs()

    def wait_for_the_months_edge(self) -> None:
        ends = FIRST_S + (int((self.world.now_s - FIRST_S) // PERIOD_S) + 1) * PERIOD_S
        for at in (ends - HORIZON_S / 2, ends - 1, ends + 1):
            self.world.now_s = max(self.world.now_s, at)
            for proxy in self.proxies:
                proxy.time_out(self.world.now_s)
            self.replan()
            self.everybody_syncs()

    @rule(pick=PICK, route=ROUTE, amount=AMOUNTS)
    def partition(self, pick: int, route: str, amount: int) -> None:
        """A proxy spends its lease where nobody hears of it, and is given up; the others want all that there is."""
        proxy = self.some(pick)
        if proxy is None or proxy.closed:
            return
        proxy.ask(route, [amount], self.world.now_s)
        self.exchange(proxy)
        for hold in list(proxy.holds):
            proxy.settle(hold, hold.amount)
        if proxy in self.proxies:
            self.proxies.remove(proxy)
            for seconds in (HORIZON_S / 2, HORIZON_S / 2 + 1, LONGEST_S):
                self.wait(int(seconds), together=True)
            self.the_bill_is_under_the_ceiling()
            self.request_all_that_is_left(pick, route, 0)
            self.everybody_syncs()
            self.proxies.append(proxy)

    @rule(
        what=st.sampled_from(["crash", "vanish", "close", "settle", "keeper restarts", "network", "client gone", "new", "new"]),
        pick=PICK,
    )
    def mishap(self, what: str, pick: int) -> None:
        if what == "new":
            if len(self.proxies) < 4:
                self.new_proxy()
                self.exchange(self.proxies[-1])
        elif what == "keeper restarts":
            self.keeper_restarts()
        elif what == "network":
            self.drop_everything()
        else:
            {
                "crash": self.crash,
                "vanish": self.vanish,
                "close": self.close,
                "settle": self.settle_lost,
                "client gone": self.give_up_asking,
            }[what](pick)

    def crash(self, pick: int) -> None:
        proxy = self.some(pick)
        if proxy is not None:
            proxy.crash_and_resume()

    def vanish(self, pick: int) -> None:
        proxy = self.some(pick)
        if proxy is not None:
            proxy.vanish()
            self.bury(proxy)

    def bury(self, proxy: Proxy) -> None:
        """It serves no more. What it had in flight has cost something; what it had not reported nobody will count."""
        if proxy.holds:
            proxy.vanish()
        self.proxies.remove(proxy)
        self.gone.append(proxy)

    def close(self, pick: int) -> None:
        proxy = self.some(pick)
        if proxy is not None and not proxy.holds and not proxy.closed:
            proxy.asks.clear()
            proxy.closed = True
            self.sync([proxy.message(self.world.now_s, closing=True)])
            self.proxies.remove(proxy)

    def settle_lost(self, pick: int) -> None:
        """An administrator reads the upstream's statement. The proxy may live on behind a partition, and come back."""
        lost = [each for each in self.ledger.instances() if each.state == "lost"]
        if lost:
            self.settle_one(lost[pick % len(lost)].name)

    def settle_one(self, name: str) -> None:
        view = next(each for each in self.ledger.instances() if each.name == name)
        true = {
            lease.account: sum(each.cost for each in self.world.bill if each.instance == name and lease.account in each.charged)
            for lease in view.leases
        }
        for spent in self.world.bill:
            spent.metered &= spent.instance != name or (spent.route, int(spent.admitted_s // DAY_S)) in self.counted(name)
        self.ledger.settle_instance(name, true, self.world.now_s)

    def counted(self, name: str) -> set[tuple[str, int]]:
        """What of an instance's traffic the ledger has heard in full."""
        proxy = self.by_name[name]
        return set(proxy.counters) - proxy.unacknowledged

    def keeper_restarts(self) -> None:
        self.ledger.close()
        self.ledger = self.open_ledger()
        self.replan()

    # What must hold ---------------------------------------------------------------------------------------------------

    def check_grants(self) -> None:
        """No transaction takes an account above its limit, but by what had been spent before the account was there."""
        now = self.ledger.balances(self.world.now_s, ended=self.ended_too)
        for name, balance in now.items():
            was = self.before.get(name)
            if name in self.world.soft:
                continue
            floor = (was.committed_nusd + balance.opening_nusd - was.opening_nusd) if was is not None else 0
            assert balance.committed_nusd <= max(balance.limit_nusd, floor), f"{name}: {was} -> {balance}"
        self.before = now

    @invariant()
    def sums_agree(self) -> None:
        assert self.ledger.verify() == []

    @invariant()
    def the_bill_is_under_the_ceiling(self) -> None:
        self.before = self.ledger.balances(self.world.now_s, ended=True)
        bound = {each.account: each for each in self.world.bindings()}
        lost = {each.name for each in self.ledger.instances() if each.state == "lost"}
        for name, balance in self.before.items():
            routes = bound[name].routes if name in bound else frozenset[str]()
            if balance.enforced and name not in self.world.soft:
                true = self.world.truth(name, balance.start_s, balance.end_s, routes, lost)
                assert true <= balance.committed_nusd, f"{name}: {true} was spent, {balance}"
            if name not in self.world.lowered | self.world.soft and not balance.opening_nusd and balance.enforced:
                assert self.world.charged(name) <= balance.limit_nusd, f"{name}: passed its ceiling: {balance}"

    def drain(self) -> None:
        """Everybody settles, reports and closes, but one that is lost. Then every nano-dollar is where the bill says."""
        self.vanish(0)
        for proxy in list(self.proxies):
            for hold in list(proxy.holds):
                proxy.settle(hold, hold.amount // 3)
            proxy.asks.clear()
            self.exchange(proxy)
            if proxy in self.proxies:
                self.sync([proxy.message(self.world.now_s, closing=True)])
                self.proxies.remove(proxy)
        self.world.now_s += HORIZON_S + LONGEST_S + 1
        self.ledger.sync([], self.world.now_s)
        for view in self.ledger.instances():
            self.settle_one(view.name)
        assert self.ledger.verify() == []
        for name, balance in self.ledger.balances(self.world.now_s, ended=True).items():
            if name in self.world.soft:  # What a lost proxy spent without a lease nobody holds.
                assert balance.settled_nusd <= self.world.charged(name), f"{name}: {balance}"
            else:
                assert balance.settled_nusd == self.world.charged(name), f"{name}: {balance}"
            assert balance.committed_nusd == balance.spent_nusd
            spent_there = [
                each.cost
                for each in self.world.bill
                if each.route in self.world.ever_bound[name]
                and balance.start_s // DAY_S <= each.admitted_s // DAY_S <= (balance.end_s - 1) // DAY_S
            ]
            assert not balance.opening_nusd or balance.spent_nusd <= sum(spent_there), f"{name} is charged twice: {balance}"


LedgerMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],  # Shrinking takes minutes: a failure says its seed, add it when you debug.
)
TestLedger = LedgerMachine.TestCase
