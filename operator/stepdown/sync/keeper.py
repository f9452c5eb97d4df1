"""Puts a pass into force: bound in the ledger, remembered, published. `local.engine` and `watch.engine` call this.

The order is the point. What is published must be bound before, or a proxy could spend from an account that nobody guards; what
is in force must be remembered, or an object that turns invalid would leave nothing behind. Every step is the same again for the
same pass, so a keeper that was killed between two of them just does them all.
"""

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

from stepdown.budget.account import Balance, Binding
from stepdown.budget.months import day_of
from stepdown.budget.verdict import judge
from stepdown.model.config import Fleet, account_id, digest
from stepdown.plan.budgets import BudgetPlan
from stepdown.plan.orders import purchase_orders
from stepdown.plan.plan import Plan
from stepdown.plan.world import AcceptedSpec, uid_of
from stepdown.reconcile import Decided
from stepdown.render.config import FleetConfig
from stepdown.sync.news import Board
from stepdown.sync.service import SyncService
from stepdown.sync.view import accepted_specs


class Keeper:
    """What is in force: bindings, accepted specs and every fleet's config as last published."""

    def __init__(self, service: SyncService, *, at: Callable[[Fleet], Fleet] | None = None, board: Board | None = None) -> None:
        """`at` may change what a fleet's proxies are told, such as the upstream. `board`: where they hear of it at once."""
        self._service, self._at, self._board = service, at or _as_it_is, board
        self._bindings: dict[str, Binding] | None = None
        self._bound_anew = False
        """Since something was last published."""
        self._published: dict[str, FleetConfig] = {}
        self._orders: dict[str, str] | None = None
        self._booked: tuple[object, ...] = ()
        """What the purchase orders were last made from."""
        self.accepted: Mapping[str, AcceptedSpec] = {}
        """What the ledger keeps, by UID: an input of the next pass."""

    async def start(self) -> None:
        """Reads what was in force before. Raises a LedgerError."""
        self.accepted = await self._service.call(accepted_specs)

    async def bind(self, made: Decided) -> bool:
        """First. True: accounts changed, and may have opened with money spent: judge again by what the ledger says now."""
        asked = made.bindings
        bindings = {each.account: each for each in asked}
        if bindings == self._bindings:
            return False
        await self._service.bind(asked)
        self._bindings, self._bound_anew = bindings, True
        return True

    async def remember(self, accept: Mapping[str, AcceptedSpec], gone: Collection[str] = ()) -> None:
        """Second: keeps what is in force now, and forgets objects that are gone."""
        gone = sorted(gone)
        if accept or gone:
            new = {uid: (each.generation, each.spec_json) for uid, each in accept.items()}
            await self._service.call(lambda ledger: ledger.accept(new, gone))
            forgotten = frozenset(gone)
            self.accepted = {uid: each for uid, each in self.accepted.items() if uid not in forgotten} | dict(accept)

    async def book(self, plan: Plan, now_s: float) -> None:
        """Keeps under which purchase order each route's spend is booked from today on."""
        world = plan.world
        made_of = (world.routes, world.invalid, world.budgets, world.namespace_labels)
        if all(one is other for one, other in zip(made_of, self._booked, strict=False)) and self._booked:
            return
        wanted = purchase_orders(plan)
        if self._orders is None:
            self._orders = await self._service.call(lambda ledger: ledger.orders())
        changed = {route: order for route, order in wanted.items() if order != self._orders.get(route, "")}
        if changed:
            await self._service.call(lambda ledger: ledger.book(changed, day_of(now_s)))
            self._orders |= changed
        self._booked = made_of

    def publish(self, configs: Mapping[str, FleetConfig]) -> tuple[str, ...]:
        """Last: the fleets whose proxies have something new to fetch.

        What is bound anew may be nothing to a fleet: then the config that its proxies have stands for that as well.
        """
        changed = []
        for name, config in configs.items():
            before = self._published.get(name)
            if before is None or config.fleet is not before.fleet or _differ(config, before):
                fleet = self._at(config.fleet)
                self._service.publish(fleet, config.shards)
                if self._board is not None:
                    self._board.publish(name, digest(fleet), config.digests)
                changed.append(name)
            elif self._bound_anew:
                self._service.publish(self._at(config.fleet), config.shards)
        self._bound_anew = False
        self._published = dict(configs)  # without fleets that are gone: one that comes again is published again
        return tuple(changed)


def moved(plan: Plan, balances: Mapping[str, Balance]) -> bool:
    """Whether some budget stands elsewhere than when it was judged: at another step, its ceiling holds now or waits for
    somebody else, or a model has cost more than it could."""
    return any(_moved(budget, balances) for budget in plan.budgets.values())


def next_steps(plan: Plan) -> dict[str, int]:
    """By account: at what spend its budget stands at another step than now, in nUSD. None that has passed its last one."""
    found = {}
    for budget in plan.budgets.values():
        if budget.terms is None or budget.period is None:
            continue
        ahead = [each.at_percent for each in budget.terms.steps if Fraction(each.at_percent, 100) > budget.used]
        if budget.used < 1:
            at_percent = min([*ahead, 100])
            held_nusd = budget.balance.unreconciled_nusd if budget.balance is not None else 0
            account = account_id(budget.key, budget.period.start_s)
            found[account] = -(-budget.limit_nusd * at_percent // 100) - held_nusd
    return found


def gone(accepted: Mapping[str, AcceptedSpec], plan: Plan) -> set[str]:
    """What need not be remembered any more: specs of objects that are gone, but not of a catalog that a fleet still names."""
    world = plan.world
    kinds = (world.routes, world.budgets, world.proxies, world.catalogs, world.invalid)
    here = {uid_of(each) for kind in kinds for each in kind}
    for fleet in plan.fleets.values():
        if fleet.spec is not None:
            here |= {f"ModelCatalog/{ref.name}" for ref in fleet.spec.catalog_refs}
    return accepted.keys() - here


def _moved(budget: BudgetPlan, balances: Mapping[str, Balance]) -> bool:
    if budget.terms is None or budget.period is None:
        return False
    balance = balances.get(account_id(budget.key, budget.period.start_s))
    if balance is None:
        return False
    used = Fraction(balance.spent_nusd + balance.unreconciled_nusd, budget.limit_nusd)
    known = budget.balance
    return (
        judge(budget.terms.steps, used) != budget.verdict
        or known is None
        or (known.enforced, known.unheard, known.overruns) != (balance.enforced, balance.unheard, balance.overruns)
    )


def _differ(config: FleetConfig, before: FleetConfig) -> bool:
    return any(config.shards[index] is not before.shards[index] for index in config.shards)


def _as_it_is(fleet: Fleet) -> Fleet:
    return fleet
