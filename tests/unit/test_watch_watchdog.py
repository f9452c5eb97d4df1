"""An operator that watches nothing any more looks as healthy as one with nothing to do: it must end, and only then."""

import asyncio
import subprocess
import sys

import pytest

from stepdown.watch.watchdog import LATE_S, STALLED, Blind, Deliveries, watch_over

CHAT = ("ModelRoute", "shop/chat")


def test_what_no_watcher_has_told_of_is_late_after_a_minute() -> None:
    deliveries = Deliveries()
    deliveries.expect(*CHAT, 10, 0.0)
    assert deliveries.late(LATE_S - 1) is None
    assert deliveries.late(LATE_S + 1) == CHAT


@pytest.mark.parametrize("version", [10, 11])
def test_what_came_by_its_watcher_is_not_late(version: int) -> None:
    deliveries = Deliveries()
    deliveries.expect(*CHAT, 10, 0.0)
    deliveries.delivered(*CHAT, version)
    assert deliveries.late(LATE_S + 1) is None


def test_an_older_version_does_not_stand_for_a_newer_one() -> None:
    deliveries = Deliveries()
    deliveries.expect(*CHAT, 10, 0.0)
    deliveries.delivered(*CHAT, 9)
    assert deliveries.late(LATE_S + 1) == CHAT


def test_an_object_that_changes_all_the_time_is_late_from_its_first_change_on() -> None:
    """Each LIST shows a newer version: if that began the minute anew, a dead watcher would never be found out."""
    deliveries = Deliveries()
    for minute in range(3):
        deliveries.expect(*CHAT, 10 + minute, minute * 30.0)
    assert deliveries.late(LATE_S + 1) == CHAT


def test_an_object_that_is_gone_is_awaited_no_more() -> None:
    """kopf tells of no deletion that happened while it was cut off: the process would end for nothing, every minute."""
    deliveries = Deliveries()
    deliveries.expect(*CHAT, 10, 0.0)
    deliveries.expect("ModelRoute", "shop/search", 11, 0.0)
    deliveries.listed("ModelRoute", {"shop/search"})
    assert deliveries.late(LATE_S + 1) == ("ModelRoute", "shop/search")


def test_a_watcher_that_is_missing_for_long_ends_the_process() -> None:
    async def main() -> None:
        await asyncio.wait_for(watch_over(lambda: 4, 5, Deliveries(), look_s=0.01, grace_s=0.05), 5)

    with pytest.raises(Blind, match="4 of 5 watchers"):
        asyncio.run(main())


def test_a_watcher_that_comes_back_in_time_does_not() -> None:
    counts = iter([4, 4, 5] * 20)

    async def main() -> None:
        with pytest.raises((TimeoutError, StopIteration, RuntimeError)):
            await asyncio.wait_for(watch_over(lambda: next(counts), 5, Deliveries(), look_s=0.01, grace_s=10.0), 0.3)

    asyncio.run(main())


def test_a_loop_that_stands_still_ends_the_process() -> None:
    """Neither /healthz nor a Lease can help a process whose loop hangs in a lock, but for the kubelet's probes; this does."""
    script = """
import asyncio, time
from stepdown.watch.watchdog import LoopWatch
async def main():
    LoopWatch(stall_s=1).start()
    await asyncio.sleep(0.1)
    time.sleep(30)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == STALLED
    assert "has not turned" in ended.stderr
    assert "time.sleep" in ended.stderr or "line 7" in ended.stderr, "and it shows where"


def test_a_loop_that_turns_goes_on() -> None:
    script = """
import asyncio
from stepdown.watch.watchdog import LoopWatch
async def main():
    LoopWatch(stall_s=4).start()
    for _ in range(60):
        await asyncio.sleep(0.1)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
