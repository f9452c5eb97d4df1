"""A proxy whose disk is full cannot write down what it is granted. In virtual time, on a real log."""

import asyncio
from pathlib import Path

import pytest

from stepdown.proxy.refusal import Refused
from stepdown.proxy.wal import LogUnavailable
from tests.unit.proxy_money import BIG, TEAM, Proxy, run, shape


def fill(proxy: Proxy, path: Path) -> None:
    """The segment is full, and another cannot be made."""
    (path / "log.new").mkdir()
    with pytest.raises(LogUnavailable):
        while True:
            proxy.till.log.grant(TEAM, 0)


def test_a_full_disk_is_called_that_and_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Callers would be told that the budget is spent until next month; and a proxy that cannot use its grants would be granted
    more with each time that it asks, until there is nothing left for those that could."""

    async def scene() -> None:
        async with Proxy(tmp_path) as proxy:
            fill(proxy, tmp_path)
            for _ in range(5):
                with pytest.raises(Refused) as refused:
                    await proxy.till.admit_later(proxy.route, "default", shape())
                assert refused.value.code == "log_unavailable"
                await asyncio.sleep(2.0)
            assert proxy.keeper.committed(TEAM) == BIG, "one ticket is what it takes to find out"
            (tmp_path / "log.new").rmdir()
            await asyncio.sleep(2.0)
            hold = proxy.till.admit(proxy.route, "default", shape())
            assert hold is not None, "what was granted has been written down now"

    run(scene())
