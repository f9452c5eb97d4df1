"""`python -m bench.stranded`: how much of a month's money lost proxies take along, by the real lease policy.

Twenty proxies with the product's own till and sync, one ledger, a month in virtual time, in which the traffic spends nineteen
twentieths of the limit. Once a day, at a random hour, one of them is gone for good with its log: no last message, no settled
lease. What it held stays `unreconciled` until a bill or an administrator settles it; here nobody does, so it adds up.

Only the seconds before each loss are played request by request (what a proxy holds depends on them alone), at one to ten times
the month's average rate; the rest of the day is spent in one piece, so that what remains, and with it the lease policy's own
measure, shrinks as it would. The figure is a share of the limit: no speed, the same on every machine.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

from bench.policy import BUDGET, FLEET, one_route
from stepdown.ledger import Ledger
from stepdown.model.config import account_id
from stepdown.model.sync import Ask, LeaseReport, SyncRequest
from stepdown.proxy.clock import Clock
from stepdown.proxy.hold import Hold, Usage
from stepdown.proxy.identity import StateDir
from stepdown.proxy.refusal import Refused
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.syncer import Syncer
from stepdown.proxy.till import Till
from stepdown.sync.service import SyncService

DAY_S = 86_400
BEGIN_S = 20_758 * DAY_S
"""2026-11-01."""
BODY_TOKENS, MAX_TOKENS = 4_256, 1_000
"""What a request is bounded by: four kilobytes of text, and its max_tokens."""
USED = Usage(900, 100, 300)
"""What it takes."""
COST_NUSD = -(-(1_000 * 180_000 + 300 * 250_000) // 1_000)
LATENCY_S = 4.0
MEAN_RATE_S = 0.5
"""Requests a second and proxy, averaged over the month."""
SPENT_PERCENT = 95
MOST_PERCENT = 1.0


class AtOnce(Executor):
    """The ledger's thread, without a thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **more: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(fn(*args, **more))
        return future


class Stranded(NamedTuple):
    """What a month of losses has left behind, in nUSD."""

    limit_nusd: int
    unreconciled_nusd: int
    reserved_nusd: int
    """The part of it that was reserved by requests in flight: most of that was truly spent."""
    losses: int
    largest_nusd: int

    @property
    def percent(self) -> float:
        return 100 * self.unreconciled_nusd / self.limit_nusd


class Pod:
    """One proxy process: its till and its side of sync, and the requests that it has in flight."""

    def __init__(self, path: Path, clock_s: Callable[[], float], service: SyncService) -> None:
        clock = Clock(clock_s, BEGIN_S + clock_s())
        self.state = StateDir(path, clock, boot="boot")
        self.till = Till(self.state, clock)
        self.syncer = Syncer(self.till, service.sync, FLEET)
        self.flying: list[tuple[float, Hold]] = []
        self.asking: list[asyncio.Task[Hold]] = []

    async def second(self, arrivals: int, now_s: float, chance: random.Random) -> None:
        """Ends what is over, begins what arrives, and syncs."""
        for ends_s, hold in [each for each in self.flying if each[0] <= now_s]:
            self.flying.remove((ends_s, hold))
            self.till.settle(hold, USED, success=True)
        shape = RequestShape(BODY_TOKENS, False, MAX_TOKENS, 1, stream=False)
        for _ in range(arrivals):
            assert self.till.table is not None
            (route,) = self.till.table.routes
            hold = self.till.admit(route, "default", shape)
            if hold is None:
                self.asking.append(asyncio.create_task(self.till.admit_later(route, "default", shape)))
            else:
                self.flying.append((now_s + chance.expovariate(1 / LATENCY_S), hold))
        await asyncio.sleep(0)
        await self.syncer.once()
        await asyncio.sleep(0)
        for task in [each for each in self.asking if each.done()]:
            self.asking.remove(task)
            if not isinstance(task.exception(), Refused):
                self.flying.append((now_s + chance.expovariate(1 / LATENCY_S), task.result()))

    async def vanish(self) -> None:
        """The node is gone, and the disk with it."""
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)
        self.state.close(finished=False)


