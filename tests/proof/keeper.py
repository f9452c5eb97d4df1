"""The keeper's process: the real sync service on a real ledger file, beside a witness. It is killed, restarted, put back, and
followed by another leader."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stepdown.budget.account import Balance, Binding
from stepdown.budget.serving import Pod
from stepdown.cluster.errors import Unavailable
from stepdown.ledger import Ledger
from stepdown.ledger.views import InstanceView
from stepdown.model.config import Fleet, Shard
from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.sync.service import SyncService
from tests.proof.loop import Disk, Process
from tests.proof.sums import Reader


class MemoryWitness:
    """Marks that only grow, a round trip away; sometimes nobody answers, and sometimes nobody says whether it happened."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.marks: dict[str, int] = {}
        self.away = False

    async def read(self) -> Mapping[str, int]:
        await asyncio.sleep(self._chance.uniform(0.002, 0.02))
        if self.away:
            raise Unavailable("the API server is away")
        return dict(self.marks)

    async def raise_to(self, marks: Mapping[str, int]) -> None:
        await asyncio.sleep(self._chance.uniform(0.002, 0.02))
        happens = not self.away or self._chance.random() < 0.3
        if happens:
            for name, value in marks.items():
                self.marks[name] = max(value, self.marks.get(name, 0))
        if self.away:
            raise Unavailable("the API server did not say")

    async def prune(self, now_s: float) -> int:
        """No schedule is longer than what is kept."""
        return 0


class Plan:
    """What a pass over the objects would give: the bindings, and the config that names them."""

    def __init__(self, bindings: Sequence[Binding], fleet: Fleet, shards: Mapping[int, Shard]) -> None:
        self.bindings, self.fleet, self.shards = bindings, fleet, shards


class Keeper:
    """One process of it, from its start to its end."""

    def __init__(
        self,
        name: str,
        path: Path,
        witness: MemoryWitness | None,
        clock: Callable[[], float],
        chance: random.Random,
        *,
        beside: bool = False,
        room: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`beside`: another one still has the file open. `room`: of the ledger's disk, as of now."""
        self.name = name
        self.process = Process(name)
        self.disk = Disk(lambda: chance.uniform(0.0005, 0.004), room)
        self.ledger = Ledger.open(path, create=True, beside=beside)
        self.ledger.take_epoch(name)
        self.sums = Reader(path)
        self.service = SyncService(self.ledger, clock, witness, worker=self.disk)
        self._clock = clock
        self.plan: Plan | None = None
        """In force."""
        self.ready = self.stopping = False
        self.doubted: set[str] = set()
        """Of whom this ledger, an older copy, may think what has long changed: they have not said everything since."""

    async def begin(self, plan: Plan) -> None:
        """As the operator does: the term, then what is in force is bound, then published. Only then may proxies speak."""
        await self.process.spawn(self._begin(plan))

    async def _begin(self, plan: Plan) -> None:
        await self.service.begin()
        await self.service.bind(plan.bindings)
        self.service.publish(plan.fleet, plan.shards)
        self.plan = plan
        self.ready = True

    async def put_in_force(self, plan: Plan) -> None:
        await self.process.spawn(self._put_in_force(plan))

    async def _put_in_force(self, plan: Plan) -> None:
        await self.service.bind(plan.bindings)
        self.service.publish(plan.fleet, plan.shards)
        self.plan = plan

    async def answer(self, request: SyncRequest, pod: str) -> SyncAnswer:
        """Raises SyncError, or OSError when the process ends meanwhile."""
        if not self.ready or not self.process.alive:
            raise ConnectionRefusedError("nobody listens")
        task = self.process.spawn(self.service.sync(request, Pod(pod, pod)))
        await asyncio.wait([task])
        if task.cancelled():
            raise ConnectionResetError("connection reset by peer")
        answer = task.result()
        if request.whole and answer.verdict == "ok":
            self.doubted.discard(request.instance)
        return answer

    async def settle(self, instance: str, stated: Mapping[str, int]) -> None:
        """Raises LedgerError."""
        work = self.service.call(lambda ledger: ledger.settle_instance(instance, stated, self._clock()))
        await self.process.spawn(work)

    @property
    def knows(self) -> bool:
        """It has asked the witness what its ledger may lack. Before that it grants nothing."""
        return not self.ledger.standstill

    def balances(self) -> dict[str, Balance]:
        return self.ledger.balances(self._clock(), ended=True)

    def instances(self) -> list[InstanceView]:
        return self.ledger.instances()

    async def kill(self) -> None:
        """What was committed is there, what was to be said is not said."""
        self.process.alive = False
        self.disk.dead = True
        self.sums.close()
        self.ledger._database.close()
        await self.process.end()

    async def stop(self) -> None:
        """In good order."""
        self.stopping = True
        self.sums.close()
        await self.process.spawn(self.service.close())
        await self.process.end()


def snapshot(path: Path, to: Path) -> None:
    """A backup, as of one moment."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("VACUUM INTO ?", (str(to),))
    finally:
        connection.close()


def put_back(path: Path, copy: Path) -> None:
    """An administrator restores the backup, with everything else of the ledger moved away."""
    for each in path.parent.glob(f"{path.name}*"):
        each.unlink()
    shutil.copy(copy, path)


def forget(path: Path) -> None:
    """What no keeper may do: all that was granted and not spent is as if it had never been."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("UPDATE leases SET granted = returned + consumed + reserved")
        connection.commit()
    finally:
        connection.close()
