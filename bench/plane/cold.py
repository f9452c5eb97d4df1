"""How long until everything is Programmed: an operator that starts on what is there, and objects that come to one that runs."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from tests.cluster.operator_world import Operator

from bench.plane.api import Api, Watch
from bench.plane.scene import Scene, cpu_s, memory_mb, wait_ready

_MOST_S = 300.0
_SETTLED_S = 15.0


@dataclass(frozen=True, slots=True)
class Size:
    routes: int
    budgets: int
    free: int
    """Of the routes: how many are free of any team's budget and can be changed."""


async def started_cold(scene: Scene, size: Size) -> tuple[Operator, dict[str, Any]]:
    """Everything exists, nothing was ever reconciled; the clock starts with the operator's process, and pods' proxies start as
    soon as there are pods."""
    async with Api(scene.cluster, scene.namespace) as api:
        created_s = await api.create([scene.catalog(), scene.fleet(), *scene.budgets(size.budgets)])
        created_s += await api.create(scene.routes(size.routes, size.free, size.budgets))
        async with (
            api.watch("ModelRoute") as routes,
            api.watch("SpendBudget") as budgets,
            api.watch("ModelCatalog") as catalogs,
        ):
            operator, began_s = scene.operator(), time.monotonic()
            operator.launch()
            ready_s = await asyncio.to_thread(wait_ready, operator, began_s)
            proxies = asyncio.create_task(_until_proxies(scene, began_s))
            catalog = asyncio.create_task(catalogs.until_all(1, "Ready"))
            marks = await _marks(routes, budgets, size, began_s)
            catalog_s = await catalog - began_s
            await asyncio.sleep(_SETTLED_S)
            return operator, {
                "creating_s": round(created_s, 2),
                "published_s": round(ready_s, 2),
                "proxies_ready_s": round(await proxies, 2),
                **marks,
                "catalog_ready_s": round(catalog_s, 2),
                "cpu_s": round(cpu_s(operator.process.pid), 1),
                "memory_mb": memory_mb(operator.process.pid),
            }


async def created_warm(scene: Scene, operator: Operator, size: Size) -> dict[str, Any]:
    """All routes and budgets are deleted, and created anew beside an operator and proxies that run."""
    async with (
        Api(scene.cluster, scene.namespace) as api,
        api.watch("ModelRoute") as routes,
        api.watch("SpendBudget") as budgets,
    ):
        for kind, watch in (("ModelRoute", routes), ("SpendBudget", budgets)):
            await api.delete_all(kind)
            await watch.until(lambda found: not found, f"every {kind} is gone")
        await asyncio.sleep(_SETTLED_S)
        cpu, began_s = cpu_s(operator.process.pid), time.monotonic()
        created_s = await api.create([*scene.budgets(size.budgets), *scene.routes(size.routes, size.free, size.budgets)])
        marks = await _marks(routes, budgets, size, began_s)
        return {
            "creating_s": round(created_s, 2),
            **marks,
            "cpu_s": round(cpu_s(operator.process.pid) - cpu, 1),
            "memory_mb": memory_mb(operator.process.pid),
        }


async def _marks(routes: Watch, budgets: Watch, size: Size, began_s: float) -> dict[str, float]:
    enforced = asyncio.create_task(budgets.until_all(size.budgets, "Enforced", _MOST_S))
    programmed_s = await routes.until_all(size.routes, "Programmed", _MOST_S)
    ready_s = await routes.until_all(size.routes, "Ready", _MOST_S)
    return {
        "programmed_s": round(programmed_s - began_s, 2),
        "ready_s": round(ready_s - began_s, 2),
        "enforced_s": round(await enforced - began_s, 2),
    }


async def _until_proxies(scene: Scene, began_s: float) -> float:
    await asyncio.to_thread(scene.start_proxies)
    return time.monotonic() - began_s
