"""An operator, 1,000 routes and four proxies with nothing to do: what is written all the same. And a restart on all of it."""

import asyncio
import time
from typing import Any

from tests.cluster.operator_world import Operator

from bench.plane.audit import Audit, besides_the_lease, writes
from bench.plane.scene import Scene, cpu_s, memory_mb, wait_ready

_QUIET_S = 15.0
_MOST_S = 240.0
_RESTARTED_S = 30.0


async def idle(scene: Scene, operator: Operator, seconds: float) -> dict[str, Any]:
    """From a moment on at which nothing has been written for a while: what went before has to be told to its end first."""
    quiet_after_s = await _until_quiet(Audit(scene.cluster.audit_log))
    audit, began_s = Audit(scene.cluster.audit_log), time.monotonic()
    pid = operator.process.pid
    cpu, proxies = cpu_s(pid), [cpu_s(each.process.pid) for each in scene.proxies]
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - began_s
    asked = audit.counted()
    return {
        "seconds": round(took_s, 1),
        "quiet_after_s": quiet_after_s,
        "writes": writes(asked),
        "writes_besides_the_lease": sum(besides_the_lease(asked).values()),
        "asked": dict(sorted(asked.items())),
        "operator_cpu_percent": round(100 * (cpu_s(pid) - cpu) / took_s, 1),
        "proxy_cpu_percent": [
            round(100 * (cpu_s(each.process.pid) - before) / took_s, 1)
            for each, before in zip(scene.proxies, proxies, strict=True)
        ],
        "memory_mb": memory_mb(pid),
    }


async def restarted(scene: Scene, operator: Operator) -> tuple[Operator, dict[str, Any]]:
    """On the same ledger, with everything as the one before left it."""
    audit = Audit(scene.cluster.audit_log)
    await asyncio.to_thread(operator.stop)
    stopping = writes(audit.counted())
    again, began_s = scene.operator(), time.monotonic()
    again.launch()
    ready_s = await asyncio.to_thread(wait_ready, again, began_s)
    await asyncio.sleep(_RESTARTED_S)
    asked = audit.counted()
    return again, {
        "published_s": round(ready_s, 2),
        "writes_of_the_stop": stopping,
        "writes": writes(asked),
        "writes_besides_the_lease": sum(besides_the_lease(asked).values()),
        "memory_mb": memory_mb(again.process.pid),
    }


async def _until_quiet(audit: Audit) -> float:
    """The seconds until the last write, or the most that is waited."""
    began_s = last_s = time.monotonic()
    while time.monotonic() - last_s < _QUIET_S and time.monotonic() - began_s < _MOST_S:
        await asyncio.sleep(1.0)
        if besides_the_lease(audit.counted()):
            last_s = time.monotonic()
    return round(last_s - began_s, 1)
