"""The operator's loop over a real ledger: what changes is judged and published, and nothing happens while nothing changes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stepdown.ledger import Ledger
from stepdown.model.config import account_id, shard_of
from stepdown.model.sync import Counter, LeaseReport, SyncAnswer, SyncRequest
from stepdown.plan.world import ProxiesSeen
from stepdown.reconcile import Pass
from stepdown.sync.clock import now_s
from stepdown.sync.keeper import Keeper
from stepdown.sync.service import SyncService
from stepdown.watch.engine import TICK_S, Engine, Rules, secrets_seen
from stepdown.watch.store import WATCHED, Store, read

RULES = Rules("stepdown-system", ("https://global-apis.com/v1",), ("*",))


def thing(kind: str, name: str, version: int, spec: dict[str, Any], *, generation: int = 1, uid: str = "") -> dict[str, Any]:
    metadata = {"name": name, "uid": uid or f"{kind}-{name}", "resourceVersion": str(version), "generation": generation}
    if kind != "ModelCatalog":
        metadata["namespace"] = "shop"
    return {"apiVersion": "stepdown.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


PROXY = {"upstream": {"channels": [{"name": "standard", "apiKeySecretRef": {"name": "upstream"}}]}}
BUDGET = {"monthlyLimitUSD": "1.00", "steps": [{"atPercent": 50, "action": "StepDown", "maxTier": "UltraBudget"}]}
ROUTE = {"models": {"default": "Qwen3-14B"}}


class Operator:
    """Store, ledger and engine, without an API server."""

    def __init__(self, path: Path, tick_s: float) -> None:
        self.path, self.tick_s = path, tick_s
        self.store = Store()
        self.passes: list[Pass] = []
        self.seq = 0

    async def start(self) -> None:
        self.service = SyncService(Ledger.open(self.path, create=True), now_s)
        self.keeper = Keeper(self.service)
        await self.keeper.start()
        self.engine = Engine(self.store, self.keeper, self.service, RULES, tick_s=self.tick_s)
        self.judged = asyncio.Event()
        self.engine.done = self.done
        self.service.changed = lambda fleet: self.engine.wake()
        await self.engine.first()
        self.running = asyncio.create_task(self.engine.run())

    def done(self, made: Pass, before: Pass | None) -> None:
        self.passes.append(made)
        self.judged.set()

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        self.engine.close()
        await self.service.close()

    def listed(self, *objects: dict[str, Any], at: int = 100) -> None:
        for kind in WATCHED:
            self.store.replace(kind, [read(each) for each in objects if each["kind"] == kind], at, self.store.newest(kind))

    def event(self, raw: dict[str, Any]) -> None:
        if self.store.put(read(raw)):
            self.engine.wake()

    async def until(self, holds: Callable[[Pass], bool]) -> Pass:
        async with asyncio.timeout(10):
            while not holds(self.passes[-1]):
                self.judged.clear()
                await self.judged.wait()
        return self.passes[-1]

    async def sync(self, instance: str = "i1", fleet: str = "shop/default", **more: Any) -> SyncAnswer:
        self.seq += 1
        return await self.service.sync(SyncRequest(instance=instance, fleet=fleet, seq=self.seq, ready=True, **more))


def run(path: Path, test: Callable[[Operator], Awaitable[None]], *objects: dict[str, Any], tick_s: float = TICK_S) -> None:
    async def main() -> None:
        operator = Operator(path / "ledger.db", tick_s)
        operator.listed(*objects)
        await operator.start()
        try:
            await test(operator)
        finally:
            await operator.stop()

    asyncio.run(main())


def fleet_objects() -> tuple[dict[str, Any], ...]:
    return (
        thing("RoutingProxy", "default", 1, PROXY),
        thing("SpendBudget", "team", 2, BUDGET),
        thing("ModelRoute", "chat", 3, ROUTE),
    )


def test_what_was_listed_is_published_before_anything_is_answered(tmp_path: Path) -> None:
    async def test(operator: Operator) -> None:
        answer = await operator.sync()
        assert answer.fleet is not None
        assert [route for shard in answer.shards for route in shard.routes] == ["shop/chat"]

    run(tmp_path, test, *fleet_objects())


def test_a_changed_route_reaches_the_next_answer(tmp_path: Path) -> None:
    async def test(operator: Operator) -> None:
        operator.event(thing("ModelRoute", "chat", 200, {"models": {"default": "Qwen3-8B"}}, generation=2))
        await operator.until(lambda made: made.plan.routes["shop/chat"].generation == 2)
        answer = await operator.sync()
        (shard,) = answer.shards
        assert shard.routes["shop/chat"].ladders["default"].rungs[0] == "qwen3-8b"

    run(tmp_path, test, *fleet_objects())


def test_a_budget_that_reaches_its_step_steps_its_routes_down_without_any_object_changing(tmp_path: Path) -> None:
    """By the very message that says so, not when somebody next looks; and the routes' statuses name what it was spent on."""

    async def test(operator: Operator) -> None:
        budget = operator.passes[-1].plan.budgets["shop/team"]
        assert budget.period is not None
        account = account_id("shop/team", budget.period.start_s)
        shard = shard_of("shop/chat")
        published = operator.passes[-1].configs["shop/default"].digests
        first = await operator.sync(digests=dict(published), acknowledged=dict(published))
        assert first.verdict == "ok"
        grant = LeaseReport(account=account, granted=0, returned=0, consumed=0, estimated=0, reserved=0, want=900_000_000)
        answer = await operator.sync(digests=dict(published), acknowledged=dict(published), leases=(grant,))
        (lease,) = [each for each in answer.leases if each.account == account]
        spent = LeaseReport(
            account=account, granted=lease.granted, returned=0, consumed=600_000_000, estimated=0, reserved=0, want=0
        )
        day = int(now_s()) // 86_400
        counter = Counter(
            route="shop/chat", model="Qwen3-14B", request_class="default", day=day, requests=3, cost_nusd=600_000_000
        )
        await operator.sync(digests=dict(published), acknowledged=dict(published), leases=(spent,), counters=(counter,))
        made = await operator.until(lambda made: made.configs["shop/default"].digests[shard] != published[shard])
        (budget,) = made.plan.routes["shop/chat"].forces
        assert (budget.max_tier, budget.at_percent) == ("UltraBudget", 50)
        status = made.statuses[("ModelRoute", "shop/chat")]
        assert (status["spend"]["usd"], status["spend"]["requests"]) == ("0.60", 3)

    run(tmp_path, test, *fleet_objects(), tick_s=3600.0)


