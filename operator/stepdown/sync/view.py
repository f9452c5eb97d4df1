"""What the plan wants to know of the ledger, in the plan's words. Keepers ask on the ledger's thread, commands on their own."""

from collections import Counter
from datetime import timedelta

from stepdown.budget.months import day_of, instant
from stepdown.ledger import Ledger
from stepdown.plan.world import AcceptedSpec, LedgerView, ProxiesSeen, RouteTotals
from stepdown.sync.roll import HEARD_S


def accepted_specs(ledger: Ledger) -> dict[str, AcceptedSpec]:
    """Every spec that was in force, by UID."""
    return {uid: AcceptedSpec(uid, generation, spec) for uid, (generation, spec) in ledger.accepted().items()}


def ledger_view(ledger: Ledger, now_s: float) -> LedgerView:
    """All of it, the routes' traffic of the current month in UTC included."""
    balances = ledger.balances(now_s, ended=True)
    return LedgerView(balances, accepted_specs(ledger), route_totals(ledger, now_s), proxies_seen(ledger, now_s))


def route_totals(ledger: Ledger, now_s: float) -> dict[str, RouteTotals]:
    """By route: its traffic in the current month in UTC."""
    first, last = month_days(now_s)
    return {
        route: RouteTotals(
            requests=each.requests,
            successes=each.successes,
            input_tokens=each.input_tokens + each.cached_input_tokens,
            output_tokens=each.output_tokens,
            cost_nusd=each.cost_nusd,
        )
        for route, each in ledger.route_totals(first, last).items()
    }


def proxies_seen(ledger: Ledger, now_s: float) -> dict[str, ProxiesSeen]:
    """By fleet: how many proxies have been heard of in the last seconds. What they said of themselves, their keeper knows."""
    heard = Counter(each.fleet for each in ledger.instances() if each.state == "open" and now_s - each.last_s < HEARD_S)
    return {fleet: ProxiesSeen(count, pods=count) for fleet, count in heard.items()}


def month_days(now_s: float) -> tuple[int, int]:
    """The first day of the month in UTC, and today, as days since 1970."""
    now = instant(now_s)
    return day_of((now - timedelta(days=now.day - 1)).timestamp()), day_of(now_s)
