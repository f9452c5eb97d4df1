"""A plan and what was seen as status documents of all four kinds. `reconcile` calls this; only what changed is made anew."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stepdown.budget.months import month_at
from stepdown.model import conditions
from stepdown.model.config import TIERS
from stepdown.plan.fleets import CatalogPlan, FleetPlan
from stepdown.plan.plan import Plan
from stepdown.plan.routes import RoutePlan
from stepdown.plan.world import Invalid, LedgerView, ObjectKey, RouteTotals
from stepdown.render.config import FleetConfig
from stepdown.render.objects import pod_selector
from stepdown.status.budgets import budget_status
from stepdown.status.documents import Document, answered, conditions_document, ready, stalled
from stepdown.status.outages import outages_document
from stepdown.status.programmed import NOT_SERVED, Programmed, by_shard, of_fleet
from stepdown.status.routes import route_status


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
    """By kind and `namespace/name`. The very same as before where nothing of it changed."""
    inputs: Mapping[str, RouteInputs]
    before: Mapping[ObjectKey, Mapping[str, Any] | None] = field(default_factory=dict)
    """Of each document that is new: the one of the pass before, else the one that the object came with."""


NONE = Statuses({}, {})

_OF_DEPLOYMENT = ("replicas", "readyReplicas", "selector", "summary")
"""Parts of a RoutingProxy's status that its Deployment tells."""


def make_statuses(
    plan: Plan, configs: Mapping[str, FleetConfig], view: LedgerView, now_s: float, previous: Statuses = NONE
) -> Statuses:
    """Every object's status document."""
    making = _Making(previous)
    programmed = {
        key: by_shard(config, view.proxies.get(key), plan.world.fleets.get(key), settled=view.settled)
        for key, config in configs.items()
    }
    _routes(making, plan, configs, programmed, view, now_s)
    stepped = _stepped(plan)
    for key, budget in plan.budgets.items():
        before = making.before(("SpendBudget", key), budget.source.thing)
        making.keep(("SpendBudget", key), budget_status(budget, stepped.get(key, 0), before, now_s), before)
    for key, fleet in plan.fleets.items():
        before = making.before(("RoutingProxy", key), fleet.source.thing)
        shards = programmed.get(key, [])
        document = _fleet_status(fleet, configs.get(key), shards, plan, view, before, now_s)
        making.keep(("RoutingProxy", key), document, before)
    for key, catalog in plan.catalogs.items():
        before = making.before(("ModelCatalog", key), catalog.source.thing)
        making.keep(("ModelCatalog", key), _catalog_status(catalog, before, now_s), before)
    return Statuses(making.documents, making.inputs, making.compared)


class _Making:
    """The statuses of one pass as they come to be."""

    def __init__(self, previous: Statuses) -> None:
        self.previous = previous
        self.documents: dict[ObjectKey, Document] = {}
        self.inputs: dict[str, RouteInputs] = {}
        self.compared: dict[ObjectKey, Mapping[str, Any] | None] = {}

    def before(self, name: ObjectKey, thing: Any) -> Mapping[str, Any] | None:
        """The previous document: of the pass before, else the one that the object came with."""
        known = self.previous.documents.get(name)
        return known if known is not None else _came_with(thing)

    def keep(self, name: ObjectKey, document: Document, before: Mapping[str, Any] | None) -> None:
        known = self.previous.documents.get(name)
        if known == document:
            self.documents[name] = known
        else:
            self.documents[name] = document
            self.compared[name] = before


def _came_with(thing: Any) -> Mapping[str, Any] | None:
    if isinstance(thing, Invalid):
        status = thing.raw.get("status")
        return status if isinstance(status, Mapping) else None
    if thing.status is None:
        return None
    document: dict[str, Any] = thing.status.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    return document


def _routes(
    making: _Making,
    plan: Plan,
    configs: Mapping[str, FleetConfig],
    programmed: Mapping[str, list[Programmed]],
    view: LedgerView,
    now_s: float,
) -> None:
    month = month_at(now_s, "UTC").month
    for key, route in plan.routes.items():
        config = configs.get(route.fleet)
        known = config.placed.get(key) if config is not None else None
        answer = programmed[route.fleet][known.shard] if known is not None else NOT_SERVED
        totals = view.totals.get(key)
        made_of = making.previous.inputs.get(key)
        name: ObjectKey = ("ModelRoute", key)
        if (
            made_of is not None
            and made_of.plan is route
            and made_of.programmed == answer
            and made_of.totals == totals
            and made_of.month == month
        ):
            making.inputs[key], making.documents[name] = made_of, making.previous.documents[name]
        else:
            making.inputs[key] = RouteInputs(route, answer, totals, month)
            before = making.before(name, route.source.thing)
            making.keep(name, route_status(route, answer, totals, month, before, now_s), before)


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


def _fleet_status(
    plan: FleetPlan,
    config: FleetConfig | None,
    shards: list[Programmed],
    everything: Plan,
    view: LedgerView,
    previous: Mapping[str, Any] | None,
    now_s: float,
) -> Document:
    key, generation = plan.source.key, plan.source.generation
    there, seen = everything.world.fleets.get(key), view.proxies.get(key)
    programmed = of_fleet(plan, config, shards, there).given(previous, generation)
    made = (
        answered(conditions.ACCEPTED, plan.accepted),
        answered(conditions.RESOLVED_REFS, plan.resolved),
        programmed.condition(),
        ready(
            (
                (plan.accepted.holds, conditions.NOT_ACCEPTED, plan.accepted.message),
                (plan.resolved.holds, conditions.REFS_NOT_RESOLVED, plan.resolved.message),
                (
                    programmed.holds,
                    conditions.PENDING if programmed.holds is None else conditions.NOT_PROGRAMMED,
                    programmed.message,
                ),
            )
        ),
        *stalled(plan.accepted),
    )
    document: Document = {
        "observedGeneration": generation,
        "conditions": conditions_document(made, generation, previous, now_s),
        "routes": len(config.placed) if config is not None else 0,
    }
    known = config.models if config is not None else {}
    outages = outages_document(seen, known, previous, now_s, settled=view.settled)
    if outages:
        document["outages"] = outages
    if there is not None:
        document["replicas"], document["readyReplicas"] = there.replicas, there.ready_replicas
        document["selector"] = pod_selector(plan.source.namespace, plan.source.name)
        document["summary"] = {"pods": f"{there.ready_replicas}/{there.replicas}"}
    elif not view.settled and previous is not None:  # the Deployment has not been looked at yet
        document |= {name: previous[name] for name in _OF_DEPLOYMENT if name in previous}
    elif seen is not None:
        document["readyReplicas"] = seen.ready
    return document


def _catalog_status(plan: CatalogPlan, previous: Mapping[str, Any] | None, now_s: float) -> Document:
    generation = plan.source.generation
    made = (
        answered(conditions.ACCEPTED, plan.accepted),
        ready(((plan.accepted.holds, conditions.NOT_ACCEPTED, plan.accepted.message),)),
        *stalled(plan.accepted),
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
