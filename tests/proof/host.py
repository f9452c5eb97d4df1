"""One proxy's process: the real till, log, syncer and server, in a state directory that outlives it. And how it ends.

A SIGKILL ends all at one instant: the log is then what it is, connections are cut, nothing that its tasks still do is seen.
"""

import os
import random
import shutil
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from stepdown.model.sync import SyncAnswer, SyncRequest
from stepdown.proxy import wal
from stepdown.proxy.clock import Clock
from stepdown.proxy.front import Front
from stepdown.proxy.hold import Hold, Offer, Tab, Usage
from stepdown.proxy.identity import StateDir
from stepdown.proxy.keys import FixedKeys
from stepdown.proxy.refusal import Refused
from stepdown.proxy.server import ProxyServer, ServerConfig
from stepdown.proxy.syncer import Syncer
from stepdown.proxy.till import Till
from stepdown.proxy.wal import LogUnavailable
from tests.proof.loop import Process, ProofLoop
from tests.proof.pipes import End, pair
from tests.proof.truth import Truth, Waiting
from tests.proof.upstream import KEY
from tests.unit.proxy_money import NOW_S

if TYPE_CHECKING:
    from stepdown.model.config import Reason, RequestClass
    from stepdown.proxy.shape import RequestShape
    from stepdown.proxy.table import RouteEntry, RungEntry

FLEET = "shop/proxy"
_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing is encrypted here: to read the machine's certificates for each process would take longer than its life."""

Point = Literal["reserved", "forwarded", "settled", "reporting", "reported"]
POINTS: tuple[Point, ...] = ("reserved", "forwarded", "settled", "reporting", "reported")
"""Where a SIGKILL may be ordered to come: between two steps of what a request goes through."""

State = Literal["kept", "torn", "gone", "cloned", "other boot", "corrupt", "corrupt tail"]
"""What the next process finds of the log."""


class SpyTill(Till):
    """Tells the truth of every decision; each is the product's."""

    __slots__ = ("_host", "_truth")

    def listen(self, host: "Host", truth: Truth) -> None:
        self._host, self._truth = host, truth

    def _hold(self, tab: Tab, amount_nusd: int, max_tokens: int | None, reason: "Reason", now_s: float) -> Hold:
        hold = super()._hold(tab, amount_nusd, max_tokens, reason, now_s)
        if self._host.alive:
            self._truth.promised(self._host, hold)
            self._host.at("reserved")
        return hold

    def settle(self, hold: Hold, usage: Usage | None, *, success: bool) -> int:
        was_open = hold.open
        alive = self._host.alive
        cost = super().settle(hold, usage, success=success)
        if alive and was_open and hold.id not in self.books.open:
            self._truth.settled(self._host, hold, usage, cost)
            self._host.at("settled")
        return cost

    def release(self, hold: Hold, *, attempted: bool) -> None:
        if self._host.alive and hold.open:  # (told first: whoever waits for the money takes it before this is over)
            self._truth.released(self._host, hold)
        super().release(hold, attempted=attempted)

    async def admit_later(
        self,
        route: "RouteEntry",
        request_class: "RequestClass",
        shape: "RequestShape",
        *,
        rungs: "Sequence[RungEntry] | None" = None,
        reason: "Reason | None" = None,
    ) -> Hold:
        truth = self._truth
        wait = Waiting(self._hard(route.name), self.clock.boot_s())
        truth.waiting.append(wait)
        try:
            hold = await super().admit_later(route, request_class, shape, rungs=rungs, reason=reason)
            truth.served(wait)
            return hold
        except Refused as refused:
            if self._host.alive:
                if refused.code == "budget_exhausted":
                    assert refused.needed_nusd is not None
                    wait.aim(self._hard(route.name))
                    truth.refused(wait, refused.needed_nusd, f"a request of {route.name} at {self._host.name}")
                else:
                    truth.tally.for_want_of_a_keeper += refused.code == "ledger_unreachable"
                    truth.tally.note(f"refused: {refused.code}")
            raise
        finally:
            truth.waiting.remove(wait)

    def _hard(self, name: str) -> tuple[str, ...]:
        """The accounts that a route's request needs money of, by the config in force here."""
        route = self.table.route(name) if self.table is not None else None
        now_s = self.clock.now_s()
        accounts = [budget.account_at(now_s) for budget in route.budgets if budget.hard] if route is not None else []
        return tuple(each.id for each in accounts if each is not None)


