"""`make bench-control-plane`: the operator on a real API server, with four proxies. A table, and bench/control-plane.json.

etcd, the API server, the controllers, the operator, the proxies, the upstream and the bench share the cores that there are: on
a machine that does something else meanwhile, and on one of two cores in any case, the figures are upper bounds.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from rich.console import Console
from rich.table import Table
from tests.cluster.operator_world import Operator

from bench.machine import BenchError, described, stolen_s, versions
from bench.plane import change, cold, crossing, idle
from bench.plane.scene import PROXIES, memory_mb, passes, scene

T = TypeVar("T")

FOLDER = Path(".bench/control-plane")
RESULT = Path(__file__).with_name("control-plane.json")
PHASES = ("changes", "crossings", "idle", "restart")

GOALS: Mapping[str, tuple[str, str, float]] = {
    "started_cold_s": ("an operator that starts on everything: all Programmed", "s", 60.0),
    "created_s": ("everything created beside one that runs: all Programmed", "s", 60.0),
    "memory_peak_mb": ("the operator's memory, its peak", "MB", 200.0),
    "changed_p99_s": ("a changed route is served by all proxies, p99", "s", 1.0),
    "crossed_soft_p99_s": ("a crossed threshold (Soft) is in force in all proxies, p99", "s", 2.0),
    "crossed_hard_p99_s": ("a crossed threshold (Hard) is in force in all proxies, p99", "s", 2.0),
    "visible_step_s": ("status.step says so, the slowest", "s", 3.0),
    "visible_event_s": ("an Event says so, the slowest", "s", 3.0),
    "idle_writes": ("writes but the Lease while nothing happens", "", 0.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.control_plane", description=__doc__)
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--budgets", type=int, default=100)
    parser.add_argument("--changes", type=int, default=100, help="of one route each, one after the other (default 100)")
    parser.add_argument("--crossings", type=int, default=10, help="of each kind of budget (default 10)")
    parser.add_argument("--idle-s", type=float, default=120.0, help="how long nothing happens (default 120)")
    parser.add_argument("--only", action="append", choices=PHASES, help="after the start; writes nothing")
    parser.add_argument(
        "--compiled", type=Path, metavar="DIR", help="the compiled wheel, unpacked (default: the checkout, pure)"
    )
    arguments = parser.parse_args()
    try:
        result = measure(arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(result)
    if not arguments.only:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {RESULT.relative_to(Path.cwd()) if RESULT.is_relative_to(Path.cwd()) else RESULT}")
    return 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All phases, in this order, on one API server."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    if arguments.compiled is not None:
        os.environ["PYTHONPATH"] = str(arguments.compiled.absolute())
    size = cold.Size(arguments.routes, arguments.budgets, free=arguments.routes // 10)
    phases = arguments.only or PHASES
    start_s, raw = time.monotonic(), _Raw()
    with scene(FOLDER.absolute()) as here:
        operator, raw["started_cold"] = raw.run("started_cold", cold.started_cold(here, size))
        try:
            if not arguments.only:
                raw["created"] = raw.run("created", cold.created_warm(here, operator, size), operator)
            if "changes" in phases:
                raw["changes"] = raw.run("changes", change.changes(here, arguments.changes, size.free), operator)
            if "crossings" in phases:
                crossed = crossing.crossings(here, operator, arguments.crossings, size.routes)
                raw["crossings"] = raw.run("crossings", crossed, operator)
            if "idle" in phases:
                raw["idle"] = raw.run("idle", idle.idle(here, operator, arguments.idle_s), operator)
            if "restart" in phases:
                operator, raw["restart"] = raw.run("restart", idle.restarted(here, operator))
        finally:
            _keep_logs(here.place.said())
    return {
        **_figures(raw),
        "size": {"routes": size.routes, "budgets": size.budgets, "proxies": PROXIES},
        "build": "compiled" if arguments.compiled else "pure",
        "raw": raw,
        "conditions": raw.conditions,
        "machine": described(),
        "versions": {name: version for name, version in versions().items() if name not in ("nginx", "wrk")},
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_s": round(time.monotonic() - start_s, 1),
    }


class _Raw(dict[str, Any]):
    """What each phase found, and what the machine did meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: dict[str, dict[str, Any]] = {}

    def run(self, name: str, phase: Coroutine[Any, Any, T], operator: Operator | None = None) -> T:
        """`operator`: the one that runs all the while."""
        print(f"{time.strftime('%H:%M:%S')} {name} …", flush=True)
        load, stolen, began_s = os.getloadavg()[0], stolen_s(), time.monotonic()
        before = passes(operator) if operator is not None else None
        found = uvloop.run(phase)
        self.conditions[name] = {
            "load_before": round(load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "stolen_s": round(stolen_s() - stolen, 2),
            "took_s": round(time.monotonic() - began_s, 1),
        }
        if operator is not None and before is not None:
            after = passes(operator)
            count = after["count"] - before["count"]
            self.conditions[name] |= {
                "memory_mb": memory_mb(operator.process.pid),
                "passes": count,
                "pass_mean_s": round((after["sum"] - before["sum"]) / max(count, 1), 4),
            }
        told = found[1] if isinstance(found, tuple) else found
        print(f"{time.strftime('%H:%M:%S')} {name}: {json.dumps(told)} {json.dumps(self.conditions[name])}", flush=True)
        return found


def _figures(raw: "_Raw") -> dict[str, float]:
    """Those of GOALS whose phase was run."""
    figures = {"started_cold_s": raw["started_cold"]["programmed_s"]}
    if "created" in raw:
        figures["created_s"] = raw["created"]["programmed_s"]
    told = [each["memory_mb"] for each in (*raw.values(), *raw.conditions.values()) if "memory_mb" in each]
    figures["memory_peak_mb"] = max(each["peak"] for each in told)
    if "changes" in raw:
        figures["changed_p99_s"] = raw["changes"]["all_proxies"]["p99_s"]
    if "crossings" in raw:
        soft, hard = raw["crossings"]["soft"], raw["crossings"]["hard"]
        figures["crossed_soft_p99_s"], figures["crossed_hard_p99_s"] = (
            soft["all_proxies"]["p99_s"],
            hard["all_proxies"]["p99_s"],
        )
        figures["visible_step_s"] = max(soft["status_step"]["max_s"], hard["status_step"]["max_s"])
        figures["visible_event_s"] = max(soft["event"]["max_s"], hard["event"]["max_s"])
    if "idle" in raw:
        figures["idle_writes"] = raw["idle"]["writes_besides_the_lease"]
    return figures


def show(result: Mapping[str, Any]) -> None:
    console, size = Console(width=110), result["size"]
    title = f"{size['routes']} routes, {size['budgets']} budgets, {size['proxies']} proxies; stepdown {result['build']}"
    goals = Table(title=title, title_justify="left")
    for column in ("", "measured", "goal", ""):
        goals.add_column(column, justify="right" if column else "left")
    for name, (what, unit, goal) in GOALS.items():
        if name in result:
            well = result[name] <= goal
            goals.add_row(what, f"{result[name]:g} {unit}", f"<= {goal:g} {unit}", "reached" if well else "MISSED")
    console.print(goals)
    loads = [each[when] for each in result["conditions"].values() for when in ("load_before", "load_after")]
    console.print(
        f"load of the machine, of {result['machine']['cores']} cores: {min(loads):g} to {max(loads):g}; "
        f"it took {result['took_s']:g} s",
        highlight=False,
    )


def _keep_logs(said: str) -> None:
    (FOLDER / "operator.log").write_text(said)


if __name__ == "__main__":
    sys.exit(main())
