"""A threshold that one request crosses, in a budget over every route: how soon every proxy steps down, and all can see it.

Each crossing has a budget of its own, so that its Events are new. It opens with what the month has cost; then its limit is set
so that a few requests of one proxy cross 80 %. Which one does is told by the costs that the answers name. `Soft` budgets lease
nothing: no proxy ever asks for money, and the operator hears of the request with that proxy's next sync only. `Hard` ones
lease, as in use.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from tests.cluster.operator_world import Operator

from bench.machine import BenchError
from bench.plane.api import Api, Thing, Watch
from bench.plane.change import request, summary
from bench.plane.probe import Asking, served
from bench.plane.scene import DEAR, FREE, LOWER_TIER, Scene
from stepdown.model.money import nusd_to_usd, usd_to_nusd

ROUTE = f"{FREE}-0000"
AT_PERCENT = 80
_BEFORE = 10
"""Requests until the one that crosses, about."""
_WORDS, _TOKENS = 1500, 500
_SEED = 400
"""Dear requests before the first crossing, so that a month's cost is many times a request's, as in use."""
_SYNCED_S = 3.0
_VISIBLE_S = 30.0
_AMPLE_USD = "1000.00"
_STEP = {"atPercent": AT_PERCENT, "action": "StepDown", "maxTier": LOWER_TIER}


@dataclass(slots=True)
class Seen:
    """One crossing, in seconds after the answer of the request that crossed."""

    served_s: list[float]
    step_s: float
    event_s: float
    statuses_s: float
    request_s: float
    """How long that request took."""


async def crossings(scene: Scene, operator: Operator, count: int, routes: int) -> dict[str, Any]:
    """`routes`: how many there are, all of which each budget binds."""
    made: dict[str, Any] = {}
    async with (
        Api(scene.cluster, scene.namespace) as api,
        api.watch("ModelRoute") as every,
        api.watch("SpendBudget") as budgets,
        api.watch("Event") as events,
    ):
        connections = [await Asking.open(proxy.port) for proxy in scene.proxies]
        for _ in range(_SEED):
            await _spend(connections[0], DEAR)
        crossing = _Crossing(scene, operator, api, _Watches(every, budgets, events), connections, routes)
        for kind in ("Soft", "Hard"):
            made[kind.lower()] = _summed([await crossing.seen(kind, number) for number in range(count)])
        for each in connections:
            each.close()
    return made


class _Watches(NamedTuple):
    routes: Watch
    budgets: Watch
    events: Watch


class _Crossing:
    """One after the other, each by a budget of its own."""

    def __init__(
        self, scene: Scene, operator: Operator, api: Api, watches: _Watches, connections: list[Asking], routes: int
    ) -> None:
        self._scene, self._operator, self._api, self._watches = scene, operator, api, watches
        self._connections, self._routes = connections, routes
        self._rest = random.Random(2)

    async def seen(self, kind: str, number: int) -> Seen:
        name = f"all-{kind.lower()}-{number:02}"
        limit_nusd = await self._budget(name, kind)
        await self._wanted(f"{name} is far enough from its step")
        for each in self._connections:
            await each.ask(request(ROUTE))  # whatever has to be leased is leased
        await asyncio.sleep(_SYNCED_S + self._rest.uniform(0.0, 1.0))
        step = asyncio.create_task(self._watches.budgets.first(lambda _, thing: _is_stepped(thing, name)))
        event = asyncio.create_task(self._watches.events.first(lambda _, thing: _is_event(thing, name)))
        spender = self._connections[number % len(self._connections)]
        crossed_s, request_s = await self._cross(spender, name, limit_nusd)
        taken_s = await served(self._connections, request(ROUTE), _steps, crossed_s, f"{name} steps {ROUTE} down")
        async with asyncio.timeout(_VISIBLE_S):
            step_s, event_s = await step - crossed_s, await event - crossed_s
        statuses_s = await self._told(name) - crossed_s
        await self._api.delete("SpendBudget", name)
        await self._wanted(f"{name} is gone")
        return Seen(taken_s, step_s, event_s, statuses_s, request_s)

    async def _budget(self, name: str, kind: str) -> int:
        """Binds every route, and stands a little below the threshold; its limit."""
        budgets = self._watches.budgets
        await self._api.create([self._scene.place.budget(name, _AMPLE_USD, enforcement=kind, steps=[_STEP])])
        await budgets.until(lambda found: _binds(found.get(name), self._routes, kind), f"{name} binds every route")
        await asyncio.sleep(_SYNCED_S)
        cost_nusd = await _spend(self._connections[0])
        await asyncio.sleep(_SYNCED_S)
        limit_nusd = (await self._spent_nusd(name) + _BEFORE * cost_nusd) * 100 // AT_PERCENT
        limit_usd = nusd_to_usd(limit_nusd)
        await self._api.patch("SpendBudget", name, {"monthlyLimitUSD": limit_usd})
        await budgets.until(lambda found: found[name].status.limit_usd == limit_usd, f"{name} has its limit")
        return limit_nusd

    async def _cross(self, spender: Asking, name: str, limit_nusd: int) -> tuple[float, float]:
        """Spends until the step is reached: when the answer of the request had come that did it, and how long that took."""
        spent_nusd = await self._spent_nusd(name)
        while True:
            began_s = time.monotonic()
            spent_nusd += await _spend(spender)
            if spent_nusd * 100 >= limit_nusd * AT_PERCENT:
                return time.monotonic(), time.monotonic() - began_s

    async def _told(self, name: str) -> float:
        """When every route's status says so."""
        try:
            return await self._watches.routes.until_all(self._routes, "SteppedDown")
        except BenchError as error:
            raise BenchError(f"{error}; {name} is {self._watches.budgets.objects[name].status}") from error

    async def _spent_nusd(self, name: str) -> int:
        """By the ledger."""
        status, told = await asyncio.to_thread(self._operator.get, "/v1/status")
        if status != 200:
            raise BenchError(f"the operator's /v1/status was answered {status}: {told[:500]}")
        balances = msgspec.json.decode(told, type=_Told).balances
        return sum(
            each.opening_nusd + each.settled_nusd
            for account, each in balances.items()
            if account.startswith(f"{self._scene.namespace}/{name}@")
        )

    async def _wanted(self, what: str) -> None:
        await served(self._connections, request(ROUTE), _is_wanted, time.monotonic(), f"{what}: {ROUTE} is served as wanted")