class _Process(Process):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ends: list[End] = []


class _Ordered(set):  # type: ignore[type-arg]
    """A set that is gone through in the order of its adding, so that a seed always tells the same story."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[object, None] = {}

    def add(self, item: object) -> None:
        self._order[item] = None
        super().add(item)

    def discard(self, item: object) -> None:
        self._order.pop(item, None)
        super().discard(item)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(list(self._order))


class Host:
    """A pod: what stays while its processes come and go is its state directory."""

    def __init__(
        self,
        name: str,
        folder: Path,
        loop: ProofLoop,
        truth: Truth,
        sync: "Callable[[Host, SyncRequest], Awaitable[SyncAnswer]]",
        chance: random.Random,
    ) -> None:
        self.name, self.folder, self._loop, self._truth, self._sync, self._chance = name, folder, loop, truth, sync, chance
        self.boot = "boot"
        self.alive = self.listening = False
        self.partitioned = False
        self.full = False
        """Its disk: what it is granted then, it cannot use."""
        self._orders: dict[Point, int] = {}
        self._struck: bytes | None = None
        self.next_state: State = "kept"
        self.striking: Callable[[Host], None] = lambda host: None
        """Told that a process has just been killed at a point that was ordered."""

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def _kept(self) -> Path:
        """The very file that was the log at the instant of a kill."""
        return self.folder / "log.struck"

    def start(self) -> None:
        """Raises LogUnavailable."""
        self.process = _Process(self.name)
        self.process.run(self._start)

    def _start(self) -> None:
        clock = Clock(self._loop.time, NOW_S)
        self.state = StateDir(self.folder, clock, pod_uid=self.name, boot=self.boot)
        self.till = SpyTill(self.state, clock)
        self.till.listen(self, self._truth)
        self.syncer = Syncer(self.till, self._exchange, FLEET, jitter=self._jitter)
        self.server = ProxyServer(ServerConfig(), self.till, FixedKeys({"standard": KEY}), self.syncer, ssl_context=_TLS)
        self.server.wire.sweeper.items = _Ordered()
        self.syncer.is_ready = lambda: self.server.is_ready
        self.server.wire.sweeper.start()
        self.alive = self.listening = True
        self._struck = None
        self._orders.clear()
        self._truth.hosts.append(self)
        self._truth.disturbed()
        self.process.spawn(self.syncer.run())

    def _jitter(self) -> float:
        """Between 0 and 1; while only time has to pass, a message in four to eight seconds is enough."""
        idle = self._truth.quiet and self.till.reachable
        return self._chance.random() + idle * self._chance.uniform(6.0, 14.0)

    async def _exchange(self, request: SyncRequest) -> SyncAnswer:
        self.at("reporting")
        began_s = self._loop.time()
        answer = await self._sync(self, request)
        self.at("reported")
        if self.alive and answer.verdict == "ok":
            self._loop.call_soon(self._truth.exchanged, self, began_s)
        if answer.verdict == "fenced" and self.alive:
            self._truth.tally.note("fenced")
        return answer

    def connect(self, client: Process, protocol: object) -> End:
        """A client's connection to this proxy. Raises ConnectionRefusedError."""
        if not self.listening:
            raise ConnectionRefusedError("nobody listens")
        near, far = pair(client, self.process, lambda: self._chance.uniform(0.0002, 0.003))
        self.process.ends.append(far)
        far.attach(Front(self.server))
        near.attach(protocol)
        return near

    def part(self, parted: bool) -> None:
        """Cuts it off from the keeper, or lets it come back."""
        self.partitioned = parted
        self._truth.disturbed()

    # Ends

    def order(self, point: Point, nth: int, state: State) -> None:
        """A SIGKILL, when it comes to this point for the nth time from now; and what will be found of the log."""
        self._orders = {point: nth}
        self.next_state = state

    def forgive(self) -> None:
        """No SIGKILL any more."""
        self._orders.clear()

    def at(self, point: Point) -> None:
        if not self.alive or point not in self._orders:
            return
        self._orders[point] -= 1
        if self._orders[point] <= 0:
            self.strike()
            self._truth.tally.note(f"killed: {point}")
            self.striking(self)

    def strike(self) -> None:
        """The instant of the kill. `bury` follows."""
        if not self.alive:
            return
        self._struck = self.log.read_bytes()
        self._kept.unlink(missing_ok=True)
        os.link(self.log, self._kept)
        self.alive = self.listening = self.process.alive = False
        self.holds = self.till.holds()
        self._truth.hosts.remove(self)
        self._truth.disturbed()
        for end in self.process.ends:
            end.sever()
        self.server.wire.sweeper.stop()

    async def bury(self) -> None:
        """What the process would have done after its end is undone."""
        assert self._struck is not None
        await self.process.end()
        self.state.close(finished=False)
        self._kept.replace(self.log)
        with self.log.open("r+b") as file:
            file.write(self._struck)

    def find(self, state: State) -> None:
        """What the next process finds."""
        path = self.log
        if state == "gone":
            path.unlink()
        elif state == "cloned":
            copy = path.with_name("copy")
            shutil.copy(path, copy)
            copy.replace(path)
        elif state == "other boot":
            self.boot += "'"
            self._cut(self._chance.randrange(1, 4000))
        elif state == "corrupt":
            data = bytearray(path.read_bytes())
            used = len(bytes(data).rstrip(b"\0"))
            data[self._chance.randrange(40, max(41, used - 400))] ^= 0x55
            with path.open("r+b") as file:
                file.write(data)
        elif state == "corrupt tail":
            self._spoil_the_tail()
        elif state == "torn":
            self._cut(self._chance.randrange(1, 12))

    def _spoil_the_tail(self) -> None:
        """One of the last records but for the very last, which may be torn."""
        data = bytearray(self.log.read_bytes())
        ends = [0]
        while (record := wal._record(bytes(data), ends[-1])) is not None:
            ends.append(record[1])
        at = self._chance.randrange(ends[max(0, len(ends) - 6)], ends[-2]) if len(ends) > 2 else 0
        data[at] ^= 0x55
        with self.log.open("r+b") as file:
            file.write(data)

    def _cut(self, size: int) -> None:
        data = path_bytes = self.log.read_bytes()
        used = len(data.rstrip(b"\0"))
        keep = max(0, used - size)
        with self.log.open("r+b") as file:
            file.write(data[:keep] + bytes(len(path_bytes) - keep))

    async def restart(self, state: State) -> None:
        """After a kill and `find`. Checks what the log has become. Raises LogUnavailable."""
        was = self.till.log.identity.instance
        promises = self._truth.killed(self.holds)
        self.start()
        resumed = self.state.resumed
        if resumed != (state in ("kept", "torn")):
            raise self._truth.violated(f"lost: {self.name} {'resumed' if resumed else 'did not resume'} a log that was {state}")
        if not resumed:
            if self.till.log.identity.instance == was:
                raise self._truth.violated(f"over: {self.name} goes on as {was}, whose log was {state}")
            self._truth.gone(was, promises)
            return
        if state == "torn":
            promises = promises[:-1]
        for promise in promises:
            promise.charged, promise.estimated, promise.settled_in = promise.amount, True, was
        if self.state.charged_on_resume != len(promises):
            raise self._truth.violated(
                f"lost: {self.name} charged {self.state.charged_on_resume} requests on resuming, {len(promises)} were in flight"
            )

    async def leave(self) -> bool:
        """SIGTERM: drains, says so, ends. True: the keeper has heard."""
        self._orders.clear()
        self.listening = False
        self.server.leave()
        await self.server.drain(70.0)
        if not self.alive:
            return False
        closed = await self.syncer.close(20.0)
        if self.alive:
            self.alive = False
            self._truth.hosts.remove(self)
            self._truth.disturbed()
            for end in self.process.ends:
                end.sever()
        await self.process.end()
        return closed

    # The disk

    def fill_disk(self) -> None:
        """No room for another segment, and the one that there is is full."""
        self.full = True
        self._truth.disturbed()
        self.log.with_name("log.new").mkdir(exist_ok=True)
        lease = next(iter(self.till.books.leases.values()), None)
        if lease is not None:
            with suppress(LogUnavailable):
                while True:
                    self.till.log.grant(lease.account, lease.granted)

    def empty_disk(self) -> None:
        with suppress(OSError):
            self.log.with_name("log.new").rmdir()
        self.full = False
        if self.alive:
            self._truth.disturbed()


__all__ = ["FLEET", "POINTS", "Host", "Offer", "Point", "State"]
