"""The plan as the proxies' config: one Fleet and 16 shards for each RoutingProxy (`model.config`). `reconcile` calls this.

A route, a shard and a digest are made anew only when what they are made from changed: one changed route costs one shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from stepdown.model.config import (
    SHARDS,
    Account,
    Budget,
    Fleet,
    Issuer,
    Ladder,
    Model,
    Parameters,
    RequestClass,
    Route,
    Shard,
    account_id,
    digest,
    shard_of,
)
from stepdown.model.quantity import duration_s
from stepdown.plan.budgets import BudgetPlan
from stepdown.plan.fleets import Market
from stepdown.plan.plan import Plan
from stepdown.plan.routes import ClassPlan, RoutePlan

NOBODY = Ladder(rungs=())


@dataclass(frozen=True, slots=True)
class Placed:
    """One route's config, with the plan that it was made from."""

    plan: RoutePlan
    route: Route
    shard: int


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard as a ConfigMap holds it (`render.files`)."""

    digest: str
    name: str
    """Empty: it is too large for any ConfigMap."""
    text: str = ""
    packed: str = ""
    """Compressed, in Base64: instead of `text`."""


@dataclass(frozen=True, slots=True, eq=False)
class FleetConfig:
    """All that one fleet's proxies get."""

    fleet: Fleet
    shards: Mapping[int, Shard]
    """Every index from 0 to 15; those without routes are empty."""
    digests: Mapping[int, str]
    market: Market
    placed: Mapping[str, Placed]
    """By route; for the next rendering."""
    models: dict[str, Model]
    """By the id that the upstream is asked for: every model of the market that was rendered so far."""
    files: dict[int, ShardFile] = field(default_factory=dict)
    """By shard: those that were asked for so far."""


def render(plan: Plan, previous: Mapping[str, FleetConfig]) -> dict[str, FleetConfig]:
    """The config of every fleet that is in force, by `namespace/name`."""
    budgets = {key: budget_config(each) for key, each in plan.budgets.items() if each.terms is not None}
    routes: dict[str, list[RoutePlan]] = {}
    for each in plan.routes.values():
        if each.fleet:
            routes.setdefault(each.fleet, []).append(each)
    return {
        key: _render(fleet.market, routes.get(key, []), budgets, plan.world.issuer, previous.get(key))
        for key, fleet in plan.fleets.items()
        if fleet.market is not None
    }


def fleet_config(market: Market, issuer: Issuer | None) -> Fleet:
    """What holds for the whole fleet."""
    return Fleet(
        name=market.key,
        namespace=market.namespace,
        base_url=market.spec.upstream.base_url,
        channels=market.channels,
        lease_horizon_s=market.spec.lease_horizon_s,
        extra_body_fields=market.spec.extra_body_fields,
        issuer=issuer,
    )


def route_config(plan: RoutePlan) -> Route:
    """One route as rewritten by the steps in force. One that nothing can serve is known all the same, and says why."""
    spec = plan.spec
    ladders: dict[RequestClass, Ladder] = {name: _ladder(each) for name, each in plan.classes.items()} or {"default": NOBODY}
    budgets = tuple(force.budget for force in plan.forces if not force.refuses)
    if spec is None:
        return Route(name=plan.key, ladders=ladders, budgets=budgets, refuse=plan.refuse, generation=plan.generation)
    callers = spec.callers
    has_premium = plan.ladders is not None and bool(plan.ladders.critical)
    return Route(
        name=plan.key,
        ladders=ladders,
        parameters=Parameters(
            temperature=spec.parameters.temperature,
            max_tokens=spec.parameters.max_tokens,
            timeout_s=_timeout_s(spec.parameters.timeout),
        ),
        premium_max_share_percent=spec.premium.max_share_percent if spec.premium is not None and has_premium else None,
        budgets=budgets,
        api_key_sha256=None if callers is None else tuple(each.api_key_sha256 for each in callers if each.api_key_sha256),
        service_accounts=tuple(
            f"{each.service_account.namespace}/{each.service_account.name}" for each in callers or () if each.service_account
        ),
        refuse=plan.refuse,
        generation=plan.generation,
    )


