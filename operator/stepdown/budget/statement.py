"""A month's bill, by whom it is to be booked on: lines whose sum is what the budgets say. `cli.statement` prints it.

Lines come from the ledger's counters, which are by UTC day; what no counter tells of comes from the accounts, as lines of its
own: nothing is spread over routes that may not have spent it. A request that several budgets hold is one line: of accounts
that lie within others only the outermost has such lines. What an account says beyond the lines (a budget's month is of its
time zone, an edge day of a month belongs to two) is named beside it.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from stepdown.budget.account import Balance
from stepdown.budget.months import day_of, day_text, month_of
from stepdown.model.sync import Counter

T = TypeVar("T")

Kind = Literal["metered", "estimated", "unmetered", "invoiced", "unreconciled"]
KINDS: Mapping[Kind, str] = {
    "metered": "by the usage that the upstream reported",
    "estimated": "at the reservation, for want of usage",
    "unmetered": "in flight when a proxy ended, or stated by an administrator: no counter tells of it",
    "invoiced": "by the upstream's invoice, beyond what the proxies reported",
    "unreconciled": "held for proxies that were lost: what the upstream may still bill",
}
By = Literal["namespace", "route", "model", "class", "day"]
BY: tuple[By, ...] = ("namespace", "route", "model", "class", "day")

Orders = tuple[tuple[int, str], ...]
"""From which UTC day on a route was booked under which purchase order, ascending."""


@dataclass(frozen=True, slots=True)
class AccountBooks:
    """One account, and whose spend it holds."""

    balance: Balance
    routes: frozenset[str]
    """That it holds or has held."""


@dataclass(frozen=True, slots=True)
class MonthBooks:
    """What the ledger knows of a span of days."""

    counters: tuple[Counter, ...] = ()
    """By route, model, class and day."""
    orders: Mapping[str, Orders] = field(default_factory=dict)
    accounts: tuple[AccountBooks, ...] = ()
    """Those whose period has a part in the span."""


@dataclass(frozen=True, slots=True)
class Line:
    kind: Kind
    keys: tuple[str, ...]
    """One for each of `by`; empty where nobody can tell."""
    order: str
    """Purchase order."""
    budget: str = ""
    """Of a line that comes from an account."""
    requests: int = 0
    successes: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    unpriced: int = 0
    nusd: int = 0


@dataclass(frozen=True, slots=True)
class AccountLine:
    """One account beside the lines."""

    balance: Balance
    lines_nusd: int
    """What of the lines is its own: its routes' counters, and what no counter tells of."""
    within: bool
    """Another account holds all of its routes: what is held here is held there too."""

    @property
    def total_nusd(self) -> int:
        return self.balance.spent_nusd + self.balance.unreconciled_nusd

    @property
    def elsewhere_nusd(self) -> int:
        """What the account has beyond the lines; negative where the lines have more: its month is not the statement's, or
        routes came and went."""
        return self.total_nusd - self.lines_nusd


@dataclass(frozen=True, slots=True)
class Statement:
    month: str
    by: tuple[By, ...]
    lines: tuple[Line, ...]
    accounts: tuple[AccountLine, ...]
    unbudgeted_nusd: int
    """Of routes that no account of the month holds."""

    @property
    def total_nusd(self) -> int:
        return sum(each.nusd for each in self.lines)

    def of(self, kind: Kind) -> int:
        return sum(each.nusd for each in self.lines if each.kind == kind)


