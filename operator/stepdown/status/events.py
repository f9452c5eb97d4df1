"""What happened since the previous pass, as Event values: one a budget and step, never one a route. `reconcile` calls this.

Events come from comparing each new status document with the one before, which after a restart is the one that the object came
with: so a restart repeats none of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stepdown.model import conditions
from stepdown.model.conditions import EVENT_TYPES, EventType
from stepdown.model.config import TIERS
from stepdown.model.money import nusd_to_usd
from stepdown.plan.budgets import BudgetPlan
from stepdown.plan.plan import Plan
from stepdown.plan.world import Kind, ObjectKey
from stepdown.status.documents import find
from stepdown.status.outages import new_outages
from stepdown.status.statuses import Statuses


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to one object."""

    kind: Kind
    key: str
    reason: str
    message: str

    @property
    def type(self) -> EventType:
        return EVENT_TYPES[self.reason]


_FALSE: tuple[tuple[str, frozenset[str] | None, str], ...] = (
    (conditions.ACCEPTED, None, conditions.EVENT_INVALID_SPEC),
    (conditions.RESOLVED_REFS, None, conditions.EVENT_REFS_NOT_RESOLVED),
    (conditions.PROGRAMMED, frozenset({conditions.APPLY_FAILED}), conditions.EVENT_APPLY_FAILED),
)
"""Conditions that are an Event when they turn False, or say something new while they are: for these reasons (None: any)."""


def make_events(plan: Plan, made: Statuses) -> tuple[Event, ...]:
    """What the new documents say that those before did not."""
    events: list[Event] = []
    for name, before in made.before.items():
        document = made.documents[name]
        events += _wrong(name, document, before)
        events += [_outage(name, model) for model in new_outages(document, before)]
        if name[0] == "SpendBudget":
            budget = plan.budgets[name[1]]
            if budget.period is not None:
                events += _budget(budget, document, before or {})
    return tuple(events)


def _wrong(name: ObjectKey, document: Mapping[str, Any], previous: Mapping[str, Any] | None) -> list[Event]:
    """What follows from something else that is wrong says the same, and needs no Event of its own."""
    events, said = [], set()
    for type_, reasons, event in _FALSE:
        now, then = find(document, type_), find(previous, type_)
        if now is None or now["status"] != "False" or (reasons is not None and now["reason"] not in reasons):
            continue
        message = now["message"]
        if message not in said and (then is None or (then["status"], then["message"]) != ("False", message)):
            events.append(Event(name[0], name[1], event, message))  # type: ignore[arg-type]  # one of the kinds
        said.add(message)
    return events


def _outage(name: ObjectKey, model: str) -> Event:
    message = f"{model!r} cannot be reached: requests for it failed in a row. Routes that have fallbacks answer by them."
    return Event("RoutingProxy", name[1], conditions.EVENT_UPSTREAM_OUTAGE, message)


def _budget(plan: BudgetPlan, document: Mapping[str, Any], previous: Mapping[str, Any]) -> list[Event]:
    def event(reason: str, message: str) -> Event:
        return Event("SpendBudget", plan.key, reason, message)

    events = []
    period, then = document["period"], previous.get("period")
    new_period = then is not None and then["start"] != period["start"]
    if new_period:
        message = f"Period {period['month']} has begun: ${document['limitUSD']} until {period['end']}."
        events.append(event(conditions.EVENT_PERIOD_STARTED, message))
    step, step_then = document.get("step"), previous.get("step")
    tier, tier_then = (step or {}).get("maxTier"), (step_then or {}).get("maxTier")
    reached = (step or {}).get("atPercent", 0)
    if reached > (0 if new_period else (step_then or {}).get("atPercent", 0)):
        events.append(_step(event, document, reached, tier if new_period or tier != tier_then else None))
    if tier_then is not None and (tier is None or TIERS.index(tier) > TIERS.index(tier_then)):
        left = f"maxTier {tier} is in force" if tier is not None else "nothing is hidden any more"
        events.append(event(conditions.EVENT_RESTORED, f"maxTier {tier_then} is lifted: {left}."))
    within, within_then = find(document, conditions.WITHIN_BUDGET), find(previous, conditions.WITHIN_BUDGET)
    was_out = within_then is not None and within_then["status"] == "False" and not new_period
    if within is not None and within["status"] == "False" and not was_out:
        events.append(event(conditions.EVENT_EXHAUSTED, within["message"]))
    known = set(previous.get("exceededBy", ()))
    overruns = {each.model: each.nusd for each in plan.balance.overruns} if plan.balance is not None else {}
    for model in document.get("exceededBy", ()):
        if model not in known:
            message = (
                f"{model!r} has answered more than max_tokens allows: one request cost ${nusd_to_usd(overruns[model])} more"
                " than its worst case. It is charged in full, and every request for the model reserves that much more from now"
                " on."
            )
            events.append(event(conditions.EVENT_UPSTREAM_EXCEEDED, message))
    if over_limit(document) and plan.used < 1 and (new_period or not over_limit(previous)):
        ends = document["forecast"]["monthEndUSD"]
        at = document["forecast"].get("exhaustedAt", period["end"])
        message = f"If spending goes on as it did, the period ends at ${ends} of ${document['limitUSD']}; gone about {at}."
        events.append(event(conditions.EVENT_FORECAST_OVER_LIMIT, message))
    return events


def _step(event: Callable[[str, str], Event], document: Mapping[str, Any], reached: int, tier: str | None) -> Event:
    spent = f"{document['usedPercent']} % of ${document['limitUSD']} is spent"
    if tier is None:
        return event(conditions.EVENT_STEP_REACHED, f"Reached the step at {reached} %: {spent}.")
    routes = document["routes"]
    message = (
        f"Reached the step at {reached} %: {spent}. maxTier {tier} is in force:"
        f" {routes['steppedDown']} of {routes['matched']} routes are stepped down."
    )
    return event(conditions.EVENT_STEPPED_DOWN, message)


def over_limit(document: Mapping[str, Any]) -> bool:
    """Whether a document's forecast is over its limit, by what is written in it: so no Event comes twice for one rounding."""
    ends, limit = document.get("forecast", {}).get("monthEndUSD"), document.get("limitUSD")
    return ends is not None and limit is not None and _nusd(ends) > _nusd(limit)


def _nusd(usd: str) -> int:
    whole, _, decimals = usd.partition(".")
    return int(whole) * 1_000_000_000 + int(decimals.ljust(9, "0"))
