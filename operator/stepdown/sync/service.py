"""The sync service: proxies report and ask, the ledger answers, changed config goes down. `local` and `sync.http` call it.

One worker thread has the ledger, so the event loop never waits for a disk. Messages that arrive while a transaction runs share
the next one (group commit): a thousand asks cost as many fsyncs as there are rounds of the disk, not a thousand.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec

from stepdown.budget.account import Binding
from stepdown.ledger import Ledger
from stepdown.ledger.check import check
from stepdown.ledger.errors import LedgerError, LedgerRefused
from stepdown.model.config import SHARDS, Fleet, Shard, digest
from stepdown.model.sync import PROTOCOL, SPOKEN, SyncAnswer, SyncError, SyncRefused, SyncRequest, SyncUnavailable
from stepdown.plan.world import ProxiesSeen
from stepdown.sync.older import fleet_of_protocol_1, shard_of_protocol_1
from stepdown.sync.roll import EMPTY_DIGESTS, Roll

T = TypeVar("T")

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


_EMPTY = tuple(Shard(index=index) for index in range(SHARDS))


class SyncService:
    """Answers proxies. Everything but `publish` is a coroutine on one event loop."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        """`clock` says the ledger's time, Unix seconds. From here on only the service's thread calls the ledger."""
        self._ledger, self._clock = ledger, clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._waiting: list[tuple[SyncRequest, asyncio.Future[SyncAnswer]]] = []
        self._running: asyncio.Task[None] | None = None
        self._configs: dict[str, _Config] = {}
        self._older: dict[str, _Config] = {}
        """The same for proxies that speak protocol 1."""
        self._roll = Roll()
        self.changed: Callable[[str], None] = _nothing
        """Told the fleet whose proxies a plan would judge otherwise now: one came, went, lost a key, or the last of them has
        the published config."""

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
        while self._running is not None:
            await asyncio.wait([self._running])
        with contextlib.suppress(RuntimeError):  # Closed before.
            await self.call(Ledger.close)
        self._thread.shutdown()

    # The proxies' side ------------------------------------------------------------------------------------------------

    async def sync(self, request: SyncRequest, pod: str = "") -> SyncAnswer:
        """Raises SyncUnavailable or SyncRefused; else the message has been applied durably and whole.

        `pod`: the UID of the sender's pod, where it has one.
        """
        check_protocol(request.protocol)
        try:
            check(request)
        except LedgerRefused as error:
            raise SyncRefused(str(error)) from error
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._running is None:
            self._running = asyncio.create_task(self._work())
        answer = await future
        if answer.verdict == "ok":
            self._hear(request, pod)
        return self._with_config(request, answer)

    def _hear(self, request: SyncRequest, pod: str) -> None:
        config = self._configs.get(request.fleet)
        if config is not None and request.protocol < 2:  # what it has is the same, but for what it does not know
            same = dict(zip(self._older[request.fleet].digests, config.digests, strict=True))
            has = {index: same.get(each, each) for index, each in request.digests.items()}
            request = msgspec.structs.replace(request, digests=has)
        if self._roll.hear(request, pod, config.digests if config is not None else EMPTY_DIGESTS, self._clock()):
            self.changed(request.fleet)

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
            self._running = asyncio.create_task(self._work()) if self._waiting else None

    async def _answer(self, batch: list[tuple[SyncRequest, "asyncio.Future[SyncAnswer]"]]) -> None:
        requests = [request for request, _ in batch]
        try:
            answers = await self.call(lambda ledger: ledger.sync(requests, self._clock()))
        except LedgerRefused as error:
            if len(batch) > 1:  # One message must not spoil the others'.
                for one in batch:
                    await self._answer([one])
                return
            _fail(batch, SyncRefused(str(error)))
        except (LedgerError, RuntimeError) as error:  # RuntimeError: the thread was shut down.
            _fail(batch, SyncUnavailable(str(error)))
        else:
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # The caller may have gone.
                    future.set_result(answer)
        finally:
            _fail(batch, SyncUnavailable("the keeper failed while it judged this message; nothing was granted"))

    def _with_config(self, request: SyncRequest, answer: SyncAnswer) -> SyncAnswer:
        protocol = min(PROTOCOL, request.protocol)
        config = (self._configs if protocol >= 2 else self._older).get(request.fleet)
        if config is None or answer.verdict != "ok" or request.closing:
            return answer if answer.protocol == protocol else msgspec.structs.replace(answer, protocol=protocol)
        return msgspec.structs.replace(
            answer,
            protocol=protocol,
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


def _fail(batch: list[tuple[SyncRequest, "asyncio.Future[SyncAnswer]"]], error: SyncError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)


def _nothing(fleet: str) -> None:
    """Until somebody wants to be told."""
