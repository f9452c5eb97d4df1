"""The status of a ModelRoute: accepted or not and why, what answers now, and what it has cost. `status.statuses` calls this."""

from collections.abc import Mapping
from typing import Any

from stepdown.model import conditions
from stepdown.model.conditions import Condition
from stepdown.model.money import nusd_to_usd
from stepdown.plan.routes import ClassPlan, RoutePlan
from stepdown.plan.world import RouteTotals
from stepdown.status import summary
from stepdown.status.documents import Document, answered, condition, conditions_document, ready, since, stalled
from stepdown.status.programmed import Programmed


def route_status(
    plan: RoutePlan,
    programmed: Programmed,
    totals: RouteTotals | None,
    month: str,
    previous: Mapping[str, Any] | None,
    now_s: float,
) -> Document:
    """The whole document."""
    generation = plan.source.generation
    programmed = programmed.given(previous, generation)
    made = (
        answered(conditions.ACCEPTED, plan.accepted, _accepted_message(plan)),
        answered(conditions.RESOLVED_REFS, plan.resolved),
        programmed.condition(),
        _ready(plan, programmed),
        stepped_down(plan),
        *stalled(plan.accepted, plan.resolved),
    )
    document: Document = {
        "observedGeneration": generation,
        "conditions": conditions_document(made, generation, previous, now_s),
    }
    if plan.classes:
        document["effective"] = since(_effective(plan), previous, "effective", now_s)
    if totals is not None:
        document["spend"] = spend(totals, month)
    if programmed.holds is not None:
        document["proxies"] = {"ready": programmed.ready, "programmed": programmed.programmed}
    document["summary"] = _summary(plan, totals)
    return document


def stepped_down(plan: RoutePlan) -> Condition:
    """Whether a budget's step hides the wanted model, and what answers instead."""
    default = plan.classes.get("default")
    if default is None:
        return condition(conditions.STEPPED_DOWN, None, conditions.PENDING, "Nothing of the route is in force.")
    if default.why == conditions.WANTED:
        return condition(conditions.STEPPED_DOWN, False, conditions.WANTED, _wanted_message(plan, default))
    force = next((each for each in plan.forces if each.budget == default.hidden_by), None)
    at = f" has reached {force.at_percent} %" if force is not None else ""
    rung = default.served_by
    message = f"SpendBudget {default.hidden_by}{at}: maxTier {default.max_tier} is in force, and {rung.upstream_id!r}"
    message += f" ({rung.tier}) answers."
    if default.why == conditions.REQUIREMENTS_HOLD:
        message += f" It is the cheapest that meets spec.requirements: no model at or below {default.max_tier} does."
    elif default.why == conditions.FLOOR_HOLDS:
        message += " It is the cheapest at or above spec.stepDown.floor, which is above the step's tier."
    return condition(conditions.STEPPED_DOWN, True, default.why, message + _critical_message(plan))


def _wanted_message(plan: RoutePlan, default: ClassPlan) -> str:
    return f"The wanted model answers: {default.served_by.upstream_id!r} ({default.served_by.tier}).{_critical_message(plan)}"


def _critical_message(plan: RoutePlan) -> str:
    critical = plan.classes.get("critical")
    if critical is None or plan.ladders is None or not plan.ladders.critical:
        return ""
    return f" Class critical gets {critical.served_by.upstream_id!r} ({critical.served_by.tier})."


def _accepted_message(plan: RoutePlan) -> str:
    """With the models that the route names and that are no rung: nobody should have to find out from a bill."""
    if not plan.accepted.holds or plan.ladders is None:
        return ""
    left_out = [f"{each.field} {each.model!r}: {each.reason}" for each in plan.ladders.rejected if each.field]
    if not left_out:
        return ""
    return f"{plan.accepted.message} Left out: {'; '.join(dict.fromkeys(left_out))}"


def _ready(plan: RoutePlan, programmed: Programmed) -> Condition:
    unpriced = plan.accepted.reason == conditions.UNPRICED
    return ready(
        (
            (plan.resolved.holds, conditions.REFS_NOT_RESOLVED, plan.resolved.message),
            (plan.accepted.holds, conditions.UNPRICED if unpriced else conditions.NOT_ACCEPTED, plan.accepted.message),
            (not plan.refuse, conditions.BLOCKED, plan.refuse),
            (
                programmed.holds,
                conditions.PENDING if programmed.holds is None else conditions.NOT_PROGRAMMED,
                programmed.message,
            ),
        )
    )


def _effective(plan: RoutePlan) -> Document:
    default = plan.classes["default"]
    document: Document = {
        "default": default.served_by.upstream_id,
        "fallbacks": [rung.upstream_id for rung in default.fallbacks],
        "tier": default.served_by.tier,
        "reason": conditions.STEP_IN_FORCE if default.in_force else conditions.WANTED,
    }
    critical = plan.classes.get("critical")
    if critical is not None and plan.ladders is not None and plan.ladders.critical:
        document["premium"] = critical.served_by.upstream_id
    if default.in_force:
        document["budget"] = default.hidden_by
    return document


def spend(totals: RouteTotals, month: str) -> Document:
    """A route's traffic in a month."""
    document: Document = {
        "month": month,
        "usd": nusd_to_usd(totals.cost_nusd),
        "requests": totals.requests,
        "successes": totals.successes,
        "inputTokens": totals.input_tokens,
        "outputTokens": totals.output_tokens,
    }
    if totals.successes:
        document["usdPerSuccess"] = nusd_to_usd(-(-totals.cost_nusd // totals.successes))
    return document


def _summary(plan: RoutePlan, totals: RouteTotals | None) -> Document:
    document: Document = {"spent": summary.money(totals.cost_nusd if totals is not None else 0)}
    default = plan.classes.get("default")
    force = next(
        (each for each in plan.forces if default is not None and default.in_force and each.budget == default.hidden_by), None
    )
    if force is not None:
        document["step"] = f"{force.at_percent}%"
    return document