class _Balance(msgspec.Struct):
    opening_nusd: int
    settled_nusd: int


class _Told(msgspec.Struct):
    balances: dict[str, _Balance]


async def _spend(connection: Asking, route: str = ROUTE) -> int:
    answer = await connection.ask(request(route, words=_WORDS, most_tokens=_TOKENS))
    if answer.status != 200:
        raise BenchError(f"a request that should spend was answered {answer.status}: {answer.body[:500]!r}")
    return usd_to_nusd(connection.headers["x-stepdown-cost-usd"])


def _summed(seen: list[Seen]) -> dict[str, Any]:
    return {
        "crossings": len(seen),
        "all_proxies": summary([max(each.served_s) for each in seen]),
        "each_proxy": summary([taken for each in seen for taken in each.served_s]),
        "status_step": summary([each.step_s for each in seen]),
        "event": summary([each.event_s for each in seen]),
        "all_routes_status": summary([each.statuses_s for each in seen]),
        "request": summary([each.request_s for each in seen]),
    }


def _binds(thing: Thing | None, routes: int, kind: str) -> bool:
    """In force, and told so."""
    if thing is None or (thing.status.routes or {}).get("matched") != routes:
        return False
    wanted = "Soft" if kind == "Soft" else "Enforced"
    return any(each.type == "Enforced" and each.reason == wanted for each in thing.status.conditions)


def _is_stepped(thing: Thing, name: str) -> bool:
    return thing.metadata.name == name and thing.status.step.get("atPercent") == AT_PERCENT


def _is_event(thing: Thing, name: str) -> bool:
    return thing.involved_object.name == name and thing.reason == "SteppedDown"


def _steps(headers: Mapping[str, str]) -> bool:
    return headers.get("x-stepdown-reason") == "StepInForce"


def _is_wanted(headers: Mapping[str, str]) -> bool:
    return headers.get("x-stepdown-reason") == "Wanted"
