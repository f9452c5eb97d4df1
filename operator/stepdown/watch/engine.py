"""Keeps every fleet's config what the objects and the money say. `run` starts it once this process leads and has listed all.

One pass over everything, level-triggered: what there is counts, not what happened, so a lost event costs one resync at most.
Whoever knows of a change sets a flag (`wake`); all that comes within a few milliseconds shares a pass, and a pass judges only
what changed. Then, in this order: bind in the ledger, remember, publish to the proxies; children, statuses and Events follow
behind, each at its own pace, because the API server may be slow or away and proxies must not wait for it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from stepdown.budget.account import Balance
from stepdown.ledger.errors import LedgerError, LedgerFenced
from stepdown.model.config import Issuer
from stepdown.plan.plan import Plan
from stepdown.plan.world import FleetSeen, LedgerView, ProxiesSeen, RouteTotals, World
from stepdown.reconcile import Decided, Pass, decide, tell
from stepdown.sync import log
from stepdown.sync.clock import now_s
from stepdown.sync.keeper import Keeper, gone, moved, next_steps
from stepdown.sync.service import SyncService
from stepdown.sync.view import route_totals
from stepdown.watch.store import Store

COALESCE_S = 0.02
"""Changes that come together are judged together."""
TICK_S = 1.0
"""How often it is looked at what moves by itself: silence, time, what is held for lost proxies. That a step is reached is told
with the message by which it is."""
REFRESH_S = 10.0
"""How often money that moved within its step is put into statuses."""
TOTALS_S = 30.0
"""How often the routes' traffic is read, beside each time that a step changes; statuses show it once a minute."""
HEAR_S = 5.0
"""How long proxies have to report after a start; before that nothing is known of them, and statuses keep what they say."""
RETRY_S = (0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator's administrator decides about every world."""

    operator_namespace: str
    allowed_upstreams: tuple[str, ...]
    fleet_namespaces: tuple[str, ...]


class Engine:
    """The loop. `run` until cancelled."""

    def __init__(self, store: Store, keeper: Keeper, service: SyncService, rules: Rules, *, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._store, self._keeper, self._service, self._rules = store, keeper, service, rules
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._woken = asyncio.Event()
        self._totals: Mapping[str, RouteTotals] = {}
        self._totals_s = float("-inf")
        self._balances: Mapping[str, Balance] = {}
        self._judged_s = 0.0
        self._proxies: Mapping[str, ProxiesSeen] = {}
        self._began_s = now_s()
        self._heard = False
        self._wrong = ""
        self._next_steps: dict[str, int] = {}
        """By account: the spend at which a pass must follow. Once told, it is not told again."""
        service.spent = self._spent
        self.made: Pass | None = None
        """The last pass that is in force."""
        self.waiting = False
        """Whether a change waits for its pass."""
        self.done: Callable[[Pass, Pass | None], None] = _nothing
        """Told each pass that has been published, and the one before it."""
        self.took: Callable[[float], None] = lambda seconds: None
        """Told how long it took."""
        self.failed: Callable[[], None] = lambda: None
        """Told when the ledger let none through."""
        self.fleets: Callable[[], Mapping[str, FleetSeen]] = dict
        """What the cluster has of each fleet."""
        self.issuer: Callable[[], Issuer | None] = lambda: None
        """Of callers' tokens."""

    def wake(self) -> None:
        """Something may have changed."""
        self.waiting = True
        self._woken.set()

    async def first(self) -> None:
        """The first pass, after everything was listed; when it returns, the config is published. Raises a LedgerError."""
        while self.made is None:
            await self._pass()

    async def run(self) -> None:
        """Until cancelled. Raises what it cannot live with, such as a ledger that another leader has taken."""
        failed = 0
        while True:
            try:
                if await self._due():
                    await self._pass()
                failed, self._wrong = 0, ""
            except LedgerFenced:
                raise
            except LedgerError as error:
                failed += 1
                self.failed()
                self._say_once(f"the ledger: {error}. What is in force stays in force until it works again")
                await asyncio.sleep(RETRY_S[min(failed, len(RETRY_S)) - 1])
                self._woken.set()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    # When ------------------------------------------------------------------------------------------------------------

    async def _due(self) -> bool:
        """Waits for a flag, or for one tick; whether there is something to judge."""
        try:
            async with asyncio.timeout(self._tick_s):
                await self._woken.wait()
        except TimeoutError:
            return self.made is not None and await self._moved(self.made)
        await asyncio.sleep(COALESCE_S)
        return True

    async def _moved(self, made: Pass) -> bool:
        """Whether money, time or the proxies change what the last pass said."""
        now = now_s()
        if made.next_change_s is not None and now >= made.next_change_s:
            return True
        if self._service.proxies(now) != self._proxies or (not self._heard and now - self._began_s >= HEAR_S):
            return True
        balances = await self._service.call(lambda ledger: ledger.balances(now))
        if moved(made.plan, balances):
            return True
        if now - self._judged_s < REFRESH_S:
            return False
        # Those of ended periods too: an invoice comes after its month.
        balances = await self._service.call(lambda ledger: ledger.balances(now, ended=True))
        return any(self._balances.get(account) != balance for account, balance in balances.items())

    def _spent(self, account: str, spent_nusd: int) -> None:
        """By a proxy's message, as the ledger has it now."""
        step_nusd = self._next_steps.get(account)
        if step_nusd is not None and spent_nusd >= step_nusd:
            del self._next_steps[account]
            self.wake()

    # What ------------------------------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        self._woken.clear()
        self.waiting = False
        began_s = time.monotonic()
        now = now_s()
        proxies = self._service.proxies(now)
        world = self._world(proxies)
        assert world is not None, "everything was listed before"
        reported = self._reported(proxies, world, now)
        before = self.made
        decided, view = await self._decide(world, reported, now, before)
        if await self._keeper.bind(decided):
            # Accounts may have opened with money spent, and no proxy has acknowledged them: what was read before is not so now.
            decided, view = await self._decide(world, reported, now, decided)
            if await self._keeper.bind(decided):
                self.wake()
        await self._keeper.remember(dict(decided.accept), gone(self._keeper.accepted, decided.plan))
        self._keeper.publish(decided.configs)
        await self._keeper.book(decided.plan, now)
        self._next_steps = next_steps(decided.plan)
        self.took(time.monotonic() - began_s)
        view = replace(view, totals=await self._route_totals(now, at_once=before is None or _stepped(decided, before)))
        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._thread, tell, decided, view, now, before)
        self.made, self._balances, self._proxies, self._judged_s = made, view.balances, proxies, now
        self.done(made, before)

    async def _decide(
        self, world: World, reported: Mapping[str, ProxiesSeen], now: float, before: Decided | None
    ) -> tuple[Decided, LedgerView]:
        """By what the ledger says now."""
        balances = await self._service.call(lambda ledger: ledger.balances(now, ended=True))
        view = LedgerView(balances, self._keeper.accepted, {}, reported, settled=self._heard)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, decide, world, view, now, before), view

    def _world(self, proxies: Mapping[str, ProxiesSeen]) -> World | None:
        return self._store.world(
            operator_namespace=self._rules.operator_namespace,
            allowed_upstreams=self._rules.allowed_upstreams,
            fleet_namespaces=self._rules.fleet_namespaces,
            secrets=secrets_seen(self.made.plan, proxies) if self.made is not None else {},
            fleets=self.fleets(),
            issuer=self.issuer(),
        )

    def _reported(self, proxies: Mapping[str, ProxiesSeen], world: World, now: float) -> Mapping[str, ProxiesSeen]:
        """An entry for every fleet whose proxies would have reported by now; right after the start that is only one without."""
        self._heard = self._heard or now - self._began_s >= HEAR_S
        keys = [each.key for each in world.proxies]
        keys += [each.key for each in world.invalid if each.kind == "RoutingProxy"]
        idle = {key for key, seen in world.fleets.items() if not seen.ready_replicas}
        return {key: proxies.get(key, ProxiesSeen(0)) for key in keys if self._heard or key in idle}

    async def _route_totals(self, now: float, *, at_once: bool) -> Mapping[str, RouteTotals]:
        if at_once or now - self._totals_s >= TOTALS_S:
            self._totals = await self._service.call(lambda ledger: route_totals(ledger, now))
            self._totals_s = now
        return self._totals

    def _say_once(self, message: str) -> None:
        if message != self._wrong:
            self._wrong = message
            log.error(message, event="ledger")


def _stepped(decided: Decided, before: Pass) -> bool:
    """Whether some budget stands at another step than before: then its routes' statuses are written, with what they cost."""
    known = before.plan.budgets
    return any(key not in known or known[key].verdict != each.verdict for key, each in decided.plan.budgets.items())


def secrets_seen(plan: Plan, proxies: Mapping[str, ProxiesSeen]) -> dict[str, bool | None]:
    """Whether proxies see each Secret that a channel names, by `namespace/name`: the operator may read none itself."""
    found: dict[str, bool | None] = {}
    for key, fleet in plan.fleets.items():
        seen = proxies.get(key)
        if fleet.spec is None or seen is None:
            continue
        for channel in fleet.spec.upstream.channels:
            there = seen.keys.get(channel.name)
            if there is not None:
                secret = f"{fleet.source.namespace}/{channel.api_key_secret_ref.name}"
                found[secret] = there and found.get(secret) is not False
    return found


def _nothing(made: Pass, before: Pass | None) -> None:
    """Until somebody wants to be told."""
