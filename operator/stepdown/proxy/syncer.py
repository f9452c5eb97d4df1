"""The loop between this proxy and the ledger's keeper: numbers up; time, money and config down. The app runs one a process.

A message goes once a second (jittered), and at once when a request asks for money or money is given back; one at a time, so
whatever comes up meanwhile goes in the next. Everything in it is cumulative: one that failed is not repeated but overtaken by a
newer one that says the same and more. A lease lives one horizon from the *sending* of the last message that was acknowledged.

The newest protocol is spoken, until a keeper refuses it; then the one before, for a minute: the keeper may be newer then.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from stepdown.model.sync import PROTOCOL, SPOKEN, SyncAnswer, SyncError, SyncRefused, SyncRequest, SyncUnavailable
from stepdown.proxy.books import Books
from stepdown.proxy.lease import Lease
from stepdown.proxy.table import BadConfig, Table
from stepdown.proxy.till import Till
from stepdown.proxy.waiting import POLL_S
from stepdown.proxy.wal import LogUnavailable

Sync = Callable[[SyncRequest], Awaitable[SyncAnswer]]
"""One exchange with the keeper. Raises SyncError, OSError or TimeoutError when there was no answer."""

INTERVAL_S = 1.0
"""At the latest, and up to a quarter sooner: a step that one proxy reaches is not in force in the others before it says so."""
TIMEOUT_S = 2.0
"""How long a message may take; also how long a waiting request can stand in the way of those behind it."""
LOWERED_S = 60.0
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)
_FEWER_AFTER_S = 15.0
"""How long the keeper must have heard of fewer proxies before a rationed channel is shared among so few."""
_KEEP_DAYS = 2
"""Acknowledged counters older than this are let go: no request lives so long."""

_log = logging.getLogger("stepdown.proxy.sync")


class Syncer:
    """One process's side of sync."""

    def __init__(self, till: Till, sync: Sync, fleet: str, *, jitter: Callable[[], float] = random.random) -> None:
        self._till = till
        self._clock = till.clock
        self._sync = sync
        self._fleet = fleet
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._seq = int(till.clock.boot_s() * 1_000_000)
        self._paced_s = till.clock.boot_s()
        self._stopping = False
        self._protocol, self._lowered_until_s = PROTOCOL, 0.0
        self.is_ready: Callable[[], bool] = lambda: False
        """What /readyz answers."""
        self.keys: Callable[[], dict[str, bool]] = dict
        """Which channels' keys can be used."""
        self.down: Callable[[], tuple[str, ...]] = tuple
        """Models that cannot be reached."""
        self.completed = 0
        """Messages acknowledged in this process's life; `/readyz` needs one."""
        self.failures = 0
        self._in_a_row = 0
        self._everything = False
        """The keeper wants to hear everything."""
        self._told: Books | None = None
        """The books of which something has been acknowledged; in those of another instance everything is news."""
        self.fenced = 0
        """Times that the keeper has closed this instance behind its back."""
        self.config_errors = 0
        self.last_acknowledged_s: float | None = None
        """When the last acknowledged message was sent, in seconds since boot."""
        self._many_s = till.clock.boot_s()
        """When the keeper last spoke of as many proxies as share now."""
        till.kick = self._wake.set

    async def run(self) -> None:
        """Until `close` or cancellation."""
        while not self._stopping:
            self._wake.clear()
            if not await self.once():
                await asyncio.sleep(_BACKOFF_S[min(self._in_a_row, len(_BACKOFF_S)) - 1] * (0.5 + self._jitter()))
                continue
            delay_s = POLL_S if len(self._till.queue) else INTERVAL_S * (0.75 + 0.25 * self._jitter())
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def once(self, *, closing: bool = False) -> bool:
        """One message. True: it was acknowledged, and its answer is in force."""
        async with self._one_at_a_time:
            while True:
                request = self._compose(closing)
                sent_s = self._clock.boot_s()
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        answer = await self._sync(request)
                    if answer.protocol not in SPOKEN:
                        raise SyncUnavailable(f"the keeper speaks protocol {answer.protocol}, this proxy {SPOKEN}")
                    if (took_s := self._clock.boot_s() - sent_s) > TIMEOUT_S:
                        # This process was paused, and found the answer when it woke: another keeper may lead since.
                        raise SyncUnavailable(
                            f"the answer was found {took_s:.1f} s after its message, and is good for {TIMEOUT_S:g}: this "
                            "process was paused or short of CPU. The next message asks again"
                        )
                except SyncRefused as error:
                    if self._lower(request.protocol):
                        continue
                    self._failed(error)
                    return False
                except (SyncError, OSError, TimeoutError) as error:
                    self._failed(error)
                    return False
                return self._apply(request, sent_s, answer)

    def _lower(self, refused: int) -> bool:
        """False: there is no older protocol to try."""
        older = [each for each in SPOKEN if each < refused]
        if older:
            self._protocol, self._lowered_until_s = older[-1], self._clock.boot_s() + LOWERED_S
        return bool(older)

    async def close(self, timeout_s: float) -> bool:
        """The last message of an instance that has drained, retried until it is acknowledged or the time is over.

        What is still in flight is charged at its reservation. True: the keeper has closed the instance, and the next start
        takes a new id. False: the next start finds the log as it is and takes the same id up again.
        """
        self._stopping = True
        self._wake.set()
        for hold in self._till.holds():
            self._till.settle(hold, None, success=False)
        ends_s = self._clock.boot_s() + timeout_s
        finished = False
        while not (finished := await self.once(closing=True)):
            left_s = ends_s - self._clock.boot_s()
            if left_s <= 0:
                _log.warning("the ledger has not heard that this proxy is closing: its lease stays held until it does")
                break
            await asyncio.sleep(min(left_s, _BACKOFF_S[min(self._in_a_row, len(_BACKOFF_S)) - 1]))
        self._till.state.close(finished=finished)
        return finished

    def _compose(self, closing: bool) -> SyncRequest:
        till = self._till
        boot_s = self._clock.boot_s()
        now_s = boot_s + self._clock.offset_s
        self._seq += 1
        asks = () if closing else till.queue.asks(boot_s)
        asked = {account for ask in asks for rung in ask.rungs for account in rung}
        elapsed_s, self._paced_s = boot_s - self._paced_s, boot_s
        reports = []
        if till.table is not None:
            till.expect_next_period(now_s, till.table.fleet.lease_horizon_s)
        if boot_s >= self._lowered_until_s:
            self._protocol = PROTOCOL
        whole = self._protocol >= 2 and (closing or self._everything or self._told is not till.books)
        for lease in till.books.leases.values():
            lease.pace(elapsed_s)
            report = lease.report()
            if whole or report != lease.acked or lease.free > 0 or lease.account in asked:
                reports.append(report)
        digests, acknowledged, longest_s = self._config_in_use(till.table, now_s)
        return SyncRequest(
            protocol=self._protocol,
            instance=till.log.identity.instance,
            fleet=self._fleet,
            seq=self._seq,
            longest_s=longest_s,
            fleet_digest=till.table.fleet_digest if till.table is not None else "",
            digests=digests,
            acknowledged=acknowledged,
            leases=tuple(reports),
            asks=asks,
            counters=till.books.counters.reports(everything=whole, overruns=self._protocol >= 2),
            closing=closing,
            ready=self._protocol >= 2 and self.is_ready(),
            keys=self.keys() if self._protocol >= 2 else {},
            down=self.down() if self._protocol >= 2 else (),
            whole=whole,
        )

    def _config_in_use(self, table: Table | None, now_s: float) -> tuple[dict[int, str], dict[int, str], float]:
        """What this proxy has; all of each shard by which requests are in flight; how long the longest may yet take."""
        if table is None:
            return {}, {}, 0.0
        digests = {index: shard.digest for index, shard in table.shards.items()}
        under = dict(digests)
        until_s = now_s
        for hold in self._till.holds():
            until_s = max(until_s, hold.until_s)
            home = hold.route.home
            if home.retired and home.digest not in under[home.index].split(","):
                under[home.index] += f",{home.digest}"
        return digests, under, until_s - now_s

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self._in_a_row += 1
        if self._in_a_row == 1:
            _log.warning("sync failed: %s", error or type(error).__name__)
        self._till.reachable = False
        self._till.queue.failed()

    def _apply(self, request: SyncRequest, sent_s: float, answer: SyncAnswer) -> bool:
        till = self._till
        if answer.verdict == "fenced" and not request.closing:
            return self._renew()
        if answer.seq == request.seq:
            self._everything = answer.whole
        if answer.verdict == "stale" or answer.seq != request.seq:
            self._in_a_row += 1
            return False
        if self._in_a_row:
            _log.info("sync works again after %d failures", self._in_a_row)
        self._in_a_row = 0
        self.completed += 1
        self.last_acknowledged_s = sent_s
        self._clock.heard(answer.now_s)
        self._acknowledge(request)
        if request.closing:
            return True
        self._swap(answer)
        horizon_s = till.table.fleet.lease_horizon_s if till.table is not None else 0.0
        till.reachable = True
        self._share(answer.proxies)
        till.deadline_s = sent_s + horizon_s
        self._take_grants(answer)
        till.queue.answered(answer.asks)
        self._give_back(answer)
        if answer.whole:
            self._wake.set()
        return True

    def _share(self, proxies: int) -> None:
        """More sharers count at once, fewer only after a while: a keeper that has just started has not heard them all."""
        if proxies >= self._till.sharers:
            self._many_s = self._clock.boot_s()
        if proxies >= self._till.sharers or self._clock.boot_s() - self._many_s >= _FEWER_AFTER_S:
            self._till.sharers = max(1, proxies)

    def _renew(self) -> bool:
        self.fenced += 1
        was = self._till.log.identity.instance
        try:
            self._till.renew()
        except LogUnavailable as error:
            _log.error("instance %s was closed by the ledger, and a new log cannot be made: %s", was, error)
            self._in_a_row += 1
            return False
        _log.warning("instance %s was closed by the ledger; it goes on as %s", was, self._till.log.identity.instance)
        self._wake.set()
        return True

    def _acknowledge(self, request: SyncRequest) -> None:
        books = self._till.books
        books.heard = True
        self._told = books
        for report in request.leases:
            books.leases[report.account].acked = report
        books.counters.acknowledge(request.counters)
        today = int(self._clock.now_s()) // 86_400
        books.counters.forget_before(min((hold.day for hold in self._till.holds()), default=today) - _KEEP_DAYS)

    def _swap(self, answer: SyncAnswer) -> None:
        till = self._till
        shards = {shard.index: shard for shard in answer.shards}
        if answer.fleet is None and not shards:
            return
        try:
            if till.table is not None:
                till.swap(till.table.replace(answer.fleet, shards))
            elif answer.fleet is not None:
                till.swap(Table(answer.fleet, shards))
        except BadConfig as error:
            self.config_errors += 1
            _log.error("%s", error)
            return
        self._wake.set()

    def _take_grants(self, answer: SyncAnswer) -> None:
        """The keeper repeats a grant until it has been taken, so one that cannot be logged now is tried with every answer."""
        till = self._till
        unlogged = ""
        for grant in answer.leases:
            lease = till.books.lease(grant.account)
            lease.heard(grant)
            if grant.granted <= lease.granted:
                continue
            try:
                till.log.grant(grant.account, grant.granted)
            except LogUnavailable as error:
                _log.error("a grant is not used, since it cannot be logged: %s", error)
                unlogged = str(error)
                continue
            lease.grant(grant.granted)
        till.unlogged = unlogged

    def _give_back(self, answer: SyncAnswer) -> None:
        """Recalls: what no request has reserved goes back, logged before it is said."""
        for grant in answer.leases:
            lease = self._till.books.lease(grant.account)
            if grant.recall:
                lease.recalled_s = self._clock.boot_s()
            back_nusd = min(grant.recall, lease.free)
            if back_nusd > 0 and self._return(lease, lease.returned + back_nusd):
                self._wake.set()

    def _return(self, lease: Lease, returned_nusd: int) -> bool:
        try:
            self._till.log.give_back(lease.account, returned_nusd)
        except LogUnavailable as error:
            _log.error("nothing is given back, since it cannot be logged: %s", error)
            return False
        lease.give_back(returned_nusd)
        return True
