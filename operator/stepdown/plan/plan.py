"""World and ledger in, Plan out: which spec of each object is in force, and what may serve every route. `reconcile` calls it.

Pure. Whatever did not change since the previous plan keeps its value, so that a pass over 10,000 routes of which one changed
judges one route: inputs are compared by identity first.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stepdown.budget.account import Binding
from stepdown.model.resources import RouteSpec
from stepdown.plan.budgets import BudgetPlan, Force, Labels, Routes, plan_budgets
from stepdown.plan.fleets import CatalogPlan, FleetPlan, Market, plan_catalogs, plan_fleets
from stepdown.plan.routes import RoutePlan, plan_route
from stepdown.plan.specs import Source, source, sources, spec_json
from stepdown.plan.world import AcceptedSpec, AnyObject, Invalid, LedgerView, World

Key = tuple[object, Market | None, bool, tuple[Force, ...]]


@dataclass(frozen=True, slots=True)
class Plan:
    """Every object as judged, by `namespace/name` (catalogs by name)."""

    routes: Mapping[str, RoutePlan]
    budgets: Mapping[str, BudgetPlan]
    fleets: Mapping[str, FleetPlan]
    catalogs: Mapping[str, CatalogPlan]
    world: World
    by_namespace: Routes = field(repr=False, default_factory=dict)
    things: Mapping[str, AnyObject | Invalid] = field(repr=False, default_factory=dict)
    """The routes as they were seen: what the next plan compares with."""
    forces: Mapping[str, tuple[Force, ...]] = field(repr=False, default_factory=dict)
    accept: tuple[tuple[str, AcceptedSpec], ...] = ()
    """Specs that are in force and that the ledger does not keep yet, by UID."""
    specs: Mapping[str, tuple[object, AcceptedSpec]] = field(repr=False, default_factory=dict)
    """By UID: the spec and how it is kept, so that it is written out once."""

    @property
    def bindings(self) -> list[Binding]:
        return [binding for budget in self.budgets.values() for binding in budget.bindings()]

    def next_change_s(self, now_s: float) -> int | None:
        """When the plan changes by time alone: a period ends, an override ends, a price changes."""
        moments: list[int | None] = [
            market.catalog.changes_at_s for fleet in self.fleets.values() if (market := fleet.market) is not None
        ]
        for budget in self.budgets.values():
            if budget.period is not None and budget.terms is not None:
                moments += [budget.period.end_s, budget.terms.next_limit_change_s(now_s)]
        return min((moment for moment in moments if moment is not None and moment > now_s), default=None)


EMPTY = Plan({}, {}, {}, {}, World())


def make_plan(world: World, view: LedgerView, now_s: float, previous: Plan = EMPTY) -> Plan:
    """The plan of a world at a moment."""
    things = {thing.key: thing for thing in sources(world, "ModelRoute")}
    changed = {key for key, thing in things.items() if previous.things.get(key) is not thing}
    same_routes = (
        len(things) == len(previous.things)
        and not any(_moved(things[key], previous.things.get(key)) for key in changed)
        and world.namespace_labels == previous.world.namespace_labels
        and world.operator_namespace == previous.world.operator_namespace
    )
    by_namespace = previous.by_namespace if same_routes else _by_namespace(things.values())
    catalogs = plan_catalogs(world, view)
    fleets = plan_fleets(world, view, now_s, catalogs, previous.fleets)
    budgets = plan_budgets(world, view, now_s, by_namespace, previous.budgets, same_routes)
    forces = _forces(budgets, previous)
    routes = _routes(world, view, things, fleets, forces, previous)
    specs, accept = _accepted(view, (routes, budgets, fleets, catalogs), previous)
    return Plan(routes, budgets, fleets, catalogs, world, by_namespace, things, forces, accept, specs)


def _moved(thing: AnyObject | Invalid, before: AnyObject | Invalid | None) -> bool:
    """Whether a budget could see the change: a route's name or labels."""
    return before is None or _labels(thing) != _labels(before)


def _labels(thing: AnyObject | Invalid) -> Labels:
    return thing.labels if isinstance(thing, Invalid) else thing.metadata.labels


def _by_namespace(things: Iterable[AnyObject | Invalid]) -> Routes:
    found: dict[str, list[tuple[str, Labels]]] = {}
    for thing in things:
        found.setdefault(thing.namespace, []).append((thing.name, _labels(thing)))
    return {namespace: tuple(entries) for namespace, entries in found.items()}


def _forces(budgets: Mapping[str, BudgetPlan], previous: Plan) -> Mapping[str, tuple[Force, ...]]:
    """What budgets do to each route. The previous value where no budget's members or force changed."""
    if len(budgets) == len(previous.budgets) and all(
        _binds_as(plan, previous.budgets.get(key)) for key, plan in budgets.items()
    ):
        return previous.forces
    found: dict[str, tuple[Force, ...]] = {}
    for _, plan in sorted(budgets.items()):
        if plan.force is not None:
            for route in plan.members:
                found[route] = (*found.get(route, ()), plan.force)
    return {route: previous.forces[route] if previous.forces.get(route) == each else each for route, each in found.items()}


def _binds_as(plan: BudgetPlan, before: BudgetPlan | None) -> bool:
    return (
        before is not None and before.force == plan.force and (before.members is plan.members or before.members == plan.members)
    )


def _routes(
    world: World,
    view: LedgerView,
    things: Mapping[str, AnyObject | Invalid],
    fleets: Mapping[str, FleetPlan],
    forces: Mapping[str, tuple[Force, ...]],
    previous: Plan,
) -> dict[str, RoutePlan]:
    same_terms = (
        fleets.keys() == previous.fleets.keys()
        and all(plan.market is previous.fleets[key].market for key, plan in fleets.items())
        and all(plan.accepted == previous.fleets[key].accepted for key, plan in fleets.items())
        and world.namespace_labels == previous.world.namespace_labels
    )
    plans = {}
    for key, thing in things.items():
        mine = forces.get(key, ())
        before = previous.routes.get(key) if same_terms and previous.things.get(key) is thing else None
        # What is kept of a route matters only while its current spec is not in force.
        if before is not None and before.in_force == "Current" and (before.forces is mine or before.forces == mine):
            plans[key] = before
            continue
        each: Source[RouteSpec] = source(thing)  # type: ignore[assignment]  # a route's
        plan = plan_route(each, world, view, fleets, mine)
        plans[key] = before if before is not None and before == plan else plan
    return plans


def _accepted(
    view: LedgerView, kinds: Iterable[Mapping[str, RoutePlan | BudgetPlan | FleetPlan | CatalogPlan]], previous: Plan
) -> tuple[Mapping[str, tuple[object, AcceptedSpec]], tuple[tuple[str, AcceptedSpec], ...]]:
    specs: dict[str, tuple[object, AcceptedSpec]] = {}
    accept = []
    for plans in kinds:
        for plan in plans.values():
            if plan.in_force != "Current" or plan.spec is None:
                continue
            uid, generation = plan.source.uid, plan.source.generation
            before = previous.specs.get(uid)
            if before is None or before[0] is not plan.spec or before[1].generation != generation:
                before = (plan.spec, AcceptedSpec(uid, generation, spec_json(plan.spec)))
            specs[uid] = before
            known = view.accepted.get(uid)
            if known is not before[1] and known != before[1]:
                accept.append((uid, before[1]))
    return specs, tuple(accept)
