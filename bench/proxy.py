"""`make bench`: the proxy with everything on beside nginx as a plain reverse proxy. Prints a table, writes bench/latest.json.

Everything on: a caller's key is checked, money of a hard budget is leased and reserved, the write-ahead log is written, metrics
are kept. The proxy (or nginx in its place) has core 0 to itself; wrk, the upstream and the ledger's keeper share core 1. Runs
of the two alternate, so that whatever else the machine does falls on both; what is compared is medians.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from bench import bodies, gateway, nginx, paced, wrk
from bench.client import post
from bench.machine import (
    LOAD_CORE,
    BenchError,
    PeakRss,
    Process,
    check_cores,
    check_tools,
    described,
    free_port,
    port_open,
    stolen_s,
    versions,
)
from bench.steady import RATE_PER_S, latencies_ms, percentile

FOLDER = Path(".bench/proxy")
RESULT = Path(__file__).with_name("latest.json")
STREAMS = 1000
_IDLE_AFTER_S = 5.0
_WARM_UP_S = 2

GOALS = {
    "requests_over_nginx": (">=", 0.5),
    "streams_over_nginx": (">=", 0.5),
    "added_p50_ms": ("<", 0.5),
    "added_p99_ms": ("<", 1.5),
    "idle_mib": ("<", 45.0),
    "streams_1000_mib": ("<", 80.0),
    "streams_dropped": ("<=", 0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description="The proxy beside nginx, one core each.")
    parser.add_argument("--seconds", type=int, default=5, help="of each run of wrk (default 5)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument(
        "--compiled", type=Path, metavar="DIR", help="the compiled wheel, unpacked (default: the checkout, pure)"
    )
    parser.add_argument("--quick", action="store_true", help="one short run of each: to try the bench itself; writes nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.repeat = 1, 1
    try:
        result = measure(arguments.seconds, arguments.repeat, arguments.compiled)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(result)
    if not arguments.quick:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {RESULT.relative_to(Path.cwd()) if RESULT.is_relative_to(Path.cwd()) else RESULT}")
    return 0


def measure(seconds: int, repeat: int, compiled: Path | None = None) -> dict[str, Any]:
    """All runs, and the seven figures made of them."""
    check_tools("nginx", "wrk", "taskset")
    check_cores()
    os.sched_setaffinity(0, {LOAD_CORE})
    folder = FOLDER.absolute() / time.strftime("%Y%m%dT%H%M%S")
    shutil.rmtree(FOLDER, ignore_errors=True)
    folder.mkdir(parents=True)
    start_s, stolen = time.monotonic(), stolen_s()
    raw: dict[str, Any] = {}
    with nginx.upstream(folder) as up, nginx.reverse_proxy(folder, up) as rival:
        for kind, stream in (("requests", False), ("streams", True)):
            port = up.stream if stream else up.plain
            with gateway.Gateway(folder / kind, f"http://127.0.0.1:{port}/v1", compiled) as ours:
                targets = {"nginx": (rival, rival.stream if stream else rival.plain), "stepdown": (ours.process, ours.port)}
                lua = wrk.script(folder, kind, bodies.request(stream=stream), ours.key)
                raw[kind] = _turns(targets, lua, seconds, repeat)
                if not stream:
                    ports = {"direct": port, "nginx": rival.plain, "stepdown": ours.port}
                    raw["latency"] = _latency(ports, post(bodies.request(stream=False), ours.key), seconds, repeat)
    raw["memory"], raw["paced"] = _memory(folder, compiled)
    return {
        **_figures(raw),
        "build": "compiled" if compiled else "pure",
        "raw": raw,
        "machine": described(),
        "versions": versions(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_s": round(time.monotonic() - start_s, 1),
        "stolen_s": round(stolen_s() - stolen, 2),
        "wrk": {"connections": wrk.CONNECTIONS, "seconds": seconds, "repeat": repeat, "warm_up_s": _WARM_UP_S},
    }


def _turns(
    targets: Mapping[str, tuple[Process, int]], lua: Path, seconds: int, repeat: int
) -> dict[str, list[dict[str, float]]]:
    """A B A B …, each with the processor time that the gateway used."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
    for _, port in targets.values():
        wrk.run(port, lua, min(_WARM_UP_S, seconds))
    for _ in range(repeat):
        for name, (process, port) in targets.items():
            cpu_s, start_s = process.cpu_s(), time.monotonic()
            run = wrk.run(port, lua, seconds)
            share = (process.cpu_s() - cpu_s) / (time.monotonic() - start_s)
            per_cpu_s = round(run["per_s"] / share)
            rss_mib = round(process.rss_mib(), 1)
            runs[name].append({**run, "cpu_percent": round(100 * share, 1), "per_cpu_s": per_cpu_s, "rss_mib": rss_mib})
    return runs


