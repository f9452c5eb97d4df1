"""What the plan wants to know of the ledger, in the plan's words. `run` asks on the ledger's thread, commands on their own."""

from datetime import timedelta

from stepdown.budget.months import day_of, instant
from stepdown.ledger import Ledger
from stepdown.plan.world import AcceptedSpec, LedgerView, RouteTotals


def accepted_specs(ledger: Ledger) -> dict[str, AcceptedSpec]:
    """Every spec that was in force, by UID."""
    return {uid: AcceptedSpec(uid, generation, spec) for uid, (generation, spec) in ledger.accepted().items()}


def ledger_view(ledger: Ledger, now_s: float) -> LedgerView:
    """All of it, the routes' traffic of the current month in UTC included."""
    first, last = month_days(now_s)
    totals = {
        route: RouteTotals(
            requests=each.requests,
            successes=each.successes,
            input_tokens=each.input_tokens + each.cached_input_tokens,
            output_tokens=each.output_tokens,
            cost_nusd=each.cost_nusd,
        )
        for route, each in ledger.route_totals(first, last).items()
    }
    return LedgerView(ledger.balances(now_s, ended=True), accepted_specs(ledger), totals)


def month_days(now_s: float) -> tuple[int, int]:
    """The first day of the month in UTC, and today, as days since 1970."""
    now = instant(now_s)
    return day_of((now - timedelta(days=now.day - 1)).timestamp()), day_of(now_s)
