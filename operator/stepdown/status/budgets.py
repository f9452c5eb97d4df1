"""The status of a SpendBudget: its money in USD, the step in force, what the month will cost. `status.statuses` calls this.

A spent budget works as told: Ready stays True, and WithinBudget=False says it (kstatus reads Ready=False as "in progress").
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from stepdown.budget.account import Balance
from stepdown.budget.forecast import forecast
from stepdown.budget.months import Period, day_of, rfc3339
from stepdown.budget.serving import Unheard
from stepdown.budget.verdict import percent
from stepdown.model import conditions
from stepdown.model.conditions import Condition
from stepdown.model.money import nusd_to_usd
from stepdown.plan.budgets import BudgetPlan
from stepdown.status import summary
from stepdown.status.documents import Document, answered, condition, conditions_document, ready, since, stalled

MODELS_SHOWN, PODS_SHOWN = 64, 8


def budget_status(plan: BudgetPlan, stepped: int, previous: Mapping[str, Any] | None, now_s: float) -> Document:
    """The whole document. `stepped`: how many routes a step of this budget holds down."""
    held, within = enforced(plan), _within(plan)
    awaiting = held.reason in (conditions.AWAITING_ACKNOWLEDGEMENT, conditions.PROXY_LOST)
    made = (
        answered(conditions.ACCEPTED, plan.accepted),
        held,
        within,
        ready(
            (
                (plan.accepted.holds, conditions.NOT_ACCEPTED, plan.accepted.message),
                (not awaiting, conditions.NOT_ENFORCED, held.message),
            )
        ),
        *_reconciled(plan.invoiced),
        *stalled(plan.accepted),
    )
    generation = plan.source.generation
    document: Document = {
        "observedGeneration": generation,
        "conditions": conditions_document(made, generation, previous, now_s),
        "routes": {"matched": len(plan.members), "steppedDown": stepped},
    }
    if plan.period is None or plan.following is None or plan.verdict is None:
        return document
    document["period"] = {
        "month": plan.period.month,
        "start": rfc3339(plan.period.start_s),
        "end": rfc3339(plan.period.end_s),
    }
    document |= money(plan.balance, plan.limit_nusd, plan.used)
    document |= _exceeded(plan.balance, plan.period)
    document["summary"] = {
        **money_summary(plan.balance, plan.limit_nusd, plan.used),
        "reset": summary.reset(plan.following.month),
    }
    if plan.verdict.step is not None:
        step: Document = {"atPercent": plan.verdict.step.at_percent, "action": plan.verdict.step.action}
        if plan.verdict.max_tier is not None:
            step["maxTier"] = plan.verdict.max_tier
        document["step"] = since(step, previous, "step", now_s)
    expected = forecast(plan.period, _spent_nusd(plan.balance), plan.limit_nusd, now_s)
    document["forecast"] = {"monthEndUSD": nusd_to_usd(expected.month_end_nusd, digits=2)}
    if expected.exhausted_at_s is not None:
        document["forecast"]["exhaustedAt"] = rfc3339(expected.exhausted_at_s)
    return document


def _spent_nusd(balance: Balance | None) -> int:
    """What counts against the limit: spent, and held for lost proxies."""
    return balance.spent_nusd + balance.unreconciled_nusd if balance is not None else 0


def money(balance: Balance | None, limit_nusd: int, used: Fraction) -> Document:
    """A period's sums, exact."""
    return {
        "limitUSD": nusd_to_usd(limit_nusd),
        "spentUSD": nusd_to_usd(balance.spent_nusd if balance is not None else 0),
        "reservedUSD": nusd_to_usd(balance.reserved_nusd if balance is not None else 0),
        "unreconciledUSD": nusd_to_usd(balance.unreconciled_nusd if balance is not None else 0),
        "remainingUSD": nusd_to_usd(limit_nusd - _spent_nusd(balance)),
        "usedPercent": percent(used),
    }


def _exceeded(balance: Balance | None, period: Period) -> Document:
    """What an upstream charged beyond the reservations, and which models did; nothing where all is as it should be."""
    if balance is None:
        return {}
    found: Document = {"excessUSD": nusd_to_usd(balance.excess_nusd)} if balance.excess_nusd else {}
    models = [each.model for each in balance.overruns if each.day >= day_of(period.start_s)]
    return {**found, **({"exceededBy": models[:MODELS_SHOWN]} if models else {})}