def enforced(made: Pass) -> str:
    """What the budget's status says."""
    conditions = made.statuses[("SpendBudget", "shop/team")]["conditions"]
    return next(each["status"] for each in conditions if each["type"] == "Enforced")


@pytest.mark.parametrize("edit", ["made anew", "another route"])
def test_no_pass_says_that_a_ceiling_holds_which_no_proxy_has_heard_of(tmp_path: Path, edit: str) -> None:
    """Whoever waits for Enforced=True sends traffic that a proxy still serves without the budget."""

    async def acknowledge(operator: Operator) -> None:
        published = dict(operator.passes[-1].configs["shop/default"].digests)
        await operator.sync(digests=published, acknowledged=published)
        operator.engine.wake()

    async def test(operator: Operator) -> None:
        await acknowledge(operator)
        await operator.until(lambda made: enforced(made) == "True")
        proxy, _, route = fleet_objects()
        if edit == "made anew":
            operator.listed(proxy, route, at=200)
            operator.engine.wake()
            await operator.until(lambda made: not made.plan.budgets)
            await acknowledge(operator)
            number = len(operator.passes)
            operator.event(thing("SpendBudget", "team", 300, BUDGET, uid="another"))
        else:
            number = len(operator.passes)
            operator.event(thing("ModelRoute", "search", 300, ROUTE))
        await operator.until(lambda made: len(operator.passes) > number and bool(made.plan.budgets))
        operator.engine.wake()
        await operator.until(lambda made: len(operator.passes) > number + 1)
        assert {enforced(made) for made in operator.passes[number:] if made.plan.budgets} == {"False"}
        await acknowledge(operator)
        await operator.until(lambda made: enforced(made) == "True")

    run(tmp_path, test, *fleet_objects())


