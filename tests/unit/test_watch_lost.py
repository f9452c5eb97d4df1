"""What becomes of pods that cannot be heard. If this fails, a dead node keeps budgets waiting for good, a ceiling is promised
while a pod runs on, or an API server is asked by an operator that has nothing to ask."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import replace

import pytest

from stepdown.budget.serving import Unheard
from stepdown.cluster.errors import Unavailable
from stepdown.cluster.kinds import POD
from stepdown.ledger.errors import LedgerFenced, LedgerInterrupted
from stepdown.plan.plan import Plan
from stepdown.reconcile import decide
from stepdown.watch.lost import AT_ONCE, LostPods
from tests.unit.policy import NOW_S, budget, route, spent, world
from tests.unit.proxy_money import run
from tests.unit.sync_api import FakeApi, owned

LOST = Unheard("shop", "web-9", "uid-9", NOW_S - 600.0)


def plan(*unheard: Unheard, enforcement: str = "Hard") -> Plan:
    things = world(route(), budget(enforcement=enforcement))
    view = spent(things, team="1.00")
    balances = {key: replace(each, enforced=not unheard, unheard=unheard) for key, each in view.balances.items()}
    return decide(things, replace(view, balances=balances), NOW_S).plan


class Scene:
    """An operator in virtual time, and what its ledger was told."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.namespaces = {"shop"}
        self.gone: list[str] = []
        self.ledger_error: Exception | None = None
        self.lost = LostPods(self.api, self.namespaces.__contains__, self.vacate)

    async def vacate(self, pod_uids: Collection[str]) -> None:
        if self.ledger_error is not None:
            raise self.ledger_error
        self.gone += pod_uids

    def pod(self, uid: str = LOST.uid, phase: str = "Running", name: str = LOST.pod) -> None:
        self.api.put(POD, {**owned(name, uid), "status": {"phase": phase}})


def play(test: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        scene = Scene()
        running = asyncio.create_task(scene.lost.run())
        try:
            await test(scene)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    run(main())


def test_nothing_is_asked_while_nobody_is_waited_for() -> None:
    """An idle hour costs the API server nothing."""

    async def test(scene: Scene) -> None:
        for _ in range(3):
            scene.lost.tell(plan())
            scene.lost.tell(plan(LOST, enforcement="Soft"))
            await asyncio.sleep(3600)
        assert scene.api.asked == scene.gone == []

    play(test)


@pytest.mark.parametrize("how", ["deleted", "made anew", "Succeeded", "Failed", "its namespace is gone"])
def test_a_pod_that_is_gone_is_noted_at_once_and_not_asked_about_again(how: str) -> None:
    """`kubectl delete pod --force` is what people are told to do: it must help, and soon."""

    async def test(scene: Scene) -> None:
        if how == "made anew":
            scene.pod(uid="uid-10")
        elif how in ("Succeeded", "Failed"):
            scene.pod(phase=how)
        elif how.startswith("its"):
            scene.namespaces.clear()
            scene.api.error = Unavailable("forbidden: the Role went with the namespace")
        scene.lost.tell(plan(LOST))
        await asyncio.sleep(0.1)
        assert scene.gone == ["uid-9"]
        scene.lost.tell(plan())
        asked = len(scene.api.asked)
        await asyncio.sleep(3600)
        assert len(scene.api.asked) == asked <= 1

    play(test)


def test_while_the_pod_is_there_it_is_asked_about_rarely() -> None:
    """It may be there for days; and it is waited for until it is not."""

    async def test(scene: Scene) -> None:
        scene.pod(phase="Unknown")
        for _ in range(60):
            scene.lost.tell(plan(LOST))
            await asyncio.sleep(1)
        assert scene.gone == []
        assert 6 <= len(scene.api.asked) <= 7
        scene.api.objects.clear()
        await asyncio.sleep(11)
        assert scene.gone == ["uid-9"]

    play(test)


def test_an_api_server_that_does_not_answer_has_not_said_that_a_pod_is_gone() -> None:
    """A partition takes both away, the node and the API server: doubt about money fails closed."""

    async def test(scene: Scene) -> None:
        scene.api.error = Unavailable("away")
        scene.lost.tell(plan(LOST))
        await asyncio.sleep(60)
        assert scene.gone == []
        scene.api.error = None
        await asyncio.sleep(11)
        assert scene.gone == ["uid-9"]

    play(test)


def test_what_the_ledger_could_not_take_is_noted_later() -> None:
    """A database that fails over in that moment must not leave the budget waiting for good."""

    async def test(scene: Scene) -> None:
        scene.ledger_error = LedgerInterrupted("failing over")
        scene.lost.tell(plan(LOST))
        await asyncio.sleep(1)
        scene.ledger_error = None
        await asyncio.sleep(11)
        assert scene.gone == ["uid-9"]

    play(test)


def test_who_is_not_the_keeper_any_more_ends() -> None:
    """Another leads: whatever this one goes on with is of no use."""

    async def main() -> None:
        scene = Scene()
        scene.ledger_error = LedgerFenced("another")
        scene.lost.tell(plan(LOST))
        with pytest.raises(LedgerFenced):
            await scene.lost.run()

    run(main())


def test_twenty_pods_that_are_lost_at_once_are_asked_about_a_few_at_a_time() -> None:
    """A rack that goes takes them all; the API server has enough to do then."""

    async def test(scene: Scene) -> None:
        lost = tuple(Unheard("shop", f"web-{number:02}", f"uid-{number:02}", NOW_S) for number in range(10, 30))
        for each in lost[1:]:
            scene.pod(each.uid, name=each.pod)
        scene.lost.tell(plan(*lost))
        await asyncio.sleep(1)
        assert scene.gone == [lost[0].uid]
        assert len(scene.api.asked) == 20
        assert scene.api.most_at_once <= AT_ONCE

    play(test)
