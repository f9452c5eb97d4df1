"""Each ModelRoute as judged: its spec in force, its ladders under the steps in force, and whether it is refused. `plan.plan`
calls this for the routes whose inputs changed; the others keep the plan that they have.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stepdown.model import conditions
from stepdown.model.config import TIERS, RequestClass, Tier
from stepdown.model.names import did_you_mean
from stepdown.model.resources import RouteSpec
from stepdown.plan.budgets import Force
from stepdown.plan.findings import Finding, InForce, kept
from stepdown.plan.fleets import ACCEPTED, RESOLVED, FleetPlan, Market, invalid_finding
from stepdown.plan.ladder import Ladders, Wanted, hide
from stepdown.plan.rungs import Needs, Rung
from stepdown.plan.specs import Source, last_accepted
from stepdown.plan.world import LedgerView, World

_RESOLVES = {conditions.PROXY_NOT_FOUND, conditions.MODEL_NOT_FOUND, conditions.TASK_NOT_FOUND}
"""Reasons that answer ResolvedRefs; all others answer Accepted."""


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """What one class of a route may be served by under the steps in force."""

    rungs: tuple[Rung, ...]
    """Hidden ones first, then best first."""
    in_force: int
    """How many are hidden: the index of the first that is not."""
    hidden_by: str
    """The budget whose step is the strictest, where that hides a rung or would, could it be kept."""
    max_tier: Tier | None
    why: str
    """Reason of SteppedDown: `Wanted`, `StepInForce`, `RequirementsHold` or `FloorHolds`."""
    fallbacks: tuple[Rung, ...]

    @property
    def served_by(self) -> Rung:
        return self.rungs[self.in_force]


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One ModelRoute as judged."""

    source: Source[RouteSpec]
    spec: RouteSpec | None
    """In force."""
    generation: int
    """Of the spec in force."""
    in_force: InForce
    accepted: Finding
    resolved: Finding
    fleet: str
    """`namespace/name` of the RoutingProxy that serves it; empty: none does."""
    forces: tuple[Force, ...]
    ladders: Ladders | None
    classes: Mapping[RequestClass, ClassPlan]
    """Empty where the route is refused for want of any rung."""
    refuse: str
    """Not empty: every request is refused with this sentence."""

    @property
    def key(self) -> str:
        return self.source.key

    @property
    def hard(self) -> bool:
        return any(force.hard for force in self.forces)


def wanted_of(spec: RouteSpec, *, hard: bool) -> Wanted:
    """What of a spec its ladders depend on."""
    models = spec.models
    return Wanted(
        default=models.default if models is not None else "",
        task=spec.task or "",
        fallbacks=models.fallbacks if models is not None else (),
        premium=(models.premium or "") if models is not None else "",
        step_down=spec.step_down.models,
        floor=spec.step_down.floor,
        needs=Needs.of(spec.requirements),
        hard=hard,
    )


def plan_route(
    each: Source[RouteSpec], world: World, view: LedgerView, fleets: Mapping[str, FleetPlan], forces: tuple[Force, ...]
) -> RoutePlan:
    """The plan of one route from all that it depends on."""
    if each.spec is not None:
        attempt = _attempt(each, each.spec, world, fleets, forces)
        if isinstance(attempt, RoutePlan):
            return attempt
        refusal, partial = attempt
    else:
        assert each.invalid is not None
        refusal, partial = invalid_finding(each.invalid), None
    before = last_accepted(each, view)
    if before is not None:
        again = _attempt(each, before, world, fleets, forces)
        plan = again if isinstance(again, RoutePlan) else again[1]
        if plan is not None:
            return _with(replace(plan, generation=view.accepted[each.uid].generation), refusal, "LastAccepted")
    return _refused(each, refusal, partial, fleets, forces)


def steps_of(ladders: Ladders, forces: Sequence[Force]) -> Mapping[RequestClass, ClassPlan]:
    """Each class under the strictest of the steps in force. A class without a ladder of its own is left to `default`."""
    step = _strictest(forces)
    critical_step = _strictest([force for force in forces if not force.protect_critical])
    known: Mapping[RequestClass, ClassPlan] | None = ladders.stepped.get((step, critical_step))
    if known is None:
        known = ladders.stepped[step, critical_step] = _classes(ladders, step, critical_step)
    return known


def _classes(ladders: Ladders, step: "_StepInForce", critical_step: "_StepInForce") -> Mapping[RequestClass, ClassPlan]:
    plans: dict[RequestClass, ClassPlan] = {"default": _class_plan(ladders, ladders.default, ladders.fallbacks, step)}
    first = ladders.default[0]
    if ladders.critical or critical_step.max_tier != step.max_tier:
        rungs = ladders.critical or ladders.default
        spare = (first, *ladders.fallbacks) if ladders.critical else ladders.fallbacks
        plans["critical"] = _class_plan(ladders, rungs, spare, critical_step)
    if ladders.background:
        plans["background"] = _class_plan(ladders, ladders.background, (*ladders.fallbacks[1:], first), step)
    return plans


