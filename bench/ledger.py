"""`python -m bench.ledger`: one ledger under sixteen proxies of 200 requests a second, on SQLite and on PostgreSQL; what a
budget costs a proxy; and what a month leaves behind. Writes bench/ledger.json.

Times on a machine that others use say little, so each stands beside a yardstick of the same minute: a durable commit of one row
in the same place, and the same message over the same HTTPS with nothing behind it. Parts can be run alone: `--part sync`.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop
from tests.postgres import Server

from bench import ledger_growth, ledger_proxy
from bench.ledger_load import Latency, echoed, latency, play
from bench.machine import GATEWAY_CORE, LOAD_CORE, BenchError, Process, check_cores, described, free_port, port_open, stolen_s
from bench.yardstick import commits_s

FOLDER = Path(".bench/ledger")
RESULT = Path(__file__).with_name("ledger.json")
FAR_NUSD = 2**50
TICKETS_FAR_PER_S = 2.0
TICKETS_NEAR_PER_S = 200.0
"""For each proxy: every request, near a ceiling."""
PARTS = ("sync", "proxy", "growth")

GOALS = {
    "sync_p99_ms": ("<=", 20.0),
    "far_ticket_p99_ms": ("<=", 10.0),
    "near_tickets_per_s": (">=", 1000.0),
    "rate_with_budget": (">=", 0.9),
    "month_mib": ("<", 50.0),
    "verify_s": ("<=", 10.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ledger", description=__doc__.partition(".")[0] if __doc__ else "")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this (may be repeated)")
    parser.add_argument("--on", choices=("sqlite", "postgresql"), action="append", help="only on this database")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default 20)")
    parser.add_argument("--repeat", type=int, default=2, help="runs of each, in turn (default 2)")
    parser.add_argument("--compiled", type=Path, metavar="DIR", help="the compiled wheel, unpacked, for the part `proxy`")
    parser.add_argument("--quick", action="store_true", help="one short run of each, to try the bench itself; writes nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.repeat = 4.0, 1
    parts = tuple(arguments.part or PARTS)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        check_cores()
        result = measure(parts, tuple(arguments.on or ("sqlite", "postgresql")), arguments)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    show(result)
    if not arguments.quick:
        before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        RESULT.write_text(json.dumps({**before, **result}, indent=2) + "\n")
        print(f"written: {RESULT.name}")
    return 0


def measure(parts: tuple[str, ...], databases: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    start_s, stolen, load = time.monotonic(), stolen_s(), os.getloadavg()[0]
    result: dict[str, Any] = {}
    if "sync" in parts:
        for name in databases:
            result[name] = synced(name, arguments.seconds, arguments.repeat)
    if "growth" in parts:
        result["growth"] = ledger_growth.measure(FOLDER.absolute())
    if "proxy" in parts:
        result["proxy"] = ledger_proxy.measure(
            FOLDER.absolute() / "proxy", arguments.seconds, arguments.repeat, arguments.compiled
        )
    about = {"machine": described(), "load_before": load, "load_after": os.getloadavg()[0]}
    took = {"took_s": round(time.monotonic() - start_s, 1), "stolen_s": round(stolen_s() - stolen, 2)}
    return {**result, "about": {**about, **took, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}


# Sync -----------------------------------------------------------------------------------------------------------------


@contextmanager
def database(name: str, folder: Path) -> Iterator[str]:
    """A place for a ledger: a file, or a database of a server that syncs its disk."""
    if name == "sqlite":
        yield str(folder / "ledger.db")
        return
    server = Server(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), durable=True)
    try:
        server.make()
        server.start()
        yield server.database()
    finally:
        server.remove()


@contextmanager
def keeper(folder: Path, place: str, limit_nusd: int) -> Iterator[tuple[Process, int, int]]:
    """The process, its port, and that of the yardstick."""
    port, echo = free_port(), free_port()
    argv = [sys.executable, "-m", "bench.ledger_keeper", "--folder", str(folder), "--ledger", place, "--port", str(port)]
    argv += ["--echo-port", str(echo), "--limit-nusd", str(limit_nusd)]
    with Process("keeper", argv, GATEWAY_CORE, folder, lambda: port_open(port) and port_open(echo)) as process:
        yield process, port, echo


def synced(name: str, seconds: float, repeat: int) -> dict[str, Any]:
    """Steady messages and rare tickets far from the ceiling; then every request with a ticket; the yardsticks in between."""
    os.sched_setaffinity(0, {LOAD_CORE})
    steady: list[float] = []
    far: list[float] = []
    near: list[float] = []
    commits: list[float] = []
    echoes: list[float] = []
    rates: list[float] = []
    cpu_s = 0.0
    for number in range(repeat):
        folder = FOLDER.absolute() / f"{name}-{number}"
        folder.mkdir()
        with database(name, folder) as place:
            commits += commits_s(place, folder, min(3.0, seconds))
            with keeper(folder, place, FAR_NUSD) as (process, port, echo):
                echoes += uvloop.run(echoed(folder, echo, seconds / 2))
                cpu_s -= process.cpu_s()
                proxies = uvloop.run(play(folder, port, seconds, near=False, tickets_per_s=0.0))
                cpu_s += process.cpu_s()
                steady += [each for proxy in proxies for each in proxy.syncs_s]
                proxies = uvloop.run(play(folder, port, seconds, near=False, tickets_per_s=TICKETS_FAR_PER_S))
                far += [each for proxy in proxies for each in proxy.tickets_s]
                proxies = uvloop.run(play(folder, port, seconds, near=True, tickets_per_s=TICKETS_NEAR_PER_S))
                granted = [each for proxy in proxies for each in proxy.tickets_s]
                near += granted
                rates.append(len(granted) / seconds)
            commits += commits_s(place, folder, min(3.0, seconds))
    commit, echoing = latency(commits), latency(echoes)
    base_ms = commit.p99_ms + echoing.p99_ms
    return {
        "sync": latency(steady)._asdict(),
        "far_ticket": latency(far)._asdict(),
        "near_ticket": latency(near)._asdict(),
        "near_tickets_per_s": round(min(rates)),
        "cpu_ms_a_sync": round(1000 * cpu_s / len(steady), 2),
        "commit": commit._asdict(),
        "echo": echoing._asdict(),
        "sync_p99_over_yardsticks": round(latency(steady).p99_ms / base_ms, 2),
        "far_ticket_p99_over_yardsticks": round(latency(far).p99_ms / base_ms, 2),
    }


# Showing --------------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    about = result["about"]
    print(f"load {about['load_before']:.1f} before, {about['load_after']:.1f} after; {about['stolen_s']} s stolen")
    for name in ("sqlite", "postgresql"):
        if name in result:
            _show_sync(name, result[name])
    if "growth" in result:
        found = result["growth"]
        _goal(
            "growth: a month, MiB",
            "month_mib",
            found["month_mib"],
            f"{found['rows']:,} rows; {found['closed_mib']} once its pods are closed",
        )
        _goal("growth: verify, s", "verify_s", found["verify_s"], f"{found['verify_over_scan']} times a bare scan of the rows")
    if "proxy" in result:
        found = result["proxy"]
        rates = f"{found['with_per_s']:,} with, {found['without_per_s']:,} without, a second"
        _goal("proxy: rate with a budget over that without", "rate_with_budget", found["rate_with_budget"], rates)


def _show_sync(name: str, found: dict[str, Any]) -> None:
    commit, echo = Latency(**found["commit"]), Latency(**found["echo"])
    print(f"{name}: a bare commit p50 {commit.p50_ms} ms, p99 {commit.p99_ms}; a bare answer {echo.p50_ms}, {echo.p99_ms}")
    for what, key, goal in (
        ("a steady sync", "sync", "sync_p99_ms"),
        ("a ticket far from the ceiling", "far_ticket", "far_ticket_p99_ms"),
    ):
        times = f"p50 {found[key]['p50_ms']}; p99 {found[f'{key}_p99_over_yardsticks']} times both yardsticks' p99 together"
        _goal(f"  {what}, p99 ms", goal, found[key]["p99_ms"], times)
    print(f"  the keeper's processor time for a sync: {found['cpu_ms_a_sync']} ms, HTTPS and all")
    near = Latency(**found["near_ticket"])
    _goal(
        "  tickets a second near it",
        "near_tickets_per_s",
        found["near_tickets_per_s"],
        f"p50 {near.p50_ms} ms, p99 {near.p99_ms} ms",
    )


def _goal(what: str, goal: str, value: float, more: str) -> None:
    sign, wanted = GOALS[goal]
    reached = {"<=": value <= wanted, "<": value < wanted, ">=": value >= wanted}[sign]
    print(f"{what:48} {value:>9,.2f}   goal {sign} {wanted:g}   {'reached' if reached else 'MISSED'}   ({more})")


if __name__ == "__main__":
    sys.exit(main())
