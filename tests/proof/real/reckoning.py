"""The end of a schedule: all faults are over, everything drains, and every nano-dollar is accounted for."""

import asyncio
import sys
from typing import TYPE_CHECKING

from tests.proof.real import models
from tests.proof.real.judge import Look
from tests.proof.real.processes import until
from tests.proof.truth import Violation

if TYPE_CHECKING:
    from tests.proof.real.schedule import Schedule

_SMALL_NUSD = 3_000_000
"""What is less than this is left alone: what a request's bytes add to its worst case is not known so exactly."""
_BYTES = 300
"""What a small request's worst case has of input, to a few bytes: its messages, and what a proxy adds to its bound."""
_TRIES = 3
"""On a machine that is busy an exchange with the operator may take longer than a request waits."""


async def reckon(schedule: "Schedule") -> None:
    """Raises Violation."""
    scene = schedule.scene
    await _drained(schedule)
    scene.note("everything has ended")
    await _spend_the_rest(schedule)
    await _drained(schedule)
    scene.note("the rest is spent")
    for pod in scene.pods_:
        pod.ready = False
    for pod, code in zip(scene.pods_, await asyncio.gather(*(pod.stop() for pod in scene.pods_)), strict=True):
        if code != 0:
            raise Violation(f"lost: {pod.name} could not say its last word: it ended with {code}")
    scene.note("the proxies have ended")
    await _compare(schedule)


async def _drained(schedule: "Schedule") -> None:
    await until(lambda: not schedule.upstream.in_flight, "the upstream has nothing in flight")
    await asyncio.gather(*(schedule.faults.quiet(pod) for pod in schedule.scene.pods_))


async def _look(schedule: "Schedule") -> Look:
    look: Look = await until(schedule.look, "the ledger can be read")
    return look


async def _spend_the_rest(schedule: "Schedule") -> None:
    """At least 99 % of what is neither spent nor held for those that cannot be heard can be had, in one piece."""
    for route in sorted({each for ceiling in schedule.judge.ceilings.values() for each in ceiling.routes}):
        hard = [each.name for each in schedule.judge.ceilings.values() if each.hard and route in each.routes]
        for left_tries in reversed(range(_TRIES)):
            look = await _look(schedule)
            left_nusd = min(look.free_nusd(name) for name in hard)
            if left_nusd < _SMALL_NUSD:
                break
            tokens = (left_nusd * 99 // 100 // schedule.times - _BYTES * models.SMALL.input_usd * 1000) // (
                models.SMALL.output_usd * 1000
            )
            pod = schedule.chance.choice(schedule.scene.pods_)
            record = await schedule.ask(schedule.chance, pod, route, tokens=tokens)
            if record.status == 200:
                schedule.tally.note("the rest could be had")
                break
            schedule.scene.note(f"the rest of {route} was refused: {record}; {look.balances}")
            schedule.tally.note("the rest was asked for again")
            if record.code == "insufficient_quota" and not left_tries:
                raise Violation(
                    f"false refusal: after all faults, {left_nusd} nUSD are left to {route} and 99 % of them cannot be had: "
                    f"{[look.balances[name] for name in hard]}, {look.dead_nusd} held for the dead"
                )
            await asyncio.sleep(2.0)
        await asyncio.sleep(1.0)


async def _compare(schedule: "Schedule") -> None:
    scene, judge, tally = schedule.scene, schedule.judge, schedule.tally
    judge.check_ceilings(schedule.worth())
    look = await _look(schedule)
    tally.unsure_nusd = judge.check_sums(look)
    judge.check_told()
    tally.bill_nusd = schedule.upstream.bill.total_nusd
    tally.estimated_nusd = max(each.estimated_nusd for each in look.balances.values())
    tally.unreconciled_nusd = max(each.committed_nusd - each.spent_nusd for each in look.balances.values())
    for keeper in scene.keepers:
        if (code := await keeper.stop()) != 0:
            raise Violation(f"lost: {keeper.name} did not end in good order: {code}")
    done = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stepdown", "ledger", "verify", str(scene.ledger_file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await done.communicate()
    if done.returncode != 0:
        raise Violation(f"lost: the ledger's own sums disagree: {said.decode().strip()}")
    scene.note(f"compared: {look.balances}")
