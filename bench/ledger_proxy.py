"""What a hard budget costs a proxy: the same requests with one and without, in turn. `bench.ledger` calls this.

With a budget each request is reserved in a leased account and in the write-ahead log, and settled there; without, it is metered
alone.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from bench import bodies, gateway, nginx, wrk
from bench.machine import LOAD_CORE, check_tools


def measure(folder: Path, seconds: float, repeat: int, compiled: Path | None) -> dict[str, Any]:
    folder.mkdir(parents=True)
    check_tools("nginx", "wrk", "taskset")
    os.sched_setaffinity(0, {LOAD_CORE})
    rates: dict[str, list[float]] = {"with": [], "without": []}
    ratios = []
    with nginx.upstream(folder) as up:
        for number in range(max(3, repeat)):
            turn: dict[str, float] = {}
            for name in ("with", "without") if number % 2 else ("without", "with"):
                own = folder / f"{name}-{number}"
                with gateway.Gateway(own, f"http://127.0.0.1:{up.plain}/v1", compiled, budget=name == "with") as ours:
                    lua = wrk.script(own, "requests", bodies.request(stream=False), ours.key)
                    wrk.run(ours.port, lua, 1)
                    turn[name] = wrk.run(ours.port, lua, max(2, int(seconds / 3)))["per_s"]
                rates[name].append(turn[name])
            ratios.append(turn["with"] / turn["without"])
    return {
        "rate_with_budget": round(statistics.median(ratios), 3),
        "ratios": [round(each, 3) for each in ratios],
        "with_per_s": round(statistics.median(rates["with"])),
        "without_per_s": round(statistics.median(rates["without"])),
        "build": "compiled" if compiled else "pure",
    }
