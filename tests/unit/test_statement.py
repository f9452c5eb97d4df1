"""What is booked on whom. If one of these fails, a finance department pays a sum that no budget knows."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepdown.budget.account import Balance, Binding
from stepdown.budget.statement import BY, AccountBooks, MonthBooks, Statement, make_statement, outermost
from stepdown.ledger import Ledger
from stepdown.model.config import account_id
from stepdown.model.sync import Counter, LeaseReport, SyncRequest

DAY_S = 86_400
FIRST = 20_758
"""2026-11-01."""
START_S, END_S = FIRST * DAY_S, (FIRST + 30) * DAY_S
LAST = FIRST + 29
MONTH = "2026-11"
BERLIN_S = START_S - 3600


def counter(route: str, nusd: int, *, estimated: int = 0, day: int = FIRST + 12, model: str = "m") -> Counter:
    return Counter(
        route=route,
        model=model,
        request_class="default",
        day=day,
        requests=1,
        cost_nusd=nusd,
        estimated_nusd=estimated,
    )


def account(budget: str, *routes: str, start_s: int = START_S, **numbers: int) -> AccountBooks:
    balance = Balance(account_id(budget, start_s), budget, start_s, start_s + END_S - START_S, 10**12, **numbers)
    return AccountBooks(balance, frozenset(routes))


def lines(made: Statement) -> list[tuple[str, ...]]:
    return [(each.kind, *each.keys, each.order, str(each.nusd)) for each in made.lines]


def test_what_was_estimated_and_what_is_held_are_lines_of_their_own() -> None:
    """Whoever pays must see which part of the sum may still come down."""
    books = MonthBooks(
        (counter("shop/chat", 900, estimated=200), counter("shop/chat", 50, day=FIRST)),
        {"shop/chat": ((FIRST, "4711"),)},
        (account("shop/team", "shop/chat", settled_nusd=960, unmetered_nusd=10, unreconciled_nusd=40),),
    )
    made = make_statement(books, MONTH, ("route",))
    assert lines(made) == [
        ("metered", "shop/chat", "4711", "750"),
        ("estimated", "shop/chat", "4711", "200"),
        ("unmetered", "", "4711", "10"),
        ("unreconciled", "", "4711", "40"),
    ]
    assert made.total_nusd == 1000
    assert [(each.total_nusd, each.elsewhere_nusd) for each in made.accounts] == [(1000, 0)]


def test_a_purchase_order_is_that_of_the_day() -> None:
    """A project that ended on the tenth must not be billed for what came after; nor lose what was before it had a label."""
    books = MonthBooks(
        tuple(counter("shop/chat", day - FIRST + 1, day=day) for day in (FIRST, FIRST + 5, FIRST + 9, FIRST + 20)),
        {"shop/chat": ((FIRST + 5, "4711"), (FIRST + 9, "4712"), (FIRST + 20, ""))},
    )
    assert lines(make_statement(books, MONTH, ("namespace",))) == [
        ("metered", "shop", "", "21"),
        ("metered", "shop", "4711", "7"),
        ("metered", "shop", "4712", "10"),
    ]


def test_what_several_budgets_hold_is_counted_once() -> None:
    """The whole cluster's budget holds every request a second time: twice the sum would be billed."""
    accounts = (
        account("stepdown-system/all", "shop/a", "shop/b", settled_nusd=30, unreconciled_nusd=9),
        account("shop/team", "shop/a", settled_nusd=10, unreconciled_nusd=7),
        account("shop/twin", "shop/a", settled_nusd=10, unreconciled_nusd=7),
        account("shop/gone", unreconciled_nusd=1),
    )
    routes = {each.balance.account: each.routes for each in accounts}
    assert outermost(routes) == {accounts[0].balance.account, accounts[3].balance.account}
    assert outermost(dict(list(routes.items())[1:3])) == {accounts[1].balance.account}
    books = MonthBooks((counter("shop/a", 10), counter("shop/b", 20), counter("lab/free", 5)), {}, accounts)
    made = make_statement(books, MONTH, ("namespace",))
    assert (made.total_nusd, made.unbudgeted_nusd) == (45, 5)
    assert [each.within for each in made.accounts] == [False, True, True, False]
    assert all(each.elsewhere_nusd == 0 for each in made.accounts)


def test_a_month_of_another_time_zone_says_what_lies_outside() -> None:
    """An hour of October is in Berlin's November and not in the statement's: it must not vanish between the two."""
    books = MonthBooks(
        (counter("shop/chat", 100),), {}, (account("shop/team", "shop/chat", start_s=BERLIN_S, settled_nusd=107),)
    )
    (line,) = make_statement(books, MONTH, ("route",)).accounts
    assert (line.lines_nusd, line.elsewhere_nusd) == (100, 7)
    assert make_statement(books, "2026-10", ("route",)).accounts == (), "its period stands for November"