def _attempt(
    each: Source[RouteSpec], spec: RouteSpec, world: World, fleets: Mapping[str, FleetPlan], forces: tuple[Force, ...]
) -> RoutePlan | tuple[Finding, RoutePlan | None]:
    """The plan by that spec; or why it is not accepted, with what could still serve by it if it was accepted before."""
    market, refusal = _market(each, spec, world, fleets)
    if market is None:
        assert refusal is not None
        return refusal, None
    if spec.callers is None and each.namespace != market.namespace:
        return Finding(
            False,
            conditions.NOT_ALLOWED,
            f"spec.callers is absent, which is allowed only in the RoutingProxy's own namespace ({market.namespace}): whoever"
            f" reaches the proxy could call it. List the callers; `stepdown key new` makes a key.",
            stalled=True,
        ), None
    ladders = market.ladders_for(wanted_of(spec, hard=any(force.hard for force in forces)))
    refuse = next((force.refuses for force in forces if force.refuses), "")
    if not refuse and not forces and market.spec.unbudgeted_routes == "Refuse":
        refuse = (
            f"no SpendBudget binds ModelRoute {each.key}, and RoutingProxy {market.key} refuses such routes"
            f" (spec.unbudgetedRoutes: Refuse). Create a SpendBudget for it."
        )
    plan = None
    if ladders.default:
        classes = steps_of(ladders, forces)
        plan = RoutePlan(
            each, spec, each.generation, "Current", ACCEPTED, RESOLVED, market.key, forces, ladders, classes, refuse
        )
    if ladders.problem is None and plan is not None:
        return plan
    problem = ladders.problem
    assert problem is not None, "a spec whose wanted model meets everything has a ladder"
    return Finding(False, problem.reason, problem.message), plan


def _market(
    each: Source[RouteSpec], spec: RouteSpec, world: World, fleets: Mapping[str, FleetPlan]
) -> tuple[Market | None, Finding | None]:
    key = f"{spec.proxy_ref.namespace or each.namespace}/{spec.proxy_ref.name}"
    fleet = fleets.get(key)
    if fleet is None:
        there = ", ".join(sorted(fleets)) or "none"
        message = f"spec.proxyRef is {key}{did_you_mean(key, fleets)}; RoutingProxies: {there}. Name one of them, or create it."
        return None, Finding(False, conditions.PROXY_NOT_FOUND, message)
    if fleet.market is None:
        message = f"spec.proxyRef is {key}; no spec of that RoutingProxy was ever accepted: {fleet.accepted.message}"
        return None, Finding(False, conditions.PROXY_NOT_FOUND, message)
    if not fleet.market.admits(each.namespace, world):
        rule = fleet.market.spec.allowed_routes.namespaces.from_
        message = (
            f"spec.proxyRef is {key}, whose spec.allowedRoutes.namespaces.from is {rule}: routes of {each.namespace} are not"
            f" among those it serves. Use a RoutingProxy that allows the namespace, or ask who owns {key} to."
        )
        return None, Finding(False, conditions.NOT_ALLOWED, message)
    return fleet.market, None


def _with(plan: RoutePlan, refusal: Finding, in_force: InForce) -> RoutePlan:
    finding = kept(refusal, in_force)
    if refusal.reason in _RESOLVES:
        return replace(plan, in_force=in_force, resolved=finding, accepted=_unresolved(finding))
    return replace(plan, in_force=in_force, accepted=finding)


def _unresolved(finding: Finding) -> Finding:
    """What is named and not there makes the spec as a whole unacceptable too: it is not in force."""
    return Finding(False, conditions.INVALID, finding.message)


def _refused(
    each: Source[RouteSpec],
    refusal: Finding,
    partial: RoutePlan | None,
    fleets: Mapping[str, FleetPlan],
    forces: tuple[Force, ...],
) -> RoutePlan:
    """Never accepted: the route is known, where its fleet is, and answers with what is wrong."""
    fleet = partial.fleet if partial is not None else ""
    if not fleet and each.spec is not None and refusal.reason not in (conditions.PROXY_NOT_FOUND, conditions.NOT_ALLOWED):
        key = f"{each.spec.proxy_ref.namespace or each.namespace}/{each.spec.proxy_ref.name}"
        fleet = key if key in fleets else ""
    sentence = f"ModelRoute {each.key} was never accepted: {refusal.message}"
    plan = RoutePlan(each, None, 0, "Nothing", ACCEPTED, RESOLVED, fleet, forces, None, {}, sentence)
    return _with(plan, refusal, "Nothing")


class _StepInForce(NamedTuple):
    max_tier: Tier | None
    budget: str


def _strictest(forces: Iterable[Force]) -> _StepInForce:
    """The strictest step; of several budgets with the same, the first by name."""
    steps = [(TIERS.index(force.max_tier), force.budget, force.max_tier) for force in forces if force.max_tier is not None]
    least = min(steps, default=None)
    return _StepInForce(None, "") if least is None else _StepInForce(least[2], least[1])


def _class_plan(ladders: Ladders, rungs: tuple[Rung, ...], fallbacks: tuple[Rung, ...], step: _StepInForce) -> ClassPlan:
    wanted = rungs[0]
    ordered, hidden, tier_kept = hide(rungs, step.max_tier)
    served = ordered[hidden]
    if served is wanted and tier_kept:
        why = conditions.WANTED
    elif tier_kept:
        why = conditions.STEP_IN_FORCE
    else:
        below = step.max_tier is not None and TIERS.index(step.max_tier) < TIERS.index(ladders.wanted.floor)
        why = conditions.FLOOR_HOLDS if below else conditions.REQUIREMENTS_HOLD
    top = max(served.model.tier_index, TIERS.index(step.max_tier)) if step.max_tier is not None else len(TIERS)
    spare = tuple(rung for rung in fallbacks if rung.model is not served.model and rung.model.tier_index <= top)
    return ClassPlan(ordered, hidden, step.budget if hidden or not tier_kept else "", step.max_tier, why, spare)
