"""The World as a user may see it, for `explain`: the four kinds and the namespaces, listed with the user's own rights.

Whoever may list everything gets the operator's own World. Who may see some namespaces only gets what one route depends on: its
namespace, that of its RoutingProxy, and the operator's, whose budgets may bind it. What was not seen is said, or, where the
answer hangs on it, is the answer: unknown is never empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepdown.cli import live
from stepdown.cli.cluster import Reach, note, together
from stepdown.cli.errors import ClusterUnreadable, CommandError
from stepdown.cluster import kinds
from stepdown.cluster.client import Cluster
from stepdown.cluster.errors import Forbidden, Unauthorized
from stepdown.cluster.kinds import KindRef
from stepdown.model.names import nearest
from stepdown.model.resources import RoutingProxy
from stepdown.plan.budgets import BudgetPlan
from stepdown.plan.fleets import FleetPlan
from stepdown.plan.plan import Plan, make_plan
from stepdown.plan.routes import RoutePlan
from stepdown.plan.world import LedgerView, World
from stepdown.sync.clock import now_s
from stepdown.watch.store import NAMESPACE, Store, read
from stepdown.watch.views import Overview

VIEW = "have somebody bind the ClusterRole stepdown-view to you"


@dataclass(slots=True)
class _Eyes:
    """What has been listed, and what may not be."""

    cluster: Cluster
    store: Store = field(default_factory=Store)
    raw: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    part: set[str] = field(default_factory=set)
    """Kinds that could not be listed everywhere."""
    hidden: set[tuple[str, str]] = field(default_factory=set)
    """Kind and namespace (none: a kind without) that may not be listed at all."""

    async def take(self, kind: KindRef, needed: str, others: Sequence[str] = ()) -> None:
        """All there is of a kind; else what is in these namespaces. Raises Forbidden if `needed` may not be seen either."""
        try:
            found = (await self.cluster.list(kind)).items
        except Unauthorized:
            raise
        except Forbidden:
            self.part.add(kind.kind)
            found = await self._some(kind, needed, [each for each in dict.fromkeys(others) if each != needed])
        self.raw[kind.kind] = found
        self.store.replace(kind.kind, (read(each) for each in found), 0, 0)

    async def _some(self, kind: KindRef, needed: str, others: Sequence[str]) -> list[dict[str, Any]]:
        if not kind.namespaced:
            self.hidden.add((kind.kind, ""))
            return [] if kind.kind != NAMESPACE else await self._namespaces((needed, *others))
        found = (await self.cluster.list(kind, needed)).items
        for namespace in others:
            try:
                found += (await self.cluster.list(kind, namespace)).items
            except Forbidden:
                self.hidden.add((kind.kind, namespace))
        return found

    async def _namespaces(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Whoever may see what is in a namespace may see its labels, as a rule."""
        found = []
        for name in names:
            try:
                namespace = await self.cluster.get(kinds.NAMESPACE, "", name)
            except Forbidden:
                continue
            if namespace is not None:
                found.append(namespace)
        return found

    def world(self, known: Overview | None, operator_namespace: str) -> World:
        """`known`: the operator's side. Without it nothing is forbidden here: what is, the objects' own statuses say."""
        made = self.store.world(
            operator_namespace=known.operator_namespace if known is not None else operator_namespace,
            allowed_upstreams=known.allowed_upstreams if known is not None else ("*",),
            fleet_namespaces=known.fleet_namespaces if known is not None else ("*",),
            secrets=known.secrets if known is not None else {},
            fleets=known.fleets if known is not None else {},
            issuer=None,
        )
        assert made is not None, "every kind has been taken"
        return made


async def route_in_cluster(cluster: Cluster, reach: Reach, name: str) -> tuple[Plan, RoutePlan]:
    """The plan, and in it the route of that name. Says on stderr what may be another way than shown."""
    namespace, _, short = name.rpartition("/")
    if namespace and reach.namespace not in ("", namespace):
        raise CommandError(f"{name} is not in the namespace {reach.namespace} (-n): leave out one of them.")
    namespace = namespace or reach.namespace or cluster.namespace
    key, eyes = f"{namespace}/{short}", _Eyes(cluster)
    await eyes.take(kinds.MODEL_ROUTE, namespace)
    seen = eyes.store.get("ModelRoute", key)
    if seen is None:
        raise CommandError(_unknown(namespace, short, [_key(each) for each in eyes.raw["ModelRoute"]]))
    home = _proxy_namespace(eyes.raw["ModelRoute"], key)
    (known, why), *_ = await together(
        live.overview(cluster, reach.operator),
        eyes.take(kinds.SPEND_BUDGET, namespace, (reach.operator,)),
        eyes.take(kinds.ROUTING_PROXY, namespace, (home,)),
        eyes.take(kinds.MODEL_CATALOG, namespace),
        eyes.take(kinds.NAMESPACE, namespace, (home,)),
    )
    world = eyes.world(known, reach.operator)
    if known is not None:
        view, at_s = LedgerView(known.balances, known.accepted, known.totals, known.proxies), known.now_s
    else:
        view, at_s = LedgerView(live.balances(eyes.raw["SpendBudget"])), now_s()
    plan = make_plan(world, view, at_s)
    route = plan.routes[key]
    _refuse_blindness(eyes, plan, route)
    if known is None:
        note(live.stale(why))
        _say_doubts(plan, route)
    _say_unseen(eyes)
    return plan, route


