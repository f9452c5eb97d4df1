"""The sync service: proxies report and ask, the ledger answers, changed config goes down. `local` and `sync.http` call it.

One worker thread has the ledger, so the event loop never waits for a disk. Messages that arrive while a transaction runs share
the next one (group commit): a thousand asks cost as many fsyncs as there are rounds of the disk, not a thousand.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec

from stepdown.budget.account import Binding
from stepdown.budget.serving import Pod
from stepdown.ledger import Ledger
from stepdown.ledger.check import check
from stepdown.ledger.errors import LedgerError, LedgerFenced, LedgerRefused
from stepdown.model.config import SHARDS, Fleet, Shard, digest
from stepdown.model.sync import PROTOCOL, SPOKEN, SyncAnswer, SyncError, SyncRefused, SyncRequest, SyncUnavailable
from stepdown.plan.world import ProxiesSeen
from stepdown.sync.older import fleet_of_protocol_1, shard_of_protocol_1
from stepdown.sync.roll import EMPTY_DIGESTS, Roll
from stepdown.sync.witness import Raiser, Witness

T = TypeVar("T")

HOLD_S = 1.0
"""How long a message may wait for the witness; a proxy gives one up after two."""

MAX_BATCH = 256
"""Messages in one transaction, so that the first of a crowd does not wait for all of it."""


class _Config(NamedTuple):
    """One fleet's config as published, with its digests."""

    fleet: Fleet
    fleet_digest: str
    shards: tuple[Shard, ...]
    digests: tuple[str, ...]

    @classmethod
    def of(cls, fleet: Fleet, shards: tuple[Shard, ...], *known: "_Config | None") -> "_Config":
        """A digest is made once for each object: where one of `known` has it, it is that."""
        digests = []
        for index, shard in enumerate(shards):
            same = next((each.digests[index] for each in known if each is not None and each.shards[index] is shard), None)
            digests.append(same or digest(shard))
        return cls(fleet, digest(fleet), shards, tuple(digests))


class _Item:
    """A message that waits for its answer."""

    __slots__ = ("answer", "hold_until_s", "pod", "request")

    def __init__(
        self, request: SyncRequest, pod: Pod | None, answer: "asyncio.Future[SyncAnswer]", hold_until_s: float
    ) -> None:
        self.request, self.pod, self.answer, self.hold_until_s = request, pod, answer, hold_until_s


_EMPTY = tuple(Shard(index=index) for index in range(SHARDS))