def test_a_namespace_s_statement_is_of_its_own() -> None:
    """What another team spends is not for everybody to see."""
    books = MonthBooks(
        (counter("shop/a", 10), counter("lab/b", 20)), {}, (account("shop/t", "shop/a"), account("lab/t", "lab/b"))
    )
    made = make_statement(books, MONTH, ("route",), "shop")
    assert (made.total_nusd, [each.balance.budget for each in made.accounts]) == (10, ["shop/t"])
    wide = MonthBooks(books.counters, {}, (account("stepdown-system/all", "shop/a", "lab/b"),))
    assert make_statement(wide, MONTH, ("route",), "shop").unbudgeted_nusd == 0, "another namespace's budget holds it"


Op = tuple[str, int, int, int]
ops = st.lists(
    st.tuples(
        st.sampled_from(("spend", "close", "lose", "estimate")), st.integers(0, 2), st.integers(0, 3), st.integers(1, 400)
    ),
    max_size=30,
)
"""What happens, to which proxy, on which route, and how much it costs."""
ROUTES = ("shop/a", "shop/b", "lab/c", "lab/free")
BUDGETS = {"shop/team": ("shop/a", "shop/b"), "lab/team": ("lab/c",)}


@settings(max_examples=60)
@given(ops, st.lists(st.sampled_from(BY), unique=True, min_size=1))
def test_every_statement_adds_up_to_what_the_budgets_say(steps: Sequence[Op], by: list[str]) -> None:
    """To the nano-dollar, whatever became of the proxies and by whatever it is broken down."""
    ledger = Ledger.open(":memory:", create=True)
    try:
        now_s = _happen(ledger, steps)
        books = ledger.books(FIRST, LAST)
        made = make_statement(books, MONTH, by)  # type: ignore[arg-type]  # drawn from BY
        balances = ledger.balances(now_s, ended=True).values()
        held = sum(each.spent_nusd + each.unreconciled_nusd for each in balances)
        assert made.total_nusd == held + made.unbudgeted_nusd
        assert all(each.elsewhere_nusd == 0 for each in made.accounts)
        assert made.of("estimated") == sum(each.estimated_nusd for each in books.counters)
    finally:
        ledger.close()


def _happen(ledger: Ledger, steps: Sequence[Op]) -> float:
    """Three proxies; one that is closed or lost is followed by another."""
    now_s = START_S + 3600.0
    ledger.bind([Binding(name, START_S, END_S, 10**9, True, frozenset(routes)) for name, routes in BUDGETS.items()], now_s)
    proxies = [_Proxy(f"p{index}") for index in range(3)]
    for what, which, route, nusd in steps:
        proxy = proxies[which]
        if what == "lose":
            proxies[which] = _Proxy(f"{proxy.name}'")
            now_s += 2000.0
            ledger.sync([each.message() for each in proxies], now_s)
            continue
        proxy.spend(ROUTES[route], nusd, int(now_s // DAY_S), estimated=what == "estimate")
        ledger.sync([proxy.message(closing=what == "close")], now_s)
        if what == "close":
            proxies[which] = _Proxy(f"{proxy.name}'")
    return now_s


class _Proxy:
    def __init__(self, name: str) -> None:
        self.name, self.seq = name, 0
        self.costs: dict[tuple[str, int], tuple[int, int]] = {}

    def spend(self, route: str, nusd: int, day: int, *, estimated: bool) -> None:
        cost, guess = self.costs.get((route, day), (0, 0))
        self.costs[route, day] = (cost + nusd, guess + nusd * estimated)

    def message(self, *, closing: bool = False) -> SyncRequest:
        self.seq += 1
        reports = []
        for budget, routes in BUDGETS.items():
            cost, guess = (sum(sums[index] for (route, _), sums in self.costs.items() if route in routes) for index in (0, 1))
            numbers = {"granted": cost + 50, "returned": 0, "consumed": cost, "estimated": guess, "reserved": 20, "want": 0}
            reports.append(LeaseReport(account=account_id(budget, START_S), **numbers))
        counters = tuple(counter(route, cost, estimated=guess, day=day) for (route, day), (cost, guess) in self.costs.items())
        return SyncRequest(
            instance=self.name, fleet="shop/default", seq=self.seq, leases=tuple(reports), counters=counters, closing=closing
        )


@pytest.mark.parametrize("month", ["2026-13", "11-2026", "2026-1", "२०२६-११", "0000-01"])
def test_what_is_no_month_is_refused(month: str) -> None:
    """A statement of a month that was guessed is worse than none."""
    from stepdown.budget.months import month_span

    with pytest.raises(ValueError, match="write one such as 2026-11"):
        month_span(month)