def test_a_fleet_that_a_route_is_nothing_to_does_not_keep_its_budget_from_being_enforced(tmp_path: Path) -> None:
    """Its proxies are sent nothing, so they would never acknowledge it: with two fleets no new route would ever be held."""

    async def acknowledge(operator: Operator) -> None:
        for instance, fleet in (("i1", "shop/default"), ("i2", "shop/other")):
            published = dict(operator.passes[-1].configs[fleet].digests)
            await operator.sync(instance, fleet, digests=published, acknowledged=published)
        operator.engine.wake()

    async def test(operator: Operator) -> None:
        await acknowledge(operator)
        await operator.until(lambda made: enforced(made) == "True")
        operator.event(thing("ModelRoute", "search", 300, ROUTE))
        await operator.until(lambda made: "shop/search" in made.plan.routes and enforced(made) == "False")
        await acknowledge(operator)
        await operator.until(lambda made: enforced(made) == "True")

    run(tmp_path, test, *fleet_objects(), thing("RoutingProxy", "other", 5, PROXY))


def test_nothing_is_judged_while_nothing_changes(tmp_path: Path) -> None:
    """A pass that nothing asked for would be the beginning of a write that nothing asked for."""

    async def test(operator: Operator) -> None:
        await asyncio.sleep(6)  # the proxies' time to report is over, which is one pass
        before = len(operator.passes)
        await asyncio.sleep(1.5)
        assert len(operator.passes) == before <= 4

    run(tmp_path, test, *fleet_objects())


def test_a_restart_goes_on_with_the_spec_that_was_in_force_before(tmp_path: Path) -> None:
    """A budget that was made invalid while the operator was away would otherwise bind nothing after its start."""

    async def nothing(operator: Operator) -> None: ...

    run(tmp_path, nothing, *fleet_objects())
    proxy, _, route = fleet_objects()
    broken = thing("SpendBudget", "team", 150, {"monthlyLimitUSD": "a lot"}, generation=2)

    async def test(operator: Operator) -> None:
        budget = operator.passes[-1].plan.budgets["shop/team"]
        assert (budget.in_force, budget.limit_nusd) == ("LastAccepted", 1_000_000_000)

    run(tmp_path, test, proxy, broken, route)


def test_an_object_of_the_same_name_made_anew_does_not_inherit_what_was_accepted(tmp_path: Path) -> None:
    async def test(operator: Operator) -> None:
        assert "SpendBudget-team" in operator.keeper.accepted
        operator.event(thing("SpendBudget", "team", 200, {"monthlyLimitUSD": "a lot"}, uid="another"))
        made = await operator.until(lambda made: made.plan.budgets["shop/team"].in_force == "Nothing")
        assert not made.plan.budgets["shop/team"].accepted.holds
        assert "SpendBudget-team" not in operator.keeper.accepted

    run(tmp_path, test, *fleet_objects())


def test_a_catalog_that_vanished_is_remembered_while_a_fleet_names_it(tmp_path: Path) -> None:
    """Its prices would vanish with it, and the next pass would find the fleet's routes unpriced."""
    catalog = thing(
        "ModelCatalog",
        "own",
        4,
        {
            "models": [
                {"name": "own-model", "provider": "Own", "tier": "Budget", "inputUSDPerMTok": "1", "outputUSDPerMTok": "1"}
            ]
        },
    )
    proxy = thing("RoutingProxy", "default", 1, {**PROXY, "catalogRefs": [{"name": "own"}]})
    route = thing("ModelRoute", "chat", 3, {"models": {"default": "own-model"}})

    async def test(operator: Operator) -> None:
        assert operator.passes[-1].plan.routes["shop/chat"].accepted.holds
        operator.store.remove("ModelCatalog", "own", 200)
        operator.engine.wake()
        made = await operator.until(lambda made: not made.plan.catalogs)
        operator.event(thing("ModelRoute", "other", 210, ROUTE))
        made = await operator.until(lambda made: "shop/other" in made.plan.routes)
        operator.event(thing("ModelRoute", "third", 220, ROUTE))
        made = await operator.until(lambda made: "shop/third" in made.plan.routes)
        assert made.plan.routes["shop/chat"].accepted.holds
        assert not made.plan.fleets["shop/default"].resolved.holds

    run(tmp_path, test, catalog, proxy, route)


def test_a_secret_is_missing_where_one_proxy_misses_it(tmp_path: Path) -> None:
    """The operator may read no Secret: what proxies say of their mounts is all there is."""

    async def test(operator: Operator) -> None:
        plan = operator.passes[-1].plan
        assert secrets_seen(plan, {}) == {}
        assert secrets_seen(plan, {"shop/default": ProxiesSeen(1, keys={"standard": False})}) == {"shop/upstream": False}
        assert secrets_seen(plan, {"shop/default": ProxiesSeen(1, keys={"standard": True})}) == {"shop/upstream": True}

    run(tmp_path, test, *fleet_objects())
