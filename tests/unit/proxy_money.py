"""What the tests of the proxy's money share: small configs, a loop whose time is virtual, and a keeper that plays fair.

The keeper is written apart from the product's ledger, from the words of the sync contract: it holds limits, grants nothing
beyond them, and raises as soon as any message would let committed money pass a limit. Faults are ordered on the wire between
it and the proxy (`Keeper.sync`): a message lost, an answer lost, an answer that waits for a gate.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from stepdown.model.config import (
    Account,
    Budget,
    Channel,
    Fleet,
    Ladder,
    Model,
    Parameters,
    PriceFrom,
    RequestClass,
    Route,
    Shard,
    account_id,
    digest,
    shard_of,
)
from stepdown.model.sync import AskAnswer, LeaseGrant, LeaseReport, SyncAnswer, SyncRequest
from stepdown.proxy.clock import Clock
from stepdown.proxy.identity import StateDir
from stepdown.proxy.shape import RequestShape
from stepdown.proxy.syncer import Sync, Syncer
from stepdown.proxy.table import RouteEntry, Table
from stepdown.proxy.till import Till

T = TypeVar("T")

NOW_S = 1_795_000_000.0
"""2026-11-18: inside the first account's period."""
START_S, EDGE_S, END_S = 1_793_491_200, 1_796_083_200, 1_798_761_600
"""November and December 2026, UTC."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps: when nothing is ready, its time jumps to the next timer."""

    def __init__(self) -> None:
        self.virtual_s = 10_000.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.virtual_s


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("the test waits for something that nothing will ever bring")
        if not ready and timeout:
            self._loop.virtual_s += timeout
        return ready


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a test's coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Hands:
    """A clock turned by hand, for tests without a loop."""

    def __init__(self, boot_s: float = 5_000.0) -> None:
        self.boot_s = boot_s

    def clock(self, now_s: float = NOW_S) -> Clock:
        return Clock(lambda: self.boot_s, now_s)


def model(
    name: str, input_pusd: int = 1_000, output_pusd: int = 1_000, *, cached_pusd: int | None = None, **more: Any
) -> Model:
    """A model whose prices make small numbers: 1,000 pUSD a token is 1 nUSD."""
    cached = input_pusd if cached_pusd is None else cached_pusd
    prices = more.pop("prices", (PriceFrom(0, input_pusd, cached, output_pusd),))
    return Model(name=name, upstream_id=f"up/{name}", tier="MidRange", channel="standard", prices=prices, **more)


def budget(name: str = "shop/team", limit_nusd: int = 1_000, *, hard: bool = True) -> Budget:
    return Budget(
        name=name,
        hard=hard,
        accounts=(
            Account(id=account_id(name, START_S), start_s=START_S, end_s=EDGE_S, limit_nusd=limit_nusd),
            Account(id=account_id(name, EDGE_S), start_s=EDGE_S, end_s=END_S, limit_nusd=limit_nusd),
        ),
    )


def route(
    name: str = "shop/chat",
    rungs: Sequence[str] = ("big", "mid", "small"),
    *,
    budgets: Sequence[str] = ("shop/team",),
    in_force: int = 0,
    more: Mapping[RequestClass, Ladder] | None = None,
    **fields: Any,
) -> Route:
    ladders: dict[RequestClass, Ladder] = {"default": Ladder(rungs=tuple(rungs), in_force=in_force), **(more or {})}
    parameters = fields.pop("parameters", Parameters(timeout_s=30.0))
    return Route(name=name, ladders=ladders, budgets=tuple(budgets), parameters=parameters, **fields)


MODELS = (model("big", 1_000, 10_000), model("mid", 1_000, 5_000), model("small", 1_000, 1_000))
"""With `shape(10, 10)`: worst cases of 110, 60 and 20 nUSD."""
BIG, MID, SMALL = 110, 60, 20


def fleet(**fields: Any) -> Fleet:
    return Fleet(
        name="shop/proxy",
        namespace="shop",
        base_url="https://upstream.invalid/v1",
        channels=(Channel(name="standard"),),
        lease_horizon_s=fields.pop("lease_horizon_s", 60.0),
        wait_s=fields.pop("wait_s", 5.0),
        **fields,
    )