def _latency(ports: Mapping[str, int], request: bytes, seconds: int, repeat: int) -> dict[str, dict[str, float]]:
    """Each in turn, all samples of one target together."""
    samples: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(repeat):
        for name, port in ports.items():
            samples[name] += uvloop.run(latencies_ms(port, request, seconds))
    return {
        name: {
            "requests": len(taken),
            "p50_ms": round(percentile(taken, 50), 3),
            "p99_ms": round(percentile(taken, 99), 3),
            "max_ms": round(max(taken), 3),
        }
        for name, taken in samples.items()
    }


def _memory(folder: Path, compiled: Path | None) -> tuple[dict[str, float], dict[str, Any]]:
    """A fresh proxy: idle after its first requests, then with a thousand streams open."""
    port = free_port()
    argv = [sys.executable, "-m", "bench.paced", str(port)]
    with (
        Process("paced", argv, LOAD_CORE, folder, lambda: port_open(port)),
        gateway.Gateway(folder / "paced", f"http://127.0.0.1:{port}/v1", compiled) as ours,
    ):
        time.sleep(_IDLE_AFTER_S)
        idle = ours.process.rss_mib()
        direct = uvloop.run(paced.hold(port, post(bodies.request(stream=True), ours.key), STREAMS))
        with PeakRss(ours.process) as peak:
            through = uvloop.run(paced.hold(ours.port, post(bodies.request(stream=True), ours.key), STREAMS))
        memory = {"idle_mib": round(idle, 1), "peak_mib": round(peak.mib, 1), "after_mib": round(ours.process.rss_mib(), 1)}
    return memory, {"direct": direct._asdict(), "stepdown": through._asdict()}


def _figures(raw: Mapping[str, Any]) -> dict[str, float]:
    def over_nginx(kind: str) -> float:
        median: dict[str, float] = {name: statistics.median(run["per_s"] for run in runs) for name, runs in raw[kind].items()}
        return round(median["stepdown"] / median["nginx"], 3)

    direct, ours = raw["latency"]["direct"], raw["latency"]["stepdown"]
    return {
        "requests_over_nginx": over_nginx("requests"),
        "streams_over_nginx": over_nginx("streams"),
        "added_p50_ms": round(ours["p50_ms"] - direct["p50_ms"], 3),
        "added_p99_ms": round(ours["p99_ms"] - direct["p99_ms"], 3),
        "idle_mib": raw["memory"]["idle_mib"],
        "streams_1000_mib": raw["memory"]["peak_mib"],
        "streams_dropped": raw["paced"]["stepdown"]["dropped"],
    }


def show(result: Mapping[str, Any]) -> None:
    console, raw = Console(width=110), result["raw"]
    title = f"{wrk.CONNECTIONS} connections, one core each, runs in turn; stepdown {result['build']}"
    runs = Table(title=title, title_justify="left")
    for column in ("", "median /s", "lowest", "highest", "p50 ms", "p99 ms", "CPU %", "/CPU s", "RSS MiB"):
        runs.add_column(column, justify="left" if not column else "right")
    for kind in ("requests", "streams"):
        for name, taken in raw[kind].items():
            rates = [run["per_s"] for run in taken]
            medians = [
                statistics.median(run[key] for run in taken)
                for key in ("p50_ms", "p99_ms", "cpu_percent", "per_cpu_s", "rss_mib")
            ]
            cells = [f"{rate:,.0f}" for rate in (statistics.median(rates), min(rates), max(rates))]
            runs.add_row(f"{name}, {kind}", *cells, *(f"{value:g}" for value in medians))
    console.print(runs)
    latency = Table(title=f"latency at {RATE_PER_S} requests/s, open loop", title_justify="left")
    for column in ("", "requests", "p50 ms", "p99 ms", "max ms"):
        latency.add_column(column, justify="left" if not column else "right")
    for name, taken in raw["latency"].items():
        latency.add_row(name, *(f"{taken[key]:g}" for key in ("requests", "p50_ms", "p99_ms", "max_ms")))
    console.print(latency)
    through = raw["paced"]["stepdown"]
    console.print(
        f"{STREAMS} streams of {bodies.CHUNKS} events, one every {paced.INTERVAL_S:g} s: {through['whole']} whole, "
        f"{through['dropped']} dropped, {through['open_at_once']} open at once; "
        f"an event is under way for {through['delay_p50_ms']} ms (p50), {through['delay_p99_ms']} ms (p99); "
        f"direct {raw['paced']['direct']['delay_p50_ms']} and {raw['paced']['direct']['delay_p99_ms']} ms",
        highlight=False,
    )
    goals = Table(title="figures", title_justify="left")
    for column in ("", "measured", "goal", ""):
        goals.add_column(column, justify="right" if column else "left")
    for name, (sign, goal) in GOALS.items():
        goals.add_row(
            name, f"{result[name]:g}", f"{sign} {goal:g}", "reached" if _COMPARE[sign](result[name], goal) else "MISSED"
        )
    console.print(goals)


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, goal: value >= goal,
    "<": lambda value, goal: value < goal,
    "<=": lambda value, goal: value <= goal,
}


if __name__ == "__main__":
    sys.exit(main())