class SyncService:
    """Answers proxies. Everything but `publish` is a coroutine on one event loop."""

    def __init__(
        self,
        ledger: Ledger,
        clock: Callable[[], float],
        witness: Witness | None = None,
        *,
        worker: Executor | None = None,
    ) -> None:
        """`clock` says the ledger's time, Unix seconds. From here on only the service's thread calls the ledger.

        With a witness nothing is granted before `begin`. `worker` stands for the thread where time is not the machine's: one
        at a time, in order.
        """
        self._ledger, self._clock = ledger, clock
        self._thread: Executor = worker or ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._raiser: Raiser | None = None
        if witness is not None:
            ledger.guard()
            self._raiser = Raiser(witness, ledger, self.call, clock, self._release)
        self._waiting: list[_Item] = []
        self._held: list[_Item] = []
        """Judged, and to be judged again when the witness has been raised; in order of arrival."""
        self._running: asyncio.Task[None] | None = None
        self._configs: dict[str, _Config] = {}
        self._older: dict[str, _Config] = {}
        """The same for proxies that speak protocol 1."""
        self._roll = Roll()
        self.changed: Callable[[str], None] = _nothing
        """Told the fleet whose proxies a plan would judge otherwise now: one came, went, lost a key, or the last of them has
        the published config."""
        self.spent: Callable[[str, int], None] = _nowhere
        """Told of each account that a message was about, and what is spent of it by now, in nUSD."""
        self.fenced: Callable[[LedgerFenced], None] = _unheeded
        """Told when a message cannot be judged here any more, since another keeper has the ledger: who keeps it has to end."""

    async def begin(self) -> None:
        """The ledger's term, by the witness; `Ledger.take_epoch` comes before. Raises a LedgerError.

        Should the witness not answer, it is asked again until it does; `standstill` says so.
        """
        if self._raiser is not None:
            await self._raiser.begin()

    @property
    def standstill(self) -> str:
        """Why less is granted than the limits allow, a sentence for people; empty when all is well."""
        return self._raiser.standstill if self._raiser is not None else ""

    # The plan's side --------------------------------------------------------------------------------------------------

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Gives the ledger all accounts, limits and bound routes. Await it before you publish the config that carries them."""
        await self.call(lambda ledger: ledger.bind(bindings, self._clock()))

    def publish(self, fleet: Fleet, shards: Mapping[int, Shard]) -> None:
        """The fleet's config from now on; what a proxy lacks of it goes down with its next answer. Absent shards are empty."""
        now = tuple(shards.get(index, empty) for index, empty in enumerate(_EMPTY))
        config = _Config.of(fleet, now, self._configs.get(fleet.name))
        older = _Config.of(
            fleet_of_protocol_1(fleet), tuple(map(shard_of_protocol_1, now)), config, self._older.get(fleet.name)
        )
        self._configs[fleet.name], self._older[fleet.name] = config, older
        if older.digests != config.digests:
            self._thread.submit(self._ledger.publish, fleet.name, dict(enumerate(older.digests)), fleet.lease_horizon_s)
        self._thread.submit(self._ledger.publish, fleet.name, dict(enumerate(config.digests)), fleet.lease_horizon_s)

    def proxies(self, now_s: float) -> Mapping[str, ProxiesSeen]:
        """What the proxies of each fleet last said of themselves. Cheap; the same objects while nothing changes."""
        return self._roll.proxies(now_s)

    async def call(self, work: Callable[[Ledger], T]) -> T:
        """Runs something on the ledger's thread, such as `lambda ledger: ledger.balances(now_s)`. Raises what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._ledger)

    async def close(self) -> None:
        """Answers what is waiting, then closes the ledger."""
        if self._raiser is not None:
            await self._raiser.close()
        self._hurry(self._held)
        while self._running is not None:
            await asyncio.wait([self._running])
        with contextlib.suppress(RuntimeError):  # Closed before.
            await self.call(Ledger.close)
        self._thread.shutdown()

    # The proxies' side ------------------------------------------------------------------------------------------------

    async def sync(self, request: SyncRequest, pod: Pod | None = None, *, leaving: bool = False) -> SyncAnswer:
        """Raises SyncUnavailable or SyncRefused; else the message has been applied durably and whole.

        `pod`: the sender's, where it has one. `leaving`: its RoutingProxy is there no more. What it has spent
        counts; it gets neither money nor config, which may be that of another RoutingProxy by the same name.
        """
        check_protocol(request.protocol)
        try:
            check(request)
        except LedgerRefused as error:
            raise SyncRefused(str(error)) from error
        if leaving:
            wanting_nothing = tuple(msgspec.structs.replace(each, want=0) for each in request.leases)
            request = msgspec.structs.replace(request, asks=(), leases=wanting_nothing)
        loop = asyncio.get_running_loop()
        item = _Item(request, pod, loop.create_future(), loop.time() + HOLD_S)
        self._waiting.append(item)
        self._run()
        answer = await item.answer
        if answer.verdict == "ok" and not leaving:
            self._hear(request, pod)
        return self._with_config(request, answer, wanted=not (leaving or request.closing))

    def _hear(self, request: SyncRequest, pod: Pod | None) -> None:
        config = self._configs.get(request.fleet)
        if config is not None and request.protocol < 2:  # what it has is the same, but for what it does not know
            same = dict(zip(self._older[request.fleet].digests, config.digests, strict=True))
            has = {index: same.get(each, each) for index, each in request.digests.items()}
            request = msgspec.structs.replace(request, digests=has)
        if self._roll.hear(
            request, pod.uid if pod is not None else "", config.digests if config is not None else EMPTY_DIGESTS, self._clock()
        ):
            self.changed(request.fleet)

    def _run(self) -> None:
        if self._waiting and self._running is None:
            self._running = asyncio.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._answer(batch)
        except asyncio.CancelledError:  # The loop ends.
            _fail(self._waiting, SyncUnavailable("the keeper stops"))
            self._waiting = []
            raise
        finally:
            self._running = None
            self._run()

    async def _answer(self, batch: Sequence[_Item]) -> None:
        try:
            await self._judge(batch)
        except LedgerRefused as error:
            if len(batch) == 1:
                _fail(batch, SyncRefused(str(error)))
            else:  # One message must not spoil the others'.
                for one in batch:
                    await self._answer([one])
        except (LedgerError, RuntimeError) as error:  # RuntimeError: the thread was shut down.
            _fail(batch, SyncUnavailable(str(error)))
            if isinstance(error, LedgerFenced):
                self.fenced(error)
        except BaseException:
            _fail(batch, SyncUnavailable("the keeper failed while it judged this message; nothing was granted"))
            raise

    async def _judge(self, batch: Sequence[_Item]) -> None:
        """Answers them, but for those that wait for the witness."""
        requests = [item.request for item in batch]
        patient: tuple[int, ...] = ()
        if self._raiser is not None and self._raiser.patient:
            now_s = asyncio.get_running_loop().time()
            patient = tuple(index for index, item in enumerate(batch) if item.hold_until_s > now_s)
        pods = {item.request.instance: item.pod for item in batch if item.pod is not None}
        judged = await self.call(lambda ledger: ledger.judge(requests, self._clock(), patient, pods))
        short = frozenset(judged.short)
        for index, (item, answer) in enumerate(zip(batch, judged.answers, strict=True)):
            if index in short:
                continue
            if not item.answer.done():  # The caller may have gone.
                item.answer.set_result(answer)
            for lease in answer.leases:
                self.spent(lease.account, lease.spent)
        self._hold([batch[index] for index in judged.short])
        if self._raiser is not None:
            self._raiser.want(judged.marks)

    # The witness ------------------------------------------------------------------------------------------------------

    def _hold(self, held: Sequence[_Item]) -> None:
        loop = asyncio.get_running_loop()
        for item in held:
            self._held.append(item)
            loop.call_at(item.hold_until_s, self._late, item)

    def _release(self) -> None:
        """The witness has been raised, or cannot be: those that waited are the first of the next batch."""
        self._waiting[:0] = self._held
        self._held = []
        self._run()

    def _late(self, item: _Item) -> None:
        if item in self._held and self._raiser is not None:
            self._raiser.hurry()
            self._hurry(self._held)

    def _hurry(self, items: Sequence[_Item]) -> None:
        """They have waited long enough: whatever the marks allow."""
        late = [item for item in items if item in self._held]
        for item in late:
            item.hold_until_s = 0.0
            self._held.remove(item)
        self._waiting[:0] = late
        self._run()

    def _with_config(self, request: SyncRequest, answer: SyncAnswer, *, wanted: bool) -> SyncAnswer:
        protocol = min(PROTOCOL, request.protocol)
        config = (self._configs if protocol >= 2 else self._older).get(request.fleet)
        if config is None or answer.verdict != "ok" or not wanted:
            return answer if answer.protocol == protocol else msgspec.structs.replace(answer, protocol=protocol)
        return msgspec.structs.replace(
            answer,
            protocol=protocol,
            proxies=self._roll.count(request.fleet, self._clock()) if protocol >= 2 else 1,
            fleet=None if request.fleet_digest == config.fleet_digest else config.fleet,
            shards=tuple(
                shard
                for shard, current, empty in zip(config.shards, config.digests, EMPTY_DIGESTS, strict=True)
                if (request.digests.get(shard.index) or empty) != current
            ),
        )


def check_protocol(protocol: int) -> None:
    """Raises SyncRefused for a version that this build does not speak."""
    if protocol not in SPOKEN:
        raise SyncRefused(
            f"sync protocol {protocol} is not spoken here, {', '.join(map(str, SPOKEN))} is: "
            "run proxies and keeper of versions that are at most one release apart"
        )


def _fail(batch: Sequence[_Item], error: SyncError) -> None:
    for item in batch:
        if not item.answer.done():
            item.answer.set_exception(error)


def _nothing(fleet: str) -> None:
    """Until somebody wants to be told."""


def _nowhere(account: str, spent_nusd: int) -> None:
    """Until somebody wants to be told."""


def _unheeded(error: LedgerFenced) -> None:
    """Until somebody wants to be told."""