def _key(raw: Mapping[str, Any]) -> str:
    return f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"


def _unknown(namespace: str, name: str, known: Sequence[str]) -> str:
    """What there is instead: the same name elsewhere, else the nearest names here, else all over."""
    elsewhere = sorted(key for key in known if key.endswith(f"/{name}"))
    here = [key for key in known if key.startswith(f"{namespace}/")]
    near = elsewhere or nearest(f"{namespace}/{name}", here) or nearest(name, known)
    if near:
        return f"there is no ModelRoute {namespace}/{name}; the nearest: {', '.join(near[:5])}."
    there = f"the ModelRoutes of {namespace} are {', '.join(sorted(here)[:10])}" if here else f"{namespace} has no ModelRoute"
    return f"there is no ModelRoute {namespace}/{name}: {there}; -n names another namespace."


def _proxy_namespace(routes: Sequence[Mapping[str, Any]], key: str) -> str:
    """Where the route's RoutingProxy is, as far as the route can be read."""
    (route,) = (each for each in routes if _key(each) == key)
    spec = route.get("spec")
    ref = spec.get("proxyRef") if isinstance(spec, dict) else None
    named = ref.get("namespace") if isinstance(ref, dict) else None
    return named if isinstance(named, str) and named else key.partition("/")[0]


def _refuse_blindness(eyes: _Eyes, plan: Plan, route: RoutePlan) -> None:
    """Without the prices or the RoutingProxy there is no ladder to show, and to show another would be a lie."""
    spec = route.spec or route.source.spec
    if spec is None:
        return
    namespace = spec.proxy_ref.namespace or route.source.namespace
    fleet = plan.fleets.get(f"{namespace}/{spec.proxy_ref.name}")
    if fleet is None and ("RoutingProxy", namespace) in eyes.hidden:
        raise ClusterUnreadable(
            f"ModelRoute {route.key} is served by RoutingProxy {namespace}/{spec.proxy_ref.name}, and you may not see those of"
            f" {namespace}: {VIEW} there."
        )
    market = fleet.spec if fleet is not None else None
    if market is not None and market.catalog_refs and ("ModelCatalog", "") in eyes.hidden:
        names = ", ".join(each.name for each in market.catalog_refs)
        raise ClusterUnreadable(
            f"RoutingProxy {namespace}/{spec.proxy_ref.name} takes prices from ModelCatalog {names}, and you may not see"
            f" ModelCatalogs: {VIEW} by a ClusterRoleBinding."
        )


def _say_unseen(eyes: _Eyes) -> None:
    for kind, namespace in sorted(eyes.hidden):
        if kind == "SpendBudget":
            note(f"SpendBudgets of {namespace} may bind this route too, and you may not list them: {VIEW} there.")
        elif kind == "ModelCatalog":
            note("you may not list ModelCatalogs: the prices are those that come with this version.")


def _say_doubts(plan: Plan, route: RoutePlan) -> None:
    """Without the operator nobody knows what was last accepted of an object that is not valid, or not allowed."""
    fleet = plan.fleets.get(route.fleet)
    things: list[RoutePlan | BudgetPlan | FleetPlan] = [route, *(plan.budgets[force.budget] for force in route.forces)]
    things += [fleet] if fleet is not None else []
    for each in things:
        if each.in_force == "Nothing":
            note(
                f"{each.source.kind} {each.source.key} is not accepted as it is, and what was last accepted of it only the"
                " operator knows: if anything was, that is in force, and not what is shown."
            )
    thing = fleet.source.thing if fleet is not None else None
    if isinstance(thing, RoutingProxy) and thing.status is not None:
        for condition in thing.status.conditions:
            if condition.type == "Accepted" and condition.status == "False":
                note(f"RoutingProxy {route.fleet} is not accepted by the operator: {condition.message}")
