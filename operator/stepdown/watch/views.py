"""What `/v1/status` answers, as it goes over the wire: all that a plan needs and that the objects in the cluster do not say.

`run` asks for it, `http` serves it, and the command line reads it back by the same type, through the API server. Fields are
only ever added, each with a default: the command may be older or newer than the operator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stepdown import __version__
from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from stepdown.ledger.views import InstanceView
from stepdown.plan.plan import Plan
from stepdown.plan.world import AcceptedSpec, FleetSeen, ProxiesSeen, RouteTotals
from stepdown.sync.service import SyncService
from stepdown.sync.view import accepted_specs, route_totals

Balances = Mapping[str, Balance]
Totals = Mapping[str, RouteTotals]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The operator's side of a World and a LedgerView, at one moment."""

    now_s: float
    """By the ledger's clock."""
    version: str = ""
    operator_namespace: str = "stepdown-system"
    allowed_upstreams: tuple[str, ...] = ("*",)
    fleet_namespaces: tuple[str, ...] = ("*",)
    secrets: Mapping[str, bool | None] = field(default_factory=dict)
    fleets: Mapping[str, FleetSeen] = field(default_factory=dict)
    balances: Balances = field(default_factory=dict)
    """By account, those of ended periods included."""
    totals: Totals = field(default_factory=dict)
    """By route, in the current calendar month in UTC."""
    accepted: Mapping[str, AcceptedSpec] = field(default_factory=dict)
    """By UID: what was last accepted of objects that are not valid now, and of catalogs that are gone."""
    proxies: Mapping[str, ProxiesSeen] = field(default_factory=dict)
    instances: tuple[InstanceView, ...] = ()


async def overview(service: SyncService, plan: Plan, now_s: float) -> Overview:
    """As of now; `plan` is the one in force."""

    def read(ledger: Ledger) -> tuple[Balances, Totals, dict[str, AcceptedSpec], tuple[InstanceView, ...]]:
        balances = ledger.balances(now_s, ended=True)
        return balances, route_totals(ledger, now_s), accepted_specs(ledger), tuple(ledger.instances())

    balances, totals, accepted, instances = await service.call(read)
    world = plan.world
    for plans in (plan.routes, plan.budgets, plan.fleets, plan.catalogs):
        for each in plans.values():
            if each.in_force == "Current":
                accepted.pop(each.source.uid, None)
    return Overview(
        now_s=now_s,
        version=__version__,
        operator_namespace=world.operator_namespace,
        allowed_upstreams=world.allowed_upstreams,
        fleet_namespaces=world.fleet_namespaces,
        secrets=world.secrets,
        fleets=world.fleets,
        balances=balances,
        totals=totals,
        accepted=accepted,
        proxies=service.proxies(now_s),
        instances=instances,
    )
