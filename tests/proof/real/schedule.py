"""One schedule: from a seed to what goes wrong and when, and who asks meanwhile. `reckoning` is its end. READ THIS FIRST."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import msgspec
from devcluster import Cluster

from tests.proof.real import models
from tests.proof.real.clients import ask, asked, number_of, wish
from tests.proof.real.faults import Faults, Planned
from tests.proof.real.judge import Asked, Ceiling, Judge, Look, Sent
from tests.proof.real.processes import until
from tests.proof.real.reckoning import reckon
from tests.proof.real.relay import Relay
from tests.proof.real.scene import HORIZON_S, Pod, Scene
from tests.proof.real.space import Network
from tests.proof.truth import Violation
from tests.upstream import Model, Simulator
from tests.upstream.faults import Fault, Kind

WILD_S = 15.0
"""How long things go wrong; a few take longer."""
CALM_S = 5.0
"""How long clients go on asking afterwards."""
TIMEOUT = "5s"
ROUTES = {"chat": ("team", "all"), "batch": ("all", "seen"), "search": ("search", "team", "all")}
"""By route the budgets that bind it, while they exist. `seen` is Soft."""
_USUAL = frozenset({"slow", "gzip", "close"})
"""Faults of the upstream that leave an answer whole, and its usage."""
_TICK_S, _LOOK_S = 0.05, 0.4
_SETTLES_S = 2.5
"""How long after something went wrong refusals are not judged: two exchanges of everybody with the operator."""


@dataclass
class Tally:
    """What a schedule comes to."""

    requests: int = 0
    bill_nusd: int = 0
    estimated_nusd: int = 0
    unreconciled_nusd: int = 0
    unsure_nusd: int = 0
    """What was billed of which nobody outside can say whether it was settled by its usage or as an estimate."""
    refusals: int = 0
    judged: int = 0
    for_want_of_a_keeper: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1


class Schedule:
    """What a seed means."""

    def __init__(self, seed: int, cluster: Cluster, folder: Path, *, privileged: bool, broken: str = "") -> None:
        """`broken`: "no witness" deletes it whenever an older ledger is put back: that must be found out."""
        self.chance = chance = random.Random(f"real {seed}")
        self.seed, self.cluster, self.folder, self.privileged, self.broken = seed, cluster, folder, privileged, broken
        self.tally = Tally()
        self.proxies = 16 if seed % 10 == 0 else chance.choice((1, 4, 4, 4))
        self.keepers = 2 if chance.random() < 0.3 else 1
        self.apart = privileged and self.keepers == 1 and self.proxies > 1 and chance.random() < 0.5
        self.clients = chance.choice((15, 30, 60))
        self.limits = {
            "team": chance.choice((150_000_000, 400_000_000, 1_000_000_000)),
            "all": chance.choice((250_000_000, 600_000_000, 2_000_000_000)),
            "search": chance.choice((60_000_000, 200_000_000)),
            "seen": 200_000_000,
        }
        self.times = chance.choice((2, 3)) if chance.random() < 0.15 else 1
        """How much dearer everything becomes in the middle of it."""
        self.model = Model(
            rule=chance.choice(("typical", "worst")), output_tokens=(20, 300), chunks=chance.choice((3, 20)), seed=seed
        )
        self.latencies_s = chance.sample((0.01, 0.05, 0.2, 0.6, 1.5), 3)
        self.upstream_faults = self._upstream_faults()
        self.faults = Faults(self)
        self.judge = Judge(
            Ceiling(name, name != "seen", frozenset(route for route, names in ROUTES.items() if name in names), limit)
            for name, limit in self.limits.items()
        )
        self.looks: list[Look] = []
        self.asked: dict[int, Asked] = {}
        self.sent: dict[int, Sent] = {}
        self._billed = 0
        self._disturbed: list[list[float]] = []
        self.asking = True

    def __str__(self) -> str:
        faults = [" ".join(f"{n}={v}" for n, v in msgspec.structs.asdict(each).items() if v) for each in self.upstream_faults]
        lines = [
            f"seed {self.seed}: {self.proxies} proxies, {self.keepers} operators, {self.clients} clients, limits {self.limits}",
            f"  upstream {self.model}, first bytes after {self.latencies_s} s, faults: {'; '.join(faults) or 'none'}",
            f"  prices times {self.times}; {'one proxy in a network of its own' if self.apart else 'one network'}",
        ]
        return "\n".join([*lines, *(f"  {each}" for each in self.faults.plan)])

    def _upstream_faults(self) -> list[Fault]:
        chance = self.chance
        kinds: tuple[Kind, ...] = ("status", "hang", "cut", "drop", "stale", "close", "no_usage", "gzip", "rubbish")
        return [
            Fault(
                kind=kind,
                probability=chance.choice((0.03, 0.1)),
                status=chance.choice((400, 429, 500, 503)),
                retry_after=chance.choice((None, "1")),
                after_chunks=chance.randrange(0, 5),
                how=chance.choice(("reset", "fin")),
                rubbish=chance.choice(("html", "broken_json", "short_body", "empty")),
            )
            for kind in chance.sample(kinds, chance.choice((0, 0, 1, 2, 4)))
        ]

    # The whole of it

    async def run(self) -> Tally:
        """Raises Violation; TimeoutError and the like where the machine did not let it go on."""
        prices = {each.name: models.price(each) for each in models.OFFERS}
        with self.cluster.namespace("real") as namespace:
            network = Network(self.folder / "network.log") if self.apart else None
            host = "0.0.0.0" if network is not None else "127.0.0.1"
            simulator = Simulator(host=host, model=self.model, latencies_s=self.latencies_s, per_chunk_s=0.01, prices=prices)
            async with simulator as self.upstream, Relay(random.Random(f"relay {self.seed}")) as relay:
                self.scene = Scene(
                    self.cluster, namespace, self.folder, simulator, relay, network=network, privileged=self.privileged
                )
                self.scene.note(str(self))
                try:
                    async with self._in_time():
                        await self._set_up()
                        await self._play()
                finally:
                    self.scene.note(f"ends: {self.tally}")
                    await asyncio.to_thread(self.scene.end)
        return self.tally

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Of several things that go wrong together, what is false is told first."""
        try:
            yield
        except BaseExceptionGroup as group:
            false, _ = group.split(Violation)
            first: BaseException = false or group
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            raise first from None

    async def _set_up(self) -> None:
        scene = self.scene
        self.dearer_from_s = _wall_s() + 20.0 if self.times > 1 else None
        catalog = scene.object("ModelCatalog", scene.namespace, models.catalog(self.dearer_from_s, self.times))
        fleet = scene.proxy(replicas=self.proxies, leaseHorizon=f"{HORIZON_S:.0f}s", catalogRefs=[{"name": scene.namespace}])
        routes = [self._route(name) for name in ROUTES]
        budgets = [self.budget(name, limit) for name, limit in self.limits.items()]
        await asyncio.to_thread(scene.apply, catalog, fleet, *routes, *budgets)
        for _ in range(self.keepers):
            scene.keeper().start()
            await scene.lead()
        objects = await asyncio.to_thread(scene.pod_objects, self.proxies)
        for number, each in enumerate(objects):
            pod = scene.pod(scene.network if number == 0 else None)
            scene.pods_.append(pod)
            await asyncio.to_thread(pod.move_in, each)
        for few in range(0, self.proxies, 4):
            await asyncio.gather(*(scene.revive(pod) for pod in scene.pods_[few : few + 4]))
        for name, ceiling in self.judge.ceilings.items():
            if ceiling.hard:
                await until(lambda name=name: asyncio.to_thread(self.is_enforced, name), f"SpendBudget {name} is enforced")

    def budget(self, name: str, limit_nusd: int) -> dict[str, Any]:
        names = [route for route, budgets in ROUTES.items() if name in budgets]
        refs = [{"group": "stepdown.dev", "kind": "ModelRoute", "name": route} for route in names]
        steps = [{"atPercent": 50, "action": "Notify"}, {"atPercent": 80, "action": "StepDown", "maxTier": "Premium"}]
        kind = "Soft" if name == "seen" else "Hard"
        return self.scene.budget(name, models.usd(limit_nusd), targetRefs=refs, steps=steps, enforcement=kind)

    def _route(self, name: str) -> dict[str, Any]:
        return self.scene.route(
            name,
            models.BIG.name,
            models={"default": models.BIG.name, "fallbacks": [models.MID.name]},
            stepDown={"models": [models.MID.name, models.SMALL.name], "floor": models.SMALL.tier},
            requirements={"providers": {"allow": [models.PROVIDER]}},
            parameters={"maxTokens": 10_000_000, "timeout": TIMEOUT},
        )

    def is_enforced(self, name: str) -> bool:
        """Blocks."""
        return self.scene.condition("SpendBudget", name, "Enforced")[0] == "True"

    async def _play(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(work()) for work in (self._watch_bill, self._watch_ledger, self._watch_processes)]
            if self.dearer_from_s is not None:
                watching.append(group.create_task(self._raise_prices(self.dearer_from_s)))
            if any(each.kind == "hang" for each in self.upstream_faults):
                watching.append(group.create_task(self._restart_upstream()))
            self.upstream.order(self.upstream_faults)
            clients = [group.create_task(self._client(number)) for number in range(self.clients)]
            wrong = [group.create_task(self._later(each)) for each in self.faults.plan]
            self.scene.note("begins")
            await asyncio.sleep(WILD_S)
            await asyncio.gather(*wrong)
            self.upstream.clear_faults()
            self.upstream.cut()  # (what hangs there would hang for a minute)
            await self.faults.make_up()
            await asyncio.sleep(CALM_S)
            self.asking = False
            self.scene.note("nobody asks any more")
            await asyncio.gather(*clients)
            self._judge_refusals()
            await reckon(self)
            for task in watching:
                task.cancel()

    async def _later(self, planned: Planned) -> None:
        await asyncio.sleep(planned.at_s)
        self.tally.note(planned.name)
        with self._disturbed_by(str(planned)):
            await planned.run()

    @contextlib.contextmanager
    def _disturbed_by(self, what: str) -> Iterator[None]:
        """While it lasts, and for a while after, nobody's refusal is judged."""
        span = [time.monotonic(), inf]
        self._disturbed.append(span)
        self.scene.note(f"{what} begins")
        try:
            yield
        finally:
            self.scene.note(f"{what} is over")
            span[1] = time.monotonic() + _SETTLES_S

    # Clients

    async def _client(self, number: int) -> None:
        chance = random.Random(f"client {self.seed} {number}")
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        while self.asking:
            ready = [pod for pod in self.scene.pods_ if pod.ready]
            if ready:
                leave_s = chance.uniform(0.0, 1.5) if chance.random() < 0.1 else None
                record = await self.ask(chance, chance.choice(ready), chance.choice(list(ROUTES)), leave_s)
                await asyncio.sleep(chance.expovariate(6.0) if record.status == 200 else chance.uniform(0.2, 1.5))
            else:
                await asyncio.sleep(0.2)

    async def ask(self, chance: random.Random, pod: Pod, route: str, leave_s: float | None = None, tokens: int = 0) -> Asked:
        """`tokens`: how many the answer may have; 0: as many as chance says."""
        wanted = wish(chance, route)
        if tokens:
            wanted.text, wanted.max_tokens, wanted.stream = "x", tokens, False
        number = len(self.asked) + 1
        record = self.asked[number] = asked(number, wanted, pod.life, time.monotonic(), self.times)
        await ask(record, wanted, pod.address, leave_s)
        self.tally.requests += 1
        self.tally.note(f"status {record.status} {record.code}".rstrip())
        if record.code == "insufficient_quota":
            self.tally.refusals += 1
        elif record.code == "ledger_unreachable":
            self.tally.for_want_of_a_keeper += 1
        return record

    def _judge_refusals(self) -> None:
        for each in self.asked.values():
            if each.code != "insufficient_quota" or not self._was_calm(each.asked_s, each.ended_s):
                continue
            wrong = self.judge.false_refusal(each, self.looks, self.asked.values())
            if wrong is not None:
                self.tally.judged += 1
            if wrong:
                raise Violation(wrong)

    def _was_calm(self, begin_s: float, end_s: float) -> bool:
        return not any(begin <= end_s and begin_s - 0.5 <= end for begin, end in self._disturbed)

    # Watching

    def worth(self) -> dict[str, int]:
        """Takes in what the upstream has to tell, and says what all of it is worth now."""
        log, lines = self.upstream.log, self.upstream.bill.lines
        for entry in reversed(list(islice(reversed(log), len(log) - len(self.sent)))):
            record = self.asked[number_of(entry.body)]
            self.sent[entry.number] = self.judge.came(record, entry.request.at_s)
        for line in reversed(list(islice(reversed(lines), len(lines) - self._billed))):
            entry = log[line.request - 1]
            dear = models.cost_of(line.model, self.times, line.tokens)
            usual = line.outcome == "complete" and _USUAL.issuperset(entry.faults)
            self.judge.ended(self.sent[line.request], line.cost_nusd, dear, usual=usual)
        self._billed = len(lines)
        return self.judge.worth((self.sent[entry.number], nusd) for entry, nusd in self.upstream.pending())

    def statement(self, life: str) -> dict[str, int]:
        """By budget: what one instance's requests are worth by the bill, those in flight at what they will cost."""
        self.worth()
        stated: dict[str, int] = {}
        pending = {entry.number: nusd for entry, nusd in self.upstream.pending()}
        for number, sent in self.sent.items():
            if sent.asked.life == life:
                for each in sent.maybe:
                    stated[each.name] = stated.get(each.name, 0) + pending.get(number, sent.cost_nusd)
        return stated

    async def _watch_bill(self) -> None:
        while True:
            self.judge.check_ceilings(self.worth())
            await asyncio.sleep(_TICK_S)

    async def _watch_ledger(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_S)

    async def look(self) -> Look | None:
        """None: the ledger cannot be relied on just now."""
        before = self.worth()
        look = await asyncio.to_thread(self.scene.look)
        if look is None or not self.scene.trusted:
            return None
        self.judge.check_ledger(before, look)
        self.looks.append(look)
        return look

    async def _watch_processes(self) -> None:
        """The kubelet."""
        while True:
            await asyncio.sleep(0.5)
            await self.faults.start_again()

    async def _restart_upstream(self) -> None:
        """What hangs there would hang for a minute, and every rollout with it."""
        while True:
            await asyncio.sleep(5.0)
            self.upstream.cut()

    async def _raise_prices(self, at_s: float) -> None:
        await asyncio.sleep(max(0.0, at_s - _wall_s()))
        for each in models.OFFERS:
            self.upstream.reprice(each.name, models.price(each, self.times))
        self.tally.note("prices raised")


def _wall_s() -> float:
    return time.time()  # noqa: TID251 (a catalog's dates are the machine's clock's)
