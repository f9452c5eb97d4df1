"""Each RoutingProxy as a market: the catalog that its routes buy from, its channels, whom it serves. `plan.plan` calls this.

A market is the same value from pass to pass while nothing of it changed, so that routes and ladders are reused by identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from stepdown.model import conditions
from stepdown.model.catalog import BUILT_IN, Catalog, built_in
from stepdown.model.config import Channel
from stepdown.model.fleet import RouteNamespaces
from stepdown.model.resources import CatalogSpec, Metadata, ModelCatalog, ProxySpec
from stepdown.plan.findings import Finding, InForce, kept
from stepdown.plan.ladder import Ladders, Wanted, build
from stepdown.plan.specs import Source, choose, parse_spec, source, sources
from stepdown.plan.world import Invalid, LedgerView, World

LADDERS_MAX = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """What a fleet's routes can buy, and on which terms. Compared by identity; `same_as` says when to keep the old one."""

    key: str
    namespace: str
    spec: ProxySpec
    catalogs: tuple[ModelCatalog, ...]
    catalog: Catalog
    channels: tuple[Channel, ...]
    overruns: Mapping[str, int] = field(default_factory=dict)
    """By model: by how much a request has cost more than its worst case. Nothing but the reservation depends on it."""
    ladders: dict[Wanted, Ladders] = field(default_factory=dict)
    """Those made so far: thousands of routes want the same few things."""

    def ladders_for(self, wanted: Wanted) -> Ladders:
        found = self.ladders.get(wanted)
        if found is None:
            if len(self.ladders) >= LADDERS_MAX:
                self.ladders.clear()  # what routes have, they keep; years of edits must not pile up
            found = self.ladders[wanted] = build(wanted, self.catalog)
        return found

    def admits(self, namespace: str, world: World) -> bool:
        """Whether routes of that namespace may use the fleet."""
        rule: RouteNamespaces = self.spec.allowed_routes.namespaces
        if rule.from_ == "All" or namespace == self.namespace:
            return True
        return rule.selector is not None and rule.selector.matches(world.labels_of(namespace))

    def same_as(self, spec: ProxySpec, catalogs: Sequence[ModelCatalog], overruns: Mapping[str, int], now_s: float) -> bool:
        until_s = self.catalog.changes_at_s
        return (
            self.overruns == overruns
            and (self.spec is spec or self.spec == spec)
            and len(self.catalogs) == len(catalogs)
            and all(one is other or one.spec == other.spec for one, other in zip(self.catalogs, catalogs, strict=True))
            and self.catalog.at_s <= now_s
            and (until_s is None or now_s < until_s)
        )


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """One RoutingProxy as judged."""

    source: Source[ProxySpec]
    spec: ProxySpec | None
    """In force."""
    in_force: InForce
    accepted: Finding
    resolved: Finding
    market: Market | None
    """None: nothing of it is in force."""


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """One ModelCatalog as judged."""

    source: Source[CatalogSpec]
    spec: CatalogSpec | None
    in_force: InForce
    accepted: Finding


def plan_catalogs(world: World, view: LedgerView) -> dict[str, CatalogPlan]:
    """Every catalog of the user's, by name."""
    plans = {}
    for thing in sources(world, "ModelCatalog"):
        each: Source[CatalogSpec] = source(thing)  # type: ignore[assignment]  # of this kind
        spec, in_force, refusal = choose(each, view, lambda _: None, invalid_finding)
        plans[each.name] = CatalogPlan(each, spec, in_force, kept(refusal, in_force) if refusal is not None else ACCEPTED)
    return plans


def plan_fleets(
    world: World, view: LedgerView, now_s: float, catalogs: Mapping[str, CatalogPlan], previous: Mapping[str, FleetPlan]
) -> dict[str, FleetPlan]:
    """Every RoutingProxy, by `namespace/name`."""
    plans, overruns = {}, view.overruns(now_s)
    for thing in sources(world, "RoutingProxy"):
        each: Source[ProxySpec] = source(thing)  # type: ignore[assignment]  # of this kind
        judge = partial(_allowed, world, each.namespace)
        spec, in_force, refusal = choose(each, view, judge, invalid_finding)
        if spec is not None and in_force == "LastAccepted" and judge(spec) is not None:
            spec, in_force = None, "Nothing"
        accepted = kept(refusal, in_force) if refusal is not None else ACCEPTED
        if spec is None:
            plans[each.key] = FleetPlan(each, None, in_force, accepted, RESOLVED, None)
            continue
        laid, missing = _catalogs(spec, catalogs, view)
        before = previous.get(each.key)
        market = before.market if before is not None else None
        if market is None or not market.same_as(spec, laid, overruns, now_s):
            market = Market(each.key, each.namespace, spec, laid, Catalog.of(laid, now_s), channels(spec), overruns)
        plans[each.key] = FleetPlan(each, spec, in_force, accepted, _resolved(each, spec, missing, world), market)
    return plans