_timeout_s = lru_cache(maxsize=256)(duration_s)


def budget_config(plan: BudgetPlan) -> Budget:
    """One budget with the account of this period and of the next."""
    return Budget(
        name=plan.key,
        hard=plan.terms is not None and plan.terms.hard,
        accounts=tuple(
            Account(id=account_id(plan.key, each.start_s), start_s=each.start_s, end_s=each.end_s, limit_nusd=each.limit_nusd)
            for each in plan.bindings()
        ),
    )


def _ladder(plan: ClassPlan) -> Ladder:
    return Ladder(
        rungs=tuple(rung.upstream_id for rung in plan.rungs),
        in_force=plan.in_force,
        hidden_by=plan.hidden_by,
        fallbacks=tuple(rung.upstream_id for rung in plan.fallbacks),
    )


def _render(
    market: Market,
    routes: list[RoutePlan],
    budgets: Mapping[str, Budget],
    issuer: Issuer | None,
    previous: FleetConfig | None,
) -> FleetConfig:
    same_market = previous is not None and previous.market is market
    models = previous.models if previous is not None and same_market else {}
    placed = _place(routes, previous)
    by_shard: list[dict[str, Placed]] = [{} for _ in range(SHARDS)]
    for name, each in placed.items():
        by_shard[each.shard][name] = each
    shards: Mapping[int, Shard]
    digests: Mapping[int, str]
    shards, digests = {}, {}
    for index, mine in enumerate(by_shard):
        before = previous.shards[index] if previous is not None and same_market else None
        if previous is not None and before is not None and _unchanged(before, mine, budgets):
            shards[index], digests[index] = before, previous.digests[index]
        else:
            shard = _shard(index, mine, market, models, budgets)
            shards[index], digests[index] = shard, digest(shard)
    same_fleet = previous is not None and same_market and previous.fleet.issuer == issuer
    fleet = previous.fleet if previous is not None and same_fleet else fleet_config(market, issuer)
    if previous is not None and same_market and digests == previous.digests:
        shards, digests = previous.shards, previous.digests  # the very same, so that a shell sees at once: nothing to publish
    return FleetConfig(fleet, shards, digests, market, placed, models, previous.files if previous is not None else {})


def _place(routes: list[RoutePlan], previous: FleetConfig | None) -> dict[str, Placed]:
    known = previous.placed if previous is not None else {}
    placed = {}
    for plan in routes:
        key = plan.source.key
        before = known.get(key)
        if before is None or before.plan is not plan:
            route = route_config(plan)
            same = before is not None and before.route == route
            before = Placed(plan, before.route if before is not None and same else route, _shard_of(key, before))
        placed[key] = before
    return placed


def _shard_of(key: str, before: Placed | None) -> int:
    return before.shard if before is not None else shard_of(key)


def _unchanged(before: Shard, mine: Mapping[str, Placed], budgets: Mapping[str, Budget]) -> bool:
    return (
        len(before.routes) == len(mine)
        and all(before.routes.get(name) is each.route for name, each in mine.items())
        and all(budgets.get(name) == budget for name, budget in before.budgets.items())
    )


def _shard(
    index: int, mine: Mapping[str, Placed], market: Market, models: dict[str, Model], budgets: Mapping[str, Budget]
) -> Shard:
    """One shard with the models and budgets that its routes name: it needs no other."""
    named: dict[str, Model] = {}
    bound: dict[str, Budget] = {}
    for each in mine.values():
        for plan in each.plan.classes.values():
            for rung in (*plan.rungs, *plan.fallbacks):
                if rung.upstream_id not in named:
                    if rung.upstream_id not in models:
                        overrun_nusd = market.overruns.get(rung.model.name, 0)
                        models[rung.upstream_id] = rung.model.to_config(market.channels, rung.upstream_id, overrun_nusd)
                    named[rung.upstream_id] = models[rung.upstream_id]
        for budget in each.route.budgets:
            bound[budget] = budgets[budget]
    return Shard(index=index, routes={name: each.route for name, each in mine.items()}, models=named, budgets=bound)
