"""Sixteen proxies as their keeper sees them: for `bench.ledger`. What they say is what proxies of 200 requests a second say.

They are not the product's proxies, whose own work would be measured too, but speak by its client (`SyncClient`, TLS and all)
and keep to its rules: one message at a time, everything cumulative, every second or at once when a request needs a ticket.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import NamedTuple

from tests.unit.sync_api import FLEET

from bench.ledger_keeper import ACCOUNTS, PROXIES, ROUTE_NAMES, TEAMS, pod_uid, token
from bench.machine import BenchError
from bench.steady import percentile
from stepdown.model.config import digest
from stepdown.model.sync import Ask, Counter, LeaseReport, SyncAnswer, SyncRequest, pod_mark
from stepdown.proxy.syncclient import SyncClient
from stepdown.proxy.syncline import HttpsLine

RATE_PER_S = 200
WORST_NUSD, COST_NUSD = 100_000, 30_000
LASTS_S = 0.3
"""How long a request is in flight, and its worst case reserved."""
AHEAD_S = 10
"""For how many seconds a proxy wants to hold money, far from a ceiling."""
DAY = 20_760


class Latency(NamedTuple):
    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def latency(samples_s: list[float]) -> Latency:
    if not samples_s:
        raise BenchError("nothing was answered")
    ms = [each * 1000 for each in samples_s]
    return Latency(len(ms), round(percentile(ms, 50), 2), round(percentile(ms, 99), 2), round(max(ms), 2))


class Proxy:
    """One of them. `near`: nothing is held ahead, so that every request needs a ticket."""

    def __init__(self, number: int, folder: Path, port: int, *, near: bool) -> None:
        own = folder / f"pod-{number}"
        own.mkdir(exist_ok=True)
        (own / "token").write_text(token(number))
        line = HttpsLine(f"https://localhost:{port}", folder / "ca.crt", own / "token")
        self._client = SyncClient(line)
        self._near = near
        self._name = f"{pod_mark(pod_uid(number))}.{random.getrandbits(64):016x}"
        self._routes = [ROUTE_NAMES[(number + step) % len(ROUTE_NAMES)] for step in range(len(ROUTE_NAMES))]
        self._seq = int(time.monotonic() * 1e6)
        self._granted = dict.fromkeys(ACCOUNTS, 0)
        self._consumed = dict.fromkeys(ACCOUNTS, 0)
        self._reserved = dict.fromkeys(ACCOUNTS, 0)
        self._counts: dict[str, int] = {}
        self._told: dict[str, int] = {}
        """As acknowledged; what has not changed since is not said again."""
        self._digests: dict[int, str] = {}
        self._whole = True
        self._asks: dict[int, tuple[int, float]] = {}
        """By id: the team, and when it was needed."""
        self._next_ask = 0
        self._flying: list[tuple[float, int]] = []
        self.syncs_s: list[float] = []
        """Of messages without an ask."""
        self.tickets_s: list[float] = []
        """From the moment at which a request needed one until it was granted."""
        self.refused = 0
        self._wake = asyncio.Event()

    def close(self) -> None:
        self._client.close()

    async def run(self, ends_s: float, tickets_per_s: float) -> None:
        """Steady traffic and its messages, until then. `tickets_per_s`: how often a request needs a ticket."""
        await asyncio.sleep(random.random())
        asking = asyncio.create_task(self._arrive(ends_s, tickets_per_s)) if tickets_per_s else None
        last_s = time.monotonic()
        while (now_s := time.monotonic()) < ends_s:
            self._wake.clear()
            self._traffic(now_s - last_s)
            last_s = now_s
            await self.exchange()
            if not self._asks:
                try:
                    async with asyncio.timeout(0.75 + 0.25 * random.random()):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        if asking is not None:
            await asking

    async def _arrive(self, ends_s: float, per_s: float) -> None:
        """An open loop: a slow keeper does not slow the requests down."""
        due_s = time.monotonic() + random.random() / per_s
        while due_s < ends_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            while due_s <= (now_s := time.monotonic()):
                self._next_ask += 1
                self._asks[self._next_ask] = (self._next_ask % TEAMS, now_s)  # not `due_s`: a timer here is up to 1 ms late
                due_s += 1 / per_s
            self._wake.set()

    def _traffic(self, passed_s: float) -> None:
        """Requests that needed no ticket, and those in flight that have ended."""
        count = 0 if self._near else int(RATE_PER_S * passed_s)
        for number in range(count):
            self._spend(number % TEAMS, self._routes[number % len(self._routes)])
        now_s = time.monotonic()
        ended = [team for until_s, team in self._flying if until_s <= now_s]
        self._flying = [each for each in self._flying if each[0] > now_s]
        for team in ended:
            for account in _accounts(team):
                self._reserved[account] -= WORST_NUSD
            self._spend(team, self._routes[(team + TEAMS * (len(self._flying) % 10)) % len(self._routes)])

    def _spend(self, team: int, route: str) -> None:
        self._counts[route] = self._counts.get(route, 0) + 1
        for account in _accounts(team):
            self._consumed[account] += COST_NUSD

    async def exchange(self) -> None:
        request = self._message()
        sent_s = time.monotonic()
        answer = await self._client(request)
        now_s = time.monotonic()
        if not request.asks:
            self.syncs_s.append(now_s - sent_s)
        self._apply(request, answer, now_s)

    def _message(self) -> SyncRequest:
        self._seq += 1
        want = 0 if self._near else RATE_PER_S * AHEAD_S * COST_NUSD
        leases = tuple(
            LeaseReport(
                account=account,
                granted=self._granted[account],
                returned=0,
                consumed=self._consumed[account],
                estimated=0,
                reserved=self._reserved[account],
                want=want if account == ACCOUNTS[0] else want // TEAMS,
            )
            for account in ACCOUNTS
        )
        counters = tuple(
            Counter(
                route=route,
                model="m",
                request_class="default",
                day=DAY,
                requests=count,
                successes=count,
                input_tokens=count * 900,
                output_tokens=count * 300,
                cost_nusd=count * COST_NUSD,
            )
            for route, count in self._counts.items()
            if self._whole or count != self._told.get(route)
        )
        asks = tuple(Ask(id=id_, rungs=(dict.fromkeys(_accounts(team), WORST_NUSD),)) for id_, (team, _) in self._asks.items())
        return SyncRequest(
            instance=self._name,
            fleet=FLEET,
            seq=self._seq,
            longest_s=60.0,
            digests=self._digests,
            acknowledged=self._digests,
            leases=leases,
            asks=asks,
            counters=counters,
            ready=True,
            whole=self._whole,
        )

    def _apply(self, request: SyncRequest, answer: SyncAnswer, now_s: float) -> None:
        if answer.verdict != "ok":
            raise BenchError(f"the keeper says {answer.verdict}")
        self._whole = answer.whole
        self._told |= {each.route: each.requests for each in request.counters}
        self._digests |= {shard.index: digest(shard) for shard in answer.shards}
        for grant in answer.leases:
            self._granted[grant.account] = max(grant.granted, self._granted[grant.account])
        for each in answer.asks:
            if each.rung < 0:
                self.refused += 1
                continue
            team, needed_s = self._asks.pop(each.id)
            self.tickets_s.append(now_s - needed_s)
            self._flying.append((now_s + LASTS_S, team))
            for account in _accounts(team):
                self._reserved[account] += WORST_NUSD


def _accounts(team: int) -> tuple[str, str]:
    return ACCOUNTS[0], ACCOUNTS[1 + team]


async def play(folder: Path, port: int, seconds: float, *, near: bool, tickets_per_s: float) -> list[Proxy]:
    """All of them at once, for so long, after a moment in which they make themselves known."""
    proxies = [Proxy(number, folder, port, near=near) for number in range(PROXIES)]
    for proxy in proxies:
        for _ in range(3):
            await proxy.exchange()
        proxy.syncs_s.clear()
    ends_s = time.monotonic() + seconds
    try:
        await asyncio.gather(*(proxy.run(ends_s, tickets_per_s) for proxy in proxies))
    finally:
        for proxy in proxies:
            proxy.close()
    return proxies


async def echoed(folder: Path, port: int, seconds: float) -> list[float]:
    """The same messages at the same pace to the server that has nothing behind it: how long an answer takes."""
    proxies = [Proxy(number, folder, port, near=False) for number in range(PROXIES)]
    samples: list[float] = []

    async def one(proxy: Proxy) -> None:
        await asyncio.sleep(random.random())
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            proxy._traffic(0.9)
            request = proxy._message()
            sent_s = time.monotonic()
            await proxy._client(request)
            samples.append(time.monotonic() - sent_s)
            await asyncio.sleep(0.75 + 0.25 * random.random())
        proxy.close()

    await asyncio.gather(*map(one, proxies))
    return samples