def make_statement(books: MonthBooks, month: str, by: Sequence[By], namespace: str = "") -> Statement:
    """`namespace`: of its routes and budgets only."""
    counters = [each for each in books.counters if not namespace or each.route.startswith(f"{namespace}/")]
    everybody = [each for each in books.accounts if month_of(each.balance.start_s, each.balance.end_s, "UTC") == month]
    accounts = [each for each in everybody if not namespace or each.balance.budget.startswith(f"{namespace}/")]
    outer = outermost({each.balance.account: each.routes for each in accounts})
    orders = {each.balance.account: _order_of(each, books.orders) for each in accounts}
    lines = [*_metered(counters, by, books.orders)]
    for each in accounts:
        if each.balance.account in outer:
            lines += _apart(each.balance, by, orders[each.balance.account])
    costs: dict[str, int] = {}
    for counter in counters:
        costs[counter.route] = costs.get(counter.route, 0) + counter.cost_nusd
    held = frozenset().union(*(each.routes for each in everybody))
    beside = tuple(
        AccountLine(
            each.balance,
            sum(costs.get(route, 0) for route in each.routes) + _apart_nusd(each.balance),
            each.balance.account not in outer,
        )
        for each in accounts
    )
    unbudgeted = sum(nusd for route, nusd in costs.items() if route not in held)
    return Statement(month, tuple(by), tuple(lines), beside, unbudgeted)


def outermost(accounts: Mapping[str, Set[T]]) -> frozenset[str]:
    """Of accounts by their routes, those that no other holds all the routes of. What is held for one request is in every
    account of its route: counted once, it is counted in these."""

    def is_within(name: str, mine: Set[T]) -> bool:
        return any(mine < theirs or (mine == theirs and other < name) for other, theirs in accounts.items() if other != name)

    return frozenset(name for name, mine in accounts.items() if not mine or not is_within(name, mine))


def order_on(orders: Orders, day: int) -> str:
    """What a route is booked under on a day. Days before the first that is known go with it: a label that comes late in the
    month means the whole of it."""
    found = orders[0][1] if orders else ""
    for since, reference in orders:
        if since <= day:
            found = reference
    return found


def _order_of(account: AccountBooks, orders: Mapping[str, Orders]) -> str:
    """The purchase order of all its routes, if they have one in common."""
    last = day_of(account.balance.end_s)
    found = {order_on(orders.get(route, ()), last) for route in account.routes}
    return found.pop() if len(found) == 1 else ""


def _metered(counters: Sequence[Counter], by: Sequence[By], orders: Mapping[str, Orders]) -> list[Line]:
    sums: dict[tuple[tuple[str, ...], str], Line] = {}
    estimates: dict[tuple[tuple[str, ...], str], int] = {}
    for each in counters:
        key = tuple(_key(each, name) for name in by), order_on(orders.get(each.route, ()), each.day)
        was = sums.get(key, Line("metered", *key))
        sums[key] = replace(
            was,
            requests=was.requests + each.requests,
            successes=was.successes + each.successes,
            input_tokens=was.input_tokens + each.input_tokens,
            cached_input_tokens=was.cached_input_tokens + each.cached_input_tokens,
            output_tokens=was.output_tokens + each.output_tokens,
            unpriced=was.unpriced + each.unpriced,
            nusd=was.nusd + each.cost_nusd - each.estimated_nusd,
        )
        estimates[key] = estimates.get(key, 0) + each.estimated_nusd
    lines = []
    for key in sorted(sums):
        lines.append(sums[key])
        if nusd := estimates[key]:
            lines.append(Line("estimated", *key, nusd=nusd))
    return lines


def _key(counter: Counter, by: By) -> str:
    match by:
        case "namespace":
            return counter.route.partition("/")[0]
        case "route":
            return counter.route
        case "model":
            return counter.model
        case "class":
            return counter.request_class
        case "day":
            return day_text(counter.day)


def _apart(balance: Balance, by: Sequence[By], order: str) -> list[Line]:
    """What no counter tells of: the budget's namespace is all that is known."""
    keys = tuple(balance.budget.partition("/")[0] if name == "namespace" else "" for name in by)
    sums: tuple[tuple[Kind, int], ...] = (
        ("unmetered", balance.unmetered_nusd),
        ("invoiced", balance.invoiced_nusd),
        ("unreconciled", balance.unreconciled_nusd),
    )
    return [Line(kind, keys, order, balance.budget, nusd=nusd) for kind, nusd in sums if nusd]


def _apart_nusd(balance: Balance) -> int:
    return balance.unmetered_nusd + balance.invoiced_nusd + balance.unreconciled_nusd
