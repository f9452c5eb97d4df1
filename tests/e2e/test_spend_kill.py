"""`stepdown run` is killed with kill -9 in the middle of its requests, twice, and started again on the same ledger."""

import asyncio
import time
from pathlib import Path

import pytest

from stepdown.budget.account import Balance
from stepdown.ledger import Ledger
from tests.e2e.crowd import Crowd
from tests.e2e.process import RunProcess
from tests.upstream import SimulatorProcess

LIMIT_NUSD = 50_000_000
POLICY = """\
apiVersion: stepdown.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat, namespace: default}
spec:
  models: {default: deepseek-ai/DeepSeek-V4-Flash}
  stepDown: {models: [qwen3-8b]}
  parameters: {maxTokens: 600}
---
apiVersion: stepdown.dev/v1alpha1
kind: SpendBudget
metadata: {name: all, namespace: default}
spec:
  monthlyLimitUSD: "0.05"
  enforcement: Hard
"""


def balance(ledger: Path) -> Balance:
    """The account of the budget, read from the file while nobody keeps it."""
    opened = Ledger.open(ledger, create=False, read_only=True)
    try:
        now_s = time.time()  # noqa: TID251 - the run went by the machine's clock
        (found,) = [each for each in opened.balances(now_s).values() if each.committed_nusd]
        return found
    finally:
        opened.close()


@pytest.mark.slow
def test_kill_9_in_the_middle_costs_nobody_a_nano_dollar_above_the_ceiling(tmp_path: Path) -> None:
    """A user whose proxy is killed by the kernel would find requests on the bill that no ledger knows."""
    policies, ledger = tmp_path / "policies", tmp_path / "ledger.db"
    policies.mkdir()
    (policies / "chat.yaml").write_text(POLICY)

    async def crowd(run: RunProcess, sim: SimulatorProcess, kill_after: int | None) -> Crowd:
        """Spends until nothing is left, or until so many more requests are at the upstream and some are billed: kill -9."""
        spenders = Crowd(run.port, "chat", clients=80, seed=kill_after or 1)
        spending = asyncio.create_task(spenders.spend())
        if kill_after is not None:
            already = now = await asyncio.to_thread(sim.bill)
            while now["requests"] < already["requests"] + kill_after or now["total_nusd"] == already["total_nusd"]:
                now = await asyncio.to_thread(sim.bill)
                assert not spending.done(), "the budget was gone before the kill"
            run.kill()
            spenders.stop.set()
        await spending
        return spenders

    with SimulatorProcess("--latency", "0.02", "0.1", "0.5", "--chunk-delay", "0.005", "--keep", "0") as sim:
        bills_nusd = []
        for kill_after in (120, 90):
            run = RunProcess(policies, ledger, upstream=sim.url).start()
            asyncio.run(crowd(run, sim, kill_after))
            run.close()
            bill = sim.final_bill()
            assert bill["outcomes"].get("interrupted", 0) > 0, "nothing was in flight when it was killed"
            bills_nusd.append(bill["total_nusd"])
        with RunProcess(policies, ledger, upstream=sim.url) as run:
            last = asyncio.run(crowd(run, sim, None))
            assert not last.other, last.other[0]
            assert last.refusals, "the budget was not spent to its end"
            bill_nusd = sim.final_bill()["total_nusd"]
        left = balance(ledger)
        assert bills_nusd[0] < bills_nusd[1] < bill_nusd <= LIMIT_NUSD
        assert left.limit_nusd == LIMIT_NUSD
        assert bill_nusd <= left.spent_nusd + left.unreconciled_nusd <= LIMIT_NUSD
        assert left.estimated_nusd > 0, "what was in flight at the kill must be charged"
        assert left.unreconciled_nusd == 0, "the log was whole: the id should have been taken up again, not lost"
        assert left.reserved_nusd == 0
