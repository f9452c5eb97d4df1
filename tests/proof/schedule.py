"""One schedule: from a seed to what goes wrong and when, and then the reckoning."""

import asyncio
import logging
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proof.clients import ask, body
from tests.proof.host import POINTS, Host, State
from tests.proof.loop import Process, ProofLoop
from tests.proof.reckoning import reckon
from tests.proof.truth import Tally, Violation
from tests.proof.world import HORIZON_S, LONGEST_S, ROUTES, World
from tests.unit.proxy_money import EDGE_S, NOW_S
from tests.upstream.faults import Fault, Kind

_SHM = Path("/dev/shm")  # (a disk in memory: what is flushed there is not waited for)

WILD_S = 28.0
"""How long things go wrong."""
CALM_S = 9.0
"""How long clients go on asking afterwards: two rounds with the keeper, and a wait."""


def play(seed: int, *, broken: str = "") -> Tally:
    """Raises Violation. `broken`: "no witness" or (without one) "forgets", a keeper that must be found out."""
    random.seed(seed)
    folder_of = _SHM if _SHM.is_dir() else None
    with (
        _silent(),
        tempfile.TemporaryDirectory(prefix="proof-", dir=folder_of) as folder,
        asyncio.Runner(loop_factory=ProofLoop) as runner,
    ):
        loop = runner.get_loop()
        assert isinstance(loop, ProofLoop)
        return runner.run(Schedule(seed, Path(folder), loop, broken).run())


