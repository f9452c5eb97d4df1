"""All that takes part in one schedule, and what can be done to it. `schedule` decides what is done when."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path

from stepdown.budget.account import Binding
from stepdown.ledger.errors import LedgerError
from stepdown.model.config import Account, Budget, Parameters, PriceFrom, Shard, account_id
from stepdown.proxy.fit import DRAIN_S
from stepdown.proxy.wal import LogUnavailable
from tests.proof.host import FLEET, Host, State
from tests.proof.keeper import Keeper, MemoryWitness, Plan, forget, put_back, snapshot
from tests.proof.loop import ProofLoop
from tests.proof.network import Network
from tests.proof.sums import Sums
from tests.proof.truth import Promise, Truth
from tests.proof.upstream import BEGAN_USD, Upstream, price
from tests.unit.proxy_money import EDGE_S, END_S, NOW_S, START_S, fleet, model, route, shards
from tests.upstream.bill import Price

AFTER_S = END_S + (END_S - EDGE_S)
HORIZON_S, TIMEOUT_S, WAIT_S = 12.0, 6.0, 4.0
LONGEST_S = TIMEOUT_S + DRAIN_S
ROUTES = {
    "shop/chat": ("shop/team", "shop/all"),
    "shop/batch": ("shop/all", "shop/seen"),
    "shop/search": ("shop/search", "shop/team", "shop/all"),
}
"""By route the budgets that bind it, while they exist. `shop/seen` is Soft."""


class World:
    """Everybody."""

    def __init__(self, seed: int, folder: Path, loop: ProofLoop, *, proxies: int, now_s: float = NOW_S) -> None:
        self.seed, self.folder, self.loop = seed, folder, loop
        self.chance = random.Random(f"world {seed}")
        self._began_s = loop.time()
        self.now_s = now_s
        """The true time, Unix seconds, when the schedule begins; `wall_s` says it later."""
        self.steps_s = 0.0
        """How far the keeper's clock is off."""
        self.truth = Truth(loop.time)
        self.truth.look, self.truth.calm = self.look, self.is_calm
        self.upstream = loop.upstream = Upstream(seed, self.truth)
        self.witness = MemoryWitness(random.Random(f"witness {seed}"))
        self.network = Network(random.Random(f"network {seed}"), self.keeper_of)
        self.limits: dict[str, int] = {}
        self.dearer_from_s: float | None = None
        self.dearer_times = 1
        self.keepers: list[Keeper] = []
        """Those that run; the last one leads."""
        self._terms = 0
        self.has_witness = True
        self.forgets = False
        """A keeper that is broken on purpose: with each start it has forgotten what is granted and not yet spent."""
        self.soft = {"shop/seen"}
        self.ledger_room: int | None = None
        """Its disk is full behind this byte of each file; None: it is not."""
        self.stuck: set[Host] = set()
        """Still speak with the earlier leader."""
        self.path = folder / "ledger.db"
        self.backups: list[Path] = []
        self.put_back = self.unbound = False
        self.doubted: set[str] = set()
        """By all keepers since an older copy was put back."""
        self.keeping = asyncio.Lock()
        """One thing at a time is done to the keeper."""
        self.settled: dict[str, dict[str, int]] = {}
        """By instance that an administrator settled: what it consumed, by his word."""
        self.hosts = [
            Host(f"pod-{number}", folder / f"pod-{number}", loop, self.truth, self.network.sync, self.chance)
            for number in range(proxies)
        ]

    def wall_s(self) -> float:
        return self.now_s + self.loop.time() - self._began_s

    def ledger_s(self) -> float:
        return self.wall_s() + self.steps_s

    # The plan

    def plan(self) -> Plan:
        edges = (START_S, EDGE_S, END_S, AFTER_S)
        first = 0 if self.ledger_s() < EDGE_S else 1
        spans = [(edges[index], edges[index + 1]) for index in (first, first + 1)]
        bindings, budgets = [], []
        for name, limit in self.limits.items():
            hard = name not in self.soft
            bound = frozenset(route for route, names in ROUTES.items() if name in names)
            bindings += [Binding(name, start_s, end_s, limit, hard, bound) for start_s, end_s in spans]
            accounts = tuple(Account(id=account_id(name, s), start_s=s, end_s=e, limit_nusd=limit) for s, e in spans)
            budgets.append(Budget(name=name, hard=hard, accounts=accounts))
        return Plan(bindings, fleet(lease_horizon_s=HORIZON_S, wait_s=WAIT_S), self._shards(budgets))

    def _shards(self, budgets: list[Budget]) -> dict[int, Shard]:
        routes = [
            route(
                name,
                budgets=[each for each in names if each in self.limits],
                parameters=Parameters(timeout_s=TIMEOUT_S),
            )
            for name, names in ROUTES.items()
        ]
        models = []
        for name, output in (("big", 10_000), ("mid", 5_000), ("small", 1_000)):
            prices = [PriceFrom(0, 1_000, 500, output)]
            if self.dearer_from_s is not None:
                times = self.dearer_times
                prices.append(PriceFrom(int(self.dearer_from_s), 1_000 * times, 500 * times, output * times))
            models.append(model(name, prices=tuple(prices)))
        return shards(routes, models, budgets)

    def dear(self, promise: Promise) -> Price:
        """The dearest price from a request's admission to its longest end, by arithmetic of the upstream's kind."""
        from_s = self.dearer_from_s
        dearer = from_s is not None and int(from_s) <= promise.admitted_s + LONGEST_S
        return price(BEGAN_USD[promise.model], self.dearer_times if dearer else 1)

    # The keeper

    @property
    def leader(self) -> Keeper | None:
        return self.keepers[-1] if self.keepers and self.keepers[-1].ready else None

    def keeper_of(self, host: Host) -> Keeper | None:
        if host in self.stuck and len(self.keepers) > 1:
            return self.keepers[0]
        return self.leader

    async def start_keeper(self, *, beside: bool = False, older: bool = False) -> Keeper:
        """`older`: on a copy that was put back. Raises LedgerError."""
        self._terms += 1
        if self.forgets and self.path.exists():
            forget(self.path)
        keeper = Keeper(
            f"stepdown-{self._terms}",
            self.path,
            self.witness if self.has_witness else None,
            self.ledger_s,
            random.Random(f"keeper {self.seed} {self._terms}"),
            beside=beside,
            room=lambda: self.ledger_room,
        )
        if older:
            self.doubted |= {view.name for view in keeper.instances()}
        keeper.doubted = self.doubted
        self.keepers.append(keeper)
        try:
            await keeper.begin(self.plan())
        except LedgerError:  # It ends, and is started again until its disk takes something.
            await keeper.kill()
            self.keepers.remove(keeper)
            await asyncio.sleep(1.0)
            return await self.start_keeper(beside=beside)
        self._bound(keeper)
        self.truth.disturbed()
        return keeper

    async def put_in_force(self) -> None:
        """A pass: what was edited holds from here on, if the keeper is there; else once it is."""
        keeper = self.leader
        if keeper is None:
            return
        try:
            await keeper.put_in_force(self.plan())
        except (LedgerError, RuntimeError, asyncio.CancelledError):
            return
        self._bound(keeper)
        self.truth.disturbed()

    def _bound(self, keeper: Keeper, sums: Mapping[str, Sums] | None = None) -> None:
        """What is in force is the ceiling, once the keeper knows what is committed."""
        self.unbound = keeper.process.alive and not keeper.knows
        if not keeper.process.alive or self.unbound or keeper.plan is None:
            return
        sums = keeper.sums.read() if sums is None else sums
        for binding in keeper.plan.bindings:
            account = sums.get(binding.account)
            if account is None:
                continue
            if not binding.hard:
                self.truth.freed(binding.account)
            elif binding.account not in self.truth.softened:
                self.truth.bound(binding.account, account.limit, account.committed)
            elif self._is_enforced(keeper, binding.account):
                self.truth.hardened(binding.account, account.limit, account.committed)

    def _is_enforced(self, keeper: Keeper, account: str) -> bool:
        """By the keeper's word; of those that it has given up, none runs. (One that cannot hear goes on by what it knew.)"""
        heard = {view.name for view in keeper.instances() if view.state == "open"}
        live = all(host.till.log.identity.instance in heard for host in self.truth.hosts)
        return live and keeper.balances()[account].enforced

    async def kill_keepers(self) -> None:
        for keeper in self.keepers:
            await keeper.kill()
        self.keepers.clear()
        self.stuck.clear()
        self.truth.disturbed()

    async def stop_keepers(self) -> None:
        for keeper in self.keepers:
            await keeper.stop()
        self.keepers.clear()
        self.stuck.clear()
        self.truth.disturbed()

    async def settle_lost(self) -> None:
        """An administrator reads the upstream's bill for whoever is lost."""
        keeper = self.leader
        if keeper is None:
            return
        for view in keeper.instances():
            if view.state != "lost":
                continue
            true = self.truth.statement(view.name)
            stated = {lease.account: max(lease.consumed_nusd, true.get(lease.account, 0)) for lease in view.leases}
            try:
                await keeper.settle(view.name, stated)
            except LedgerError:
                continue
            self.settled[view.name] = stated
            self.truth.tally.note("settled")
        self.truth.disturbed()

    async def take_over(self) -> None:
        """Another leads. Some proxies go on speaking with the earlier one until they find out."""
        if self.leader is None:
            return
        self.stuck = {host for host in self.hosts if self.chance.random() < 0.6}
        await self.start_keeper(beside=True)
        await asyncio.sleep(self.chance.uniform(0.5, 4.0))
        self.stuck.clear()
        await asyncio.sleep(self.chance.uniform(0.0, 2.0))
        for keeper in self.keepers[:-1]:
            await keeper.kill()
        del self.keepers[:-1]

    def ledger_log_bytes(self) -> int:
        log = Path(f"{self.path}-wal")
        return log.stat().st_size if log.exists() else 0

    def back_up(self) -> None:
        copy = self.folder / f"backup-{len(self.backups)}.db"
        snapshot(self.path, copy)
        self.backups.append(copy)

    async def restore(self) -> None:
        """The newest backup but for the last is put in the ledger's place."""
        await self.kill_keepers()
        put_back(self.path, self.chance.choice(self.backups))
        self.put_back = self.truth.put_back = True
        await self.start_keeper(older=True)

    # Looks

    def look(self) -> None:
        """Reads the ledger beside its keeper, and holds it against what is true."""
        keeper = self.leader
        if keeper is None or not keeper.process.alive or keeper.stopping:
            return
        sums = keeper.sums.read()
        live = {host.till.log.identity.instance for host in self.truth.hosts}
        believed: dict[str, int] = {}
        for name, account in sums.items():
            heard = sum(lease.committed for lease in account.leases if lease.instance in live)
            self.truth.others[name] = account.committed - heard
            believed[name] = sum(
                lease.committed - lease.consumed for lease in account.leases if lease.is_open and lease.instance in self.doubted
            )
        if self.unbound or self.truth.softened:
            self._bound(keeper, sums)
        if keeper.knows:
            self.truth.committed(sums, believed, self.ledger_s())

    def is_calm(self) -> bool:
        keeper = self.leader
        stuck = (
            self.witness.away
            or self.ledger_room is not None
            or keeper is None
            or keeper.service.standstill
            or any(host.full for host in self.hosts)
        )
        return not stuck

    # Proxies

    async def kill(self, host: Host, state: State, after_s: float) -> None:
        host.strike()
        await self.revive(host, state, after_s)

    async def revive(self, host: Host, state: State, after_s: float) -> None:
        await host.bury()
        self.truth.tally.note(f"log {state}")
        await asyncio.sleep(after_s)
        host.find(state)
        while True:
            try:
                await host.restart(state)
            except LogUnavailable:
                await asyncio.sleep(1.0)
                host.empty_disk()
            else:
                return

    async def replace(self, host: Host) -> None:
        """A rollout: the pod drains and ends, and one with a new name and directory takes its place."""
        if not host.alive:
            return
        index = self.hosts.index(host)
        closed = await host.leave()
        if not closed:
            self.truth.gone(host.till.log.identity.instance, self.truth.killed(host.till.holds()))
        name = f"{host.name}'"
        self.hosts[index] = fresh = Host(name, self.folder / name, self.loop, self.truth, self.network.sync, self.chance)
        fresh.striking = host.striking
        fresh.start()


__all__ = ["FLEET", "World"]
