"""What a month of two million requests a day leaves in a ledger, and how long it takes to verify. `bench.ledger` calls this.

The ledger is filled as proxies fill it, by their messages at the end of each day: sixteen of them, 200 routes of which some are
called a hundred times as often as others, a request in ten by the second model, one in ten of another class. The worst is
measured: that no pod was replaced all month. After a rollout the counters of those that have closed are one, and it is said
what is left then.
"""

import random
import sqlite3
import time
from collections import Counter as Tally
from pathlib import Path
from typing import Any

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger
from stepdown.ledger.transfer import export
from stepdown.model.sync import Counter, LeaseReport, SyncRequest

PROXIES, ROUTES, DAYS, A_DAY = 16, 200, 30, 2_000_000
FIRST_DAY = 20_758
COST_NUSD = 30_000
ACCOUNT = f"shop/all@{FIRST_DAY * 86_400}"
SAMPLED = 25
"""One in so many requests is drawn; the others are like it."""


def measure(folder: Path) -> dict[str, Any]:
    path = folder / "month.db"
    began_s = time.monotonic()
    _fill(path)
    filled_s = time.monotonic() - began_s
    size = path.stat().st_size
    reader = Ledger.open(path, create=False, read_only=True)
    began_s = time.monotonic()
    differences = reader.verify()
    verify_s = time.monotonic() - began_s
    reader.close()
    assert not differences, differences
    rows, scan_s = _scanned(path)
    return {
        "month_mib": round(size / 2**20, 1),
        "closed_mib": round(_closed(path) / 2**20, 1),
        "rows": rows,
        "bytes_a_row": round(size / rows),
        "verify_s": round(verify_s, 2),
        "verify_over_scan": round(verify_s / scan_s, 1),
        "filled_s": round(filled_s, 1),
        "requests_a_day": A_DAY,
        "routes": ROUTES,
        "proxies": PROXIES,
    }


def _scanned(path: Path) -> tuple[int, float]:
    """The yardstick: every row read once."""
    connection = sqlite3.connect(path)
    began_s = time.monotonic()
    rows = 0
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        rows += sum(1 for _ in connection.execute(f"SELECT * FROM {table}"))
    took_s = time.monotonic() - began_s
    connection.close()
    return rows, took_s


def _fill(path: Path) -> None:
    chance = random.Random(1)
    ledger = Ledger.open(path, create=True)
    names = [f"shop/route-{number}" for number in range(ROUTES)]
    begin_s = FIRST_DAY * 86_400
    ledger.bind([Binding("shop/all", begin_s, begin_s + DAYS * 86_400, 2**55, True, frozenset(names))], float(begin_s))
    weights = [1 / (number + 1) for number in range(ROUTES)]
    for day in range(DAYS):
        for number in range(PROXIES):
            drawn = chance.choices(names, weights, k=A_DAY // PROXIES // SAMPLED)
            counts = Tally((route, *_kind(chance)) for route in drawn)
            _report(ledger, f"proxy-{number}", day, counts)
    ledger.close()


def _closed(path: Path) -> int:
    """What a rollout leaves of it: the size of a copy, for a file does not shrink."""
    ledger = Ledger.open(path, create=False)
    for number in range(PROXIES):
        _report(ledger, f"proxy-{number}", DAYS, Tally(), closing=True)
    ledger.close()
    return Path(export(path, path.with_name("closed.db")).where).stat().st_size


def _kind(chance: random.Random) -> tuple[str, str]:
    model = "deepseek-ai/DeepSeek-V4-Flash" if chance.random() < 0.9 else "Qwen3.5-4B"
    request_class = "default" if (by := chance.random()) < 0.9 else "critical" if by < 0.95 else "background"
    return model, request_class


_spent: dict[str, int] = {}


def _report(ledger: Ledger, instance: str, day: int, counts: "Tally[tuple[str, str, str]]", *, closing: bool = False) -> None:
    counters = tuple(
        Counter(
            route=route,
            model=model,
            request_class=request_class,  # type: ignore[arg-type]
            day=FIRST_DAY + day,
            requests=count * SAMPLED,
            successes=count * SAMPLED,
            input_tokens=count * SAMPLED * 900,
            cached_input_tokens=count * SAMPLED * 100,
            output_tokens=count * SAMPLED * 300,
            cost_nusd=count * SAMPLED * COST_NUSD,
        )
        for (route, model, request_class), count in counts.items()
    )
    consumed = _spent[instance] = _spent.get(instance, 0) + sum(each.cost_nusd for each in counters)
    report = LeaseReport(account=ACCOUNT, granted=consumed, returned=0, consumed=consumed, estimated=0, reserved=0, want=0)
    now_s = float((FIRST_DAY + day) * 86_400 + 86_000)
    message = SyncRequest(
        instance=instance, fleet="shop/web", seq=day + 1, leases=(report,), counters=counters, closing=closing, whole=closing
    )
    ledger.sync([message], now_s)