@contextmanager
def _silent() -> Iterator[None]:
    """What a thousand faults make a proxy say is not news, and whoever tests the log next wants to read it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class Schedule:
    """What a seed means."""

    def __init__(self, seed: int, folder: Path, loop: ProofLoop, broken: str) -> None:
        self.chance = chance = random.Random(f"schedule {seed}")
        self.seed, self.loop = seed, loop
        self.crowd = Process("clients")
        self.devil = Process("faults")
        self.more = more = random.Random(f"more {seed}")
        """For what came later: what a seed meant before, it means still."""
        crowd = 16 if more.random() < 0.03 else 0
        edge = chance.random() < 0.15
        now_s = EDGE_S - chance.uniform(5.0, WILD_S) if edge else NOW_S
        self.world = world = World(seed, folder, loop, proxies=max(crowd, chance.choice((1, 2, 2, 3, 4))), now_s=now_s)
        world.has_witness, world.forgets = not broken, broken == "forgets"
        self.broken = broken
        self.edge_s = EDGE_S - now_s if edge else None
        world.limits = {
            "shop/team": chance.choice((40_000, 100_000, 300_000)),
            "shop/all": chance.choice((60_000, 150_000, 400_000)),
            "shop/search": chance.choice((10_000, 40_000, 100_000)),
            "shop/seen": 50_000,
        }
        self.first_limits = dict(world.limits)
        if chance.random() < 0.15:
            world.dearer_times = chance.choice((2, 3))
            world.dearer_from_s = now_s + chance.choice((10.0, LONGEST_S + 15.0))

    async def run(self) -> Tally:
        chance, world = self.chance, self.world
        for what, happens in (
            (f"{len(world.hosts)} proxies", len(world.hosts) > 4),
            ("a month's edge", self.edge_s is not None),
            ("dearer in mid-month", world.dearer_from_s is not None),
        ):
            if happens:
                world.truth.tally.note(what)
        began_s = self.loop.time()
        await world.start_keeper()
        for host in world.hosts:
            host.striking = self.struck
            host.start()
        await asyncio.sleep(1.5)
        self._upstream_faults()
        until_s = self.loop.time() + WILD_S
        self.stop_s = until_s + CALM_S
        asking = [self.crowd.spawn(self.client(number)) for number in range(chance.choice((3, 6, 10)))]
        looking = self.devil.spawn(self._look())
        for what in self._draw():
            self.devil.spawn(self._later(chance.uniform(0.0, WILD_S - 5.0), what))
        for what, often in ((self.fill_the_ledgers_disk, 0.12), (self.soften, 0.1), (self.exceed, 0.06)):
            if self.more.random() < often and not self.broken:
                self.devil.spawn(self._later(self.more.uniform(0.0, WILD_S - 10.0), what))
        if self.edge_s is not None:
            self.devil.spawn(self._later(self.edge_s + chance.uniform(0.0, 3.0), world.put_in_force))
        if world.dearer_from_s is not None:
            after_s = world.dearer_from_s - world.now_s - (self.loop.time() - began_s)
            self.loop.call_later(after_s, world.upstream.raise_prices, world.dearer_times)
        await asyncio.sleep(WILD_S)
        await self.make_up()
        await asyncio.gather(*asking)
        self._judge()
        await reckon(world)
        looking.cancel()
        self._judge()
        return world.truth.tally

    def _judge(self) -> None:
        for what in self.world.truth.violations:
            raise Violation(what)
        for what in self.loop.failures:
            raise Violation(f"failed: {what}")

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(2.0)
            self.world.look()

    # Clients

    async def client(self, number: int) -> None:
        chance = random.Random(f"client {self.seed} {number}")
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        while self.loop.time() < self.stop_s:
            host = chance.choice(self.world.hosts)
            leave_s = chance.uniform(0.0, 2.0) if chance.random() < 0.1 else None
            client = await ask(self.crowd, host, body(chance, chance.choice(list(ROUTES))), leave_s)
            self.world.truth.tally.note(f"status {client.status} {client.error.get('code', '')}")
            await asyncio.sleep(chance.expovariate(2.0) if client.status == 200 else chance.uniform(0.3, 3.0))

    # Faults

    def _upstream_faults(self) -> None:
        chance, upstream = self.chance, self.world.upstream
        kinds: tuple[Kind, ...] = ("status", "hang", "cut", "drop", "stale", "close", "no_usage", "gzip", "rubbish")
        for kind in chance.sample(kinds, chance.choice((0, 1, 3, 5))):
            upstream.order(
                [
                    Fault(
                        kind=kind,
                        probability=chance.choice((0.03, 0.1, 0.3)),
                        status=chance.choice((400, 429, 500, 503)),
                        retry_after=chance.choice((None, "1")),
                        after_chunks=chance.randrange(0, 5),
                        how=chance.choice(("reset", "fin")),
                        rubbish=chance.choice(("html", "broken_json", "short_body", "empty")),
                    )
                ]
            )

    def _draw(self) -> list[Callable[[], Awaitable[None]]]:
        kinds = [
            self.kill,
            self.kill,
            self.kill_at_a_point,
            self.kill_at_a_point,
            self.kill_at_a_point,
            self.lose_a_log,
            self.restart_the_keeper,
            self.restart_the_keeper,
            self.stop_the_keeper,
            self.noise,
            self.noise,
            self.partition,
            self.partition,
            self.put_back,
            self.change_leader,
            self.step_the_clock,
            self.witness_away,
            self.fill_a_disk,
            self.roll_out,
            self.edit,
            self.edit,
            self.edit,
            self.refuse_connections,
        ]
        drawn = self.chance.sample(kinds, self.chance.choice((2, 4, 6, 8)))
        if self.broken:
            drawn += [self.put_back if self.broken == "no witness" else self.restart_the_keeper] * 3
        if self.chance.random() < 0.12:
            drawn.append(self.partition_until_settled)
        return drawn

    async def _later(self, after_s: float, what: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(after_s)
        self.world.truth.tally.note(getattr(what, "__name__", "edge"))
        await what()

    def _host(self) -> Host | None:
        running = [host for host in self.world.hosts if host.alive]
        return self.chance.choice(running) if running else None

    def struck(self, host: Host) -> None:
        """By the host: killed at the point that was ordered."""
        self.devil.spawn(self.world.revive(host, host.next_state, self.chance.uniform(0.1, 5.0)))

    async def kill(self) -> None:
        if (host := self._host()) is not None:
            await self.world.kill(host, "kept", self.chance.uniform(0.1, 8.0))

    async def kill_at_a_point(self) -> None:
        if (host := self._host()) is not None:
            point = self.chance.choice(POINTS)
            lost: tuple[State, ...] = ("gone", "cloned", "other boot", "corrupt")
            torn: State = "torn" if point == "reserved" else "kept"
            state = self.chance.choice(lost) if self.chance.random() < 0.2 else self.chance.choice((torn, "kept"))
            host.order(point, self.chance.randrange(1, 12), state)

    async def lose_a_log(self) -> None:
        if (host := self._host()) is not None:
            state: State = self.chance.choice(("gone", "cloned", "other boot", "corrupt"))
            if state == "corrupt" and self.more.random() < 0.5:
                state = "corrupt tail"
            await self.world.kill(host, state, self.chance.uniform(0.1, 4.0))

    async def restart_the_keeper(self) -> None:
        async with self.world.keeping:
            await self.world.kill_keepers()
            await asyncio.sleep(self.chance.choice((0.1, 1.0, 5.0, 15.0)))
            await self.world.start_keeper()

    async def stop_the_keeper(self) -> None:
        async with self.world.keeping:
            await self.world.stop_keepers()
            await asyncio.sleep(self.chance.choice((0.1, 2.0)))
            await self.world.start_keeper()

    async def put_back(self) -> None:
        """A backup is made, some seconds go by, and it is put in the ledger's place."""
        async with self.world.keeping:
            self.world.back_up()
        await asyncio.sleep(self.chance.uniform(0.2, 10.0))
        async with self.world.keeping:
            await self.world.restore()

    async def change_leader(self) -> None:
        async with self.world.keeping:
            await self.world.take_over()

    async def noise(self) -> None:
        self.world.network.noise = self.chance.choice((0.1, 0.3, 0.6))
        await asyncio.sleep(self.chance.uniform(2.0, 12.0))
        self.world.network.noise = 0.0

    async def partition(self) -> None:
        if (host := self._host()) is not None:
            host.part(True)
            await asyncio.sleep(self.chance.choice((2.0, 6.0, HORIZON_S + 5.0)))
            host.part(False)

    async def partition_until_settled(self) -> None:
        """It comes back after its lease was settled: it has to take another name."""
        if (host := self._host()) is not None and len(self.world.hosts) > 1:
            self.stop_s += 90.0
            host.part(True)
            await asyncio.sleep(HORIZON_S + LONGEST_S + 12.0)
            await self.world.settle_lost()
            host.part(False)

    async def step_the_clock(self) -> None:
        self.world.steps_s += self.chance.choice((-30.0, -2.0, -0.5, 0.5, 2.0, 20.0))

    async def witness_away(self) -> None:
        self.world.witness.away = True
        await asyncio.sleep(self.chance.uniform(1.0, 10.0))
        self.world.witness.away = False

    async def fill_a_disk(self) -> None:
        if (host := self._host()) is not None:
            host.fill_disk()
            await asyncio.sleep(self.chance.uniform(1.0, 8.0))
            host.empty_disk()

    async def fill_the_ledgers_disk(self) -> None:
        """Somewhere in the next transactions there is no room for the rest."""
        world = self.world
        world.ledger_room = world.ledger_log_bytes() + self.more.randrange(0, 20_000)
        world.truth.disturbed()
        await asyncio.sleep(self.more.uniform(1.0, 8.0))
        world.ledger_room = None
        async with world.keeping:
            await world.put_in_force()
        world.truth.disturbed()

    async def soften(self) -> None:
        """A Hard budget becomes Soft, and some seconds later Hard again."""
        name = self.more.choice(("shop/team", "shop/all", "shop/search"))
        for change in (self.world.soft.add, self.world.soft.discard):
            change(name)
            async with self.world.keeping:
                await self.world.put_in_force()
            await asyncio.sleep(self.more.uniform(2.0, 8.0))

    async def exceed(self) -> None:
        """The upstream does not obey max_tokens."""
        self.world.truth.exceeds = True
        self.world.upstream.order([Fault(kind="ignore_max_tokens", probability=0.2, tokens=self.more.choice((700, 3_000)))])

    async def roll_out(self) -> None:
        for host in list(self.world.hosts):
            await self.world.replace(host)

    async def refuse_connections(self) -> None:
        self.world.upstream.refuses_connections = True
        await asyncio.sleep(self.chance.uniform(0.5, 4.0))
        self.world.upstream.refuses_connections = False

    async def edit(self) -> None:
        chance, limits = self.chance, self.world.limits
        name = chance.choice(("shop/team", "shop/all", "shop/search"))
        what = chance.choice(("lower", "lower", "raise", "delete"))
        if what == "delete":
            self.world.truth.tally.note("deleted")
            limits.pop(name, None)
            async with self.world.keeping:
                await self.world.put_in_force()
            await asyncio.sleep(chance.uniform(0.5, 8.0))
            limits[name] = int(self.first_limits[name] * chance.choice((0.5, 1.0, 1.5)))
        elif name in limits:
            limits[name] = int(limits[name] * (chance.uniform(0.1, 0.9) if what == "lower" else chance.uniform(1.1, 2.0)))
        async with self.world.keeping:
            await self.world.put_in_force()

    async def make_up(self) -> None:
        """All faults are over, but for those that take their time."""
        world = self.world
        world.upstream.clear_faults()
        world.network.noise = 0.0
        for host in world.hosts:
            host.forgive()
