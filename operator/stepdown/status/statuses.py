"""Plan and ledger as status documents of all four kinds. `reconcile` calls this; only what changed is made anew."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepdown.budget.months import month_at
from stepdown.model import conditions
from stepdown.model.config import TIERS
from stepdown.plan.fleets import CatalogPlan, FleetPlan
from stepdown.plan.plan import Plan
from stepdown.plan.routes import RoutePlan
from stepdown.plan.world import Invalid, LedgerView, ObjectKey, RouteTotals
from stepdown.render.config import FleetConfig
from stepdown.status.budgets import budget_status
from stepdown.status.documents import Document, answered, conditions_document, ready
from stepdown.status.routes import NOT_SERVED, Programmed, route_status


@dataclass(frozen=True, slots=True)
class RouteInputs:
    """What a route's document was made from: the document is kept while these are."""

    plan: RoutePlan
    programmed: Programmed
    totals: RouteTotals | None
    month: str


@dataclass(frozen=True, slots=True)
class Statuses:
    documents: Mapping[ObjectKey, Document]
    """By kind and `namespace/name`."""
    inputs: Mapping[str, RouteInputs]


NONE = Statuses({}, {})


def make_statuses(
    plan: Plan, configs: Mapping[str, FleetConfig], view: LedgerView, now_s: float, previous: Statuses = NONE
) -> Statuses:
    """Every object's status document."""
    month = month_at(now_s, "UTC").month
    programmed = {key: _programmed_by_shard(config, view) for key, config in configs.items()}
    documents: dict[ObjectKey, Document] = {}
    inputs: dict[str, RouteInputs] = {}
    for key, route in plan.routes.items():
        config = configs.get(route.fleet)
        known = config.placed.get(key) if config is not None else None
        answer = programmed[route.fleet][known.shard] if known is not None else NOT_SERVED
        totals = view.totals.get(key)
        before = previous.inputs.get(key)
        name: ObjectKey = ("ModelRoute", key)
        if (
            before is not None
            and before.plan is route
            and before.programmed == answer
            and before.totals == totals
            and before.month == month
        ):
            inputs[key], documents[name] = before, previous.documents[name]
        else:
            inputs[key] = RouteInputs(route, answer, totals, month)
            documents[name] = route_status(route, answer, totals, month, _before(previous, name, route.source.thing), now_s)
    stepped = _stepped(plan)
    for key, budget in plan.budgets.items():
        name = ("SpendBudget", key)
        before_document = _before(previous, name, budget.source.thing)
        documents[name] = budget_status(budget, stepped.get(key, 0), before_document, now_s)
    for key, fleet in plan.fleets.items():
        name = ("RoutingProxy", key)
        document = _fleet_status(fleet, configs.get(key), view, _before(previous, name, fleet.source.thing), now_s)
        documents[name] = document
    for key, catalog in plan.catalogs.items():
        name = ("ModelCatalog", key)
        documents[name] = _catalog_status(catalog, _before(previous, name, catalog.source.thing), now_s)
    return Statuses(documents, inputs)


def _before(previous: Statuses, name: ObjectKey, thing: Any) -> Mapping[str, Any] | None:
    """The previous document: of the pass before, else the one that the object came with."""
    known = previous.documents.get(name)
    if known is not None:
        return known
    if isinstance(thing, Invalid):
        status = thing.raw.get("status")
        return status if isinstance(status, Mapping) else None
    if thing.status is None:
        return None
    document: dict[str, Any] = thing.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return document


def _stepped(plan: Plan) -> dict[str, int]:
    """By budget: how many routes one of its steps holds down."""
    found: dict[str, int] = {}
    for route in plan.routes.values():
        default = route.classes.get("default")
        if default is None or not default.in_force or route.ladders is None:
            continue
        wanted = route.ladders.default[0].model.tier_index
        for force in route.forces:
            if force.max_tier is not None and TIERS.index(force.max_tier) < wanted:
                found[force.budget] = found.get(force.budget, 0) + 1
    return found


def _programmed_by_shard(config: FleetConfig, view: LedgerView) -> list[Programmed]:
    seen = view.proxies.get(config.fleet.name)
    if seen is None:
        pending = Programmed(None, conditions.PENDING, "No proxy of the fleet has reported yet.")
        return [pending] * len(config.shards)
    if not seen.ready:
        return [Programmed(False, conditions.NO_PROXIES, "No proxy of the fleet is ready.")] * len(config.shards)
    answers = []
    for index in sorted(config.shards):
        have = seen.serving.get(index, {}).get(config.digests[index], 0)
        if have >= seen.ready:
            message = "Every ready proxy serves by this generation."
            answers.append(Programmed(True, conditions.PROGRAMMED_REASON, message, seen.ready, have))
        else:
            message = f"{have} of {seen.ready} proxies serve by this generation; the others get it with their next sync."
            answers.append(Programmed(False, conditions.PROPAGATING, message, seen.ready, have))
    return answers


def _fleet_status(
    plan: FleetPlan, config: FleetConfig | None, view: LedgerView, previous: Mapping[str, Any] | None, now_s: float
) -> Document:
    answers = _programmed_by_shard(config, view) if config is not None else [NOT_SERVED]
    # The least far of its shards is how far the fleet is.
    worst = min(answers, key=lambda each: (each.holds is True, each.programmed))
    programmed = worst.condition()
    generation = plan.source.generation
    made = (
        answered(conditions.ACCEPTED, plan.accepted),
        answered(conditions.RESOLVED_REFS, plan.resolved),
        programmed,
        ready(
            (
                (plan.accepted.holds, conditions.NOT_ACCEPTED, plan.accepted.message),
                (plan.resolved.holds, conditions.REFS_NOT_RESOLVED, plan.resolved.message),
                (worst.holds, conditions.PENDING if worst.holds is None else conditions.NOT_PROGRAMMED, worst.message),
            )
        ),
    )
    document: Document = {
        "observedGeneration": generation,
        "conditions": conditions_document(made, generation, previous, now_s),
        "routes": len(config.placed) if config is not None else 0,
    }
    seen = view.proxies.get(plan.source.key)
    if seen is not None:
        document["readyReplicas"] = seen.ready
    return document


def _catalog_status(plan: CatalogPlan, previous: Mapping[str, Any] | None, now_s: float) -> Document:
    generation = plan.source.generation
    made = (
        answered(conditions.ACCEPTED, plan.accepted),
        ready(((plan.accepted.holds, conditions.NOT_ACCEPTED, plan.accepted.message),)),
    )
    document: Document = {
        "observedGeneration": generation,
        "conditions": conditions_document(made, generation, previous, now_s),
    }
    if plan.spec is not None:
        document["models"] = len(plan.spec.models)
        document["unpriced"] = sum(
            each.input_usd_per_mtok is None or each.output_usd_per_mtok is None for each in plan.spec.models if not each.prices
        )
    return document
