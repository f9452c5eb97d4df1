"""What lost proxies take along, by the real lease policy (`python -m bench.stranded` plays a whole month)."""

import asyncio
from pathlib import Path

from bench.stranded import MOST_PERCENT, month


def test_a_hard_loss_a_day_strands_less_than_a_hundredth_of_the_limit(tmp_path: Path) -> None:
    """A month of spot nodes would use a budget up without an answer."""
    days = 3
    found = asyncio.run(month(20, days, 7, tmp_path, warm_s=8))
    assert found.losses == days
    assert found.unreconciled_nusd > 0
    assert found.percent * 30 / days < MOST_PERCENT