def shards(
    routes: Sequence[Route], models: Sequence[Model] = MODELS, budgets: Sequence[Budget] | None = None
) -> dict[int, Shard]:
    """Every shard carries all models and budgets: what a test needs, not what is smallest."""
    budgets = (budget(),) if budgets is None else budgets
    made: dict[int, dict[str, Route]] = {}
    for each in routes:
        made.setdefault(shard_of(each.name), {})[each.name] = each
    return {
        index: Shard(
            index=index,
            routes=found,
            models={each.name: each for each in models},
            budgets={each.name: each for each in budgets},
        )
        for index, found in made.items()
    }


def table(routes: Sequence[Route] | None = None, **more: Any) -> Table:
    return Table(more.pop("fleet", fleet()), shards([route()] if routes is None else routes, **more))


def shape(input_tokens: int = 10, max_tokens: int | None = 10, *, n: int = 1, has_non_text: bool = False) -> RequestShape:
    return RequestShape(input_tokens, has_non_text, max_tokens, n, stream=False)


def open_till(path: Path, config: Table, *, granted: Mapping[str, int] | None = None, hands: Hands | None = None) -> Till:
    """A till outside any loop, with leases as if a keeper had granted them just now."""
    clock = (hands or Hands()).clock()
    till = Till(StateDir(path, clock, boot="boot"), clock, config)
    till.deadline_s = clock.boot_s() + 3600
    for account, nusd in (granted or {}).items():
        till.log.grant(account, nusd)
        till.books.lease(account).grant(nusd)
    return till


def only(till: Till, name: str = "shop/chat") -> RouteEntry:
    assert till.table is not None
    found = till.table.route(name)
    assert found is not None
    return found


TEAM = account_id("shop/team", START_S)
TEAM_NEXT = account_id("shop/team", EDGE_S)


class Lost(OSError):
    """The wire ate the message."""


class _Instance:
    def __init__(self) -> None:
        self.leases: dict[str, LeaseReport] = {}
        self.granted: dict[str, int] = {}
        self.tickets: dict[int, int] = {}
        self.seq = 0
        self.closed = False