ACCEPTED = Finding(True, conditions.ACCEPTED_REASON, "The spec is valid and in force.")
RESOLVED = Finding(True, conditions.RESOLVED, "Everything that the spec names is there.")


def invalid_finding(invalid: Invalid) -> Finding:
    return Finding(
        False,
        conditions.CONFLICT if invalid.conflict else conditions.INVALID,
        f"{invalid.message}.".replace("..", "."),
        stalled=True,
    )


def channels(spec: ProxySpec) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=each.name, model_prefix=each.model_prefix or "", requests_per_minute=each.requests_per_minute)
        for each in spec.upstream.channels
    )


def _allowed(world: World, namespace: str, spec: ProxySpec) -> Finding | None:
    """What of a RoutingProxy the operator's settings forbid, whoever may create one."""
    if "*" not in world.fleet_namespaces and namespace not in world.fleet_namespaces:
        there = ", ".join(world.fleet_namespaces) or "none"
        return Finding(
            False,
            conditions.NOT_ALLOWED,
            f"The operator may make a fleet's objects in these namespaces: {there}; {namespace!r} is not among them."
            f" Create the RoutingProxy in one of these, or add {namespace!r} to the chart's value fleetNamespaces.",
            stalled=True,
        )
    url = spec.upstream.base_url
    if "*" in world.allowed_upstreams or url in world.allowed_upstreams:
        return None
    return Finding(
        False,
        conditions.NOT_ALLOWED,
        f"spec.upstream.baseURL is {url!r}; the operator's allowedUpstreams has"
        f" {', '.join(world.allowed_upstreams) or 'nothing'}. Use one of these, or add yours to the chart's value"
        f" allowedUpstreams.",
        stalled=True,
    )


def _catalogs(
    spec: ProxySpec, catalogs: Mapping[str, CatalogPlan], view: LedgerView
) -> tuple[tuple[ModelCatalog, ...], list[str]]:
    """The catalogs to lay over one another, and those that are named but not there."""
    laid = [] if BUILT_IN in catalogs and catalogs[BUILT_IN].spec is not None else [built_in()]
    missing = []
    for name in dict.fromkeys((*((BUILT_IN,) if not laid else ()), *(ref.name for ref in spec.catalog_refs))):
        plan = catalogs.get(name)
        if plan is None and name == BUILT_IN:
            continue
        # A catalog that vanished goes on as it was last accepted: prices and models that routes stand on do not disappear.
        found = plan.spec if plan is not None else parse_spec("ModelCatalog", view.accepted.get(f"ModelCatalog/{name}"))
        if plan is None:
            missing.append(name)
        if isinstance(found, CatalogSpec):
            thing = plan.source.thing if plan is not None else None
            current = isinstance(thing, ModelCatalog) and thing.spec is found
            laid.append(thing if current else ModelCatalog(metadata=Metadata(name=name), spec=found))  # type: ignore[arg-type]
    return tuple(laid), missing


def _resolved(fleet: Source[ProxySpec], spec: ProxySpec, missing: Sequence[str], world: World) -> Finding:
    if missing:
        names = ", ".join(repr(name) for name in missing)
        return Finding(
            False,
            conditions.CATALOG_NOT_FOUND,
            f"spec.catalogRefs names {names}; there is no such ModelCatalog. Apply it, or remove the reference."
            f" What was last accepted of that name, if anything, stays in force.",
        )
    for index, channel in enumerate(spec.upstream.channels):
        secret = f"{fleet.namespace}/{channel.api_key_secret_ref.name}"
        if world.secrets.get(secret) is False:
            return Finding(
                False,
                conditions.SECRET_NOT_FOUND,
                f"spec.upstream.channels[{index}] ({channel.name}) names Secret {secret}, key"
                f" {channel.api_key_secret_ref.key_or_default!r}; it is not there, or holds no API key. Create it with the"
                f" channel's API key. Models of the other channels are served meanwhile.",
            )
    return RESOLVED