class Rest:
    """Whoever spends what the month spends besides: one instance, by plain messages."""

    def __init__(self, ledger: Ledger, account: str) -> None:
        self._ledger, self._account = ledger, account
        self._seq = self._granted = self._consumed = 0

    def spend(self, nusd: int, now_s: float) -> None:
        if nusd <= 0:
            return
        answer = self._say(now_s, Ask(id=self._seq + 1, rungs=({self._account: nusd},)))
        if answer.asks[0].rung == 0:
            self._consumed += nusd
            self._say(now_s)

    def _say(self, now_s: float, *asks: Ask) -> Any:
        self._seq += 1
        numbers = {"returned": 0, "estimated": 0, "reserved": 0, "want": 0}
        report = LeaseReport(account=self._account, granted=self._granted, consumed=self._consumed, **numbers)
        (answer,) = self._ledger.sync(
            [SyncRequest(instance="rest", fleet="bench/rest", seq=self._seq, leases=(report,), asks=asks)], now_s
        )
        self._granted = max([self._granted, *(each.granted for each in answer.leases if each.account == self._account)])
        return answer


async def month(pods: int, days: int, seed: int, folder: Path, *, warm_s: int = 20) -> Stranded:
    """Plays it."""
    chance, time_s = random.Random(seed), 0.0
    a_day_nusd = int(pods * DAY_S * MEAN_RATE_S) * COST_NUSD
    limit_nusd = a_day_nusd * 30 * 100 // SPENT_PERCENT
    policy = one_route("https://upstream.invalid/v1", limit_nusd, BEGIN_S)
    account = account_id(BUDGET, BEGIN_S)
    ledger = Ledger.open(":memory:", create=True)
    service = SyncService(ledger, lambda: BEGIN_S + time_s, worker=AtOnce())
    await service.bind([policy.binding])
    service.publish(policy.fleet, {policy.shard.index: policy.shard})
    rest = Rest(ledger, account)
    made = 0

    def new_pod() -> Pod:
        nonlocal made
        made += 1
        return Pod(folder / str(made), lambda: time_s, service)

    fleet = [new_pod() for _ in range(pods)]
    largest = 0
    for day in range(days):
        time_s = day * DAY_S + chance.uniform(0, DAY_S - 7_200)
        rate = MEAN_RATE_S * chance.uniform(1, 10)
        for pod in fleet:
            await pod.syncer.once()
        for _ in range(warm_s):
            for pod in fleet:
                await pod.second(_arrivals(rate, chance), time_s, chance)
            time_s += 1.0
        lost = fleet.pop(chance.randrange(pods))
        instance = lost.state.instance
        held = next(each for each in ledger.instances() if each.name == instance).leases
        largest = max(largest, *(each.granted_nusd - each.returned_nusd - each.consumed_nusd for each in held))
        await lost.vanish()
        fleet.append(new_pod())
        for wait_s in (60.0, 900.0, 1.0):  # what is in flight ends, a horizon passes, and the lost one is given up
            time_s += wait_s
            for pod in fleet:
                await pod.second(0, time_s, chance)
        spent = ledger.balances(BEGIN_S + time_s)[account].spent_nusd
        rest.spend(a_day_nusd * (day + 1) - spent, BEGIN_S + time_s)
    return await _ended(fleet, service, ledger, account, limit_nusd, days, largest)


async def _ended(
    fleet: list[Pod], service: SyncService, ledger: Ledger, account: str, limit_nusd: int, losses: int, largest_nusd: int
) -> Stranded:
    balance = ledger.balances(BEGIN_S)[account]
    reserved = sum(
        lease.reserved_nusd
        for each in ledger.instances()
        if each.state == "lost"
        for lease in each.leases
        if lease.account == account
    )
    assert ledger.verify() == []
    for pod in fleet:
        await pod.vanish()
    await service.close()
    return Stranded(limit_nusd, balance.unreconciled_nusd, reserved, losses, largest_nusd)


def _arrivals(rate_s: float, chance: random.Random) -> int:
    """In one second, as they come by chance."""
    count, left = 0, chance.expovariate(rate_s)
    while left < 1.0:
        count += 1
        left += chance.expovariate(rate_s)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stranded", description=__doc__)
    parser.add_argument("--pods", type=int, default=20)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(month(asked.pods, asked.days, asked.seed, Path(folder)))
    usd = [each / 1e9 for each in (found.limit_nusd, found.unreconciled_nusd, found.reserved_nusd, found.largest_nusd)]
    print(
        f"{asked.pods} proxies, {found.losses} of them lost with the log: ${usd[1]:.4f} of ${usd[0]:.2f} unreconciled, of it"
        f" ${usd[2]:.4f} in flight; the largest loss ${usd[3]:.4f}"
    )
    verdict = "OK" if found.percent < MOST_PERCENT else "FAILED"
    print(f"{verdict} {found.percent:.4f} % of the limit is stranded in a month; at most {MOST_PERCENT} % may be")
    raise SystemExit(verdict == "FAILED")


if __name__ == "__main__":
    main()
