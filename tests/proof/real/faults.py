"""What goes wrong in a schedule, each with all that chance has to say about it drawn beforehand, and what makes up for it."""

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from stepdown.ledger.errors import LedgerRefused
from stepdown.ledger.views import InstanceView
from tests.proof.real.processes import until
from tests.proof.real.scene import HORIZON_S, Keeper, Pod

if TYPE_CHECKING:
    from tests.proof.real.schedule import Schedule

_LAST_S = 12.0
"""Nothing begins later than this."""
_LEAST_NUSD = 20_000_000


@dataclass(frozen=True)
class Planned:
    at_s: float
    name: str
    numbers: tuple[float | int | str, ...]
    run: Callable[[], Awaitable[None]]

    def __str__(self) -> str:
        return f"after {self.at_s:4.1f} s: {self.name} {' '.join(map(str, self.numbers))}".rstrip()


class Faults:
    """Of one schedule. Pods are meant by their place."""

    def __init__(self, schedule: "Schedule") -> None:
        self._schedule = schedule
        self._chance = random.Random(f"faults {schedule.seed}")
        self._keeping, self._api, self._cable = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        """One thing at a time is done to the operators, to the API server, to the cable."""
        self._places = [asyncio.Lock() for _ in range(schedule.proxies)]
        self._editing = {name: asyncio.Lock() for name in schedule.limits}
        self.plan = sorted(self._draw(), key=lambda each: each.at_s)

    def _draw(self) -> list[Planned]:
        chance, schedule = self._chance, self._schedule
        kinds: list[Callable[[], tuple[Callable[..., Awaitable[None]], tuple[float | int | str, ...]]]] = [
            lambda: (self.kill, (self._place(), self._seconds(0.1, 5.0))),
            lambda: (self.kill, (self._place(), self._seconds(0.1, 5.0))),
            lambda: (self.kill, (self._place(), self._seconds(8.0, 13.0))),
            lambda: (
                self.lose_log,
                (self._place(), chance.choice(("gone", "cloned", "older", "another's")), self._seconds(0.1, 4.0)),
            ),
            lambda: (self.kill_operator, (self._seconds(0.1, 3.0), int(chance.random() < 0.7))),
            lambda: (self.restart_operator, (self._seconds(0.1, 3.0),)),
            lambda: (self.freeze, (self._place(), chance.choice((1.0, 4.0, HORIZON_S + 2.0)))),
            lambda: (self.freeze_api_server, (self._seconds(1.0, 8.0),)),
            lambda: (self.noise, (chance.choice((0.1, 0.3)), self._seconds(2.0, 8.0))),
            lambda: (self.silence, (self._seconds(0.5, 6.0),)),
            lambda: (self.put_back, (self._seconds(0.5, 5.0),)),
            lambda: (self.roll_out, ()),
            lambda: (self.edit, (self._budget(), chance.choice((0.2, 0.5, 0.8, 1.3, 2.0)))),
            lambda: (self.edit, (self._budget(), chance.choice((0.2, 0.5, 0.8, 1.3, 2.0)))),
            lambda: (self.edit, (self._budget(), chance.choice((0.2, 0.5, 0.8)))),
            lambda: (self.delete, (self._budget(), self._seconds(0.5, 4.0), chance.choice((0.5, 1.0, 1.5)))),
            lambda: (self.restart_upstream, ()),
        ]
        if schedule.privileged:
            kinds += [
                lambda: (self.fill_log, (self._place(), self._seconds(1.0, 4.0))),
                lambda: (self.fill_ledger, (self._seconds(1.0, 4.0),)),
                lambda: (self.lose_log, (self._place(), "boot", self._seconds(0.1, 4.0))),
            ]
        drawn = [each() for each in chance.sample(kinds, chance.choice((2, 3, 4, 6)))]
        if schedule.apart:
            apart = ((self.partition, (self._seconds(2.0, 14.0),)), (self.settle_apart, ()), (self.make_anew_apart, ()))
            drawn += [chance.choice(apart)]
        if any(what in (self.delete, self.make_anew_apart) for what, _ in drawn):
            # A budget that is made anew is enforced only when whoever is lost is known to be: that takes longer than all else.
            drawn = [(what, numbers) for what, numbers in drawn if what != self.lose_log]
        if any(what == self.make_anew_apart or (what == self.delete and "all" in numbers) for what, numbers in drawn):
            # Without `all` nothing binds `batch`; and an older ledger says of everybody what they obeyed before it was deleted.
            drawn = [(what, numbers) for what, numbers in drawn if what != self.put_back]
        if schedule.broken:
            drawn = [(self.put_back, (6.0,))]
        return [
            Planned(
                self._seconds(1.0, _LAST_S) if not schedule.broken else 2.0, what.__name__, numbers, self._call(what, numbers)
            )
            for what, numbers in drawn
        ]

    @staticmethod
    def _call(what: Callable[..., Awaitable[None]], numbers: tuple[float | int | str, ...]) -> Callable[[], Awaitable[None]]:
        return lambda: what(*numbers)

    def _place(self) -> int:
        return self._chance.randrange(self._schedule.proxies)

    def _budget(self) -> str:
        return self._chance.choice(("team", "all", "search"))

    def _seconds(self, least: float, most: float) -> float:
        return round(self._chance.uniform(least, most), 1)

    @property
    def _pods(self) -> list[Pod]:
        return self._schedule.scene.pods_

    # Proxies

    async def kill(self, place: int, after_s: float) -> None:
        """It finds its log as it was."""
        async with self._places[place]:
            pod = self._pods[place]
            pod.die()
            await asyncio.sleep(after_s)
            await self._schedule.scene.revive(pod)

    async def lose_log(self, place: int, how: str, after_s: float) -> None:
        """Its log is gone, is a copy, an older one, another pod's, or of another boot: what it held is nobody's to spend."""
        async with self._places[place]:
            pod, scene = self._pods[place], self._schedule.scene
            log, copy = pod.state / "log", scene.folder / f"{pod.name}.copy"
            if how == "older":
                shutil.copy(log, copy)
                await asyncio.sleep(2.0)
            pod.die()
            self._schedule.judge.uncertain.add(pod.instance)
            if how == "gone":
                shutil.rmtree(pod.state)
            elif how == "boot":
                pod.boot = scene.folder / f"{pod.name}.boot"
                pod.boot.write_text(f"{UUID(int=self._chance.getrandbits(128))}\n")
            else:
                if how != "older":
                    shutil.copy(log if how == "cloned" else self._pods[place - 1].state / "log", copy)
                log.unlink()
                shutil.copy(copy, log)
            await asyncio.sleep(after_s)
            await scene.revive(pod)

    async def freeze(self, place: int, for_s: float) -> None:
        """SIGSTOP: clients go on coming."""
        async with self._places[place]:
            pod = self._pods[place]
            pod.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(for_s)
            finally:
                pod.send(signal.SIGCONT)

    async def fill_log(self, place: int, for_s: float) -> None:
        """The disk is full when it is started again after a kill."""
        async with self._places[place]:
            pod = self._pods[place]
            pod.die()
            pod.disk.fill()
            reviving = asyncio.create_task(self._schedule.scene.revive(pod))
            await asyncio.sleep(for_s)
            pod.disk.free()
            await reviving

    async def roll_out(self) -> None:
        """Every pod drains and ends, and a new one takes its place; two at a time."""
        for first in range(0, len(self._pods), 2):
            await asyncio.gather(*(self._replace(place) for place in range(first, min(first + 2, len(self._pods)))))

    async def _replace(self, place: int) -> None:
        scene = self._schedule.scene
        async with self._places[place]:
            old = self._pods[place]
            old.ready = False
            await asyncio.sleep(0.2)
            if await old.stop() != 0:  # nobody will ever say what was not said yet
                self._schedule.judge.uncertain.add(old.instance)
            async with self._api:
                await asyncio.to_thread(scene.delete_pod, old)
                fresh = scene.pod(old.network)
                (found,) = await asyncio.to_thread(scene.pod_objects, 1)
                await asyncio.to_thread(fresh.move_in, found)
                self._pods[place] = fresh
            await scene.revive(fresh)

    # Networks

    async def noise(self, level: float, for_s: float) -> None:
        """Pieces on the way to the operator are late, or the last of their connection."""
        relay = self._schedule.scene.relay
        relay.noise = level
        await asyncio.sleep(for_s)
        relay.noise = 0.0

    async def silence(self, for_s: float) -> None:
        """The operator cannot be reached by any proxy but the one that has a network of its own."""
        relay = self._schedule.scene.relay
        relay.open.clear()
        await asyncio.sleep(for_s)
        relay.open.set()

    async def partition(self, for_s: float) -> None:
        """The cable between a proxy and the operator is pulled; its clients and the upstream still reach it."""
        network = self._schedule.scene.network
        assert network is not None
        async with self._cable:
            network.pull()
            await asyncio.sleep(for_s)
            network.plug()

    async def settle_apart(self) -> None:
        """It comes back after an administrator has settled what it held by the upstream's bill: it has to take another name."""
        schedule, scene = self._schedule, self._schedule.scene
        assert scene.network is not None
        async with self._places[0], self._cable:
            pod = self._pods[0]
            pod.ready = False
            await self.quiet(pod)
            pod.know()
            was = pod.instance
            scene.network.pull()
            pod.ready = True
            await asyncio.sleep(HORIZON_S + 4.0)
            schedule.judge.uncertain.add(was)
            settled: list[str] = []
            async with self._keeping:
                for each in scene.keepers:
                    await each.stop()
                stated = schedule.statement(was)
                with contextlib.suppress(LedgerRefused):  # a request came in the last moment, so it is not lost yet
                    settled = await asyncio.to_thread(scene.settle, lambda view: _stated(view, was, stated))
                await self._start_operators()
            schedule.tally.note(f"settled {len(settled)}")
            scene.network.plug()
            if settled:
                await until(lambda: self._renamed(pod, was), f"{was} has taken another name")

    async def make_anew_apart(self) -> None:
        """`all` is made anew while a proxy is cut off that has heard of its end, and serves `batch` as if nothing bound it."""
        schedule, scene = self._schedule, self._schedule.scene
        assert scene.network is not None
        async with self._editing["all"], self._places[0], self._cable:
            ceiling, pod = schedule.judge.ceilings["all"], self._pods[0]
            async with self._api:
                ceiling.deleted(time.monotonic())
                await asyncio.to_thread(scene.delete, "SpendBudget", "all")
            await asyncio.sleep(2.0)
            pod.ready = False
            await self.quiet(pod)
            scene.network.pull()
            pod.ready = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_anew("all", 1.0))
                await asyncio.sleep(HORIZON_S + 8.0)
                schedule.tally.note(
                    "enforced while cut off" if await self._is_enforced("all") else "not enforced while cut off"
                )
                scene.network.plug()

    def _renamed(self, pod: Pod, was: str) -> bool:
        """Or need not, since an older ledger was put back that knows of no settlement: it says itself what it spent."""
        pod.know()
        return pod.instance != was or not self._schedule.judge.exact

    async def quiet(self, pod: Pod) -> None:
        """Until it has no request in flight, and has said so."""

        async def idle() -> bool:
            return (await pod.metric("stepdown_requests_in_flight"), await pod.metric("stepdown_requests_waiting")) == (0, 0)

        async def synced() -> bool:
            return (await pod.metric("stepdown_syncs_total") or 0) >= before + 2

        await until(idle, f"{pod.name} has nothing in flight")
        before = await pod.metric("stepdown_syncs_total") or 0
        await until(synced, f"{pod.name} has said so")

    async def restart_upstream(self) -> None:
        self._schedule.upstream.cut()

    # Operators

    async def kill_operator(self, after_s: float, impatient: int) -> None:
        """`impatient`: who starts it again does not wait until its Lease has ended."""
        async with self._keeping:
            scene = self._schedule.scene
            leader = scene.leader or scene.keepers[0]
            leader.leave()
            leader.kill()
            await asyncio.sleep(after_s)
            if impatient:
                async with self._api:
                    await asyncio.to_thread(scene.forget_lease)
            leader.start()
            await scene.lead()

    async def restart_operator(self, after_s: float) -> None:
        """In good order. With two of them, the other leads from then on."""
        async with self._keeping:
            scene = self._schedule.scene
            leader = scene.leader or scene.keepers[0]
            leader.leave()
            await leader.stop()
            await asyncio.sleep(after_s)
            leader.start()
            await scene.lead()

    async def put_back(self, after_s: float) -> None:
        """A backup is made, some seconds go by, and it is put in the ledger's place."""
        scene = self._schedule.scene
        copy = scene.folder / f"backup-{time.monotonic_ns()}.db"
        async with self._keeping:
            await asyncio.to_thread(scene.back_up, copy)
        await asyncio.sleep(after_s)
        async with self._keeping, self._api:
            self._schedule.judge.exact = False
            for each in scene.keepers:
                each.leave()
                each.kill()
            scene.put_back(copy)
            if self._schedule.broken:
                await asyncio.to_thread(scene.forget_witness)
            await asyncio.to_thread(scene.forget_lease)
            await self._start_operators()

    async def fill_ledger(self, for_s: float) -> None:
        async with self._keeping:
            scene = self._schedule.scene
            scene.disk.fill()
            await asyncio.sleep(for_s)
            scene.disk.free()
            await scene.lead()

    async def freeze_api_server(self, for_s: float) -> None:
        async with self._api:
            cluster = self._schedule.cluster
            cluster.pause("kube-apiserver")
            try:
                await asyncio.sleep(for_s)
            finally:
                cluster.resume("kube-apiserver")

    async def _start_operators(self) -> Keeper:
        for each in self._schedule.scene.keepers:
            each.start()
        return await self._schedule.scene.lead()

    # Budgets

    async def edit(self, name: str, times: float) -> None:
        """Lowered or raised. Returns when the ledger has it."""
        schedule = self._schedule
        async with self._editing[name]:
            ceiling = schedule.judge.ceilings[name]
            limit_nusd = max(_LEAST_NUSD, int(ceiling.wanted_nusd * times))
            async with self._api:
                ceiling.applying(limit_nusd)
                await asyncio.to_thread(schedule.scene.apply, schedule.budget(name, limit_nusd))
            await until(lambda: ceiling.limit_nusd == limit_nusd, f"the ledger has the new limit of {name}")

    async def delete(self, name: str, for_s: float, times: float) -> None:
        """Deleted, and made anew."""
        schedule = self._schedule
        async with self._editing[name]:
            ceiling = schedule.judge.ceilings[name]
            async with self._api:
                ceiling.deleted(time.monotonic())
                await asyncio.to_thread(schedule.scene.delete, "SpendBudget", name)
            await asyncio.sleep(for_s)
            await self._make_anew(name, times)

    async def _make_anew(self, name: str, times: float) -> None:
        """Until it is enforced."""
        schedule = self._schedule
        ceiling = schedule.judge.ceilings[name]
        limit_nusd = max(_LEAST_NUSD, int(ceiling.wanted_nusd * times))
        async with self._api:
            ceiling.applying(limit_nusd)
            await asyncio.to_thread(schedule.scene.apply, schedule.budget(name, limit_nusd))
        await until(lambda: self._is_enforced(name), f"SpendBudget {name} is enforced")
        ceiling.enforced(time.monotonic())
        await until(lambda: ceiling.limit_nusd == limit_nusd, f"the ledger has the limit of {name}")

    async def _is_enforced(self, name: str) -> bool:
        async with self._api:
            return await asyncio.to_thread(self._schedule.is_enforced, name)

    # Making up for it

    async def start_again(self) -> None:
        """What has ended by itself, as the kubelet does; and reads who the others are."""
        scene = self._schedule.scene
        for lock, pod in zip(self._places, self._pods, strict=True):
            if lock.locked():
                continue
            if pod.wanted and not pod.alive:
                async with lock:
                    pod.ready = False
                    scene.note(f"{pod.name} ended by itself with {pod.code}")
                    await scene.revive(pod)
            pod.know()
        if not self._keeping.locked() and any(each.wanted and not each.alive for each in scene.keepers):
            async with self._keeping:
                await scene.lead()

    async def make_up(self) -> None:
        """All faults are over: everybody is there."""
        scene = self._schedule.scene
        async with self._keeping:
            await scene.lead()
        await until(lambda: all(pod.ready and pod.alive for pod in self._pods), "every proxy is there")


def _stated(view: InstanceView, name: str, stated: dict[str, int]) -> dict[str, int] | None:
    """What the upstream's bill says of one instance, and never less than it has said itself."""
    if view.name != name:
        return None
    budgets = {lease.account: lease.account.partition("@")[0].rpartition("/")[2] for lease in view.leases}
    return {lease.account: max(lease.consumed_nusd, stated.get(budgets[lease.account], 0)) for lease in view.leases}