def money_summary(balance: Balance | None, limit_nusd: int, used: Fraction) -> Document:
    """The same as `kubectl get` prints it."""
    return {
        "spent": summary.money(_spent_nusd(balance)),
        "limit": summary.money(limit_nusd),
        "percent": summary.percent(used),
    }


def enforced(plan: BudgetPlan) -> Condition:
    kind = conditions.ENFORCED
    if plan.terms is None:
        return condition(kind, None, conditions.PENDING, "No spec of the budget was ever in force.")
    if not plan.terms.hard:
        message = "spec.enforcement is Soft: the budget steps and alerts, and refuses nothing."
        return condition(kind, False, conditions.SOFT, message)
    if not plan.members:
        return condition(kind, True, conditions.NO_ROUTES, "The budget binds no route, so there is nothing to hold.")
    if plan.balance is not None and plan.balance.unheard:
        return condition(kind, False, conditions.PROXY_LOST, _lost(plan.balance.unheard))
    if plan.balance is None or not plan.balance.enforced:
        message = "Some proxies have not acknowledged the budget for all of its routes yet; they do so as their requests end."
        return condition(kind, False, conditions.AWAITING_ACKNOWLEDGEMENT, message)
    return condition(kind, True, conditions.ENFORCED_REASON, "The bill of the period cannot pass the limit.")


def _lost(unheard: Sequence[Unheard]) -> str:
    first = unheard[0]
    shown = [f"{each.namespace}/{each.pod} since {rfc3339(int(each.since_s))}" for each in unheard[:PODS_SHOWN]]
    more = f" and {len(unheard) - PODS_SHOWN} more" if len(unheard) > PODS_SHOWN else ""
    return (
        "Pods that cannot be heard have not acknowledged the budget for all of its routes: "
        f"{', '.join(shown)}{more}. What still runs there may serve these routes without the budget, until it is heard again "
        "or the pod is gone. On a node that cannot be reached a pod stays until it or the node is deleted; once the node is "
        f"known to be dead, `kubectl delete pod -n {first.namespace} {first.pod} --force`."
    )


def _reconciled(balance: Balance | None) -> Iterable[Condition]:
    """What the last invoice that was read has come to; nothing where none was."""
    if balance is None or (invoice := balance.invoice) is None:
        return
    kind = conditions.RECONCILED
    billed, metered = nusd_to_usd(invoice.billed_nusd), nusd_to_usd(invoice.metered_nusd)
    head = f"Invoice of {invoice.month}, up to {invoice.through}: ${billed} was billed to all, ${metered} was metered"
    charged, released = nusd_to_usd(invoice.charged_nusd), nusd_to_usd(invoice.released_nusd)
    mine = f"Of what this budget held, ${charged} was charged and ${released} is free again."
    if invoice.excess_nusd > invoice.slack_nusd:
        more = f"${nusd_to_usd(invoice.excess_nusd)} is more than all that was metered or held."
        yield condition(kind, False, conditions.DIFFERENCE, f"{head}: {more} {mine}")
    elif invoice.short_nusd:
        less = f"${nusd_to_usd(invoice.short_nusd)} was metered and not billed."
        yield condition(kind, False, conditions.DIFFERENCE, f"{head}: {less} {mine}")
    elif balance.unreconciled_nusd > invoice.slack_nusd:
        rest = f"${nusd_to_usd(balance.unreconciled_nusd)} stays unreconciled."
        yield condition(kind, None, conditions.PENDING, f"{head}. {mine} {rest}")
    else:
        yield condition(kind, True, conditions.RECONCILED_REASON, f"{head}. {mine}")


def _within(plan: BudgetPlan) -> Condition:
    kind = conditions.WITHIN_BUDGET
    if plan.verdict is None or plan.period is None:
        return condition(kind, None, conditions.PENDING, "No spec of the budget was ever in force.")
    limit, resets = nusd_to_usd(plan.limit_nusd), rfc3339(plan.period.end_s)
    if plan.used < 1:
        return condition(kind, True, conditions.WITHIN, f"Money is left of ${limit}; the budget resets at {resets}.")
    refuses = "its routes are refused" if plan.terms is not None and plan.terms.hard else "nothing is refused, since it is Soft"
    if plan.used == 1:
        message = f"All of ${limit} is spent: {refuses} until {resets}. Raise the limit or add an override to go on."
        return condition(kind, False, conditions.EXHAUSTED, message)
    over = nusd_to_usd(_spent_nusd(plan.balance) - plan.limit_nusd)
    message = f"Spent ${over} over the limit of ${limit}: {refuses} until {resets}."
    return condition(kind, False, conditions.OVER_LIMIT, message)