class Keeper:
    """The other end of sync, honest to the contract, with faults on the wire."""

    def __init__(self, limits: Mapping[str, int] | None = None, now_s: Callable[[], float] = lambda: NOW_S) -> None:
        self.limits = dict(limits or {TEAM: 1_000})
        self.now_s = now_s
        self.instances: dict[str, _Instance] = {}
        self.messages: list[SyncRequest] = []
        self.idle = 0
        """What it grants beyond what is asked for, per lease and message, while the proxy wants anything."""
        self.recall: dict[str, int] = {}
        self.fleet: Fleet | None = None
        self.shards: dict[int, Shard] = {}
        self.lose_messages = 0
        self.lose_answers = 0
        self.gate: asyncio.Event | None = None
        self.latency_s = 0.001
        self.recoverable: bool | None = None
        """None: judged by what is spent."""
        self.foreign: dict[str, int] = {}
        """Committed by others, by account."""
        self.proxies = 1
        """How many it says that it hears."""

    def committed(self, account: str) -> int:
        total = self.foreign.get(account, 0)
        for instance in self.instances.values():
            report = instance.leases.get(account)
            used = report.consumed + report.reserved if report else 0
            if instance.closed:
                total += report.consumed if report else 0
            else:
                total += max(instance.granted.get(account, 0) - (report.returned if report else 0), used)
        return total

    def spent(self, account: str) -> int:
        return sum(instance.leases[account].consumed for instance in self.instances.values() if account in instance.leases)

    async def sync(self, request: SyncRequest) -> SyncAnswer:
        await asyncio.sleep(self.latency_s)
        if self.lose_messages:
            self.lose_messages -= 1
            raise Lost("message")
        answer = self.answer(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.lose_answers:
            self.lose_answers -= 1
            raise Lost("answer")
        return answer

    def answer(self, request: SyncRequest) -> SyncAnswer:
        self.messages.append(request)
        instance = self.instances.setdefault(request.instance, _Instance())
        if instance.closed:
            return SyncAnswer(seq=request.seq, now_s=self.now_s(), verdict="fenced")
        if request.seq <= instance.seq:
            return SyncAnswer(seq=request.seq, now_s=self.now_s(), verdict="stale")
        instance.seq = request.seq
        self._hear(instance, request)
        if request.closing:
            instance.closed = True
        asks = tuple(self._ask(instance, ask.id, ask.rungs) for ask in request.asks)
        for account in instance.leases:
            if self.idle and instance.leases[account].want:
                more = min(self.idle, self.limits.get(account, 0) - self.committed(account))
                instance.granted[account] = instance.granted.get(account, 0) + max(0, more)
        grants = tuple(
            LeaseGrant(
                account=account,
                granted=instance.granted.get(account, 0),
                recall=self.recall.pop(account, 0),
                limit=self.limits.get(account, 0),
                committed=self.committed(account),
                spent=self.spent(account),
            )
            for account in sorted({*instance.leases, *instance.granted})
        )
        known = self.fleet is None or request.fleet_digest == digest(self.fleet)
        return SyncAnswer(
            seq=request.seq,
            now_s=self.now_s(),
            leases=grants,
            asks=asks,
            fleet=None if known else self.fleet,
            shards=self._changed(request),
            proxies=self.proxies,
        )

    def _changed(self, request: SyncRequest) -> tuple[Shard, ...]:
        return tuple(shard for index, shard in self.shards.items() if request.digests.get(index) != digest(shard))

    def _hear(self, instance: _Instance, request: SyncRequest) -> None:
        for said in request.leases:
            granted = instance.granted.get(said.account, 0)
            assert said.granted <= granted, "the proxy uses a grant that nobody made"
            before = instance.leases.get(said.account)
            if before is not None:
                for field in ("granted", "returned", "consumed", "estimated"):
                    assert getattr(said, field) >= getattr(before, field), f"{field} went down"
            instance.leases[said.account] = said

    def _ask(self, instance: _Instance, id_: int, rungs: Sequence[Mapping[str, int]]) -> AskAnswer:
        if id_ in instance.tickets:
            return AskAnswer(id=id_, rung=instance.tickets[id_])
        for index, rung in enumerate(rungs):
            targets = {account: self._held_with(instance, account, amount) for account, amount in rung.items()}
            if all(self._bearable(instance, account, held) for account, held in targets.items()):
                for account, held in targets.items():
                    report = instance.leases.get(account)
                    instance.granted[account] = held + (report.returned if report else 0)
                    # Until the next message the ticket's money counts as reserved, so that no second ticket gets it.
                    instance.leases[account] = _reserving(report, account, rung[account])
                instance.tickets[id_] = index
                return AskAnswer(id=id_, rung=index)
        cheapest = rungs[-1]
        could = all(
            amount <= self.limits.get(account, 0) - self.spent(account) - self.foreign.get(account, 0)
            for account, amount in cheapest.items()
        )
        return AskAnswer(id=id_, rung=-1, recoverable=could if self.recoverable is None else self.recoverable)

    def _held_with(self, instance: _Instance, account: str, amount: int) -> int:
        report = instance.leases.get(account)
        held = instance.granted.get(account, 0) - (report.returned if report else 0)
        used = report.consumed + report.reserved if report else 0
        return max(held, used + amount)

    def _bearable(self, instance: _Instance, account: str, held: int) -> bool:
        report = instance.leases.get(account)
        now_held = instance.granted.get(account, 0) - (report.returned if report else 0)
        return self.committed(account) + held - now_held <= self.limits.get(account, 0)


def _reserving(report: LeaseReport | None, account: str, amount: int) -> LeaseReport:
    was = report or LeaseReport(account=account, granted=0, returned=0, consumed=0, estimated=0, reserved=0, want=0)
    return LeaseReport(
        account=account,
        granted=was.granted,
        returned=was.returned,
        consumed=was.consumed,
        estimated=was.estimated,
        reserved=was.reserved + amount,
        want=was.want,
    )


class Proxy:
    """A till with its syncer and a keeper, inside a virtual loop. Use as `async with`."""

    def __init__(
        self,
        path: Path,
        config: Table | None = None,
        keeper: Keeper | None = None,
        *,
        boot: str = "boot",
        wire: Sync | None = None,
        known: bool = True,
    ) -> None:
        """`wire`: between the syncer and the keeper. `known`: whether the proxy starts with a config."""
        loop = asyncio.get_running_loop()
        self.clock = Clock(loop.time, NOW_S)
        self.keeper = keeper or Keeper(now_s=self.clock.now_s)
        self.state = StateDir(path, self.clock, boot=boot)
        self.till = Till(self.state, self.clock, (table() if config is None else config) if known else None)
        self.syncer = Syncer(self.till, wire or self.keeper.sync, "shop/proxy", jitter=lambda: 0.5)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Proxy":
        self._task = asyncio.create_task(self.syncer.run())
        await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As kill -9 would: nothing is said to anyone."""
        if self._task is not None:
            self._task.cancel()
        self.state.close(finished=False)

    @property
    def route(self) -> RouteEntry:
        return only(self.till)
