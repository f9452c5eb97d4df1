"""An upstream that ignores max_tokens, and `stepdown run` as a process. If this fails, it passes the ceiling every time."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepdown.ledger import Ledger
from stepdown.model.money import usd_to_nusd
from tests.e2e.process import RunProcess
from tests.upstream import SimulatorProcess

HEAD = "apiVersion: stepdown.dev/v1alpha1\n"
FLASH = "deepseek-v4-flash"
LIMIT = "0.002"
"""One answer of 5,000 tokens costs $0.00125; the worst case of 200 of them is a twentieth of that."""


@pytest.fixture
def upstream() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--output", "150", "200") as simulator:
        yield simulator


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policy"
    path.mkdir()
    (path / "policy.yaml").write_text(
        f"{HEAD}kind: ModelRoute\nmetadata: {{name: chat}}\nspec:\n  models: {{default: {FLASH}}}\n"
        "  parameters: {maxTokens: 200}\n"
        f'---\n{HEAD}kind: SpendBudget\nmetadata: {{name: team}}\nspec:\n  monthlyLimitUSD: "{LIMIT}"\n'
    )
    return path


def test_after_the_first_excess_no_second_one_passes_the_ceiling(folder: Path, upstream: SimulatorProcess) -> None:
    """Not the very next request, and not the first one after a restart with an empty log either."""
    upstream.fault("ignore_max_tokens", model=FLASH, tokens=5000)
    ledger = folder.parent / "ledger.db"
    with RunProcess(folder, ledger, upstream=upstream.url) as process:
        assert process.chat("chat").model == FLASH
        second = process.chat("chat")
        assert (second.status, second.model != FLASH) == (200, True), "the answer still comes, by what fits"
        said = process.wait_for("UpstreamExceededMaxTokens")
        assert "SpendBudget default/team" in said["msg"] and "DeepSeek" in said["msg"]
    with RunProcess(folder, ledger, upstream=upstream.url) as process:
        third = process.chat("chat")
        assert (third.status, third.model != FLASH) == (200, True)
    assert upstream.final_bill()["total_nusd"] <= usd_to_nusd(LIMIT)
    opened = Ledger.open(ledger, create=False, read_only=True)
    (balance,) = (each for each in opened.balances(0.0, ended=True).values() if each.spent_nusd)
    opened.close()
    assert balance.spent_nusd == upstream.final_bill()["total_nusd"]
    assert [each.model for each in balance.overruns] == ["DeepSeek V4 Flash"] and balance.excess_nusd > 0
